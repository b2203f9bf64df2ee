"""From the moment that the server has an answer its slot says what to count, should the process end there."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.util import FileWrapper

import pytest

from paste_agent.filter import AgentFilter
from paste_agent.recorder import layout
from paste_agent.recorder.reader import InFlight, Reader
from paste_agent.recorder.writer import Recorder
from tests.recorders import (
    _Serving,
    die,
    environ_of,
    in_flight,
    leading,
    open_recorder,
    reader_of,
    requests_of,
    series_of,
    since,
)

Application = Callable[[dict[str, Any], Callable[..., object]], Any]


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    opened = open_recorder(tmp_path)
    yield opened
    die(opened)


def returning(body: Any, status: str = "201 Made") -> Application:
    def application(environ: dict[str, Any], start_response: Callable[..., object]) -> Any:
        environ["paste_agent.route"] = "/items/{id}"
        start_response(status, [])
        return body

    return application


def begin(recorder: Recorder, application: Application, **environ: Any) -> Any:
    """The body that the server gets."""
    filtered = AgentFilter(application, _Serving(recorder))  # type: ignore[arg-type]  # see _Serving
    return filtered(environ_of(**environ), lambda status, headers, exc_info=None: lambda data: None)


def only(reader: Reader) -> InFlight:
    (found,) = reader.in_flight()
    return found


def answered(reader: Reader) -> bool:
    found = only(reader)
    assert (found.series >= 0) is bool(found.answered_ns)
    return bool(found.answered_ns)


def records(reader: Reader) -> list[tuple[Any, ...]]:
    found = list(layout.RECORDS.iter_unpack(reader.chunk(0, 100)))
    return [body for place, body in enumerate(found) if body[5] == place + 1]


def requests_among(reader: Reader) -> list[int]:
    """Series of the records that are requests', rather than of what went on inside of them."""
    found = [series for series, *_ in records(reader)]
    entries = {series: reader.series(series & ~layout.FAILED) for series in found}
    return [series for series in found if (entry := entries[series]) is not None and entry[0] == layout.KIND_SERVER]


def status_of(reader: Reader, series: int) -> str | None:
    entry = reader.series(series & ~layout.FAILED)
    assert entry is not None
    return entry[1][3]


class Sized:
    """An iterable with a length."""

    def __iter__(self) -> Iterator[bytes]:
        return iter([b"x"])

    def __len__(self) -> int:
        return 1


BODIES: dict[str, Callable[[], Any]] = {
    "list": lambda: [b"x"],
    "empty list": list,
    "tuple": lambda: (b"x",),
    "iterator": lambda: iter([b"x", b"y"]),
    "generator": lambda: (part for part in (b"x", b"y")),
    "empty iterator": lambda: iter([]),
    "nothing but empty parts": lambda: iter([b"", b""]),
    "sized": Sized,
}


@pytest.mark.parametrize("kind", BODIES)
def test_the_slot_has_the_series_that_the_record_gets(recorder: Recorder, reader: Reader, kind: str) -> None:
    body = begin(recorder, returning(BODIES[kind]()))
    assert not answered(reader)
    list(body)
    assert answered(reader)
    found = only(reader)
    assert status_of(reader, found.series) == "201"
    assert records(reader) == []  # the client may have all of it by now
    body.close()
    ((series, _, _, start_ns, duration_ns, _),) = records(reader)
    assert (series, start_ns) == (found.series, found.start_ns)
    assert start_ns <= found.answered_ns <= start_ns + duration_ns
    assert reader.in_flight() == []


def test_the_first_part_that_is_not_empty_may_be_all(recorder: Recorder, reader: Reader) -> None:
    body = begin(recorder, returning(iter([b"", b"x", b"y"])))
    parts = iter(body)
    assert next(parts) == b""
    assert not answered(reader)
    assert next(parts) == b"x"
    first_ns = only(reader).answered_ns
    assert first_ns
    next(parts)
    assert only(reader).answered_ns == first_ns
    body.close()
    assert len(records(reader)) == 1


def test_a_file_is_handed_over_with_its_first_sight(recorder: Recorder, reader: Reader) -> None:
    body = begin(recorder, returning(FileWrapper(io.BytesIO(b"x"))), **{"wsgi.file_wrapper": FileWrapper})
    assert type(body) is FileWrapper
    assert answered(reader)
    body.close()
    assert len(records(reader)) == 1
    assert reader.in_flight() == []


def test_an_application_that_raises_hands_nothing_over(recorder: Recorder, reader: Reader) -> None:
    def application(environ: dict[str, Any], start_response: Callable[..., object]) -> Any:
        raise ValueError

    with pytest.raises(ValueError):
        begin(recorder, application)
    (series,) = requests_among(reader)
    assert series & layout.FAILED
    assert reader.in_flight() == []


def test_a_body_that_fails_after_its_first_part_is_recorded_as_failed(recorder: Recorder, reader: Reader) -> None:
    def parts() -> Iterator[bytes]:
        yield b"x"
        raise ValueError

    body = begin(recorder, returning(parts(), "200 OK"))
    stream = iter(body)
    next(stream)
    before = only(reader).series
    assert not before & layout.FAILED
    with pytest.raises(ValueError):
        next(stream)
    body.close()
    (series,) = requests_among(reader)
    assert series & layout.FAILED
    assert reader.in_flight() == []


@pytest.mark.parametrize("status", ["500 No", "503 No"])
def test_a_failed_answer_says_so_in_its_slot(recorder: Recorder, reader: Reader, status: str) -> None:
    body = begin(recorder, returning([b"x"], status))
    list(body)
    assert only(reader).series & layout.FAILED
    body.close()


def test_a_route_that_comes_to_light_while_a_stream_runs_is_counted(recorder: Recorder, reader: Reader) -> None:
    environ: dict[str, Any] = environ_of()

    def parts() -> Iterator[bytes]:
        yield b"x"
        environ["paste_agent.route"] = "/late"
        yield b"y"

    def application(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterator[bytes]:
        start_response("200 OK", [])
        return parts()

    filtered = AgentFilter(application, _Serving(recorder))  # type: ignore[arg-type]
    body: Any = filtered(environ, lambda status, headers, exc_info=None: lambda data: None)
    list(body)
    body.close()
    ((series, *_),) = records(reader)
    entry = reader.series(series)
    assert entry is not None
    assert entry[1][2] == "/late"


def test_a_slot_that_is_taken_again_has_no_answer(recorder: Recorder, reader: Reader) -> None:
    body = begin(recorder, returning([b"x"]))
    list(body)
    body.close()
    slot_before = begin(recorder, returning([b"x"]))
    assert not answered(reader)
    slot_before.close()


def test_without_a_slot_there_is_nothing_to_say(tmp_path: Path) -> None:
    opened = open_recorder(tmp_path, slots=1)
    with_reader = reader_of(opened)
    first, second = (begin(opened, returning(iter([b"x"]))) for _ in range(2))
    list(second)
    assert not answered(with_reader)
    second.close()
    first.close()
    assert len(records(with_reader)) == 2
    with_reader.close()
    die(opened)


# -- what the application leaves in the environ --------------------------------------------------------------------


class Detached:
    """As a row of an ORM's whose session is gone: whatever is asked of it raises."""

    routepath: Any

    def __hash__(self) -> int:
        raise RuntimeError("detached")

    def __str__(self) -> str:
        raise RuntimeError("detached")


def of_routes() -> Detached:
    route = Detached()
    route.routepath = Detached()
    return route


IN_THE_WAY: dict[str, Callable[[], dict[str, Any]]] = {
    "a named value": lambda: {"wsgiorg.routing_args": ((), {"item": Detached()})},
    "a positional value": lambda: {"wsgiorg.routing_args": ((Detached(),), {})},
    "the route of Routes": lambda: {"wsgiorg.routing_args": ((), {}), "routes.route": of_routes()},
    "a route of its own": lambda: {"paste_agent.route": Detached()},
}


@pytest.mark.parametrize("status", ["200 OK", "503 No"])
@pytest.mark.parametrize("kind", IN_THE_WAY)
def test_objects_that_raise_cost_the_request_its_route_and_nothing_else(
    recorder: Recorder, tmp_path: Path, kind: str, status: str
) -> None:
    def application(environ: dict[str, Any], start_response: Callable[..., object]) -> list[bytes]:
        environ.update(IN_THE_WAY[kind]())
        start_response(status, [])
        return [b"x"]

    faults: list[str] = []
    recorder.on_fault = lambda where, fault: faults.append(f"{where}: {fault}")
    for asked in (returning([b"x"]), application, returning([b"x"])):
        body = begin(recorder, asked)
        assert list(body) == [b"x"]
        body.close()
    assert faults == ["hand over: detached"]
    assert list(recorder.in_flight()) == []
    die(recorder)
    with leading(tmp_path) as lead:
        assert lead.drain() == (4 if status[0] == "5" else 3)  # an error has a record of its own
        assert requests_of(lead.store) == {("GET", "/items/{id}", 201): 2, ("GET", None, int(status[:3])): 1}
        assert lead.store.counters().get(("paste_agent.records.dropped", '{"reason": "unwritten"}'), 0) == 0


def test_a_request_that_cannot_be_counted_takes_no_number_of_the_ring(
    recorder: Recorder, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number that is taken and not written is a hole, and the drain waits a minute for it."""

    def fail(*arguments: object) -> int:
        raise MemoryError("ours")

    faults: list[str] = []
    recorder.on_fault = lambda where, fault: faults.append(where)
    with monkeypatch.context() as patched:
        patched.setattr(Recorder, "intern_server", fail)
        for _ in range(3):
            body = begin(recorder, returning([b"x"]))
            assert list(body) == [b"x"]
            body.close()
    assert set(faults) == {"hand over"}
    assert (recorder.last, reader.in_flight()) == (-1, [])
    body = begin(recorder, returning([b"x"]))
    body.close()
    assert (recorder.last, len(records(reader))) == (0, 1)


# -- pinned --------------------------------------------------------------------------------------------------------


def test_a_copy_that_is_pinned_says_nothing_of_an_answer(recorder: Recorder, reader: Reader) -> None:
    """Whether there was one the slot itself tells, or the record: the copy outlives both."""
    body = begin(recorder, returning([b"x"]))
    list(body)
    answered_ns = only(reader).answered_ns
    recorder.pin()
    assert only(reader).answered_ns == answered_ns > 0
    body.close()
    assert (only(reader).series, only(reader).answered_ns) == (-1, 0)


@pytest.mark.parametrize("copy_lies_first", [False, True])
def test_an_answer_after_the_pin_is_seen_wherever_the_copy_lies(
    recorder: Recorder, reader: Reader, copy_lies_first: bool
) -> None:
    first = recorder.pop_slot()
    if not copy_lies_first:
        recorder.push_slot(first)
    slot = in_flight(recorder, since(2))
    if copy_lies_first:
        recorder.push_slot(first)
    recorder.pin()
    assert not answered(reader)
    number, now_ns = series_of(recorder, "/late"), since(1)
    layout.ANSWER.pack_into(recorder.buffer, slot + layout.ANSWER_AT, number + 1, now_ns)
    assert (only(reader).series, only(reader).answered_ns) == (number, now_ns)


# -- records of those that have ended ------------------------------------------------------------------------------


def test_what_has_left_a_record_is_found_among_the_last(recorder: Recorder, reader: Reader) -> None:
    starts = []
    for _ in range(600):
        body = begin(recorder, returning([b"x"]))
        starts.append(only(reader).start_ns)
        body.close()
    assert set(reader.finished_among(set(starts[-300:]), 600)) == set(starts[-300:])
    assert reader.finished_among({starts[0], 5}, 600, most=512) == {}  # too long ago to be in flight
    assert reader.finished_among({starts[0]}, 10) == {starts[0]: False}
    assert reader.finished_among({starts[20]}, 10) == {}  # it came after
    assert reader.finished_among(set(), 600) == {}
    assert reader.finished_among(set(starts), 0) == {}
