"""Calls over httpx: spans and headers of clients of both kinds."""

from __future__ import annotations

import asyncio
import threading
import types
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from paste_agent import instrument, lifecycle
from paste_agent.inside import CALL, FinishedSpan
from paste_agent.instrument import httpx as instrumentation
from paste_agent.recorder import layout
from paste_agent.recorder.writer import Recorder
from paste_agent.transaction import current
from tests.caches import free_port
from tests.instrumented import instrumented
from tests.recorders import serve, spans_within


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def on_fault(where: str, fault: BaseException) -> None:
        raise AssertionError(f"a fault of the agent in {where}: {fault!r}") from fault

    monkeypatch.setattr(lifecycle, "on_fault", on_fault)
    with instrumented(instrumentation, httpx, httpx.HTTPTransport, httpx.AsyncHTTPTransport):
        yield


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        peer: Any = self.server
        peer.asked.append({name.lower(): value for name, value in self.headers.items()})
        path = self.path.partition("?")[0]
        if path == "/drop":
            self.close_connection = True
            return
        moved = path == "/moved"
        self.send_response(302 if moved else int(path.rpartition("/")[2] or 200))
        if moved:
            self.send_header("Location", "/200")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, format: str, *args: object) -> None:
        pass


class Peer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.asked: list[dict[str, str]] = []
        self.port = int(self.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}"


@pytest.fixture
def peer() -> Iterator[Peer]:
    with Peer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def get(url: str, **keys: Any) -> httpx.Response:
    with httpx.Client(trust_env=False) as client:
        return client.get(url, **keys)


def get_asynchronously(url: str, **keys: Any) -> httpx.Response:
    async def run() -> httpx.Response:
        async with httpx.AsyncClient(trust_env=False) as client:
            return await client.get(url, **keys)

    return asyncio.run(run())


WAYS = [get, get_asynchronously]


def seen(span: FinishedSpan) -> tuple[int, str, str | None]:
    return span.category, span.name, span.failed


@pytest.mark.parametrize("ask", WAYS)
def test_a_request_is_one_span(recorder: Recorder, peer: Peer, ask: Any) -> None:
    (span,) = spans_within(recorder, lambda: ask(f"{peer.url}/stock/200?key=s3cret"), HTTP_BAGGAGE="tenant=7")
    assert seen(span) == (CALL, "GET", None)
    assert span.attributes == {
        "http.request.method": "GET",
        "server.address": "127.0.0.1",
        "server.port": peer.port,
        "url.full": f"{peer.url}/stock/200",
        "http.response.status_code": 200,
        "network.protocol.version": "1.1",
    }
    assert span.span_id is not None
    assert peer.asked[0]["traceparent"].split("-")[2] == span.span_id.hex()
    assert peer.asked[0]["baggage"] == "tenant=7"
    found = [fields for kind, fields in recorder._by_number.values() if kind == layout.KIND_CALL]
    assert found == [("GET", "127.0.0.1", str(peer.port), "200", None)]


@pytest.mark.parametrize("ask", WAYS)
def test_a_redirect_is_told_anew(recorder: Recorder, peer: Peer, ask: Any) -> None:
    found = spans_within(recorder, lambda: ask(f"{peer.url}/moved", follow_redirects=True))
    assert len(found) == 2
    assert len({asked["traceparent"] for asked in peer.asked}) == 2


@pytest.mark.parametrize("ask", WAYS)
def test_who_has_set_the_header_keeps_it(recorder: Recorder, peer: Peer, ask: Any) -> None:
    own = "00-11111111111111111111111111111111-2222222222222222-00"
    spans_within(recorder, lambda: ask(f"{peer.url}/200", headers={"traceparent": own}), HTTP_BAGGAGE="tenant=7")
    assert peer.asked[0]["traceparent"] == own
    assert "baggage" not in peer.asked[0]


@pytest.mark.parametrize("ask", WAYS)
def test_failures(recorder: Recorder, peer: Peer, ask: Any) -> None:
    port = free_port()

    def run() -> None:
        assert ask(f"{peer.url}/503").status_code == 503
        with pytest.raises(httpx.RemoteProtocolError):
            ask(f"{peer.url}/drop")
        with pytest.raises(httpx.ConnectError):
            ask(f"http://127.0.0.1:{port}/")

    found = spans_within(recorder, run)
    assert [span.failed for span in found] == ["503", "httpx.RemoteProtocolError", "httpx.ConnectError"]


@pytest.mark.parametrize("ask", WAYS)
def test_credentials_are_not_told(recorder: Recorder, peer: Peer, ask: Any) -> None:
    (span,) = spans_within(recorder, lambda: ask(f"http://user:s3cret@127.0.0.1:{peer.port}/200#s3cret"))
    assert "s3cret" not in str(span)
    assert "authorization" in peer.asked[0]


def test_a_request_may_be_sent_again(recorder: Recorder, peer: Peer) -> None:
    def run() -> None:
        with httpx.Client(trust_env=False) as client:
            request = client.build_request("GET", f"{peer.url}/200")
            before = list(request.headers.raw)
            for _ in range(2):
                response = client.send(request)
                assert response.text == "ok"
                assert list(response.request.headers.raw) == before

    assert len(spans_within(recorder, run)) == 2
    assert len({asked["traceparent"] for asked in peer.asked}) == 2


def test_requests_at_once_are_each_their_own(recorder: Recorder, peer: Peer) -> None:
    async def run() -> None:
        async with httpx.AsyncClient(trust_env=False) as client:
            await asyncio.gather(*(client.get(f"{peer.url}/{200 + n}") for n in range(5)))

    before: list[object] = []

    def within() -> None:
        before.append(current.get())
        asyncio.run(run())
        before.append(current.get())

    found = spans_within(recorder, within)
    assert [(span.name, span.parent) for span in found] == [("GET", 0)] * 5
    assert before[0] is before[1]
    ids = {span.span_id.hex() for span in found if span.span_id}
    assert {asked["traceparent"].split("-")[2] for asked in peer.asked} == ids


@pytest.mark.parametrize("ask", WAYS)
def test_without_a_transaction_it_is_what_it_was(recorder: Recorder, peer: Peer, ask: Any) -> None:
    before = recorder.read(recorder.geometry.size, 0)
    assert ask(f"{peer.url}/200").text == "ok"
    assert "traceparent" not in peer.asked[0]
    assert recorder.read(recorder.geometry.size, 0) == before


def test_an_answer_of_another_make_is_passed_on(recorder: Recorder) -> None:
    """As a transport that knows its answers."""
    with httpx.Client(transport=httpx.MockTransport(lambda request: httpx.Response(204))) as client:
        answers: list[int] = []
        serve(recorder, meanwhile=lambda: answers.append(client.get("http://shop.example/").status_code))
    assert answers == [204]


def test_a_library_of_another_shape_is_left_alone_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    faults: list[str] = []
    monkeypatch.setattr(lifecycle, "on_fault", lambda where, fault: faults.append(where))
    other = types.ModuleType("httpx")

    class HTTPTransport:
        def handle_request(self, request: object) -> object:
            return request

    plain = HTTPTransport.handle_request
    other.HTTPTransport = HTTPTransport  # type: ignore[attr-defined]
    instrument._install("httpx", other)
    assert faults == ["instrumentation of httpx"]
    assert HTTPTransport.handle_request is plain


def test_a_request_of_another_shape_is_passed_on(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    faults: list[str] = []
    monkeypatch.setattr(lifecycle, "on_fault", lambda where, fault: faults.append(where))
    transport = httpx.HTTPTransport()

    def run() -> None:
        with pytest.raises(AttributeError):
            transport.handle_request(object())  # type: ignore[arg-type]

    assert spans_within(recorder, run) == []
    assert faults == ["a call"]
    transport.close()
