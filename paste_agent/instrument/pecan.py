"""Pecan: the way through the controllers as the route, a span for the controller's method with its template, and errors
that a hook answers, or that one of Pecan's own layers makes a page of.

A route has the names of controllers and of their methods, and of the method's arguments: `/books/{id}`. Other pieces of
the path, as `_lookup` and `_route` take them, are stars.

Tested with 1.5 and 1.8.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from paste_agent.instrument.views import called, is_http_answer, name_of, note, replace, told
from paste_agent.transaction import TRANSACTION_KEY, current

_MAX_PIECES = 32


def install(module: ModuleType) -> None:
    """Wrap what every application calls of itself. A second call does nothing."""
    base, routing = module.PecanBase, module.lookup_controller.__globals__
    replace(
        (base, "find_controller", lambda original: _routing(original, routing)),
        (base, "invoke_controller", _viewing),
        (base, "handle_hooks", _handling),
    )


def _routing(original: Callable[..., Any], routing: dict[str, Any]) -> Callable[..., Any]:
    def find_controller(self: Any, state: Any, *args: Any, **kwargs: Any) -> Any:
        found = original(self, state, *args, **kwargs)
        if current.get() is not None:
            request = state.request
            transaction = request.environ.get(TRANSACTION_KEY)
            # What is asked once more, by another path, is the page that tells of an error.
            if transaction is not None and "pecan.recursive.old_path_info" not in request.environ:
                custom = routing.get("__custom_routes__", {})
                transaction.route = told("route of Pecan", _route_of, self.root, state, custom)
        return found

    return find_controller


def _route_of(root: Any, state: Any, custom: Any) -> str:
    """The pieces of the path that are names in the code; for those behind the last of them, names of arguments."""
    method = state.controller
    owner = getattr(method, "__self__", None)
    told = state.request.pecan
    path = told["routing_path"].strip("/")
    extension = told.get("extension")
    if extension and path.endswith(extension):
        path = path[: -len(extension)]
    pieces: list[str] = []
    values = outer = 0
    node = root
    for piece in path.split("/")[:_MAX_PIECES] if path else ():
        for holder in (node, owner):
            name = custom.get((holder.__class__, piece), piece)
            inner = getattr(holder, name, None) if not name.startswith("_") else None
            if inner is not None and holder is not None and _is_way(inner):
                pieces.append(piece)
                node, outer, values = inner, outer + values, 0
                break
        else:
            values += 1
            if values == 1 or pieces[-1] != "*":
                pieces.append("*")
    if values:
        # A REST controller's methods take the values of those around it too.
        pieces[-1:] = _arguments(method, values, outer if hasattr(owner, "_route") else 0)
    return "/" + "/".join(pieces)


def _is_way(inner: Any) -> bool:
    """A method that is exposed, or another controller; no text, and nothing else that an object happens to have."""
    return getattr(inner, "exposed", False) is True or (hasattr(inner, "__dict__") and not callable(inner))


def _arguments(method: Any, values: int, outer: int) -> list[str]:
    """Names of the last pieces. outer: so many arguments have been taken from before."""
    code = getattr(method, "__code__", None) or getattr(getattr(method, "__func__", None), "__code__", None)
    function = getattr(method, "__func__", method)
    names = code.co_varnames[1 : code.co_argcount] if code is not None else ()
    named = names[outer : outer + values]
    if function.__name__.startswith("_") or len(named) < values:
        return ["*"]
    return [f"{{{name}}}" for name in named]


def _is_answer(error: BaseException) -> bool:
    """A response, or that another path of the same application is to answer."""
    return type(error).__name__ == "ForwardRequestException" or is_http_answer(error)


def _viewing(original: Callable[..., Any]) -> Callable[..., Any]:
    def invoke_controller(self: Any, controller: Any, *args: Any, **kwargs: Any) -> Any:
        if current.get() is None:
            return original(self, controller, *args, **kwargs)
        return called(
            _is_answer, told("view of Pecan", name_of, controller), original, self, controller, *args, **kwargs
        )

    return invoke_controller


def _handling(original: Callable[..., Any]) -> Callable[..., Any]:
    def handle_hooks(self: Any, hooks: Any, hook_type: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, hooks, hook_type, *args, **kwargs)
        if hook_type == "on_error" and args and isinstance(args[-1], BaseException):
            note(args[-1], lambda: getattr(result, "status_int", 500))
        return result

    return handle_hooks
