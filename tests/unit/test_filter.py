"""The filter, to the letter of PEP 3333: what the application, the server and the count see of it."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from paste.deploy import loadapp

import paste_agent
from paste_agent import filter as agent_filter
from paste_agent import lifecycle
from paste_agent.aggregate import QUEUE_DURATION, REQUEST_DURATION
from paste_agent.recorder import layout, writer
from paste_agent.store.store import Store
from paste_agent.transaction import TRANSACTION_KEY
from tests.filtering import (
    HEADERS,
    SPAN_ID,
    TRACE_ID,
    App,
    Environ,
    Measured,
    Server,
    environ_of,
    fine,
    key,
    key_of,
    raises_in_call,
    returning,
    serve,
)

# -- environ -------------------------------------------------------------------------------------------------------


def without(*names: str) -> Environ:
    environ = environ_of()
    for name in names:
        del environ[name]
    return environ


@pytest.mark.parametrize(
    ("environ", "method"),
    [
        (without("SCRIPT_NAME"), "GET"),
        (without("PATH_INFO"), "GET"),
        (without("SCRIPT_NAME", "PATH_INFO", "SERVER_PROTOCOL"), "GET"),
        (without("REQUEST_METHOD"), "_OTHER"),
        (without("wsgi.url_scheme"), "GET"),
        (environ_of(REQUEST_METHOD=7), "_OTHER"),
        (environ_of(REQUEST_METHOD="get"), "_OTHER"),
        (environ_of(REQUEST_METHOD="BREW" * 3000), "_OTHER"),
        (environ_of(REQUEST_METHOD="G\udc80T"), "_OTHER"),
        (environ_of(REQUEST_METHOD="QUERY"), "QUERY"),
        (environ_of(PATH_INFO="/caf\xc3\xa9\xff\x00"), "GET"),
        (environ_of(PATH_INFO="/\u4e2d\u6587"), "GET"),
        (environ_of(PATH_INFO="/\udcff"), "GET"),
        (environ_of(PATH_INFO="/" + "x" * 100_000), "GET"),
        (environ_of(PATH_INFO=None), "GET"),
        (environ_of(SERVER_PROTOCOL=["HTTP/1.1"]), "GET"),
        (environ_of(SERVER_PROTOCOL="HTTP/" + "9" * 10_000), "GET"),
        (environ_of(**{"wsgi.url_scheme": "gopher"}), "GET"),
        (environ_of(HTTP_HOST=None, REMOTE_ADDR=7, HTTP_USER_AGENT="\udc80"), "GET"),
        (environ_of(HTTP_TRACEPARENT=b"00"), "GET"),
        (environ_of(QUERY_STRING=None), "GET"),
    ],
)
def test_odd_requests_reach_the_application_and_are_counted(service: Measured, environ: Environ, method: str) -> None:
    assert Server().serve(service.around(fine), environ).sent == b"hello"
    assert service.only() == key(method)
    assert service.reader().in_flight() == []


class Unhashable:
    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("route", "counted"),
    [
        ("/items/{id}", "/items/{id}"),
        ("items/{id}", "/items/{id}"),
        ("", None),
        (None, None),
        (7, None),
        ([], None),
        (["/x"], None),
        ({"a": 1}, None),
        (Unhashable(), None),
        (b"/x", None),
        ("/" + "x" * 5000, "/" + "x" * 254),
    ],
)
def test_a_route_that_the_application_names(service: Measured, route: object, counted: str | None) -> None:
    def app(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        environ["paste_agent.route"] = route
        return fine(environ, start_response)

    for _ in range(2):
        serve(service.around(app))
    assert service.counts() == {key(route=counted): 2}
    assert service.word(layout.W_INTERNAL_ERRORS) == 0


OF_W3C, OF_B3 = (TRACE_ID, SPAN_ID, "w3c=1"), ("2" * 32, "2" * 16, "")
NOBODY = ("", "", "")
SENT = {
    "HTTP_TRACEPARENT": f"00-{TRACE_ID}-{SPAN_ID}-01",
    "HTTP_TRACESTATE": "w3c=1",
    "HTTP_B3": f"{'2' * 32}-{'2' * 16}-1",
}


@pytest.mark.parametrize(
    ("propagators", "sent", "parent"),
    [
        pytest.param("tracecontext", SENT, OF_W3C, id="W3C's"),
        pytest.param("tracecontext b3", SENT, OF_W3C, id="W3C's first"),
        pytest.param("tracecontext b3", {**SENT, "HTTP_TRACEPARENT": "00-junk"}, OF_B3, id="W3C's is invalid"),
        pytest.param("b3", SENT, OF_B3, id="W3C's is not read"),
        pytest.param("jaeger", SENT, NOBODY, id="neither is read"),
        pytest.param("none", SENT, NOBODY, id="nothing is read"),
    ],
)
def test_whose_request_it_is_and_its_headers_as_the_client_sent_them(
    measure: Callable[..., Measured], propagators: str, sent: dict[str, str], parent: tuple[str, str, str]
) -> None:
    service = measure(propagators=propagators, random_traces_per_min="0")
    trace_id, span_id, tracestate = parent
    seen: list[Any] = []

    def app(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        seen.append({key: environ[key] for key in SENT})
        here = paste_agent.trace_context()
        assert here is not None
        seen.extend((here[0], paste_agent.outbound_headers(), service.reader().in_flight()[0].traceparent))
        return fine(environ, start_response)

    serve(agent_filter.measured(app, service.settings), **sent)
    headers, trace_here, told, in_slot = seen
    assert headers == sent
    assert (trace_here == trace_id) == bool(trace_id)
    assert told.get("tracestate", "") == (tracestate if "tracecontext" in propagators else "")
    assert in_slot == (f"00-{trace_id}-{span_id}-01" if trace_id else "")
    kept = [
        (row.trace_id.hex(), (row.parent_id or b"").hex(), row.why, (row.detail or {}).get("tracestate", ""))
        for row in service.traces()
    ]
    assert kept == ([(trace_id, span_id, layout.KEPT_PARENT, tracestate)] if trace_id else [])


def test_the_outer_of_two_filters_says_whose_request_it_is(measure: Callable[..., Measured]) -> None:
    inner = agent_filter.measured(fine, measure(propagators="b3").settings)
    outer = measure()
    serve(agent_filter.measured(inner, outer.settings), **SENT)
    assert [row.trace_id.hex() for row in outer.traces()] == [TRACE_ID]


def test_of_a_copied_environ_the_own_parent_counts(measure: Callable[..., Measured]) -> None:
    service, trace_id = measure(propagators="tracecontext b3"), "c" * 32

    def outer(environ: Environ, start_response: Callable[..., Any]) -> Any:
        copied = {key: value for key, value in environ.items() if key != TRANSACTION_KEY}
        serve(inner, **{**copied, "HTTP_TRACEPARENT": f"00-{trace_id}-{'d' * 16}-01"})
        return fine(environ, start_response)

    inner = agent_filter.measured(fine, service.settings)
    serve(agent_filter.measured(outer, service.settings), HTTP_B3=SENT["HTTP_B3"])
    assert {row.trace_id.hex() for row in service.traces()} == {trace_id, OF_B3[0]}


@pytest.mark.parametrize(
    ("status", "code"),
    [("200", 200), ("299 \xe9", 299), ("99 x", None), ("600 x", None), ("2000 x", None), ("", None), ("abc", None)],
)
def test_odd_statuses(service: Measured, status: str, code: int | None) -> None:
    serve(service.around(returning([], status)))
    assert service.only() == key(status=code)


@pytest.mark.parametrize("status", [b"200 OK", 200, None, ["200 OK"]])
def test_a_status_that_is_no_text_is_counted_without(service: Measured, status: Any) -> None:
    serve(service.around(returning([], status)))
    assert service.only() == key(status=None)
    assert service.word(layout.W_INTERNAL_ERRORS) == 0


def test_the_path_is_noted_as_the_client_sent_it(service: Measured) -> None:
    seen = []

    def app(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        environ["SCRIPT_NAME"], environ["PATH_INFO"] = "/moved", "/elsewhere"
        environ["REQUEST_METHOD"] = "GET"
        seen.extend(service.reader().in_flight())
        return fine(environ, start_response)

    serve(service.around(app), REQUEST_METHOD="POST", HTTP_TRACEPARENT="junk")
    (in_flight,) = seen
    assert (in_flight.method, in_flight.path, in_flight.scheme) == ("POST", "/prefix/page", "http")
    assert (in_flight.thread, in_flight.traceparent) == (threading.get_ident(), "junk")
    assert service.only() == key("POST")
    assert service.reader().in_flight() == []


@pytest.mark.parametrize("name", ["HTTP_X_REQUEST_START", "HTTP_X_QUEUE_START"])
@pytest.mark.parametrize(
    ("scale", "form"), [(1, "{:.6f}"), (1e3, "{:.3f}"), (1e6, "{:.0f}"), (1, "t={:.6f}"), (1e6, " t={:.0f} ")]
)
def test_time_in_the_queue(service: Measured, name: str, scale: float, form: str) -> None:
    serve(service.around(fine), **{name: form.format((time.time() - 100) * scale)})
    assert 100e9 <= queued_ns(service)[0] < 130e9


@pytest.mark.parametrize(
    ("header", "queued"),
    [
        (lambda: f"{time.time() + 1000}", [0]),
        (lambda: "1e400", [0]),
        (lambda: "nan", []),
        (lambda: "-inf", []),
        (lambda: "-5", []),
        (lambda: "0", []),
        (lambda: "", []),
        (lambda: "t=", []),
        (lambda: "yesterday", []),
        (lambda: "1" * 8000, [0]),
        (lambda: "5", []),
        (lambda: "1e8", [0xFFFFFFFE * 1000]),
        (lambda: 1.5, []),
    ],
)
def test_odd_times_in_the_queue(service: Measured, header: Callable[[], Any], queued: list[int]) -> None:
    serve(service.around(fine), HTTP_X_REQUEST_START=header())
    assert queued_ns(service) == queued
    assert service.only() == key()


def queued_ns(service: Measured) -> list[int]:
    return [total.max_ns for ((metric, _), _), total in service.delta().totals.items() if metric == QUEUE_DURATION]


@pytest.mark.parametrize(
    ("header", "parent"),
    [
        (f"00-{TRACE_ID}-{SPAN_ID}-01", True),
        (f"00-{TRACE_ID}-{SPAN_ID}-00", False),
        (f"cc-{TRACE_ID}-{SPAN_ID}-01-more", True),
        (f"ff-{TRACE_ID}-{SPAN_ID}-01", False),
        ("00-" + "0" * 32 + f"-{SPAN_ID}-01", False),
        ("00-" * 2730, False),
        (f"00-{TRACE_ID}-{SPAN_ID}-01" + "-" * 8000, False),
        ("\udc80", False),
        ("\xff" * 8000, False),
        ("", False),
    ],
)
def test_an_incoming_traceparent(measure: Callable[..., Measured], header: str, parent: bool) -> None:
    service = measure(random_traces_per_min="0")
    serve(service.around(fine), HTTP_TRACEPARENT=header)
    assert service.only() == key()
    service.agent.finish()
    store = Store(service.settings.store, read_only=True)
    rows = store.traces(0, 1e12, "newest", False, 10)
    store.close()
    assert [(row.trace_id.hex(), row.parent_id.hex() if row.parent_id else None) for row in rows] == (
        [(TRACE_ID, SPAN_ID)] if parent else []
    )


# -- several filters -----------------------------------------------------------------------------------------------


def test_twice_in_one_pipeline_counts_once(measure: Callable[..., Measured]) -> None:
    outer, inner = measure(), measure()
    serve(outer.around(inner.around(outer.around(fine))))
    assert outer.only() == key()
    assert inner.agent.serving is None


def answer(global_conf: Any, status: str = "200 OK", **local_conf: str) -> App:
    """A `paste.app_factory` for the ini below."""
    return returning([b"x"], status)


TWO_SERVICES = """
[DEFAULT]
directory = %(here)s
[composite:main]
use = egg:Paste#urlmap
/a = a
/b = b
[pipeline:a]
pipeline = agent-a answer
[pipeline:b]
pipeline = agent-b answer
[filter:agent-a]
use = egg:paste_agent
service_name = two-a
store = %(here)s/a.sqlite
runtime_dir = %(here)s/run
[filter:agent-b]
use = egg:paste_agent
service_name = two-b
store = %(here)s/b.sqlite
runtime_dir = %(here)s/run
[app:answer]
paste.app_factory = tests.unit.test_filter:answer
status = 204 No Content
"""


def test_two_services_in_one_process_count_each_their_own(tmp_path: Path) -> None:
    (tmp_path / "two.ini").write_text(TWO_SERVICES)
    app = loadapp(f"config:{tmp_path / 'two.ini'}")
    try:
        for path in ("/a/x", "/b/x", "/b/y", "/none"):
            serve(app, SCRIPT_NAME="", PATH_INFO=path)
    finally:
        lifecycle._finish_all()
    for name, count in (("a", 1), ("b", 2)):
        store = Store(str(tmp_path / f"{name}.sqlite"), read_only=True)
        totals = {
            key_of(dict(one.attributes)): one.total.count for one in store.totals() if one.metric == REQUEST_DURATION
        }
        store.close()
        assert totals == {key(status=204): count}


def test_a_disabled_filter_is_the_application_itself(tmp_path: Path) -> None:
    assert agent_filter.main(fine, {}, enabled="false", store=str(tmp_path / "s")) is fine
    assert list(tmp_path.iterdir()) == []


def test_making_a_filter_makes_nothing_else(tmp_path: Path) -> None:
    threads = threading.active_count()
    conf = {"service_name": "idle", "store": str(tmp_path / "s.sqlite"), "runtime_dir": str(tmp_path / "run")}
    first = agent_filter.main(fine, {}, **conf)
    second = agent_filter.main(fine, {"__file__": str(tmp_path / "none.ini")}, **conf)
    assert isinstance(first, agent_filter.AgentFilter)
    assert isinstance(second, agent_filter.AgentFilter)
    assert first.agent is second.agent
    assert list(tmp_path.iterdir()) == []
    assert threading.active_count() == threads


# -- bounds and faults ---------------------------------------------------------------------------------------------


def test_more_requests_in_flight_than_slots(service: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "STEP_SLOTS", layout.SLOTS)
    app = service.around(fine)
    open_ones: list[Any] = [app(environ_of(), Server().start_response) for _ in range(layout.SLOTS + 5)]
    assert len(service.reader().in_flight()) == layout.SLOTS
    assert service.word(layout.W_UNSLOTTED) == 5
    for response in open_ones:
        response.close()
    assert service.counts() == {key(): layout.SLOTS + 5}
    serve(app)
    assert service.reader().in_flight() == []
    assert service.word(layout.W_UNSLOTTED) == 5
    assert service.word(layout.W_INTERNAL_ERRORS) == 0


def test_series_stay_bounded_whatever_the_client_and_the_application_send(measure: Callable[..., Measured]) -> None:
    service = measure(max_series="50", ring_records="262144")
    status = ""

    def app(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        start_response(status, HEADERS)
        environ["paste_agent.route"] = f"/{status}"
        return []

    measured, many, start_response = service.around(app), 100_000, lambda status, headers: None
    environ = environ_of()
    for number in range(many):
        status = f"{200 + number % 400} {number}"
        environ["REQUEST_METHOD"], environ["SERVER_PROTOCOL"] = f"M{number}", f"HTTP/{number}"
        environ.pop("paste_agent.transaction", None)
        measured(environ, start_response).close()  # type: ignore[attr-defined]
    recorder = service.recorder()
    assert len(recorder.series) <= 4 * 50
    by_kind = Counter(kind & ~layout.KIND_OVERFLOW for kind, _ in recorder._by_fields)
    assert set(by_kind) <= {layout.KIND_SERVER, layout.KIND_ERROR}
    assert max(by_kind.values()) <= 51
    counts = service.counts()
    assert sum(counts.values()) == many
    assert len(counts) <= 51
    assert counts["overflow", None, None, None] == many - 50


def test_a_full_ring_counts_its_loss(measure: Callable[..., Measured]) -> None:
    service = measure(ring_records="1024")
    app = service.around(fine)
    # Frozen before the reporter can drain: one that has ended does not.
    serve(app)
    service.agent.serving, recorder = None, service.recorder()
    assert service.agent._reporter is not None
    service.agent._reporter.finish(10)
    tail = recorder.word(layout.W_TAIL)
    service.agent.serving = recorder
    for _ in range(2000):
        serve(app)
    assert 1024 - 256 <= recorder.last + 1 - tail <= 1024
    assert recorder.word(layout.W_DROPPED) == 2001 - (recorder.last + 1)
    service.agent.serving = None


class Broken:
    """Stands for memory that has gone: every use raises."""

    def __getattr__(self, name: str) -> Any:
        raise OSError("gone")

    def __getitem__(self, *place: object) -> Any:
        raise OSError("gone")

    __setitem__ = __call__ = __getitem__  # type: ignore[assignment]


@pytest.mark.parametrize("part", ["buffer", "longs", "next", "started", "pop_slot", "series", "sampler", "kept"])
@pytest.mark.parametrize("app", [fine, raises_in_call(ValueError("the application's"))], ids=["answers", "fails"])
def test_a_fault_of_the_agent_never_reaches_the_application(
    measure: Callable[..., Measured], caplog: pytest.LogCaptureFixture, part: str, app: App
) -> None:
    service = measure()
    measured = service.around(fine)
    serve(measured)
    recorder = service.recorder()
    whole = getattr(recorder, part)
    setattr(recorder, part, Broken())
    try:
        for _ in range(3):
            if app is fine:
                assert serve(measured).sent == b"hello"
            else:
                measured.application = app
                with pytest.raises(ValueError, match="the application's") as raised:
                    serve(measured, HTTP_TRACEPARENT=f"00-{TRACE_ID}-{SPAN_ID}-01")
                assert raised.value.__context__ is None
    finally:
        setattr(recorder, part, whole)
    measured.application = fine
    serve(measured)
    assert service.agent._faults >= (part not in ("series", "kept", "sampler") or app is not fine)
    if part != "longs":
        assert service.word(layout.W_INTERNAL_ERRORS) == service.agent._faults
    # Once a kind, not once a request.
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) <= 3
    service.agent.finish()
    service.agent.serving = None


def test_an_agent_that_cannot_open_lets_the_application_be(
    measure: Callable[..., Measured], caplog: pytest.LogCaptureFixture
) -> None:
    service = measure()

    def cannot() -> Any:
        raise MemoryError("no room")

    service.agent.open = cannot  # type: ignore[method-assign]
    error = ValueError("the application's")
    with pytest.raises(ValueError) as raised:
        serve(service.around(raises_in_call(error)))
    assert raised.value is error
    assert error.__context__ is None
    environ = environ_of()
    assert Server().serve(service.around(fine), environ).sent == b"hello"
    assert "paste_agent.transaction" not in environ
    assert [record.getMessage() for record in caplog.records] == [
        f"{service.settings.service_name}: a fault of the agent in open: MemoryError: no room"
    ]
    assert service.agent._faults == 2


def test_requests_after_the_end_are_served(service: Measured) -> None:
    app = service.around(fine)
    serve(app)
    assert service.stored() == {key(): 1}
    assert serve(app).sent == b"hello"
    service.agent.finish()
    service.agent.serving = None


def test_requests_of_many_threads_are_counted_once_each(service: Measured) -> None:
    app = service.around(fine)
    threads = [threading.Thread(target=lambda: [serve(app) for _ in range(500)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert service.counts() == {key(): 4000}
    assert service.reader().in_flight() == []


def test_nothing_of_a_finished_request_is_kept_alive(service: Measured) -> None:
    class Witness:
        alive = 0

        def __init__(self) -> None:
            Witness.alive += 1

        def __del__(self) -> None:
            Witness.alive -= 1

    def app(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        local = Witness()
        if environ["PATH_INFO"] == "/fail":
            raise ValueError(str(local))
        return fine(environ, start_response)

    gc.disable()
    try:
        serve(service.around(app), witness=Witness())
        assert Witness.alive == 0
    finally:
        gc.enable()
    try:
        serve(service.around(app), witness=Witness(), PATH_INFO="/fail")
    except ValueError:
        pass
    gc.collect()
    assert Witness.alive == 0
