"""Lengths and points of time as they are given on a command line."""

from __future__ import annotations

import re
import time
from datetime import datetime
from typing import Any

import click

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_SPAN = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhd])", re.ASCII)
#: A clock that is a little fast marks nothing in the future.
_FUTURE_S = 60.0


def span_s(text: str) -> float | None:
    """Seconds of a length such as 10m; None for what is none."""
    match = _SPAN.fullmatch(text)
    return float(match[1]) * _UNITS_S[match[2]] if match is not None and float(match[1]) else None


class Span(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click alone
    """A length of time, such as 10m; converts to seconds."""

    name = "span"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        found = span_s(str(value))
        if found is None:
            self.fail(f"{value!r}: expected a number and s, m, h or d, for example 10m", param, ctx)
        return found


class Moment(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click alone
    """A point of time in the past, such as 2026-11-26T14:00Z, or how long ago; converts to s since the epoch."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        text = str(value)
        ago = span_s(text)
        if ago is not None:
            return time.time() - ago
        try:
            # Python 3.10 does not know the Z.
            found = datetime.fromisoformat(f"{text[:-1]}+00:00" if text.endswith(("Z", "z")) else text)
            at_s = found.timestamp()
        except (ValueError, OverflowError, OSError):
            self.fail(f"{value!r}: expected a time such as 2026-11-26T14:00Z, or how long ago, such as 10m", param, ctx)
        if found.tzinfo is None:
            self.fail(f"{value!r}: of which time zone? Add Z for UTC, or an offset such as +02:00", param, ctx)
        if not 0 < at_s <= time.time() + _FUTURE_S:
            self.fail(f"{value!r}: is in the future", param, ctx)
        return at_s
