"""What a URL asks for: a span of time, a filter, an order. All of it comes from anybody."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import NamedTuple
from urllib.parse import parse_qsl, urlencode

from paste_agent.store.history import Window, window_of

RANGES = {"15m": 900, "1h": 3600, "6h": 21_600, "24h": 86_400, "7d": 604_800, "30d": 2_592_000}
DEFAULT_RANGE = "1h"
_UNITS_S = {"m": 60, "h": 3600, "d": 86_400}
_RANGE = re.compile(r"([0-9]{1,5})([mhd])")
_MOST_RANGE_S = 400 * 86_400
_MOST_FIELDS = 40
_MOST_TEXT = 1000
_SECONDS = re.compile(r"[0-9]{1,10}(\.[0-9]{1,9})?")
_TIMES = "expected a time of UTC such as 2026-03-01T09:30, or seconds since 1970"
#: From which age on the store keeps no finer rollups than these: finer steps would show gaps. s
_AGED = ((4 * 86_400, 3600), (6 * 3600, 60))


class BadQuery(Exception):
    """A query that makes no sense; str() says which part of it, and what was expected."""


class Span(NamedTuple):
    """The span of time that a page is about, s since the epoch."""

    start_s: float
    end_s: float
    now_s: float
    params: Mapping[str, str]  #: that lead to it, for links
    label: str

    @property
    def is_live(self) -> bool:
        """Whether it ends now, wherever now is."""
        return "to" not in self.params

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s

    def window(self, most_points: int = 120) -> Window:
        """Its steps: not finer than what the store still knows of that time."""
        least = next((width for age_s, width in _AGED if self.now_s - self.start_s > age_s + width), 10)
        return window_of(self.start_s, self.end_s, max(1, min(most_points, int(self.seconds // least))))


class Query:
    """The fields of a query string; of several with one name the first counts."""

    def __init__(self, text: str) -> None:
        try:
            pairs = parse_qsl(text, keep_blank_values=True, errors="replace", max_num_fields=_MOST_FIELDS)
        except ValueError:
            raise BadQuery(f"the address has more than {_MOST_FIELDS} fields") from None
        self.fields: dict[str, str] = {}
        for name, value in pairs:
            if len(value) > _MOST_TEXT:
                raise BadQuery(f"{name[:40]}: longer than {_MOST_TEXT:,} characters")
            self.fields.setdefault(name, value)

    def text(self, name: str) -> str | None:
        """A value; None for one that is not there, or says nothing."""
        return self.fields.get(name) or None

    def choice(self, name: str, known: Sequence[str], default: str) -> str:
        value = self.fields.get(name) or default
        if value not in known:
            raise BadQuery(f"{name} = {value!r}: expected {either(known)}")
        return value

    def number(self, name: str, low: float, high: float) -> float | None:
        """A number within these bounds; None where there is none."""
        value = self.text(name)
        if value is None:
            return None
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not low <= number <= high:  # a NaN fails too
            raise BadQuery(f"{name} = {value!r}: expected a number from {low:g} to {high:g}")
        return number

    def flag(self, name: str) -> bool:
        return self.choice(name, ("0", "1"), "0") == "1"

    def span(self, now_s: float) -> Span:
        """`range`, such as 6h, until now; or `from` and `to`, of which the latter may be left out."""
        begin, end = self.text("from"), self.text("to")
        if begin is None and end is None:
            word = self.text("range") or DEFAULT_RANGE
            match = _RANGE.fullmatch(word)
            seconds = int(match[1]) * _UNITS_S[match[2]] if match else 0
            if not 60 <= seconds <= _MOST_RANGE_S:
                raise BadQuery(f"range = {word!r}: expected a length of time such as 15m, 6h or 30d")
            return Span(now_s - seconds, now_s, now_s, {"range": word}, f"the last {word}")
        if begin is None:
            raise BadQuery("`to` needs a `from`: say where the span of time begins")
        start_s = _time("from", begin)
        end_s = now_s if end is None else _time("to", end)
        if not start_s < end_s:
            raise BadQuery(f"from = {begin!r}: expected a time before {'now' if end is None else f'to = {end!r}'}")
        if end_s - start_s > _MOST_RANGE_S:
            raise BadQuery(f"from = {begin!r}: more than {_MOST_RANGE_S // 86_400} days before the end")
        params = {"from": begin} if end is None else {"from": begin, "to": end}
        # A span of no length has no points.
        return Span(start_s, max(end_s, start_s + 10), now_s, params, "a span of time")


def either(words: Iterable[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last


def url_of(path: str, params: Mapping[str, object]) -> str:
    """A path with a query of what is not None."""
    fields = {name: str(value) for name, value in params.items() if value is not None}
    return f"{path}?{urlencode(fields)}" if fields else path


def _time(name: str, text: str) -> float:
    if _SECONDS.fullmatch(text):
        return float(text)
    try:
        found = datetime.fromisoformat(text.strip().replace("Z", "+00:00").replace(" ", "T", 1))
        found = found if found.tzinfo is not None else found.replace(tzinfo=timezone.utc)
        seconds = found.timestamp()
    except (ValueError, OverflowError):
        seconds = -1.0
    if not 0 <= seconds < 1e10:
        raise BadQuery(f"{name} = {text!r}: {_TIMES}")
    return seconds
