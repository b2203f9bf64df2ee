"""The filter, to the letter of PEP 3333: what the application, the server and the count see of it."""

from __future__ import annotations

import gc
import io
import itertools
import json
import logging
import sys
import threading
import time
import traceback
import urllib.error
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any
from wsgiref.util import FileWrapper, setup_testing_defaults
from wsgiref.validate import validator

import pytest
from paste import httpexceptions, lint
from paste.deploy import loadapp
from webob import exc

from paste_agent import filter as agent_filter
from paste_agent import lifecycle, settings
from paste_agent.aggregate import QUEUE_DURATION, REQUEST_DURATION, Apdex, Delta, Folder
from paste_agent.recorder import layout, writer
from paste_agent.recorder.reader import Reader
from paste_agent.store.store import Store
from paste_agent.transaction import Transaction

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
                found[_key_of(_attributes(attributes))] += total.count
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
        self.recorder()
        self.agent.finish()
        store = Store(self.settings.store, read_only=True)
        try:
            rows = store.traces(0, 1e12, "newest", False, 1000)
            found: Any = [row.detail["exception"] for row in rows if row.detail and "exception" in row.detail]
            return [each["stacktrace"] for each in found]
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
                    found[_key_of(dict(one.attributes))] += one.total.count
            return dict(found)
        finally:
            store.close()


def _attributes(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    return found


def _key_of(attributes: dict[str, Any]) -> Key:
    if attributes.get("otel.metric.overflow"):
        return "overflow", None, None, None
    return (
        attributes.get("http.request.method"),
        attributes.get("http.route"),
        attributes.get("http.response.status_code"),
        attributes.get("error.type"),
    )


@pytest.fixture
def measure(tmp_path: Path) -> Iterator[Callable[..., Measured]]:
    """Makes services. At the end each is finished, and its store must hold what its ring held."""
    made: list[Measured] = []

    def make(**local_conf: str) -> Measured:
        made.append(Measured(tmp_path, **local_conf))
        return made[-1]

    yield make
    for service in made:
        opened = service.agent._recorder is not None
        if opened and service.agent.serving is not None:
            assert service.stored() == service.counts()
        service.agent.finish()


@pytest.fixture
def service(measure: Callable[..., Measured]) -> Measured:
    return measure()


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


# -- PEP 3333, validated on both sides -----------------------------------------------------------------------------


@pytest.fixture(params=["validator, both sides", "validator, outside", "lint, both sides", "lint, outside"])
def checked(request: pytest.FixtureRequest, service: Measured) -> Callable[[App], App]:
    """Puts an application behind the filter, with a checker of PEP 3333 outside, and inside too."""
    check: Callable[[App], App] = validator if request.param.startswith("validator") else lint.middleware

    def build(app: App) -> App:
        return check(service.around(check(app) if request.param.endswith("both sides") else app))

    return build


class Tuple(tuple):  # type: ignore[type-arg]
    pass


class List(list):  # type: ignore[type-arg]
    pass


def generator(*chunks: bytes) -> Iterator[bytes]:
    yield from chunks


BODIES: dict[str, Callable[[], tuple[Any, bytes]]] = {
    "list": lambda: ([b"a", b"b"], b"ab"),
    "one": lambda: ([b"a"], b"a"),
    "empty list": lambda: ([], b""),
    "list of nothing": lambda: ([b""], b""),
    "tuple": lambda: ((b"a", b"b"), b"ab"),
    "empty tuple": lambda: ((), b""),
    "tuple subclass": lambda: (Tuple((b"a", b"b")), b"ab"),
    "list subclass": lambda: (List([b"a", b"b"]), b"ab"),
    "generator": lambda: (generator(b"a", b"", b"b"), b"ab"),
    "empty generator": lambda: (generator(), b""),
    "iterator with close": lambda: (Body(b"a", b"b"), b"ab"),
    "map": lambda: (map(bytes, [b"a"]), b"a"),
    "file": lambda: (io.BytesIO(b"line\nline\n"), b"line\nline\n"),
    "file wrapper": lambda: (FileWrapper(io.BytesIO(b"x" * 20_000)), b"x" * 20_000),
}


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_every_kind_of_body_passes_the_checkers(
    checked: Callable[[App], App], service: Measured, kind: str, method: str
) -> None:
    body, expected = BODIES[kind]()
    server = serve(checked(returning(body)), REQUEST_METHOD=method)
    assert (server.status, server.headers, server.sent) == ("200 OK", HEADERS, expected)
    assert service.counts() == {key(method): 1}


def test_write(checked: Callable[[App], App], service: Measured) -> None:
    def app(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        write = start_response("201 Created", HEADERS[:])
        write(b"a")
        write(b"b")
        return [b"c"]

    server = serve(checked(app))
    assert (server.status, server.sent) == ("201 Created", b"abc")
    assert service.only() == key(status=201)


def test_an_error_page_before_the_headers_are_sent(checked: Callable[[App], App], service: Measured) -> None:
    def app(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", HEADERS[:])
        try:
            raise ValueError("x")
        except ValueError:
            start_response("500 Oops", HEADERS[:], sys.exc_info())
        return [b"sorry"]

    server = serve(checked(app))
    assert (server.status, server.sent) == ("500 Oops", b"sorry")
    assert service.only() == key(status=500, error="500")


def test_an_error_page_after_the_headers_are_sent(checked: Callable[[App], App], service: Measured) -> None:
    error = ValueError("x")

    def app(environ: Environ, start_response: Callable[..., Any]) -> Iterator[bytes]:
        start_response("200 OK", HEADERS[:])
        yield b"part"
        try:
            raise error
        except ValueError:
            start_response("500 Oops", HEADERS[:], sys.exc_info())
        yield b"never"

    server = Server()
    with pytest.raises(ValueError) as raised:
        server.serve(checked(app), environ_of())
    assert raised.value is error
    assert (server.status, server.sent) == ("200 OK", b"part")
    assert service.only() == key(status=200, error="ValueError")


def test_a_generator_that_starts_its_response_late(checked: Callable[[App], App], service: Measured) -> None:
    def app(environ: Environ, start_response: Callable[..., Any]) -> Iterator[bytes]:
        start_response("202 Accepted", HEADERS[:])
        yield b"late"

    assert serve(checked(app)).sent == b"late"
    assert service.only() == key(status=202)


@pytest.mark.parametrize("chunks", [0, 1])
def test_a_client_that_goes_away(checked: Callable[[App], App], service: Measured, chunks: int) -> None:
    body = Body(b"a", b"b", b"c")
    serve(checked(returning(body)), chunks=chunks)
    assert body.closed == 1
    assert service.only() == key()


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_input_and_its_reading_are_the_applications(service: Measured, method: str) -> None:
    seen: list[Environ] = []

    def app(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        seen.append(dict(environ))
        return fine(environ, start_response)

    stream = io.BytesIO(b"a=1")
    more = {
        "wsgi.input": stream,
        "wsgi.input_terminated": True,
        "wsgi.early_hints": print,
        "CONTENT_LENGTH": "3",
        "REQUEST_METHOD": method,
    }
    given = environ_of(**more)
    before = dict(given)
    Server().serve(service.around(app), given)
    transaction = seen[0].pop("paste_agent.transaction")
    assert isinstance(transaction, Transaction)
    assert seen[0] == before
    assert stream.tell() == 0


# -- the shape of a response ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BODIES)
def test_a_response_has_a_length_exactly_when_its_body_has_one(service: Measured, kind: str) -> None:
    body, _ = BODIES[kind]()
    response = service.around(returning(body))(environ_of(), Server().start_response)
    assert hasattr(response, "__len__") == hasattr(body, "__len__")
    if hasattr(body, "__len__"):
        assert len(response) == len(body)  # type: ignore[arg-type]
    assert bool(response) == bool(body)
    response.close()  # type: ignore[attr-defined]


def test_a_list_with_close_is_closed_once(service: Measured) -> None:
    class Closing(List):
        closed = 0

        def close(self) -> None:
            self.closed += 1

    body = Closing([b"a", b"b"])
    response: Any = service.around(returning(body))(environ_of(), Server().start_response)
    assert (len(response), list(response)) == (2, [b"a", b"b"])
    response.close()
    response.close()
    assert body.closed == 1
    assert service.only() == key()


def test_a_list_that_fails_when_it_is_iterated(service: Measured) -> None:
    class Failing(List):
        def __iter__(self) -> Iterator[bytes]:
            raise KeyError("x")

    with pytest.raises(KeyError):
        serve(service.around(returning(Failing([b"a"]))))
    assert service.only() == key(status=500, error="KeyError")


def test_a_second_close_counts_nothing_and_closes_nothing(service: Measured) -> None:
    body = Body(b"a")
    response: Any = service.around(returning(body))(environ_of(), Server().start_response)
    response.close()
    response.close()
    del response
    gc.collect()
    assert body.closed == 1
    assert service.only() == key()


def test_a_body_that_is_not_closed_after_its_iteration_failed_is_closed_by_the_server_once(service: Measured) -> None:
    body = Body(b"a", b"b", fail_at=1)
    with pytest.raises(RuntimeError):
        serve(service.around(returning(body)))
    assert body.closed == 1
    assert service.only() == key(status=200, error="RuntimeError")


@pytest.mark.parametrize("make", [lambda: [b"a"], lambda: generator(b"a"), lambda: Body(b"a")], ids=str)
def test_a_response_dropped_without_close_is_counted(service: Measured, make: Callable[[], Any]) -> None:
    def drop() -> None:
        next(iter(service.around(returning(make()))(environ_of(), Server().start_response)))

    drop()
    gc.collect()
    assert service.only() == key()
    assert service.reader().in_flight() == []


def test_a_generator_that_is_never_iterated(service: Measured) -> None:
    def app(environ: Environ, start_response: Callable[..., Any]) -> Iterator[bytes]:
        start_response("200 OK", HEADERS)
        yield b"never"

    response: Any = service.around(app)(environ_of(), Server().start_response)
    response.close()
    assert service.only() == key(status=None)


class SlotsFile:
    """As the file wrappers that are written in C: no attribute can be set on it."""

    __slots__ = ("closed", "file")

    def __init__(self, file: io.BytesIO, size: int = 8192) -> None:
        self.file = file
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.file)

    def close(self) -> None:
        self.closed += 1


class PlainFile(SlotsFile):
    pass


class FileWithoutClose:
    def __init__(self, file: io.BytesIO) -> None:
        self.file = file

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.file)


@pytest.mark.parametrize("kind", [SlotsFile, PlainFile, FileWithoutClose, FileWrapper])
def test_a_file_wrapper_is_returned_as_it_is(service: Measured, kind: Any) -> None:
    body = kind(io.BytesIO(b"data"))

    def app(environ: Environ, start_response: Callable[..., Any]) -> Any:
        start_response("200 OK", HEADERS)
        environ["paste_agent.route"] = "/file"
        return body

    response: Any = service.around(app)(environ_of(**{"wsgi.file_wrapper": kind}), Server().start_response)
    assert response is body
    assert type(response) is kind
    assert b"".join(response) == b"data"
    if hasattr(response, "close"):
        response.close()
    if kind in (SlotsFile, PlainFile):
        assert body.closed == 1
    assert service.only() == key(route="/file")


def test_a_file_wrapper_that_fails_to_close(service: Measured) -> None:
    class Failing(PlainFile):
        def close(self) -> None:
            super().close()
            raise OSError("disk")

    body = Failing(io.BytesIO(b""))
    app = service.around(returning(body))
    with pytest.raises(OSError, match="disk"):
        serve(app, **{"wsgi.file_wrapper": Failing})
    body.close()
    assert body.closed == 1
    assert service.only() == key(status=200, error="OSError")


def test_a_file_wrapper_dropped_without_close_is_counted(service: Measured) -> None:
    service.around(returning(PlainFile(io.BytesIO(b""))))(
        environ_of(**{"wsgi.file_wrapper": PlainFile}), Server().start_response
    )
    gc.collect()
    assert service.only() == key()


def test_a_file_wrapper_that_is_a_function_marks_no_body(service: Measured) -> None:
    assert serve(service.around(returning([b"x"])), **{"wsgi.file_wrapper": FileWrapper.__init__}).sent == b"x"
    assert service.only() == key()


# -- exceptions ----------------------------------------------------------------------------------------------------


def frames(error: BaseException) -> list[str]:
    """Functions of a traceback, without those of the agent and of this test's own server."""
    found = []
    for frame, _ in traceback.walk_tb(error.__traceback__):
        file = Path(frame.f_code.co_filename)
        if file.parent.name != "paste_agent":
            found.append(frame.f_code.co_name)
    return found


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


def raises_in_close(error: BaseException) -> App:
    return returning(Body(b"x", fail_close=error))


PLACES = [raises_in_call, raises_after_start, raises_in_iteration, raises_in_first_chunk, raises_in_close]
SENT = [raises_in_iteration, raises_in_close]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_an_exception_passes_as_it_is(service: Measured, place: Any, kind: type[BaseException]) -> None:
    bare, passed = kind("x"), kind("x")
    with pytest.raises(kind):
        serve(place(bare))
    with pytest.raises(kind) as raised:
        serve(service.around(place(passed)))
    assert raised.value is passed
    assert frames(passed) == frames(bare)
    assert passed.__context__ is None
    assert passed.__cause__ is None
    # The client got the status only where a part of the body had been sent; else the server answers 500.
    assert service.only() == key(status=200 if place in SENT else 500, error=kind.__name__)


def test_the_context_and_cause_of_an_exception_stay(service: Measured) -> None:
    cause, context = KeyError("cause"), OSError("context")

    def app(environ: Environ, start_response: Callable[..., Any]) -> Any:
        try:
            raise context
        except OSError:
            raise ValueError("x") from cause

    with pytest.raises(ValueError) as raised:
        serve(service.around(app))
    assert raised.value.__cause__ is cause
    assert raised.value.__context__ is context
    (kept,) = service.kept()
    assert "KeyError: 'cause'" in kept
    assert "direct cause" in kept


class NotFoundLikeZope(Exception):
    def getStatus(self) -> int:
        return 404


class OddLikeZope(Exception):
    def __init__(self, answer: object) -> None:
        self.answer = answer

    def getStatus(self) -> object:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    "error", [exc.HTTPNotFound, httpexceptions.HTTPNotFound, NotFoundLikeZope], ids=["webob", "paste", "zope"]
)
@pytest.mark.parametrize("place", [raises_in_call, raises_after_start, raises_in_first_chunk])
def test_a_raised_404_is_a_404_and_no_error(service: Measured, place: Any, error: Any) -> None:
    with pytest.raises(error):
        serve(service.around(place(error())))
    assert service.only() == key(status=404)


def test_a_404_raised_behind_the_first_bytes_is_an_error(service: Measured) -> None:
    with pytest.raises(exc.HTTPNotFound):
        serve(service.around(raises_in_iteration(exc.HTTPNotFound())))
    assert service.only() == key(status=200, error="webob.exc.HTTPNotFound")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (exc.HTTPServiceUnavailable(), 503),
        (urllib.error.HTTPError("http://other/", 404, "no", {}, None), 500),  # type: ignore[arg-type]
        (OddLikeZope("404"), 500),
        (OddLikeZope(99), 500),
        (OddLikeZope(None), 500),
    ],
    ids=["503 of webob", "another server's 404", "text", "no status", "None"],
)
def test_other_raised_statuses_are_errors(service: Measured, error: Exception, status: int) -> None:
    with pytest.raises(type(error)):
        serve(service.around(raises_in_call(error)))
    kind = type(error)
    assert service.only() == key(status=status, error=f"{kind.__module__}.{kind.__qualname__}")


def test_a_status_that_cannot_be_told_is_counted(service: Measured) -> None:
    error = OddLikeZope(ZeroDivisionError())
    with pytest.raises(OddLikeZope):
        serve(service.around(raises_in_call(error)))
    assert sum(service.counts().values()) == 1


def test_an_exception_whose_text_fails_is_kept(service: Measured) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    with pytest.raises(Mute):
        serve(service.around(raises_in_call(Mute())))
    (kept,) = service.kept()
    assert "<unprintable>" in kept


def test_a_start_response_that_the_server_refuses_does_not_count(service: Measured) -> None:
    def app(environ: Environ, start_response: Callable[..., Any]) -> Any:
        start_response("200 OK", HEADERS)
        with pytest.raises(AssertionError):
            start_response("404 Not Found", HEADERS)
        return [b""]

    serve(service.around(app))
    assert service.only() == key(status=200)


def test_an_application_that_returns_nothing(service: Measured) -> None:
    with pytest.raises(TypeError):
        serve(service.around(returning(None)))
    assert service.only() == key(status=500, error="TypeError")


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
            _key_of(dict(one.attributes)): one.total.count for one in store.totals() if one.metric == REQUEST_DURATION
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
    monkeypatch.setattr(writer, "_STEP_SLOTS", layout.SLOTS)
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
    assert len(recorder._by_fields) <= 51
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
