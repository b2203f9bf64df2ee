"""Functions that `webob.dec.wsgify` makes applications of, and Routes in front of them, as OpenStack has both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import routes
from routes.middleware import RoutesMiddleware
from webob import Request, Response
from webob.dec import wsgify
from webob.exc import HTTPForbidden, HTTPServiceUnavailable

from paste_agent import naming
from paste_agent.recorder.writer import Recorder
from tests.instrument.asking import ask, instrumented

HERE = __name__


@pytest.fixture(autouse=True)
def patched() -> Iterator[None]:
    with instrumented("webob"):
        yield


@wsgify
def hello(request: Any) -> Any:
    return "hello"


@wsgify
def forbidden(request: Any) -> Any:
    raise HTTPForbidden()


@wsgify
def unavailable(request: Any) -> Any:
    raise HTTPServiceUnavailable()


@wsgify
def failing(request: Any) -> Any:
    raise ZeroDivisionError


@wsgify.middleware
def audit(request: Any, app: Any, limit: int = 1) -> Any:
    return request.get_response(app)


class Api:
    """As services of OpenStack are made."""

    @wsgify
    def __call__(self, request: Any) -> Any:
        return Response("api")


@pytest.mark.parametrize(
    ("app", "status", "names", "errors"),
    [
        (hello, "200 OK", [f"{HERE}.hello"], []),
        (Api(), "200 OK", [f"{HERE}:Api.__call__"], []),
        (audit(hello), "200 OK", [f"{HERE}.audit", f"{HERE}.hello"], []),
        (audit(limit=2)(Api()), "200 OK", [f"{HERE}.audit", f"{HERE}:Api.__call__"], []),
        (forbidden, "403 Forbidden", [f"{HERE}.forbidden"], []),
        (
            unavailable,
            "503 Service Unavailable",
            [f"{HERE}.unavailable"],
            [("webob.exc.HTTPServiceUnavailable", False)],
        ),
    ],
)
def test_functions(keeping: Recorder, app: Any, status: str, names: list[str], errors: list[tuple[str, bool]]) -> None:
    asked = ask(keeping, app, "/items/17")
    assert (asked.status, asked.route, asked.names, asked.error_types) == (status, None, names, errors)
    assert asked.spans[-1].failed == (errors[0][0] if errors else None)


def test_an_error_passes_as_ever(keeping: Recorder) -> None:
    asked = ask(keeping, failing, "/items/17")
    assert isinstance(asked.raised, ZeroDivisionError)
    assert asked.error_types == [("ZeroDivisionError", False)]


def test_a_function_is_called_as_ever() -> None:
    assert Request.blank("/").get_response(hello).text == "hello"
    assert hello(Request.blank("/")) == "hello"
    assert type(hello) is wsgify


def test_routes_in_front_of_it(keeping: Recorder) -> None:
    mapper = routes.Mapper()
    mapper.connect("item", r"/items/{id:\d+}", controller="items")

    @wsgify
    def dispatch(request: Any) -> Any:
        return Response("found" if request.environ["wsgiorg.routing_args"][1] else "no", status=200)

    app = RoutesMiddleware(dispatch, mapper, singleton=False)
    asked = ask(keeping, app, "/items/17")
    assert (asked.body, asked.route, asked.names) == (b"found", "/items/{id}", [f"{HERE}.dispatch"])
    assert ask(keeping, app, "/items/x").route is None


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/v1/AUTH_a", "/v1/{account}"),
        ("/v1/AUTH_a/", "/v1/{account}"),
        ("/v1/AUTH_a/c", "/v1/{account}/{container}"),
        ("/v1.0/AUTH_a/c/o/with/slashes/", "/v1.0/{account}/{container}/{object}"),
        ("/v1/AUTH_a//o", None),
        ("/v1", None),
        ("/v1/", None),
        ("/info", None),
        ("/bucket/key/of/s3", None),
        ("x/v1/a/b", None),
        ("", None),
        (None, None),
    ],
)
def test_the_paths_of_swift(path: str | None, route: str | None) -> None:
    environ = {"swift.trans_id": "tx1", "PATH_INFO": path}
    assert naming.route_of_routing_args(environ) == route
    del environ["swift.trans_id"]
    assert naming.route_of_routing_args(environ) is None
