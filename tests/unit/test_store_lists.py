"""What pages list: kept transactions page by page, deployments, and how the agent itself fares."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from paste_agent import metrics
from paste_agent.aggregate import REPORT_DURATION, Delta, canonical
from paste_agent.kept import TraceRow
from paste_agent.recorder.layout import KEPT_FAILED, KEPT_RANDOM, KEPT_SLOW
from paste_agent.store import deployments, kept_traces, lookup
from paste_agent.store.deployments import Deployment
from paste_agent.store.health import Waiting, health
from paste_agent.store.kept_traces import Wanted, count, find, place_of
from paste_agent.store.store import SENT, Store
from tests.unit.test_schema import made

S = 1_000_000_000
HOSTILE = '"http.route": "/items"'


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(str(tmp_path / "shop.sqlite"))) as opened:
        yield opened


def trace(
    number: int,
    route: str | None = "/items",
    *,
    at_s: float | None = None,
    error: tuple[str, str] | None = None,
    **more: Any,
) -> TraceRow:
    attributes: dict[str, str | int] = {
        "http.request.method": "GET",
        "http.response.status_code": 200 if error is None else 500,
    }
    if route is not None:
        attributes["http.route"] = route
    detail: dict[str, object] = {"attributes": {"url.path": "/x"}}
    if error is not None:
        detail["exception"] = {"type": error[0], "message": error[1], "stacktrace": "in KeyError\n"}
    row = TraceRow(
        bytes(16), number.to_bytes(8, "big"), None, int((number if at_s is None else at_s) * S), number * 1000,
        error is not None, KEPT_FAILED if error else KEPT_RANDOM, attributes, detail,
    )  # fmt: skip
    return row._replace(**more)


def numbers(rows: list[TraceRow]) -> list[int]:
    return [int.from_bytes(row.span_id, "big") for row in rows]


ROWS = [
    trace(1),
    trace(2, "/items/{id}"),
    trace(3, error=("KeyError", "the 'blue' Ünit\n\"x\"")),
    trace(4, None, why=KEPT_SLOW | KEPT_RANDOM),
    trace(5, HOSTILE, error=("shop.Gone", "KEYS")),
    trace(6, detail=None),
    trace(7, attributes={"paste_agent.task.name": "mail"}, why=KEPT_SLOW),
    trace(8, attributes={"http.response.status_code": 2001}),
]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Wanted(), [8, 7, 6, 5, 4, 3, 2, 1]),
        (Wanted({"http.route": "/items"}), [6, 3, 1]),
        (Wanted({"http.route": HOSTILE}), [5]),
        (Wanted({"http.route": None}), [8, 7, 4]),
        (Wanted({"http.route": "/items", "http.request.method": "POST"}), []),
        (Wanted({"http.response.status_code": 200}), [6, 4, 2, 1]),
        (Wanted({"paste_agent.task.name": "mail"}), [7]),
        (Wanted(failed=True), [5, 3]),
        (Wanted(failed=False), [8, 7, 6, 4, 2, 1]),
        (Wanted(why=KEPT_SLOW), [7, 4]),
        (Wanted(why=KEPT_SLOW | KEPT_FAILED), [7, 5, 4, 3]),
        (Wanted(min_duration_ns=6000), [8, 7, 6]),
        (Wanted(min_duration_ns=1 << 80), []),
        (Wanted(error="keyerror"), [3]),
        (Wanted(error="key"), [5, 3]),
        (Wanted(error="'BLUE'"), [3]),
        (Wanted(error='Ünit\n"x"'), [3]),
        (Wanted(error="KeyError: the"), [3]),
        (Wanted(error="stacktrace"), []),
        (Wanted(error="%"), []),
        (Wanted({"http.route": "/items"}, True, KEPT_FAILED, 1, "key"), [3]),
    ],
)
def test_what_is_wanted_is_found_and_counted(store: Store, wanted: Wanted, expected: list[int]) -> None:
    store.add_traces(ROWS, 1.0)
    assert numbers(find(store, 0, 100, wanted)) == expected
    assert count(store, 0, 100, wanted) == len(expected)
    assert numbers(find(store, 2, 6, wanted)) == [number for number in expected if 2 <= number < 6]
    assert numbers(find(store, 0, 100, wanted, order=kept_traces.SLOWEST, limit=2)) == expected[:2]


def test_pages_follow_one_another_without_gap_or_repetition(store: Store) -> None:
    """Also where several began in the same moment, and new ones come in between."""
    store.add_traces([trace(number, at_s=number // 4) for number in range(1, 30)], 1.0)
    seen: list[int] = []
    after = None
    while rows := find(store, 0, 100, limit=3, after=after):
        seen += numbers(rows)
        after = place_of(rows[-1])
        store.add_traces([trace(100 + len(seen), at_s=50)], 1.0)
    assert seen == list(range(29, 0, -1))


def test_the_slowest_come_first(store: Store) -> None:
    rows = [trace(number, duration_ns=duration) for number, duration in ((1, 5), (2, 9), (3, 7))]
    store.add_traces(rows, 1.0)
    assert numbers(find(store, 0, 100, order=kept_traces.SLOWEST)) == [2, 3, 1]


@pytest.mark.parametrize("written", ["", "noise", "[1]", '{"exception": ', '{"exception": NaN, "KeyError": 1}'])
def test_what_is_no_json_spoils_no_list(store: Store, written: str) -> None:
    store.add_traces(ROWS, 1.0)
    with store.transaction() as db:
        db.execute("UPDATE traces SET detail = ? WHERE started_at_ns = ?", (written, S))
    assert len(find(store, 0, 100)) == 8
    assert set(numbers(find(store, 0, 100, Wanted(error="keyerror")))) - {1} == {3}


def test_an_sqlite_without_json_finds_errors_as_well(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.add_traces(ROWS, 1.0)
    monkeypatch.setattr(kept_traces, "knows_json", lambda store: False)
    assert numbers(find(store, 0, 100, Wanted(error="shop.gone"))) == [5]
    assert lookup.knows_json(store)


# -- deployments ---------------------------------------------------------------------------------------------------


def test_deployments_come_back_in_their_order(store: Store) -> None:
    deployments.add(store, 200.5, "2", "second\x1b[31m ü", "ci")
    deployments.add(store, 100.0, "1", "first")
    deployments.add(store, 200.5, "2")
    first, second = Deployment(100.0, "1", "first", ""), Deployment(200.5, "2", "second\x1b[31m ü", "ci")
    assert deployments.between(store, 0, 300) == [first, second, Deployment(200.5, "2", "", "")]
    assert deployments.between(store, 100, 200.5) == [first]
    assert deployments.between(store, 201, 300) == []


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_store_of_an_older_agent_has_none(tmp_path: Path, version: int) -> None:
    path = made(tmp_path / "old.sqlite", version, {})
    with closing(Store(path, read_only=True)) as store:
        assert deployments.between(store, 0, 1e12) == []
        assert health(store, 0, 1e12).logs == Waiting(0, None)
        assert find(store, 0, 1e12) == []


# -- health --------------------------------------------------------------------------------------------------------


def test_it_tells_how_the_agent_fares(store: Store) -> None:
    assert health(store, 0, 1e12) == ({}, {}, {}, {}, health(store, 0, 1).report, Waiting(0, None), Waiting(0, None))
    counters = {
        (metrics.RECORDS_DROPPED, canonical({metrics.REASON: "ring_full"})): 3,
        (metrics.RECORDS_DROPPED, canonical({metrics.REASON: "unwritten"})): 4,
        (metrics.SPANS_DROPPED, canonical({metrics.REASON: "ring_full"})): 5,
        (metrics.INTERNAL_ERRORS, "{}"): 6,
        (metrics.EXPORT_FAILED, canonical({metrics.SIGNAL: "traces"})): 7,
    }
    delta = Delta()
    for start in (1000, 2000):
        delta.at((REPORT_DURATION, "{}"), start).observe(start)
    store.commit_drain(delta, [], counters, 10)
    store.add_traces(ROWS[:3], 70.0)
    store.add_traces(ROWS[3:], 60.0)
    store.settle_traces(ROWS[3:4], SENT)
    found = health(store, 0, 1500)
    assert found.records_dropped == {"ring_full": 3, "unwritten": 4}
    assert (found.spans_dropped, found.internal_errors) == ({"ring_full": 5}, {"": 6})
    assert found.export_failed == {"traces": 7}
    assert (found.report.count, found.report.max_ns) == (1, 1000)
    assert found.traces == Waiting(7, 60.0)
