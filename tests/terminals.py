"""Commands in a real terminal: keys go in, frames come out.

with terminal([*PASTE_AGENT, "top", ini], cwd=tmp_path) as screen:
    screen.shows("1 worker")
    screen.press("q")
    assert screen.ended() == 0
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.serving import environment, wait_for

#: The console script, whether or not the distribution is installed.
PASTE_AGENT = [sys.executable, "-c", "import sys; sys.path.remove(''); from paste_agent.cli.main import run; run()"]
#: A frame stands between these two.
_FRAME = re.compile(r"\x1b\[\?2026h(.*?)\x1b\[\?2026l", re.S)
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_PATIENCE_S = 60.0
#: Opened by the first process of a session, a terminal becomes the one whose Ctrl-C and hanging up it hears of.
_IN_CONTROL = "import os, sys; os.close(os.open(os.ttyname(0), os.O_RDWR)); os.execv(sys.argv[1], sys.argv[1:])"
UP, DOWN, ENTER, ESCAPE = "\x1b[A", "\x1b[B", "\r", "\x1b"


class Terminal:
    """A terminal with a command in it. Made by `terminal`."""

    def __init__(self, process: subprocess.Popen[bytes], master: int) -> None:
        self.process = process
        self._master = master
        self._said = b""
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError as error:  # the other end is closed
                assert error.errno in (errno.EIO, errno.EBADF)
                return
            if not data:
                return
            self._said += data

    @property
    def said(self) -> str:
        """All that came, control sequences and all."""
        return self._said.decode("utf-8", "replace")

    @property
    def frames(self) -> list[str]:
        """Each as text."""
        return [_CONTROL.sub("", frame).replace("\r", "") for frame in _FRAME.findall(self.said)]

    @property
    def frame(self) -> str:
        """The last that is whole; '' before the first."""
        frames = self.frames
        return frames[-1] if frames else ""

    def shows(self, *words: str, without: str = "\0") -> str:
        """Wait until the last frame has all of these; that frame. Fails with the frame that it stays at."""

        def shown() -> bool:
            assert self.process.poll() is None, f"it ended before it showed {words}:\n{self.said}"
            return all(word in self.frame for word in words) and without not in self.frame

        try:
            wait_for(shown, f"{words} on the screen", _PATIENCE_S)
        except AssertionError as error:
            raise AssertionError(f"{error}; it shows\n{self.frame or self.said}") from None
        return self.frame

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        _resize(self._master, columns, lines)

    def modes(self) -> list[Any]:
        return termios.tcgetattr(self._master)

    def ended(self) -> int:
        """Wait for its end; the exit status."""
        return self.process.wait(_PATIENCE_S)


def _resize(descriptor: int, columns: int, lines: int) -> None:
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))


@contextlib.contextmanager
def terminal(
    command: Sequence[str], cwd: Path, *, columns: int = 80, lines: int = 24, env: Mapping[str, str] | None = None
) -> Iterator[Terminal]:
    """Run a command in a terminal of that size, for the time of the block. env: complete; None: as of `environment`.

    The command begins with the path of a program.
    """
    given = {**(environment() if env is None else env), "TERM": "xterm-256color"}
    master, slave = pty.openpty()
    try:
        _resize(master, columns, lines)
        process = subprocess.Popen(
            [sys.executable, "-c", _IN_CONTROL, *command],
            cwd=cwd,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            # Without a size in the environment, which would stay when that of the terminal changes.
            env={name: value for name, value in given.items() if name not in ("COLUMNS", "LINES")},
        )
        screen = Terminal(process, master)
        try:
            yield screen
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(_PATIENCE_S)
            os.close(slave)  # once nobody has it any more, reading ends
            slave = -1
            screen._reading.join(_PATIENCE_S)
    finally:
        if slave >= 0:
            os.close(slave)
        os.close(master)
