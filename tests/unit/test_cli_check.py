"""`paste-agent check`: what it finds, and that whatever is wrong is one line and exit status 1."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from paste_agent.store.store import Store
from tests import commands
from tests.commands import PIPELINE, Result, Run, ini_of, shell


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    return shell(capsys, monkeypatch, tmp_path)


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
        (commands.missing, "No such file"),
        (commands.not_an_ini, "not an ini"),
        (commands.binary, "not an ini"),
        (commands.empty, "add [filter:agent]"),
        (commands.without_agent, "add [filter:agent]"),
        (commands.a_directory, "directory"),
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


def test_the_port_for_grpc_is_pointed_out(
    run: Run, tmp_path: Path, collector: _Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):  # so that the port need not be free
        monkeypatch.setenv(name, f"http://127.0.0.1:{collector.server_port}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    path = ini_of(tmp_path, "endpoint = http://collector.test:4317")
    assert "4318" not in run("check", path).output  # some collector takes HTTP there
    collector.status = 415
    failed(run("check", path), "415 Unsupported Media Type; 4317 is usually a collector's port for gRPC, its port for ")


def test_variables_that_are_passed_over_are_told_of(
    run: Run, tmp_path: Path, collector: _Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in {
        "OTEL_METRICS_EXPORTER": "prometheus",
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
    }.items():
        monkeypatch.setenv(name, text)
    result = run("check", ini_of(tmp_path, f"endpoint = http://127.0.0.1:{collector.server_port}\nforward_logs = info"))
    assert result.status == 0, result.output
    for line in (
        "! OTEL_METRICS_EXPORTER = 'prometheus': passed over",
        "! OTEL_EXPORTER_OTLP_PROTOCOL = 'grpc': passed over",
        "! [filter:agent] forward_logs: nothing is forwarded with logs_exporter = none",
        "✓ collector, logs: not sent, logs_exporter = none",
    ):
        assert result.output.count(f"\n{line}") == 1, line
    assert [path for path, _ in collector.heard] == ["/v1/traces", "/v1/metrics"]
    for signal in ("TRACES", "METRICS"):
        monkeypatch.setenv(f"OTEL_{signal}_EXPORTER", "none")
    result = run("check", tmp_path / "shop.ini")
    assert "✓ nothing is sent: measurements stay in the store" in result.output
    assert "PROTOCOL" not in result.output


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
