"""A context manager that decorates functions of every kind: those too whose call only begins what they do."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import ContextDecorator
from typing import Any, TypeVar, cast

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Decorator(ContextDecorator):
    """As `with` around the body of the function: of a coroutine until it returns, of a generator until it has ended.

    An asynchronous generator stays as it is: nobody could tell from outside what its consumer does in between.
    """

    def __call__(self, function: _Function) -> _Function:
        return cast(_Function, self._around(function))

    def _around(self, function: Any) -> object:
        again: Any = self._recreate_cm  # each call is one of its own
        if inspect.isasyncgenfunction(function):
            return function
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def awaited(*args: Any, **kwargs: Any) -> Any:
                with again():
                    return await function(*args, **kwargs)

            return awaited
        if inspect.isgeneratorfunction(function):

            @functools.wraps(function)
            def generated(*args: Any, **kwargs: Any) -> Any:
                with again():
                    return (yield from function(*args, **kwargs))

            return generated
        return super().__call__(function)
