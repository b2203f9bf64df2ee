"""The collector's pauses, and CPU time, go to the transaction that has them, and to nobody else."""

from __future__ import annotations

import contextvars
import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from paste_agent import filter as agent_filter
from paste_agent import lifecycle, pauses
from paste_agent.aggregate import PART_DURATION
from paste_agent.inside import CPU, GC
from paste_agent.pauses import CpuClock
from paste_agent.recorder.writer import Recorder
from paste_agent.transaction import TRANSACTION_KEY, Transaction, current
from tests.filtering import environ_of
from tests.recorders import die, leading, open_recorder, run_script, serve


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    opened = open_recorder(tmp_path)
    yield opened
    die(opened)


@pytest.fixture
def quiet() -> Iterator[None]:
    """No collection but those that the test asks for; and the callback only if it is put in."""
    before = list(gc.callbacks)
    gc.callbacks[:] = [call for call in before if call is not pauses._on_collection]
    gc.disable()
    yield
    gc.enable()
    gc.callbacks[:] = before


@pytest.fixture
def watched(quiet: None) -> None:
    pauses.install()


def in_request(recorder: Recorder, run: Callable[[], object]) -> Transaction:
    seen: list[Transaction] = []

    def meanwhile() -> None:
        within = current.get()
        assert isinstance(within, Transaction)
        seen.append(within)
        run()

    serve(recorder, meanwhile=meanwhile)
    return seen[0]


def pauses_of(transaction: Transaction) -> int:
    return 0 if transaction.inside is None else transaction.inside.parts.get(GC, [0])[0]


# -- the garbage collector -----------------------------------------------------------------------------------------


def test_pauses_are_added_up(recorder: Recorder, watched: None, tmp_path: Path) -> None:
    start_ns = time.perf_counter_ns()
    transaction = in_request(recorder, lambda: [gc.collect(generation) for generation in (0, 1, 2)])
    all_ns = time.perf_counter_ns() - start_ns
    assert transaction.inside is not None
    assert transaction.inside.parts[GC][0] == 3
    assert 0 < transaction.inside.parts[GC][1] < all_ns
    in_request(recorder, lambda: None)
    die(recorder)
    with leading(tmp_path) as lead:
        lead.drain()
        (found,) = [one for one in lead.store.totals() if one.metric == PART_DURATION]
    assert found.attributes["paste_agent.part"] == "gc"
    assert (found.total.count, found.total.sum_ns) == (1, transaction.inside.parts[GC][1])


def test_a_transaction_that_nothing_holds_up_stays_without(recorder: Recorder, watched: None) -> None:
    gc.collect()
    assert in_request(recorder, lambda: None).inside is None
    gc.collect()


def test_what_the_collector_does_elsewhere_is_not_charged(recorder: Recorder, watched: None) -> None:
    def run() -> None:
        thread = threading.Thread(target=gc.collect)
        thread.start()
        thread.join()

    assert in_request(recorder, run).inside is None


def test_an_ended_transaction_gets_nothing(recorder: Recorder, watched: None) -> None:
    kept: list[contextvars.Context] = []
    transaction = in_request(recorder, lambda: kept.append(contextvars.copy_context()))
    kept[0].run(gc.collect)
    assert transaction.inside is None


def test_a_second_install_changes_nothing(watched: None) -> None:
    before = list(gc.callbacks)
    pauses.install()
    assert gc.callbacks == before


class Circle:
    """Garbage that only the collector finds; calls `last` when it goes."""

    def __init__(self, last: Callable[[], object]) -> None:
        self.itself, self.last = self, last

    def __del__(self) -> None:
        self.last()


def test_a_finalizer_may_leave_or_enter_a_transaction(recorder: Recorder, watched: None) -> None:
    def leaves() -> None:
        token = current.set(current.get())
        Circle(lambda: current.set(None))
        gc.collect()
        current.reset(token)

    transaction = in_request(recorder, leaves)
    assert pauses_of(transaction) == 0

    transaction_under_way: Any = None

    def later() -> None:
        Circle(lambda: current.set(transaction_under_way))
        gc.collect()

    def enters() -> None:
        nonlocal transaction_under_way
        transaction_under_way = current.get()
        contextvars.Context().run(later)  # from no transaction into this one

    assert pauses_of(in_request(recorder, enters)) == 0


GREENLETS = """
import gc, sys
from pathlib import Path
import gevent
from paste_agent import pauses
from paste_agent.inside import GC
from paste_agent.transaction import current
from tests.recorders import die, open_recorder, serve

class Circle:
    def __init__(self):
        self.itself = self
    def __del__(self):
        gevent.sleep(0)  # lets the other one run in the middle of the collection
        steps.append("finalizer")

def first():
    Circle()
    gc.collect()
    found["first"] = current.get().inside.parts[GC][0]

def second():
    steps.append("second")
    gc.collect()  # does nothing: one is under way
    found["second"] = current.get().inside

gc.disable()
pauses.install()
steps, found = [], {}
recorder = open_recorder(Path(sys.argv[1]))
gevent.joinall([gevent.spawn(serve, recorder, meanwhile=run) for run in (first, second)], raise_error=True)
die(recorder)
assert steps == ["second", "finalizer"], steps
print(found)
"""


def test_greenlets_that_run_during_a_collection_are_not_charged(tmp_path: Path) -> None:
    assert run_script(GREENLETS, tmp_path) == "{'second': None, 'first': 1}\n"


FORKED = """
import gc, os, sys
from pathlib import Path
from paste_agent import pauses
from paste_agent.inside import GC
from paste_agent.transaction import current
from tests.recorders import open_recorder, serve

def meanwhile():
    gc.collect()
    print(current.get().inside.parts[GC][0], flush=True)

gc.disable()
pauses.install()
pauses._started_ns = 7  # as if the parent had forked in a finalizer
if os.fork() == 0:
    serve(open_recorder(Path(sys.argv[1])), meanwhile=meanwhile)
    os._exit(0)
os.wait()
"""


def test_a_forked_child_goes_on(tmp_path: Path) -> None:
    assert run_script(FORKED, tmp_path) == "1\n"


def filtered(directory: Path, application: Any = None, **keys: str) -> Any:
    name = f"pauses-{directory.name}"
    return agent_filter.main(
        application, {}, service_name=name, store=str(directory / "s.sqlite"), runtime_dir=str(directory), **keys
    )


def test_the_setting_decides(quiet: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pauses, "IS_SAFE", True)
    filtered(tmp_path, gc_pauses="false")
    assert pauses._on_collection not in gc.callbacks
    filtered(tmp_path)
    assert pauses._on_collection in gc.callbacks


def test_an_interpreter_that_cannot_bear_it_is_spared(
    quiet: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pauses.IS_SAFE is not (sys.version_info[:2] == (3, 11) and sys.version_info.micro < 8)
    monkeypatch.setattr(pauses, "IS_SAFE", False)
    filtered(tmp_path)
    assert pauses._on_collection not in gc.callbacks


# -- CPU time ------------------------------------------------------------------------------------------------------


def burn() -> None:
    until_ns = time.thread_time_ns() + 5_000_000
    while time.thread_time_ns() < until_ns:
        pass


def clocked(run: Callable[[], object]) -> Callable[[], object]:
    """`run` behind a clock, in the request that calls it."""

    def application(environ: Any, start_response: Any) -> list[bytes]:
        run()
        return []

    clock = CpuClock(application)
    return lambda: clock({TRANSACTION_KEY: current.get()}, lambda status, headers: len)


def test_cpu_time_is_what_was_computed(recorder: Recorder) -> None:
    transaction = in_request(recorder, clocked(burn))
    assert transaction.inside is not None
    assert transaction.inside.parts[CPU][0] == 1
    assert transaction.inside.parts[CPU][1] >= 5_000_000


def test_sleep_is_no_cpu_time(recorder: Recorder) -> None:
    start_ns = time.perf_counter_ns()
    transaction = in_request(recorder, clocked(lambda: time.sleep(0.1)))
    all_ns = time.perf_counter_ns() - start_ns
    assert transaction.inside is not None
    assert 0 < transaction.inside.parts[CPU][1] <= all_ns - 100_000_000


def test_two_clocks_do_not_count_twice(recorder: Recorder) -> None:
    start_ns = time.thread_time_ns()
    transaction = in_request(recorder, clocked(clocked(burn)))
    all_ns = time.thread_time_ns() - start_ns
    assert transaction.inside is not None
    assert transaction.inside.parts[CPU][0] == 1
    assert 5_000_000 <= transaction.inside.parts[CPU][1] <= all_ns


def test_an_exception_passes_the_clock(recorder: Recorder) -> None:
    def fails() -> None:
        burn()
        raise LookupError("the application's own")

    def run() -> None:
        with pytest.raises(LookupError, match="the application's own"):
            clocked(fails)()

    transaction = in_request(recorder, run)
    assert transaction.inside is not None
    assert transaction.inside.parts[CPU][1] >= 5_000_000


def test_without_a_transaction_a_clock_passes_on() -> None:
    body = [b"x"]
    environ = environ_of()
    clock = CpuClock(lambda given, start_response: body if given is environ else [])
    assert clock(environ, lambda status, headers: len) is body


def test_there_is_a_clock_only_where_it_is_wanted(tmp_path: Path) -> None:
    def application(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        burn()
        return []

    assert filtered(tmp_path, application).application is application
    measured = filtered(tmp_path, application, cpu_time="true")
    assert type(measured.application) is CpuClock
    environ = environ_of()
    body = measured(environ, lambda status, headers: None)
    transaction = environ[TRANSACTION_KEY]
    body.close()
    assert transaction.inside.parts[CPU][1] >= 5_000_000
    (agent,) = [one for one in lifecycle._agents.values() if one.settings.service_name == f"pauses-{tmp_path.name}"]
    agent.finish()
