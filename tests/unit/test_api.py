"""What an application tells of itself: recorded where it belongs, and never an error of the application's."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import paste_agent
from paste_agent import api, lifecycle
from paste_agent.aggregate import COUNT, ERRORS, TASK_DURATION, TIMING
from paste_agent.cli import main
from paste_agent.inside import MAX_ATTRIBUTES
from paste_agent.kept import TraceRow
from paste_agent.metrics import counted
from paste_agent.recorder import layout
from paste_agent.store.store import Store
from paste_agent.transaction import current
from tests.filtering import HEADERS, Measured, key, serve
from tests.odd import ODD
from tests.recorders import run_script

Call = Callable[[], object]
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def make(measure: Callable[..., Measured], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Measured]:
    """Makes the only service of this process."""
    monkeypatch.setattr(lifecycle, "_agents", {})
    return measure


@pytest.fixture
def service(make: Callable[..., Measured]) -> Measured:
    return make()


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process in which no agent has been made."""
    monkeypatch.setattr(lifecycle, "_agents", {})
    lifecycle._owed.clear()
    yield
    lifecycle._owed.clear()


@pytest.fixture(autouse=True)
def unsaid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "_said", set())


def within(service: Measured, call: Call, route: str | None = None, **environ: Any) -> None:
    """One request in which `call` is called."""

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        if route is not None:
            environ["paste_agent.route"] = route
        call()
        start_response("200 OK", HEADERS[:])
        return [b"x"]

    serve(service.around(app), **environ)


def kept(service: Measured) -> list[TraceRow]:
    """The traces of a service, the newest first; ends it."""
    service.recorder()
    service.agent.serve()  # a task alone does not have it serve
    service.agent.finish()
    store = Store(service.settings.store, read_only=True)
    try:
        return store.traces(0, 1e12, "newest", False, 1000)
    finally:
        store.close()


def details(service: Measured) -> dict[str, Any]:
    (row,) = kept(service)
    assert row.detail is not None
    return dict(row.detail)


def attributes(service: Measured) -> dict[str, Any]:
    """Those that begin with `app.` of the one trace."""
    return {name: value for name, value in details(service)["attributes"].items() if name.startswith("app.")}


def totals(service: Measured, metric: str) -> dict[str, Any]:
    """By attributes."""
    found: dict[str, Any] = {}
    for ((name, named), _), total in service.delta().totals.items():
        if name == metric:
            found.setdefault(named, total)
            if found[named] is not total:
                found[named].add(total)
    return found


def counter(service: Measured, name: str) -> int:
    (total,) = totals(service, f"{COUNT}{name}").values()
    return counted(f"{COUNT}{name}", total.count, total.sum_ns)


def errors(service: Measured) -> dict[tuple[str | None, str | None, bool], int]:
    """By type, route, and whether it was expected."""
    found = {}
    for named, total in totals(service, ERRORS).items():
        of = json.loads(named)
        found[of.get("error.type"), of.get("http.route"), "paste_agent.error.expected" in of] = total.count
    return found


def faults(service: Measured) -> int:
    return service.word(layout.W_INTERNAL_ERRORS)


# -- all of it -----------------------------------------------------------------------------------------------------


def test_all_that_is_promised_is_there() -> None:
    for name in paste_agent.__all__:
        assert callable(getattr(paste_agent, name))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        paste_agent.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_nothing_is_imported_before_it_is_asked_for() -> None:
    script = """
import sys, paste_agent
assert not [name for name in sys.modules if name.startswith("paste_agent.")]
from paste_agent import count
assert "paste_agent.api" in sys.modules
"""
    run_script(script)


BELONG = {
    "name_transaction": ("name",),
    "ignore_transaction": (),
    "mark_as_background": ("name",),
    "add_attribute": ("app.key", "value"),
    "add_attributes": ({"app.key": "value"},),
    "notice_error": (ValueError("x"),),
    "outbound_headers": (),
    "trace_context": (),
}


@pytest.mark.parametrize("name", BELONG)
def test_what_belongs_to_a_transaction_does_nothing_without_one(service: Measured, name: str) -> None:
    assert getattr(paste_agent, name)(*BELONG[name]) == ({} if name == "outbound_headers" else None)
    assert service.delta().totals == {}


@pytest.mark.parametrize("name", BELONG)
def test_what_belongs_to_a_transaction_does_nothing_after_its_end(service: Measured, name: str) -> None:
    ended = []
    within(service, lambda: ended.append(current.get()))
    before = service.counts()
    token = current.set(ended[0])  # as in a thread that was started with a copy of the context
    try:
        assert getattr(paste_agent, name)(*BELONG[name]) == ({} if name == "outbound_headers" else None)
    finally:
        current.reset(token)
    assert service.counts() == before
    assert faults(service) == 0


@pytest.mark.parametrize("name", [name for name in paste_agent.__all__ if name not in ("span", "background_task")])
def test_odd_arguments_raise_nothing(service: Measured, name: str) -> None:
    function = getattr(paste_agent, name)

    def call() -> None:
        for odd in ODD:
            if name in ("add_attribute", "count", "timing", "notice_error"):
                for first in ("app.key", odd):
                    function(first, odd)
                    with paste_agent.span("inner"):
                        function(first, odd)
            if name == "notice_error":
                function(ValueError("x"), attributes=odd)
            if name in ("ignore_transaction", "outbound_headers", "trace_context"):
                function()
            elif name not in ("add_attribute", "timing"):
                function(odd)

    within(service, call)
    call()
    assert faults(service) == 0
    # What was taken can be stored.
    assert len(kept(service)) == (0 if name == "ignore_transaction" else 1)


@pytest.mark.parametrize("around", [paste_agent.span, paste_agent.background_task])
def test_odd_names_raise_nothing(service: Measured, around: Any) -> None:
    def call() -> None:
        for odd in ODD:
            with around(odd) as begun:
                if around is paste_agent.span:
                    begun.set("app.key", odd)
                    begun.set(odd, odd)
            assert around(odd)(lambda: "done")() == "done"

    within(service, call)
    call()
    assert faults(service) == 0
    assert len(kept(service)) >= 1


def test_what_was_wrong_is_said_once(service: Measured, caplog: pytest.LogCaptureFixture) -> None:
    def call() -> None:
        for _ in range(3):
            api.count("no good")
            api.count("9lives")
            api.timing("mail", -1)
            api.add_attribute("app.list", ["a"])  # type: ignore[arg-type]

    with caplog.at_level(logging.WARNING, "paste_agent"):
        within(service, call)
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == [
        "count 'no good'", "count '9lives'", "timing mail", "add_attribute 'app.list'",
    ]  # fmt: skip
    assert not [metric for (metric, _), _ in service.delta().totals if metric.startswith((COUNT, TIMING))]


# -- the transaction -----------------------------------------------------------------------------------------------


def test_the_name_becomes_the_route(service: Measured) -> None:
    within(service, lambda: paste_agent.name_transaction("checkout"), route="/of/the/framework")
    within(service, lambda: None, route="/of/the/framework")
    assert service.counts() == {key(route="/checkout"): 1, key(route="/of/the/framework"): 1}


def test_the_name_is_seen_while_the_request_runs(service: Measured) -> None:
    def call() -> None:
        paste_agent.name_transaction("checkout")
        transaction: Any = current.get()
        seen.append(transaction.route_so_far())

    seen: list[str | None] = []
    within(service, call)
    assert seen == ["/checkout"]


def test_so_many_names_and_no_more(make: Callable[..., Measured]) -> None:
    service = make(max_series="10")
    for number in range(30):
        within(service, lambda number=number: paste_agent.name_transaction(f"user {number}"))  # type: ignore[misc]
    assert len(service.counts()) == 11
    assert sum(service.counts().values()) == 30


def test_an_ignored_transaction_is_neither_counted_nor_kept(service: Measured) -> None:
    def call() -> None:
        paste_agent.notice_error(ValueError("x"))
        paste_agent.ignore_transaction()

    within(service, call)
    assert service.counts() == {}
    assert errors(service) == {}
    assert kept(service) == []


def test_a_request_can_be_a_background_task(service: Measured) -> None:
    within(service, lambda: paste_agent.mark_as_background("stream"), route="/stream")
    assert service.counts() == {}
    assert {named: total.count for named, total in totals(service, TASK_DURATION).items()} == {
        '{"paste_agent.task.name": "stream"}': 1
    }


@pytest.mark.parametrize("rename", [paste_agent.name_transaction, paste_agent.mark_as_background])
def test_a_background_task_can_be_renamed(service: Measured, rename: Callable[[str], None]) -> None:
    task = paste_agent.background_task("mail")
    with task:
        rename("mail/newsletter")
    with task:
        pass
    assert {named: total.count for named, total in totals(service, TASK_DURATION).items()} == {
        '{"paste_agent.task.name": "mail/newsletter"}': 1,
        '{"paste_agent.task.name": "mail"}': 1,
    }


def test_a_background_task_can_be_ignored(service: Measured) -> None:
    with paste_agent.background_task("mail"):
        paste_agent.ignore_transaction()
    assert service.delta().totals == {}
    assert service.reader().in_flight() == []


# -- attributes ----------------------------------------------------------------------------------------------------


def test_attributes_are_in_the_trace(service: Measured) -> None:
    def call() -> None:
        paste_agent.add_attribute("app.plan", "free")
        paste_agent.add_attribute("app.plan", "gold")
        with paste_agent.span("inner"):
            paste_agent.add_attributes({"app.items": 3, "app.total": 1.5, "app.new": True, "app.none": None})  # type: ignore[dict-item]
        paste_agent.add_attribute("app.long", "x" * 2000)
        paste_agent.add_attribute("app." + "k" * 125, "no")
        paste_agent.add_attribute("app.big", 1 << 63)
        paste_agent.add_attribute("app.small", -(1 << 63))

    within(service, call)
    assert attributes(service) == {
        "app.plan": "gold", "app.items": 3, "app.total": 1.5, "app.new": True, "app.long": "x" * 1024,
        "app.small": -(1 << 63),
    }  # fmt: skip


def test_a_transaction_has_so_many_attributes(service: Measured) -> None:
    def call() -> None:
        for number in range(MAX_ATTRIBUTES + 5):
            paste_agent.add_attribute(f"app.{number}", number)
        paste_agent.add_attribute("app.0", "again")
        transaction: Any = current.get()
        seen.append(dict(transaction.inside.attributes))

    seen: list[dict[str, Any]] = []
    within(service, call)
    assert len(seen[0]) == MAX_ATTRIBUTES
    assert seen[0]["app.0"] == "again"


def test_attributes_of_a_background_task(service: Measured) -> None:
    with paste_agent.background_task("mail"):
        paste_agent.add_attribute("app.list", "news")
    assert attributes(service) == {"app.list": "news"}


# -- errors --------------------------------------------------------------------------------------------------------


SECRET = " ".join(("a", "secret"))  # not in a line of the source, which a stack shows


def handled(**options: Any) -> None:
    try:
        raise ValueError(SECRET)
    except ValueError:
        paste_agent.notice_error(**options)


def test_the_error_that_is_being_handled_is_noted(service: Measured) -> None:
    within(service, lambda: handled(attributes={"app.step": 2}), route="/pay")
    assert service.counts() == {key(route="/pay"): 1}  # the request has not failed
    assert errors(service) == {("ValueError", "/pay", False): 1}
    found = details(service)
    assert found["exception"]["message"] == SECRET
    assert "in handled\n" in found["exception"]["stacktrace"]
    assert found["attributes"]["app.step"] == 2
    assert [(error["type"], error["place"], error["expected"]) for error in found["errors"]] == [
        ("ValueError", f"{__name__}.handled", False)
    ]


def test_without_an_error_nothing_is_noted(service: Measured) -> None:
    within(service, paste_agent.notice_error)
    assert errors(service) == {}


def test_an_expected_error_is_marked(service: Measured) -> None:
    within(service, lambda: handled(expected=True))
    assert errors(service) == {("ValueError", None, True): 1}


def test_what_sys_exc_info_returns_will_do(service: Measured) -> None:
    def call() -> None:
        try:
            raise ValueError("x")
        except ValueError:
            paste_agent.notice_error(sys.exc_info())  # type: ignore[arg-type]

    within(service, call)
    assert errors(service) == {("ValueError", None, False): 1}


def test_an_error_that_is_noted_and_raised_counts_once(service: Measured) -> None:
    def call() -> None:
        try:
            raise ValueError("x")
        except ValueError as error:
            paste_agent.notice_error(error)
            raise

    with pytest.raises(ValueError, match="x"):
        within(service, call)
    with pytest.raises(ValueError, match="x"), paste_agent.background_task("mail"):
        call()
    assert errors(service) == {("ValueError", None, False): 2}
    assert service.counts() == {key(status=500, error="ValueError"): 1}


@pytest.mark.parametrize(("setting", "expected"), [("ignore_errors", {}), ("expected_errors", {True})])
def test_the_rules_for_errors_hold(make: Callable[..., Measured], setting: str, expected: set[bool]) -> None:
    service = make(**{setting: "Exception"})
    within(service, handled)
    with paste_agent.background_task("mail"):
        handled()
    assert {(kind, marked) for kind, _, marked in errors(service)} == {("ValueError", mark) for mark in expected}


def test_an_error_of_a_background_task_is_noted_and_kept(make: Callable[..., Measured]) -> None:
    service = make(random_traces_per_min="0")
    with paste_agent.background_task("mail"):
        pass
    with paste_agent.background_task("mail"):
        handled()
    assert errors(service) == {("ValueError", None, False): 1}
    assert {named: total.count for named, total in totals(service, TASK_DURATION).items()} == {
        '{"paste_agent.task.name": "mail"}': 2
    }
    found = details(service)
    assert found["exception"]["type"] == "ValueError"


@pytest.mark.parametrize("setting", ["record_error_messages", "high_security"])
def test_messages_can_be_left_out(make: Callable[..., Measured], setting: str) -> None:
    service = make(**{setting: "false" if setting == "record_error_messages" else "true"})
    within(service, lambda: handled(attributes={"app.step": 2}))
    found = details(service)
    assert SECRET not in json.dumps(found["exception"])
    assert ("app.step" in found["attributes"]) == (setting == "record_error_messages")


# -- other services, and the log -----------------------------------------------------------------------------------


@pytest.mark.parametrize("traceparent", [None, PARENT])
@pytest.mark.parametrize("slots", [True, False])
def test_ids_are_those_of_the_kept_trace(service: Measured, traceparent: str | None, slots: bool) -> None:
    def call() -> None:
        seen.append(paste_agent.trace_context())
        with paste_agent.span("inner"):
            seen.append(paste_agent.trace_context())
            seen.append(paste_agent.trace_context())
        seen.append(paste_agent.trace_context())

    seen: list[Any] = []
    if not slots:
        service.agent.serve()
        while service.recorder()._free:
            service.recorder().pop_slot()
    within(service, call, **({} if traceparent is None else {"HTTP_TRACEPARENT": traceparent}))
    (row,) = kept(service)
    assert row.detail is not None
    spans: Any = row.detail["spans"]
    trace, span = row.trace_id.hex(), row.span_id.hex()
    assert seen == [(trace, span), (trace, spans[0]["id"]), (trace, spans[0]["id"]), (trace, span)]
    if traceparent is not None:
        assert trace == PARENT[3:35]


def test_ids_of_a_background_task(service: Measured) -> None:
    with paste_agent.background_task("mail"):
        seen = paste_agent.trace_context()
    (row,) = kept(service)
    assert seen == (row.trace_id.hex(), row.span_id.hex())


def test_to_ask_for_ids_decides_nothing(service: Measured) -> None:
    def call() -> None:
        paste_agent.trace_context()
        transaction: Any = current.get()
        assert transaction.inside is None
        # What is decided later has the same ids.
        identity = transaction.identify()
        assert paste_agent.trace_context() == (identity.trace_id.hex(), identity.span_id.hex())

    within(service, call)
    assert faults(service) == 0


def test_headers_for_another_service(service: Measured) -> None:
    def call() -> None:
        seen.append(paste_agent.outbound_headers())
        with paste_agent.span("inner"):
            seen.append(paste_agent.outbound_headers())

    seen: list[dict[str, str]] = []
    within(service, call, HTTP_TRACEPARENT=PARENT, HTTP_TRACESTATE="k=v", HTTP_BAGGAGE="a=b")
    (row,) = kept(service)
    assert row.detail is not None
    spans: Any = row.detail["spans"]
    for headers, span in zip(seen, (row.span_id.hex(), spans[0]["id"]), strict=True):
        assert headers == {"traceparent": f"{PARENT[:35]}-{span}-01", "tracestate": "k=v", "baggage": "a=b"}


def test_headers_of_a_background_task(service: Measured) -> None:
    with paste_agent.background_task("mail"):
        headers = paste_agent.outbound_headers()
    (row,) = kept(service)
    assert headers == {"traceparent": f"00-{row.trace_id.hex()}-{row.span_id.hex()}-01"}


# -- figures of the application's own ------------------------------------------------------------------------------


def figures() -> None:
    paste_agent.count("mail.sent")
    paste_agent.count("mail.sent", by=5)
    paste_agent.count("mail.sent", by=0)
    paste_agent.timing("mail.wait", 0.25)
    paste_agent.timing("mail.wait", 1)


@pytest.mark.parametrize("where", ["request", "task", "outside"])
def test_figures_are_counted(service: Measured, where: str) -> None:
    if where == "request":
        within(service, figures)
    elif where == "task":
        with paste_agent.background_task("mail"):
            figures()
    else:
        figures()
    assert counter(service, "mail.sent") == 6
    (total,) = totals(service, f"{TIMING}mail.wait").values()
    assert (total.count, total.sum_ns) == (2, 1_250_000_000)
    assert faults(service) == 0


def test_a_large_count_is_drained_at_once(service: Measured) -> None:
    paste_agent.count("bytes", 1_000_000_000)
    assert counter(service, "bytes") == 1_000_000_000


@pytest.mark.usefixtures("nobody")
def test_figures_before_there_is_an_agent_are_owed(measure: Callable[..., Measured], tmp_path: Path) -> None:
    figures()
    service = measure()
    assert counter(service, "mail.sent") == 6
    (total,) = totals(service, f"{TIMING}mail.wait").values()
    assert (total.count, total.sum_ns) == (2, 1_250_000_000)


def test_so_many_counters_and_no_more(make: Callable[..., Measured]) -> None:
    service = make(max_series="10")
    for number in range(30):
        within(service, lambda number=number: paste_agent.count(f"c{number}"))  # type: ignore[misc]
    found = [total for (metric, _), total in ((key, total) for (key, _), total in service.delta().totals.items())
             if metric.startswith(COUNT)]  # fmt: skip
    assert len(found) == 11
    assert sum(total.sum_ns for total in found) == 30


def test_of_headers_those_that_are_asked_for(make: Callable[..., Measured]) -> None:
    service = make(record_headers="Content-Type X-Request-Id")
    within(service, paste_agent.trace_context, CONTENT_TYPE="text/csv", HTTP_X_REQUEST_ID="a-1", HTTP_COOKIE="s3cret")
    found = details(service)["attributes"]
    assert found["http.request.header.content-type"] == ["text/csv"]
    assert found["http.request.header.x-request-id"] == ["a-1"]
    assert "s3cret" not in str(found)


# -- what is said of it --------------------------------------------------------------------------------------------


def test_check_says_what_high_security_overrules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    ini = tmp_path / "shop.ini"
    ini.write_text(
        "[app:main]\nuse = egg:paste_agent#shop\nfilter-with = agent\n[filter:agent]\nuse = egg:paste_agent\n"
        f"high_security = true\nrecord_query = true\nforward_logs = error\nruntime_dir = {tmp_path}/run\n"
    )
    said = CliRunner().invoke(main.group, ["check", str(ini)]).output
    overruled = [line for line in said.splitlines() if "overruled" in line]
    assert overruled == [
        f"! [filter:agent] {key}: overruled by high_security"
        for key in ("record_query", "record_error_messages", "forward_logs")
    ]
    ini.write_text(ini.read_text().replace("high_security = true", "high_security = false"))
    said = CliRunner().invoke(main.group, ["check", str(ini)]).output
    assert "overruled" not in said
    assert "! [filter:agent] forward_logs: nothing is forwarded without an endpoint" in said.splitlines()
