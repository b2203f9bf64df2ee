"""Exact whatever happens to a lead: killed between any two steps, two at once, stores that refuse, many that write."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from paste_agent.recorder import layout
from paste_agent.store.store import ENDED, LOST, RUNNING, Store
from tests.recorders import (
    KeepAll,
    S,
    Script,
    count_of,
    die,
    leading,
    leave,
    reading,
    recorders_in,
    requests_of,
    run_script,
    series_of,
    serve,
    serving,
    settings_of,
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path


# -- killed between any two steps ----------------------------------------------------------------------------------

DIES = """
import os, signal, sys
from pathlib import Path
from paste_agent.recorder.reader import Reader
from paste_agent.store.store import Store
from tests.recorders import leading

directory, where = Path(sys.argv[1]), sys.argv[2]

def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

def before(owner, name, nth=1):
    real, calls = getattr(owner, name), []
    def wrapped(*arguments, **more):
        calls.append(name)
        if len(calls) == nth:
            die()
        return real(*arguments, **more)
    setattr(owner, name, wrapped)

with leading(directory) as lead:
    {
        'add_traces': lambda: before(Store, 'add_traces'),
        'commit': lambda: before(Store, 'commit_drain'),
        'first tail': lambda: before(Reader, 'set_tail'),
        'second tail': lambda: before(Reader, 'set_tail', 2),
        'first unlink': lambda: before(os, 'unlink'),
        'second unlink': lambda: before(os, 'unlink', 2),
        'tidy': lambda: before(Store, 'totals'),
    }[where]()
    lead.drain()
    lead.store.totals()
"""


@pytest.mark.parametrize(
    "where", ["add_traces", "commit", "first tail", "second tail", "first unlink", "second unlink", "tidy"]
)
def test_a_lead_that_is_killed_anywhere_changes_nothing(directory: Path, where: str) -> None:
    alive, dead, closed = serving(directory), serving(directory), serving(directory)
    for one in (alive, dead, closed):
        one.sampler = KeepAll(slow_ns=S, parent=0, random=0, slow=0, failed=0, seed=1)
        one.set_word(layout.W_CPU_USER_NS, 7)
        for place in range(11):
            serve(one, route=f"/{place % 2}")
        leave(one, series_of(one, "/old"))
    die(dead)
    closed.mark_closed()
    # What the living one has just served counts as well, but later: it is young.
    run_script(DIES, directory, where, expect=-9)
    with leading(directory) as lead:
        for _ in range(3):
            lead.drain()
        die(alive)
        lead.drain()
        lead.drain()
        assert requests_of(lead.store) == {("GET", "/0", 200): 18, ("GET", "/1", 200): 15, ("GET", "/old", 200): 3}
        assert sum(value for (name, _), value in lead.store.counters().items() if name == "process.cpu.time") == 21
        rollups = sum(
            found.total.count
            for found in lead.store.totals_between(0, 1 << 40)
            if found.metric == "http.server.request.duration"
        )
        assert rollups == 36
        assert len(lead.store.traces(0, 1e12, "newest", False, 1000)) == 33
        assert recorders_in(directory) == []
        assert [row.requests for row in lead.store.recorders()] == [12, 12, 12]


def test_killed_leads_again_and_again_count_exactly(directory: Path) -> None:
    opened = serving(directory, records=4096)
    series = series_of(opened)
    left = 0
    for where in ("commit", "first tail", "add_traces", "tidy", "first tail", "commit", "tidy"):
        for _ in range(97):
            leave(opened, series)
            left += 1
        if where == "add_traces":
            leave(opened, series, why=layout.KEPT_SLOW)
            left += 1
        run_script(DIES, directory, where, expect=-9)
    die(opened)
    with leading(directory) as lead:
        lead.drain()
        assert count_of(lead.store) == left


# -- two leads, and stores that refuse -----------------------------------------------------------------------------


def test_two_leads_at_once_stay_exact(directory: Path) -> None:
    """Somebody has removed the lease, and a second process took a new one."""
    opened = serving(directory, records=16_384)
    series = series_of(opened)
    left = refused = 0
    with leading(directory) as first, leading(directory) as second:
        for turn in range(40):
            for _ in range(13):
                leave(opened, series)
                left += 1
            for lead in (first, second) if turn % 3 else (second, first, first):
                try:
                    lead.drain()
                except sqlite3.IntegrityError:
                    refused += 1
            if turn % 10 == 9:  # one more recorder that both of them discover
                other = serving(directory)
                leave(other, series_of(other))
                left += 1
                die(other)
        die(opened)
        for lead in (first, second, first, second):
            try:
                lead.drain()
            except sqlite3.IntegrityError:
                refused += 1
        assert refused > 0
        assert count_of(first.store) == count_of(second.store) == left
        assert recorders_in(directory) == []


def test_a_store_that_another_connection_holds_loses_nothing(directory: Path) -> None:
    opened = serving(directory)
    series = series_of(opened)
    with leading(directory) as lead, closing(Store(settings_of(directory).store)) as other:
        with lead.store.transaction() as db:
            db.execute("PRAGMA busy_timeout = 20")
        leave(opened, series)
        lead.drain()
        with other.transaction():
            for turn in range(4):
                leave(opened, series, why=layout.KEPT_SLOW if turn == 2 else 0)
                opened.set_word(layout.W_CPU_USER_NS, 10 * turn)
                with pytest.raises(sqlite3.OperationalError, match="locked"):
                    lead.drain()
            assert opened.word(layout.W_TAIL) == 1
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                lead.tidy()
        assert lead.drain() == 4
        assert count_of(lead.store) == 5
        assert sum(value for (name, _), value in lead.store.counters().items() if name == "process.cpu.time") == 30
    die(opened)


def test_a_dead_recorder_stays_until_the_store_takes_it(directory: Path) -> None:
    opened = serving(directory)
    for _ in range(5):
        serve(opened)
    die(opened)
    with leading(directory) as lead, closing(Store(settings_of(directory).store)) as other:
        with lead.store.transaction() as db:
            db.execute("PRAGMA busy_timeout = 20")
        with other.transaction(), pytest.raises(sqlite3.OperationalError):
            lead.drain()
        assert len(recorders_in(directory)) == 1
        assert lead.drain() == 5
        assert recorders_in(directory) == []


def seen_and_gone(directory: Path, *, killed: bool = True) -> None:
    """A process that a lead has seen alive; its file is gone, and where it was killed itself too."""
    with Script(WRITES, directory) as process:
        process.say(1)
        process.hear()
        with leading(directory) as lead:
            lead.drain()
        os.unlink(directory / recorders_in(directory)[0])
        if killed:
            return
        with leading(directory) as lead:
            lead.drain()
            assert [row.state for row in lead.store.recorders()] == [RUNNING]


def test_rows_of_processes_whose_recorder_is_gone_are_settled_as_lost(directory: Path) -> None:
    seen_and_gone(directory)
    with leading(directory) as lead:
        assert [row.state for row in lead.store.recorders()] == [RUNNING]
        lead.drain()
        assert [row.state for row in lead.store.recorders()] == [LOST]
        assert reading(lead, "paste_agent.worker.count") == [0]


def test_rows_of_processes_that_live_without_a_file_are_their_own_business(directory: Path) -> None:
    """As those that record in their memory."""
    seen_and_gone(directory, killed=False)


def test_rows_are_settled_even_when_the_store_refuses_at_first(directory: Path) -> None:
    seen_and_gone(directory)
    with leading(directory) as lead, closing(Store(settings_of(directory).store)) as other:
        with lead.store.transaction() as db:
            db.execute("PRAGMA busy_timeout = 20")
        with other.transaction(), pytest.raises(sqlite3.OperationalError):
            lead.drain()
        lead.drain()
        assert [row.state for row in lead.store.recorders()] == [LOST]


def test_a_file_that_cannot_be_removed_is_counted_once(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = serving(directory)
    serve(opened)
    die(opened)

    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied")

    with leading(directory) as lead:
        monkeypatch.setattr(os, "unlink", refuse)
        for _ in range(4):
            lead.drain()
        monkeypatch.undo()
        assert count_of(lead.store) == 1
    with leading(directory) as lead:
        lead.drain()
        assert count_of(lead.store) == 1
        assert recorders_in(directory) == []


def test_a_recorder_removed_by_hand_is_read_to_its_end(directory: Path) -> None:
    opened = serving(directory)
    with leading(directory) as lead:
        lead.drain()
        os.unlink(directory / recorders_in(directory)[0])
        serve(opened)
        die(opened)
        assert lead.drain() == 1
        assert lead.drain() == 0


# -- across processes ----------------------------------------------------------------------------------------------

WRITES = """
import sys
from pathlib import Path
from tests.recorders import open_recorder, serve
recorder = open_recorder(Path(sys.argv[1]), records=16384)
recorder.set_word(1, 1)
for line in sys.stdin:
    for _ in range(int(line)):
        serve(recorder, route='/a')
    print('done', flush=True)
recorder.mark_closed()
"""


def test_processes_that_write_while_others_drain_are_counted_exactly(directory: Path) -> None:
    left = 0
    with Script(WRITES, directory) as first, Script(WRITES, directory) as second, leading(directory) as lead:
        for turn in range(10):
            first.say(300)
            second.say(200)
            left += 500
            lead.drain()
            first.hear(), second.hear()
            if turn == 6:
                second.kill()
                break
        first.say(50)
        first.hear()
        left += 50
        assert first.end() == ("", "")
        lead.drain()
        lead.drain()
        assert requests_of(lead.store) == {("GET", "/a", 200): left}
        assert recorders_in(directory) == []
        assert {row.state for row in lead.store.recorders()} == {ENDED, LOST}
