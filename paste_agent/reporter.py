"""The reporter: the background thread of a process, made after fork; and the lease that decides who leads.

It works in small slices and sleeps between them, so that a request's thread never waits long for the interpreter.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paste_agent import detail, native, probes
from paste_agent.aggregate import Apdex, Folder
from paste_agent.lead import Lead
from paste_agent.log import Warnings, logger
from paste_agent.recorder import layout, lock
from paste_agent.recorder.layout import FAILED, KEPT_FAILED
from paste_agent.recorder.reader import BadRecorder, Reader
from paste_agent.runtime_dir import LEASE
from paste_agent.settings import SIGNALS, Settings
from paste_agent.store.opening import name_instance, open_store
from paste_agent.store.store import Store, TraceRow

if TYPE_CHECKING:
    from paste_agent.exporters.otlp import OtlpExporter
    from paste_agent.recorder.writer import Recorder

_TICK_S = 1.0
#: The first export of metrics: a newcomer looks at the collector sooner than after a whole interval.
_FIRST_EXPORT_S = 5.0
_LEASE_POLL_S = 0.02
_NS = 1_000_000_000


@dataclass(frozen=True)
class Holder:
    """Who leads, as it wrote into the lease: only a hint, since the lock alone decides."""

    recorder: str  #: id of its recorder; '' for an arbiter, which has none
    root: int  #: pid of the process that all of the service's come from


class Lease:
    """Who leads: the holder of a file's lock. The kernel lets go of it when the holder dies."""

    def __init__(self, path: str | None, holder: Holder) -> None:
        """path: of the file, in a private directory; None: there is nobody to share with."""
        self._path = path
        self._holder = holder
        self._descriptor = -1
        #: Who led before this process, where somebody did.
        self.previous: Holder | None = None

    def try_take(self) -> bool:
        """Whether this process leads from now on. Raises OSError when the file cannot be made."""
        if self._descriptor >= 0 or self._path is None or not lock.AVAILABLE:
            return True
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        if not lock.try_lock(descriptor):
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        self.previous = _holder_of(os.pread(descriptor, 256, 0))
        text = f"{self._holder.root} {self._holder.recorder}\n".encode()
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text, 0)
        return True

    def holder(self) -> Holder | None:
        """Who has it now, where that can be told."""
        if self._path is None:
            return None
        try:
            with open(self._path, "rb") as file:
                return _holder_of(file.read(256))
        except OSError:
            return None

    def let_go(self) -> None:
        """By closing: in a forked child that leaves the parent's lease alone, unlocking would not."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _holder_of(data: bytes) -> Holder | None:
    root, _, recorder = data.decode("ascii", "replace").strip().partition(" ")
    return Holder(recorder, int(root)) if root.isdecimal() and "/" not in recorder else None


class Leadership:
    """A process's part in leading: takes the lease, and while it holds it drains and exports."""

    def __init__(
        self, settings: Settings, directory: str | None, recorder: str, own: list[Reader], warn: Warnings
    ) -> None:
        """directory: the service's runtime directory, or None. recorder: id of this process's, '' where it has none.
        own: recorders in this process's memory."""
        holder = Holder(recorder, probes.root_pid())
        self.lease = Lease(None if directory is None else os.path.join(directory, LEASE), holder)
        self._settings = settings
        self._directory = directory
        self._recorder = recorder
        self._own = own
        self._warn = warn
        self._lead: Lead | None = None
        self._export: _ExportThread | None = None

    def tick(self) -> float:
        """Lead, if nobody else does. Returns how long to sleep, s. Raises nothing that can be met."""
        if not self._take():
            return _TICK_S
        lead = self._lead
        assert lead is not None
        try:
            lead.drain()
            lead.tidy()
        except sqlite3.Error as error:
            self._say_store(lead, error)
        if self._export is None and self._exports():
            self._export = _ExportThread(self._settings, lead, self._warn)
        return lead.next_drain_s

    def complete(self, deadline: float) -> None:
        """The last drain of this process, whose recorder is marked closed; when no other serves, the last export too.

        deadline: s of the monotonic clock.
        """
        while not self._take():
            # A lead that stays drains this recorder anyway. One that is ending itself may have done its last drain.
            if self._holder_stays() or time.monotonic() >= deadline:
                return
            native.sleep(_LEASE_POLL_S)
        lead = self._lead
        assert lead is not None
        try:
            lead.drain()
            if not lead.others_serve(self._recorder):
                # All are closed by now, those of processes that are still ending too: this drain gets the rest.
                lead.drain()
                if self._export is None and self._exports():
                    self._export = _ExportThread(self._settings, lead, self._warn)
                if self._export is not None:
                    self._export.finish(deadline)
        except sqlite3.Error as error:
            self._say_store(lead, error)
        finally:
            if self._export is not None:
                self._export.stop.set()
            lead.close()
            self._lead = None
            self.lease.let_go()

    def abandon(self) -> None:
        """In a forked child: close what keeps locks of the parent, and nothing else."""
        self.lease.let_go()
        if self._lead is not None:
            self._lead.close_readers()

    def _exports(self) -> bool:
        return any(self._settings.target(signal) for signal in SIGNALS)

    def _say_store(self, lead: Lead, error: sqlite3.Error) -> None:
        self._warn("store", f"store {lead.store.path}: {error}; measurements wait in {self._directory or 'memory'}")

    def _holder_stays(self) -> bool:
        """Whether the lead is a process that is not about to end."""
        holder = self.lease.holder()
        if holder is None or not holder.recorder or self._directory is None:
            return False
        try:
            reader = Reader.of_file(os.path.join(self._directory, holder.recorder + layout.SUFFIX))
        except (BadRecorder, OSError):
            return False
        try:
            return not reader.words()[layout.W_CLOSED]
        finally:
            reader.close()

    def _take(self) -> bool:
        if self._lead is not None:
            return True
        if not self.lease.try_take():
            return False
        store = open_store(self._settings, self._directory, self._warn)
        try:
            name_instance(self._settings, store)
            self._lead = Lead(self._settings, store, self._directory, self._own, self._warn)
        except BaseException:
            store.close()
            raise
        self._say_start(store)
        return True

    def _say_start(self, store: Store) -> None:
        """One line for the start of a service; a lead that takes over from another says nothing."""
        previous, settings = self.lease.previous, self._settings
        level = logging.DEBUG if previous is not None and previous.root == probes.root_pid() else logging.INFO
        targets = [target for target in map(settings.target, SIGNALS) if target is not None]
        goes_to = f", sent to {', '.join(dict.fromkeys(_host_of(target.url) for target in targets))}" if targets else ""
        logger.log(level, "service %s: measurements in %s%s", settings.service_name, store.path, goes_to)


def _host_of(url: str) -> str:
    """A URL without path, and without the credentials that it may hold."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0].rpartition('@')[2]}"


class _ExportThread:
    """Sends from the store in a thread of its own: no collector that hangs keeps recorders from being drained."""

    def __init__(self, settings: Settings, lead: Lead, warn: Callable[[str, str], None]) -> None:
        self.stop = native.Flag()
        self._done = native.Flag()
        self._deadline: float | None = None
        self._settings = settings
        self._lead = lead
        self._warn = warn
        native.start_thread(self._run)

    def finish(self, deadline: float) -> None:
        """Send what is left, and wait for it until `deadline`, s of the monotonic clock."""
        self._deadline = deadline
        self.stop.set()
        self._done.wait(deadline - time.monotonic())

    def _run(self) -> None:
        try:
            self._send_until_stopped()
        except Exception as fault:
            self._warn("export", f"exporting stopped: {type(fault).__name__}: {fault}")
        finally:
            self._done.set()

    def _send_until_stopped(self) -> None:
        if self.stop.wait(min(_FIRST_EXPORT_S, self._settings.report_interval_s)) and self._deadline is None:
            return
        # Here, and not above: requests and protobuf are imported by the process that exports, when it first does.
        from paste_agent.exporters.otlp import OtlpExporter
        from paste_agent.exporters.resource import resource_of

        store = Store(self._lead.store.path)
        try:
            resource = resource_of(self._settings, store.meta("service.instance.id") or "", probes.web_engine())
            exporter = OtlpExporter(self._settings, resource, self._warn, sleep=self.stop.wait)
            self._loop(exporter, store)
        finally:
            store.close()

    def _loop(self, exporter: OtlpExporter, store: Store) -> None:
        settings = self._settings
        metrics_at = traces_at = time.monotonic()
        while not self.stop.is_set():
            now = time.monotonic()
            if now >= traces_at:
                traces_at = now + settings.trace_interval_s
                self._send_traces(exporter, store, now + _cycle_s(settings, "traces"))
            if now >= metrics_at:
                metrics_at = now + settings.report_interval_s
                self._send_metrics(exporter, store, now + _cycle_s(settings, "metrics"))
            self.stop.wait(max(0.01, min(metrics_at, traces_at) - time.monotonic()))
        if self._deadline is not None:
            self._send_metrics(exporter, store, self._deadline)
            self._send_traces(exporter, store, self._deadline)

    def _send_metrics(self, exporter: OtlpExporter, store: Store, deadline: float) -> None:
        with self._said():
            exporter.export_metrics(store, self._lead.readings, deadline)

    def _send_traces(self, exporter: OtlpExporter, store: Store, deadline: float) -> None:
        with self._said():
            exporter.export_traces(store, deadline)

    @contextmanager
    def _said(self) -> Iterator[None]:
        """A store that is busy or full is tried again at the next export."""
        try:
            yield
        except sqlite3.Error as error:
            self._warn("store", f"store {self._lead.store.path}: {error}; what was to be sent waits")


def _cycle_s(settings: Settings, signal: str) -> float:
    target = settings.target(signal)
    return target.timeout_s if target is not None else 0.0


class Reporter:
    """The thread of a process that serves."""

    def __init__(self, settings: Settings, recorder: Recorder, directory: str | None, warn: Warnings) -> None:
        """recorder: this process's, open. directory: the service's runtime directory; None: it is in memory."""
        self._settings = settings
        self._recorder = recorder
        self._directory = directory
        self._warn = warn
        own_reader = Reader(recorder.id, recorder.read, recorder.write, -1)
        own = [] if recorder.path else [own_reader]
        self.leadership = Leadership(settings, directory, recorder.id, own, warn)
        self._folder = Folder(own_reader, Apdex(settings.apdex_t_s))
        self._traces: Store | None = None
        self._ticked_ns = time.perf_counter_ns()
        self._finished = -1
        self._deadline = 0.0
        self._stop = native.Flag()
        self._done = native.Flag()

    def start(self) -> None:
        native.start_thread(self._run)

    def finish(self, timeout_s: float) -> None:
        """End the thread after a last drain and export; waits so long and no longer."""
        self._deadline = time.monotonic() + timeout_s
        self._stop.set()
        self._done.wait(timeout_s)

    def _run(self) -> None:
        try:
            self._recorder.set_word(layout.W_CONCURRENCY, probes.concurrency())
            sleep_s = 0.0  # the first round at once: a worker that lives for a moment is seen all the same
            while not self._stop.wait(sleep_s):
                sleep_s = self._guarded(self._tick)
            self._guarded(self._last)
        finally:
            self._done.set()

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
        finished, self._finished = recorder.last - self._finished, recorder.last
        recorder.sampler.tick(elapsed_s, finished)
        self._write_kept()
        return self.leadership.tick()

    def _last(self) -> float:
        self._recorder.set_words(layout.W_PROBED_AT, probes.probe().words())
        self._write_kept()
        if self._traces is not None:
            self._traces.close()
        self.leadership.complete(self._deadline)
        return 0.0

    def _write_kept(self) -> None:
        """Write the kept transactions of this process to the store; what it refuses is tried again."""
        kept = self._recorder.kept
        if not kept:
            return
        offset_ns = time.time_ns() - time.perf_counter_ns()
        taken = [kept.popleft() for _ in range(len(kept))]
        rows: list[TraceRow] = []
        for transaction in taken:
            attributes = self._folder.key_of(transaction.series & ~FAILED)[1]
            failed = bool(transaction.why & KEPT_FAILED) or transaction.series >= FAILED
            rows.append(detail.trace_row(transaction, attributes, failed, offset_ns, self._settings.record_query))
            native.sleep(0)
        try:
            if self._traces is None:
                self._traces = open_store(self._settings, self._directory, self._warn)
            self._traces.add_traces(rows, time.time())
        except sqlite3.Error as error:
            kept.extendleft(reversed(taken))
            self._warn("store", f"store: {error}; kept traces wait")


def complete(settings: Settings, directory: str, warn: Warnings) -> None:
    """Drain and export for a service none of whose processes is left, or for none that this process serves."""
    leadership = Leadership(settings, directory, "", [], warn)
    leadership.complete(time.monotonic() + settings.shutdown_timeout_s)
