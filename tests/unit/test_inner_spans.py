"""What the store keeps of what went on inside of a transaction: spans, findings, attributes; and what it does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paste_agent import settings
from paste_agent.detail import Rules, rules_of, stacktrace, trace_row
from paste_agent.inner_spans import attributes_as_json, findings_of, spans_of
from paste_agent.inside import (
    CALL,
    DATABASE,
    FUNCTION,
    GC,
    MAX_SPANS,
    TEMPLATE,
    FinishedSpan,
    Inside,
    SeenError,
    with_one,
)
from paste_agent.raised import raised_of
from paste_agent.recorder.layout import KEPT_QUERIES
from paste_agent.said import Said
from paste_agent.sampler import Alike
from paste_agent.spans import begin, end, span
from paste_agent.trace_writer import TraceWriter
from paste_agent.transaction import KeptTransaction
from tests.recorders import die, leading, open_recorder, serve, settings_of, spans_within, traces_of, warnings

MS = 1_000_000
DEFAULTS = Rules()
SPAN_ID = b"\x01" * 8


def finished(number: int = 1, parent: int = 0, **more: Any) -> FinishedSpan:
    fields: dict[str, Any] = {
        "category": DATABASE,
        "name": "SELECT items",
        "start_ns": 1000 + number,
        "duration_ns": MS,
        "own_ns": MS,
        "failed": None,
        "span_id": None,
        "attributes": None,
        "code": None,
        **more,
    }
    return FinishedSpan(number=number, parent=parent, **fields)


def inside_of(*spans: FinishedSpan, **more: Any) -> Inside:
    inside = Inside()
    inside.finished = [tuple(span) for span in spans]
    for name, value in more.items():
        setattr(inside, name, value)
    return inside


def kept(inside: Inside | None = None, **more: Any) -> KeptTransaction:
    fields: dict[str, Any] = {
        "trace_id": b"t" * 16,
        "span_id": SPAN_ID,
        "parent_id": bytes(8),
        "why": KEPT_QUERIES,
        "series": 3,
        "failed": False,
        "start_ns": 1000,
        "duration_ns": 50 * MS,
        "queue_us": 0,
        "method": "GET",
        "path": "/",
        "query": "",
        "headers": {},
        "tracestate": "",
        "error": None,
        "inside": inside,
        **more,
    }
    return KeptTransaction(**fields)


def detail_of(transaction: KeptTransaction, rules: Rules = DEFAULTS) -> dict[str, Any]:
    row = trace_row(transaction, {}, 0, rules)
    assert row.detail is not None
    found: dict[str, Any] = json.loads(json.dumps(row.detail))
    return found


# -- spans ---------------------------------------------------------------------------------------------------------


def test_spans_are_told_in_the_order_in_which_they_began() -> None:
    inside = inside_of(
        finished(3, 2, name="GET", category=CALL, span_id=b"\x02" * 8, failed="503", attributes={"server.port": 80}),
        finished(2, 1, name="page.mako", category=TEMPLATE),
        finished(4, 99, name="orphan"),
        finished(1, 0, name="view", category=FUNCTION, code=("/srv/shop.py", 7, "view")),
    )
    found = spans_of(inside, SPAN_ID, 1000)
    assert [(one["category"], one["name"], one["start"]) for one in found] == [
        ("function", "view", 1),
        ("template", "page.mako", 2),
        ("call", "GET", 3),
        ("database", "orphan", 4),
    ]
    ids = [one["id"] for one in found]
    assert [one["parent"] for one in found] == [None, ids[0], ids[1], None]
    assert len({SPAN_ID.hex(), *ids}) == 5
    assert ids[2] == "02" * 8
    assert [one.get("error") for one in found] == [None, None, "503", None]
    assert found[2]["attributes"] == {"server.port": 80}
    assert found[0]["attributes"] == {
        "code.file.path": "/srv/shop.py",
        "code.line.number": 7,
        "code.function.name": "view",
    }
    assert "attributes" not in found[1]


@given(st.binary(min_size=8, max_size=8), st.sets(st.integers(1, 100_000), max_size=600))
def test_ids_of_spans_are_all_different_and_valid(span_id: bytes, numbers: set[int]) -> None:
    found = [one["id"] for one in spans_of(inside_of(*map(finished, numbers)), span_id, 0)]
    assert len(set(found)) == len(numbers)
    assert span_id.hex() not in found
    assert all(len(one) == 16 and one.strip("0") for one in found)
    assert found == [one["id"] for one in spans_of(inside_of(*map(finished, numbers)), span_id, 0)]


def test_attributes_of_any_making_are_bounded_and_can_be_sent() -> None:
    class Odd:
        def __str__(self) -> str:
            return "odd"

    found = attributes_as_json({"text": "x" * 5000, "whole": 7, "part": 0.5, "yes": True, "none": None, "odd": Odd()})
    assert found == {"text": "x" * 4000, "whole": 7, "part": 0.5, "yes": True, "odd": "odd"}
    assert len(attributes_as_json({str(place): place for place in range(100)})) == 32


def test_a_row_tells_what_took_the_time() -> None:
    inside = inside_of(finished(1))
    inside.parts = {GC: [1, 2 * MS], DATABASE: [3, 7 * MS]}
    inside.errors = [SeenError("KeyError", "shop.stock.reserve", True)]
    layers = [("app", 5 * MS), ("gzip", MS // 2)]
    alike = Alike(4)
    alike.kept = 1
    found = detail_of(kept(inside, layers=layers, alike=alike))
    assert found["parts"] == {"database": 7 * MS, "gc": 2 * MS}
    assert found["errors"] == [{"type": "KeyError", "place": "shop.stock.reserve", "expected": True}]
    assert found["attributes"]["paste.layers"] == ["gzip 0.500 ms", "app 5.000 ms"]
    assert found["attributes"]["paste_agent.sampling.probability"] == 0.25
    bare = detail_of(kept(Inside()))
    assert set(bare) == {"attributes"}
    assert "paste_agent.sampling.probability" not in bare["attributes"]


def test_what_a_request_really_leaves_is_written_and_stored(tmp_path: Path) -> None:
    recorder = open_recorder(tmp_path, keep_all=True)

    def run() -> None:
        with span("outer"):
            begun = begin(DATABASE, b"SELECT items")
            assert begun is not None
            end(begun, "SELECT items", None, "Busy", {"db.query.text": "SELECT * FROM items"})

    told = {one.name: one for one in spans_within(recorder, run)}
    TraceWriter(settings_of(tmp_path), recorder, str(tmp_path), warnings()).write()
    die(recorder)
    with leading(tmp_path) as lead:
        lead.drain()
        (row,) = traces_of(lead)
    assert row.detail is not None
    spans: Any = row.detail["spans"]
    assert [(one["name"], one["duration"], one["own"], one.get("error")) for one in spans] == [
        ("outer", told["outer"].duration_ns, told["outer"].own_ns, None),
        ("SELECT items", told["SELECT items"].duration_ns, told["SELECT items"].own_ns, "Busy"),
    ]
    assert spans[1]["parent"] == spans[0]["id"]
    assert row.detail["parts"] == {"database": told["SELECT items"].own_ns}


# -- findings ------------------------------------------------------------------------------------------------------

CODE = ("/srv/shop.py", 12, "items")


def repeated(count: int, first: int = 1, parent: int = 0, text: str = "SELECT ?", **more: Any) -> list[FinishedSpan]:
    return [
        finished(number, parent, attributes={"db.query.text": text}, **more) for number in range(first, first + count)
    ]


def test_a_statement_that_repeats_under_one_parent_is_found() -> None:
    spans = repeated(9) + repeated(10, 100, 7) + repeated(3, 200, 8)
    spans[15] = spans[15]._replace(code=CODE)
    (found,) = findings_of(inside_of(*spans), 10, 10**12)
    assert found == {
        "kind": "repeated",
        "text": "SELECT ?",
        "count": 10,
        "duration": 10 * MS,
        "code": {"file": "/srv/shop.py", "line": 12, "function": "items"},
    }


def test_executions_that_were_not_kept_are_counted(tmp_path: Path) -> None:
    recorder = open_recorder(tmp_path, keep_all=True)
    text = {"db.query.text": "SELECT ?"}
    with_rows = (with_one, text, "db.response.returned_rows", 1)

    def run() -> None:
        for _ in range(MAX_SPANS):
            for name, attributes in (("SELECT", text), ("SELECT", with_rows), ("fetch SELECT", with_rows)):
                begun = begin(DATABASE, b"SELECT ?")
                assert begun is not None
                end(begun, name, None, None, attributes)

    serve(recorder, meanwhile=run)
    transaction = recorder.kept[0]
    found = detail_of(transaction)
    (finding,) = found["findings"]
    assert finding["count"] == 2 * MAX_SPANS
    assert transaction.inside is not None
    assert len(found["spans"]) == MAX_SPANS
    assert found["attributes"]["paste_agent.spans.dropped"] == 2 * MAX_SPANS
    in_spans_ns = sum(one["duration"] for one in found["spans"]) + found["dropped_ns"]
    assert in_spans_ns == transaction.inside.parts[DATABASE][1] > finding["duration"]
    die(recorder)


def test_slow_queries_are_found_each_and_the_longest_come_first() -> None:
    spans = [
        finished(number, duration_ns=number * MS, attributes={"db.query.text": f"SELECT {number}"})
        for number in range(1, 31)
    ]
    found = findings_of(inside_of(*spans), 1000, 10 * MS)
    assert [(one["kind"], one["text"], one["count"], one["duration"]) for one in found] == [
        ("slow", f"SELECT {number}", 1, number * MS) for number in range(30, 20, -1)
    ]


def test_what_is_no_query_is_not_found() -> None:
    spans = repeated(50, category=CALL) + repeated(50, 100, category=FUNCTION, duration_ns=10**12)
    assert findings_of(inside_of(*spans), 10, MS) == []


def test_a_statement_without_text_goes_by_its_name() -> None:
    (found,) = findings_of(inside_of(*[finished(number) for number in range(1, 11)]), 10, 10**12)
    assert (found["text"], found["code"]) == ("SELECT items", None)


# -- what is left out ----------------------------------------------------------------------------------------------


def secretive() -> Inside:
    return inside_of(
        *repeated(10, 1, text="SELECT secret"),
        finished(20, category=FUNCTION, name="view", attributes={"code.function.name": "shop.view"}),
        finished(22, category=FUNCTION, name="own", attributes=Said({"user.plan": "pro", "code.user": "bob"})),
        finished(21, category=CALL, name="GET", attributes={"url.full": "http://stock.example/"}),
        attributes={"app.cart": 3, "user.mail": "a@shop.example", "url.path": "/of/the/application"},
    )


def attributes_in(found: dict[str, Any]) -> set[str]:
    return {name for span in found["spans"] for name in span.get("attributes", {})} | set(found["attributes"])


def test_attributes_of_the_application_are_recorded_and_replace_none_of_ours() -> None:
    found = detail_of(kept(secretive()))
    assert found["attributes"]["app.cart"] == 3
    assert found["attributes"]["url.path"] == "/"
    assert {"user.mail", "user.plan", "url.full", "db.query.text"} <= attributes_in(found)


def test_patterns_say_which_of_them() -> None:
    found = attributes_in(detail_of(kept(secretive()), Rules(include=("app.*",))))
    assert "app.cart" in found
    assert not {"user.mail", "user.plan", "code.user"} & found
    # What is not the application's is not theirs to choose.
    assert {"url.path", "url.full", "code.function.name", "db.query.text"} <= found
    assert "user.plan" in attributes_in(detail_of(kept(secretive()), Rules(include=("user.p?an",))))


@pytest.mark.parametrize(
    ("patterns", "gone"),
    [
        (("user.*",), {"user.mail", "user.plan"}),
        (("url.*",), {"url.path", "url.full"}),
        (("db.query.text", "*.function.name"), {"db.query.text", "code.function.name"}),
        (("*",), {"app.cart", "user.mail", "user.plan", "url.path", "url.full", "db.query.text", "server.port"}),
    ],
)
def test_patterns_that_exclude_are_stronger(patterns: tuple[str, ...], gone: set[str]) -> None:
    everything = attributes_in(detail_of(kept(secretive())))
    found = attributes_in(detail_of(kept(secretive()), Rules(include=("*",), exclude=patterns)))
    assert gone <= everything
    assert not gone & found
    if patterns == ("*",):
        assert found == set()


def test_a_text_that_is_excluded_is_in_no_finding_either() -> None:
    found = detail_of(kept(secretive()), Rules(exclude=("db.query.*",)))
    assert [(one["kind"], one["text"], one["count"]) for one in found["findings"]] == [("repeated", "SELECT items", 10)]
    assert "SELECT secret" not in json.dumps(found)
    assert "SELECT secret" in json.dumps(detail_of(kept(secretive())))


def test_high_security_leaves_out_what_the_application_says() -> None:
    loaded = settings.load({"high_security": "true", "include_attributes": "*"}, {}, {})
    rules = rules_of(loaded)
    assert (rules.own_attributes, rules.messages, rules.query, rules.headers) == (False, False, False, ())
    found = attributes_in(detail_of(kept(secretive()), rules))
    assert not {"app.cart", "user.mail", "user.plan"} & found
    assert {"code.function.name", "url.full", "url.path"} <= found


@pytest.mark.parametrize("secure", [False, True])
def test_what_a_span_is_given_is_the_application_s_by_whatever_name(tmp_path: Path, secure: bool) -> None:
    def run() -> None:
        with span("pay") as paying:
            paying.set("code.reviewer", "bob")

    recorder = open_recorder(tmp_path)
    inside = inside_of(*spans_within(recorder, run))
    die(recorder)
    found = detail_of(kept(inside), Rules(own_attributes=not secure))
    assert ("bob" in json.dumps(found["spans"])) != secure


def test_rules_are_those_of_the_settings() -> None:
    keys = {
        "record_query": "true",
        "record_headers": "X-Request-Id",
        "include_attributes": "a.*",
        "exclude_attributes": "b.*",
        "repeated_queries": "5",
        "slow_query_s": "0.25",
        "record_error_messages": "false",
    }
    assert rules_of(settings.load(keys, {}, {})) == Rules(
        query=True,
        messages=False,
        headers=("X-Request-Id",),
        include=("a.*",),
        exclude=("b.*",),
        own_attributes=True,
        repeated=5,
        slow_query_ns=250 * MS,
    )
    assert rules_of(settings.load({}, {}, {})) == Rules()


def chained() -> Exception:
    try:
        try:
            raise KeyError("secret inner")
        except KeyError as inner:
            raise ValueError("secret outer") from inner
    except ValueError as error:
        return error


def test_messages_are_left_out_of_everything() -> None:
    raised = raised_of(chained())
    found = detail_of(kept(error=raised), Rules(messages=False))
    exception = found["exception"]
    assert (exception["type"], exception["message"]) == ("ValueError", "")
    lines = exception["stacktrace"].splitlines()
    assert lines[-1] == "ValueError"
    assert "KeyError" in lines
    # The line of source that raised it is the application's own text.
    assert not [line for line in lines if "secret" in line and not line.strip().startswith("raise ")]
    assert stacktrace(raised).splitlines()[-1] == "ValueError: secret outer"


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        (("exception.*",), {"type"}),
        (("*.message",), {"type", "stacktrace"}),
        (("exception.stacktrace",), {"type", "message"}),
    ],
)
def test_patterns_leave_out_what_an_exception_tells(patterns: tuple[str, ...], left: set[str]) -> None:
    found = detail_of(kept(error=raised_of(chained())), Rules(exclude=patterns))
    assert {key for key, value in found["exception"].items() if value} == left
    if "message" not in left:
        assert "ValueError: secret outer" not in json.dumps(found)


def test_by_what_a_transaction_is_counted_is_not_the_applications_to_say() -> None:
    names = ("http.route", "http.request.method", "http.response.status_code", "error.type", "paste_agent.task.name")
    own = inside_of(attributes={**dict.fromkeys(names, "x"), "app.cart": 3})
    assert attributes_in({"spans": [], **detail_of(kept(own))}) & {*names, "app.cart"} == {"app.cart"}


def test_headers_are_recorded_by_name() -> None:
    headers = {"HTTP_X_REQUEST_ID": "abc", "HTTP_COOKIE": "secret", "CONTENT_TYPE": "text/csv"}
    found = detail_of(kept(headers=headers), Rules(headers=("X-Request-Id", "X-Other", "Content-Type")))
    assert found["attributes"]["http.request.header.content-type"] == ["text/csv"]
    assert found["attributes"]["http.request.header.x-request-id"] == ["abc"]
    assert "secret" not in json.dumps(found)
    assert "abc" not in json.dumps(detail_of(kept(headers=headers)))
