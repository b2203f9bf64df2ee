"""What happens before there is an agent is counted by the first one that there is."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import pytest

from paste_agent import lifecycle
from paste_agent.aggregate import LOAD_DURATION, TASK_DURATION
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
    for place in range(lifecycle._MOST_OWED + 50):
        lifecycle.on_fault("instrument.redis", KeyError(place))
    assert len(lifecycle._owed_faults) == lifecycle._MOST_OWED
