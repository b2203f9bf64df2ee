"""An HTTP peer that says what it was asked, http.client instrumented, and ways to call the one with the other."""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
import urllib3
import urllib3.connection
import urllib3.connectionpool

from paste_agent import lifecycle
from paste_agent.inside import FinishedSpan
from paste_agent.instrument import http_client
from paste_agent.recorder.writer import Recorder
from tests.instrumented import as_they_were
from tests.recorders import die, open_recorder

CLASSES = (
    http.client.HTTPConnection,
    http.client.HTTPSConnection,
    urllib3.connectionpool.HTTPConnectionPool,
    urllib3.connection.HTTPConnection,
    urllib3.connection.HTTPSConnection,
)


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    opened = open_recorder(tmp_path)
    yield opened
    die(opened)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For the time of a test, in which a fault of the agent fails it; twice, which is once."""

    def on_fault(where: str, fault: BaseException) -> None:
        raise AssertionError(f"a fault of the agent in {where}: {fault!r}") from fault

    monkeypatch.setattr(lifecycle, "on_fault", on_fault)
    with as_they_were(*CLASSES):
        for _ in range(2):
            http_client.install(http.client)
            http_client.install(urllib3.connectionpool)
        yield


class Answers(BaseHTTPRequestHandler):
    """Answers by path; what it was asked is kept."""

    protocol_version = "HTTP/1.1"

    def handle_any(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        peer: Any = self.server
        peer.asked.append((self.command, self.path, list(self.headers.items()), body))
        peer.look()
        path = re.sub(r"^http://[^/]*|\?.*", "", self.path)
        if path == "/drop":
            self.close_connection = True
            return
        status, headers, answer = 200, {}, b"ok"
        if path.startswith("/status/"):
            status = int(path.removeprefix("/status/"))
        elif path == "/moved":
            status, headers = 302, {"Location": "/end"}
        elif path == "/last":
            headers = {"Connection": "close"}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer)

    def do_CONNECT(self) -> None:
        """A tunnel, to the server itself: it answers on the same connection."""
        peer: Any = self.server
        peer.asked.append((self.command, self.path, list(self.headers.items()), b""))
        refused = self.path.startswith("refused")
        self.send_response(403 if refused else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()
        self.close_connection = refused

    def log_message(self, format: str, *args: object) -> None:
        pass


for _method in ("GET", "HEAD", "POST", "PUT", "DELETE", "PURGE"):
    setattr(Answers, f"do_{_method}", Answers.handle_any)


class Peer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.asked: list[tuple[str, str, list[tuple[str, str]], bytes]] = []
        self.look: Callable[[], object] = lambda: None
        self.port = int(self.server_address[1])
        self.host = f"127.0.0.1:{self.port}"
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_side=True)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that goes away

    def headers(self, name: str) -> list[list[str]]:
        """Values of a header, for each request so far."""
        return [[value for key, value in headers if key.lower() == name] for _, _, headers, _ in self.asked]


@contextmanager
def serving(server: Peer) -> Iterator[Peer]:
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def peer() -> Iterator[Peer]:
    with serving(Peer()) as server:
        yield server


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-keyout", path, "-out", path],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    return path


@pytest.fixture
def tls_peer(certificate: Path) -> Iterator[Peer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with serving(Peer(context)) as server:
        yield server


def by_urllib(url: str) -> object:
    with urllib.request.urlopen(url) as answer:
        return answer.read()


def by_urllib3(url: str) -> object:
    with urllib3.PoolManager() as pool:
        return pool.request("GET", url).data


def by_requests(url: str) -> object:
    with requests.Session() as session:
        return session.get(url).content


def by_http_client(url: str) -> object:
    host, _, path = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host)
    try:
        connection.request("GET", f"/{path}")
        with connection.getresponse() as answer:
            return answer.read()
    finally:
        connection.close()


WAYS = [by_urllib, by_urllib3, by_requests, by_http_client]


def refusing_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def seen(span: FinishedSpan) -> tuple[int, str, str | None]:
    return span.category, span.name, span.failed
