"""gunicorn's arbiter, which tells how its workers end; and one that also outlives a broken configuration on SIGHUP."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import gunicorn.arbiter
from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer

from paste_agent.server.hooks import is_disowned
from paste_agent.server.witness import Witness
from paste_agent.settings import Settings

#: How long the kernel may take to end a process that was sent SIGKILL.
_DYING_S = 1.0


class ReloadRefused(Exception):
    """SIGHUP found a configuration that cannot be served; str() of it is one line."""


class WitnessingArbiter(Arbiter):  # type: ignore[misc]  # gunicorn ships no types
    """Tells the recorders of its workers how these end. Subclasses say of which services."""

    #: Whether it is just about to kill those that give no sign of life.
    murdering = False

    def __init__(self, app: Any) -> None:
        super().__init__(app)
        _watch_waiting(self)

    def served(self) -> Sequence[Settings]:
        """The services of its workers, as they are configured now: SIGHUP may change them."""
        raise NotImplementedError

    @property
    def witness(self) -> Witness:
        return Witness(self.served(), self.cfg.uid)

    def stop(self, graceful: bool = True) -> None:
        super().stop(graceful)
        # Those that it had to kill in the end are still dying; on_exit, where the count is completed, comes next.
        deadline = time.monotonic() + _DYING_S
        while self.WORKERS and time.monotonic() < deadline:
            time.sleep(0.01)
            self.reap_workers()

    def murder_workers(self) -> None:
        self.murdering = True
        try:
            super().murder_workers()
        finally:
            self.murdering = False

    def kill_worker(self, pid: int, sig: int) -> None:
        self.witness.has_sent(pid, sig, timed_out=self.murdering)
        super().kill_worker(pid, sig)


class IniArbiter(WitnessingArbiter):
    """The arbiter of an IniApplication."""

    halting = False

    def served(self) -> Sequence[Settings]:
        services: Sequence[Settings] = self.app.services
        return services

    def start(self) -> None:
        super().start()
        for path in self.app.dashboards():
            self.log.info("Dashboard at: %s", ", ".join(f"{listener}{path}/" for listener in self.LISTENERS))

    def reload(self) -> None:
        try:
            super().reload()
        except ReloadRefused as refused:
            # Raised by app.reload(). All that gunicorn has done before it is to reset the environment.
            os.environ.update(self.cfg.env)
            self.log.error("Not reloaded, the running configuration stays: %s", refused, exc_info=refused.__cause__)

    def halt(self, reason: str | None = None, exit_status: int = 0) -> None:
        self.halting = True
        # The message is already on stderr; to the shell it is the same failure as one found before the first fork.
        super().halt(reason, 1 if exit_status == self.APP_LOAD_ERROR else exit_status)

    def reap_workers(self) -> None:
        try:
            super().reap_workers()
        except HaltServer:
            self._forget_reaped()
            if not self.halting:
                raise
            # The second of several workers that cannot boot: gunicorn would leave halt() halfway, without on_exit.
            self.reap_workers()

    def _forget_reaped(self) -> None:
        # Before gunicorn 27 the worker that halts the server stays in the table, and stop() waits for it to end.
        for pid, worker in list(self.WORKERS.items()):
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                del self.WORKERS[pid]
                worker.tmp.close()


class _WatchedOs(ModuleType):
    """The module `os` as gunicorn's arbiter sees it: what `waitpid` returns is seen by the witness as well.

    gunicorn keeps the status of a worker to itself: `child_exit` does not get it. To look at it before gunicorn does,
    with WNOWAIT, would miss the worker that ends between the two.
    """

    def __init__(self, arbiter: WitnessingArbiter) -> None:
        super().__init__("os")
        self.__dict__.update(vars(os))
        self._arbiter = arbiter

    def waitpid(self, pid: int, options: int) -> tuple[int, int]:
        ended, status = os.waitpid(pid, options)
        worker = self._arbiter.WORKERS.get(ended)
        if worker is not None and not is_disowned(worker):
            self._arbiter.witness.has_ended(ended, status)
        return ended, status


def _watch_waiting(arbiter: WitnessingArbiter) -> None:
    watched = _WatchedOs(arbiter)
    watched.__dict__.pop("waitpid")  # the class's is found instead
    gunicorn.arbiter.os = watched
