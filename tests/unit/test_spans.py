"""Spans say where a transaction is while it is there, and not a moment longer."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from paste_agent.background import background_task
from paste_agent.filter import AgentFilter
from paste_agent.raised import raised_of
from paste_agent.recorder import layout
from paste_agent.recorder.reader import Reader
from paste_agent.recorder.writer import Recorder
from paste_agent.spans import span
from paste_agent.transaction import current
from tests.recorders import _Serving, die, environ_of, open_recorder, reader_of, run_script, serve, spans_within, tree
from tests.within import here


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    opened = open_recorder(tmp_path, slots=4)
    yield opened
    die(opened)


def spans_of(reader: Reader) -> list[str]:
    return [one.span for one in reader.in_flight()]


def within(recorder: Recorder, inside: Callable[[], object]) -> None:
    serve(recorder, meanwhile=inside)


def test_a_span_is_told_while_it_lasts(recorder: Recorder, reader: Reader) -> None:
    def inside() -> None:
        assert spans_of(reader) == [""]
        with span("SELECT orders"):
            assert spans_of(reader) == ["SELECT orders"]
        assert spans_of(reader) == [""]

    within(recorder, inside)


def test_the_span_around_comes_back(recorder: Recorder, reader: Reader) -> None:
    def inside() -> None:
        with span("outer"):
            with span("inner"):
                with span("innermost"):
                    assert spans_of(reader) == ["innermost"]
                assert spans_of(reader) == ["inner"]
            assert spans_of(reader) == ["outer"]
            with span("second"):
                assert spans_of(reader) == ["second"]
            assert spans_of(reader) == ["outer"]
        assert spans_of(reader) == [""]

    within(recorder, inside)


def test_an_exception_leaves_the_span_and_passes(recorder: Recorder, reader: Reader) -> None:
    def inside() -> None:
        with span("outer"):
            with pytest.raises(ZeroDivisionError), span("inner"):
                1 / 0  # noqa: B018
            assert spans_of(reader) == ["outer"]

    within(recorder, inside)


def test_a_decorated_function_is_a_span_each_time(recorder: Recorder, reader: Reader) -> None:
    @span("recurses ü")
    def recurses(depth: int) -> int:
        assert spans_of(reader) == ["recurses ü"]
        return depth + recurses(depth - 1) if depth else 0

    def inside() -> None:
        assert recurses(5) == 15
        assert spans_of(reader) == [""]

    within(recorder, inside)
    assert recurses.__name__ == "recurses"


def test_a_decorated_coroutine_is_a_span_until_it_returns(recorder: Recorder, reader: Reader) -> None:
    @span("fetch")
    async def fetch(depth: int) -> int:
        assert spans_of(reader) == ["fetch"]
        await asyncio.sleep(0.001)
        assert spans_of(reader) == ["fetch"]
        return depth + await fetch(depth - 1) if depth else 0

    def inside() -> None:
        assert asyncio.run(fetch(3)) == 6
        assert spans_of(reader) == [""]

    assert inspect.iscoroutinefunction(fetch)
    found = spans_within(recorder, inside)
    assert [one.name for one in found] == ["fetch"] * 4
    assert [one.duration_ns > 1_000_000 for one in found] == [True] * 4


def test_a_decorated_generator_is_a_span_until_it_ends(recorder: Recorder, reader: Reader) -> None:
    @span("rows")
    def rows(ends: bool) -> Generator[int, str, str]:
        assert spans_of(reader) == ["rows"]
        said.append((yield 1))
        try:
            said.append((yield 2))
        except KeyError:
            said.append("thrown")
        if not ends:
            yield 3
        return "returned"

    def inside() -> None:
        whole = rows(True)
        assert spans_of(reader) == [""]  # nobody has asked for anything yet
        assert next(whole) == 1
        with span("of the consumer"):
            assert spans_of(reader) == ["of the consumer"]
            assert whole.send("sent") == 2
            assert spans_of(reader) == ["of the consumer"]
        with pytest.raises(StopIteration) as ended:
            whole.throw(KeyError())
        assert ended.value.value == "returned"
        broken_off = rows(False)
        next(broken_off)
        broken_off.close()
        assert spans_of(reader) == [""]

    said: list[str] = []
    found = spans_within(recorder, inside)
    assert [(one.name, one.parent, one.failed) for one in found] == [
        ("of the consumer", 0, None),
        ("rows", 0, None),
        ("rows", 0, None),
    ]
    assert said == ["sent", "thrown"]


@span("rows")
def rows_of(cursor: str) -> Iterator[str]:
    with span(cursor):
        yield cursor
        with span(f"{cursor} fetches"):
            yield cursor
    with span(f"{cursor} is closed"):
        yield cursor


def consume() -> None:
    for _ in rows_of("A"):
        with span("consumer"):
            pass


def interleave() -> None:
    for _ in zip(rows_of("A"), rows_of("B"), strict=True):
        with span("consumer"):
            pass


def break_off() -> None:
    rows = rows_of("A")
    next(rows)
    next(rows)
    rows.close()  # type: ignore[attr-defined]


def in_other_threads() -> None:
    """Each step in a context of its own, with the request that the thread works for or without it."""
    rows = rows_of("A")
    asked = [contextvars.copy_context(), contextvars.Context(), contextvars.copy_context(), contextvars.Context()]
    for place, context in enumerate(asked):
        before = context.run(current.get)
        thread = threading.Thread(target=context.run, args=(next, rows, None))
        thread.start()
        thread.join()
        assert context.run(current.get) is before, place


def end_meanwhile() -> None:
    """What an undecorated one has open, in its midst, ends before it goes on; and what its consumer has, within it."""

    def plain(name: str) -> Iterator[None]:
        with span(name):
            yield

    @span("rows")
    def takes(its: Iterator[None], others: Iterator[None]) -> Iterator[None]:
        next(its)
        yield
        with span("A"):
            yield
        next(others, None)
        yield

    its, others = plain("its"), plain("others")
    next(others)
    rows = takes(its, others)
    next(rows)
    next(its, None)
    next(rows)
    next(rows)


OF_A = {"rows": None, "A": "rows", "A fetches": "A", "A is closed": "rows"}
OF_B = {"B": "rows", "B fetches": "B", "B is closed": "rows"}


@pytest.mark.parametrize(
    ("inside", "expected"),
    [
        pytest.param(consume, {**OF_A, "consumer": None}, id="one"),
        pytest.param(interleave, {**OF_A, **OF_B, "consumer": None}, id="two that take turns"),
        pytest.param(break_off, {"rows": None, "A": "rows", "A fetches": "A"}, id="closed early"),
        pytest.param(in_other_threads, OF_A, id="in other threads"),
        pytest.param(
            end_meanwhile, {"others": None, "rows": "others", "its": "rows", "A": "rows"}, id="spans that end meanwhile"
        ),
    ],
)
def test_spans_that_a_generator_has_open_go_with_it(
    recorder: Recorder, reader: Reader, inside: Callable[[], None], expected: dict[str, str | None]
) -> None:
    def run() -> None:
        inside()
        assert current.get() is here()
        with span("after"):
            assert spans_of(reader) == ["after"]
        assert spans_of(reader) == [""]

    assert tree(spans_within(recorder, run)) == {**expected, "after": None}


def test_a_generator_that_outlives_its_request_goes_on_in_the_next(recorder: Recorder, reader: Reader) -> None:
    rows = rows_of("A")

    def second() -> None:
        with span("consumer"):
            list(rows)
            assert spans_of(reader) == ["consumer"]

    within(recorder, lambda: next(rows))
    assert tree(spans_within(recorder, second)) == {
        "consumer": None,
        "A fetches": "consumer",
        "A is closed": "consumer",
    }
    assert current.get() is None


def test_a_decorated_generator_takes_few_frames_of_the_stack_and_shows_none(recorder: Recorder) -> None:
    @span("levels")
    def levels(more: int) -> Iterator[int]:
        if more:
            yield from levels(more - 1)
        yield len(inspect.stack(0))
        raise KeyError(more)

    def inside() -> None:
        flat, deep = levels(0), levels(10)
        assert next(deep) - next(flat) == 3 * 10
        with pytest.raises(KeyError) as error:
            next(flat)
        assert [frame.function for frame in raised_of(error.value).frames] == ["inside", "levels"]

    within(recorder, inside)


def test_an_asynchronous_generator_stays_as_it_is() -> None:
    async def rows() -> AsyncIterator[int]:
        yield 1

    assert span("rows")(rows) is rows
    assert background_task("rows")(rows) is rows


def test_one_span_may_be_entered_again(recorder: Recorder, reader: Reader) -> None:
    again = span("again")

    def inside() -> None:
        for _ in range(3):
            with again:
                assert spans_of(reader) == ["again"]
            assert spans_of(reader) == [""]

    within(recorder, inside)


def test_without_a_transaction_it_does_nothing(recorder: Recorder) -> None:
    before = recorder.read(recorder.geometry.size, 0)
    with span("nowhere"):
        assert current.get() is None
    assert recorder.read(recorder.geometry.size, 0) == before


def test_a_thread_that_works_for_no_request_has_no_span(recorder: Recorder, reader: Reader) -> None:
    seen: list[list[str]] = []

    def elsewhere() -> None:
        with span("elsewhere"):
            seen.append(spans_of(reader))

    def inside() -> None:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()

    within(recorder, inside)
    assert seen == [[""]]


def test_a_request_without_a_slot_has_no_span(tmp_path: Path) -> None:
    opened = open_recorder(tmp_path, slots=1)
    with_reader = reader_of(opened)

    def inner() -> None:
        with span("of the second"):
            assert spans_of(with_reader) == ["of the first"]

    def outer() -> None:
        with span("of the first"):
            serve(opened, meanwhile=inner)
            assert spans_of(with_reader) == ["of the first"]

    serve(opened, meanwhile=outer)
    assert opened.word(layout.W_UNSLOTTED) == 1
    with_reader.close()
    die(opened)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("x" * 500, "x" * 120),
        ("ü" * 100, "ü" * 60),
        ("x" + "ü" * 100, "x" + "ü" * 59 + "\ufffd"),  # cut in the middle of a character
        ("a\ud800b", "a?b"),
        ("", ""),
        ("with\x00nul", "with\x00nul"),
    ],
)
def test_any_name_will_do(recorder: Recorder, reader: Reader, name: str, shown: str) -> None:
    def inside() -> None:
        with span(name):
            assert spans_of(reader) == [shown]

        @span(name)
        def decorated() -> None:
            seen.extend(spans_of(reader))

        decorated()

    seen: list[str] = []
    within(recorder, inside)
    assert seen == [shown]


def test_what_a_span_writes_stays_within_its_slot(recorder: Recorder) -> None:
    geometry = recorder.geometry

    def rest(slot: int) -> bytes:
        data = recorder.read(geometry.size, 0)
        return data[: slot + layout.SPAN_AT] + data[slot + layout.SPAN_AT + layout.SPAN.size :]

    def inside() -> None:
        transaction: Any = current.get()
        before = rest(transaction.slot)
        with span("x" * 1000):
            assert rest(transaction.slot) == before

    within(recorder, inside)


def test_a_stream_is_in_a_span_while_it_is_asked_for_a_part(recorder: Recorder, reader: Reader) -> None:
    def application(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterator[bytes]:
        start_response("200 OK", [])
        for part in ("first", "second"):
            with span(part):
                seen.append(spans_of(reader))
            yield b"x"

    seen: list[list[str]] = []
    filtered = AgentFilter(application, _Serving(recorder))  # type: ignore[arg-type]
    body: Any = filtered(environ_of(), lambda status, headers, exc_info=None: lambda data: None)
    assert list(body) == [b"x", b"x"]
    body.close()
    assert seen == [["first"], ["second"]]


# -- what outlives its request -------------------------------------------------------------------------------------


class Outlives:
    """A thread that runs in a copy of its request's context, as those of asgiref and anyio do; step by step."""

    def __init__(self) -> None:
        self._context = contextvars.copy_context()
        self.span = span("of what outlives it")

    def run(self, step: Callable[[], object]) -> None:
        thread = threading.Thread(target=self._context.run, args=(step,))
        thread.start()
        thread.join()

    def enters(self) -> None:
        self.run(self.span.__enter__)

    def leaves(self) -> None:
        self.run(lambda: self.span.__exit__(None, None, None))


@pytest.mark.parametrize("entered", ["while it lasts", "after its end", "in the next one"])
def test_what_outlives_its_request_writes_into_nobodys_slot(recorder: Recorder, reader: Reader, entered: str) -> None:
    made: list[Outlives] = []
    slots: list[int] = []

    def first() -> None:
        slots.extend(slot for slot, *_ in recorder.in_flight())
        made.append(Outlives())
        if entered == "while it lasts":
            made[0].enters()
            assert spans_of(reader) == ["of what outlives it"]

    def second() -> None:
        slots.extend(slot for slot, *_ in recorder.in_flight())
        assert spans_of(reader) == [""]
        with span("of the second"):
            if entered == "in the next one":
                made[0].enters()
            assert spans_of(reader) == ["of the second"]
            made[0].leaves()
            assert spans_of(reader) == ["of the second"]
        assert spans_of(reader) == [""]

    within(recorder, first)
    if entered == "after its end":
        before = recorder.read(recorder.geometry.size, 0)
        made[0].enters()
        assert recorder.read(recorder.geometry.size, 0) == before
    within(recorder, second)
    assert slots == slots[:1] * 2  # the second request has the slot that the first one had


FORKS = """
import os, sys
from pathlib import Path
from paste_agent.spans import span
from tests.recorders import open_recorder, reader_of, serve
recorder = open_recorder(Path(sys.argv[1]))
reader = reader_of(recorder)

def inside():
    with span('of the parent'):
        pid = os.fork()
        if pid == 0:
            recorder.detach()
            with span('of the child'):
                os.write(1, repr([one.span for one in reader.in_flight()]).encode())
        else:
            assert os.waitpid(pid, 0)[1] == 0
            os.write(1, repr([one.span for one in reader.in_flight()]).encode())
    if pid == 0:
        os._exit(0)

serve(recorder, meanwhile=inside)
"""


def test_a_span_in_a_forked_child_says_nothing_of_its_parent(tmp_path: Path) -> None:
    assert run_script(FORKS, tmp_path) == "['of the parent']['of the parent']"
