"""Flask: the rule that matched as the route, a span for the view, and errors that it turns into responses.

Tested with 2.2 and 3.1.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

from paste_agent.instrument.views import Named, called, is_http_answer, name_of, note, replace, told
from paste_agent.transaction import TRANSACTION_KEY, current

_CONVERTER = re.compile(r"<(\w+)\((?:[^()'\"]|'[^']*'|\"[^\"]*\"|\([^()]*\))*\):(\w+)>")


def install(module: ModuleType) -> None:
    """Wrap what every application calls of itself, and listen for errors. A second call does nothing."""
    flask = module.Flask
    replace(
        (flask, "full_dispatch_request", lambda original: _routing(original, module)),
        (flask, "dispatch_request", lambda original: _viewing(original, module)),
        (flask, "handle_user_exception", _handling),
        (flask, "handle_exception", _failing),
    )
    try:
        module.got_request_exception.connect(_told)  # extensions that handle errors by themselves send it
    except RuntimeError:  # there are no signals without blinker, which Flask did not always bring
        pass


def _routing(original: Callable[..., Any], module: ModuleType) -> Callable[..., Any]:
    def full_dispatch_request(self: Any, *args: Any, **kwargs: Any) -> Any:
        if current.get() is not None:
            told("route of Flask", _tell, module.request)
        return original(self, *args, **kwargs)

    return full_dispatch_request


def _tell(request: Any) -> None:
    transaction = request.environ.get(TRANSACTION_KEY)
    rule = request.url_rule
    if transaction is not None and rule is not None:
        transaction.route = _route(rule.rule)


@functools.lru_cache(maxsize=2048)
def _route(rule: str) -> str:
    """The rule without the arguments of its converters, which may be regular expressions."""
    return _CONVERTER.sub(r"<\1:\2>", rule)


def _viewing(original: Callable[..., Any], module: ModuleType) -> Callable[..., Any]:
    def dispatch_request(self: Any, *args: Any, **kwargs: Any) -> Any:
        if current.get() is None:
            return original(self, *args, **kwargs)
        what = told("view of Flask", _name_of, self, module.request)
        return called(is_http_answer, what, original, self, *args, **kwargs)

    return dispatch_request


def _name_of(app: Any, request: Any) -> Named | None:
    rule = request.url_rule
    view = app.view_functions.get(rule.endpoint) if rule is not None else None
    if view is None:
        return None
    kind = getattr(view, "view_class", None)
    if kind is None:
        return name_of(view)
    method = request.method.lower()
    if method == "head" and not hasattr(kind, "head"):
        method = "get"
    return name_of(kind, method if hasattr(kind, method) else "dispatch_request")


def _handling(original: Callable[..., Any]) -> Callable[..., Any]:
    def handle_user_exception(self: Any, *args: Any, **kwargs: Any) -> Any:
        error = kwargs.get("e", args[-1] if args else None)  # some versions pass a context before it
        result = original(self, *args, **kwargs)
        if isinstance(error, BaseException):
            note(error, lambda: _status_of(result))
        return result

    return handle_user_exception


def _failing(original: Callable[..., Any]) -> Callable[..., Any]:
    def handle_exception(self: Any, *args: Any, **kwargs: Any) -> Any:
        error = kwargs.get("e", args[-1] if args else None)
        if isinstance(error, BaseException):
            note(error)
        return original(self, *args, **kwargs)

    return handle_exception


def _told(sender: Any, exception: Any = None, **more: Any) -> None:
    if isinstance(exception, BaseException):
        note(exception)


def _status_of(result: Any) -> Any:
    """Of whatever an error handler may return: a response, a body, or a tuple of body, status, headers."""
    code = getattr(result, "status_code", None)
    if code is not None:
        return code
    code = getattr(result, "code", None)
    if isinstance(code, int):
        return code
    if isinstance(result, tuple) and len(result) > 1 and isinstance(result[1], (int, str)):
        return result[1]
    return getattr(result[0], "status_code", 200) if isinstance(result, tuple) and result else 200
