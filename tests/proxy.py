"""An HTTP proxy inside the test's own process: tunnels for https, and passes on requests for http."""

from __future__ import annotations

import http.client
import select
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import urlsplit


class Proxy:
    """A context manager. asked: the addresses that it was asked for; credentials: the header that came with each."""

    def __init__(self, demands: str | None = None) -> None:
        """demands: the `Proxy-Authorization` that it wants; others are answered 407."""
        self.demands = demands
        self.asked: list[str] = []
        self.credentials: list[str | None] = []
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # server_close waits for them: none outlives its test
    proxy: Proxy

    def __init__(self, *arguments: object) -> None:
        self.stopping = threading.Event()
        super().__init__(*arguments)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 60

    def _admits(self, address: str) -> bool:
        proxy = self.server.proxy
        given = self.headers.get("Proxy-Authorization")
        proxy.asked.append(address)
        proxy.credentials.append(given)
        if proxy.demands in (None, given):
            return True
        self.send_response(407)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return False

    def do_CONNECT(self) -> None:
        self.close_connection = True
        if not self._admits(self.path):
            return
        host, _, port = self.path.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=60) as there:
            self.send_response(200)
            self.end_headers()
            self._pump(there)

    def _pump(self, there: socket.socket) -> None:
        """Pass bytes on, both ways, until one side has no more."""
        to = {self.connection: there, there: self.connection}
        while not self.server.stopping.is_set():
            for one in select.select(list(to), [], [], 0.02)[0]:
                try:
                    data = one.recv(65_536)
                    to[one].sendall(data)
                except OSError:  # hung up
                    return
                if not data:
                    return

    def do_POST(self) -> None:
        parts = urlsplit(self.path)
        if not self._admits(parts.netloc):
            return
        body = self.rfile.read(int(self.headers["Content-Length"]))
        connection = http.client.HTTPConnection(parts.netloc, timeout=60)
        headers = {name: value for name, value in self.headers.items() if not name.startswith("Proxy-")}
        connection.request("POST", parts.path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        self.send_response(answer.status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        pass
