"""Recorder files that nobody should trust: cut, flipped, noisy, forged. None may cost more than itself."""

from __future__ import annotations

import itertools
import logging
import os
import random
import socket
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paste_agent.aggregate import REQUEST_DURATION, Delta
from paste_agent.exporters.otlp_encode import encode_logs
from paste_agent.log import logger
from paste_agent.recorder import layout
from paste_agent.recorder.layout import Geometry
from paste_agent.recorder.reader import BadRecorder, Reader
from paste_agent.spans import span
from paste_agent.store.store import MEMORY
from paste_agent.watch import Watch
from tests.recorders import (
    GEOMETRY,
    S,
    count_of,
    die,
    forged,
    in_flight,
    leading,
    open_recorder,
    requests_of,
    run_script,
    serve,
    written,
)

_numbers = itertools.count()
now_ns = time.perf_counter_ns()
#: Examples of each property; more of them in a long round.
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "150"))

bounded = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
u16 = st.integers(0, 0xFFFF)
u32 = st.integers(0, 0xFFFFFFFF)
u64 = st.integers(0, (1 << 64) - 1) | st.integers(0, 40) | st.sampled_from([1 << 63, (1 << 63) - 1, 1 << 62, 1 << 40])


def look_at_everything(path: str) -> None:
    """Call all that a drain, a report or a post-mortem calls. Only what is documented may be raised."""
    try:
        reader = Reader.of_file(path)
    except (BadRecorder, FileNotFoundError):
        return
    try:
        words = reader.words()
        assert len(words) == layout.WORD_COUNT
        assert max(words) <= 1 << 62
        for position in (0, 1, reader.geometry.records, (1 << 62) + 3):
            assert len(reader.chunk(position, 1 << 40)) <= reader.geometry.records * 64
            reader.next_written(position)
            trace_id, span_id, parent_id = reader.ids(position)
            assert (len(trace_id), len(span_id), len(parent_id)) == (16, 8, 8)
        for number in (-1, 0, 1, reader.geometry.series - 1, reader.geometry.series, 0x7FFF, 1 << 62):
            reader.series(number)
        flight = reader.in_flight(stacks=3)
        assert len(flight) <= reader.geometry.slots
        assert all(len(one.stack) <= layout.STACK_ROOM for one in flight)
        reader.finished_among({one.start_ns for one in flight}, reader.geometry.records)
        reader.is_dead()
    finally:
        reader.close()


def drain_beside_a_good_one(make: Callable[[Path], object]) -> None:
    """A whole drain over a directory with a bad file and two good recorders, one alive and one dead."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        directory = Path(name)
        alive, dead = open_recorder(directory, records=512, slots=1), open_recorder(directory, records=512, slots=1)
        for _ in range(3):
            serve(alive, route="/alive")
            serve(dead, route="/dead")
        die(dead)
        make(directory)
        store = f"{MEMORY}-fuzz-{next(_numbers)}?mode=memory&cache=shared"
        with leading(directory, store=store) as lead:
            lead.drain()
            die(alive)
            lead.drain()
            lead.drain()
            counts = requests_of(lead.store)
            assert counts.get(("GET", "/alive", 200)) == 3
            assert counts.get(("GET", "/dead", 200)) == 3
            for row in lead.store.recorders():
                assert row.position < 1 << 63
            # The good ones are told of as ever; of a bad one there is at most one account.
            accounts = lead.store.postmortems(-1e12, 1e12, 100)
            assert len({row.id for row in accounts}) == len(accounts) <= 3
            for account in accounts:
                assert len(account.summary["requests"]) <= 20
            message = encode_logs({}, lead.store.traces(-9e9, 9e9, "newest", False, 1000))
            assert message is None or message.items <= 40
            lead.tidy()


@pytest.fixture(autouse=True)
def said() -> Iterator[None]:
    """What is logged about a recorder is looked at, and not kept: there may be a million of them."""

    class Looks(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            assert text.replace("\n", "").isprintable()
            assert len(text) < 100_000

        def handleError(self, record: logging.LogRecord) -> None:
            raise

    looks = Looks()
    logger.addHandler(looks)
    logger.propagate = False
    yield
    logger.propagate = True
    logger.removeHandler(looks)


@pytest.fixture(scope="module")
def good() -> bytes:
    """The bytes of a real recorder that has everything in it."""
    with tempfile.TemporaryDirectory(prefix="good-") as name:
        opened = open_recorder(Path(name), records=512, slots=6, keep_all=True)
        for place in range(40):
            serve(opened, f"/{place}", route=f"/{place % 7}", status="500 No" if place % 5 == 0 else "200 OK")
        data: list[bytes] = []
        assert opened.path is not None
        path = Path(opened.path)
        opened.set_word(layout.W_SERVING, 1)
        opened.record(layout.KIND_LOST, ("boot",), now_ns - S, 0, False)
        in_flight(opened, now_ns - 2 * S, path=b"/answered", series=0, answered_ns=now_ns - S)

        def under_way() -> None:
            with span("SELECT orders"):
                Watch(opened, "shop", 2 * S, 30 * S).last_look()  # each has a stack, and a copy that is pinned
                data.append(path.read_bytes())

        serve(opened, "/under-way", route="/u", meanwhile=under_way)
        die(opened)
        return data[0]


def parts_of_good(*header: tuple[int, int]) -> list[tuple[int, int]]:
    """Where something is written in the good one: offset and length."""
    geometry = Geometry(512, 6)
    slots = [(geometry.slots_at, 512 * 6), *((geometry.stacks_at + slot * 4096, 600) for slot in range(2, 6))]
    return [*header, *slots, (geometry.series_at, 5000), (geometry.ring_at, 3000)]


def test_the_good_one_has_everything_in_it(tmp_path: Path, good: bytes) -> None:
    reader = Reader.of_file(written(tmp_path / "good.recorder", good))
    answered, under_way = reader.in_flight(stacks=9)
    assert (answered.path, answered.series) == ("/answered", 0)
    assert (under_way.route, under_way.span) == ("/u", "SELECT orders")
    assert "under_way" in under_way.stack
    assert len({place for place in range(6) if good[reader.geometry.slots_at + place * 512 :][:8] != bytes(8)}) == 4
    reader.close()


# -- what is no recorder -------------------------------------------------------------------------------------------


@bounded
@given(length=st.integers(0, 9000) | st.integers(0, 3_000_000))
def test_a_truncated_file_is_refused(tmp_path: Path, good: bytes, length: int) -> None:
    path = written(tmp_path / "cut.recorder", good[:length])
    if length < len(good):
        with pytest.raises(BadRecorder):
            Reader.of_file(path)
    look_at_everything(path)


@bounded
@given(data=st.binary(max_size=10_000), size=st.sampled_from([0, 1, 4095, 4096, 4097, GEOMETRY.size]))
def test_noise_is_refused(tmp_path: Path, data: bytes, size: int) -> None:
    path = written(tmp_path / "noise.recorder", data[:size].ljust(size, data[:1] or b"\xff"))
    with pytest.raises(BadRecorder):
        Reader.of_file(path)


@bounded
@given(
    counts=st.tuples(u64, u64, u64),
    pid=u64,
    opened=st.tuples(u64, u64),
    version=st.just(layout.VERSION) | u32,
    size=st.just(layout.HEADER_SIZE) | u32,
)
def test_no_header_makes_the_reader_fail(
    tmp_path: Path, counts: tuple[int, int, int], pid: int, opened: tuple[int, int], version: int, size: int
) -> None:
    data = bytearray(GEOMETRY.size)
    layout.HEADER.pack_into(data, 0, layout.MAGIC, version, size, pid, *opened, *counts, layout.boot_id())
    look_at_everything(written(tmp_path / "header.recorder", bytes(data)))


@pytest.mark.parametrize(
    "counts",
    [
        (0, 1, 1),
        (1, 0, 1),
        (1, 1, 0),
        (layout.MAX_RECORDS + 1, 1, 1),
        (1, layout.MAX_SLOTS + 1, 1),
        (1, 1, layout.MAX_SERIES + 1),
        ((1 << 64) - 1,) * 3,
        (1 << 58, 1, 1),  # times 64 it is a multiple of 2**64
    ],
)
def test_counts_that_no_recorder_has_are_refused(tmp_path: Path, counts: tuple[int, int, int]) -> None:
    data = forged()
    struct.pack_into("<QQQ", data, 40, *counts)
    with pytest.raises(BadRecorder, match="no such recorder"):
        Reader.of_file(written(tmp_path / "counts.recorder", data))


@pytest.mark.parametrize("size", [1 << 30, 1 << 40])
def test_a_huge_sparse_file_is_refused_unread(tmp_path: Path, size: int) -> None:
    path = written(tmp_path / "huge.recorder", forged())
    os.truncate(path, size)
    with pytest.raises(BadRecorder, match="larger than any recorder"):
        Reader.of_file(path)


def test_a_file_that_shrinks_after_it_was_opened_gives_less(tmp_path: Path, good: bytes) -> None:
    for length in (0, 1, 64, 100, 4095, 4096, 5000, len(good) - 33):
        path = written(tmp_path / "shrinks.recorder", good)
        reader = Reader.of_file(path)
        os.truncate(path, length)
        assert len(reader.words()) == layout.WORD_COUNT
        assert len(reader.chunk(0, 512)) <= 512 * 64
        assert reader.series(0) is None or length > reader.geometry.series_at
        reader.in_flight()
        reader.ids(511)
        reader.next_written(0)
        reader.close()


# -- what is no file of ours ---------------------------------------------------------------------------------------


def _directory(path: Path) -> None:
    path.mkdir()


def _fifo(path: Path) -> None:
    os.mkfifo(path, 0o600)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


def _link(path: Path) -> None:
    target = path.with_name("target")
    written(target, forged())
    path.symlink_to(target)


def _dangling(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


def _readable(path: Path) -> None:
    written(path, forged())
    path.chmod(0o644)


def _of_another_owner(path: Path) -> None:
    written(path, forged())
    try:
        os.chown(path, os.geteuid() + 4711, -1)
    except PermissionError:
        pytest.skip("only root can give a file away")


def _empty(path: Path) -> None:
    written(path, b"")


@pytest.mark.parametrize("make", [_directory, _fifo, _socket, _link, _dangling, _readable, _of_another_owner, _empty])
def test_what_is_not_ours_is_refused_said_once_and_left_alone(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "x.recorder"
    make(path)
    with pytest.raises(BadRecorder):
        Reader.of_file(str(path))
    said: list[str] = []
    with leading(tmp_path, warn=lambda kind, message: said.append(message)) as lead:
        for _ in range(3):
            lead.drain()
    assert len(said) == 1
    assert str(path) in said[0]
    assert "\n" not in said[0]
    # One of this user's own, which some fault must have spoilt, makes room; what is anybody else's is not touched.
    assert os.path.lexists(path) != os.path.lexists(f"{path}.bad") == (make is _empty)


def test_a_file_that_has_just_gone_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Reader.of_file(str(tmp_path / "gone.recorder"))


# -- what has the shape of a recorder ------------------------------------------------------------------------------


@bounded
@given(flips=st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(0, 7)), min_size=1, max_size=60))
def test_flipped_bits_never_make_the_reader_fail(tmp_path: Path, good: bytes, flips: list[tuple[int, int]]) -> None:
    data = bytearray(good)
    parts = parts_of_good((0, 1300))
    for place, bit in flips:
        at, length = parts[place % len(parts)]
        data[at + place // len(parts) % length] ^= 1 << bit
    look_at_everything(written(tmp_path / "flipped.recorder", data))


@bounded
@given(data=st.binary(max_size=600))
def test_no_payload_of_a_series_makes_decoding_fail(data: bytes) -> None:
    try:
        fields = layout.decode_fields(data)
    except ValueError:
        return
    for field in fields:
        assert field is None or isinstance(field.encode(), bytes)


@settings(bounded, max_examples=max(1, EXAMPLES // 4))
@given(flips=st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(0, 7)), min_size=1, max_size=40))
def test_flipped_bits_never_stop_a_drain(good: bytes, flips: list[tuple[int, int]]) -> None:
    data = bytearray(good)
    parts = parts_of_good((16, 48), (64, 512))
    for place, bit in flips:
        at, length = parts[place % len(parts)]
        data[at + place // len(parts) % length] ^= 1 << bit
    drain_beside_a_good_one(lambda directory: written(directory / "flipped.recorder", data))


times = u64 | st.integers(0, 2 * now_ns) | st.just(now_ns)
entry_payloads = st.one_of(
    st.binary(max_size=512),
    st.lists(st.none() | st.text(max_size=60) | st.sampled_from(["9" * 400, "٣", "²", "200", ""]), max_size=8).map(
        lambda fields: layout.encode_fields(fields)
    ),
)
entries = st.builds(
    lambda number, kind, length, payload: (
        layout.SERIES_HEAD.pack(number, kind, len(payload) if length is None else length) + payload
    ),
    st.integers(0, 5) | u32,
    st.sampled_from([1, 2, 0x8000, 0x8001]) | u16,
    st.none() | u16,
    entry_payloads,
)
bodies_strategy = st.lists(
    st.tuples(st.integers(0, 5) | u16, st.just(0) | u16, st.just(0) | u32, times, times, st.none() | u64), max_size=16
).map(lambda rows: [(*row[:5], place + 1 if row[5] is None else row[5]) for place, row in enumerate(rows)])
numbers_in_use = st.integers(0, 3)  # few, so that slots, stacks and parts of slots belong together now and then
slot_texts = st.binary(max_size=150) | st.sampled_from(
    [b"GET", b"/\x1b[31m\n", b"/\xff", "/\u202e".encode(), b"00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01"]
)


def slot_of(
    head: tuple[int, int, int, int],
    texts: tuple[bytes, bytes, bytes],
    answer: tuple[int, int],
    again: int | None,
    parts: tuple[int, bytes, int, bytes],
) -> bytes:
    slot = bytearray(layout.SLOT_SIZE)
    layout.SLOT.pack_into(slot, 0, *head, *texts, *answer, head[1] if again is None else again)
    layout.ROUTE.pack_into(slot, layout.ROUTE_AT, *parts[:2])
    layout.SPAN.pack_into(slot, layout.SPAN_AT, *parts[2:])
    return bytes(slot)


slots_strategy = st.lists(
    st.builds(
        slot_of,
        st.tuples(times, numbers_in_use | u64, numbers_in_use | u64, st.sampled_from([1, 4, 5]) | u64),
        st.tuples(slot_texts, slot_texts, slot_texts),
        st.tuples(st.integers(0, 5) | u64, times),
        st.none() | u64,
        st.tuples(numbers_in_use | u64, slot_texts, numbers_in_use | u64, slot_texts),
    )
    | st.binary(max_size=512),
    max_size=2,
)
stack_texts = st.binary(max_size=4096) | st.lists(
    st.sampled_from(
        [
            b'  File "/dev/zero", line 1, in f\n', b'  File "/proc/self/mem", line 9, in f\n', b"\n", b"\xff", b"\0",
            b"Fatal Python error: Aborted\n", b"Fatal Python error: \x1b[31m\n", b'  File "', b'", line ', b" in ",
            b"Current thread 0x0001 (most recent call first):\n", b"Thread 0x2 (most recent call first):\n",
            __file__.encode(), b'  File "%s", line 3, in f\n' % __file__.encode(), b"7", b'"',
        ]
    ),
    max_size=40,
).map(b"".join)  # fmt: skip
stacks_strategy = st.lists(
    st.builds(
        lambda head, text: layout.STACK_HEAD.pack(*head) + text, st.tuples(numbers_in_use | u64, times), stack_texts
    ),
    max_size=2,
)
exit_words = st.fixed_dictionaries(
    {},
    optional={
        layout.W_CLOSED: st.integers(0, 1) | u64,
        layout.W_SERVING: st.just(1) | u64,
        layout.W_TIMEOUT_MS: st.sampled_from([0, 1, 30_000]) | u64,
        layout.W_RECYCLED: st.integers(0, 1) | u64,
        layout.W_ABORTED: st.integers(0, 1) | u64,
        layout.W_WITNESSED: st.integers(0, 1) | u64,
        layout.W_EXIT: st.sampled_from([1, 7, 10, 12, 0x80, 0x101, 0x10000]) | u64,
        layout.W_EXIT_AT: times,
        layout.W_KILLED_WITH: st.sampled_from([6, 9, 64]) | u64,
        layout.W_TIMED_OUT: st.integers(0, 1) | u64,
        layout.W_OOM_KILLS: u64,
    },
)


@bounded
@given(
    records=bodies_strategy,
    series=st.lists(entries, max_size=4),
    slots=slots_strategy,
    stacks=stacks_strategy,
    words=exit_words,
    crash=st.none() | stack_texts,
    opened_ns=st.integers(0, (1 << 62) - 1) | st.just(now_ns),
    of_this_boot=st.booleans(),
)
def test_no_death_stops_a_drain(
    records: list[tuple[int, int, int, int, int, int]],
    series: list[bytes],
    slots: list[bytes],
    stacks: list[bytes],
    words: dict[int, int],
    crash: bytes | None,
    opened_ns: int,
    of_this_boot: bool,
) -> None:
    """Of a process that died: what it had in flight, what it says of its end, and what the interpreter said."""
    data = forged(records=records, series=series, slots=slots, stacks=stacks, words=words, opened_ns=opened_ns)
    if not of_this_boot:
        data[64:80] = b"another boot    "

    def make(directory: Path) -> None:
        written(directory / "0-forged.recorder", data)
        if crash is not None:
            written(directory / "0-forged.crash", crash)

    drain_beside_a_good_one(make)


@bounded
@given(crash=stack_texts, flips=st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(0, 7)), max_size=8))
def test_no_crash_file_stops_a_drain(good: bytes, crash: bytes, flips: list[tuple[int, int]]) -> None:
    data, parts = bytearray(good), parts_of_good((80, 27 * 8))
    for place, bit in flips:
        at, length = parts[place % len(parts)]
        data[at + place // len(parts) % length] ^= 1 << bit

    def make(directory: Path) -> None:
        written(directory / "0-forged.recorder", data)
        written(directory / "0-forged.crash", crash)

    drain_beside_a_good_one(make)


@bounded
@given(
    records=bodies_strategy,
    series=st.lists(entries, max_size=4),
    slots=slots_strategy,
    words=st.dictionaries(st.integers(0, 30), u64, max_size=8),
    opened_ns=st.integers(0, (1 << 62) - 1) | st.just(now_ns),
    pid=st.integers(0, (1 << 31) - 1),
)
def test_no_contents_stop_a_drain(
    records: list[tuple[int, int, int, int, int, int]],
    series: list[bytes],
    slots: list[bytes],
    words: dict[int, int],
    opened_ns: int,
    pid: int,
) -> None:
    data = forged(records=records, series=series, slots=slots, words=words, opened_ns=opened_ns, pid=pid)
    drain_beside_a_good_one(lambda directory: written(directory / "0-forged.recorder", data))


@pytest.mark.parametrize("name", ["\n.recorder", "..recorder", ".recorder", "\udcff.recorder", "x" * 246 + ".recorder"])
def test_no_name_stops_a_drain(name: str) -> None:
    drain_beside_a_good_one(lambda directory: written(directory / name, forged()))


def test_a_status_that_no_server_sends_stays_text(tmp_path: Path) -> None:
    """A number beyond 64 bits would stop the exporter, which sends whole numbers."""
    fields = layout.encode_fields(["GET", "http", "/", "9" * 300, None, None])
    entry = layout.SERIES_HEAD.pack(1, 1, len(fields)) + fields
    written(tmp_path / "0-forged.recorder", forged(records=[(0, 0, 0, now_ns - S, S, 1)], series=[entry]))
    with leading(tmp_path) as lead:
        lead.drain()
        assert [status for _, _, status in requests_of(lead.store)] == ["9" * 300]


def test_durations_that_add_up_to_more_than_64_bits_do_not_stop_the_drain(tmp_path: Path) -> None:
    """Each record alone is possible on a host that has been up for long enough."""
    with leading(tmp_path) as lead:
        for _ in range(3):
            delta = Delta()
            total = delta.at((REQUEST_DURATION, "{}"), 0)
            total.count, total.sum_ns, total.max_ns = 1, 1 << 62, 1 << 62
            lead.store.commit_drain(delta, [], {}, 100)
        assert count_of(lead.store) == 3
        (found,) = lead.store.totals()
        assert found.total.sum_ns == (1 << 63) - 1


MEMORY_SCRIPT = """
import sys
from pathlib import Path
from tests.recorders import leading

def peak_kib():
    with open('/proc/self/status') as file:
        return next(int(line.split()[1]) for line in file if line.startswith('VmHWM'))

before = peak_kib()
with leading(Path(sys.argv[1])) as lead:
    lead.drain()
    lead.drain()
print((peak_kib() - before) // 1024)
"""


@pytest.mark.parametrize("why", [0, layout.KEPT_PARENT])
def test_the_largest_file_that_can_be_forged_takes_little_memory(tmp_path: Path, why: int) -> None:
    """As many entries of each kind as a header may promise, each of them well formed."""
    geometry = Geometry(1 << 17, layout.MAX_SLOTS, layout.MAX_SERIES)
    noise = random.Random(1)
    data = forged(geometry=geometry)
    for place in range(geometry.records):
        body = (noise.randrange(0x10000), why, 1, now_ns - noise.randrange(now_ns // 2) - S, S, place + 1)
        layout.RECORD_BODY.pack_into(data, geometry.ring_at + place * 64 + layout.RECORD_BODY_AT, *body)
        struct.pack_into("<Q", data, geometry.ring_at + place * 64, place)
    sources = [tmp_path / f"{place}.py" for place in range(60)]
    for source in sources:
        source.write_text("x = 1\n" * 150_000)
    for place in range(geometry.slots):
        series = place % 0x10000 + 1 if place % 2 else 0
        layout.SLOT.pack_into(
            data, geometry.slots_at + place * 512, 1, place + 1, 9, 9, b"GET", b"", b"\xff" * 160, series, 2, place + 1
        )
        stack = b"".join(b'  File "%s", line 7, in f\n' % str(source).encode() for source in sources)
        at = geometry.stacks_at + place * layout.STACK_SIZE
        layout.STACK_HEAD.pack_into(data, at, place + 1, 1)
        data[at + 16 : at + layout.STACK_SIZE] = stack[: layout.STACK_ROOM].ljust(layout.STACK_ROOM, b"\0")
    struct.pack_into("<Q", data, layout.WORDS_AT + 8 * layout.W_SERVING, 1)
    written(tmp_path / "0-largest.crash", b"Fatal Python error: Aborted\n" + stack * 30)
    written(tmp_path / "0-largest.recorder", data)
    assert int(run_script(MEMORY_SCRIPT, tmp_path)) < 64
