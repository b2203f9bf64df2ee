"""What the arbiter knows of a worker's end, and what an abort leaves behind: waited for, told once, counted once."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from paste_agent import lead as lead_module
from paste_agent.kept import TraceRow
from paste_agent.recorder import layout
from paste_agent.recorder.writer import Recorder
from paste_agent.store.store import ENDED, LOST, RUNNING, SENT, Store
from paste_agent.trace_writer import TraceWriter
from paste_agent.watch import Watch
from tests.recorders import (
    S,
    accounts,
    count_of,
    die,
    in_flight,
    leading,
    lost_by_reason,
    open_recorder,
    recorders_in,
    requests_of,
    serve,
    settings_of,
    since,
    states,
    traces_of,
    warnings,
)

KILL = int(signal.SIGKILL)


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


# -- the arbiter's word --------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Adds so many ns to what the lead takes for now."""
    ahead, real = [0], time.perf_counter_ns
    monkeypatch.setattr(lead_module.time, "perf_counter_ns", lambda: real() + ahead[0])
    return ahead


def test_the_arbiters_word_is_waited_for(worker: Recorder, directory: Path, clock: list[int]) -> None:
    serve(worker, route="/a")
    in_flight(worker, since(1))
    worker.set_word(layout.W_WITNESSED, 1)
    die(worker)
    with leading(directory) as lead:
        lead.drain()
        assert requests_of(lead.store) == {("GET", "/a", 200): 1}  # its records wait for nobody
        assert (accounts(lead), states(lead)) == ([], [RUNNING])
        assert len(recorders_in(directory)) == 1
        clock[0] += S
        lead.drain()
        assert accounts(lead) == []
        write_word(worker, directory, layout.W_EXIT, KILL + 1)
        lead.drain()
        (account,) = accounts(lead)
        assert account.reason == "signal"
        assert "ended by SIGKILL" in account.summary["evidence"]
        assert recorders_in(directory) == []
        assert count_of(lead.store) == 1


def write_word(recorder: Recorder, directory: Path, word: int, value: int) -> None:
    """As the arbiter does it, in a file whose process is dead."""
    with open(directory / f"{recorder.id}{layout.SUFFIX}", "r+b") as file:
        file.seek(layout.WORDS_AT + 8 * word)
        file.write(value.to_bytes(8, "little"))


def test_it_is_waited_for_two_seconds_and_no_longer(worker: Recorder, directory: Path, clock: list[int]) -> None:
    in_flight(worker, since(1))
    worker.set_word(layout.W_WITNESSED, 1)
    die(worker)
    with leading(directory) as lead:
        lead.drain()
        clock[0] = 19 * S // 10
        lead.drain()
        assert accounts(lead) == []
        clock[0] = 21 * S // 10
        lead.drain()
        (account,) = accounts(lead)
        assert account.reason == "unknown"
        assert states(lead) == [LOST]


def test_who_is_about_to_end_waits_for_no_word(worker: Recorder, directory: Path) -> None:
    in_flight(worker, since(1))
    worker.set_word(layout.W_WITNESSED, 1)
    die(worker)
    with leading(directory) as lead:
        lead.patient = False
        lead.drain()
        assert len(accounts(lead)) == 1
        assert recorders_in(directory) == []


@pytest.mark.parametrize("word", [layout.W_EXIT, layout.W_CLOSED])
def test_what_is_told_already_is_not_waited_for(worker: Recorder, directory: Path, word: int) -> None:
    in_flight(worker, since(1))
    worker.set_word(layout.W_WITNESSED, 1)
    worker.set_word(word, 1)
    die(worker)
    with leading(directory) as lead:
        lead.drain()
        assert len(accounts(lead)) == 1


def test_the_arbiters_clock_says_when_it_ended(worker: Recorder, directory: Path) -> None:
    start_ns = since(50)
    in_flight(worker, start_ns)
    worker.set_words(layout.W_EXIT, [KILL + 1, start_ns + 12 * S])
    die(worker)
    with leading(directory) as lead:
        lead.drain()
        (account,) = accounts(lead)
        assert account.summary["requests"][0]["age_s"] == 12.0
        assert account.at == pytest.approx(time.time() - 38, abs=20)


# -- aborted by the arbiter ----------------------------------------------------------------------------------------


def test_what_the_worker_was_aborted_over_is_told_though_it_ends_after_all(worker: Recorder, directory: Path) -> None:
    """SIGABRT surfaces as SystemExit in the application: the request leaves a record, and gunicorn an orderly end."""

    def aborted() -> None:
        worker.set_word(layout.W_ABORTED, 1)
        Watch(worker, "shop", 2 * S, 30 * S).last_look()
        raise SystemExit(1)

    with pytest.raises(SystemExit):
        serve(worker, "/slow", route="/slow", meanwhile=aborted)
    worker.set_word(layout.W_TIMEOUT_MS, 30_000)
    worker.mark_closed()
    with leading(directory) as lead:
        for _ in range(3):
            lead.drain()
        (account,) = accounts(lead)
        assert account.reason == "timeout"
        (request,) = account.summary["requests"]
        assert (request["path"], request["route"]) == ("/slow", "/slow")
        assert "aborted" in request["stack"]
        assert requests_of(lead.store) == {("GET", "/slow", 500): 1}  # by its record, and by it alone
        assert lost_by_reason(lead) == {'{"reason": "timeout"}': 1}
        assert states(lead) == [ENDED]


def test_aborted_over_nothing_is_an_end_out_of_order(worker: Recorder, directory: Path) -> None:
    worker.set_word(layout.W_ABORTED, 1)
    worker.mark_closed()
    with leading(directory) as lead:
        lead.drain()
        (account,) = accounts(lead)
        assert (account.reason, account.summary["requests"]) == ("timeout", [])


@pytest.mark.parametrize("first", ["process", "lead"])
def test_the_span_of_a_lost_request_is_one_whoever_writes_first(directory: Path, first: str) -> None:
    """Aborted, it leaves a kept trace of its own beside what the post-mortem says of it."""
    opened = open_recorder(directory, keep_all=True)
    opened.set_word(layout.W_SERVING, 1)

    def aborted() -> None:
        opened.set_word(layout.W_ABORTED, 1)
        Watch(opened, "shop", 2 * S, 30 * S).last_look()
        raise SystemExit(1)

    with pytest.raises(SystemExit):
        serve(opened, "/slow", route="/slow", meanwhile=aborted, HTTP_USER_AGENT="test/1")
    writer = TraceWriter(settings_of(directory), opened, str(directory), warnings())
    if first == "process":
        writer.write()
    opened.mark_closed()
    with leading(directory) as lead:
        lead.drain()
        if first == "lead":
            writer.write()
        lead.drain()
        (row,) = traces_of(lead)
        assert row.why & layout.KEPT_LOST
        assert row.why & layout.KEPT_FAILED
        assert row.detail is not None
        attributes, said_of_it = row.detail["attributes"], row.detail["postmortem"]
        assert isinstance(attributes, dict)
        assert attributes["url.path"] == "/slow"
        assert attributes["user_agent.original"] == "test/1"
        assert isinstance(said_of_it, dict)
        assert said_of_it["reason"] == "timeout"
        assert "exception" in row.detail
        assert row.attributes["error.type"] == "SystemExit"
    die(opened)


def test_a_span_that_was_sent_is_sent_again_only_when_there_is_more_to_say(directory: Path) -> None:
    with closing(Store(str(directory / "s.sqlite"))) as store:
        own: dict[str, object] = {"attributes": {"url.path": "/a"}}
        told: dict[str, object] = {"attributes": {"url.path": "/a"}, "postmortem": {"reason": "timeout"}}

        def row(why: int, detail: dict[str, object] | None) -> TraceRow:
            return TraceRow(bytes([1] * 16), bytes([2] * 8), None, S, S, True, why, {"http.route": "/"}, detail)

        def to_send() -> int:
            waiting = store.traces_to_send(10, 1e9)
            store.settle_traces(waiting, SENT)
            return len(waiting)

        store.add_traces([row(layout.KEPT_FAILED, own)], 1.0)
        assert to_send() == 1
        store.add_traces([row(layout.KEPT_FAILED, own), row(layout.KEPT_FAILED, None)], 2.0)
        assert to_send() == 0
        store.add_traces([row(layout.KEPT_LOST, told)], 3.0)
        assert to_send() == 1
        for again in (row(layout.KEPT_LOST, told), row(layout.KEPT_FAILED, own), row(layout.KEPT_FAILED, None)):
            store.add_traces([again], 4.0)
            assert to_send() == 0
        (found,) = store.traces(0, 1e12, "newest", False, 10)
        assert found.why == layout.KEPT_LOST | layout.KEPT_FAILED
        assert found.detail == {**told, **own}
