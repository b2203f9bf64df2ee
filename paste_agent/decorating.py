"""A context manager that decorates functions of every kind: those too whose call only begins what they do."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Generator
from contextlib import ContextDecorator
from typing import Any, Protocol, TypeVar, cast

_Function = TypeVar("_Function", bound=Callable[..., Any])


class InSteps(Protocol):
    """Around a generator: the thread is in it while the generator runs, and not while its consumer does."""

    def __enter__(self) -> object: ...
    def __exit__(self, *error: Any) -> object: ...
    def resume(self) -> None: ...
    def pause(self) -> None: ...


class Decorator(ContextDecorator):
    """As `with` around the body of the function: of a coroutine until it returns, of a generator until it has ended.

    An asynchronous generator stays as it is: its consumer may be another task, and what it does there its own.
    """

    def _in_steps(self) -> InSteps:
        """One around a generator, by the same name."""
        raise NotImplementedError

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
                with self._in_steps() as around:
                    return (yield from _Steps(function(*args, **kwargs), around))

            return generated
        return super().__call__(function)


class _Steps(Generator[Any, Any, Any]):
    """A generator, and what is around each of its steps."""

    def __init__(self, generator: Generator[Any, Any, Any], around: Any) -> None:
        self._generator = generator
        self._around = around

    def __next__(self) -> Any:
        # The usual step, in one frame: a generator may go through itself, down to the interpreter's limit.
        self._around.resume()
        try:
            return next(self._generator)
        finally:
            self._around.pause()

    def send(self, value: Any) -> Any:
        return self._step(self._generator.send, value)

    def throw(self, *error: Any) -> Any:
        return self._step(self._generator.throw, *error)

    def _step(self, step: Callable[..., Any], *args: Any) -> Any:
        self._around.resume()
        try:
            return step(*args)
        finally:
            self._around.pause()
