"""Chameleon: a span for the rendering of a template, and one for its compilation. What a macro of another template
renders is a part of the template that uses it.

Tested with 3.10, 4.0 and 4.6.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

from paste_agent.instrument.views import rendered, replace, template
from paste_agent.transaction import current


def install(module: ModuleType) -> None:
    """Wrap the two methods. A second call does nothing."""
    replace((module.BaseTemplate, "render", _rendering), (module.BaseTemplate, "cook", _compiling))


@functools.lru_cache(maxsize=512)
def _name_of(file: str) -> str:
    """The file and its directory: the rest of the path says where it is installed."""
    return "/".join(file.split("/")[-2:]) if file != "<string>" else "<template>"


def _rendering(original: Callable[..., Any]) -> Callable[..., Any]:
    def render(*args: Any, **kwargs: Any) -> Any:  # `self` may be a variable of the template
        if current.get() is None:
            return original(*args, **kwargs)
        return rendered(template(_name_of(str(args[0].filename))), original, *args, **kwargs)

    return render


def _compiling(original: Callable[..., Any]) -> Callable[..., Any]:
    def cook(self: Any, *args: Any, **kwargs: Any) -> Any:
        if current.get() is None:
            return original(self, *args, **kwargs)
        return rendered(template(f"compile {_name_of(str(self.filename))}"), original, self, *args, **kwargs)

    return cook
