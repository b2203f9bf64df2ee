"""TurboGears 2 behind the agent: routes through controllers, actions, and errors."""

# what TurboGears imports warns
from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its own, of Python's standard library
    tg = pytest.importorskip("tg")
    from tg import RestController, TGController, expose

    try:
        from tg import MinimalApplicationConfigurator
    except ImportError:
        pytest.skip("a TurboGears before 2.4", allow_module_level=True)

from paste_agent.recorder.writer import Recorder
from paste_agent.transaction import TRANSACTION_KEY
from tests.instrument.asking import ask, instrumented

HERE = __name__


@pytest.fixture(autouse=True)
def patched() -> Iterator[None]:
    with instrumented("turbogears"):
        yield


class Books(RestController):  # type: ignore[misc,valid-type]
    @expose()
    def get_all(self) -> Any:
        return "all"

    @expose()
    def get_one(self, number: str) -> Any:
        return number

    @expose()
    def delete(self, number: str) -> Any:
        return number

    @expose()
    def edit(self, number: str) -> Any:
        return number


class Person:
    def __init__(self, name: str) -> None:
        self.name = name


class Shelf(TGController):  # type: ignore[misc,valid-type]
    @expose()
    def show(self) -> Any:
        return "shelf"


class Wiki(TGController):  # type: ignore[misc,valid-type]
    books = Books()

    @expose()
    def index(self) -> Any:
        return "wiki"

    @expose()
    def page(self, name: str, revision: str = "") -> Any:
        return str(tg.request.environ[TRANSACTION_KEY].route_so_far())

    @expose()
    def _lookup(self, shelf: str, *rest: str) -> Any:
        return Shelf(), rest


class Root(TGController):  # type: ignore[misc,valid-type]
    wiki = Wiki()
    books = Books()

    @expose()
    def index(self) -> Any:
        return "root"

    @expose("json")
    def data(self, **values: Any) -> Any:
        return {"x": 1}

    @expose()
    def anything(self, *rest: str) -> Any:
        return "anything"

    @expose()
    def failing(self) -> Any:
        raise ZeroDivisionError

    @expose()
    def refused(self) -> Any:
        tg.abort(403)


class Falls(TGController):  # type: ignore[misc,valid-type]
    @expose()
    def _default(self, *rest: str) -> Any:
        return "default"


def made(root: Any) -> Any:
    configurator = MinimalApplicationConfigurator()
    configurator.update_blueprint({"root_controller": root, "renderers": ["json"]})
    return configurator.make_wsgi_app({}, {})


@pytest.fixture(scope="module")
def app() -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield made(Root())


def test_an_action_has_its_name_and_its_route_while_it_runs(keeping: Recorder, app: Any) -> None:
    asked = ask(keeping, app, "/wiki/page/start")
    assert (asked.status, asked.route) == ("200 OK", "/wiki/page/{name}")
    assert asked.body == b"/wiki/page/{name}"
    assert asked.names == [f"{HERE}:Wiki.page"]


@pytest.mark.parametrize(
    ("method", "path", "status", "route", "name"),
    [
        ("GET", "/", "200 OK", "/", "Root.index"),
        ("GET", "/wiki", "200 OK", "/wiki", "Wiki.index"),
        ("GET", "/wiki/page/start/17", "200 OK", "/wiki/page/{name}/{revision}", "Wiki.page"),
        ("GET", "/wiki/page/start?revision=17", "200 OK", "/wiki/page/{name}", "Wiki.page"),
        ("GET", "/data", "200 OK", "/data", "Root.data"),
        ("HEAD", "/data", "200 OK", "/data", "Root.data"),
        ("OPTIONS", "/data", "200 OK", "/data", "Root.data"),
        ("GET", "/anything/a/b/c", "200 OK", "/anything/*", "Root.anything"),
        ("GET", "/books", "200 OK", "/books", "Books.get_all"),
        ("GET", "/books/17", "200 OK", "/books/{number}", "Books.get_one"),
        ("GET", "/books/17/edit", "200 OK", "/books/{number}/edit", "Books.edit"),
        ("DELETE", "/books/17", "200 OK", "/books/{number}", "Books.delete"),
        ("GET", "/wiki/books/17", "200 OK", "/wiki/books/{number}", "Books.get_one"),
        ("GET", "/wiki/shelf-of-ann/show", "200 OK", "/wiki/{Shelf}/show", "Shelf.show"),
        ("GET", "/refused", "403 Forbidden", "/refused", "Root.refused"),
    ],
)
def test_names_and_routes(
    keeping: Recorder, app: Any, method: str, path: str, status: str, route: str, name: str
) -> None:
    asked = ask(keeping, app, path, method)
    assert (asked.status, asked.route, asked.names, asked.errors) == (status, route, [f"{HERE}:{name}"], [])
    assert asked.spans[0].failed is None


@pytest.mark.parametrize("path", ["/nowhere/17", "/wiki/books/a/b/c", "/index/17"])
def test_what_was_not_found_has_no_route(keeping: Recorder, app: Any, path: str) -> None:
    asked = ask(keeping, app, path)
    assert (asked.status, asked.route, asked.errors, asked.names) == ("404 Not Found", None, [], [])


def test_the_default_takes_all(keeping: Recorder) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        asked = ask(keeping, made(Falls()), "/a/b/c")
    assert (asked.status, asked.route, asked.names) == ("200 OK", "/*", [f"{HERE}:Falls._default"])


def test_an_error_is_seen_once(keeping: Recorder, app: Any) -> None:
    asked = ask(keeping, app, "/failing")
    assert isinstance(asked.raised, ZeroDivisionError)
    assert (asked.route, asked.error_types) == ("/failing", [("ZeroDivisionError", False)])
    assert asked.errors[0].place == f"{HERE}.failing"


def test_an_error_that_another_layer_renders_is_seen(keeping: Recorder, app: Any) -> None:
    def renders(environ: Any, start_response: Any) -> Any:
        try:
            return app(environ, start_response)
        except ZeroDivisionError:
            start_response("500 Internal Server Error", [("Content-Type", "text/plain")])
            return [b"sorry"]

    asked = ask(keeping, renders, "/failing")
    assert (asked.status, asked.route) == ("500 Internal Server Error", "/failing")
    assert asked.error_types == [("ZeroDivisionError", False)]


def test_the_page_that_tells_of_an_error_names_no_route(keeping: Recorder, app: Any) -> None:
    """As its own layer does it, by a second dispatch of the same request."""

    def redirecting(path: str) -> Any:
        def twice(environ: Any, start_response: Any) -> Any:
            list(app(environ, lambda *args: None))
            environ["PATH_INFO"] = "/wiki/page/error"
            return app(environ, start_response)

        return ask(keeping, twice, path)

    assert redirecting("/data").route == "/data"
    assert redirecting("/nowhere").route is None
