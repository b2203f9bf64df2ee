"""`report --fail-if`, `report --compare` and `mark-deploy`: what they say of real stores, and how they end."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from paste_agent.aggregate import QUEUE_DURATION, REQUEST_DURATION, Delta, canonical
from paste_agent.cli.comparison import Sides, around, compare
from paste_agent.store import deployments
from paste_agent.store.store import PostmortemRow, Store
from tests.commands import NOW, Run, count, filled, ini_of, refused, shell

MS = 1_000_000


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    return shell(capsys, monkeypatch, tmp_path)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """100 requests of /items/{id} and 10 failed ones of /items just now, 30 of /old an hour ago; 20 ms each."""
    with filled(tmp_path) as opened:
        yield opened


# -- conditions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "value"),
    [
        ("requests > 109", 110),
        ("requests == 110", 110),
        ("errors >= 10", 10),
        ("error_rate > 0.09", 10 / 110),
        ("error_rate{GET /items} > 0.99", 1.0),
        ("p95_s > 0.019", 0.02),
        ("p50_s{GET /items/{id}} < 1", 0.02),
        (" mean_s{ GET /items/{id} }<=0.02 ", 0.02),
        ("max_s != 0", 0.02),
        ("p90_s < 0.1", 0.02),
        ("p99_s < 0.1", 0.02),
        ("apdex < 1.1", 1.0),
        ("requests{GET /nowhere} < 1", 0),
        ("throughput{GET /items/{id}} > 0.16", 100 / 600),
        ("dropped > 2", 3),
        ("workers_lost < 1", 0),
    ],
)
def test_a_condition_that_holds_fails(run: Run, store: Store, condition: str, value: float) -> None:
    result = run("report", store.path, "--since", "10m", "--fail-if", condition, "--json")
    assert result.status == 1
    ((told),) = json.loads(result.output)["conditions"]
    assert told["failed"] is True
    assert told["value"] == pytest.approx(value, rel=0.06)
    assert result.errors.startswith("paste-agent: failed: ")
    assert result.errors.count("\n") == 1


@pytest.mark.parametrize(
    "condition",
    ["requests > 110", "requests != 110", "error_rate > 0.1", "p95_s > 0.03", "p95_s{GET /items/{id}} >= 1"],
)  # fmt: skip
def test_one_that_does_not_hold_passes(run: Run, store: Store, condition: str) -> None:
    result = run("report", store.path, "--since", "10m", "--fail-if", condition)
    assert (result.status, result.errors) == (0, "")
    assert "GET /items/{id}" in result.output


def test_which_of_several_failed_is_said(run: Run, store: Store) -> None:
    result = run(
        "report", store.path, "--quiet", "--fail-if", "error_rate > 0.05", "--fail-if", "p95_s > 5",
        "--fail-if", "requests > 1",
    )  # fmt: skip
    assert (result.status, result.output) == (1, "")
    assert result.errors.splitlines() == [
        "paste-agent: failed: error_rate > 0.05: it is 0.0714286",
        "paste-agent: failed: requests > 1: it is 140",
    ]


def test_nothing_measured_has_no_value_and_is_said(run: Run, tmp_path: Path) -> None:
    Store(str(tmp_path / "shop.sqlite")).close()
    names = ["error_rate", "p95_s", "max_s", "mean_s", "apdex", "queue_p95_s"]
    gates = [word for name in names for word in ("--fail-if", f"{name} > 0")]
    result = run("report", tmp_path / "shop.sqlite", "--since", "10m", "--quiet", *gates)
    assert (result.status, result.output) == (0, "")
    for name, line in zip(names, result.errors.splitlines(), strict=True):
        assert f"no value, so not failed: {name} > 0: nothing was measured" in line
    result = run("report", tmp_path / "shop.sqlite", "--since", "10m", "--quiet", "--fail-if", "requests < 1")
    assert (result.status, result.errors) == (1, "paste-agent: failed: requests < 1: it is 0\n")


def test_a_route_that_nobody_asked_for_is_said(run: Run, store: Store) -> None:
    result = run("report", store.path, "--quiet", "--fail-if", "p95_s{GET /typo} > 1")
    assert result.status == 0
    assert "no request of GET /typo" in result.errors


def test_queue_and_lost_workers(run: Run, store: Store) -> None:
    count(store, QUEUE_DURATION, {}, *[300 * MS] * 20, at=NOW // 10 * 10)
    lost = [
        PostmortemRow("7-b", NOW - 5.0, "timeout", {"worker": 3}),
        PostmortemRow("7-c", NOW - 5.0, "signal", {"worker": 0}),  # served nothing: an arbiter, say
        PostmortemRow("7-d", NOW - 90_000.0, "timeout", {"worker": 3}),
    ]
    store.commit_drain(Delta(), [], {}, 100, lost)
    result = run(
        "report", store.path, "--since", "10m", "--json", "--fail-if", "queue_p95_s > 0.2", "--fail-if",
        "workers_lost > 0", "--fail-if", "queue_p50_s > 9", "--fail-if", "queue_p99_s > 9",
    )  # fmt: skip
    assert result.status == 1
    told = json.loads(result.output)["conditions"]
    assert [one["failed"] for one in told] == [True, True, False, False]
    assert told[1]["value"] == 1


@pytest.mark.parametrize(
    ("condition", "word"),
    [
        ("p95_s", "for example"),
        ("p95_s = 1", "for example"),
        ("p95_s > soon", "for example"),
        ("p95_s > -1", "for example"),
        ("p95_s > nan", "for example"),
        ("> 1", "for example"),
        ("p95_s > 1 or requests < 1", "for example"),
        ("", "for example"),
        ("p95 > 1", "there is no p95; there are requests,"),
        ("dropped{GET /} > 1", "leave out {GET /}"),
    ],
)
def test_what_is_no_condition_is_refused(run: Run, store: Store, condition: str, word: str) -> None:
    result = run("report", store.path, "--fail-if", condition)
    assert (result.status, result.output) == (2, "")
    assert word in " ".join(result.errors.split())


@pytest.mark.parametrize(
    "options", [["--quiet"], ["--quiet", "--json", "--fail-if", "requests < 1"], ["--compare", "1h"]]
)
def test_options_that_do_not_go_together(run: Run, store: Store, options: list[str]) -> None:
    assert run("report", store.path, *options).status == 2


# -- comparison ----------------------------------------------------------------------------------------------------

BEFORE, AFTER = (NOW - 7200) // 10 * 10, (NOW - 3600) // 10 * 10
SIDES = Sides((BEFORE, BEFORE + 600), (AFTER, AFTER + 600))


def requests(store: Store, at: int, durations_ns: list[int], route: str = "/items", failed: int = 0) -> None:
    """Requests of a route, of which so many failed, within ten minutes from `at`."""
    delta = Delta()
    for place, duration_ns in enumerate(durations_ns):
        attributes = {"http.request.method": "GET", "http.route": route}
        attributes |= {"error.type": "500"} if place < failed else {}
        delta.at((REQUEST_DURATION, canonical(attributes)), at + place % 60 * 10).observe(duration_ns)
    store.commit_drain(delta, [], {}, 1000)


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(str(tmp_path / "shop.sqlite"))) as opened:
        yield opened


def durations(number: int, mean_ms: float, seed: int = 1) -> list[int]:
    random_of = random.Random(seed)
    return [int(random_of.expovariate(1 / mean_ms) * MS) + 1 for _ in range(number)]


def changes(store: Store) -> frozenset[str]:
    (row,) = compare(store, SIDES).routes
    return row.changes


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        # durations and failures of each side
        ((durations(1000, 20), 5), (durations(1000, 20, 2), 6), set()),
        ((durations(1000, 20), 5), (durations(1000, 40, 2), 6), {"p95_s"}),
        ((durations(1000, 40), 5), (durations(1000, 20, 2), 6), {"p95_s"}),
        ((durations(1000, 20), 5), (durations(1000, 20, 2), 60), {"error_rate"}),
        ((durations(1000, 20), 0), (durations(2000, 20, 2), 0), {"throughput"}),
        ((durations(1000, 20), 0), (durations(1020, 20, 2), 0), set()),
        # the same shares of a few requests say nothing
        ((durations(10, 20), 0), (durations(10, 40, 2), 1), set()),
        (([], 0), (durations(500, 20), 0), {"throughput"}),
        (([], 0), (durations(3, 20), 0), set()),
        (([20 * MS] * 500, 0), ([20 * MS] * 500, 0), set()),
        (([20 * MS] * 500, 0), ([400 * MS] * 500, 500), {"p95_s", "error_rate"}),
    ],
)
def test_only_what_is_more_than_chance_is_marked(
    two: Store, before: tuple[list[int], int], after: tuple[list[int], int], expected: set[str]
) -> None:
    requests(two, BEFORE, before[0], failed=before[1])
    requests(two, AFTER, after[0], failed=after[1])
    assert changes(two) == expected


def test_chance_alone_marks_next_to_nothing(two: Store) -> None:
    """Tables of routes that are the same on both sides: a mark in one table of a hundred would have to be expected."""
    marked = 0
    for table in range(4):
        with closing(Store(f"{two.path}-{table}")) as store:
            for route in range(50):
                requests(store, BEFORE, durations(200, 20, 1000 * table + route), f"/{route}", failed=route % 5)
                requests(store, AFTER, durations(200, 20, 1000 * table + route + 500), f"/{route}", failed=route % 5)
            marked += sum(len(row.changes) for row in compare(store, SIDES).routes)
    assert marked == 0


def compared(result: Any) -> dict[str, Any]:
    assert result.errors == ""
    found: dict[str, Any] = json.loads(result.output)["comparison"]
    return found


def test_a_span_before(run: Run, two: Store) -> None:
    now = int(time.time()) // 10 * 10
    requests(two, now - 3600, [20 * MS] * 600)
    requests(two, now - 660, [40 * MS] * 60)
    told = compared(run("report", two.path, "--since", "30m", "--compare", "1h", "--json"))
    (route,) = told["routes"]
    assert told["version"] is None
    assert (route["name"], route["before"]["requests"], route["after"]["requests"]) == ("GET /items", 600, 60)
    assert route["before"]["throughput"] == pytest.approx(600 / 3600, rel=1e-3)
    assert route["after"]["throughput"] == pytest.approx(60 / 1800, rel=1e-3)
    assert route["significant"] == {"throughput": True, "p95_s": True, "error_rate": False}
    page = run("report", two.path, "--since", "30m", "--compare", "1h").output
    assert "600 → 60" in page
    assert "ms ▲" in page
    assert "▲▼: more than chance" in page


def test_before_and_after_a_deployment(run: Run, two: Store) -> None:
    now = int(time.time()) // 10 * 10
    requests(two, now - 6900, [900 * MS] * 300)  # of the version before the last
    requests(two, now - 1800, [20 * MS] * 600)
    requests(two, now - 900, [40 * MS] * 600, failed=600)
    deployments.add(two, now - 4000, "1.0")
    deployments.add(two, now - 1000, "1.1", "new stock query")
    told = compared(run("report", two.path, "--compare", "1.1", "--json"))
    assert (told["version"], told["all"]["before"]["requests"], told["all"]["after"]["requests"]) == ("1.1", 600, 600)
    assert told["all"]["significant"] == {"throughput": False, "p95_s": True, "error_rate": True}
    result = run("report", two.path, "--compare", "1.1", "--quiet", "--fail-if", "error_rate > 0.5")
    assert result.status == 1  # of the time after it
    page = run("report", two.path, "--compare", "1.1").output
    assert "before and after 1.1" in page
    assert "0% → 100% ▲" in page
    # The side after the one before ends where 1.1 begins, and is as long as the time that is known before it.
    told = compared(run("report", two.path, "--compare", "1.0", "--json"))
    assert (told["all"]["before"]["requests"], told["all"]["after"]["requests"]) == (300, 600)


def test_the_slot_of_the_deployment_is_on_neither_side(two: Store) -> None:
    """Of an hour that has aged to one rollup nobody knows what was before the deployment in it and what after."""
    hour = NOW // 3600 * 3600 - 36_000
    deployments.add(two, hour + 1800.0, "1.1")
    attributes = canonical({"http.request.method": "GET", "http.route": "/items"})
    for at, number in ((hour - 3600, 100), (hour, 500), (hour + 3600, 300)):
        count(two, REQUEST_DURATION, attributes, *[20 * MS] * number, at=at)
    with two.transaction() as db:
        db.execute("UPDATE rollups SET width = 3600")
    sides = around(two, "1.1", hour - 3600, hour + 7300.0, 1e9)
    assert sides == Sides((hour - 3600, hour), (hour + 3600, hour + 7200), "1.1")
    assert around(two, "1.1", hour - 3600, hour + 7300.0, 60.0) == sides  # no less than a slot
    (row,) = compare(two, sides).routes
    assert (row.before.total.count, row.after.total.count) == (100, 300)


def test_a_version_that_was_not_marked(run: Run, store: Store) -> None:
    refused(run("report", store.path, "--compare", "9.9"), "'9.9'", "paste-agent report")


def test_nothing_to_compare(run: Run, tmp_path: Path) -> None:
    with closing(Store(str(tmp_path / "shop.sqlite"))) as store:
        deployments.add(store, time.time() - 5, "1.0")
    result = run("report", tmp_path / "shop.sqlite", "--compare", "1.0")
    assert (result.status, result.errors) == (0, "")
    assert "no difference is more than chance" in result.output


# -- mark-deploy ---------------------------------------------------------------------------------------------------


def test_a_deployment_is_marked_and_listed(run: Run, store: Store, tmp_path: Path) -> None:
    result = run("mark-deploy", "2.4.1", ini_of(tmp_path), "--description", "new stock query")
    assert (result.status, result.errors) == (0, "")
    assert result.output.startswith("2.4.1 marked at 2")
    assert run("mark-deploy", "2.4.0", store.path, "--at", "10m").status == 0
    marked = deployments.between(store, 0, 1e12)
    assert [one.version for one in marked] == ["2.4.0", "2.4.1"]
    assert marked[1].at_s - marked[0].at_s == pytest.approx(600, abs=60)
    page = run("report", store.path).output
    for word in ("Deployments", "2.4.1", "new stock query", "2.4.0"):
        assert word in page
    listed = json.loads(run("report", "--json", store.path).output)["deployments"]
    assert [(one["version"], one["description"]) for one in listed] == [("2.4.0", ""), ("2.4.1", "new stock query")]
    assert json.loads(run("report", "--json", "--since", "5m", store.path).output)["deployments"] == listed[1:]


@pytest.mark.parametrize("at", ["2024-02-29T12:00Z", "2024-02-29T14:00+02:00", "2024-02-29 12:00:00+00:00"])
def test_a_time_of_another_zone_is_the_same(run: Run, store: Store, at: str) -> None:
    assert run("mark-deploy", "1.0", store.path, "--at", at).status == 0
    (one,) = deployments.between(store, 0, 1e12)
    assert one.at_s == 1709208000.0


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["1.0", "--at", "2024-02-29T12:00"], "of which time zone?"),
        (["1.0", "--at", "noon"], "expected a time such as"),
        (["1.0", "--at", "9999-01-01T00:00Z"], "is in the future"),
        (["1.0", "--at", "0001-01-01T00:00Z"], "in the future"),
        ([""], "1 to 100 printable characters"),
        (["1.0\x1b[31m"], "1 to 100 printable characters"),
        (["x" * 101], "1 to 100 printable characters"),
        (["1.0", "--description", "two\nlines"], "1 to 500 printable characters"),
    ],
)
def test_what_cannot_be_marked(run: Run, store: Store, arguments: list[str], word: str) -> None:
    result = run("mark-deploy", arguments[0], store.path, *arguments[1:])
    assert (result.status, result.output) == (2, "")
    assert word in " ".join(result.errors.split())
    assert deployments.between(store, 0, 1e12) == []


def test_there_is_no_store_yet(run: Run, tmp_path: Path) -> None:
    refused(run("mark-deploy", "1.0", ini_of(tmp_path)), "no store yet")
    assert not (tmp_path / "shop.sqlite").exists()


def test_forged_deployments_are_printed_harmlessly(run: Run, store: Store) -> None:
    deployments.add(store, time.time() - 5, "1.0\x1b[2J\n", "\x1b]0;x\x07", "\x1b")
    output = run("report", store.path).output
    assert "\x1b" not in output
    assert "1.0�[2J" in output
