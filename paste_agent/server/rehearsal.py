"""Loads an application in a child process that ends at once.

On SIGHUP gunicorn starts new workers and stops the old ones, and when the new ones cannot load the application it halts
the whole service. So the arbiter lets a child try first. It cannot try by itself: what it imports, every later worker
inherits, and the next SIGHUP would not import again.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

_GOOD = b"+"
#: A worker without a timeout may load for as long as it likes; the arbiter cannot wait that long.
NO_TIMEOUT_S = 300.0


def rehearse(load: Callable[[], object], explain: Callable[[Exception], str | None], timeout_s: float) -> str | None:
    """Call `load` in a child of this process.

    explain: an exception in one line; None: print its traceback too.
    timeout_s: 0: NO_TIMEOUT_S.
    Returns what went wrong in one line, or None.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _perform(load, explain, writer)
    os.close(writer)
    timeout_s = timeout_s or NO_TIMEOUT_S
    verdict = _first_line(reader, timeout_s)
    os.close(reader)
    if verdict is None:
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):  # some versions of the arbiter reap within a signal handler
        os.waitpid(pid, 0)
    if verdict is None:
        return f"the application did not load within {timeout_s:g} s"
    if verdict == b"":
        return "the process that loaded the application died"
    return None if verdict == _GOOD else verdict.decode(errors="replace")


def _perform(load: Callable[[], object], explain: Callable[[Exception], str | None], writer: int) -> NoReturn:
    """The child. It must not return into the arbiter's stack, nor run what the arbiter registered for its own end."""
    verdict = b"the application ended the process while it loaded"
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        load()
        verdict = _GOOD
    except Exception as error:
        line = explain(error)
        if line is None:
            traceback.print_exc()
            line = f"{type(error).__name__}: {' '.join(str(error).split())}"
        verdict = line.encode(errors="replace")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # The end of a line, and not of the file: a process that the application started may keep the pipe open.
        os.write(writer, verdict[: select.PIPE_BUF - 1] + b"\n")
        os._exit(0)


def _first_line(reader: int, timeout_s: float) -> bytes | None:
    """What the child wrote, b'' when it died silently, None when it took too long."""
    deadline = time.monotonic() + timeout_s
    read = b""
    while not read.endswith(b"\n"):
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not select.select([reader], [], [], left_s)[0]:
            return None
        chunk = os.read(reader, select.PIPE_BUF)
        if not chunk:
            return b""
        read += chunk
    return read.rstrip(b"\n")
