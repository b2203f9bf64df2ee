"""Writes the pages and the picture that come from the code.

    python docs/generate.py                        docs/settings.md and docs/metrics.md
    python docs/generate.py --picture INI          docs/images/report.svg, of what INI's service has measured

A test fails while the two pages are not what this writes.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from paste_agent import metrics, settings

DOCS = Path(__file__).parent

SETTINGS_HEAD = """# Settings

Every key of `[filter:agent]`. This page is generated from the table that the agent itself reads,
`paste_agent/settings.py`.

Where a value comes from, the first that has one:

1. the key in the ini's section,
2. the environment variable `PASTE_AGENT_<KEY>`, such as `PASTE_AGENT_REPORT_INTERVAL_S`,
3. the OpenTelemetry variable of the table below, where there is one (its durations are milliseconds),
4. the default.

A wrong value or an unknown key stops the start with one line that says where it stands and what was expected.
`paste-agent check production.ini` shows what is in effect, and where each value came from.

The loader drops a key that `[DEFAULT]` has too; `check` warns of it.

| key | default | unit | OpenTelemetry variable | meaning |
| --- | --- | --- | --- | --- |
"""

METRICS_HEAD = """# Metrics

What goes to a collector, every `report_interval_s`. Names and attributes are OpenTelemetry's (semantic conventions
1.44) where there is one. This page is generated from `paste_agent/metrics.py`.

All counters and histograms are cumulative, of the whole service on this host, under one `service.instance.id` that
outlives workers and restarts: no series per process, no reset when a worker is recycled. Figures that only mean
something for one worker carry `paste_agent.worker.number`, a small number that the next worker takes over.

| metric | instrument | unit | meaning |
| --- | --- | --- | --- |
"""


METRICS_TAIL = """
Attributes of `http.server.request.duration`: `http.request.method`, `url.scheme`, `http.route`,
`http.response.status_code`, `error.type`, `network.protocol.version`. Its duration lasts from the call of the filter
until the response is closed, streaming included: the same that the server span measures. A method that HTTP does not
know is `_OTHER`. `error.type` is the class of an exception that left the application, else the status of a 5xx.

`http.route` is the pattern of a route, never a path. The agent knows Pyramid's routes and views, Routes, and routers
that follow `wsgiorg.routing_args`; any other application names its route with

    environ["paste_agent.route"] = "/items/{id}"

At most `max_series` combinations of these attributes are told apart; what comes after them is counted in one series
with `otel.metric.overflow`.

`paste_agent.request.queue.duration` is known where a proxy in front sets `X-Request-Start` or `X-Queue-Start` to the
time at which it took the request: seconds, milliseconds or microseconds since the epoch, `t=` before it or not.

`paste_agent.records.dropped` says why in `reason`: `ring_full` when a process finished more transactions than
`ring_records` between two drains, `unwritten` when a process was killed between taking a place and writing to it.

`paste_agent.worker.lost` says why in `reason`: `timeout`, `out_of_memory`, `signal`, `exit`, `unknown`, and `boot` for
one that could not begin to serve. `paste_agent.worker.recycled` counts those that ended because of `max_requests`. The
number of values of `paste_agent.worker.boot.duration` is the number of starts. `boot` and the durations of starts are
known under `gunicorn_paster` and the server runner.

`paste_agent.background_task.duration` has `paste_agent.task.name` and, for those that failed, `error.type`.

`paste_agent.internal.errors` with the reason `bad_recorder` counts flight recorders that were written over or cut short
by somebody else: they are set aside, and what they held is not counted.

# Traces

A server span for each transaction that is kept. All others are counted in the metrics above and leave no span. Kept is

| `paste_agent.why_kept` | what | bound, a minute and process |
| --- | --- | --- |
| `parent` | the caller's `traceparent` says sampled | `parent_traces_per_min` |
| `random` | chance; it adapts to the traffic | `random_traces_per_min` |
| `slow` | it took longer than `slow_request_s` | `slow_traces_per_min` |
| `failed` | a 5xx, or an exception that left the application | `failed_traces_per_min` |
| `lost` | its worker died over it | 20 a worker that died |

Each bound is a bucket of its own: neither an outage nor a client that sets the sampled flag on every request
multiplies what is stored and sent.

A slow request carries `code.stacktrace`: where it was when its stack was last taken, `paste_agent.stack.age` seconds
after its start. A lost request is a failed span with the `error.type` `worker_<reason>`, as long as it was in flight.

# Logs

An exception of a kept transaction is a log record of severity ERROR with `exception.type`, `exception.message` and
`exception.stacktrace`, bound to its span.

A worker that died is a log record of severity ERROR, event `paste_agent.worker.lost`, for each request that it took
along, bound to the span of that request: the post-mortem is its body, and `code.stacktrace`, `paste_agent.span`,
`paste_agent.postmortem.id` and `paste_agent.worker.lost.reason` are its attributes.
"""


def default_of(row: settings.Setting) -> str:
    if row.default_text:
        return row.default_text
    if row.default in (None, {}):
        return "–"
    if isinstance(row.default, bool):
        return f"`{str(row.default).lower()}`"
    return f"`{row.default:g}`" if isinstance(row.default, float) else f"`{row.default}`"


def settings_page() -> str:
    rows = [
        f"| `{row.key}` | {default_of(row)} | {row.unit} | {f'`{row.otel}`' if row.otel else ''} | {row.help} |\n"
        for row in settings.TABLE.values()
    ]
    return SETTINGS_HEAD + "".join(rows)


def metrics_page() -> str:
    rows = [
        f"| `{metric.name}` | {metric.instrument.replace('_', '-')} | `{metric.unit}` | {metric.description} |\n"
        for metric in metrics.TABLE.values()
    ]
    return METRICS_HEAD + "".join(rows) + METRICS_TAIL


def picture(ini: str) -> None:
    """The report of a service, as a terminal shows it."""
    from rich.console import Console

    from paste_agent.cli import report

    with open("/dev/null", "w") as nowhere:
        console = Console(record=True, width=104, highlight=False, file=nowhere, force_terminal=True)
        console.print(report.page_of(ini))
        svg = console.export_svg(title=f"paste-agent report {ini}")
    # rich asks another host for its font; a page of ours asks nobody, and any monospaced font does.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    (DOCS / "images" / "report.svg").write_text(svg, encoding="utf-8")


PAGES = {"settings.md": settings_page, "metrics.md": metrics_page}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--picture"]:
        picture(sys.argv[2])
    else:
        for name, page in PAGES.items():
            (DOCS / name).write_text(page(), encoding="utf-8")
