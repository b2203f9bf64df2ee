"""Writes the pages and the picture that come from the code.

    python docs/generate.py                        docs/settings.md and docs/metrics.md
    python docs/generate.py --pictures INI ID      docs/images/report.svg and trace.svg, of what INI's service has
                                                   measured, and of the trace with that ID: a GET /report/sales of
                                                   the demo, while it runs, after `paste-agent demo-traffic --hang`
    python docs/generate.py --screenshots INI      docs/images/dashboard*.png, of what INI's service has measured in the
                                                   last 15 minutes: the demo's, after `paste-agent demo-traffic --hang`.
                                                   Takes Chromium, ChromeDriver, and `pip install selenium Pillow`

A test fails while the two pages are not what this writes.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from paste_agent import metrics, settings

DOCS = Path(__file__).parent
WIDTH = 112

SETTINGS_HEAD = """# Settings

Every key of `[filter:agent]`. This page is generated from the table that the agent itself reads,
`paste_agent/settings.py`.

Where a value comes from, the first that has one:

1. the key in the ini's section,
2. the environment variable `PASTE_AGENT_<KEY>`, such as `PASTE_AGENT_REPORT_INTERVAL_S`,
3. the OpenTelemetry variable of the table below, where there is one (its durations are milliseconds),
4. the default.

A wrong value or an unknown key stops the start with one line that says where it stands and what was expected.
`paste-agent settings production.ini` shows what is in effect, and where each value came from; `paste-agent check`
tries it as well. Headers, certificates and proxies: [The way to a collector](collector.md).

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

What they are called for Prometheus: [Prometheus and Grafana](prometheus.md).

| metric | instrument | unit | meaning |
| --- | --- | --- | --- |
"""


METRICS_TAIL = """
Attributes of `http.server.request.duration`: `http.request.method`, `url.scheme`, `http.route`,
`http.response.status_code`, `error.type`, `network.protocol.version`. Its duration lasts from the call of the filter
until the response is closed, streaming included: the same that the server span measures. A method that HTTP does not
know is `_OTHER`. `error.type` is the class of an exception that left the application, else the status of a 5xx.

`http.route` is the pattern of a route, never a path. The agent knows the routes of Pyramid, Flask and
[others](inside.md), Routes, and routers that follow `wsgiorg.routing_args`. Where paste.urlmap, or another composite
like it, stands below the agent, the path that it has the application at comes first (not with `layers = false`). Any
other application names its route, in full, with

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

`db.client.operation.duration` has `db.system.name`, `db.namespace`, `db.operation.name`, `db.collection.name`,
`db.query.summary` and `error.type`, each where it is known; Redis and memcached are counted there too.
`http.client.request.duration` has `http.request.method`, `server.address`, `server.port`,
`http.response.status_code` and `error.type`. Both count every call that a transaction makes, whether its trace is kept
or not.

`paste_agent.transaction.part.duration` has a value for each transaction that spent time on a `paste_agent.part`:
`database`, `cache`, `call`, `message`, `template`, `layers`, `gc`, `cpu`; with `http.request.method` and `http.route`.
`paste_agent.transaction.part.spans` is how many spans that were. `paste_agent.layer.duration` and
`paste_agent.layer.load.duration` have `paste.layer`, the section's name in the ini.

`paste_agent.errors` has `error.type`, `paste_agent.error.place`, `http.route`, and `paste_agent.error.expected` where
it is true. What an application counts and times itself goes by the names that it gives.

`paste_agent.spans.dropped` counts what gave way to requests when half of a ring was full: durations of calls and parts
are too low by that, requests are not.

`paste_agent.background_task.duration` has `paste_agent.task.name` and, for those that failed, `error.type`.

`paste_agent.internal.errors` with the reason `bad_recorder` counts flight recorders that were written over or cut short
by somebody else: they are set aside, and what they held is not counted.

# Traces

A server span for each transaction that is kept, with the spans inside of it: kind CLIENT for databases, caches and
calls, PRODUCER for messages, INTERNAL for templates, views and functions; a background task is a span of kind INTERNAL.
All others are counted in the metrics above and leave no span. Kept is

| `paste_agent.why_kept` | what | bound, a minute and process |
| --- | --- | --- |
| `parent` | the caller's `traceparent` says sampled | `parent_traces_per_min` |
| `random` | chance; it adapts to the traffic | `random_traces_per_min` |
| `slow` | a request, not a background task, that took longer than `slow_request_s` | `slow_traces_per_min` |
| `failed` | a 5xx, or an exception that left the application or was handled | `failed_traces_per_min` |
| `queries` | a slow query, or one that is repeated | `query_traces_per_min` |
| `lost` | its worker died over it | 20 a worker that died |

Each bound is a bucket of its own: neither an outage nor a client that sets the sampled flag on every request
multiplies what is stored and sent.

`paste_agent.sampling.probability` is how likely a transaction like this one is to be kept; 1 where it is not there.
[What adds up](traces.md#what-is-kept).
`paste_agent.spans.dropped` is how many spans it had beyond those that were kept; none where it is not there.

A slow request carries `code.stacktrace`: where it was when its stack was last taken, `paste_agent.stack.age` seconds
after its start. A lost request is a failed span with the `error.type` `worker_<reason>`, as long as it was in flight.

# Logs

An exception of a kept transaction is a log record of severity ERROR with `exception.type`, `exception.message` and
`exception.stacktrace`, bound to its span: event `http.server.request.exception`, or `exception` where a background
task raised it.

With `forward_logs`, records of the application's own log are sent as well, bound to the span that ran.

A worker that died is a log record of severity ERROR, event `paste_agent.worker.lost`, for each request that it took
along, bound to the span of that request: the post-mortem is its body, and `code.stacktrace`, `paste_agent.span`,
`paste_agent.postmortem.id` and `paste_agent.worker.lost.reason` are its attributes.
"""


def default_of(row: settings.Setting) -> str:
    if row.default_text:
        return row.default_text
    if row.default in (None, {}, ()):
        return "–"
    if isinstance(row.default, tuple):
        return f"`{' '.join(map(str, row.default))}`"
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


def pictures(ini: str, trace_id: str) -> None:
    """How the report of a service begins, and one of its traces, as a terminal shows them."""
    from paste_agent.cli import report, trace

    picture("report", f"paste-agent report {os.path.basename(ini)}", [report.page_of(ini)], "Failed transactions")
    picture("trace", f"paste-agent trace {os.path.basename(ini)} {trace_id}", trace.page_of(ini, trace_id, WIDTH))


def picture(name: str, title: str, lines: Iterable[Any], until: str = "") -> None:
    """until: how the first line begins that is left out, with all that follow; '': none is."""
    from rich.console import Console
    from rich.segment import Segment, Segments

    with open("/dev/null", "w") as nowhere:
        console = Console(record=True, width=WIDTH, highlight=False, file=nowhere, force_terminal=True)
        for segments in (shown for line in lines for shown in console.render_lines(elsewhere(line), pad=False)):
            if until and "".join(segment.text for segment in segments).startswith(until):
                break
            console.print(Segments([*segments, Segment.line()]), end="")
        svg = console.export_svg(title=title)
    # rich asks another host for its font; a page of ours asks nobody, and any monospaced font does.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    (DOCS / "images" / f"{name}.svg").write_text(svg, encoding="utf-8")


def screenshots(ini: str) -> None:
    """The pages that docs/walk.md goes through, as a browser shows them."""
    root = DOCS.resolve().parent
    sys.path.insert(0, str(root))
    from tests.browser.driving import Browser, chromium
    from tests.dashboards import own

    # Whose machine it is says nothing.
    places = [[os.path.dirname(os.path.abspath(ini)), "/srv/shop"], [sys.base_prefix, "/usr"]]

    def shot(browser: Browser, name: str, url: str, height: int) -> None:
        browser.open(url)
        browser.run(ELSEWHERE, places)
        with browser.sized(1280, height):
            reduced(DOCS / "images" / f"{name}.png", browser.driver.get_screenshot_as_png())

    def first(browser: Browser, section: str) -> str:
        """Where the first trace of a section leads."""
        url: str = browser.run(FIRST_TRACE, section)
        return url

    with own(Path(ini).resolve().parent, os.path.basename(ini)) as served, chromium() as browser:
        overview = f"{served.url}?range=15m"
        browser.open(overview)
        sales, queries = browser.link("GET /report/sales"), browser.link("Queries")
        failed, lost = first(browser, "What fails"), browser.run(FIRST_POSTMORTEM)
        browser.open(queries)
        repeated = first(browser, "N+1 queries")
        shot(browser, "dashboard", overview, 1360)
        shot(browser, "dashboard-transaction", sales, 1660)
        shot(browser, "dashboard-queries", queries, 590)
        shot(browser, "dashboard-trace", repeated, 960)
        shot(browser, "dashboard-failed", failed, 1120)
        shot(browser, "dashboard-postmortem", lost, 810)


def reduced(path: Path, png: bytes) -> None:
    """A page has few colours: a palette takes half of the bytes."""
    from io import BytesIO

    from PIL import Image

    # Coverage: the colour of one thin line counts as much as that of the paper.
    whole = Image.open(BytesIO(png)).convert("RGB")
    few = whole.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


def elsewhere(line: Any) -> Any:
    """A line that names a file of this checkout, as if it lay in another place: whose machine it is says nothing."""
    from rich.text import Text

    root = str(DOCS.resolve().parent)
    if not isinstance(line, Text) or root not in line.plain:
        return line
    return Text(line.plain.replace(root, "/srv/shop"), style=line.style)


ELSEWHERE = """
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (texts.nextNode())
  for (const [from, to] of arguments[0])
    texts.currentNode.textContent = texts.currentNode.textContent.replaceAll(from, to);
"""
FIRST_TRACE = """
const named = (one) => one.querySelector("h2").textContent === arguments[0];
return [...document.querySelectorAll("section")].find(named).querySelector("a[href*='/trace/']").href;
"""
FIRST_POSTMORTEM = "return document.querySelector('.lost a').href"

PAGES = {"settings.md": settings_page, "metrics.md": metrics_page}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--pictures"]:
        pictures(sys.argv[2], sys.argv[3])
    elif sys.argv[1:2] == ["--screenshots"]:
        screenshots(sys.argv[2])
    else:
        for name, page in PAGES.items():
            (DOCS / name).write_text(page(), encoding="utf-8")
