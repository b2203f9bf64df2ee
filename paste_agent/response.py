"""The response that the server iterates: the application's body, which ends its transaction when it is closed.

The transaction itself plays that part, in the class that fits the body, so that a request costs one object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from paste_agent.transaction import Environ, Transaction, current


class Response(Transaction):
    """What all of them share."""

    __slots__ = ()

    def __del__(self) -> None:
        # A layer that forgets to close loses no request.
        if self.environ is not None:
            self.finish()


class ListResponse(Response):
    """A body that is a list or a tuple, as nearly all are: iterating it can neither fail nor take time."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self.body)  # type: ignore[arg-type]  # it is a list or a tuple

    def __iter__(self) -> Iterator[bytes]:
        self.hand_over()
        return iter(self.body)  # type: ignore[arg-type]  # None only after close, and then nobody iterates

    def close(self) -> None:
        # A list has nothing to close.
        self.body = ()
        self.finish()


class _NotBegun:
    """The iterator of a response that nobody has called `iter()` for: some middlewares call `next()` at once."""

    __slots__ = ()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        response: Any = current.get()  # whose __next__ this is called by
        iter(response)
        chunk: bytes = next(response.iterator)
        return chunk


_NOT_BEGUN = _NotBegun()


class IteratorResponse(Response):
    """Any other body: its iteration and its close may raise, and its close is called once.

    It has no `__len__`, not even None: servers ask `hasattr` before they ask for the length, and others for its truth.
    """

    __slots__ = ()

    def __iter__(self) -> Iterator[bytes]:
        try:
            self.iterator = iter(self.body)  # type: ignore[arg-type]
        except BaseException as error:
            self.fail(error)
            raise
        return self

    def __next__(self) -> bytes:
        around = current.set(self)
        try:
            chunk = next(self.iterator)
        except StopIteration:
            if self.series < 0:
                self.hand_over()
            raise
        except BaseException as error:
            self.fail(error)
            raise
        finally:
            current.reset(around)
        if self.series < 0 and chunk:
            # One part may be all of it, and the client have it before anybody asks for the next.
            self.hand_over()
        self.sent = True
        return chunk

    def close(self) -> None:
        body, self.body = self.body, None
        self.series = -1  # what the route is may have come to light since
        self.sent = True
        try:
            if body is not None:
                _close(body)
        except BaseException as error:
            self.fail(error)
            raise
        finally:
            self.finish()


class SizedIteratorResponse(IteratorResponse):
    """A body with a length, which servers turn into Content-Length when it is 1."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self.body)  # type: ignore[arg-type]


def respond(transaction: ListResponse, body: Iterable[bytes], environ: Environ) -> Iterable[bytes]:
    """What the filter returns for a body that is not exactly a list."""
    if body.__class__ is tuple:
        transaction.body = body
        return transaction
    file_wrapper = environ.get("wsgi.file_wrapper")
    if isinstance(file_wrapper, type) and isinstance(body, file_wrapper):
        return _end_with_file(transaction, body)
    transaction.body = body
    transaction.iterator = _NOT_BEGUN
    # Of the same layout, though mypy sees two classes that are no relatives.
    transaction.__class__ = SizedIteratorResponse if hasattr(body, "__len__") else IteratorResponse  # type: ignore[assignment]
    return transaction


def _end_with_file(transaction: ListResponse, body: Iterable[bytes]) -> Iterable[bytes]:
    """Return a file wrapper as it is: servers test its type to use sendfile. Its `close` ends the transaction."""
    close: Callable[[], object] | None = getattr(body, "close", None)
    pending = [close]

    def close_and_finish() -> None:
        transaction.sent = True
        try:
            if pending:
                call = pending.pop()
                if call is not None:
                    call()
        except BaseException as error:
            transaction.fail(error)
            raise
        finally:
            transaction.finish()

    transaction.hand_over()
    try:
        body.close = close_and_finish  # type: ignore[attr-defined]
    except (AttributeError, TypeError):
        # A wrapper in C or with slots: what is left of sending it goes unmeasured.
        transaction.finish()
    return body


def _close(body: Iterable[bytes]) -> None:
    close: Callable[[], object] | None = getattr(body, "close", None)
    if close is not None:
        close()
