"""An ini as PasteDeploy's loader sees it: every section that an application leads to, without building any of it."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from typing import TypeAlias
from urllib.parse import quote

from paste.deploy import loadwsgi

from paste_agent.errors import IniError

Context: TypeAlias = loadwsgi.LoaderContext


def context_of(path: str, name: str, text: str | None = None) -> Context:
    """Load what the server would: modules are imported, no factory is called.

    path: absolute. name: such as `main`. text: what the file would say, instead of what it says.
    Raises IniError with what the loader raises, in one line.
    """
    directory = os.path.dirname(path)
    if directory not in sys.path:  # as gunicorn_paster has it
        sys.path.insert(0, directory)
    try:
        if text is None:
            return loadwsgi.loadcontext(loadwsgi.APP, f"config:{quote(path)}", name=name)
        loader = loadwsgi.ConfigLoader(path)
        parser = loadwsgi.NicerConfigParser(path, defaults={"here": directory, "__file__": path})
        parser.optionxform = str
        parser.read_file(io.StringIO(text, newline=None))
        loader.parser = parser
        return loader.get_context(loadwsgi.APP, name)
    except Exception as error:  # a section's module may raise anything when it is imported
        said = " ".join(str(error).split())
        raise IniError(f"{path}: the loader fails: {type(error).__name__}: {said}") from None


def layers(context: Context) -> Iterator[Context]:
    """What requests pass through, from the outermost filter to the application.

    What a composite mounts is known to the composite alone.
    """
    kind = context.object_type
    if kind is loadwsgi.PIPELINE:
        for inner in context.filter_contexts:
            yield from layers(inner)
        yield from layers(context.app_context)
    elif kind in (loadwsgi.FILTER_WITH, loadwsgi.FILTER_APP):
        # `filter-with` of a filter as well: what it names is around the filter.
        yield from layers(context.filter_context)
        yield from layers(context.next_context)
    else:
        yield context


def is_agent(context: Context) -> bool:
    return getattr(context.object, "__module__", None) == "paste_agent.filter"


def is_application(context: Context) -> bool:
    """Whether a `filter-with` can stand around it: around anything else PasteDeploy makes what no server can call."""
    return context.object_type is loadwsgi.APP


def without_filter_with(context: Context) -> Context:
    """What a `filter-with` is around; the context itself where there is none."""
    return context.next_context if context.object_type is loadwsgi.FILTER_WITH else context


def unservable(context: Context) -> bool:
    """Whether a `filter-with` stands around what is no plain application."""
    if context.object_type is loadwsgi.FILTER_WITH:
        return not is_application(context.next_context)
    return context.object_type is loadwsgi.PIPELINE and unservable(context.app_context)
