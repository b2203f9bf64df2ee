"""What a process does while it holds the lease: it drains in its reporter's thread, and exports in another.

Imported by the process that leads, when it first does: the other workers do not carry the store.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from paste_agent import native
from paste_agent.exporters.resource import facts, resource_of
from paste_agent.kept import TraceRow
from paste_agent.lead import Lead
from paste_agent.log import Warnings, hush_exports, say
from paste_agent.recorder.reader import Reader
from paste_agent.settings import SIGNALS, Settings
from paste_agent.store.opening import is_corrupt, name_instance, open_store, set_aside
from paste_agent.store.store import Store

if TYPE_CHECKING:
    from paste_agent.exporters.otlp import OtlpExporter

#: The first export of metrics: a newcomer looks at the collector sooner than after a whole interval.
_FIRST_EXPORT_S = 5.0
#: What an import under way may take longer than the time that there is to end.
_IMPORT_S = 1.0
#: What the exporter needs, in pieces.
_EXPORTER = (
    *("ssl", "email.utils", "http.client", "http.cookiejar", "urllib.request", "idna", "certifi"),
    *("charset_normalizer", "urllib3", "requests"),
    *(f"google.protobuf.{name}" for name in ("message", "descriptor", "internal.decoder", "text_format")),
    *(f"google.protobuf.{name}" for name in ("descriptor_pool", "symbol_database", "descriptor_pb2")),
    *(f"opentelemetry.proto.{name}_pb2" for name in ("common.v1.common", "resource.v1.resource", "trace.v1.trace")),
    *(f"opentelemetry.proto.{name}_pb2" for name in ("metrics.v1.metrics", "logs.v1.logs")),
    *("paste_agent.exporters.otlp_encode", "paste_agent.exporters.otlp"),
)
_AGAIN_S = 0.05


class Leadership:
    """The lead's work, from taking the lease until letting go of it."""

    def __init__(
        self, settings: Settings, directory: str | None, recorder: str, own: list[Reader], warn: Warnings
    ) -> None:
        """directory: the service's runtime directory, or None. recorder: id of this process's, '' where it has none.
        own: recorders in this process's memory.

        Raises sqlite3.Error for a store that opens, but cannot be read.
        """
        self._settings = settings
        self._directory = directory
        self._recorder = recorder
        self._warn = warn
        self._own = own
        self._path = ""  #: of the store that was opened last
        self._export: _ExportThread | None = None
        try:
            self._lead = self._opened()
        except sqlite3.DatabaseError as error:
            if not is_corrupt(error):
                raise
            # Its first page is sound, which is all that was read to open it.
            set_aside(self._path, error, warn)
            self._lead = self._opened()

    def _opened(self) -> Lead:
        store = open_store(self._settings, self._directory, self._warn)
        self._path = store.path
        try:
            name_instance(self._settings, store)
            return Lead(self._settings, store, self._directory, self._own, self._warn)
        except BaseException:
            store.close()
            raise

    def _begin_anew(self, error: sqlite3.Error) -> None:
        """The store has become corrupt under way: set it aside, and go on with a new one."""
        if self._export is not None:
            self._export.stop.set()
            self._export = None
        self._lead.close()
        set_aside(self._path, error, self._warn)
        self._lead = self._opened()

    def tick(self, traces: deque[TraceRow]) -> float:
        """Drain once. Returns how long to sleep, s. A store that refuses is told of, and tried again.

        traces: kept by this process, where it has no runtime directory; taken from it when they are stored.
        """
        try:
            self._take(traces)
            self._lead.drain()
            self._lead.tidy()
        except sqlite3.Error as error:
            if is_corrupt(error):
                self._begin_anew(error)
                return 0.0
            self._say_store(error)
        if self._export is None and self._exports():
            self._export = _ExportThread(self._settings, self._lead, self._warn)
        return self._lead.next_drain_s

    def complete(self, deadline: float, traces: deque[TraceRow], *, exports: bool = True) -> None:
        """The last drain of this process, whose recorder is marked closed; when no other serves, the last export too.

        deadline: s of the monotonic clock. traces: see `tick`. exports: false where somebody does after this process.
        """
        self._lead.patient = False
        try:
            self._take(traces)
            self._drain_before(deadline)
            lead = self._lead
            if not lead.others_serve(self._recorder):
                # All are closed by now, those of processes that are still ending too: this drain gets the rest.
                lead.drain()
                if exports and self._export is None and self._exports():
                    self._export = _ExportThread(self._settings, lead, self._warn)
                if exports and self._export is not None:
                    self._export.finish(deadline)
        except sqlite3.Error as error:
            self._say_store(error)
        finally:
            if self._export is not None:
                self._export.stop.set()
            self._lead.close()

    def _drain_before(self, deadline: float) -> None:
        """Drain; nobody tries again after this process. Raises sqlite3.Error."""
        while True:
            try:
                self._lead.drain()
                return
            except sqlite3.DatabaseError as error:
                if time.monotonic() >= deadline:
                    raise
                if is_corrupt(error):
                    self._begin_anew(error)
                    self._lead.patient = False
                native.sleep(_AGAIN_S)  # busy, or another lead has been at it

    def catch_up(self) -> None:
        """One drain, and nothing sent."""
        self._lead.patient = False
        try:
            self._lead.drain()
        except sqlite3.Error as error:
            self._say_store(error)
        finally:
            self._lead.close()

    def close_readers(self) -> None:
        """In a forked child: close what keeps locks of the parent, and nothing else."""
        self._lead.close_readers()

    def say_start(self, level: int) -> None:
        """The one line of a start: which service reports where. With it, what of the environment is passed over."""
        settings = self._settings
        targets = [target for target in map(settings.target, SIGNALS) if target is not None]
        goes_to = f", sent to {', '.join(dict.fromkeys(_host_of(target.url) for target in targets))}" if targets else ""
        name, path = settings.service_name, self._lead.store.path
        say(level, f"service {name}: measurements in {path}{goes_to}")
        for line in settings.passed_over if level >= logging.INFO else ():
            say(logging.WARNING, f"{name}: {line}")

    def _take(self, traces: deque[TraceRow]) -> None:
        self._lead.take_traces(traces)
        traces.clear()

    def _exports(self) -> bool:
        return any(self._settings.target(signal) for signal in SIGNALS)

    def _say_store(self, error: sqlite3.Error) -> None:
        waits_in = self._directory or "memory"
        self._warn("store", f"store {self._lead.store.path}: {error}; measurements wait in {waits_in}")


def _host_of(url: str) -> str:
    """A URL without path, and without the credentials that it may hold."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0].rpartition('@')[2]}"


class _ExportThread:
    """Sends from the store in a thread of its own: no collector that hangs keeps recorders from being drained."""

    def __init__(self, settings: Settings, lead: Lead, warn: Callable[[str, str], None]) -> None:
        self.stop = native.Flag()
        self._done, self._imported = native.Flag(), native.Flag()
        self._deadline: float | None = None
        self._settings = settings
        self._lead = lead
        self._warn = warn
        self._started = True
        try:
            native.start_thread(self._run)
        except RuntimeError:  # since Python 3.12, once the interpreter has begun to end
            self._started = False

    def finish(self, deadline: float) -> None:
        """Send what is left, and wait for it until `deadline`, s of the monotonic clock."""
        self._deadline = deadline
        self.stop.set()
        if not self._started:
            self._run()
        self._done.wait(deadline - time.monotonic())
        # What requests imports makes a handler of `logging`, and the interpreter is about to go through all of them:
        # one that is half made would keep it from flushing the rest.
        self._imported.wait(_IMPORT_S)

    def _run(self) -> None:
        try:
            hush_exports()
            self._send_until_stopped()
        except Exception as fault:
            self._warn("export", f"exporting stopped: {type(fault).__name__}: {fault}")
        finally:
            self._imported.set()
            self._done.set()

    def _send_until_stopped(self) -> None:
        if self.stop.wait(min(_FIRST_EXPORT_S, self._settings.report_interval_s)) and self._deadline is None:
            return
        # Here, and not above: requests and protobuf are imported by the process that exports, when it first does.
        native.import_gently(_EXPORTER, lambda: not self.stop.is_set())
        with native.UNDIVIDED:
            from paste_agent.exporters.otlp import OtlpExporter
        self._imported.set()
        store = Store(self._lead.store.path)
        try:
            resource = resource_of(self._settings, store.meta("service.instance.id") or "", facts())
            exporter = OtlpExporter(self._settings, resource, self._warn, sleep=self._nap)
            try:
                self._loop(exporter, store)
            finally:
                exporter.close()
        finally:
            store.close()

    def _nap(self, seconds: float) -> bool:
        """Sleep; whether the wait was cut short. The last export goes on trying until its deadline."""
        if self._deadline is None:
            return self.stop.wait(seconds)
        native.sleep(seconds)
        return False

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
            with self._said():
                # No process is left that could still write a detail.
                exporter.export_traces(store, self._deadline, bare_after_s=-1.0)
            with self._said():
                exporter.export_logs(store, self._deadline)

    def _send_metrics(self, exporter: OtlpExporter, store: Store, deadline: float) -> None:
        with self._said():
            exporter.export_metrics(store, self._lead.readings, deadline)

    def _send_traces(self, exporter: OtlpExporter, store: Store, deadline: float) -> None:
        with self._said():
            exporter.export_traces(store, deadline)
        with self._said():
            exporter.export_logs(store, time.monotonic() + _cycle_s(self._settings, "logs"))

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
