"""Sums and points over any span of time of a store, fast enough for a page. Reads only.

Several calls that are to see one state of the store belong into `with store.reading():`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from paste_agent.aggregate import Total
from paste_agent.store import cover
from paste_agent.store.store import SeriesTotal, Store, json_object

_DAY = 86_400
_FAR = 1 << 60  #: further than any time that is meant; SQLite's integers still hold it
#: Widths of a point that a reader takes in at a glance, s.
STEPS = (10, 60, 300, 900, 3600, 6 * 3600, _DAY)


class Window(NamedTuple):
    """A span of time in steps of one width, s since the epoch; both ends are multiples of the step."""

    start_s: int
    end_s: int  #: exclusive
    step_s: int

    @property
    def starts(self) -> range:
        """Where each step begins."""
        return range(self.start_s, self.end_s, self.step_s)


def window_of(start_s: float, end_s: float, most_points: int = 120) -> Window:
    """The window that holds [start_s, end_s), in steps that are as fine as `most_points` allows.

    Its ends are moved outwards to multiples of the step, which may make one step more. One step at the least.
    """
    length_s = max(0.0, end_s - start_s)
    step_s = next((step for step in STEPS if length_s / step <= most_points), None)
    if step_s is None:
        step_s = _DAY * int(-(-length_s // (_DAY * most_points)))
    start = int(start_s // step_s) * step_s
    end = -int(-end_s // step_s) * step_s
    return Window(start, max(end, start + step_s), step_s)


def totals(
    store: Store,
    start_s: float,
    end_s: float,
    metrics: Sequence[str] | None = None,
    where: Mapping[str, object] | None = None,
) -> list[SeriesTotal]:
    """What `Store.totals_between` returns, of these metrics and attributes; in no order.

    metrics: None: all. where: what attributes must be equal to; None: the series has no such attribute.
    Raises what store.READ_ERRORS names.
    """
    start, end = (math.ceil(min(max(at, -_FAR), _FAR)) for at in (start_s, end_s))
    with store.reading():
        series = _series(store, metrics, where)
        keys = None if metrics is None and not where else {number: number for number in series}
        found = cover.sums(store, cover.cover(cover.state_of(store), start, end, cover.SERIES), keys)
        # By their numbers, as they were made.
        ordered = sorted(
            ((number, total) for (_, number), total in found.items() if number in series), key=lambda one: one[0]
        )
    return [SeriesTotal(*series[number], total) for number, total in ordered]


def points(
    store: Store, window: Window, metric: str, where: Mapping[str, object] | None = None, by: str | None = None
) -> dict[str | None, list[Total]]:
    """A metric over time: one Total for each step of the window, empty ones included.

    Under None: all together. With `by` also under each value of that attribute, as text; under "" what has no such
    attribute. where: as of `totals`. Rows of the store that are wider than a step count where they begin.
    Raises what store.READ_ERRORS names.
    """
    names: dict[str | None, int] = {}
    with store.reading():
        members = {
            number: names.setdefault(None if by is None else _text(attributes.get(by)), len(names))
            for number, (_, attributes) in (
                *_series(store, [metric], where).items(),
                *_groups(store, metric, where, by).items(),
            )
        }
        kind = cover.GROUPS if _is_grouped(metric, where, by) else cover.SERIES
        pieces = cover.cover(cover.state_of(store), window.start_s, window.end_s, kind, window.step_s)
        found = cover.sums(store, pieces, members, window.start_s, window.step_s)
    slots = range(len(window.starts))
    lines = {name: [found.get((slot, key)) or Total() for slot in slots] for name, key in names.items()}
    if by is None:
        return {None: lines.get(None) or [Total() for _ in slots]}
    whole: list[Total] = [cover.Summed() for _ in slots]
    for line in lines.values():
        for total, one in zip(whole, line, strict=True):
            total.add(one)
    return {None: whole, **{name: line for name, line in lines.items() if any(total.count for total in line)}}


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _is_grouped(metric: str, where: Mapping[str, object] | None, by: str | None) -> bool:
    """Whether the groups of a metric tell what is asked."""
    names = cover.grouped_by(metric)
    return names is not None and {*(where or ()), *(() if by is None else (by,))} <= set(names)


def _series(
    store: Store, metrics: Sequence[str] | None, where: Mapping[str, object] | None
) -> dict[int, tuple[str, Mapping[str, Any]]]:
    """Metric and attributes of the series that are meant, by number."""
    return _chosen(store, "series", metrics, where)


def _groups(
    store: Store, metric: str, where: Mapping[str, object] | None, by: str | None
) -> dict[int, tuple[str, Mapping[str, Any]]]:
    """The same of groups, whose numbers are negative; none where they do not tell what is asked."""
    if store.version < cover.VERSION or not _is_grouped(metric, where, by):
        return {}
    return {-number: found for number, found in _chosen(store, "copy_groups", [metric], where).items()}


def _chosen(
    store: Store, table: str, metrics: Sequence[str] | None, where: Mapping[str, object] | None
) -> dict[int, tuple[str, Mapping[str, Any]]]:
    asked, parameters = ["1"], list[object]()
    if metrics is not None:
        asked.append(f"metric IN ({', '.join('?' * len(metrics))})")
        parameters += metrics
    for name, value in (where or {}).items():
        # As canonical JSON has it: a first choice, so that few are looked at as JSON. A text cannot look like a name,
        # since its quotes are escaped.
        asked.append("NOT instr(attributes, ?)" if value is None else "instr(attributes, ?)")
        parameters.append(f"{json.dumps(name)}: {'' if value is None else json.dumps(value)}")
    rows = store.query(f"SELECT id, metric, attributes FROM {table} WHERE {' AND '.join(asked)}", parameters)
    chosen = ((number, metric, json_object(attributes)) for number, metric, attributes in rows)
    return {number: (metric, found) for number, metric, found in chosen if _matches(found, where)}


def _matches(attributes: Mapping[str, object], where: Mapping[str, object] | None) -> bool:
    return not where or all(attributes.get(name) == value for name, value in where.items())
