"""What only gunicorn's arbiter knows of a worker, told to the worker's flight recorder: how it ended, and who ended it.

The lead reads it there when it gives account of the worker. No thread, no lock; files are touched only when a worker
has ended or is about to be killed.
"""

from __future__ import annotations

import os
import signal
import stat
import time
from collections.abc import Iterator, Sequence

from paste_agent import lifecycle, runtime_dir
from paste_agent.errors import RuntimeDirError
from paste_agent.recorder import layout
from paste_agent.settings import Settings

#: Exit statuses of gunicorn's workers that could not begin to serve: WORKER_BOOT_ERROR and APP_LOAD_ERROR.
_NOT_BOOTED = (3, 4)
#: Signals that are sent to a worker so that it ends, also to one that still boots.
_ASKED_FOR = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
BOOT = "boot"  #: reason of `paste_agent.worker.lost`


class Witness:
    """Belongs to the arbiter's main loop. Raises nothing."""

    def __init__(self, services: Sequence[Settings], user: int | None = None) -> None:
        """user: that the workers run as, if it is not the arbiter's; the recorders of another one are not found."""
        self._services = list(services)
        self._finds = user is None or user == os.geteuid()

    def has_sent(self, pid: int, number: int, timed_out: bool) -> None:
        """The arbiter is about to send SIGABRT or SIGKILL. timed_out: because the worker gives no sign of life."""
        if number not in (signal.SIGABRT, signal.SIGKILL):
            return
        words = {layout.W_KILLED_WITH: int(number)}
        if timed_out:
            words[layout.W_TIMED_OUT] = 1
        self._tell(pid, words)

    def has_ended(self, pid: int, status: int) -> None:
        """status: as `os.waitpid` gives it."""
        self._tell(pid, {layout.W_EXIT_AT: time.perf_counter_ns(), layout.W_EXIT: status + 1})
        if self._did_not_boot(pid, status):
            now_ns = time.perf_counter_ns()
            for settings in self._services:
                lifecycle.agent_of(settings).record(layout.KIND_LOST, (BOOT,), now_ns, 0)

    def _did_not_boot(self, pid: int, status: int) -> bool:
        """Whether a worker ended before it served: no recorder tells of it."""
        if os.WIFEXITED(status):
            return os.WEXITSTATUS(status) in _NOT_BOOTED
        if not self._services or not self._finds or os.WTERMSIG(status) in _ASKED_FOR:
            return False
        return not any(_serves(path) for path in self._recorders(pid))

    def _tell(self, pid: int, words: dict[int, int]) -> None:
        for path in self._recorders(pid):
            try:
                _write_words(path, words)
            except OSError:
                continue  # the lead has just removed it

    def _recorders(self, pid: int) -> list[str]:
        found: list[str] = []
        for settings in self._services:
            try:
                found += _recorders_of(runtime_dir.existing_service_dir(settings, os.environ), pid)
            except (OSError, RuntimeDirError):
                continue  # the worker records in memory
        return found


def _recorders_of(directory: str | None, pid: int) -> Iterator[str]:
    if directory is not None:
        for name in os.listdir(directory):
            if name.startswith(f"{pid}-") and name.endswith(layout.SUFFIX):
                yield os.path.join(directory, name)


def _serves(path: str) -> bool:
    """Whether a recorder is one of a process that serves; so is one that cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return True
    try:
        return any(os.pread(descriptor, 8, layout.WORDS_AT + 8 * layout.W_SERVING))
    except OSError:
        return True
    finally:
        os.close(descriptor)


def _write_words(path: str, words: dict[int, int]) -> None:
    """Without the file's lock, which is the worker's, or its lead's: nobody else writes these words."""
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_size < layout.HEADER_SIZE:
            return
        for word, value in words.items():
            os.pwrite(descriptor, value.to_bytes(8, "little"), layout.WORDS_AT + 8 * word)
    finally:
        os.close(descriptor)
