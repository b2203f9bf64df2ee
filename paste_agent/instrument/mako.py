"""Mako: a span for the rendering of a template, and one for its compilation.

Tested with 1.2 and 1.4.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from paste_agent.instrument.views import rendered, replace, template
from paste_agent.transaction import current


def install(module: ModuleType) -> None:
    """Wrap the methods that render, and the functions that compile. A second call does nothing."""
    replace(
        (module.Template, "render", _rendering),
        (module.Template, "render_unicode", _rendering),
        (module, "_compile_text", _compiling),
        (module, "_compile_module_file", _compiling),
    )


def _name_of(found: Any) -> str:
    """Where it lies in its lookup; of one that is a text of its own the address in memory is no name."""
    uri = getattr(found, "uri", None)
    return uri if isinstance(uri, str) and uri and not uri.startswith("memory:") else "<template>"


def _rendering(original: Callable[..., Any]) -> Callable[..., Any]:
    def render(self: Any, *args: Any, **kwargs: Any) -> Any:
        if current.get() is None:
            return original(self, *args, **kwargs)
        return rendered(template(_name_of(self)), original, self, *args, **kwargs)

    return render


def _compiling(original: Callable[..., Any]) -> Callable[..., Any]:
    def compile(found: Any, *args: Any, **kwargs: Any) -> Any:
        if current.get() is None:
            return original(found, *args, **kwargs)
        return rendered(template(f"compile {_name_of(found)}"), original, found, *args, **kwargs)

    return compile
