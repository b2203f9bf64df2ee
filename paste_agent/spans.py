"""Spans: timed parts of a transaction. So far they only say where it is while it runs."""

from __future__ import annotations

from contextlib import ContextDecorator
from types import TracebackType

from paste_agent.recorder import layout
from paste_agent.recorder.writer import Recorder
from paste_agent.transaction import current

_ROOM = layout.SPAN.size - 8


class span(ContextDecorator):
    """Says in which span the current transaction is: a post-mortem names it. Nothing without a transaction.

    with span("SELECT orders"):
        ...
    """

    __slots__ = ("_around", "_number", "_recorder", "_slot", "_text")

    def __init__(self, name: str) -> None:
        """name: without values that a client or a user has sent."""
        self._text = name.encode("utf-8", "replace")[:_ROOM]
        self._slot = self._number = 0
        self._around = b""
        self._recorder: Recorder

    def _recreate_cm(self) -> span:
        return span(self._text.decode("utf-8", "ignore"))

    def __enter__(self) -> span:
        transaction = current.get()
        if transaction is not None and transaction.slot:
            self._recorder, self._slot = transaction.recorder, transaction.slot
            self._number = self._recorder.number_of(self._slot)
            self._around = self._recorder.enter_span(self._slot, self._text)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._slot and self._recorder.number_of(self._slot) == self._number:  # else the transaction has ended
            self._recorder.leave_span(self._slot, self._around)
        self._slot = 0
