"""Pyramid and Cornice behind the agent: routes, views, renderers, and errors that an exception view answers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import chameleon
import cornice
import pytest
from cornice.resource import add_resource
from pyramid.config import Configurator
from pyramid.httpexceptions import HTTPForbidden, HTTPFound, HTTPInternalServerError
from pyramid.request import Request
from pyramid.response import Response
from pyramid.view import render_view_to_response

from paste_agent.inside import FUNCTION, TEMPLATE
from paste_agent.recorder.writer import Recorder
from paste_agent.transaction import TRANSACTION_KEY
from tests.instrument.asking import ask, instrumented

HERE = __name__


@pytest.fixture(autouse=True)
def patched() -> Iterator[None]:
    with instrumented("pyramid"):
        yield


class OutOfStock(Exception):
    pass


def item(request: Any) -> Any:
    return {"id": request.matchdict["id"], "so far": request.environ[TRANSACTION_KEY].route_so_far()}


def with_context(context: Any, request: Any) -> Any:
    return Response("context")


def broken(request: Any) -> Any:
    raise OutOfStock("nails")


def failing(request: Any) -> Any:
    raise ZeroDivisionError("unhandled")


def raising(request: Any) -> Any:
    raise {"302": HTTPFound("/"), "403": HTTPForbidden(), "500": HTTPInternalServerError()}[request.matchdict["code"]]


def out_of_stock(error: Any, request: Any) -> Any:
    request.response.status_int = 503
    request.response.text = "out of stock"
    return request.response


def gone(error: Any, request: Any) -> Any:
    return Response("gone", status=410)


def nothing_here(error: Any, request: Any) -> Any:
    # As a layout does it, whose views belong to the page and not to the path.
    assert render_view_to_response(request.context, request, "box") is not None
    return Response("nothing here", status=404)


class Basket:
    def __init__(self, request: Any) -> None:
        self.request = request

    def show(self) -> Any:
        return Response("basket")

    def __call__(self) -> Any:
        return Response("called")


def for_get(request: Any) -> Any:
    return Response("get")


def for_post(request: Any) -> Any:
    return Response("post")


def both(request: Any) -> Any:
    inner = Request.blank("/methods")
    return Response(request.invoke_subrequest(inner).body)


def sharing(request: Any) -> Any:
    inner = Request(dict(request.environ, PATH_INFO="/items/5"))
    request.invoke_subrequest(inner)
    return Response(str(request.environ[TRANSACTION_KEY].route_so_far()))


def slow_tween_factory(handler: Any, registry: Any) -> Any:
    return handler


class Resource(dict):
    pass


def root(request: Any) -> Any:
    return Resource(folder=Resource())


class Nobody:
    """A security policy that permits nothing."""

    def permits(self, request: Any, context: Any, permission: str) -> bool:
        return False


def made(**settings: Any) -> Any:
    config = Configurator(settings=settings, root_factory=root)
    config.add_route("item", r"/items/{id:\d+}")
    config.add_view(item, route_name="item", renderer="json")
    config.add_route("context", "/context")
    config.add_view(with_context, route_name="context")
    config.add_route("broken", "/broken/{id}")
    config.add_view(broken, route_name="broken")
    config.add_route("failing", "/failing/{id}")
    config.add_view(failing, route_name="failing")
    config.add_route("raising", "/raising/{code}")
    config.add_view(raising, route_name="raising")
    config.add_route("basket", "/basket")
    config.add_view(Basket, attr="show", route_name="basket")
    config.add_route("called", "/called")
    config.add_view(Basket, route_name="called")
    config.add_route("methods", "/methods")
    config.add_view(for_get, route_name="methods", request_method="GET")
    config.add_view(for_post, route_name="methods", request_method="POST")
    config.add_route("single", "/single")
    config.add_view(for_post, route_name="single", request_method="POST")
    config.add_route("both", "/both")
    config.add_view(both, route_name="both")
    config.add_route("sharing", "/sharing")
    config.add_view(sharing, route_name="sharing")
    config.add_view(lambda request: Response("page"), name="page", context=Resource)
    config.add_view(lambda request: Response("box"), name="box", context=Resource)
    config.add_view(with_context, context=Resource)
    config.add_exception_view(out_of_stock, context=OutOfStock)
    return config


def test_a_view_has_its_name_and_its_route_while_it_runs(keeping: Recorder) -> None:
    asked = ask(keeping, made().make_wsgi_app(), "/items/17")
    assert (asked.status, asked.route, asked.error_type) == ("200 OK", "/items/{id}", None)
    assert b'"so far": "/items/{id}"' in asked.body
    assert asked.names == [f"{HERE}.item", "renderer json"]
    view, renderer = asked.spans
    assert (view.category, renderer.category) == (FUNCTION, FUNCTION)
    assert view.attributes == {"code.function.name": f"{HERE}.item"}
    assert view.failed is None
    assert not asked.errors


@pytest.mark.parametrize(
    ("path", "name", "route"),
    [
        ("/context", f"{HERE}.with_context", "/context"),
        ("/basket", f"{HERE}:Basket.show", "/basket"),
        ("/called", f"{HERE}:Basket", "/called"),
        ("/methods", f"{HERE}.for_get", "/methods"),
        ("/", f"{HERE}.with_context", "/*traverse"),
        ("/folder", f"{HERE}.with_context", "/*traverse"),
        ("/folder/page", f"{HERE}.<lambda>", "/*traverse/page"),
    ],
)
def test_views_of_all_kinds(keeping: Recorder, path: str, name: str, route: str) -> None:
    app = made().make_wsgi_app()
    for _ in range(2):  # the second time the view is known
        asked = ask(keeping, app, path)
        assert (asked.status, asked.names, asked.route) == ("200 OK", [name], route)


def test_of_views_with_predicates_the_one_that_was_called(keeping: Recorder) -> None:
    app = made().make_wsgi_app()
    assert ask(keeping, app, "/methods", "POST").names == [f"{HERE}.for_post"]
    asked = ask(keeping, app, "/methods", "DELETE")
    assert (asked.status, asked.names, asked.route) == ("404 Not Found", [], "/methods")
    asked = ask(keeping, app, "/single")
    assert (asked.status, asked.names, asked.route) == ("404 Not Found", [], "/single")
    assert ask(keeping, app, "/methods", "HEAD").names == [f"{HERE}.for_get"]


@pytest.mark.parametrize("path", ["/nowhere", "/folder/attack-1", "/items/abc"])
def test_what_was_not_found_has_no_route(keeping: Recorder, path: str) -> None:
    config = made()
    asked = ask(keeping, config.make_wsgi_app(), path)
    assert (asked.status, asked.route, asked.errors, asked.names) == ("404 Not Found", None, [], [])
    config.add_notfound_view(nothing_here)
    asked = ask(keeping, config.make_wsgi_app(), path)
    assert (asked.status, asked.route, asked.errors) == ("404 Not Found", None, [])
    assert asked.names == [f"{HERE}.nothing_here", f"{HERE}.<lambda>"]


def test_an_error_that_a_view_answers_is_seen(keeping: Recorder) -> None:
    asked = ask(keeping, made().make_wsgi_app(), "/broken/17")
    assert (asked.status, asked.route, asked.error_type) == ("503 Service Unavailable", "/broken/{id}", "503")
    assert asked.names == [f"{HERE}.broken", f"{HERE}.out_of_stock"]
    assert [span.failed for span in asked.spans] == [f"{HERE}.OutOfStock", None]
    ((seen),) = asked.errors
    assert (seen.type, seen.place, seen.expected) == (f"{HERE}.OutOfStock", f"{HERE}.broken", False)


def test_one_that_is_answered_as_the_clients_own_is_expected(keeping: Recorder) -> None:
    config = made()
    config.add_exception_view(gone, context=ZeroDivisionError)
    asked = ask(keeping, config.make_wsgi_app(), "/failing/1")
    assert (asked.status, asked.error_type, asked.error_types) == ("410 Gone", None, [("ZeroDivisionError", True)])


def test_one_that_nobody_answers_is_counted_once(keeping: Recorder) -> None:
    asked = ask(keeping, made().make_wsgi_app(), "/failing/1")
    assert isinstance(asked.raised, ZeroDivisionError)
    assert (asked.route, asked.error_type) == ("/failing/{id}", "ZeroDivisionError")
    assert asked.error_types == [("ZeroDivisionError", False)]


@pytest.mark.parametrize(("code", "errors"), [("302", 0), ("403", 0), ("500", 1)])
def test_a_response_that_is_raised_is_no_error_but_for_5xx(keeping: Recorder, code: str, errors: int) -> None:
    asked = ask(keeping, made().make_wsgi_app(), f"/raising/{code}")
    assert asked.status is not None
    assert asked.status.startswith(code)
    assert (asked.route, asked.names) == ("/raising/{code}", [f"{HERE}.raising"])
    assert [(error.type, error.expected) for error in asked.errors] == [
        ("pyramid.httpexceptions.HTTPInternalServerError", False)
    ] * errors
    assert (asked.spans[0].failed is not None) == bool(errors)


def test_what_is_looked_up_without_security_has_a_span_too(keeping: Recorder) -> None:
    config = made()
    if not hasattr(config, "set_security_policy"):
        pytest.skip("Pyramid 2")
    config.set_security_policy(Nobody())
    config.add_view(with_context, name="secret", context=Resource, permission="see")

    def open_view(request: Any) -> Any:
        return render_view_to_response(request.context, request, "secret", secure=False)

    config.add_view(open_view, name="open", context=Resource)
    app = config.make_wsgi_app()
    asked = ask(keeping, app, "/secret")
    assert (asked.status, asked.route, asked.errors) == ("403 Forbidden", "/*traverse/secret", [])
    asked = ask(keeping, app, "/open")
    assert (asked.status, asked.names) == ("200 OK", [f"{HERE}.open_view", f"{HERE}.with_context"])


def test_a_subrequest_leaves_the_route_alone(keeping: Recorder) -> None:
    asked = ask(keeping, made().make_wsgi_app(), "/both")
    assert (asked.status, asked.route) == ("200 OK", "/both")
    assert asked.names == [f"{HERE}.both", f"{HERE}.for_get"]
    assert asked.spans[1].parent == asked.spans[0].number
    asked = ask(keeping, made().make_wsgi_app(), "/sharing")
    assert (asked.status, asked.route) == ("200 OK", "/sharing")


def test_a_template_is_told_once(keeping: Recorder, tmp_path: Any) -> None:
    (tmp_path / "item.pt").write_text("<b>${id}</b>")

    def factory(info: Any) -> Any:
        found = chameleon.PageTemplateFile(str(tmp_path / info.name))
        return lambda value, system: found.render(**value)

    config = made()
    config.add_renderer(".pt", factory)
    config.add_route("page", "/page/{id}")
    config.add_view(lambda request: {"id": "17"}, route_name="page", renderer="item.pt")
    with instrumented("chameleon"):
        app = config.make_wsgi_app()
        ask(keeping, app, "/page/1")  # compiles
        asked = ask(keeping, app, "/page/1")
    assert asked.body == b"<b>17</b>"
    assert [(span.name, span.category) for span in asked.spans] == [
        (f"{HERE}.<lambda>", FUNCTION),
        ("item.pt", TEMPLATE),
    ]
    assert asked.spans[1].parent == asked.spans[0].number


def test_an_application_that_was_there_before(keeping: Recorder) -> None:
    """PasteDeploy makes the application before the filter, and so before anything is instrumented."""
    script = (
        "import pyramid.config, pyramid.view\n"
        "from paste_agent import instrument, lifecycle\n"
        "instrument.install()\n"
        "assert hasattr(pyramid.view._find_views, '_paste_agent'), lifecycle._owed_faults\n"
        "assert not lifecycle._owed_faults, lifecycle._owed_faults\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    before = script.splitlines()
    after = "\n".join([*before[1:3], before[0], *before[3:]])
    subprocess.run([sys.executable, "-c", after], check=True, timeout=60)


def test_without_a_transaction_nothing_is_different() -> None:
    app = made().make_wsgi_app()
    assert app.invoke_subrequest(Request.blank("/context")).body == b"context"
    assert app.invoke_subrequest(Request.blank("/broken/1"), use_tweens=True).status_int == 503


# -- Cornice -------------------------------------------------------------------------------------------------------


def cornice_app() -> Any:
    service = cornice.Service(name="items", path=r"/things/{id:\d+}")

    def get_item(request: Any) -> Any:
        return {"id": request.matchdict["id"]}

    def refuse(request: Any, **more: Any) -> None:
        request.errors.add("querystring", "x", "not good")

    service.add_view("GET", get_item)
    service.add_view("POST", get_item, validators=(refuse,))

    class Books:
        def __init__(self, request: Any, context: Any = None) -> None:
            self.request = request

        def get(self) -> Any:
            return {"book": self.request.matchdict["id"]}

        def collection_get(self) -> Any:
            return []

    resource = add_resource(Books, collection_path="/books", path="/books/{id}")
    config = Configurator()
    config.include("cornice")
    config.add_cornice_service(service)
    for one in resource._services.values():
        config.add_cornice_service(one)
    return config.make_wsgi_app()


@pytest.mark.parametrize(
    ("method", "path", "status", "route", "name"),
    [
        ("GET", "/things/17", "200 OK", "/things/{id}", f"{HERE}.get_item"),
        ("POST", "/things/17", "400 Bad Request", "/things/{id}", f"{HERE}.get_item"),
        ("GET", "/books/5", "200 OK", "/books/{id}", f"{HERE}:Books.get"),
        ("GET", "/books", "200 OK", "/books", f"{HERE}:Books.collection_get"),
    ],
)
def test_a_service_of_cornice(keeping: Recorder, method: str, path: str, status: str, route: str, name: str) -> None:
    asked = ask(keeping, cornice_app(), path, method)
    assert (asked.status, asked.route, asked.errors) == (status, route, [])
    assert asked.names[0] == name
    assert [one for one in asked.names if one == name] == [name]


def test_cornice_itself_refuses(keeping: Recorder) -> None:
    asked = ask(keeping, cornice_app(), "/things/17", "DELETE")
    assert (asked.status, asked.route, asked.errors) == ("405 Method Not Allowed", "/things/{id}", [])
