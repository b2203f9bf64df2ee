"""Recorder files that nobody should trust: cut, flipped, noisy, forged. None may cost more than itself."""

from __future__ import annotations

import itertools
import os
import random
import socket
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paste_agent.aggregate import REQUEST_DURATION, Delta
from paste_agent.recorder import layout
from paste_agent.recorder.layout import Geometry
from paste_agent.recorder.reader import BadRecorder, Reader
from paste_agent.store.store import MEMORY
from tests.recorders import S, count_of, die, leading, open_recorder, requests_of, run_script, serve

GEOMETRY = Geometry(records=16, slots=2, series=4)
_numbers = itertools.count()

bounded = settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
u16 = st.integers(0, 0xFFFF)
u32 = st.integers(0, 0xFFFFFFFF)
u64 = st.integers(0, (1 << 64) - 1) | st.integers(0, 40) | st.sampled_from([1 << 63, (1 << 63) - 1, 1 << 62, 1 << 40])


def forged(
    *,
    records: list[tuple[int, int, int, int, int, int]] = (),  # type: ignore[assignment]  # only read
    series: list[bytes] = (),  # type: ignore[assignment]
    slots: list[bytes] = (),  # type: ignore[assignment]
    words: dict[int, int] | None = None,
    geometry: Geometry = GEOMETRY,
    pid: int = 7,
    opened_ns: int = 1,
) -> bytearray:
    """A recorder's file as somebody might write it: the geometry holds, the rest is up to them."""
    data = bytearray(geometry.size)
    layout.HEADER.pack_into(
        data, 0, layout.MAGIC, layout.VERSION, layout.HEADER_SIZE, pid, opened_ns, opened_ns,
        geometry.records, geometry.slots, geometry.series, layout.boot_id(),
    )  # fmt: skip
    for index, word in (words or {}).items():
        struct.pack_into("<Q", data, layout.WORDS_AT + 8 * index, word)
    for place, slot in enumerate(slots[: geometry.slots]):
        at = geometry.slots_at + place * 512
        data[at : at + 512] = slot[:512].ljust(512, b"\0")
    for place, entry in enumerate(series[: geometry.series]):
        at = geometry.series_at + place * 512
        data[at : at + 512] = entry[:512].ljust(512, b"\0")
    for place, body in enumerate(records[: geometry.records]):
        layout.RECORD_BODY.pack_into(data, geometry.ring_at + place * 64 + layout.RECORD_BODY_AT, *body)
    return data


def written(path: Path, data: bytes) -> str:
    """A private file; its path."""
    path.write_bytes(data)
    path.chmod(0o600)
    return str(path)


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
        assert len(reader.in_flight()) <= reader.geometry.slots
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
            lead.tidy()


@pytest.fixture(scope="module")
def good() -> bytes:
    """The bytes of a real recorder that has everything in it."""
    with tempfile.TemporaryDirectory(prefix="good-") as name:
        opened = open_recorder(Path(name), records=512, slots=4, keep_all=True)
        for place in range(40):
            serve(opened, f"/{place}", route=f"/{place % 7}", status="500 No" if place % 5 == 0 else "200 OK")
        data: list[bytes] = []
        assert opened.path is not None
        path = Path(opened.path)
        serve(opened, "/under-way", meanwhile=lambda: data.append(path.read_bytes()))
        die(opened)
        return data[0]


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
    assert os.path.lexists(path)


def test_a_file_that_has_just_gone_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Reader.of_file(str(tmp_path / "gone.recorder"))


# -- what has the shape of a recorder ------------------------------------------------------------------------------


@bounded
@given(flips=st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(0, 7)), min_size=1, max_size=60))
def test_flipped_bits_never_make_the_reader_fail(tmp_path: Path, good: bytes, flips: list[tuple[int, int]]) -> None:
    data = bytearray(good)
    geometry = Geometry(512, 4)
    parts = [(0, 1300), (geometry.slots_at, 512 * 4), (geometry.series_at, 5000), (geometry.ring_at, 3000)]
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


@settings(bounded, max_examples=40)
@given(flips=st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(0, 7)), min_size=1, max_size=40))
def test_flipped_bits_never_stop_a_drain(good: bytes, flips: list[tuple[int, int]]) -> None:
    data = bytearray(good)
    geometry = Geometry(512, 4)
    parts = [(16, 48), (64, 512), (geometry.slots_at, 512 * 4), (geometry.series_at, 5000), (geometry.ring_at, 3000)]
    for place, bit in flips:
        at, length = parts[place % len(parts)]
        data[at + place // len(parts) % length] ^= 1 << bit
    drain_beside_a_good_one(lambda directory: written(directory / "flipped.recorder", data))


now_ns = time.perf_counter_ns()
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
slots_strategy = st.lists(
    st.builds(
        lambda start, number, again, rest: struct.pack("<QQ", start, number) + rest[:248].ljust(248) + again,
        times,
        u64,
        st.binary(min_size=8, max_size=8),
        st.binary(max_size=248),
    ),
    max_size=2,
)


@bounded
@given(
    records=bodies_strategy,
    series=st.lists(entries, max_size=4),
    slots=slots_strategy,
    words=st.dictionaries(st.integers(0, 20), u64, max_size=8),
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
    for place in range(geometry.slots):
        layout.SLOT.pack_into(data, geometry.slots_at + place * 512, 1, 9, 9, 9, b"GET", b"", b"\xff" * 160, 0, 0, 9)
    written(tmp_path / "0-largest.recorder", data)
    assert int(run_script(MEMORY_SCRIPT, tmp_path)) < 64
