"""Routes of applications that a composite below the agent has at a path begin with that path."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from paste.deploy import loadapp

from paste_agent.store.store import Store
from tests.instrument.asking import instrumented
from tests.layered import Place
from tests.recorders import environ_of

APPS = '''
from pyramid.config import Configurator
from pyramid.response import Response
from routes import Mapper
from routes.middleware import RoutesMiddleware

def pyramid_factory(global_conf):
    config = Configurator()
    config.add_route("item", "items/{id}")
    config.add_route("rest", "rest/*traverse")
    config.add_route("root", "/")
    for name in ("item", "rest", "root"):
        config.add_view(lambda request: Response("ok"), route_name=name)
    config.add_view(lambda request: 1 / 0, route_name="item", request_param="fails")
    config.add_route("resources", "*traverse")
    config.add_view(lambda request: Response("ok"), route_name="resources", name="edit")
    return config.make_wsgi_app()

def plain(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"ok"]

def routes_factory(global_conf):
    mapper = Mapper()
    mapper.connect("/users/{name}", controller="users")
    return RoutesMiddleware(plain, mapper)

def named_factory(global_conf):
    def named(environ, start_response):
        environ["paste_agent.route"] = "/its/own/{words}"
        return plain(environ, start_response)
    return named

def plain_factory(global_conf):
    return plain

class Twice:
    """One application at two paths."""

    def __init__(self, application):
        self.applications = [((None, "/one"), application), ((None, "/two"), application)]

    def __call__(self, environ, start_response):
        return self.applications[0][1](environ, start_response)

def trying_factory(app, global_conf):
    """Tries a request once more, as it came."""
    def trying(environ, start_response):
        app(dict(environ), lambda *response: None)
        return app(environ, start_response)
    return trying

def twice_factory(loader, global_conf, **names):
    return Twice(loader.get_app("pyramid", global_conf=global_conf))

class Odd:
    applications = ["what is this"]

    def __call__(self, environ, start_response):
        return plain(environ, start_response)

def odd_factory(loader, global_conf, **names):
    return Odd()
'''

INI = """
[composite:main]
use = egg:{dispatcher}
filter-with = agent
/ = root
/v1 = pipe
/v1/users = routes
/named = named
/plain = plain
/nested = inner
[composite:inner]
use = egg:{dispatcher}
/deep = pyramid
[pipeline:pipe]
pipeline = gzip pyramid
[app:pyramid]
paste.app_factory = {apps}:pyramid_factory
[app:root]
use = pyramid
[app:routes]
paste.app_factory = {apps}:routes_factory
[app:named]
paste.app_factory = {apps}:named_factory
[app:plain]
paste.app_factory = {apps}:plain_factory
[filter:trying]
paste.filter_app_factory = {apps}:trying_factory
[composite:versions]
use = egg:{dispatcher}
/v1 = routes
/v2 = pyramid
[pipeline:tried]
pipeline = agent trying versions
[composite:twice]
paste.composite_factory = {apps}:twice_factory
filter-with = agent
[composite:odd]
paste.composite_factory = {apps}:odd_factory
filter-with = agent
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.syspath_prepend(str(tmp_path))
    found = Place(tmp_path)
    (tmp_path / f"{found.parts}_apps.py").write_text(APPS)
    with instrumented("pyramid"):
        yield found


def ask(app: Any, *paths: str) -> None:
    for path in paths:
        path, _, query = path.partition("?")
        body = app(
            {**environ_of(path), "QUERY_STRING": query}, lambda status, headers, exc_info=None: lambda data: None
        )
        list(body)
        body.close()


def routes_of(place: Place) -> list[str | None]:
    agent = place.agent()
    agent.finish()
    assert not agent._faults
    store = Store(str(place.directory / "store.sqlite"), read_only=True)
    try:
        found = [one for one in store.totals() if one.metric == "http.server.request.duration"]
        return sorted((str(one.attributes.get("http.route")) for one in found for _ in range(one.total.count)), key=str)
    finally:
        store.close()


def load(place: Place, name: str = "main", dispatcher: str = "Paste#urlmap") -> Any:
    own = INI.replace("{dispatcher}", dispatcher).replace("{apps}", f"{place.parts}_apps")
    return loadapp(f"config:{place.ini(own)}", name=name)


@pytest.mark.parametrize("dispatcher", ["Paste#urlmap", "paste_agent#mount"])
def test_the_path_comes_first(place: Place, dispatcher: str) -> None:
    app = load(place, dispatcher=dispatcher)
    ask(app, "/", "/items/1", "/v1/items/1", "/v1/items/2", "/v1/users/users/ann", "/nested/deep/items/1")
    ask(app, "/v1/rest/a/b", "/v1/edit", "/v1/", "/named/x", "/plain/x", "/v1/nowhere")
    with pytest.raises(ZeroDivisionError):
        ask(app, "/v1/items/3?fails=1")
    assert routes_of(place) == sorted([
        "/", "/items/{id}", "/v1/items/{id}", "/v1/items/{id}", "/v1/items/{id}", "/v1/users/users/{name}",
        "/nested/deep/items/{id}", "/v1/rest/*traverse", "/v1/*traverse/edit", "/v1/", "/its/own/{words}", "None",
        "/v1/*traverse",
    ])  # fmt: skip


def test_a_request_that_is_tried_again_is_named_once(place: Place) -> None:
    ask(load(place, "tried"), "/v1/users/ann", "/v2/items/1", "/v2/nowhere")
    assert routes_of(place) == ["/v1/users/{name}", "/v2/*traverse", "/v2/items/{id}"]


def test_an_application_at_two_paths_is_at_neither(place: Place) -> None:
    ask(load(place, "twice"), "/items/1")
    assert routes_of(place) == ["/items/{id}"]


def test_a_composite_of_another_kind_is_left_alone(place: Place) -> None:
    ask(load(place, "odd"), "/x")
    assert routes_of(place) == ["None"]
