"""Bottle behind the agent: routes, callbacks, and errors that it turns into responses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import bottle
import pytest

from paste_agent.instrument import bottle as instrument_bottle
from paste_agent.recorder.writer import Recorder
from paste_agent.transaction import TRANSACTION_KEY
from tests.instrument.asking import ask, instrumented

HERE = __name__


@pytest.fixture(autouse=True)
def patched() -> Iterator[None]:
    with instrumented("bottle"):
        yield


def made(catchall: bool = True) -> Any:
    app = bottle.Bottle()
    app.catchall = catchall

    @app.route("/items/<id:int>")
    def item(id: int) -> Any:
        return {"so far": bottle.request.environ[TRANSACTION_KEY].route_so_far()}

    @app.route("/years/<year:re:[0-9]{4}>/<rest:path>")
    def year(year: str, rest: str) -> Any:
        return year

    @app.route("/failing")
    def failing() -> Any:
        raise ZeroDivisionError

    @app.route("/pieces")
    def pieces() -> Any:
        raise ZeroDivisionError
        yield "never"

    @app.route("/refused/<code:int>")
    def refused(code: int) -> Any:
        bottle.abort(code, "no")

    @app.route("/returned")
    def returned() -> Any:
        return bottle.HTTPError(503, "later")

    return app


def test_a_callback_has_its_name_and_its_route_while_it_runs(keeping: Recorder) -> None:
    asked = ask(keeping, made(), "/items/17")
    assert (asked.status, asked.route, asked.error_type) == ("200 OK", "/items/<id:int>", None)
    assert asked.body == b'{"so far": "/items/<id:int>"}'
    assert asked.names == [f"{HERE}.item"]
    assert not asked.errors


@pytest.mark.parametrize(
    ("method", "path", "status", "route", "names"),
    [
        ("GET", "/years/2020/a/b", "200 OK", "/years/<year>/<rest:path>", [f"{HERE}.year"]),
        ("HEAD", "/years/2020/a", "200 OK", "/years/<year>/<rest:path>", [f"{HERE}.year"]),
        ("POST", "/items/17", "405 Method Not Allowed", None, []),
        ("OPTIONS", "/items/17", "405 Method Not Allowed", None, []),
        ("GET", "/nowhere/17", "404 Not Found", None, []),
        ("GET", "/refused/404", "404 Not Found", "/refused/<code:int>", [f"{HERE}.refused"]),
        ("GET", "/returned", "503 Service Unavailable", "/returned", [f"{HERE}.returned"]),
    ],
)
def test_names_and_routes(
    keeping: Recorder, method: str, path: str, status: str, route: str | None, names: list[str]
) -> None:
    asked = ask(keeping, made(), path, method)
    assert (asked.status, asked.route, asked.names, asked.errors) == (status, route, names, [])


@pytest.mark.parametrize("path", ["/failing", "/pieces"])
def test_errors_that_become_responses(keeping: Recorder, path: str) -> None:
    asked = ask(keeping, made(), path)
    assert asked.raised is None
    assert (asked.status, asked.route) == ("500 Internal Server Error", path)
    assert [(one.type, one.place, one.expected) for one in asked.errors] == [
        ("ZeroDivisionError", f"{HERE}.{path[1:]}", False)
    ]


def test_a_status_that_is_raised_counts_from_500(keeping: Recorder) -> None:
    asked = ask(keeping, made(), "/refused/503")
    assert (asked.status, asked.error_types) == ("503 Service Unavailable", [("bottle.HTTPError", False)])


def test_an_error_that_passes_is_counted_once(keeping: Recorder) -> None:
    asked = ask(keeping, made(catchall=False), "/failing")
    assert isinstance(asked.raised, ZeroDivisionError)
    assert (asked.route, asked.error_types) == ("/failing", [("ZeroDivisionError", False)])


def test_what_is_mounted_names_itself(keeping: Recorder) -> None:
    outer = bottle.Bottle()
    outer.mount("/inner/", made().wsgi)
    asked = ask(keeping, outer, "/inner/items/17")
    assert (asked.route, asked.names) == ("/items/<id:int>", [f"{HERE}.item"])
    assert ask(keeping, outer, "/inner/nowhere").route == "/inner/*"


@pytest.mark.parametrize(
    ("rule", "route"),
    [
        ("/a/<x>", "/a/<x>"),
        ("/a/<x:re:[a-z]+>/b", "/a/<x>/b"),
        ("/a/<x:re:(b|c):d>", "/a/<x>"),
        ("/a/<:re:.*>", "/a/*"),
        ("/a/:x/:y#[a-z]+#", "/a/:x/:y"),
        ("/a/:#[a-z]+#", "/a/*"),
        (r"/a/<x:re:\>+>", "/a/<x>"),
    ],
)
def test_rules_lose_their_expressions(rule: str, route: str) -> None:
    assert instrument_bottle._route(rule) == route
