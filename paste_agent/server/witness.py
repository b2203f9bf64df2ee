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
BOOT = "boot"  #: reason of `paste_agent.worker.lost`


class Witness:
    """Belongs to the arbiter's main loop. Raises nothing."""

    def __init__(self, services: Sequence[Settings]) -> None:
        self._services = list(services)

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
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) in _NOT_BOOTED:
            now_ns = time.perf_counter_ns()
            for settings in self._services:
                lifecycle.agent_of(settings).record(layout.KIND_LOST, (BOOT,), now_ns, 0)

    def _tell(self, pid: int, words: dict[int, int]) -> None:
        for settings in self._services:
            try:
                paths = list(_recorders_of(runtime_dir.existing_service_dir(settings, os.environ), pid))
            except (OSError, RuntimeDirError):
                continue  # the worker records in memory
            for path in paths:
                try:
                    _write_words(path, words)
                except OSError:
                    continue  # the lead has just removed it


def _recorders_of(directory: str | None, pid: int) -> Iterator[str]:
    if directory is not None:
        for name in os.listdir(directory):
            if name.startswith(f"{pid}-") and name.endswith(layout.SUFFIX):
                yield os.path.join(directory, name)


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
