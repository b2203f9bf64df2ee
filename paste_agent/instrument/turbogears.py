"""TurboGears 2: the way through the controllers as the route, a span for the action with its validation and its
template, and errors, which one of its own layers turns into responses.

A route has the names of controllers and of the action, and of the action's arguments: `/wiki/page/{name}`. What only
`_default` or a `*args` takes is a star.

Tested with 2.4 and 2.5.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from paste_agent.instrument.views import called, is_http_answer, name_of, note, replace, told
from paste_agent.transaction import TRANSACTION_KEY, current

#: In the environ: a second dispatch is that of the page which tells of an error.
_DISPATCHED = "paste_agent.dispatched"
#: Actions whose names are not in the path.
_UNNAMED = frozenset(("index", "_default", "get_one", "get_all", "get", "post", "put", "patch", "delete", "post_delete"))  # fmt: skip  # noqa: E501


def install(module: ModuleType) -> None:
    """Wrap what the root controller calls of itself. A second call does nothing."""
    if module.__name__ == "tg.controllers.dispatcher":
        replace((module.CoreDispatcher, "_get_dispatchable", _routing), (module.CoreDispatcher, "__call__", _failing))
    else:
        replace((module.DecoratedController, "_call", _viewing))


def _routing(original: Callable[..., Any]) -> Callable[..., Any]:
    def _get_dispatchable(self: Any, context: Any, *args: Any, **kwargs: Any) -> Any:
        state = original(self, context, *args, **kwargs)
        if current.get() is not None:
            environ = context.request.environ
            transaction = environ.get(TRANSACTION_KEY)
            if transaction is not None and _DISPATCHED not in environ:
                transaction.route = told("route of TurboGears", _route_of, state)
        return state

    return _get_dispatchable


def _route_of(state: Any) -> str | None:
    action = state.action
    if action is None:
        return None
    function = getattr(action, "__func__", action)
    remainder: Sequence[str] = state.remainder or ()
    path = state.path
    # Methods of a REST controller stand behind what they are asked of.
    is_last = bool(remainder) and bool(path) and path[-1] != remainder[-1]
    names = []
    controllers = state.controller_path
    for (_, outer), (location, controller) in itertools.pairwise(controllers):
        # What `_lookup` has made is at no attribute, and a piece of the path may be somebody's.
        is_attribute = getattr(outer, str(location), None) is controller
        names.append(str(location) if is_attribute else f"{{{type(controller).__name__}}}")
    return _joined(tuple(names), function, min(len(remainder), 8), is_last)


@functools.lru_cache(maxsize=2048)
def _joined(controllers: tuple[str, ...], function: Any, values: int, is_last: bool) -> str:
    name = getattr(function, "__name__", "_default")
    code = getattr(function, "__code__", None)
    arguments: tuple[str, ...] = ()
    if code is not None and name != "_default":
        arguments = code.co_varnames[1 : code.co_argcount]
    pieces = [f"{{{argument}}}" for argument in arguments[:values]]
    if values > len(pieces):
        pieces.append("*")
    named = [] if name in _UNNAMED else [name]
    return "/" + "/".join([*controllers, *pieces, *named] if is_last else [*controllers, *named, *pieces])


def _failing(original: Callable[..., Any]) -> Callable[..., Any]:
    def __call__(self: Any, environ: Any, *args: Any, **kwargs: Any) -> Any:
        if current.get() is None:
            return original(self, environ, *args, **kwargs)
        try:
            return original(self, environ, *args, **kwargs)
        except Exception as error:
            note(error)
            raise
        finally:
            environ[_DISPATCHED] = True

    return __call__


def _viewing(original: Callable[..., Any]) -> Callable[..., Any]:
    def _call(self: Any, action: Any, *args: Any, **kwargs: Any) -> Any:
        if current.get() is None:
            return original(self, action, *args, **kwargs)
        return called(
            is_http_answer, told("view of TurboGears", name_of, action), original, self, action, *args, **kwargs
        )

    return _call
