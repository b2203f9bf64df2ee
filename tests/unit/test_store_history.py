"""Sums and points over time: the same as from the rollups, whatever has been copied, has aged or came late."""

from __future__ import annotations

import random
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
from paste_agent.store import copies, cover, history, retention
from paste_agent.store.store import MEMORY, SeriesTotal, Store

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
