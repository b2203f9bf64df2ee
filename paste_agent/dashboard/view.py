"""What pages have in common: the request as they see it, the frame around them, tables, and pieces of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from paste_agent.aggregate import Total
from paste_agent.dashboard.charts import Mark, clock_text
from paste_agent.dashboard.html import Child, Markup, join, prose, tag
from paste_agent.dashboard.query import RANGES, Query, Span, url_of
from paste_agent.settings import Settings
from paste_agent.stacks import marked
from paste_agent.store import deployments, history
from paste_agent.store.inside_summary import rfc3339
from paste_agent.store.lookup import own_digits
from paste_agent.store.store import SeriesTotal, Store
from paste_agent.store.summary import trace_name
from paste_agent.wording import one_line

#: Pages of the navigation, in its order: path and name.
NAVIGATION = (
    ("/", "Overview"),
    ("/transactions", "Transactions"),
    ("/traces", "Traces"),
    ("/errors", "Errors"),
    ("/queries", "Queries"),
    ("/calls", "Calls"),
    ("/layers", "Layers"),
    ("/workers", "Workers"),
    ("/agent", "Agent"),
)
#: Attributes of a series that a link to a transaction has, by field of the query.
IDENTITY = {"method": "http.request.method", "route": "http.route"}


class Page(NamedTuple):
    """What a view answers with. path: of the navigation's entry that it belongs to."""

    title: str
    body: Child
    path: str = ""
    status: int = 200
    subtitle: Child = None


class View:
    """One request for a page: the store, the span of time, and how to link to others."""

    def __init__(
        self, prefix: str, path: str, query: Query, span: Span, store: Store, settings: Settings | None, service: str
    ) -> None:
        """prefix: the path that the dashboard is mounted at, percent-encoded, '' for the root. path: below it."""
        self.prefix = prefix
        self.path = path
        self.query = query
        self.span = span
        self.store = store
        self.settings = settings
        self.service = service
        self.window = span.window()
        self._marks: list[Mark] | None = None

    def link(self, path: str, **params: object) -> str:
        """The URL of a page of ours, about the same span of time."""
        return url_of(self.prefix + path, {**params, **self.span.params})

    def again(self, **changes: object) -> str:
        """The URL of this page with some fields changed; None takes one away."""
        return url_of(self.prefix + self.path, {**self.query.fields, **changes})

    def totals(self, *metrics: str, where: Mapping[str, object] | None = None) -> list[SeriesTotal]:
        return history.totals(self.store, self.window.start_s, self.window.end_s, metrics, where)

    def points(
        self, metric: str, where: Mapping[str, object] | None = None, by: str | None = None
    ) -> dict[str | None, list[Total]]:
        return history.points(self.store, self.window, metric, where, by)

    @property
    def marks(self) -> list[Mark]:
        """Deployments, for charts."""
        if self._marks is None:
            found = deployments.between(self.store, self.window.start_s, self.window.end_s)
            self._marks = [
                Mark(one.at_s, f"deployed {one_line(one.version, 60)} {one_line(one.description, 120)}".rstrip())
                for one in found
            ]
        return self._marks

    def seconds_of(self, place: int) -> float | None:
        """How long a step of the window lasted so far; None for one that has hardly begun, and tells nothing."""
        start_s = self.window.start_s + place * self.window.step_s
        lasted_s = min(float(self.window.step_s), self.span.now_s - start_s)
        return lasted_s if lasted_s >= min(self.window.step_s / 2, 15) else None

    @property
    def seconds(self) -> float:
        """That the sums of `totals` are of: they are of whole steps."""
        return max(1.0, min(float(self.window.end_s), self.span.now_s) - self.window.start_s)


# -- pieces of pages -----------------------------------------------------------------------------------------------


def time_tag(at_s: float, form: str = "full") -> Markup:
    """A time, of UTC until the script has made it the viewer's. form: see charts.clock_text."""
    return tag("time", clock_text(at_s, form), datetime=rfc3339(min(max(at_s, 0.0), 2.5e11)), data_form=form)


def section(title: str, *body: Child, note: Child = None, id: str | None = None) -> Markup:
    if isinstance(note, str):
        note = note if isinstance(note, Markup) else prose(note)
    return tag("section", tag("h2", title), tag("p", note, class_="note") if note is not None else None, *body, id=id)


def charts(*figures: Child) -> Markup:
    # The heading is for who does not see that they belong together.
    return tag("div", tag("h2", "Over time", class_="hidden"), tag("div", figures, class_="charts"), class_="over-time")


def empty(what: str, *cure: Child) -> Markup:
    """Where nothing is: what is missing, and what to do about it, in our own words (see html.prose)."""
    told = [prose(words) if isinstance(words, str) and not isinstance(words, Markup) else words for words in cure]
    return tag("div", tag("p", tag("strong", what)), tag("p", *told) if told else None, class_="empty")


def figures(*pairs: tuple[str, Child, str]) -> Markup:
    """The figures at the head of a page: name, value and class of each."""
    return tag(
        "dl",
        [tag("div", tag("dt", name), tag("dd", value, class_=css or None)) for name, value, css in pairs],
        class_="figures",
    )


class Column(NamedTuple):
    """A column of a table. key: that it is sorted by, '' for one that is not."""

    title: str
    key: str = ""
    numeric: bool = True
    css: str = ""


def table(
    caption: str,
    columns: Sequence[Column],
    rows: Sequence[Sequence[Child]],
    *,
    sorted_by: str = "",
    link: Any = None,
    row_css: Sequence[str] = (),
) -> Markup:
    """A table; the first cell of each row is its heading.

    link: key of a column to the URL of the page in that order. row_css: a class for each row.
    """
    heads: list[Markup] = []
    for column in columns:
        content: Child = column.title
        chosen = bool(column.key) and column.key == sorted_by
        if column.key and link is not None:
            content = tag("a", column.title, href=link(column.key))
        order = ("ascending" if column.key == "name" else "descending") if chosen else None
        heads.append(tag("th", content, scope="col", class_=_css(column), aria_sort=order))
    lines = []
    for place, row in enumerate(rows):
        cells = [
            tag("td" if index else "th", cell, scope=None if index else "row", class_=_css(column))
            for index, (column, cell) in enumerate(zip(columns, row, strict=True))
        ]
        lines.append(tag("tr", cells, class_=(row_css[place] or None) if row_css else None))
    whole = tag("table", tag("caption", caption, class_="hidden"), tag("thead", tag("tr", heads)), tag("tbody", lines))
    # A wide table is scrolled, by the keyboard too, and the page is not.
    return tag("div", whole, class_="table", tabindex="0", role="region", aria_label=caption)


def _css(column: Column) -> str | None:
    return " ".join(word for word in ("n" if column.numeric else "", column.css) if word) or None


def code_block(title: Child, content: str, css: str = "", own: object = None) -> Markup:
    """own: files of the application's own, whose frames are marked in the stacks that there are in it."""
    return tag("div", tag("h3", title), stack_text(content, own), class_=f"block {css}".strip())


def stack_text(content: str, own: object) -> Markup:
    """Text as it is, with frames of the application marked where it is known which ones are."""
    lines = list(marked(content, own))
    if any(is_own for _, is_own in lines):
        return tag("pre", join((_line_of_stack(*line) for line in lines), "\n"), tabindex="0")
    return tag("pre", content, tabindex="0")


def _line_of_stack(line: str, is_own: bool | None) -> Child:
    if is_own is None:
        return line
    text = line.lstrip()
    return join((line[: -len(text)], tag("mark", text) if is_own else tag("span", text, class_="dim")))


def route_name(attributes: Mapping[str, Any]) -> str:
    """The name of a transaction, with a word where it has no route."""
    if attributes.get("otel.metric.overflow"):
        return "(all others)"
    name = trace_name(attributes)
    return name if "http.route" in attributes or "paste_agent.task.name" in attributes else f"{name} (no route)"


def transaction_link(view: View, attributes: Mapping[str, Any]) -> Markup:
    """The name of a transaction as a link to its page."""
    name = one_line(route_name(attributes), 160)
    if attributes.get("otel.metric.overflow"):
        return tag("span", name)
    if "paste_agent.task.name" in attributes:
        return tag("a", name, href=view.link("/transaction", task=attributes["paste_agent.task.name"]))
    params = {field: attributes.get(attribute) for field, attribute in IDENTITY.items()}
    return tag("a", name, href=view.link("/transaction", **params))


def trace_link(view: View, trace_id: str) -> Markup:
    return tag("a", own_digits(trace_id)[:12], href=view.link(f"/trace/{trace_id}"), class_="mono")


# -- the frame -----------------------------------------------------------------------------------------------------


def document(prefix: str, title: str, *body: Child) -> str:
    """A whole page. prefix: as View has it."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="robots", content="noindex"),
        tag("title", title),
        tag("link", rel="icon", href=f"{prefix}/static/icon.svg", type="image/svg+xml"),
        tag("link", rel="stylesheet", href=f"{prefix}/static/style.css"),
        tag("script", src=f"{prefix}/static/script.js", defer=True),
    )
    return "<!DOCTYPE html>\n" + tag("html", head, tag("body", *body), lang="en")


def framed(view: View, page: Page) -> str:
    """A page within the navigation."""
    name = one_line(view.service, 60)
    here = page.path
    links = [
        tag("li", tag("a", title, href=view.link(path), aria_current="page" if path == here else None))
        for path, title in NAVIGATION
    ]
    header = tag(
        "header",
        tag("a", "Skip to the content", href="#content", class_="skip"),
        tag(
            "div",
            tag("a", tag("span", name, class_="service"), href=view.link("/"), class_="brand"),
            _ranges(view, here),
            class_="bar-top",
        ),
        tag("nav", tag("ul", links), aria_label="Pages"),
    )
    main = tag(
        "main",
        tag(
            "div", tag("h1", page.title), tag("p", page.subtitle) if page.subtitle is not None else None, class_="head"
        ),
        page.body,
        id="content",
        tabindex="-1",
        data_live="1" if view.span.is_live else None,
    )
    return document(view.prefix, f"{page.title} · {name}", header, main)


def _ranges(view: View, here: str) -> Markup:
    """The choice of the span of time: of the ones that most people want, by links; of any other, by a form."""
    keep = {name: value for name, value in view.query.fields.items() if name not in ("range", "from", "to", "before")}
    path = view.prefix + view.path
    chosen = view.span.params.get("range")
    ranges = [
        tag("a", word, href=url_of(path, {**keep, "range": word}), aria_current="true" if word == chosen else None)
        for word in RANGES
    ]
    hidden = [tag("input", type="hidden", name=name, value=value) for name, value in keep.items()]
    form = tag(
        "form",
        hidden,
        tag("label", "From (UTC) ", tag("input", name="from", value=_field(view.span.start_s), size=17, required=True)),
        tag("label", "to ", tag("input", name="to", value=_field(view.span.end_s), size=17)),
        tag("button", "Show"),
        action=path,
        method="get",
    )
    more = tag(
        "summary",
        join((time_tag(view.span.start_s, "day-clock"), " – ", time_tag(view.span.end_s, "day-clock")))
        if chosen not in RANGES
        else "other",
    )
    return tag(
        "div",
        tag("div", ranges, class_="ranges", role="group", aria_label="Span of time"),
        tag("details", more, form, class_="custom"),
        tag("button", "Refresh", type="button", class_="refresh", hidden=True, aria_pressed="false")
        if view.span.is_live
        else None,
        class_="picker",
    )


def _field(at_s: float) -> str:
    return rfc3339(at_s)[:16]
