"""What is said through OpenTelemetry's API in a transaction is said of it, and nothing of the API is changed beyond."""

# ruff: noqa: F811  # fixtures that are imported

from __future__ import annotations

import asyncio
import copy
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import context, propagate, trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.trace import SpanKind, Status, StatusCode

import paste_agent
from paste_agent import otel, trace_ids
from paste_agent.detail import Rules, trace_row
from paste_agent.error_rules import ErrorRules
from paste_agent.exporters.otlp_encode import encode_traces
from paste_agent.filter import AgentFilter
from paste_agent.inside import FUNCTION, MAX_ATTRIBUTES, MESSAGE, FinishedSpan
from paste_agent.recorder.reader import Reader
from paste_agent.recorder.writer import Recorder
from paste_agent.spans import begin, end
from paste_agent.store.trace_tree import all_of, trees
from paste_agent.transaction import current
from tests.receiver import attributes_of
from tests.recorders import _Serving, die, environ_of, open_recorder, serve, spans_within, tree
from tests.telemetry_api import (  # noqa: F401
    PARENT_ID,
    TRACE_ID,
    ids,
    installed,
    only,
    recorder,
    told,
    tracer,
)
from tests.within import inside_of

# -- spans of tracers ------------------------------------------------------------------------------------------------


def test_spans_of_both_kinds_are_inside_of_each_other(recorder: Recorder, reader: Reader) -> None:
    seen = []

    def run() -> None:
        with tracer.start_as_current_span("outer", attributes={"shop.items": 3}) as outer:
            assert outer is trace.get_current_span()
            seen.append(told(reader))
            with paste_agent.span("ours"):
                seen.append(told(reader))
                with tracer.start_as_current_span("inner", kind=SpanKind.CLIENT) as inner:
                    inner.set_attributes({"db.system": "mongodb"})
                    seen.append(told(reader))
                seen.append(told(reader))
            seen.append(told(reader))
            with tracer.start_as_current_span("second"):
                pass
        seen.append(told(reader))

    found = spans_within(recorder, run)
    assert seen == ["outer", "ours", "inner", "ours", "outer", ""]
    assert tree(found) == {"outer": None, "ours": "outer", "inner": "ours", "second": "outer"}
    by_name = {span.name: span for span in found}
    assert by_name["outer"].attributes == {"shop.items": 3}
    assert by_name["inner"].attributes == {"db.system": "mongodb"}
    assert {span.category for span in found} == {FUNCTION}
    assert {span.failed for span in found} == {None}
    assert [by_name["inner"].own_ns, by_name["second"].own_ns] == [
        by_name["inner"].duration_ns, by_name["second"].duration_ns,
    ]  # fmt: skip
    # Of the time of those around nothing is counted twice.
    assert sum(span.own_ns for span in found) <= by_name["outer"].duration_ns


def test_a_decorated_function_is_a_span_each_time(recorder: Recorder) -> None:
    @tracer.start_as_current_span("square")
    def square(number: int) -> int:
        return number**2

    @tracer.start_as_current_span("later")
    async def later(number: int) -> int:
        with tracer.start_as_current_span("within"):
            await asyncio.sleep(0)
        return number

    assert square(3) == 9

    def run() -> None:
        assert [square(2), square(3)] == [4, 9]
        assert asyncio.run(later(5)) == 5

    found = spans_within(recorder, run)
    assert [span.name for span in found][:2] == ["square", "square"]
    if hasattr(trace, "_agnosticcontextmanager"):  # older ones know nothing of coroutines
        assert tree(found) == {"square": None, "later": None, "within": "later"}


def test_a_span_that_is_only_begun_is_not_where_the_thread_is(recorder: Recorder, reader: Reader) -> None:
    def run() -> None:
        with paste_agent.span("ours"):
            beside = tracer.start_span("beside")
            assert told(reader) == "ours"
            assert not isinstance(trace.get_current_span(), type(beside))
            with paste_agent.span("meanwhile"):
                beside.end()
                assert told(reader) == "meanwhile"
            beside = tracer.start_span("used")
            with trace.use_span(beside), paste_agent.span("in it"):
                assert told(reader) == "in it"
            assert told(reader) == "ours"
            with trace.use_span(beside):
                assert told(reader) == "used"
                assert trace.get_current_span() is beside
            beside.end()

    found = spans_within(recorder, run)
    assert tree(found) == {"ours": None, "beside": "ours", "meanwhile": "ours", "used": "ours", "in it": "used"}
    by_name = {span.name: span for span in found}
    # It went on while the thread was in others: that is not taken off what was around.
    rest = by_name["ours"].duration_ns - by_name["meanwhile"].duration_ns - by_name["used"].duration_ns
    assert by_name["ours"].own_ns >= rest


def test_ends_in_any_order_and_any_number_of_times(recorder: Recorder, reader: Reader) -> None:
    def run() -> None:
        first, second = tracer.start_span("first"), tracer.start_span("second")
        never = tracer.start_span("never")
        first.end()
        first.end()
        first.set_attribute("late", 1)
        first.update_name("late")
        assert not first.is_recording()
        second.end(end_time=1)
        with tracer.start_as_current_span("ended inside") as one:
            one.end()
            with tracer.start_as_current_span("after it"):
                pass
            assert told(reader) == "ended inside"
        with tracer.start_as_current_span("left open", end_on_exit=False) as left:
            pass
        assert told(reader) == ""
        with trace.use_span(left, end_on_exit=True), trace.use_span(left):
            assert told(reader) == "left open"
        thread = threading.Thread(target=tracer.start_span("elsewhere").end)
        thread.start()
        thread.join()
        assert never.is_recording()
        open_ones.append(never)

    open_ones: list[trace.Span] = []
    found = spans_within(recorder, run)
    assert [span.name for span in found] == [
        "first", "second", "ended inside", "after it", "left open", "elsewhere",
    ]  # fmt: skip
    assert tree(found)["after it"] == "ended inside"
    assert only([span for span in found if span.name == "first"]).attributes is None
    # Its transaction has ended, and it with it.
    (never,) = open_ones
    assert not never.is_recording()
    never.set_attribute("late", 1)
    never.set_status(StatusCode.ERROR)
    with trace.use_span(never):
        assert current.get() is None
    never.end()


def test_the_api_s_own_context_may_say_where_a_span_belongs(recorder: Recorder) -> None:
    def run() -> None:
        with tracer.start_as_current_span("first") as first:
            pass
        with tracer.start_as_current_span("second"):
            in_first = trace.set_span_in_context(first)
            tracer.start_span("by argument", context=in_first).end()
            token = context.attach(in_first)
            try:
                tracer.start_span("attached").end()
            finally:
                context.detach(token)
            remote = trace.NonRecordingSpan(trace.SpanContext(1, 2, True))
            tracer.start_span("remote", context=trace.set_span_in_context(remote)).end()

    assert tree(spans_within(recorder, run)) == {
        "first": None,
        "second": None,
        "by argument": "first",
        "attached": "first",
        "remote": "second",
    }


def test_a_span_may_last_from_one_part_of_a_response_to_the_next(recorder: Recorder, reader: Reader) -> None:
    found: list[FinishedSpan] = []

    def parts() -> Iterator[bytes]:
        with tracer.start_as_current_span("stream") as span:
            yield b"1"
            assert trace.get_current_span() is span
            tracer.start_span("part").end()
            yield b"2"
        found.extend(map(FinishedSpan.of, inside_of().finished))
        yield b"3"

    def application(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterator[bytes]:
        start_response("200 OK", [])
        return parts()

    filtered = AgentFilter(application, _Serving(recorder))  # type: ignore[arg-type]  # see _Serving
    body: Any = filtered(environ_of(), lambda status, headers, exc_info=None: lambda data: None)
    for _ in body:
        assert current.get() is None
    body.close()
    assert tree(found) == {"stream": None, "part": "stream"}
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_a_thread_is_in_the_span_that_it_is_handed(recorder: Recorder) -> None:
    def work(span: trace.Span) -> None:
        tracer.start_span("nobody's").end()
        with trace.use_span(span), tracer.start_as_current_span("work"):
            pass
        assert current.get() is None

    def run() -> None:
        with tracer.start_as_current_span("handed") as span:
            thread = threading.Thread(target=work, args=(span,))
            thread.start()
            thread.join()

    assert tree(spans_within(recorder, run)) == {"handed": None, "work": "handed"}


def test_a_message_is_one_if_nobody_else_has_seen_it(recorder: Recorder) -> None:
    def run() -> None:
        with tracer.start_as_current_span("send", kind=SpanKind.PRODUCER):
            pass
        with tracer.start_as_current_span("send again", kind=SpanKind.PRODUCER):
            seen = begin(MESSAGE, b"publish")
            assert seen is not None
            end(seen, "publish")
        tracer.start_span("beside", kind=SpanKind.PRODUCER).end()
        counted.append(inside_of().parts.get(MESSAGE, [0])[0])

    counted: list[int] = []
    found = spans_within(recorder, run)
    assert {span.name: span.category for span in found} == {
        "send": MESSAGE, "publish": MESSAGE, "send again": FUNCTION, "beside": FUNCTION,
    }  # fmt: skip
    assert counted == [2]


# -- what is said of them --------------------------------------------------------------------------------------------


def test_an_exception_passes_and_is_no_error_yet(recorder: Recorder, reader: Reader) -> None:
    def run() -> None:
        with pytest.raises(ZeroDivisionError), tracer.start_as_current_span("divide"):
            1 / 0  # noqa: B018
        with (
            pytest.raises(StopIteration, match="none left"),
            tracer.start_as_current_span("quiet", set_status_on_exception=False),
        ):
            raise StopIteration("none left")
        with pytest.raises(LookupError), tracer.start_span("managed"):
            raise KeyError("x")
        with pytest.raises(SystemExit), tracer.start_as_current_span("leaves"):
            raise SystemExit
        assert told(reader) == ""
        assert inside_of().errors is None

    found = spans_within(recorder, run)
    assert {span.name: span.failed for span in found} == {
        "divide": "ZeroDivisionError", "quiet": None, "managed": "KeyError", "leaves": None,
    }  # fmt: skip


def test_statuses(recorder: Recorder) -> None:
    said: dict[str, list[Any]] = {
        "_OTHER": [Status(StatusCode.ERROR, "s3cret")],
        "unset": [StatusCode.UNSET],
        "ok": [StatusCode.ERROR, StatusCode.OK, StatusCode.ERROR],
        "error": [StatusCode.ERROR, StatusCode.UNSET],
        "nonsense": [None, 2, "ERROR"],
    }

    def run() -> None:
        for name, statuses in said.items():
            with tracer.start_as_current_span(name) as span:
                for status in statuses:
                    span.set_status(status)

    found = spans_within(recorder, run)
    assert {span.name: span.failed for span in found} == {
        "_OTHER": "_OTHER", "unset": None, "ok": None, "error": "_OTHER", "nonsense": None,
    }  # fmt: skip
    assert "s3cret" not in repr(found)


def test_a_recorded_exception_is_an_error_that_was_handled(tmp_path: Path) -> None:
    recorder = open_recorder(tmp_path, keep_all=True, error_rules=ErrorRules(expected=("TimeoutError",)))
    errors: list[tuple[str, bool]] = []

    def run() -> None:
        with tracer.start_as_current_span("pay") as span:
            span.record_exception(ValueError("no such card"))
            span.record_exception(KeyError("it will be handled further out"), escaped=True)
            span.record_exception("nonsense")  # type: ignore[arg-type]
            span.set_status(StatusCode.ERROR)
        trace.get_current_span().record_exception(TimeoutError(), attributes={"a": 1})
        trace.get_current_span().record_exception(LookupError(), escaped=True)
        errors.extend((error.type, error.expected) for error in inside_of().errors or ())

    span = only(spans_within(recorder, run))
    die(recorder)
    assert errors == [("ValueError", False), ("TimeoutError", True)]
    assert (span.failed, span.attributes) == ("KeyError", {"exception.type": "KeyError"})


class Odd:
    def __str__(self) -> str:
        raise AssertionError("nobody asked for it")

    __repr__ = __str__


class Lines(list[str]):
    """Says how many of its items somebody has asked for."""

    asked = 0

    def __iter__(self) -> Iterator[str]:
        for line in super().__iter__():
            self.asked += 1
            yield line


def test_of_a_sequence_no_more_is_read_than_is_kept(recorder: Recorder) -> None:
    lines = Lines(["x" * 300] * 60)
    with_user = ["http://user:s3cret@shop.example"] * 60

    def run() -> None:
        with tracer.start_as_current_span("listed") as span:
            span.set_attribute("lines", lines)
            span.set_attribute("addresses", with_user)

    attributes = only(spans_within(recorder, run)).attributes
    assert attributes == {
        "lines": ", ".join(["x" * 300] * 4)[:1024],
        "addresses": ", ".join(["http://shop.example"] * 60)[:1024],
    }
    assert lines.asked == 4


def test_attributes_are_bounded_and_of_plain_types(recorder: Recorder) -> None:
    def run() -> None:
        with tracer.start_as_current_span("typed") as span:
            span.set_attributes({"text": "x" * 5000, "whole": 7, "part": 0.5, "truth": True})
            span.set_attribute("words", ["a", "b", Odd()])  # type: ignore[list-item]
            span.set_attribute("numbers", (1, 2))
            for number, value in enumerate((None, b"bytes", Odd(), {"a": 1}, float("nan"), 1 << 64)):
                span.set_attribute(f"left out {number}", value)  # type: ignore[arg-type]
            span.set_attribute(17, "no name")  # type: ignore[arg-type]
            span.set_attribute("", "no name")
            span.set_attribute("long" * 100, 1)
            span.set_attribute("whole", 8)
            span.set_attributes(None)  # type: ignore[arg-type]
        with tracer.start_as_current_span("many") as span:
            for number in range(1000):
                span.set_attribute(f"n{number}", number)
            span.set_attribute("n0", -1)

    typed, many = (span.attributes for span in spans_within(recorder, run))
    assert typed == {
        "text": "x" * 1024, "whole": 8, "part": 0.5, "truth": True, "words": "a, b", "numbers": "1, 2",
        ("long" * 100)[:128]: 1,
    }  # fmt: skip
    assert many is not None
    assert (len(many), many["n0"], many["n31"]) == (32, -1, 31)


def test_statements_and_queries_are_left_out(recorder: Recorder) -> None:
    said = {
        "db.statement": "SELECT 's3cret'",
        "db.query.text": '{"card": "s3cret"}',
        "db.query.parameter.0": "s3cret",
        "url.query": "key=s3cret",
        "http.target": "/x?key=s3cret",
        "url.full": "https://user:s3cret@shop.example:8443/items?key=s3cret#s3cret",
        "http.url": "http://shop.example?key=s3cret",
        "messaging.url": "amqp://user:s3cret@mq.example/",
        "peer.address": "user:s3cret@mq.example",
        "app.asked": "GET http://user:s3cret@shop.example/?key=s3cret",
        "app.brokers": ["amqp://user:s3cret@one", "amqp://user:s3cret@two"],
        "app.long": "amqp://user:" + 500 * "s3cret" + "@mq.example",
        "rpc.grpc.request.metadata.authorization": ["s3cret"],
        "rpc.connect_rpc.response.metadata.x": "s3cret",
        "rpc.request.metadata.x": "s3cret",
        "graphql.document": "{ card(number: s3cret) }",
        "graphql.param.card": "s3cret",
        "exception.message": "s3cret",
        "exception.stacktrace": "s3cret",
        "db.operation": "search",
    }
    span = only(spans_within(recorder, lambda: tracer.start_span("search", attributes=said).end()))
    assert span.attributes == {
        "url.full": "https://shop.example:8443/items",
        "http.url": "http://shop.example",
        "messaging.url": "amqp://mq.example/",
        "peer.address": "mq.example",
        "app.asked": "GET http://shop.example/",
        "app.brokers": "amqp://one, amqp://two",
        "app.long": "amqp://mq.example",
        "db.operation": "search",
    }


@pytest.mark.parametrize(
    ("rules", "left"),
    [
        (Rules(), {"app.plan", "app.secret", "code.function"}),
        (Rules(own_attributes=False), set()),  # high_security
        (Rules(include=("app.*",)), {"app.plan", "app.secret"}),
        (Rules(include=("app.*",), exclude=("*.secret",)), {"app.plan"}),
    ],
)
def test_settings_of_attributes_hold(recorder: Recorder, rules: Rules, left: set[str]) -> None:
    attributes = {"app.plan": "gold", "app.secret": "x", "code.function": "f"}

    def run() -> None:
        for kind in (SpanKind.INTERNAL, SpanKind.PRODUCER):
            with tracer.start_as_current_span(kind.name, kind=kind, attributes=attributes):
                pass
        trace.get_current_span().set_attributes(attributes)

    serve(recorder, meanwhile=run)
    detail: Any = trace_row(recorder.kept.pop(), {}, 0, rules).detail
    assert {(span["name"], span["category"]) for span in detail["spans"]} == {
        ("INTERNAL", "function"), ("PRODUCER", "message"),
    }  # fmt: skip
    assert [set(span["attributes"]) for span in detail["spans"]] == [left, left]
    assert set(attributes) & set(detail["attributes"]) == left
    assert all("said" not in span for span in detail["spans"])


@pytest.mark.parametrize(
    ("rules", "own", "raising"),
    [(Rules(), "timeout of bob", "timeout of bob"), (Rules(own_attributes=False), "_OTHER", "KeyError")],
)
def test_an_error_type_of_the_application_s_own_is_an_attribute(
    recorder: Recorder, rules: Rules, own: str, raising: str
) -> None:
    said = {"error.type": "timeout of bob"}

    def run() -> None:
        with tracer.start_as_current_span("own", attributes=said) as span:
            span.set_status(StatusCode.ERROR)
        with pytest.raises(KeyError), tracer.start_as_current_span("raising", attributes=said):
            raise KeyError("x")

    serve(recorder, meanwhile=run)
    row = trace_row(recorder.kept.pop(), {}, 0, rules)
    sent = encode_traces({}, [row])
    assert sent is not None
    ((inner,),) = [one.scope_spans for one in ExportTraceServiceRequest.FromString(sent.data).resource_spans]
    on_the_wire = {span.name: attributes_of(span.attributes).get("error.type") for span in inner.spans}
    shown = {node.name: node.error for node in all_of(trees([row])) if node.row is None}
    assert shown == {"own": own, "raising": raising}
    assert {name: on_the_wire[name] for name in shown} == shown


def test_what_libraries_read_that_take_them_for_the_sdk_s(recorder: Recorder) -> None:
    def run() -> None:
        request: Any = trace.get_current_span()
        request.set_attribute("a", 1)
        assert (request.kind, request.attributes, request.parent) == (SpanKind.SERVER, {"a": 1}, None)
        assert (request.name, request.status.status_code) == ("GET", StatusCode.UNSET)
        assert request.context == request.get_span_context()
        with tracer.start_as_current_span("call", kind=SpanKind.CLIENT, attributes={"b": 2}) as call:
            span: Any = call
            assert (span.name, span.kind, span.attributes) == ("call", SpanKind.CLIENT, {"b": 2})
            assert (span.parent, span.context) == (request.context, span.get_span_context())
            assert (span.events, span.links, span.end_time) == ((), (), None)
            span.set_status(StatusCode.ERROR)
            assert span.status.status_code is StatusCode.ERROR
        # Each asks two clocks again.
        assert before <= min(request.start_time, span.start_time, span.end_time)

    before = time.time_ns() - 10**9
    serve(recorder, meanwhile=run)
    task: Any = otel._Here(paste_agent.background_task("mail"))
    assert (task.name, task.kind, task.start_time) == ("mail", SpanKind.INTERNAL, None)


def test_names(recorder: Recorder, reader: Reader) -> None:
    def run() -> None:
        with tracer.start_as_current_span("before") as span:
            span.update_name("after")
            assert told(reader) == "after"
            span.add_event("an event", {"a": 1})
            span.add_link(span.get_span_context())
        tracer.start_span("n" * 1000).end()
        tracer.start_span(Odd()).end()  # type: ignore[arg-type]
        trace.get_current_span().update_name("/items/17")

    assert [span.name for span in spans_within(recorder, run)] == ["after", "n" * 255, "Odd"]


# -- the current span ------------------------------------------------------------------------------------------------


def test_the_current_span_has_the_ids_that_logs_and_others_have(recorder: Recorder) -> None:
    def run() -> None:
        assert ids(trace.get_current_span()) == trace_ids.here()
        with paste_agent.span("ours"):
            assert ids(trace.get_current_span()) == trace_ids.here()
        with tracer.start_as_current_span("theirs") as span:
            assert ids(trace.get_current_span()) == ids(span) == trace_ids.here()
            assert span.get_span_context().is_valid
            assert not span.get_span_context().is_remote
        # A line in the log is no reason to keep a trace.
        assert inside_of().identity is None

    serve(recorder, meanwhile=run, HTTP_TRACEPARENT=f"00-{TRACE_ID}-{PARENT_ID}-00")
    kept = recorder.kept.pop()
    assert kept.trace_id.hex() == TRACE_ID
    serve(recorder, meanwhile=run)


@pytest.mark.parametrize("sampled", ["00", "01"])
def test_others_are_told_whose_call_it_is(recorder: Recorder, sampled: str) -> None:
    def run() -> None:
        with tracer.start_as_current_span("call"):
            headers: dict[str, str] = {}
            propagate.inject(headers)
            assert headers == paste_agent.outbound_headers()
            assert headers["traceparent"].startswith(f"00-{TRACE_ID}-")
            assert headers["traceparent"].endswith(f"-{sampled}")
            assert headers["tracestate"] == "vendor=1"
        headers = {}
        propagate.inject(headers)
        assert headers == paste_agent.outbound_headers()
        place = trace.get_current_span().get_span_context()
        plain = copy.copy(place)
        assert type(plain) is trace.SpanContext
        assert (*plain[:3], plain.trace_flags) == (*place[:3], place.trace_flags)

    serve(
        recorder,
        meanwhile=run,
        HTTP_TRACEPARENT=f"00-{TRACE_ID}-{PARENT_ID}-{sampled}",
        HTTP_TRACESTATE="vendor=1",
    )


def test_what_is_said_of_the_current_span(recorder: Recorder) -> None:
    def run() -> None:
        span = trace.get_current_span()
        assert span.is_recording()
        span.set_attributes({"app.plan": "gold"})
        with paste_agent.span("ours"):
            trace.get_current_span().set_attribute("app.words", ["a", "b"])
        with tracer.start_as_current_span("theirs"):
            trace.get_current_span().set_attribute("app.inner", 1)
        for number in range(100):
            span.set_attribute(f"n{number}", number)
        span.set_status(StatusCode.ERROR)
        span.end()
        with pytest.raises(ZeroDivisionError), trace.use_span(span, end_on_exit=True):
            1 / 0  # noqa: B018
        found.update(inside_of().attributes or {})
        assert inside_of().errors is None
        late.append(span)

    found: dict[str, Any] = {}
    late: list[trace.Span] = []
    spans = spans_within(recorder, run)
    assert {name: found[name] for name in ("app.plan", "app.words")} == {"app.plan": "gold", "app.words": "a, b"}
    assert len(found) == MAX_ATTRIBUTES
    assert {span.name: span.attributes for span in spans} == {"ours": None, "theirs": {"app.inner": 1}}
    assert not recorder.kept.pop().failed
    (span,) = late
    assert not span.is_recording()
    span.set_attribute("late", 1)
    assert ids(span) == ("0" * 32, "0" * 16)
