"""All figures of a store as of one moment, for who shows them rather than sends them. Reads only.

Gauges are the lead's; whoever else asks finds here what they were at its last drain.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from paste_agent import metrics
from paste_agent.metrics import Reading
from paste_agent.recorder import layout
from paste_agent.store.store import COLUMNS, RUNNING, Counters, RecorderRow, SeriesTotal, Store, json_object, total_of

#: Key in the store's meta: requests in flight, see `active_text`.
ACTIVE = "active_requests"
#: A row that no lead has touched for so long says nothing of now: nobody leads, the service has ended.
_FRESH_S = 30.0
#: Kept transactions that are looked through for examples, the newest.
_EXAMPLES = 256

_GAUGES = (
    (metrics.MEMORY_USAGE, layout.W_MEMORY_BYTES),
    (metrics.MEMORY_VIRTUAL, layout.W_VIRTUAL_BYTES),
    (metrics.THREAD_COUNT, layout.W_THREADS),
    (metrics.FILE_DESCRIPTORS, layout.W_FILE_DESCRIPTORS),
)


class Example(NamedTuple):
    """A transaction whose trace is kept. attributes: as of the series that it is counted under."""

    trace_id: str  #: hexadecimal, as the next
    span_id: str
    attributes: Mapping[str, object]
    started_at_ns: int
    duration_ns: int


class Snapshot(NamedTuple):
    """One view of a store, in which all figures belong together."""

    service: str
    instance_id: str
    totals: list[tuple[Any, ...]]  #: see `series`
    counters: Counters
    readings: list[Reading]
    examples: list[tuple[Any, ...]]  #: see `kept`

    def series(self) -> Iterator[SeriesTotal]:
        """All series, cumulative; each is taken apart when it is asked for."""
        for metric, attributes, *columns in self.totals:
            yield SeriesTotal(metric, json_object(attributes), total_of(columns))

    def kept(self) -> Iterator[Example]:
        """The newest first."""
        for trace_id, span_id, attributes, started_at_ns, duration_ns in self.examples:
            if not (isinstance(trace_id, bytes) and isinstance(span_id, bytes) and len(trace_id + span_id) == 24):
                continue  # somebody else has written there
            yield Example(trace_id.hex(), span_id.hex(), json_object(attributes), started_at_ns, duration_ns)


def read(store: Store, now_s: float, *, examples: bool = False) -> Snapshot:
    """Read all at one moment, however long a lead goes on writing meanwhile.

    now_s: since the epoch. examples: whether kept transactions are asked for.
    Raises what READ_ERRORS has.
    """
    db = store._db
    db.execute("BEGIN")
    try:
        rows = [row for row in store.recorders() if abs(now_s - row.seen_at) <= _FRESH_S]
        active = active_of(store.meta(ACTIVE))
        if not any(row.state == RUNNING for row in rows):
            active = dict.fromkeys(active, 0)
        return Snapshot(
            service=store.meta("service.name") or "",
            instance_id=store.meta("service.instance.id") or "",
            totals=db.execute(
                f"SELECT metric, attributes, {COLUMNS} FROM totals JOIN series ON series.id = series"
            ).fetchall(),
            counters=store.counters(),
            readings=readings_of(rows, active),
            examples=db.execute(
                "SELECT trace_id, span_id, attributes, started_at_ns, duration_ns FROM traces"
                " ORDER BY started_at_ns DESC LIMIT ?",
                (_EXAMPLES if examples else 0,),
            ).fetchall(),
        )
    finally:
        db.rollback()


# -- gauges --------------------------------------------------------------------------------------------------------


def readings_of(rows: Iterable[RecorderRow], active: Mapping[tuple[str, str], int]) -> list[Reading]:
    """Gauges. rows: of recorders as they are now. active: requests in flight, by method and scheme."""
    workers = [row for row in rows if row.serving and row.state == RUNNING]
    readings = [Reading(metrics.WORKER_COUNT, {}, len(workers))]
    for row in workers:
        number = {metrics.WORKER_NUMBER: row.worker}
        readings.append(Reading(metrics.WORKER_BUSY, number, row.busy))
        if len(row.words) > layout.W_PROBED_AT and row.words[layout.W_PROBED_AT]:
            readings.extend(Reading(name, number, row.words[word]) for name, word in _GAUGES if word < len(row.words))
    for (method, scheme), count in active.items():
        attributes = {"http.request.method": method, "url.scheme": scheme}
        readings.append(Reading(metrics.ACTIVE_REQUESTS, attributes, count))
    return readings


def active_text(active: Mapping[tuple[str, str], int]) -> str:
    """Requests in flight, as the store keeps them: JSON, a list of method, scheme and count."""
    return json.dumps([[method, scheme, count] for (method, scheme), count in active.items()])


def active_of(text: str | None) -> dict[tuple[str, str], int]:
    """The same back, from the store's meta."""
    try:
        return {(str(method), str(scheme)): int(count) for method, scheme, count in json.loads(text or "[]")}
    except (ValueError, TypeError):  # somebody else has written there
        return {}
