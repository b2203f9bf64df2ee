"""`paste-agent check`: an ini as the loader reads it, the effective settings, and what the collector answers."""

from __future__ import annotations

import os
import sys

import click
from rich.console import Console
from rich.text import Text

from paste_agent import ini, settings
from paste_agent.cli import loading
from paste_agent.cli.settings_table import table_of
from paste_agent.cli.sources import DEFAULT, is_own_file, source_of
from paste_agent.cli.style import console_of
from paste_agent.errors import AgentError, IniError
from paste_agent.exporters import connection
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


@click.command(short_help="Validate an ini, and try the collector.")
@click.argument("path", metavar="INI", default=DEFAULT)
@click.option("--app", "name", default="main", show_default=True, help="Section that the server loads.")
@click.option("--all", "show_all", is_flag=True, help="List also the settings that are left at their default.")
def command(path: str, name: str, show_all: bool) -> None:
    """Validate an ini, show every effective setting with its origin, and try store and collector.

    INI is a service's ini, production.ini when it is left out, or a file with a section [paste_agent]. The
    collector is asked with requests that hold nothing; `paste-agent send-test` sends something to look for.
    Exit status 1 when something would not work.
    """
    console = console_of()
    findings = _Findings(console)
    try:
        services = source_of(path, os.environ).services
        own_file = is_own_file(path)
    except AgentError as error:
        findings.fail(str(error))
        sys.exit(1)
    if not own_file:
        _check_loading(findings, os.path.abspath(path), name)
    for found in services:
        console.print()
        console.print(table_of(found, f"[{found.section}]", show_all))
        _check_service(findings, path, found)
    sys.exit(1 if findings.bad else 0)


def _check_loading(findings: _Findings, path: str, name: str) -> None:
    try:
        context = loading.context_of(path, name)
    except IniError as error:
        findings.fail(str(error))
        return
    findings.good(f"{path}: the loader finds all of [{name}]")
    if loading.unservable(context):
        findings.fail(f"[{name}]: PasteDeploy cannot serve a `filter-with` around a pipeline; put it into the pipeline")
    if not any(map(loading.is_agent, loading.layers(context))):
        findings.warn(
            f"nothing in [{name}] uses the agent: `paste-agent install {os.path.relpath(path)}` puts it there"
        )


def _check_service(findings: _Findings, path: str, found: Settings) -> None:
    for key in [] if is_own_file(path) else ini.dropped_keys(path, found.section):
        place = f"[{found.section}] {key}"
        findings.warn(f"{place}: the loader drops it, because [DEFAULT] has {key} too; rename that one")
    for key in found.overruled:
        findings.warn(f"[{found.section}] {key}: overruled by high_security")
    if found.forward_logs != "off" and found.target("logs") is None:
        why = "with logs_exporter = none" if found.values["logs_exporter"] == "none" else "without an endpoint"
        findings.warn(f"[{found.section}] forward_logs: nothing is forwarded {why}")
    if not found.enabled:
        findings.warn(f"[{found.section}]: enabled = false, nothing is measured")
        return
    for line in found.passed_over:
        findings.warn(line)
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
    unsent = [signal for signal in settings.SIGNALS if found.values[f"{signal}_exporter"] == "none"]
    if not any(found.target(signal) for signal in settings.SIGNALS):
        why = "nothing is sent" if len(unsent) == len(settings.SIGNALS) else "no endpoint"
        findings.good(f"{why}: measurements stay in the store")
        return
    for signal in unsent:
        findings.good(f"collector, {signal}: not sent, {signal}_exporter = none")
    problems = connection.problems(found)
    for problem in problems:
        say = findings.fail if problem.fatal else findings.warn
        say(f"[{found.section}] {problem}")
    from paste_agent.exporters.otlp import try_collector

    for tried in try_collector(found, _TIMEOUT_S):
        if tried.answer in map(str, problems):
            continue
        say = findings.good if tried.taken else findings.fail
        say(f"collector, {tried.signal}: {tried.url}: {tried.answer}")
