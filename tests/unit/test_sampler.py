"""What is kept stays within its budget, whatever the clients do."""

from __future__ import annotations

from collections import Counter, defaultdict
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paste_agent.recorder.layout import KEPT_FAILED, KEPT_PARENT, KEPT_RANDOM, KEPT_SLOW
from paste_agent.sampler import Sampler, TokenBucket


def sampler(parent: float = 0, random: float = 0, slow: float = 0, failed: float = 0, seed: int = 7) -> Sampler:
    return Sampler(slow_ns=1000, parent=parent, random=random, slow=slow, failed=failed, seed=seed)


def kept(
    one: Sampler, numbers: range, *, duration_ns: int = 1, failed: bool = False, parent: bool = False
) -> list[int]:
    """Why each was kept, without those that were not."""
    found = [one.decide(number, duration_ns, failed=failed, parent_sampled=parent) for number in numbers]
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
        return [number for number in range(600, 20_000) if one.decide(number, 1, failed=False, parent_sampled=False)]

    assert chosen(1) == chosen(1)
    assert chosen(1) != chosen(2)


def test_the_request_thread_may_skip_what_decide_would_not_keep() -> None:
    """`Transaction.finish` asks only when the number has come, or another reason speaks for it."""
    one = sampler(random=6000)
    for _ in range(20):
        one.tick(1.0, 1000, 0)
    for number in range(5000):
        due = number >= one.next_random
        assert bool(one.decide(number, 1, failed=False, parent_sampled=False)) <= due


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


class Traffic:
    """Requests of a service that never changes, second by second; what of them is kept, and what that stands for."""

    def __init__(self, one: Sampler, seed: int, per_second: int, **shares: float) -> None:
        """shares: of requests that are slow, failed, parent_sampled, queries."""
        self.one, self.draw, self.per_second, self.shares = one, Random(seed), per_second, shares
        self.number = 0
        self.happened: Counter[str] = Counter()
        self.estimated: dict[str, float] = defaultdict(float)

    def seconds(self, count: int, *, counted: bool = True) -> None:
        for _ in range(count):
            # About as often as chance has it, not just so often.
            some = sum(self.draw.random() < 0.5 for _ in range(2 * self.per_second))
            for _ in range(some):
                self.number += 1
                of = {name: self.draw.random() < self.shares.get(name, 0) for name in SHARES}
                why = self.one.decide(
                    self.number,
                    1001 if of["slow"] else 1,
                    failed=of["failed"],
                    parent_sampled=of["parent_sampled"],
                    queries=of["queries"],
                )
                if counted:
                    kind = next((name for name in SHARES if of[name]), "none")
                    self.happened[kind] += 1
                    self.estimated[kind] += 1 / self.one.probability(**of) if why else 0
            self.one.tick(1.0, some, self.number)

    def ratio(self, kind: str) -> float:
        return self.estimated[kind] / self.happened[kind]


SHARES = ("slow", "failed", "parent_sampled", "queries")


def ratios(kind: str, budget: dict[str, float], per_second: int, **shares: float) -> float:
    """What is estimated, of what there was, over some seeds: estimates of one would be off by chance."""
    estimated = happened = 0.0
    for seed in range(6):
        one = Sampler(**{"slow_ns": 1000, "parent": 0, "random": 0, "slow": 0, "failed": 0, "seed": seed, **budget})  # type: ignore[arg-type]
        traffic = Traffic(one, seed, per_second, **shares)
        traffic.seconds(300, counted=False)
        traffic.seconds(400)
        estimated += traffic.estimated[kind]
        happened += traffic.happened[kind]
    return estimated / happened


@pytest.mark.parametrize("per_second", [4, 40])
@pytest.mark.parametrize(
    ("kind", "budget", "share"),
    [
        ("slow", "slow", 0.5),
        ("failed", "failed", 0.2),
        ("parent_sampled", "parent", 1.0),
        ("queries", "queries", 0.3),
    ],
)
def test_what_a_bucket_keeps_stands_for_what_there_was(kind: str, budget: str, share: float, per_second: int) -> None:
    assert 0.94 < ratios(kind, {budget: 30}, per_second, **{kind: share}) < 1.06


@pytest.mark.parametrize("per_second", [2, 20, 100])
def test_what_chance_keeps_stands_for_what_there_was(per_second: int) -> None:
    # A hundred kept ones a seed: by chance alone the sum of six is off by 4 %.
    assert 0.88 < ratios("none", {"random": 12}, per_second) < 1.12


def test_what_is_kept_for_two_reasons_stands_for_what_there_was() -> None:
    assert 0.9 < ratios("slow", {"random": 60, "slow": 30}, 20, slow=0.3) < 1.1
    assert 0.9 < ratios("none", {"random": 60, "slow": 30}, 20, slow=0.3) < 1.1


def test_at_little_traffic_everything_stands_for_itself() -> None:
    one = sampler(random=60, slow=60, failed=60)
    traffic = Traffic(one, 1, 1, slow=0.2, failed=0.2)
    for _ in range(100):
        traffic.seconds(1)
        one.tick(20.0, 0, traffic.number)
    assert traffic.estimated == traffic.happened


def test_a_sudden_flood_is_known_for_one_a_second_later() -> None:
    """What the bucket had saved up does not make the rest of the flood look small."""
    one = sampler(slow=30)
    traffic = Traffic(one, 3, 100, slow=1.0)
    traffic.seconds(2, counted=False)
    traffic.seconds(60)
    assert 0.8 < traffic.ratio("slow") < 1.25


def test_a_budget_of_zero_makes_nothing_likelier() -> None:
    one = sampler(random=6000)
    for _ in range(50):
        kept(one, range(10), duration_ns=1001, failed=True, parent=True)
        one.tick(1.0, 1000, 0)
    everything = one.probability(slow=True, failed=True, parent_sampled=True, queries=True)
    assert everything == one.probability(slow=False, failed=False, parent_sampled=False, queries=False)


@given(
    st.lists(st.tuples(st.floats(0, 100), st.integers(-1000, 100_000), st.integers(0, 200)), max_size=20),
    st.sampled_from([0, 0.5, 12, 600]),
)
def test_a_probability_is_one_whatever_the_ticks(ticks: list[tuple[float, int, int]], budget: float) -> None:
    """Also when requests seem to have come back: they do not end in the order in which they began."""
    one, number = sampler(random=budget, slow=budget, failed=budget, parent=budget), 0
    for elapsed_s, finished, asked in ticks:
        for _ in range(asked):
            number += 1
            one.decide(number, 1001, failed=True, parent_sampled=True, queries=True)
        one.tick(elapsed_s, finished, number)
        for applies in (False, True):
            found = one.probability(slow=applies, failed=applies, parent_sampled=applies, queries=applies)
            assert 0 < found <= 1
    assert one.next_random >= 0
