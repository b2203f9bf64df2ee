"""Chameleon: a span for the rendering of a template, and one for its compilation. What a macro of another template
renders is a part of the template that uses it.

Tested with 3.10, 4.0 and 4.6.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from paste_agent.instrument.views import Named, rendering, replace, template


def install(module: ModuleType) -> None:
    """Wrap the two methods. A second call does nothing."""
    replace((module.BaseTemplate, "render", rendering(_rendered)), (module.BaseTemplate, "cook", rendering(_compiled)))


@functools.lru_cache(maxsize=512)
def _name_of(file: str) -> str:
    """The file and its directory: the rest of the path says where it is installed."""
    return "/".join(file.split("/")[-2:]) if file != "<string>" else "<template>"


def _rendered(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Named:
    return template(_name_of(str(args[0].filename)))


def _compiled(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Named:
    return template(f"compile {_name_of(str(args[0].filename))}")
