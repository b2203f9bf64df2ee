"""Writer and reader of the flight recorder, against the bytes that layout.py documents."""

from __future__ import annotations

import os
import stat
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paste_agent.recorder import layout, lock
from paste_agent.recorder.layout import FAILED, KIND_OVERFLOW, KIND_SERVER
from paste_agent.recorder.reader import BadRecorder, Reader
from paste_agent.recorder.writer import SLACK, Recorder
from tests.recorders import S, die, leading, leave, open_recorder, reader_of, requests_of, run_script, series_of, serve

#: Records that a ring of 1024 takes before it is full.
ROOM = 1024 - SLACK + 1


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    opened = open_recorder(tmp_path)
    yield opened
    die(opened)


def file_of(recorder: Recorder) -> bytes:
    assert recorder.path is not None
    return Path(recorder.path).read_bytes()


def bodies(reader: Reader, position: int = 0, most: int = 100) -> list[tuple[Any, ...]]:
    """The records from `position` on that are written."""
    found = list(layout.RECORDS.iter_unpack(reader.chunk(position, most)))
    return [body for place, body in enumerate(found) if body[5] == position + place + 1]


# -- the bytes -----------------------------------------------------------------------------------------------------


def test_header_lies_where_it_is_documented(recorder: Recorder) -> None:
    before_ns, data = time.time_ns(), file_of(recorder)
    assert data[:8] == b"pasteagt"
    version, header_size, pid, opened_at_ns, opened_ns = struct.unpack_from("<IIQQQ", data, 8)
    assert (version, header_size, pid) == (3, 4096, os.getpid())
    assert before_ns - 60 * S < opened_at_ns <= before_ns
    assert 0 < opened_ns <= time.perf_counter_ns()
    assert struct.unpack_from("<QQQ", data, 40) == (1024, 16, layout.MAX_SERIES)
    assert data[1024:1280] == b"shop".ljust(256, b"\0")
    assert len(data) == 4096 + 16 * (512 + 4096) + 8192 * 512 + 1024 * 64


@pytest.mark.parametrize("service", ["shop", "Geschäft" * 80, "\ud800", "x" * 256, "x" * 257])
def test_a_service_name_of_any_length_leaves_the_header_whole(tmp_path: Path, service: str) -> None:
    opened = open_recorder(tmp_path, service=service)
    data = file_of(opened)
    assert data[1024:1280] == service.encode("utf-8", "replace")[:256].ljust(256, b"\0")
    assert not any(data[1280:4096])
    die(opened)


@pytest.mark.parametrize("word", [0, 1, 17, 63])
def test_words_lie_where_they_are_documented(recorder: Recorder, reader: Reader, word: int) -> None:
    recorder.set_word(word, 0x1122334455)
    assert struct.unpack_from("<Q", file_of(recorder), 80 + 8 * word) == (0x1122334455,)
    assert reader.words()[word] == recorder.word(word) == 0x1122334455
    assert sum(reader.words()) == 0x1122334455


def test_a_request_in_flight_lies_where_it_is_documented(recorder: Recorder, reader: Reader) -> None:
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    seen: list[bytes] = []
    before_ns = time.perf_counter_ns()
    serve(
        recorder, "/a/b", meanwhile=lambda: seen.append(file_of(recorder)),
        REQUEST_METHOD="POST", SCRIPT_NAME="/shop", HTTP_TRACEPARENT=traceparent,
    )  # fmt: skip
    slots = [seen[0][4096 + 512 * slot :][:512] for slot in range(16)]
    (slot,) = [slot for slot in slots if any(slot[:8])]
    start_ns, number, thread, scheme = struct.unpack_from("<QQQQ", slot)
    assert before_ns <= start_ns <= time.perf_counter_ns()
    assert (number, thread, scheme) == (1, threading.get_ident(), len("http"))
    assert slot[32:48] == b"POST".ljust(16, b"\0")
    assert slot[48:104] == traceparent.encode().ljust(56, b"\0")
    assert slot[104:248] == b"/shop/a/b".ljust(144, b"\0")
    assert struct.unpack_from("<QQQ", slot, 248) == (0, 0, 1)  # no answer yet
    assert not any(slot[272:])
    assert reader.in_flight() == []


def test_a_series_lies_where_it_is_documented(recorder: Recorder) -> None:
    recorder.intern_server(("GET", "200 OK", "/ä", None, "https", None))
    entry = file_of(recorder)[recorder.geometry.series_at :][:512]
    fields = b"\x03\x00GET\x05\x00https\x03\x00/\xc3\xa4\x03\x00200\xff\xff\xff\xff"
    assert entry == struct.pack("<IHH", 1, 1, len(fields)) + fields + bytes(504 - len(fields))


def test_a_record_lies_where_it_is_documented(recorder: Recorder) -> None:
    for _ in range(5):
        serve(recorder, status="500 No", HTTP_X_REQUEST_START="t=4102444800")  # in the year 2100: no time at all
    place = recorder.geometry.ring_at + 9 * 64  # before each the record of its error
    record = file_of(recorder)[place : place + 64]
    series, why, queue_us, start_ns, duration_ns, sequence = struct.unpack_from("<HHIQQQ", record, 32)
    assert (series, why, queue_us, sequence) == (0x8000, layout.KEPT_FAILED, 1, 10)
    assert recorder.word(layout.W_TAIL) == 0
    assert 0 < start_ns < start_ns + duration_ns <= time.perf_counter_ns()
    kept = recorder.kept[-1]
    assert record[:32] == kept.trace_id + kept.span_id + kept.parent_id


# -- requests in flight --------------------------------------------------------------------------------------------


def test_requests_in_flight_are_read_oldest_first(recorder: Recorder, reader: Reader) -> None:
    seen: list[list[str]] = []

    def look() -> None:
        seen.append([request.path for request in reader.in_flight()])

    serve(
        recorder, "/1", meanwhile=lambda: serve(recorder, "/2", meanwhile=lambda: serve(recorder, "/3", meanwhile=look))
    )
    assert seen == [["/1", "/2", "/3"]]
    assert reader.in_flight() == []


def test_a_slot_that_is_just_being_written_is_left_out(recorder: Recorder, reader: Reader) -> None:
    at = recorder.pop_slot()
    layout.SLOT.pack_into(recorder.buffer, at, 1, 7, 0, 4, b"GET", b"", b"/", 0, 0, 6)
    assert reader.in_flight() == []
    layout.SLOT.pack_into(recorder.buffer, at, 1, 7, 0, 4, b"GET", b"", b"/", 0, 0, 7)
    assert [request.number for request in reader.in_flight()] == [7]


def test_more_requests_than_slots_are_all_counted(tmp_path: Path) -> None:
    opened = open_recorder(tmp_path, slots=2)
    seen: list[int] = []
    with_reader = reader_of(opened)

    def nested(depth: int) -> None:
        if depth:
            serve(opened, meanwhile=lambda: nested(depth - 1))
        else:
            seen.append(len(with_reader.in_flight()))

    for _ in range(3):  # slots are given back, whichever of them were free
        nested(5)
    assert seen == [2, 2, 2]
    assert len(bodies(with_reader)) == 15
    assert opened.word(layout.W_UNSLOTTED) == 9
    assert opened.word(layout.W_INTERNAL_ERRORS) == 0
    with_reader.close()
    die(opened)


@pytest.mark.parametrize(
    ("environ", "field", "expected"),
    [
        ({"REQUEST_METHOD": "X" * 99}, "method", "X" * 16),
        ({"PATH_INFO": "/" + "y" * 999}, "path", "/" + "y" * 143),
        ({"PATH_INFO": "/" + "é" * 200}, "path", "/" + "é" * 71 + "�"),  # cut in the middle of a character
        ({"HTTP_TRACEPARENT": "0" * 500}, "traceparent", "0" * 56),
        ({"wsgi.url_scheme": "gopher"}, "scheme", "_OTHER"),
        ({"wsgi.url_scheme": "https"}, "scheme", "https"),
    ],
)
def test_what_is_too_long_is_cut(
    recorder: Recorder, reader: Reader, environ: dict[str, str], field: str, expected: str
) -> None:
    seen: list[Any] = []
    serve(recorder, meanwhile=lambda: seen.extend(reader.in_flight()), **environ)
    assert [getattr(request, field) for request in seen] == [expected]


# -- series --------------------------------------------------------------------------------------------------------


def test_a_series_is_written_once_whatever_the_spelling(recorder: Recorder, reader: Reader) -> None:
    keys = [("GET", status, "/a", None, "http", "HTTP/1.1") for status in ("200 OK", "200 Fine", "200", "200 ok")]
    assert {recorder.intern_server(key) for key in keys} == {0}
    assert reader.series(0) == (KIND_SERVER, ["GET", "http", "/a", "200", None, "1.1"])
    assert reader.series(1) is None


@pytest.mark.parametrize(
    ("status", "error", "failed", "error_type"),
    [
        ("200 OK", None, False, None),
        ("404 Not Found", None, False, None),
        ("500 Oops", None, True, "500"),
        ("599 Oops", None, True, "599"),
        ("200 OK", "ValueError", True, "ValueError"),
        (None, None, False, None),
        ("600 Beyond", None, False, None),
        ("twohundred", None, False, None),
    ],
)
def test_what_failed_is_marked(
    recorder: Recorder, reader: Reader, status: str | None, error: str | None, failed: bool, error_type: str | None
) -> None:
    number = recorder.intern_server(("GET", status, "/", error, "http", "HTTP/1.1"))
    assert bool(number & FAILED) is failed
    entry = reader.series(number & ~FAILED)
    assert entry is not None
    assert entry[1][4] == error_type


def test_beyond_the_bound_there_is_one_series_for_the_rest(tmp_path: Path) -> None:
    opened = open_recorder(tmp_path, max_series=10)
    numbers = [series_of(opened, f"/{route}") for route in range(100)]
    assert numbers == [*range(10), *[10] * 90]
    with_reader = reader_of(opened)
    assert with_reader.series(10) == (KIND_SERVER | KIND_OVERFLOW, [])
    assert with_reader.series(11) is None
    assert series_of(opened, "/500", "500 Oops") == 10 | FAILED  # folded, but failed all the same
    with_reader.close()
    die(opened)


def test_spellings_are_bounded(tmp_path: Path) -> None:
    opened = open_recorder(tmp_path, max_series=10)
    for place in range(1000):
        serve(opened, status=f"200 {place}")
    assert len(opened.series) <= 40
    with_reader = reader_of(opened)
    assert len(bodies(with_reader, most=1000)) == ROOM
    assert with_reader.series(1) is None
    with_reader.close()
    die(opened)


def test_a_route_that_cannot_be_hashed_or_is_no_text_counts_without_one(recorder: Recorder, reader: Reader) -> None:
    for route in (["/list"], {"a": 1}, 7, b"/bytes", ""):
        serve(recorder, route=route)
    names = {body[0] for body in bodies(reader)}
    assert len(bodies(reader)) == 5
    assert [reader.series(name) for name in names] == [(KIND_SERVER, ["GET", "http", None, "200", None, "1.1"])]


@pytest.mark.parametrize("letter", ["a", "é", "語", "😀"])
@pytest.mark.parametrize("extra", [0, 1, 2, 3])
def test_a_long_route_is_cut_at_a_character_and_leaves_the_other_fields_whole(
    recorder: Recorder, reader: Reader, letter: str, extra: int
) -> None:
    route = "/" + "x" * extra + letter * 254
    number = recorder.intern_server(("DELETE", "503 No", route, "shop.errors.SoldOut", "https", "HTTP/1.1"))
    entry = reader.series(number & ~FAILED)
    assert entry is not None
    method, scheme, cut, status, error, version = entry[1]
    assert (method, scheme, status, error, version) == ("DELETE", "https", "503", "shop.errors.SoldOut", "1.1")
    assert cut is not None
    assert route.startswith(cut)
    assert len(cut.encode()) >= min(len(route[:255].encode()), 400)


def test_fields_that_are_all_too_long_share_the_room(recorder: Recorder, reader: Reader) -> None:
    number = recorder.intern_server(("GET", "200 OK", "/" + "r" * 254, "e" * 5000, "http", "HTTP/1.1"))
    entry = reader.series(number & ~FAILED)
    assert entry is not None
    _, _, route, status, error, version = entry[1]
    assert (status, version) == ("200", "1.1")
    assert route
    assert error
    assert set(error) == {"e"}


@pytest.mark.parametrize(
    "fields", [(), (None,), ("",), (None, "", None), ("\ud800",), ("a" * 9999, "b" * 9999), ("\0", "ÿ", None)]
)
def test_fields_survive_their_encoding(fields: tuple[str | None, ...]) -> None:
    payload = layout.encode_fields(fields)
    assert len(payload) <= layout.SERIES_ROOM
    decoded = layout.decode_fields(payload)
    assert [field is None for field in decoded] == [field is None for field in fields]
    if sum(len(field or "") for field in fields) < 100:
        assert decoded == [field and field.replace("\ud800", "?") for field in fields]


# -- the ring ------------------------------------------------------------------------------------------------------


def test_a_full_ring_counts_the_loss_and_keeps_what_it_took(recorder: Recorder, reader: Reader) -> None:
    for place in range(1500):
        serve(recorder, route=f"/{place}")
    kept = bodies(reader, most=1024)
    assert len(kept) == ROOM
    assert recorder.word(layout.W_DROPPED) == 1500 - ROOM
    routes = [reader.series(body[0]) for body in kept]
    assert [entry and entry[1][2] for entry in routes] == [f"/{place}" for place in range(ROOM)]
    assert reader.in_flight() == []


def test_a_moved_tail_makes_room(recorder: Recorder, reader: Reader) -> None:
    for _ in range(1000):
        serve(recorder)
    reader.set_tail(500)
    for _ in range(1000):
        serve(recorder)
    # Nothing that has not been drained is written over; what has been is.
    assert bodies(reader, 500, 524)[0][5] == 501
    last = 500 + ROOM
    assert [body[5] for body in bodies(reader, 1024, 1024)] == list(range(1025, last + 1))
    assert recorder.word(layout.W_DROPPED) == 2000 - last


def test_a_chunk_ends_with_the_ring(recorder: Recorder, reader: Reader) -> None:
    assert len(reader.chunk(1000, 512)) == 24 * 64
    assert len(reader.chunk(1024 + 1000, 512)) == 24 * 64
    assert len(reader.chunk(1024, 5000)) == 1024 * 64


def test_threads_that_write_at_once_lose_and_double_nothing(tmp_path: Path) -> None:
    opened = open_recorder(tmp_path, records=65_536, slots=4)
    threads, each = 8, 2000
    ready = threading.Barrier(threads)

    def work(thread: int) -> None:
        ready.wait()
        for place in range(each):
            serve(opened, route=f"/{thread}/{place % 50}")

    started = [threading.Thread(target=work, args=(thread,)) for thread in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    with_reader = reader_of(opened)
    found = bodies(with_reader, most=65_536)
    assert [body[5] for body in found] == list(range(1, threads * each + 1))
    counts: dict[str | None, int] = {}
    for body in found:
        entry = with_reader.series(body[0])
        assert entry is not None
        counts[entry[1][2]] = counts.get(entry[1][2], 0) + 1
    assert counts == {f"/{thread}/{place}": each // 50 for thread in range(threads) for place in range(50)}
    assert with_reader.in_flight() == []
    assert opened.word(layout.W_DROPPED) == 0
    with_reader.close()
    die(opened)


def test_threads_at_a_full_ring_overwrite_nothing(tmp_path: Path) -> None:
    opened = open_recorder(tmp_path, records=1024)
    series = series_of(opened)
    for _ in range(1024 - SLACK - 100):
        leave(opened, series)
    started = [threading.Thread(target=lambda: [serve(opened) for _ in range(500)]) for _ in range(8)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    with_reader = reader_of(opened)
    found = bodies(with_reader, most=1024)
    assert [body[5] for body in found] == list(range(1, len(found) + 1))
    assert ROOM <= len(found) < ROOM + 8
    assert next(opened.next for _ in (1,))() == len(found)  # no number was taken and not written
    with_reader.close()
    die(opened)


# -- holes ---------------------------------------------------------------------------------------------------------


def missing(lead: Any) -> int:
    return lead.store.counters().get(("paste_agent.records.dropped", '{"reason": "unwritten"}'), 0)


def test_a_hole_is_waited_for_while_its_process_lives(tmp_path: Path) -> None:
    opened = open_recorder(tmp_path)
    series = series_of(opened)
    leave(opened, series)
    hole = opened.next()
    leave(opened, series)
    with leading(tmp_path) as lead:
        assert lead.drain() == 1
        assert lead.drain() == 0
        leave(opened, series, number=hole)
        assert lead.drain() == 2
        assert requests_of(lead.store) == {("GET", "/", 200): 3}
        assert missing(lead) == 0
    die(opened)


@pytest.mark.parametrize("holes", [1, 7, 255, 511])
def test_holes_of_a_dead_process_are_skipped_and_counted(tmp_path: Path, holes: int) -> None:
    opened = open_recorder(tmp_path, records=2048)
    series = series_of(opened)
    leave(opened, series)
    for _ in range(holes):
        opened.next()
    leave(opened, series)
    leave(opened, series)
    opened.next()  # nothing follows this one: nobody can tell that it was taken
    die(opened)
    with leading(tmp_path) as lead:
        lead.drain()
        assert requests_of(lead.store) == {("GET", "/", 200): 3}
        assert missing(lead) == holes
        (row,) = lead.store.recorders()
        assert (row.requests, row.position) == (3, 3 + holes)


def test_a_hole_that_nobody_fills_does_not_stop_a_living_process_for_ever(tmp_path: Path) -> None:
    opened = open_recorder(tmp_path)
    series = series_of(opened)
    opened.next()
    # As after more than a minute of waiting; a monotonic clock that young has no such past.
    now_ns = time.perf_counter_ns()
    if now_ns < 100 * S:
        pytest.skip("the host has just started")
    leave(opened, series, end_ns=now_ns - 61 * S)
    with leading(tmp_path) as lead:
        lead.drain()
        assert requests_of(lead.store) == {("GET", "/", 200): 1}
        assert missing(lead) == 1
    die(opened)


# -- the file ------------------------------------------------------------------------------------------------------


def test_the_file_is_private_and_alone(recorder: Recorder, tmp_path: Path) -> None:
    assert recorder.path is not None
    assert os.listdir(tmp_path) == [os.path.basename(recorder.path)]
    status = os.stat(recorder.path)
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_nlink == 1


def test_the_umask_does_not_open_the_file(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        opened = open_recorder(tmp_path)
    finally:
        os.umask(before)
    assert opened.path is not None
    assert stat.S_IMODE(os.stat(opened.path).st_mode) == 0o600
    die(opened)


def test_the_lock_is_held_until_the_process_lets_go(recorder: Recorder, reader: Reader) -> None:
    assert not reader.is_dead()
    die(recorder)
    assert reader.is_dead()


def test_the_file_is_visible_only_when_it_is_locked_and_has_its_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    rename = os.rename

    def look(source: str, target: str) -> None:
        seen.extend(os.listdir(tmp_path))
        descriptor = os.open(source, os.O_RDWR)
        assert not lock.try_lock(descriptor)
        assert os.pread(descriptor, 8, 0) == layout.MAGIC
        assert os.fstat(descriptor).st_size == layout.Geometry(1024, 16).size
        os.close(descriptor)
        rename(source, target)

    monkeypatch.setattr(os, "rename", look)
    opened = open_recorder(tmp_path)
    assert len(seen) == 1
    assert not seen[0].endswith(layout.SUFFIX)
    die(opened)


@pytest.mark.parametrize("step", ["ftruncate", "pwrite", "rename"])
def test_a_file_that_cannot_be_finished_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    descriptors = os.listdir("/proc/self/fd")
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="No space left"):
        open_recorder(tmp_path)
    assert os.listdir(tmp_path) == []
    assert len(os.listdir("/proc/self/fd")) == len(descriptors)


def test_a_link_laid_for_the_name_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    monkeypatch.setattr(os, "urandom", lambda size: bytes(size))
    (tmp_path / f"{os.getpid()}-{'00' * 8}{layout.SUFFIX}.new").symlink_to(victim)
    with pytest.raises(FileExistsError):
        open_recorder(tmp_path)
    assert victim.read_bytes() == b"precious"


def test_without_a_directory_it_is_in_memory() -> None:
    opened = open_recorder(None)
    assert opened.path is None
    serve(opened)
    with_reader = reader_of(opened)
    assert len(bodies(with_reader)) == 1
    assert not with_reader.is_dead()
    with_reader.set_tail(1)
    assert opened.word(layout.W_TAIL) == 1
    die(opened)


def test_a_recorder_of_another_version_is_refused(recorder: Recorder) -> None:
    assert recorder.path is not None
    recorder.buffer[8:12] = struct.pack("<I", 1)
    with pytest.raises(BadRecorder, match="version 1, this agent reads 3"):
        Reader.of_file(recorder.path)


def test_ids_are_never_zero_and_never_the_same(recorder: Recorder) -> None:
    ids = [recorder.new_id(8) for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert bytes(8) not in ids
    assert {len(found) for found in ids} == {8}


# -- after fork ----------------------------------------------------------------------------------------------------

FORK = """
import os, sys
from pathlib import Path
from tests.recorders import open_recorder, reader_of, serve

parent = open_recorder(Path(sys.argv[1]))
before = len(os.listdir('/proc/self/fd')) - 2

def fork():
    pid = os.fork()
    if pid == 0:
        parent.detach()
        serve(parent)                        # still finishes here: into the scratch buffer, not into the file
        assert parent.new_id(8)
        os._exit(len(os.listdir('/proc/self/fd')) - before)  # neither the lock's nor the mapping's is left
    assert os.waitpid(pid, 0)[1] == 0

serve(parent, '/forks', meanwhile=fork)
reader = reader_of(parent)
print(reader.is_dead(), [request.path for request in reader.in_flight()], parent.word(2))
serve(parent)
print([body[5] for body in __import__('struct').iter_unpack('<32xHHIQQQ', reader.chunk(0, 3))])
"""


def test_a_forked_child_lets_go_and_leaves_the_parent_alone(tmp_path: Path) -> None:
    assert run_script(FORK, tmp_path) == "False [] 0\n[1, 2, 0]\n"


ORPHAN = """
import os, signal, sys
from pathlib import Path
from tests.recorders import open_recorder, serve

parent = open_recorder(Path(sys.argv[1]))
serve(parent)
read, write = os.pipe()
pid = os.fork()
if pid == 0:
    parent.detach()
    os.write(write, b'x')
    os.close(1), os.close(2)                 # who waits for our output need not wait for the child
    signal.sigtimedwait([signal.SIGUSR1], 60)
    os._exit(0)
os.read(read, 1)
print(pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_child_that_outlives_its_parent_does_not_keep_it_alive(tmp_path: Path) -> None:
    child = int(run_script(ORPHAN, tmp_path, expect=-9))
    try:
        (name,) = os.listdir(tmp_path)
        found = Reader.of_file(str(tmp_path / name))
        assert found.is_dead()
        found.close()
    finally:
        os.kill(child, 9)
