"""Hands a process's kept transactions on to the lead. Imported when there is the first one."""

from __future__ import annotations

import os
import time
from collections import deque

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

    def write(self, most: int = MAX_KEPT) -> None:
        """Hand on what has been kept since. most: so many of them; what the others stand for is not known yet."""
        offset_ns = time.time_ns() - time.perf_counter_ns()
        rows: list[TraceRow] = []
        size = 0
        # What does not fit into one file is for the next round.
        while self._recorder.kept and most > 0 and size < kept.MAX_BYTES // 2:
            most -= 1
            try:
                row = self._row(self._recorder.kept.popleft(), offset_ns)
            except Exception as fault:  # an object of the application's: the others are kept all the same
                self._recorder.on_fault("kept trace", fault)
                continue
            rows.append(row)
            size += len(str(row.detail))
            native.sleep(0)
        if self._directory is None:
            self.waiting.extend(rows)
            return
        self._written += 1
        path = os.path.join(self._directory, f"{self._recorder.id}.{self._written}{kept.SUFFIX}")
        try:
            kept.write(path, rows)
            self._files.append(path)
            self._forget_oldest()
        except OSError as error:
            self._warn("kept traces", f"{path}: {error.strerror}; {len(rows)} kept traces are lost, metrics are not")

    def _forget_oldest(self) -> None:
        while self._files and not os.path.exists(self._files[0]):
            self._files.popleft()  # stored
        if len(self._files) > _MOST_FILES:
            os.unlink(self._files.popleft())
            self._warn("kept traces", "the store takes no traces; the oldest go, metrics are not lost")

    def _row(self, transaction: KeptTransaction, offset_ns: int) -> TraceRow:
        attributes = self._recorder.attributes_of(transaction.series)
        return detail.trace_row(transaction, attributes, offset_ns, self._rules)
