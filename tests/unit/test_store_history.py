"""Sums and points over time: the same as from the rollups, whatever has been copied, has aged or came late."""

from __future__ import annotations

import random
import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paste_agent.aggregate import (
    DATABASE_DURATION,
    PART_DURATION,
    REQUEST_DURATION,
    TIMING,
    Delta,
    Total,
    canonical,
)
from paste_agent.store import copies, cover, deployments, health, history, kept_traces, lookup, retention
from paste_agent.store.kept_traces import Wanted
from paste_agent.store.store import COLUMNS, MEMORY, SeriesTotal, Store, pack_buckets
from tests.recorders import Script
from tests.unit.test_schema import durations_of, made

MINUTE, HOUR, DAY = 60, 3600, 86_400
NOW = 1_800_000_000
EVER, ANY = 36_500.0, 1 << 60
#: By number: metric and attributes.
SERIES: list[tuple[str, dict[str, str | int]]] = [
    (REQUEST_DURATION, {"http.route": "/a", "http.response.status_code": 200}),
    (REQUEST_DURATION, {"http.route": "/a", "http.response.status_code": 500, "error.type": "KeyError"}),
    (REQUEST_DURATION, {"http.route": '/"http.route": "/a"', "http.response.status_code": 2001}),
    (REQUEST_DURATION, {"http.response.status_code": 404}),
    (PART_DURATION, {"http.route": "/a", "paste_agent.part": "database"}),
    (PART_DURATION, {"http.route": "/b", "paste_agent.part": "cache"}),
    (DATABASE_DURATION, {"db.system.name": "postgresql"}),
    (f"{TIMING}checkout", {}),
]


@contextmanager
def in_memory() -> Iterator[Store]:
    with closing(Store(f"{MEMORY}-{random.getrandbits(64)}?mode=memory&cache=shared")) as store:
        yield store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(str(tmp_path / "shop.sqlite"))) as opened:
        yield opened


Row = tuple[int, int]  #: when, and which of SERIES


def add(store: Store, rows: list[Row]) -> None:
    delta = Delta()
    for start, number in rows:
        metric, attributes = SERIES[number]
        total = delta.at((metric, canonical(attributes)), start // 10 * 10)
        total.observe((start % 997 + 1) * 1_000_000)
        total.satisfied += 1
    store.commit_drain(delta, [], {}, 1000)


def spread(days: int, step_s: int, numbers: int = len(SERIES)) -> list[Row]:
    """So many days until NOW, a row every so many seconds, the series in turn."""
    return [(NOW - 10 - place * step_s, place % numbers) for place in range(days * DAY // step_s)]


def copied(store: Store) -> set[tuple[int, int]]:
    return {(width, kind) for width, kind in store.query("SELECT DISTINCT width, series < 0 FROM copies")}


Where = Mapping[str, object]
Known = dict[tuple[str, str], Total]


def by_name(found: list[SeriesTotal]) -> Known:
    known = {(one.metric, canonical(one.attributes)): one.total for one in found}
    assert len(known) == len(found)
    return known


def chosen(found: list[SeriesTotal], metric: str, where: Where | None) -> list[SeriesTotal]:
    return [
        one
        for one in found
        if one.metric == metric and all(one.attributes.get(key) == value for key, value in (where or {}).items())
    ]


def together(found: list[SeriesTotal]) -> Total:
    whole = Total()
    for one in found:
        whole.add(one.total)
    return whole


ASKED: list[tuple[str, Where | None, str | None]] = [
    (REQUEST_DURATION, None, None),
    (REQUEST_DURATION, None, "http.response.status_code"),
    (REQUEST_DURATION, {"error.type": None}, "http.response.status_code"),
    (REQUEST_DURATION, {"http.route": "/a"}, "error.type"),
    (REQUEST_DURATION, {"http.response.status_code": 200}, None),
    (PART_DURATION, None, "paste_agent.part"),
    (f"{TIMING}checkout", None, None),
]


def check(store: Store, start: float, end: float, most_points: int = 30) -> None:
    """All that can be asked of a span of time agrees with the rollups."""
    every = store.totals_between(start, end)
    seen = {canonical(one[0]): one[1:] for one in lookup.times_seen(store, REQUEST_DURATION, start, end)}
    asked = "SELECT attributes, min(start), max(start) FROM rollups JOIN series ON id = series WHERE metric = ?"
    times = store.query(f"{asked} AND start >= ? AND start < ? GROUP BY series", (REQUEST_DURATION, start, end))
    assert seen == {attributes: (first, last) for attributes, first, last in times}
    for attributes, first, last in lookup.times_seen(store, REQUEST_DURATION, start, end, within_s=HOUR):
        exactly = seen.pop(canonical(attributes))
        assert all(about <= at < about + HOUR for at, about in zip(exactly, (first, last), strict=True))
    assert seen == {}
    assert by_name(history.totals(store, start, end)) == by_name(every)
    window = history.window_of(start, end, most_points)
    slots = [store.totals_between(at, at + window.step_s) for at in window.starts]
    for metric, where, by in ASKED:
        assert by_name(history.totals(store, start, end, [metric], where)) == by_name(chosen(every, metric, where))
        found = history.points(store, window, metric, where, by)
        own = [chosen(slot, metric, where) for slot in slots]
        assert found.pop(None) == [together(slot) for slot in own]
        names = set() if by is None else {str(one.attributes.get(by, "")) for slot in own for one in slot}
        assert set(found) == names
        for name in names:
            assert found[name] == [
                together([one for one in slot if str(one.attributes.get(by or "", "")) == name]) for slot in own
            ]


# -- windows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length_s", "step_s"),
    [
        *((1, 10), (600, 10), (1200, 10), (1201, 60), (HOUR, 60), (6 * HOUR, 300), (DAY, 900), (5 * DAY, HOUR)),
        *((30 * DAY, 6 * HOUR), (31 * DAY, DAY), (120 * DAY, DAY), (121 * DAY, 2 * DAY), (0, 10), (-5, 10)),
    ],
)
def test_a_window_is_as_fine_as_its_points_allow(length_s: int, step_s: int) -> None:
    for start in (NOW, NOW + 0.5, NOW - 12_345):
        window = history.window_of(start, start + length_s)
        assert window.step_s == step_s
        assert window.start_s % step_s == window.end_s % step_s == 0
        assert window.start_s <= start < window.start_s + step_s
        assert window.end_s - step_s < max(start + length_s, window.start_s + step_s) <= window.end_s
        assert 1 <= len(window.starts) <= 122
        assert window.starts[0] == window.start_s


# -- the same sums -------------------------------------------------------------------------------------------------


times = st.integers(NOW - 10 * DAY, NOW)
rows = st.lists(st.tuples(times, st.integers(0, len(SERIES) - 1)), max_size=25)
rounds_of = st.tuples(st.integers(0, 3 * DAY), rows, st.sampled_from([EVER, 8.0, 3.5]))


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    first=rows,
    rounds=st.lists(
        st.tuples(st.integers(0, 3 * DAY), rows, st.sampled_from([EVER, 8.0, 3.5])), min_size=1, max_size=4
    ),
    spans=st.lists(st.tuples(times, st.integers(0, 12 * DAY)), min_size=1, max_size=2),
)
def test_copies_change_no_sum(
    first: list[Row], rounds: list[tuple[int, list[Row], float]], spans: list[tuple[int, int]]
) -> None:
    """Whatever comes late, ages or goes, and whenever somebody looks."""
    with in_memory() as store:
        add(store, first)
        now = NOW
        for later, more, days in rounds:
            now += later
            retention.tidy(store, now, days, ANY)
            for start, length in spans:
                check(store, start, start + length)
            add(store, [(start + now - NOW, number) for start, number in more])
            for start, length in spans:
                check(store, start, start + length)


@pytest.mark.parametrize("kind", [cover.SERIES, cover.GROUPS])
def test_every_width_is_copied_and_read(store: Store, kind: int) -> None:
    add(store, spread(20, 1800))
    retention.tidy(store, NOW, EVER, ANY)
    copies.update(store, NOW, budget_s=None)
    state = cover.state_of(store)
    assert {width for width, one in copied(store) if one == kind} == set(cover.WIDTHS[kind])
    used = {piece.width for piece in cover.cover(state, NOW - 20 * DAY + 10, NOW, kind) if piece.kind == kind}
    assert used >= set(cover.WIDTHS[kind]) - {5 * MINUTE, MINUTE}
    for start in (NOW - 20 * DAY, NOW - 19 * DAY + 17, NOW - DAY - 11 * HOUR, NOW - 2 * HOUR):
        for end in (NOW, NOW - 3 * MINUTE, NOW - 40 * MINUTE):
            check(store, start, end)


def test_a_late_row_is_seen_at_once_and_copied_again(store: Store) -> None:
    add(store, spread(12, HOUR // 2))
    retention.tidy(store, NOW, EVER, ANY)
    copies.update(store, NOW, budget_s=None)
    made = cover.state_of(store).spans
    for age in (2 * MINUTE, 3 * HOUR, 2 * DAY, 5 * DAY, 11 * DAY):
        add(store, [(NOW - age, 0)])
        assert cover.state_of(store).stale != []
        check(store, NOW - 12 * DAY, NOW)
    copies.update(store, NOW, budget_s=None)
    assert cover.state_of(store) == (made, [], store.query("SELECT min(start) FROM rollups")[0][0])
    assert max(piece.width for piece in cover.cover(cover.state_of(store), NOW - 12 * DAY, NOW, 0)) == 8 * DAY
    check(store, NOW - 12 * DAY, NOW)


def test_a_page_sees_one_state_of_the_store(store: Store) -> None:
    add(store, spread(3, HOUR))
    with closing(Store(store.path, read_only=True)) as other:
        with other.reading():
            before = by_name(history.totals(other, 0, NOW + DAY))
            add(store, [(NOW - DAY, 0)])
            with store.transaction() as db:
                db.execute("DELETE FROM rollups WHERE start < ?", (NOW - 2 * DAY,))
            retention.tidy(store, NOW, EVER, ANY)
            with other.reading():
                assert by_name(history.totals(other, 0, NOW + DAY)) == before
            assert by_name(other.totals_between(0, NOW + DAY)) == before
        check(other, NOW - 3 * DAY, NOW)
        assert by_name(history.totals(other, 0, NOW + DAY)) != before


def test_copies_go_with_their_rollups_when_room_is_short(store: Store) -> None:
    add(store, spread(20, MINUTE * 7))
    retention.tidy(store, NOW, EVER, ANY)
    copies.update(store, NOW, budget_s=None)
    (pages, size) = (store.query(f"PRAGMA {name}")[0][0] for name in ("page_count", "page_size"))
    retention.tidy(store, NOW, EVER, pages * size // 2)
    ((oldest,),) = store.query("SELECT min(start) FROM rollups")
    assert oldest > NOW - 20 * DAY
    assert store.query("SELECT count(*) FROM copies WHERE start < ?", (oldest,)) == [(0,)]
    for start in (NOW - 20 * DAY, oldest - HOUR, oldest + HOUR):
        check(store, start, NOW)
    retention.tidy(store, NOW, EVER, 1)
    assert store.query("SELECT count(*) FROM copies") == [(0,)]
    assert history.totals(store, 0, NOW + DAY) == []
    add(store, [(NOW, 0)])
    check(store, NOW - DAY, NOW + DAY)


def test_a_clock_that_was_far_ahead_leaves_nothing_wrong(store: Store) -> None:
    add(store, spread(2, HOUR))
    for now in (NOW + 400 * DAY, NOW + DAY // 2, NOW, NOW + 3 * HOUR):
        copies.update(store, now, budget_s=None)
        check(store, NOW - 2 * DAY, NOW + HOUR)
        add(store, [(now, 1)])
        check(store, NOW - 2 * DAY, now + HOUR)


def test_numbers_that_nobody_counted_are_added_up_all_the_same(store: Store) -> None:
    """Of a forged recorder: sums beyond what SQLite adds, and buckets that are cut short."""
    add(store, [(NOW - place * 600, 0) for place in range(6)])
    with store.transaction() as db:
        db.execute("UPDATE rollups SET sum_ns = ?", ((1 << 63) - 1,))
    check(store, NOW - HOUR, NOW + HOUR)
    with store.transaction() as db:
        db.execute(
            "UPDATE rollups SET sum_ns = 1, buckets = CAST(substr(buckets, 1, 7) AS BLOB) WHERE start > ?", (NOW - 900,)
        )
    check(store, NOW - HOUR, NOW + HOUR)


# -- interrupted, older, beside ------------------------------------------------------------------------------------


def test_a_copy_that_fails_leaves_what_there_was(store: Store) -> None:
    add(store, spread(9, HOUR))
    for width in (MINUTE, 15 * MINUTE, DAY):
        with store.transaction() as db:
            db.execute(
                f"CREATE TRIGGER t AFTER INSERT ON copies WHEN NEW.width = {width} BEGIN SELECT RAISE(ABORT, 'no'); END"
            )
        with pytest.raises(sqlite3.Error, match="no"):
            copies.update(store, NOW, budget_s=None)
        check(store, NOW - 9 * DAY, NOW)
        with store.transaction() as db:
            db.execute("DROP TRIGGER t")
    copies.update(store, NOW, budget_s=None)
    assert {width for width, _ in copied(store)} >= {DAY, MINUTE}
    check(store, NOW - 9 * DAY, NOW)


COPY = """
import sys
from paste_agent.store import copies
from paste_agent.store.store import Store
store = Store(sys.argv[1])
make = copies._Maker._make

def told(self, db, *rest):
    make(self, db, *rest)
    print('made', flush=True)

copies._Maker._make = told
print('ready', flush=True)
copies.update(store, int(sys.argv[2]), None)
"""


def test_who_is_killed_while_copying_leaves_no_sum_wrong(store: Store) -> None:
    add(store, spread(4, HOUR))
    for steps in (1, 7, 40):
        with Script(COPY, store.path, NOW) as process:
            assert process.hear() == "ready"
            for _ in range(steps):
                assert process.hear() == "made"
            process.kill()
        check(store, NOW - 4 * DAY, NOW)
    copies.update(store, NOW, budget_s=None)
    check(store, NOW - 4 * DAY, NOW)


def test_an_older_store_is_read_as_it_is_and_copied_once_it_is_brought_up(tmp_path: Path) -> None:
    path = made(tmp_path / "old.sqlite", 3, {f"/{seed}": durations_of(seed) for seed in range(3)})
    with closing(Store(path, read_only=True)) as looking:
        check(looking, 0, 5000)
        with closing(Store(path)) as store:
            for _ in range(2):
                copies.update(store, 30 * DAY, budget_s=None)
                check(store, 0, 40 * DAY)
                add(store, [(start - NOW + 30 * DAY, number) for start, number in spread(10, HOUR)])
            assert {width for width, _ in copied(store)} >= {6 * HOUR, DAY}
        check(looking, 0, 40 * DAY)  # it was opened before all that


def test_an_older_agent_beside_spoils_no_sum(store: Store) -> None:
    """One that has had the store open since before it was brought up: it knows nothing of copies."""
    add(store, spread(10, HOUR))
    copies.update(store, NOW, budget_s=None)
    total = (1, 5, 5, 1, 0, 0, pack_buckets({3: 1}))
    with closing(sqlite3.connect(store.path)) as older:
        for start in (NOW - 30, NOW - HOUR, NOW - 3 * DAY):
            columns = f"start, width, series, {COLUMNS}"
            older.execute(
                f"INSERT OR REPLACE INTO rollups ({columns}) VALUES ({', '.join('?' * 10)})",
                (start // 10 * 10, 10, 1, *total),
            )
            older.commit()
            check(store, NOW - 10 * DAY, NOW)
        for days in (9.3, 7, 1.2):
            older.execute("DELETE FROM rollups WHERE start < ?", (NOW - days * DAY,))
            older.commit()
            check(store, NOW - 10 * DAY, NOW)
    retention.tidy(store, NOW, EVER, ANY)
    check(store, NOW - 10 * DAY, NOW)


# -- fast ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_copies", [True, False])
@pytest.mark.parametrize("routes", [1, 200])
def test_no_query_goes_through_a_whole_table(store: Store, with_copies: bool, routes: int) -> None:
    add(store, spread(9, HOUR))
    delta = Delta()
    for place in range(routes):
        delta.at((REQUEST_DURATION, canonical({"http.route": f"/{place}"})), NOW - HOUR).observe(1)
    store.commit_drain(delta, [], {}, 1000)
    if with_copies:
        copies.update(store, NOW, budget_s=None)
    asked: list[str] = []
    with store.transaction() as db:
        db.set_trace_callback(asked.append)
    for start in (NOW - 600, NOW - DAY, NOW - 9 * DAY):
        window = history.window_of(start, NOW)
        for metric, where, by in ASKED:
            history.totals(store, start, NOW, [metric], where)
            history.points(store, window, metric, where, by)
            lookup.times_seen(store, metric, start, NOW)
        history.totals(store, start, NOW)
        health.health(store, start, NOW)
        for wanted in (Wanted(), Wanted({"http.route": "/a"}, failed=True, why=1, min_duration_ns=5, error="x")):
            for order in ("newest", "slowest"):
                kept_traces.find(store, start, NOW, wanted, order=order)
            kept_traces.find(store, start, NOW, wanted, after=kept_traces.Place(10**18, bytes(8)))
            kept_traces.count(store, start, NOW, wanted)
        for part in ("findings", "errors"):
            lookup.digests(store, start, NOW, 10, part)
        store.postmortems(start, NOW, 10)
        deployments.between(store, start, NOW)
    store.use_members({1: 1})
    with store.transaction() as db:
        db.set_trace_callback(None)
        big = [one for one in set(asked) if one.startswith("SELECT")]
        plans = [(one, row[3]) for one in big for row in db.execute(f"EXPLAIN QUERY PLAN {one}")]
    assert len(big) > 20
    assert [plan for plan in plans if is_slow(plan[1])] == []
    assert is_slow("SCAN rollups")
    assert {f"traces_with_{part}" for part in ("findings", "errors")} <= {
        word for _, step in plans for word in step.split()
    }


def is_slow(step: str) -> bool:
    """A whole table that grows with time; traces and logs that wait have an index of their own."""
    return (
        re.match(r"SCAN (rollups|copies|traces|logs|postmortems|deployments)\b(?!.* INDEX \w+_to_send)", step)
        is not None
    )
