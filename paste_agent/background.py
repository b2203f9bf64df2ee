"""Background tasks: work that no request asks for."""

from __future__ import annotations

import os
from contextlib import ContextDecorator
from contextvars import Token
from time import perf_counter_ns
from types import TracebackType

from paste_agent import lifecycle
from paste_agent.recorder.layout import KIND_BACKGROUND, SCHEME_BACKGROUND
from paste_agent.recorder.writer import Recorder
from paste_agent.transaction import UnderWay, current, type_name

_MAX_NAME = 160


class background_task(ContextDecorator):
    """Counts and times a task, by its name; as a context manager or as a decorator.

        with background_task("warm caches"):
            ...

    It may run anywhere: while the application is imported, in a hook of gunicorn, in a thread. What it raises is
    counted as its error, and passes.
    """

    def __init__(self, name: str) -> None:
        """name: one of few: it becomes an attribute of a metric."""
        self.name = str(name)[:_MAX_NAME]
        self.slot = 0
        self.recorder: Recorder
        self._agent: lifecycle.Agent | None = None
        self._token: Token[UnderWay | None] | None = None
        self._start_ns = 0
        self._pid = 0

    def _recreate_cm(self) -> background_task:
        return background_task(self.name)  # each call of a decorated function is a task of its own

    def __enter__(self) -> background_task:
        self._start_ns = perf_counter_ns()
        self._pid = os.getpid()
        self._agent = lifecycle.current_agent()
        if self._agent is not None:
            try:
                self.recorder = self._agent.open()
                name = self.name.encode("utf-8", "replace")
                self.slot = self.recorder.enter_slot(self._start_ns, SCHEME_BACKGROUND, b"", name)
                self._token = current.set(self)
            except Exception as fault:
                self._agent.on_fault("begin of a task", fault)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        duration_ns = perf_counter_ns() - self._start_ns
        fields = (self.name, None if error is None else type_name(error))
        if self._agent is None:
            if self._pid == os.getpid():  # else it was forked meanwhile, and the parent counts it
                lifecycle.owe(fields, self._start_ns, duration_ns, error is not None)
            return
        try:
            if self._token is not None:
                try:
                    self.recorder.record(KIND_BACKGROUND, fields, self._start_ns, duration_ns, error is not None)
                finally:
                    self.recorder.leave_slot(self.slot)
                    self.slot = 0
        except Exception as fault:
            self._agent.on_fault("end of a task", fault)
        try:
            if self._token is not None:
                current.reset(self._token)
        except ValueError:  # it ends in another context than it began in, which is no fault
            pass
        self._token = None
