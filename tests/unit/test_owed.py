"""What happens before there is an agent is counted by the first one that there is."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator

import pytest

import paste_agent
from paste_agent import lifecycle, owed
from paste_agent.aggregate import COUNT, LOAD_DURATION, TASK_DURATION, TIMING
from paste_agent.background import background_task
from paste_agent.recorder import layout
from tests.filtering import Measured

pytestmark = pytest.mark.usefixtures("nobody")


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process in which no agent has been made."""
    monkeypatch.setattr(lifecycle, "_agents", {})
    lifecycle._owed.clear()
    lifecycle._owed_faults.clear()
    yield
    lifecycle._owed.clear()
    lifecycle._owed_faults.clear()


def counted(service: Measured, metric: str) -> dict[str, tuple[int, int]]:
    return {
        json.dumps(json.loads(attributes)): (total.count, total.sum_ns)
        for ((name, attributes), _), total in service.delta().totals.items()
        if name == metric
    }


def test_each_is_counted_as_what_it_is(measure: Callable[..., Measured]) -> None:
    start_ns = time.perf_counter_ns() - 1000
    lifecycle.owe(layout.KIND_LOAD, ("gzip",), start_ns, 300, False)
    lifecycle.owe(layout.KIND_LOAD, ("main",), start_ns, 500, False)
    lifecycle.owe(layout.KIND_BACKGROUND, ("warm caches", None), start_ns, 700, False)
    first = measure()
    assert counted(first, LOAD_DURATION) == {'{"paste.layer": "gzip"}': (1, 300), '{"paste.layer": "main"}': (1, 500)}
    assert counted(first, TASK_DURATION) == {'{"paste_agent.task.name": "warm caches"}': (1, 700)}
    assert counted(measure(), LOAD_DURATION) == {}


def test_a_busy_counter_pushes_out_no_task(measure: Callable[..., Measured]) -> None:
    with background_task("warm caches"):
        pass
    for _ in range(5 * owed.MOST):
        paste_agent.count("rows", 2)
        paste_agent.count("pages")
    assert len(list(lifecycle._owed)) <= 1 + 2 * owed.MOST
    first = measure()
    assert list(lifecycle._owed) == []
    assert counted(first, TASK_DURATION).keys() == {'{"paste_agent.task.name": "warm caches"}'}
    sums = [sum_ns for name in ("rows", "pages") for _, sum_ns in counted(first, f"{COUNT}{name}").values()]
    assert sums == [10 * owed.MOST, 5 * owed.MOST]
    assert first.word(layout.W_DROPPED) == 0


def test_counts_that_are_too_large_for_one_record_stay_exact(measure: Callable[..., Measured]) -> None:
    end_ns = time.perf_counter_ns()
    amounts = [end_ns // 3 * 2, end_ns // 3 * 2, 5, end_ns]
    for amount in amounts:
        lifecycle.owe(layout.KIND_COUNT, ("bytes",), end_ns - amount, amount, False)
    assert counted(measure(), f"{COUNT}bytes") == {"{}": (3, sum(amounts))}


@pytest.mark.parametrize(
    ("record", "kept"),
    [
        pytest.param(lambda number: paste_agent.timing("wait", 0.001), {f"{TIMING}wait": 1000}, id="timings"),
        pytest.param(
            lambda number: paste_agent.count(f"c{number}"), {f"{COUNT}c0": 1, f"{COUNT}c999": 1}, id="counters"
        ),
    ],
)
def test_what_is_dropped_is_counted_and_said_once(
    measure: Callable[..., Measured],
    caplog: pytest.LogCaptureFixture,
    record: Callable[[int], None],
    kept: dict[str, int],
) -> None:
    for number in range(owed.MOST + 30):
        record(number)
    first = measure(ring_records="4096")
    assert {name: sum(count for count, _ in counted(first, name).values()) for name in kept} == kept
    assert first.word(layout.W_DROPPED) == 30
    assert [line.getMessage() for line in caplog.records] == [
        f"{first.settings.service_name}: 30 records of what came before the agent were dropped: 1000 of a kind are kept"
    ]


class TakenMeanwhile(deque[owed.Record]):
    """Another thread takes what is in it as soon as its length has been asked for."""

    def __len__(self) -> int:
        length = super().__len__()
        self.clear()
        return length


def test_what_is_taken_while_another_thread_adds_is_not_dropped() -> None:
    record = (layout.KIND_LOAD, ("gzip",), 0, 300, False)
    owes = owed.Owed()
    owes._queues[layout.KIND_LOAD] = TakenMeanwhile([record] * owed.MOST)
    owes.add(record)
    assert owes.dropped == 0


def test_faults_are_counted_by_the_first_agent_and_hold_nothing(measure: Callable[..., Measured]) -> None:
    try:
        raise KeyError("ours")
    except KeyError as fault:
        lifecycle.on_fault("instrument.redis", fault)
    assert [fault.__traceback__ for _, fault in lifecycle._owed_faults] == [None]
    first = measure()
    assert lifecycle._owed_faults == []
    first.recorder()
    assert first.word(layout.W_INTERNAL_ERRORS) == 1
    lifecycle.on_fault("instrument.redis", KeyError("ours"))
    assert first.word(layout.W_INTERNAL_ERRORS) == 2
    second = measure()
    second.recorder()
    assert second.word(layout.W_INTERNAL_ERRORS) == 0


def test_faults_that_are_owed_are_bounded(measure: Callable[..., Measured]) -> None:
    for place in range(lifecycle._MOST_FAULTS + 50):
        lifecycle.on_fault("instrument.redis", KeyError(place))
    assert len(lifecycle._owed_faults) == lifecycle._MOST_FAULTS
