"""The lead: every recorder of the service, alive or dead, is counted exactly once, whatever kills whom and when."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from paste_agent import lead as lead_module
from paste_agent.lead import Lead, _busy, _Tracked
from paste_agent.metrics import Reading
from paste_agent.recorder import layout
from paste_agent.recorder.writer import Recorder
from paste_agent.store.store import ENDED, LOST, RUNNING, RecorderRow
from tests.recorders import (
    S,
    count_of,
    die,
    in_flight,
    leading,
    leave,
    open_recorder,
    reader_of,
    reading,
    recorders_in,
    requests_of,
    run_script,
    series_of,
    serve,
    serving,
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def recorder(directory: Path) -> Iterator[Recorder]:
    opened = open_recorder(directory)
    yield opened
    die(opened)


def workers(lead: Lead) -> dict[str, int]:
    return {row.id: row.worker for row in lead.store.recorders()}


# -- alive, dead, closed -------------------------------------------------------------------------------------------


def test_a_living_process_is_drained_but_for_what_is_young(recorder: Recorder, directory: Path) -> None:
    series = series_of(recorder)
    for _ in range(3):
        leave(recorder, series, end_ns=time.perf_counter_ns() - S)
    leave(recorder, series, end_ns=time.perf_counter_ns() + 5 * S)  # young for as long as this test takes
    leave(recorder, series, end_ns=time.perf_counter_ns() - S)  # ready, but behind it
    with leading(directory) as lead:
        assert lead.drain() == 3
        assert lead.drain() == 0
        assert count_of(lead.store) == 3
        assert recorder.word(layout.W_TAIL) == 3
        (row,) = lead.store.recorders()
        assert (row.position, row.requests, row.state, row.pid) == (3, 3, RUNNING, os.getpid())
    assert recorders_in(directory) != []


def test_what_has_just_ended_is_young(recorder: Recorder, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lead_module.YOUTH_NS == S // 10
    monkeypatch.setattr(lead_module, "YOUTH_NS", 30 * S)
    serve(recorder)
    with leading(directory) as lead:
        assert lead.drain() == 0
        monkeypatch.setattr(lead_module, "YOUTH_NS", 0)
        assert lead.drain() == 1


def test_a_lead_that_was_stopped_in_the_middle_of_a_drain_loses_nothing(
    recorder: Recorder, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock_ns = time.perf_counter_ns
    for _ in range(3):
        leave(recorder, series_of(recorder))
    with leading(directory) as lead:

        def two_minutes_ago() -> int:
            monkeypatch.undo()
            return clock_ns() - 120 * S

        monkeypatch.setattr(time, "perf_counter_ns", two_minutes_ago)
        assert lead.drain() == 0
        assert lead.drain() == 3
        assert count_of(lead.store) == 3


def test_what_was_young_is_counted_later(recorder: Recorder, directory: Path) -> None:
    with leading(directory) as lead:
        serve(recorder, route="/a")
        drained = lead.drain()
        deadline = time.monotonic() + 30
        while drained == 0 and time.monotonic() < deadline:
            drained = lead.drain()
        assert drained == 1
        assert requests_of(lead.store) == {("GET", "/a", 200): 1}


@pytest.mark.parametrize("closed", [True, False])
def test_a_process_that_is_gone_is_drained_completely_and_its_file_removed(directory: Path, closed: bool) -> None:
    opened = serving(directory)
    for _ in range(5):
        serve(opened, route="/a")  # young, all of them
    if closed:
        opened.mark_closed()
    else:
        die(opened)
    with leading(directory) as lead:
        assert lead.drain() == 5
        assert recorders_in(directory) == []
        (row,) = lead.store.recorders()
        assert (row.state, row.requests, row.in_flight) == (ENDED if closed else LOST, 5, 0)
        assert lead.drain() == 0
        assert count_of(lead.store) == 5
    die(opened)


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.recorders import open_recorder, serve
recorder = open_recorder(Path(sys.argv[1]), keep_all=True)
for place in range(700):
    serve(recorder, '/%d' % place, route='/r%d' % (place % 3), status='500 No' if place % 7 == 0 else '200 OK')
    print(place, flush=True)
serve(recorder, '/last', meanwhile=lambda: os.kill(os.getpid(), signal.SIGKILL))
"""


def test_a_process_that_was_killed_is_counted_to_the_last_acknowledged_request(directory: Path) -> None:
    acknowledged = len(run_script(KILLED, directory, expect=-9).split())
    assert acknowledged == 700
    with leading(directory) as lead:
        lead.drain()
        expected: dict[tuple[str, str, int], int] = {}
        for place in range(700):
            key = ("GET", f"/r{place % 3}", 500 if place % 7 == 0 else 200)
            expected[key] = expected.get(key, 0) + 1
        assert requests_of(lead.store) == expected
        assert recorders_in(directory) == []


def test_kept_traces_of_a_killed_process_are_rebuilt_from_its_records(directory: Path) -> None:
    run_script(KILLED, directory, expect=-9)
    with leading(directory) as lead:
        lead.drain()
        found = lead.store.traces(0, 1e12, "newest", False, 1000)
        (lost,) = [row for row in found if row.why & layout.KEPT_LOST]  # the one in flight, from its slot
        assert lost.detail is not None
        assert lost.detail["attributes"] == {"url.path": "/last"}
        rows = [row for row in found if row is not lost]
        assert len({row.span_id for row in found}) == len(found) > 601
        assert all(row.detail is None for row in rows)
        assert all(row.duration_ns > 0 and row.why for row in rows)
        assert all(abs(row.started_at_ns - time.time_ns()) < 3600 * S for row in rows)
        failed = [row for row in rows if row.failed]
        assert {row.attributes["http.response.status_code"] for row in failed} == {500}
        assert len(failed) == 100


def test_memory_that_has_no_file_is_drained_too(directory: Path) -> None:
    own = open_recorder(None)
    with leading(directory, own) as lead:
        leave(own, series_of(own))
        assert lead.drain() == 1
        own.mark_closed()
        serve(own)
        assert lead.drain() == 1
        assert lead.drain() == 0
        assert count_of(lead.store) == 2
    die(own)


def test_many_recorders_are_all_counted(directory: Path) -> None:
    opened = [serving(directory) for _ in range(20)]
    for place, one in enumerate(opened):
        for _ in range(place):
            leave(one, series_of(one, f"/{place}"))
    with leading(directory) as lead:
        assert lead.drain() == sum(range(20))
        assert requests_of(lead.store) == {("GET", f"/{place}", 200): place for place in range(1, 20)}
        assert reading(lead, "paste_agent.worker.count") == [20]
    for one in opened:
        die(one)


def test_a_ring_that_goes_round_while_it_is_drained_is_counted_exactly(recorder: Recorder, directory: Path) -> None:
    series = series_of(recorder)
    taken = 0
    with leading(directory) as lead:
        for _ in range(12):
            while recorder.last < recorder.limit or recorder.has_room():
                leave(recorder, series)
                taken += 1
            lead.drain()
        assert taken > 5 * 1024
        assert count_of(lead.store) == taken
        (row,) = lead.store.recorders()
        assert row.requests == row.position == taken
        assert lead.next_drain_s < 1.0  # a busy ring is looked at more often


def test_a_full_rings_loss_is_counted_once(recorder: Recorder, directory: Path) -> None:
    for _ in range(1500):
        serve(recorder)
    lost = recorder.word(layout.W_DROPPED)
    assert lost > 0
    for _ in range(2):
        with leading(directory) as lead:
            lead.drain()
            lead.drain()
            assert lead.store.counters() == {("paste_agent.records.dropped", '{"reason": "ring_full"}'): lost}


# -- worker numbers and counters -----------------------------------------------------------------------------------


def test_worker_numbers_are_small_and_used_again(directory: Path) -> None:
    with leading(directory) as lead:
        first, second, third = (serving(directory) for _ in range(3))
        lead.drain()
        assert sorted(workers(lead).values()) == [1, 2, 3]
        freed = workers(lead)[second.id]
        die(second)
        lead.drain()
        fourth = serving(directory)
        lead.drain()
        assert workers(lead)[fourth.id] == freed
        fifth = serving(directory)
        lead.drain()
        assert workers(lead)[fifth.id] == 4
        assert len({workers(lead)[one.id] for one in (first, third, fourth, fifth)}) == 4
        for one in (first, third, fourth, fifth):
            die(one)


def test_many_generations_need_no_more_numbers_than_there_are_workers(directory: Path) -> None:
    with leading(directory) as lead:
        alive = [serving(directory) for _ in range(4)]
        for _ in range(10):
            lead.drain()
            assert {workers(lead)[one.id] for one in alive} <= set(range(1, 10))
            for one in alive:
                die(one)
            lead.drain()
            alive = [serving(directory) for _ in range(4)]
        lead.drain()
        assert {workers(lead)[one.id] for one in alive} == {1, 2, 3, 4}
        for one in alive:
            die(one)


def test_a_process_that_does_not_serve_has_no_number(recorder: Recorder, directory: Path) -> None:
    recorder.set_word(layout.W_CPU_USER_NS, 5 * S)
    with leading(directory) as lead:
        lead.drain()
        assert workers(lead) == {recorder.id: 0}
        assert reading(lead, "paste_agent.worker.count") == [0]
        assert lead.store.counters() == {}
        recorder.set_word(layout.W_SERVING, 1)
        lead.drain()
        assert workers(lead) == {recorder.id: 1}


def test_cpu_and_collections_never_go_back_when_a_number_is_used_again(directory: Path) -> None:
    seen: list[dict[str, int]] = []
    with leading(directory) as lead:
        for generation in range(1, 5):
            opened = serving(directory)
            for step in range(1, 4):
                opened.set_words(layout.W_CPU_USER_NS, [step * S, step * 2 * S])
                opened.set_words(layout.W_GC_COLLECTIONS, [step * 30, step * 3, step])
                lead.drain()
                seen.append(
                    {f"{name} {attributes}": value for (name, attributes), value in lead.store.counters().items()}
                )
            die(opened)
            lead.drain()
            assert workers(lead)[opened.id] == 1
            number = '"paste_agent.worker.number": 1'
            counters = {(name, attributes): value for (name, attributes), value in lead.store.counters().items()}
            assert counters["process.cpu.time", f'{{"cpu.mode": "user", {number}}}'] == generation * 3 * S
            assert counters["process.cpu.time", f'{{"cpu.mode": "system", {number}}}'] == generation * 6 * S
            assert counters["cpython.gc.collections", f'{{"cpython.gc.generation": 0, {number}}}'] == generation * 90
    for before, after in itertools.pairwise(seen):
        assert all(after[name] >= value for name, value in before.items())


def test_a_lead_that_comes_later_counts_only_what_has_grown(directory: Path) -> None:
    opened = serving(directory)
    for turn in range(1, 4):
        opened.set_word(layout.W_CPU_USER_NS, turn * S)
        opened.set_word(layout.W_INTERNAL_ERRORS, turn)
        with leading(directory) as lead:
            lead.drain()
            lead.drain()
            counters = lead.store.counters()
            assert [value for (name, _), value in counters.items() if name == "process.cpu.time"] == [turn * S]
            assert counters["paste_agent.internal.errors", "{}"] == turn
            assert workers(lead) == {opened.id: 1}
    die(opened)


# -- readings ------------------------------------------------------------------------------------------------------


def test_requests_in_flight_are_read_out_by_method_and_scheme(directory: Path) -> None:
    first, second = serving(directory), serving(directory)
    now_ns = time.perf_counter_ns()
    for method, scheme in ((b"GET", 4), (b"GET", 4), (b"POST", 5), (b"BREW", 6)):
        in_flight(first, now_ns, method=method, scheme=scheme)
    in_flight(second, now_ns)
    with leading(directory) as lead:
        lead.drain()
        active = [found for found in lead.readings if found.metric == "http.server.active_requests"]
        assert sorted(active, key=str) == sorted(
            [
                Reading("http.server.active_requests", {"http.request.method": method, "url.scheme": scheme}, count)
                for method, scheme, count in (("GET", "http", 3), ("POST", "https", 1), ("_OTHER", "_OTHER", 1))
            ],
            key=str,
        )
        assert [row.in_flight for row in lead.store.recorders()] in ([4, 1], [1, 4])
        die(first), die(second)
        lead.drain()
        lead.drain()
        assert sum(reading(lead, "http.server.active_requests")) == 0


@pytest.mark.parametrize(("requests", "concurrency", "busy"), [(0, 0, 0.0), (1, 1, 1.0), (2, 4, 0.5), (3, 1, 1.0)])
def test_busy_is_the_share_of_the_time_that_requests_take(
    directory: Path, requests: int, concurrency: int, busy: float
) -> None:
    opened = serving(directory)
    opened.set_word(layout.W_CONCURRENCY, concurrency)
    opened_ns = reader_opened_ns(opened)
    for _ in range(requests):
        in_flight(opened, opened_ns)  # busy from its first moment on: exactly as long as it lives
    with leading(directory) as lead:
        lead.drain()
        lead.drain()
        assert reading(lead, "paste_agent.worker.busy") == [busy]
        (row,) = lead.store.recorders()
        assert row.busy == busy
    die(opened)


def reader_opened_ns(recorder: Recorder) -> int:
    with closing(reader_of(recorder)) as reader:
        return reader.opened_ns


def busy_of(recorder: Recorder, steps: list[tuple[int, int, list[int]]], position: int = 0) -> list[float]:
    """steps: now, time served until now, starts of those in flight; in s after the recorder was opened."""
    with closing(reader_of(recorder)) as reader:
        row = RecorderRow(recorder.id, position, 1, 1, True, RUNNING, 0, 0, 0, 0, 0.25, [])
        tracked = _Tracked(reader, None, row, row, 0)  # type: ignore[arg-type]  # nothing is folded
        found = []
        for now_s, served_s, starts in steps:
            serve(recorder, meanwhile=lambda starts=starts: None)
            requests = [
                request._replace(start_ns=reader.opened_ns + start * S)
                for start in starts
                for request in _one_request(recorder, reader)
            ]
            found.append(round(_busy(tracked, reader.opened_ns + now_s * S, served_s * S, requests, 1), 6))
        return found


def _one_request(recorder: Recorder, reader: Any) -> list[Any]:
    seen: list[Any] = []
    serve(recorder, meanwhile=lambda: seen.extend(reader.in_flight()))
    return seen


def test_busy_counts_a_request_the_same_before_and_after_its_end(recorder: Recorder) -> None:
    # One from 2 s to 6 s, looked at in its middle and after its end; then idle.
    assert busy_of(recorder, [(4, 0, [2]), (8, 4, []), (16, 4, [])]) == [0.5, 0.5, 0.25]


def test_busy_looks_back_a_minute_and_no_further(recorder: Recorder) -> None:
    steps = [(second, min(second, 60), []) for second in range(0, 181, 10)]  # busy for a minute, then idle
    found = busy_of(recorder, steps)
    assert found[1:7] == [1.0] * 6
    assert found[9] == 0.5
    assert found[12:] == [0.0] * 7


def test_busy_of_a_recorder_that_another_lead_began_goes_on_from_what_it_knew(recorder: Recorder) -> None:
    assert busy_of(recorder, [(100, 90, []), (110, 95, [])], position=7) == [0.25, 0.5]


def test_gauges_are_those_of_the_living(directory: Path) -> None:
    first, second = serving(directory), serving(directory)
    first.set_words(layout.W_PROBED_AT, [1, 0, 0, 11_000, 22_000, 3, 4, 0, 0, 0])
    with leading(directory) as lead:
        lead.drain()
        number = workers(lead)[first.id]
        assert reading(lead, "process.memory.usage") == [11_000]  # the other one has not been probed yet
        assert reading(lead, "process.thread.count", **{"paste_agent.worker.number": number}) == [3]
        die(first)
        lead.drain()
        assert reading(lead, "process.memory.usage") == []
        assert len(reading(lead, "paste_agent.worker.busy")) == 1
        die(second)


def test_others_serve_while_one_does(directory: Path) -> None:
    first, second = serving(directory), serving(directory)
    with leading(directory) as lead:
        lead.drain()
        assert lead.others_serve(first.id)
        second.mark_closed()
        lead.drain()
        assert not lead.others_serve(first.id)
        assert lead.others_serve(None)
    die(first), die(second)
