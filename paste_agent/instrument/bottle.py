"""Bottle: the rule that matched as the route, a span for the callback with its plugins, and errors that it turns into
responses.

Tested with 0.12 and 0.13. A route that was asked before the agent came has no span.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

from paste_agent.instrument.views import called, is_http_answer, name_of, note, replace, told
from paste_agent.transaction import TRANSACTION_KEY, current

#: `<name>`, `<name:filter>`, `<name:re:expression>` and `<:re:expression>`.
_WILDCARD = re.compile(r"<(\w*)(?::(\w*)(?::(?:\\.|[^\\>])+)?)?>")
#: The same as it was written before: `:name` and `:name#expression#`.
_OLD = re.compile(r":(\w*)#(?:\\.|[^\\#])+#")


def install(module: ModuleType) -> None:
    """Wrap the router, the making of callbacks, and what turns results into responses. A second call does nothing."""
    response = module.HTTPResponse

    def is_answer(error: BaseException) -> bool:
        return (isinstance(error, response) and error.status_code < 500) or is_http_answer(error)

    replace(
        (module.Router, "match", _routing),
        (module.Route, "_make_callback", lambda original: _viewing(original, is_answer)),
        (module.Bottle, "_cast", lambda original: _handling(original, module.HTTPError)),
    )


def _routing(original: Callable[..., Any]) -> Callable[..., Any]:
    def match(self: Any, environ: Any, *args: Any, **kwargs: Any) -> Any:
        found = original(self, environ, *args, **kwargs)
        if current.get() is not None:
            told("route of Bottle", _tell, environ, found)
        return found

    return match


def _tell(environ: Any, found: Any) -> None:
    transaction = environ.get(TRANSACTION_KEY)
    rule = getattr(found[0], "rule", None)
    if transaction is not None and isinstance(rule, str):
        transaction.route = _route(rule)


@functools.lru_cache(maxsize=2048)
def _route(rule: str) -> str:
    """The rule without regular expressions; a wildcard without a name is a star."""
    return _WILDCARD.sub(_wildcard, _OLD.sub(lambda found: f":{found[1]}" if found[1] else "*", rule))


def _wildcard(found: re.Match[str]) -> str:
    name, kind = found[1], found[2]
    if not name:
        return "*"
    return f"<{name}:{kind}>" if kind and kind != "re" else f"<{name}>"


def _viewing(original: Callable[..., Any], is_answer: Callable[[BaseException], bool]) -> Callable[..., Any]:
    def _make_callback(self: Any, *args: Any, **kwargs: Any) -> Any:
        made = original(self, *args, **kwargs)
        if getattr(self.callback, "__name__", "") == "mountpoint_wrapper":  # another application, with spans of its own
            return made
        what = told("view of Bottle", name_of, self.callback)
        if what is None:
            return made

        @functools.wraps(made)
        def call(*args: Any, **kwargs: Any) -> Any:
            if current.get() is None:
                return made(*args, **kwargs)
            return called(is_answer, what, made, *args, **kwargs)

        return call

    return _make_callback


def _handling(original: Callable[..., Any], error_class: Any) -> Callable[..., Any]:
    def _cast(self: Any, out: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(out, error_class):
            error = getattr(out, "exception", None)
            if isinstance(error, BaseException):
                note(error, getattr(out, "status_code", None))
            elif out.__traceback__ is not None:  # raised itself, with a status
                note(out, out.status_code, is_answer=lambda _: out.status_code < 500)
        return original(self, out, *args, **kwargs)

    return _cast
