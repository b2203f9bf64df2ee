"""A full screen in a terminal: keys as they are pressed, frames without flicker, and all as it was afterwards."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator
from types import FrameType

from rich.console import Console, RenderableType

#: What a terminal sends for a key that has a name here.
_NAMES = {
    "\x1b[A": "up", "\x1b[B": "down", "\x1bOA": "up", "\x1bOB": "down", "\x1b[5~": "page up", "\x1b[6~": "page down",
    "\x1b[H": "home", "\x1b[F": "end", "\x1bOH": "home", "\x1bOF": "end", "\x1b[1~": "home", "\x1b[4~": "end",
    "\x1b[C": "right", "\x1b[D": "left", "\x1bOC": "right", "\x1bOD": "left",
    "\r": "enter", "\n": "enter", "\x7f": "backspace", "\x08": "backspace", "\x1b": "escape", "\t": "tab",
}  # fmt: skip
#: Of a sequence of a terminal: what it begins with, and how long its end may take to arrive.
_ESCAPE, _SEQUENCE_S = "\x1b", 0.05
#: How often the size of the terminal is looked at.
_SIZE_S = 0.2
#: Terminals that know it show a frame whole, the others pass over it.
_BEGIN, _END = "\x1b[?2026h", "\x1b[?2026l"
_HOME, _REST_OF_LINE, _REST = "\x1b[H", "\x1b[K", "\x1b[J"


class Screen:
    """The terminal while a command has it. Made by `screen`."""

    def __init__(self, console: Console, descriptor: int) -> None:
        self._console = console
        self._descriptor = descriptor
        self._held = ""  #: bytes of a key that has not come whole
        self._size = console.size

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines."""
        return self._console.size

    def lines(self, page: RenderableType) -> list[str]:
        """A page as lines for `show`."""
        with self._console.capture() as captured:
            self._console.print(page)
        return captured.get().rstrip("\n").split("\n")

    def show(self, lines: list[str]) -> None:
        """Show as many lines as there is room for, in the place of what was there."""
        fitting = lines[: self._console.size.height]
        # Written over and not cleared first; no line end after the last, which would scroll.
        frame = f"{_REST_OF_LINE}\r\n".join(fitting)
        self._console.file.write(f"{_BEGIN}{_HOME}{frame}{_REST_OF_LINE}{_REST}{_END}")
        self._console.file.flush()

    def keys(self, seconds: float) -> list[str]:
        """Keys that are pressed within so many seconds, as soon as there are some: characters, and names such as `up`.

        Empty when there are none, or when the terminal has another size than before. Raises EOFError once it is gone.
        """
        deadline = time.monotonic() + seconds
        while True:
            left_s = max(0.0, deadline - time.monotonic())
            if self._read(min(_SIZE_S, left_s)):
                while self._held.startswith(_ESCAPE) and _is_begun(self._held) and self._read(_SEQUENCE_S):
                    pass
                keys, self._held = _split(self._held), ""
                return keys
            if self._console.size != self._size or left_s <= _SIZE_S:
                self._size = self._console.size
                return []

    def _read(self, seconds: float) -> bool:
        ready, _, _ = select.select([self._descriptor], [], [], seconds)
        if not ready:
            return False
        data = os.read(self._descriptor, 1024)
        if not data:
            raise EOFError
        self._held += data.decode("utf-8", "ignore")
        return True


def _is_begun(text: str) -> bool:
    """Whether the text may be the beginning of a longer key."""
    return any(name.startswith(text) and name != text for name in _NAMES)


def _split(text: str) -> list[str]:
    """The keys that a text is made of; sequences that are not known are left out."""
    found: list[str] = []
    while text:
        known = max((name for name in _NAMES if text.startswith(name)), key=len, default="")
        if known == _ESCAPE and len(text) > 1 and text[1] in "[O":
            end = next((at for at in range(2, len(text)) if text[at].isalpha() or text[at] == "~"), len(text))
            text = text[end + 1 :]
            continue
        found += [_NAMES[known]] if known else [text[0]] if text[0].isprintable() else []
        text = text[len(known) or 1 :]
    return found


@contextlib.contextmanager
def screen(console: Console) -> Iterator[Screen]:
    """Take the terminal; afterwards it is as it was, also when SIGTERM or SIGHUP arrives. stdin must be a terminal."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    handlers = {number: signal.signal(number, _leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        tty.setcbreak(descriptor)
        without_stop = termios.tcgetattr(descriptor)
        # Ctrl-Z would leave the shell with a terminal that nobody has put right.
        without_stop[6][termios.VSUSP] = b"\0"
        termios.tcsetattr(descriptor, termios.TCSANOW, without_stop)
        console.set_alt_screen(True)
        console.show_cursor(False)
        yield Screen(console, descriptor)
    finally:
        with contextlib.suppress(OSError):  # the terminal may be what is gone
            console.show_cursor(True)
            console.set_alt_screen(False)
        with contextlib.suppress(termios.error):
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
