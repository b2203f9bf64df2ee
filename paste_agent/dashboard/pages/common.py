"""Charts and tables that several pages have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from paste_agent.aggregate import PART_DURATION, Total
from paste_agent.dashboard.charts import Line, line_chart, share_bar, stacked_chart
from paste_agent.dashboard.html import Child, Markup, join, tag
from paste_agent.dashboard.view import Column, View, table, time_tag, trace_link, transaction_link
from paste_agent.kept import TraceRow
from paste_agent.recorder.layout import WHY_KEPT
from paste_agent.store.cover import Summed
from paste_agent.store.inside_summary import SHARED
from paste_agent.store.summary import figures as figures_of
from paste_agent.wording import LABELS, OWN, apdex_text, duration, many, one_line, share_text

_NS = 1_000_000_000
#: Kinds of errors that a chart tells apart.
_KINDS = 4


def css_of_part(name: str) -> str:
    """The class that gives a part its colour."""
    return "p-own" if name == OWN else f"p-{name}"


def label_of_part(name: str) -> str:
    return LABELS.get(name, name)


# -- values over time ----------------------------------------------------------------------------------------------


def per_second(view: View, totals: Sequence[Total]) -> list[float | None]:
    """How many a second."""
    return [
        None if (seconds := view.seconds_of(place)) is None else total.count / seconds
        for place, total in enumerate(totals)
    ]


def busy_seconds(view: View, totals: Sequence[Total]) -> list[float | None]:
    """Seconds spent in each second."""
    return [
        None if (seconds := view.seconds_of(place)) is None else total.sum_ns / _NS / seconds
        for place, total in enumerate(totals)
    ]


def percentiles(totals: Sequence[Total], share: float) -> list[float | None]:
    return [total.quantile_ns(share) / _NS if total.count else None for total in totals]


def all_of(totals: Iterable[Total]) -> Total:
    whole = Summed()
    for total in totals:
        whole.add(total)
    return whole


def counted(counters: Mapping[tuple[str, str], int], name: str) -> int:
    """A counter of the store, all its attributes together."""
    return sum(value for (found, _), value in counters.items() if found == name)


def rate_form(value: float) -> str:
    if value and value < 0.095:
        return f"{value * 60:.2g}/min"
    return f"{value:,.0f}/s" if value >= 100 else f"{value:.3g}/s"


def number_form(value: float) -> str:
    if 0 < value < 0.001:
        return "<0.001"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


# -- charts --------------------------------------------------------------------------------------------------------


def throughput_chart(view: View, totals: Sequence[Total], title: str = "Throughput", label: str = "requests") -> Markup:
    return line_chart(title, view.window, [Line(label, per_second(view, totals), "c0")], rate_form, marks=view.marks)


def latency_chart(view: View, totals: Sequence[Total], title: str = "Response time") -> Markup:
    lines = [
        Line("p99", percentiles(totals, 0.99), "c3"),
        Line("p95", percentiles(totals, 0.95), "c1"),
        Line("p50", percentiles(totals, 0.5), "c0"),
    ]
    return line_chart(title, view.window, lines, duration, marks=view.marks)


def errors_chart(view: View, by_type: Mapping[str | None, Sequence[Total]]) -> Markup:
    """Failed requests by their type. by_type: as `points` gives it by `error.type`."""
    kinds = {name: totals for name, totals in by_type.items() if name}
    ranked = sorted(kinds, key=lambda name: -sum(total.count for total in kinds[name]))
    layers = [
        Line(one_line(name, 28), [float(total.count) for total in kinds[name]], f"e{place}")
        for place, name in enumerate(ranked[:_KINDS])
    ]
    rest = [kinds[name] for name in ranked[_KINDS:]]
    if rest:
        sums = [float(sum(total.count for total in totals)) for totals in zip(*rest, strict=True)]
        layers.append(Line("others", sums, "e4"))
    if not layers:
        layers = [Line("failed requests", [0.0] * len(view.window.starts), "e0")]
    return stacked_chart(f"Errors, every {step_text(view)}", view.window, layers, number_form, marks=view.marks)


def apdex_chart(view: View, totals: Sequence[Total]) -> Markup:
    values = [total.apdex() for total in totals]
    return line_chart(
        "Apdex", view.window, [Line("Apdex", values, "c2")], lambda value: f"{value:.2f}", marks=view.marks
    )


def spent_chart(view: View, whole: Sequence[Total], where: Mapping[str, object] | None = None) -> Markup:
    """What the time of transactions was spent on, seconds a second. whole: all of it."""
    found = view.points(PART_DURATION, where, by="paste_agent.part")
    parts = [(name, found[name]) for name in SHARED if name in found and any(total.count for total in found[name])]
    spent = [sum(totals[place].sum_ns for _, totals in parts) for place in range(len(whole))]
    own = [Total(total.count, max(0, total.sum_ns - below)) for total, below in zip(whole, spent, strict=True)]
    layers = [
        Line(label_of_part(name), busy_seconds(view, totals), css_of_part(name))
        for name, totals in (*parts, (OWN, own))
    ]
    return stacked_chart(
        "Time spent, s a second", view.window, layers, number_form, marks=view.marks,
        note="" if parts else "No parts are known: no database, call or template was seen.",
    )  # fmt: skip


def step_text(view: View) -> str:
    step = view.window.step_s
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if step >= size and step % size == 0:
            return f"{step // size} {unit}"
    return f"{step} s"


# -- cells ---------------------------------------------------------------------------------------------------------


def share_cell(share: float, css: str = "c0") -> Markup:
    return join((share_bar(share, css), tag("span", share_text(share))))


def error_cell(count: int, whole: int) -> Child:
    if not count:
        return tag("span", "0", class_="dim")
    return tag("span", f"{count:,} ", tag("small", share_text(count / whole) if whole else ""), class_="bad")


def apdex_cell(value: float | None) -> Child:
    css = "dim" if value is None else "bad" if value < 0.7 else "warn" if value < 0.85 else None
    return tag("span", apdex_text(value), class_=css)


def duration_cell(seconds: float | None, count: int = 1) -> Child:
    return tag("span", "–", class_="dim") if seconds is None or not count else duration(seconds)


def latency_cells(total: Total) -> list[Child]:
    """p50, p95, p99 and the longest."""
    found = figures_of(total)
    return [duration_cell(found[name], total.count) for name in ("p50_s", "p95_s", "p99_s", "max_s")]


LATENCY_COLUMNS = (Column("p50", "p50"), Column("p95", "p95"), Column("p99", "p99"), Column("max", "max"))

# -- kept transactions ---------------------------------------------------------------------------------------------

TRACE_COLUMNS = (
    Column("trace", numeric=False), Column("when", numeric=False), Column("took"), Column("status"),
    Column("transaction", numeric=False, css="wide"), Column("kept", numeric=False),
)  # fmt: skip


def trace_cells(view: View, row: TraceRow) -> list[Child]:
    """A kept transaction as a row of a table with TRACE_COLUMNS."""
    detail = row.detail or {}
    found = detail.get("attributes")
    path = found.get("url.path") if isinstance(found, dict) else None
    exception = detail.get("exception")
    message = exception.get("message") if isinstance(exception, dict) else None
    error = row.attributes.get("error.type")
    what: list[Child] = [transaction_link(view, row.attributes)]
    if path and path != row.attributes.get("http.route"):
        what.append(tag("small", one_line(path, 120), class_="dim below"))
    if error is not None and not str(error).isdecimal():
        what.append(tag("small", one_line(f"{error}: {message}" if message else error, 200), class_="bad below"))
    status = row.attributes.get("http.response.status_code")
    return [
        trace_link(view, row.trace_id.hex()),
        time_tag(row.started_at_ns / _NS, "day-clock" if view.span.seconds > 86_400 else "second"),
        duration(row.duration_ns / _NS),
        tag("span", "–" if status is None else one_line(status, 8), class_="bad" if row.failed else None),
        join(what),
        tag("small", ", ".join(word for bit, word in WHY_KEPT.items() if row.why & bit), class_="dim"),
    ]


def traces_table(view: View, caption: str, rows: Sequence[TraceRow]) -> Markup:
    return table(caption, TRACE_COLUMNS, [trace_cells(view, row) for row in rows])


def place_of(code: Mapping[str, object] | None) -> str:
    """A place in the code: all of its path, for whoever wants to open it."""
    if code is None:
        return ""
    return f"{code['file']}:{code['line']}" + (f" in {code['function']}" if code["function"] else "")


def more_note(shown: int, count: int, word: str) -> Child:
    return tag("p", f"The first {shown:,} of {many(count, word)}.", class_="note") if count > shown else None


def key_label(css: str, text: str) -> Markup:
    """What a colour stands for."""
    return tag("span", tag("i", class_=f"key {css}", aria_hidden="true"), text, class_="key-label")


def parts_legend(names: Iterable[str]) -> Child:
    """Which colour is which part, below what is told by colours; None where nothing is."""
    keys = [key_label(css_of_part(name), label_of_part(name)) for name in names]
    return tag("p", keys, class_="note") if keys else None
