"""The embedded store: atomic, guarded by positions, private, and never opened over somebody else's data."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from paste_agent.aggregate import OVERFLOW, REQUEST_DURATION, Delta, Total
from paste_agent.kept import TraceRow
from paste_agent.store.store import (
    LOST,
    REFUSED,
    RUNNING,
    SENT,
    Store,
    pack_buckets,
    unpack_buckets,
)
from tests.recorders import count_of, run_script
from tests.stores import delta_of, row_of


def trace_of(span: int = 1, detail: dict[str, object] | None = None, started_at_ns: int = 10**18) -> TraceRow:
    return TraceRow(
        trace_id=bytes(15) + b"\x01",
        span_id=span.to_bytes(8, "big"),
        parent_id=None,
        started_at_ns=started_at_ns,
        duration_ns=5,
        failed=False,
        why=1,
        attributes={"http.route": "/"},
        detail=detail,
    )


def contents(path: str) -> list[tuple[object, ...]]:
    """Every row of every table."""
    with closing(sqlite3.connect(path)) as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
        return [(name, *row) for name in tables for row in db.execute(f"SELECT * FROM {name}")]


# -- what a drain brings -------------------------------------------------------------------------------------------


def test_a_drain_adds_totals_rollups_counters_and_positions(store: Store) -> None:
    store.commit_drain(delta_of(3), [(None, row_of(position=3))], {("lost", "{}"): 2}, 100)
    store.commit_drain(delta_of(4, slot_s=1010), [(row_of(position=3), row_of(position=7))], {("lost", "{}"): 5}, 100)
    (found,) = store.totals()
    assert found.total == Total(7, 35, 5, 7, 0, 0, {3: 7})
    assert [found.total.count for found in store.totals_between(1000, 1010)] == [3]
    assert [found.total.count for found in store.totals_between(0, 2000)] == [7]
    assert store.span_of_time() == (1000, 1020)
    assert store.counters() == {("lost", "{}"): 7}
    assert store.recorders() == [row_of(position=7)]


def _second_insert_fails(db: sqlite3.Connection) -> None:
    db.execute("CREATE TRIGGER t BEFORE INSERT ON rollups BEGIN SELECT RAISE(ABORT, 'no'); END")


def _counters_fail(db: sqlite3.Connection) -> None:
    db.execute("CREATE TRIGGER t BEFORE INSERT ON counters BEGIN SELECT RAISE(FAIL, 'no'); END")


def _positions_fail(db: sqlite3.Connection) -> None:
    db.execute("CREATE TRIGGER t BEFORE UPDATE ON recorders BEGIN SELECT RAISE(ABORT, 'no'); END")


@pytest.mark.parametrize("fail", [_second_insert_fails, _counters_fail, _positions_fail])
def test_a_statement_that_fails_leaves_nothing(store: Store, fail: object) -> None:
    store.commit_drain(delta_of(3), [(None, row_of(position=3))], {("lost", "{}"): 2}, 100)
    with store.transaction() as db:
        fail(db)  # type: ignore[operator]
    before = contents(store.path)
    with pytest.raises(sqlite3.Error, match="no"):
        store.commit_drain(
            delta_of(1, '{"new": 1}'),
            [(row_of(position=3), row_of(position=4)), (None, row_of("8-b"))],
            {("lost", "{}"): 2},
            100,
        )
    assert contents(store.path) == before
    with store.transaction() as db:
        db.execute("DROP TRIGGER t")
    store.commit_drain(delta_of(1), [(row_of(position=3), row_of(position=4))], {}, 100)
    assert count_of(store) == 4


def test_an_exception_inside_a_transaction_rolls_it_back(store: Store) -> None:
    def interrupted() -> None:
        with store.transaction() as db:
            db.execute("INSERT INTO meta VALUES ('a', 'b')")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert store.meta("a") is None
    store.set_meta("a", "c")
    assert store.meta("a") == "c"


@pytest.mark.parametrize("began_at", [-1, 0, 2, 4])
def test_a_second_lead_from_the_same_position_is_refused(store: Store, began_at: int) -> None:
    before = None if began_at < 0 else row_of(position=began_at)
    store.commit_drain(delta_of(3), [(None, row_of(position=3))], {}, 100)
    with pytest.raises(sqlite3.IntegrityError):
        store.commit_drain(delta_of(3), [(before, row_of(position=6))], {}, 100)
    assert count_of(store) == 3
    assert store.recorders() == [row_of(position=3)]


def test_one_recorder_that_has_moved_refuses_the_whole_drain(store: Store) -> None:
    store.commit_drain(delta_of(3), [(None, row_of(position=3)), (None, row_of("8-b", 1))], {}, 100)
    with pytest.raises(sqlite3.IntegrityError, match="8-b"):
        store.commit_drain(
            delta_of(9), [(row_of(position=3), row_of(position=9)), (row_of("8-b", 0), row_of("8-b", 4))], {}, 100
        )
    assert count_of(store) == 3
    assert [row.position for row in store.recorders()] == [3, 1]


def test_series_beyond_the_bound_fold_into_one(store: Store) -> None:
    for place in range(40):
        store.commit_drain(delta_of(1, f'{{"http.route": "/{place}"}}', slot_s=1000 + place), [], {}, 10)
    store.commit_drain(delta_of(5, "{}", metric="other"), [], {}, 10)  # a bound of each metric's own
    totals = {str(found.attributes): found.total.count for found in store.totals() if found.metric == REQUEST_DURATION}
    assert len(totals) == 11
    assert totals.pop("{'otel.metric.overflow': True}") == 30
    assert set(totals.values()) == {1}
    assert count_of(store) == 40
    assert sum(found.total.count for found in store.totals_between(0, 2000)) == 45
    store.commit_drain(delta_of(1, '{"http.route": "/3"}'), [], {}, 10)  # a known one keeps its name
    store.commit_drain(delta_of(1, OVERFLOW), [], {}, 10)
    assert count_of(store) == 42


@pytest.mark.parametrize("kind", ["timing:", "count:"])
def test_names_of_an_applications_own_are_bounded_together(store: Store, kind: str) -> None:
    for number in range(5):
        store.commit_drain(delta_of(metric=f"{kind}name{number}"), [], {}, 3)
    counts = {found.metric: found.total.count for found in store.totals()}
    assert counts == {f"{kind}name0": 1, f"{kind}name1": 1, f"{kind}name2": 1, f"{kind}paste_agent.custom.overflow": 2}


@pytest.mark.parametrize("buckets", [{}, {0: 1}, {230: 1, 3: (1 << 64) - 1, 65535: 2}])
def test_buckets_survive_their_packing(buckets: dict[int, int]) -> None:
    assert unpack_buckets(pack_buckets(buckets)) == buckets
    assert len(pack_buckets(buckets)) == 10 * len(buckets)


# -- traces --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [("bare", "full"), ("full", "bare"), ("bare", "full", "bare"), ("full", "other")])
def test_a_row_with_detail_wins_whatever_the_order(store: Store, order: tuple[str, ...]) -> None:
    details: dict[str, dict[str, object] | None] = {"bare": None, "full": {"attributes": {"url.path": "/a"}}}
    details["other"] = {"attributes": {"url.path": "/b"}}
    for name in order:
        store.add_traces([trace_of(detail=details[name])], 1.0)
    (found,) = store.traces(0, 1e10, "newest", False, 10)
    assert found == trace_of(detail=details["full"])


def test_both_at_once_leave_the_one_with_detail(store: Store) -> None:
    store.add_traces([trace_of(), trace_of(detail={"a": 1}), trace_of()], 1.0)
    (found,) = store.traces(0, 1e10, "newest", False, 10)
    assert found.detail == {"a": 1}


def test_a_bare_trace_waits_for_its_detail_and_then_goes_without(store: Store) -> None:
    store.add_traces([trace_of(1), trace_of(2, {"a": 1})], 100.0)
    assert [row.span_id[-1] for row in store.traces_to_send(10, bare_before=100.0)] == [2]
    assert {row.span_id[-1] for row in store.traces_to_send(10, bare_before=100.1)} == {1, 2}
    assert len(store.traces_to_send(1, bare_before=200.0)) == 1


@pytest.mark.parametrize("state", [SENT, REFUSED])
def test_a_settled_trace_is_never_sent_again(store: Store, state: int) -> None:
    store.add_traces([trace_of(1), trace_of(2, {"a": 1})], 100.0)
    store.settle_traces([trace_of(1)], state)
    # Its detail comes late, or its lead is killed and the next one reads the same record again.
    store.add_traces([trace_of(1)], 101.0)
    store.add_traces([trace_of(1, {"late": 1})], 102.0)
    assert [row.span_id[-1] for row in store.traces_to_send(10, 1e9)] == [2]
    assert len(store.traces(0, 1e10, "newest", False, 10)) == 2


@pytest.mark.parametrize("order", ["slowest", "newest"])
def test_traces_are_chosen_by_time_order_and_failure(store: Store, order: str) -> None:
    rows = [
        trace_of(place, started_at_ns=(100 - place) * 10**9)._replace(duration_ns=place, failed=place % 2 == 0)
        for place in range(1, 11)
    ]
    store.add_traces(rows, 1.0)
    found = store.traces(91, 99, order, False, 3)
    assert [row.span_id[-1] for row in found] == ([9, 8, 7] if order == "slowest" else [2, 3, 4])
    assert all(row.failed for row in store.traces(0, 1e12, order, True, 100))
    assert len(store.traces(0, float(1 << 62), order, True, 100)) == 5


def test_attributes_and_details_survive(store: Store) -> None:
    row = trace_of(detail={"exception": {"message": "\x00\x1b[31m\ud800 'quotes' \"too\" 語"}})
    row = row._replace(attributes={"http.route": "/\x00", "status": 200}, parent_id=bytes(8))
    store.add_traces([row], 1.0)
    assert store.traces(0, 1e10, "newest", False, 1) == [row]


# -- recorders and meta --------------------------------------------------------------------------------------------


def test_states_are_set_for_those_named(store: Store) -> None:
    store.commit_drain(Delta(), [(None, row_of("a")), (None, row_of("b"))], {}, 100)
    store.set_state(["b", "unknown"], LOST)
    assert {row.id: row.state for row in store.recorders()} == {"a": RUNNING, "b": LOST}
    assert store.recorders()[0] == replace(row_of("a"))


def test_the_first_instance_id_stays(store: Store) -> None:
    assert store.instance_id("one") == "one"
    assert store.instance_id("two") == "one"
    assert int(store.meta("started_at_ns") or 0) > 10**18


# -- a disk that is full -------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_a_clean_state(store: Store) -> None:
    store.commit_drain(delta_of(3), [(None, row_of(position=3))], {}, 100)
    with store.transaction() as db:
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        db.execute(f"PRAGMA max_page_count = {pages}")
    before = contents(store.path)
    for attempt in range(3):
        many = [trace_of(span, {"x": "y" * 4000}) for span in range(50)]
        with pytest.raises(sqlite3.OperationalError, match="full"):
            store.add_traces(many, 1.0)
        delta = Delta()
        for place in range(500):
            delta.at((REQUEST_DURATION, f'{{"http.route": "/{attempt}/{place}"}}'), 1000).add(Total(1))
        with pytest.raises(sqlite3.OperationalError, match="full"):
            store.commit_drain(delta, [(row_of(position=3), row_of(position=503))], {}, 10_000)
        assert contents(store.path) == before
    with store.transaction() as db:
        db.execute("PRAGMA max_page_count = 1000000")
    store.commit_drain(delta_of(4), [(row_of(position=3), row_of(position=7))], {}, 100)
    assert count_of(store) == 7


FULL_DISK = """
import os, sqlite3, subprocess, sys
from paste_agent.aggregate import Delta, Total, REQUEST_DURATION
from paste_agent.kept import TraceRow
from paste_agent.store.store import Store

directory = sys.argv[1]
if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=256k', 'tmpfs', directory], capture_output=True).returncode:
    print('no mount'); sys.exit()
try:
    store = Store(os.path.join(directory, 'shop.sqlite'))
    committed, refused = 0, 0
    for place in range(400):
        delta = Delta()
        delta.at((REQUEST_DURATION, '{"http.route": "/%s"}' % ('x' * 900 + str(place))), place * 10).add(Total(1))
        try:
            store.commit_drain(delta, [], {}, 10_000)
            committed += 1
        except sqlite3.Error:
            refused += 1
    assert refused, 'the disk never filled up'
    assert sum(found.total.count for found in store.totals()) == committed
    store.close()
    store = Store(os.path.join(directory, 'shop.sqlite'), read_only=True)
    assert sum(found.total.count for found in store.totals()) == committed
    store.close()
    print('held')
finally:
    subprocess.run(['umount', directory], check=True)
"""


def test_a_disk_that_fills_up_keeps_what_was_committed(tmp_path: Path) -> None:
    told = run_script(FULL_DISK, tmp_path)
    if told == "no mount\n":
        pytest.skip("mounting a file system takes root")
    assert told == "held\n"
