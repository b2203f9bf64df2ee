"""`paste-agent settings`, `send-test` and `generate-config`; help and completion of all commands."""

from __future__ import annotations

import json
import re
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsPartialSuccess, ExportLogsServiceResponse
from paste.deploy import loadwsgi

import paste_agent
from paste_agent import settings
from paste_agent.cli import generate_config, main
from paste_agent.launch import configuration
from tests import serving
from tests.collector import free_port
from tests.commands import PIPELINE, Run, ini_of, refused, shell
from tests.receiver import Answer, Receiver

NAME = "paste-agent send-test"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return shell(capsys, monkeypatch, tmp_path)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as one:
        yield one


def own_file(tmp_path: Path, text: str, name: str = "agent.ini") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


# -- settings --------------------------------------------------------------------------------------------------------


def test_settings_of_an_ini(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PASTE_AGENT_RETENTION_DAYS", "7")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3000")
    path = ini_of(tmp_path, "apdex_t_s = 0.25\nrecord_headers = X-One X-Two")
    result = run("settings", path)
    assert (result.status, result.errors) == (0, "")
    assert f"{path} [filter:agent]" in result.output
    rows = {words[0]: words[1:] for line in result.output.splitlines() if (words := line.split())}
    assert rows["apdex_t_s"] == ["0.25", "s", "ini"]
    assert rows["retention_days"] == ["7", "d", "PASTE_AGENT_RETENTION_DAYS"]
    assert rows["timeout_s"] == ["3", "s", "OTEL_EXPORTER_OTLP_TIMEOUT"]
    assert rows["record_headers"] == ["X-One", "X-Two", "ini"]
    assert "endpoint" not in rows
    assert "endpoint" in run("settings", "--all", path).output
    assert not (tmp_path / "shop.sqlite").exists()


def test_settings_as_json(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "geheim")
    (tmp_path / "headers").write_text("x: geheim\n")
    keys = (
        "endpoint = https://me:geheim@c.example/x?key=geheim\nheaders = a=geheim,b=${KEY}\n"
        "headers_file = headers\nhigh_security = yes\nrecord_query = yes\n"
    )
    path = ini_of(tmp_path, keys, default="unrelated = 1")
    result = run("settings", "--json", path)
    assert (result.status, result.errors) == (0, "")
    assert "geheim" not in result.output
    assert "geheim" not in run("settings", "--all", path).output
    found = json.loads(result.output)
    assert found["file"] == str(path)
    (service,) = found["services"]
    assert (service["service"], service["section"]) == ("shop", "filter:agent")
    assert service["overruled"] == ["record_query", "record_error_messages"]
    assert service["settings"]["record_query"] == {"value": False, "unit": None, "from": "high_security"}
    assert service["settings"]["endpoint"] == {
        "value": "https://***@c.example/x?***",
        "unit": None,
        "from": "ini",
    }
    assert service["settings"]["headers"]["value"] == {"a": "***", "b": "***"}
    assert service["settings"]["headers_file"]["value"] == str(tmp_path / "headers")
    assert service["settings"]["apdex_t_s"] == {"value": 0.5, "unit": "s", "from": "default"}
    assert "traces_endpoint" not in service["settings"]
    everything = json.loads(run("settings", "--json", "--all", path).output)
    assert set(everything["services"][0]["settings"]) == set(settings.TABLE)


def test_settings_without_an_ini(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's file, then production.ini of the directory, then the environment alone."""
    monkeypatch.setenv("PASTE_AGENT_SERVICE_NAME", "from the environment")

    def name() -> tuple[str | None, str, str]:
        found = json.loads(run("settings", "--json").output)
        return found["file"], found["services"][0]["section"], found["services"][0]["service"]

    assert name() == (None, "environment", "from the environment")
    ini_of(tmp_path, "service_name = from production.ini", name="production.ini")
    assert name() == ("production.ini", "filter:agent", "from production.ini")
    path = own_file(tmp_path, "[paste_agent]\nservice_name = one\n[paste_agent:production]\nservice_name = two\n")
    monkeypatch.setenv("PASTE_AGENT_CONFIG_FILE", str(path))
    assert name() == (str(path), "paste_agent", "one")
    monkeypatch.setenv("PASTE_AGENT_ENVIRONMENT", "production")
    assert name() == (str(path), "paste_agent:production", "two")


def test_settings_and_check_of_a_file_of_the_agents_own(run: Run, tmp_path: Path) -> None:
    path = own_file(tmp_path, "[paste_agent]\nservice_name = 100%\nstore = memory\n")
    assert "100%" in run("settings", path).output
    result = run("check", path)
    assert (result.status, result.errors) == (0, "")
    assert "no endpoint" in result.output
    assert "loader" not in result.output


@pytest.mark.parametrize("command", ["settings", "send-test"])
def test_what_is_wrong_is_one_line(run: Run, tmp_path: Path, command: str) -> None:
    refused(run(command, tmp_path / "nowhere.ini"), "No such file")
    refused(run(command, own_file(tmp_path, PIPELINE)), "paste-agent install")
    refused(run(command, ini_of(tmp_path, "apdex_t_s = soon")), "[filter:agent] apdex_t_s = 'soon'", "expected seconds")


# -- send-test -------------------------------------------------------------------------------------------------------


def test_what_send_test_sends(run: Run, receiver: Receiver, tmp_path: Path) -> None:
    path = ini_of(tmp_path, f"endpoint = {receiver.endpoint}\nservice_name = office\nheaders = x-api-key=geheim")
    result = run("send-test", path)
    assert (result.status, result.errors) == (0, "")
    lines = result.output.splitlines()
    assert [line.split(" (")[0] for line in lines[1:]] == [
        f"✓ {signal}: {receiver.endpoint}/v1/{signal}: 200" for signal in settings.SIGNALS
    ]
    assert all(re.search(r" \([\d.,]+ (s|ms|µs)\)$", line) for line in lines[1:])
    assert "geheim" not in result.output
    assert [request.headers["x-api-key"] for request in receiver.requests] == ["geheim"] * 3
    (span,), (record,) = receiver.spans, receiver.logs
    assert span.name == NAME
    assert lines[0] == f"service office, trace {span.trace_id.hex()}"
    assert (record.trace_id, record.span_id) == (span.trace_id, span.span_id)
    assert NAME in record.body.string_value
    ((attributes, point),) = receiver.last_points("paste_agent.test")
    assert (attributes, point.as_double) == ({}, 1.0)
    (resource,) = receiver.resources()
    assert (resource["service.name"], resource["service.instance.id"]) == ("office", NAME)
    assert resource["telemetry.sdk.version"] == paste_agent.__version__
    assert not (tmp_path / "shop.sqlite").exists()


def test_what_is_not_taken_is_told(run: Run, receiver: Receiver, tmp_path: Path) -> None:
    partial = ExportLogsPartialSuccess(rejected_log_records=1, error_message="too\nold")
    receiver.answers.extend(
        [
            Answer(401, b"no such key", {"Content-Type": "text/plain"}),
            Answer(503, headers={"Retry-After": "100"}),
            Answer(body=ExportLogsServiceResponse(partial_success=partial).SerializeToString()),
        ]
    )
    result = run("send-test", ini_of(tmp_path, f"endpoint = {receiver.endpoint}"))
    assert result.status == 1
    traces, metrics, logs = result.output.splitlines()[1:]
    assert traces.startswith(f"✗ traces: {receiver.endpoint}/v1/traces: 401 Unauthorized: no such key (")
    assert metrics.startswith(f"✗ metrics: {receiver.endpoint}/v1/metrics: 503 Service Unavailable (")
    assert logs.startswith(
        f"✗ logs: {receiver.endpoint}/v1/logs: 200: partial success, 1 log record rejected: too old ("
    )
    assert len(receiver.requests) == 3


def test_one_signal_that_fails_is_a_failure(run: Run, receiver: Receiver, tmp_path: Path) -> None:
    keys = f"traces_endpoint = {receiver.endpoint}/v1/traces\nlogs_endpoint = http://127.0.0.1:{free_port()}/v1/logs"
    result = run("send-test", "--timeout", "30", ini_of(tmp_path, keys))
    assert result.status == 1
    assert len(result.output.splitlines()) == 3
    assert "✓ traces" in result.output
    assert ": connection refused (" in result.output


def test_what_is_not_to_be_sent_is_not_tried(run: Run, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PASTE_AGENT_ENDPOINT", receiver.endpoint)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    for signal in ("TRACES", "LOGS"):
        monkeypatch.setenv(f"OTEL_{signal}_EXPORTER", "none")
    result = run("send-test")
    assert (result.status, result.errors) == (0, "")
    assert [line[0] for line in result.output.splitlines()[1:]] == ["!", "✓"]
    assert [request.path for request in receiver.requests] == ["/v1/metrics"]
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    refused(run("send-test"), "the environment: nothing is sent, the exporter of each signal is none; set ")


def test_send_test_from_the_environment(run: Run, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(run("send-test"), "the environment: no endpoint, nothing is sent; set `endpoint`")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "program")
    assert run("send-test").status == 0
    assert receiver.resources()[0]["service.name"] == "program"


def test_one_of_several_services(run: Run, receiver: Receiver, tmp_path: Path) -> None:
    other = f"[filter:b]\nuse = egg:paste_agent\nservice_name = b\nendpoint = {receiver.endpoint}\n"
    path = ini_of(tmp_path, f"service_name = a\nendpoint = {receiver.endpoint}", rest=PIPELINE + other)
    refused(run("send-test", "--service", "c", path), "no service 'c'; there is a, b")
    assert run("send-test", "--service", "b", path).status == 0
    assert {one["service.name"] for one in receiver.resources()} == {"b"}
    assert run("send-test", path).status == 0
    assert {one["service.name"] for one in receiver.resources()} == {"a", "b"}


# -- generate-config -------------------------------------------------------------------------------------------------


def with_defaults(text: str) -> str:
    """The text with every default in effect, as somebody would set it who takes each # away."""
    return re.sub(r"^#([a-z_]+ = \S)", r"\1", text, flags=re.MULTILINE)


def test_a_generated_file_is_read_back(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "agent.ini"
    result = run("generate-config", "-o", path)
    assert (result.status, result.output) == (0, f"{path}: written\n")
    text = path.read_text()
    assert text == run("generate-config").output
    keys = re.findall(r"^#?([a-z_]+) =", text.partition("[paste_agent:production]")[0], flags=re.MULTILINE)
    assert keys == list(settings.TABLE)
    where = {"PASTE_AGENT_CONFIG_FILE": str(path)}
    as_it_is = configuration.settings_of(where)
    assert set(as_it_is.origins.values()) == {"default"}
    production = configuration.settings_of({**where, "PASTE_AGENT_ENVIRONMENT": "production"})
    assert production.resource_attributes == {"deployment.environment.name": "production"}
    path.write_text(with_defaults(text).partition("[paste_agent:production]")[0])
    set_by_hand = configuration.settings_of(where)
    assert set_by_hand.values == as_it_is.values
    plain = {key for key, row in settings.TABLE.items() if row.default not in (None, {}, ())}
    assert {key for key, origin in set_by_hand.origins.items() if origin == "ini"} == plain


def test_a_generated_filter_is_loaded(run: Run, tmp_path: Path) -> None:
    text = run("generate-config", "--filter").output
    assert re.findall(r"^#?([a-z_]+) =", text, flags=re.MULTILINE) == ["use", *settings.TABLE]
    path = tmp_path / "shop.ini"
    for content in (text, with_defaults(text)):
        path.write_text(content + PIPELINE)
        context = loadwsgi.loadcontext(loadwsgi.FILTER, f"config:{path}", name="agent")
        loaded = settings.load(context.local_conf, context.global_conf, {})
        assert loaded.values == settings.load({}, context.global_conf, {}).values
    assert "✗" not in run("check", path).output


def test_every_row_says_all_that_is_known(run: Run) -> None:
    text = " ".join(run("generate-config").output.replace("\n#", "\n").split())
    for row in settings.TABLE.values():
        for words in (row.help, row.variable, row.otel, row.default_text, f"Unit: {row.unit}" if row.unit else ""):
            assert words in text, row.key
        assert f"{row.key} = {generate_config.value_of(row)}".strip() in text


def test_a_file_is_not_overwritten(run: Run, tmp_path: Path) -> None:
    path = own_file(tmp_path, "mine")
    path.chmod(0o600)
    refused(run("generate-config", "-o", path), "agent.ini: is there already; --force overwrites it")
    assert path.read_text() == "mine"
    assert run("generate-config", "--force", "--filter", "-o", path).status == 0
    assert "[filter:agent]" in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    refused(run("generate-config", "-o", tmp_path / "nowhere" / "x.ini"), "No such file or directory")
    assert [one.name for one in tmp_path.iterdir()] == ["agent.ini"]


# -- help and completion ---------------------------------------------------------------------------------------------


def test_the_commands_are_listed_with_a_line_each(run: Run) -> None:
    output = run("--help").output
    listed = re.findall(r"^  ([a-z-]+)  +(\S.*)$", output.partition("Commands:")[2], flags=re.MULTILINE)
    assert [name for name, _ in listed] == list(main.group.commands)
    assert [line for _, line in listed if line.endswith("...")] == []


@pytest.mark.parametrize("name", main.group.commands)
def test_every_option_says_what_it_does(run: Run, name: str) -> None:
    result = run(name, "--help")
    assert (result.status, result.errors) == (0, "")
    for parameter in main.group.commands[name].params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name
            assert parameter.opts[-1] in result.output


def test_the_shell_completes(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", "from paste_agent.cli.main import run; run()"]
    status, script, errors = serving.run(command, tmp_path, serving.environment(_PASTE_AGENT_COMPLETE="bash_source"))
    assert (status, errors) == (0, "")
    assert "_PASTE_AGENT_COMPLETE=bash_complete" in script
    for shell_name in ("zsh", "fish"):
        monkeypatch.setenv("_PASTE_AGENT_COMPLETE", f"{shell_name}_source")
        assert f"_PASTE_AGENT_COMPLETE={shell_name}_complete" in run().output
    monkeypatch.setenv("_PASTE_AGENT_COMPLETE", "bash_complete")
    for line, number, words in (
        ("paste-agent se", 1, "plain,settings\nplain,send-test\n"),
        ("paste-agent install --dr", 2, "plain,--dry-run\n"),
    ):
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(number))
        assert run().output == words
