"""`trace_functions`: what is named gets a span; what cannot have one is told of, in one line; all else is as it was."""

from __future__ import annotations

import importlib
import inspect
import itertools
import logging
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paste_agent import filter as agent_filter
from paste_agent import functions, on_import
from paste_agent.inside import FUNCTION
from paste_agent.recorder.writer import Recorder
from tests.recorders import die, open_recorder, reader_of, spans_within

MODULE = '''
import functools

LOOK = []

def reserve(amount, name="x", *, category=1, call=None):
    """Reserves."""
    for look in LOOK:
        look()
    return [amount, name, category, call]

def fails():
    raise LookupError("the application's own")

def calls():
    return reserve(1)

def generates():
    yield 1

async def waits():
    return 1

async def generates_and_waits():
    yield 1

@functools.lru_cache
def cached():
    return 1

limit = 7
builtin = len

class Base:
    def inherited(self):
        return [type(self).__name__, "inherited"]

class Mailer(Base):
    kept = "a value"

    def __init__(self, host="h"):
        self.host = host

    def send(self, to):
        return [self.host, to]

    @classmethod
    def make(cls, host):
        return cls(host)

    @staticmethod
    def plain(value):
        return value

    @property
    def address(self):
        return self.host

    def _generates(self):
        yield 1

    class Inner:
        def deep(self):
            return "deep"

class Urgent(Mailer):
    def send(self, to):
        return ["urgent", *super().send(to)]

class Slotted:
    __slots__ = ()
'''
_numbers = itertools.count()


class Place:
    def __init__(self) -> None:
        self.name = f"functions_module_{next(_numbers)}"
        self.warnings: list[tuple[str, str]] = []

    def warn(self, kind: str, line: str) -> None:
        self.warnings.append((kind, line))

    def trace(self, *paths: str) -> Any:
        """The module with these functions traced."""
        functions.install([f"{self.name}:{path}" for path in paths], self.warn)
        return importlib.import_module(self.name)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    made = Place()
    (tmp_path / f"{made.name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield made
    sys.modules.pop(made.name, None)
    on_import._waiting.pop(made.name, None)


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    (tmp_path / "run").mkdir()
    opened = open_recorder(tmp_path / "run")
    yield opened
    die(opened)


def test_a_function_has_a_span(place: Place, recorder: Recorder) -> None:
    module = place.trace("reserve", "fails")
    seen: list[str] = []
    module.LOOK.append(lambda: seen.extend(one.span for one in reader_of(recorder).in_flight()))

    def run() -> None:
        assert module.reserve(3, name="n", category=4, call=5) == [3, "n", 4, 5]
        with pytest.raises(LookupError, match="the application's own") as raised:
            module.fails()
        assert raised.value.__context__ is None

    found = spans_within(recorder, run)
    assert [(one.category, one.name, one.failed) for one in found] == [
        (FUNCTION, f"{place.name}.reserve", None),
        (FUNCTION, f"{place.name}.fails", "LookupError"),
    ]
    assert seen == [f"{place.name}.reserve"]
    assert place.warnings == []


def test_spans_within_spans(place: Place, recorder: Recorder) -> None:
    module = place.trace("reserve", "calls")
    inner, outer = spans_within(recorder, module.calls)
    assert (inner.name, outer.name) == (f"{place.name}.reserve", f"{place.name}.calls")
    assert (inner.parent, outer.parent) == (outer.number, 0)
    assert outer.own_ns == outer.duration_ns - inner.duration_ns


def test_methods_of_each_kind(place: Place, recorder: Recorder) -> None:
    paths = ["send", "make", "plain", "inherited", "__init__", "Inner.deep"]
    module = place.trace(*(f"Mailer.{path}" for path in paths))
    plain_base = module.Base()

    def run() -> None:
        mailer = module.Mailer.make("a host")
        assert mailer.send(to="me") == ["a host", "me"]
        assert module.Mailer.plain(3) == mailer.plain(3) == 3
        assert mailer.inherited() == ["Mailer", "inherited"]
        assert module.Mailer.Inner().deep() == "deep"
        urgent = module.Urgent.make("another")
        assert type(urgent) is module.Urgent
        assert urgent.send("you") == ["urgent", "another", "you"]
        assert plain_base.inherited() == ["Base", "inherited"]  # of another class: has none

    names = [one.name.removeprefix(f"{place.name}.Mailer.") for one in spans_within(recorder, run)]
    assert names == [
        "__init__",
        "make",
        "send",
        "plain",
        "plain",
        "inherited",
        "Inner.deep",
        "__init__",
        "make",
        "send",
    ]
    assert place.warnings == []


def test_outside_of_a_request_nothing_happens(place: Place, recorder: Recorder) -> None:
    module = place.trace("reserve")
    before = recorder.read(recorder.geometry.size, 0)
    assert module.reserve(1) == [1, "x", 1, None]
    assert recorder.read(recorder.geometry.size, 0) == before


def test_a_function_looks_as_it_did(place: Place) -> None:
    module = place.trace("reserve", "Mailer.send")
    assert module.reserve.__name__ == "reserve"
    assert module.reserve.__doc__ == "Reserves."
    assert str(inspect.signature(module.reserve)) == "(amount, name='x', *, category=1, call=None)"
    assert pickle.loads(pickle.dumps(module.reserve)) is module.reserve
    assert module.Mailer.send.__qualname__ == "Mailer.send"


def test_a_module_that_has_been_imported_already(place: Place, recorder: Recorder) -> None:
    module = importlib.import_module(place.name)
    copied = module.reserve
    assert place.trace("reserve", "builtin") is module
    assert [one.name for one in spans_within(recorder, lambda: module.builtin(module.reserve(1)))] == [
        f"{place.name}.reserve",
        f"{place.name}.builtin",
    ]
    assert spans_within(recorder, lambda: copied(1)) == []  # the limitation


def test_twice_is_once(place: Place, recorder: Recorder) -> None:
    module = place.trace("reserve", "Mailer.make", "Mailer.plain")
    place.trace("reserve", "Mailer.make", "Mailer.plain")
    functions._registered.clear()  # and as if nobody remembered
    before = module.reserve, vars(module.Mailer)["make"], vars(module.Mailer)["plain"]
    place.trace("reserve", "Mailer.make", "Mailer.plain")
    assert (module.reserve, vars(module.Mailer)["make"], vars(module.Mailer)["plain"]) == before
    assert len(spans_within(recorder, lambda: module.reserve(1))) == 1


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("nope", "{module} has no nope"),
        ("Mailer.nope", "Mailer has no nope"),
        ("Nope.send", "{module} has no Nope"),
        ("reserve.send", "reserve is no class"),
        ("limit", "it is no plain function, but int"),
        ("Mailer", "it is no plain function, but type"),
        ("Mailer.kept", "it is no plain function, but str"),
        ("Mailer.address", "it is no plain function, but property"),
        ("cached", "it is no plain function, but _lru_cache_wrapper"),
        ("generates", "it is a generator or a coroutine, whose call only prepares the work"),
        ("waits", "it is a generator or a coroutine, whose call only prepares the work"),
        ("generates_and_waits", "it is a generator or a coroutine, whose call only prepares the work"),
        ("Mailer._generates", "it is a generator or a coroutine, whose call only prepares the work"),
        ("Slotted.__init__", "it is no plain function, but wrapper_descriptor"),
    ],
)
def test_what_cannot_have_a_span_is_told_once(place: Place, path: str, reason: str) -> None:
    module = place.trace(path, "reserve")
    place.trace(path)
    name = f"{place.name}:{path}"
    assert place.warnings == [
        (
            f"trace_functions {name}",
            f"trace_functions: {name} gets no span: {reason.replace('{module}', place.name)}",
        )
    ]
    assert hasattr(module.reserve, "__wrapped__")  # the others do
    assert not hasattr(module.Mailer.send, "__wrapped__")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("functions_nowhere.stock:reserve", "there is no module functions_nowhere"),
        ("builtins:str.upper", "it is no plain function, but method_descriptor"),
        ("datetime:datetime.now", "it is no plain function, but classmethod_descriptor"),
        ("__main__:functions_nowhere", "__main__ has no functions_nowhere"),
    ],
)
def test_other_modules(place: Place, name: str, reason: str) -> None:
    functions._registered.discard(name)
    functions.install([name], place.warn)
    assert place.warnings == [(f"trace_functions {name}", f"trace_functions: {name} gets no span: {reason}")]


def test_a_module_that_never_comes_is_waited_for(place: Place) -> None:
    functions.install([f"{place.name}:reserve", "json.nowhere:reserve"], place.warn)
    assert place.warnings == []
    assert place.name not in sys.modules
    on_import._waiting.pop("json.nowhere")


def test_the_setting(place: Place, recorder: Recorder, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = f"{place.name}:reserve, {place.name}:nope"
    keys = {"store": str(tmp_path / "s.sqlite"), "runtime_dir": str(tmp_path), "service_name": place.name}
    with caplog.at_level(logging.WARNING, "paste_agent"):
        for _ in range(2):
            agent_filter.main(lambda environ, start_response: [], {}, trace_functions=names, **keys)
        module = importlib.import_module(place.name)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [f"{place.name}: trace_functions: {place.name}:nope gets no span: {place.name} has no nope"]
    assert [one.name for one in spans_within(recorder, lambda: module.reserve(1))] == [f"{place.name}.reserve"]
