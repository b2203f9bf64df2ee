"""Each service of this process: unopened, open, closed; and what happens to it when the process forks or ends.

Nothing that a fork breaks is made at import or in a factory: no thread, no socket, no database handle, no lock that
could be held, no open recorder. A recorder opens at the first thing that is recorded, the reporter starts once the
process serves, and a forked child is back at the unopened state.
"""

from __future__ import annotations

import atexit
import functools
import os
from collections.abc import Callable, Sequence

from paste_agent import log, native, probes
from paste_agent.crash import CrashFile, crash_file
from paste_agent.error_rules import ErrorRules
from paste_agent.errors import RuntimeDirError
from paste_agent.log import Warnings
from paste_agent.naming import environ_key
from paste_agent.owed import MOST, Owed, Record
from paste_agent.recorder import layout
from paste_agent.recorder.writer import Recorder
from paste_agent.reporter import Reporter, complete
from paste_agent.runtime_dir import existing_service_dir, service_dir
from paste_agent.sampler import Sampler
from paste_agent.settings import Settings
from paste_agent.transaction import current
from paste_agent.watch import Watch

#: Faults of the agent that may occur before there is one that counts them.
_MOST_FAULTS = 1000


class Agent:
    """One service in this process."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.warn = Warnings(settings.service_name)
        #: Whether an application of this process is behind it.
        self.has_filter = False
        #: The recorder, once the process serves; read by every request.
        self.serving: Recorder | None = None
        self._recorder: Recorder | None = None
        self._reporter: Reporter | None = None
        self._watch: Watch | None = None
        self._crash_file: CrashFile | None = None
        self._directory: str | None = None
        self._opening = native.make_lock()
        self._faults = 0
        #: What its layers took to load. A factory opens no recorder, so this waits until one is open.
        self.loads: list[Record] = []
        #: Whether they are complete: an arbiter loads all anew at each reload, and announces what it has loaded.
        self.loaded = False

    def open(self) -> Recorder:
        """The recorder of this process, opened at the first call. For what is recorded without being served."""
        if self._recorder is None:
            # Held for the time of one opening, once a process; a forked child gets a lock of its own.
            with _Held(self._opening), native.UNDIVIDED:
                if self._recorder is None:
                    self._recorder = self._open()
                    self._recorder.set_word(layout.W_INTERNAL_ERRORS, self._faults)
                    while self.loads:
                        self._recorder.record(*self.loads.pop())
        return self._recorder

    def serve(self) -> Recorder:
        """The recorder, with a reporter behind it from now on."""
        recorder = self.open()
        with _Held(self._opening):
            if self.serving is None:
                # First: when no thread can be started the requests are counted all the same, by another process's lead.
                self.serving = recorder
                self._begin_to_serve(recorder)
        return recorder

    def _begin_to_serve(self, recorder: Recorder) -> None:
        settings = self.settings
        recorder.ident = native.ident_function()
        recorder.set_word(layout.W_SERVING, 1)
        recorder.set_word(layout.W_TIMEOUT_MS, probes.timeout_ms())
        self._crash_file = self._crash_file or crash_file(recorder.path)
        slow_ns, stuck_ns = round(settings.slow_request_s * 1e9), round(settings.stuck_request_s * 1e9)
        self._watch = Watch(recorder, settings.service_name, slow_ns, stuck_ns)
        _listen_for_abort(_abort_all)
        self._reporter = Reporter(settings, recorder, self._directory, self.warn, self._watch)
        self._reporter.start()
        log.start_flushing()

    def record(
        self, kind: int, fields: tuple[str | None, ...], start_ns: int, duration_ns: int, failed: bool = False
    ) -> None:
        """Leave one record that is no request's; see `Recorder.record`. Raises nothing."""
        try:
            self.open().record(kind, fields, start_ns, duration_ns, failed)
        except Exception as fault:
            self.on_fault("record", fault)

    def count_dropped(self, many: int) -> None:
        """So many records have been lost before there was this agent. Raises nothing."""
        try:
            self.open().count_dropped(many)
        except Exception as fault:
            self.on_fault("record", fault)
        self.warn("owed", f"{many} records of what came before the agent were dropped: {MOST} of a kind are kept")

    def abort(self) -> None:
        """The process has been told by SIGABRT that its time is up: write down what is in flight. Raises nothing."""
        recorder, watch = self.serving, self._watch
        if recorder is None or watch is None:
            return
        try:
            recorder.set_word(layout.W_ABORTED, 1)
            watch.last_look()
        except Exception as fault:
            self.on_fault("abort", fault)

    def finish(self) -> None:
        """The process ends: the last drain and export, in the time that `shutdown_timeout_s` gives."""
        recorder, reporter = self._recorder, self._reporter
        # What is still recorded after this opens another recorder: this one's last records are about to be read.
        self.serving = self._recorder = self._reporter = self._watch = None
        if recorder is not None:
            if reporter is not None and probes.has_served_its_time():
                recorder.set_word(layout.W_RECYCLED, 1)
            if reporter is not None:
                reporter.leave_last()
            recorder.mark_closed()
        if reporter is not None:
            reporter.finish(self.settings.shutdown_timeout_s)
            log.flush()
        if self._crash_file is not None:
            self._crash_file.let_go()  # the file goes with the recorder
            self._crash_file = None

    def after_fork(self) -> None:
        """In the child: unopened again. What the parent uses is let go of, and left alone."""
        if self._reporter is not None:
            self._reporter.abandon()
            # Not even collected: closing an SQLite connection here would disturb the parent's.
            _INHERITED.append(self._reporter)
        if self._recorder is not None:
            self._recorder.detach()
        if self._crash_file is not None:
            self._crash_file.let_go()
        self.serving = self._recorder = self._reporter = self._watch = self._crash_file = None
        self._opening = native.make_lock()
        self._faults = 0

    def on_fault(self, where: str, fault: BaseException) -> None:
        """A fault of the agent was caught at `where`; the application did not notice. Raises nothing."""
        self._faults += 1
        try:
            if self._recorder is not None:
                self._recorder.set_word(layout.W_INTERNAL_ERRORS, self._faults)
        except Exception:  # the recorder itself is what fails
            pass
        self.warn(f"fault in {where}", f"a fault of the agent in {where}: {type(fault).__name__}: {fault}")

    def _open(self) -> Recorder:
        settings = self.settings
        try:
            self._directory = service_dir(settings, os.environ)
        except RuntimeDirError as error:
            self._directory = None
            self.warn("runtime directory", f"{error}; recording in memory, without recovery after a kill")
        try:
            return self._recorder_in(self._directory)
        except OSError as error:
            self.warn(
                "recorder", f"{self._directory}: {error.strerror}; recording in memory, without recovery after a kill"
            )
            self._directory = None
            return self._recorder_in(None)

    def _recorder_in(self, directory: str | None) -> Recorder:
        settings = self.settings
        return Recorder(
            directory=directory,
            service=settings.service_name,
            records=settings.ring_records,
            max_series=settings.max_series,
            sampler=Sampler(
                slow_ns=round(settings.slow_request_s * 1e9),
                parent=settings.parent_traces_per_min,
                random=settings.random_traces_per_min,
                slow=settings.slow_traces_per_min,
                failed=settings.failed_traces_per_min,
                seed=int.from_bytes(os.urandom(16), "big"),
                queries=settings.query_traces_per_min,
                slow_query_ns=round(settings.slow_query_s * 1e9),
                repeated=settings.repeated_queries,
                headers=list(map(environ_key, settings.record_headers)),
            ),
            on_fault=self.on_fault,
            propagators=settings.propagators,
            error_rules=ErrorRules(
                expected=settings.expected_errors,
                ignored=settings.ignore_errors,
                expected_statuses=settings.expected_statuses,
                ignored_statuses=settings.ignore_statuses,
            ),
        )


class _Held:
    """`with` for a native lock."""

    def __init__(self, lock: native.Lock) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self._lock.release()


#: Reporters of a parent process, kept from being collected.
_INHERITED: list[Reporter] = []
_agents: dict[tuple[str, str, str | None], Agent] = {}


_owed_faults: list[tuple[str, BaseException]] = []
_owed = Owed()


def identity_of(settings: Settings) -> tuple[str, str, str | None]:
    """What tells one service from another on this host."""
    return settings.service_name, settings.store, settings.runtime_dir


def agent_of(settings: Settings) -> Agent:
    """The agent of a service; one a service, however often its filter is made in this process."""
    agent = _agents.setdefault(identity_of(settings), Agent(settings))
    if agent.serving is None:
        agent.settings = settings  # those of a reload, where the ini has been read again
    records, dropped = _owed.take()
    for owed in records:
        if owed[0] == layout.KIND_LOAD:
            if agent.loaded:
                agent.loads, agent.loaded = [], False
            agent.loads.append(owed)
        else:
            agent.record(*owed)
    if dropped:
        agent.count_dropped(dropped)
    while _owed_faults:
        agent.on_fault(*_owed_faults.pop())
    return agent


def announce(services: Sequence[Settings]) -> None:
    """The services of an ini that this process, or its children, will serve: they alone, from now on."""
    agents = [agent_of(settings) for settings in services]
    for identity, agent in list(_agents.items()):
        agent.loaded = True
        if agent not in agents:
            del _agents[identity]
            agent.finish()


def withdraw(settings: Settings) -> None:
    """A service that was announced, and has no application after all: what is recorded from now on is another's."""
    agent = _agents.get(identity_of(settings))
    if agent is not None and not agent.has_filter:
        del _agents[identity_of(settings)]
        agent.finish()


def served() -> list[Settings]:
    """The services that have an application in this process."""
    return [agent.settings for agent in _agents.values() if agent.has_filter]


def current_agent() -> Agent | None:
    """The agent that counts what does not say whose it is; None before the first filter is made."""
    return next(iter(_agents.values()), None)


def owe(kind: int, fields: tuple[str | None, ...], start_ns: int, duration_ns: int, failed: bool) -> None:
    """Something that is no request's is to be recorded, and there is no agent: the next one records it."""
    _owed.add((kind, fields, start_ns, duration_ns, failed))


def on_fault(where: str, fault: BaseException) -> None:
    """A fault of the agent that belongs to no service: the first one counts it, once there is one. Raises nothing."""
    agent = current_agent()
    if agent is not None:
        agent.on_fault(where, fault)
    elif len(_owed_faults) < _MOST_FAULTS:
        _owed_faults.append((where, fault.with_traceback(None)))


def start_reporters() -> list[Agent]:
    """Every agent with an application in this process serves from now on, without waiting for a request."""
    agents = [agent for agent in _agents.values() if agent.has_filter]
    for agent in agents:
        agent.serve()
    return agents


def finish(services: Sequence[Settings]) -> None:
    """Complete the count of services whose workers have ended: for the arbiter, which has no reporter."""
    _finish_all()
    for settings in services:
        if not settings.enabled:
            continue
        warn = Warnings(settings.service_name)
        try:
            directory = existing_service_dir(settings, os.environ)
        except RuntimeDirError:
            continue  # said by the workers, which had nothing there either
        if directory is not None:  # else no pipeline has the section, or nothing was ever recorded
            complete(settings, directory, warn)


def _finish_all() -> None:
    for agent in _agents.values():
        agent.finish()


def _abort_all() -> None:
    for agent in _agents.values():
        agent.abort()


def _listen_for_abort(call: Callable[[], None]) -> None:
    """Have gunicorn's worker call `call` when the arbiter's SIGABRT has reached it; the user's hook goes first.

    The worker's own configuration is the way there that every version and every way to start has.
    """
    worker = probes.gunicorn_worker()
    theirs = getattr(getattr(worker, "cfg", None), "worker_abort", None)
    if not callable(theirs) or hasattr(theirs, "_paste_agent"):
        return

    @functools.wraps(theirs)
    def worker_abort(worker: object) -> object:
        try:
            return theirs(worker)
        finally:
            call()

    worker_abort._paste_agent = True  # type: ignore[attr-defined]
    try:
        worker.cfg.set("worker_abort", worker_abort)
    except Exception:  # not gunicorn's configuration, whatever it is
        pass


def _after_fork_in_child() -> None:
    native.UNDIVIDED.after_fork_in_child()
    _owed.clear()  # the parent counts them
    current.set(None)  # what the child does from now on is no part of the parent's transaction
    log.forget()
    for agent in _agents.values():
        agent.after_fork()


atexit.register(_finish_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=native.UNDIVIDED.before_fork,
        after_in_parent=native.UNDIVIDED.after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
