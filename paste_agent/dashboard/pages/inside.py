"""What is inside of transactions, over all of them: errors, queries, calls of other services, layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from paste_agent.aggregate import (
    CALL_DURATION,
    DATABASE_DURATION,
    ERRORS,
    LAYER_DURATION,
    LOAD_DURATION,
    REQUEST_DURATION,
)
from paste_agent.dashboard.charts import Line, line_chart, stacked_chart
from paste_agent.dashboard.html import Child, Markup, join, tag
from paste_agent.dashboard.pages.common import (
    all_of,
    busy_seconds,
    duration_cell,
    error_cell,
    errors_chart,
    latency_chart,
    more_note,
    number_form,
    place_of,
    share_cell,
    throughput_chart,
)
from paste_agent.dashboard.view import (
    Column,
    Page,
    View,
    charts,
    empty,
    section,
    table,
    trace_link,
    transaction_link,
)
from paste_agent.store import inside_summary
from paste_agent.wording import duration, host_text, one_line, rate_text

_ROWS = 100
_LAYERS = 5
_SORTS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "time": lambda one: -one["sum_s"],
    "count": lambda one: -one["count"],
    "errors": lambda one: -one.get("errors", 0),
    "p50": lambda one: -one["p50_s"],
    "p95": lambda one: -one["p95_s"],
    "max": lambda one: -one["max_s"],
    "name": lambda one: str(one.get("name") or one.get("address") or ""),
}

# -- errors --------------------------------------------------------------------------------------------------------


def errors(view: View) -> Page:
    series = view.totals(ERRORS, REQUEST_DURATION)
    found = inside_summary.errors(view.store, series, view.window.start_s, view.window.end_s)
    if not found:
        nothing = empty("No error was seen in this span of time.", "Choose a longer one above to look further back.")
        return Page("Errors", nothing, "/errors")
    by_type = view.points(ERRORS, by="error.type")
    body: list[Child] = [
        charts(errors_chart(view, view.points(REQUEST_DURATION, by="error.type")), _seen(view, by_type))
    ]
    for title, expected in (("Errors", False), ("Expected errors", True)):
        chosen = [one for one in found if bool(one["expected"]) is expected]
        if chosen:
            body.append(
                section(title, _errors_table(view, title, chosen[:_ROWS]), more_note(_ROWS, len(chosen), "kind"))
            )
    return Page("Errors", join(body), "/errors")


def _seen(view: View, by_type: Mapping[str | None, Sequence[Any]]) -> Child:
    if not all_of(by_type[None]).count:
        return None
    values = [float(total.count) for total in by_type[None]]
    return line_chart(
        "Errors seen, handled ones too", view.window, [Line("errors", values, "e0")], number_form, marks=view.marks
    )


def _errors_table(view: View, title: str, found: Sequence[Mapping[str, Any]]) -> Markup:
    rows: list[list[Child]] = []
    for one in found:
        kind = one_line(one["type"], 120)
        what: list[Child] = [
            tag("span", f"status {kind}" if kind.isdecimal() else kind, class_="good" if one["expected"] else "bad")
        ]
        if one["last_message"]:
            what.append(tag("small", one_line(one["last_message"], 300), class_="below"))
        if one["place"]:
            what.append(tag("small", one_line(one["place"], 120), class_="dim below mono"))
        rows.append([
            join(what), one_line(one["route"] or "–", 80), f"{one['count']:,}", _when(one["first_seen"]),
            _when(one["last_seen"]),
            trace_link(view, one["last_trace_id"]) if one["last_trace_id"] else tag("span", "–", class_="dim"),
        ])  # fmt: skip
    columns = (
        Column("error", numeric=False, css="wide"), Column("route", numeric=False), Column("count"),
        Column("first seen", numeric=False), Column("last seen", numeric=False), Column("newest trace", numeric=False),
    )  # fmt: skip
    return table(title, columns, rows)


def _when(text: str | None) -> Child:
    if text is None:
        return tag("span", "–", class_="dim")
    return tag("time", text[5:16].replace("T", " "), datetime=text, data_form="day-clock")


# -- queries -------------------------------------------------------------------------------------------------------


def queries(view: View) -> Page:
    sort = view.query.choice("sort", tuple(_SORTS), "time")
    found = inside_summary.queries(view.totals(DATABASE_DURATION))
    worth = inside_summary.findings(view.store, view.window.start_s, view.window.end_s)
    if not found and not worth:
        nothing = empty(
            "No query was seen in this span of time.",
            "Those of the databases and caches that the agent knows appear here by themselves.",
        )
        return Page("Queries", nothing, "/queries")
    over_time = view.points(DATABASE_DURATION, by="db.system.name")
    whole = over_time[None]
    systems = [
        Line(one_line(name or "other", 24), busy_seconds(view, totals), f"c{place % 6}")
        for place, (name, totals) in enumerate(_ranked(over_time))
    ]
    body: list[Child] = [
        charts(
            throughput_chart(view, whole, "Queries", "queries"),
            latency_chart(view, whole, "Time of a query"),
            stacked_chart("Time spent, s a second", view.window, systems, number_form, marks=view.marks),
        )
    ]
    for kind, title, note in (
        ("repeated", "N+1 queries", "The same statement, again and again in one transaction: fetch them all with one."),
        ("slow", "Slow queries", None),
    ):
        chosen = [one for one in worth if one["kind"] == kind]
        if chosen:
            body.append(section(title, _findings_table(view, title, chosen[:_ROWS]), note=note))
    body.append(section("All queries", _queries_table(view, found, sort), more_note(_ROWS, len(found), "query kind")))
    return Page("Queries", join(body), "/queries")


def _ranked(over_time: Mapping[str | None, Sequence[Any]]) -> list[tuple[str, Sequence[Any]]]:
    named = [(name, totals) for name, totals in over_time.items() if name is not None and all_of(totals).count]
    return sorted(named, key=lambda one: -all_of(one[1]).sum_ns)[:6]


def _findings_table(view: View, title: str, found: Sequence[Mapping[str, Any]]) -> Markup:
    rows: list[list[Child]] = []
    for one in found:
        what: list[Child] = [tag("code", one_line(one["text"], 400))]
        if one["code"] is not None:
            what.append(tag("small", one_line(place_of(one["code"]), 300), class_="below mono"))
        attributes = {"http.request.method": one["method"], "http.route": one["route"]}
        attributes = {name: value for name, value in attributes.items() if value is not None}
        rows.append([
            join(what), transaction_link(view, attributes) if attributes else "background task",
            f"{one['per_request']:,}", f"{one['transactions']:,}", duration(one["duration_s"]),
            trace_link(view, one["trace_id"]),
        ])  # fmt: skip
    columns = (
        Column("statement", numeric=False, css="wide"), Column("in", numeric=False), Column("a request, most"),
        Column("kept traces"), Column("took, most"), Column("trace", numeric=False),
    )  # fmt: skip
    return table(title, columns, rows)


def _queries_table(view: View, found: Sequence[Mapping[str, Any]], sort: str) -> Markup:
    rows: list[list[Child]] = []
    for one in sorted(found, key=_SORTS[sort])[:_ROWS]:
        where = " ".join(str(word) for word in (one["system"], one["namespace"]) if word)
        rows.append([
            join((
                tag("code", one_line(one["name"], 200)),
                tag("small", one_line(where, 80), class_="dim below") if where else None,
            )),
            f"{one['count']:,}", rate_text(one["count"], view.seconds), error_cell(one["errors"], one["count"]),
            duration_cell(one["p50_s"]), duration_cell(one["p95_s"]), duration_cell(one["max_s"]),
            share_cell(one["share"]),
        ])  # fmt: skip
    return table("All queries", _columns("query"), rows, sorted_by=sort, link=lambda key: view.again(sort=key))


def _columns(name: str) -> tuple[Column, ...]:
    return (
        Column(name, "name", numeric=False, css="wide"), Column("count", "count"), Column("rate"),
        Column("errors", "errors"), Column("p50", "p50"), Column("p95", "p95"), Column("max", "max"),
        Column("share of time", "time", css="bar-cell"),
    )  # fmt: skip


# -- calls ---------------------------------------------------------------------------------------------------------


def calls(view: View) -> Page:
    sort = view.query.choice("sort", tuple(_SORTS), "time")
    found = inside_summary.calls(view.totals(CALL_DURATION))
    if not found:
        nothing = empty(
            "No call of another service was seen in this span of time.",
            "Those of http.client, urllib3, requests and httpx appear here by themselves.",
        )
        return Page("Calls to other services", nothing, "/calls")
    by_type = view.points(CALL_DURATION, by="error.type")
    rows: list[list[Child]] = []
    for one in sorted(found, key=_SORTS[sort])[:_ROWS]:
        host = host_text(one["address"] or "?", one["port"])
        name = "(all others)" if one["overflow"] else f"{one['method'] or ''} {host}".strip()
        rows.append([
            one_line(name, 160), f"{one['count']:,}", rate_text(one["count"], view.seconds),
            error_cell(one["errors"], one["count"]), duration_cell(one["p50_s"]), duration_cell(one["p95_s"]),
            duration_cell(one["max_s"]), share_cell(one["share"]),
        ])  # fmt: skip
    body = (
        charts(
            throughput_chart(view, by_type[None], "Calls", "calls"),
            latency_chart(view, by_type[None], "Time of a call"),
            errors_chart(view, by_type),
        ),
        section("Services", table(
                    "Services", _columns("service"), rows, sorted_by=sort, link=lambda key: view.again(sort=key)),
                more_note(_ROWS, len(found), "service")),
    )  # fmt: skip
    return Page("Calls to other services", join(body), "/calls")


# -- layers --------------------------------------------------------------------------------------------------------


def layers(view: View) -> Page:
    found = inside_summary.layers(view.totals(LAYER_DURATION, LOAD_DURATION), view.store.totals(LOAD_DURATION))
    if not found:
        nothing = empty(
            "No layer of the pipeline was seen in this span of time.",
            "Filters and applications that stand to the right of the agent in the ini's pipeline appear here;"
            " `layers = false` switches it off.",
        )
        return Page("Layers of the pipeline", nothing, "/layers")
    over_time = view.points(LAYER_DURATION, by="paste.layer")
    lines = [
        Line(one_line(name, 24), busy_seconds(view, totals), f"c{place}")
        for place, (name, totals) in enumerate(_ranked(over_time)[:_LAYERS])
    ]
    rows: list[list[Child]] = []
    for one in found[:_ROWS]:
        unknown = tag("span", "–", class_="dim")
        load: Child = duration(one["load_s"]) if one["load_s"] is not None else unknown
        served = bool(one["count"])
        rows.append([
            one_line(one["name"], 120), f"{one['count']:,}" if served else unknown,
            *(duration_cell(one[name], one["count"]) for name in ("p50_s", "p95_s", "max_s")),
            share_cell(one["share"]) if served else unknown, load,
        ])  # fmt: skip
    columns = (
        Column("layer", numeric=False, css="wide"), Column("calls"), Column("p50"), Column("p95"), Column("max"),
        Column("share of time", css="bar-cell"), Column("time to load"),
    )  # fmt: skip
    body = (
        charts(stacked_chart("Time by layer, s a second", view.window, lines, number_form, marks=view.marks))
        if lines
        else None,
        section("Layers, each by itself", table("Layers", columns, rows),
                note="What each takes without those below it; beside filters also the applications themselves. The time"
                " of an application that stands directly below the agent is that of its transactions."),
    )  # fmt: skip
    return Page("Layers of the pipeline", join(body), "/layers")
