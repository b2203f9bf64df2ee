"""Messages are read back with the protocol's own classes and compared field by field."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsPartialSuccess,
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsPartialSuccess,
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_CUMULATIVE
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

import paste_agent
from paste_agent import metrics, settings
from paste_agent.aggregate import BOUNDS, EXPORT_BOUNDS_S, REQUEST_DURATION, Total
from paste_agent.exporters import otlp_encode
from paste_agent.exporters.resource import Facts, resource_of
from paste_agent.kept import TraceRow
from paste_agent.metrics import Reading
from paste_agent.recorder.layout import KEPT_FAILED, KEPT_LOST, KEPT_PARENT, KEPT_RANDOM, KEPT_SLOW
from paste_agent.store.store import Counters, SeriesTotal
from tests.receiver import attributes_of

RESOURCE = {"service.name": "shop", "service.instance.id": "one"}
SCHEMA = "https://opentelemetry.io/schemas/1.44.0"
START, NOW = 1_700_000_000_000_000_000, 1_700_000_060_000_000_000
TRACE_ID, SPAN_ID, PARENT_ID = bytes(range(16)), bytes(range(1, 9)), bytes(range(11, 19))


def total_of(*durations_ns: int) -> Total:
    total = Total()
    for duration_ns in durations_ns:
        total.observe(duration_ns)
    total.satisfied = len(durations_ns)
    return total


def requests_of(
    totals: list[SeriesTotal] | None = None,
    counters: Counters | None = None,
    readings: list[Reading] | None = None,
    started_at_ns: int = START,
) -> list[ExportMetricsServiceRequest]:
    messages = list(
        otlp_encode.encode_metrics(RESOURCE, totals or [], counters or {}, readings or [], started_at_ns, NOW)
    )
    found = [ExportMetricsServiceRequest.FromString(message.data) for message in messages]
    for request, message in zip(found, messages, strict=True):
        assert message.items == sum(len(points_of(metric)) for metric in metrics_of(request))
    return found


def metrics_of(request: ExportMetricsServiceRequest) -> list[Any]:
    ((inner,),) = [outer.scope_metrics for outer in request.resource_metrics]
    return list(inner.metrics)


def points_of(metric: Any) -> list[Any]:
    return list(getattr(metric, metric.WhichOneof("data")).data_points)


def only_metric(*args: Any, **options: Any) -> Any:
    (request,) = requests_of(*args, **options)
    return metrics_of(request)[0]


def row(**changed: Any) -> TraceRow:
    values: dict[str, Any] = {
        "trace_id": TRACE_ID,
        "span_id": SPAN_ID,
        "parent_id": PARENT_ID,
        "started_at_ns": START,
        "duration_ns": 250_000_000,
        "failed": False,
        "why": KEPT_RANDOM,
        "attributes": {"http.request.method": "GET", "http.route": "/a/{b}", "http.response.status_code": 200},
        "detail": None,
    }
    return TraceRow(**{**values, **changed})


def span_of(**changed: Any) -> Span:
    message = otlp_encode.encode_traces(RESOURCE, [row(**changed)])
    assert message is not None
    assert message.items == 1
    ((inner,),) = [outer.scope_spans for outer in ExportTraceServiceRequest.FromString(message.data).resource_spans]
    return inner.spans[0]


# -- metrics -------------------------------------------------------------------------------------------------------


def test_histogram_has_every_field() -> None:
    attributes: dict[str, str | int | bool] = {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "http.route": "/a",
    }
    total = total_of(5_000_000, 5_000_001, 20_000_000_000)
    (request,) = requests_of([SeriesTotal(REQUEST_DURATION, attributes, total)])
    (outer,) = request.resource_metrics
    assert attributes_of(outer.resource.attributes) == RESOURCE
    assert outer.schema_url == SCHEMA
    (inner,) = outer.scope_metrics
    assert (inner.scope.name, inner.scope.version, inner.schema_url) == ("paste_agent", paste_agent.__version__, SCHEMA)
    metric = inner.metrics[0]
    assert (metric.name, metric.unit) == (REQUEST_DURATION, "s")
    assert metric.histogram.aggregation_temporality == AGGREGATION_TEMPORALITY_CUMULATIVE
    (point,) = metric.histogram.data_points
    assert attributes_of(point.attributes) == attributes
    assert (point.start_time_unix_nano, point.time_unix_nano) == (START, NOW)
    assert tuple(point.explicit_bounds) == EXPORT_BOUNDS_S
    # A bound belongs to the bucket that it ends.
    assert list(point.bucket_counts) == [1, 1, *[0] * 12, 1]
    assert point.count == 3
    assert point.sum == pytest.approx(20.010000001)
    assert point.max == 20.0
    assert not point.HasField("min")


def test_apdex_is_the_sum_over_all_series() -> None:
    one, other = total_of(), total_of()
    one.satisfied, one.tolerating, one.frustrated = 5, 2, 1
    other.satisfied, other.tolerating, other.frustrated = 10, 0, 3
    found = requests_of(
        [SeriesTotal(REQUEST_DURATION, {"http.route": "/a"}, one), SeriesTotal(REQUEST_DURATION, {}, other)]
    )
    apdex = metrics_of(found[0])[1]
    assert (apdex.name, apdex.unit, apdex.sum.is_monotonic) == ("paste_agent.apdex", "{request}", True)
    zones = {attributes_of(point.attributes)["apdex.zone"]: point.as_int for point in apdex.sum.data_points}
    assert zones == {"satisfied": 15, "tolerating": 2, "frustrated": 4}


@pytest.mark.parametrize("name", [name for name, one in metrics.TABLE.items() if one.instrument == "counter"])
def test_counter_is_a_monotonic_sum_from_the_store(name: str) -> None:
    metric = only_metric(counters={(name, '{"reason": "full", "generation": 2}'): 3_000_000_000})
    assert metric.sum.aggregation_temporality == AGGREGATION_TEMPORALITY_CUMULATIVE
    assert metric.sum.is_monotonic
    (point,) = metric.sum.data_points
    assert attributes_of(point.attributes) == {"reason": "full", "generation": 2}
    assert (point.start_time_unix_nano, point.time_unix_nano) == (START, NOW)
    assert point.as_double == 3.0 if name == "process.cpu.time" else point.as_int == 3_000_000_000


@pytest.mark.parametrize("name", [name for name, one in metrics.TABLE.items() if one.instrument == "up_down_counter"])
def test_up_down_counter_is_a_sum_that_may_fall(name: str) -> None:
    metric = only_metric(readings=[Reading(name, {metrics.WORKER_NUMBER: 1}, 7)])
    assert metric.sum.aggregation_temporality == AGGREGATION_TEMPORALITY_CUMULATIVE
    assert not metric.sum.is_monotonic
    (point,) = metric.sum.data_points
    assert (attributes_of(point.attributes), point.as_int) == ({"paste_agent.worker.number": 1}, 7)
    assert point.start_time_unix_nano == START


def test_gauge_is_a_double_even_for_a_whole_number() -> None:
    metric = only_metric(readings=[Reading(metrics.WORKER_BUSY, {}, 1)])
    (point,) = metric.gauge.data_points
    assert point.WhichOneof("value") == "as_double"
    assert (point.as_double, point.time_unix_nano, point.start_time_unix_nano) == (1.0, NOW, 0)


def test_names_and_units_are_those_of_the_conventions() -> None:
    assert {one.name: (one.instrument, one.unit) for one in metrics.TABLE.values()} == {
        "http.server.request.duration": ("histogram", "s"),
        "paste_agent.request.queue.duration": ("histogram", "s"),
        "paste_agent.report.duration": ("histogram", "s"),
        "paste_agent.background_task.duration": ("histogram", "s"),
        "http.client.request.duration": ("histogram", "s"),
        "db.client.operation.duration": ("histogram", "s"),
        "paste_agent.layer.duration": ("histogram", "s"),
        "paste_agent.layer.load.duration": ("histogram", "s"),
        "paste_agent.transaction.part.duration": ("histogram", "s"),
        "paste_agent.transaction.part.spans": ("counter", "{span}"),
        "paste_agent.errors": ("counter", "{error}"),
        "paste_agent.worker.boot.duration": ("histogram", "s"),
        "http.server.active_requests": ("up_down_counter", "{request}"),
        "process.cpu.time": ("counter", "s"),
        "process.memory.usage": ("up_down_counter", "By"),
        "process.memory.virtual": ("up_down_counter", "By"),
        "process.thread.count": ("up_down_counter", "{thread}"),
        "process.unix.file_descriptor.count": ("up_down_counter", "{file_descriptor}"),
        "cpython.gc.collections": ("counter", "{collection}"),
        "paste_agent.worker.busy": ("gauge", "1"),
        "paste_agent.worker.count": ("up_down_counter", "{worker}"),
        "paste_agent.worker.lost": ("counter", "{worker}"),
        "paste_agent.worker.recycled": ("counter", "{worker}"),
        "paste_agent.apdex": ("counter", "{request}"),
        "paste_agent.records.dropped": ("counter", "{record}"),
        "paste_agent.spans.dropped": ("counter", "{record}"),
        "paste_agent.export.failed": ("counter", "{item}"),
        "paste_agent.internal.errors": ("counter", "{error}"),
        "paste_agent.test": ("gauge", "1"),
    }


def test_many_series_are_spread_over_requests_that_are_complete() -> None:
    totals = [SeriesTotal(REQUEST_DURATION, {"http.route": f"/{number}"}, total_of(number)) for number in range(450)]
    found = requests_of(totals, {(metrics.INTERNAL_ERRORS, "{}"): 1})
    assert [sum(len(points_of(metric)) for metric in metrics_of(request)) for request in found] == [
        100,
        100,
        100,
        100,
        54,
    ]
    routes: Counter[str] = Counter()
    for request in found:
        (outer,) = request.resource_metrics
        assert attributes_of(outer.resource.attributes) == RESOURCE
        names = [metric.name for metric in metrics_of(request)]
        assert len(names) == len(set(names))
        for metric in metrics_of(request):
            assert metric.unit
            if metric.name == REQUEST_DURATION:
                assert metric.histogram.aggregation_temporality == AGGREGATION_TEMPORALITY_CUMULATIVE
                routes.update(attributes_of(point.attributes)["http.route"] for point in points_of(metric))
    assert routes == Counter(f"/{number}" for number in range(450))


def test_an_exact_multiple_leaves_no_empty_request() -> None:
    readings = [Reading(metrics.WORKER_COUNT, {"number": number}, 1) for number in range(400)]
    assert len(requests_of(readings=readings)) == 4
    assert requests_of() == []


def test_what_this_version_does_not_know_is_left_out() -> None:
    newer = SeriesTotal("http.newer.duration", {}, total_of(1))
    assert requests_of([newer], {("newer", "{}"): 1}, [Reading("newer.gauge", {}, 1)]) == []


def test_what_is_noise_is_left_out() -> None:
    unknown_bucket, negative = total_of(1), total_of(1)
    unknown_bucket.buckets = {len(BOUNDS) + 1: 1}
    negative.sum_ns = -1
    totals = [SeriesTotal(REQUEST_DURATION, {}, unknown_bucket), SeriesTotal(REQUEST_DURATION, {}, negative)]
    readings = [
        Reading(metrics.WORKER_BUSY, {}, float("nan")),
        Reading(metrics.WORKER_BUSY, {}, float("inf")),
        Reading(metrics.MEMORY_USAGE, {}, 1 << 63),
        Reading(REQUEST_DURATION, {}, 1),
    ]
    assert requests_of(totals, {(metrics.INTERNAL_ERRORS, "{}"): -1, (REQUEST_DURATION, "{}"): 1}, readings) == []


def test_a_counter_with_unreadable_attributes_counts_without_them() -> None:
    for attributes in ("", "no JSON", "[1]", '{"a": {}}'):
        metric = only_metric(counters={(metrics.INTERNAL_ERRORS, attributes): 1})
        assert [(attributes_of(point.attributes), point.as_int) for point in points_of(metric)] == [({}, 1)]


def test_a_clock_that_was_set_back_gives_no_interval_below_zero() -> None:
    (point,) = points_of(only_metric(counters={(metrics.INTERNAL_ERRORS, "{}"): 1}, started_at_ns=NOW + 5))
    assert point.start_time_unix_nano == point.time_unix_nano == NOW


def test_overflow_keeps_its_boolean() -> None:
    metric = only_metric([SeriesTotal(REQUEST_DURATION, {"otel.metric.overflow": True}, total_of(1))])
    assert attributes_of(points_of(metric)[0].attributes)["otel.metric.overflow"] is True


# -- traces --------------------------------------------------------------------------------------------------------


def test_span_has_every_field() -> None:
    span = span_of(
        failed=True,
        why=KEPT_PARENT | KEPT_SLOW | KEPT_FAILED,
        detail={"attributes": {"url.path": "/a/1", "server.port": 80, "wait": 0.5}, "tracestate": "k=v,l=w"},
    )
    assert (span.trace_id, span.span_id, span.parent_span_id) == (TRACE_ID, SPAN_ID, PARENT_ID)
    assert span.name == "GET /a/{b}"
    assert span.kind == Span.SPAN_KIND_SERVER
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (START, START + 250_000_000)
    assert span.trace_state == "k=v,l=w"
    assert span.flags == 0x301
    assert (span.status.code, span.status.message) == (Status.STATUS_CODE_ERROR, "")
    assert attributes_of(span.attributes) == {
        "http.request.method": "GET",
        "http.route": "/a/{b}",
        "http.response.status_code": 200,
        "url.path": "/a/1",
        "server.port": 80,
        "wait": 0.5,
        "paste_agent.why_kept": ["parent", "slow", "failed"],
    }


def test_span_without_a_parent_says_nothing_of_it() -> None:
    for parent_id in (None, b"", bytes(8), b"short", b"more than eight"):
        span = span_of(parent_id=parent_id)
        assert (span.parent_span_id, span.flags) == (b"", 0x01)


def test_status_is_unset_unless_failed() -> None:
    assert span_of().status.code == Status.STATUS_CODE_UNSET


@pytest.mark.parametrize(
    ("attributes", "name"),
    [
        ({"http.request.method": "GET", "http.route": "/a"}, "GET /a"),
        ({"http.request.method": "GET"}, "GET"),
        ({"http.request.method": "_OTHER", "http.route": "/a"}, "HTTP /a"),
        ({"http.request.method": "_OTHER"}, "HTTP"),
        ({}, "HTTP"),
        ({"http.request.method": 1, "http.route": ""}, "HTTP"),
    ],
)
def test_name_of_a_span(attributes: dict[str, Any], name: str) -> None:
    assert span_of(attributes=attributes).name == name


def test_overflow_of_a_series_is_none_of_the_span() -> None:
    span = span_of(attributes={"otel.metric.overflow": True}, detail={"attributes": {"url.path": "/a"}})
    assert attributes_of(span.attributes) == {"url.path": "/a", "paste_agent.why_kept": ["random"]}


def test_spans_with_impossible_ids_are_left_out() -> None:
    bad = [row(trace_id=bytes(16)), row(span_id=bytes(8)), row(trace_id=b"short"), row(span_id="text")]
    message = otlp_encode.encode_traces(RESOURCE, [*bad, row()])
    assert message is not None
    assert message.items == 1
    assert otlp_encode.encode_traces(RESOURCE, bad) is None


@pytest.mark.parametrize("tracestate", [1, None, ["k=v"], "k=" + "v" * 511, "k=ü"])
def test_odd_tracestate_is_left_out(tracestate: object) -> None:
    assert span_of(detail={"tracestate": tracestate}).trace_state == ""


# -- logs ----------------------------------------------------------------------------------------------------------


def test_exception_has_every_field() -> None:
    exception = {"type": "shop.Sold", "message": "sold out", "stacktrace": "Traceback\n …"}
    message = otlp_encode.encode_logs(RESOURCE, [row(), row(failed=True, detail={"exception": exception})])
    assert message is not None
    assert message.items == 1
    (outer,) = ExportLogsServiceRequest.FromString(message.data).resource_logs
    assert attributes_of(outer.resource.attributes) == RESOURCE
    (inner,) = outer.scope_logs
    assert (inner.scope.name, inner.schema_url, outer.schema_url) == ("paste_agent", SCHEMA, SCHEMA)
    (record,) = inner.log_records
    assert (record.trace_id, record.span_id, record.flags) == (TRACE_ID, SPAN_ID, 1)
    assert (record.severity_number, record.severity_text) == (17, "ERROR")
    assert record.event_name == "http.server.request.exception"
    assert record.time_unix_nano == record.observed_time_unix_nano == START + 250_000_000
    assert attributes_of(record.attributes) == {
        "exception.type": "shop.Sold",
        "exception.message": "sold out",
        "exception.stacktrace": "Traceback\n …",
    }


@pytest.mark.parametrize("exception", [None, "text", [], {}, {"stacktrace": "alone"}, {"type": 1, "message": None}])
def test_what_is_no_exception_makes_no_log(exception: object) -> None:
    assert otlp_encode.encode_logs(RESOURCE, [row(detail={"exception": exception}), row()]) is None


def test_half_an_exception_is_sent() -> None:
    message = otlp_encode.encode_logs(RESOURCE, [row(detail={"exception": {"type": "E", "message": 5}})])
    assert message is not None
    record = ExportLogsServiceRequest.FromString(message.data).resource_logs[0].scope_logs[0].log_records[0]
    assert attributes_of(record.attributes) == {"exception.type": "E"}


ACCOUNT = {
    "id": "4711-00aa",
    "reason": "timeout",
    "text": "worker 2 (pid 4711) was lost, killed by the arbiter\n  GET /a was in flight for 31 s",
    "span": "SELECT orders",
    "stack": '  File "/app.py", line 3, in view\n',
}


def log_records(*rows: TraceRow) -> list[Any]:
    message = otlp_encode.encode_logs(RESOURCE, rows)
    if message is None:
        return []
    (outer,) = ExportLogsServiceRequest.FromString(message.data).resource_logs
    (inner,) = outer.scope_logs
    assert message.items == len(inner.log_records)
    return list(inner.log_records)


def test_the_exception_of_a_background_task_is_no_requests() -> None:
    detail = {"exception": {"type": "shop.Sold"}, "postmortem": ACCOUNT}
    records = log_records(row(failed=True, attributes={"paste_agent.task.name": "send mail"}, detail=detail))
    assert [record.event_name for record in records] == ["exception", "paste_agent.worker.lost"]


def test_a_post_mortem_has_every_field() -> None:
    (record,) = log_records(row(failed=True, why=KEPT_LOST, detail={"postmortem": ACCOUNT}))
    assert record.body.string_value == ACCOUNT["text"]
    assert record.event_name == "paste_agent.worker.lost"
    assert (record.severity_number, record.severity_text) == (17, "ERROR")
    assert (record.trace_id, record.span_id, record.flags) == (TRACE_ID, SPAN_ID, 1)
    assert record.time_unix_nano == record.observed_time_unix_nano == START + 250_000_000
    assert attributes_of(record.attributes) == {
        "paste_agent.postmortem.id": "4711-00aa",
        "paste_agent.worker.lost.reason": "timeout",
        "paste_agent.span": "SELECT orders",
        "code.stacktrace": ACCOUNT["stack"],
    }


def test_the_span_of_a_lost_request_says_of_what_it_died() -> None:
    detail = {"attributes": {"url.path": "/a"}, "postmortem": ACCOUNT}
    span = span_of(failed=True, why=KEPT_LOST | KEPT_SLOW, detail=detail)
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert span.status.message == "worker lost: timeout"
    attributes = attributes_of(span.attributes)
    assert attributes["paste_agent.why_kept"] == ["slow", "lost"]
    assert attributes["url.path"] == "/a"
    assert not any(name.startswith("postmortem") for name in attributes)


def test_a_request_that_raised_and_was_lost_has_a_record_of_each() -> None:
    detail = {"exception": {"type": "SystemExit", "message": "1"}, "postmortem": ACCOUNT}
    records = log_records(row(failed=True, detail=detail), row(), row(detail={"postmortem": ACCOUNT}))
    assert [record.event_name for record in records] == [
        "http.server.request.exception",
        "paste_agent.worker.lost",
        "paste_agent.worker.lost",
    ]
    assert [record.body.string_value for record in records] == ["", ACCOUNT["text"], ACCOUNT["text"]]


def test_what_was_not_in_a_span_has_none() -> None:
    (record,) = log_records(row(detail={"postmortem": {**ACCOUNT, "span": "", "stack": ""}}))
    assert set(attributes_of(record.attributes)) == {"paste_agent.postmortem.id", "paste_agent.worker.lost.reason"}


@pytest.mark.parametrize("junk", [None, "text", 7, [], {}, {"text": None}, {"text": 7}, {"text": ["a"]}, {"id": "x"}])
def test_what_is_no_post_mortem_makes_no_log(junk: object) -> None:
    assert log_records(row(detail={"postmortem": junk})) == []
    assert span_of(detail={"postmortem": junk}).status.message == ""


@pytest.mark.parametrize("junk", [None, 7, {"a": 1}, [[1]], 1 << 70, float("nan"), "\ud800", b"bytes", object()])
def test_junk_in_a_post_mortem_is_left_out(junk: object) -> None:
    (record,) = log_records(
        row(detail={"postmortem": {"text": "told\ud800", **dict.fromkeys(("id", "reason", "span"), junk)}})
    )
    assert record.body.string_value == "told?"
    assert all(isinstance(value, (str, int, float)) for value in attributes_of(record.attributes).values())
    span = span_of(failed=True, detail={"postmortem": {"reason": junk}})
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert span.status.message.startswith("worker lost: ") is isinstance(junk, str)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
odd_accounts = json_values | st.fixed_dictionaries(
    {"text": st.text(st.characters(codec=None))},
    optional=dict.fromkeys(("id", "reason", "span", "stack"), json_values),
)
odd_details = st.none() | json_values | st.fixed_dictionaries(
    {},
    optional={**dict.fromkeys(("attributes", "tracestate", "exception"), json_values), "postmortem": odd_accounts},
)  # fmt: skip


@hypothesis_settings(deadline=None)
@given(
    attributes=json_values,
    detail=odd_details,
    numbers=st.tuples(*[json_values] * 3),
    ids=st.tuples(*[st.binary(max_size=17) | json_values] * 3),
)
def test_no_row_makes_the_encoders_raise(attributes: Any, detail: Any, numbers: Any, ids: Any) -> None:
    started_at_ns, duration_ns, why = numbers
    odd = row(attributes=attributes, detail=detail, started_at_ns=started_at_ns, duration_ns=duration_ns, why=why)
    other = row(trace_id=ids[0], span_id=ids[1], parent_id=ids[2])
    message = otlp_encode.encode_traces(RESOURCE, [odd, other])
    assert message is not None
    assert len(ExportTraceServiceRequest.FromString(message.data).resource_spans[0].scope_spans[0].spans) >= 1
    otlp_encode.encode_logs(RESOURCE, [odd, other])


# -- answers -------------------------------------------------------------------------------------------------------


def test_partial_success_of_each_signal() -> None:
    traces = ExportTraceServiceResponse(partial_success=ExportTracePartialSuccess(rejected_spans=2, error_message="no"))
    points = ExportMetricsServiceResponse(partial_success=ExportMetricsPartialSuccess(rejected_data_points=3))
    logs = ExportLogsServiceResponse(partial_success=ExportLogsPartialSuccess(error_message="hm"))
    assert otlp_encode.read_partial("traces", traces.SerializeToString()) == (2, "no")
    assert otlp_encode.read_partial("metrics", points.SerializeToString()) == (3, "")
    assert otlp_encode.read_partial("logs", logs.SerializeToString()) == (0, "hm")


@pytest.mark.parametrize("signal", settings.SIGNALS)
@pytest.mark.parametrize("body", [b"", b"{}", b"\xff\xff", b"\x0a\x00"])
def test_all_taken_or_undecodable(signal: str, body: bytes) -> None:
    assert otlp_encode.read_partial(signal, body) is None


def test_status_of_a_refusal() -> None:
    # google.rpc.Status: code 3, message "bad".
    assert otlp_encode.read_status(b"\x08\x03\x12\x03bad") == "bad"
    assert otlp_encode.read_status(b"\x08\x03") is None
    assert otlp_encode.read_status(b"\xff") is None


# -- resource ------------------------------------------------------------------------------------------------------

FACTS = Facts("host-1", "cpython", "3.11.7", ("gunicorn", "27.0.1"))


def resource_with(conf: dict[str, str] | None = None, environ: dict[str, str] | None = None) -> dict[str, str]:
    return resource_of(settings.load(conf or {}, {"__file__": "/srv/shop.ini"}, environ or {}), "one", FACTS)


def test_resource_is_the_contracts() -> None:
    assert resource_with() == {
        "service.name": "shop",
        "service.instance.id": "one",
        "host.name": "host-1",
        "process.runtime.name": "cpython",
        "process.runtime.version": "3.11.7",
        "telemetry.sdk.name": "paste-agent",
        "telemetry.sdk.language": "python",
        "telemetry.sdk.version": paste_agent.__version__,
        "webengine.name": "gunicorn",
        "webengine.version": "27.0.1",
    }
    plain = resource_of(settings.load({}, {}, {}), "one", Facts("h", "cpython", "3.11.7"))
    assert "webengine.name" not in plain


def test_the_users_attributes_win() -> None:
    said = "host.name=web-7,deployment.environment.name=production,service.namespace=shops,empty="
    found = resource_with(environ={"OTEL_RESOURCE_ATTRIBUTES": said})
    assert found["host.name"] == "web-7"
    assert found["deployment.environment.name"] == "production"
    assert found["service.namespace"] == "shops"
    assert "empty" not in found


def test_service_name_goes_before_resource_attributes_unless_it_is_the_default() -> None:
    named = {"OTEL_RESOURCE_ATTRIBUTES": "service.name=other"}
    assert resource_with(environ=named)["service.name"] == "other"
    assert resource_with(environ={**named, "OTEL_SERVICE_NAME": "mine"})["service.name"] == "mine"
    assert resource_with({"service_name": "ini"}, named)["service.name"] == "ini"


def test_what_is_light_stays_light() -> None:
    code = (
        "import sys, paste_agent.metrics, paste_agent.exporters.resource\n"
        "heavy = {'google.protobuf', 'opentelemetry.proto', 'requests', 'urllib3'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
