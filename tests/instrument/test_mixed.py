"""Several frameworks in one pipeline, and libraries that are not what they were."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

import bottle
import falcon
import flask
import pytest
from paste import urlmap
from pyramid.config import Configurator
from pyramid.response import Response

from paste_agent import instrument, lifecycle
from paste_agent.instrument import views
from paste_agent.recorder.writer import Recorder
from tests.instrument.asking import ask, instrumented

FRAMEWORKS = ("bottle", "chameleon", "django", "falcon", "flask", "jinja2", "mako", "pecan", "pyramid", "turbogears",
              "webob", "zope")  # fmt: skip


def test_applications_below_one_urlmap(keeping: Recorder) -> None:
    config = Configurator()
    config.add_route("item", "/items/{id}")
    config.add_view(lambda request: Response("pyramid"), route_name="item")
    of_flask = flask.Flask(__name__)
    of_flask.add_url_rule("/items/<id>", view_func=lambda id: "flask")
    of_bottle = bottle.Bottle()
    of_bottle.route("/items/<id>", callback=lambda id: "bottle")
    of_falcon = falcon.App()

    class Item:
        def on_get(self, req: Any, resp: Any, id: str) -> None:
            resp.text = "falcon"

    of_falcon.add_route("/items/{id}", Item())
    app = urlmap.URLMap()
    app["/pyramid"], app["/flask"] = config.make_wsgi_app(), of_flask
    app["/bottle"], app["/falcon"] = of_bottle, of_falcon
    expected = {"pyramid": "/items/{id}", "flask": "/items/<id>", "bottle": "/items/<id>", "falcon": "/items/{id}"}
    with instrumented(*expected):
        for name, route in expected.items():
            asked = ask(keeping, app, f"/{name}/items/17")
            assert (asked.body, asked.route, len(asked.spans)) == (name.encode(), route, 1)
            asked = ask(keeping, app, f"/{name}/nowhere")
            assert (asked.route, asked.errors) == (None, [])


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_library_of_another_shape_is_left_alone(name: str) -> None:
    home = import_module(f"paste_agent.instrument.{name}")
    for module in instrument._LIBRARIES[name]:
        empty = ModuleType(module)
        with pytest.raises((AttributeError, ImportError)):
            home.install(empty)
        assert not [found for found in vars(empty) if not found.startswith("__")]


def test_all_or_nothing() -> None:
    class Library:
        def first(self) -> int:
            return 1

    before = Library.first
    with pytest.raises(AttributeError):
        views.replace((Library, "first", lambda was: lambda self: 2), (Library, "second", lambda was: lambda self: 3))
    assert Library.first is before
    for _ in range(2):
        views.replace((Library, "first", lambda was: lambda self: was(self) + 1))
    assert Library().first() == 2


def test_a_fault_is_counted_and_the_library_works_on() -> None:
    faults: list[str] = []
    agent = lifecycle.on_fault
    lifecycle.on_fault = lambda where, fault: faults.append(where)
    try:
        instrument._install("falcon", ModuleType("falcon.app"))
    finally:
        lifecycle.on_fault = agent
    assert faults == ["instrumentation of falcon"]


class Thing:
    def method(self) -> None: ...

    def __call__(self) -> None: ...

    @classmethod
    def of_class(cls) -> None: ...

    @staticmethod
    def static() -> None: ...


class Unhashable:
    """As a decorator may make of a function."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self) -> None:
        self.__qualname__ = "unhashable"

    def __call__(self) -> None: ...


def function() -> None: ...


@pytest.mark.parametrize(
    ("view", "method", "name"),
    [
        (function, None, "function"),
        (Thing, None, ":Thing"),
        (Thing, "get", ":Thing.get"),
        (Thing(), None, ":Thing"),
        (Thing().method, None, ":Thing.method"),
        (Thing.of_class, None, ":Thing.of_class"),
        (Thing.method, None, ":Thing.method"),
        (Thing.static, None, ":Thing.static"),
        (Unhashable(), None, "unhashable"),
    ],
)
def test_names_of_views(view: Any, method: str | None, name: str) -> None:
    expected = f"{__name__}{name}" if name.startswith(":") else f"{__name__}.{name}"
    named = views.name_of(view, method)
    assert named.name == expected
    assert named.text == expected.encode()


def test_a_name_keeps_no_object_alive() -> None:
    import gc
    import weakref

    thing = Thing()
    gone = weakref.ref(thing)
    views.name_of(thing.method)
    del thing
    gc.collect()
    assert gone() is None


def test_objects_that_are_not_as_they_were_are_counted_and_work_on(
    keeping: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults: list[str] = []
    monkeypatch.setattr(keeping, "on_fault", lambda where, fault: faults.append(where))
    app = flask.Flask(__name__)

    class Odd:
        """A view that does not like to be asked."""

        def __call__(self, id: str) -> str:
            return id

        @property
        def view_class(self) -> Any:
            raise RuntimeError

    app.add_url_rule("/items/<id>", endpoint="item")
    app.view_functions["item"] = Odd()
    monkeypatch.setattr("paste_agent.instrument.flask._route", lambda rule: 1 / 0)
    with instrumented("flask"):
        asked = ask(keeping, app, "/items/17")
    assert (asked.status, asked.body, asked.route, asked.spans) == ("200 OK", b"17", None, [])
    assert faults == ["route of Flask", "view of Flask"]
