"""Puts wrappers in the place of a library's methods: all of them or none, and each once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

MARK = "_paste_agent"
Wrapper = Callable[[Callable[..., Any]], Callable[..., Any]]


def wrap(places: Iterable[tuple[Any, str, Wrapper]]) -> None:
    """Replace methods of classes by what wrappers make of them. One that its class only inherits is left alone.

    places: class, name and wrapper. AttributeError, before anything is replaced, where one is missing; a method that
    has been wrapped is not wrapped again.
    """
    found = [(where, name, getattr(where, name), wrapper) for where, name, wrapper in places]
    for where, name, original, wrapper in found:
        if name in vars(where) and not hasattr(original, MARK):
            wrapped = functools.wraps(original)(wrapper(original))
            setattr(wrapped, MARK, original)
            setattr(where, name, wrapped)
