"""Records to totals: bounds, percentiles, Apdex, slots of time."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paste_agent.aggregate import (
    BOUNDS,
    ERRORS,
    EXPORT_BOUNDS_NS,
    EXPORT_BOUNDS_S,
    OVERFLOW,
    QUEUE_DURATION,
    REQUEST_DURATION,
    SLOT_S,
    Apdex,
    Delta,
    Folder,
    Total,
    attributes_of,
)
from paste_agent.recorder import layout
from paste_agent.recorder.layout import FAILED, RECORD_SIZE
from paste_agent.recorder.writer import Recorder
from tests.recorders import MS, S, die, leave, open_recorder, reader_of, series_of, serve

#: Begins a slot on both clocks when nothing is added.
T0 = 1000 * S
FAR = 1 << 62
bounded = settings(max_examples=150, derandomize=True, deadline=None)


class Bench:
    """A recorder in memory, and what its records fold into."""

    def __init__(self, apdex_t_s: float = 0.5) -> None:
        self.recorder: Recorder = open_recorder(None, records=16_384)
        self.reader = reader_of(self.recorder)
        self.folder = Folder(self.reader, Apdex(apdex_t_s))
        self.delta = Delta()

    def leave(self, *durations_ns: int, series: int | None = None, end_ns: int = T0, queue_us: int = 0) -> None:
        number = series_of(self.recorder) if series is None else series
        for duration_ns in durations_ns:
            leave(self.recorder, number, duration_ns=duration_ns, end_ns=end_ns, queue_us=queue_us)

    def fold(self, position: int = 0, most: int = 16_384, ready_ns: int = FAR, offset_ns: int = 0) -> int:
        """Fold all that there is; the position after it."""
        return self.folder.fold(self.delta, self.reader.chunk(position, most), position, ready_ns, offset_ns).position

    def total(self, metric: str = REQUEST_DURATION) -> Total:
        """Everything of one metric."""
        everything = Total()
        for (key, _), total in self.delta.totals.items():
            if key[0] == metric:
                everything.add(total)
        return everything


def folded(durations_ns: list[int], apdex_t_s: float = 0.5) -> Total:
    bench = Bench(apdex_t_s)
    bench.leave(*durations_ns, end_ns=T0 + max(durations_ns, default=0))
    bench.fold()
    return bench.total()


# -- buckets -------------------------------------------------------------------------------------------------------


def test_export_bounds_are_those_of_the_conventions() -> None:
    assert EXPORT_BOUNDS_S == (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
    assert set(EXPORT_BOUNDS_NS) <= set(BOUNDS)
    assert len(BOUNDS) + 2 < 1 << 9


@pytest.mark.parametrize(("place", "bound_ns"), list(enumerate(EXPORT_BOUNDS_NS)))
def test_a_value_at_a_bound_goes_below_it_and_the_next_goes_above(place: int, bound_ns: int) -> None:
    counts = folded([bound_ns] * 3 + [bound_ns + 1] * 2).export_counts()
    assert (counts[place], counts[place + 1]) == (3, 2)
    assert sum(counts) == 5


@pytest.mark.parametrize("duration_ns", [0, 1, BOUNDS[0], BOUNDS[-1], BOUNDS[-1] + 1, 10**15])
def test_durations_beyond_all_bounds_count(duration_ns: int) -> None:
    total = folded([duration_ns])
    assert (total.count, total.sum_ns, total.max_ns, sum(total.export_counts())) == (1, duration_ns, duration_ns, 1)
    assert 0 <= total.quantile_ns(0.5) <= duration_ns


@bounded
@given(st.lists(st.integers(0, 1 << 45), min_size=1, max_size=60))
def test_folding_and_observing_agree_on_every_bucket(durations_ns: list[int]) -> None:
    total, observed = folded(durations_ns), Total()
    for duration_ns in durations_ns:
        observed.observe(duration_ns)
    assert total.buckets == observed.buckets
    assert (total.count, total.sum_ns, total.max_ns) == (len(durations_ns), sum(durations_ns), max(durations_ns))
    expected = [0] * (len(EXPORT_BOUNDS_NS) + 1)
    for duration_ns in durations_ns:
        expected[sum(bound < duration_ns for bound in EXPORT_BOUNDS_NS)] += 1
    assert total.export_counts() == expected


# -- percentiles ---------------------------------------------------------------------------------------------------


def true_quantile(durations_ns: list[int], share: float) -> int:
    ranked = sorted(durations_ns)
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)]


DISTRIBUTIONS: dict[str, Callable[[random.Random], float]] = {
    "constant": lambda draw: 12_345_678,
    "uniform": lambda draw: draw.uniform(1 * MS, 900 * MS),
    "exponential": lambda draw: 20 * MS + draw.expovariate(1) * 100 * MS,
    "log-normal": lambda draw: draw.lognormvariate(17, 2),
    "two peaks": lambda draw: draw.gauss(3 * MS, 0.1 * MS) if draw.random() < 0.8 else draw.gauss(800 * MS, 20 * MS),
    "just above a bound": lambda draw: BOUNDS[80] + 1 if draw.random() < 0.955 else 10 * S,
    "at a bound": lambda draw: BOUNDS[80] if draw.random() < 0.955 else 10 * S,
    "long tail": lambda draw: 2 * MS * (1 - draw.random()) ** -1.2,
}


@pytest.mark.parametrize("share", [0.5, 0.75, 0.95, 0.99, 0.999, 1.0])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_percentile_is_within_5_percent_of_the_true_one(name: str, share: float) -> None:
    draw = random.Random(name)
    durations_ns = [min(1000 * S, max(10_000, round(DISTRIBUTIONS[name](draw)))) for _ in range(5000)]
    true_ns = true_quantile(durations_ns, share)
    assert abs(folded(durations_ns).quantile_ns(share) - true_ns) <= 0.05 * true_ns


@bounded
@given(st.lists(st.integers(10_000, 1000 * S), min_size=1, max_size=40), st.floats(0, 1))
def test_no_data_put_a_percentile_further_off_than_5_percent(durations_ns: list[int], share: float) -> None:
    true_ns = true_quantile(durations_ns, share)
    assert abs(folded(durations_ns).quantile_ns(share) - true_ns) <= 0.05 * true_ns


def test_an_empty_total_has_no_percentile_and_no_apdex() -> None:
    assert Total().quantile_ns(0.95) == 0
    assert Total().apdex() is None
    assert sum(Total().export_counts()) == 0


@bounded
@given(st.lists(st.integers(0, 1 << 42), min_size=1, max_size=40))
def test_percentiles_grow_with_their_share_and_end_at_the_longest(durations_ns: list[int]) -> None:
    total = folded(durations_ns)
    quantiles = [total.quantile_ns(share / 20) for share in range(21)]
    assert quantiles == sorted(quantiles)
    assert quantiles[-1] <= total.max_ns == max(durations_ns)


# -- Apdex ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t_s", [0.5, 0.1, 0.123456789, 0.0000001, 0.3, 1.0, 400.0, 5000.0])
def test_apdex_zones_are_exact_at_t_and_at_four_times_t(t_s: float) -> None:
    t_ns = round(t_s * S)
    four_t_ns = round(4 * t_s * S)
    total = folded([t_ns, t_ns + 1, four_t_ns, four_t_ns + 1, 0], t_s)
    assert (total.satisfied, total.tolerating, total.frustrated) == (2, 2, 1)
    assert total.apdex() == 3 / 5


@bounded
@given(t_ns=st.integers(1, 1 << 41), durations_ns=st.lists(st.integers(0, 1 << 44), min_size=1, max_size=40))
def test_apdex_zones_are_exact_at_any_threshold(t_ns: int, durations_ns: list[int]) -> None:
    t_s = t_ns / S
    satisfied_ns, tolerating_ns = round(t_s * S), round(4 * t_s * S)
    total = folded(durations_ns, t_s)
    assert total.satisfied == sum(duration <= satisfied_ns for duration in durations_ns)
    assert total.tolerating == sum(satisfied_ns < duration <= tolerating_ns for duration in durations_ns)
    assert total.satisfied + total.tolerating + total.frustrated == len(durations_ns)


def test_what_failed_is_frustrated_however_fast() -> None:
    bench = Bench()
    good, bad = series_of(bench.recorder), series_of(bench.recorder, status="500 No")
    assert bad & FAILED
    bench.leave(1, 2, 3, series=good)
    bench.leave(1, 2, series=bad)
    bench.fold()
    total = bench.total()
    assert (total.satisfied, total.tolerating, total.frustrated) == (3, 0, 2)


def test_the_failed_and_the_others_of_one_series_add_up() -> None:
    """A handler may fail in a request that has the status and error of one that did not: the same series."""
    bench = Bench()
    bench.leave(5, 7, series=0)
    bench.leave(11, series=0 | FAILED)
    bench.fold()
    ((_, total),) = bench.delta.totals.items()
    assert (total.count, total.sum_ns, total.max_ns) == (3, 23, 11)


# -- slots of time -------------------------------------------------------------------------------------------------


def test_a_record_belongs_to_the_slot_that_it_ended_in() -> None:
    bench = Bench()
    ends = [T0 - 1, T0, T0 + 1, T0 + 10 * S - 1, T0 + 10 * S, T0 + 35 * S]
    for end_ns in ends:
        bench.leave(900 * S, end_ns=end_ns)  # however long ago it began
    assert bench.fold() == len(ends)
    slots = {slot_s: total.count for (_, slot_s), total in bench.delta.totals.items()}
    assert slots == {990: 1, 1000: 3, 1010: 1, 1030: 1}


@pytest.mark.parametrize("offset_ns", [0, 1, 1_700_000_000 * S + 123, -500 * S])
def test_slots_are_those_of_the_wall_clock(offset_ns: int) -> None:
    bench = Bench()
    for place in range(200):
        bench.leave(MS, end_ns=T0 + place * 333 * MS)
    bench.fold(offset_ns=offset_ns)
    expected: dict[int, int] = {}
    for place in range(200):
        slot_s = (T0 + place * 333 * MS + offset_ns) // S // SLOT_S * SLOT_S
        expected[slot_s] = expected.get(slot_s, 0) + 1
    assert {slot_s: total.count for (_, slot_s), total in bench.delta.totals.items()} == expected


def test_a_record_that_is_not_ready_ends_the_run() -> None:
    bench = Bench()
    bench.leave(MS, end_ns=T0)
    bench.leave(MS, end_ns=T0 + 1)
    bench.leave(MS, end_ns=T0)
    assert bench.fold(ready_ns=T0) == 1
    assert bench.fold(position=1, ready_ns=T0) == 1
    assert bench.fold(position=1, ready_ns=T0 + 1) == 3
    assert bench.total().count == 3


def test_a_record_from_the_far_future_is_passed_over() -> None:
    bench = Bench()
    bench.leave(MS)
    bench.leave(MS, end_ns=T0 + 3600 * S)
    bench.leave(MS)
    assert bench.fold(ready_ns=T0 + 1) == 3
    assert bench.total().count == 2


def test_a_number_that_does_not_follow_ends_the_run() -> None:
    bench = Bench()
    bench.leave(MS, MS)
    bench.recorder.next()
    bench.leave(MS)
    assert bench.fold() == 2
    assert bench.fold(position=3) == 4
    assert bench.total().count == 3


def test_what_a_run_tells_of_itself() -> None:
    bench = Bench()
    series = series_of(bench.recorder)
    for place in range(30):
        leave(bench.recorder, series, duration_ns=place, end_ns=T0 + place * S, why=place % 4 == 1)
    run = bench.folder.fold(bench.delta, bench.reader.chunk(0, 30), 0, FAR, 0)
    assert run.position == 30
    assert run.kept == [1, 5, 9, 13, 17, 21, 25, 29]
    assert run.served_ns == sum(range(30))


# -- the queue -----------------------------------------------------------------------------------------------------


def test_time_in_the_queue_is_counted_where_it_is_known() -> None:
    bench = Bench()
    bench.leave(MS, queue_us=0)
    bench.leave(MS, queue_us=1)  # no time at all
    bench.leave(MS, queue_us=1 + 5000)
    bench.leave(MS, queue_us=0xFFFFFFFF)
    bench.fold()
    total = bench.total(QUEUE_DURATION)
    assert (total.count, total.sum_ns) == (3, 5 * MS + 0xFFFFFFFE * 1000)
    assert total.export_counts()[0] == 2
    assert total.apdex() is None


# -- any split -----------------------------------------------------------------------------------------------------

rows = st.lists(
    st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 30 * S), st.integers(0, 90 * S), st.integers(0, 3)),
    min_size=1,
    max_size=40,
).map(lambda rows: sorted(rows, key=lambda row: row[3]))  # numbers are taken in the order of their ends


def contents(delta: Delta) -> dict[Any, Any]:
    return dict(delta.totals)


@bounded
@given(rows=rows, cuts=st.lists(st.integers(1, 13), min_size=1, max_size=60))
def test_any_split_into_chunks_gives_the_same_totals(rows: list[tuple[Any, ...]], cuts: list[int]) -> None:
    whole, split, single = Bench(), Bench(), Bench()
    for bench in (whole, split, single):
        for series, failed, duration_ns, end_ns, queue_us in rows:
            leave(
                bench.recorder, series | FAILED * failed, duration_ns=duration_ns, end_ns=T0 + end_ns, queue_us=queue_us
            )
    assert whole.fold() == len(rows)
    position, cut = 0, 0
    while position < len(rows):
        position = split.fold(position, cuts[cut % len(cuts)])
        cut += 1
    for place in range(len(rows)):
        assert single.fold(place, 1) == place + 1
    assert contents(whole.delta) == contents(split.delta) == contents(single.delta)
    assert whole.total().count == len(rows)


@bounded
@given(st.lists(st.lists(st.integers(0, 20 * S), max_size=20), max_size=6))
def test_adding_totals_is_the_same_as_counting_together(parts: list[list[int]]) -> None:
    together, added = folded([duration for part in parts for duration in part]), Total()
    for part in parts:
        added.add(folded(part))
    assert added == together


# -- attributes ----------------------------------------------------------------------------------------------------


def test_a_folded_request_has_the_attributes_of_the_conventions() -> None:
    bench = Bench()
    serve(bench.recorder, "/items/1", route="/items/{id}", status="503 No", REQUEST_METHOD="POST")
    bench.fold()
    found = {metric: (json.loads(attributes), total) for ((metric, attributes), _), total in bench.delta.totals.items()}
    assert {metric: total.count for metric, (_, total) in found.items()} == {REQUEST_DURATION: 1, ERRORS: 1}
    assert found[ERRORS][0] == {"error.type": "503", "http.route": "/items/{id}"}
    assert found["http.server.request.duration"][0] == {
        "http.request.method": "POST",
        "url.scheme": "http",
        "http.route": "/items/{id}",
        "http.response.status_code": 503,
        "error.type": "503",
        "network.protocol.version": "1.1",
    }
    die(bench.recorder)


def test_series_that_cannot_be_read_count_as_overflow() -> None:
    bench = Bench()
    bench.leave(MS, series=3000)
    bench.leave(MS, series=0x7FFF)
    bench.fold()
    ((key, _),) = bench.delta.totals
    assert key == (REQUEST_DURATION, OVERFLOW)
    assert bench.total().count == 2


def test_the_overflow_series_counts_as_overflow() -> None:
    recorder = open_recorder(None, max_series=10)
    for place in range(30):
        serve(recorder, route=f"/{place}")
    delta = Delta()
    reader = reader_of(recorder)
    Folder(reader, Apdex(0.5)).fold(delta, reader.chunk(0, 100), 0, FAR, 0)
    counts: dict[str, int] = {}
    for ((_, attributes), _), total in delta.totals.items():
        counts[attributes] = counts.get(attributes, 0) + total.count
    assert counts.pop(OVERFLOW) == 20
    assert list(counts.values()) == [1] * 10


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("200", 200),
        ("", ""),
        ("²", "²"),
        ("٣٣٣", "٣٣٣"),
        ("1e3", "1e3"),
        ("-1", "-1"),
        ("007", "007"),
        ("999999", "999999"),
    ],
)
def test_a_status_is_a_number_where_it_is_one(status: str, expected: object) -> None:
    name = "http.response.status_code"
    assert json.loads(attributes_of([name], [status])) == {name: expected}
    assert json.loads(attributes_of([name], [None])) == {}


def test_chunks_that_end_in_the_middle_of_nothing_fold_to_nothing() -> None:
    bench = Bench()
    bench.leave(MS, MS)
    assert bench.folder.fold(bench.delta, b"", 0, FAR, 0).position == 0
    assert bench.folder.fold(bench.delta, bench.reader.chunk(0, 1)[:RECORD_SIZE], 0, FAR, 0).position == 1
    assert layout.RECORDS.size == RECORD_SIZE
