"""Calls over http.client: what their spans say, what the called are told, and that nothing else changes."""

# ruff: noqa: F811  # fixtures that are imported

from __future__ import annotations

import http.client
import socket
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
import urllib3
import urllib3.connectionpool

from paste_agent import instrument, lifecycle, settings
from paste_agent import span as public_span
from paste_agent.exporters.otlp import Sender
from paste_agent.inside import CALL
from paste_agent.instrument import http_client
from paste_agent.recorder import layout
from paste_agent.recorder.writer import Recorder
from paste_agent.transaction import current
from tests.calls import (  # noqa: F401
    WAYS,
    Peer,
    by_http_client,
    by_requests,
    by_urllib,
    by_urllib3,
    installed,
    peer,
    recorder,
    refusing_port,
    seen,
)
from tests.receiver import Receiver
from tests.recorders import leading, reader_of, serve, spans_within
from tests.serving import wait_for

# -- a request is one span -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("get", WAYS)
def test_a_request_is_one_span_with_what_the_conventions_name(
    recorder: Recorder, installed: None, peer: Peer, get: Callable[[str], object]
) -> None:
    def run() -> None:
        assert get(f"http://{peer.host}/stock/17?key=s3cret") == b"ok"

    (span,) = spans_within(recorder, run)
    assert seen(span) == (CALL, "GET", None)
    assert span.attributes == {
        "http.request.method": "GET",
        "server.address": "127.0.0.1",
        "server.port": peer.port,
        "url.full": f"http://{peer.host}/stock/17",
        "http.response.status_code": 200,
        "network.protocol.version": "1.1",
    }
    assert span.parent == 0
    assert 0 < span.own_ns <= span.duration_ns


@pytest.mark.parametrize("get", WAYS)
def test_the_called_is_told_once_whose_call_it_is(
    recorder: Recorder, installed: None, peer: Peer, get: Callable[[str], object]
) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    found = spans_within(
        recorder,
        lambda: [get(f"http://{peer.host}/{n}") for n in range(2)],
        HTTP_TRACEPARENT=f"00-{trace_id}-00f067aa0ba902b7-01",
        HTTP_TRACESTATE="vendor=1",
        HTTP_BAGGAGE="tenant=7",
    )
    parents = peer.headers("traceparent")
    assert [len(one) for one in parents] == [1, 1]
    ids = [span.span_id.hex() for span in found if span.span_id is not None]
    assert [one[0].split("-")[1:3] for one in parents] == [[trace_id, span_id] for span_id in ids]
    assert len(set(ids)) == 2
    assert peer.headers("tracestate") == [["vendor=1"]] * 2
    assert peer.headers("baggage") == [["tenant=7"]] * 2


@pytest.mark.parametrize("get", WAYS)
def test_the_black_box_names_it_while_it_lasts(
    recorder: Recorder, installed: None, peer: Peer, get: Callable[[str], object]
) -> None:
    shown: list[str] = []
    url = f"http://{peer.host}/stock/17"

    def until_it_waits() -> None:
        """Between the sending of a request and the waiting for its answer a client is in no span for a moment."""
        reader = reader_of(recorder)
        wait_for(lambda: reader.in_flight()[0].span, "a span")
        shown.append(reader.in_flight()[0].span)
        reader.close()

    peer.look = until_it_waits

    def run() -> None:
        get(f"{url}?key=s3cret")
        (request,) = reader_of(recorder).in_flight()
        shown.append(request.span)

    serve(recorder, meanwhile=run)
    assert shown == [f"GET {url}", ""]


def test_it_is_counted_by_whom_it_called(recorder: Recorder, installed: None, peer: Peer, tmp_path: Path) -> None:
    for path in ("/a", "/b", "/status/503"):
        serve(recorder, meanwhile=lambda path=path: by_urllib3(f"http://{peer.host}{path}"))
    refused = refusing_port()

    def ask_in_vain() -> None:
        with pytest.raises(OSError):
            by_urllib(f"http://127.0.0.1:{refused}/")

    serve(recorder, meanwhile=ask_in_vain)
    with leading(tmp_path) as lead:
        time.sleep(0.2)  # what is younger than that is left to the next drain
        lead.drain()
        counts = {
            (of.get("http.response.status_code"), of.get("server.port"), of.get("error.type")): total.total.count
            for total in lead.store.totals()
            if total.metric == "http.client.request.duration"
            for of in [total.attributes]
        }
    assert {tuple(map(str, key)): count for key, count in counts.items()} == {
        ("200", str(peer.port), "None"): 2,
        ("503", str(peer.port), "503"): 1,
        ("None", str(refused), "ConnectionRefusedError"): 1,
    }


@pytest.mark.parametrize("status", [400, 404, 500, 503])
def test_a_status_from_400_on_is_a_failure(recorder: Recorder, installed: None, peer: Peer, status: int) -> None:
    (span,) = spans_within(recorder, lambda: by_urllib3(f"http://{peer.host}/status/{status}"))
    assert span.failed == str(status)
    assert span.attributes is not None
    assert span.attributes["http.response.status_code"] == status


def test_an_unknown_method_is_an_other(recorder: Recorder, installed: None, peer: Peer) -> None:
    (span,) = spans_within(recorder, lambda: requests.request("PURGE", f"http://{peer.host}/"))
    assert seen(span) == (CALL, "HTTP", None)
    assert span.attributes is not None
    assert span.attributes["http.request.method"] == "_OTHER"
    assert span.attributes["http.request.method_original"] == "PURGE"


def test_redirects_and_repeated_tries_are_requests_of_their_own(
    recorder: Recorder, installed: None, peer: Peer
) -> None:
    retries = urllib3.Retry(2, status_forcelist=[503], backoff_factor=0, raise_on_status=False)

    def run() -> None:
        with urllib3.PoolManager(retries=retries) as pool:
            assert pool.request("GET", f"http://{peer.host}/moved").status == 200
            assert pool.request("GET", f"http://{peer.host}/status/503").status == 503

    found = spans_within(recorder, run)
    assert [span.failed for span in found] == [None, None, "503", "503", "503"]
    assert [path for _, path, _, _ in peer.asked] == ["/moved", "/end", *["/status/503"] * 3]
    parents = [one for (one,) in peer.headers("traceparent")]
    assert len(set(parents)) == 5


@pytest.mark.parametrize("get", [by_urllib, by_requests])
def test_a_redirect_followed_is_told_anew(
    recorder: Recorder, installed: None, peer: Peer, get: Callable[[str], object]
) -> None:
    assert len(spans_within(recorder, lambda: get(f"http://{peer.host}/moved"))) == 2
    parents = [one for (one,) in peer.headers("traceparent")]
    assert len(set(parents)) == 2


def test_who_has_set_the_header_keeps_it(recorder: Recorder, installed: None, peer: Peer) -> None:
    own = "00-11111111111111111111111111111111-2222222222222222-00"

    def run() -> None:
        requests.get(f"http://{peer.host}/", headers={"TraceParent": own}).close()
        requests.get(f"http://{peer.host}/", headers={"Baggage": "mine=1"}).close()

    assert len(spans_within(recorder, run, HTTP_BAGGAGE="tenant=7", HTTP_TRACESTATE="v=1")) == 2
    first, second = peer.headers("traceparent")
    assert first == [own]
    assert len(second) == 1
    assert peer.headers("baggage") == [[], ["mine=1"]]
    assert peer.headers("tracestate")[0] == []


def chunks() -> Iterator[bytes]:
    yield b"one"
    yield b"two"


@pytest.mark.parametrize("send", ["requests", "http.client", "urllib3", "file"])
def test_bodies_in_parts_arrive_whole(
    recorder: Recorder, installed: None, peer: Peer, send: str, tmp_path: Path
) -> None:
    def run() -> None:
        if send == "requests":
            assert requests.post(f"http://{peer.host}/", data=chunks()).text == "ok"
        elif send == "urllib3":
            with urllib3.PoolManager() as pool:
                assert pool.request("POST", f"http://{peer.host}/", body=chunks()).data == b"ok"
        elif send == "file":
            path = tmp_path / "body"
            path.write_bytes(b"onetwo")
            with path.open("rb") as file:
                assert requests.post(f"http://{peer.host}/", data=file).text == "ok"
        else:
            connection = http.client.HTTPConnection("127.0.0.1", peer.port)
            connection.request("POST", "/", chunks(), {"Transfer-Encoding": "chunked"}, encode_chunked=False)
            connection.close()
            connection.putrequest("POST", "/")
            connection.putheader("Content-Length", "6")
            connection.endheaders()
            for part in chunks():
                connection.send(part)
            assert connection.getresponse().read() == b"ok"
            connection.close()

    found = spans_within(recorder, run)
    assert {seen(span) for span in found} == {(CALL, "POST", None)}
    assert peer.asked[-1][3] == b"onetwo"


def test_a_head_has_no_body(recorder: Recorder, installed: None, peer: Peer) -> None:
    (span,) = spans_within(recorder, lambda: requests.head(f"http://{peer.host}/"))
    assert seen(span) == (CALL, "HEAD", None)


def test_an_answer_that_bids_to_go_on_is_not_the_answer(recorder: Recorder, installed: None) -> None:
    def run() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            connection = http.client.HTTPConnection("web")
            connection.sock = ours
            connection.request("PUT", "/a", b"x", {"Expect": "100-continue"})
            theirs.sendall(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 201 Created\r\nContent-Length: 0\r\n\r\n")
            assert connection.getresponse().status == 201

    (span,) = spans_within(recorder, run)
    assert span.attributes is not None
    assert span.attributes["http.response.status_code"] == 201
    assert span.attributes["network.protocol.version"] == "1.0"


def test_a_connection_that_is_used_again_is_a_span_each_time(recorder: Recorder, installed: None, peer: Peer) -> None:
    def run() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", peer.port)
        for path in ("/a", "/b", "/last", "/c"):
            connection.request("GET", path)
            assert connection.getresponse().read() == b"ok"
        connection.close()

    assert [seen(span) for span in spans_within(recorder, run)] == [(CALL, "GET", None)] * 4
    assert len({one for (one,) in peer.headers("traceparent")}) == 4


def test_what_is_remembered_of_a_pool_is_bounded_and_keeps_no_query(
    recorder: Recorder, installed: None, peer: Peer
) -> None:
    pool = urllib3.connectionpool.HTTPConnectionPool(peer.host.partition(":")[0], peer.port)
    paths = [*(f"/{number}" for number in range(100)), "/status/404", "/1", "/1?key=s3cret", "/status/404", "/1"]

    def run() -> None:
        for path in paths:
            pool.request("GET", path, retries=False)

    found = spans_within(recorder, run)
    pool.close()
    told = [span.attributes or {} for span in found]
    assert [one["url.full"] for one in told] == [f"http://{peer.host}{path.partition('?')[0]}" for path in paths]
    assert [one["http.response.status_code"] for one in told] == [404 if "404" in path else 200 for path in paths]
    assert [span.failed for span in found] == ["404" if "404" in path else None for path in paths]
    remembered = vars(pool)[http_client._KNOWN]
    assert 0 < len(remembered) <= http_client._MOST_KNOWN
    assert not [url for _, url in remembered if "s3cret" in url]


def test_a_span_around_is_its_parent_and_what_a_body_does_is_inside(
    recorder: Recorder, installed: None, peer: Peer
) -> None:
    def body() -> Iterator[bytes]:
        with public_span("rows"):
            yield b"x"

    def run() -> None:
        with public_span("around"):
            connection = http.client.HTTPConnection("127.0.0.1", peer.port)
            connection.request("POST", "/", body(), {"Transfer-Encoding": "chunked"}, encode_chunked=True)
            connection.getresponse().read()
            connection.close()
        assert current.get().number is not None  # type: ignore[union-attr]

    found = {span.name: span for span in spans_within(recorder, run)}
    assert found["POST"].parent == found["around"].number
    assert found["rows"].parent == found["POST"].number


# -- proxies -------------------------------------------------------------------------------------------------------


def test_through_a_proxy_it_is_named_by_whom_it_is_for(recorder: Recorder, installed: None, peer: Peer) -> None:
    def run() -> None:
        with urllib3.ProxyManager(f"http://{peer.host}") as pool:
            assert pool.request("GET", "http://shop.example:8080/stock?key=s3cret").data == b"ok"

    (span,) = spans_within(recorder, run)
    assert span.attributes is not None
    assert span.attributes["url.full"] == "http://shop.example:8080/stock"
    assert (span.attributes["server.address"], span.attributes["server.port"]) == ("shop.example", 8080)


def test_a_tunnel_is_named_by_its_end(recorder: Recorder, installed: None, peer: Peer) -> None:
    def run() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", peer.port)
        connection.set_tunnel("api.bank.example", 8443)
        connection.request("GET", "/v1/x")
        assert connection.getresponse().read() == b"ok"
        connection.close()

    (span,) = spans_within(recorder, run)
    assert span.attributes is not None
    assert span.attributes["url.full"] == "http://api.bank.example:8443/v1/x"
    assert [command for command, _, _, _ in peer.asked] == ["CONNECT", "GET"]
    assert peer.headers("traceparent")[0] == []


def test_a_tunnel_that_is_refused_is_a_failure(recorder: Recorder, installed: None, peer: Peer) -> None:
    def run() -> None:
        pool = urllib3.ProxyManager(f"http://{peer.host}", retries=False)
        with pool, pytest.raises(urllib3.exceptions.ProxyError):
            pool.request("GET", "https://refused.example/v1/x")

    (span,) = spans_within(recorder, run)
    assert seen(span) == (CALL, "CONNECT", "OSError")
    assert (span.attributes or {})["server.address"] == "refused.example"


def test_connecting_ahead_is_a_span_that_is_no_request(recorder: Recorder, installed: None, peer: Peer) -> None:
    def run() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", peer.port)
        connection.connect()
        connection.request("GET", "/")
        connection.getresponse().read()
        connection.close()

    assert [span.name for span in spans_within(recorder, run)] == ["connect", "GET"]


# -- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "full", "address", "port"),
    [
        ("/web/2020/http://example.com/", "http://web:80/web/2020/http://example.com/", "web", 80),
        ("/a?to=http://user:s3cret@host/", "http://web:80/a", "web", 80),
        ("/a#s3cret", "http://web:80/a", "web", 80),
        ("http://user:s3/cret@host/a", "http://host/a", "host", 80),
        ("http://user:s3@cret@host/a", "http://host/a", "host", 80),
        ("HTTPS://user:s3cret@host/a?b", "HTTPS://host/a", "host", 443),
        ("http://user:s3cret@host:8080/a?b=c#d", "http://host:8080/a", "host", 8080),
        ("http://host/@scope/package", "http://host/@scope/package", "host", 80),
        ("http://host:81/@scope", "http://host:81/@scope", "host", 81),
        ("http://[::1]:81/a", "http://[::1]:81/a", "::1", 81),
        ("user:s3cret@host", "http://web:80", "web", 80),
        ("*", "http://web:80", "web", 80),
        ("", "http://web:80", "web", 80),
    ],
)
def test_names_tell_where_it_goes_and_nothing_secret(url: str, full: str, address: str, port: int) -> None:
    target = http_client.target_of(http.client.HTTPConnection("web"), url)
    assert (target.url, target.address, target.port) == (full, address, port)
    assert http_client.text_of("GET", target) == f"GET {full}".encode()


def test_an_address_with_colons_is_put_in_brackets() -> None:
    target = http_client.target_of(http.client.HTTPSConnection("::1", 444), "/a")
    assert (target.url, target.address, target.port) == ("https://[::1]:444/a", "::1", 444)


class OverASocket(http.client.HTTPConnection):
    """As clients make them that bring a connection of their own: it has neither host nor port."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__("unused")
        del self.host, self.port
        self.sock = sock


def test_a_connection_of_somebody_elses_making_works_on(recorder: Recorder, installed: None) -> None:
    def run() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            connection = OverASocket(ours)
            connection.putrequest("GET", "/a", skip_host=True)
            connection.endheaders()
            assert theirs.recv(1024).startswith(b"GET /a HTTP/1.1\r\n")
            theirs.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            with connection.getresponse() as answer:
                assert answer.read() == b"ok"

    (span,) = spans_within(recorder, run)
    assert seen(span) == (CALL, "GET", None)
    assert "url.full" not in (span.attributes or {})


# -- without a transaction, and of a wrong shape -------------------------------------------------------------------


@pytest.mark.parametrize("get", WAYS)
def test_without_a_transaction_a_call_is_what_it_was(
    recorder: Recorder, installed: None, peer: Peer, get: Callable[[str], object]
) -> None:
    before = recorder.read(recorder.geometry.size, 0)
    assert get(f"http://{peer.host}/") == b"ok"
    assert peer.headers("traceparent") == [[]]
    assert recorder.read(recorder.geometry.size, 0) == before


def test_a_thread_of_its_own_is_in_no_transaction(recorder: Recorder, installed: None, peer: Peer) -> None:
    """As the exporter's is, whatever the thread was in that started it."""

    def run() -> None:
        thread = threading.Thread(target=by_requests, args=(f"http://{peer.host}/",))
        thread.start()
        thread.join()

    assert spans_within(recorder, run) == []
    assert peer.headers("traceparent") == [[]]


@pytest.mark.parametrize("port", ["open", "closed"])
def test_what_the_agent_sends_itself_is_nobodys_call(
    recorder: Recorder, installed: None, monkeypatch: pytest.MonkeyPatch, port: str
) -> None:
    """Even if it were sent from within a transaction."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Receiver() as receiver:
        endpoint = receiver.endpoint if port == "open" else f"http://127.0.0.1:{refusing_port()}"
        target = settings.load({"endpoint": endpoint}, {}, {}).target("traces")
        assert target is not None
        sender = Sender("traces", target, sleep=lambda seconds: True)
        outcomes: list[str] = []
        found = spans_within(recorder, lambda: outcomes.append(sender.send(b"", time.monotonic() + 60).kind))
        sender.close()
        assert outcomes == ["sent" if port == "open" else "later"]
        assert [one for one in receiver.requests if "traceparent" in one.headers] == []
    assert found == []


@pytest.mark.parametrize("missing", ["HTTPConnection", "HTTPSConnection"])
@pytest.mark.parametrize("source", [http.client, urllib3.connectionpool])
def test_a_library_of_another_shape_is_left_alone_and_counted(
    monkeypatch: pytest.MonkeyPatch, source: types.ModuleType, missing: str
) -> None:
    faults: list[str] = []
    monkeypatch.setattr(lifecycle, "on_fault", lambda where, fault: faults.append(where))
    other = types.ModuleType(source.__name__)
    for name in ("HTTPConnection", "HTTPSConnection", "HTTPConnectionPool"):
        if hasattr(source, name) and name != missing:
            setattr(other, name, type(name, (), {name: lambda self: None}))
    before = {name: dict(vars(value)) for name, value in vars(other).items() if isinstance(value, type)}
    instrument._install("http_client", other)
    assert faults == ["instrumentation of http_client"]
    assert {name: dict(vars(value)) for name, value in vars(other).items() if isinstance(value, type)} == before


def test_records_of_calls_are_of_their_kind(recorder: Recorder, installed: None, peer: Peer) -> None:
    serve(recorder, meanwhile=lambda: by_http_client(f"http://{peer.host}/"))
    found = [fields for kind, fields in recorder._by_number.values() if kind == layout.KIND_CALL]
    assert found == [("GET", "127.0.0.1", str(peer.port), "200", None)]
