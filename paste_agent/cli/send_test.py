"""`paste-agent send-test`: a span, a data point and a log record to the collector, and what it says to each."""

from __future__ import annotations

import os
import sys
import time

import click
from rich.text import Text

from paste_agent import metrics
from paste_agent.cli.sources import source_of
from paste_agent.cli.style import console_of, duration
from paste_agent.exporters import connection
from paste_agent.exporters.resource import facts, resource_of
from paste_agent.kept import TraceRow
from paste_agent.log_files import LogRow
from paste_agent.settings import SIGNALS, Settings

#: What the span, the scope of the log record and the instance are called: nobody takes them for the service's own.
NAME = "paste-agent send-test"
_INFO = 9  #: OTLP's number of the severity
_NS = 1_000_000_000


@click.command(short_help="Send a test to the collector, show its answers.")
@click.argument("path", metavar="[INI]", required=False)
@click.option("--service", help="Which service, when the ini measures several; without it: all of them.")
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(0.1, 300), help="Seconds for each; without it: timeout_s."
)
def command(path: str | None, service: str | None, timeout_s: float | None) -> None:
    """Send a test trace, metric and log record to the collector, and show what it answers.

    INI is a service's ini, or a file with a section [paste_agent]. Without it: the file that
    PASTE_AGENT_CONFIG_FILE names, else production.ini of this directory, else what the environment says.

    They are called "paste-agent send-test", belong to an instance of that name of your service, and are not
    stored here. Exit status 1 when one of them was not taken.
    """
    source = source_of(path, os.environ)
    chosen = [found for found in source.services if service in (None, found.service_name)]
    if not chosen:
        names = ", ".join(found.service_name for found in source.services)
        _stop(f"no service {service!r}; there is {names}")
    good = [_try(found, source.place(found), timeout_s) for found in chosen]
    sys.exit(0 if all(good) else 1)


def _stop(text: str) -> None:
    click.echo(f"paste-agent: {text}", err=True)
    sys.exit(1)


def _try(found: Settings, place: str, timeout_s: float | None) -> bool:
    """Whether all was taken."""
    targets = {signal: target for signal in SIGNALS if (target := found.target(signal)) is not None}
    if all(found.values[f"{signal}_exporter"] == "none" for signal in SIGNALS):
        _stop(f"{place}: nothing is sent, the exporter of each signal is none; set `traces_exporter` to otlp")
    if not targets:
        _stop(f"{place}: no endpoint, nothing is sent; set `endpoint`, for example to http://127.0.0.1:4318")
    from paste_agent.exporters.otlp import try_collector

    console = console_of()
    trace_id = os.urandom(16)
    console.print(Text(f"service {found.service_name}, trace {trace_id.hex()}"), soft_wrap=True)
    # What is fatal, each signal says.
    for line in (*found.passed_over, *(str(one) for one in connection.problems(found) if not one.fatal)):
        console.print(Text.assemble(("!", "bold yellow"), f" {line}"), soft_wrap=True)
    good = True
    limit_s = timeout_s or max(target.timeout_s for target in targets.values())
    for tried in try_collector(found, limit_s, _bodies(found, trace_id)):
        mark = ("✓", "bold green") if tried.taken else ("✗", "bold red")
        line = f" {tried.signal}: {tried.url}: {tried.answer} ({duration(tried.took_s)})"
        console.print(Text.assemble(mark, line), soft_wrap=True)
        good = good and tried.taken
    return good


def _bodies(found: Settings, trace_id: bytes) -> dict[str, bytes]:
    """One request for each signal, with one item: a span of a second that ends now, and what is bound to it."""
    from paste_agent.exporters import otlp_encode

    # An instance of its own: beside the service's series, and not in between.
    resource = {**resource_of(found, "", facts()), "service.instance.id": NAME}
    now_ns = time.time_ns()
    span_id = os.urandom(8)
    span = TraceRow(trace_id, span_id, None, now_ns - _NS, _NS, False, 0, {otlp_encode.TASK_NAME: NAME}, None)
    record = LogRow(now_ns, _INFO, "INFO", NAME, f"a test of {NAME}: please ignore", {}, trace_id, span_id)
    traces = otlp_encode.encode_traces(resource, [span])
    assert traces is not None
    (points,) = otlp_encode.encode_metrics(resource, [], {}, [metrics.Reading(metrics.TEST, {}, 1)], now_ns, now_ns)
    logs = otlp_encode.encode_forwarded(resource, [record])
    return {"traces": traces.data, "metrics": points.data, "logs": logs.data}
