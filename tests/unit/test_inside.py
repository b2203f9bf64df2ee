"""What a transaction has inside of it: spans, what they add up to, queries worth a look, and what services are told."""

from __future__ import annotations

import contextvars
import itertools
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from paste_agent.aggregate import (
    CALL_DURATION,
    DATABASE_DURATION,
    PART_DURATION,
    PART_SPANS,
    REPORT_DURATION,
    REQUEST_DURATION,
    TASK_DURATION,
)
from paste_agent.inside import CALL, DATABASE, FUNCTION, MAX_SPANS, MOST_SPANS, TEMPLATE, Inside
from paste_agent.recorder import layout
from paste_agent.recorder.layout import KEPT_QUERIES
from paste_agent.recorder.writer import Recorder
from paste_agent.spans import Span, begin, end, span, timed
from paste_agent.store.store import Store
from paste_agent.transaction import current
from tests.recorders import counts_of, die, leading, open_recorder, reader_of, requests_of, serve, spans_within
from tests.within import CALL_KEY, here, inside_of, sampler

KEY = (layout.KIND_DATABASE, ("sqlite", "main", "SELECT", "items", "SELECT items", None))
FAILED_KEY = (layout.KIND_DATABASE, ("sqlite", "main", "SELECT", "items", "SELECT items", "Busy"))
ITEMS = json.dumps(
    {
        "db.collection.name": "items",
        "db.namespace": "main",
        "db.operation.name": "SELECT",
        "db.query.summary": "SELECT items",
        "db.system.name": "sqlite",
    }
)


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    opened = open_recorder(tmp_path, sampler=sampler())
    yield opened
    die(opened)


def query(text: bytes = b"SELECT items", failed: str | None = None, **attributes: object) -> None:
    begun = begin(DATABASE, text)
    assert begun is not None
    end(begun, "SELECT items", KEY if failed is None else FAILED_KEY, failed, attributes)


def part_spans(store: Store) -> dict[str, int]:
    """Spans by the part of a transaction that they are."""
    return {
        str(one.attributes["paste_agent.part"]): one.total.sum_ns for one in store.totals() if one.metric == PART_SPANS
    }


# -- spans in spans ------------------------------------------------------------------------------------------------


def test_spans_know_what_is_around_them_and_what_they_took_themselves(recorder: Recorder) -> None:
    def run() -> None:
        with span("outer"):
            with span("first"):
                query()
                query()
            with span("second"):
                pass
        with span("alone"):
            pass

    found = {(one.number, one.name): one for one in spans_within(recorder, run)}
    assert [(one.number, one.name, one.parent) for one in sorted(found.values())] == [
        (1, "outer", 0),
        (2, "first", 1),
        (3, "SELECT items", 2),
        (4, "SELECT items", 2),
        (5, "second", 1),
        (6, "alone", 0),
    ]
    for one in found.values():
        children = [child.duration_ns for child in found.values() if child.parent == one.number]
        assert one.own_ns == one.duration_ns - sum(children) >= 0
        around = [other for other in found.values() if other.number == one.parent]
        for other in around:
            assert other.start_ns <= one.start_ns
            assert one.start_ns + one.duration_ns <= other.start_ns + other.duration_ns


def test_a_span_says_what_it_is_of_and_whether_it_failed(recorder: Recorder) -> None:
    def divide() -> None:
        with span("divide") as one:
            one.set("by", 0)
            1 / 0  # noqa: B018

    def run() -> None:
        query(failed="Busy", rows=3)
        with pytest.raises(ZeroDivisionError):
            divide()
        assert timed(TEMPLATE, "page.mako", lambda a, b: a + b, 1, b=2) == 3
        with pytest.raises(KeyError):
            timed(TEMPLATE, "broken.mako", {}.__getitem__, "x")

    found = [(one.category, one.name, one.failed, one.attributes) for one in spans_within(recorder, run)]
    assert found == [
        (DATABASE, "SELECT items", "Busy", {"rows": 3}),
        (FUNCTION, "divide", "ZeroDivisionError", {"by": 0}),
        (TEMPLATE, "page.mako", None, None),
        (TEMPLATE, "broken.mako", "KeyError", None),
    ]


def test_the_attributes_of_a_span_are_bounded(recorder: Recorder) -> None:
    def run() -> None:
        with span("many") as one:
            for place in range(1000):
                one.set(f"a{place}", place)

    (found,) = spans_within(recorder, run)
    assert found.attributes == {f"a{place}": place for place in range(64)}


def test_more_spans_than_are_remembered_are_counted(tmp_path: Path) -> None:
    recorder, more = open_recorder(tmp_path, records=4096, sampler=sampler()), MAX_SPANS + 88

    def run() -> None:
        for _ in range(more):
            query()

    found = spans_within(recorder, run)
    assert [one.number for one in found] == list(range(1, MAX_SPANS + 1))
    assert recorder.word(layout.W_SPANS_DROPPED) == 0
    die(recorder)
    with leading(tmp_path) as lead:
        lead.drain()
        assert counts_of(lead.store, DATABASE_DURATION) == {ITEMS: more}
        assert part_spans(lead.store) == {"database": more}
        assert requests_of(lead.store) == {("GET", None, 200): 1}


def test_a_span_that_ends_before_one_inside_of_it_costs_neither(recorder: Recorder) -> None:
    def run() -> None:
        outer, inner = begin(FUNCTION, b"outer"), begin(FUNCTION, b"inner")
        assert outer is not None
        assert inner is not None
        end(outer, "outer")
        assert current.get() is inner
        end(inner, "inner")

    found = {one.name: one for one in spans_within(recorder, run)}
    assert found["inner"].parent == found["outer"].number
    assert current.get() is None


# -- threads -------------------------------------------------------------------------------------------------------


def in_threads(*steps: Callable[[], object]) -> None:
    """Run each in a thread and a copy of this context, as those who work for one request do."""
    failures: list[BaseException] = []

    def run(step: Callable[[], object]) -> None:
        try:
            step()
        except BaseException as failure:
            failures.append(failure)

    contexts = [contextvars.copy_context() for _ in steps]
    threads = [
        threading.Thread(target=context.run, args=(run, step)) for context, step in zip(contexts, steps, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []


def test_threads_of_one_transaction_each_have_their_own_place(recorder: Recorder) -> None:
    together = threading.Barrier(4)

    def work(name: str) -> None:
        with span(name):
            for _ in range(20):
                together.wait(60)
                query()

    def run() -> None:
        with span("outer"):
            in_threads(*[lambda name=name: work(name) for name in "abcd"])
            assert isinstance(current.get(), Span)

    found = spans_within(recorder, run)
    numbers = {one.name: one.number for one in found if one.category == FUNCTION}
    assert len({one.number for one in found}) == len(found) == 5 + 4 * 20
    assert {one.parent for one in found if one.name in "abcd"} == {numbers["outer"]}
    for name in "abcd":
        assert sum(one.parent == numbers[name] for one in found) == 20


def test_what_threads_do_at_once_takes_nothing_from_the_span_around_them(recorder: Recorder, tmp_path: Path) -> None:
    """Their times add up to more than it lasts; its own is none, and not less than none."""
    together = threading.Barrier(3)

    def work() -> None:
        begun = begin(DATABASE, b"SELECT items")
        assert begun is not None
        together.wait(60)
        # Together they last longer than the span around them, however long it takes to begin and to end them.
        time.sleep(0.2 + 2 * (time.monotonic() - since))
        end(begun, "SELECT items", KEY)

    since = time.monotonic()

    def run() -> None:
        begun = begin(TEMPLATE, b"page.mako")
        assert begun is not None
        in_threads(work, work, work)
        end(begun, "page.mako")
        assert inside_of().parts[TEMPLATE] == [1, 0]
        assert inside_of().parts[DATABASE][1] > 60_000_000

    found = {one.name: one for one in spans_within(recorder, run)}
    assert found["page.mako"].own_ns == 0
    now_ns, reader = time.perf_counter_ns(), reader_of(recorder)
    written = [body for body in layout.RECORDS.iter_unpack(reader.chunk(0, 100)) if body[5]]
    assert len(written) == 3 + 2 + 1
    # The drain stops before a record that ends later than now; nothing behind it would be counted until then.
    assert all(start_ns + duration_ns <= now_ns for _, _, _, start_ns, duration_ns, _ in written)
    reader.close()
    die(recorder)
    with leading(tmp_path) as lead:
        lead.drain()
        assert part_spans(lead.store) == {"database": 3, "template": 1}
        assert counts_of(lead.store, DATABASE_DURATION) == {ITEMS: 3}


@pytest.mark.parametrize("kinds", [(FUNCTION, FUNCTION, FUNCTION), (DATABASE, CALL, TEMPLATE)])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_spans_may_end_in_any_order_and_nothing_after_is_inside_of_them(
    recorder: Recorder, kinds: tuple[int, ...], order: tuple[int, ...]
) -> None:
    def run() -> None:
        outside = current.get()
        with span("around"):
            around = current.get()
            begun = [begin(kind, f"{number}".encode()) for number, kind in enumerate(kinds)]
            for number in order:
                one = begun[number]
                assert one is not None
                end(one, f"{number}")
            assert current.get() is around
            with span("after"):
                pass
        assert current.get() is outside

    found = {one.name: one for one in spans_within(recorder, run)}
    names = {one.number: one.name for one in found.values()}
    assert {name: names.get(one.parent) for name, one in found.items()} == {
        "around": None, "0": "around", "1": "0", "2": "1", "after": "around",
    }  # fmt: skip


def test_a_span_that_ends_after_its_transaction_is_counted_and_belongs_to_none(
    recorder: Recorder, tmp_path: Path
) -> None:
    made: list[Any] = []

    def run() -> None:
        query()
        made.append(begin(DATABASE, b"SELECT late"))
        made.append(inside_of())

    serve(recorder, meanwhile=run)
    late, inside = made
    before = list(inside.finished), {part: list(spent) for part, spent in inside.parts.items()}
    end(late, "SELECT late", KEY)
    assert (inside.finished, inside.parts) == before
    assert current.get() is None  # nor is this thread in anything that has ended
    die(recorder)
    with leading(tmp_path) as lead:
        lead.drain()
        assert counts_of(lead.store, DATABASE_DURATION) == {ITEMS: 2}
        assert part_spans(lead.store) == {"database": 1}
        assert requests_of(lead.store) == {("GET", None, 200): 1}


def test_what_begins_after_the_end_of_its_transaction_is_nothing(recorder: Recorder) -> None:
    made: list[contextvars.Context] = []
    serve(recorder, meanwhile=lambda: made.append(contextvars.copy_context()))
    last = recorder.last
    assert made[0].run(begin, DATABASE, b"SELECT items") is None
    assert recorder.last == last


# -- counts --------------------------------------------------------------------------------------------------------


def test_spans_and_parts_are_counted_exactly(recorder: Recorder, tmp_path: Path) -> None:
    def page(queries: int, failing: int) -> Callable[[], None]:
        def run() -> None:
            for _ in range(queries):
                query()
            for _ in range(failing):
                query(failed="Busy")
            begun = begin(CALL, b"GET http://stock.example/")
            assert begun is not None
            end(begun, "GET", CALL_KEY)
            with span("counted under nothing"):
                pass

        return run

    for queries, failing in ((3, 0), (0, 2), (5, 1)):
        serve(recorder, "/items", route="/items", meanwhile=page(queries, failing))
    serve(recorder, "/other")
    die(recorder)
    with leading(tmp_path) as lead:
        lead.drain()
        store = lead.store
        failed = json.dumps({**json.loads(ITEMS), "error.type": "Busy"}, sort_keys=True)
        assert counts_of(store, DATABASE_DURATION) == {ITEMS: 8, failed: 3}
        call = '{"http.request.method": "GET", "http.response.status_code": 200, "server.address": "stock.example", '
        assert counts_of(store, CALL_DURATION) == {call + '"server.port": 80}': 3}
        part = '{{"http.request.method": "GET", "http.route": "/items", "paste_agent.part": "{}"}}'.format
        assert counts_of(store, PART_DURATION) == {part("call"): 3, part("database"): 3}
        assert counts_of(store, PART_SPANS) == {part("call"): 3, part("database"): 3}
        assert part_spans(store) == {"call": 3, "database": 11}
        assert requests_of(store) == {("GET", "/items", 200): 3, ("GET", None, 200): 1}
        (duration,) = [one for one in store.totals() if one.metric == PART_DURATION and "database" in str(one)]
        spent = sum(one.total.sum_ns for one in store.totals() if one.metric == DATABASE_DURATION)
        assert duration.total.sum_ns == spent
        assert [row.requests for row in store.recorders()] == [4]


def test_spans_give_way_to_requests_when_the_ring_is_nearly_full(recorder: Recorder, tmp_path: Path) -> None:
    queries = 2000

    def run() -> None:
        for _ in range(queries):
            query()

    serve(recorder, meanwhile=run)
    dropped = recorder.word(layout.W_SPANS_DROPPED)
    assert 1000 < dropped < queries
    left_before = recorder.last + 1
    for _ in range(200):
        serve(recorder, meanwhile=query)
    assert recorder.last + 1 == left_before + 200  # not one of their spans, and all of them
    assert recorder.word(layout.W_DROPPED) == 0
    # A span and a part each, and the part of the first one.
    assert recorder.word(layout.W_SPANS_DROPPED) == dropped + 2 * 200
    own = reader_of(recorder)
    with leading(tmp_path) as lead:
        time.sleep(0.15)  # what is younger than a tenth of a second is left for the next drain
        lead.drain()
        serve(recorder, meanwhile=query)  # there is room again
        assert recorder.word(layout.W_SPANS_DROPPED) == dropped + 400
        time.sleep(0.15)
        lead.drain()
        assert requests_of(lead.store) == {("GET", None, 200): 202}
        counted = counts_of(lead.store, DATABASE_DURATION)[ITEMS]
        parts = sum(counts_of(lead.store, PART_DURATION).values())
        assert counted + parts + dropped + 400 == (queries + 1) + 2 * 200 + 2
        assert lead.store.counters()["paste_agent.spans.dropped", '{"reason": "ring_full"}'] == dropped + 400
    own.close()


# -- queries worth a look ------------------------------------------------------------------------------------------


def test_a_statement_that_repeats_is_notable_once_it_is_as_often_as_that(tmp_path: Path) -> None:
    recorder = open_recorder(tmp_path, sampler=sampler(repeated=3))
    lines: list[int] = []

    def run() -> None:
        for place in range(5):
            if place == 2:
                assert not inside_of().notable
            query(b"SELECT other")
            begun = begin(DATABASE, b"SELECT items")
            assert begun is not None
            lines.append(sys._getframe().f_lineno + 1)
            end(begun, "SELECT items", KEY)
            assert inside_of().notable is (place >= 2)

    found = spans_within(recorder, run)
    places = {one.number: one.code for one in found if one.code is not None}
    # The third of each: 5 others and 5 of ours in turns.
    assert set(places) == {5, 6}
    assert places[6] == (__file__, lines[2], "run")
    assert places[5] is not None
    assert places[5][::2] == (__file__, "query")
    assert [kept.why for kept in recorder.kept] == [KEPT_QUERIES]
    die(recorder)


def test_a_slow_query_is_notable_and_says_where_it_was_issued(tmp_path: Path) -> None:
    recorder = open_recorder(tmp_path, sampler=sampler(slow_query_ns=0))

    def run() -> None:
        query()
        assert inside_of().notable

    (found,) = spans_within(recorder, run)
    assert found.code is not None
    assert found.code[::2] == (__file__, "query")
    (kept,) = recorder.kept
    assert kept.why == KEPT_QUERIES
    assert kept.inside is not None
    die(recorder)


def test_quick_queries_that_differ_are_nothing_to_look_at(recorder: Recorder) -> None:
    def run() -> None:
        for place in range(50):
            query(b"SELECT %d" % place)
        assert not inside_of().notable

    assert {one.code for one in spans_within(recorder, run)} == {None}
    assert list(recorder.kept) == []


def test_only_queries_are_looked_at(tmp_path: Path) -> None:
    recorder = open_recorder(tmp_path, sampler=sampler(slow_query_ns=0, repeated=2))

    def run() -> None:
        for _ in range(5):
            with span("no query"):
                pass
        assert not inside_of().notable

    spans_within(recorder, run)
    assert list(recorder.kept) == []
    die(recorder)


def test_traces_of_queries_have_a_budget_of_their_own(tmp_path: Path) -> None:
    recorder = open_recorder(tmp_path, sampler=sampler(slow_query_ns=0, queries=7))
    for _ in range(30):
        serve(recorder, meanwhile=query)
    assert [kept.why for kept in recorder.kept] == [KEPT_QUERIES] * 7
    die(recorder)


# -- what the application says of its transaction ------------------------------------------------------------------


def says(**of_inside: Any) -> Callable[[], None]:
    def run() -> None:
        transaction = here()
        inside = transaction.inside = transaction.inside or Inside()
        for name, value in of_inside.items():
            setattr(inside, name, value)

    return run


def test_a_transaction_that_is_ignored_leaves_no_record_and_no_hole(recorder: Recorder, tmp_path: Path) -> None:
    serve(recorder, meanwhile=says(ignored=True))
    assert recorder.last == -1
    assert list(recorder.in_flight()) == []
    serve(recorder, status="503 No", meanwhile=says(ignored=True))
    serve(recorder)
    assert (recorder.last, list(recorder.kept)) == (0, [])
    die(recorder)
    with leading(tmp_path) as lead:
        lead.drain()
        assert requests_of(lead.store) == {("GET", None, 200): 1}
        assert {one.metric for one in lead.store.totals()} <= {REQUEST_DURATION, REPORT_DURATION}


def test_a_transaction_that_is_a_task_is_counted_as_one(recorder: Recorder, tmp_path: Path) -> None:
    def run() -> None:
        query()
        says(task="send mail")()

    serve(recorder, "/cron/mail", route="/cron/{job}", meanwhile=run)

    def fails() -> None:
        says(task="send mail")()
        raise KeyError("x")

    with pytest.raises(KeyError):
        serve(recorder, "/cron/mail", meanwhile=fails)
    die(recorder)
    with leading(tmp_path) as lead:
        lead.drain()
        assert requests_of(lead.store) == {}
        assert counts_of(lead.store, TASK_DURATION) == {
            '{"paste_agent.task.name": "send mail"}': 1,
            '{"error.type": "KeyError", "paste_agent.task.name": "send mail"}': 1,
        }
        assert counts_of(lead.store, PART_DURATION) == {'{"paste_agent.part": "database"}': 1}
        (failed,) = [one for one in lead.store.totals() if one.metric == TASK_DURATION and "KeyError" in str(one)]
        assert failed.total.frustrated == 1


def test_a_transaction_is_counted_under_the_name_that_it_was_given(recorder: Recorder, tmp_path: Path) -> None:
    serve(recorder, route="/of/the/framework", meanwhile=says(name="/own"))
    die(recorder)
    with leading(tmp_path) as lead:
        lead.drain()
        assert requests_of(lead.store) == {("GET", "/own", 200): 1}


# -- bounds --------------------------------------------------------------------------------------------------------


def test_of_too_many_spans_the_ones_that_tell_most_are_kept(recorder: Recorder) -> None:
    def run() -> None:
        with span("view"), span("list"):
            for _ in range(MAX_SPANS):
                query()
            with span("left out"):
                query()
            with span("around a failure"):
                query()
                query(failed="Busy")
                query()
            recorder.sampler.slow_query_ns = 0
            query(b"SELECT pg_sleep(1)")

    found = spans_within(recorder, run)
    assert [one.name for one in found[MAX_SPANS:]] == [
        "SELECT items", "around a failure", "SELECT items", "list", "view",
    ]  # fmt: skip
    failed, around, slow, loop, view = found[MAX_SPANS:]
    assert (failed.failed, failed.parent, around.parent) == ("Busy", around.number, loop.number)
    assert (slow.parent, loop.parent) == (loop.number, view.number)
    assert slow.code is not None


def test_spans_that_tell_most_are_bounded_too(recorder: Recorder) -> None:
    def run() -> None:
        with span("view"):
            for _ in range(2000):
                with span("step"):
                    query(failed="Busy")
            recorder.sampler.slow_query_ns = 0
            for _ in range(2000):
                with span("step"):
                    query()
        dropped.append(inside_of().left_out.count)

    dropped: list[int] = []
    found = spans_within(recorder, run)
    assert found[-1].name == "view"
    assert [one.failed for one in found[-6:-1:2]] == [None] * 3  # failures have left room for what is slow
    assert len(found) <= MOST_SPANS
    assert dropped == [1 + 2 * 4000 - len(found)]


def test_statements_that_never_repeat_are_not_all_remembered(recorder: Recorder) -> None:
    found: list[int] = []

    def run() -> None:
        for number in range(MAX_SPANS + 100):
            end(begin(DATABASE, f"SELECT {number}".encode()), "SELECT")  # type: ignore[arg-type]
        within = current.get()
        assert within is not None
        assert within.transaction.inside is not None
        found.append(len(within.transaction.inside.queries))

    serve(recorder, meanwhile=run)
    assert found == [MAX_SPANS]


class Hostile:
    def __str__(self) -> str:
        raise AssertionError("nobody asked for it")


def test_a_span_takes_only_attributes_that_can_be_sent(recorder: Recorder) -> None:
    def run() -> None:
        with span("work") as one:
            one.set("text", "x" * 5000)
            one.set("number", 7)
            one.set("object", Hostile())  # type: ignore[arg-type]
            one.set("nan", float("nan"))
            one.set("too large", 1 << 63)
            one.set(Hostile(), 1)  # type: ignore[arg-type]

    (found,) = spans_within(recorder, run)
    assert found.attributes == {"text": "x" * 1024, "number": 7}
