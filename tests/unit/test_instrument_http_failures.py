"""Calls over http.client that fail, or that nobody ends: their spans end all the same, and nothing stays behind."""

# ruff: noqa: F811  # fixtures that are imported

from __future__ import annotations

import gc
import http.client
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
import urllib3
import urllib3.connection
import urllib3.connectionpool

from paste_agent import lifecycle
from paste_agent import span as public_span
from paste_agent.inside import CALL
from paste_agent.recorder import layout
from paste_agent.recorder.writer import Recorder
from paste_agent.spans import Span
from paste_agent.transaction import Transaction, current
from tests.calls import (  # noqa: F401
    WAYS,
    Peer,
    by_requests,
    by_urllib3,
    certificate,
    installed,
    peer,
    recorder,
    refusing_port,
    seen,
    tls_peer,
)
from tests.recorders import leading, reader_of, serve, spans_within

# -- what goes wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("get", WAYS)
def test_who_is_not_there_is_a_failure(recorder: Recorder, installed: None, get: Callable[[str], object]) -> None:
    port = refusing_port()

    def run() -> None:
        with pytest.raises((OSError, urllib3.exceptions.MaxRetryError)):
            get(f"http://127.0.0.1:{port}/a")

    found = spans_within(recorder, run)
    assert {span.name for span in found} == {"GET"}
    assert all(span.failed in ("ConnectionRefusedError", "urllib3.exceptions.NewConnectionError") for span in found)
    assert all((span.attributes or {})["url.full"] == f"http://127.0.0.1:{port}/a" for span in found)
    assert len(found) == (4 if get is by_urllib3 else 1)  # the pool tries three times more


def test_connecting_ahead_in_vain_is_no_request_that_failed(recorder: Recorder, installed: None) -> None:
    port = refusing_port()

    def run() -> None:
        with pytest.raises(ConnectionRefusedError):
            http.client.HTTPConnection("127.0.0.1", port).connect()

    (span,) = spans_within(recorder, run)
    assert seen(span) == (CALL, "connect", "ConnectionRefusedError")
    assert span.attributes == {"server.address": "127.0.0.1", "server.port": port}
    assert not [fields for kind, fields in recorder._by_number.values() if kind == layout.KIND_CALL]


@pytest.mark.parametrize("get", [by_urllib3, by_requests])
def test_tls_that_fails_is_a_failure_of_the_request(
    recorder: Recorder, installed: None, tls_peer: Peer, get: Callable[[str], object]
) -> None:
    def run() -> None:
        with pytest.raises((requests.exceptions.SSLError, urllib3.exceptions.MaxRetryError)):
            get(f"https://{tls_peer.host}/a")

    found = spans_within(recorder, run)
    assert found
    for span in found:
        assert seen(span)[:2] == (CALL, "GET")
        assert span.failed is not None
        assert "SSL" in span.failed
        assert (span.attributes or {})["url.full"] == f"https://{tls_peer.host}/a"


def test_tls_that_works_is_within_the_request(
    recorder: Recorder, installed: None, tls_peer: Peer, certificate: Path
) -> None:
    def run() -> None:
        with requests.Session() as session:
            session.trust_env = False  # which may name authorities of its own
            session.verify = str(certificate)
            assert session.get(f"https://{tls_peer.host}/a").text == "ok"
            assert session.get(f"https://{tls_peer.host}/b").text == "ok"
        context = ssl.create_default_context(cafile=str(certificate))
        with urllib.request.urlopen(f"https://{tls_peer.host}/c", context=context) as answer:
            assert answer.read() == b"ok"

    found = spans_within(recorder, run)
    assert [(span.attributes or {})["url.full"] for span in found] == [
        f"https://{tls_peer.host}/{path}" for path in "abc"
    ]
    assert [len(one) for one in tls_peer.headers("traceparent")] == [1, 1, 1]


@pytest.mark.parametrize("get", WAYS)
def test_no_answer_is_a_failure(recorder: Recorder, installed: None, peer: Peer, get: Callable[[str], object]) -> None:
    def run() -> None:
        with pytest.raises((OSError, http.client.HTTPException, urllib3.exceptions.MaxRetryError)):
            get(f"http://{peer.host}/drop")

    found = spans_within(recorder, run)
    assert {span.failed for span in found} == {"http.client.RemoteDisconnected"}
    assert current.get() is None


def test_a_time_that_runs_out_is_a_failure(recorder: Recorder, installed: None, peer: Peer) -> None:
    over = threading.Event()
    peer.look = lambda: over.wait(60)

    def run() -> None:
        with pytest.raises(requests.exceptions.ReadTimeout):
            requests.get(f"http://{peer.host}/", timeout=0.05)
        over.set()

    (span,) = spans_within(recorder, run)
    assert span.failed == "TimeoutError"


def test_a_request_that_is_given_up_ends_with_its_connection(recorder: Recorder, installed: None, peer: Peer) -> None:
    def run() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", peer.port)
        connection.request("POST", "/")
        with public_span("after"):
            pass
        connection.close()
        connection.close()

    after, call = spans_within(recorder, run)
    assert (after.name, after.parent) == ("after", 0)
    assert seen(call) == (CALL, "POST", None)
    assert "http.response.status_code" not in (call.attributes or {})


def alive() -> list[object]:
    """Spans and transactions that somebody still refers to."""
    gc.collect()
    return [one for one in gc.get_objects() if type(one) in (Span, Transaction)]


def test_a_request_that_nobody_ends_ends_with_its_transaction(
    recorder: Recorder, installed: None, peer: Peer, tmp_path: Path
) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", peer.port)
    before = alive()
    serve(recorder, meanwhile=lambda: connection.request("GET", "/"))
    assert len(alive()) <= len(before)
    assert connection.getresponse().read() == b"ok"  # of a transaction that is over
    connection.close()
    with leading(tmp_path) as lead:
        time.sleep(0.2)  # what is younger than that is left to the next drain
        lead.drain()
        counts = [total.total.count for total in lead.store.totals() if "http.client" in total.metric]
    assert counts == [1]


def test_what_its_caller_does_meanwhile_is_no_part_of_it(recorder: Recorder, installed: None, peer: Peer) -> None:
    times: list[int] = []
    shown: list[str] = []

    def run() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", peer.port)
        connection.putrequest("POST", "/")
        times.append(time.perf_counter_ns())
        connection.putheader("Content-Length", "1")
        connection.endheaders()
        shown.append(reader_of(recorder).in_flight()[0].span)
        time.sleep(0.03)
        connection.send(b"x")
        shown.append(reader_of(recorder).in_flight()[0].span)
        time.sleep(0.03)
        assert connection.getresponse().read() == b"ok"
        connection.close()

    (span,) = spans_within(recorder, run)
    assert span.start_ns <= times[0]
    assert span.duration_ns - span.own_ns >= 60_000_000
    assert shown == ["", ""]


class Broken:
    """A socket whose peer has gone."""

    def sendall(self, data: bytes) -> None:
        raise BrokenPipeError

    def close(self) -> None:
        pass


def test_a_body_that_cannot_be_sent_is_a_failure(recorder: Recorder, installed: None, peer: Peer) -> None:
    def run() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", peer.port)
        connection.putrequest("POST", "/")
        connection.putheader("Content-Length", "1")
        connection.endheaders()
        connection.sock.close()
        connection.sock = Broken()  # type: ignore[assignment]
        with pytest.raises(BrokenPipeError):
            connection.send(b"x")
        connection.close()

    (span,) = spans_within(recorder, run)
    assert span.failed == "BrokenPipeError"


def test_an_argument_that_is_refused_leaves_the_request_to_the_next_try(
    recorder: Recorder, installed: None, peer: Peer
) -> None:
    """As urllib3 1.26 tries."""

    def run() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", peer.port)
        connection.request("GET", "/")
        with pytest.raises(TypeError):
            connection.getresponse(buffering=True)  # type: ignore[call-arg]
        assert connection.getresponse().read() == b"ok"
        connection.close()

    (span,) = spans_within(recorder, run)
    assert span.failed is None


def test_two_requests_at_once_do_not_disturb_each_other(recorder: Recorder, installed: None, peer: Peer) -> None:
    def run() -> None:
        before = current.get()
        first, second = (http.client.HTTPConnection("127.0.0.1", peer.port) for _ in range(2))
        first.request("GET", "/a")
        second.request("GET", "/b")
        assert current.get() is before
        assert first.getresponse().read() == b"ok"
        assert second.getresponse().read() == b"ok"
        assert current.get() is before
        first.close()
        second.close()
        with public_span("after"):
            pass

    found = spans_within(recorder, run)
    assert [(span.name, span.parent) for span in found] == [("GET", 0), ("GET", 0), ("after", 0)]


def test_an_answer_that_is_read_in_another_span_leaves_the_black_box_right(
    recorder: Recorder, installed: None, peer: Peer
) -> None:
    shown: list[str] = []

    def run() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", peer.port)
        with public_span("asks"):
            connection.request("GET", "/")
        with public_span("reads"):
            connection.getresponse().read()
            shown.append(reader_of(recorder).in_flight()[0].span)
        shown.append(reader_of(recorder).in_flight()[0].span)
        connection.close()

    serve(recorder, meanwhile=run)
    assert shown == ["reads", ""]


def test_an_answer_may_be_read_by_another_thread(recorder: Recorder, installed: None, peer: Peer) -> None:
    def run() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", peer.port)
        connection.request("GET", "/")
        thread = threading.Thread(target=lambda: connection.getresponse().read())
        thread.start()
        thread.join()
        connection.close()

    (span,) = spans_within(recorder, run)
    assert span.attributes is not None
    assert span.attributes["http.response.status_code"] == 200


def test_what_is_refused_is_refused_as_ever(recorder: Recorder, installed: None, peer: Peer) -> None:
    def run() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", peer.port)
        with pytest.raises(http.client.ResponseNotReady):
            connection.getresponse()
        with pytest.raises(http.client.CannotSendHeader):
            connection.endheaders()
        with pytest.raises(http.client.InvalidURL):
            connection.request("GET", "/a b")
        connection.close()
        connection.request("GET", "/a")
        with pytest.raises(http.client.CannotSendRequest):
            connection.request("GET", "/b")
        answer = connection.getresponse()
        with pytest.raises(http.client.ResponseNotReady):
            connection.getresponse()
        answer.read()
        connection.close()

    assert [seen(span) for span in spans_within(recorder, run)] == [(CALL, "GET", None)]


def test_a_body_that_raises_ends_it(recorder: Recorder, installed: None, peer: Peer) -> None:
    def broken() -> Iterator[bytes]:
        yield b"x"
        raise LookupError("no more")

    def run() -> None:
        before = current.get()
        with pytest.raises(LookupError) as caught:
            requests.post(f"http://{peer.host}/", data=broken())
        assert caught.value.__cause__ is None
        assert current.get() is before

    (span,) = spans_within(recorder, run)
    assert seen(span) == (CALL, "POST", "LookupError")


def test_a_connection_that_takes_no_attributes_fails_in_its_own_way(
    recorder: Recorder, installed: None, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults: list[str] = []
    monkeypatch.setattr(lifecycle, "on_fault", lambda where, fault: faults.append(where))

    class Odd:
        __slots__ = ()
        proxy = None

    pool = urllib3.connectionpool.HTTPConnectionPool(peer.host.partition(":")[0], peer.port)
    within: list[object] = []

    def run() -> None:
        for known in (False, True):
            if known:
                pool.request("GET", "/1")
            with pytest.raises(AttributeError) as caught:
                pool._make_request(Odd(), "GET", "/1")
            assert "paste_agent" not in str(caught.value)
            within.append(current.get())

    assert [seen(span) for span in spans_within(recorder, run)] == [(CALL, "GET", None)]
    assert all(isinstance(one, Transaction) for one in within)
    assert faults == ["a call"] * 2
    pool.close()


def test_a_header_is_added_to_a_request_or_not_at_all(recorder: Recorder, installed: None, peer: Peer) -> None:
    class TooEarly(urllib3.connection.HTTPConnection):
        def request(self, *args: object, **kwargs: object) -> None:  # type: ignore[override]
            with pytest.raises(http.client.CannotSendHeader):
                self.endheaders()
            super().request(*args, **kwargs)  # type: ignore[arg-type]

    class Pool(urllib3.connectionpool.HTTPConnectionPool):
        ConnectionCls = TooEarly

    def run() -> None:
        with Pool(peer.host.partition(":")[0], peer.port) as pool:
            assert pool.request("GET", "/1", retries=False).status == 200

    spans_within(recorder, run)
    assert [(method, path) for method, path, _, _ in peer.asked] == [("GET", "/1")]
    assert [len(one) for one in peer.headers("traceparent")] == [1]
