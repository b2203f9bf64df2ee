"""Kajiki: a span for the rendering of a template, and one for its compilation. What a template extends or includes is a
part of it.

Tested with 0.9 and 1.0.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from paste_agent.instrument.views import Named, rendering, replace, template


def install(module: ModuleType) -> None:
    """Wrap the method that renders, and the two functions that compile. A second call does nothing."""
    replace(
        (module.template._Template, "render", rendering(_rendered)),
        # Loaders look these two up in the package each time.
        (module, "XMLTemplate", rendering(_compiled)),
        (module, "TextTemplate", rendering(_compiled)),
    )


@functools.lru_cache(maxsize=512)
def _name_of(file: object) -> str:
    """The file and its directory: the rest of the path says where it is installed."""
    return "/".join(str(file).split("/")[-2:]) if file is not None and file != "<string>" else "<template>"


def _rendered(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Named:
    return template(_name_of(args[0].filename))


def _compiled(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Named:
    return template(f"compile {_name_of(args[1] if len(args) > 1 else kwargs.get('filename'))}")
