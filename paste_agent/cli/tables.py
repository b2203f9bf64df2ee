"""Sections of a report about what is inside of transactions. Each is None where there is nothing to tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from paste_agent.cli.style import (
    COLOURS,
    LABELS,
    OWN,
    SharesBar,
    count_of_errors,
    duration,
    numbers,
    one_line,
    place_text,
    printable,
    share_text,
    table_of,
)
from paste_agent.store.inside_summary import SHARED
from paste_agent.store.lookup import own_digits
from paste_agent.store.summary import trace_name
from paste_agent.wording import host_text

#: Rows of each section; --json has all.
_ROWS = 10
_BAR = 16
_KINDS = {"slow": "slow", "repeated": "N+1"}


def inside_sections(summary: Mapping[str, Any], wide: bool) -> list[Table]:
    """All of them but the breakdown, in the order in which they are printed."""
    tables = [
        _errors(summary["errors_seen"], summary["to"], wide),
        _queries(summary["queries"], wide),
        _findings(summary["findings"]),
        _calls(summary["calls"], wide),
        _layers(summary["layers"], wide),
        _custom(summary["custom"]),
    ]
    return [table for table in tables if table is not None]


def shares_of(entry: Mapping[str, Any]) -> list[tuple[str, float]]:
    """What took the time of an entry of a breakdown, by share, what took most of it first; own code last."""
    whole_s = entry["sum_s"] or 1.0
    parts = [(name, entry["parts"][name]["sum_s"] / whole_s) for name in SHARED if name in entry["parts"]]
    return [*sorted(parts, key=lambda part: -part[1]), (OWN, entry["own_s"] / whole_s)]


def shares_text(shares: Sequence[tuple[str, float]]) -> Text:
    """Such as `database 80%  templates 5%  own code 15%`."""
    text = Text()
    for name, share in shares:
        if share > 0:
            text.append(f"{'  ' if text else ''}{LABELS.get(name, name)} ", style="dim")
            text.append(share_text(share), style=COLOURS.get(name, ""))
    return text


def breakdown_table(entries: Sequence[Mapping[str, Any]], limit: int, wide: bool) -> Table | None:
    """One row a route: what its time was spent on, with queries and pauses of each request where there is room."""
    if not entries:
        return None
    table = table_of("Breakdown, what the time was spent on")
    table.add_column("route", overflow="fold", ratio=1)
    if wide:
        table.add_column("", overflow="fold")
        numbers(table, "queries", "GC")
    numbers(table, "mean")
    table.add_column("")
    for entry in entries[:limit]:
        count = entry["count"] or 1
        shares = shares_of(entry)
        queries = entry["parts"].get("database", {}).get("spans", 0) / count
        pauses_s = entry["parts"].get("gc", {}).get("sum_s", 0.0) / count
        name = Text(printable(_route_of(entry)))
        told = shares_text(shares)
        table.add_row(
            *((name, told) if wide else (Text("\n").join((name, told)),)),
            *((f"{queries:.3g}", duration(pauses_s) if pauses_s else Text("–", style="dim")) if wide else ()),
            duration(entry["sum_s"] / count),
            SharesBar(shares, _BAR),
        )
    if len(entries) > limit:
        table.caption = f"{len(entries) - limit} more; --limit {len(entries)} lists all"
    return table


def _route_of(entry: Mapping[str, Any]) -> str:
    if entry["method"] is None and entry["route"] is None:
        return "(all background tasks)"
    name = trace_name({"http.request.method": entry["method"], "http.route": entry["route"]})
    return name if entry["route"] else f"{name} (no route)"


def _queries(entries: Sequence[Mapping[str, Any]], wide: bool) -> Table | None:
    if not entries:
        return None
    table = table_of("Queries, by time spent")
    table.add_column("query", overflow="fold", ratio=1)
    if wide:
        table.add_column("database", overflow="fold")
    numbers(table, "count", "errors", *(["p50"] if wide else []), "p95", *(["max"] if wide else []), "total", "time")
    for entry in entries[:_ROWS]:
        where = " ".join(word for word in (entry["system"], entry["namespace"]) if word)
        name = Text(one_line(entry["name"]))
        if not wide and entry["system"] and not entry["collection"]:
            name.append(f"  {one_line(entry['system'], 20)}", style="dim")
        table.add_row(
            name,
            *([Text(one_line(where, 40), style="dim")] if wide else []),
            f"{entry['count']:,}",
            count_of_errors(entry["errors"]),
            *([duration(entry["p50_s"])] if wide else []),
            duration(entry["p95_s"]),
            *([duration(entry["max_s"])] if wide else []),
            duration(entry["sum_s"]),
            share_text(entry["share"]),
        )
    return _with_rest(table, entries)


def _findings(entries: Sequence[Mapping[str, Any]]) -> Table | None:
    if not entries:
        return None
    table = table_of("Queries worth a look, from kept traces")
    table.add_column("what", no_wrap=True, style="yellow")
    numbers(table, "a request", "took")
    table.add_column("where", overflow="fold", ratio=1)
    table.add_column("trace", no_wrap=True, style="dim")
    for entry in entries[:_ROWS]:
        where = Text(one_line(entry["text"], 140))
        if entry["code"] is not None:
            where.append(f"\n{place_text(entry['code'])}", style="cyan")
        if entry["route"] or entry["method"]:
            where.append(f"\n{printable(_route_of(entry))}", style="dim")
        table.add_row(
            _KINDS.get(entry["kind"], printable(entry["kind"], 8)),
            f"×{entry['per_request']:,}",
            duration(entry["duration_s"]),
            where,
            own_digits(entry["trace_id"])[:16],
        )
    return _with_rest(table, entries)


def _calls(entries: Sequence[Mapping[str, Any]], wide: bool) -> Table | None:
    if not entries:
        return None
    table = table_of("Calls of other services")
    table.add_column("service", overflow="fold", ratio=1)
    table.add_column("method", no_wrap=True)
    numbers(table, "count", "errors", "p50", "p95", *(["max", "total", "time"] if wide else []))
    for entry in entries[:_ROWS]:
        name = "(all others)" if entry["overflow"] else host_text(entry["address"] or "?", entry["port"])
        more = [duration(entry["max_s"]), duration(entry["sum_s"]), share_text(entry["share"])] if wide else []
        table.add_row(
            Text(printable(name)),
            Text(printable(entry["method"] or "", 16)),
            f"{entry['count']:,}",
            count_of_errors(entry["errors"]),
            duration(entry["p50_s"]),
            duration(entry["p95_s"]),
            *more,
        )
    return _with_rest(table, entries)


def _layers(entries: Sequence[Mapping[str, Any]], wide: bool) -> Table | None:
    if not entries:
        return None
    table = table_of("Layers of the pipeline, each by itself")
    table.add_column("layer", overflow="fold", ratio=1)
    numbers(table, *(["calls"] if wide else []), "p50", "p95", "total", "time", "load")
    unknown = Text("–", style="dim")
    for entry in entries[:_ROWS]:
        served = bool(entry["count"])
        table.add_row(
            Text(printable(entry["name"])),
            *([f"{entry['count']:,}" if served else unknown] if wide else []),
            duration(entry["p50_s"]) if served else unknown,
            duration(entry["p95_s"]) if served else unknown,
            duration(entry["sum_s"]) if served else unknown,
            share_text(entry["share"]) if served else unknown,
            unknown if entry["load_s"] is None else duration(entry["load_s"]),
        )
    return _with_rest(table, entries)


def _custom(entries: Sequence[Mapping[str, Any]]) -> Table | None:
    if not entries:
        return None
    table = table_of("Measured by the application")
    table.add_column("name", overflow="fold", ratio=1)
    numbers(table, "count", "value", "p50", "p95", "total")
    nothing = ""
    for entry in entries[:_ROWS]:
        timing = entry["kind"] == "timing"
        table.add_row(
            Text(printable(entry["name"])),
            f"{entry['count']:,}",
            nothing if timing else f"{entry['value']:,}",
            *((duration(entry[key]) if timing else nothing) for key in ("p50_s", "p95_s", "sum_s")),
        )
    return _with_rest(table, entries)


def _errors(entries: Sequence[Mapping[str, Any]], until: str, wide: bool) -> Table | None:
    if not entries:
        return None
    table = table_of("Errors, by type and place")
    numbers(table, "count")
    if wide:
        table.add_column("first (UTC)", no_wrap=True)
    table.add_column("last (UTC)" if wide else "last", no_wrap=True)
    table.add_column("error", overflow="fold", ratio=1)
    table.add_column("trace", no_wrap=True, style="dim")
    for entry in entries[:_ROWS]:
        kind = printable(entry["type"])
        what = Text(f"status {kind}" if kind.isdecimal() else kind, style="dim" if entry["expected"] else "red")
        if entry["last_message"]:
            what.append(f": {one_line(entry['last_message'])}")
        if entry["expected"]:
            what.append("  expected", style="green")
        where = "  ".join(printable(word) for word in (entry["place"], entry["route"]) if word)
        if where:
            what.append(f"\n{where}", style="dim")
        table.add_row(
            f"{entry['count']:,}",
            *([_when(entry["first_seen"], until)] if wide else []),
            _when(entry["last_seen"], until),
            what,
            own_digits(entry["last_trace_id"] or "")[:16],
        )
    return _with_rest(table, entries)


def _when(time: str | None, until: str) -> str:
    """The time of day; with the day where that is not the last one of the report."""
    if time is None:
        return "–"
    return time[11:19] if time[:10] == until[:10] else time[5:16].replace("T", " ")


def _with_rest(table: Table, entries: Sequence[object]) -> Table:
    if len(entries) > _ROWS:
        table.caption = f"{len(entries) - _ROWS} more; --json lists them"
    return table
