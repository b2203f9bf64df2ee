"""Django: the pattern that matched as the route, a span for the view and one for each template, and errors that it
turns into responses.

Tested with 4.2, 5.2 and 6.1.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

from paste_agent.instrument.views import (
    Named,
    called,
    is_http_answer,
    name_of,
    note,
    rendering,
    replace,
    template,
    told,
)
from paste_agent.transaction import TRANSACTION_KEY, current

_QUANTIFIERS = "+*?"
#: What stands for a place in the text, and not for characters of it.
_PLACES = "AZbB"
_MAX_DEPTH = 20


def install(module: ModuleType) -> None:
    """Wrap what the handler calls of itself, or what templates do. A second call does nothing."""
    if module.__name__ == "django.template.base":
        replace((module.Template, "render", rendering(_rendered)))
        return
    handler = module.BaseHandler
    is_coroutine = getattr(module, "iscoroutinefunction", inspect.iscoroutinefunction)
    replace(
        (handler, "resolve_request", _routing),
        (handler, "make_view_atomic", lambda original: _viewing(original, is_coroutine)),
        (handler, "process_exception_by_middleware", _handling),
    )
    signals = import_module("django.core.signals")
    signals.got_request_exception.connect(_told, weak=False, dispatch_uid="paste_agent")


def _routing(original: Callable[..., Any]) -> Callable[..., Any]:
    def resolve_request(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        match = original(self, request, *args, **kwargs)
        if current.get() is not None:
            told("route of Django", _tell, request, match)
        return match

    return resolve_request


def _tell(request: Any, match: Any) -> None:
    transaction = request.META.get(TRANSACTION_KEY)
    route = getattr(match, "route", None)
    if transaction is not None and isinstance(route, str):
        transaction.route = _route(route)


def _viewing(original: Callable[..., Any], is_coroutine: Callable[[Any], bool]) -> Callable[..., Any]:
    def make_view_atomic(self: Any, view: Any, *args: Any, **kwargs: Any) -> Any:
        made = original(self, view, *args, **kwargs)
        if current.get() is None or is_coroutine(made):
            return made
        return functools.partial(_view, view, made)

    return make_view_atomic


def _view(view: Any, made: Any, request: Any, /, *args: Any, **kwargs: Any) -> Any:
    return called(_is_answer, told("view of Django", _name_of, view, request), made, request, *args, **kwargs)


def _name_of(view: Any, request: Any) -> Named:
    kind = getattr(view, "view_class", None) or getattr(view, "cls", None)
    if kind is None:
        return name_of(view)
    method = str(request.method).lower()
    actions = getattr(view, "actions", None)  # of a view set of the REST framework: by method
    if actions:
        return name_of(kind, actions.get(method) or "dispatch")
    if method == "head" and not hasattr(kind, "head"):
        method = "get"
    is_own = method in getattr(kind, "http_method_names", ()) and hasattr(kind, method)
    return name_of(kind, method if is_own else "dispatch")


def _is_answer(error: BaseException) -> bool:
    """Those that Django itself answers with a status below 500."""
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}
    return bool(names & _ANSWERS) or is_http_answer(error)


_ANSWERS = {
    "django.http.response.Http404",
    "django.core.exceptions.PermissionDenied",
    "django.core.exceptions.BadRequest",
    "django.core.exceptions.SuspiciousOperation",
    "django.http.multipartparser.MultiPartParserError",
}


def _handling(original: Callable[..., Any]) -> Callable[..., Any]:
    def process_exception_by_middleware(self: Any, exception: Any, *args: Any, **kwargs: Any) -> Any:
        response = original(self, exception, *args, **kwargs)
        if response is not None and isinstance(exception, BaseException):
            note(exception, lambda: getattr(response, "status_code", None), is_answer=_is_answer)
        return response

    return process_exception_by_middleware


def _told(sender: Any, **more: Any) -> None:
    error = sys.exc_info()[1]
    if error is not None:
        note(error, is_answer=_is_answer)


def _rendered(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Named:
    return template(getattr(args[0], "name", None))


# -- routes --------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=2048)
def _route(pattern: str) -> str:
    """A pattern of `path` as it is; of one of `re_path` what is constant in it, and the names of its groups.

    `^articles/(?P<year>[0-9]{4})/$` becomes `/articles/<year>/`.
    """
    text = _plain(pattern, 0, 0)[0]
    return text if text.startswith("/") else f"/{text}"


def _plain(pattern: str, at: int, depth: int) -> tuple[str, int]:
    """From `at` to the end of the group, or of all; the text, and where it ends."""
    parts: list[str] = []
    while at < len(pattern):
        char = pattern[at]
        at += 1
        if char == ")" and depth:
            break
        if char == "<":  # a converter
            end = pattern.find(">", at) + 1 or len(pattern)
            parts.append(pattern[at - 1 : end])
            at = end
        elif char == "(" and depth < _MAX_DEPTH:
            group, at = _group(pattern, at, depth)
            parts.append(group)
        elif char == "[":
            at = _end_of_set(pattern, at)
            parts.append("<var>")
        elif char == "\\" and at < len(pattern):
            escaped = pattern[at]
            at += 1
            parts.append("" if escaped in _PLACES else "<var>" if escaped.isalnum() else escaped)
        elif char == "{":
            at = pattern.find("}", at) + 1 or len(pattern)
        elif char not in "^$" + _QUANTIFIERS:
            parts.append(char)
    return "".join(parts), at


def _group(pattern: str, at: int, depth: int) -> tuple[str, int]:
    """What a group is called, and where it ends; `at`: behind its bracket."""
    inner, end = _plain(pattern, at, depth + 1)
    if pattern.startswith("?P<", at):
        return f"<{pattern[at + 3 : pattern.find('>', at)]}>", end
    if pattern.startswith("?:", at):
        return inner.partition(":")[2], end  # its question mark has been taken for a quantifier
    return "" if pattern.startswith("?", at) else "<var>", end


def _end_of_set(pattern: str, at: int) -> int:
    """Behind the bracket that ends a set of characters, whose first one may be a bracket."""
    at += 1 + pattern.startswith("^", at)
    while at < len(pattern) and pattern[at] != "]":
        at += 2 if pattern[at] == "\\" else 1
    return at + 1
