"""Falcon: the URI template as the route, a span for the responder, and errors that it turns into responses.

What a sink or a static route answers has no template, and no name.

Tested with 3.1 and 4.4.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

from paste_agent.instrument.views import called, is_http_answer, name_of, note, replace, status_code, told
from paste_agent.naming import without_expressions
from paste_agent.transaction import TRANSACTION_KEY, current


def install(module: ModuleType) -> None:
    """Wrap what every application asks of itself. A second call does nothing."""
    http_error, http_status = module.HTTPError, module.HTTPStatus

    def is_answer(error: BaseException) -> bool:
        if isinstance(error, http_status):
            return True
        if isinstance(error, http_error):
            code = status_code(getattr(error.status, "value", error.status))
            return code is not None and code < 500
        return is_http_answer(error)

    replace(
        (module.App, "_get_responder", lambda original: _routing(original, is_answer)),
        (module.App, "_handle_exception", lambda original: _handling(original, is_answer)),
    )


def _routing(original: Callable[..., Any], is_answer: Callable[[BaseException], bool]) -> Callable[..., Any]:
    def _get_responder(self: Any, req: Any, *args: Any, **kwargs: Any) -> Any:
        found = original(self, req, *args, **kwargs)
        # An application of the other kind, ASGI's, has no environ.
        if current.get() is None or (environ := getattr(req, "env", None)) is None:
            return found
        return told("route of Falcon", _spanned, is_answer, environ, found) or found

    return _get_responder


def _spanned(is_answer: Callable[[BaseException], bool], environ: Any, found: Any) -> Any:
    """What was found, with a span around the responder where it is the application's; None: as it is."""
    transaction = environ.get(TRANSACTION_KEY)
    if transaction is None:
        return None
    responder, params, resource, uri_template = found
    if isinstance(uri_template, str):
        transaction.route = without_expressions(uri_template)
    if resource is None or getattr(responder, "__self__", None) is not resource:
        return None
    return functools.partial(called, is_answer, name_of(responder), responder), params, resource, uri_template


def _handling(original: Callable[..., Any], is_answer: Callable[[BaseException], bool]) -> Callable[..., Any]:
    def _handle_exception(self: Any, req: Any, resp: Any, ex: Any, *args: Any, **kwargs: Any) -> Any:
        handled = original(self, req, resp, ex, *args, **kwargs)
        if handled is True and isinstance(ex, BaseException):
            note(ex, lambda: getattr(resp.status, "value", resp.status), is_answer=is_answer)
        return handled

    return _handle_exception
