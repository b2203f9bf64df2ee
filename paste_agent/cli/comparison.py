"""`paste-agent report --compare`: two spans of time side by side, and which differences are more than chance.

Shares, of failed requests or of those above the 95th percentile of both spans together, are compared by a test of two
proportions with Yates' correction; rates by the difference of two Poisson counts. A mark takes a chance below one in a
hundred for the whole table: the more is compared, the more each difference has to be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

from rich.text import Text

from paste_agent.aggregate import REQUEST_DURATION, SLOT_S, Total
from paste_agent.cli.style import duration, numbers, printable, share_text, table_of
from paste_agent.store import deployments, history
from paste_agent.store.inside_summary import latency, rfc3339
from paste_agent.store.store import Store
from paste_agent.store.summary import RouteTotal, by_route
from paste_agent.wording import rate_text

_LEVEL = 0.01
#: What is less than that is nothing to act upon, however sure: of a quantile, the width of a bucket; of a rate.
_LEAST_QUANTILE, _LEAST_RATE = 0.09, 0.1
_QUANTILE = 0.95
#: Of a rollup, s.
_WIDEST_S = 3600
#: What is compared of each route.
CHANGES = ("throughput", "p95_s", "error_rate")
_ALL = "all requests"
_NOTHING = RouteTotal(Total(), 0)


class Sides(NamedTuple):
    """Two spans of time, s since the epoch. version: of the deployment between them, '' for none."""

    before: tuple[float, float]
    after: tuple[float, float]
    version: str = ""


class Row(NamedTuple):
    """One route on both sides. changes: those of CHANGES that are more than chance."""

    name: str
    before: RouteTotal
    after: RouteTotal
    changes: frozenset[str]


class Comparison(NamedTuple):
    sides: Sides
    whole: Row
    routes: Sequence[Row]  #: those with a change first, among them what took most time

    def as_object(self) -> dict[str, Any]:
        """A stable interface, fields are added and not renamed."""
        return {
            "version": self.sides.version or None,
            "before": {"from": rfc3339(self.sides.before[0]), "to": rfc3339(self.sides.before[1])},
            "after": {"from": rfc3339(self.sides.after[0]), "to": rfc3339(self.sides.after[1])},
            "all": self._row(self.whole),
            "routes": [self._row(row) for row in self.routes],
        }

    def _row(self, row: Row) -> dict[str, Any]:
        return {
            "name": row.name,
            "before": _figures(row.before, _seconds(self.sides.before)),
            "after": _figures(row.after, _seconds(self.sides.after)),
            "significant": {name: name in row.changes for name in CHANGES},
        }


def around(store: Store, version: str, start_s: float, end_s: float, longest_s: float) -> Sides | None:
    """As long before the newest deployment of a version as after it; None when it was not marked.

    [start_s, end_s): what the store knows. Neither side holds another deployment, nor is longer than `longest_s`. What
    the store has of the moment itself, where both versions are mixed, is in neither. Raises sqlite3.Error.
    """
    marked = deployments.between(store, 0.0, end_s + 1)
    places = [place for place, one in enumerate(marked) if one.version == version]
    if not places:
        return None
    place = places[-1]
    low_s, high_s = _slot_of(store, marked[place].at_s)
    until_s = _slot_of(store, marked[place + 1].at_s)[0] if place + 1 < len(marked) else end_s
    since_s = max(start_s, _slot_of(store, marked[place - 1].at_s)[1] if place else start_s)
    # Whole slots: half of one that is an hour wide would count as all of it, or as nothing.
    width_s = high_s - low_s
    length_s = max(width_s, min(until_s - high_s, longest_s) // width_s * width_s)
    return Sides((min(low_s, max(since_s, low_s - length_s)), low_s), (high_s, high_s + length_s), version)


def _slot_of(store: Store, at_s: float) -> tuple[float, float]:
    """Where the rollup begins and ends that a moment falls into: the older it is, the wider."""
    ((low, high),) = store.query(
        "SELECT min(start), max(start + width) FROM rollups WHERE start > ? AND start <= ? AND start + width > ?",
        (at_s - _WIDEST_S, at_s, at_s),
    )
    return (at_s // SLOT_S * SLOT_S, at_s // SLOT_S * SLOT_S + SLOT_S) if low is None else (float(low), float(high))


def compare(store: Store, sides: Sides) -> Comparison:
    """Raises what store.READ_ERRORS names."""
    before, after = (by_route(history.totals(store, *side, [REQUEST_DURATION])) for side in sides[:2])
    names = {**before, **after}
    # Three of each route, and of all of them together.
    z = NormalDist().inv_cdf(1 - _LEVEL / (2 * len(CHANGES) * (len(names) + 1)))
    rows = [_row(name, before.get(name, _NOTHING), after.get(name, _NOTHING), sides, z) for name in names]
    whole = _row(_ALL, RouteTotal.of_all(before.values()), RouteTotal.of_all(after.values()), sides, z)
    rows.sort(key=lambda row: (not row.changes, -max(row.before.total.sum_ns, row.after.total.sum_ns)))
    return Comparison(sides, whole, rows)


def _row(name: str, before: RouteTotal, after: RouteTotal, sides: Sides, z: float) -> Row:
    changes = set()
    if _rates_differ(before.total.count, _seconds(sides.before), after.total.count, _seconds(sides.after), z):
        changes.add("throughput")
    if _quantiles_differ(before.total, after.total, z):
        changes.add("p95_s")
    if _shares_differ(before.errors, before.total.count, after.errors, after.total.count, z):
        changes.add("error_rate")
    return Row(name, before, after, frozenset(changes))


def _seconds(side: tuple[float, float]) -> float:
    return max(0.0, side[1] - side[0])


# -- more than chance ----------------------------------------------------------------------------------------------


def _shares_differ(part: int, whole: int, other_part: int, other_whole: int, z: float) -> bool:
    if not whole or not other_whole:
        return False
    pooled = (part + other_part) / (whole + other_whole)
    spread = math.sqrt(pooled * (1 - pooled) * (1 / whole + 1 / other_whole))
    # Yates: counts are whole numbers, which matters where they are small.
    difference = abs(part / whole - other_part / other_whole) - (1 / whole + 1 / other_whole) / 2
    return spread > 0 and difference / spread > z


def _rates_differ(count: int, seconds: float, other: int, other_seconds: float, z: float) -> bool:
    if seconds <= 0 or other_seconds <= 0:
        return False
    rate, other_rate = count / seconds, other / other_seconds
    spread = math.sqrt(count / seconds**2 + other / other_seconds**2)
    difference = abs(rate - other_rate)
    return spread > 0 and difference / spread > z and difference >= _LEAST_RATE * max(rate, other_rate)


def _quantiles_differ(before: Total, after: Total, z: float) -> bool:
    """Whether more, or fewer, are above what the 95th percentile of both together is."""
    if not before.count or not after.count:
        return False
    ours, theirs = before.quantile_ns(_QUANTILE), after.quantile_ns(_QUANTILE)
    if abs(ours - theirs) < _LEAST_QUANTILE * max(ours, theirs):
        return False
    both = Total()
    both.add(before)
    both.add(after)
    rank, below, edge = _QUANTILE * both.count, 0, 0
    for edge in sorted(both.buckets):
        below += both.buckets[edge]
        if below >= rank:
            break
    above, above_after = (
        sum(count for bucket, count in total.buckets.items() if bucket > edge) for total in (before, after)
    )
    at_least, at_least_after = (
        sum(count for bucket, count in total.buckets.items() if bucket >= edge) for total in (before, after)
    )
    # A bucket that holds much of both may lie on either side of the border: what tells them apart best counts.
    return _shares_differ(above, before.count, above_after, after.count, z) or _shares_differ(
        at_least, before.count, at_least_after, after.count, z
    )


# -- the page ------------------------------------------------------------------------------------------------------


def _figures(one: RouteTotal, seconds: float) -> dict[str, Any]:
    count = one.total.count
    return {
        "requests": count,
        "errors": one.errors,
        "error_rate": round(one.errors / count, 6) if count else None,
        "throughput": round(count / seconds, 6) if seconds > 0 else None,
        **{name: value for name, value in latency(one.total).items() if name != "count"},
    }


def page(comparison: Comparison, limit: int) -> list[Any]:
    """A table for people, with what it compares above it."""
    sides = comparison.sides
    what = f"before and after {printable(sides.version)}" if sides.version else "before and now"
    table = table_of(f"Compared, {what}")
    table.add_column("route", overflow="fold", ratio=1)
    numbers(table, "requests", "throughput", "p95", "errors")
    for row in (comparison.whole, *comparison.routes[:limit]):
        table.add_row(Text(printable(row.name), style="bold" if row is comparison.whole else ""), *_cells(row, sides))
    rest = len(comparison.routes) - limit
    notes = [f"{rest} more; --limit {len(comparison.routes)} lists all"] if rest > 0 else []
    if any(row.changes for row in (comparison.whole, *comparison.routes)):
        notes.append("▲▼: more than chance")
    else:
        notes.append("no difference is more than chance")
    table.caption = "; ".join(notes)
    return [_spans(sides), table]


def _spans(sides: Sides) -> Text:
    def told(side: tuple[float, float]) -> str:
        return f"{rfc3339(side[0])[:19]}Z – {rfc3339(side[1])[:19]}Z"

    return Text.assemble(("before  ", "dim"), told(sides.before), "\n", ("after   ", "dim"), told(sides.after), "\n")


def _cells(row: Row, sides: Sides) -> list[Text]:
    before, after = _figures(row.before, _seconds(sides.before)), _figures(row.after, _seconds(sides.after))
    p95 = [duration(one["p95_s"]) if one["requests"] else "–" for one in (before, after)]
    errors = ["–" if one["error_rate"] is None else share_text(one["error_rate"]) for one in (before, after)]
    rates = [rate_text(one["requests"], _seconds(side)) for one, side in zip((before, after), sides[:2], strict=True)]
    return [
        Text(f"{before['requests']:,} → {after['requests']:,}", style="dim"),
        _change(row, "throughput", rates, before, after, ""),
        _change(row, "p95_s", p95, before, after, "red"),
        _change(row, "error_rate", errors, before, after, "red"),
    ]


def _change(
    row: Row, name: str, told: Sequence[str], before: Mapping[str, Any], after: Mapping[str, Any], worse: str
) -> Text:
    text = f"{told[0]} → {told[1]}"
    if name not in row.changes:
        return Text(f"{text}  ", style="dim")
    rises = after[name] > before[name]
    style = (worse if rises else "green") if worse else "yellow"
    return Text(f"{text} {'▲' if rises else '▼'}", style=f"bold {style}")
