"""Reads a flight recorder, of a living process or of a dead one. Trusts nothing that it reads.

Files are read with `pread`, not mapped: one that is cut short while it is read gives fewer bytes, and no signal.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable
from typing import NamedTuple

from paste_agent.recorder import layout, lock
from paste_agent.recorder.layout import RECORD_SIZE, SLOT_SIZE

#: Look-ahead behind a record that was never written: as many threads may have taken later numbers.
_WINDOW = 512
#: How many records others may have left, of spans mostly, while a thread was kept from leaving its slot.
_LATELY = 16_384
#: No file of this layout is larger, whatever its header says.
_MAX_SIZE = layout.Geometry(layout.MAX_RECORDS, layout.MAX_SLOTS, layout.MAX_SERIES).size


class BadRecorder(Exception):
    """A file that is not a recorder of this version, or not ours to read; str() says what is wrong with it."""


class OtherVersion(BadRecorder):
    """A recorder of another version of the agent, whose own lead will drain it."""


class InFlight(NamedTuple):
    """One transaction under way, as its slot has it."""

    start_ns: int  #: of the monotonic clock
    number: int
    thread: int
    scheme: str
    method: str
    traceparent: str
    path: str  #: name of a background task
    route: str
    span: str
    series: int = -1  #: once the server had its answer, or the first part of it: as its record would have it
    answered_ns: int = 0
    is_request: bool = True  #: false: a background task
    stack: str = ""  #: a line a frame, the innermost last
    stack_ns: int = 0  #: when it was taken


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
        self._head = b""
        head = read(layout.HEADER_SIZE, 0)
        if len(head) < layout.HEADER_SIZE:
            raise BadRecorder("shorter than its header")
        magic, version, header_size, *numbers = layout.HEADER.unpack_from(head)
        pid, opened_at_ns, opened_ns, records, slots, series, boot_id = numbers
        if magic != layout.MAGIC:
            raise BadRecorder("does not begin as a recorder does")
        if version != layout.VERSION or header_size != layout.HEADER_SIZE:
            raise OtherVersion(f"has layout version {version}, this agent reads {layout.VERSION}")
        if pid >= 1 << 31 or max(opened_at_ns, opened_ns) >= 1 << 62:
            raise BadRecorder("has a header that no process wrote")
        try:
            self.geometry = layout.Geometry(records, slots, series)
        except ValueError as error:
            raise BadRecorder(str(error)) from None
        self.pid: int = pid
        self.opened_at_ns: int = opened_at_ns
        self.opened_ns: int = opened_ns
        self._head = head[: layout.HEADER.size]
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

    def is_held(self) -> bool:
        """Whether the process still has its recorder; unlike `is_dead`, nothing is locked after it."""
        return self._descriptor >= 0 and lock.is_held(self._descriptor)

    def check(self) -> None:
        """Raises BadRecorder when the file is no longer the one that was opened: written over, or cut short."""
        if self._read(len(self._head), 0) != self._head:
            raise BadRecorder("has been written over")
        if self._descriptor >= 0 and os.fstat(self._descriptor).st_size != self.geometry.size:
            raise BadRecorder("has another size than it had")

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

    def in_flight(self, stacks: int = 0) -> list[InFlight]:
        """What is under way, oldest first; one whose slot is just being written is left out.

        stacks: read those of so many, the oldest. A slot that was pinned is there twice; it is given once.
        """
        data = self._read(self.geometry.slots * SLOT_SIZE, self.geometry.slots_at)
        found: dict[int, InFlight] = {}
        places: dict[int, list[int]] = {}
        for at in range(0, len(data) - SLOT_SIZE + 1, SLOT_SIZE):
            request = _in_slot(data, at)
            if request is not None:
                before = found.get(request.number)
                found[request.number] = request if before is None or request.answered_ns else before
                places.setdefault(request.number, []).append(at // SLOT_SIZE)
        requests = sorted(found.values(), key=lambda request: request.start_ns)
        for place, request in enumerate(requests[:stacks]):
            seen = [self._with_stack(request, slot) for slot in places[request.number][:2]]
            requests[place] = max(seen, key=lambda one: one.stack_ns)
        return requests

    def _with_stack(self, request: InFlight, slot: int) -> InFlight:
        data = self._read(layout.STACK_SIZE, self.geometry.stacks_at + slot * layout.STACK_SIZE)
        if len(data) < layout.STACK_SIZE:
            return request
        number, taken_ns = layout.STACK_HEAD.unpack_from(data)
        if number != request.number or not 0 < taken_ns < 1 << 62:
            return request
        return request._replace(stack=_text(data[layout.STACK_HEAD.size :]), stack_ns=taken_ns)

    def finished_among(self, starts_ns: set[int], position: int, most: int = _LATELY) -> dict[int, bool]:
        """Those of `starts_ns` at which a transaction began that has left a record, one of the last before `position`;
        and whether it failed. most: records to look at.

        A process may be killed between writing a record and leaving the slot: what is in both has ended. Records of
        what went on inside of a transaction say nothing of it.
        """
        found: dict[int, bool] = {}
        first = max(0, position - min(most, self.geometry.records))
        while first < position and (data := self.chunk(first, position - first)):
            for series, _, _, start_ns, _, sequence in layout.RECORDS.iter_unpack(data):
                first += 1
                if sequence == first and start_ns in starts_ns and not self._is_of_a_part(series):
                    found[start_ns] = bool(series & layout.FAILED)
        return found

    def _is_of_a_part(self, series: int) -> bool:
        entry = self.series(series & ~layout.FAILED)
        kind = layout.KIND_SERVER if entry is None else entry[0] & ~layout.KIND_OVERFLOW
        return kind not in (layout.KIND_SERVER, layout.KIND_BACKGROUND)

    def set_tail(self, position: int) -> None:
        """Tell the process that the records below `position` may be overwritten."""
        self._write(position.to_bytes(8, "little"), layout.WORDS_AT + 8 * layout.W_TAIL)


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode("utf-8", "replace")


def _in_slot(data: bytes, at: int) -> InFlight | None:
    """The transaction in a slot; None where there is none, or it is just being written."""
    slot = layout.SLOT.unpack_from(data, at)
    start_ns, number, thread, scheme, method, parent, path, series, answered_ns, again = slot
    if not 0 < start_ns < 1 << 62 or number != again:
        return None
    return InFlight(
        start_ns=start_ns,
        number=number,
        thread=thread,
        scheme={4: "http", 5: "https"}.get(scheme, "_OTHER"),
        method=_text(method),
        traceparent=_text(parent),
        path=_text(path),
        route=_of_number(layout.ROUTE, data, at + layout.ROUTE_AT, number),
        span=_of_number(layout.SPAN, data, at + layout.SPAN_AT, number),
        series=series - 1 if series <= 0x10000 else -1,
        answered_ns=answered_ns if start_ns <= answered_ns < 1 << 62 else 0,
        is_request=scheme != layout.SCHEME_BACKGROUND,
    )


def _of_number(layout_of: struct.Struct, data: bytes, at: int, number: int) -> str:
    """The text of a part of a slot; '' where it belongs to a transaction that had the slot before."""
    owner, text = layout_of.unpack_from(data, at)
    return _text(text) if owner == number else ""
