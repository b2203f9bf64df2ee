"""Background tasks are counted once, wherever they run: with an agent, before there is one, in a forked child."""

from __future__ import annotations

import asyncio
import contextvars
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from paste_agent import lifecycle
from paste_agent.aggregate import DATABASE_DURATION, ERRORS, PART_DURATION, PART_SPANS, TASK_DURATION
from paste_agent.background import background_task
from paste_agent.detail import Rules, trace_row
from paste_agent.inside import CALL, DATABASE, FinishedSpan
from paste_agent.propagation import parse_traceparent
from paste_agent.recorder import layout
from paste_agent.spans import begin, end, headers_of, span
from paste_agent.transaction import current
from tests.filtering import Measured, fine, serve
from tests.odd import Hostile, Text
from tests.recorders import run_script, tree

Task = tuple["str | None", "str | None"]


@pytest.fixture
def service(measure: Callable[..., Measured], monkeypatch: pytest.MonkeyPatch) -> Measured:
    """The only service of this process: the one that counts what does not say whose it is."""
    monkeypatch.setattr(lifecycle, "_agents", {})
    return measure()


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process in which no agent has been made."""
    monkeypatch.setattr(lifecycle, "_agents", {})
    lifecycle._owed.clear()
    yield
    lifecycle._owed.clear()


def tasks_of(service: Measured) -> dict[Task, int]:
    """Tasks by name and error type, from the ring."""
    found: dict[Task, int] = {}
    for ((metric, attributes), _), total in service.delta().totals.items():
        if metric == TASK_DURATION:
            named = json.loads(attributes)
            found[named.get("paste_agent.task.name"), named.get("error.type")] = total.count
    return found


# -- what is counted -----------------------------------------------------------------------------------------------


def test_a_task_is_counted_and_timed_by_its_name(service: Measured) -> None:
    for _ in range(3):
        with background_task("warm caches"):
            pass
    with background_task("send mail"):
        pass
    assert tasks_of(service) == {("warm caches", None): 3, ("send mail", None): 1}
    assert service.counts() == {}
    assert service.reader().in_flight() == []


def test_a_task_that_is_kept_has_nothing_of_a_request(service: Measured) -> None:
    with pytest.raises(KeyError), background_task("fails"):
        raise KeyError("x")
    row = trace_row(service.recorder().kept.popleft(), {}, 0, Rules())
    assert row.detail is not None
    assert row.detail["attributes"] == {}


def test_each_call_of_a_decorated_function_is_a_task(service: Measured) -> None:
    @background_task("recurses")
    def recurses(depth: int) -> int:
        """Has a name."""
        seen.append(len(service.reader().in_flight()))
        return depth + recurses(depth - 1) if depth else 0

    seen: list[int] = []
    assert recurses(3) == 6
    assert recurses.__doc__ == "Has a name."
    assert tasks_of(service) == {("recurses", None): 4}
    assert seen == [1, 2, 3, 4]
    assert service.reader().in_flight() == []
    assert current.get() is None


def test_a_coroutine_is_a_task_until_it_returns(service: Measured) -> None:
    @background_task("sync stock")
    async def sync(fails: bool) -> None:
        assert [one.path for one in service.reader().in_flight()] == ["sync stock"]
        await asyncio.sleep(0)
        if fails:
            raise KeyError

    asyncio.run(sync(False))
    with pytest.raises(KeyError):
        asyncio.run(sync(True))
    assert tasks_of(service) == {("sync stock", None): 1, ("sync stock", "KeyError"): 1}


def test_a_generator_that_is_broken_off_has_not_failed(service: Measured) -> None:
    @background_task("pages")
    def pages() -> Iterator[int]:
        yield from range(3)

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        request = current.get()
        for _ in pages():
            seen.append(current.get() is request)
            break
        seen.append(current.get() is request)
        start_response("200 OK", [])
        return [b""]

    seen: list[bool] = []
    serve(service.around(app))
    assert tasks_of(service) == {("pages", None): 1}
    assert seen == [True, True]
    assert current.get() is None


def test_a_generator_has_its_spans_inside_of_each_other(service: Measured) -> None:
    @background_task("pages")
    def pages() -> Iterator[int]:
        with span("cursor"):
            yield 1
            with span("fetches"):
                yield 2
        with span("is closed"):
            raise KeyError

    with pytest.raises(KeyError):
        list(pages())
    assert current.get() is None
    inside = service.recorder().kept.popleft().inside
    assert inside is not None
    assert tree(list(map(FinishedSpan.of, inside.finished))) == {
        "cursor": None,
        "fetches": "cursor",
        "is closed": None,
    }


class Custom(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "name"),
    [(ValueError("x"), "ValueError"), (KeyboardInterrupt(), "KeyboardInterrupt"), (SystemExit(0), "SystemExit")],
)
def test_what_a_task_raises_is_counted_and_passes(service: Measured, error: BaseException, name: str) -> None:
    with pytest.raises(type(error)) as raised, background_task("fails"):
        raise error
    assert raised.value is error
    assert tasks_of(service) == {("fails", name): 1}
    assert service.reader().in_flight() == []
    assert current.get() is None


def test_an_error_has_its_module(service: Measured) -> None:
    with pytest.raises(Custom), background_task("fails"):
        raise Custom
    assert tasks_of(service) == {("fails", f"{__name__}.Custom"): 1}


def test_a_task_within_a_task_is_another_one(service: Measured) -> None:
    with background_task("outer") as outer:
        with background_task("inner") as inner:
            assert current.get() is inner
            assert [one.path for one in service.reader().in_flight()] == ["outer", "inner"]
        assert current.get() is outer
    assert tasks_of(service) == {("outer", None): 1, ("inner", None): 1}


def test_a_task_within_a_request_costs_the_request_nothing(service: Measured) -> None:
    def application(environ: dict[str, Any], start_response: Callable[..., object]) -> list[bytes]:
        with background_task("inside"), span("of the task"):
            seen.extend((one.path, one.is_request, one.span) for one in service.reader().in_flight())
        with span("of the request"):
            seen.extend((one.path, one.is_request, one.span) for one in service.reader().in_flight())
        return fine(environ, start_response)

    seen: list[tuple[str, bool, str]] = []
    serve(service.around(application))
    assert seen == [
        ("/prefix/page", True, ""),
        ("inside", False, "of the task"),
        ("/prefix/page", True, "of the request"),
    ]
    assert sum(service.counts().values()) == 1
    assert tasks_of(service) == {("inside", None): 1}


def test_tasks_of_threads_are_all_counted(service: Measured) -> None:
    def work() -> None:
        for _ in range(200):
            with background_task("threaded"), span("x"):
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tasks_of(service) == {("threaded", None): 800}
    assert service.reader().in_flight() == []


def test_a_task_in_flight_is_as_its_slot_says(service: Measured) -> None:
    with background_task("warm caches"):
        (found,) = service.reader().in_flight()
    assert (found.path, found.method, found.is_request) == ("warm caches", "", False)
    assert found.thread == threading.get_ident()


@pytest.mark.parametrize(
    ("name", "counted", "shown"),
    [
        ("x" * 1000, "x" * 160, "x" * 144),
        ("ü" * 200, "ü" * 160, "ü" * 72),
        ("a\ud800b", "a?b", "a?b"),
        ("", "", ""),
        ("two\nlines\x00", "two\nlines\x00", "two\nlines"),
    ],
)
def test_any_name_will_do(service: Measured, name: str, counted: str, shown: str) -> None:
    with background_task(name):
        (found,) = service.reader().in_flight()
    assert found.path == shown
    assert tasks_of(service) == {(counted, None): 1}
    assert service.word(layout.W_INTERNAL_ERRORS) == 0


@pytest.mark.parametrize(
    ("name", "counted"),
    [
        pytest.param(7, "7", id="a number"),
        pytest.param(10**5000, "int", id="too long a number"),
        pytest.param(Text("warm"), "warm", id="text of its own kind"),
        pytest.param(Hostile(), "Hostile", id="hostile"),
    ],
)
def test_a_name_need_not_be_text(service: Measured, name: Any, counted: str) -> None:
    with background_task(name):
        pass
    assert tasks_of(service) == {(counted, None): 1}


def test_more_tasks_than_slots_are_all_counted(service: Measured) -> None:
    @background_task("deep")
    def deep(depth: int) -> None:
        if depth:
            deep(depth - 1)

    recorder = service.recorder()
    free = len(recorder._free)
    deep(free + 9)
    assert tasks_of(service) == {("deep", None): free + 10}
    assert service.word(layout.W_UNSLOTTED) == 10
    assert len(recorder._free) == free


def test_a_fault_of_the_agent_is_not_the_tasks(service: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise MemoryError("ours")

    monkeypatch.setattr(service.agent, "open", fail)
    with background_task("works"):
        done = True
    assert done
    assert current.get() is None
    assert service.agent._faults == 1


# -- contexts that are copied --------------------------------------------------------------------------------------


def test_a_task_that_ends_in_another_context_is_counted_and_leaves_its_slot(service: Measured) -> None:
    """As a generator does that is driven by whoever comes by."""

    def job() -> Iterator[None]:
        with background_task("driven"):
            yield

    for _ in range(3):
        driven = job()
        began = contextvars.copy_context()
        began.run(next, driven)
        assert [one.path for one in service.reader().in_flight()] == ["driven"]
        with pytest.raises(StopIteration):
            contextvars.copy_context().run(next, driven)
        assert service.reader().in_flight() == []
        began.run(span("of nobody").__enter__)  # the task is current there for ever
        assert b"of nobody" not in service.recorder().buffer[:]
    assert tasks_of(service) == {("driven", None): 3}
    assert current.get() is None
    assert service.agent._faults == 0


def test_what_outlives_its_task_writes_into_nobodys_slot(service: Measured) -> None:
    with background_task("first"):
        copied = contextvars.copy_context()
    with background_task("second"):
        copied.run(span("of what outlives it").__enter__)
        assert [(one.path, one.span) for one in service.reader().in_flight()] == [("second", "")]


# -- what goes on inside of one ------------------------------------------------------------------------------------


def counted(service: Measured, metric: str) -> dict[str, tuple[int, int]]:
    """Count and sum by attributes, from the ring."""
    found: dict[str, tuple[int, int]] = {}
    for ((name, attributes), _), total in service.delta().totals.items():
        if name == metric:
            count, sum_ns = found.get(attributes, (0, 0))
            found[attributes] = count + total.count, sum_ns + total.sum_ns
    return found


def query() -> None:
    begun = begin(DATABASE, b"SELECT 1")
    assert begun is not None
    end(begun, "SELECT", (layout.KIND_DATABASE, ("sqlite", None, "SELECT", None, None, None)))


def test_spans_of_a_task_are_counted_and_are_parts_of_it(service: Measured) -> None:
    for queries in (3, 4):
        with background_task("mail"):
            for _ in range(queries):
                query()
            with span("render"):
                query()
    assert [count for count, _ in counted(service, DATABASE_DURATION).values()] == [9]
    assert {key: count for key, (count, _) in counted(service, PART_DURATION).items()} == {
        '{"paste_agent.part": "database"}': 2
    }
    assert counted(service, PART_SPANS) == {'{"paste_agent.part": "database"}': (2, 9)}
    assert tasks_of(service) == {("mail", None): 2}
    assert service.agent._faults == 0


def test_records_of_what_is_inside_end_with_the_task(service: Measured) -> None:
    """One that began with it would pass for its own, and tell a lead that the task has ended before it has."""

    def fails() -> None:
        with background_task("mail"):
            query()
            raise KeyError("x")

    with pytest.raises(KeyError):
        fails()
    reader = service.reader()
    records = [body for body in layout.RECORDS.iter_unpack(reader.chunk(0, 100)) if body[5]]
    entries = {body[0]: reader.series(body[0] & ~layout.FAILED) for body in records}
    by_kind = {entry[0]: body for body in records if (entry := entries[body[0]]) is not None}
    _, _, _, start_ns, duration_ns, _ = by_kind[layout.KIND_BACKGROUND]
    for kind in (layout.KIND_ERROR, layout.KIND_PART, layout.KIND_DATABASE):
        assert start_ns < by_kind[kind][3] <= start_ns + duration_ns
        assert by_kind[kind][3] + by_kind[kind][4] <= start_ns + duration_ns
    assert reader.finished_among({start_ns}, len(records)) == {start_ns: True}


def test_a_failed_task_is_kept_with_its_error_and_its_spans(service: Measured) -> None:
    def fails() -> None:
        with background_task("mail"):
            query()
            raise KeyError("x")

    with pytest.raises(KeyError):
        fails()
    assert counted(service, ERRORS) == {
        '{"error.type": "KeyError", "paste_agent.error.place": "test_background.fails"}'.replace(
            "test_background", __name__
        ): (1, 0)
    }
    assert tasks_of(service) == {("mail", "KeyError"): 1}
    recorder = service.recorder()
    (kept,) = recorder.kept
    assert kept.why & layout.KEPT_FAILED
    assert (kept.failed, kept.method, kept.path, kept.parent_id) == (True, "", "", bytes(8))
    assert (kept.trace_id, kept.span_id) == layout.minted_ids(recorder.id, 1)
    assert kept.error is not None
    assert (kept.error.type, kept.error.message) == ("KeyError", "'x'")
    assert recorder.attributes_of(kept.series) == {"paste_agent.task.name": "mail", "error.type": "KeyError"}
    assert [one[3] for one in kept.inside.finished] == ["SELECT"]


def test_a_service_that_a_task_calls_is_told_the_trace_that_is_kept(service: Measured) -> None:
    told: list[dict[str, str]] = []
    with background_task("mail"):
        begun = begin(CALL, b"GET")
        assert begun is not None
        told.append(dict(headers_of(begun)))
        end(begun, "GET")
    (kept,) = service.recorder().kept  # the first one, by chance
    parent = parse_traceparent(told[0]["traceparent"])
    assert parent is not None
    assert (parent.trace_id, parent.sampled, kept.why) == (kept.trace_id, True, layout.KEPT_RANDOM)
    assert parent.span_id == kept.inside.finished[0][8]


@pytest.mark.parametrize(
    ("rule", "errors"),
    [
        ("ignore_errors", {}),
        (
            "expected_errors",
            {
                '{"error.type": "KeyError", "paste_agent.error.expected": "true", "paste_agent.error.place": "HERE"}': (
                    1,
                    0,
                )
            },
        ),
    ],
)
def test_rules_of_errors_hold_for_tasks(
    measure: Callable[..., Measured], monkeypatch: pytest.MonkeyPatch, rule: str, errors: dict[str, tuple[int, int]]
) -> None:
    monkeypatch.setattr(lifecycle, "_agents", {})
    service = measure(**{rule: "LookupError", "random_traces_per_min": "0"})

    def fails() -> None:
        with background_task("mail"):
            raise KeyError("x")

    with pytest.raises(KeyError):
        fails()
    assert tasks_of(service) == {("mail", None): 1}
    here = f"{__name__}.fails"
    assert counted(service, ERRORS) == {key.replace("HERE", here): value for key, value in errors.items()}
    assert list(service.recorder().kept) == []


def test_an_error_that_a_task_has_noted_and_raises_again_is_one(service: Measured) -> None:
    def fails() -> None:
        with background_task("mail") as task:
            try:
                raise KeyError("x")
            except KeyError as error:
                task.note(error)
                raise

    with pytest.raises(KeyError):
        fails()
    assert [count for count, _ in counted(service, ERRORS).values()] == [1]
    assert len(service.recorder().kept) == 1


def test_a_task_within_a_request_is_counted_where_the_request_is(
    measure: Callable[..., Measured], service: Measured
) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        with background_task("mail") as task:
            assert task.recorder is second.recorder()
            with background_task("attachment"):
                pass
        return fine(environ, start_response)

    second = measure()
    serve(second.around(app))
    with background_task("mail"):
        pass
    assert tasks_of(second) == {("mail", None): 1, ("attachment", None): 1}
    assert tasks_of(service) == {("mail", None): 1}


# -- before there is an agent --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nobody")
def test_a_task_without_an_agent_is_counted_by_the_next_one(measure: Callable[..., Measured]) -> None:
    with background_task("at import"):
        assert current.get() is None
    with pytest.raises(ValueError, match="x"), background_task("at import"):
        raise ValueError("x")
    first = measure()
    assert tasks_of(first) == {("at import", None): 1, ("at import", "ValueError"): 1}
    assert tasks_of(measure()) == {}


@pytest.mark.usefixtures("nobody")
def test_what_is_owed_is_bounded(measure: Callable[..., Measured]) -> None:
    for place in range(3000):
        with background_task("early" if place < 2000 else "late"):
            pass
    service = measure(ring_records="4096")
    assert tasks_of(service) == {("late", None): 1000}
    assert service.word(layout.W_DROPPED) == 2000


# -- after fork ----------------------------------------------------------------------------------------------------

PRELUDE = """
import os, sys
from pathlib import Path
from paste_agent import lifecycle, settings
from paste_agent.background import background_task
from tests.recorders import settings_of
SETTINGS = settings_of(Path(sys.argv[1]))

def tasks():
    from paste_agent.aggregate import TASK_DURATION
    from paste_agent.store.store import Store
    store = Store(SETTINGS.store)
    found = {one.attributes['paste_agent.task.name']: one.total.count
             for one in store.totals() if one.metric == TASK_DURATION}
    store.close()
    return sorted(found.items())

def fork():
    pid = os.fork()
    if pid:
        assert os.waitpid(pid, 0)[1] == 0
    return pid

def finish():
    lifecycle._finish_all()
    lifecycle.finish([SETTINGS])
"""
SCRIPTS = {
    "owed by the parent": (
        """
with background_task('early'):
    pass
if fork() == 0:
    assert not list(lifecycle._owed)
    lifecycle.agent_of(SETTINGS).serve()
    sys.exit()
lifecycle.agent_of(SETTINGS)
""",
        [("early", 1)],
    ),
    "owed by a child": (
        """
if fork() == 0:
    with background_task('early'):
        pass
    lifecycle.agent_of(SETTINGS)
    sys.exit()
lifecycle.agent_of(SETTINGS)
""",
        [("early", 1)],
    ),
    "forked in the middle of one that is owed": (
        """
with background_task('early'):
    pid = fork()
lifecycle.agent_of(SETTINGS)
if pid == 0:
    sys.exit()
""",
        [("early", 1)],
    ),
    "forked in the middle of one": (
        """
agent = lifecycle.agent_of(SETTINGS)
with background_task('task'):
    pid = fork()
if pid == 0:
    with background_task('of the child'):
        pass
    sys.exit()
assert list(agent.open().in_flight()) == []
""",
        [("of the child", 1), ("task", 1)],
    ),
    "in a forked child": (
        """
lifecycle.agent_of(SETTINGS)
with background_task('parent'):
    pass
for _ in range(3):
    if fork() == 0:
        with background_task('child'):
            pass
        sys.exit()
""",
        [("child", 3), ("parent", 1)],
    ),
}


@pytest.mark.parametrize("case", SCRIPTS)
def test_tasks_around_a_fork_are_counted_once(tmp_path: Path, case: str) -> None:
    tmp_path.chmod(0o700)
    script, expected = SCRIPTS[case]
    told = run_script(PRELUDE + script + "finish()\nprint(tasks())\n", tmp_path)
    assert told == f"{expected}\n"
