"""The watch: of a slow request it writes down route and stack, of a hanging one it says so; of others nothing.

The requests are real ones in threads of their own; only their age is made up: `look` is told what time it is.
"""

from __future__ import annotations

import gc
import json
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from paste_agent import native
from paste_agent.background import background_task
from paste_agent.filter import AgentFilter
from paste_agent.recorder import layout
from paste_agent.recorder.reader import InFlight, Reader
from paste_agent.recorder.writer import Recorder
from paste_agent.response import Response
from paste_agent.spans import span
from paste_agent.transaction import current
from tests import recorders, watching
from tests.recorders import S, die, in_flight, open_recorder, run_script
from tests.serving import PATIENCE_S
from tests.watching import Held, only, watch_of


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    opened = open_recorder(tmp_path, slots=32)
    yield opened
    die(opened)


def functions_in(stack: str) -> list[str]:
    return [line.rpartition(", in ")[2] for line in stack.splitlines()]


# -- where it is ---------------------------------------------------------------------------------------------------


def test_a_slow_request_in_another_thread_has_its_route_and_its_stack(recorder: Recorder, reader: Reader) -> None:
    with Held(recorder, "/items/7", route="/items/{id}"):
        start_ns, before_ns = only(reader).start_ns, time.perf_counter_ns()
        watch_of(recorder).look(start_ns + 2 * S)
        found = only(reader)
    assert (found.path, found.route) == ("/items/7", "/items/{id}")
    assert before_ns <= found.stack_ns <= time.perf_counter_ns()
    assert f'  File "{watching.__file__}", line ' in found.stack
    # The application's, outermost first: nothing of the thread, the server and the filter above it.
    functions = functions_in(found.stack)
    assert functions[0] == "application"
    assert functions[1] == "wait_here"
    assert "server_of_the_test" not in functions
    assert "filter.py" not in found.stack


def test_a_stream_that_hangs_is_seen_as_well(recorder: Recorder, reader: Reader) -> None:
    def chunks() -> Iterator[bytes]:
        held.wait_here()
        yield b"x"

    def application(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterator[bytes]:
        environ["paste_agent.route"] = "/stream"
        start_response("200 OK", [])
        return chunks()

    def consume(*arguments: object, **more: object) -> None:
        filtered = AgentFilter(application, recorders._Serving(recorder))  # type: ignore[arg-type]
        body: Any = filtered(recorders.environ_of("/stream"), lambda status, headers, exc_info=None: lambda data: None)
        list(body)
        body.close()

    held = Held(recorder)
    held._thread = threading.Thread(target=consume)
    with held:
        watch_of(recorder).look(only(reader).start_ns + 2 * S)
        assert functions_in(only(reader).stack)[:2] == ["chunks", "wait_here"]
        assert only(reader).route == "/stream"


def test_stacks_are_taken_at_growing_intervals(recorder: Recorder, reader: Reader) -> None:
    watch, taken = watch_of(recorder), []
    with Held(recorder):
        start_ns, before_ns = only(reader).start_ns, 0
        for age_s in range(62):
            watch.look(start_ns + age_s * S)
            stack_ns = only(reader).stack_ns
            if stack_ns != before_ns:
                taken.append(age_s)
            before_ns = stack_ns
    assert taken == [2, 3, 5, 8, 12, 18, 27, 41]


def test_the_newest_stack_counts(recorder: Recorder, reader: Reader) -> None:
    arrived, go_on = threading.Event(), threading.Event()

    def second_place(wait: Callable[[], None]) -> None:
        wait()

    def first_place(wait: Callable[[], None]) -> None:
        arrived.set()
        assert go_on.wait(PATIENCE_S)
        second_place(wait)

    held = Held(recorder, inside=first_place)
    held._thread.start()
    assert arrived.wait(PATIENCE_S)
    watch, start_ns = watch_of(recorder), only(reader).start_ns
    watch.look(start_ns + 2 * S)
    assert "second_place" not in only(reader).stack
    go_on.set()
    assert held._entered.wait(PATIENCE_S)
    watch.look(start_ns + 3 * S)
    assert functions_in(only(reader).stack)[-4:-2] == ["second_place", "wait_here"]
    held.end()


def test_young_requests_are_not_looked_at(recorder: Recorder, reader: Reader) -> None:
    asked: list[int] = []

    def frame_of(ident: int) -> FrameType | None:
        asked.append(ident)
        return native.frame_of(ident)

    watch = watch_of(recorder, frame_of=frame_of)
    with Held(recorder, route="/a") as held:
        start_ns = only(reader).start_ns
        for age_ns in (-5 * S, 0, S // 2, S - 1):  # a clock that was read before the request began, too
            watch.look(start_ns + age_ns)
        assert asked == []
        assert (only(reader).route, only(reader).stack) == ("", "")
        watch.look(start_ns + S)  # old enough for its route, not for a stack
        assert asked == [held._thread.ident]
        assert (only(reader).route, only(reader).stack) == ("/a", "")
        watch.look(start_ns + 2 * S)
        assert only(reader).stack


def test_requests_that_are_slow_sooner_are_looked_at_sooner(recorder: Recorder, reader: Reader) -> None:
    watch = watch_of(recorder, slow_ns=S // 10)
    with Held(recorder, route="/a"):
        start_ns = only(reader).start_ns
        watch.look(start_ns + S // 10 - 1)
        assert (only(reader).route, only(reader).stack) == ("", "")
        watch.look(start_ns + S // 10)
        assert only(reader).route == "/a"
        assert only(reader).stack


# -- slots are used again ------------------------------------------------------------------------------------------


def test_a_slot_that_is_used_again_tells_nothing_of_the_request_before(recorder: Recorder, reader: Reader) -> None:
    watch = watch_of(recorder)

    def in_a_span(wait: Callable[[], None]) -> None:
        with span("SELECT orders"):
            wait()

    with Held(recorder, "/first", in_a_span, route="/first"):
        (first,) = [slot for slot, *_ in recorder.in_flight()]
        watch.look(only(reader).start_ns + 2 * S)
        found = only(reader)
        assert (found.route, found.span) == ("/first", "SELECT orders")
        assert found.stack
    with Held(recorder, "/second"):
        (second,) = [slot for slot, *_ in recorder.in_flight()]
        assert second == first
        found = only(reader)
        assert (found.path, found.route, found.span, found.stack, found.stack_ns) == ("/second", "", "", "", 0)
        assert recorder.stack_of(second) is None


def test_a_slot_that_changes_hands_while_it_is_looked_at_gets_nothing(recorder: Recorder, reader: Reader) -> None:
    first, second = Held(recorder, "/first", route="/first"), Held(recorder, "/second", route="/second")

    def frame_of(ident: int) -> FrameType | None:
        frame = native.frame_of(ident)
        first.end()
        second.__enter__()
        return frame

    with first:
        watch_of(recorder, frame_of=frame_of).look(only(reader).start_ns + 2 * S)
        found = only(reader)
        assert (found.path, found.route, found.stack) == ("/second", "", "")
    second.end()


def test_a_thread_that_serves_another_request_by_now_gives_no_route_to_the_first(
    recorder: Recorder, reader: Reader
) -> None:
    """A slot that nobody left, as after a fault: its thread has gone on to another request."""
    with Held(recorder, "/other", route="/other") as held:
        assert held._thread.ident is not None
        in_flight(recorder, only(reader).start_ns - S, path=b"/left", thread=held._thread.ident)
        watch_of(recorder).look(only_of(reader, "/other").start_ns + 2 * S)
        assert only_of(reader, "/left").route == ""
        assert only_of(reader, "/other").route == "/other"


def only_of(reader: Reader, path: str) -> InFlight:
    (found,) = [one for one in reader.in_flight() if one.path == path]
    return found


def test_what_has_ended_is_forgotten(recorder: Recorder, reader: Reader) -> None:
    watch = watch_of(recorder)
    for _ in range(5):
        with Held(recorder):
            start_ns = only(reader).start_ns
            watch.look(start_ns + 60 * S)
            assert len(watch._due) == len(watch._stuck) == 1
    watch.look(time.perf_counter_ns())
    assert (watch._due, watch._stuck) == ({}, {})


# -- bounds --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [100, 500, 800])
def test_a_deep_recursion_is_bounded_and_its_innermost_frames_survive(
    recorder: Recorder, reader: Reader, depth: int
) -> None:
    def a_function_with_quite_a_long_name(left: int, wait: Callable[[], None]) -> None:
        if left:
            a_function_with_quite_a_long_name(left - 1, wait)
        else:
            wait()

    with Held(recorder, inside=lambda wait: a_function_with_quite_a_long_name(depth, wait), route="/deep"):
        watch_of(recorder).look(only(reader).start_ns + 2 * S)
        found = only(reader)
    functions = functions_in(found.stack)
    assert 10 < len(functions) <= 60
    assert "wait_here" in functions[-4:]
    assert functions[0] == "a_function_with_quite_a_long_name"
    assert len(found.stack.encode()) <= layout.STACK_ROOM
    assert found.stack.startswith("  File ")  # cut between two frames
    # Beyond some hundreds of frames nobody looks for the request that they work for.
    assert found.route == ("/deep" if depth <= 500 else "")


def test_names_beyond_ascii_fit_the_room_in_bytes(recorder: Recorder, reader: Reader) -> None:
    name = "ü" * 200
    scope: dict[str, Any] = {}
    exec(f"def {name}(left, wait):\n    {name}(left - 1, wait) if left else wait()\n", scope)
    with Held(recorder, inside=lambda wait: scope[name](40, wait)):
        watch_of(recorder).look(only(reader).start_ns + 2 * S)
        found = only(reader)
    assert len(found.stack.encode()) <= layout.STACK_ROOM
    assert "\ufffd" not in found.stack
    assert functions_in(found.stack)[0] == name


# -- objects of the application's that raise -----------------------------------------------------------------------


class Detached:
    def __hash__(self) -> int:
        raise RuntimeError("detached")


POISON: dict[str, Any] = {"wsgiorg.routing_args": ((), {"item": Detached()})}


@pytest.mark.parametrize("last", [False, True])
def test_a_route_that_raises_costs_neither_its_stack_nor_the_others(
    recorder: Recorder, reader: Reader, last: bool
) -> None:
    recorder.on_fault = lambda where, fault: None  # at the end the request itself asks for its route
    with ExitStack() as stack:
        for path, more in (("/first", {"route": "/first"}), ("/poisoned", POISON), ("/last", {"route": "/last"})):
            stack.enter_context(Held(recorder, path, **more))
        watch = watch_of(recorder)
        watch.last_look() if last else watch.look(time.perf_counter_ns() + 10 * S)
        seen = [(one.path, one.route, "wait_here" in one.stack) for one in reader.in_flight(stacks=9)]
        assert seen == [("/first", "/first", True), ("/poisoned", "", True), ("/last", "/last", True)]
    assert len(reader.in_flight()) == (3 if last else 0)  # what was pinned stays


def test_what_is_in_flight_is_pinned_whatever_becomes_of_the_look(recorder: Recorder, reader: Reader) -> None:
    def frame_of(ident: int) -> FrameType | None:
        raise MemoryError

    with Held(recorder, "/a"), pytest.raises(MemoryError):
        watch_of(recorder, frame_of=frame_of).last_look()
    assert only(reader).path == "/a"


# -- no trace of the watch in the request --------------------------------------------------------------------------


class Thing:
    """Something of the application's that must go when its request goes."""


def test_a_look_keeps_nothing_of_a_request_alive(recorder: Recorder, reader: Reader) -> None:
    things: list[weakref.ref[Thing]] = []

    def application(environ: dict[str, Any], start_response: Callable[..., object]) -> list[bytes]:
        environ["thing"], local = Thing(), Thing()
        things.extend((weakref.ref(environ["thing"]), weakref.ref(local)))
        held.wait_here()
        start_response("200 OK", [])
        return [b"x"]

    def once() -> None:
        filtered = AgentFilter(application, recorders._Serving(recorder))  # type: ignore[arg-type]
        body: Any = filtered(recorders.environ_of(), lambda status, headers, exc_info=None: lambda data: None)
        list(body)
        body.close()

    held = Held(recorder)
    held._thread = threading.Thread(target=once)
    watch = watch_of(recorder)
    gc.collect()
    gc.disable()  # what only the collector would find counts as kept
    try:
        with held:
            start_ns = only(reader).start_ns
            for age_s in (1, 2, 3, 40):
                watch.look(start_ns + age_s * S)
            watch.last_look()
            assert only(reader).stack
            assert [thing() is not None for thing in things] == [True, True]
        assert [thing() for thing in things] == [None, None]
        assert [one for one in gc.get_objects() if issubclass(type(one), Response) and one.recorder is recorder] == []
    finally:
        gc.enable()
    assert current.get() is None


def test_a_local_of_the_applications_is_not_taken_for_the_request(recorder: Recorder, reader: Reader) -> None:
    with Held(recorder, inside=_with_a_local, route="/a"):
        watch_of(recorder).look(only(reader).start_ns + 2 * S)
        assert only(reader).route == "/a"


def _with_a_local(wait: Callable[[], None]) -> None:
    transaction = background_task("not a request")
    wait()
    del transaction


# -- greenlets -----------------------------------------------------------------------------------------------------

GREENLETS = """
from gevent import monkey
monkey.patch_all()
import gevent, json, sys, time
from pathlib import Path
from paste_agent import native
from paste_agent.watch import Watch
from tests.recorders import open_recorder, reader_of, serve

recorder = open_recorder(Path(sys.argv[1]))
recorder.ident = native.ident_function()
looked = []

def look():
    watch.look(time.perf_counter_ns() + 10_000_000_000)
    looked.append(True)

def sleeps_here():
    gevent.sleep(60)

def sleeps_there():
    gevent.sleep(60)

def computes_here():
    native.start_thread(look)
    while not looked:  # and lets no other greenlet run
        pass

watch = Watch(recorder, 'shop', 2_000_000_000, 30_000_000_000)
spawned = [
    gevent.spawn(serve, recorder, '/here', route='/h', meanwhile=sleeps_here),
    gevent.spawn(serve, recorder, '/there', route='/t', meanwhile=sleeps_there),
]
gevent.sleep(0)

def computes():
    computes_here()
    reader = reader_of(recorder)
    print(json.dumps({one.path: [one.route, [line.rpartition(', in ')[2] for line in one.stack.splitlines()]]
                      for one in reader.in_flight(stacks=9)}))
    reader.close()

gevent.spawn(serve, recorder, '/computes', route='/c', meanwhile=computes).join()
gevent.killall(spawned)
assert list(recorder.in_flight()) == []
"""


def test_each_greenlet_has_its_own_stack_also_the_one_that_runs(tmp_path: Path) -> None:
    pytest.importorskip("gevent")
    found: dict[str, Any] = json.loads(run_script(GREENLETS, tmp_path))
    assert {path: route for path, (route, _) in found.items()} == {"/here": "/h", "/there": "/t", "/computes": "/c"}
    assert found["/here"][1][:2] == ["application", "sleeps_here"]
    assert found["/there"][1][:2] == ["application", "sleeps_there"]
    assert found["/computes"][1][:3] == ["application", "computes", "computes_here"]
    assert "sleeps_here" not in found["/computes"][1]


@pytest.mark.parametrize("collects", [True, False])
def test_to_look_at_a_thread_leaves_the_collector_as_it_was(collects: bool) -> None:
    before = gc.isenabled()
    (gc.enable if collects else gc.disable)()
    try:
        found = native.frame_of(threading.get_ident())
        assert found is not None
        assert found.f_code.co_filename == native.__file__
        assert gc.isenabled() is collects
    finally:
        (gc.enable if before else gc.disable)()


def test_nothing_is_collected_while_the_stacks_of_threads_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    taken = sys._current_frames()
    monkeypatch.setattr(sys, "_current_frames", lambda: (seen.append(gc.isenabled()), taken)[1])
    native.frame_of(threading.get_ident())
    assert seen == [sys.version_info >= (3, 12)]
