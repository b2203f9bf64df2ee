"""Exceptions that leave the application: as which status they count, and when they are errors."""

from __future__ import annotations

import io
import sys
import urllib.error
from typing import Any
from wsgiref.handlers import SimpleHandler

import pytest
from paste import httpexceptions
from paste.exceptions.errormiddleware import ErrorMiddleware
from paste.translogger import TransLogger
from paste.urlmap import URLMap
from webob import exc

from tests.filtering import (
    App,
    Environ,
    Measured,
    environ_of,
    key,
    raises_after_start,
    raises_in_call,
    raises_in_first_chunk,
    raises_in_iteration,
    serve,
)


class ZopesOwn(Exception):
    __module__ = "zExceptions"


class NotFoundLikeZope(ZopesOwn):
    def getStatus(self) -> int:
        return 404


class OddLikeZope(ZopesOwn):
    def __init__(self, answer: object) -> None:
        self.answer = answer

    def getStatus(self) -> object:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    "error", [exc.HTTPNotFound, httpexceptions.HTTPNotFound, NotFoundLikeZope], ids=["webob", "paste", "zope"]
)
@pytest.mark.parametrize("place", [raises_in_call, raises_after_start, raises_in_first_chunk])
def test_a_raised_404_is_a_404_and_no_error(service: Measured, place: Any, error: Any) -> None:
    with pytest.raises(error):
        serve(service.around(place(error())))
    assert service.only() == key(status=404)


def test_a_404_raised_behind_the_first_bytes_is_an_error(service: Measured) -> None:
    with pytest.raises(exc.HTTPNotFound):
        serve(service.around(raises_in_iteration(exc.HTTPNotFound())))
    assert service.only() == key(status=200, error="webob.exc.HTTPNotFound")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (exc.HTTPServiceUnavailable(), 503),
        (urllib.error.HTTPError("http://other/", 404, "no", {}, None), 500),  # type: ignore[arg-type]
        (OddLikeZope("404"), 500),
        (OddLikeZope(99), 500),
        (OddLikeZope(None), 500),
    ],
    ids=["503 of webob", "another server's 404", "text", "no status", "None"],
)
def test_other_raised_statuses_are_errors(service: Measured, error: Exception, status: int) -> None:
    with pytest.raises(type(error)):
        serve(service.around(raises_in_call(error)))
    kind = type(error)
    assert service.only() == key(status=status, error=f"{kind.__module__}.{kind.__qualname__}")


class OfAnother(Exception):
    """What another service has answered: no status of ours."""

    def getStatus(self) -> int:
        return 404


class Delegating(Exception):
    """Whatever is asked of it, it looks up elsewhere; as clients of APIs do."""

    def __getattr__(self, name: str) -> Any:
        return {"reason": "quota"}[name]


@pytest.mark.parametrize("error", [OfAnother(), Delegating("x")], ids=["of another", "delegating"])
def test_what_an_exception_of_the_application_looks_like_is_no_status(service: Measured, error: Exception) -> None:
    with pytest.raises(type(error)):
        serve(service.around(raises_in_call(error)))
    assert service.only() == key(status=500, error=f"{__name__}.{type(error).__name__}")
    assert len(service.kept()) == 1


def mounted(app: Any) -> App:
    mounts = URLMap()
    mounts["/x"] = app
    return mounts


def answered_by_the_application(app: App) -> App:
    def outer(environ: Environ, start_response: Any) -> Any:
        try:
            return app(environ, start_response)
        except exc.HTTPException as error:
            again = sys.exc_info()
            return error(environ, lambda status, headers: start_response(status, headers, again))

    return outer


@pytest.mark.parametrize(
    ("above", "status"),
    [
        (lambda app: app, 500),
        (mounted, 500),
        (lambda app: TransLogger(app, setup_console_handler=False), 500),
        (lambda app: ErrorMiddleware(app, debug=False), 500),
        (exc.HTTPExceptionMiddleware, 404),
        (answered_by_the_application, 404),
    ],
    ids=["the server", "a composite", "a log", "a page for errors", "responses", "the application's own"],
)
@pytest.mark.parametrize("place", [raises_in_call, raises_after_start])
def test_a_raised_404_is_what_is_made_of_it(service: Measured, place: Any, above: Any, status: int) -> None:
    """By whoever stands between the agent and the server, or by the server, which makes an error of everything."""
    said, errors = io.BytesIO(), io.StringIO()
    app = above(service.around(place(exc.HTTPNotFound())))
    SimpleHandler(io.BytesIO(), said, errors, environ_of(PATH_INFO="/x/y", SERVER_PROTOCOL="HTTP/1.1")).run(app)
    assert said.getvalue().startswith(f"HTTP/1.0 {status} ".encode()), errors.getvalue()
    assert service.only() == key(status=status, error="webob.exc.HTTPNotFound" if status == 500 else None)


class Meta(type):
    """Its classes have no module that one could look at."""

    def __getattribute__(cls, name: str) -> Any:
        if name in ("__module__", "__mro__"):
            raise RuntimeError
        return super().__getattribute__(name)


class Odd(Exception, metaclass=Meta):
    pass


def test_an_exception_that_cannot_be_looked_at_is_an_error(service: Measured) -> None:
    with pytest.raises(Odd):
        serve(service.around(raises_after_start(Odd())))
    assert service.only() == key(status=500, error="_OTHER")


def test_a_status_that_cannot_be_told_is_counted(service: Measured) -> None:
    error = OddLikeZope(ZeroDivisionError())
    with pytest.raises(OddLikeZope):
        serve(service.around(raises_in_call(error)))
    assert sum(service.counts().values()) == 1
