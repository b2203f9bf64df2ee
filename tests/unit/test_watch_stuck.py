"""The watch, of what hangs: it is said in the log; and its last look, before an abort ends the process."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from paste_agent.recorder import layout
from paste_agent.recorder.reader import Reader
from paste_agent.recorder.writer import Recorder
from tests.recorders import S, die, in_flight, open_recorder, reader_of
from tests.watching import Held, only, watch_of


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    opened = open_recorder(tmp_path, slots=32)
    yield opened
    die(opened)


# -- what hangs ----------------------------------------------------------------------------------------------------


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    found = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return found


def test_a_request_that_hangs_is_said_once_a_threshold(
    recorder: Recorder, reader: Reader, caplog: pytest.LogCaptureFixture
) -> None:
    watch, lines = watch_of(recorder), []
    with Held(recorder, "/hangs"):
        start_ns = only(reader).start_ns
        for age_s in range(0, 260, 1):
            watch.look(start_ns + age_s * S)
            lines += said(caplog)
    assert [line.partition(" in flight for ")[2].partition(" s ")[0] for line in lines] == ["30", "60", "120", "240"]
    for line in lines:
        assert line.startswith("shop: GET /hangs in flight for ")
        assert line.partition(", at ")[2]
        assert "\n" not in line


def test_one_that_ends_is_said_no_more(recorder: Recorder, reader: Reader, caplog: pytest.LogCaptureFixture) -> None:
    watch = watch_of(recorder)
    with Held(recorder, "/hangs"):
        start_ns = only(reader).start_ns
        watch.look(start_ns + 31 * S)
    watch.look(start_ns + 62 * S)
    assert len(said(caplog)) == 1


def test_many_that_hang_take_a_bounded_number_of_lines_the_oldest_first(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    now_ns = time.perf_counter_ns()
    for place in range(25):
        in_flight(recorder, now_ns - place * S, path=b"/%d" % place)
    watch_of(recorder, frame_of=lambda ident: None).look(now_ns + 100 * S)
    *lines, last = said(caplog)
    assert [line.split()[2] for line in lines] == [f"/{place}" for place in range(24, 14, -1)]
    assert last == "shop: 15 more are in flight as long"
    watch_of(recorder, frame_of=lambda ident: None).look(now_ns)
    assert said(caplog) == []


@pytest.mark.parametrize(
    "path", [b"/\x1b[31m\r\nforged: line", b"/\xe2\x80\xae\xc2\x9b", b"/\xff\xfe", "/\u2028".encode()]
)
def test_what_a_client_sent_is_made_printable(
    recorder: Recorder, caplog: pytest.LogCaptureFixture, path: bytes
) -> None:
    now_ns = time.perf_counter_ns()
    in_flight(recorder, now_ns, path=path, method=b"GE\nT")
    watch_of(recorder).look(now_ns + 40 * S)
    (line,) = said(caplog)
    assert line.isprintable()
    assert line.startswith("shop: GE\ufffdT /")


def test_a_task_that_hangs_is_said_by_its_name(
    recorder: Recorder, reader: Reader, caplog: pytest.LogCaptureFixture
) -> None:
    def task(wait: Callable[[], None]) -> None:
        slot = recorder.enter_slot(time.perf_counter_ns(), layout.SCHEME_BACKGROUND, b"", b"warm caches")
        wait()
        recorder.leave_slot(slot)

    with Held(recorder, inside=task):
        (found,) = [one for one in reader.in_flight() if not one.is_request]
        watch_of(recorder).look(found.start_ns + 30 * S)
    assert any(line.startswith("shop: task warm caches in flight for 30 s (pid ") for line in said(caplog))


# -- the last look -------------------------------------------------------------------------------------------------


def test_what_ends_after_the_last_look_is_kept_all_the_same(recorder: Recorder, reader: Reader) -> None:
    with ExitStack() as stack:
        for path in ("/a", "/b", "/c"):
            stack.enter_context(Held(recorder, path, route=path))
        watch_of(recorder).last_look()
        before = reader.in_flight(stacks=9)
        assert [one.path for one in before] == ["/a", "/b", "/c"]  # each once, though each has two slots
    after = reader.in_flight(stacks=9)
    assert after == before
    for one in after:
        assert one.route == one.path
        assert "wait_here" in one.stack  # young as they were


@pytest.mark.parametrize("copy_lies_first", [False, True])
def test_of_a_request_that_was_pinned_and_looked_at_again_the_newest_stack_counts(
    recorder: Recorder, reader: Reader, copy_lies_first: bool
) -> None:
    first = recorder.pop_slot()
    if not copy_lies_first:
        recorder.push_slot(first)
    with Held(recorder):
        if copy_lies_first:
            recorder.push_slot(first)
        watch = watch_of(recorder)
        watch.last_look()
        before = only(reader)
        watch.look(before.start_ns + 2 * S)
        assert only(reader).stack_ns > before.stack_ns > 0


def test_pinning_more_than_there_are_slots_keeps_what_fits(tmp_path: Path) -> None:
    opened = open_recorder(tmp_path, slots=5)
    with_reader = reader_of(opened)
    now_ns = time.perf_counter_ns()
    slots = [in_flight(opened, now_ns + place, path=b"/%d" % place) for place in range(4)]
    watch_of(opened).last_look()
    assert len(with_reader.in_flight()) == 4
    for slot in slots:
        opened.leave_slot(slot)
    assert len(with_reader.in_flight()) == 1
    with_reader.close()
    die(opened)
