"""A filter around an application, with all that it recorded, for the tests of the filter."""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any
from wsgiref.util import setup_testing_defaults

from paste_agent import filter as agent_filter
from paste_agent import lifecycle, settings
from paste_agent.aggregate import REQUEST_DURATION, Apdex, Delta, Folder
from paste_agent.kept import TraceRow
from paste_agent.recorder.reader import Reader
from paste_agent.store.store import Store

Environ = dict[str, Any]
App = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]
#: Method, route, status and error type.
Key = tuple["str | None", "str | None", "int | None", "str | None"]
HEADERS = [("Content-Type", "text/plain")]
TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"

_numbers = itertools.count()


def key(method: str = "GET", status: int | None = 200, route: str | None = None, error: str | None = None) -> Key:
    return method, route, status, error


class Measured:
    """A service of this test alone."""

    def __init__(self, directory: Path, **local_conf: str) -> None:
        name = f"service-{next(_numbers)}"
        self.settings = settings.load(
            {
                "service_name": name,
                "store": str(directory / f"{name}.sqlite"),
                "runtime_dir": str(directory / "run"),
                **local_conf,
            },
            {},
            {},
        )
        self.agent = lifecycle.agent_of(self.settings)
        self._recorder: Any = None

    def around(self, app: App) -> agent_filter.AgentFilter:
        return agent_filter.AgentFilter(app, self.agent)

    def recorder(self) -> Any:
        """The first one, also when the service has ended."""
        self._recorder = self._recorder or self.agent.open()
        return self._recorder

    def reader(self) -> Reader:
        recorder = self.recorder()
        return Reader(recorder.id, recorder.read, recorder.write, -1)

    def delta(self) -> Delta:
        """All that the ring holds, folded, whatever has been drained before."""
        reader, delta, position = self.reader(), Delta(), 0
        folder = Folder(reader, Apdex(self.settings.apdex_t_s))
        while data := reader.chunk(position, 512):
            run = folder.fold(delta, data, position, time.perf_counter_ns(), 0)
            if run.position == position:
                break
            position = run.position
        return delta

    def counts(self) -> dict[Key, int]:
        found: Counter[Key] = Counter()
        for ((metric, attributes), _), total in self.delta().totals.items():
            if metric == REQUEST_DURATION:
                found[key_of(_attributes(attributes))] += total.count
        return dict(found)

    def only(self) -> Key:
        """What the one request so far is counted under."""
        ((found, count),) = self.counts().items()
        assert count == 1
        return found

    def word(self, index: int) -> int:
        return self.reader().words()[index]

    def kept(self) -> list[str]:
        """Stack traces of the kept failures, from the store; ends the service."""
        found: Any = [row.detail["exception"] for row in self.traces() if row.detail and "exception" in row.detail]
        return [each["stacktrace"] for each in found]

    def traces(self) -> list[TraceRow]:
        """Of the kept transactions, from the store; ends the service."""
        self.recorder()
        self.agent.finish()
        store = Store(self.settings.store, read_only=True)
        try:
            return store.traces(0, 1e12, "newest", False, 1000)
        finally:
            store.close()

    def stored(self) -> dict[Key, int]:
        """The same as `counts` from the store; ends the service."""
        self.recorder()
        self.agent.finish()
        store = Store(self.settings.store, read_only=True)
        try:
            found: Counter[Key] = Counter()
            for one in store.totals():
                if one.metric == REQUEST_DURATION:
                    found[key_of(dict(one.attributes))] += one.total.count
            return dict(found)
        finally:
            store.close()


def _attributes(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    return found


def key_of(attributes: dict[str, Any]) -> Key:
    if attributes.get("otel.metric.overflow"):
        return "overflow", None, None, None
    return (
        attributes.get("http.request.method"),
        attributes.get("http.route"),
        attributes.get("http.response.status_code"),
        attributes.get("error.type"),
    )


class Server:
    """The least that PEP 3333 asks of a server."""

    def __init__(self) -> None:
        self.status: str | None = None
        self.headers: list[tuple[str, str]] = []
        self.headers_sent = False
        self.sent = b""

    def start_response(
        self,
        status: str,
        headers: list[tuple[str, str]],
        exc_info: tuple[type[BaseException], BaseException, TracebackType] | None = None,
    ) -> Callable[[bytes], None]:
        if exc_info is not None:
            try:
                if self.headers_sent:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        elif self.status is not None:
            raise AssertionError("start_response was called before")
        self.status, self.headers = status, headers
        return self.write

    def write(self, data: bytes) -> None:
        assert self.status is not None, "start_response was not called before the first byte"
        self.headers_sent = True
        self.sent += data

    def serve(self, app: App, environ: Environ, chunks: int | None = None) -> Server:
        """chunks: so many are taken before the client goes away."""
        body = app(environ, self.start_response)
        try:
            for chunk in itertools.islice(body, chunks):
                if chunk:
                    self.write(chunk)
            self.headers_sent = True
        finally:
            if hasattr(body, "close"):
                body.close()
        return self


def environ_of(**more: Any) -> Environ:
    environ: Environ = {"SCRIPT_NAME": "/prefix", "PATH_INFO": "/page", "SERVER_PROTOCOL": "HTTP/1.1"}
    setup_testing_defaults(environ)
    environ["QUERY_STRING"] = ""
    environ.update(more)
    return environ


def serve(app: App, chunks: int | None = None, **environ: Any) -> Server:
    return Server().serve(app, environ_of(**environ), chunks)


def fine(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
    start_response("200 OK", HEADERS[:])
    return [b"hello"]


def returning(body: Any, status: str = "200 OK") -> App:
    def app(environ: Environ, start_response: Callable[..., Any]) -> Any:
        start_response(status, HEADERS[:])
        return body

    return app


class Body:
    """An iterator that counts its closing. fail_at: number of the chunk that raises."""

    def __init__(self, *chunks: bytes, fail_at: int = -1, fail_close: BaseException | None = None) -> None:
        self.chunks = iter(chunks)
        self.closed = 0
        self.at = 0
        self.fail_at = fail_at
        self.fail_close = fail_close

    def __iter__(self) -> Body:
        return self

    def __next__(self) -> bytes:
        if self.at == self.fail_at:
            raise RuntimeError("chunk")
        self.at += 1
        return next(self.chunks)

    def close(self) -> None:
        self.closed += 1
        if self.fail_close is not None:
            raise self.fail_close


def raises_in_call(error: BaseException) -> App:
    def app(environ: Environ, start_response: Callable[..., Any]) -> Any:
        def deeper() -> None:
            raise error

        deeper()

    return app


def raises_after_start(error: BaseException) -> App:
    def app(environ: Environ, start_response: Callable[..., Any]) -> Any:
        start_response("200 OK", HEADERS)
        raise error

    return app


def raises_in_iteration(error: BaseException) -> App:
    def app(environ: Environ, start_response: Callable[..., Any]) -> Any:
        start_response("200 OK", HEADERS)
        yield b"part"
        raise error

    return app


def raises_in_first_chunk(error: BaseException) -> App:
    def app(environ: Environ, start_response: Callable[..., Any]) -> Any:
        start_response("200 OK", HEADERS)
        if environ:
            raise error
        yield b"never"

    return app
