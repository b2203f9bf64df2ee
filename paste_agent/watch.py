"""Watches what is in flight in this process: where the slow ones are, and which of them hang.

In the reporter's thread, once a second. All that a request's thread does for it is to have taken a slot.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from types import FrameType

from paste_agent import naming, native, stacks
from paste_agent.log import say
from paste_agent.raised import OWN_FILES
from paste_agent.recorder import layout
from paste_agent.recorder.writer import Recorder
from paste_agent.transaction import Transaction

_NS = 1_000_000_000
#: The route is looked for in what runs longer: most requests end before.
_ROUTE_AFTER_NS = _NS
#: From one stack of a transaction to the next: at ages that grow by this factor.
_GROWTH = 1.5
#: Frames of a stack; the innermost tell where it is, and a recursion has thousands.
_MAX_FRAMES = 60
#: Transactions looked at before other threads get their turn.
_TURN = 8
#: Lines of hanging transactions at one time: one stuck database may hold hundreds.
_MAX_SAID = 10


class Watch:
    """Belongs to the reporter's thread; `last_look` to whoever ends the process."""

    def __init__(
        self,
        recorder: Recorder,
        service: str,
        slow_ns: int,
        stuck_ns: int,
        frame_of: Callable[[int], FrameType | None] = native.frame_of,
    ) -> None:
        """slow_ns: from this age on stacks are taken. stuck_ns: the age at which it is said for the first time."""
        self._recorder = recorder
        self._service = service
        self._slow_ns = slow_ns
        self._stuck_ns = stuck_ns
        self._frame_of = frame_of
        self._due: dict[int, int] = {}  #: by number: age at which the next stack is taken
        self._stuck: dict[int, int] = {}  #: by number: age at which it is said again

    def look(self, now_ns: int) -> None:
        """One round. now_ns: of the monotonic clock."""
        least_ns = min(self._slow_ns, _ROUTE_AFTER_NS)
        seen: set[int] = set()
        hanging: list[tuple[int, int, int]] = []
        looked_at = 0
        for slot, number, start_ns, ident in self._recorder.in_flight():
            age_ns = now_ns - start_ns
            if age_ns < least_ns:
                continue
            seen.add(number)
            if age_ns >= self._due.get(number, least_ns):
                self._due[number] = max(self._slow_ns, round(age_ns * _GROWTH)) if age_ns >= self._slow_ns else 0
                self._take(slot, number, ident, takes_stack=age_ns >= self._slow_ns)
                looked_at += 1
                if looked_at % _TURN == 0:
                    native.sleep(0)
            if age_ns >= self._stuck.get(number, self._stuck_ns):
                self._stuck[number] = 2 * max(age_ns, self._stuck_ns)
                hanging.append((age_ns, slot, number))
        for known in (self._due, self._stuck):
            for number in known.keys() - seen:
                del known[number]
        self._say(hanging)

    def last_look(self) -> None:
        """The process is about to end: take the stack of everything that is in flight, and keep all of it."""
        try:
            for slot, number, _, ident in self._recorder.in_flight():
                self._take(slot, number, ident, takes_stack=True)
        finally:
            self._recorder.pin()

    def _take(self, slot: int, number: int, ident: int, takes_stack: bool) -> None:
        """Write down route and stack of the transaction in a slot, if it is still the same."""
        frames, transaction = _walk(self._frame_of(ident))
        if self._recorder.number_of(slot) != number:
            return
        if takes_stack and frames:
            self._recorder.set_stack(slot, number, time.perf_counter_ns(), _text_of(frames))
        if transaction is not None and transaction.slot == slot:
            route = _route_of(transaction)
            if route is not None:
                self._recorder.set_route(slot, number, route)

    def _say(self, hanging: list[tuple[int, int, int]]) -> None:
        """One line a transaction that hangs, the oldest first; said again when it is twice as old."""
        hanging.sort(reverse=True)
        for age_ns, slot, number in hanging[:_MAX_SAID]:
            what = _name_of(self._recorder, slot)
            stack = self._recorder.stack_of(slot)
            if what is None or self._recorder.number_of(slot) != number:
                continue
            frame = None if stack is None else stacks.application_frame(stacks.parse(stack[1]))
            where = "" if frame is None else f", at {frame.file}:{frame.line} in {frame.function}"
            line = f"{what} in flight for {age_ns // _NS} s (pid {os.getpid()}){where}"
            say(logging.WARNING, f"{self._service}: {line}")
        if len(hanging) > _MAX_SAID:
            say(logging.WARNING, f"{self._service}: {len(hanging) - _MAX_SAID} more are in flight as long")


def _route_of(transaction: Transaction) -> str | None:
    """Its route so far. The application's objects are asked while it works on them: they may say anything."""
    try:
        return transaction.route_so_far()
    except Exception:
        return None  # another time


def _name_of(recorder: Recorder, slot: int) -> str | None:
    """`GET /path`, or the task's name; None where it has ended. What a client sent is made printable."""
    data = recorder.read(layout.SLOT_SIZE, slot)
    start_ns, _, _, scheme, method, _, path, *_ = layout.SLOT.unpack_from(data)
    if not start_ns:
        return None
    words = [part.rstrip(b"\0").decode("utf-8", "replace") for part in (method, path)]
    if scheme == layout.SCHEME_BACKGROUND:
        words[0] = "task"
    else:
        words[1] = naming.readable(words[1].rstrip("\ufffd"))
    return "".join(char if char.isprintable() else "\ufffd" for char in " ".join(words))


Frames = list[tuple[str, int, str]]


def _walk(frame: FrameType | None) -> tuple[Frames, Transaction | None]:
    """The application's frames, outermost first: file, line, function; and the request that they work for.

    The server's frames, outside of the filter's, are left out.
    """
    frames: Frames = []
    transaction: Transaction | None = None
    steps = 0
    while frame is not None and steps < 10 * _MAX_FRAMES:
        code = frame.f_code
        if code.co_filename in OWN_FILES:
            transaction = _transaction_of(frame)
            break
        if _is_ours_above(frame):
            frames.clear()  # a signal's handler, and what it called
        elif len(frames) < _MAX_FRAMES:
            frames.append((code.co_filename, frame.f_lineno or 0, code.co_name))
        frame = frame.f_back
        steps += 1
    return frames[::-1], transaction


def _is_ours_above(frame: FrameType) -> bool:
    """gunicorn's handler of SIGABRT, from which the last look is taken: the application is below it."""
    return frame.f_code.co_name == "handle_abort" and "gunicorn" in frame.f_code.co_filename


def _transaction_of(frame: FrameType) -> Transaction | None:
    for name in ("transaction", "self"):
        found = frame.f_locals.get(name)
        if isinstance(found, Transaction):
            return found
    return None


def _text_of(frames: Frames) -> str:
    """As Python prints it; where there is too little room the outermost frames go."""
    lines = [f'  File "{file}", line {line}, in {function}\n' for file, line, function in frames]
    room = layout.STACK_ROOM
    for place in range(len(lines), 0, -1):
        room -= len(lines[place - 1].encode("utf-8", "replace"))
        if room < 0:
            return "".join(lines[place:])
    return "".join(lines)
