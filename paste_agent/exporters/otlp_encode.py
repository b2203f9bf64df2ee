"""OTLP messages as bytes, and what a collector answers. Pure: no clock, no network. The home of opentelemetry-proto.

What comes from the store is not trusted: another agent may have written it, or noise. A piece that cannot be sent (an
attribute of an odd type, ids of the wrong length) is left out; nothing of it makes an encoder raise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, InstrumentationScope, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import SEVERITY_NUMBER_ERROR, LogRecord, SeverityNumber
from opentelemetry.proto.metrics.v1 import metrics_pb2
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import (
    SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK,
    SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK,
    Span,
    Status,
)

import paste_agent
from paste_agent.aggregate import Total, export_bounds
from paste_agent.exporters.points import INT64_MAX, INT64_MIN, points_of
from paste_agent.inside import MOST_SPANS
from paste_agent.kept import TraceRow
from paste_agent.log_files import LogRow
from paste_agent.metrics import Metric, Reading
from paste_agent.recorder.layout import WHY_KEPT
from paste_agent.store.store import Counters, SeriesTotal

SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"
#: Of one request. Encoding so many takes about 2 ms, after which others get the interpreter; a body is below 100 KB.
MAX_POINTS = 100
#: Semantic conventions, exceptions of HTTP: the name of the event; and that of an exception that is no request's.
EXCEPTION_EVENT = "http.server.request.exception"
TASK_EXCEPTION_EVENT = "exception"
#: Ours: a worker died over a transaction.
POSTMORTEM_EVENT = "paste_agent.worker.lost"

_SAMPLED = 0x01
#: Of the transaction that is a background task.
TASK_NAME = "paste_agent.task.name"
_HEX_ID = re.compile(r"[0-9a-f]{16}", re.ASCII)
_KINDS = {
    "database": Span.SPAN_KIND_CLIENT,
    "cache": Span.SPAN_KIND_CLIENT,
    "call": Span.SPAN_KIND_CLIENT,
    "message": Span.SPAN_KIND_PRODUCER,
}
_MAX_TRACESTATE = 512
_CUMULATIVE = metrics_pb2.AGGREGATION_TEMPORALITY_CUMULATIVE
_UINT64_MAX = (1 << 64) - 1
_MAX_SEVERITY = 24


class Message(NamedTuple):
    """One request, serialized."""

    data: bytes
    items: int  #: data points, spans or log records in it


class Partial(NamedTuple):
    """What a collector that took a request did not like about it."""

    rejected: int
    message: str


# -- parts that all signals have -----------------------------------------------------------------------------------


def _text(value: str) -> str:
    """protobuf refuses lone surrogates, which JSON and file names may hold."""
    return value if value.isascii() else value.encode("utf-8", "replace").decode()


def _any_value(value: object) -> AnyValue | None:
    if isinstance(value, bool):  # before int, which it is too
        return AnyValue(bool_value=value)
    if isinstance(value, str):
        return AnyValue(string_value=_text(value))
    if isinstance(value, int):
        return AnyValue(int_value=value) if INT64_MIN <= value <= INT64_MAX else None
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, (list, tuple)) and all(isinstance(one, (str, int, float)) for one in value):
        return AnyValue(array_value=ArrayValue(values=[one for one in map(_any_value, value) if one is not None]))
    return None


def _key_values(attributes: object) -> list[KeyValue]:
    if not isinstance(attributes, Mapping):
        return []
    pairs = ((key, _any_value(value)) for key, value in attributes.items() if isinstance(key, str) and key)
    return [KeyValue(key=_text(key), value=value) for key, value in pairs if value is not None]


def _resource(attributes: Mapping[str, object]) -> Resource:
    return Resource(attributes=_key_values(attributes))


def _scope() -> InstrumentationScope:
    return InstrumentationScope(name="paste_agent", version=paste_agent.__version__)


def _within(value: object, low: int, high: int) -> int:
    """A number of the store's that fits its field."""
    return min(max(int(value), low), high) if isinstance(value, int) else low  # int(): it may be a bool


# -- metrics -------------------------------------------------------------------------------------------------------


class _Points:
    """Fills one request after another with data points."""

    def __init__(self, resource: Mapping[str, object], started_at_ns: int, now_ns: int) -> None:
        self._resource = _resource(resource)
        self._now_ns = _within(now_ns, 0, _UINT64_MAX)
        # A clock that was set back must not give an interval that ends before it begins.
        self._started_at_ns = _within(started_at_ns, 0, self._now_ns)
        self._open()

    def _open(self) -> None:
        self._request = ExportMetricsServiceRequest()
        outer = self._request.resource_metrics.add(resource=self._resource, schema_url=SCHEMA_URL)
        self._inner = outer.scope_metrics.add(scope=_scope(), schema_url=SCHEMA_URL)
        self._metrics: dict[tuple[str, str], metrics_pb2.Metric] = {}
        self.items = 0

    def take(self) -> Message:
        """The request as filled so far; what follows goes into the next one."""
        message = Message(self._request.SerializeToString(), self.items)
        self._open()
        return message

    def _metric(self, row: Metric) -> metrics_pb2.Metric:
        metric = self._metrics.get((row.name, row.instrument))
        if metric is None:
            metric = self._inner.metrics.add(name=row.name, unit=row.unit, description=row.description)
            if row.instrument == "histogram":
                metric.histogram.aggregation_temporality = _CUMULATIVE
            elif row.instrument != "gauge":
                metric.sum.aggregation_temporality = _CUMULATIVE
                metric.sum.is_monotonic = row.instrument == "counter"
            self._metrics[row.name, row.instrument] = metric
        return metric

    def histogram(self, row: Metric, attributes: Mapping[str, object], total: Total) -> None:
        bounds_s = export_bounds(row.name)
        counts = total.export_counts(bounds_s)
        self._metric(row).histogram.data_points.add(
            attributes=_key_values(attributes),
            start_time_unix_nano=self._started_at_ns,
            time_unix_nano=self._now_ns,
            # Not total.count: a collector may refuse a point whose count is not the sum of its buckets.
            count=sum(counts),
            sum=total.sum_ns / row.divisor,
            max=total.max_ns / row.divisor,
            bucket_counts=counts,
            explicit_bounds=bounds_s,
        )
        self.items += 1

    def number(self, row: Metric, attributes: Mapping[str, object], value: float) -> None:
        """value: in the unit of the metric."""
        point = metrics_pb2.NumberDataPoint(attributes=_key_values(attributes), time_unix_nano=self._now_ns)
        if row.whole:
            point.as_int = round(value)
        else:
            point.as_double = value
        metric = self._metric(row)
        if row.instrument == "gauge":
            metric.gauge.data_points.append(point)
        else:
            point.start_time_unix_nano = self._started_at_ns
            metric.sum.data_points.append(point)
        self.items += 1


def encode_metrics(
    resource: Mapping[str, object],
    totals: Sequence[SeriesTotal],
    counters: Counters,
    readings: Sequence[Reading],
    started_at_ns: int,
    now_ns: int,
) -> Iterator[Message]:
    """Requests of at most MAX_POINTS data points, each complete in itself; none when there is nothing to say.

    totals, counters: of the store, cumulative since `started_at_ns`. A metric that this version does not know is
    left out. readings: as of `now_ns`; both in ns since the epoch.
    """
    points = _Points(resource, started_at_ns, now_ns)
    for row, attributes, value in points_of(totals, counters, readings):
        if isinstance(value, Total):
            points.histogram(row, attributes, value)
        else:
            points.number(row, attributes, value)
        if points.items >= MAX_POINTS:
            yield points.take()
    if points.items:
        yield points.take()


# -- traces and logs -----------------------------------------------------------------------------------------------


def _detail(row: TraceRow, key: str) -> object:
    return row.detail.get(key) if isinstance(row.detail, Mapping) else None


def _identified(row: TraceRow) -> bool:
    """Whether it has ids that are valid: a collector may refuse a whole request for one that has not."""
    return _is_id(row.trace_id, 16) and _is_id(row.span_id, 8)


def _is_id(value: object, size: int) -> bool:
    return isinstance(value, bytes) and len(value) == size and any(value)


def _interval_ns(row: TraceRow) -> tuple[int, int]:
    start_ns = _within(row.started_at_ns, 0, _UINT64_MAX)
    return start_ns, _within(start_ns + _within(row.duration_ns, 0, _UINT64_MAX), start_ns, _UINT64_MAX)


def encode_traces(resource: Mapping[str, object], rows: Iterable[TraceRow]) -> Message | None:
    """A request with the span of each row and those inside of it; None when no row has valid ids."""
    request = ExportTraceServiceRequest()
    outer = request.resource_spans.add(resource=_resource(resource), schema_url=SCHEMA_URL)
    inner = outer.scope_spans.add(scope=_scope(), schema_url=SCHEMA_URL)
    inner.spans.extend(span for row in rows if _identified(row) for span in (_span(row), *_spans_within(row)))
    return Message(request.SerializeToString(), len(inner.spans)) if inner.spans else None


def _span(row: TraceRow) -> Span:
    attributes: dict[str, object] = {}
    for part in (_detail(row, "attributes"), row.attributes):
        if isinstance(part, Mapping):
            attributes.update(part)
    # It belongs to the series that the request was counted under; the request itself is no overflow.
    attributes.pop("otel.metric.overflow", None)
    attributes["paste_agent.why_kept"] = [word for bit, word in WHY_KEPT.items() if _within(row.why, 0, 0xFFFF) & bit]
    start_ns, end_ns = _interval_ns(row)
    span = Span(
        trace_id=row.trace_id,
        span_id=row.span_id,
        flags=_SAMPLED,
        name=_span_name(attributes),
        kind=Span.SPAN_KIND_INTERNAL if TASK_NAME in attributes else Span.SPAN_KIND_SERVER,
        start_time_unix_nano=start_ns,
        end_time_unix_nano=end_ns,
        attributes=_key_values(attributes),
    )
    if row.parent_id is not None and _is_id(row.parent_id, 8):
        span.parent_span_id = row.parent_id
        span.flags |= SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK | SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK
    tracestate = _detail(row, "tracestate")
    if isinstance(tracestate, str) and len(tracestate) <= _MAX_TRACESTATE and tracestate.isascii():
        span.trace_state = tracestate
    postmortem = _detail(row, "postmortem")
    if isinstance(postmortem, Mapping) and isinstance(postmortem.get("reason"), str):
        span.status.message = f"worker lost: {_text(postmortem['reason'])}"
    if row.failed:
        # No description: it would say again what the status code, or the exception's own record, says.
        span.status.code = Status.STATUS_CODE_ERROR
    return span


def spans_of(row: TraceRow) -> Sequence[object]:
    """The spans inside of a transaction, as the store has them: whatever they are."""
    spans = _detail(row, "spans")
    return spans[:MOST_SPANS] if isinstance(spans, list) else []


def _spans_within(row: TraceRow) -> Iterator[Span]:
    """The spans that went on inside of a transaction; those that are none are passed over."""
    began_ns, _ = _interval_ns(row)
    for found in spans_of(row):
        if not isinstance(found, Mapping):
            continue
        span_id, parent_id = _hex_id(found.get("id")), _hex_id(found.get("parent")) or row.span_id
        if span_id is None:
            continue
        start = found.get("start")
        start_ns = _within(began_ns + (start if isinstance(start, int) else 0), 0, _UINT64_MAX)
        name, error = found.get("name"), found.get("error")
        span = Span(
            trace_id=row.trace_id,
            span_id=span_id,
            parent_span_id=parent_id,
            flags=_SAMPLED | SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK,
            name=_text(name) if isinstance(name, str) and name else "span",
            kind=_KINDS.get(str(found.get("category")), Span.SPAN_KIND_INTERNAL),
            start_time_unix_nano=start_ns,
            end_time_unix_nano=_within(start_ns + _within(found.get("duration"), 0, INT64_MAX), start_ns, _UINT64_MAX),
            attributes=_key_values(found.get("attributes")),
        )
        if isinstance(error, str) and error:
            span.status.code = Status.STATUS_CODE_ERROR
            if not any(one.key == "error.type" for one in span.attributes):
                span.attributes.append(KeyValue(key="error.type", value=AnyValue(string_value=_text(error))))
        yield span


def _hex_id(text: object) -> bytes | None:
    if not isinstance(text, str) or not _HEX_ID.fullmatch(text) or not text.strip("0"):
        return None
    return bytes.fromhex(text)


def _span_name(attributes: Mapping[str, object]) -> str:
    task = attributes.get(TASK_NAME)
    if isinstance(task, str) and task:
        return _text(task)
    method, route = attributes.get("http.request.method"), attributes.get("http.route")
    name = _text(method) if isinstance(method, str) and method not in ("", "_OTHER") else "HTTP"
    return f"{name} {_text(route)}" if isinstance(route, str) and route else name


def encode_logs(resource: Mapping[str, object], rows: Iterable[TraceRow]) -> Message | None:
    """A request with the exception and the post-mortem of each row that has them; None when none has."""
    request = ExportLogsServiceRequest()
    outer = request.resource_logs.add(resource=_resource(resource), schema_url=SCHEMA_URL)
    inner = outer.scope_logs.add(scope=_scope(), schema_url=SCHEMA_URL)
    records = (record(row) for row in rows if _identified(row) for record in (_exception, _postmortem))
    inner.log_records.extend(record for record in records if record is not None)
    return Message(request.SerializeToString(), len(inner.log_records)) if inner.log_records else None


def _exception(row: TraceRow) -> LogRecord | None:
    exception = _detail(row, "exception")
    if not isinstance(exception, Mapping):
        return None
    words = {f"exception.{key}": exception.get(key) for key in ("type", "message", "stacktrace")}
    attributes = {name: value for name, value in words.items() if isinstance(value, str) and value}
    # Semantic conventions: one of the two is required.
    if not attributes.keys() & {"exception.type", "exception.message"}:
        return None
    # When it was raised is not known; that it was at the end of the request is nearest to the truth.
    return _error(row, TASK_EXCEPTION_EVENT if TASK_NAME in row.attributes else EXCEPTION_EVENT, attributes)


def _postmortem(row: TraceRow) -> LogRecord | None:
    """The account of the worker that died over this transaction."""
    found = _detail(row, "postmortem")
    if not isinstance(found, Mapping) or not isinstance(found.get("text"), str):
        return None
    words = {
        "paste_agent.postmortem.id": found.get("id"),
        "paste_agent.worker.lost.reason": found.get("reason"),
        "paste_agent.span": found.get("span"),
        "code.stacktrace": found.get("stack"),
    }
    record = _error(row, POSTMORTEM_EVENT, {name: value for name, value in words.items() if value})
    record.body.string_value = _text(found["text"])
    return record


def _error(row: TraceRow, event: str, attributes: Mapping[str, object]) -> LogRecord:
    """A log record at the end of a row's span, and bound to it."""
    _, end_ns = _interval_ns(row)
    return LogRecord(
        time_unix_nano=end_ns,
        observed_time_unix_nano=end_ns,
        severity_number=SEVERITY_NUMBER_ERROR,
        severity_text="ERROR",
        event_name=event,
        attributes=_key_values(attributes),
        trace_id=row.trace_id,
        span_id=row.span_id,
        flags=_SAMPLED,
    )


def encode_forwarded(resource: Mapping[str, object], rows: Iterable[LogRow]) -> Message:
    """A request with log records of the application, below a scope for each logger."""
    request = ExportLogsServiceRequest()
    outer = request.resource_logs.add(resource=_resource(resource), schema_url=SCHEMA_URL)
    by_logger: dict[str, list[LogRecord]] = {}
    for row in rows:
        by_logger.setdefault(row.logger, []).append(_forwarded(row))
    for logger, records in by_logger.items():
        outer.scope_logs.add(scope=InstrumentationScope(name=_text(logger)), log_records=records)
    return Message(request.SerializeToString(), sum(map(len, by_logger.values())))


def _forwarded(row: LogRow) -> LogRecord:
    at_ns = _within(row.at_ns, 0, _UINT64_MAX)
    record = LogRecord(
        time_unix_nano=at_ns,
        observed_time_unix_nano=at_ns,
        severity_number=SeverityNumber.ValueType(_within(row.severity, 0, _MAX_SEVERITY)),
        severity_text=_text(row.severity_text),
        body=_any_value(row.body),
        attributes=_key_values(row.attributes),
    )
    if row.trace_id is not None and _is_id(row.trace_id, 16):
        record.trace_id = row.trace_id
        if row.span_id is not None and _is_id(row.span_id, 8):
            record.span_id = row.span_id
    return record


# -- what a collector answers --------------------------------------------------------------------------------------


def empty_request(signal: str) -> bytes:
    """A valid request without a single item. It has no bytes at all, as protobuf has it."""
    if signal == "traces":
        return ExportTraceServiceRequest().SerializeToString()
    if signal == "metrics":
        return ExportMetricsServiceRequest().SerializeToString()
    return ExportLogsServiceRequest().SerializeToString()


def read_partial(signal: str, body: bytes) -> Partial | None:
    """`partial_success` of a response; None when all was taken, or when the body is none that can be decoded."""
    try:
        if signal == "traces":
            traces = ExportTraceServiceResponse.FromString(body).partial_success
            rejected, message = traces.rejected_spans, traces.error_message
        elif signal == "metrics":
            metrics = ExportMetricsServiceResponse.FromString(body).partial_success
            rejected, message = metrics.rejected_data_points, metrics.error_message
        else:
            logs = ExportLogsServiceResponse.FromString(body).partial_success
            rejected, message = logs.rejected_log_records, logs.error_message
    except DecodeError:
        return None
    return Partial(max(rejected, 0), message) if rejected > 0 or message else None


def read_status(body: bytes) -> str | None:
    """The message of a google.rpc.Status, which is the body of a refusal; None when it is something else.

    That type is in no package that this one needs, but a partial success has the same fields under the same numbers.
    """
    try:
        return ExportTracePartialSuccess.FromString(body).error_message or None
    except DecodeError:
        return None
