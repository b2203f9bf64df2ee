"""Jinja2: a span for the rendering of a template, and one for its compilation.

What is rendered piece by piece (`generate`, `stream`) has none: whatever happens between two pieces is not the
template's, and would be inside of its span. Nor has what is included, or inherited from: it is a part of the template.

Tested with 3.0 and 3.1.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from paste_agent.instrument.views import rendered, replace, template
from paste_agent.transaction import current


def install(module: ModuleType) -> None:
    """Wrap the two methods. A second call does nothing."""
    replace((module.Template, "render", _rendering), (module.Environment, "compile", _compiling))


def _rendering(original: Callable[..., Any]) -> Callable[..., Any]:
    def render(self: Any, *args: Any, **kwargs: Any) -> Any:
        if current.get() is None:
            return original(self, *args, **kwargs)
        return rendered(template(self.name), original, self, *args, **kwargs)

    return render


def _compiling(original: Callable[..., Any]) -> Callable[..., Any]:
    def compile(self: Any, source: Any, *args: Any, **kwargs: Any) -> Any:
        if current.get() is None:
            return original(self, source, *args, **kwargs)
        name = kwargs.get("name", args[0] if args else None)
        return rendered(template(f"compile {name or '<template>'}"), original, self, source, *args, **kwargs)

    return compile
