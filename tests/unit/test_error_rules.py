"""Errors: which count, which are only seen, and under what they are counted."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import paste_agent
from paste_agent import raised
from paste_agent.aggregate import DATABASE_DURATION, ERRORS, REQUEST_DURATION
from paste_agent.error_rules import COUNTS, EXPECTED, IGNORED, ErrorRules
from paste_agent.inside import DATABASE, MAX_ERRORS
from paste_agent.raised import place_of, type_name
from paste_agent.recorder import layout
from paste_agent.recorder.layout import KEPT_FAILED
from paste_agent.recorder.writer import Recorder
from paste_agent.spans import begin, end
from paste_agent.store.store import Store
from paste_agent.transaction import Transaction, current
from tests.recorders import counts_of, die, leading, open_recorder, requests_of, serve


class Gone(LookupError):
    pass


class GoneForEver(Gone):
    pass


class Quiet(Exception):
    pass


class HTTPException(Exception):
    """One that is a response, as those of webob are."""

    code = 500

    def __call__(self, environ: object, start_response: object) -> list[bytes]:
        return []


GONE, GONE_FOR_EVER = type_name(Gone), type_name(GoneForEver)

# -- rules ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (Gone(), EXPECTED),
        (GoneForEver(), EXPECTED),  # a class stands for its subclasses
        (LookupError(), COUNTS),  # and not for those above it
        (KeyError(), COUNTS),
        (Quiet(), IGNORED),
        (ConnectionResetError(), IGNORED),  # of OSError
        (KeyboardInterrupt(), COUNTS),
    ],
)
def test_a_rule_stands_for_a_class_and_its_subclasses(error: BaseException, verdict: int) -> None:
    rules = ErrorRules(expected=[GONE], ignored=[type_name(Quiet), "OSError"])
    assert [rules.verdict(error) for _ in range(3)] == [verdict] * 3


def test_to_ignore_is_stronger() -> None:
    assert ErrorRules(expected=[GONE], ignored=[GONE]).verdict(Gone()) == IGNORED
    assert ErrorRules(expected=["Exception"], ignored=["OSError"]).verdict(TimeoutError()) == IGNORED


def test_without_rules_everything_counts() -> None:
    rules = ErrorRules()
    assert rules.verdict(Gone()) == COUNTS
    assert rules.verdict_of_status(503) == COUNTS


def test_rules_of_statuses() -> None:
    rules = ErrorRules(expected_statuses=(503, 504), ignored_statuses=(502, 504))
    assert [rules.verdict_of_status(code) for code in (500, 502, 503, 504)] == [COUNTS, IGNORED, EXPECTED, IGNORED]


def test_classes_without_end_are_judged_and_not_remembered() -> None:
    rules = ErrorRules(expected=[GONE])
    made = [type(f"Gone{place}", (Gone,), {}) for place in range(1500)]
    assert {rules.verdict(one()) for one in made} == {EXPECTED}
    assert len(rules._known) == 1000


# -- requests ------------------------------------------------------------------------------------------------------

RULES = ErrorRules(expected=[GONE], ignored=[type_name(Quiet)], expected_statuses=(503,), ignored_statuses=(502,))
HERE = __name__


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    opened = open_recorder(tmp_path, error_rules=RULES)
    yield opened
    die(opened)


def raising(error: BaseException) -> Callable[[], None]:
    def run() -> None:
        raise error

    return run


def noting(*errors: BaseException, expected: bool = False) -> Callable[[], None]:
    """As a framework does that turns an exception into a response."""

    def run() -> None:
        for error in errors:
            try:
                raise error
            except BaseException as caught:
                here().note(caught, expected=expected)

    return run


def here() -> Transaction:
    within: Any = current.get()
    found: Transaction = within.transaction
    return found


def error_of(kind: str, place: str | None = None, route: str | None = None, expected: bool = False) -> str:
    found = {
        "error.type": kind,
        "paste_agent.error.place": place,
        "http.route": route,
        "paste_agent.error.expected": "true" if expected else None,
    }
    return json.dumps({name: value for name, value in found.items() if value is not None}, sort_keys=True)


def failures_of(store: Store) -> int:
    """Requests that count as failed."""
    return sum("error.type" in one.attributes for one in store.totals() if one.metric == REQUEST_DURATION)


def test_errors_are_counted_by_type_place_and_route(recorder: Recorder, tmp_path: Path) -> None:
    for _ in range(3):
        with pytest.raises(KeyError):
            serve(recorder, route="/items/{id}", meanwhile=raising(KeyError("x")))
    with pytest.raises(ValueError):
        serve(recorder, meanwhile=raising(ValueError()))
    serve(recorder, route="/items/{id}", status="500 No", meanwhile=noting(KeyError("y")))
    serve(recorder, route="/items/{id}", meanwhile=noting(KeyError("z")))  # handled, and answered well
    serve(recorder, route="/items/{id}", status="501 No")
    die(recorder)
    with leading(tmp_path) as lead:
        lead.drain()
        assert counts_of(lead.store, ERRORS) == {
            error_of("KeyError", f"{HERE}.run", "/items/{id}"): 5,
            error_of("ValueError", f"{HERE}.run"): 1,
            error_of("501", None, "/items/{id}"): 1,
        }
        assert requests_of(lead.store) == {
            ("GET", "/items/{id}", 500): 4,
            ("GET", None, 500): 1,
            ("GET", "/items/{id}", 200): 1,
            ("GET", "/items/{id}", 501): 1,
        }


def test_a_status_that_nobody_raised_is_an_error_whatever_went_on_before(recorder: Recorder, tmp_path: Path) -> None:
    def queries() -> None:
        begun = begin(DATABASE, b"SELECT 1")
        assert begun is not None
        end(begun, "SELECT", (layout.KIND_DATABASE, ("sqlite", None, "SELECT", None, None, None)))

    for meanwhile in (queries, lambda: None):
        serve(recorder, route="/x", status="500 No", meanwhile=meanwhile)
    die(recorder)
    with leading(tmp_path) as lead:
        lead.drain()
        assert counts_of(lead.store, ERRORS) == {error_of("500", None, "/x"): 2}
        assert sum(counts_of(lead.store, DATABASE_DURATION).values()) == 1


def test_an_error_of_a_request_whose_series_is_one_too_many_is_counted(tmp_path: Path) -> None:
    recorder = open_recorder(tmp_path, max_series=2)
    for place in range(6):
        serve(recorder, route=f"/{place}", status="500 No")
    die(recorder)
    with leading(tmp_path) as lead:
        lead.drain()
        assert sum(counts_of(lead.store, ERRORS).values()) == 6
        assert sum(requests_of(lead.store).values()) == 6


def test_what_is_expected_is_seen_and_no_failure(recorder: Recorder, tmp_path: Path) -> None:
    with pytest.raises(GoneForEver):
        serve(recorder, route="/x", meanwhile=raising(GoneForEver()))
    serve(recorder, route="/x", meanwhile=noting(ValueError(), expected=True))
    die(recorder)
    with leading(tmp_path) as lead:
        lead.drain()
        assert counts_of(lead.store, ERRORS) == {
            error_of(GONE_FOR_EVER, f"{HERE}.run", "/x", expected=True): 1,
            error_of("ValueError", f"{HERE}.run", "/x", expected=True): 1,
        }
        assert requests_of(lead.store) == {("GET", "/x", 500): 1, ("GET", "/x", 200): 1}
        assert failures_of(lead.store) == 0
        assert [one.total.satisfied for one in lead.store.totals() if one.metric == REQUEST_DURATION] == [1, 1]


def test_what_is_ignored_is_not_even_seen(recorder: Recorder, tmp_path: Path) -> None:
    with pytest.raises(Quiet):
        serve(recorder, route="/x", meanwhile=raising(Quiet()))
    serve(recorder, route="/x", meanwhile=noting(Quiet()))
    assert list(recorder.kept) == []
    die(recorder)
    with leading(tmp_path) as lead:
        lead.drain()
        assert counts_of(lead.store, ERRORS) == {}
        assert requests_of(lead.store) == {("GET", "/x", 500): 1, ("GET", "/x", 200): 1}
        assert failures_of(lead.store) == 0


@pytest.mark.parametrize(
    ("status", "failed"), [("500 No", True), ("502 No", False), ("503 No", False), ("504 No", True)]
)
def test_statuses_that_are_no_failures(recorder: Recorder, tmp_path: Path, status: str, failed: bool) -> None:
    serve(recorder, status=status)
    assert len(recorder.kept) == failed
    die(recorder)
    with leading(tmp_path) as lead:
        lead.drain()
        assert requests_of(lead.store) == {("GET", None, int(status[:3])): 1}
        assert failures_of(lead.store) == failed
        # One that is expected is seen all the same; one that is ignored is not.
        expected = status.startswith("503")
        seen = {error_of(status[:3], expected=expected): 1} if failed or expected else {}
        assert counts_of(lead.store, ERRORS) == seen


@pytest.mark.parametrize("escapes", [True, False], ids=["raised", "handled"])
@pytest.mark.parametrize(("code", "expected"), [(502, False), (503, True)], ids=["ignored", "expected"])
def test_rules_of_statuses_hold_for_what_was_raised(
    recorder: Recorder, tmp_path: Path, code: int, expected: bool, escapes: bool
) -> None:
    """More often than may be kept: one that is no failure takes no token away from those that are."""
    error = HTTPException("x")
    error.code = code
    for _ in range(70):
        if escapes:
            with pytest.raises(HTTPException):
                serve(recorder, route="/x", meanwhile=raising(error))
        else:
            serve(recorder, route="/x", status=f"{code} No", meanwhile=noting(error))
    assert list(recorder.kept) == []
    serve(recorder, meanwhile=noting(KeyError("x")))
    assert len(recorder.kept) == 1
    die(recorder)
    with leading(tmp_path) as lead:
        lead.drain()
        counts = counts_of(lead.store, ERRORS)
        assert counts.pop(error_of("KeyError", f"{HERE}.run")) == 1
        assert counts == ({error_of(type_name(error), f"{HERE}.run", "/x", expected=True): 70} if expected else {})
        assert requests_of(lead.store) == {("GET", "/x", code): 70, ("GET", None, 200): 1}
        assert failures_of(lead.store) == 0


def test_a_rule_of_a_status_below_500_holds_for_what_was_noted_on_the_way(tmp_path: Path) -> None:
    recorder = open_recorder(tmp_path, error_rules=ErrorRules(ignored_statuses=[404]))
    serve(recorder, status="404 No", meanwhile=noting(KeyError("x")))
    assert list(recorder.kept) == []
    serve(recorder, status="403 No", meanwhile=noting(KeyError("x")))
    assert len(recorder.kept) == 1


def test_what_is_ignored_takes_no_place_of_what_is_kept(recorder: Recorder) -> None:
    def ignored() -> None:
        paste_agent.ignore_transaction()
        raise KeyError("x")

    for _ in range(70):  # more than may be kept
        with pytest.raises(KeyError):
            serve(recorder, meanwhile=ignored)
    serve(recorder, meanwhile=noting(KeyError("x")))
    assert len(recorder.kept) == 1


@pytest.mark.parametrize("same", [True, False], ids=["the same", "another"])
def test_an_error_that_counts_takes_the_place_of_expected_ones(recorder: Recorder, tmp_path: Path, same: bool) -> None:
    def run() -> None:
        error = KeyError("x")
        for number in range(MAX_ERRORS):
            noting(type(f"E{number}", (Exception,), {})(), expected=True)()
        try:
            raise error
        except KeyError:
            if same:
                here().note(error, expected=True)
            raise

    with pytest.raises(KeyError):
        serve(recorder, route="/x", meanwhile=run)
    (kept,) = recorder.kept
    assert (kept.why, kept.failed, kept.error is not None) == (KEPT_FAILED, True, True)
    die(recorder)
    with leading(tmp_path) as lead:
        lead.drain()
        assert counts_of(lead.store, ERRORS)[error_of("KeyError", f"{HERE}.run", "/x")] == 1


# -- noted more than once ------------------------------------------------------------------------------------------


def test_an_error_that_is_noted_by_several_layers_is_one(recorder: Recorder, tmp_path: Path) -> None:
    def run() -> None:
        error = KeyError("x")
        for _ in range(3):  # layers that each note it and raise it again
            try:
                raise error
            except KeyError as caught:
                here().note(caught)
        raise error

    with pytest.raises(KeyError):
        serve(recorder, route="/x", meanwhile=run)
    (kept,) = recorder.kept
    assert kept.error is not None
    assert (kept.error.type, kept.why, kept.failed) == ("KeyError", KEPT_FAILED, True)
    die(recorder)
    with leading(tmp_path) as lead:
        lead.drain()
        assert counts_of(lead.store, ERRORS) == {error_of("KeyError", f"{HERE}.run", "/x"): 1}
        assert requests_of(lead.store) == {("GET", "/x", 500): 1}


def test_errors_that_differ_are_each_counted_up_to_a_bound(recorder: Recorder, tmp_path: Path) -> None:
    made = [type(f"E{place}", (Exception,), {})() for place in range(MAX_ERRORS + 5)]
    serve(recorder, meanwhile=noting(*made, *made))
    (kept,) = recorder.kept
    assert kept.error is not None
    assert kept.error.type == f"{HERE}.E0"
    assert not kept.failed
    die(recorder)
    with leading(tmp_path) as lead:
        lead.drain()
        assert list(counts_of(lead.store, ERRORS).values()) == [1] * MAX_ERRORS


def test_a_noted_error_holds_nothing_alive(recorder: Recorder) -> None:
    import gc
    import weakref

    class Held:
        pass

    held: list[Any] = []

    def run() -> None:
        big = Held()
        held.append(weakref.ref(big))
        try:
            raise KeyError(1)
        except KeyError as caught:
            here().note(caught)

    serve(recorder, meanwhile=run)
    gc.collect()
    assert held[0]() is None
    assert len(recorder.kept) == 1


def test_failures_beyond_the_budget_are_counted_and_not_kept(tmp_path: Path) -> None:
    recorder = open_recorder(tmp_path, records=4096)  # 60 a minute
    for _ in range(200):
        serve(recorder, meanwhile=noting(KeyError("x")))
    assert len(recorder.kept) == 60
    assert [kept.alike.probability for kept in recorder.kept if kept.alike] == [pytest.approx(60 / 200)] * 60
    die(recorder)
    with leading(tmp_path) as lead:
        lead.drain()
        assert sum(counts_of(lead.store, ERRORS).values()) == 200


def raised_by(code: str, names: dict[str, object]) -> ZeroDivisionError:
    try:
        exec(compile(code, "<expression>", "exec"), names)
    except ZeroDivisionError as error:
        return error
    raise AssertionError


def test_an_expression_that_belongs_to_no_module_is_no_place() -> None:
    assert place_of(raised_by("1 / 0", {})) == f"{__name__}.raised_by"
    assert place_of(raised_by("1 / 0", {"__name__": "script"})) == "script.<module>"
    alone = raised_by("1 / 0", {})
    assert alone.__traceback__ is not None
    assert place_of(alone.with_traceback(alone.__traceback__.tb_next)) == "?.<module>"


def test_a_service_that_is_installed_is_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = tmp_path / "site-packages"
    for name in ("installed_service", "installed_library"):
        (packages / name).mkdir(parents=True)
        (packages / name / "__init__.py").touch()
    (packages / "installed_library" / "run.py").write_text(
        "def call(function):\n    function()\ndef fail():\n    1 / 0\n"
    )
    (packages / "installed_service" / "app.py").write_text(
        "from installed_library.run import call, fail\ndef view():\n    call(fail)\n"
    )
    monkeypatch.syspath_prepend(packages)
    monkeypatch.setattr(raised, "_claimed", ())
    view: Any = importlib.import_module("installed_service.app").view

    def place() -> str:
        try:
            view()
        except ZeroDivisionError as error:
            return place_of(error.with_traceback(error.__traceback__ and error.__traceback__.tb_next))
        raise AssertionError

    try:
        assert place() == "installed_library.run.fail"
        raised.claim(view)
        raised.claim(view)
        assert place() == "installed_service.app.view"
        assert len(raised._claimed) == 1
        for other in (importlib.import_module("paste.deploy").loadapp, 17, importlib.import_module("bottle").Bottle):
            raised.claim(other)
        assert len(raised._claimed) == 1
    finally:
        for name in [name for name in sys.modules if name.startswith("installed_")]:
            del sys.modules[name]
