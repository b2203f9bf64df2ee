"""Post-mortems in the store: kept with the drain that found them, bounded, and there in a store that is older."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from paste_agent.aggregate import REQUEST_DURATION, Delta, Total
from paste_agent.kept import TraceRow
from paste_agent.recorder.layout import KEPT_LOST
from paste_agent.store import retention, schema, summary
from paste_agent.store.store import RUNNING, PostmortemRow, RecorderRow, Store, pack_buckets
from tests.recorders import count_of, die, in_flight, leading, open_recorder, serve, since

DAY = 86_400
NOW = 1_800_000_000.0
EVER, ANY = 36_500.0, 1 << 60


def account(name: str = "7-aa", at: float = NOW, **more: Any) -> PostmortemRow:
    return PostmortemRow(name, at, "signal", {"id": name, "requests": [], **more})


def keep(store: Store, *rows: PostmortemRow) -> None:
    store.commit_drain(Delta(), [], {}, 100, rows)


def names(rows: list[PostmortemRow]) -> list[str]:
    return [row.id for row in rows]


# -- there and back ------------------------------------------------------------------------------------------------


def test_what_is_kept_comes_back(store: Store) -> None:
    odd = account(more={"a": [1, 2.5, None, True, "\x00\x1b[31m\ud800 'quotes' \"too\" 語"]})
    keep(store, odd)
    assert store.postmortems(0, 1e12, 10) == [odd]
    with closing(Store(store.path, read_only=True)) as other:
        assert other.postmortem("7-aa") == [odd]


def test_the_newest_come_first_within_the_time_that_is_asked_for(store: Store) -> None:
    keep(store, *(account(f"7-{place:02}", NOW + place) for place in (3, 1, 2, 0)))
    assert names(store.postmortems(0, 1e12, 10)) == ["7-03", "7-02", "7-01", "7-00"]
    assert names(store.postmortems(NOW + 1, NOW + 3, 10)) == ["7-02", "7-01"]
    assert names(store.postmortems(0, 1e12, 2)) == ["7-03", "7-02"]
    assert store.postmortems(NOW + 9, 1e12, 10) == []


def test_the_same_process_is_kept_once(store: Store) -> None:
    keep(store, account(reason="first"))
    keep(store, account(reason="second"))
    assert [row.summary["reason"] for row in store.postmortems(0, 1e12, 10)] == ["second"]


@pytest.mark.parametrize(
    ("beginning", "found"),
    [
        ("7-aabb", ["7-aabb"]),
        ("7-aa", ["7-aacc", "7-aabb"]),
        ("7-", ["71", "7-dd"]),
        ("71", ["71"]),
        ("8", []),
        ("7-aabbcc", []),
        ("7_", []),
        ("%", []),
        ("_", []),
        ("7-AA", []),
        ("7*", []),
        ("'; DROP TABLE postmortems; --", []),
    ],
)
def test_one_is_found_by_the_beginning_of_its_id(store: Store, beginning: str, found: list[str]) -> None:
    """Two at the most: enough to tell that it is no single one. No character stands for another."""
    ids = ["7-aabb", "7-aacc", "7-dd", "71"]
    keep(store, *(account(name, NOW + place) for place, name in enumerate(ids)))
    if beginning == "7-":
        found = ["7-dd", "7-aacc"]
    assert names(store.postmortem(beginning)) == found
    assert len(store.postmortem("")) == 2
    assert len(store.postmortems(0, 1e12, 10)) == 4


def test_a_drain_that_fails_keeps_no_account(store: Store) -> None:
    row = RecorderRow("7-aa", 3, 1, 7, True, RUNNING, 1.0, 2.0, 3, 0, 0.5, [0])
    store.commit_drain(Delta(), [(None, row)], {}, 100)
    with pytest.raises(sqlite3.IntegrityError):
        store.commit_drain(Delta(), [(replace(row, position=9), row)], {}, 100, [account()])
    assert store.postmortems(0, 1e12, 10) == []


@pytest.mark.parametrize("written", ["", "noise", "[1]", "null", "7", "{"])
def test_what_somebody_else_has_written_is_an_empty_account(store: Store, written: str) -> None:
    with store.transaction() as db:
        db.execute("INSERT INTO postmortems VALUES ('7-aa', 1.0, 'signal', ?)", (written,))
    assert store.postmortem("7-aa") == [PostmortemRow("7-aa", 1.0, "signal", {})]


# -- bounds --------------------------------------------------------------------------------------------------------


def test_the_newest_five_hundred_stay(store: Store) -> None:
    keep(store, *(account(f"7-{place:04}", NOW - place) for place in range(700)))
    retention.tidy(store, NOW, EVER, ANY)
    assert names(store.postmortems(0, 1e12, 1000)) == [f"7-{place:04}" for place in range(500)]
    retention.tidy(store, NOW, EVER, ANY)
    assert len(store.postmortems(0, 1e12, 1000)) == 500


def test_what_is_older_than_the_days_goes(store: Store) -> None:
    keep(store, *(account(f"7-{days:02}", NOW - days * DAY) for days in range(10)))
    retention.tidy(store, NOW, 4.5, ANY)
    assert names(store.postmortems(0, 1e12, 100)) == [f"7-{days:02}" for days in range(5)]


def test_beyond_the_bytes_they_go_after_the_traces_and_before_the_rollups(store: Store) -> None:
    keep(store, *(account(f"7-{place:04}", NOW - place, stack="x" * 20_000) for place in range(100)))
    delta = Delta()
    for place in range(50):
        delta.at((REQUEST_DURATION, "{}"), int(NOW) - 10 * place).add(Total(1, 5, 5, 1, 0, 0, {3: 1}))
    store.commit_drain(delta, [], {}, 100)
    trace = TraceRow(bytes(16), bytes(8), None, int(NOW * 1e9), 5, False, 1, {}, {"x": "y" * 100_000})
    store.add_traces([trace], NOW)
    retention.tidy(store, NOW, EVER, 1024 * 1024)
    left = names(store.postmortems(0, 1e12, 1000))
    assert 5 < len(left) < 60
    assert left == [f"7-{place:04}" for place in range(len(left))]  # the oldest have gone
    assert store.traces(0, 1e12, "newest", False, 10) == []
    assert sum(one.total.count for one in store.totals_between(0, 1e12)) == 50
    retention.tidy(store, NOW, EVER, 1)
    assert store.postmortems(0, 1e12, 1000) == []
    assert count_of(store) == 50


# -- a store of an older agent -------------------------------------------------------------------------------------


def old_store(path: Path) -> None:
    """As an agent of schema version 1 left it, with something in every table."""
    with closing(sqlite3.connect(path)) as db:
        for statement in schema._statements(schema._V1):
            db.execute(statement)
        db.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        db.execute("PRAGMA user_version = 1")
        db.execute("INSERT INTO meta VALUES ('service.instance.id', 'the same')")
        db.execute("INSERT INTO series VALUES (1, ?, ?)", (REQUEST_DURATION, '{"http.request.method": "GET"}'))
        values = (7, 700, 100, 7, 0, 0, pack_buckets({3: 7}))
        db.execute("INSERT INTO totals VALUES (1, ?, ?, ?, ?, ?, ?, ?)", values)
        db.execute("INSERT INTO rollups VALUES (1000, 10, 1, ?, ?, ?, ?, ?, ?, ?)", values)
        db.execute("INSERT INTO counters VALUES ('lost', '{}', 3)")
        words = str([0] * 18)  # fewer than there are now
        db.execute("INSERT INTO recorders VALUES ('9-old', 7, 1, 9, 1, 'running', 1.0, 2.0, 7, 0, 0.5, ?)", (words,))
        db.execute(
            "INSERT INTO traces VALUES (?, ?, NULL, 5, 5, 0, 1, '{}', '{}', 1.0, 0)", (b"\x01" * 16, b"\x02" * 8)
        )
        db.commit()


def test_an_older_store_is_brought_up_with_all_that_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "shop.sqlite"
    old_store(path)
    for _ in range(2):
        with closing(Store(str(path))) as store:
            assert count_of(store) == 7
            assert sum(one.total.count for one in store.totals_between(0, 2000)) == 7
            assert store.counters() == {("lost", "{}"): 3}
            assert [row.id for row in store.recorders()] == ["9-old"]
            assert len(store.traces(0, 10, "newest", False, 10)) == 1
            assert store.instance_id("another") == "the same"
            assert store.postmortems(0, 1e12, 10) == []
    with closing(Store(str(path))) as store:
        keep(store, account())
        assert names(store.postmortems(0, 1e12, 10)) == ["7-aa"]
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (schema.VERSION,)
        fresh = tmp_path / "fresh.sqlite"
        Store(str(fresh)).close()
        with closing(sqlite3.connect(fresh)) as other:
            tables = "SELECT type, name, sql FROM sqlite_master ORDER BY name"
            assert db.execute(tables).fetchall() == other.execute(tables).fetchall()


def test_a_lead_goes_on_with_an_older_store(tmp_path: Path) -> None:
    old_store(tmp_path / "shop.sqlite")
    opened = open_recorder(tmp_path)
    opened.set_word(1, 1)
    serve(opened)
    in_flight(opened, since(3))
    die(opened)
    with leading(tmp_path) as lead:
        lead.drain()
        assert count_of(lead.store) == 8
        assert names(lead.store.postmortems(0, 1e12, 10)) == [opened.id]
        assert {row.why for row in lead.store.traces(0, 1e12, "newest", False, 10)} == {1, KEPT_LOST}
        assert {row.id: row.state for row in lead.store.recorders()}["9-old"] == "lost"


def test_a_step_that_fails_leaves_the_older_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "shop.sqlite"
    old_store(path)
    monkeypatch.setitem(schema._STEPS, 1, schema._V2 + "CREATE TABLE meta (key TEXT);")
    with pytest.raises(Exception, match="already exists"):
        Store(str(path))
    monkeypatch.undo()
    with closing(Store(str(path))) as store:
        assert count_of(store) == 7


def test_who_only_looks_at_an_older_store_sees_what_it_holds(tmp_path: Path) -> None:
    """A service that was stopped before the upgrade: nobody has brought its store up, and looking writes nothing."""
    path = tmp_path / "shop.sqlite"
    old_store(path)
    with closing(Store(str(path), read_only=True)) as store:
        found = summary.summarize(store, "shop", 0, time.time())
        assert (found["requests"], found["postmortems"]) == (7, [])
        assert store.postmortem("7") == []
