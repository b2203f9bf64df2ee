"""A recorder holds more than requests: kinds that share its tables, and records that say nothing of a request."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from paste_agent.recorder import layout
from paste_agent.recorder.layout import FAILED, KIND_OVERFLOW, RECORDS
from paste_agent.recorder.reader import Reader
from paste_agent.recorder.writer import Recorder
from tests.recorders import (
    accounts,
    die,
    in_flight,
    leading,
    leave,
    open_recorder,
    reader_of,
    requests_of,
    series_of,
    serve,
    since,
)


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    opened = open_recorder(tmp_path)
    yield opened
    die(opened)


# -- records -------------------------------------------------------------------------------------------------------


def test_the_record_of_a_span_lies_where_it_is_documented(recorder: Recorder, reader: Reader) -> None:
    key = (layout.KIND_PART, ("GET", "/x", "database"))
    recorder.record_span(key, 1000, 50, units=7)
    recorder.record_span(key, 2000, 60, failed=True)
    first, second = RECORDS.iter_unpack(reader.chunk(0, 2))
    assert first == (0, 0, 7, 1000, 50, 1)
    assert second == (0 | FAILED, 0, 0, 2000, 60, 2)
    assert reader.series(0) == (layout.KIND_PART, ["GET", "/x", "database"])
    assert recorder.fields_of(0 | FAILED) == key


def test_a_number_that_was_taken_is_written_with_what_it_is_of(recorder: Recorder, reader: Reader) -> None:
    series = recorder.series_of(layout.KIND_BACKGROUND, ("mail", None))
    number = recorder.take_number()
    assert number == 0
    recorder.write_record(number, series, layout.KEPT_QUERIES, 3, 10, 20)
    assert list(RECORDS.iter_unpack(reader.chunk(0, 1))) == [(series, layout.KEPT_QUERIES, 3, 10, 20, 1)]


def test_spans_leave_a_quarter_of_the_ring_to_requests(recorder: Recorder) -> None:
    for _ in range(2000):
        recorder.record_span((layout.KIND_LAYER, ("gzip",)), 1, 1)
    left = recorder.last + 1
    assert left + recorder.word(layout.W_SPANS_DROPPED) == 2000
    assert recorder.word(layout.W_DROPPED) == 0
    requests = 0
    while recorder.word(layout.W_DROPPED) == 0:
        serve(recorder)
        requests += 1
    assert requests - 1 >= recorder.records // 4 - 1
    recorder.set_word(layout.W_TAIL, recorder.last + 1)
    dropped = recorder.word(layout.W_SPANS_DROPPED)
    recorder.record_span((layout.KIND_LAYER, ("gzip",)), 1, 1)
    assert recorder.word(layout.W_SPANS_DROPPED) == dropped


def test_threads_at_a_ring_that_is_full_of_spans_lose_only_spans(tmp_path: Path) -> None:
    recorder = open_recorder(tmp_path, records=4096)
    spans, threads = 5000, 4

    def work() -> None:
        for place in range(spans):
            recorder.record_span((layout.KIND_LAYER, ("gzip",)), 1, 1)
            if place % 100 == 0:
                serve(recorder)

    running = [threading.Thread(target=work) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(60)
    with_reader = reader_of(recorder)
    found = [body for body in RECORDS.iter_unpack(with_reader.chunk(0, 4096)) if body[5]]
    by_kind = [with_reader.series(body[0]) for body in found]
    assert [body[5] for body in found] == list(range(1, len(found) + 1))
    layers = sum(entry == (layout.KIND_LAYER, ["gzip"]) for entry in by_kind)
    assert layers + recorder.word(layout.W_SPANS_DROPPED) == spans * threads
    assert len(found) - layers == spans * threads // 100
    assert recorder.word(layout.W_DROPPED) == 0
    with_reader.close()
    die(recorder)


# -- series --------------------------------------------------------------------------------------------------------


def test_each_kind_has_the_bound_of_its_own(tmp_path: Path) -> None:
    recorder = open_recorder(tmp_path, max_series=10)
    for place in range(30):
        recorder.record_span((layout.KIND_LAYER, (f"layer {place}",)), 1, 1)
        recorder.record_span((layout.KIND_ERROR, (f"E{place}", None, None, None)), 1, 1)
        serve(recorder, route=f"/{place}")
    with_reader = reader_of(recorder)
    kinds: dict[int, int] = {}
    for series, *_ in RECORDS.iter_unpack(with_reader.chunk(0, 90)):
        entry = with_reader.series(series)
        assert entry is not None
        kinds[entry[0]] = kinds.get(entry[0], 0) + 1
    expected = {layout.KIND_LAYER, layout.KIND_ERROR, layout.KIND_SERVER}
    assert kinds == {**dict.fromkeys(expected, 10), **{kind | KIND_OVERFLOW: 20 for kind in expected}}
    with_reader.close()
    die(recorder)


def test_all_kinds_together_never_write_beyond_their_table(tmp_path: Path) -> None:
    """Behind the entries for series lie the records."""
    recorder = open_recorder(tmp_path, records=65_536, max_series=2000)
    kinds = sorted(layout.FIELDS)
    written = 0
    for kind in kinds[:5]:
        for place in range(2500):
            recorder.record_span((kind, (f"{place}", *[None] * 5)), 1000 + written, 1)
            written += 1
    # The table is full: what comes of kinds that nobody has seen before still finds its overflow series.
    for place in range(200):
        for kind in kinds:
            recorder.record_span((kind, (f"late {place}", *[None] * 5)), 1000 + written, 1)
            written += 1
    with_reader = reader_of(recorder)
    at, counts = 0, dict.fromkeys(kinds, 0)
    while at < written:
        chunk = list(RECORDS.iter_unpack(with_reader.chunk(at, 1000)))[: written - at]
        for series, _, _, start_ns, duration_ns, sequence in chunk:
            assert (start_ns, duration_ns, sequence) == (1000 + at, 1, at + 1)
            entry = with_reader.series(series)
            assert entry is not None
            counts[entry[0] & ~KIND_OVERFLOW] += 1
            at += 1
    assert counts == {kind: 200 + (2500 if kind in kinds[:5] else 0) for kind in kinds}
    assert len(recorder._by_number) <= layout.MAX_SERIES
    with_reader.close()
    die(recorder)


def test_more_threads_than_entries_at_the_end_of_the_table(tmp_path: Path) -> None:
    recorder = open_recorder(tmp_path, records=65_536, max_series=8192)
    together = threading.Barrier(16)
    for place in range(layout.MAX_SERIES - 100):
        recorder.series_of(layout.KIND_LAYER, (f"{place}",))

    def work(thread: int) -> None:
        together.wait(60)
        for place in range(100):
            recorder.record_span((layout.KIND_ERROR, (f"{thread}/{place}", None, None, None)), 1000, 1)

    running = [threading.Thread(target=work, args=(thread,)) for thread in range(16)]
    for one in running:
        one.start()
    for one in running:
        one.join(60)
    with_reader = reader_of(recorder)
    found = list(RECORDS.iter_unpack(with_reader.chunk(0, 1600)))
    assert [(start_ns, sequence) for _, _, _, start_ns, _, sequence in found] == [
        (1000, place + 1) for place in range(1600)
    ]
    entries = [with_reader.series(series) for series, *_ in found]
    assert {entry[0] & ~KIND_OVERFLOW for entry in entries if entry is not None} == {layout.KIND_ERROR}
    assert None not in entries
    with_reader.close()
    die(recorder)


# -- what a record says of a transaction ---------------------------------------------------------------------------


def test_only_the_record_of_a_transaction_says_that_it_has_ended(recorder: Recorder, reader: Reader) -> None:
    """Killed between the records of what went on inside of it and its own, it has not."""
    start_ns = since(5)
    for kind, fields in (
        (layout.KIND_ERROR, ("KeyError", None, None, None)),
        (layout.KIND_PART, ("GET", None, "database")),
        (layout.KIND_LAYER, ("gzip",)),
        (layout.KIND_DATABASE, ("sqlite", None, None, None, None, None)),
        (layout.KIND_ERROR | KIND_OVERFLOW, ()),
    ):
        leave(recorder, recorder.series_of(kind, fields), end_ns=start_ns + 7, duration_ns=7)
    assert reader.finished_among({start_ns}, recorder.last + 1) == {}
    leave(recorder, series_of(recorder, status="500 No") | FAILED, end_ns=start_ns + 7, duration_ns=7)
    assert reader.finished_among({start_ns}, recorder.last + 1) == {start_ns: True}
    leave(recorder, recorder.series_of(layout.KIND_BACKGROUND, ("mail", None)), end_ns=start_ns + 10, duration_ns=9)
    assert reader.finished_among({start_ns + 1}, recorder.last + 1) == {start_ns + 1: False}


def test_a_request_whose_thread_waited_before_it_left_its_slot_is_counted_once(tmp_path: Path) -> None:
    """Others go on meanwhile, with spans above all; then the process is killed."""
    recorder = open_recorder(tmp_path, records=16_384)
    recorder.set_word(layout.W_SERVING, 1)
    start_ns, series = since(5), series_of(recorder)
    in_flight(recorder, start_ns, series=series, answered_ns=start_ns + 50)
    leave(recorder, series, end_ns=start_ns + 60, duration_ns=60)
    for _ in range(8000):
        leave(recorder, recorder.series_of(layout.KIND_LAYER, ("gzip",)), end_ns=start_ns + 100, duration_ns=10)
    die(recorder)
    with leading(tmp_path) as lead:
        lead.drain()
        assert requests_of(lead.store) == {("GET", "/", 200): 1}


def test_a_request_that_is_killed_before_its_record_is_lost_and_not_finished(
    recorder: Recorder, tmp_path: Path
) -> None:
    recorder.set_word(layout.W_SERVING, 1)
    start_ns = since(5)
    in_flight(recorder, start_ns)
    leave(recorder, recorder.series_of(layout.KIND_PART, ("GET", None, "database")), end_ns=start_ns + 9, duration_ns=9)
    die(recorder)
    with leading(tmp_path) as lead:
        lead.drain()
        assert requests_of(lead.store) == {}
        (account,) = accounts(lead)
    assert account.reason


def test_a_request_that_was_answered_is_counted_although_its_errors_are_there(
    recorder: Recorder, tmp_path: Path
) -> None:
    recorder.set_word(layout.W_SERVING, 1)
    start_ns = since(5)
    series = series_of(recorder, status="500 No") | FAILED
    in_flight(recorder, start_ns, series=series, answered_ns=start_ns + 50)
    error = recorder.series_of(layout.KIND_ERROR, ("500", None, "/", None))
    leave(recorder, error, end_ns=start_ns, duration_ns=0)
    die(recorder)
    with leading(tmp_path) as lead:
        lead.drain()
        assert requests_of(lead.store) == {("GET", "/", 500): 1}


def test_the_latest_transaction_is_the_one_that_began_last_of_those_that_have_ended(recorder: Recorder) -> None:
    seen: list[int] = []

    def meanwhile() -> None:
        for _ in range(5):
            serve(recorder)
        seen.append(recorder.latest)

    serve(recorder, meanwhile=meanwhile)
    assert seen == [6]
    assert recorder.latest == 6  # the first one has ended after them
