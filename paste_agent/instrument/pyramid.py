"""Pyramid, and what is built upon it, as Cornice is: the route, a span for the view and one for its renderer, and
errors that an exception view has answered. Pyramid leaves nothing of it in the environ.

All of it is found while the request runs: an application may have been configured before there was an agent. Tweens
have no spans: each is around all that follows, so that there would be as many more on every request, and one name for
the time of many. Cornice needs no more than Pyramid: its services are routes.

Tested with Pyramid 1.10, 2.0 and 2.1, Cornice 5.2 and 6.1.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

from paste_agent import spans
from paste_agent.inside import TEMPLATE
from paste_agent.instrument.views import RENDERER, Named, called, is_http_answer, name_of, named, note, replace, told
from paste_agent.naming import MAX_ROUTE_LENGTH, without_expressions
from paste_agent.raised import type_name
from paste_agent.transaction import TRANSACTION_KEY, current

#: On a view: the one that has a span around it.
_SEEN = "_paste_agent_seen"
#: On a request: a view was found for it.
_FOUND = "_paste_agent_found"
_OWN_EXCEPTION_VIEW = "default_exceptionresponse_view"
_METHOD = re.compile(r"(?:method|attr) (\w+) of ")


def install(module: ModuleType) -> None:
    """Wrap what every router and every renderer looks up at each request. A second call does nothing."""
    # By module: while one of them is imported another may be half done.
    if module.__name__ == "pyramid.router":
        replace((module.Router, "invoke_request", _routed))
    elif module.__name__ == "pyramid.renderers":
        replace((module.RendererHelper, "render", _rendering))
    else:
        from pyramid.exceptions import PredicateMismatch

        seen = functools.partial(_seen, PredicateMismatch)
        if module.__name__ == "pyramid.config.views":
            replace((module.MultiView, "get_views", lambda original: _choosing(original, seen)))
        else:
            replace(
                (module, "_find_views", lambda original: _finding(original, seen)),
                (module.ViewMethodsMixin, "invoke_exception_view", _noting),
            )


# -- the route -----------------------------------------------------------------------------------------------------


def _routed(original: Callable[..., Any]) -> Callable[..., Any]:
    def invoke_request(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        transaction = request.environ.get(TRANSACTION_KEY)
        if transaction is None:
            return original(self, request, *args, **kwargs)
        around = getattr(transaction, "pending", None)
        transaction.pending = (_route_of, request)
        try:
            return original(self, request, *args, **kwargs)
        finally:
            # A subrequest that shares the environ ends before the request that made it, which has the last word.
            transaction.route = told("route of Pyramid", _route_of, request) or transaction.route
            transaction.pending = around  # the request refers to the transaction: no circle may be left

    return invoke_request


def _route_of(request: Any) -> str | None:
    """The pattern of the matched route; for a traversed resource the name of the view that was found for it.

    A view's name comes from the URL, so it counts only once a view of that name was found: it is then called.
    """
    attributes = request.__dict__
    pattern = getattr(attributes.get("matched_route"), "pattern", None)
    traversed = attributes.get("view_name")
    if pattern is not None and "*traverse" not in pattern:
        return _slashed(pattern)
    if _FOUND not in attributes or traversed is None:
        return _slashed(pattern) if pattern is not None else None
    return _slashed(f"{pattern or '*traverse'}/{traversed}" if traversed else pattern or "*traverse")


@functools.lru_cache(maxsize=1024)
def _slashed(pattern: str) -> str:
    pattern = without_expressions(pattern)
    return (pattern if pattern.startswith("/") else f"/{pattern}")[:MAX_ROUTE_LENGTH]


# -- views ---------------------------------------------------------------------------------------------------------


def _finding(original: Callable[..., Any], seen: Callable[[Any], Any]) -> Callable[..., Any]:
    def _find_views(*args: Any, **kwargs: Any) -> Any:
        views = original(*args, **kwargs)
        return views if current.get() is None else [seen(view) for view in views]

    return _find_views


def _choosing(original: Callable[..., Any], seen: Callable[[Any], Any]) -> Callable[..., Any]:
    """Of the views that differ by their predicates, each by itself."""

    def get_views(self: Any, request: Any) -> Any:
        views = original(self, request)
        return views if current.get() is None else [(order, seen(view), *rest) for order, view, *rest in views]

    return get_views


def _seen(mismatch: type[Exception], view: Any) -> Any:
    """The view with a span around it; itself where it stands for several, or is none that Pyramid made."""
    if view.__class__ is not FunctionType:
        return view
    known = view.__dict__.get(_SEEN)
    if known is not None and known.__wrapped__ is view:
        return known
    what = told("view of Pyramid", _name_of, view)
    if what is None:
        return view
    made: Any = functools.wraps(view)(_spanned(mismatch, what, view))
    permissive = view.__dict__.get("__call_permissive__")
    if permissive is not None:
        made.__call_permissive__ = _spanned(mismatch, what, permissive)
    setattr(view, _SEEN, made)
    return made


def _spanned(mismatch: type[Exception], what: Named, view: Any) -> Any:
    def call(context: Any, request: Any) -> Any:
        span = spans.begin(what.category, what.text)
        if span is None:
            return view(context, request)
        failed, is_chosen = None, True
        attributes = request.__dict__
        # A view for an exception may belong to a path that leads nowhere, which must not become a route.
        tells = _FOUND not in attributes and attributes.get("exception") is None
        if tells:
            attributes[_FOUND] = True
        try:
            return view(context, request)
        except mismatch:
            is_chosen = False
            raise
        except BaseException as error:
            failed = None if is_http_answer(error) else type_name(error)
            raise
        finally:
            spans.end(span, what.name, None, failed, what.attributes)
            if not is_chosen:
                _forget(span)
                if tells:
                    attributes.pop(_FOUND, None)

    return call


def _forget(span: spans.Span) -> None:
    """The view's predicates did not hold: it was asked, and not called. What they did inside is left in the trace."""
    inside = span.transaction.inside
    finished = inside.finished if inside is not None else []
    if finished and finished[-1][0] == span.number and (len(finished) == 1 or finished[-2][1] != span.number):
        finished.pop()


def _name_of(view: Any) -> Named | None:
    attributes = view.__dict__
    original = attributes.get("__original_view__", view)
    if getattr(original, "__name__", "") == _OWN_EXCEPTION_VIEW:
        return None
    method = _METHOD.match(str(attributes.get("__text__", "")))
    name = method[1] if method else None
    if getattr(original, "__module__", "") == "cornice.service":
        original, name = _of_cornice(original)
    return name_of(original, name if name != "__call__" else None)


def _of_cornice(view: Any) -> tuple[Any, str | None]:
    """The class and the method that Cornice calls for a resource; the view itself where it is something else."""
    try:
        held = dict(zip(view.__code__.co_freevars, [cell.cell_contents for cell in view.__closure__], strict=True))
        return held["args"]["klass"], str(getattr(held["view"], "__name__", held["view"])).lower()
    except Exception:  # not as it was
        return view, None


# -- errors, renderers ---------------------------------------------------------------------------------------------


def _noting(original: Callable[..., Any]) -> Callable[..., Any]:
    def invoke_exception_view(self: Any, *args: Any, **kwargs: Any) -> Any:
        response = original(self, *args, **kwargs)
        # As the original takes it: exc_info first, then the request that has it from now on.
        request = kwargs.get("request") or (args[1] if len(args) > 1 else None) or self
        error = request.__dict__.get("exception")
        if isinstance(error, BaseException):
            note(error, lambda: getattr(response, "status_int", None))
        return response

    return invoke_exception_view


def _rendering(original: Callable[..., Any]) -> Callable[..., Any]:
    def render(self: Any, *args: Any, **kwargs: Any) -> Any:
        if current.get() is None:
            return original(self, *args, **kwargs)
        kind = str(self.type)
        if not kind.startswith("."):
            return called(is_http_answer, _renderer(kind), original, self, *args, **kwargs)
        name = str(self.name)
        span = spans.begin(TEMPLATE, name.encode("utf-8", "replace"))
        if span is None:
            return original(self, *args, **kwargs)
        span.attributes = RENDERER
        failed = None
        try:
            return original(self, *args, **kwargs)
        except BaseException as error:
            failed = type_name(error)
            raise
        finally:
            spans.end(span, name, None, failed)

    return render


@functools.lru_cache(maxsize=64)
def _renderer(kind: str) -> Named:
    return named(f"renderer {kind}")._replace(attributes=None)
