"""Retention: rollups age and go, traces go, totals never change."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paste_agent.aggregate import REQUEST_DURATION, Delta, Total
from paste_agent.kept import TraceRow
from paste_agent.store import retention
from paste_agent.store.store import ENDED, LOST, MEMORY, RUNNING, RecorderRow, Store

HOUR, DAY = 3600, 86_400
NOW = 1_800_000_000
#: No bound at all.
EVER, ANY = 36_500.0, 1 << 60


def add(store: Store, starts: list[int], series: str = "{}") -> None:
    delta = Delta()
    for start in starts:
        total = Total()
        total.observe((start % 997 + 1) * 1_000_000)
        total.satisfied = 1
        delta.at((REQUEST_DURATION, series), start // 10 * 10).add(total)
    store.commit_drain(delta, [], {}, 1000)


def rows(store: Store, table: str = "rollups") -> list[tuple[Any, ...]]:
    with store.transaction() as db:
        return db.execute(f"SELECT * FROM {table} ORDER BY 1, 2, 3").fetchall()


def widths(store: Store) -> dict[int, int]:
    found: dict[int, int] = {}
    for _, width, *_ in rows(store):
        found[width] = found.get(width, 0) + 1
    return found


def sums(store: Store) -> dict[str, Total]:
    return {str(found.attributes): found.total for found in store.totals_between(0, 1 << 60)}


def trace_of(span: int, started_at_s: float, size: int = 10) -> TraceRow:
    return TraceRow(
        bytes(16), span.to_bytes(8, "big"), None, int(started_at_s * 1e9), 5, False, 1, {"a": 1}, {"x": "y" * size}
    )


def used(store: Store) -> int:
    with store.transaction() as db:
        pages, free, size = (
            db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
    return int((pages - free) * size)


# -- ageing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("age_s", "width"),
    [(0, 10), (6 * HOUR - 120, 10), (6 * HOUR + 120, 60), (4 * DAY - 2 * HOUR, 60), (4 * DAY + 2 * HOUR, HOUR)],
)
def test_rows_widen_with_their_age(store: Store, age_s: int, width: int) -> None:
    add(store, [NOW - age_s])
    before = sums(store)
    retention.tidy(store, NOW, EVER, ANY)
    ((start, found_width, *_),) = rows(store)
    assert found_width == width
    assert start % width == 0
    assert start <= NOW - age_s < start + width
    assert sums(store) == before


def test_a_slot_is_never_split_between_two_widths(store: Store) -> None:
    """A row that lies in a wider slot which is not over yet waits for the others of it."""
    add(store, [NOW - 6 * HOUR + seconds for seconds in range(-120, 120, 10)])
    for later in range(0, 120, 7):
        retention.tidy(store, NOW + later, EVER, ANY)
        wide = {start for start, width, *_ in rows(store) if width == 60}
        assert not [start for start, width, *_ in rows(store) if width == 10 and start // 60 * 60 in wide]


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    starts=st.lists(st.integers(NOW - 9 * DAY, NOW), min_size=1, max_size=40),
    others=st.lists(st.integers(NOW - 9 * DAY, NOW), max_size=20),
    times=st.lists(st.integers(0, 12 * DAY), min_size=1, max_size=5).map(sorted),
)
def test_ageing_changes_no_sum(starts: list[int], others: list[int], times: list[int]) -> None:
    store = Store(f"{MEMORY}-{random.getrandbits(64)}?mode=memory&cache=shared")
    try:
        add(store, starts)
        add(store, others, '{"a": 1}')
        before, totals = sums(store), rows(store, "totals")
        for later in times:
            retention.tidy(store, NOW + later, EVER, ANY)
            assert sums(store) == before
        assert rows(store, "totals") == totals
        hours = {start // HOUR * HOUR for start in starts}
        for hour in hours:  # whatever the widths, an hour has what fell into it
            found = {str(one.attributes): one.total.count for one in store.totals_between(hour, hour + HOUR)}
            assert found["{}"] == sum(start // HOUR * HOUR == hour for start in starts)
    finally:
        store.close()


def test_ageing_moves_more_than_one_batch(store: Store) -> None:
    add(store, [NOW - 3 * DAY + 10 * place for place in range(2000)])
    before = sums(store)
    retention.tidy(store, NOW, EVER, ANY)
    assert widths(store) == {60: 334}
    assert sums(store) == before
    retention.tidy(store, NOW + 10 * DAY, EVER, ANY)
    assert widths(store) == {HOUR: 6}
    assert sums(store) == before


def test_ageing_twice_changes_nothing(store: Store) -> None:
    add(store, [NOW - place * 977 for place in range(500)])
    retention.tidy(store, NOW, EVER, ANY)
    before = rows(store)
    retention.tidy(store, NOW, EVER, ANY)
    assert rows(store) == before


def test_a_late_row_joins_its_wider_slot(store: Store) -> None:
    add(store, [NOW - 7 * HOUR])
    retention.tidy(store, NOW, EVER, ANY)
    add(store, [NOW - 7 * HOUR])  # the recorder of a process that was killed long ago
    retention.tidy(store, NOW, EVER, ANY)
    assert widths(store) == {60: 1}
    assert sums(store)["{}"].count == 2


# -- days ----------------------------------------------------------------------------------------------------------


def test_what_is_older_than_the_days_goes_and_totals_stay(store: Store) -> None:
    add(store, [NOW - day * DAY for day in range(10)])
    store.add_traces([trace_of(day, NOW - day * DAY) for day in range(10)], 1.0)
    totals = rows(store, "totals")
    retention.tidy(store, NOW, 3.5, ANY)
    assert sums(store)["{}"].count == 4
    assert {row.span_id[-1] for row in store.traces(0, 1e12, "newest", False, 100)} == {0, 1, 2, 3}
    assert rows(store, "totals") == totals


def test_recorders_that_ended_are_kept_up_to_a_bound_and_living_ones_always(store: Store) -> None:
    ended = [
        RecorderRow(f"ended-{place}", 1, 0, 1, True, (ENDED, LOST)[place % 2], 1.0, float(place), 1, 0, 0.0, [])
        for place in range(150)
    ]
    alive = [RecorderRow(f"alive-{place}", 1, 0, 1, True, RUNNING, 1.0, 0.0, 1, 0, 0.0, []) for place in range(120)]
    store.commit_drain(Delta(), [(None, row) for row in ended + alive], {}, 100)
    retention.tidy(store, NOW, EVER, ANY)
    left = {row.id for row in store.recorders()}
    assert left == {row.id for row in alive} | {f"ended-{place}" for place in range(50, 150)}


# -- bytes ---------------------------------------------------------------------------------------------------------


def test_beyond_the_bytes_the_oldest_traces_go_first(store: Store) -> None:
    add(store, [NOW - 10 * place for place in range(200)])
    store.add_traces([trace_of(place, NOW - 1000 + place, 5000) for place in range(200)], 1.0)
    totals, before = rows(store, "totals"), sums(store)
    bound = used(store) - 400_000
    retention.tidy(store, NOW, EVER, bound)
    assert used(store) <= bound
    left = sorted(int.from_bytes(row.span_id, "big") for row in store.traces(0, 1e12, "newest", False, 1000))
    assert left == list(range(200 - len(left), 200))  # the newest
    assert 60 < len(left) < 130  # no more than was needed, nearly
    assert sums(store) == before
    assert rows(store, "totals") == totals


def test_then_the_oldest_rollups_go_and_totals_never(store: Store) -> None:
    for series in range(40):
        add(store, [NOW - 10 * place for place in range(100)], f'{{"a": {series}}}')
    store.add_traces([trace_of(place, NOW - 1000 + place, 1000) for place in range(50)], 1.0)
    totals = rows(store, "totals")
    bound = 140_000
    retention.tidy(store, NOW, EVER, bound)
    assert used(store) <= bound
    assert store.traces(0, 1e12, "newest", False, 10) == []
    left = [start for start, *_ in rows(store)]
    assert left
    assert min(left) > NOW - 1000
    assert max(left) == NOW
    assert rows(store, "totals") == totals


def test_a_bound_that_cannot_be_met_ends_and_leaves_the_totals(store: Store) -> None:
    add(store, [NOW - 10 * place for place in range(100)])
    store.add_traces([trace_of(1, NOW)], 1.0)
    totals = rows(store, "totals")
    retention.tidy(store, NOW, EVER, 1)
    assert rows(store) == []
    assert rows(store, "traces") == []
    assert rows(store, "totals") == totals


def test_traces_of_the_same_moment_go_together_and_it_ends(store: Store) -> None:
    store.add_traces([trace_of(place, NOW, 3000) for place in range(100)], 1.0)
    retention.tidy(store, NOW, EVER, 150_000)
    assert used(store) <= 150_000


def test_space_that_was_freed_is_used_again(store: Store) -> None:
    sizes = []
    for turn in range(6):
        store.add_traces([trace_of(turn * 100 + place, NOW + turn, 5000) for place in range(100)], 1.0)
        retention.tidy(store, NOW + turn, EVER, 300_000)
        with store.transaction() as db:
            sizes.append(db.execute("PRAGMA page_count").fetchone()[0])
    assert sizes[-1] <= sizes[1]


def test_an_empty_store_is_left_alone(store: Store) -> None:
    retention.tidy(store, NOW, 1.0, ANY)
    assert store.span_of_time() is None
