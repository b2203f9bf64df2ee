"""What `paste-agent report` prints for people."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from paste_agent.cli.style import count_of_errors, duration, numbers, one_line, printable, table_of
from paste_agent.cli.tables import breakdown_table, inside_sections
from paste_agent.postmortem import short_id
from paste_agent.stacks import application_frame, parse
from paste_agent.store.lookup import own_digits
from paste_agent.store.store import SeriesTotal
from paste_agent.store.summary import by_route, figures, overall
from paste_agent.wording import apdex_text, rate_text

#: Workers that were lost, and deployments, listed.
_LOST = _DEPLOYED = 5


def page(summary: dict[str, Any], series: Sequence[SeriesTotal], seconds: float, limit: int, wide: bool) -> Group:
    table = breakdown_table(summary["breakdown"], limit, wide)
    breakdown = [] if table is None else [table]
    if not summary["requests"]:
        nothing = Panel(
            Text("No requests in this span of time. Send the service one, and wait a second."),
            title=Text(printable(summary["service"])),
            title_align="left",
            box=box.ROUNDED,
        )
        return Group(nothing, *breakdown, *_rest(summary, wide))
    parts: list[Any] = [head(summary, series, seconds), _routes(series, limit, wide), *breakdown]
    slowest = sorted(summary["traces"], key=lambda trace: -trace["duration_s"])[:5]
    parts.append(_traces("Slowest transactions", slowest))
    failed = [trace for trace in summary["traces"] if trace["failed"]][:5]
    if failed:
        parts.append(_traces("Failed transactions", failed))
    if any(trace["spans"] for trace in (*slowest, *failed)):
        parts.append(Text("`paste-agent trace` and the beginning of one of these shows what is inside.\n", style="dim"))
    parts.extend(_rest(summary, wide))
    if summary["dropped"]:
        parts.append(Text(f"{summary['dropped']} records were lost; see docs/operations.md", style="bold red"))
    return Group(*parts)


def _rest(summary: dict[str, Any], wide: bool) -> list[Any]:
    """What is shown whether or not there were requests."""
    parts: list[Any] = [*inside_sections(summary, wide)]
    if summary["background"]:
        parts.append(_background(summary["background"]))
    if summary["postmortems"]:
        parts.append(_postmortems(summary["postmortems"]))
    if summary["deployments"]:
        parts.append(_deployments(summary["deployments"]))
    if summary["workers"]:
        parts.append(_workers(summary["workers"]))
    return parts


def head(summary: dict[str, Any], series: Sequence[SeriesTotal], seconds: float) -> Panel:
    """The figures of all requests, of which there must be one."""
    share = summary["errors"] / summary["requests"]
    found = figures(overall(series))
    grid = Table.grid(padding=(0, 3))
    grid.add_row(
        _figure("requests", f"{summary['requests']:,}"),
        _figure("errors", f"{summary['errors']:,} ({share:.1%})", "red" if summary["errors"] else "green"),
        _figure("throughput", rate_text(summary["requests"], seconds)),
        _figure("p50", duration(found["p50_s"])),
        _figure("p95", duration(found["p95_s"])),
        _figure("p99", duration(found["p99_s"])),
        _figure("Apdex", apdex_text(found["apdex"]), _apdex_style(found["apdex"])),
    )
    window = f"  {summary['from'][:19]}Z – {summary['to'][:19]}Z"
    title = Text.assemble((printable(summary["service"]), "bold"), window)
    return Panel(grid, title=title, title_align="left", box=box.ROUNDED, expand=False)


def _figure(label: str, value: str, style: str = "") -> Text:
    return Text.assemble((label, "dim"), "\n", (value, f"bold {style}"))


def _routes(series: Sequence[SeriesTotal], limit: int, wide: bool) -> Table:
    """One row a method and route, its statuses together; the ones that took most time first."""
    totals = by_route(series)
    whole_ns = sum(one.total.sum_ns for one in totals.values()) or 1
    table = table_of("Routes, by time spent")
    table.add_column("route", overflow="fold", ratio=1)
    numbers(table, "requests", "errors", "p50", "p95", "p99", *(["max"] if wide else []), "Apdex", "time")
    ranked = sorted(totals.items(), key=lambda item: -item[1].total.sum_ns)
    for name, (total, failed) in ranked[:limit]:
        found_figures = figures(total)
        table.add_row(
            Text(printable(name)),
            f"{total.count:,}",
            count_of_errors(failed),
            duration(found_figures["p50_s"]),
            duration(found_figures["p95_s"]),
            duration(found_figures["p99_s"]),
            *([duration(found_figures["max_s"])] if wide else []),
            Text(apdex_text(found_figures["apdex"]), style=_apdex_style(found_figures["apdex"])),
            f"{total.sum_ns / whole_ns:.0%}",
        )
    if len(ranked) > limit:
        table.caption = f"{len(ranked) - limit} more; --limit {len(ranked)} lists all"
    return table


def _traces(title: str, traces: Sequence[dict[str, Any]]) -> Table:
    table = table_of(title)
    table.add_column("when (UTC)", no_wrap=True)
    table.add_column("took", justify="right", no_wrap=True)
    table.add_column("status", justify="right", no_wrap=True)
    table.add_column("transaction", overflow="fold", ratio=1)
    table.add_column("trace", no_wrap=True, style="dim")
    for trace in traces:
        what = Text(printable(trace["name"]))
        if trace["path"]:
            what.append(f"  {printable(trace['path'])}", style="dim")
        if trace["error_type"] and not str(trace["error_type"]).isdecimal():
            message = f": {one_line(trace['message'])}" if trace["message"] else ""
            what.append(f"\n{printable(trace['error_type'])}{message}", style="red")
        table.add_row(
            trace["start"][11:19],
            duration(trace["duration_s"]),
            Text(str(trace["status"] or "–"), style="red" if trace["failed"] else ""),
            what,
            own_digits(trace["trace_id"])[:16],
        )
    return table


def _background(tasks: Sequence[dict[str, Any]]) -> Table:
    table = table_of("Background tasks")
    table.add_column("task", overflow="fold", ratio=1)
    numbers(table, "runs", "errors", "p50", "max")
    for task in tasks:
        failed = task["count"] if task["error_type"] else 0
        table.add_row(
            Text(printable(task["name"])),
            f"{task['count']:,}",
            count_of_errors(failed),
            duration(task["p50_s"]),
            duration(task["max_s"]),
        )
    return table


def _postmortems(postmortems: Sequence[dict[str, Any]]) -> Table:
    """The newest few workers that died, each with the oldest request that it took along."""
    table = table_of("Workers lost")
    table.add_column("when (UTC)", no_wrap=True)
    table.add_column("reason", no_wrap=True, style="red")
    table.add_column("in flight", overflow="fold", ratio=1)
    table.add_column("post-mortem", no_wrap=True, style="dim")
    for found in postmortems[:_LOST]:
        what = Text("nothing", style="dim")
        for lost in found["requests"][:1]:
            what = Text(printable(f"{lost['method'] or 'task'} {lost['path']}  {duration(lost['age_s'])}"))
            frame = application_frame(parse(lost["stack"]), found.get("own_files"))
            where = "" if frame is None else f"{os.path.basename(frame.file)}:{frame.line} in {frame.function}"
            for more in (lost["span"], where):
                if more:
                    what.append(f"\n{printable(more)}", style="dim")
        table.add_row(found["at"][11:19], found["reason"].replace("_", " "), what, short_id(found["id"]))
    if len(postmortems) > _LOST:
        table.caption = f"{len(postmortems) - _LOST} more; --json lists them"
    return table


def _deployments(marked: Sequence[dict[str, Any]]) -> Table:
    """The newest few that were marked."""
    table = table_of("Deployments")
    table.add_column("when (UTC)", no_wrap=True)
    table.add_column("version", overflow="fold")
    table.add_column("description", overflow="fold", ratio=1)
    table.add_column("by", overflow="fold", style="dim")
    for one in reversed(marked[-_DEPLOYED:]):
        told = (Text(printable(one[name], 500)) for name in ("version", "description", "user"))
        table.add_row(one["at"][:19].replace("T", " "), *told)
    if len(marked) > _DEPLOYED:
        table.caption = f"{len(marked) - _DEPLOYED} earlier; --json lists them"
    return table


def _workers(workers: Sequence[dict[str, Any]]) -> Table:
    table = table_of("Workers")
    numbers(table, "worker", "pid", "requests", "in flight", "busy", "memory", "since (UTC)")
    for worker in workers:
        table.add_row(
            str(worker["number"]),
            str(worker["pid"]),
            f"{worker['requests']:,}",
            str(worker["in_flight"]),
            f"{worker['busy']:.0%}",
            f"{worker['memory_bytes'] / 1048576:.1f} MiB",
            worker["since"][:19].replace("T", " "),
        )
    return table


def _apdex_style(apdex: float | None) -> str:
    return "dim" if apdex is None else "green" if apdex >= 0.85 else "yellow" if apdex >= 0.7 else "red"
