"""Writes a process's kept transactions to the store: the process itself does, lead or not.

Imported when there is the first one to write.
"""

from __future__ import annotations

import sqlite3
import time

from paste_agent import detail, native
from paste_agent.aggregate import Apdex, Folder
from paste_agent.log import Warnings
from paste_agent.recorder.layout import FAILED, KEPT_FAILED
from paste_agent.recorder.reader import Reader
from paste_agent.recorder.writer import Recorder
from paste_agent.settings import Settings
from paste_agent.store.opening import open_store
from paste_agent.store.store import Store, TraceRow
from paste_agent.transaction import KeptTransaction


class TraceWriter:
    """Belongs to the reporter's thread."""

    def __init__(self, settings: Settings, recorder: Recorder, directory: str | None, warn: Warnings) -> None:
        self._settings = settings
        self._recorder = recorder
        self._directory = directory
        self._warn = warn
        reader = Reader(recorder.id, recorder.read, recorder.write, -1)
        self._folder = Folder(reader, Apdex(settings.apdex_t_s))
        self._store: Store | None = None

    def write(self) -> None:
        """Write what has been kept since; what the store refuses is tried again."""
        kept = self._recorder.kept
        offset_ns = time.time_ns() - time.perf_counter_ns()
        taken = [kept.popleft() for _ in range(len(kept))]
        rows: list[TraceRow] = []
        for transaction in taken:
            rows.append(self._row(transaction, offset_ns))
            native.sleep(0)
        try:
            if self._store is None:
                self._store = open_store(self._settings, self._directory, self._warn)
            self._store.add_traces(rows, time.time())
        except sqlite3.Error as error:
            kept.extendleft(reversed(taken))
            self._warn("store", f"store {self._settings.store}: {error}; kept traces wait in memory")

    def close(self) -> None:
        if self._store is not None:
            self._store.close()

    def _row(self, transaction: KeptTransaction, offset_ns: int) -> TraceRow:
        attributes = self._folder.key_of(transaction.series & ~FAILED)[1]
        failed = bool(transaction.why & KEPT_FAILED) or transaction.series >= FAILED
        return detail.trace_row(transaction, attributes, failed, offset_ns, self._settings.record_query)
