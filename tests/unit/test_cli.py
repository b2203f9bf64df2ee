"""`paste-agent report` and `check`: what they print, and that whatever is wrong is one line and exit status 1."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import pytest

from paste_agent import runtime_dir
from paste_agent.aggregate import REQUEST_DURATION, Delta, Total
from paste_agent.cli import main
from paste_agent.kept import TraceRow
from paste_agent.recorder import layout
from paste_agent.store.store import RUNNING, RecorderRow, Store
from tests.recorders import die, open_recorder, run_script, serve, settings_of

NOW = int(time.time())


class Result(NamedTuple):
    status: int
    output: str
    errors: str


Run = Callable[..., Result]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """`paste-agent` with some arguments, as from a shell without the agent's variables, in a terminal that is wide."""
    for name in list(os.environ):
        if name.startswith(("PASTE_AGENT_", "OTEL_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)

    def paste_agent(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["paste-agent", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main.run()
        captured = capsys.readouterr()
        status = ended.value.code
        assert isinstance(status, int)
        assert "Traceback" not in captured.out + captured.err
        return Result(status, captured.out, captured.err)

    return paste_agent


def refused(result: Result, *words: str) -> None:
    """One line on stderr, exit status 1."""
    assert result.status == 1
    assert result.output == ""
    assert result.errors.startswith("paste-agent: ")
    assert result.errors.count("\n") == 1
    for word in words:
        assert word in result.errors


PIPELINE = """
[app:shop]
use = egg:paste_agent#demo

[pipeline:main]
pipeline = agent shop
"""


def ini_of(directory: Path, keys: str = "", rest: str = PIPELINE, name: str = "shop.ini", default: str = "") -> Path:
    directory.chmod(0o700)
    path = directory / name
    filter_section = f"[filter:agent]\nuse = egg:paste_agent\nstore = shop.sqlite\nruntime_dir = {directory}\n{keys}\n"
    path.write_text((f"[DEFAULT]\n{default}\n" if default else "") + filter_section + rest)
    return path


def delta_of(route: str | None, count: int, slot_s: int, *, status: int = 200, error: str | None = None) -> Delta:
    attributes = {"http.request.method": "GET", "http.response.status_code": status, "url.scheme": "http"}
    attributes |= {"http.route": route} if route is not None else {}
    attributes |= {"error.type": error} if error is not None else {}
    delta = Delta()
    total = delta.at((REQUEST_DURATION, json.dumps(attributes, sort_keys=True)), slot_s)
    for _ in range(count):
        total.observe(20_000_000)
    total.satisfied = count
    return delta


def trace_of(span: int, *, path: str = "/", message: str | None = None, failed: bool = False) -> TraceRow:
    detail: dict[str, object] = {"attributes": {"url.path": path}}
    if message is not None:
        detail["exception"] = {"type": "ValueError", "message": message, "stacktrace": message}
    attributes: dict[str, str | int] = {
        "http.request.method": "GET",
        "http.route": "/items",
        "error.type": "ValueError",
    }
    return TraceRow(
        bytes(15) + b"\1", span.to_bytes(8, "big"), None, (NOW - 30) * 10**9, 10**9, failed, 8, attributes, detail
    )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """What a service has measured, an hour ago and just now."""
    opened = Store(str(tmp_path / "shop.sqlite"))
    opened.instance_id("the instance")
    words = [0] * 18
    words[layout.W_MEMORY_BYTES] = 50 << 20
    row = RecorderRow("7-a", 0, 1, 4711, True, RUNNING, NOW - 100.0, NOW - 1.0, 140, 2, 0.25, words)
    just_now, before = (NOW - 30) // 10 * 10, (NOW - 3600) // 10 * 10
    opened.commit_drain(delta_of("/items/{id}", 100, just_now), [(None, row)], {}, 100)
    opened.commit_drain(delta_of("/items", 10, just_now, status=500, error="ValueError"), [], {}, 100)
    opened.commit_drain(delta_of("/old", 30, before), [], {("paste_agent.records.dropped", "{}"): 3}, 100)
    opened.add_traces([trace_of(1, path="/items/1"), trace_of(2, message="no stock", failed=True)], 1.0)
    yield opened
    opened.close()


# -- report --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["ini", "store"])
def test_report_shows_what_the_store_knows(run: Run, store: Store, tmp_path: Path, by: str) -> None:
    result = run("report", ini_of(tmp_path) if by == "ini" else store.path)
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
    "errors_seen", "postmortems",
)  # fmt: skip
ROUTE = {"method", "route", "status", "error_type", "count", "sum_s", "p50_s", "p95_s", "p99_s", "max_s", "apdex"}
WORKER = {"number", "pid", "state", "requests", "busy", "memory_bytes"}
TRACE = {"trace_id", "span_id", "name", "start", "duration_s", "status", "why_kept"}


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
    (error,) = report["errors_seen"]
    assert (error["type"], error["route"], error["count"], error["last_message"]) == (
        "ValueError", "/items", 10, "no stock",
    )  # fmt: skip


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


def _missing(tmp_path: Path) -> Path:
    return tmp_path / "nowhere.ini"


def _no_store_yet(tmp_path: Path) -> Path:
    return ini_of(tmp_path)


def _no_store_in_memory(tmp_path: Path) -> Path:
    path = ini_of(tmp_path)
    path.write_text(path.read_text().replace("store = shop.sqlite", "store = memory"))
    return path


def _directory(tmp_path: Path) -> Path:
    return tmp_path


def _not_an_ini(tmp_path: Path) -> Path:
    path = tmp_path / "shop.ini"
    path.write_text("no section\nat all\n")
    return path


def _binary(tmp_path: Path) -> Path:
    path = tmp_path / "shop.ini"
    path.write_bytes(bytes(range(256)) * 10)
    return path


def _empty(tmp_path: Path) -> Path:
    path = tmp_path / "shop.ini"
    path.touch()
    return path


def _without_agent(tmp_path: Path) -> Path:
    path = tmp_path / "shop.ini"
    path.write_text(PIPELINE)
    return path


def _wrong_value(tmp_path: Path) -> Path:
    return ini_of(tmp_path, "apdex_t_s = soon")


def _foreign(tmp_path: Path) -> Path:
    with closing(sqlite3.connect(tmp_path / "theirs.sqlite")) as db:
        db.execute("CREATE TABLE customers (name TEXT)")
        db.commit()
    return tmp_path / "theirs.sqlite"


def _newer(tmp_path: Path) -> Path:
    Store(str(tmp_path / "shop.sqlite")).close()
    with closing(sqlite3.connect(tmp_path / "shop.sqlite")) as db:
        db.execute("PRAGMA user_version = 99")
    return tmp_path / "shop.sqlite"


def _cut(tmp_path: Path) -> Path:
    with closing(Store(str(tmp_path / "shop.sqlite"))) as made:
        for place in range(300):
            made.commit_drain(delta_of(f"/{place}", 1, NOW), [], {}, 1000)
    data = (tmp_path / "shop.sqlite").read_bytes()
    (tmp_path / "shop.sqlite").write_bytes(data[: len(data) // 3])
    return tmp_path / "shop.sqlite"


def _torn(tmp_path: Path) -> Path:
    path = _cut(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\x5a" * (len(data) - 4096))
    return path


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (_missing, "nowhere.ini: no such file"),
        (_no_store_yet, "shop.sqlite: no store yet"),
        (_no_store_in_memory, "no store yet"),
        (_directory, "is a directory"),
        (_not_an_ini, "not an ini file"),
        (_binary, "not an ini file"),
        (_empty, "add [filter:agent]"),
        (_without_agent, "add [filter:agent]"),
        (_wrong_value, "[filter:agent] apdex_t_s = 'soon': expected seconds"),
        (_foreign, "not a store of paste-agent"),
        (_newer, "newer paste-agent"),
        (_cut, "shop.sqlite: cannot be"),
        (_torn, "shop.sqlite: cannot be"),
    ],
)
def test_what_cannot_be_reported_is_one_line(run: Run, tmp_path: Path, make: Callable[[Path], Path], word: str) -> None:
    path = make(tmp_path)
    refused(run("report", path), word)
    refused(run("report", "--json", path), word)


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
    refused(run("report", "--service", "third", path), "shop, other", "--service")
    refused(run("report", "--service", "other", path), "no store yet")
    assert json.loads(run("report", "--json", "--service", "shop", path).output)["requests"] == 140


def test_the_console_script_prints_no_traceback(tmp_path: Path) -> None:
    script = (
        "import sys; sys.argv = ['paste-agent', 'report', sys.argv[1]]; from paste_agent.cli.main import run; run()"
    )
    assert run_script(script, tmp_path / "nowhere.ini", expect=1) == ""


# -- check ---------------------------------------------------------------------------------------------------------


class _Answer(BaseHTTPRequestHandler):
    status = 200

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.heard.append((self.path, self.headers.get("x-api-key")))  # type: ignore[attr-defined]
        self.send_response(self.server.status)  # type: ignore[attr-defined]
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


class _Server(HTTPServer):
    status = 200
    heard: list[tuple[str, str | None]]


@pytest.fixture
def collector() -> Iterator[_Server]:
    with _Server(("127.0.0.1", 0), _Answer) as server:
        server.heard = []
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_check_of_a_good_ini(run: Run, tmp_path: Path) -> None:
    result = run("check", ini_of(tmp_path, "apdex_t_s = 0.25"))
    assert (result.status, result.errors) == (0, "")
    for expected in (
        "the loader finds all of [main]",
        "apdex_t_s",
        "0.25 s",
        "no endpoint",
        "shop.sqlite: made at the first request",
    ):
        assert expected in result.output
    assert "✗" not in result.output
    assert "!" not in result.output
    assert not (tmp_path / "shop.sqlite").exists()
    Store(str(tmp_path / "shop.sqlite")).close()
    assert "made at the first request" not in run("check", tmp_path / "shop.ini").output


def test_check_shows_where_each_value_is_from(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ini_of(tmp_path, "apdex_t_s = 0.25")
    monkeypatch.setenv("PASTE_AGENT_RETENTION_DAYS", "7")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "30000")
    lines = run("check", path).output.splitlines()

    def line_of(key: str) -> list[str]:
        return next(line.split() for line in lines if line.split()[:1] == [key])

    assert line_of("apdex_t_s") == ["apdex_t_s", "0.25", "s", "ini"]
    assert line_of("retention_days") == ["retention_days", "7", "d", "PASTE_AGENT_RETENTION_DAYS"]
    assert line_of("report_interval_s") == ["report_interval_s", "30", "s", "OTEL_METRIC_EXPORT_INTERVAL"]
    assert line_of("max_series")[-1] == "default"


def failed(result: Result, *words: str) -> None:
    assert result.status == 1
    assert result.errors == ""
    marked = [line for line in result.output.splitlines() if line.startswith("✗")]
    assert marked
    for word in words:
        assert word in " ".join(marked)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("apdex_t = 1", ["[filter:agent] apdex_t: unknown key", "did you mean apdex_t_s?"]),
        ("frobnicate = 1", ["[filter:agent] frobnicate", "unknown key"]),
        ("report_interval_s = 5m", ["[filter:agent] report_interval_s = '5m'", "expected seconds above 0"]),
        ("endpoint = collector:4318", ["endpoint", "expected a URL"]),
        ("headers = x-api-key:geheim", ["headers = '***'"]),
    ],
)
def test_a_wrong_setting_is_one_line(run: Run, tmp_path: Path, keys: str, words: list[str]) -> None:
    result = run("check", ini_of(tmp_path, keys))
    failed(result, *words)
    assert result.output.count("\n") == 1
    assert "geheim" not in result.output


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (_missing, "No such file"),
        (_not_an_ini, "not an ini"),
        (_binary, "not an ini"),
        (_empty, "add [filter:agent]"),
        (_without_agent, "add [filter:agent]"),
        (_directory, "directory"),
    ],
)
def test_check_of_what_is_no_ini_is_one_line(run: Run, tmp_path: Path, make: Callable[[Path], Path], word: str) -> None:
    result = run("check", make(tmp_path))
    failed(result, word)
    assert result.output.count("\n") == 1


def test_a_missing_section_is_found(run: Run, tmp_path: Path) -> None:
    failed(
        run("check", ini_of(tmp_path, rest="\n[pipeline:main]\npipeline = agent shop\n")), "the loader fails", "shop"
    )
    failed(run("check", "--app", "other", ini_of(tmp_path)), "the loader fails", "other")


def test_a_module_that_fails_when_it_is_imported_is_found(run: Run, tmp_path: Path) -> None:
    (tmp_path / "broken_shop.py").write_text("raise RuntimeError('first line\\nsecond line')\n")
    rest = PIPELINE.replace("use = egg:paste_agent#demo", "paste.app_factory = broken_shop:main")
    result = run("check", ini_of(tmp_path, rest=rest))
    failed(result, "the loader fails: RuntimeError: first line second line")


def test_a_filter_that_is_not_in_the_pipeline_is_pointed_out(run: Run, tmp_path: Path) -> None:
    result = run("check", ini_of(tmp_path, rest=PIPELINE.replace("pipeline = agent shop", "pipeline = shop")))
    assert result.status == 0
    assert "! nothing in [main] uses the agent" in result.output


def test_a_filter_with_is_found(run: Run, tmp_path: Path) -> None:
    rest = "\n[app:main]\nuse = egg:paste_agent#demo\nfilter-with = agent\n"
    result = run("check", ini_of(tmp_path, rest=rest))
    assert result.status == 0
    assert "nothing in [main]" not in result.output


def test_a_key_that_the_loader_drops_is_pointed_out(run: Run, tmp_path: Path) -> None:
    result = run("check", ini_of(tmp_path, "apdex_t_s = 0.25", default="apdex_t_s = 9"))
    assert result.status == 0
    assert "! [filter:agent] apdex_t_s: the loader drops it, because [DEFAULT] has apdex_t_s too" in result.output


def test_a_runtime_directory_that_others_may_enter_is_found(run: Run, tmp_path: Path) -> None:
    path = ini_of(tmp_path)
    tmp_path.chmod(0o755)
    failed(run("check", path), "others may enter it", "chmod 700")


def test_a_store_that_cannot_be_used_is_found(run: Run, tmp_path: Path) -> None:
    path = ini_of(tmp_path)
    (tmp_path / "shop.sqlite").mkdir()
    failed(run("check", path), "shop.sqlite: cannot be opened")


def test_a_collector_that_refuses_the_connection_is_found(run: Run, tmp_path: Path) -> None:
    with socket.socket() as bound:  # bound, not listening: nobody else gets the port meanwhile
        bound.bind(("127.0.0.1", 0))
        result = run("check", ini_of(tmp_path, f"endpoint = http://127.0.0.1:{bound.getsockname()[1]}"))
    failed(result, "collector, traces", "collector, metrics", "refused")


@pytest.mark.parametrize(("status", "exit_status"), [(200, 0), (404, 1), (401, 1), (503, 1)])
def test_what_the_collector_answers_is_told(
    run: Run, tmp_path: Path, collector: _Server, status: int, exit_status: int
) -> None:
    collector.status = status
    endpoint = f"http://127.0.0.1:{collector.server_port}"
    result = run("check", ini_of(tmp_path, f"endpoint = {endpoint}\nheaders = x-api-key=geheim"))
    assert result.status == exit_status, result.output
    mark = "✗" if exit_status else "✓"
    for signal in ("traces", "metrics", "logs"):
        assert f"{mark} collector, {signal}: {endpoint}/v1/{signal}: {status}" in result.output
    assert collector.heard == [(f"/v1/{signal}", "geheim") for signal in ("traces", "metrics", "logs")]


def test_secrets_are_masked(run: Run, tmp_path: Path, collector: _Server) -> None:
    endpoint = f"http://user:geheim@127.0.0.1:{collector.server_port}"
    keys = f"endpoint = {endpoint}\nheaders = x-api-key=geheim,authorization=Basic%%20geheim\nlogs_headers = k=geheim"
    result = run("check", "--all", ini_of(tmp_path, keys))
    assert result.status == 0, result.output
    assert "x-api-key=***, authorization=***" in result.output
    assert "geheim" not in result.output
    assert "127.0.0.1" in result.output


def test_a_disabled_agent_is_pointed_out(run: Run, tmp_path: Path) -> None:
    result = run("check", ini_of(tmp_path, "enabled = false"))
    assert result.status == 0
    assert "enabled = false, nothing is measured" in result.output
    assert not (tmp_path / "shop.sqlite").exists()


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
