"""What can be sent of a store's metrics, whatever the format. Pure: no clock, no network.

What comes from the store is not trusted: a metric that this version does not know, and a figure that no exporter could
say, is left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping

from paste_agent.aggregate import BOUNDS, REQUEST_DURATION, Total
from paste_agent.metrics import APDEX, APDEX_ZONE, Metric, Reading, counted, lookup
from paste_agent.store.store import Counters, SeriesTotal

INT64_MIN, INT64_MAX = -(1 << 63), (1 << 63) - 1
ZONES = ("satisfied", "tolerating", "frustrated")


def points_of(
    totals: Iterable[SeriesTotal], counters: Counters, readings: Iterable[Reading]
) -> Iterator[tuple[Metric, Mapping[str, object], Total | int | float]]:
    """All that can be sent: durations as the store has them, numbers in the unit of their metric."""
    zones: dict[str, int] = {}
    for series in totals:
        row = lookup(series.metric)
        if row is None or not _sane(series.total):
            continue
        if row.instrument == "counter":
            value = counted(series.metric, series.total.count, series.total.sum_ns)
            if _fits(row, value):
                yield row, series.attributes, value
            continue
        if row.instrument != "histogram":
            continue
        yield row, series.attributes, series.total
        if series.metric == REQUEST_DURATION:
            for zone in ZONES:
                zones[zone] = zones.get(zone, 0) + getattr(series.total, zone)
    apdex = lookup(APDEX)
    assert apdex is not None
    for zone, rated in zones.items():
        yield apdex, {APDEX_ZONE: zone}, rated
    for (name, attributes), count in counters.items():
        row = lookup(name)
        if row is not None and _fits(row, count):
            yield row, _parsed(attributes), count if row.divisor == 1 else count / row.divisor
    for reading in readings:
        row = lookup(reading.metric)
        if row is not None and _fits(row, reading.value):
            yield row, reading.attributes, reading.value


def _fits(row: Metric, value: object) -> bool:
    if row.instrument == "histogram" or not isinstance(value, (int, float)) or not math.isfinite(value):
        return False
    low = 0 if row.instrument == "counter" else INT64_MIN
    return low <= value < INT64_MAX


def _sane(total: Total) -> bool:
    """Whether no number is below zero, and every bucket is one that this version has."""
    numbers = (total.sum_ns, total.max_ns, total.satisfied, total.tolerating, total.frustrated)
    return (
        min(numbers) >= 0 and max(total.buckets, default=0) <= len(BOUNDS) and sum(total.buckets.values()) <= INT64_MAX
    )


def _parsed(attributes: str) -> Mapping[str, object]:
    try:
        parsed = json.loads(attributes)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}
