"""Hands a process's kept transactions on to the lead. Imported when there is the first one."""

from __future__ import annotations

import os
import time
from collections import deque
from typing import Any

from paste_agent import detail, kept, native
from paste_agent.kept import TraceRow
from paste_agent.log import Warnings
from paste_agent.recorder.writer import MAX_KEPT, Recorder
from paste_agent.settings import Settings
from paste_agent.transaction import KeptTransaction

#: Files of one process that may wait for a lead; then the oldest goes.
_MOST_FILES = 64


class TraceWriter:
    """Belongs to the reporter's thread."""

    def __init__(self, settings: Settings, recorder: Recorder, directory: str | None, warn: Warnings) -> None:
        """directory: the service's runtime directory; None: the rows stay here for this process's own lead."""
        self._rules = detail.rules_of(settings)
        self._recorder = recorder
        self._directory = directory
        self._warn = warn
        self._files: deque[str] = deque()
        self._written = 0
        self.waiting: deque[TraceRow] = deque(maxlen=1024)

    def write(self, most: int = MAX_KEPT) -> int:
        """Hand on what has been kept since. most: so many of them; what the others stand for is not known yet.

        Returns how many of these are for the next round: so that the lead reads little at a time, there is an end.
        """
        offset_ns = time.time_ns() - time.perf_counter_ns()
        lines: list[bytes] = []
        size = 0
        while self._recorder.kept and most > 0 and size < kept.MAX_BYTES // 2:
            most -= 1
            try:
                row, line = _bounded(self._row(self._recorder.kept.popleft(), offset_ns))
            except Exception as fault:  # an object of the application's: the others are kept all the same
                self._recorder.on_fault("kept trace", fault)
                continue
            if self._directory is None:
                self.waiting.append(row)
            else:
                if lines and size + len(line) > kept.MAX_BYTES:  # it needs a file of its own
                    self._leave(self._directory, lines)
                    lines = []
                lines.append(line)
            size += len(line)
            native.sleep(0)
        if lines:
            self._leave(self._directory or "", lines)
        return most

    def write_last(self, until: float) -> None:
        """Hand on all there is: no round comes after this one.

        until: s of the monotonic clock, when no other file is begun; the rest is lost.
        """
        most = self.write(len(self._recorder.kept))
        while most > 0 and self._recorder.kept and time.monotonic() < until:
            most = self.write(most)

    def _leave(self, directory: str, lines: list[bytes]) -> None:
        self._written += 1
        path = os.path.join(directory, f"{self._recorder.id}.{self._written}{kept.SUFFIX}")
        try:
            kept.write(path, lines)
            self._files.append(path)
            self._forget_oldest()
        except OSError as error:
            self._warn("kept traces", f"{path}: {error.strerror}; {len(lines)} kept traces are lost, metrics are not")

    def _forget_oldest(self) -> None:
        while self._files and not os.path.exists(self._files[0]):
            self._files.popleft()  # stored
        if len(self._files) > _MOST_FILES:
            os.unlink(self._files.popleft())
            self._warn("kept traces", "the store takes no traces; the oldest go, metrics are not lost")

    def _row(self, transaction: KeptTransaction, offset_ns: int) -> TraceRow:
        attributes = self._recorder.attributes_of(transaction.series)
        return detail.trace_row(transaction, attributes, offset_ns, self._rules)


def _bounded(row: TraceRow) -> tuple[TraceRow, bytes]:
    """The row, and its line: without the last of its spans where that would be longer than what is read of a file."""
    line = kept.line_of(row)
    detail: Any = row.detail
    while len(line) > kept.MAX_BYTES and detail.get("spans"):
        spans, attributes = detail["spans"], detail["attributes"]
        left, gone = spans[: len(spans) // 2], spans[len(spans) // 2 :]
        dropped = attributes.get("paste_agent.spans.dropped", 0) + len(gone)
        dropped_ns = detail.get("dropped_ns", 0) + sum(one["duration"] for one in gone if one["parent"] is None)
        attributes = {**attributes, "paste_agent.spans.dropped": dropped}
        detail = {**detail, "attributes": attributes, "spans": left, "dropped_ns": dropped_ns}
        row = row._replace(detail=detail)
        line = kept.line_of(row)
    return row, line
