"""Writes one process's flight recorder. Its hot parts are used by the request's thread: no lock, no I/O, no wait."""

from __future__ import annotations

import mmap
import os
import struct
import time
from _thread import get_ident
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from random import Random
from typing import TYPE_CHECKING, Any

from paste_agent import naming
from paste_agent.error_rules import COUNTS, EXPECTED, ErrorRules
from paste_agent.inside import PARTS
from paste_agent.recorder import layout, lock
from paste_agent.recorder.file import STEP_SERIES, STEP_SLOTS, allocate, locked_file
from paste_agent.recorder.layout import (
    FAILED,
    KIND_BACKGROUND,
    KIND_OVERFLOW,
    KIND_SERVER,
    RECORD_BODY,
    RECORD_BODY_AT,
    RECORD_SIZE,
    SLOT_SIZE,
    STACK_SIZE,
)

_pack_record = RECORD_BODY.pack_into
_pack_span = layout.SPAN.pack_into

if TYPE_CHECKING:
    from paste_agent.sampler import Sampler
    from paste_agent.transaction import KeptTransaction

#: What a full ring leaves free: a thread looks for room before it takes a number, and so may others in between.
SLACK = 256
#: Kept transactions that wait for the reporter; a token bucket lets fewer through in the second that it sleeps.
MAX_KEPT = 2048
#: Entries that are left for the series that hold the rest, one a kind, and for threads that enter some at once.
_RESERVE = 64
#: Spellings of one series (`200 OK`, `200 Fine`) that are remembered beside it.
_SPELLINGS = 4
_NO_RULES = ErrorRules()
#: An error type that says that there was an error, and that it does not count.
LENIENT = ""

#: What `intern_server` takes: method, status line, route, error type, scheme, protocol, all as they came.
ServerKey = tuple[str, str | None, object, str | None, str, str | None]
#: A kind, and fields as layout.FIELDS has them for it.
SpanKey = tuple[int, tuple[str | None, ...]]


class Key:
    """A SpanKey for those who count under it again and again: it is found by what it is, not by what it says."""

    __slots__ = ("fields", "kind")

    def __init__(self, kind: int, fields: tuple[str | None, ...]) -> None:
        self.kind = kind
        self.fields = fields

    def __iter__(self) -> Iterator[Any]:
        return iter((self.kind, self.fields))


class Recorder:
    """An open flight recorder of this process.

    The attributes are plain because Transaction and AgentFilter use them in place: a method call costs more than
    what it would do.
    """

    __slots__ = (
        "_by_fields",
        "_by_number",
        "_entries",
        "_free",
        "_ids",
        "_kinds",
        "_lock_fd",
        "_max_series",
        "_next_dropped",
        "_next_spans_dropped",
        "_next_unslotted",
        "_part_series",
        "_series_ready",
        "_slots_ready",
        "buffer",
        "error_rules",
        "geometry",
        "id",
        "ident",
        "kept",
        "last",
        "latest",
        "limit",
        "longs",
        "next",
        "next_span",
        "on_fault",
        "path",
        "pop_slot",
        "propagators",
        "push_slot",
        "records",
        "ring_at",
        "sampler",
        "series",
        "span_limit",
        "span_series",
        "started",
    )

    def __init__(
        self,
        *,
        directory: str | None,
        service: str,
        records: int,
        max_series: int,
        sampler: Sampler,
        on_fault: Callable[[str, BaseException], None],
        error_rules: ErrorRules = _NO_RULES,
        propagators: Sequence[str] = ("tracecontext", "baggage"),
        slots: int = layout.SLOTS,
        ident: Callable[[], int] = get_ident,
    ) -> None:
        """Open a recorder.

        directory: the service's own, private and existing; None, or no locks here: in memory, without recovery.
        records: what the ring can hold.
        max_series: of each kind; one more holds the rest.
        on_fault: is told where a fault of the agent was caught, and the fault.
        ident: of the thread, or of the greenlet, that calls it; see `native.ident_function`.
        Raises OSError when the file cannot be made.
        """
        self.geometry = layout.Geometry(records, slots)
        self.id = f"{os.getpid()}-{os.urandom(8).hex()}"
        self.sampler = sampler
        self.on_fault = on_fault
        self.error_rules = error_rules
        self.propagators = propagators
        self.ident = ident
        self._max_series = max_series
        self.path: str | None = None
        self._lock_fd = -1
        header = self._header(service)
        if directory is None or not lock.AVAILABLE:
            self.buffer = mmap.mmap(-1, self.geometry.size)
            self.buffer[: len(header)] = header
        else:
            self.path = os.path.join(directory, self.id + layout.SUFFIX)
            self._lock_fd, self.buffer = locked_file(self.path, header, self.geometry)
        self.longs = memoryview(self.buffer).cast("Q")
        self.records = records
        self.ring_at = self.geometry.ring_at
        self.next = count().__next__
        self.started = count(1).__next__
        self.next_span = count(1).__next__
        self.last = -1
        self.latest = 0  #: number of a transaction that has ended lately
        self._set_limit(0)
        self._slots_ready = 0
        self._series_ready = min(STEP_SERIES, self.geometry.series)
        self._free: list[int] = []
        self._add_slots()
        self.pop_slot = self._free.pop
        self.push_slot = self._free.append
        self._make_tables()

    def _make_tables(self) -> None:
        """What is kept beside the file: names of what is in it, and counters."""
        self.kept: deque[KeptTransaction] = deque(maxlen=MAX_KEPT)
        self.series: dict[ServerKey, int] = {}
        self.span_series: dict[SpanKey | Key, int] = {}
        self._part_series: dict[int, int] = {}
        self._by_fields: dict[tuple[int, tuple[str | None, ...]], int] = {}
        self._by_number: dict[int, tuple[int, tuple[str | None, ...]]] = {}
        self._kinds: dict[int, int] = {}
        self._entries = count().__next__
        self._next_dropped = count(1).__next__
        self._next_spans_dropped = count(1).__next__
        self._next_unslotted = count(1).__next__
        # A generator of this process's own: a fork reseeds the module's, but not one like this.
        self._ids = Random(os.urandom(32))

    def _header(self, service: str) -> bytes:
        geometry = self.geometry
        head = layout.HEADER.pack(
            layout.MAGIC,
            layout.VERSION,
            layout.HEADER_SIZE,
            os.getpid(),
            time.time_ns(),
            time.perf_counter_ns(),
            geometry.records,
            geometry.slots,
            geometry.series,
            layout.boot_id(),
        )
        name = service.encode("utf-8", "replace")[: layout.SERVICE_SIZE]
        return head.ljust(layout.SERVICE_AT, b"\0") + name.ljust(layout.SERVICE_SIZE, b"\0")

    # -- on the request's thread -----------------------------------------------------------------------------------

    def _set_limit(self, tail: int) -> None:
        """Note which numbers there is room for while the lead has drained up to `tail`."""
        self.limit = tail + self.records - SLACK
        # Half of the ring is for transactions alone.
        self.span_limit = self.limit - (self.records >> 1)

    def has_room(self) -> bool:
        """Look again how far the lead has drained. Where there is no room, count the loss."""
        self._set_limit(self.word(layout.W_TAIL))
        if self.last < self.limit:
            return True
        self.set_word(layout.W_DROPPED, self._next_dropped())
        return False

    def count_dropped(self, many: int) -> None:
        """So many records were lost before there was this recorder. For whoever opens it."""
        dropped = self.word(layout.W_DROPPED) + many
        self._next_dropped = count(dropped + 1).__next__
        self.set_word(layout.W_DROPPED, dropped)

    def count_unslotted(self) -> None:
        """A request found no free slot: it is counted as any other, but no black box tells of it."""
        self.set_word(layout.W_UNSLOTTED, self._next_unslotted())

    def intern_server(self, key: ServerKey) -> int:
        """The series of a finished request, its FAILED bit set where it failed; written down when it is new.

        Called the first time that a thread meets `key`. Two threads may write the same series twice: both numbers
        are counted under the same name in the end.
        """
        method, status, route, error_type, scheme, protocol = key
        code = naming.status_of(status)
        error_type, verdict = self._error_of(code, error_type)
        failed = error_type is not None
        fields = (
            naming.method_of(method),
            naming.scheme_of(scheme),
            naming.route_of(route),
            None if code is None else str(code),
            error_type,
            naming.version_of(protocol),
        )
        number = self._intern(KIND_SERVER, fields)
        if failed:
            number |= FAILED
        if verdict != EXPECTED and len(self.series) < _SPELLINGS * self._max_series:
            try:
                self.series[key] = number
            except TypeError:  # the application set a route that cannot be hashed
                pass
        return number

    def intern_task(self, name: str | None, status: str | None, error_type: str | None) -> int:
        """The series of a request that counts as a background task, its FAILED bit set where it failed."""
        error_type, _ = self._error_of(naming.status_of(status), error_type)
        return self._intern(KIND_BACKGROUND, (name, error_type)) | (0 if error_type is None else FAILED)

    def _error_of(self, code: int | None, error_type: str | None) -> tuple[str | None, int]:
        """`error.type` of a response, None where it is no failure, and what the rules say of its status."""
        if error_type is None and code is not None and code >= 500:
            error_type = str(code)
        verdict = COUNTS if code is None or not error_type else self.error_rules.verdict_of_status(code)
        return (error_type or None if verdict == COUNTS else None), verdict

    def record(self, kind: int, fields: tuple[str | None, ...], start_ns: int, duration_ns: int, failed: bool) -> None:
        """Leave the record of something that is no request, and that is rare: it finds its series anew each time.

        kind: one of KIND_. fields: as layout.FIELDS has them for it. start_ns, duration_ns: of the monotonic clock.
        """
        series = self._intern(kind, fields) | (FAILED if failed else 0)
        number = self.take_number()
        if number is not None:
            self.write_record(number, series, 0, 0, start_ns, duration_ns)

    def take_number(self) -> int | None:
        """The number of the next record, which has to be written then; None, and counted, where there is no room."""
        if self.last >= self.limit and not self.has_room():
            return None
        self.last = number = self.next()
        return number

    def write_record(self, number: int, series: int, why: int, units: int, start_ns: int, duration_ns: int) -> None:
        """Write the record that has been taken with this number."""
        at = self.ring_at + RECORD_BODY_AT + number % self.records * RECORD_SIZE
        _pack_record(self.buffer, at, series, why, units, start_ns, duration_ns, number + 1)

    def record_span(
        self, key: SpanKey | Key, start_ns: int, duration_ns: int, failed: bool = False, units: int = 0
    ) -> None:
        """Leave the record of a part of a transaction: its series is looked up once, and it gives way to transactions.

        key: kind and fields, of which few differ. units: see `layout`, bytes 36 to 39 of a record.
        """
        series = self.span_series.get(key)
        if series is None:
            series = self._intern(*key)
            if len(self.span_series) < _SPELLINGS * self._max_series:
                self.span_series[key] = series
        if self.last < self.span_limit or self._has_room_for_spans():
            number = self.last = self.next()
            _pack_record(
                self.buffer,
                self.ring_at + RECORD_BODY_AT + number % self.records * RECORD_SIZE,
                series | FAILED if failed else series,
                0,
                units,
                start_ns,
                duration_ns,
                number + 1,
            )

    def record_parts(self, series: int, end_ns: int, parts: Mapping[int, Sequence[int]]) -> None:
        """Leave the records of what a transaction has spent its time on, one for each kind of thing that there was.

        series: of the transaction. end_ns: of the transaction: the drain waits for a record that ends later than now.
        parts: by index into inside.PARTS, how many spans there were, and how long they took, ns.
        """
        for part, (many, time_ns) in list(parts.items()):  # a thread of it may go on
            number = self._part_series.get((series & ~FAILED) << 4 | part)
            if number is None:
                number = self._intern_part(series, part)
            if self.last < self.span_limit or self._has_room_for_spans():
                taken = self.last = self.next()
                if time_ns > end_ns:
                    time_ns = end_ns
                _pack_record(
                    self.buffer,
                    self.ring_at + RECORD_BODY_AT + taken % self.records * RECORD_SIZE,
                    number,
                    0,
                    many,
                    end_ns - time_ns,
                    time_ns,
                    taken + 1,
                )

    def _intern_part(self, series: int, part: int) -> int:
        kind, fields = self.fields_of(series)
        method, route = (fields[0], fields[2]) if kind == KIND_SERVER else (None, None)
        number = self._intern(layout.KIND_PART, (method, route, PARTS[part]))
        self._part_series[(series & ~FAILED) << 4 | part] = number
        return number

    def _has_room_for_spans(self) -> bool:
        self._set_limit(self.word(layout.W_TAIL))
        if self.last < self.span_limit:
            return True
        self.set_word(layout.W_SPANS_DROPPED, self._next_spans_dropped())
        return False

    def enter_slot(self, start_ns: int, scheme: int, method: bytes, path: bytes) -> int:
        """Mark something other than a request as in flight; its slot, or 0 when none is free."""
        number = self.started()
        try:
            slot = self.pop_slot()
        except IndexError:
            self.count_unslotted()
            return 0
        layout.SLOT.pack_into(
            self.buffer, slot, start_ns, number, self.ident(), scheme, method, b"", path, 0, 0, number
        )  # fmt: skip
        return slot

    def leave_slot(self, slot: int) -> None:
        if slot:
            self.longs[slot >> 3] = 0
            self.push_slot(slot)

    def enter_span(self, slot: int, text: bytes) -> None:
        """Say in which span the transaction of `slot` is: it, and not the next one, which uses the slot again."""
        _pack_span(self.buffer, slot + layout.SPAN_AT, self.longs[(slot >> 3) + 1], text)

    def leave_span(self, slot: int) -> None:
        """The transaction of `slot` is in no span any more."""
        self.longs[(slot + layout.SPAN_AT) >> 3] = 0

    def number_of(self, slot: int) -> int:
        """Number of the transaction that took `slot` last."""
        return self.longs[(slot >> 3) + 1]

    def series_of(self, kind: int, fields: tuple[str | None, ...]) -> int:
        """The series of something that is rare; written down when it is new."""
        return self._intern(kind, fields)

    def fields_of(self, series: int) -> tuple[int, tuple[str | None, ...]]:
        """Kind and fields of a series, its FAILED bit set or not."""
        return self._by_number[series & ~FAILED]

    def _intern(self, kind: int, fields: tuple[str | None, ...]) -> int:
        number = self._by_fields.get((kind, fields))
        if number is not None:
            return number
        if kind & KIND_OVERFLOW == 0 and (
            self._kinds.get(kind, 0) >= self._max_series or self._is_out_of_entries(kind)
        ):
            return self._intern(kind | KIND_OVERFLOW, ())
        number = self._entries()
        if number >= self._series_ready:
            raise OverflowError("no entry left for a series")  # behind the last one lie the records
        self._kinds[kind] = self._kinds.get(kind, 0) + 1
        payload = layout.encode_fields(fields)
        at = self.geometry.series_at + number * layout.SERIES_SIZE
        end = at + layout.SERIES_HEAD.size
        self.buffer[end : end + len(payload)] = payload
        layout.SERIES_HEAD.pack_into(self.buffer, at, 0, kind, len(payload))
        _NUMBER.pack_into(self.buffer, at, number + 1)  # last: now it counts
        self._by_number[number] = kind, fields
        self._by_fields[kind, fields] = number
        return number

    def _is_out_of_entries(self, kind: int) -> bool:
        known = len(self._by_number)
        if kind not in (KIND_SERVER, KIND_BACKGROUND):
            # Whatever else there is, requests find an entry each, up to their bound.
            kept = 2 * self._max_series - self._kinds.get(KIND_SERVER, 0) - self._kinds.get(KIND_BACKGROUND, 0)
            if known + min(kept, self.geometry.series // 2) >= self.geometry.series - _RESERVE:
                return True
        return known >= self._series_ready - _RESERVE and not self._back_series()

    def new_id(self, size: int) -> bytes:
        """`size` random bytes, not all of them zero: 16 for a trace, 8 for a span."""
        return (self._ids.getrandbits(8 * size) or 1).to_bytes(size, "big")

    def write_ids(self, number: int, trace_id: bytes, span_id: bytes, parent_id: bytes) -> None:
        """Put the identity of a kept transaction into the record that is about to be written."""
        at = self.ring_at + number % self.records * layout.RECORD_SIZE
        layout.RECORD_IDS.pack_into(self.buffer, at, trace_id, span_id, parent_id)

    # -- anywhere --------------------------------------------------------------------------------------------------

    def word(self, index: int) -> int:
        return self.longs[layout.WORDS_AT // 8 + index]

    def attributes_of(self, number: int) -> dict[str, str | int]:
        """What a series stands for, under the names that go on the wire."""
        kind, fields = self._by_number[number]
        if kind & KIND_OVERFLOW:
            return {layout.OVERFLOW_ATTRIBUTE: True}
        return layout.attributes_of(layout.FIELDS[kind], fields)

    # -- the reporter, on what is in flight ------------------------------------------------------------------------

    def in_flight(self) -> Iterator[tuple[int, int, int, int]]:
        """Slot, number, start (ns) and ident of every transaction of this process that is under way."""
        longs, first = self.longs, self.geometry.slots_at
        for slot in range(first, first + self._slots_ready * SLOT_SIZE, SLOT_SIZE):
            at = slot >> 3
            start_ns = longs[at]
            if start_ns:
                yield slot, longs[at + 1], start_ns, longs[at + 2]

    def set_route(self, slot: int, number: int, route: str) -> None:
        layout.ROUTE.pack_into(self.buffer, slot + layout.ROUTE_AT, number, route.encode("utf-8", "replace"))

    def set_stack(self, slot: int, number: int, taken_ns: int, stack: str) -> None:
        """Put the stack of a transaction beside its slot. Only the reporter does, and what runs in its place."""
        at = self._stack_at(slot)
        if not self._back(at, STACK_SIZE):
            return  # no memory left, and to write there would be a SIGBUS
        text = stack.encode("utf-8", "replace")[: layout.STACK_ROOM]
        layout.STACK_HEAD.pack_into(self.buffer, at, 0, taken_ns)
        begin = at + layout.STACK_HEAD.size
        self.buffer[begin : begin + layout.STACK_ROOM] = text.ljust(layout.STACK_ROOM, b"\0")
        self.longs[at >> 3] = number

    def stack_of(self, slot: int) -> tuple[int, str] | None:
        """When the stack of the transaction in `slot` was taken, ns, and the stack; None where none was."""
        data = self.buffer[self._stack_at(slot) : self._stack_at(slot) + STACK_SIZE]
        number, taken_ns = layout.STACK_HEAD.unpack_from(data)
        if number != self.number_of(slot):
            return None
        return taken_ns, data[layout.STACK_HEAD.size :].rstrip(b"\0").decode("utf-8", "ignore")

    def pin(self) -> None:
        """The process is about to end: keep what is in flight as it is now, whatever becomes of it.

        Each slot is copied into another one, which nobody leaves; whoever reads both finds one number twice.
        """
        for slot, _, _, _ in list(self.in_flight()):
            try:
                spare = self.pop_slot()
            except IndexError:
                return
            # The stack first, and of the slot its start last: until then nobody looks at it.
            if self.stack_of(slot) is not None and self._back(self._stack_at(spare), STACK_SIZE):
                self._copy(self._stack_at(slot), self._stack_at(spare), STACK_SIZE)
            self._copy(slot + 8, spare + 8, SLOT_SIZE - 8)
            # Whether it was answered the slot itself tells, or the record.
            layout.ANSWER.pack_into(self.buffer, spare + layout.ANSWER_AT, 0, 0)
            self._copy(slot, spare, 8)

    def _copy(self, source: int, target: int, size: int) -> None:
        self.buffer[target : target + size] = self.buffer[source : source + size]

    def _stack_at(self, slot: int) -> int:
        return self.geometry.stacks_at + (slot - self.geometry.slots_at) // SLOT_SIZE * STACK_SIZE

    def set_word(self, index: int, value: int) -> None:
        self.longs[layout.WORDS_AT // 8 + index] = value

    def set_words(self, first: int, values: Sequence[int]) -> None:
        for place, value in enumerate(values):
            self.set_word(first + place, value)

    def read(self, size: int, at: int) -> bytes:
        """`size` bytes from `at`: what a drain of this process's own recorder reads."""
        return bytes(self.buffer[at : at + size])

    def write(self, data: bytes, at: int) -> None:
        """What the drain of this process's own recorder writes: how far it has come."""
        self.buffer[at : at + len(data)] = data

    def grow(self) -> None:
        """Put memory behind more slots and series before they are needed. For the reporter: these are system calls."""
        if len(self._free) < STEP_SLOTS // 2 and self._slots_ready < self.geometry.slots:
            first = self.geometry.slots_at + self._slots_ready * layout.SLOT_SIZE
            if self._back(first, STEP_SLOTS * layout.SLOT_SIZE):
                self._add_slots()
        if len(self._by_number) > self._series_ready - STEP_SERIES // 2:
            self._back_series()

    def _add_slots(self) -> None:
        """Make the next slots free to be taken, the lowest first."""
        last = min(self._slots_ready + STEP_SLOTS, self.geometry.slots)
        at = self.geometry.slots_at
        self._free[:0] = [at + slot * layout.SLOT_SIZE for slot in reversed(range(self._slots_ready, last))]
        self._slots_ready = last

    def _back_series(self) -> bool:
        """Whether there are more entries for series now."""
        if self._series_ready >= self.geometry.series:
            return False
        first = self.geometry.series_at + self._series_ready * layout.SERIES_SIZE
        if not self._back(first, STEP_SERIES * layout.SERIES_SIZE):
            return False
        self._series_ready = min(self._series_ready + STEP_SERIES, self.geometry.series)
        return True

    def _back(self, at: int, size: int) -> bool:
        """Have the file system set memory aside: to write where it has none left is a SIGBUS, not an error."""
        if self._lock_fd < 0:
            return True
        try:
            allocate(self._lock_fd, at, min(size, self.geometry.size - at))
        except OSError:
            return False
        return True

    def mark_closed(self) -> None:
        """Say that the process ends in order and that no further record follows."""
        self.set_word(layout.W_CLOSED, 1)

    def detach(self) -> None:
        """In a forked child: let go of what belongs to the parent, and leave it alone.

        A request that was in flight during the fork may still finish here; it writes into a scratch buffer, since
        the parent counts it. The lock is let go by closing: unlocking would unlock the parent as well.
        """
        # Mapped, not a bytearray: no page of it is made before it is written to, if ever.
        self.buffer = mmap.mmap(-1, self.geometry.size)
        self.longs = memoryview(self.buffer).cast("Q")
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1


_NUMBER = struct.Struct("<I")
