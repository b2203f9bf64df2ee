"""An OTLP/HTTP receiver inside the test's own process: keeps what it took, decoded, and answers as it is told."""

from __future__ import annotations

import socket
import ssl
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span

#: Method, route and status of requests; None for an attribute that the series does not have.
RequestKey = tuple["str | None", "str | None", "int | None"]


def plain(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(one) for one in value.array_value.values]
    return None if kind is None else getattr(value, kind)


def attributes_of(pairs: Any) -> dict[str, Any]:
    """`repeated KeyValue` as a dictionary. Fails on a key that is there twice, which OTLP forbids."""
    found: dict[str, Any] = {}
    pair: KeyValue
    for pair in pairs:
        assert pair.key not in found, pair.key
        found[pair.key] = plain(pair.value)
    return found


@dataclass(frozen=True)
class Request:
    """One POST as it came, the body unpacked."""

    path: str
    headers: dict[str, str]  #: names in lower case
    body: bytes


@dataclass(frozen=True)
class Answer:
    """What to say to one POST. raw: does all of it instead, given the handler; then nothing counts as taken."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    raw: Callable[[BaseHTTPRequestHandler], None] | None = None
    delay_s: float = 0.0  #: until it is said; what was asked is taken at once


class Receiver:
    """A context manager. `answers` are used up first, one a request; then `default` is."""

    def __init__(self, tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        self._scheme = "http" if tls is None else "https"
        self.answers: deque[Answer] = deque()
        self.default = Answer()
        self.requests: list[Request] = []
        self.metrics: list[ExportMetricsServiceRequest] = []
        self.traces: list[ExportTraceServiceRequest] = []
        self.log_requests: list[ExportLogsServiceRequest] = []
        self.stopping = threading.Event()  #: for a `raw` that waits
        self._lock = threading.Lock()
        self._server = _Server(self, tls, port)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> Receiver:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening, hang up, and wait for what still answers. May be called twice."""
        if self.stopping.is_set():
            return
        self.stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.hang_up()
        self._server.server_close()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def endpoint(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}"

    # -- what was taken --------------------------------------------------------------------------------------------

    @property
    def spans(self) -> list[Span]:
        with self._lock:
            outer = [one for request in self.traces for one in request.resource_spans]
        return [span for one in outer for scope in one.scope_spans for span in scope.spans]

    @property
    def logs(self) -> list[LogRecord]:
        with self._lock:
            outer = [one for request in self.log_requests for one in request.resource_logs]
        return [record for one in outer for scope in one.scope_logs for record in scope.log_records]

    def resources(self) -> list[dict[str, Any]]:
        """The different resources of all that was taken."""
        with self._lock:
            outer: list[Any] = [one for request in self.metrics for one in request.resource_metrics]
            outer += [one for request in self.traces for one in request.resource_spans]
            outer += [one for request in self.log_requests for one in request.resource_logs]
        found: list[dict[str, Any]] = []
        for one in outer:
            attributes = attributes_of(one.resource.attributes)
            if attributes not in found:
                found.append(attributes)
        return found

    def last_points(self, metric: str) -> list[tuple[dict[str, Any], Any]]:
        """Attributes and data point, the newest one, of each series of a metric."""
        with self._lock:
            outer = [one for request in self.metrics for one in request.resource_metrics]
        newest: dict[tuple[str, str], tuple[dict[str, Any], Any]] = {}
        for one in outer:
            resource = str(sorted(attributes_of(one.resource.attributes).items()))
            for found in (found for scope in one.scope_metrics for found in scope.metrics if found.name == metric):
                for point in _points(found):
                    attributes = attributes_of(point.attributes)
                    key = (resource, str(sorted(attributes.items())))
                    if key not in newest or newest[key][1].time_unix_nano <= point.time_unix_nano:
                        newest[key] = (attributes, point)
        return list(newest.values())

    def forget_metrics(self, but: int) -> None:
        """Leave the newest requests with metrics, so many, by their arrival: for when their own times say little."""
        with self._lock:
            del self.metrics[:-but]

    def request_counts(self) -> dict[RequestKey, int]:
        """Served requests by method, route and status, from the newest point of each series."""
        counts: dict[RequestKey, int] = {}
        for attributes, point in self.last_points("http.server.request.duration"):
            key = request_key(attributes)
            counts[key] = counts.get(key, 0) + point.count
        return counts

    def wait_for(self, condition: Callable[[Receiver], bool], timeout_s: float = 20.0) -> None:
        """Return as soon as `condition` holds; fail when it does not in `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while not condition(self):
            assert time.monotonic() < deadline, f"in vain; {len(self.requests)} requests: {self.request_counts()}"
            time.sleep(0.02)

    # -- one request -----------------------------------------------------------------------------------------------

    def take(self, request: Request) -> Answer:
        """Keep a request, and say how it is to be answered."""
        with self._lock:
            self.requests.append(request)
            answer = self.answers.popleft() if self.answers else self.default
            if answer.raw is None and 200 <= answer.status < 300 and not self._decoded(request):
                return Answer(400)
            return answer

    def _decoded(self, request: Request) -> bool:
        try:
            if request.path.endswith("/v1/metrics"):
                self.metrics.append(ExportMetricsServiceRequest.FromString(request.body))
            elif request.path.endswith("/v1/traces"):
                self.traces.append(ExportTraceServiceRequest.FromString(request.body))
            elif request.path.endswith("/v1/logs"):
                self.log_requests.append(ExportLogsServiceRequest.FromString(request.body))
            else:
                return False
        except DecodeError:
            return False
        return True


def _points(metric: Metric) -> list[Any]:
    kind = metric.WhichOneof("data")
    return list(getattr(metric, kind).data_points) if kind else []


def request_key(attributes: dict[str, Any]) -> RequestKey:
    return (
        attributes.get("http.request.method"),
        attributes.get("http.route"),
        attributes.get("http.response.status_code"),
    )


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # server_close waits for them: none outlives its test

    def __init__(self, receiver: Receiver, tls: ssl.SSLContext | None, port: int) -> None:
        self.receiver = receiver
        self._connections: list[socket.socket] = []
        super().__init__(("127.0.0.1", port), _Handler)
        if tls is not None:
            # The handshake waits for the handler's thread: it must not hold the one that accepts.
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self._connections.append(connection)
        return connection, address

    def hang_up(self) -> None:
        """End the connections that clients keep open."""
        for connection in self._connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            body = zlib.decompress(body, 31)
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = self.server.receiver.take(Request(self.path, headers, body))
        if answer.raw is not None:
            self.close_connection = True
            answer.raw(self)
            return
        if answer.delay_s:
            self.server.receiver.stopping.wait(answer.delay_s)
        self.send_response(answer.status)
        for name, value in {
            "Content-Type": "application/x-protobuf",
            "Content-Length": str(len(answer.body)),
            **answer.headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, format: str, *args: Any) -> None:
        pass
