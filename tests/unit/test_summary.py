"""What a report says of the inside of transactions: exact sums of what was counted, and what kept traces add to it."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from paste_agent.aggregate import (
    CALL_DURATION,
    COUNT,
    DATABASE_DURATION,
    ERRORS,
    LAYER_DURATION,
    LOAD_DURATION,
    OVERFLOW,
    PART_DURATION,
    PART_SPANS,
    REQUEST_DURATION,
    TASK_DURATION,
    TIMING,
    Delta,
    canonical,
)
from paste_agent.kept import TraceRow
from paste_agent.store import inside_summary, lookup
from paste_agent.store.store import Store
from paste_agent.store.summary import summarize
from tests.commands import count
from tests.recorders import MS, S

#: Start of a rollup, s since the epoch; what is told begins here.
SLOT = int(time.time()) // 10 * 10 - 600
END = SLOT + 300.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(str(tmp_path / "shop.sqlite"))) as opened:
        yield opened


def put(store: Store, metric: str, attributes: Mapping[str, Any] | str, *durations: int, at: int = SLOT) -> None:
    """Count durations, ns, in the rollup that begins at `at`."""
    count(store, metric, attributes, *durations, at=at)


def put_spans(store: Store, attributes: Mapping[str, Any], transactions: int, spans: int) -> None:
    delta = Delta()
    total = delta.at((PART_SPANS, canonical(attributes)), SLOT)
    total.count, total.sum_ns = transactions, spans
    store.commit_drain(delta, [], {}, 100)


def keep(store: Store, number: int, attributes: Mapping[str, Any], /, *, at_s: float = SLOT, **detail: object) -> str:
    """Keep a transaction; its trace id."""
    failed = "error.type" in attributes
    trace_id = number.to_bytes(16, "big")
    row = TraceRow(trace_id, b"\1" * 8, None, round(at_s * S), MS, failed, 8, attributes, detail)
    store.add_traces([row], at_s)
    return row.trace_id.hex()


def report(store: Store) -> dict[str, Any]:
    return summarize(store, "shop", SLOT, END)


def route(name: str | None, **more: Any) -> dict[str, Any]:
    return {"http.request.method": "GET", **({} if name is None else {"http.route": name}), **more}


def part(name: str, of: Mapping[str, Any]) -> dict[str, Any]:
    return {**of, "paste_agent.part": name}


def test_nothing_is_known_of_a_store_that_is_empty(store: Store) -> None:
    found = report(store)
    for name in ("breakdown", "queries", "findings", "calls", "layers", "custom", "errors_seen"):
        assert found[name] == []


# -- breakdown -----------------------------------------------------------------------------------------------------


def test_the_time_of_a_route_is_divided(store: Store) -> None:
    put(store, REQUEST_DURATION, route("/a", **{"http.response.status_code": 200}), 100 * MS, 200 * MS)
    put(store, REQUEST_DURATION, route("/a", **{"http.response.status_code": 500, "error.type": "500"}), 100 * MS)
    put(store, PART_DURATION, part("database", route("/a")), 60 * MS, 140 * MS)
    put_spans(store, part("database", route("/a")), 2, 17)
    put(store, PART_DURATION, part("template", route("/a")), 40 * MS)
    put(store, PART_DURATION, part("gc", route("/a")), 10 * MS)
    put(store, PART_DURATION, part("cpu", route("/a")), 300 * MS)
    put(store, REQUEST_DURATION, route("/b"), 1000 * MS)
    slower, first = report(store)["breakdown"]
    assert (slower["route"], slower["parts"], slower["own_s"]) == ("/b", {}, 1.0)
    assert (first["method"], first["route"], first["count"], first["sum_s"]) == ("GET", "/a", 3, 0.4)
    assert first["own_s"] == 0.16  # neither pauses nor CPU time are parts of it
    assert first["parts"]["database"] == {"sum_s": 0.2, "share": 0.5, "count": 2, "spans": 17}
    assert first["parts"]["template"] == {"sum_s": 0.04, "share": 0.1, "count": 1, "spans": 0}
    assert list(first["parts"]) == ["database", "template", "gc", "cpu"]


def test_parts_that_lie_across_each_other_leave_no_time_below_none(store: Store) -> None:
    put(store, REQUEST_DURATION, route(None), 100 * MS)
    put(store, PART_DURATION, part("database", route(None)), 150 * MS)
    (entry,) = report(store)["breakdown"]
    assert (entry["method"], entry["route"], entry["own_s"]) == ("GET", None, 0.0)


def test_background_tasks_are_one_entry(store: Store) -> None:
    put(store, TASK_DURATION, {"paste_agent.task.name": "mail"}, 10 * MS)
    put(store, TASK_DURATION, {"paste_agent.task.name": "tidy", "error.type": "OSError"}, 30 * MS)
    put(store, PART_DURATION, {"paste_agent.part": "database"}, 10 * MS)
    (entry,) = report(store)["breakdown"]
    assert (entry["method"], entry["route"], entry["count"], entry["own_s"]) == (None, None, 2, 0.03)


def test_without_any_part_there_is_no_breakdown(store: Store) -> None:
    put(store, REQUEST_DURATION, route("/a"), 100 * MS)
    assert report(store)["breakdown"] == []


# -- by metric -----------------------------------------------------------------------------------------------------


def test_queries_are_counted_by_what_they_do_whether_or_not_they_fail(store: Store) -> None:
    items = {
        "db.system.name": "postgresql", "db.namespace": "shop", "db.operation.name": "SELECT",
        "db.collection.name": "items", "db.query.summary": "SELECT items",
    }  # fmt: skip
    put(store, DATABASE_DURATION, items, 10 * MS, 20 * MS)
    put(store, DATABASE_DURATION, {**items, "error.type": "Timeout"}, 30 * MS)
    put(store, DATABASE_DURATION, {**items, "db.namespace": "archive"}, 15 * MS)
    put(store, DATABASE_DURATION, {"db.system.name": "redis", "db.operation.name": "GET"}, 25 * MS)
    put(store, DATABASE_DURATION, {"db.system.name": "memcached"}, 10 * MS)
    put(store, DATABASE_DURATION, OVERFLOW, 10 * MS)
    found = report(store)["queries"]
    assert [(one["name"], one["namespace"], one["count"], one["errors"], one["sum_s"]) for one in found] == [
        ("SELECT items", "shop", 3, 1, 0.06),
        ("GET", None, 1, 0, 0.025),
        ("SELECT items", "archive", 1, 0, 0.015),
        ("memcached", None, 1, 0, 0.01),
        ("(all others)", None, 1, 0, 0.01),
    ]
    assert [one["overflow"] for one in found] == [False] * 4 + [True]
    assert found[0]["share"] == 0.5
    assert found[0]["max_s"] == 0.03
    assert found[0]["p95_s"] == pytest.approx(0.03, rel=0.05)
    assert set(found[0]) == {
        "name", "system", "namespace", "operation", "collection", "summary", "overflow", "errors", "share", "count",
        "sum_s", "p50_s", "p95_s", "p99_s", "max_s",
    }  # fmt: skip


def test_calls_are_counted_by_whom_they_call(store: Store) -> None:
    api = {"http.request.method": "GET", "server.address": "api", "server.port": 8080}
    put(store, CALL_DURATION, {**api, "http.response.status_code": 200}, 10 * MS, 10 * MS)
    put(store, CALL_DURATION, {**api, "http.response.status_code": 503, "error.type": "503"}, 20 * MS)
    put(store, CALL_DURATION, {**api, "http.request.method": "PUT"}, 20 * MS)
    found = report(store)["calls"]
    assert [
        (one["method"], one["address"], one["port"], one["count"], one["errors"], one["share"]) for one in found
    ] == [("GET", "api", 8080, 3, 1, 0.6667), ("PUT", "api", 8080, 1, 0, 0.3333)]


def test_a_layer_has_its_own_time_and_what_it_took_to_load(store: Store) -> None:
    before = SLOT - 3600
    put(store, LAYER_DURATION, {"paste.layer": "gzip"}, 10 * MS, 20 * MS)
    put(store, LOAD_DURATION, {"paste.layer": "gzip"}, 400 * MS, 200 * MS, at=before)
    put(store, LOAD_DURATION, {"paste.layer": "auth"}, 900 * MS, at=before)
    put(store, LOAD_DURATION, {"paste.layer": "auth"}, 100 * MS)
    put(store, LAYER_DURATION, {"paste.layer": "main"}, 30 * MS)
    found = {one["name"]: one for one in report(store)["layers"]}
    assert (found["gzip"]["count"], found["gzip"]["sum_s"], found["gzip"]["share"]) == (2, 0.03, 0.5)
    assert found["gzip"]["load_s"] == 0.3  # loaded before what is told
    assert (found["auth"]["count"], found["auth"]["load_s"]) == (0, 0.1)  # the newest one counts
    assert found["main"]["load_s"] is None


def test_what_an_application_measures_is_told_by_its_name(store: Store) -> None:
    put(store, f"{TIMING}checkout", "{}", 20 * MS)
    delta = Delta()
    total = delta.at((f"{COUNT}orders", "{}"), SLOT)
    total.count, total.sum_ns = 3, 12
    store.commit_drain(delta, [], {}, 100)
    counted, timing = report(store)["custom"]
    assert counted == {"name": "orders", "kind": "count", "count": 3, "value": 12}
    assert (timing["name"], timing["kind"], timing["count"], timing["sum_s"]) == ("checkout", "timing", 1, 0.02)


# -- errors --------------------------------------------------------------------------------------------------------


def error(kind: str, place: str | None, of: str | None, expected: bool = False) -> dict[str, Any]:
    found = {"error.type": kind, "paste_agent.error.place": place, "http.route": of}
    found["paste_agent.error.expected"] = "true" if expected else None
    return {name: value for name, value in found.items() if value is not None}


def seen(kind: str, place: str, expected: bool = False) -> dict[str, Any]:
    return {"type": kind, "place": place, "expected": expected}


def test_errors_are_told_apart_by_type_place_and_route(store: Store) -> None:
    put(store, ERRORS, error("KeyError", "shop.a", "/a"), 0, 0)
    put(store, ERRORS, error("KeyError", "shop.b", "/a"), 0)
    put(store, ERRORS, error("KeyError", "shop.a", "/b"), 0, 0, 0)
    put(store, ERRORS, error("Expired", "shop.a", "/a", expected=True), *[0] * 9)
    found = report(store)["errors_seen"]
    assert [(one["type"], one["place"], one["route"], one["expected"], one["count"]) for one in found] == [
        ("KeyError", "shop.a", "/b", False, 3),
        ("KeyError", "shop.a", "/a", False, 2),
        ("KeyError", "shop.b", "/a", False, 1),
        ("Expired", "shop.a", "/a", True, 9),
    ]


def test_failed_requests_and_their_errors_are_not_counted_twice(store: Store) -> None:
    put(store, ERRORS, error("KeyError", "shop.a", "/a"), 0, 0)
    put(store, ERRORS, error("KeyError", "shop.b", "/a"), 0)
    put(store, REQUEST_DURATION, route("/a", **{"error.type": "KeyError"}), *[MS] * 3)
    assert sum(one["count"] for one in report(store)["errors_seen"]) == 3


def test_an_error_that_was_made_a_response_of_is_not_counted_as_that_once_more(store: Store) -> None:
    put(store, ERRORS, error("KeyError", "shop.a", "/a"), 0, 0)
    put(store, ERRORS, error("Expired", "shop.a", "/a"), 0)
    put(store, ERRORS, error("Late", "shop.a", "/a", expected=True), 0)  # and no failure
    put(store, REQUEST_DURATION, route("/a", **{"error.type": "Expired"}), MS)  # this one left the application
    put(store, REQUEST_DURATION, route("/a", **{"error.type": "500"}), *[MS] * 5)
    found = [(one["type"], one["count"]) for one in report(store)["errors_seen"]]
    assert sorted(found) == [("500", 3), ("Expired", 1), ("KeyError", 2), ("Late", 1)]


def test_failed_requests_whose_errors_were_not_counted_have_no_place(store: Store) -> None:
    put(store, ERRORS, error("KeyError", "shop.a", "/a"), 0)
    put(store, REQUEST_DURATION, route("/a", **{"error.type": "KeyError"}), *[MS] * 3)
    put(store, REQUEST_DURATION, route("/b", **{"error.type": "500"}), MS)
    found = report(store)["errors_seen"]
    assert [(one["type"], one["place"], one["route"], one["count"]) for one in found] == [
        ("KeyError", None, "/a", 2),
        ("KeyError", "shop.a", "/a", 1),
        ("500", None, "/b", 1),
    ]


def test_an_error_was_seen_first_and_last(store: Store) -> None:
    key = error("KeyError", "shop.a", "/a")
    for at in (SLOT + 200, SLOT + 20, SLOT + 100):
        put(store, ERRORS, key, 0, at=at)
    put(store, ERRORS, key, 0, at=SLOT - 100)  # not asked for
    (found,) = report(store)["errors_seen"]
    assert (found["count"], found["last_message"], found["last_trace_id"]) == (3, None, None)
    assert found["first_seen"] == inside_summary.rfc3339(SLOT + 20)
    assert found["last_seen"] == inside_summary.rfc3339(SLOT + 200)
    trace_id = keep(store, 1, route("/a"), at_s=SLOT + 207.5, errors=[seen("KeyError", "shop.a")])
    (found,) = report(store)["errors_seen"]
    assert found["last_seen"] == inside_summary.rfc3339(SLOT + 207.5)
    assert found["last_trace_id"] == trace_id


def test_a_single_error_was_seen_once(store: Store) -> None:
    put(store, ERRORS, error("KeyError", "shop.a", "/a"), 0, at=SLOT + 20)
    at = inside_summary.rfc3339(SLOT + 20)
    assert [(one["first_seen"], one["last_seen"]) for one in report(store)["errors_seen"]] == [(at, at)]
    keep(store, 1, route("/a"), at_s=SLOT + 23.5, errors=[seen("KeyError", "shop.a")])
    at = inside_summary.rfc3339(SLOT + 23.5)
    assert [(one["first_seen"], one["last_seen"]) for one in report(store)["errors_seen"]] == [(at, at)]


@pytest.mark.parametrize(("oldest", "first"), [(18, 20), (23.5, 23.5), (31, 20)])
def test_an_error_was_seen_first_where_the_oldest_kept_one_tells_better(
    store: Store, oldest: float, first: float
) -> None:
    put(store, ERRORS, error("KeyError", "shop.a", "/a"), 0, 0, 0, at=SLOT + 20)
    for number, at_s in enumerate((oldest, 40), 1):
        keep(store, number, route("/a"), at_s=SLOT + at_s, errors=[seen("KeyError", "shop.a")])
    (found,) = report(store)["errors_seen"]
    assert (found["first_seen"], found["last_seen"]) == tuple(
        inside_summary.rfc3339(SLOT + at_s) for at_s in (first, 40)
    )


def test_an_error_of_several_series_was_seen_first_where_any_was(store: Store) -> None:
    for status, at in ((500, SLOT + 20), (503, SLOT + 150)):
        put(store, REQUEST_DURATION, route("/a", **{"error.type": "K", "http.response.status_code": status}), MS, at=at)
    (found,) = report(store)["errors_seen"]
    assert found["first_seen"] == inside_summary.rfc3339(SLOT + 20)
    assert found["last_seen"] == inside_summary.rfc3339(SLOT + 150)


def test_an_error_has_the_message_of_the_newest_transaction_that_was_kept(store: Store) -> None:
    put(store, ERRORS, error("KeyError", "shop.a", "/a"), 0)
    put(store, ERRORS, error("Expired", "shop.c", "/a", expected=True), 0)
    exception = {"type": "KeyError", "message": "old", "stacktrace": ""}
    keep(store, 1, route("/a", **{"error.type": "KeyError"}), errors=[seen("KeyError", "shop.a")], exception=exception)
    # The newest had both, and only one of them was taken down.
    both = [seen("KeyError", "shop.a"), seen("Expired", "shop.c", True)]
    newest = keep(store, 2, route("/a"), at_s=SLOT + 5, errors=both, exception={"type": "Expired", "message": "late"})
    keep(store, 3, route("/a"), at_s=SLOT + 9, errors=[seen("KeyError", "shop.b")])  # another place
    found = report(store)["errors_seen"]
    assert [(one["type"], one["last_message"], one["last_trace_id"]) for one in found] == [
        ("KeyError", "old", newest),
        ("Expired", "late", newest),
    ]


# -- findings ------------------------------------------------------------------------------------------------------

CODE = {"file": "/shop/views.py", "line": 17, "function": "items"}


def finding(kind: str = "repeated", text: str = "SELECT ?", count: int = 12, duration: int = 40 * MS) -> dict[str, Any]:
    return {"kind": kind, "text": text, "count": count, "duration": duration, "code": CODE}


@pytest.mark.parametrize("knows_json", [True, False])
def test_findings_of_kept_transactions_are_put_together(
    store: Store, monkeypatch: pytest.MonkeyPatch, knows_json: bool
) -> None:
    if not knows_json:
        monkeypatch.setattr(lookup, "knows_json", lambda store: False)
    keep(store, 1, route("/a"), findings=[finding(), finding("slow", "SELECT slow", 1, 900 * MS)])
    worst = keep(store, 2, route("/a"), findings=[finding(count=30, duration=50 * MS)])
    keep(store, 3, route("/a"), findings=[finding(count=11, duration=20 * MS)])
    # Python's JSON, and none to SQLite.
    keep(store, 4, route("/b"), findings=[{**finding(), "code": None}], attributes={"x": float("nan")})
    keep(store, 5, route("/a"), attributes={"x": '"findings": ['})  # has none
    keep(store, 6, route("/a"), at_s=END + 1, findings=[finding()])  # not asked for
    found = report(store)["findings"]
    assert [(one["kind"], one["route"], one["transactions"], one["per_request"]) for one in found] == [
        ("slow", "/a", 1, 1),
        ("repeated", "/a", 3, 30),
        ("repeated", "/b", 1, 12),
    ]
    assert found[1] == {
        "kind": "repeated", "text": "SELECT ?", "method": "GET", "route": "/a", "code": CODE, "transactions": 3,
        "per_request": 30, "duration_s": 0.05, "trace_id": worst,
    }  # fmt: skip
    assert found[2]["code"] is None


@pytest.mark.parametrize(
    "odd", [None, 7, "x", [], {}, [None, 7, "x", []], [{}], [{"type": [], "code": 7, "count": "x", "duration": 1e300}]]
)
def test_details_that_somebody_has_written_hurt_nothing(store: Store, odd: object) -> None:
    put(store, ERRORS, error("KeyError", "shop.a", "/a"), 0)
    keep(store, 1, route("/a"), findings=odd, errors=odd, exception=odd, spans=odd, attributes=odd)
    keep(store, 2, route("/a", **{"error.type": "KeyError"}), exception={"message": odd})
    found = report(store)
    assert [one["count"] for one in found["errors_seen"]] == [1]
    assert all(one["duration_s"] == 0 for one in found["findings"])


# -- traces --------------------------------------------------------------------------------------------------------


def test_a_trace_says_how_much_it_holds_and_how_many_it_stands_for(store: Store) -> None:
    keep(store, 1, route("/a"), spans=[{"id": "1"}, {"id": "2"}], attributes={"paste_agent.sampling.probability": 0.1})
    keep(store, 2, {"paste_agent.task.name": "mail"}, attributes={"paste_agent.sampling.probability": 0})
    found = {one["name"]: (one["spans"], one["probability"]) for one in report(store)["traces"]}
    assert found == {"GET /a": (2, 0.1), "mail": (0, 1.0)}


def test_traces_are_found_by_the_beginning_of_their_id(store: Store) -> None:
    ids = [keep(store, number, route("/a")) for number in (0x10, 0x11, 0xFF << 120)]
    assert lookup.trace_ids(store, ids[0]) == [ids[0]]
    assert lookup.trace_ids(store, ids[0][:31]) == ids[:2]
    assert lookup.trace_ids(store, "FF0") == [ids[2]]
    for beginning in ("", "fe", "xx", "٣", ids[0] + "0", "0x10", "%", "ff\0"):
        assert lookup.trace_ids(store, beginning) == []
    assert [row.trace_id.hex() for row in lookup.transactions_of(store, ids[2], 10)] == [ids[2]]


def test_a_short_id_that_zeros_fill_up_is_found_by_its_own_digits(store: Store) -> None:
    ids = [keep(store, number, route("/a")) for number in (0xABCD << 48, 0xABCE << 48, 0xABCD << 112)]
    assert [lookup.own_digits(one) for one in ids] == [ids[0][16:], ids[1][16:], ids[2]]
    assert lookup.trace_ids(store, ids[1]) == lookup.trace_ids(store, ids[1][16:]) == [ids[1]]
    assert lookup.trace_ids(store, "ABCE") == [ids[1]]
    assert lookup.trace_ids(store, "abcd") == [ids[0], ids[2]]
    assert lookup.trace_ids(store, "abcd" + "0" * 13) == [ids[2]]
    assert lookup.own_digits("") == ""


def test_a_store_of_an_older_agent_is_summed_up_as_far_as_it_goes(store: Store) -> None:
    put(store, REQUEST_DURATION, route("/a", **{"error.type": "KeyError"}), 20 * MS)
    keep(store, 1, route("/a", **{"error.type": "KeyError"}), exception={"type": "KeyError", "message": "old"})
    store.close()
    with closing(sqlite3.connect(store.path)) as db:
        db.execute("DROP TABLE postmortems")
        db.execute("PRAGMA user_version = 1")
    with closing(Store(store.path, read_only=True)) as old:
        found = report(old)
    assert (found["requests"], found["errors"], found["breakdown"], found["queries"]) == (1, 1, [], [])
    (only,) = found["errors_seen"]
    assert (only["type"], only["place"], only["count"], only["last_message"]) == ("KeyError", None, 1, "old")
