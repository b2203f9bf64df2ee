"""Folds records into totals. Pure: no clock, no file.

Durations are counted in fine buckets, eight to each doubling, which also have every bound that is exported: what a
collector gets is exact, and a percentile of the report is off by at most 5 %.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from paste_agent.recorder import layout
from paste_agent.recorder.layout import FAILED, KIND_OVERFLOW, RECORD_SIZE
from paste_agent.recorder.reader import Reader

REQUEST_DURATION = "http.server.request.duration"
QUEUE_DURATION = "paste_agent.request.queue.duration"
REPORT_DURATION = "paste_agent.report.duration"
TASK_DURATION = "paste_agent.background_task.duration"
BOOT_DURATION = "paste_agent.worker.boot.duration"
WORKER_LOST = "paste_agent.worker.lost"
DATABASE_DURATION = "db.client.operation.duration"
CALL_DURATION = "http.client.request.duration"
LAYER_DURATION = "paste_agent.layer.duration"
LOAD_DURATION = "paste_agent.layer.load.duration"
PART_DURATION = "paste_agent.transaction.part.duration"
PART_SPANS = "paste_agent.transaction.part.spans"
ERRORS = "paste_agent.errors"
#: Before the names of what an application measures itself.
TIMING, COUNT = "timing:", "count:"
#: The name of what comes after the bound.
CUSTOM_OVERFLOW = "paste_agent.custom.overflow"
KIND_NAMES = {
    layout.KIND_SERVER: REQUEST_DURATION,
    layout.KIND_BACKGROUND: TASK_DURATION,
    layout.KIND_BOOT: BOOT_DURATION,
    layout.KIND_LOST: WORKER_LOST,
    layout.KIND_DATABASE: DATABASE_DURATION,
    layout.KIND_CALL: CALL_DURATION,
    layout.KIND_LAYER: LAYER_DURATION,
    layout.KIND_LOAD: LOAD_DURATION,
    layout.KIND_PART: PART_DURATION,
    layout.KIND_ERROR: ERRORS,
    layout.KIND_TIMING: TIMING,
    layout.KIND_COUNT: COUNT,
}
OVERFLOW = '{"otel.metric.overflow": true}'
NO_ATTRIBUTES = "{}"

#: Seconds; OpenTelemetry's advice for HTTP durations.
EXPORT_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
#: And for those of databases.
DATABASE_BOUNDS_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
_NS = 1_000_000_000
EXPORT_BOUNDS_NS = tuple(round(bound * _NS) for bound in EXPORT_BOUNDS_S)
_DATABASE_BOUNDS_NS = tuple(round(bound * _NS) for bound in DATABASE_BOUNDS_S)
#: Nanoseconds, from 8 µs to 18 min; bucket i holds what is above BOUNDS[i - 1] and at most BOUNDS[i]. A change of them
#: changes what the numbers in a store mean: see store.pack_buckets.
BOUNDS = tuple(
    sorted({round(2 ** (step / 8)) for step in range(13 * 8, 40 * 8 + 1)} | {*EXPORT_BOUNDS_NS, *_DATABASE_BOUNDS_NS})
)
#: Width of the finest rollup.
SLOT_S = 10
_CELL_BITS = 9  # of a bucket's number beside a series' in one integer: BOUNDS has fewer than 500
#: A record that ends so far ahead of the clock was not written by an agent.
_FUTURE_NS = 60 * _NS


class Total:
    """What is known of the durations of one series."""

    # No dataclass: every worker imports this module, and `dataclasses` alone would be half a megabyte.
    __slots__ = ("buckets", "count", "frustrated", "max_ns", "satisfied", "sum_ns", "tolerating")

    def __init__(
        self,
        count: int = 0,
        sum_ns: int = 0,
        max_ns: int = 0,
        satisfied: int = 0,
        tolerating: int = 0,
        frustrated: int = 0,
        buckets: dict[int, int] | None = None,
    ) -> None:
        """buckets: counts by index into BOUNDS."""
        self.count = count
        self.sum_ns = sum_ns
        self.max_ns = max_ns
        self.satisfied = satisfied
        self.tolerating = tolerating
        self.frustrated = frustrated
        self.buckets = {} if buckets is None else buckets

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Total):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in Total.__slots__)

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return f"Total({', '.join(f'{name}={getattr(self, name)!r}' for name in Total.__slots__)})"

    def add(self, other: Total) -> None:
        self.count += other.count
        self.sum_ns += other.sum_ns
        self.max_ns = max(self.max_ns, other.max_ns)
        self.satisfied += other.satisfied
        self.tolerating += other.tolerating
        self.frustrated += other.frustrated
        for bucket, count in other.buckets.items():
            self.buckets[bucket] = self.buckets.get(bucket, 0) + count

    def observe(self, duration_ns: int) -> None:
        bucket = bisect_left(BOUNDS, duration_ns)
        self.count += 1
        self.sum_ns += duration_ns
        self.max_ns = max(self.max_ns, duration_ns)
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1

    def quantile_ns(self, share: float) -> float:
        """The duration that `share` of all stay below: 0.95 for p95. 0 for an empty total.

        It is the middle of its bucket: nothing says how the durations lie within, and from there none is far.
        """
        rank = share * self.count
        below = 0
        for bucket in sorted(self.buckets):
            below += self.buckets[bucket]
            if below >= rank:
                low = BOUNDS[bucket - 1] if bucket else 0
                high = BOUNDS[bucket] if bucket < len(BOUNDS) else self.max_ns
                return min((low + high) / 2, float(self.max_ns))
        return float(self.max_ns)

    def apdex(self) -> float | None:
        """Satisfied and half of the tolerating, of all; None for an empty total."""
        rated = self.satisfied + self.tolerating + self.frustrated
        return (self.satisfied + self.tolerating / 2) / rated if rated else None

    def export_counts(self, bounds_s: tuple[float, ...] = EXPORT_BOUNDS_S) -> list[int]:
        """Counts of the buckets that `bounds_s` divides, one more than there are bounds.

        bounds_s: EXPORT_BOUNDS_S or DATABASE_BOUNDS_S, see `export_bounds`.
        """
        counts = [0] * (len(bounds_s) + 1)
        bucket_of = _EXPORT_BUCKETS[bounds_s]
        for bucket, count in self.buckets.items():
            counts[bucket_of[bucket]] += count
        return counts


_EXPORT_BUCKETS: dict[tuple[float, ...], list[int]] = {
    bounds_s: [bisect_left(bounds_ns, bound) for bound in BOUNDS] + [len(bounds_ns)]
    for bounds_s, bounds_ns in ((EXPORT_BOUNDS_S, EXPORT_BOUNDS_NS), (DATABASE_BOUNDS_S, _DATABASE_BOUNDS_NS))
}


def export_bounds(metric: str) -> tuple[float, ...]:
    """Seconds: where the buckets of a metric end that a collector gets."""
    return DATABASE_BOUNDS_S if metric == DATABASE_DURATION else EXPORT_BOUNDS_S


#: Metric name and attributes as canonical JSON.
SeriesKey = tuple[str, str]


class Delta:
    """What one drain adds, by series and by the slot of time that it falls into."""

    def __init__(self) -> None:
        self.totals: dict[tuple[SeriesKey, int], Total] = {}

    def at(self, key: SeriesKey, slot_s: int) -> Total:
        """The total to add to. slot_s: start of the slot, s since the epoch, a multiple of SLOT_S."""
        total = self.totals.get((key, slot_s))
        if total is None:
            total = self.totals[key, slot_s] = Total()
        return total


class Apdex:
    """Splits the fine buckets at the two thresholds of the Apdex, so that counting its zones costs a record nothing."""

    def __init__(self, t_s: float) -> None:
        satisfied_ns, tolerating_ns = round(t_s * _NS), round(4 * t_s * _NS)
        self.bounds = tuple(sorted({*BOUNDS, satisfied_ns, tolerating_ns}))
        self.bucket = [bisect_left(BOUNDS, bound) for bound in self.bounds] + [len(BOUNDS)]
        zones = [0 if bound <= satisfied_ns else 1 if bound <= tolerating_ns else 2 for bound in self.bounds]
        self.zone = [*zones, 2]


class Run(NamedTuple):
    """Records that were folded at one go."""

    position: int  #: after the last one
    kept: list[int]  #: numbers of those that are kept as traces
    requests: int  #: how many of them are web requests
    served_ns: int  #: sum of the durations of requests and background tasks


class Folder:
    """Folds the records of one recorder into deltas. Holds no count between two drains."""

    def __init__(self, reader: Reader, apdex: Apdex) -> None:
        self._reader = reader
        self._apdex = apdex
        self._keys: dict[int, SeriesKey] = {}

    def fold(
        self, delta: Delta, data: bytes, position: int, ready_ns: int, wall_offset_ns: int, read_ns: int = 0
    ) -> Run:
        """Fold the records of `data`, which begins with number `position`, up to the first that is not ready.

        ready_ns: a record that ended after it, ns of the monotonic clock, is left for the next drain.
        wall_offset_ns: to be added to the monotonic clock to give the time since the epoch.
        read_ns: when `data` was read, where that may be long after `ready_ns`: a lead that was stopped in between.
        """
        kept: list[int] = []
        requests = served_ns = 0
        start = position
        while (begin := (position - start) * RECORD_SIZE) < len(data):
            body = layout.RECORD_BODY.unpack_from(data, begin + layout.RECORD_BODY_AT)
            end_ns = body[3] + body[4]
            if body[5] != position + 1:
                break
            if end_ns > ready_ns:
                if end_ns <= max(ready_ns, read_ns) + _FUTURE_NS:
                    break
                position += 1  # noise
                continue
            slot_s = (end_ns + wall_offset_ns) // _NS // SLOT_S * SLOT_S
            slot_end_ns = (slot_s + SLOT_S) * _NS - wall_offset_ns
            until_ns = min(ready_ns, slot_end_ns - 1)
            position, more, more_ns = self._fold_slot(delta, data[begin:], position, until_ns, slot_s, kept)
            requests += more
            served_ns += more_ns
        return Run(position, kept, requests, served_ns)

    def _fold_slot(
        self, delta: Delta, data: bytes, position: int, until_ns: int, slot_s: int, kept: list[int]
    ) -> tuple[int, int, int]:
        """The loop that every record goes through: at least 500,000 a second, see bench/drain.py."""
        cells: dict[int, int] = {}
        sums: dict[int, int] = {}
        longest: dict[int, int] = {}
        cell_of, sum_of, longest_of = cells.get, sums.get, longest.get
        counted: list[tuple[int, int]] = []
        bounds = self._apdex.bounds
        expected = position + 1
        for series, why, queue_us, start_ns, duration_ns, sequence in layout.RECORDS.iter_unpack(data):
            if sequence != expected or start_ns + duration_ns > until_ns:
                break
            expected += 1
            cell = series << _CELL_BITS | bisect_left(bounds, duration_ns)
            cells[cell] = cell_of(cell, 0) + 1
            sums[series] = sum_of(series, 0) + duration_ns
            if duration_ns > longest_of(series, -1):
                longest[series] = duration_ns
            if why:
                kept.append(expected - 2)
            if queue_us:
                counted.append((series, queue_us))
        requests = served_ns = 0
        for cell, count in cells.items():
            if self._add(delta, cell, count, slot_s) == REQUEST_DURATION:
                requests += count
        for series, sum_ns in sums.items():
            key = self._key(series & ~FAILED)
            total = delta.at(key, slot_s)
            total.sum_ns += sum_ns
            total.max_ns = max(total.max_ns, longest[series])
            if key[0] in (REQUEST_DURATION, TASK_DURATION):
                served_ns += sum_ns
        for series, units in counted:
            metric, attributes = self._key(series & ~FAILED)
            if metric == PART_DURATION:
                total = delta.at((PART_SPANS, attributes), slot_s)
                total.count += 1
                total.sum_ns += units
            else:
                delta.at((QUEUE_DURATION, NO_ATTRIBUTES), slot_s).observe((units - 1) * 1000)
        return expected - 1, requests, served_ns

    def add_one(self, delta: Delta, series: int, duration_ns: int, end_wall_ns: int) -> None:
        """Fold one that left no record. series: as a record has it. end_wall_ns: since the epoch."""
        slot_s = end_wall_ns // _NS // SLOT_S * SLOT_S
        self._add(delta, series << _CELL_BITS | bisect_left(self._apdex.bounds, duration_ns), 1, slot_s)
        total = delta.at(self._key(series & ~FAILED), slot_s)
        total.sum_ns += duration_ns
        total.max_ns = max(total.max_ns, duration_ns)

    def _add(self, delta: Delta, cell: int, count: int, slot_s: int) -> str:
        """Returns the metric that it was added to."""
        series, place = cell >> _CELL_BITS, cell & (1 << _CELL_BITS) - 1
        key = self._key(series & ~FAILED)
        total = delta.at(key, slot_s)
        bucket = self._apdex.bucket[place]
        total.count += count
        total.buckets[bucket] = total.buckets.get(bucket, 0) + count
        zone = self._apdex.zone[place]
        if series & FAILED or zone == 2:
            total.frustrated += count
        elif zone == 1:
            total.tolerating += count
        else:
            total.satisfied += count
        return key[0]

    def _key(self, number: int) -> SeriesKey:
        key = self._keys.get(number)
        if key is None:
            key = self._keys[number] = self.key_of(number)
        return key

    def key_of(self, number: int) -> SeriesKey:
        """Metric and attributes of a series; the overflow's for one that cannot be read: its count still holds."""
        entry = self._reader.series(number)
        if entry is None:
            return REQUEST_DURATION, OVERFLOW
        kind, fields = entry
        name = KIND_NAMES.get(kind & ~KIND_OVERFLOW, REQUEST_DURATION)
        if kind & KIND_OVERFLOW or kind not in KIND_NAMES:
            return f"{name}{CUSTOM_OVERFLOW}" if name in (TIMING, COUNT) else name, OVERFLOW
        if kind in (layout.KIND_TIMING, layout.KIND_COUNT):
            return f"{name}{fields[0] if fields else ''}", NO_ATTRIBUTES
        return name, attributes_of(layout.FIELDS[kind], fields)


def attributes_of(names: Sequence[str], fields: Iterable[str | None]) -> str:
    """Attributes of a series as canonical JSON."""
    return canonical(layout.attributes_of(names, fields))


def canonical(attributes: Mapping[str, object]) -> str:
    return json.dumps(attributes, sort_keys=True)
