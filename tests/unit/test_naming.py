"""Names of low cardinality: whatever a client sends, few come out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paste_agent import naming
from paste_agent.naming import MAX_ROUTE_LENGTH, route_of_routing_args


@pytest.mark.parametrize(
    ("method", "name"),
    [
        *((known, known) for known in ("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS")),
        *((known, known) for known in ("PATCH", "POST", "PUT", "QUERY", "TRACE")),
        ("get", "_OTHER"),
        ("", "_OTHER"),
        ("GET ", "_OTHER"),
        ("PROPFIND", "_OTHER"),
        ("G" * 100_000, "_OTHER"),
    ],
)
def test_methods(method: str, name: str) -> None:
    assert naming.method_of(method) == name


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ("200 OK", 200),
        ("200", 200),
        ("204 ", 204),
        ("100 Continue", 100),
        ("599 x", 599),
        ("404 Not Found\r\nX: y", 404),
        *((bad, None) for bad in ("", "20", "2000", "099 x", "600 x", "200OK", " 200", "-20 x", "abc", "2.0 x")),
        *((bad, None) for bad in (None, 200, b"200 OK", ["200 OK"], object())),
    ],
)
def test_statuses(status: object, code: int | None) -> None:
    assert naming.status_of(status) == code


@pytest.mark.parametrize(
    ("protocol", "version"),
    [
        ("HTTP/1.0", "1.0"),
        ("HTTP/1.1", "1.1"),
        ("HTTP/2", "2"),
        ("HTTP/2.0", "2"),
        ("HTTP/3", "3"),
        *((odd, None) for odd in ("HTTP/9", "http/1.1", "", "INCLUDED", None, 11, ["HTTP/1.1"])),
    ],
)
def test_protocols(protocol: object, version: str | None) -> None:
    assert naming.version_of(protocol) == version


@pytest.mark.parametrize(
    ("scheme", "name"),
    [("http", "http"), ("https", "https"), *((odd, "_OTHER") for odd in ("HTTP", "ws", "", None, ["http"]))],
)
def test_schemes(scheme: object, name: str) -> None:
    assert naming.scheme_of(scheme) == name


@pytest.mark.parametrize(
    ("route", "name"),
    [
        ("/a/{b}", "/a/{b}"),
        ("a/{b}", "/a/{b}"),
        ("*traverse/edit", "*traverse/edit"),
        ("/", "/"),
        ("/" + "x" * 1000, "/" + "x" * (MAX_ROUTE_LENGTH - 1)),
        ("x" * 1000, "/" + "x" * (MAX_ROUTE_LENGTH - 1)),
        *((odd, None) for odd in ("", None, 0, 7, b"/a", ["/a"], object(), True)),
    ],
)
def test_routes(route: object, name: str | None) -> None:
    assert naming.route_of(route) == name


class Route:
    def __init__(self, routepath: object) -> None:
        self.routepath = routepath


def routed(path: object, positional: Any = (), named: Any = None, **environ: Any) -> str | None:
    return route_of_routing_args(
        {"PATH_INFO": path, "wsgiorg.routing_args": (positional, named if named is not None else {}), **environ}
    )


@pytest.mark.parametrize(
    ("path", "positional", "named", "route"),
    [
        ("/items/42", (), {"id": "42"}, "/items/{id}"),
        ("/items/42/edit", (), {"id": "42", "action": "edit"}, "/items/{id}/{action}"),
        ("/items/42", ("42",), {}, "/items/{0}"),
        ("/items/42/7", ["42", "7"], {}, "/items/{0}/{1}"),
        ("/a/42/42", (), {"id": "42"}, "/a/{id}/{id}"),
        ("/items/42/", (), {"id": "42"}, "/items/{id}/"),
        ("/items/42", (), {"id": "42", "format": None, "rest": ""}, "/items/{id}"),
        # No telling what is constant, or what a value came from: rather no name than a raw path.
        ("/items/42", (), {}, None),
        ("/items/42/edit", (), {"id": 42, "action": "edit"}, None),
        ("/items/042/edit", (), {"id": "42", "action": "edit"}, None),
        ("/items/42.html/edit", (), {"id": "42", "action": "edit"}, None),
        ("/items/a/b/edit", (), {"path": "a/b", "action": "edit"}, None),
        ("/items/42", (), {"controller": "items_controller", "id": "42"}, None),
        ("/items/42", (), {"id": ["42"]}, None),
        ("/items/42", ({},), {"id": "42"}, None),
        ("/items/42", None, {"id": "42"}, "/items/{id}"),
        ("/items/42", 7, 8, None),
        ("", (), {"id": "42"}, None),
        (None, (), {"id": "42"}, None),
        (b"/items/42", (), {"id": "42"}, None),
        ("/" + "x" * 300 + "/42", (), {"id": "42"}, "/" + "x" * 254),
    ],
)
def test_the_arguments_that_a_router_leaves(path: object, positional: Any, named: Any, route: str | None) -> None:
    assert routed(path, positional, named) == route


def test_routes_leaves_the_route_itself() -> None:
    assert routed("/items/42", (), {"id": "42"}, **{"routes.route": Route("/things/{id}")}) == "/things/{id}"
    assert routed("/items/42", (), {"id": "42"}, **{"routes.route": Route("things/{id}")}) == "/things/{id}"
    assert routed("/items/42", (), {"id": "42"}, **{"routes.route": Route(None)}) == "/items/{id}"
    assert routed("/items/42", **{"routes.route": Route("/{year:\\d{4}}/{id:[a-z:]+}/x")}) == "/{year}/{id}/x"


@pytest.mark.parametrize("arguments", [None, (), ((),), ((), {}, {}), [(), {}], "ab", 7])
def test_odd_routing_args(arguments: object) -> None:
    assert route_of_routing_args({"PATH_INFO": "/a", "wsgiorg.routing_args": arguments}) is None


@given(
    st.text(alphabet="ab/4", max_size=30), st.dictionaries(st.text(max_size=3), st.text(alphabet="ab4/", max_size=5))
)
def test_every_value_is_gone_from_a_route(path: str, named: dict[str, str]) -> None:
    route = routed(path, (), named)
    if route is not None:
        # Names may look like values; a segment that is a value was replaced by a name in braces.
        for segment in route.lstrip("/").split("/"):
            assert segment == "" or segment.startswith("{") or segment not in named.values()
