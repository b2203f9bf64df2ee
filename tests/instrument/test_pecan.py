"""Pecan behind the agent: routes through controllers, methods, and errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pecan
import pytest
from pecan.hooks import PecanHook
from pecan.rest import RestController
from webob import Response

from paste_agent.recorder.writer import Recorder
from paste_agent.transaction import TRANSACTION_KEY
from tests.instrument.asking import ask, instrumented

HERE = __name__


@pytest.fixture(autouse=True)
def patched() -> Iterator[None]:
    with instrumented("pecan"):
        yield


class Pages(RestController):  # type: ignore[misc]
    @pecan.expose()
    def get_one(self, book: str, number: str) -> Any:
        return number


class Books(RestController):  # type: ignore[misc]
    pages = Pages()

    @pecan.expose()
    def get_all(self) -> Any:
        return "all"

    @pecan.expose()
    def get_one(self, book: str) -> Any:
        return book

    @pecan.expose("json")
    def post(self) -> Any:
        return {"made": True}


class Shelf:
    def __init__(self, name: str) -> None:
        self.name = name

    @pecan.expose()
    def show(self) -> Any:
        return "shelf"


class Wiki:
    @pecan.expose()
    def index(self) -> Any:
        return "wiki"

    @pecan.expose()
    def page(self, name: str, revision: str = "") -> Any:
        return str(pecan.request.environ[TRANSACTION_KEY].route_so_far())

    @pecan.expose(route="with-dashes")
    def dashes(self) -> Any:
        return "dashes"

    @pecan.expose()
    def _lookup(self, name: str, *rest: str) -> Any:
        return Shelf(name), rest


class Falls:
    @pecan.expose()
    def _default(self, *rest: str) -> Any:
        return "default"


class Root:
    wiki = Wiki()
    books = Books()
    falls = Falls()

    @pecan.expose(generic=True)
    def index(self) -> Any:
        return "root"

    @index.when(method="POST")
    def index_post(self) -> Any:
        return "posted"

    @pecan.expose(content_type="application/json")
    def data(self, **values: Any) -> Any:
        return "{}"

    @pecan.expose()
    def failing(self) -> Any:
        raise ZeroDivisionError

    @pecan.expose()
    def refused(self) -> Any:
        pecan.abort(403)

    @pecan.expose()
    def unavailable(self) -> Any:
        pecan.abort(503)

    @pecan.expose()
    def forwards(self) -> Any:
        pecan.redirect("/wiki/", internal=True)


class Answers(PecanHook):  # type: ignore[misc]
    def __init__(self, status: int) -> None:
        self.status = status

    def on_error(self, state: Any, error: Any) -> Any:
        return Response("sorry", status=self.status) if isinstance(error, ZeroDivisionError) else None


def made(**more: Any) -> Any:
    return pecan.make_app(Root(), debug=False, force_canonical=False, **more)


def test_a_method_has_its_name_and_its_route_while_it_runs(keeping: Recorder) -> None:
    asked = ask(keeping, made(), "/wiki/page/start")
    assert (asked.status, asked.route) == ("200 OK", "/wiki/page/{name}")
    assert asked.body == b"/wiki/page/{name}"
    assert asked.names == [f"{HERE}:Wiki.page"]


@pytest.mark.parametrize(
    ("method", "path", "status", "route", "name"),
    [
        ("GET", "/", "200 OK", "/", "Root.index"),
        ("POST", "/", "200 OK", "/", "Root.index_post"),
        ("GET", "/wiki", "200 OK", "/wiki", "Wiki.index"),
        ("GET", "/wiki/", "200 OK", "/wiki", "Wiki.index"),
        ("GET", "/wiki/page/start/17", "200 OK", "/wiki/page/{name}/{revision}", "Wiki.page"),
        ("GET", "/wiki/with-dashes", "200 OK", "/wiki/with-dashes", "Wiki.dashes"),
        ("GET", "/wiki/shelf-of-ann/show", "200 OK", "/wiki/*/show", "Shelf.show"),
        ("HEAD", "/wiki/page/start", "200 OK", "/wiki/page/{name}", "Wiki.page"),
        ("GET", "/data", "200 OK", "/data", "Root.data"),
        ("GET", "/books", "200 OK", "/books", "Books.get_all"),
        ("POST", "/books", "200 OK", "/books", "Books.post"),
        ("GET", "/books/17", "200 OK", "/books/{book}", "Books.get_one"),
        ("GET", "/books/17/pages/4", "200 OK", "/books/*/pages/{number}", "Pages.get_one"),
        ("GET", "/falls/a/b/c", "200 OK", "/falls/*", "Falls._default"),
        ("GET", "/refused", "403 Forbidden", "/refused", "Root.refused"),
    ],
)
def test_names_and_routes(keeping: Recorder, method: str, path: str, status: str, route: str, name: str) -> None:
    asked = ask(keeping, made(), path, method)
    assert (asked.status, asked.route, asked.names, asked.errors) == (status, route, [f"{HERE}:{name}"], [])
    assert asked.spans[0].failed is None


@pytest.mark.parametrize("path", ["/nowhere/17", "/data/17/18", "/__class__/x"])
def test_what_was_not_found_has_no_route(keeping: Recorder, path: str) -> None:
    asked = ask(keeping, made(), path)
    assert (asked.status, asked.errors, asked.names) == ("404 Not Found", [], [])
    assert asked.route is None


def test_an_error_is_seen_once(keeping: Recorder) -> None:
    asked = ask(keeping, made(), "/failing")
    assert isinstance(asked.raised, ZeroDivisionError)
    assert (asked.route, asked.error_types) == ("/failing", [("ZeroDivisionError", False)])


@pytest.mark.parametrize(("status", "expected"), [(500, False), (410, True)])
def test_an_error_that_a_hook_answers_is_seen(keeping: Recorder, status: int, expected: bool) -> None:
    asked = ask(keeping, made(hooks=[Answers(status)]), "/failing")
    assert asked.status is not None
    assert asked.status.startswith(str(status))
    assert (asked.route, asked.error_types) == ("/failing", [("ZeroDivisionError", expected)])


def test_a_response_that_is_raised_counts_from_500(keeping: Recorder) -> None:
    asked = ask(keeping, made(), "/unavailable")
    assert (asked.status, asked.error_types) == (
        "503 Service Unavailable",
        [("webob.exc.HTTPServiceUnavailable", False)],
    )


def test_an_error_that_its_debugger_renders_is_seen(keeping: Recorder) -> None:
    app = pecan.make_app(Root(), debug=True)
    asked = ask(keeping, app, "/failing")
    assert asked.status is not None
    assert asked.status.startswith("500")
    assert (asked.raised, asked.route, asked.error_types) == (None, "/failing", [("ZeroDivisionError", False)])


def test_a_path_that_is_asked_in_its_place_has_the_same_route(keeping: Recorder) -> None:
    asked = ask(keeping, made(), "/forwards", prefix="")
    assert (asked.status, asked.body, asked.route) == ("200 OK", b"wiki", "/forwards")
    assert asked.names == [f"{HERE}:Root.forwards", f"{HERE}:Wiki.index"]
    assert (asked.spans[0].failed, asked.errors) == (None, [])
