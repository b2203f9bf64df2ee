"""Django behind the agent: routes, views, templates, and errors that it turns into responses."""

# Django has to be told its settings before more of it is imported
from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import django
import pytest
from django.conf import settings

if not settings.configured:
    settings.configure(
        ROOT_URLCONF="django_urls_of_this_test",
        ALLOWED_HOSTS=["*"],
        SECRET_KEY="of a test",
        MIDDLEWARE=[f"{__name__}.answers_key_errors"],
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "OPTIONS": {
                    "loaders": [
                        (
                            "django.template.loaders.locmem.Loader",
                            {"page.html": "<p>{{ x }}</p>{% include 'part.html' %}", "part.html": "part"},
                        )
                    ]
                },
            }
        ],
        DATABASES={},
        LOGGING_CONFIG=None,
    )
    django.setup()

from django.core.exceptions import PermissionDenied
from django.core.wsgi import get_wsgi_application
from django.http import Http404, HttpResponse
from django.template.response import TemplateResponse
from django.urls import include, path, re_path
from django.views import View

from paste_agent.inside import TEMPLATE
from paste_agent.instrument import django as instrument_django
from paste_agent.recorder.writer import Recorder
from paste_agent.transaction import TRANSACTION_KEY
from tests.instrument.asking import ask, instrumented

HERE = __name__


@pytest.fixture(autouse=True)
def patched() -> Iterator[None]:
    with instrumented("django"):
        yield


class OutOfStock(Exception):
    pass


def item(request: Any, pk: int) -> Any:
    return HttpResponse(str(request.META[TRANSACTION_KEY].route_so_far()))


def broken(request: Any) -> Any:
    raise OutOfStock


def absent(request: Any) -> Any:
    raise Http404


def denied(request: Any) -> Any:
    raise PermissionDenied


def gone(request: Any) -> Any:
    raise KeyError("x")


def page(request: Any) -> Any:
    return TemplateResponse(request, "page.html", {"x": 1})


def named(request: Any, view: str, made: str, request_: str) -> Any:
    return HttpResponse(f"{view} {made} {request_}")


async def later(request: Any) -> Any:
    return HttpResponse("later")


class Things(View):
    def get(self, request: Any, **values: Any) -> Any:
        return HttpResponse("things")


class answers_key_errors:
    """A middleware of the kind that takes errors."""

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: Any) -> Any:
        return self.get_response(request)

    def process_exception(self, request: Any, exception: Exception) -> Any:
        return HttpResponse("gone", status=410) if isinstance(exception, KeyError) else None


urls: Any = ModuleType("django_urls_of_this_test")
urls.urlpatterns = [
    path("items/<int:pk>/", item),
    path("shop/", include([re_path(r"^things/(?P<year>[0-9]{4})/$", Things.as_view())])),
    path("broken", broken),
    path("absent", absent),
    path("denied", denied),
    path("gone", gone),
    path("page", page),
    path("later", later),
    path("named/<str:view>/<str:made>/<str:request_>/", named),
]
sys.modules[urls.__name__] = urls


def asked_of(keeping: Recorder, path: str, method: str = "GET") -> Any:
    return ask(keeping, get_wsgi_application(), path, method)


def test_a_view_has_its_name_and_its_route_while_it_runs(keeping: Recorder) -> None:
    asked = asked_of(keeping, "/items/17/")
    assert (asked.status, asked.route, asked.error_type) == ("200 OK", "/items/<int:pk>/", None)
    assert asked.body == b"/items/<int:pk>/"
    assert asked.names == [f"{HERE}.item"]
    assert asked.spans[0].attributes == {"code.function.name": f"{HERE}.item"}


@pytest.mark.parametrize(
    ("method", "path", "status", "route", "names"),
    [
        ("GET", "/shop/things/2020/", "200 OK", "/shop/things/<year>/", [f"{HERE}:Things.get"]),
        ("HEAD", "/shop/things/2020/", "200 OK", "/shop/things/<year>/", [f"{HERE}:Things.get"]),
        ("OPTIONS", "/shop/things/2020/", "200 OK", "/shop/things/<year>/", [f"{HERE}:Things.options"]),
        ("PUT", "/shop/things/2020/", "405 Method Not Allowed", "/shop/things/<year>/", [f"{HERE}:Things.dispatch"]),
        ("GET", "/shop/things/20/", "404 Not Found", None, ["<template>"]),
        ("GET", "/nowhere/17", "404 Not Found", None, ["<template>"]),
        ("GET", "/absent", "404 Not Found", "/absent", [f"{HERE}.absent", "<template>"]),
        ("GET", "/denied", "403 Forbidden", "/denied", [f"{HERE}.denied"]),
        ("GET", "/later", "200 OK", "/later", []),
    ],
)
def test_names_and_routes(
    keeping: Recorder, method: str, path: str, status: str, route: str | None, names: list[str]
) -> None:
    asked = asked_of(keeping, path, method)
    assert (asked.status, asked.route, asked.names, asked.errors) == (status, route, names, [])
    assert [span.failed for span in asked.spans] == [None] * len(asked.spans)


def test_errors_that_become_responses(keeping: Recorder) -> None:
    asked = asked_of(keeping, "/broken")
    assert (asked.status, asked.route) == ("500 Internal Server Error", "/broken")
    assert [(one.type, one.place, one.expected) for one in asked.errors] == [
        (f"{HERE}.OutOfStock", f"{HERE}.broken", False)
    ]
    asked = asked_of(keeping, "/gone")
    assert (asked.status, asked.error_types) == ("410 Gone", [("KeyError", True)])


def test_an_error_that_passes_is_counted_once(keeping: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "DEBUG_PROPAGATE_EXCEPTIONS", True)
    asked = asked_of(keeping, "/broken")
    assert isinstance(asked.raised, OutOfStock)
    assert asked.error_types == [(f"{HERE}.OutOfStock", False)]


def test_templates_have_spans(keeping: Recorder) -> None:
    asked = asked_of(keeping, "/page")
    assert asked.body == b"<p>1</p>part"
    view, outer, inner = asked.spans
    assert (view.name, outer.name, inner.name) == (f"{HERE}.page", "page.html", "part.html")
    assert (outer.category, inner.category, inner.parent) == (TEMPLATE, TEMPLATE, outer.number)


@pytest.mark.parametrize(
    ("pattern", "route"),
    [
        ("", "/"),
        ("items/<int:pk>/", "/items/<int:pk>/"),
        (r"^articles/(?P<year>[0-9]{4})/$", "/articles/<year>/"),
        (r"^a/(?P<x>(?:b|c)+)/(\d+)/\Z", "/a/<x>/<var>/"),
        (r"^blog/(?:page-(?P<n>\d+)/)?$", "/blog/page-<n>/"),
        (r"^file\.txt$", "/file.txt"),
        (r"^a/(?!b)(?P<rest>.*)$", "/a/<rest>"),
        (r"^a/[^/)]+/\w+$", "/a/<var>/<var>"),
        (r"^a/(?P<x>[)\]]{1,3})", "/a/<x>"),
        (r"^a/(?P<x>", "/a/<x>"),
        (r"^a/[", "/a/<var>"),
        ("a\\", "/a\\"),
        ("a/(" * 50, "/a/<var>"),
    ],
)
def test_a_pattern_without_its_expressions(pattern: str, route: str) -> None:
    assert instrument_django._route(pattern) == route


def test_a_view_may_name_its_arguments_as_it_likes(keeping: Recorder) -> None:
    asked = asked_of(keeping, "/named/a/b/c/")
    assert (asked.status[:3], asked.body) == ("200", b"a b c")
