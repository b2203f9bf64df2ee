"""Sums and points over any span of time of a store, fast enough for a page. Reads only.

Several calls that are to see one state of the store belong into `with store.reading():`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from paste_agent.aggregate import Total
from paste_agent.store.store import SeriesTotal, Store

_DAY = 86_400
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
    """What `Store.totals_between` returns, of these metrics and attributes.

    metrics: None: all. where: what attributes must be equal to; None: the series has no such attribute.
    Raises what store.READ_ERRORS names.
    """
    return [
        found
        for found in store.totals_between(start_s, end_s)
        if (metrics is None or found.metric in metrics) and _matches(found.attributes, where)
    ]


def points(
    store: Store, window: Window, metric: str, where: Mapping[str, object] | None = None, by: str | None = None
) -> dict[str | None, list[Total]]:
    """A metric over time: one Total for each step of the window, empty ones included.

    Under None: all together. With `by` also under each value of that attribute, as text; under "" what has no such
    attribute. where: as of `totals`. Rows of the store that are wider than a step count where they begin.
    Raises what store.READ_ERRORS names.
    """
    found: dict[str | None, list[Total]] = {None: [Total() for _ in window.starts]}
    with store.reading():
        for place, start_s in enumerate(window.starts):
            for one in totals(store, start_s, start_s + window.step_s, [metric], where):
                keys = [None] if by is None else [None, str(one.attributes.get(by, ""))]
                for key in keys:
                    found.setdefault(key, [Total() for _ in window.starts])[place].add(one.total)
    return found


def _matches(attributes: Mapping[str, object], where: Mapping[str, object] | None) -> bool:
    return not where or all(attributes.get(name) == value for name, value in where.items())
