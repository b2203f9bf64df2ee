"""One signal's way to real servers on the loopback that answer well, badly, late, or not at all."""

from __future__ import annotations

import gzip
import shutil
import ssl
import subprocess
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)

import paste_agent
from paste_agent import settings
from paste_agent.exporters.otlp import Outcome, Sender
from paste_agent.settings import Settings
from tests.clock import WALL, Clock
from tests.collector import free_port
from tests.receiver import Answer, Receiver

Handle = Callable[[BaseHTTPRequestHandler], None]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NETRC"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as one:
        yield one


@pytest.fixture
def clock() -> Clock:
    return Clock()


def settings_for(endpoint: str, **conf: str) -> Settings:
    return settings.load({"endpoint": endpoint, **conf}, {}, {})


def send(
    endpoint: str, clock: Clock, body: bytes = b"", within_s: float = 20.0, signal: str = "traces", **conf: str
) -> Outcome:
    target = settings_for(endpoint, **{"timeout_s": "60", **conf}).target(signal)
    assert target is not None
    sender = Sender(signal, target, clock=clock, wall=clock.wall, sleep=clock.sleep, rng=lambda: 1.0)
    try:
        return sender.send(body, clock.now + within_s)
    finally:
        sender.close()


# -- one request ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_what_is_posted(receiver: Receiver, clock: Clock, compression: str) -> None:
    outcome = send(
        receiver.endpoint, clock, compression=compression, headers="x-api-key=a%20b,content-type=wrong,x-name=%C3%BC"
    )
    assert outcome == Outcome("sent")
    (request,) = receiver.requests
    assert (request.path, request.body) == ("/v1/traces", b"")
    assert request.headers["content-type"] == "application/x-protobuf"
    assert request.headers.get("content-encoding") == ("gzip" if compression == "gzip" else None)
    assert request.headers["user-agent"] == f"paste-agent/{paste_agent.__version__}"
    assert request.headers["x-api-key"] == "a b"
    assert request.headers["x-name"].encode("latin-1").decode() == "ü"


def test_users_user_agent_wins(receiver: Receiver, clock: Clock) -> None:
    send(receiver.endpoint, clock, headers="user-agent=mine")
    assert receiver.requests[0].headers["user-agent"] == "mine"


def test_netrc_does_not_take_the_place_of_the_users_header(
    receiver: Receiver, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login them password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    send(receiver.endpoint, clock, headers="authorization=Bearer%20key")
    send(receiver.endpoint, clock)
    assert [request.headers.get("authorization") for request in receiver.requests] == ["Bearer key", None]


def test_name_and_password_of_the_url_are_used(receiver: Receiver, clock: Clock) -> None:
    send(receiver.endpoint.replace("://", "://me:pass@"), clock)
    assert receiver.requests[0].headers["authorization"] == "Basic bWU6cGFzcw=="


def test_proxy_of_the_environment_is_used(receiver: Receiver, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", receiver.endpoint)
    assert send("http://collector.invalid:4318", clock) == Outcome("sent")
    assert receiver.requests[0].path == "http://collector.invalid:4318/v1/traces"


def test_connection_is_kept(receiver: Receiver, clock: Clock) -> None:
    ports: set[int] = set()

    def note(handler: BaseHTTPRequestHandler) -> None:
        ports.add(handler.client_address[1])
        handler.close_connection = False
        handler.send_response(200)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    receiver.default = Answer(raw=note)
    target = settings_for(receiver.endpoint).target("traces")
    assert target is not None
    sender = Sender("traces", target, clock=clock, sleep=clock.sleep)
    outcomes = [sender.send(b"", clock.now + 10) for _ in range(3)]
    sender.close()
    assert outcomes == [Outcome("sent")] * 3
    assert len(ports) == 1


# -- what is tried again -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_busy_then_well(receiver: Receiver, clock: Clock, status: int) -> None:
    receiver.answers.extend([Answer(status), Answer(status)])
    assert send(receiver.endpoint, clock) == Outcome("sent")
    assert len(receiver.requests) == 3
    assert clock.slept == [0.5, 1.0]


def test_pauses_double_up_to_a_bound_and_have_jitter(clock: Clock) -> None:
    draws = iter([0.0, 0.5] * 20)
    target = settings_for(f"http://127.0.0.1:{free_port()}", timeout_s="60").target("traces")
    assert target is not None
    sender = Sender("traces", target, clock=clock, sleep=clock.sleep, rng=lambda: next(draws))
    outcome = sender.send(b"", clock.now + 30)
    sender.close()
    assert clock.slept == [0.25, 0.75, 1.0, 3.0, 4.0, 6.0, 4.0, 6.0, 4.0]
    assert outcome == Outcome("later", reason="connection", detail="connection refused")


def test_the_targets_own_timeout_ends_it_too(clock: Clock) -> None:
    send(f"http://127.0.0.1:{free_port()}", clock, timeout_s="2", within_s=1000)
    assert clock.slept == [0.5, 1.0]


def test_retry_after_in_seconds(receiver: Receiver, clock: Clock) -> None:
    receiver.answers.append(Answer(503, headers={"Retry-After": "7"}))
    assert send(receiver.endpoint, clock).kind == "sent"
    assert clock.slept == [7.0]


def test_retry_after_as_a_date(receiver: Receiver, clock: Clock) -> None:
    receiver.answers.append(Answer(429, headers={"Retry-After": formatdate(WALL + 9, usegmt=True)}))
    assert send(receiver.endpoint, clock).kind == "sent"
    assert clock.slept == [pytest.approx(9.0)]


@pytest.mark.parametrize("text", ["0", "-5", "soon", "²", "Thu, 01 Jan 1970 00:00:00 GMT", "Thu, 99 Foo 99999 1:1:1"])
def test_retry_after_that_says_nothing(receiver: Receiver, clock: Clock, text: str) -> None:
    receiver.answers.append(Answer(503, headers={"Retry-After": text.encode().decode("latin-1")}))
    assert send(receiver.endpoint, clock).kind == "sent"
    assert clock.slept == [0.5]


def test_retry_after_past_the_deadline_is_kept_to_next_time(receiver: Receiver, clock: Clock) -> None:
    receiver.answers.append(Answer(503, headers={"Retry-After": "60"}))
    target = settings_for(receiver.endpoint).target("traces")
    assert target is not None
    sender = Sender("traces", target, clock=clock, sleep=clock.sleep)
    outcomes = []
    for later_s in (0, 30, 31):
        clock.now += later_s
        outcomes.append(sender.send(b"", clock.now + 20))
    sender.close()
    assert [outcome.kind for outcome in outcomes] == ["later", "later", "sent"]
    assert [outcome.reason for outcome in outcomes] == ["status_503", "status_503", ""]
    assert len(receiver.requests) == 2
    assert clock.slept == []


def test_a_slip_in_retry_after_does_not_silence_for_long(receiver: Receiver, clock: Clock) -> None:
    receiver.answers.append(Answer(503, headers={"Retry-After": "999999999999999"}))
    target = settings_for(receiver.endpoint).target("traces")
    assert target is not None
    sender = Sender("traces", target, clock=clock, sleep=clock.sleep)
    assert sender.send(b"", clock.now + 20).kind == "later"
    clock.now += 301
    assert sender.send(b"", clock.now + 20).kind == "sent"
    sender.close()


def test_a_stop_ends_the_waiting(receiver: Receiver, clock: Clock) -> None:
    receiver.default = Answer(503)
    clock.stop = True
    assert send(receiver.endpoint, clock).kind == "later"
    assert len(receiver.requests) == 1


def test_nothing_is_sent_after_the_deadline(receiver: Receiver, clock: Clock) -> None:
    assert send(receiver.endpoint, clock, within_s=-1) == Outcome("later", reason="timeout", detail="no time left")
    assert receiver.requests == []


def close_at_once(handler: BaseHTTPRequestHandler) -> None:
    pass


def speak_something_else(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n")


@pytest.mark.parametrize("broken", [close_at_once, speak_something_else])
def test_broken_connection_is_tried_again(receiver: Receiver, clock: Clock, broken: Handle) -> None:
    receiver.answers.extend([Answer(raw=broken), Answer(raw=broken)])
    assert send(receiver.endpoint, clock) == Outcome("sent")
    assert len(receiver.requests) == 3


def test_hang_is_a_timeout(receiver: Receiver, clock: Clock) -> None:
    def hang(handler: BaseHTTPRequestHandler) -> None:
        receiver.stopping.wait(60)

    receiver.default = Answer(raw=hang)
    outcome = send(receiver.endpoint, clock, within_s=0.4)
    assert outcome == Outcome("later", reason="timeout", detail="no answer in time")


def test_collector_that_cannot_be_named(clock: Clock) -> None:
    outcome = send("http://collector.invalid:4318", clock, within_s=0.4)
    assert (outcome.kind, outcome.reason) == ("later", "connection")
    assert outcome.detail


@pytest.mark.parametrize(
    ("conf", "reason"),
    [({"certificate": "/no/such/file.pem"}, "file"), ({"traces_endpoint": "http://a..b/"}, "request")],
)
def test_settings_that_cannot_work_wait_without_trying_again(clock: Clock, conf: dict[str, str], reason: str) -> None:
    outcome = send("https://127.0.0.1:9", clock, b"", 20.0, "traces", **conf)
    assert (outcome.kind, outcome.reason) == ("later", reason)
    assert clock.slept == []


# -- what is for good ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 500, 501])
def test_refusal_is_for_good(receiver: Receiver, clock: Clock, status: int) -> None:
    receiver.answers.append(Answer(status))
    outcome = send(receiver.endpoint, clock)
    assert (outcome.kind, outcome.reason) == ("refused", f"status_{status}")
    assert outcome.detail.startswith(f"{status} ")
    assert len(receiver.requests) == 1


def test_refusal_says_why(receiver: Receiver, clock: Clock) -> None:
    text = Answer(400, b"first\x1b[31m\r\nsecond " + b"x" * 5000, {"Content-Type": "text/plain"})
    receiver.answers.extend([Answer(400, b"\x08\x03\x12\x08bad\nspan"), text, Answer(400, b"\xff\xfe\x00")])
    details = [send(receiver.endpoint, clock).detail for _ in range(3)]
    assert details[0] == "400 Bad Request: bad span"
    assert details[1].startswith("400 Bad Request: first [31m second xxx")
    for detail in details:
        assert detail.isprintable()
        assert len(detail) < 300


def test_redirect_is_not_followed(receiver: Receiver, clock: Clock) -> None:
    with Receiver() as elsewhere:
        location = f"{elsewhere.endpoint}/v1/traces?key=secret"
        receiver.answers.append(Answer(307, headers={"Location": location}))
        outcome = send(receiver.endpoint, clock)
        assert elsewhere.requests == []
    assert outcome == Outcome(
        "refused",
        reason="status_307",
        detail=f"307 Temporary Redirect: redirects to {elsewhere.endpoint}/v1/traces",
    )


# -- answers that misbehave ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"\xff\xff\xff", b"<html>welcome</html>", b"{}"])
def test_undecodable_200_is_taken(receiver: Receiver, clock: Clock, body: bytes) -> None:
    receiver.answers.append(Answer(200, body))
    assert send(receiver.endpoint, clock) == Outcome("sent")


def test_partial_success_is_told_and_not_sent_again(receiver: Receiver, clock: Clock) -> None:
    body = ExportTraceServiceResponse(
        partial_success=ExportTracePartialSuccess(rejected_spans=3, error_message="too\nold" + "!" * 999)
    ).SerializeToString()
    receiver.answers.append(Answer(200, body))
    outcome = send(receiver.endpoint, clock)
    assert (outcome.kind, outcome.rejected, outcome.reason) == ("sent", 3, "partial_success")
    assert outcome.detail.startswith("too old!!!")
    assert len(outcome.detail) <= 200
    assert len(receiver.requests) == 1


def test_200_that_breaks_off_in_its_body_is_taken(receiver: Receiver, clock: Clock) -> None:
    def half(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")

    receiver.answers.append(Answer(raw=half))
    assert send(receiver.endpoint, clock).kind == "sent"
    assert len(receiver.requests) == 1


@pytest.mark.parametrize("framing", [b"Content-Length: 268435456\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"])
def test_no_more_than_4_mib_of_an_answer_is_read(receiver: Receiver, clock: Clock, framing: bytes) -> None:
    written = [0]

    def flood(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 400 Bad Request\r\n" + framing)
        piece = b"x" * 65_536
        if b"chunked" in framing:
            piece = b"10000\r\n" + piece + b"\r\n"
        while written[0] < 256 << 20:
            handler.wfile.write(piece)
            written[0] += len(piece)

    receiver.answers.append(Answer(raw=flood))
    assert send(receiver.endpoint, clock).reason == "status_400"
    receiver.close()  # waits for the flood to end
    assert written[0] < 64 << 20  # what the kernel buffers comes on top


@pytest.mark.parametrize(
    ("head", "kind"),
    [(b"HTTP/1.1 200 OK\r\nX-Slow: ", "later"), (b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n", "sent")],
)
def test_a_dribble_ends_at_the_deadline(receiver: Receiver, head: bytes, kind: str) -> None:
    def dribble(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(head)
        while not receiver.stopping.wait(0.002):
            handler.wfile.write(b"x")

    receiver.default = Answer(raw=dribble)
    # Each look at the clock, one for every piece that arrives, brings the deadline nearer.
    assert send(receiver.endpoint, Clock(tick=0.25), within_s=15.0).kind == kind


def test_a_compressed_answer_is_not_unpacked(receiver: Receiver, clock: Clock) -> None:
    partial = ExportTracePartialSuccess(rejected_spans=3)
    body = gzip.compress(ExportTraceServiceResponse(partial_success=partial).SerializeToString())
    receiver.answers.append(Answer(200, body, {"Content-Encoding": "gzip"}))
    assert send(receiver.endpoint, clock) == Outcome("sent")
    assert receiver.requests[0].headers["accept-encoding"] == "identity"


# -- TLS -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Paths of a certificate for 127.0.0.1, signed by itself, and of its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    directory = tmp_path_factory.mktemp("tls")
    pem, key = str(directory / "certificate.pem"), str(directory / "key.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=collector",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", pem],
        check=True, timeout=120, capture_output=True,
    )  # fmt: skip
    return pem, key


def tls_of(certificate: tuple[str, str]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context


def test_certificate_is_verified(certificate: tuple[str, str], clock: Clock) -> None:
    with Receiver(tls_of(certificate)) as receiver:
        assert send(receiver.endpoint, clock, certificate=certificate[0]) == Outcome("sent")
        outcome = send(receiver.endpoint, clock)
    assert (outcome.kind, outcome.reason) == ("later", "tls")
    assert outcome.detail.startswith("certificate not trusted: self")
    assert clock.slept == []
    assert len(receiver.requests) == 1


def test_a_dribble_over_tls_ends_at_the_deadline(certificate: tuple[str, str]) -> None:
    def dribble(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while not secure.stopping.wait(0.002):
            handler.wfile.write(b"x")

    with Receiver(tls_of(certificate)) as secure:
        secure.default = Answer(raw=dribble)
        outcome = send(secure.endpoint, Clock(tick=0.25), within_s=15.0, certificate=certificate[0])
    assert (outcome.kind, outcome.reason) == ("later", "timeout")
