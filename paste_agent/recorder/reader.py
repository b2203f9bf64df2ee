"""Reads a flight recorder, of a living process or of a dead one. Trusts nothing that it reads.

Files are read with `pread`, not mapped: one that is cut short while it is read gives fewer bytes, and no signal.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import NamedTuple

from paste_agent.recorder import layout, lock
from paste_agent.recorder.layout import RECORD_SIZE

#: Look-ahead behind a record that was never written: as many threads may have taken later numbers.
_WINDOW = 512
#: No file of this layout is larger, whatever its header says.
_MAX_SIZE = layout.Geometry(layout.MAX_RECORDS, layout.MAX_SLOTS, layout.MAX_SERIES).size


class BadRecorder(Exception):
    """A file that is not a recorder of this version, or not ours to read; str() says what is wrong with it."""


class InFlight(NamedTuple):
    """One request under way, as its slot has it."""

    start_ns: int  #: of the monotonic clock
    number: int
    thread: int
    scheme: str
    method: str
    traceparent: str
    path: str
    route: str
    span: str


class Reader:
    """One recorder that is being read."""

    def __init__(
        self,
        name: str,
        read: Callable[[int, int], bytes],
        write: Callable[[bytes, int], object],
        descriptor: int,
    ) -> None:
        """name: its id. read: size and offset to bytes. write: bytes at an offset. descriptor: of its file, or -1.

        Raises BadRecorder.
        """
        self.id = name
        self._read = read
        self._write = write
        self._descriptor = descriptor
        head = read(layout.HEADER_SIZE, 0)
        if len(head) < layout.HEADER_SIZE:
            raise BadRecorder("shorter than its header")
        magic, version, header_size, *numbers = layout.HEADER.unpack_from(head)
        pid, opened_at_ns, opened_ns, records, slots, series, boot_id = numbers
        if magic != layout.MAGIC:
            raise BadRecorder("does not begin as a recorder does")
        if version != layout.VERSION or header_size != layout.HEADER_SIZE:
            raise BadRecorder(f"has layout version {version}, this agent reads {layout.VERSION}")
        if pid >= 1 << 31 or max(opened_at_ns, opened_ns) >= 1 << 62:
            raise BadRecorder("has a header that no process wrote")
        try:
            self.geometry = layout.Geometry(records, slots, series)
        except ValueError as error:
            raise BadRecorder(str(error)) from None
        self.pid: int = pid
        self.opened_at_ns: int = opened_at_ns
        self.opened_ns: int = opened_ns
        #: Whether its times are of the monotonic clock that runs now.
        self.is_of_this_boot: bool = boot_id == layout.boot_id()

    @classmethod
    def of_file(cls, path: str) -> Reader:
        """Open the file of a recorder. Raises BadRecorder, and FileNotFoundError for one that has just gone."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise BadRecorder(f"cannot be opened: {error.strerror}") from None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise BadRecorder("is not a regular file")
            if status.st_uid != os.geteuid() or status.st_mode & 0o077:
                raise BadRecorder("is not private to this user")
            if status.st_size > _MAX_SIZE:
                raise BadRecorder("is larger than any recorder")
            name = os.path.basename(path).removesuffix(layout.SUFFIX)
            if not name.isascii() or not name.isprintable():
                raise BadRecorder("has a name that no recorder has")
            reader = cls(
                name,
                lambda size, at: os.pread(descriptor, size, at),
                lambda data, at: os.pwrite(descriptor, data, at),
                descriptor,
            )
            if status.st_size != reader.geometry.size:
                raise BadRecorder(f"has {status.st_size} bytes, its header asks for {reader.geometry.size}")
        except BaseException:
            os.close(descriptor)
            raise
        return reader

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def is_dead(self) -> bool:
        """Whether the process has let go of its recorder. Then the lock is ours until `close`."""
        return self._descriptor >= 0 and lock.try_lock(self._descriptor)

    def words(self) -> tuple[int, ...]:
        """The header's words, by the W_ constants, none above 2**62; zeros for a file that has been cut short."""
        size = layout.WORD_COUNT * 8
        data = self._read(size, layout.WORDS_AT).ljust(size, b"\0")
        return tuple(min(word, 1 << 62) for word in memoryview(data).cast("Q"))

    def chunk(self, position: int, most: int) -> bytes:
        """The bytes of records `position` and after, at most so many, no further than the end of the ring."""
        place = position % self.geometry.records
        count = min(most, self.geometry.records - place)
        data = self._read(count * RECORD_SIZE, self.geometry.ring_at + place * RECORD_SIZE)
        return data[: len(data) // RECORD_SIZE * RECORD_SIZE]

    def next_written(self, position: int) -> int | None:
        """The first record after `position` that is written, or None where nothing follows it."""
        at = position + 1
        end = at + min(_WINDOW, self.geometry.records - 1)
        while at < end:
            data = self.chunk(at, end - at)
            if not data:
                return None
            for *_, sequence in layout.RECORDS.iter_unpack(data):
                if sequence == at + 1:
                    return at
                at += 1
        return None

    def ids(self, position: int) -> tuple[bytes, bytes, bytes]:
        """Trace, span and parent id of a kept record."""
        data = self.chunk(position, 1)
        if not data:
            return bytes(16), bytes(8), bytes(8)
        trace_id, span_id, parent_id = layout.RECORD_IDS.unpack_from(data)
        return trace_id, span_id, parent_id

    def series(self, number: int) -> tuple[int, list[str | None]] | None:
        """Kind and fields of a series; None for one that is not written, or not well."""
        if not 0 <= number < self.geometry.series:
            return None
        data = self._read(layout.SERIES_SIZE, self.geometry.series_at + number * layout.SERIES_SIZE)
        if len(data) < layout.SERIES_SIZE:
            return None
        marker, kind, length = layout.SERIES_HEAD.unpack_from(data)
        if marker != number + 1 or length > layout.SERIES_ROOM:
            return None
        try:
            return kind, layout.decode_fields(data[layout.SERIES_HEAD.size : layout.SERIES_HEAD.size + length])
        except ValueError:
            return None

    def in_flight(self) -> list[InFlight]:
        """The requests under way, oldest first; one whose slot is just being written is left out."""
        data = self._read(self.geometry.slots * layout.SLOT_SIZE, self.geometry.slots_at)
        found: list[InFlight] = []
        for at in range(0, len(data) - layout.SLOT_SIZE + 1, layout.SLOT_SIZE):
            start_ns, number, thread, scheme_length, method, parent, path, again = layout.SLOT.unpack_from(data, at)
            if start_ns == 0 or number != again:
                continue
            found.append(
                InFlight(
                    start_ns=start_ns,
                    number=number,
                    thread=thread,
                    scheme={4: "http", 5: "https"}.get(scheme_length, "_OTHER"),
                    method=_text(method),
                    traceparent=_text(parent),
                    path=_text(path),
                    route=_text(data[at + layout.ROUTE_AT : at + layout.ROUTE_AT + layout.ROUTE_SIZE]),
                    span=_text(data[at + layout.SPAN_AT : at + layout.SPAN_AT + layout.SPAN_SIZE]),
                )
            )
        return sorted(found, key=lambda request: request.start_ns)

    def set_tail(self, position: int) -> None:
        """Tell the process that the records below `position` may be overwritten."""
        self._write(position.to_bytes(8, "little"), layout.WORDS_AT + 8 * layout.W_TAIL)


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode("utf-8", "replace")
