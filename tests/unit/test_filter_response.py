"""What the filter returns, and what it lets through: PEP 3333 to the letter."""

from __future__ import annotations

import gc
import io
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.util import FileWrapper
from wsgiref.validate import validator

import pytest
from paste import lint

from paste_agent.recorder import layout
from paste_agent.transaction import Transaction
from tests.filtering import (
    HEADERS,
    App,
    Body,
    Environ,
    Measured,
    Server,
    environ_of,
    fine,
    key,
    raises_after_start,
    raises_in_call,
    raises_in_first_chunk,
    raises_in_iteration,
    returning,
    serve,
)

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


@pytest.mark.parametrize(
    "kind", ["generator", "empty generator", "iterator with close", "map", "file", "list subclass"]
)
def test_a_layer_above_that_calls_next_at_once(service: Measured, kind: str) -> None:
    body, expected = BODIES[kind]()
    response: Any = service.around(returning(body))(environ_of(), Server().start_response)
    chunks = iter(lambda: next(response, None), None)
    assert b"".join(filter(None, chunks)) == expected
    response.close()
    assert service.only() == key()


def test_a_body_that_fails_when_next_is_called_at_once(service: Measured) -> None:
    class Failing(List):
        def __iter__(self) -> Iterator[bytes]:
            raise KeyError("x")

    response: Any = service.around(returning(Failing([b"a"])))(environ_of(), Server().start_response)
    with pytest.raises(KeyError) as raised:
        next(response)
    assert raised.value.__context__ is None
    response.close()
    assert service.only() == key(status=500, error="KeyError")
    assert service.word(layout.W_INTERNAL_ERRORS) == 0


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


@pytest.mark.parametrize(
    "make", [lambda: [b"a"], lambda: generator(b"a"), lambda: Body(b"a")], ids=["list", "generator", "iterable"]
)
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
