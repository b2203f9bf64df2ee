"""All transactions as a table, and one of them in full."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from paste_agent.aggregate import PART_DURATION, PART_SPANS, REQUEST_DURATION, TASK_DURATION, Total
from paste_agent.dashboard.charts import histogram, shares
from paste_agent.dashboard.html import Child, Markup, join, tag
from paste_agent.dashboard.pages.common import (
    LATENCY_COLUMNS,
    all_of,
    apdex_cell,
    apdex_chart,
    css_of_part,
    duration_cell,
    error_cell,
    errors_chart,
    label_of_part,
    latency_cells,
    latency_chart,
    more_note,
    parts_legend,
    place_of,
    share_cell,
    spent_chart,
    throughput_chart,
    traces_table,
)
from paste_agent.dashboard.query import BadQuery
from paste_agent.dashboard.view import (
    IDENTITY,
    Column,
    Page,
    View,
    charts,
    empty,
    figures,
    route_name,
    section,
    table,
    trace_link,
    transaction_link,
)
from paste_agent.kept import TraceRow
from paste_agent.store import inside_summary, kept_traces
from paste_agent.store.inside_summary import SHARED, dicts, number
from paste_agent.store.kept_traces import SLOWEST, Wanted
from paste_agent.store.store import SeriesTotal
from paste_agent.store.summary import figures as figures_of
from paste_agent.wording import OWN, duration, one_line, rate_text, share_text

_NS = 1_000_000_000
_ROWS = 100
_TRACES = 10
#: Kept traces of one transaction whose queries are looked at.
_LOOKED_AT = 30
_QUERIES = 10
SORTS = ("time", "name", "requests", "errors", "p50", "p95", "p99", "max", "apdex")


class Row:
    """One transaction: its statuses together."""

    def __init__(self, attributes: Mapping[str, Any]) -> None:
        self.attributes = attributes
        self.totals: list[Total] = []
        self.errors = 0

    @cached_property
    def total(self) -> Total:
        return all_of(self.totals)

    @property
    def name(self) -> str:
        return route_name(self.attributes)

    def order(self, sort: str) -> tuple[Any, ...]:
        """What it is sorted by, the first first."""
        if sort == "name":
            return (self.name,)
        if sort in ("time", "requests"):  # without the percentiles, which take longer
            return (-sum(total.sum_ns if sort == "time" else total.count for total in self.totals), self.name)
        found = figures_of(self.total)
        worst_first = 2.0 if found["apdex"] is None else found["apdex"]
        value = {"errors": -self.errors, "max": -self.total.max_ns, "apdex": worst_first}.get(sort)
        return (value if value is not None else -found[f"{sort}_s"], self.name)


def rows_of(series: Sequence[SeriesTotal], metric: str) -> list[Row]:
    """The transactions of a metric: of requests by method and route, of tasks by name."""
    names = ("http.request.method", "http.route", "paste_agent.task.name", "otel.metric.overflow")
    rows: dict[tuple[Any, ...], Row] = {}
    for found in series:
        if found.metric != metric or not found.total.count:
            continue
        identity = {name: found.attributes[name] for name in names if name in found.attributes}
        row = rows.setdefault(tuple(identity.items()), Row(identity))
        row.totals.append(found.total)
        if "error.type" in found.attributes:
            row.errors += found.total.count
    return list(rows.values())


# -- all of them ---------------------------------------------------------------------------------------------------


def transactions(view: View) -> Page:
    sort = view.query.choice("sort", SORTS, "time")
    wanted = view.query.text("q")
    series = view.totals(REQUEST_DURATION, TASK_DURATION, PART_DURATION, PART_SPANS)
    spent = {(one["method"], one["route"]): one for one in inside_summary.breakdown(series)}
    body: list[Child] = [_search(view, wanted)]
    for title, metric in (("Requests", REQUEST_DURATION), ("Background tasks", TASK_DURATION)):
        rows = rows_of(series, metric)
        shown = [row for row in rows if wanted is None or wanted.lower() in row.name.lower()]
        if shown:
            parts = [name for name in SHARED if any(name in entry["parts"] for entry in spent.values())]
            legend = parts_legend([*parts, OWN]) if parts and metric == REQUEST_DURATION else None
            body.append(section(title, _table(view, title, shown, rows, sort, spent), legend))
            body.append(more_note(_ROWS, len(shown), "transaction"))
    if len(body) == 1:
        cure = "Send the service a request, or choose a longer span of time above."
        if wanted is not None:
            body.append(empty(f"No transaction has {one_line(wanted, 60)!r} in its name.", "Try a part of its route."))
        else:
            body.append(empty("No transactions in this span of time.", cure))
    return Page("Transactions", join(body), "/transactions")


def _search(view: View, wanted: str | None) -> Markup:
    hidden = [
        tag("input", type="hidden", name=name, value=value) for name, value in view.query.fields.items() if name != "q"
    ]
    box = tag("input", name="q", type="search", value=wanted or "")
    return tag(
        "form", hidden, tag("label", "Name has ", box), tag("button", "Filter"),
        action=view.prefix + "/transactions", method="get", class_="filter",
    )  # fmt: skip


def _table(
    view: View, title: str, shown: Sequence[Row], rows: Sequence[Row], sort: str, spent: Mapping[Any, Mapping[str, Any]]
) -> Markup:
    whole_ns = sum(total.sum_ns for row in rows for total in row.totals) or 1
    cells: list[list[Child]] = []
    for row in sorted(shown, key=lambda row: row.order(sort))[:_ROWS]:
        key = (row.attributes.get("http.request.method"), row.attributes.get("http.route"))
        is_task = "paste_agent.task.name" in row.attributes
        cells.append([
            transaction_link(view, row.attributes),
            f"{row.total.count:,}",
            rate_text(row.total.count, view.seconds),
            error_cell(row.errors, row.total.count),
            *latency_cells(row.total),
            apdex_cell(row.total.apdex()),
            share_cell(row.total.sum_ns / whole_ns),
            tag("span", "–", class_="dim") if is_task or key not in spent else _breakdown_bar(spent[key]),
        ])  # fmt: skip
    columns = (
        Column("transaction", "name", numeric=False, css="wide"), Column("count", "requests"), Column("throughput"),
        Column("errors", "errors"), *LATENCY_COLUMNS, Column("Apdex", "apdex"),
        Column("share of time", "time", css="bar-cell"), Column("spent on", numeric=False, css="bar-cell"),
    )  # fmt: skip
    return table(title, columns, cells, sorted_by=sort, link=lambda key: view.again(sort=key))


def _shares_of(entry: Mapping[str, Any]) -> list[tuple[str, float]]:
    whole_s = entry["sum_s"] or 1.0
    parts = [(name, entry["parts"][name]["sum_s"] / whole_s) for name in SHARED if name in entry["parts"]]
    return [*parts, (OWN, entry["own_s"] / whole_s)]


def _breakdown_bar(entry: Mapping[str, Any]) -> Markup:
    parts = _shares_of(entry)
    told = ", ".join(f"{label_of_part(name)} {share_text(share)}" for name, share in parts if share > 0)
    return shares(parts, css_of_part, told)


# -- one of them ---------------------------------------------------------------------------------------------------


def transaction(view: View) -> Page:
    where, metric = _wanted(view)
    series = [found for found in view.totals(metric, where=where) if "otel.metric.overflow" not in found.attributes]
    name = route_name({key: value for key, value in where.items() if value is not None})
    back = tag("a", "All transactions", href=view.link("/transactions"))
    rows = rows_of(series, metric)
    if not rows:
        nothing = empty(
            "Nothing of this transaction in this span of time.", "Choose a longer one above, or see ", back, "."
        )
        return Page(one_line(name, 160), nothing, "/transactions")
    row = rows[0]
    by_type = view.points(metric, where, by="error.type")
    whole = by_type[None]
    body: list[Child] = [
        _figures(view, row),
        charts(
            throughput_chart(view, whole),
            latency_chart(view, whole),
            errors_chart(view, by_type),
            histogram("How long it takes", all_of(found.total for found in series)),
            spent_chart(view, whole, where) if metric == REQUEST_DURATION else None,
            apdex_chart(view, whole) if metric == REQUEST_DURATION else None,
        ),
    ]
    if metric == REQUEST_DURATION:
        body += [_statuses(series), _breakdown(view, where)]
    kept = _kept(view, where)
    body += [_kept_tables(view, kept), _queries(view, kept)]
    return Page(one_line(name, 160), join(body), "/transactions", subtitle=back)


def _wanted(view: View) -> tuple[dict[str, object], str]:
    task = view.query.text("task")
    if task is not None:
        return {"paste_agent.task.name": task}, TASK_DURATION
    where: dict[str, object] = {attribute: view.query.text(field) for field, attribute in IDENTITY.items()}
    if where["http.request.method"] is None:
        raise BadQuery(
            "method: expected the method of a request, such as GET, or `task`, the name of a background task"
        )
    return where, REQUEST_DURATION


def _figures(view: View, row: Row) -> Markup:
    found = figures_of(row.total)
    return figures(
        ("count", f"{row.total.count:,}", ""),
        ("throughput", rate_text(row.total.count, view.seconds), ""),
        ("errors", error_cell(row.errors, row.total.count), ""),
        ("mean", duration(found["sum_s"] / max(1, row.total.count)), ""),
        ("p50", duration(found["p50_s"]), ""),
        ("p95", duration(found["p95_s"]), ""),
        ("p99", duration(found["p99_s"]), ""),
        ("max", duration(found["max_s"]), ""),
        ("Apdex", apdex_cell(found["apdex"]), ""),
    )


def _statuses(series: Sequence[SeriesTotal]) -> Markup:
    groups: dict[tuple[str, str], Total] = {}
    for found in series:
        status = str(found.attributes.get("http.response.status_code", "no answer"))
        error = str(found.attributes.get("error.type", ""))
        groups.setdefault((status, error), Total()).add(found.total)
    count = sum(total.count for total in groups.values()) or 1
    rows: list[list[Child]] = [
        [
            tag("span", one_line(status, 20), class_="bad" if error else None),
            one_line(error, 80) if error and error != status else tag("span", "–", class_="dim"),
            f"{total.count:,}",
            *latency_cells(total),
            share_cell(total.count / count),
        ]
        for (status, error), total in sorted(groups.items(), key=lambda item: -item[1].count)
    ]
    columns = (
        Column("status", numeric=False), Column("error", numeric=False, css="wide"), Column("count"),
        Column("p50"), Column("p95"), Column("p99"), Column("max"), Column("share", css="bar-cell"),
    )  # fmt: skip
    return section("Answers", table("Answers by status", columns, rows))


def _breakdown(view: View, where: Mapping[str, object]) -> Child:
    series = view.totals(REQUEST_DURATION, PART_DURATION, PART_SPANS, where=where)
    found = inside_summary.breakdown(series)
    if not found:
        return section("Breakdown", empty(
            "Nothing is known of what its time was spent on.",
            "Queries, calls and templates of the libraries that the agent knows appear here by themselves;"
            " `span` of the API names anything else.",
        ))  # fmt: skip
    entry = found[0]
    count = entry["count"] or 1
    rows: list[list[Child]] = []
    for name, share in _shares_of(entry):
        part = entry["parts"].get(name)
        rows.append([
            join((tag("i", class_=f"key {css_of_part(name)}", aria_hidden="true"), label_of_part(name))),
            duration_cell((entry["own_s"] if part is None else part["sum_s"]) / count),
            tag("span", "–", class_="dim") if part is None else f"{part['spans'] / count:.3g}",
            share_cell(share, css_of_part(name)),
        ])  # fmt: skip
    for name, label in (("gc", "pauses of the garbage collector"), ("cpu", "CPU time")):
        part = entry["parts"].get(name)
        if part is not None:
            rows.append(
                [label, duration_cell(part["sum_s"] / count), "", tag("span", "across the others", class_="dim")]
            )
    columns = (
        Column("part", numeric=False), Column("mean of a request"), Column("spans of a request"),
        Column("share of time", css="bar-cell"),
    )  # fmt: skip
    return section("Breakdown", table("What the time was spent on", columns, rows))


def _kept(view: View, where: Mapping[str, object]) -> tuple[list[TraceRow], list[TraceRow]]:
    """Its slowest and its newest failed kept transactions."""
    start_s, end_s = view.window.start_s, view.window.end_s
    slowest = kept_traces.find(view.store, start_s, end_s, Wanted(where=where), order=SLOWEST, limit=_LOOKED_AT)
    failed = kept_traces.find(view.store, start_s, end_s, Wanted(where=where, failed=True), limit=_TRACES)
    return slowest, failed


def _kept_tables(view: View, kept: tuple[Sequence[TraceRow], Sequence[TraceRow]]) -> Child:
    slowest, failed = kept
    if not slowest and not failed:
        return section("Traces", empty(
            "None of its traces was kept in this span of time.",
            "Slow and failed transactions are kept, and some at random: see `random_traces_per_min`.",
        ))  # fmt: skip
    tables: list[Child] = [section("Slowest traces", traces_table(view, "Slowest traces", slowest[:_TRACES]))]
    if failed:
        tables.append(section("Failed traces", traces_table(view, "Failed traces", failed)))
    return tables


def _queries(view: View, kept: tuple[Sequence[TraceRow], Sequence[TraceRow]]) -> Child:
    """Statements of the kept transactions, those that took most time first."""
    rows = {(row.trace_id, row.span_id): row for row in (*kept[0], *kept[1])}
    found: dict[tuple[str, str], list[Any]] = {}
    for row in rows.values():
        for span in dicts((row.detail or {}).get("spans")):
            attributes = span.get("attributes")
            attributes = attributes if isinstance(attributes, dict) else {}
            if span.get("category") not in ("database", "cache"):
                continue
            text = str(attributes.get("db.query.text") or span.get("name") or "query")
            code = inside_summary.code_of({
                "file": attributes.get("code.file.path"), "line": attributes.get("code.line.number"),
                "function": attributes.get("code.function.name"),
            })  # fmt: skip
            known = found.setdefault((text, ""), [0, 0, set(), code, row.trace_id.hex(), 0])
            took = max(0, number(span.get("duration")))
            known[0] += 1
            known[1] += took
            known[2].add(row.span_id)
            known[3] = known[3] or code
            if took > known[5]:
                known[4], known[5] = row.trace_id.hex(), took
    if not found:
        return None
    cells: list[list[Child]] = [
        [
            join(
                (tag("code", one_line(text, 300)), tag("small", place_of(code), class_="dim below") if code else None)
            ),
            f"{count / len(transactions_):.3g}",
            duration(took / count / _NS),
            duration(longest / _NS),
            duration(took / _NS),
            trace_link(view, trace_id),
        ]
        for (text, _), (count, took, transactions_, code, trace_id, longest) in sorted(
            found.items(), key=lambda item: -item[1][1]
        )[:_QUERIES]
    ]
    columns = (
        Column("query", numeric=False, css="wide"), Column("a request"), Column("mean"), Column("max"), Column("total"),
        Column("slowest in", numeric=False),
    )  # fmt: skip
    return section(
        "Queries",
        table("Queries of its kept traces", columns, cells),
        note="Of its slowest and its failed kept traces.",
    )
