"""Overview: is it well now, what is slow, and what fails."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from paste_agent.aggregate import ERRORS, QUEUE_DURATION, REQUEST_DURATION, Total
from paste_agent.dashboard.charts import Line, line_chart, spark
from paste_agent.dashboard.html import Child, Markup, join, tag
from paste_agent.dashboard.pages.common import (
    all_of,
    apdex_cell,
    apdex_chart,
    busy_seconds,
    duration_cell,
    error_cell,
    errors_chart,
    latency_chart,
    number_form,
    percentiles,
    share_cell,
    spent_chart,
    throughput_chart,
)
from paste_agent.dashboard.view import (
    Column,
    Page,
    View,
    charts,
    empty,
    figures,
    section,
    table,
    time_tag,
    trace_link,
    transaction_link,
)
from paste_agent.kept import TraceRow
from paste_agent.recorder.layout import W_CONCURRENCY
from paste_agent.store import history, kept_traces, lookup
from paste_agent.store.kept_traces import Wanted
from paste_agent.store.store import RUNNING, PostmortemRow, RecorderRow, SeriesTotal
from paste_agent.store.summary import figures as figures_of
from paste_agent.store.summary import overall
from paste_agent.wording import apdex_text, duration, many, one_line, rate_text, share_text

#: What "now" is in "is it well now". s
_NOW_S = 300
_ROUTES, _ERRORS, _LOST = 8, 6, 3
#: Kept transactions that the newest of an error is looked for in.
_LOOKED_AT = 100
#: Points of a line of the size of a word.
_SPARK = 30
_NS = 1_000_000_000
_OVERFLOW = "otel.metric.overflow"
_NO_ERROR = object()
#: From these shares on something is worth a look, or is wrong.
_SOME_ERRORS, _MANY_ERRORS, _BUSY = 0.01, 0.05, 0.9


class State(NamedTuple):
    """How the service is."""

    css: str  #: ok, warn, bad, idle
    word: str
    reasons: Sequence[str]


def overview(view: View) -> Page:
    series = view.totals(REQUEST_DURATION)
    workers = [row for row in view.store.recorders() if row.state == RUNNING and row.serving]
    lost = view.store.postmortems(view.span.start_s, view.span.end_s + 1, 100)
    body: list[Child] = [_banner(view, workers)] if view.span.is_live else []
    if not series:
        body.append(_nothing(view))
        return Page("Overview", join([*body, _lost(view, lost)]), "/")
    by_type = view.points(REQUEST_DURATION, by="error.type")
    whole = by_type[None]
    body.append(_figures(view, all_of(whole), _failed(series), workers))
    body.append(
        charts(
            throughput_chart(view, whole),
            latency_chart(view, whole),
            errors_chart(view, by_type),
            _saturation(view, whole, workers),
            spent_chart(view, whole),
            _queue(view) or apdex_chart(view, whole),
        )
    )
    body.append(_routes(view, series))
    body.append(_errors(view, series))
    body.append(_lost(view, lost))
    return Page("Overview", join(body), "/")


def _nothing(view: View) -> Markup:
    known = view.store.span_of_time()
    if known is None:
        return empty("No request was measured yet.", "Send the service one, and wait a second.")
    return empty(
        "No requests in this span of time.",
        "The last ones were counted at ",
        time_tag(known[1]),
        ". ",
        tag("a", "Show that hour", href=f"{view.prefix}/?from={known[1] - 3600:.0f}&to={known[1]:.0f}"),
        ", or choose a longer span above.",
    )


# -- is it well now ------------------------------------------------------------------------------------------------


def state_of(total: Total, errors: int, workers: Sequence[RecorderRow], lost: int) -> State:
    """How a service is. total, errors: of its requests of the last minutes. lost: workers that died meanwhile."""
    reasons: list[str] = []
    css = "ok"
    share = errors / total.count if total.count else 0.0
    apdex = total.apdex()
    busy = [row.busy for row in workers]
    if share >= _SOME_ERRORS:
        reasons.append(f"{share_text(share)} of requests fail")
        css = "bad" if share >= _MANY_ERRORS else "warn"
    if apdex is not None and apdex < 0.85:
        reasons.append(f"Apdex {apdex_text(apdex)}")
        css = "bad" if apdex < 0.7 else "bad" if css == "bad" else "warn"
    if lost:
        reasons.append(f"{many(lost, 'worker')} lost")
        css = "bad"
    if busy and sum(busy) / len(busy) >= _BUSY:
        reasons.append(f"workers are {share_text(sum(busy) / len(busy))} busy")
        css = "bad" if css == "bad" else "warn"
    if not total.count and not reasons:
        return State("idle", "Idle" if workers else "Not serving", ["no requests"])
    return State(css, {"ok": "Well", "warn": "Worth a look", "bad": "In trouble"}[css], reasons)


def _banner(view: View, workers: Sequence[RecorderRow]) -> Markup:
    now_s = view.span.now_s
    series = history.totals(view.store, now_s - _NOW_S, now_s, [REQUEST_DURATION])
    total = overall(series)
    errors = _failed(series)
    lost = len(view.store.postmortems(now_s - _NOW_S, now_s + 1, 100))
    state = state_of(total, errors, workers, lost)
    told = "; ".join(state.reasons)
    facts = "no requests" if not total.count else (
        f"{rate_text(total.count, _NOW_S)}, {share_text(errors / total.count)} errors,"
        f" p95 {duration(total.quantile_ns(0.95) / _NS)}, Apdex {apdex_text(total.apdex())}"
    )  # fmt: skip
    return tag(
        "p",
        tag("strong", state.word),
        tag("span", told) if told and state.css != "idle" else None,
        tag("span", f"last 5 minutes: {facts}, {many(len(workers), 'worker')}", class_="dim"),
        class_=f"state {state.css}",
        role="status",
    )


def _failed(series: Sequence[SeriesTotal]) -> int:
    return sum(found.total.count for found in series if "error.type" in found.attributes)


def _figures(view: View, total: Total, errors: int, workers: Sequence[RecorderRow]) -> Markup:
    found = figures_of(total)
    return figures(
        ("requests", f"{total.count:,}", ""),
        ("throughput", rate_text(total.count, view.seconds), ""),
        ("errors", error_cell(errors, total.count), ""),
        ("p50", duration(found["p50_s"]), ""),
        ("p95", duration(found["p95_s"]), ""),
        ("p99", duration(found["p99_s"]), ""),
        ("Apdex", apdex_cell(found["apdex"]), ""),
        ("workers", f"{len(workers)}", ""),
        ("busy", share_text(sum(row.busy for row in workers) / len(workers)) if workers else "–", ""),
    )


def _saturation(view: View, whole: Sequence[Total], workers: Sequence[RecorderRow]) -> Markup:
    """How many requests were in flight, on average, and how many could be: what a step took, by its length."""
    room = sum(max(1, _word(row, W_CONCURRENCY)) for row in workers)
    return line_chart(
        "Requests in flight, mean",
        view.window,
        [Line("in flight", busy_seconds(view, whole), "c4")],
        number_form,
        marks=view.marks,
        limit=float(room) if room else None,
        limit_label=f"{room} can be served at once now" if room else "",
    )


def _word(row: RecorderRow, place: int) -> int:
    return row.words[place] if len(row.words) > place else 0


def _queue(view: View) -> Markup | None:
    """Time that requests waited for a worker, where a proxy tells when it took them."""
    found = view.points(QUEUE_DURATION)[None]
    if not all_of(found).count:
        return None
    lines = [Line("p95", percentiles(found, 0.95), "c1"), Line("p50", percentiles(found, 0.5), "c0")]
    return line_chart("Time in the queue", view.window, lines, duration, marks=view.marks)


# -- what is slow, what fails --------------------------------------------------------------------------------------


class _Group:
    """Series of one transaction, or of one error. What takes long, the percentiles, is left until it is asked for."""

    def __init__(self, attributes: Mapping[str, Any]) -> None:
        self.attributes = attributes
        self.totals: list[Total] = []
        self.count = self.sum_ns = self.errors = 0

    def add(self, found: SeriesTotal) -> None:
        self.totals.append(found.total)
        self.count += found.total.count
        self.sum_ns += found.total.sum_ns
        self.errors += found.total.count if "error.type" in found.attributes else 0


def _grouped(series: Iterable[SeriesTotal], names: Sequence[str]) -> list[_Group]:
    groups: dict[tuple[Any, ...], _Group] = {}
    for found in series:
        key = tuple(found.attributes.get(name) for name in names)
        groups.setdefault(key, _Group(found.attributes)).add(found)
    return list(groups.values())


def _routes(view: View, series: Sequence[SeriesTotal]) -> Markup:
    names = ("http.request.method", "http.route", _OVERFLOW)
    groups = sorted(_grouped(series, names), key=lambda group: -group.sum_ns)
    whole_ns = sum(group.sum_ns for group in groups) or 1
    steps = view.span.window(_SPARK)  # the last of which has not ended
    rows: list[list[Child]] = []
    for group in groups[:_ROUTES]:
        # One by one: all of them over time would be far more than is shown.
        where = {name: group.attributes.get(name) for name in names}
        over_time = history.points(view.store, steps, REQUEST_DURATION, where)[None]
        found = figures_of(all_of(group.totals))
        rows.append([
            transaction_link(view, group.attributes),
            spark([float(total.count) for total in over_time[:-1]]),
            rate_text(group.count, view.seconds),
            error_cell(group.errors, group.count),
            duration_cell(found["p50_s"]),
            duration_cell(found["p95_s"]),
            apdex_cell(found["apdex"]),
            share_cell(group.sum_ns / whole_ns),
        ])  # fmt: skip
    columns = (
        Column("transaction", numeric=False, css="wide"), Column("over time", numeric=False, css="spark-cell"),
        Column("throughput"), Column("errors"), Column("p50"), Column("p95"), Column("Apdex"),
        Column("share of time", css="bar-cell"),
    )  # fmt: skip
    more = tag("a", f"All {len(groups):,} transactions", href=view.link("/transactions"))
    return section("What takes the time", table("Transactions by time spent", columns, rows), tag("p", more))


def _errors(view: View, series: Sequence[SeriesTotal]) -> Markup:
    """The most frequent errors, each with its newest trace. The page of errors knows more, and takes longer."""
    seen = [one for one in view.totals(ERRORS) if one.attributes.get("paste_agent.error.expected") != "true"]
    counted = {one.attributes.get("error.type") for one in seen}
    # Failed requests whose errors were not counted by themselves.
    seen += [one for one in series if one.attributes.get("error.type", _NO_ERROR) not in {*counted, _NO_ERROR}]
    groups = sorted(_grouped(seen, ("error.type", "http.route", _OVERFLOW)), key=lambda group: -group.count)
    groups = [group for group in groups if group.count]
    if not groups:
        return section("What fails", tag("p", "Nothing: no error was seen in this span of time.", class_="good"))
    failed = _newest_failed(view)
    rows: list[list[Child]] = []
    for group in groups[:_ERRORS]:
        where = {name: group.attributes.get(name) for name in ("error.type", "http.route")}
        overflow = bool(group.attributes.get(_OVERFLOW))
        kind = "(all others)" if overflow else one_line(where["error.type"], 80)
        newest = None if overflow else _of(failed, where)
        message = None if newest is None else _message(view, newest)
        rows.append([
            join((
                tag("span", f"status {kind}" if kind.isdecimal() else kind, class_="bad"),
                tag("small", one_line(message, 160), class_="below") if message else None,
            )),
            tag("span", one_line(where["http.route"] or "–", 80)),
            f"{group.count:,}",
            tag("span", "–", class_="dim") if newest is None else trace_link(view, newest.trace_id.hex()),
        ])  # fmt: skip
    columns = (
        Column("error", numeric=False, css="wide"), Column("route", numeric=False), Column("count"),
        Column("newest trace", numeric=False),
    )  # fmt: skip
    more = tag("a", "All errors", href=view.link("/errors"))
    return section("What fails", table("Errors by how often they came", columns, rows), tag("p", more))


def _newest_failed(view: View) -> list[TraceRow]:
    """The newest kept transactions that failed, without detail."""
    start_s, end_s = view.window.start_s, view.window.end_s
    return kept_traces.find(view.store, start_s, end_s, Wanted(failed=True), limit=_LOOKED_AT, bare=True)


def _of(newest: Sequence[TraceRow], where: Mapping[str, object]) -> TraceRow | None:
    """The newest that is like that."""
    return next((row for row in newest if all(row.attributes.get(name) == where[name] for name in where)), None)


def _message(view: View, bare: TraceRow) -> str | None:
    """Of its exception."""
    rows = lookup.transactions_of(view.store, bare.trace_id.hex(), 100)
    row = next((row for row in rows if row.span_id == bare.span_id), bare)
    exception = (row.detail or {}).get("exception")
    message = exception.get("message") if isinstance(exception, dict) else None
    return message if isinstance(message, str) else None


def _lost(view: View, lost: Sequence[PostmortemRow]) -> Child:
    if not lost:
        return None
    items = [
        tag(
            "li",
            time_tag(row.at, "day-clock"),
            " ",
            tag("a", one_line(row.summary.get("headline", row.reason), 120), href=view.link(f"/postmortem/{row.id}")),
        )
        for row in lost[:_LOST]
    ]
    more = tag("a", "All workers", href=view.link("/workers"))
    return section(f"{many(len(lost), 'worker')} lost", tag("ul", items, class_="lost"), tag("p", more))
