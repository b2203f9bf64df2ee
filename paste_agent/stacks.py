"""Stacks as text: read back from where they were written down, and shown with their lines of source."""

from __future__ import annotations

import linecache
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from paste_agent.raised import BETWEEN, Frame, is_library

#: As Python prints a frame, and as faulthandler does, without the comma.
_FRAME = re.compile(r'\s*File "([^"\n]{1,1024})", line ([0-9]{1,9}),? in ([^\n]{1,256})')
_FATAL = re.compile(r"Fatal Python error: ([^\n]{1,128})")
_THREAD = re.compile(r"(Thread|Current thread) 0x([0-9a-f]{1,16})\b[^\n]* \(most recent call first\):")
_MAX_FRAMES = 100
_MAX_THREADS = 512
#: No file of source is larger.
_MAX_SOURCE = 1024 * 1024
#: Bytes of source that are read for one stack.
_MAX_READ = 2 * 1024 * 1024
#: Bytes of source that stay in memory once they have been read: a forged stack may name any number of files.
_MAX_CACHED = 4 * 1024 * 1024


class Crash(NamedTuple):
    """What faulthandler wrote when a signal arrived."""

    error: str  #: such as `Segmentation fault`; '': nothing was written
    threads: dict[int, list[Frame]]  #: by ident; outermost first
    current: int  #: ident of the thread that the signal arrived in; 0: it does not say


def parse(text: str) -> list[Frame]:
    """The frames of a stack, in its order; lines that are none are passed over."""
    found = (_FRAME.match(line) for line in text.splitlines()[: 2 * _MAX_FRAMES])
    return [_frame(match) for match in found if match is not None][:_MAX_FRAMES]


def parse_crash(text: str) -> Crash:
    """Read what `crash.CrashFile` has caught. Only the newest report in it counts."""
    begins = [match.start() for match in _FATAL.finditer(text)]
    if not begins:
        return Crash("", {}, 0)
    error = _FATAL.match(text, begins[-1])
    assert error is not None
    threads: dict[int, list[Frame]] = {}
    current = 0
    frames: list[Frame] = []
    for line in text[begins[-1] :].splitlines():
        thread = _THREAD.match(line)
        frame = _FRAME.match(line)
        if thread is not None and len(threads) < _MAX_THREADS:
            frames = threads.setdefault(int(thread[2], 16), [])
            current = int(thread[2], 16) if thread[1] != "Thread" else current
        elif frame is not None and len(frames) < _MAX_FRAMES:
            frames.append(_frame(frame))
    for frames in threads.values():
        frames.reverse()
    return Crash(error[1].strip(), threads, current)


def _frame(match: re.Match[str]) -> Frame:
    return Frame(match[1], int(match[2]), match[3])


def without_server(frames: Sequence[Frame], own_files: Iterable[str]) -> list[Frame]:
    """The frames below the agent's filter, which are the application's; all where the filter is in none."""
    own = set(own_files)
    places = [place for place, frame in enumerate(frames) if frame.file in own]
    return list(frames[places[-1] + 1 :]) if places else list(frames)


def application_frame(frames: Sequence[Frame], own: object = None) -> Frame | None:
    """The innermost frame of the application itself, not of a library; the innermost of all where there is none.

    own: as `own_files` found them in the process that had the application; nothing: this one decides.
    """
    known = _names(own)
    for frame in reversed(frames):
        if frame.file in known if known else _is_own(frame.file):
            return frame
    return frames[-1] if frames else None


def _is_own(file: str) -> bool:
    return not is_library(file) and not file.startswith("<")  # as what `exec` was given has it


def own_files(*stacks: str) -> list[str]:
    """The files of stacks that are the application's own: pages mark their frames.

    For a process that has the application: it knows where its libraries are, and which of them are the service itself.
    """
    frames = (_FRAME.match(line) for stack in stacks for line in stack.splitlines())
    files = dict.fromkeys(frame[1] for frame in frames if frame is not None)
    return list(filter(_is_own, files))


def marked(text: str, own: object) -> Iterator[tuple[str, bool | None]]:
    """The lines of a text with stacks in it, each with whether its frame is the application's; None: it is of no frame.

    own: `own_files` as a store has them, whatever that is.
    """
    known = _names(own)
    is_own: bool | None = None
    source_from = 0  #: the line of source of the frame before it is indented so far; 0: there is none
    for line in text.splitlines():
        frame, indent = _FRAME.match(line), len(line) - len(line.lstrip())
        if frame is not None:
            is_own, source_from = frame[1] in known, indent + 1
        elif source_from and indent >= source_from:
            source_from = 0
        else:
            is_own, source_from = None, 0
        yield line, is_own


def _names(own: object) -> frozenset[str]:
    return frozenset(one for one in own if isinstance(one, str)) if isinstance(own, list) else frozenset()


def render(frames: Iterable[Frame]) -> str:
    """As Python prints them, each with its line of source where it can be read.

    What only stands between the application and a library that is instrumented is left out.
    """
    parts: list[str] = []
    room = _MAX_READ
    for frame in frames:
        if frame.file.startswith(BETWEEN):
            continue
        parts.append(f'  File "{frame.file}", line {frame.line}, in {frame.function}\n')
        source, read = source_of(frame, room)
        room -= read
        if source:
            parts.append(f"    {source}\n")
    return "".join(parts)


def source_of(frame: Frame, room: int = _MAX_SOURCE) -> tuple[str, int]:
    """The line of source of a frame, stripped, and how many bytes were read for it; '' where there is none.

    room: no more is read. What names the file is not trusted.
    """
    size = 0
    if frame.file not in linecache.cache:
        size = _size_of(frame.file)
        if not 0 <= size <= min(room, _MAX_SOURCE):
            return "", 0
        _make_room()
    return linecache.getline(frame.file, frame.line).strip(), size


def _make_room() -> None:
    """Forget files that can be read again, when there are too many of them. What is in no file stays."""
    entries = [
        (name, entry) for name, entry in list(linecache.cache.items()) if len(entry) == 4 and entry[1] is not None
    ]
    if sum(entry[0] for _, entry in entries) > _MAX_CACHED:
        for name, _ in entries:
            linecache.cache.pop(name, None)


def _size_of(path: str) -> int:
    """Of a file that reading comes to an end of; -1 for any other."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return -1
    return status.st_size if stat.S_ISREG(status.st_mode) else -1
