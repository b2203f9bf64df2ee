"""OpenTelemetry's API beside the agent: what an application does by itself with it goes on as it did."""

# ruff: noqa: F811  # fixtures that are imported

from __future__ import annotations

import asyncio
import contextvars
import copy
import gc
import pickle
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.trace import SpanKind

import paste_agent
from paste_agent import trace_ids
from paste_agent.inside import MESSAGE
from paste_agent.recorder.writer import Recorder
from paste_agent.transaction import current
from tests.recorders import run_script, serve, spans_within, tree
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
from tests.within import here, inside_of

# -- what is attached ------------------------------------------------------------------------------------------------


def test_what_somebody_forgot_to_detach_is_no_place_to_be(recorder: Recorder) -> None:
    tokens: list[Any] = []

    def forgets() -> None:
        tokens.append(context.attach(trace.set_span_in_context(tracer.start_span("forgotten"))))

    def run() -> None:
        assert ids(trace.get_current_span()) == trace_ids.here()
        with tracer.start_as_current_span("fresh"):
            pass

    spans_within(recorder, forgets)
    try:
        assert trace.get_current_span() is trace.INVALID_SPAN
        assert tree(spans_within(recorder, run)) == {"fresh": None}
    finally:
        context.detach(tokens.pop())


def test_nor_is_the_transaction_of_a_request_before(recorder: Recorder) -> None:
    tokens: list[Any] = []
    sent: list[dict[str, str]] = []

    def forgets() -> None:
        tokens.append(context.attach(trace.set_span_in_context(trace.get_current_span())))

    def run() -> None:
        assert ids(trace.get_current_span()) == trace_ids.here()
        sent.append({})
        propagate.inject(sent[-1])
        assert sent[-1] == paste_agent.outbound_headers()

    serve(recorder, meanwhile=forgets)
    try:
        serve(recorder, meanwhile=run)
    finally:
        context.detach(tokens.pop())


#: As OpenTelemetry's instrumentation of WSGI begins, in a module of theirs.
FIRST = """
from opentelemetry import context, propagate, trace

def begin(headers):
    if trace.get_current_span() is trace.INVALID_SPAN:
        return context.attach(propagate.extract(headers))
"""


def test_an_instrumentation_that_is_the_first_takes_baggage_over(recorder: Recorder) -> None:
    theirs = types.ModuleType("opentelemetry.instrumentation.wsgi")
    exec(FIRST, vars(theirs))
    passed_on: list[object] = []

    def run() -> None:
        token = theirs.begin({"baggage": "tenant=acme"})
        passed_on.append(baggage.get_baggage("tenant"))
        context.detach(token)
        assert trace.get_current_span() is not trace.INVALID_SPAN  # whoever else asks

    serve(recorder, meanwhile=run)
    assert passed_on == ["acme"]


def test_what_the_application_attaches_stays(recorder: Recorder) -> None:
    def run() -> None:
        parent = propagate.extract({"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"})
        token = context.attach(parent)
        try:
            assert ids(trace.get_current_span()) == (TRACE_ID, PARENT_ID)
        finally:
            context.detach(token)
        assert trace.get_current_span(context.Context()) is trace.INVALID_SPAN

    serve(recorder, meanwhile=run)


def test_what_stands_for_the_caller_or_for_nobody_gives_way(recorder: Recorder) -> None:
    header = f"00-{TRACE_ID}-{PARENT_ID}-01"

    def run() -> None:
        for attached in (propagate.extract({"traceparent": header}), trace.set_span_in_context(nobody)):
            token = context.attach(attached)
            try:
                assert ids(trace.get_current_span()) == trace_ids.here()
            finally:
                context.detach(token)

    nobody = trace.NonRecordingSpan(trace.INVALID_SPAN_CONTEXT)
    serve(recorder, meanwhile=run, HTTP_TRACEPARENT=header)
    token = context.attach(propagate.extract({"traceparent": header}))
    try:
        assert ids(trace.get_current_span()) == (TRACE_ID, PARENT_ID)
    finally:
        context.detach(token)


# -- what the application holds --------------------------------------------------------------------------------------


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise KeyError("of the application's own")


def test_an_exception_is_never_made_a_text_of(recorder: Recorder) -> None:
    def run() -> None:
        with pytest.raises(Unspeakable), tracer.start_as_current_span("outer"), tracer.start_as_current_span("inner"):
            raise Unspeakable

    assert {span.name for span in spans_within(recorder, run) if span.failed} == {"outer", "inner"}


def test_copies_are_what_the_api_alone_would_give(recorder: Recorder) -> None:
    def run() -> None:
        for span in (trace.get_current_span(), tracer.start_span("one")):
            for copied in (copy.copy(span), copy.deepcopy(span), pickle.loads(pickle.dumps(span))):
                assert type(copied) is trace.NonRecordingSpan
                assert ids(copied) == ids(span)
        kept = weakref.WeakKeyDictionary({trace.get_current_span(): "by span"})
        assert trace.get_current_span() == trace.get_current_span() != trace.INVALID_SPAN
        assert kept.get(trace.get_current_span()) is None  # what it was made for is gone
        held = trace.get_current_span()
        kept[held] = "by span"
        assert kept[trace.get_current_span()] == "by span"

    serve(recorder, meanwhile=run)


def test_a_place_that_is_kept_keeps_no_request(recorder: Recorder) -> None:
    links: list[trace.SpanContext] = []
    requests: list[weakref.ref[object]] = []

    def run() -> None:
        with tracer.start_as_current_span("one") as span:
            links.extend((trace.get_current_span().get_span_context(), span.get_span_context()))
        links.append(trace.get_current_span().get_span_context())
        assert links[0].trace_flags == trace.TraceFlags.DEFAULT
        requests.append(weakref.ref(here()))

    serve(recorder, meanwhile=run, HTTP_TRACEPARENT=f"00-{TRACE_ID}-{PARENT_ID}-00")
    recorder.kept.clear()
    gc.collect()
    assert requests[0]() is None
    assert {trace.format_trace_id(link.trace_id) for link in links} == {TRACE_ID}
    assert [link.trace_flags for link in links] == [trace.TraceFlags.DEFAULT] * 3


def test_an_error_is_one_of_the_transaction_that_the_span_is_of(recorder: Recorder) -> None:
    held: list[trace.Span] = []

    def first() -> None:
        held.append(tracer.start_span("held"))
        held.append(trace.get_current_span())
        threads = [threading.Thread(target=span.record_exception, args=(ValueError("in vain"),)) for span in held]
        for thread in threads:
            thread.start()
            thread.join()
        assert [error.type for error in inside_of().errors or ()] == ["ValueError"]

    def second() -> None:
        for span in held:
            span.record_exception(KeyError("late"))
        within = current.get()
        assert within is not None
        assert within.transaction.inside is None or within.transaction.inside.errors is None

    serve(recorder, meanwhile=first)
    serve(recorder, meanwhile=second)


def test_messages_that_overlap_are_each_one(recorder: Recorder) -> None:
    async def send() -> None:
        with tracer.start_as_current_span("send", kind=SpanKind.PRODUCER):
            await asyncio.sleep(0)

    async def all_of_them() -> None:
        await asyncio.gather(*(send() for _ in range(5)))

    def run() -> None:
        asyncio.run(all_of_them())
        counted.append(inside_of().parts[MESSAGE][0])

    counted: list[int] = []
    found = spans_within(recorder, run)
    assert [span.category for span in found] == [MESSAGE] * 5
    assert counted == [5]


def test_generators_that_take_turns_leave_nothing_behind(recorder: Recorder) -> None:
    def turns(name: str) -> Iterator[None]:
        with tracer.start_as_current_span(name), paste_agent.span(f"ours in {name}"):
            yield

    def run() -> None:
        for _ in zip(turns("A"), turns("B"), strict=False):
            pass
        assert current.get() is here()
        with paste_agent.span("after"):
            pass

    expected = {"A": None, "ours in A": "A", "B": "ours in A", "ours in B": "B", "after": None}
    assert tree(spans_within(recorder, run)) == expected


def test_a_decorated_generator_takes_spans_with_it_that_it_has_open(recorder: Recorder) -> None:
    @paste_agent.span("rows")
    def rows() -> Iterator[None]:
        with tracer.start_as_current_span("A"):
            yield
            with paste_agent.span("ours"), tracer.start_as_current_span("B"):
                yield

    def run() -> None:
        for _ in rows():
            with paste_agent.span("consumer"):
                pass
        assert current.get() is here()

    expected = {"rows": None, "A": "rows", "ours": "A", "B": "ours", "consumer": None}
    assert tree(spans_within(recorder, run)) == expected


def test_a_thread_that_has_the_api_s_context_alone_is_in_its_span(recorder: Recorder) -> None:
    def work(handed: context.Context) -> None:
        with tracer.start_as_current_span("told", context=handed), paste_agent.span("ours"):
            pass
        token = context.attach(handed)
        tracer.start_span("attached").end()
        context.detach(token)
        assert current.get() is None

    def run() -> None:
        with tracer.start_as_current_span("outer"):
            thread = threading.Thread(target=work, args=(context.get_current(),))
            thread.start()
            thread.join()

    expected = {"outer": None, "told": "outer", "ours": "told", "attached": "outer"}
    assert tree(spans_within(recorder, run)) == expected


# -- where nothing is changed ----------------------------------------------------------------------------------------


def test_nothing_without_a_transaction() -> None:
    assert trace.get_current_span() is trace.INVALID_SPAN
    with tracer.start_as_current_span("nobody's", attributes={"a": 1}) as span:
        assert isinstance(span, trace.NonRecordingSpan)
        assert not span.get_span_context().is_valid
    with pytest.raises(ZeroDivisionError), tracer.start_as_current_span("fails"):
        1 / 0  # noqa: B018
    assert not tracer.start_span("nobody's").is_recording()
    with trace.use_span(trace.INVALID_SPAN) as span:
        assert span is trace.INVALID_SPAN
    headers: dict[str, str] = {}
    propagate.inject(headers)
    assert headers == {}


def test_a_transaction_that_has_ended_is_none(recorder: Recorder) -> None:
    contexts = []
    serve(recorder, meanwhile=lambda: contexts.append(contextvars.copy_context()))
    (within,) = contexts
    assert isinstance(within.run(tracer.start_span, "late"), trace.NonRecordingSpan)
    assert within.run(trace.get_current_span) is trace.INVALID_SPAN


class Provider(trace.TracerProvider):
    """One that an application has written."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def get_tracer(self, instrumenting_module_name: str, *args: Any, **kwargs: Any) -> trace.Tracer:
        self.asked.append(instrumenting_module_name)
        return trace.NoOpTracer()


def test_a_provider_of_the_application_s_wins_whenever_it_comes(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = Provider()
    late = trace.get_tracer("taken before")

    def run() -> None:
        with late.start_as_current_span("ours still"):
            pass
        monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)  # what `set_tracer_provider` does, once a process
        with late.start_as_current_span("theirs") as span:
            assert not span.is_recording()
        assert trace.get_current_span() is trace.INVALID_SPAN

    assert [span.name for span in spans_within(recorder, run)] == ["ours still"]
    assert provider.asked == ["taken before"]


SDK = """
import logging, sys
logging.basicConfig(stream=sys.stdout, format="LOGGED %(message)s")
from opentelemetry import trace
from paste_agent import otel
from tests.recorders import open_recorder, spans_within

otel.install(trace)
recorder = open_recorder(None)
tracer = trace.get_tracer("shop")

def show(what):
    def run():
        with tracer.start_as_current_span("outer"):
            with tracer.start_as_current_span("inner"):
                pass
    ours = [span.name for span in spans_within(recorder, run)]
    print(what, "ours", ours, "theirs", [
        (span.name, span.parent and format(span.parent.span_id, "016x") in known) for span in exported()
    ])

def exported():
    spans = list(memory.get_finished_spans()) if memory else []
    known.update(format(span.context.span_id, "016x") for span in spans)
    if memory:
        memory.clear()
    return spans

memory, known = None, set()
show("none")
left = trace.INVALID_SPAN
def leaves():
    global left
    left = tracer.start_span("left")
spans_within(recorder, leaves)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

show("imported")
memory = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(memory))
by_hand = provider.get_tracer("by hand")
tracer, proxy = by_hand, tracer
show("by hand")
with trace.use_span(left):  # of before there was an SDK
    by_hand.start_span("later").end()
print("left", [span.name for span in exported()])
tracer = proxy
trace.set_tracer_provider(provider)
show("set")
assert type(trace.get_tracer_provider()) is TracerProvider
"""


def test_beside_the_real_sdk_nothing_is_ours() -> None:
    theirs = "[('inner', True), ('outer', None)]"
    assert run_script(SDK).splitlines() == [
        "none ours ['inner', 'outer'] theirs []",
        "imported ours [] theirs []",
        f"by hand ours [] theirs {theirs}",
        "left ['later']",
        f"set ours [] theirs {theirs}",
    ]


IMPORTED = """
import sys
from pathlib import Path
from paste_agent import instrument
from tests.recorders import open_recorder, settings_of, spans_within

instrument.install_for(settings_of(Path("/nowhere"), opentelemetry_api=sys.argv[1]))
print("opentelemetry" in sys.modules, "paste_agent.otel" in sys.modules)
from opentelemetry import propagate, trace
from opentelemetry.trace import get_current_span, get_tracer, use_span

def run():
    print(get_current_span().get_span_context().is_valid)
    with use_span(get_tracer("shop").start_span("one"), end_on_exit=True):
        pass
    headers = {}
    propagate.inject(headers)
    print(sorted(headers))

print([span.name for span in spans_within(open_recorder(None), run)])
instrument.install_for(settings_of(Path("/nowhere"), opentelemetry_api=sys.argv[1]))
"""


@pytest.mark.parametrize(
    ("value", "printed"),
    [
        ("true", ["False False", "True", "['traceparent']", "['one']"]),
        ("false", ["False False", "False", "[]", "[]"]),
    ],
)
def test_it_is_there_when_the_api_is_imported(value: str, printed: list[str]) -> None:
    assert run_script(IMPORTED, value).splitlines() == printed


CHANGED = """
from pathlib import Path
from paste_agent import instrument, lifecycle
from tests.recorders import open_recorder, settings_of, spans_within
from opentelemetry import trace

before = trace.use_span, trace.get_current_span
del trace.ProxyTracer._tracer
instrument.install_for(settings_of(Path("/nowhere")))
assert (trace.use_span, trace.get_current_span) == before
print([(where, type(fault).__name__) for where, fault in lifecycle._owed_faults])
"""


def test_an_api_that_is_not_what_it_was_stays_as_it_is() -> None:
    assert run_script(CHANGED) == "[(\"OpenTelemetry's API\", 'AttributeError')]\n"


def test_faults_are_counted_and_nobody_notices(recorder: Recorder) -> None:
    faults: list[str] = []
    recorder.on_fault = lambda where, fault: faults.append(f"{where}: {type(fault).__name__}")
    whole = recorder._ids, recorder.sampler, recorder.next_span

    class NoMapping(dict[str, Any]):
        def items(self) -> Any:
            raise OSError

    def faults_of(call: Callable[[], object]) -> list[str]:
        faults.clear()
        call()
        return faults[:]

    def run() -> None:
        with tracer.start_as_current_span("one", attributes=NoMapping(a=1)) as span:
            assert faults_of(lambda: span.set_attributes(NoMapping())) == ["OpenTelemetry's API: OSError"]
            place = trace.get_current_span().get_span_context()
            broken: Any = recorder
            broken._ids = broken.sampler = broken.next_span = None
            assert len(faults_of(lambda: propagate.inject({}))) == 2  # flags and state
            assert place.trace_flags == trace.TraceFlags.DEFAULT
            assert faults_of(lambda: tracer.start_span("two").end()) == ["begin of a span: TypeError"]
            with paste_agent.span("three"):
                pass
            recorder._ids, recorder.sampler, recorder.next_span = whole

    assert [span.name for span in spans_within(recorder, run)] == ["one"]


GREENLETS = """
from gevent import monkey
monkey.patch_all()
import gevent
from opentelemetry import trace
from paste_agent import otel
from tests.recorders import open_recorder, spans_within

otel.install(trace)
recorder = open_recorder(None)
tracer = trace.get_tracer("shop")

def work(name):
    def run():
        with tracer.start_as_current_span(f"{name} outer"):
            gevent.sleep(0)
            with tracer.start_as_current_span(f"{name} inner") as span:
                gevent.sleep(0)
                assert trace.get_current_span() is span
            gevent.sleep(0)
    found = sorted(spans_within(recorder, run))
    assert found[1].parent == found[0].number, found
    return [span.name for span in found]

tasks = [gevent.spawn(work, name) for name in ("first", "second")]
gevent.joinall(tasks, raise_error=True)
print([task.value for task in tasks])
"""


def test_greenlets_do_not_meet() -> None:
    pytest.importorskip("gevent")
    assert run_script(GREENLETS) == "[['first outer', 'first inner'], ['second outer', 'second inner']]\n"
