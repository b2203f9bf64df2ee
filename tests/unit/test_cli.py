"""`paste-agent report`: what it prints, and that whatever is wrong is one line and exit status 1."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from paste_agent import runtime_dir
from paste_agent.aggregate import (
    CALL_DURATION,
    DATABASE_DURATION,
    ERRORS,
    LAYER_DURATION,
    LOAD_DURATION,
    PART_DURATION,
    REQUEST_DURATION,
    TASK_DURATION,
    TIMING,
    Delta,
    Total,
)
from paste_agent.recorder import layout
from paste_agent.store.store import PostmortemRow, Store
from tests import commands
from tests.commands import NOW, PIPELINE, Run, count, delta_of, filled, ini_of, refused, shell, trace_of
from tests.recorders import die, open_recorder, run_script, serve, settings_of


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    return shell(capsys, monkeypatch, tmp_path)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with filled(tmp_path) as opened:
        yield opened


# -- report --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["ini", "store", "file of a program"])
def test_report_shows_what_the_store_knows(run: Run, store: Store, tmp_path: Path, by: str) -> None:
    path = store.path if by == "store" else ini_of(tmp_path)
    if by == "file of a program":
        path = tmp_path / "agent.ini"
        path.write_text(f"[paste_agent]\nstore = shop.sqlite\nruntime_dir = {tmp_path}\n")
    result = run("report", path)
    assert (result.status, result.errors) == (0, "")
    for expected in ("140", "GET /items/{id}", "GET /old", "/items/1", "no stock", "4711", "50.0 MiB", "25%"):
        assert expected in result.output
    assert "3 records were lost" in result.output
    assert "\x1b" not in result.output


def test_report_takes_the_ini_of_this_directory(run: Run, store: Store, tmp_path: Path) -> None:
    ini_of(tmp_path, name="production.ini")
    assert "GET /items/{id}" in run("report").output


TOP = (
    "service", "instance", "from", "to", "requests", "errors", "dropped", "routes", "background", "workers", "traces",
    "errors_seen", "postmortems", "deployments", "breakdown", "queries", "findings", "calls", "layers", "custom",
)  # fmt: skip
ROUTE = {"method", "route", "status", "error_type", "count", "sum_s", "p50_s", "p95_s", "p99_s", "max_s", "apdex"}
WORKER = {"number", "pid", "state", "requests", "busy", "memory_bytes"}
TRACE = {"trace_id", "span_id", "name", "start", "duration_s", "status", "why_kept", "spans", "probability"}
ERROR = {"type", "place", "route", "expected", "count", "last_message", "first_seen", "last_seen", "last_trace_id"}


def test_report_prints_the_fields_of_its_interface(run: Run, store: Store, tmp_path: Path) -> None:
    result = run("report", "--json", ini_of(tmp_path))
    report = json.loads(result.output)
    assert tuple(report) == TOP
    assert report["service"] == "shop"
    assert report["instance"] == "the instance"
    assert (report["requests"], report["errors"], report["dropped"]) == (140, 10, 3)
    assert report["from"].endswith("Z")
    assert report["from"] < report["to"]
    assert all(set(route) >= ROUTE for route in report["routes"])
    (route,) = [route for route in report["routes"] if route["route"] == "/items/{id}"]
    assert (route["method"], route["status"], route["error_type"], route["count"]) == ("GET", 200, None, 100)
    assert route["sum_s"] == 2.0
    assert route["p50_s"] == pytest.approx(0.02, rel=0.05)
    assert (route["max_s"], route["apdex"]) == (0.02, 1.0)
    (worker,) = report["workers"]
    assert set(worker) >= WORKER
    assert (worker["number"], worker["pid"], worker["requests"], worker["busy"]) == (1, 4711, 140, 0.25)
    assert worker["memory_bytes"] == 50 << 20
    assert all(set(trace) >= TRACE for trace in report["traces"])
    assert {trace["span_id"] for trace in report["traces"]} == {"0000000000000001", "0000000000000002"}
    assert report["traces"][0]["why_kept"] == ["failed"]
    assert [(trace["spans"], trace["probability"]) for trace in report["traces"]] == [(0, 1.0)] * 2
    (error,) = report["errors_seen"]
    assert set(error) == ERROR
    assert (error["type"], error["route"], error["count"], error["last_message"]) == (
        "ValueError", "/items", 10, "no stock",
    )  # fmt: skip


SECTIONS = ("Breakdown", "Errors, by", "Queries, by", "Queries worth", "Calls of", "Layers of", "Measured by")


def test_a_section_without_data_is_not_shown(run: Run, store: Store, tmp_path: Path) -> None:
    output = run("report", store.path).output
    assert [title for title in SECTIONS if title in output] == ["Errors, by"]


def fill_inside(store: Store) -> None:
    """One of everything that is inside of transactions."""
    at, ms = NOW // 10 * 10 - 30, 1_000_000
    route = {"http.request.method": "GET", "http.route": "/items/{id}"}
    query = {"db.system.name": "postgresql", "db.namespace": "shop", "db.query.summary": "SELECT items prices"}
    call = {"http.request.method": "POST", "server.address": "mail.internal", "server.port": 8025}
    error = {"error.type": "shop.Expired", "paste_agent.error.place": "shop.views.login", "http.route": "/login"}
    count(store, PART_DURATION, {**route, "paste_agent.part": "database"}, 600 * ms, 400 * ms, at=at)
    count(store, PART_DURATION, {**route, "paste_agent.part": "template"}, 500 * ms, at=at)
    count(store, PART_DURATION, {**route, "paste_agent.part": "gc"}, 100 * ms, at=at)
    count(store, DATABASE_DURATION, query, *[20 * ms] * 50, at=at)
    count(store, DATABASE_DURATION, {"db.system.name": "redis", "db.operation.name": "GET"}, ms, at=at)
    count(store, CALL_DURATION, {**call, "error.type": "503"}, 30 * ms, at=at)
    count(store, CALL_DURATION, {**call, "server.address": "::1"}, ms, at=at)
    count(store, LAYER_DURATION, {"paste.layer": "gzip"}, 3 * ms, at=at)
    count(store, LOAD_DURATION, {"paste.layer": "gzip"}, 700 * ms, at=at)
    count(store, LOAD_DURATION, {"paste.layer": "site"}, 5 * ms, at=at)
    count(store, ERRORS, {**error, "paste_agent.error.expected": "true"}, *[0] * 7, at=at)
    count(store, f"{TIMING}checkout", "{}", 40 * ms, at=at)
    row = trace_of(9)
    code = {"file": "/srv/shop/shop/views.py", "line": 17, "function": "items"}
    found = {"kind": "repeated", "text": "SELECT *\n FROM items", "count": 37, "duration": 90 * ms, "code": code}
    slow = {"kind": "slow", "text": "SELECT slow", "count": 1, "duration": 800 * ms, "code": None}
    store.add_traces([row._replace(detail={"findings": [found, slow], "spans": [{}] * 40})], 1.0)


@pytest.mark.parametrize("columns", [80, 140])
def test_report_shows_what_is_inside_of_transactions(
    run: Run, store: Store, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    fill_inside(store)
    monkeypatch.setenv("COLUMNS", str(columns))
    result = run("report", store.path)
    assert result.status == 0
    lines = result.output.splitlines()
    assert max(map(len, lines)) <= columns
    places = [next(place for place, line in enumerate(lines) if line.startswith(title)) for title in SECTIONS]
    assert places == sorted(places)
    for words in (
        "database 50%  templates 25%  own code 25%",
        "shop.Expired  expected",
        "shop.views.login  /login",
        "×37",
        "N+1",
        "SELECT * FROM items",
        "views.py:17 in items",
        "mail.internal:8025",
        "[::1]:8025",
        "checkout",
        "`paste-agent trace`",
    ):
        assert words in result.output

    def row(beginning: str) -> list[str]:
        return next(line.split() for line in lines if line.strip().startswith(beginning))

    assert row("SELECT items prices")[-3:] == ["1", "s", "100%"]
    assert row("gzip")[-3:] == ["100%", "700", "ms"]
    assert row("site") == ["site", *["–"] * (5 if columns == 140 else 4), "5", "ms"]
    assert row("mail.internal")[1:4] == ["POST", "1", "1"]
    # As many queries a request as there were, and pauses, where there is room for them.
    assert ("GC" in result.output) == (columns == 140)


def test_the_inside_of_background_tasks_is_shown_without_a_request(run: Run, tmp_path: Path) -> None:
    with closing(Store(str(tmp_path / "shop.sqlite"))) as made:
        count(made, TASK_DURATION, {"paste_agent.task.name": "mail"}, 100_000_000, at=NOW // 10 * 10 - 30)
        count(made, PART_DURATION, {"paste_agent.part": "call"}, 60_000_000, at=NOW // 10 * 10 - 30)
    output = run("report", tmp_path / "shop.sqlite").output
    assert "No requests" in output
    assert "(all background tasks)" in output
    assert "calls 60%  own code 40%" in output


@pytest.mark.parametrize(
    ("since", "requests"),
    [
        ("10m", 110),
        ("2h", 140),
        ("600s", 110),
        ("0.5h", 110),
        ("1d", 140),
        ("9999999999d", 140),
        ("9" * 400 + "d", 140),
    ],
)
def test_since_leaves_out_what_was_before(run: Run, store: Store, since: str, requests: int) -> None:
    assert json.loads(run("report", "--json", "--since", since, store.path).output)["requests"] == requests


@pytest.mark.parametrize("since", ["10", "m", "-5m", "0s", "1e3s", "10 m", "", "٣m"])
def test_a_span_that_is_none_is_refused(run: Run, store: Store, since: str) -> None:
    result = run("report", f"--since={since}", store.path)
    assert result.status == 2
    assert "for example 10m" in result.errors


def test_limit_leaves_routes_out_of_the_page_and_not_of_the_json(run: Run, store: Store) -> None:
    result = run("report", "--limit", 1, store.path)
    assert "2 more; --limit 3 lists all" in result.output
    assert len(json.loads(run("report", "--limit", 1, "--json", store.path).output)["routes"]) == 3


def test_an_empty_store_is_said_to_be_empty(run: Run, tmp_path: Path) -> None:
    Store(str(tmp_path / "shop.sqlite")).close()
    result = run("report", ini_of(tmp_path))
    assert result.status == 0
    assert "No requests in this span of time" in result.output
    report = json.loads(run("report", "--json", ini_of(tmp_path)).output)
    assert (report["requests"], report["routes"], report["workers"]) == (0, [], [])


def test_reading_takes_in_what_a_killed_service_has_left(run: Run, tmp_path: Path) -> None:
    path = ini_of(tmp_path)
    Store(str(tmp_path / "shop.sqlite")).close()
    place = runtime_dir.service_dir(settings_of(tmp_path), {})
    recorder = open_recorder(Path(place))
    for _ in range(7):
        serve(recorder, route="/last")
    die(recorder)
    for _ in range(2):
        report = json.loads(run("report", "--json", path).output)
        assert [(route["route"], route["count"]) for route in report["routes"]] == [("/last", 7)]
    assert not [name for name in os.listdir(place) if name.endswith(layout.SUFFIX)]


def test_a_busy_store_is_read_all_the_same(run: Run, store: Store, tmp_path: Path) -> None:
    path = ini_of(tmp_path)
    runtime_dir.service_dir(settings_of(tmp_path), {})
    with store.transaction():
        result = run("report", "--json", path)
    assert result.status == 0
    assert json.loads(result.output)["requests"] == 140


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (commands.missing, "nowhere.ini: no such file"),
        (commands.no_store_yet, "shop.sqlite: no store yet"),
        (commands.no_store_in_memory, "no store yet"),
        (commands.a_directory, "is a directory"),
        (commands.not_an_ini, "not an ini file"),
        (commands.binary, "not an ini file"),
        (commands.empty, "add [filter:agent]"),
        (commands.without_agent, "add [filter:agent]"),
        (commands.wrong_value, "[filter:agent] apdex_t_s = 'soon': expected seconds"),
        (commands.foreign, "not a store of paste-agent"),
        (commands.newer, "newer paste-agent"),
        (commands.cut, "shop.sqlite: cannot be"),
        (commands.torn, "shop.sqlite: cannot be"),
    ],
)
def test_what_cannot_be_reported_is_one_line(run: Run, tmp_path: Path, make: Callable[[Path], Path], word: str) -> None:
    path = make(tmp_path)
    refused(run("report", path), word)
    refused(run("report", "--json", path), word)


def test_the_application_s_frames_of_a_lost_request_are_those_that_its_process_named(run: Run, store: Store) -> None:
    stack = '  File "/venv/shop/views.py", line 3, in order\n    wait()\n  File "/srv/lib.py", line 7, in wait\n'
    lost = {"requests": [{"method": "GET", "path": "/slow", "stack": stack, "age_s": 3.0, "span": ""}]}
    account = PostmortemRow("7-aa", NOW - 60.0, "timeout", {**lost, "own_files": ["/venv/shop/views.py"]})
    store.commit_drain(Delta(), [], {}, 100, [account])
    assert "views.py:3" in run("report", store.path).output
    shown = run("postmortem", store.path).output
    assert '\n  > File "/venv/shop/views.py", line 3, in order\n      wait()\n    File "/srv/lib.py", line 7' in shown
    # As an earlier version has written it.
    store.commit_drain(Delta(), [], {}, 100, [replace(account, summary=lost)])
    assert '\n    File "/venv/shop/views.py", line 3, in order\n' in run("postmortem", store.path).output
    assert run("report", store.path).status == 0


def test_nothing_that_a_terminal_obeys_is_printed(run: Run, store: Store, tmp_path: Path) -> None:
    evil = "\x1b[2J\x1b]0;pwned\x07\x9b31m\r\x08\u202e\u2028[red][/bold]"
    store.commit_drain(delta_of(f"/route{evil}", 50, NOW // 10 * 10 - 30, error=f"Error{evil}"), [], {}, 100)
    row = trace_of(3, path=f"/path{evil}", message=f"message{evil}\nsecond line", failed=True)
    attributes = {**row.attributes, "error.type": f"Type{evil}", "http.route": f"/route{evil}"}
    store.add_traces([row._replace(attributes=attributes, duration_ns=10**10)], 1.0)
    result = run("report", store.path)
    assert result.status == 0
    for word in ("/route", "/path", "message", "Type"):
        assert word in result.output
    assert "pwned" in result.output  # as text
    assert [char for char in result.output if not char.isprintable() and char != "\n"] == []
    text = run("report", "--json", store.path).output
    assert text.isascii()
    assert [char for char in text if not char.isprintable() and char != "\n"] == []


@pytest.mark.parametrize("name", ["shop[red]", "a[/bold]b", "[x", "\\[y]", "Geschäft 語"])
@pytest.mark.parametrize("empty", [False, True])
def test_a_service_of_any_name_is_shown_by_it(run: Run, store: Store, tmp_path: Path, name: str, empty: bool) -> None:
    result = run("report", ini_of(tmp_path, f"service_name = {name}"), *(["--since", "1s"] if empty else []))
    assert result.status == 0
    assert name in result.output


def test_several_services_have_to_be_told_apart(run: Run, store: Store, tmp_path: Path) -> None:
    other = (
        f"\n[filter:b]\nuse = egg:paste_agent\nservice_name = other\nstore = other.sqlite\nruntime_dir = {tmp_path}\n"
    )
    path = ini_of(tmp_path, "service_name = shop", other + PIPELINE)
    refused(run("report", path), "shop, other", "--service")
    refused(run("report", "--service", "third", path), "no service 'third'", "shop, other", "--service")
    refused(run("report", "--service", "other", path), "no store yet")
    assert json.loads(run("report", "--json", "--service", "shop", path).output)["requests"] == 140


def test_the_console_script_prints_no_traceback(tmp_path: Path) -> None:
    script = (
        "import sys; sys.argv = ['paste-agent', 'report', sys.argv[1]]; from paste_agent.cli.main import run; run()"
    )
    assert run_script(script, tmp_path / "nowhere.ini", expect=1) == ""


@pytest.mark.parametrize("arguments", [["--help"], ["report", "--help"], ["check", "-h"], ["--version"]])
def test_help_is_printed(run: Run, arguments: list[str]) -> None:
    assert run(*arguments).status == 0


def test_totals_of_nothing_are_shown_as_nothing(run: Run, tmp_path: Path) -> None:
    """A metric without a single request, as a store has it after a drain that found none."""
    with closing(Store(str(tmp_path / "shop.sqlite"))) as made:
        delta = Delta()
        delta.at((REQUEST_DURATION, "{}"), NOW // 10 * 10 - 10).add(Total())
        made.commit_drain(delta, [], {}, 10)
    result = run("report", tmp_path / "shop.sqlite")
    assert result.status == 0
    assert "No requests" in result.output
