"""Zope behind the agent: what is published, and errors. Zope is not among the libraries that the tests need."""

# Zope need not be there
from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ZPublisher")

from OFS.SimpleItem import SimpleItem
from Products.Five.browser import BrowserView
from zope.component import getGlobalSiteManager, provideAdapter
from zope.interface import Interface, implementedBy
from zope.publisher.interfaces.browser import IDefaultBrowserLayer
from ZPublisher.httpexceptions import HTTPExceptionHandler

from paste_agent.recorder.writer import Recorder
from paste_agent.transaction import TRANSACTION_KEY
from tests.instrument.asking import ask, instrumented

HERE = __name__
ADMIN = "Basic " + base64.b64encode(b"admin:admin").decode()


class Shop(SimpleItem):  # type: ignore[misc]
    """An object of an application."""

    def __init__(self, id: str) -> None:
        self.id = id

    def index_html(self, REQUEST: Any) -> str:
        """A method that is published."""
        return str(REQUEST.environ[TRANSACTION_KEY].route_so_far())

    def failing(self) -> str:
        """Raises."""
        raise ZeroDivisionError

    def item(self, id: str) -> str:
        """Has an argument."""
        return id


class View(BrowserView):  # type: ignore[misc]
    """As a `browser:page` of ZCML makes it."""

    __name__ = "look"

    def __call__(self) -> str:
        return "looked"


@pytest.fixture(scope="module")
def zope(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The publisher with an empty database in memory, an administrator, and a folder with what a site has."""
    import Zope2
    from Zope2.Startup.run import make_wsgi_app

    home = tmp_path_factory.mktemp("zope")
    for name in ("var", "etc", "Extensions"):
        (home / name).mkdir()
    (home / "etc" / "site.zcml").write_text(
        '<configure xmlns="http://namespaces.zope.org/zope"><include package="Products.Five"/></configure>'
    )
    (home / "zope.conf").write_text(
        f"instancehome {home}\n<zodb_db main>\n<mappingstorage>\n</mappingstorage>\nmount-point /\n</zodb_db>\n"
    )
    (home / "inituser").write_text("admin:admin\n")
    application: Any = make_wsgi_app({}, str(home / "zope.conf"))
    import transaction

    root = Zope2.app()
    for id in ("shop", "shop-of-ann"):
        root._setObject(id, Shop(id))
    root.manage_addDTMLMethod("page-of-ann", file="page")
    root.acl_users._doAddUser("admin", "admin", ["Manager"], [])
    transaction.commit()
    root._p_jar.close()
    provideAdapter(View, (Interface, IDefaultBrowserLayer), Interface, "look")
    return application


@pytest.fixture(autouse=True)
def patched(zope: Any) -> Iterator[None]:
    with instrumented("zope"):
        yield


@pytest.mark.parametrize(
    ("path", "route", "name"),
    [
        ("/shop", "/*traverse/index_html", f"{HERE}:Shop.index_html"),
        ("/shop-of-ann", "/*traverse/index_html", f"{HERE}:Shop.index_html"),
        ("/shop/item?id=17", "/*traverse/item", f"{HERE}:Shop.item"),
        ("/shop/shop/shop/item?id=17", "/*traverse/item", f"{HERE}:Shop.item"),
        ("/shop/@@look", "/*traverse/@@look", f"{HERE}:View"),
        ("/page-of-ann", "/*traverse/{DTMLMethod}", "OFS.DTMLMethod:DTMLMethod"),
        (
            "/manage_main",
            "/*traverse/manage_main",
            "Products.PageTemplates.PageTemplateFile:PageTemplateFile manage_main",
        ),
    ],
)
def test_what_is_published(keeping: Recorder, zope: Any, path: str, route: str, name: str) -> None:
    asked = ask(keeping, zope, path, HTTP_AUTHORIZATION=ADMIN)
    assert (asked.status, asked.route, asked.names, asked.errors) == ("200 OK", route, [name], [])


def test_the_route_is_known_while_it_runs(keeping: Recorder, zope: Any) -> None:
    assert ask(keeping, zope, "/shop").body == b"/*traverse/index_html"


def test_what_is_not_found_has_no_route(keeping: Recorder, zope: Any) -> None:
    for path in ("/nowhere/17", "/shop/attack"):
        asked = ask(keeping, HTTPExceptionHandler(zope), path)
        assert (asked.status, asked.route, asked.names, asked.errors) == ("404 Not Found", None, [], [])
    asked = ask(keeping, HTTPExceptionHandler(zope), "/manage_main", validate=False)  # it sends no type
    assert (asked.status, asked.route, asked.errors) == ("401 Unauthorized", None, [])


def test_an_error_is_seen_once(keeping: Recorder, zope: Any) -> None:
    asked = ask(keeping, zope, "/shop/failing")
    assert isinstance(asked.raised, ZeroDivisionError)
    assert (asked.route, asked.error_type) == ("/*traverse/failing", "ZeroDivisionError")
    assert [(one.type, one.place) for one in asked.errors] == [("ZeroDivisionError", f"{HERE}.failing")]


def test_an_error_that_a_view_answers_is_seen(keeping: Recorder, zope: Any, tmp_path: Path) -> None:

    class Apology:
        def __init__(self, context: Any, request: Any) -> None:
            self.request = request

        def __call__(self) -> str:
            return "sorry"

    manager = getGlobalSiteManager()
    where = (implementedBy(ZeroDivisionError), IDefaultBrowserLayer)
    manager.registerAdapter(Apology, where, Interface, "index.html")
    try:
        asked = ask(keeping, zope, "/shop/failing")
    finally:
        manager.unregisterAdapter(Apology, where, Interface, "index.html")
    assert (asked.raised, asked.body) == (None, b"sorry")
    assert (asked.route, asked.error_types) == ("/*traverse/failing", [("ZeroDivisionError", False)])
