"""Spans inside of a transaction, and what they are counted under, as a collector gets them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from paste_agent.aggregate import DATABASE_BOUNDS_S, DATABASE_DURATION, ERRORS, PART_DURATION, PART_SPANS, Total
from paste_agent.exporters import otlp_encode
from paste_agent.inner_spans import spans_of
from paste_agent.inside import CALL, DATABASE, FUNCTION, MESSAGE, MOST_SPANS, Inside
from paste_agent.kept import TraceRow
from paste_agent.store.store import SeriesTotal
from tests.receiver import attributes_of

MS = 1_000_000
START = 1_700_000_000_000_000_000
TRACE_ID, SPAN_ID = bytes(range(16)), bytes(range(1, 9))


def row(spans: object, **changed: Any) -> TraceRow:
    values: dict[str, Any] = {
        "trace_id": TRACE_ID,
        "span_id": SPAN_ID,
        "parent_id": None,
        "started_at_ns": START,
        "duration_ns": 250 * MS,
        "failed": False,
        "why": 1,
        "attributes": {"http.request.method": "GET"},
        "detail": {"spans": spans},
        **changed,
    }
    return TraceRow(**values)


def encoded(*rows: TraceRow) -> list[Span]:
    message = otlp_encode.encode_traces({"service.name": "shop"}, rows)
    assert message is not None
    ((inner,),) = [one.scope_spans for one in ExportTraceServiceRequest.FromString(message.data).resource_spans]
    assert message.items == len(inner.spans)
    return list(inner.spans)


def test_spans_follow_their_transaction_with_ids_parents_and_kinds() -> None:
    inside = Inside()
    inside.finished = [
        (2, 1, DATABASE, "SELECT items", 1000 + 5 * MS, 2 * MS, 2 * MS, None, None, {"db.system.name": "sqlite"}, None),
        (1, 0, FUNCTION, "view", 1000 + MS, 9 * MS, 4 * MS, None, None, None, ("/srv/shop.py", 7, "view")),
        (3, 1, CALL, "GET", 1000 + 7 * MS, 3 * MS, 3 * MS, "503", b"\x07" * 8, {"error.type": "503"}, None),
        (4, 0, MESSAGE, "publish", 1000 + 10 * MS, MS, MS, "OSError", None, None, None),
    ]
    server, *found = encoded(row(json.loads(json.dumps(spans_of(inside, SPAN_ID, 1000)))))
    assert (server.kind, server.span_id, server.name) == (Span.SPAN_KIND_SERVER, SPAN_ID, "GET")
    view, select, call, publish = found
    assert {one.trace_id for one in found} == {TRACE_ID}
    assert len({SPAN_ID, *(one.span_id for one in found)}) == 5
    assert [one.parent_span_id for one in found] == [SPAN_ID, view.span_id, view.span_id, SPAN_ID]
    assert call.span_id == b"\x07" * 8
    assert [one.kind for one in found] == [
        Span.SPAN_KIND_INTERNAL,
        Span.SPAN_KIND_CLIENT,
        Span.SPAN_KIND_CLIENT,
        Span.SPAN_KIND_PRODUCER,
    ]
    assert [(one.start_time_unix_nano - START, one.end_time_unix_nano - START) for one in found] == [
        (1 * MS, 10 * MS),
        (5 * MS, 7 * MS),
        (7 * MS, 10 * MS),
        (10 * MS, 11 * MS),
    ]
    unset, failed = Status.STATUS_CODE_UNSET, Status.STATUS_CODE_ERROR
    assert [one.status.code for one in found] == [unset, unset, failed, failed]
    assert attributes_of(call.attributes) == {"error.type": "503"}
    assert attributes_of(publish.attributes) == {"error.type": "OSError"}
    assert attributes_of(select.attributes) == {"db.system.name": "sqlite"}
    assert attributes_of(view.attributes) == {
        "code.file.path": "/srv/shop.py",
        "code.line.number": 7,
        "code.function.name": "view",
    }


def test_a_task_is_no_server() -> None:
    (span,) = encoded(row([], attributes={"paste_agent.task.name": "send mail"}))
    assert (span.kind, span.name) == (Span.SPAN_KIND_INTERNAL, "send mail")


@pytest.mark.parametrize(
    "spans", [None, "x", 7, {}, [None, 7, "x", [], {}], [{"id": "0" * 16}], [{"id": "xyz"}], [{"id": 7, "name": "x"}]]
)
def test_what_is_no_span_is_passed_over(spans: object) -> None:
    assert len(encoded(row(spans))) == 1


def test_half_a_span_is_sent() -> None:
    _, found = encoded(row([{"id": "07" * 8, "parent": "nobody", "start": "x", "duration": -5, "name": ""}]))
    assert (found.span_id, found.parent_span_id, found.name) == (b"\x07" * 8, SPAN_ID, "span")
    assert found.start_time_unix_nano == found.end_time_unix_nano == START


def test_more_spans_than_a_transaction_remembers_are_not_sent() -> None:
    spans = [{"id": f"{place:016x}", "name": "x"} for place in range(1, MOST_SPANS + 100)]
    assert len(encoded(row(spans))) == 1 + MOST_SPANS


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "id": st.just("07" * 8) | _json,
                "parent": st.just("08" * 8) | _json,
                "start": _json,
                "duration": _json,
                "name": _json,
                "category": _json,
                "error": _json,
                "attributes": _json,
            },
        ),
        max_size=4,
    )
)
def test_no_span_makes_the_encoder_raise(spans: list[dict[str, Any]]) -> None:
    for found in encoded(row(spans)):
        assert found.start_time_unix_nano <= found.end_time_unix_nano


# -- metrics -------------------------------------------------------------------------------------------------------


def metric_of(metric: str, total: Total) -> Any:
    series = SeriesTotal(metric, {"paste_agent.part": "database"}, total)
    (message,) = otlp_encode.encode_metrics({}, [series], {}, [], START, START + 1)
    ((inner,),) = [one.scope_metrics for one in ExportMetricsServiceRequest.FromString(message.data).resource_metrics]
    (found,) = inner.metrics
    return found


def total_of(*durations_ns: int) -> Total:
    total = Total()
    for duration_ns in durations_ns:
        total.observe(duration_ns)
    return total


def test_durations_of_databases_have_the_bounds_of_their_convention() -> None:
    total = total_of(MS - 1, MS, MS + 1, 5 * MS, 5 * MS + 1, 11_000 * MS)
    (point,) = metric_of(DATABASE_DURATION, total).histogram.data_points
    assert tuple(point.explicit_bounds) == DATABASE_BOUNDS_S
    assert list(point.bucket_counts) == [2, 2, 1, 0, 0, 0, 0, 0, 0, 1]
    assert point.count == 6
    assert point.sum == pytest.approx(total.sum_ns / 1e9)


def test_parts_are_a_histogram_and_how_many_spans_they_sum_up() -> None:
    assert metric_of(PART_DURATION, total_of(MS, 2 * MS)).histogram.data_points[0].count == 2
    counted = metric_of(PART_SPANS, Total(count=2, sum_ns=37))
    assert (counted.unit, counted.sum.is_monotonic) == ("{span}", True)
    assert counted.sum.data_points[0].as_int == 37


def test_errors_are_counted() -> None:
    counted = metric_of(ERRORS, total_of(0, 0, 0))
    assert (counted.sum.is_monotonic, counted.sum.data_points[0].as_int) == (True, 3)


def test_what_an_application_measures_goes_by_its_own_name() -> None:
    timing = metric_of("timing:shop.basket", total_of(MS))
    assert (timing.name, timing.unit, timing.histogram.data_points[0].count) == ("shop.basket", "s", 1)
    counted = metric_of("count:shop.sold", Total(count=2, sum_ns=50))
    assert (counted.name, counted.unit, counted.sum.data_points[0].as_int) == ("shop.sold", "1", 50)
