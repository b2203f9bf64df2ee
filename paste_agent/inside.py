"""What a transaction has inside of it: the spans that it went through, and what the application has said of it.

Made when there is the first of either; most requests of a service that only serves memory have none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from paste_agent.raised import Raised, origin_of, place_of, raised_of, type_name

# What a span's time is spent on. The first ones are parts of a transaction: their own time is summed up in it.
DATABASE, CACHE, CALL, MESSAGE, TEMPLATE, LAYERS, GC, CPU, FUNCTION = range(9)
#: Names of parts on the wire, `paste_agent.part`.
PARTS = ("database", "cache", "call", "message", "template", "layers", "gc", "cpu")
#: Spans of one transaction that are remembered; all are counted.
MAX_SPANS = 512
#: Up to how many the ones are beyond these that tell most: failed spans, slow queries, and what is around kept ones.
MAX_FAILED, MAX_SLOW, MOST_SPANS = 640, 896, 1024
#: Errors that one transaction can have; attributes that an application can give it.
MAX_ERRORS = 10
MAX_ATTRIBUTES = 64

AttributeValue = str | int | float | bool
#: Attributes of a span: a mapping, or a function that makes one and its arguments. The reporter calls it, of those few
#: spans that are kept.
Attributes = Mapping[str, object] | tuple[Any, ...]


def resolved(attributes: Attributes | None) -> Mapping[str, object]:
    """The mapping of a span's attributes."""
    if attributes.__class__ is tuple:
        make, *args = attributes
        found: Mapping[str, object] = make(*args)
        return found
    return attributes or {}  # type: ignore[return-value]  # no tuple


def with_one(attributes: Attributes, key: str, value: object) -> dict[str, object]:
    """Attributes, and one more."""
    return {**resolved(attributes), key: value}


def is_fetch(name: str) -> bool:
    """Whether a span of a database, by its name, fetches what a statement has found: that is not to execute it."""
    return name.startswith("fetch ")


class FinishedSpan(NamedTuple):
    """A span that has ended, as the reporter gets it when its transaction is kept."""

    number: int  #: in its process, from 1, in the order in which they began
    parent: int  #: number of the span around it; 0: none
    category: int
    name: str
    start_ns: int  #: of the monotonic clock
    duration_ns: int
    own_ns: int  #: without the spans inside of it
    failed: str | None  #: error.type
    span_id: bytes | None  #: of a call whose service was told
    attributes: Mapping[str, object] | None
    code: tuple[str, int, str] | None  #: file, line and function that it was called from

    @classmethod
    def of(cls, done: tuple[Any, ...]) -> FinishedSpan:
        """One of `Inside.finished`, with its attributes as a mapping. For the reporter."""
        span = cls._make(done)
        return span if span.attributes is None else span._replace(attributes=resolved(span.attributes))


class SeenError(NamedTuple):
    """An error of a transaction, whether it left the application or not."""

    type: str
    place: str  #: of the innermost frame of the application; '' unknown
    expected: bool
    origin: tuple[str, int] = ("", 0)  #: file and line that raised it


class Identity(NamedTuple):
    """What others are told of a transaction that call for it."""

    trace_id: bytes  #: 16 bytes
    span_id: bytes  #: 8 bytes
    parent_id: bytes  #: 8 bytes; zeros: none
    parent_sampled: bool
    sampled: bool  #: whether it is sure to be kept, as far as buckets allow
    tracestate: str
    baggage: str


class LeftOut:
    """What a transaction had beyond MAX_SPANS. About right where several threads add to it."""

    __slots__ = ("count", "newest", "queries", "top_ns")

    def __init__(self, newest: int) -> None:
        self.count = 0  #: spans that were not kept
        self.top_ns = 0  #: time of those that were in no other span
        self.newest = newest  #: number of the one that began last of those that were kept
        self.queries: dict[tuple[int, str], list[int]] = {}  #: by parent and text: how many of them, and their time

    def add_query(self, done: tuple[Any, ...]) -> None:
        """One more that is not kept, as FinishedSpan has it."""
        attributes, name = done[9], done[3]
        while attributes.__class__ is tuple and attributes[0] is with_one:
            attributes = attributes[1]
        # Others would have to be made first. What repeats has them ready.
        if attributes.__class__ is not dict or is_fetch(name):
            return
        key = done[1], attributes.get("db.query.text") or name
        query = self.queries.get(key)
        if query is not None:
            query[0] += 1
            query[1] += done[5]
        elif len(self.queries) < MAX_SPANS:
            self.queries[key] = [1, done[5]]


class Inside:
    """Belongs to one transaction. Several threads, or greenlets, of it may add to it."""

    __slots__ = (
        "attributes",
        "errors",
        "finished",
        "identity",
        "ignored",
        "left_out",
        "name",
        "notable",
        "parts",
        "queries",
        "raised",
        "remarkable",
        "task",
        "why",
    )

    left_out: LeftOut  #: not there before there is something

    def __init__(self) -> None:
        self.finished: list[tuple[Any, ...]] = []  #: as FinishedSpan has them
        self.parts: dict[int, list[int]] = {}  #: of those in PARTS that there were: how many spans, and their time, ns
        self.queries: dict[bytes, int] = {}  #: how often each statement was executed
        self.notable = False  #: one of them is slow, or repeats
        self.remarkable = False  #: what is inside speaks for keeping it; its bucket decides
        self.why = 0  #: KEPT_ bits that have been decided before the end
        self.identity: Identity | None = None
        self.name: str | None = None  #: given by the application
        self.task: str | None = None  #: it is a background task by this name
        self.ignored = False
        self.attributes: dict[str, AttributeValue] | None = None
        self.errors: list[SeenError] | None = None
        self.raised: Raised | None = None

    def takes(self, done: tuple[Any, ...], slow_query_ns: int) -> bool:
        """Whether a span is kept although there are MAX_SPANS; one that is not is counted. May raise.

        done: as FinishedSpan has it.
        """
        left = getattr(self, "left_out", None)
        if left is None:
            left = self.left_out = LeftOut(max(one[0] for one in self.finished))
        if done[0] < left.newest:  # which has ended: it was inside of this one
            room = MOST_SPANS
        elif done[2] == DATABASE and done[5] > slow_query_ns:
            room = MAX_SLOW
        else:
            room = MAX_SPANS if done[7] is None else MAX_FAILED
        if len(self.finished) < room:
            left.newest = max(left.newest, done[0])
            return True
        left.count += 1
        if not done[1]:
            left.top_ns += done[5]
        if done[2] == DATABASE:
            left.add_query(done)
        return False

    def spend(self, part: int, time_ns: int) -> None:
        """Add a time that was spent on one of PARTS."""
        spent = self.parts.setdefault(part, [0, 0])
        spent[0] += 1
        spent[1] += time_ns

    def note(self, error: BaseException, expected: bool, take_failed: Callable[[], bool]) -> None:
        """Note an error, once however often it is noted: a layer may handle it, note it, and raise it again.

        expected: seen, and nobody is to be called for it. take_failed: whether one more that is not may be kept, with
        its stack. May raise what the error raises.
        """
        errors = self.errors = self.errors or []
        seen = SeenError(type_name(error), place_of(error), expected, origin_of(error))
        known = [one for one in errors if one.type == seen.type and one.origin == seen.origin]
        # One that counts takes the place of one that is expected.
        replaced = known or (errors[-1:] if len(errors) >= MAX_ERRORS else [])
        if replaced:
            if expected or not replaced[0].expected:
                return
            errors.remove(replaced[0])
        errors.append(seen)
        if not expected and self.raised is None:
            self.remarkable = True  # kept or not: those kept stand for those that are not
            if take_failed():
                self.raised = raised_of(error)

    def pardon(self, expected: bool) -> bool:
        """Take all errors for expected ones, or forget them; whether one of them was to be kept with its stack."""
        self.errors = [one._replace(expected=True) for one in self.errors or ()] if expected else None
        was_kept, self.raised = self.raised is not None, None
        return was_kept
