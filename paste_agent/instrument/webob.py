"""WebOb: a span for each function that `webob.dec.wsgify` makes an application or a filter of, as OpenStack's are.

There is no route: what is inside of it may have one.

Tested with 1.8.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from paste_agent.instrument.views import called, is_http_answer, name_of, note, replace, told
from paste_agent.transaction import current


def install(module: ModuleType) -> None:
    """Wrap `wsgify.call_func`, which every call of such a function passes. A second call does nothing."""
    answer = module.HTTPException

    def calling(original: Callable[..., Any]) -> Callable[..., Any]:
        def call_func(self: Any, *args: Any, **kwargs: Any) -> Any:
            if current.get() is None:
                return original(self, *args, **kwargs)
            try:
                return called(
                    is_http_answer, told("view of WebOb", name_of, self.func), original, self, *args, **kwargs
                )
            except answer as error:  # wsgify makes it the response
                note(error, getattr(error, "code", None))
                raise

        return call_func

    replace((module.wsgify, "call_func", calling))
