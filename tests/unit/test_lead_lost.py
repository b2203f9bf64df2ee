"""What the lead does with a recorder that has no orderly end: one post-mortem, and every answer counted once."""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from paste_agent.lead import Lead
from paste_agent.recorder import layout
from paste_agent.recorder.writer import Recorder
from paste_agent.store.store import ENDED, LOST, SENT, Store
from tests.recorders import (
    KeepAll,
    S,
    accounts,
    count_of,
    die,
    in_flight,
    leading,
    leave,
    lost_by_reason,
    open_recorder,
    recorders_in,
    requests_of,
    run_script,
    series_of,
    serve,
    settings_of,
    since,
    states,
    traces_of,
)

KILL, ABRT = int(signal.SIGKILL), int(signal.SIGABRT)


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


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    found = [(record.levelno, record.getMessage()) for record in caplog.records if "post-mortem" in record.getMessage()]
    caplog.clear()
    return found


# -- one account ---------------------------------------------------------------------------------------------------


def test_a_process_that_was_killed_over_a_request_is_given_account_of_once(
    worker: Recorder, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    serve(worker, route="/a")
    slot = in_flight(worker, since(7), path=b"/orders", thread=11)
    worker.set_route(slot, worker.number_of(slot), "/orders")
    worker.enter_span(slot, b"SELECT orders")
    worker.set_stack(slot, worker.number_of(slot), since(1), '  File "/no/app.py", line 3, in view\n')
    with leading(directory) as lead:
        lead.drain()
        assert accounts(lead) == []  # it lives
        die(worker)
        for _ in range(3):
            lead.drain()
        (account,) = accounts(lead)
        assert (account.id, account.reason) == (worker.id, "unknown")
        (request,) = account.summary["requests"]
        assert (request["method"], request["path"], request["route"]) == ("GET", "/orders", "/orders")
        assert request["span"] == "SELECT orders"
        assert request["stack"] == '  File "/no/app.py", line 3, in view\n'
        assert 7 <= request["age_s"] < 60
        assert account.summary["requests_served"] == 1
        assert lost_by_reason(lead) == {'{"reason": "unknown"}': 1}
        (row,) = traces_of(lead)
        assert (row.why, row.failed) == (layout.KEPT_LOST, True)
        assert row.attributes["http.route"] == "/orders"
        assert requests_of(lead.store) == {("GET", "/a", 200): 1}  # what was cut off is not counted
        assert states(lead) == [LOST]
    ((level, text),) = said(caplog)
    assert level == logging.ERROR
    assert text.startswith("shop: worker 1 (pid ")
    assert "GET /orders was in flight for " in text
    with leading(directory) as lead:
        lead.drain()
        assert len(accounts(lead)) == 1
        assert lost_by_reason(lead) == {'{"reason": "unknown"}': 1}
    assert said(caplog) == []


def test_a_path_that_is_not_to_be_recorded_is_not_told(
    worker: Recorder, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slot = in_flight(worker, since(7), path=b"/reset/s3cret", thread=11)
    worker.set_route(slot, worker.number_of(slot), "/reset/{token}")
    in_flight(worker, since(6), path=b"/reset/s3cret", thread=12)
    with leading(directory, exclude_attributes="url.*") as lead:
        lead.drain()
        die(worker)
        lead.drain()
        (account,) = accounts(lead)
        rows = traces_of(lead)
    ((_, text),) = said(caplog)
    assert ", route /reset/{token}, trace " in text
    assert len(rows) == 2
    assert "s3cret" not in f"{text} {account.summary} {[(row.attributes, row.detail) for row in rows]}"


def test_one_that_was_killed_over_nothing_is_told_less_loudly(
    worker: Recorder, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    serve(worker)
    die(worker)
    with leading(directory) as lead:
        lead.drain()
        (account,) = accounts(lead)
        assert account.summary["requests"] == []
        assert traces_of(lead) == []
        assert lost_by_reason(lead) == {'{"reason": "unknown"}': 1}
        assert count_of(lead.store) == 1
    ((level, text),) = said(caplog)
    assert level == logging.WARNING
    assert "nothing was in flight" in text


def test_one_that_ended_as_it_should_is_not_told_of(
    worker: Recorder, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    serve(worker)
    worker.mark_closed()
    with leading(directory) as lead:
        lead.drain()
        assert (accounts(lead), lost_by_reason(lead), traces_of(lead)) == ([], {}, [])
        assert states(lead) == [ENDED]
    assert said(caplog) == []


@pytest.mark.parametrize("busy", [False, True])
def test_a_process_that_does_not_serve_is_told_of_only_over_a_task(directory: Path, busy: bool) -> None:
    opened = open_recorder(directory)
    if busy:
        opened.enter_slot(since(3), layout.SCHEME_BACKGROUND, b"", b"warm caches")
    die(opened)
    with leading(directory) as lead:
        lead.drain()
        assert [account.summary["requests"][0]["path"] for account in accounts(lead)] == ["warm caches"] * busy
        assert lost_by_reason(lead) == {}  # it was no worker
        assert traces_of(lead) == []


def test_closed_with_a_request_in_flight(worker: Recorder, directory: Path) -> None:
    in_flight(worker, since(3), path=b"/cut")
    worker.mark_closed()
    with leading(directory) as lead:
        lead.drain()
        (account,) = accounts(lead)
        assert account.reason == "exit"
        assert [request["path"] for request in account.summary["requests"]] == ["/cut"]
        assert lost_by_reason(lead) == {'{"reason": "exit"}': 1}
        assert states(lead) == [ENDED]


@pytest.mark.parametrize("request_too", [False, True])
def test_a_task_that_goes_on_for_ever_ends_with_its_process(
    worker: Recorder, directory: Path, request_too: bool
) -> None:
    worker.enter_slot(since(99), layout.SCHEME_BACKGROUND, b"", b"poll the queue")
    if request_too:
        in_flight(worker, since(3), path=b"/cut")
    worker.mark_closed()
    with leading(directory) as lead:
        lead.drain()
        told = [[request["path"] for request in account.summary["requests"]] for account in accounts(lead)]
        assert told == [["/cut"]] * request_too
        assert lost_by_reason(lead) == ({'{"reason": "exit"}': 1} if request_too else {})
        assert states(lead) == [ENDED]


@pytest.mark.parametrize("aborted", [False, True])
def test_a_task_is_told_of_when_the_end_was_none_in_order(worker: Recorder, directory: Path, aborted: bool) -> None:
    worker.enter_slot(since(99), layout.SCHEME_BACKGROUND, b"", b"poll the queue")
    if aborted:
        worker.set_word(layout.W_ABORTED, 1)
        worker.mark_closed()
    die(worker)
    with leading(directory) as lead:
        lead.drain()
        (account,) = accounts(lead)
        assert [request["path"] for request in account.summary["requests"]] == ["poll the queue"]


def test_many_in_flight_name_twenty_and_count_the_rest(worker: Recorder, directory: Path) -> None:
    for place in range(50):
        in_flight(worker, since(100 - place), path=b"/%d" % place)
    die(worker)
    with leading(directory) as lead:
        lead.drain()
        (account,) = accounts(lead)
        assert [request["path"] for request in account.summary["requests"]] == [f"/{place}" for place in range(20)]
        assert account.summary["more_requests"] == 30
        assert len(traces_of(lead)) == 20


def test_of_another_boot_the_recorders_own_times_are_told(worker: Recorder, directory: Path) -> None:
    in_flight(worker, since(9))
    worker.set_word(layout.W_PROBED_AT, since(1))
    worker.buffer[32:40] = since(20).to_bytes(8, "little")  # it was opened before all that
    worker.buffer[64:80] = b"another boot    "
    die(worker)
    with leading(directory) as lead:
        lead.drain()
        (account,) = accounts(lead)
        assert account.summary["requests"][0]["age_s"] == pytest.approx(8, abs=0.5)
        assert abs(account.at - time.time()) < 3600


# -- requests that were answered, without a record -----------------------------------------------------------------


def answered(recorder: Recorder, route: str = "/answered", duration_ns: int = S, **more: Any) -> int:
    """Whatever the client saw of it, the server had the whole answer; its slot."""
    start_ns = since(2)
    return in_flight(recorder, start_ns, series=series_of(recorder, route, **more), answered_ns=start_ns + duration_ns)


def test_an_answer_without_a_record_is_counted_as_it_was_given(worker: Recorder, directory: Path) -> None:
    answered(worker)
    answered(worker, "/failed", status="503 No")
    in_flight(worker, since(1), path=b"/cut")
    die(worker)
    with leading(directory) as lead:
        for _ in range(3):
            lead.drain()
        assert requests_of(lead.store) == {("GET", "/answered", 200): 1, ("GET", "/failed", 503): 1}
        (total,) = [one.total for one in lead.store.totals() if one.attributes.get("http.route") == "/answered"]
        assert (total.sum_ns, total.max_ns, total.tolerating) == (S, S, 1)
        (total,) = [one.total for one in lead.store.totals() if one.attributes.get("http.route") == "/failed"]
        assert (total.frustrated, total.tolerating) == (1, 0)
        assert [row.requests for row in lead.store.recorders()] == [2]
        (account,) = accounts(lead)
        assert [request["answered"] for request in account.summary["requests"]] == [True, True, False]
        assert len(traces_of(lead)) == 1  # only the one that nobody has an answer of
    with leading(directory) as lead:
        lead.drain()
        assert count_of(lead.store) == 2


@pytest.mark.parametrize("drained_before", [False, True])
def test_an_answer_whose_record_is_there_is_counted_once(
    worker: Recorder, directory: Path, drained_before: bool
) -> None:
    """Killed between writing the record and leaving the slot."""
    start_ns = since(2)
    series = series_of(worker, "/a")
    in_flight(worker, start_ns, series=series, answered_ns=start_ns + S)
    leave(worker, series, duration_ns=S, end_ns=start_ns + S)
    with leading(directory) as lead:
        if drained_before:
            assert lead.drain() == 1
        die(worker)
        lead.drain()
        lead.drain()
        assert requests_of(lead.store) == {("GET", "/a", 200): 1}
        (account,) = accounts(lead)
        assert account.summary["requests"] == []
        assert account.summary["requests_served"] == 1


def test_many_records_after_it_do_not_hide_a_record(worker: Recorder, directory: Path) -> None:
    start_ns, series = since(2), series_of(worker, "/a")
    in_flight(worker, start_ns, series=series, answered_ns=start_ns + S)
    leave(worker, series, duration_ns=S, end_ns=start_ns + S)
    for _ in range(300):
        leave(worker, series)
    die(worker)
    with leading(directory) as lead:
        lead.drain()
        assert count_of(lead.store) == 301


def test_a_full_ring_loses_the_record_and_not_the_answer(directory: Path) -> None:
    """The record had no room: it is counted as dropped, and the slot was left. Nothing is counted from it."""
    opened = open_recorder(directory)
    opened.set_word(layout.W_SERVING, 1)
    for _ in range(1100):
        serve(opened, route="/a")
    dropped = opened.word(layout.W_DROPPED)
    die(opened)
    with leading(directory) as lead:
        lead.drain()
        assert dropped > 0
        assert count_of(lead.store) == 1100 - dropped


def test_a_real_process_that_is_killed_before_the_server_closes(directory: Path) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from paste_agent.filter import AgentFilter
from paste_agent.recorder import layout
from tests.recorders import _Serving, environ_of, open_recorder, serve
recorder = open_recorder(Path(sys.argv[1]))
recorder.set_word(layout.W_SERVING, 1)
serve(recorder, route='/a')
def app(environ, start_response):
    environ['paste_agent.route'] = '/b'
    start_response('201 Made', [])
    return {'list': [b'x'], 'iterator': iter([b'x'])}[sys.argv[2]]
body = AgentFilter(app, _Serving(recorder))(environ_of('/b'), lambda status, headers, exc_info=None: None)
for part in body:
    pass
os.kill(os.getpid(), signal.SIGKILL)
"""
    for kind in ("list", "iterator"):
        run_script(script, directory, kind, expect=-9)
    with leading(directory) as lead:
        lead.drain()
        lead.drain()
        assert requests_of(lead.store) == {("GET", "/a", 200): 2, ("GET", "/b", 201): 2}
        assert len(accounts(lead)) == 2


# -- the lead is killed in the middle ------------------------------------------------------------------------------

STEPS = """
import os, signal, sys
from pathlib import Path
from paste_agent.recorder.reader import Reader
from paste_agent.store.store import Store
from tests.recorders import leading

def before(owner, name, nth=1):
    real, calls = getattr(owner, name), []
    def wrapped(*arguments, **more):
        calls.append(name)
        if len(calls) == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **more)
    setattr(owner, name, wrapped)

with leading(Path(sys.argv[1])) as lead:
    {
        'before the traces': lambda: before(Store, 'add_traces'),
        'between traces and commit': lambda: before(Store, 'commit_drain'),
        'after the commit': lambda: before(Reader, 'set_tail'),
        'before removing the crash': lambda: before(os, 'unlink'),
        'before removing the recorder': lambda: before(os, 'unlink', 2),
    }[sys.argv[2]]()
    lead.drain()
"""
PLACES = [
    "before the traces", "between traces and commit", "after the commit", "before removing the crash",
    "before removing the recorder",
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_a_lead_that_is_killed_over_it_tells_once_and_counts_once(
    worker: Recorder, directory: Path, place: str
) -> None:
    series = series_of(worker, "/a")
    start_ns = since(4)
    in_flight(worker, start_ns, series=series, answered_ns=start_ns + S)  # and its record is there
    leave(worker, series, duration_ns=S, end_ns=start_ns + S)
    answered(worker, "/b")
    in_flight(worker, since(1), path=b"/cut")
    worker.set_word(layout.W_RECYCLED, 1)
    (directory / f"{worker.id}.crash").write_text("Fatal Python error: Segmentation fault\n")
    die(worker)
    run_script(STEPS, directory, place, expect=-9)
    with leading(directory) as lead:
        for _ in range(3):
            lead.drain()
        assert requests_of(lead.store) == {("GET", "/a", 200): 1, ("GET", "/b", 200): 1}
        (account,) = accounts(lead)
        assert account.reason == "signal"  # the crash's file was still there when it was looked at
        assert [request["path"] for request in account.summary["requests"]] == ["/", "/cut"]
        assert lost_by_reason(lead) == {'{"reason": "signal"}': 1}
        assert recycled(lead) == 1
        (row,) = traces_of(lead)
        assert row.why == layout.KEPT_LOST
        assert [row.requests for row in lead.store.recorders()] == [2]
        assert recorders_in(directory) == []
        assert not (directory / f"{worker.id}.crash").exists()


def recycled(lead: Lead) -> int:
    return lead.store.counters().get(("paste_agent.worker.recycled", '{"reason": "max_requests"}'), 0)


def test_a_store_that_refuses_is_told_once_it_takes_it(
    worker: Recorder, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    answered(worker)
    in_flight(worker, since(1))
    die(worker)
    with leading(directory) as lead, closing(Store(settings_of(directory).store)) as other:
        with lead.store.transaction() as db:
            db.execute("PRAGMA busy_timeout = 20")
        with other.transaction():
            for _ in range(3):
                with pytest.raises(sqlite3.OperationalError):
                    lead.drain()
        assert said(caplog) == []
        lead.drain()
        assert count_of(lead.store) == 1
        assert len(accounts(lead)) == len(said(caplog)) == 1


def test_two_leads_at_once_tell_once(worker: Recorder, directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    answered(worker)
    in_flight(worker, since(1))
    with leading(directory) as first, leading(directory) as second:
        for lead in (first, second):
            try:
                lead.drain()
            except sqlite3.IntegrityError:
                pass
        die(worker)
        for lead in (first, second, first, second):
            try:
                lead.drain()
            except sqlite3.IntegrityError:
                pass
        assert count_of(first.store) == 1
        assert lost_by_reason(first) == {'{"reason": "unknown"}': 1}
        assert len(accounts(first)) == 1
    assert len(said(caplog)) == 1


def test_a_span_of_a_killed_leads_account_is_not_sent_twice(worker: Recorder, directory: Path) -> None:
    """Between its traces and its commit another thread may send them; the next lead writes them anew."""
    in_flight(worker, since(4))
    die(worker)
    run_script(STEPS, directory, "between traces and commit", expect=-9)
    with closing(Store(settings_of(directory).store)) as store:
        waiting = store.traces_to_send(10, 1e12)
        assert len(waiting) == 1
        store.settle_traces(waiting, SENT)
    with leading(directory) as lead:
        lead.drain()
        assert len(accounts(lead)) == 1
        assert lead.store.traces_to_send(10, 1e12) == []


# -- counters ------------------------------------------------------------------------------------------------------


def test_recycled_workers_are_counted_once(directory: Path) -> None:
    for _ in range(3):
        opened = open_recorder(directory)
        opened.set_word(layout.W_SERVING, 1)
        opened.set_word(layout.W_RECYCLED, 1)
        with leading(directory) as lead:
            lead.drain()
        opened.mark_closed()
        with leading(directory) as lead:
            lead.drain()
            lead.drain()
        die(opened)
    with leading(directory) as lead:
        lead.drain()
        assert recycled(lead) == 3
        assert lost_by_reason(lead) == {}


def test_workers_that_nobody_but_the_arbiter_knew_are_a_counter(directory: Path) -> None:
    opened = open_recorder(directory)
    for _ in range(4):
        opened.record(layout.KIND_LOST, ("boot",), since(1), 0, False)
        opened.record(layout.KIND_BOOT, (), since(1), S // 4, False)
    opened.mark_closed()
    with leading(directory) as lead:
        lead.drain()
        lead.drain()
        assert lost_by_reason(lead) == {'{"reason": "boot"}': 4}
        metrics = {one.metric: one.total for one in lead.store.totals()}
        assert "paste_agent.worker.lost" not in metrics
        assert metrics["paste_agent.worker.boot.duration"].count == 4
        assert metrics["paste_agent.worker.boot.duration"].sum_ns == S
        assert [row.requests for row in lead.store.recorders()] == [0]
    die(opened)


def test_the_crashs_file_goes_with_its_recorder(worker: Recorder, directory: Path) -> None:
    path = directory / f"{worker.id}.crash"
    path.write_text(
        "Fatal Python error: Aborted\n\nCurrent thread 0x0b (most recent call first):\n"
        '  File "/no/a.py", line 3 in view\n'
    )
    in_flight(worker, since(1), thread=11)
    die(worker)
    with leading(directory) as lead:
        lead.drain()
        (account,) = accounts(lead)
        assert account.summary["requests"][0]["stack"] == '  File "/no/a.py", line 3, in view\n'
    assert not path.exists()
    assert [name for name in os.listdir(directory) if name.startswith(worker.id)] == []


def test_kept_requests_of_a_killed_process_are_beside_the_lost_one(directory: Path) -> None:
    opened = open_recorder(directory)
    opened.set_word(layout.W_SERVING, 1)
    opened.sampler = KeepAll(slow_ns=S, parent=0, random=0, slow=0, failed=0, seed=1)
    for _ in range(3):
        serve(opened, route="/a")
    in_flight(opened, since(2))
    die(opened)
    with leading(directory) as lead:
        lead.drain()
        assert sorted(row.why for row in traces_of(lead)) == [layout.KEPT_RANDOM] * 3 + [layout.KEPT_LOST]
