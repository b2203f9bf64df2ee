"""Mako: a span for the rendering of a template, and one for its compilation.

Tested with 1.2 and 1.4.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from paste_agent.instrument.views import Named, rendering, replace, template


def install(module: ModuleType) -> None:
    """Wrap the methods that render, and the functions that compile. A second call does nothing."""
    replace(
        (module.Template, "render", rendering(_rendered)),
        (module.Template, "render_unicode", rendering(_rendered)),
        (module, "_compile_text", rendering(_compiled)),
        (module, "_compile_module_file", rendering(_compiled)),
    )


def _name_of(found: Any) -> str:
    """Where it lies in its lookup; of one that is a text of its own the address in memory is no name."""
    uri = getattr(found, "uri", None)
    return uri if isinstance(uri, str) and uri and not uri.startswith("memory:") else "<template>"


def _rendered(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Named:
    return template(_name_of(args[0]))


def _compiled(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Named:
    return template(f"compile {_name_of(args[0])}")
