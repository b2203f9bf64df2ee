"""Every metric that this version sends, in one table: what an exporter has to know beyond the numbers.

Names and units are those of OpenTelemetry's semantic conventions where there is one;
the rest begin with `paste_agent.`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from paste_agent.aggregate import (
    BOOT_DURATION,
    CALL_DURATION,
    COUNT,
    DATABASE_DURATION,
    ERRORS,
    LAYER_DURATION,
    LOAD_DURATION,
    PART_DURATION,
    PART_SPANS,
    QUEUE_DURATION,
    REPORT_DURATION,
    REQUEST_DURATION,
    TASK_DURATION,
    TIMING,
    WORKER_LOST,
)

Instrument = Literal["histogram", "counter", "up_down_counter", "gauge"]

ACTIVE_REQUESTS = "http.server.active_requests"
CPU_TIME = "process.cpu.time"
MEMORY_USAGE = "process.memory.usage"
MEMORY_VIRTUAL = "process.memory.virtual"
THREAD_COUNT = "process.thread.count"
FILE_DESCRIPTORS = "process.unix.file_descriptor.count"
GC_COLLECTIONS = "cpython.gc.collections"
WORKER_BUSY = "paste_agent.worker.busy"
WORKER_COUNT = "paste_agent.worker.count"
WORKER_RECYCLED = "paste_agent.worker.recycled"
APDEX = "paste_agent.apdex"
RECORDS_DROPPED = "paste_agent.records.dropped"
SPANS_DROPPED = "paste_agent.spans.dropped"
EXPORT_FAILED = "paste_agent.export.failed"
INTERNAL_ERRORS = "paste_agent.internal.errors"
TEST = "paste_agent.test"

#: Attributes that the metrics of this table have.
WORKER_NUMBER = "paste_agent.worker.number"  #: int, on every figure of a single worker
CPU_MODE = "cpu.mode"  #: user, system
GC_GENERATION = "cpython.gc.generation"  #: int
APDEX_ZONE = "apdex.zone"  #: satisfied, tolerating, frustrated
REASON = "reason"
SIGNAL = "signal"  #: traces, metrics, logs

_NS_IN_S = 1_000_000_000


@dataclass(frozen=True)
class Metric:
    """One row. divisor: units that the store counts in, to one of those that are sent."""

    name: str
    instrument: Instrument
    unit: str  #: UCUM
    description: str
    divisor: int = 1

    @property
    def whole(self) -> bool:
        """Whether its values are whole numbers, all of them: a stream that changes its type is another stream."""
        return (self.instrument == "counter" and self.unit == "1") or self.unit not in ("s", "1")


@dataclass(frozen=True)
class Reading:
    """What a gauge or an up-down counter shows at this moment. value: in the unit of the metric, not the store's."""

    metric: str
    attributes: Mapping[str, str | int | bool]
    value: int | float


TABLE: dict[str, Metric] = {
    row.name: row
    for row in [
        Metric(REQUEST_DURATION, "histogram", "s", "Duration of HTTP server requests.", _NS_IN_S),
        Metric(QUEUE_DURATION, "histogram", "s", "Time that requests waited for a worker.", _NS_IN_S),
        Metric(REPORT_DURATION, "histogram", "s", "Time that the agent took for one round of reporting.", _NS_IN_S),
        Metric(TASK_DURATION, "histogram", "s", "Duration of background tasks.", _NS_IN_S),
        Metric(CALL_DURATION, "histogram", "s", "Duration of HTTP client requests.", _NS_IN_S),
        Metric(DATABASE_DURATION, "histogram", "s", "Duration of database client operations.", _NS_IN_S),
        Metric(LAYER_DURATION, "histogram", "s", "Time that a layer of the pipeline took by itself.", _NS_IN_S),
        Metric(LOAD_DURATION, "histogram", "s", "Time that a layer of the pipeline took to load.", _NS_IN_S),
        Metric(PART_DURATION, "histogram", "s", "Time that transactions spent on one kind of thing.", _NS_IN_S),
        Metric(PART_SPANS, "counter", "{span}", "Spans that the former sums up."),
        Metric(ERRORS, "counter", "{error}", "Errors, whether they left the application or were handled."),
        Metric(BOOT_DURATION, "histogram", "s", "Time from the fork of a worker until it could serve.", _NS_IN_S),
        Metric(ACTIVE_REQUESTS, "up_down_counter", "{request}", "Number of active HTTP server requests."),
        Metric(CPU_TIME, "counter", "s", "CPU seconds of a worker, by mode.", _NS_IN_S),
        Metric(MEMORY_USAGE, "up_down_counter", "By", "Physical memory in use by a worker."),
        Metric(MEMORY_VIRTUAL, "up_down_counter", "By", "Virtual memory of a worker."),
        Metric(THREAD_COUNT, "up_down_counter", "{thread}", "Threads of a worker."),
        Metric(FILE_DESCRIPTORS, "up_down_counter", "{file_descriptor}", "File descriptors in use by a worker."),
        Metric(GC_COLLECTIONS, "counter", "{collection}", "Times that a generation was collected."),
        Metric(WORKER_BUSY, "gauge", "1", "Share of the time that a worker served requests."),
        Metric(WORKER_COUNT, "up_down_counter", "{worker}", "Workers that serve."),
        Metric(WORKER_LOST, "counter", "{worker}", "Workers that died, by reason."),
        Metric(WORKER_RECYCLED, "counter", "{worker}", "Workers that ended as they should after so many requests."),
        Metric(APDEX, "counter", "{request}", "Requests by zone of the Apdex."),
        Metric(RECORDS_DROPPED, "counter", "{record}", "Finished requests that the agent could not record."),
        Metric(SPANS_DROPPED, "counter", "{record}", "Finished spans that gave way to requests."),
        Metric(EXPORT_FAILED, "counter", "{item}", "Data points, spans and logs that a collector did not take."),
        Metric(INTERNAL_ERRORS, "counter", "{error}", "Faults of the agent itself."),
        Metric(TEST, "gauge", "1", "Sent by `paste-agent send-test` alone."),
    ]
}


def lookup(name: str) -> Metric | None:
    """The row of a metric; None for one that this version does not know, such as a newer agent's."""
    if name.startswith(TIMING):
        return Metric(name.removeprefix(TIMING), "histogram", "s", "Measured by the application.", _NS_IN_S)
    if name.startswith(COUNT):
        return Metric(name.removeprefix(COUNT), "counter", "1", "Counted by the application.")
    return TABLE.get(name)


def counted(name: str, count: int, total: int) -> int:
    """What a counter whose increments are records has come to: how many there were, or what they sum up to."""
    return total if name == PART_SPANS or name.startswith(COUNT) else count
