"""The reporter: the background thread of a process that serves, made after fork.

It works in small slices and sleeps between them, so that a request's thread never waits long for the interpreter.
What only the lead needs is imported by the lead.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from paste_agent import native, probes
from paste_agent.lease import Holder, Lease
from paste_agent.log import Warnings
from paste_agent.recorder import layout
from paste_agent.runtime_dir import LEASE
from paste_agent.settings import Settings

if TYPE_CHECKING:
    from paste_agent.kept import TraceRow
    from paste_agent.leadership import Leadership
    from paste_agent.log_forwarding import Forwarding
    from paste_agent.recorder.writer import Recorder
    from paste_agent.trace_writer import TraceWriter
    from paste_agent.watch import Watch

_TICK_S = 1.0
_LEASE_POLL_S = 0.02
_NS = 1_000_000_000
#: What a lead needs, in pieces.
_LEADERSHIP = ("dataclasses", "platform", "uuid", "sqlite3", "paste_agent.store.store", "paste_agent.lead")


class Reporter:
    """The thread of a process that serves."""

    def __init__(
        self, settings: Settings, recorder: Recorder, directory: str | None, warn: Warnings, watch: Watch
    ) -> None:
        """recorder: this process's, open. directory: the service's runtime directory; None: it is in memory."""
        self._settings = settings
        self._recorder = recorder
        self._directory = directory
        self._warn = warn
        self._watch = watch
        self._lease = _lease_of(directory, recorder.id)
        self._logs: Forwarding | None = None
        if settings.forward_logs != "off":
            from paste_agent.log_forwarding import Forwarding

            self._logs = Forwarding(settings, recorder, directory, warn)
        self._leadership: Leadership | None = None
        self._traces: TraceWriter | None = None
        self._waiting: deque[TraceRow] = deque()
        self._ticked_ns = time.perf_counter_ns()
        self._finished = 0
        self._deadline = 0.0
        self._stop = native.Flag()
        self._done = native.Flag()

    def start(self) -> None:
        if self._logs is not None:
            self._logs.listen()
        native.start_thread(self._run)

    def leave_last(self) -> None:
        """Leave in the recorder what only the last moment knows, before it is marked closed. Raises nothing."""
        if self._logs is not None:
            try:
                self._logs.finish()
            except Exception as fault:
                self._recorder.on_fault("log records", fault)

    def finish(self, timeout_s: float) -> None:
        """End the thread after a last drain and export; waits so long and no longer. The recorder is marked closed."""
        self._deadline = time.monotonic() + timeout_s
        self._stop.set()
        self._done.wait(timeout_s)

    def abandon(self) -> None:
        """In a forked child: close what keeps locks of the parent, and nothing else."""
        if self._logs is not None:
            self._logs.stop()
        self._lease.let_go()
        if self._leadership is not None:
            self._leadership.close_readers()

    def _run(self) -> None:
        try:
            sleep_s = self._guarded(self._begin)
            while not self._stop.wait(sleep_s):
                sleep_s = self._guarded(self._tick)
            self._guarded(self._last)
        finally:
            self._done.set()

    def _begin(self) -> float:
        self._recorder.set_word(layout.W_CONCURRENCY, probes.concurrency())
        return 0.0  # the first round at once: a worker that lives for a moment is seen all the same

    def _guarded(self, step: Callable[[], float]) -> float:
        try:
            return step()
        except Exception as fault:
            self._recorder.on_fault("report", fault)
            return _TICK_S

    def _tick(self) -> float:
        now_ns = time.perf_counter_ns()
        elapsed_s = (now_ns - self._ticked_ns) / _NS
        self._ticked_ns = now_ns
        recorder = self._recorder
        recorder.set_words(layout.W_PROBED_AT, probes.probe().words())
        finished, self._finished = recorder.latest - self._finished, recorder.latest
        settled = len(recorder.kept)  # what those kept stand for is known when their interval is over
        recorder.sampler.tick(elapsed_s, finished, recorder.latest)
        recorder.grow()
        self._watch.look(now_ns)
        if settled:
            self._trace_writer().write(settled)
        if self._logs is not None:
            self._logs.tick(elapsed_s)
        with native.UNDIVIDED:
            leads = self._lease.try_take()
        if not leads:
            return _TICK_S
        return self._lead().tick(self._waiting)

    def _lead(self) -> Leadership:
        """What this process does as the lead; begun when it has just taken the lease."""
        if self._leadership is None:
            self._leadership = _lead_with(self._settings, self._directory, self._lease, self._recorder, self._warn)
        return self._leadership

    def _last(self) -> float:
        self._recorder.set_words(layout.W_PROBED_AT, probes.probe().words())
        if self._recorder.kept:
            now = time.monotonic()
            self._trace_writer().write_last(now + (self._deadline - now) / 2)  # the last drain takes its time too
        if self._logs is not None:
            self._logs.write()
        if _take_before(self._lease, self._directory, self._deadline):
            try:
                self._lead().complete(self._deadline, self._waiting, exports=not self._arbiter_follows())
            finally:
                self._lease.let_go()
        return 0.0

    def _arbiter_follows(self) -> bool:
        """Whether an arbiter lives that exports after its last worker: to do it twice would take twice the time."""
        if self._directory is None:  # what is in the memory of this process, only this process can export
            return False
        return bool(self._recorder.word(layout.W_WITNESSED)) and probes.root_pid() == os.getppid()

    def _trace_writer(self) -> TraceWriter:
        if self._traces is None:
            with native.UNDIVIDED:
                from paste_agent.trace_writer import TraceWriter
            self._traces = TraceWriter(self._settings, self._recorder, self._directory, self._warn)
            self._waiting = self._traces.waiting
        return self._traces


def complete(settings: Settings, directory: str, warn: Warnings) -> None:
    """Drain and export for a service that this process does not serve, when no process is left that does."""
    deadline = time.monotonic() + settings.shutdown_timeout_s
    lease = _lease_of(directory, "")
    if _take_before(lease, directory, deadline):
        try:
            _lead_with(settings, directory, lease, None, warn).complete(deadline, deque())
        finally:
            lease.let_go()


def catch_up(settings: Settings, directory: str, warn: Warnings) -> None:
    """Drain what processes that were killed have left, unless somebody leads; for who is about to read the store."""
    lease = _lease_of(directory, "")
    if lease.try_take():
        try:
            _lead_with(settings, directory, lease, None, warn).catch_up()
        finally:
            lease.let_go()


def _lease_of(directory: str | None, recorder: str) -> Lease:
    return Lease(None if directory is None else os.path.join(directory, LEASE), Holder(recorder, probes.root_pid()))


def _lead_with(
    settings: Settings, directory: str | None, lease: Lease, recorder: Recorder | None, warn: Warnings
) -> Leadership:
    """Begin to lead. The lease is held. One line tells of it, unless another process of this start led before."""
    native.import_gently(_LEADERSHIP, lambda: recorder is not None and not recorder.word(layout.W_CLOSED))
    with native.UNDIVIDED:
        from paste_agent.leadership import Leadership
        from paste_agent.recorder.reader import Reader
    own: list[Reader] = []
    if recorder is not None and recorder.path is None:
        own.append(Reader(recorder.id, recorder.read, recorder.write, -1))
    leadership = Leadership(settings, directory, "" if recorder is None else recorder.id, own, warn)
    if recorder is not None:
        handed_over = lease.previous is not None and lease.previous.root == probes.root_pid()
        leadership.say_start(logging.DEBUG if handed_over else logging.INFO)
    return leadership


def _take_before(lease: Lease, directory: str | None, deadline: float) -> bool:
    """Take the lease in order to complete the count; False when somebody else will, or has not let go by then."""
    while not lease.try_take():
        # A lead that stays drains this recorder anyway. One that is ending itself may have done its last drain.
        if _stays(lease.holder(), directory) or time.monotonic() >= deadline:
            return False
        native.sleep(_LEASE_POLL_S)
    return True


def _stays(holder: Holder | None, directory: str | None) -> bool:
    """Whether the lead is a process that is not about to end."""
    if holder is None or not holder.recorder or directory is None:
        return False
    with native.UNDIVIDED:
        from paste_agent.recorder.reader import BadRecorder, Reader
    with native.UNDIVIDED:  # no child is forked while the file is open
        try:
            reader = Reader.of_file(os.path.join(directory, holder.recorder + layout.SUFFIX))
        except (BadRecorder, OSError):
            return False
        try:
            return not reader.words()[layout.W_CLOSED]
        finally:
            reader.close()
