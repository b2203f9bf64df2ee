"""Flask behind the agent: routes, views, and errors that it turns into responses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import flask
import pytest
from flask.views import MethodView
from werkzeug.exceptions import InternalServerError, ServiceUnavailable
from werkzeug.routing import BaseConverter

from paste_agent.inside import TEMPLATE
from paste_agent.instrument import flask as instrument_flask
from paste_agent.recorder.writer import Recorder
from paste_agent.transaction import TRANSACTION_KEY
from tests.instrument.asking import ask, instrumented

HERE = __name__


@pytest.fixture(autouse=True)
def patched() -> Iterator[None]:
    with instrumented("flask", "jinja2"):
        yield


class OutOfStock(Exception):
    pass


class Regex(BaseConverter):
    def __init__(self, map: Any, regex: str) -> None:
        super().__init__(map)
        self.regex = regex


class Items(MethodView):
    def get(self, id: int) -> Any:
        return "an item"

    def post(self, id: int) -> Any:
        return "changed"


def made(**config: Any) -> Any:
    app = flask.Flask(__name__)
    app.config.update(config)
    app.url_map.converters["regex"] = Regex
    blueprint = flask.Blueprint("shop", __name__, url_prefix="/shop")

    @blueprint.route("/items/<int:id>")
    def item(id: int) -> Any:
        return str(flask.request.environ[TRANSACTION_KEY].route_so_far())

    @app.route('/years/<regex("[0-9]{4}"):year>/<any(a, b):kind>')
    def year(year: str, kind: str) -> Any:
        return year

    @app.route("/broken/<id>")
    def broken(id: str) -> Any:
        raise OutOfStock(id)

    @app.route("/gone/<id>")
    def gone(id: str) -> Any:
        raise KeyError(id)

    @app.route("/failing")
    def failing() -> Any:
        raise ZeroDivisionError

    @app.route("/refused/<int:code>")
    def refused(code: int) -> Any:
        flask.abort(code)

    @app.route("/page")
    def page() -> Any:
        return flask.render_template_string("{{ 1 + 1 }}")

    @app.errorhandler(OutOfStock)
    def out_of_stock(error: Any) -> Any:
        return "out of stock", 503

    @app.errorhandler(KeyError)
    def not_here(error: Any) -> Any:
        return flask.make_response("gone", 410)

    app.register_blueprint(blueprint)
    app.add_url_rule("/things/<int:id>", view_func=Items.as_view("things"))
    return app


def test_a_view_has_its_name_and_its_route_while_it_runs(keeping: Recorder) -> None:
    asked = ask(keeping, made(), "/shop/items/17")
    assert (asked.status, asked.route, asked.error_type) == ("200 OK", "/shop/items/<int:id>", None)
    assert asked.body == b"/shop/items/<int:id>"
    assert asked.names == [f"{HERE}.item"]
    assert asked.spans[0].attributes == {"code.function.name": f"{HERE}.item"}
    assert not asked.errors


@pytest.mark.parametrize(
    ("method", "path", "status", "route", "names"),
    [
        ("GET", "/things/1", "200 OK", "/things/<int:id>", [f"{HERE}:Items.get"]),
        ("POST", "/things/1", "200 OK", "/things/<int:id>", [f"{HERE}:Items.post"]),
        ("HEAD", "/things/1", "200 OK", "/things/<int:id>", [f"{HERE}:Items.get"]),
        ("OPTIONS", "/things/1", "200 OK", "/things/<int:id>", [f"{HERE}:Items.dispatch_request"]),
        ("GET", "/years/2020/a", "200 OK", "/years/<regex:year>/<any:kind>", [f"{HERE}.year"]),
        ("DELETE", "/things/1", "405 METHOD NOT ALLOWED", None, []),
        ("GET", "/nowhere/17", "404 NOT FOUND", None, []),
        ("GET", "/shop/items/x", "404 NOT FOUND", None, []),
        ("GET", "/refused/404", "404 NOT FOUND", "/refused/<int:code>", [f"{HERE}.refused"]),
        ("GET", "/static/nothing.css", "404 NOT FOUND", "/static/<path:filename>", [f"{HERE}.<lambda>"]),
    ],
)
def test_names_and_routes(
    keeping: Recorder, method: str, path: str, status: str, route: str | None, names: list[str]
) -> None:
    asked = ask(keeping, made(), path, method)
    assert (asked.status, asked.route, asked.errors) == (status, route, [])
    if "static" not in path:  # flask's own, which is called this in one version and that in another
        assert asked.names == names
    assert [span.failed for span in asked.spans] == [None] * len(asked.spans)


@pytest.mark.parametrize(
    ("path", "status", "errors"),
    [
        ("/broken/17", "503 SERVICE UNAVAILABLE", [(f"{HERE}.OutOfStock", False)]),
        ("/gone/17", "410 GONE", [("KeyError", True)]),
        ("/failing", "500 INTERNAL SERVER ERROR", [("ZeroDivisionError", False)]),
        ("/refused/503", "503 SERVICE UNAVAILABLE", [("werkzeug.exceptions.ServiceUnavailable", False)]),
        ("/refused/403", "403 FORBIDDEN", []),
    ],
)
def test_errors_that_become_responses(
    keeping: Recorder, path: str, status: str, errors: list[tuple[str, bool]]
) -> None:
    asked = ask(keeping, made(), path)
    assert asked.raised is None
    assert (asked.status, asked.error_types) == (status, errors)
    assert asked.route is not None
    for seen in asked.errors:
        assert seen.place.startswith(HERE)


def test_an_error_that_passes_is_counted_once(keeping: Recorder) -> None:
    asked = ask(keeping, made(PROPAGATE_EXCEPTIONS=True), "/failing")
    assert isinstance(asked.raised, ZeroDivisionError)
    assert (asked.route, asked.error_type) == ("/failing", "ZeroDivisionError")
    assert asked.error_types == [("ZeroDivisionError", False)]


def test_an_extension_that_handles_errors_tells_by_the_signal(keeping: Recorder) -> None:
    class Extended(flask.Flask):  # type: ignore[misc,name-defined]
        def handle_user_exception(self, e: Any) -> Any:
            flask.got_request_exception.send(self, exception=e)
            return flask.make_response("handled", 500)

    app = Extended(__name__)
    app.add_url_rule("/failing", view_func=lambda: 1 / 0)
    if not getattr(flask.signals, "signals_available", True):
        pytest.skip("no signals without blinker")
    asked = ask(keeping, app, "/failing")
    assert (asked.status, asked.error_types) == ("500 INTERNAL SERVER ERROR", [("ZeroDivisionError", False)])


def test_its_templates_are_jinjas(keeping: Recorder) -> None:
    asked = ask(keeping, made(), "/page")
    assert asked.body == b"2"
    view, *templates = asked.spans
    assert view.name == f"{HERE}.page"
    assert {span.category for span in templates} == {TEMPLATE}
    assert {span.name for span in templates} == {"compile <template>", "<template>"}


def test_a_request_within_a_request_leaves_the_route_alone(keeping: Recorder) -> None:
    app = made()

    @app.route("/both")
    def both() -> Any:
        with app.test_client() as client:
            return client.get("/things/3").text

    asked = ask(keeping, app, "/both")
    assert (asked.body, asked.route) == (b"an item", "/both")
    assert asked.names == [f"{HERE}.both", f"{HERE}:Items.get"]


@pytest.mark.parametrize(
    ("rule", "route"),
    [
        ("/a/<int(min=1, max=5):x>", "/a/<int:x>"),
        ("/a/<regex('[a-z]{2}(b|c)'):x>/<y>", "/a/<regex:x>/<y>"),
        ('/a/<regex("<b>:(c"):x>', "/a/<regex:x>"),
        ("/a/<path:x>", "/a/<path:x>"),
    ],
)
def test_converters_lose_their_arguments(rule: str, route: str) -> None:
    assert instrument_flask._route(rule) == route


@pytest.mark.parametrize(
    ("result", "status"),
    [
        ("text", 200),
        (("text", 404), 404),
        (("text", "410 GONE", {}), "410 GONE"),
        (("text", {"x": "y"}), 200),
        ((flask.Response("x", status=502), {"x": "y"}), 502),
        (flask.Response("x", status=503), 503),
        (InternalServerError(), 500),
        (ServiceUnavailable(), 503),
        ({}, 200),
    ],
)
def test_what_an_error_handler_may_return(result: Any, status: object) -> None:
    assert instrument_flask._status_of(result) == status
