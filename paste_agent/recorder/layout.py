"""The bytes of a flight recorder. Little-endian; offsets in bytes from the start of each part.

A file is five parts, one after the other; the header says how many entries the last four have:

    part      entry size  entries           what it holds
    header    4096        1                 who the process is, counters and probe readings
    slots     512         header.slots      one a request in flight
    stacks    4096        header.slots      the stack of a slow request in flight
    series    512         header.series     what finished transactions are counted under, appended as first seen
    ring      64          header.records    finished transactions; number n is in entry n % records

Most of a file is never touched, and what is not touched takes no memory.

header:
    0     8s   magic
    8     I    version of this layout
    12    I    header size
    16    Q    pid
    24    Q    time of opening, ns since the epoch
    32    Q    time of opening, ns of the monotonic clock
    40    QQQ  records, slots, series
    64    16s  boot of the host: the monotonic clock of another one says nothing; NUL where the platform has none
    80    Q*64 words, see the W_ constants: each is written whole by one owner
    1024  256s service name, UTF-8, NUL-padded

slot: (start 0: free)
    0     Q    start, ns of the monotonic clock
    8     Q    number of the transaction in this process, from 1
    16    Q    ident of its thread, or of its greenlet
    24    Q    length of wsgi.url_scheme: 4 is http, 5 is https; 1: a background task
    32    16s  method
    48    56s  traceparent, text, as received, or of the parent that other headers name; NUL for none: then the ids are
               those of `minted_ids`
    104   144s path, as in PATH_INFO; name of a background task
    248   Q    once the server has the response, or the first part of it: series + 1, as its record will have it
    256   Q    and since when, ns of the monotonic clock
    264   Q    the number again: a slot whose two numbers differ is just being written
    272   Q    number of the transaction that has this route: a slot is used again and again
    280   104s route, once the reporter has seen it
    384   Q    number of the transaction that is in this span
    392   120s the span that it is in; NUL for none

stack: of the transaction in the slot of the same place
    0     Q    number of the transaction, written last
    8     Q    when it was taken, ns of the monotonic clock
    16    ...  UTF-8, NUL-padded: a line a frame, the innermost last, as Python prints them

series entry:
    0     I    its number + 1, written last; 0: not written
    4     H    kind, see the KIND_ constants
    6     H    length of what follows
    8     ...  fields, each a length (H) and so many bytes of UTF-8; length 0xFFFF: no value

record:
    0     16s  trace id   } of a kept transaction only:
    16    8s   span id    } whatever was there before
    24    8s   parent id  } otherwise
    32    H    series; the highest bit says that it failed
    34    H    why it is kept, see the KEPT_ constants; 0: not kept
    36    I    of a request: time in the queue before the server took it, µs + 1; 0: unknown. Of a part of one: how many
               spans it sums up
    40    Q    start, ns of the monotonic clock
    48    Q    duration, ns; of what is counted and takes no time: how many
    56    Q    its own number + 1, written last
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache
from random import Random

MAGIC = b"pasteagt"
VERSION = 3
SUFFIX = ".recorder"

HEADER = struct.Struct("<8sIIQQQQQQ16s")
HEADER_SIZE = 4096
WORDS_AT = 80
WORD_COUNT = 64
SERVICE_AT = 1024
SERVICE_SIZE = 256

SLOT_SIZE = 512
SLOT = struct.Struct("<QQQQ16s56s144sQQQ")
PARENT_AT, PARENT = 48, struct.Struct("<56s")
ANSWER_AT, ANSWER = 248, struct.Struct("<QQ")
ROUTE_AT, ROUTE = 272, struct.Struct("<Q104s")
SPAN_AT, SPAN = 384, struct.Struct("<Q120s")
SCHEME_BACKGROUND = 1  #: in the place of the scheme's length
STACK_SIZE = 4096
STACK_HEAD = struct.Struct("<QQ")
STACK_ROOM = STACK_SIZE - STACK_HEAD.size

SERIES_SIZE = 512
SERIES_HEAD = struct.Struct("<IHH")
SERIES_ROOM = SERIES_SIZE - SERIES_HEAD.size
_LENGTH = struct.Struct("<H")
_NO_VALUE = 0xFFFF
_NUMBER = re.compile(r"[1-9][0-9]{0,4}", re.ASCII)
#: Attributes that are numbers on the wire.
_NUMBERS = frozenset(("http.response.status_code", "server.port"))

RECORD_SIZE = 64
RECORD_IDS = struct.Struct("<16s8s8s")
RECORD_BODY_AT = RECORD_IDS.size
RECORD_BODY = struct.Struct("<HHIQQQ")
#: The body of each record of a run of whole records, as the drain reads them.
RECORDS = struct.Struct("<32xHHIQQQ")

FAILED = 0x8000  #: bit of a record's series
MAX_SERIES = 8192
MAX_SLOTS = 4096
MAX_RECORDS = 1 << 20
SLOTS = 512

KIND_SERVER = 1  #: a web request
KIND_BACKGROUND = 2  #: a background task
KIND_BOOT = 3  #: a worker, from its fork until it was ready to serve
KIND_LOST = 4  #: a worker that nobody but the arbiter knew of; its duration says nothing
KIND_DATABASE = 5  #: a call of a database, or of a cache
KIND_CALL = 6  #: a call of another service
KIND_LAYER = 7  #: what one layer of the pipeline took by itself
KIND_LOAD = 8  #: what a layer took to load
KIND_PART = 9  #: all that one request spent on one kind of thing
KIND_ERROR = 10  #: an error that was seen; its duration says nothing
KIND_TIMING = 11  #: a duration that the application measures itself
KIND_COUNT = 12  #: something that the application counts itself
#: What the fields of each kind's series are, under the names that go on the wire.
FIELDS = {
    KIND_SERVER: (
        "http.request.method",
        "url.scheme",
        "http.route",
        "http.response.status_code",
        "error.type",
        "network.protocol.version",
    ),
    KIND_BACKGROUND: ("paste_agent.task.name", "error.type"),
    KIND_BOOT: (),
    KIND_LOST: ("reason",),
    KIND_DATABASE: (
        "db.system.name",
        "db.namespace",
        "db.operation.name",
        "db.collection.name",
        "db.query.summary",
        "error.type",
    ),
    KIND_CALL: (
        "http.request.method",
        "server.address",
        "server.port",
        "http.response.status_code",
        "error.type",
    ),
    KIND_LAYER: ("paste.layer",),
    KIND_LOAD: ("paste.layer",),
    KIND_PART: ("http.request.method", "http.route", "paste_agent.part"),
    KIND_ERROR: ("error.type", "paste_agent.error.place", "http.route", "paste_agent.error.expected"),
    KIND_TIMING: ("paste_agent.custom.name",),
    KIND_COUNT: ("paste_agent.custom.name",),
}
SERVER_FIELDS = FIELDS[KIND_SERVER]
#: Added to a kind: the one series that holds what came after the bound; it has no fields.
KIND_OVERFLOW = 0x8000
OVERFLOW_ATTRIBUTE = "otel.metric.overflow"  #: true on that series, its only attribute

KEPT_PARENT, KEPT_RANDOM, KEPT_SLOW, KEPT_FAILED, KEPT_LOST, KEPT_QUERIES = 1, 2, 4, 8, 16, 32
WHY_KEPT = {
    KEPT_PARENT: "parent",
    KEPT_RANDOM: "random",
    KEPT_SLOW: "slow",
    KEPT_FAILED: "failed",
    KEPT_LOST: "lost",  # with its worker: no record has this, a post-mortem does
    KEPT_QUERIES: "queries",  # a slow one, or one that repeats
}

# Words of the header, by index.
W_CLOSED = 0  #: 1: the process ended in order, and will leave no further record
W_SERVING = 1  #: 1: it serves requests; 0: it only records, as an arbiter does
W_TAIL = 2  #: records below this number have been drained; written by the lead
W_DROPPED = 3  #: records lost because the ring was full
W_UNSLOTTED = 4  #: requests that found no free slot
W_INTERNAL_ERRORS = 5  #: faults of the agent that the application did not see
W_CONCURRENCY = 6  #: requests that the process can serve at once; 0: unknown
W_PROBED_AT = 8  #: ns of the monotonic clock; 0: never
W_CPU_USER_NS = 9
W_CPU_SYSTEM_NS = 10
W_MEMORY_BYTES = 11  #: resident set
W_VIRTUAL_BYTES = 12
W_THREADS = 13
W_FILE_DESCRIPTORS = 14
W_GC_COLLECTIONS = 15  #: and the two words after it: one a generation
W_OOM_KILLS = 18  #: processes that the kernel has killed for want of memory, in the same cgroup, + 1; 0: unknown
W_TIMEOUT_MS = 19  #: gunicorn's `timeout`; 0: none, or unknown
W_RECYCLED = 20  #: 1: the worker ended because it had served `max_requests`
W_ABORTED = 21  #: 1: the process was told by SIGABRT that its time is up
# What only gunicorn's arbiter knows; written by it, into a recorder of another process.
W_WITNESSED = 22  #: 1, by the process itself: there is an arbiter that will tell how it ended
W_EXIT = 23  #: wait status + 1
W_EXIT_AT = 24  #: ns of the monotonic clock
W_KILLED_WITH = 25  #: the last signal of SIGABRT and SIGKILL that the arbiter has sent
W_TIMED_OUT = 26  #: 1: because the worker had not said for `timeout` seconds that it is alive
W_SPANS_DROPPED = 27  #: records of spans that gave way to those of requests
WORDS_KEPT = 28  #: so many are kept in the store


class Geometry:
    """Where the parts of a file with so many entries lie."""

    __slots__ = ("records", "ring_at", "series", "series_at", "size", "slots", "slots_at", "stacks_at")

    def __init__(self, records: int, slots: int = SLOTS, series: int = MAX_SERIES) -> None:
        """Raises ValueError for numbers that no recorder has: they come from files that are not trusted."""
        if not (1 <= records <= MAX_RECORDS and 1 <= slots <= MAX_SLOTS and 1 <= series <= MAX_SERIES):
            raise ValueError(f"no such recorder: {records} records, {slots} slots, {series} series")
        self.records = records
        self.slots = slots
        self.series = series
        self.slots_at = HEADER_SIZE
        self.stacks_at = self.slots_at + slots * SLOT_SIZE
        self.series_at = self.stacks_at + slots * STACK_SIZE
        self.ring_at = self.series_at + series * SERIES_SIZE
        self.size = self.ring_at + records * RECORD_SIZE


def encode_fields(fields: Sequence[str | None]) -> bytes:
    """The payload of a series entry; where they do not fit, the longest is cut: a long route costs no status."""
    parts = [None if field is None else field.encode("utf-8", "replace") for field in fields]
    room = SERIES_ROOM - _LENGTH.size * len(fields)
    lengths = [len(part or b"") for part in parts]
    while (excess := sum(lengths) - room) > 0:
        shorter, longest = ([0, *sorted(lengths)])[-2:]
        # A cut may fall inside a character; decoding drops the broken one.
        lengths[lengths.index(longest)] -= min(excess, max(longest - shorter, 1))
    return b"".join(
        _LENGTH.pack(_NO_VALUE) if part is None else _LENGTH.pack(length) + part[:length]
        for part, length in zip(parts, lengths, strict=True)
    )


def decode_fields(payload: bytes) -> list[str | None]:
    """The fields of a series entry. Raises ValueError when the lengths do not add up."""
    fields: list[str | None] = []
    at = 0
    while at < len(payload):
        if at + _LENGTH.size > len(payload):
            raise ValueError("series entry: half a length")
        (length,) = _LENGTH.unpack_from(payload, at)
        at += _LENGTH.size
        if length == _NO_VALUE:
            fields.append(None)
            continue
        if at + length > len(payload):
            raise ValueError("series entry: a field longer than its entry")
        fields.append(payload[at : at + length].decode("utf-8", "ignore"))
        at += length
    return fields


def minted_ids(recorder: str, number: int) -> tuple[bytes, bytes]:
    """Trace id and span id of a transaction that came without a traceparent: 16 and 8 bytes.

    Made of its recorder's id, which has 64 random bits, and its number: the process itself, and whoever finds the
    recorder after its death, come to the same, and so does the next one when the first is killed over it.
    """
    # A multiple of an odd number, which none of 2 to the 192nd transactions has in common with another.
    bits = (_bits_of(recorder) + number * _ODD) & _ALL_BITS | 1 << 64 | 1
    return (bits >> 64).to_bytes(16, "big"), (bits & (1 << 64) - 1).to_bytes(8, "big")


_ALL_BITS = (1 << 192) - 1
#: About 2 to the 192nd by the golden ratio: neighbours have nothing in common that meets the eye.
_ODD = 0x9E3779B97F4A7C15F39CC0605CEDC8341082276BF3A27251


@lru_cache(maxsize=256)
def _bits_of(recorder: str) -> int:
    return Random(recorder).getrandbits(192)


def boot_id() -> bytes:
    """16 bytes that this boot of the host has and no other; zeros where the platform has none."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return bytes.fromhex(file.read().strip().replace("-", "")).ljust(16, b"\0")[:16]
    except (OSError, ValueError):
        return bytes(16)


def attributes_of(names: Sequence[str], fields: Iterable[str | None]) -> dict[str, str | int]:
    """Fields of a series under the names that go on the wire; those without a value left out, the status a number."""
    attributes: dict[str, str | int] = {}
    for name, value in zip(names, fields, strict=False):
        if value is not None:
            attributes[name] = int(value) if name in _NUMBERS and _NUMBER.fullmatch(value) else value
    return attributes
