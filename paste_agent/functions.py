"""`trace_functions`: functions of the application that get a span of their own, without a change of its code.

A function is replaced where it lives, in its module or its class, once the module has been imported. Whoever has got
hold of it before, by `from module import function` or as a value in a table, goes on calling it as it was.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from paste_agent.inside import FUNCTION
from paste_agent.on_import import when_imported
from paste_agent.raised import type_name
from paste_agent.spans import begin, end

#: Says a kind of trouble and a line about it.
Warn = Callable[[str, str], None]

_MARK = "_paste_agent"
#: Of code: what its function returns has done nothing yet. Generators, coroutines, asynchronous generators.
_LATER = 0x20 | 0x80 | 0x200

_registered: set[str] = set()


class _Unsuitable(Exception):
    """str() of it says why there is no span."""


def install(names: Sequence[str], warn: Warn) -> None:
    """Have each of `names`, as module:function or module:Class.method, traced. Raises nothing.

    Where it cannot be, `warn` gets one line that says why, at the latest when the module is imported.
    """
    for name in names:
        if name in _registered:
            continue
        _registered.add(name)
        module, _, path = name.partition(":")
        if not _may_exist(module):
            _say(warn, name, f"there is no module {module.partition('.')[0]}")
        else:
            when_imported(module, functools.partial(_trace, path, warn))


def _may_exist(module: str) -> bool:
    """Whether the outermost package is there; further down, finding out would import it."""
    try:
        return find_spec(module.partition(".")[0]) is not None
    except Exception:  # a module that is not made in the usual way
        return True


def _trace(path: str, warn: Warn, module: ModuleType) -> None:
    name = f"{module.__name__}:{path}"
    try:
        *outer, last = path.split(".")
        owner: Any = module
        for part in outer:
            owner = _own(owner, part)
            if not isinstance(owner, type):
                raise _Unsuitable(f"{part} is no class")
        found = _own(owner, last)
        replacement = _replacement(found, f"{module.__name__}.{path}")
        if replacement is not None:
            setattr(owner, last, replacement)
    except _Unsuitable as reason:
        _say(warn, name, str(reason))
    except Exception as fault:  # a class that cannot be changed, and what else there may be
        _say(warn, name, f"{type(fault).__name__}: {fault}")


def _say(warn: Warn, name: str, reason: str) -> None:
    warn(f"trace_functions {name}", f"trace_functions: {name} gets no span: {' '.join(reason.split())}")


def _own(owner: Any, name: str) -> Any:
    """What a module or a class has by this name, methods as they are written down, inherited ones too."""
    for one in owner.__mro__ if isinstance(owner, type) else [owner]:
        if name in vars(one):
            return vars(one)[name]
    raise _Unsuitable(f"{owner.__name__} has no {name}")


def _replacement(found: Any, name: str) -> Any:
    """What takes the place of a function, or of a method as its class has it; None: it has been replaced before."""
    if isinstance(found, (staticmethod, classmethod)):
        inner = _replacement(found.__func__, name)
        return None if inner is None else type(found)(inner)
    if not isinstance(found, (FunctionType, BuiltinFunctionType)):
        # In place of an object of another kind a function would lack what else the object can do.
        raise _Unsuitable(f"it is no plain function, but {type(found).__name__}")
    if hasattr(found, _MARK):
        return None
    if getattr(getattr(found, "__code__", None), "co_flags", 0) & _LATER:
        raise _Unsuitable("it is a generator or a coroutine, whose call only prepares the work")
    return _with_span(found, name)


def _with_span(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    text = name.encode("utf-8", "replace")

    @functools.wraps(function)
    def traced(*args: Any, **kwargs: Any) -> Any:
        span = begin(FUNCTION, text)
        if span is None:
            return function(*args, **kwargs)
        failed = None
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            failed = type_name(error)
            raise
        finally:
            end(span, name, None, failed)

    setattr(traced, _MARK, function)
    return traced
