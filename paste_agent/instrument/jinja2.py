"""Jinja2: a span for the rendering of a template, and one for its compilation.

What is rendered piece by piece (`generate`, `stream`) has none: whatever happens between two pieces is not the
template's, and would be inside of its span. Nor has what is included, or inherited from: it is a part of the template.

Tested with 3.0 and 3.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from paste_agent.instrument.views import Named, rendering, replace, template


def install(module: ModuleType) -> None:
    """Wrap the two methods. A second call does nothing."""
    replace((module.Template, "render", rendering(_rendered)), (module.Environment, "compile", rendering(_compiled)))


def _rendered(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Named:
    return template(args[0].name)


def _compiled(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Named:
    name = kwargs.get("name") or (args[2] if len(args) > 2 else None)
    return template(f"compile {name or '<template>'}")
