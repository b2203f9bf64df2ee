"""Falcon behind the agent: routes, responders, and errors that it turns into responses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import falcon
import pytest

from paste_agent.recorder.writer import Recorder
from paste_agent.transaction import TRANSACTION_KEY
from tests.instrument.asking import ask, instrumented

HERE = __name__


@pytest.fixture(autouse=True)
def patched() -> Iterator[None]:
    with instrumented("falcon"):
        yield


class OutOfStock(Exception):
    pass


def remember(req: Any, resp: Any, resource: Any, params: Any) -> None:
    req.context.remembered = True


class Items:
    @falcon.before(remember)
    def on_get(self, req: Any, resp: Any, id: int) -> None:
        resp.text = str(req.env[TRANSACTION_KEY].route_so_far())

    def on_post_many(self, req: Any, resp: Any) -> None:
        resp.status = falcon.HTTP_201


class Failing:
    def on_get(self, req: Any, resp: Any, kind: str) -> None:
        raise {
            "plain": ZeroDivisionError(),
            "handled": OutOfStock(),
            "gone": KeyError(),
            "refused": falcon.HTTPForbidden(),
            "later": falcon.HTTPServiceUnavailable(),
            "moved": falcon.HTTPFound("/"),
        }[kind]


def handled(req: Any, resp: Any, error: Any, params: Any) -> None:
    resp.status = falcon.HTTP_502


def gone(req: Any, resp: Any, error: Any, params: Any) -> None:
    raise falcon.HTTPGone


def passes(req: Any, resp: Any, error: Any, params: Any) -> None:
    raise error


def sink(req: Any, resp: Any, **values: Any) -> None:
    resp.text = "sink"


def made() -> Any:
    app = falcon.App()
    app.add_route("/items/{id:int}", Items())
    app.add_route("/items", Items(), suffix="many")
    app.add_route("/failing/{kind}", Failing())
    app.add_error_handler(OutOfStock, handled)
    app.add_error_handler(KeyError, gone)
    app.add_sink(sink, "/sink/")
    return app


def test_a_responder_has_its_name_and_its_route_while_it_runs(keeping: Recorder) -> None:
    asked = ask(keeping, made(), "/items/17")
    assert (asked.status, asked.route, asked.error_type) == ("200 OK", "/items/{id}", None)
    assert asked.body == b"/items/{id}"
    assert asked.names == [f"{HERE}:Items.on_get"]
    assert not asked.errors


@pytest.mark.parametrize(
    ("method", "path", "status", "route", "names"),
    [
        ("POST", "/items", "201 Created", "/items", [f"{HERE}:Items.on_post_many"]),
        ("OPTIONS", "/items/17", "200 OK", "/items/{id}", []),
        ("HEAD", "/items/17", "405 Method Not Allowed", "/items/{id}", []),
        ("GET", "/items/x", "404 Not Found", None, []),
        ("GET", "/nowhere/17", "404 Not Found", None, []),
        ("GET", "/sink/17", "200 OK", None, []),
        ("GET", "/failing/refused", "403 Forbidden", "/failing/{kind}", [f"{HERE}:Failing.on_get"]),
        ("GET", "/failing/moved", "302 Found", "/failing/{kind}", [f"{HERE}:Failing.on_get"]),
    ],
)
def test_names_and_routes(
    keeping: Recorder, method: str, path: str, status: str, route: str | None, names: list[str]
) -> None:
    asked = ask(keeping, made(), path, method)
    assert (asked.status, asked.route, asked.names, asked.errors) == (status, route, names, [])
    assert [span.failed for span in asked.spans] == [None] * len(asked.spans)


@pytest.mark.parametrize(
    ("kind", "status", "errors"),
    [
        ("plain", "500 Internal Server Error", [("ZeroDivisionError", False)]),
        ("handled", "502 Bad Gateway", [(f"{HERE}.OutOfStock", False)]),
        ("gone", "410 Gone", [("KeyError", True)]),
        ("later", "503 Service Unavailable", [("falcon.errors.HTTPServiceUnavailable", False)]),
    ],
)
def test_errors_that_become_responses(
    keeping: Recorder, kind: str, status: str, errors: list[tuple[str, bool]]
) -> None:
    asked = ask(keeping, made(), f"/failing/{kind}")
    assert (asked.status, asked.error_types, asked.route) == (status, errors, "/failing/{kind}")
    assert asked.errors[0].place == f"{HERE}.on_get"


def test_an_error_that_passes_is_counted_once(keeping: Recorder) -> None:
    app = made()
    app.add_error_handler(Exception, passes)
    asked = ask(keeping, app, "/failing/plain")
    assert isinstance(asked.raised, ZeroDivisionError)
    assert (asked.route, asked.error_types) == ("/failing/{kind}", [("ZeroDivisionError", False)])
