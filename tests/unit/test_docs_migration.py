"""What the pages for those who come from other agents name of ours exists, and what they say of variables holds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import paste_agent
from paste_agent import metrics
from paste_agent.cli.main import group
from paste_agent.settings import CONFIG_FILE, ENVIRONMENT, INSTRUMENTATIONS, SIGNALS, TABLE

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
PAGES = {
    name: (DOCS / f"{name}.md").read_text(encoding="utf-8")
    for name in ("migrate-newrelic", "migrate-opentelemetry", "migrate-prometheus-client")
}
VARIABLES = {row.variable for row in TABLE.values()} | {CONFIG_FILE, ENVIRONMENT}
METRIC = re.compile(r"(?:paste_agent|http_server|process|orders|mail_delay)_")  #: as Prometheus has it
OTLP = "OTEL_EXPORTER_OTLP_"
#: Heads of columns with what is ours.
OURS = ("here", "paste-agent", "after", "instead", "key", "set")


def cells_of_ours(page: str) -> Iterator[str]:
    """The cells of tables in which ours stands beside theirs."""
    heads: list[str] = []
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")] if line.startswith("|") else []
        if not cells or not heads:
            heads = [cell.strip("`") for cell in cells]
        else:
            yield from (cell for head, cell in zip(heads, cells, strict=False) if head in OURS)


def section(page: str, title: str) -> str:
    """What stands under a heading, until the next one."""
    found = re.search(rf"^#+ {re.escape(title)}$\n(.*?)(?=^#|\Z)", page, re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found[1]


def anchor(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


@pytest.mark.parametrize("name", PAGES)
def test_commands_exist(name: str) -> None:
    page = PAGES[name]
    named = set(re.findall(r"\bpaste-agent ([a-z][a-z-]*)", page))
    assert named
    assert named <= set(group.commands) | {"measures"}


def test_the_commands_beside_new_relics_exist() -> None:
    cells = list(cells_of_ours(section(PAGES["migrate-newrelic"], "Commands")))
    named = {word for cell in cells for word in re.findall(r"`([a-z-]+)(?: [A-Z -]+[a-z]*[A-Z ]*)?`", cell)}
    assert {"run-program", "run-python", "generate-config", "check", "send-test", "settings", "report"} <= named
    assert named <= set(group.commands)


def test_the_option_that_a_command_is_given_exists() -> None:
    options = {
        (name, option) for name, command in group.commands.items() for one in command.params for option in one.opts
    }
    wanted = {("generate-config", "-o"), ("settings", "--all"), ("metrics", "--host"), ("metrics", "--port")}
    assert wanted <= options
    for page in PAGES.values():
        for command, option in re.findall(r"`(?:paste-agent )?(generate-config|settings|metrics) (-[-a-z]+)", page):
            assert (command, option) in options


@pytest.mark.parametrize("name", PAGES)
def test_variables_of_ours_exist(name: str) -> None:
    assert set(re.findall(r"PASTE_AGENT_[A-Z][A-Z_]*[A-Z]", PAGES[name])) <= VARIABLES


@pytest.mark.parametrize("name", PAGES)
def test_calls_of_ours_exist(name: str) -> None:
    # What follows an egg's # or a metric's _ is no attribute of the package.
    for full in set(re.findall(r"(?<![\w:./])paste_agent\.([a-z_]+(?:\.[A-Za-z]+)?)", PAGES[name])):
        module, _, attribute = full.partition(".")
        if attribute:
            assert hasattr(import_module(f"paste_agent.{module}"), attribute), full
        else:
            assert full in paste_agent.__all__, full


@pytest.mark.parametrize("name", PAGES)
def test_settings_and_calls_in_columns_of_ours_exist(name: str) -> None:
    known = {*TABLE, *paste_agent.__all__, *INSTRUMENTATIONS}
    # Of other programs, and the value of one of ours.
    others = {"raw", "off", "sanitised", "obfuscated", "apdex_f", "prometheus", "console", "none", "deflate", "xray"}
    others |= {"sqlite3", "requests", "ottrace", "b3", "b3multi", "jaeger", "cumulativetodelta", "false", "paste_agent"}
    checked = set()
    for cell in cells_of_ours(PAGES[name]):
        for text in re.findall(r"`([^`]+)`", cell):
            word = re.fullmatch(r"([a-z][a-z0-9_]*)(?: = .+|\(.*\))?", text)
            if word is not None and not METRIC.match(text) and word[1] not in others and word[1] not in group.commands:
                assert word[1] in known, f"{text}: {cell}"
                checked.add(word[1])
    assert checked or name == "migrate-prometheus-client"


def test_the_opentelemetry_variables_that_are_said_to_be_honoured_are_those_of_the_table() -> None:
    rows = re.findall(
        r"^\| `(OTEL_[A-Z_]+)` \| `(\w+)` \|", section(PAGES["migrate-opentelemetry"], "Honoured"), re.MULTILINE
    )
    said = dict(rows)
    for variable, key in rows:
        if variable.startswith(OTLP):
            for signal in SIGNALS:
                said[variable.replace(OTLP, f"{OTLP}{signal.upper()}_")] = f"{signal}_{key}"
    assert said == {row.otel: row.key for row in TABLE.values() if row.otel}


def test_those_that_are_said_not_to_be_honoured_are_not() -> None:
    named = set(re.findall(r"OTEL_[A-Z_]*[A-Z]", section(PAGES["migrate-opentelemetry"], "Not honoured")))
    assert len(named) > 40
    assert named.isdisjoint(row.otel for row in TABLE.values())


def test_every_library_has_its_place_beside_opentelemetrys() -> None:
    table = section(PAGES["migrate-opentelemetry"], "Instrumentations")
    assert [name for name in INSTRUMENTATIONS if f"`{name}`" not in table] == []
    (same,) = re.findall(r"^\| (.+) \| the same name", table, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", same)) <= set(INSTRUMENTATIONS)


def test_metrics_for_prometheus_exist() -> None:
    known = {name.replace(".", "_") for name in (*metrics.TABLE, metrics.WORKER_NUMBER)}
    named = set(re.findall(r"`((?:paste_agent|http_server|process)_[a-z_]+[a-z])`", PAGES["migrate-prometheus-client"]))
    assert len(named) > 4
    assert [one for one in named if not any(one.startswith(name) for name in known)] == []


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    for path, fragment in re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", PAGES[name]):
        target = DOCS / path if path else DOCS / f"{name}.md"
        assert target.is_file(), path
        if fragment:
            titles = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert fragment in map(anchor, titles), f"{path}#{fragment}"


@pytest.mark.parametrize("name", PAGES)
def test_parts_of_a_pipeline_exist(name: str) -> None:
    parts = {point.name for point in entry_points(group="paste.app_factory") if point.value.startswith("paste_agent.")}
    assert set(re.findall(r"egg:paste_agent#(\w+)", PAGES[name])) <= parts
