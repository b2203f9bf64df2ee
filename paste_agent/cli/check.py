"""`paste-agent check`: an ini as the loader reads it, the effective settings, and what the collector answers."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from urllib.parse import quote

import click
from paste.deploy import loadwsgi
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from paste_agent import ini, settings
from paste_agent.errors import AgentError
from paste_agent.runtime_dir import service_dir
from paste_agent.settings import IN_MEMORY, Settings

_TIMEOUT_S = 5.0


class _Findings:
    """Prints each finding as a line, and remembers whether one was bad."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.bad = False

    def good(self, text: str) -> None:
        self._say("✓", "green", text)

    def warn(self, text: str) -> None:
        self._say("!", "yellow", text)

    def fail(self, text: str) -> None:
        self.bad = True
        self._say("✗", "red", text)

    def _say(self, mark: str, style: str, text: str) -> None:
        self._console.print(Text.assemble((mark, f"bold {style}"), " ", text), soft_wrap=True)


@click.command()
@click.argument("path", metavar="INI", default="production.ini")
@click.option("--app", "name", default="main", show_default=True, help="Section that the server loads.")
@click.option("--all", "show_all", is_flag=True, help="List also the settings that are left at their default.")
def command(path: str, name: str, show_all: bool) -> None:
    """Validate an ini, show every effective setting with its origin, and try the collector. Exit status 0 or 1."""
    console = Console(highlight=False)
    findings = _Findings(console)
    try:
        services = ini.services(path, os.environ)
    except AgentError as error:
        findings.fail(str(error))
        sys.exit(1)
    _check_loading(findings, os.path.abspath(path), name)
    for found in services:
        console.print()
        console.print(_settings_table(found, show_all))
        _check_service(findings, path, found)
    sys.exit(1 if findings.bad else 0)


def _check_loading(findings: _Findings, path: str, name: str) -> None:
    """Load every section that [app:name] leads to, without building anything."""
    sys.path.insert(0, os.path.dirname(path))
    try:
        context = loadwsgi.loadcontext(loadwsgi.APP, f"config:{quote(path)}", name=name)
    except Exception as error:  # a section's module may raise anything when it is imported
        findings.fail(f"{path}: the loader fails: {type(error).__name__}: {' '.join(str(error).split())}")
        return
    findings.good(f"{path}: the loader finds all of [{name}]")
    if not any(getattr(part.object, "__module__", None) == "paste_agent.filter" for part in _parts(context)):
        findings.warn(f"nothing in [{name}] uses the agent: put it first in the pipeline, or say `filter-with`")


def _parts(context: loadwsgi.LoaderContext) -> Iterator[loadwsgi.LoaderContext]:
    """A context and all that it is made of. What a composite mounts is known to the composite alone."""
    yield context
    for name in ("app_context", "filter_context", "next_context"):
        inner = getattr(context, name, None)
        if inner is not None:
            yield from _parts(inner)
    for inner in getattr(context, "filter_contexts", ()):
        yield from _parts(inner)


def _check_service(findings: _Findings, path: str, found: Settings) -> None:
    for key in ini.dropped_keys(path, found.section):
        place = f"[{found.section}] {key}"
        findings.warn(f"{place}: the loader drops it, because [DEFAULT] has {key} too; rename that one")
    for key in found.overruled:
        findings.warn(f"[{found.section}] {key}: overruled by high_security")
    if found.forward_logs != "off" and found.target("logs") is None:
        findings.warn(f"[{found.section}] forward_logs: nothing is forwarded without an endpoint")
    if not found.enabled:
        findings.warn(f"[{found.section}]: enabled = false, nothing is measured")
        return
    try:
        findings.good(f"flight recorders in {service_dir(found, os.environ)}")
    except AgentError as error:
        findings.fail(str(error))
    _check_store(findings, found)
    _check_collector(findings, found)


def _check_store(findings: _Findings, found: Settings) -> None:
    from paste_agent.store.store import Store

    if found.store == IN_MEMORY:
        findings.good("store in the runtime directory, gone after a reboot")
        return
    if os.path.exists(found.store):
        try:
            Store(found.store, read_only=True).close()
        except AgentError as error:
            findings.fail(str(error))
            return
        findings.good(f"store {found.store}")
        return
    # Not made here: it would belong to whoever checks, and not to the user that the service runs as.
    directory = os.path.dirname(found.store)
    while not os.path.exists(directory):
        directory = os.path.dirname(directory)
    if os.access(directory, os.W_OK | os.X_OK):
        findings.good(f"store {found.store}: made at the first request")
    else:
        findings.fail(f"store {found.store}: cannot be made, {directory} is not writable; set `store`")


def _check_collector(findings: _Findings, found: Settings) -> None:
    if not any(found.target(signal) for signal in settings.SIGNALS):
        findings.good("no endpoint: measurements stay in the store")
        return
    from paste_agent.exporters.otlp import try_collector

    for signal, url, ok, answer in try_collector(found, _TIMEOUT_S):
        say = findings.good if ok else findings.fail
        say(f"collector, {signal}: {url}: {answer}")


def _settings_table(found: Settings, show_all: bool) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, title=f"[{found.section}]".replace("[", "\\["), title_justify="left"
    )
    table.add_column("setting", no_wrap=True)
    table.add_column("value", overflow="fold", ratio=1)
    table.add_column("from", no_wrap=True)
    hidden = 0
    for row in settings.TABLE.values():
        origin, value = found.origins[row.key], found.values[row.key]
        if value in (None, {}) and not show_all:
            hidden += 1
            continue
        table.add_row(row.key, _value_text(row, value), Text(origin, style="dim" if origin == "default" else "bold"))
    if hidden:
        table.caption = f"{hidden} that have no value are left out; --all lists them"
    return table


def _value_text(row: settings.Setting, value: object) -> Text:
    return Text(settings.shown(row, value)) if settings.shown(row, value) else Text("–", style="dim")
