"""A file in which the interpreter itself says where its threads were when a signal ended the process.

Python's own handlers of signals wait for the interpreter, and a thread that computes in C may not let go of it until
the process is killed. The standard library's faulthandler writes from within the C handler. It runs before gunicorn's
handler of SIGABRT, which then runs as if nothing had been, and leaves the other signals to end the process.
"""

from __future__ import annotations

import faulthandler
import os

from paste_agent import runtime_dir

SUFFIX = ".crash"
#: More than this is not read of a file.
MAX_BYTES = 524_288


class CrashFile:
    """The file of this process, while it lives."""

    def __init__(self, path: str) -> None:
        """Raises OSError."""
        self.path = path
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_APPEND
        self._descriptor = os.open(path, flags, 0o600)
        try:
            faulthandler.enable(self._descriptor, all_threads=True)
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """The process ends in order: nothing has been written."""
        self.let_go()
        try:
            os.unlink(self.path)
        except OSError:
            pass

    def let_go(self) -> None:
        """Also in a forked child: the file is the parent's."""
        if self._descriptor >= 0:
            faulthandler.disable()
            os.close(self._descriptor)
            self._descriptor = -1


def crash_file(recorder_path: str | None) -> CrashFile | None:
    """Begin the file beside a recorder; None where there can be none, or where somebody else uses faulthandler."""
    if recorder_path is None or faulthandler.is_enabled():
        return None
    try:
        return CrashFile(os.path.splitext(recorder_path)[0] + SUFFIX)
    except (OSError, RuntimeError, ValueError):
        return None


def written_at_ns(path: str) -> int:
    """When a signal was last told of, since the epoch; 0: none was."""
    try:
        status = os.lstat(path)
    except OSError:
        return 0
    return status.st_mtime_ns if status.st_size else 0


def read(path: str) -> str:
    """What it says; '' where there is no such file, or it is none to read."""
    try:
        return runtime_dir.read_file(path, MAX_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
