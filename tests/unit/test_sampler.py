"""What is kept stays within its budget, whatever the clients do."""

from __future__ import annotations

from collections import Counter, defaultdict
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paste_agent.recorder.layout import KEPT_FAILED, KEPT_PARENT, KEPT_RANDOM, KEPT_SLOW
from paste_agent.sampler import TURNED_AWAY, Alike, Sampler, TokenBucket


def sampler(parent: float = 0, random: float = 0, slow: float = 0, failed: float = 0, seed: int = 7) -> Sampler:
    return Sampler(slow_ns=1000, parent=parent, random=random, slow=slow, failed=failed, seed=seed)


def kept(
    one: Sampler, numbers: range, *, duration_ns: int = 1, failed: bool = False, parent: bool = False
) -> list[int]:
    """Why each was kept, without those that were not."""
    found = [one.decide(number, duration_ns, failed=failed, parent_sampled=parent)[0] for number in numbers]
    return [why for why in found if why]


@pytest.mark.parametrize(
    ("budget", "request_", "why"),
    [
        ({"parent": 60}, {"parent": True}, KEPT_PARENT),
        ({"slow": 60}, {"duration_ns": 1001}, KEPT_SLOW),
        ({"failed": 60}, {"failed": True}, KEPT_FAILED),
    ],
)
def test_a_flood_keeps_at_most_the_bucket(budget: dict[str, float], request_: dict[str, object], why: int) -> None:
    one = sampler(**budget)
    assert kept(one, range(10_000), **request_) == [why] * 60  # type: ignore[arg-type]
    # Half a minute later there are tokens for half as many; after an hour for no more than at the start.
    for _ in range(30):
        one.tick(1.0, 10_000, 0)
    assert len(kept(one, range(10_000, 20_000), **request_)) == 30  # type: ignore[arg-type]
    one.tick(3600.0, 0, 0)
    assert len(kept(one, range(20_000, 30_000), **request_)) == 60  # type: ignore[arg-type]


def test_every_bucket_is_its_own() -> None:
    one = sampler(parent=1, random=1, slow=1, failed=1)
    everything = KEPT_PARENT | KEPT_RANDOM | KEPT_SLOW | KEPT_FAILED
    assert kept(one, range(100), duration_ns=1001, failed=True, parent=True) == [everything]


def test_a_budget_of_zero_keeps_nothing() -> None:
    one = sampler()
    for _ in range(100):
        one.tick(60.0, 10, 0)
    assert kept(one, range(1000), duration_ns=1 << 40, failed=True, parent=True) == []
    assert not one.take_failed()


def test_slow_is_above_the_bound() -> None:
    assert kept(sampler(slow=60), range(10), duration_ns=1000) == []


def test_failures_that_are_taken_beforehand_share_the_bucket() -> None:
    one = sampler(failed=3)
    assert [one.take_failed() for _ in range(2)] == [True, True]
    assert kept(one, range(10), failed=True) == [KEPT_FAILED]
    assert not one.take_failed()


@pytest.mark.parametrize("per_second", [300, 1000])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_chance_keeps_about_the_target(per_second: int, seed: int) -> None:
    one, number, found = sampler(random=12, seed=seed), 0, 0
    for second in range(1800):
        if second == 60:
            found = 0  # the bucket was full at the start
        found += len(kept(one, range(number, number + per_second)))
        number += per_second
        one.tick(1.0, per_second, number - 1)
    assert 0.8 * 12 * 29 < found <= 12 * 30


@pytest.mark.parametrize("seed", range(3))
def test_chance_prefers_no_place_within_a_second(seed: int) -> None:
    one, number, halves = sampler(random=600, seed=seed), 0, [0, 0]
    for second in range(1000):
        for half in (0, 1):
            if second >= 60:
                halves[half] += len(kept(one, range(number, number + 500)))
            number += 500
        one.tick(1.0, 1000, number - 1)
    # 9,400 draws in all: a fair coin stays within these bounds but once in a million years.
    assert abs(halves[0] - halves[1]) < 600


def test_few_requests_are_all_kept_by_chance() -> None:
    one, found = sampler(random=12), 0
    for number in range(600):
        found += len(kept(one, range(number, number + 1)))
        one.tick(10.0, 1, number)
    assert found == 600


def test_two_seeds_choose_differently() -> None:
    def chosen(seed: int) -> list[int]:
        one = sampler(random=600, seed=seed)
        kept(one, range(600))
        for _ in range(10):
            one.tick(1.0, 1000, 0)
        return [number for number in range(600, 20_000) if one.decide(number, 1, failed=False, parent_sampled=False)[0]]

    assert chosen(1) == chosen(1)
    assert chosen(1) != chosen(2)


def test_the_request_thread_may_skip_what_decide_would_not_keep() -> None:
    """`Transaction.finish` asks only when the number has come, or another reason speaks for it."""
    one = sampler(random=6000)
    for _ in range(20):
        one.tick(1.0, 1000, 0)
    for number in range(5000):
        due = number >= one.next_random
        assert bool(one.decide(number, 1, failed=False, parent_sampled=False)[0]) <= due


@pytest.mark.parametrize("elapsed_s", [0.0, -5.0, 2e-309, 1e-9, 1e9])
@pytest.mark.parametrize("finished", [0, 1, 1 << 40])
def test_odd_ticks(elapsed_s: float, finished: int) -> None:
    one = sampler(random=12, parent=5)
    for _ in range(200):
        one.tick(elapsed_s, finished, 0)
        one.decide(1 << 50, 1, failed=False, parent_sampled=False)
    assert len(kept(one, range(1 << 60, (1 << 60) + 100), parent=True)) <= 17


# -- the bucket ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("per_minute", "at_once"), [(0, 0), (0.5, 1), (1, 1), (2.5, 3), (600, 60)])
def test_a_new_bucket_is_full(per_minute: float, at_once: int) -> None:
    bucket = TokenBucket(per_minute)
    assert sum(bucket.take() for _ in range(at_once + 100)) == at_once


def test_fractions_add_up() -> None:
    bucket = TokenBucket(1)
    assert bucket.take()
    for _ in range(59):
        bucket.refill(1.0)
        assert not bucket.take()
    bucket.refill(1.01)
    assert bucket.take()
    assert not bucket.take()


@given(st.floats(0, 1000), st.lists(st.floats(0, 1e6), max_size=30))
def test_no_refilling_overfills(per_minute: float, elapsed: list[float]) -> None:
    bucket = TokenBucket(per_minute)
    for seconds in elapsed:
        bucket.refill(seconds)
    assert sum(bucket.take() for _ in range(1100)) == TokenBucket(per_minute)._capacity


# -- what a kept one stands for ------------------------------------------------------------------------------------

REASONS = ("slow", "failed", "parent_sampled", "queries")
#: Shares of the transactions for which each reason speaks; two of them speak for the same ones.
MIXED = {"slow": 0.3, "failed": 0.2, "parent_sampled": 0.5, "queries": 0.05}


class Traffic:
    """Requests of one process, second by second; how many there were, and how many those kept stand for, by reasons."""

    def __init__(self, seed: int, *, together: bool = False, **budget: float) -> None:
        """together: what is slow has failed."""
        keys: dict[str, Any] = {"parent": 0, "random": 0, "slow": 0, "failed": 0, **budget}
        self.one, self.draw, self.together = Sampler(slow_ns=1000, seed=seed, **keys), Random(seed), together
        self.number = 0
        self.happened: Counter[str] = Counter()
        self.estimated: dict[str, float] = defaultdict(float)

    def seconds(self, count: int, per_second: int, shares: dict[str, float]) -> None:
        for _ in range(count):
            # About as often as chance has it, not just so often.
            some = sum(self.draw.random() < 0.5 for _ in range(2 * per_second))
            kept: list[tuple[str, Alike]] = []
            for _ in range(some):
                self.number += 1
                of = {name: self.draw.random() < shares.get(name, 0) for name in REASONS}
                of["failed"] |= self.together and of["slow"]
                asked = {name: of[name] for name in REASONS[1:]}
                why, alike = self.one.decide(self.number, 1001 if of["slow"] else 1, **asked)
                kind = "+".join(name for name in REASONS if of[name])
                self.happened[kind] += 1
                if why and alike is not None:
                    kept.append((kind, alike))
            self.one.tick(1.0, some, self.number)
            for kind, alike in kept:
                self.estimated[kind] += 1 / alike.probability

    def off(self, kind: str) -> float:
        return self.estimated[kind] - self.happened[kind]

    def begin_anew(self) -> None:
        self.happened.clear()
        self.estimated.clear()


@pytest.mark.parametrize("per_second", [1, 5, 20, 100, 1000])
@pytest.mark.parametrize("reason", REASONS)
def test_each_minute_what_a_bucket_keeps_stands_for_what_there_was(reason: str, per_second: int) -> None:
    """From the first one on, when the bucket is full. A token comes every two seconds: so many may stay open."""
    traffic = Traffic(1, **{reason.removesuffix("_sampled"): 30})
    for _ in range(3):
        traffic.seconds(60, per_second, {reason: 1.0})
        assert abs(traffic.off(reason)) <= 4 * per_second
        traffic.begin_anew()


@pytest.mark.parametrize("together", [False, True], ids=["apart", "together"])
@pytest.mark.parametrize("per_second", [5, 50, 200])
def test_what_is_kept_for_several_reasons_stands_for_what_there_was(per_second: int, together: bool) -> None:
    traffic = Traffic(2, together=together, random=60, slow=30, failed=30, parent=60, queries=30)
    traffic.seconds(300, per_second, MIXED)
    for kind, happened in traffic.happened.items():
        if kind and happened >= 100:
            assert abs(traffic.off(kind)) < 0.1 * happened, kind
    assert abs(sum(map(traffic.off, traffic.happened))) < 0.1 * sum(traffic.happened.values())


@pytest.mark.parametrize("reason", ["failed", "slow"])
def test_bursts_after_idle_times_are_told_in_full(reason: str) -> None:
    """Outages of five minutes, a flood of a second, and of ten."""
    traffic = Traffic(3, **{reason: 30})
    for length_s, per_second in ((300, 5), (1, 1000), (10, 300), (300, 5), (60, 40)):
        traffic.begin_anew()
        traffic.seconds(length_s, per_second, {reason: 1.0})
        # The last of a burst may be turned away, with nobody after them to stand for them.
        assert -2 * per_second <= traffic.off(reason) <= 0
        traffic.seconds(600, 2, {})


def test_steps_up_and_down_are_told_in_full() -> None:
    traffic, off = Traffic(4, failed=30), 0
    for per_second in (2, 200, 5, 1000, 1, 20):
        traffic.begin_anew()
        traffic.seconds(60, per_second, {"failed": 1.0})
        # Two seconds of the step before may fall to this one.
        assert -3 * per_second <= traffic.off("failed") <= off
        off = 3 * per_second


def test_processes_add_up_whatever_each_of_them_does() -> None:
    processes = [Traffic(seed, slow=30, failed=30, random=12) for seed in range(3)]
    for traffic, per_second in zip(processes, (1, 30, 300), strict=True):
        traffic.seconds(120, per_second, {"failed": 0.5, "slow": 0.1})
    for kind in ("failed", "slow", "slow+failed"):
        happened = sum(one.happened[kind] for one in processes)
        assert abs(sum(one.off(kind) for one in processes)) < 0.1 * happened


@pytest.mark.parametrize(("per_minute", "within"), [(12, 0.1), (120, 0.04)])
@pytest.mark.parametrize("loads", [(2,), (20,), (200,), (1, 300, 4), (300, 0, 300)], ids=str)
def test_what_chance_keeps_stands_for_what_there_was(per_minute: int, within: float, loads: tuple[int, ...]) -> None:
    """A minute of each load, from the first request on. Of one run the sum is off by chance; over forty, by little."""
    off = happened = 0.0
    for seed in range(40 if max(loads) < 300 else 20):
        traffic = Traffic(seed, random=per_minute)
        for per_second in loads:
            traffic.seconds(60, per_second, {})
        off += traffic.off("")
        happened += traffic.happened[""]
    assert abs(off) < within * happened


def test_at_little_traffic_everything_stands_for_itself() -> None:
    traffic = Traffic(1, random=60, slow=60, failed=60)
    for _ in range(100):
        traffic.seconds(1, 1, {"slow": 0.2, "failed": 0.2})
        traffic.one.tick(20.0, 0, traffic.number)
    assert traffic.estimated == traffic.happened


def test_nobody_stands_for_what_is_long_past() -> None:
    one = sampler(slow=1)
    kept(one, range(1), duration_ns=1001)
    one.tick(1.0, 1, 0)
    assert kept(one, range(100), duration_ns=1001) == []
    for _ in range(299):
        one.tick(1.0, 0, 0)
    assert slow_ones(one).ended == 101
    for _ in range(301):
        one.tick(1.0, 0, 0)
    assert slow_ones(one).ended == 1


def test_what_is_given_back_is_not_more_than_there_is_room_for() -> None:
    one = sampler(failed=30)
    for _ in range(5):
        taken = sum(one.take_failed() for _ in range(100))
        assert taken <= 30
        one.tick(60.0, 0, 0)
        for _ in range(taken):
            one.give_back_failed()


def slow_ones(one: Sampler) -> Alike:
    """Those that one more slow one is counted among."""
    _, alike = one.decide(-1, 1001, failed=False, parent_sampled=False)
    assert alike is not None
    return alike


def test_what_was_decided_before_the_end_counts_at_the_end() -> None:
    """Picked, or turned away, when a service was called; kept with its stack, or not, when an error was noted."""
    one = sampler(random=2, failed=2)
    chosen = [one.choose(number) for number in range(4)]
    assert chosen == [KEPT_RANDOM, KEPT_RANDOM, TURNED_AWAY, TURNED_AWAY]
    taken = [KEPT_FAILED if one.take_failed() else 0 for _ in range(4)]
    one.tick(1.0, 0, 4)
    whole = [one.decide(-1, 1, failed=False, parent_sampled=False, decided=why) for why in chosen]
    noted = [one.decide(-1, 1, failed=False, parent_sampled=False, noted=True, decided=why) for why in taken]
    assert [why for why, _ in whole] == [KEPT_RANDOM, KEPT_RANDOM, 0, 0]
    assert [why for why, _ in noted] == [KEPT_FAILED, KEPT_FAILED, 0, 0]
    for _, alike in (whole[0], noted[0]):
        assert alike is not None
        assert (alike.ended, alike.kept, alike.probability) == (4, 2, 0.5)


@given(
    st.lists(st.tuples(st.floats(0, 100), st.integers(-1000, 100_000), st.integers(0, 200)), max_size=20),
    st.sampled_from([0, 0.5, 12, 600]),
)
def test_a_probability_is_one_whatever_the_ticks(ticks: list[tuple[float, int, int]], budget: float) -> None:
    """Also when requests seem to have come back: they do not end in the order in which they began."""
    one, number = sampler(random=budget, slow=budget, failed=budget, parent=budget), 0
    for elapsed_s, finished, asked in ticks:
        for place in range(asked):
            number += 1
            of = {"failed": place % 2 > 0, "parent_sampled": place % 3 > 0, "queries": place % 5 > 0}
            _, alike = one.decide(number, 1001 if place % 7 else 1, **of)
            assert alike is None or 0 < alike.probability <= 1
        one.tick(elapsed_s, finished, number)
    assert one.next_random >= 0
