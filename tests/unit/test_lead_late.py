"""A lead that comes long after the end: when that was, whose pid it is by now, and what lies about."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from paste_agent import lead as lead_module
from paste_agent.aggregate import Delta
from paste_agent.recorder import layout
from paste_agent.recorder.writer import Recorder
from paste_agent.store.store import LOST, RUNNING, RecorderRow, Store
from tests.recorders import (
    S,
    accounts,
    count_of,
    die,
    in_flight,
    leading,
    open_recorder,
    recorders_in,
    series_of,
    serve,
    settings_of,
    states,
    traces_of,
)

HOUR = 3600


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def worker(directory: Path) -> Iterator[Recorder]:
    """A recorder of a process that serves."""
    opened = open_recorder(directory, slots=64)
    opened.set_word(layout.W_SERVING, 1)
    yield opened
    die(opened)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Puts all clocks forward to so many seconds after the test's begin, as if the lead came then."""
    ahead, clocks = [0.0], {name: getattr(time, name) for name in ("perf_counter_ns", "time_ns", "time")}
    for name, scale in (("perf_counter_ns", S), ("time_ns", S), ("time", 1)):
        real = clocks[name]
        monkeypatch.setattr(
            lead_module.time, name, lambda real=real, scale=scale: real() + type(real())(ahead[0] * scale)
        )

    def put(seconds: float) -> None:
        ahead[0] = seconds

    return put


def opened_ns(recorder: Recorder) -> int:
    """Of the monotonic clock, as its header has it."""
    return int(layout.HEADER.unpack_from(recorder.buffer)[5])


def opened_at_ns(recorder: Recorder) -> int:
    """Since the epoch."""
    return int(layout.HEADER.unpack_from(recorder.buffer)[4])


# -- when it ended -------------------------------------------------------------------------------------------------


def test_of_a_service_that_was_killed_an_hour_ago_the_times_are_those_of_its_end(
    worker: Recorder, directory: Path, later: Callable[[float], None]
) -> None:
    began_ns = opened_ns(worker)
    worker.set_word(layout.W_TIMEOUT_MS, 30_000)
    worker.set_word(layout.W_PROBED_AT, began_ns + 39 * S)
    in_flight(worker, began_ns + 30 * S, path=b"/orders")
    began_at = opened_at_ns(worker) / 1e9
    die(worker)
    later(HOUR)
    with leading(directory) as lead:
        lead.drain()
        (account,) = accounts(lead)
        assert account.reason == "unknown"  # nine seconds are no reason for an arbiter
        assert account.at == pytest.approx(began_at + 39, abs=0.5)
        assert account.summary["uptime_s"] == 39
        assert account.summary["requests"][0]["age_s"] == 9
        assert "gunicorn's timeout" in " ".join(account.summary["evidence"])
        (row,) = traces_of(lead)
        assert row.duration_ns == 9 * S


def last_probe(recorder: Recorder, directory: Path, seen_ns: int) -> None:
    recorder.set_word(layout.W_PROBED_AT, seen_ns)


def another_request(recorder: Recorder, directory: Path, seen_ns: int) -> None:
    in_flight(recorder, seen_ns, path=b"/later")


def an_answer(recorder: Recorder, directory: Path, seen_ns: int) -> None:
    in_flight(recorder, seen_ns - S, path=b"/later", series=series_of(recorder), answered_ns=seen_ns)


def a_stack(recorder: Recorder, directory: Path, seen_ns: int) -> None:
    ((slot, number, _, _),) = recorder.in_flight()
    recorder.set_stack(slot, number, seen_ns, '  File "/no/app.py", line 3, in view\n')


def a_crash(recorder: Recorder, directory: Path, seen_ns: int) -> None:
    path = directory / f"{recorder.id}.crash"
    path.write_text("Fatal Python error: Segmentation fault\n")
    written_ns = opened_at_ns(recorder) + seen_ns - opened_ns(recorder)
    os.utime(path, ns=(written_ns, written_ns))


SIGNS = [last_probe, another_request, an_answer, a_stack, a_crash]


@pytest.mark.parametrize("sign", SIGNS)
def test_it_ended_at_its_last_sign_of_life(
    worker: Recorder, directory: Path, later: Callable[[float], None], sign: Callable[[Recorder, Path, int], None]
) -> None:
    began_ns = opened_ns(worker)
    worker.set_word(layout.W_PROBED_AT, began_ns + 39 * S)
    in_flight(worker, began_ns + 30 * S, path=b"/orders")
    sign(worker, directory, began_ns + 58 * S)
    die(worker)
    later(HOUR)
    with leading(directory) as lead:
        lead.drain()
        (account,) = accounts(lead)
        assert account.summary["uptime_s"] == pytest.approx(58, abs=0.5)
        assert account.summary["requests"][0]["age_s"] == pytest.approx(28, abs=0.5)
        assert account.reason == ("signal" if sign is a_crash else "unknown")


def test_an_empty_file_of_a_crash_is_no_sign(worker: Recorder, directory: Path, later: Callable[[float], None]) -> None:
    """It is made when the worker begins, and touched by whoever copies a directory."""
    worker.set_word(layout.W_PROBED_AT, opened_ns(worker) + 39 * S)
    path = directory / f"{worker.id}.crash"
    path.touch()
    written_ns = opened_at_ns(worker) + 58 * S
    os.utime(path, ns=(written_ns, written_ns))
    die(worker)
    later(HOUR)
    with leading(directory) as lead:
        lead.drain()
        assert accounts(lead)[0].summary["uptime_s"] == 39


def test_the_lead_before_saw_it_alive_so_long(
    worker: Recorder, directory: Path, later: Callable[[float], None]
) -> None:
    worker.set_word(layout.W_PROBED_AT, opened_ns(worker) + 39 * S)
    in_flight(worker, opened_ns(worker) + 30 * S)
    later(58)
    with leading(directory) as lead:
        lead.drain()
        assert accounts(lead) == []
    die(worker)
    later(HOUR)
    with leading(directory) as lead:
        lead.drain()
        (account,) = accounts(lead)
        # The clock ran on while the test did what it does.
        assert 58 <= account.summary["uptime_s"] < HOUR - 58
        assert 28 <= account.summary["requests"][0]["age_s"] < HOUR - 58


def test_a_lead_that_saw_it_alive_itself_goes_by_its_own_clock(
    worker: Recorder, directory: Path, later: Callable[[float], None]
) -> None:
    """A worker that hangs in C takes its reporter with it: its last probe may be long ago."""
    worker.set_word(layout.W_PROBED_AT, opened_ns(worker) + S)
    worker.set_word(layout.W_TIMEOUT_MS, 30_000)
    in_flight(worker, opened_ns(worker) + S)
    with leading(directory) as lead:
        for seconds in (10, 20, 30):
            later(seconds)
            lead.drain()
        later(31)
        die(worker)
        lead.drain()
        (account,) = accounts(lead)
        assert account.summary["requests"][0]["age_s"] >= 30
        assert account.reason == "timeout"


def test_no_end_lies_ahead_whatever_a_file_says(
    worker: Recorder, directory: Path, later: Callable[[float], None]
) -> None:
    worker.set_word(layout.W_PROBED_AT, 1 << 61)
    in_flight(worker, opened_ns(worker))
    die(worker)
    later(HOUR)
    with leading(directory) as lead:
        lead.drain()
        (account,) = accounts(lead)
        assert account.at <= time.time()
        assert account.summary["uptime_s"] >= HOUR


@pytest.mark.parametrize("same_boot", [True, False])
def test_no_end_lies_before_the_begin(worker: Recorder, directory: Path, same_boot: bool) -> None:
    """Killed before its reporter has looked about for the first time, and over nothing."""
    if not same_boot:
        worker.buffer[64:80] = b"another boot    "
    began_at = opened_at_ns(worker) / 1e9
    die(worker)
    with leading(directory) as lead:
        lead.drain()
        (account,) = accounts(lead)
        assert account.at == pytest.approx(began_at, abs=20)


# -- whose pid it is -----------------------------------------------------------------------------------------------


def row_of(name: str, opened_at: float) -> RecorderRow:
    """What a lead left of a worker with the pid of this process, whose recorder went with its memory file system."""
    return RecorderRow(
        name, 10, 1, os.getpid(), True, RUNNING, opened_at, opened_at + 9, 10, 0, 0.0, [0] * layout.WORDS_KEPT
    )


def left_behind(directory: Path, *rows: RecorderRow) -> None:
    with closing(Store(settings_of(directory).store)) as store:
        store.commit_drain(Delta(), [(None, row) for row in rows], {}, 2000)


@pytest.mark.parametrize("age_s", [0, 9e5])
def test_a_worker_whose_pid_another_one_has_by_now_is_lost(worker: Recorder, directory: Path, age_s: float) -> None:
    """As in a container that was started again: the same pids, and a new file system in memory."""
    left_behind(directory, *(row_of(f"{os.getpid()}-{place:016x}", time.time() - age_s) for place in range(3)))
    with leading(directory) as lead:
        assert states(lead) == [RUNNING] * 3
        lead.drain()
        assert sorted(states(lead)) == [LOST] * 3 + [RUNNING]
        assert {row.id for row in lead.store.recorders() if row.state == RUNNING} == {worker.id}


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc")
def test_a_worker_whose_pid_somebody_else_has_by_now_is_lost(directory: Path) -> None:
    """That one serves nothing, but it was not there yet when the worker's recorder was opened."""
    left_behind(directory, row_of("long-ago", time.time() - 366 * 86_400), row_of("in-memory", time.time()))
    with leading(directory) as lead:
        lead.drain()
        assert {row.id: row.state for row in lead.store.recorders()} == {"long-ago": LOST, "in-memory": RUNNING}


# -- what lies about -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tracked", [False, True])
def test_the_crashs_file_of_a_recorder_that_is_set_aside_goes(worker: Recorder, directory: Path, tracked: bool) -> None:
    other = open_recorder(directory)
    for recorder in (worker, other):
        serve(recorder)
        (directory / f"{recorder.id}.crash").touch()
    with leading(directory) as lead:
        if tracked:
            lead.drain()
        worker.buffer[:64] = os.urandom(64)
        lead.drain()
        assert recorders_in(directory) == sorted([f"{worker.id}.recorder.bad", f"{other.id}.recorder"])
        assert [name for name in os.listdir(directory) if name.endswith(".crash")] == [f"{other.id}.crash"]
        die(other)
        lead.drain()
        assert count_of(lead.store) == 1
    assert [name for name in os.listdir(directory) if name.endswith(".crash")] == []
