"""Kept traces: a list to choose from, and one of them from within."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from paste_agent.dashboard.charts import shares, timeline
from paste_agent.dashboard.html import Child, Markup, join, tag
from paste_agent.dashboard.pages.common import (
    css_of_part,
    key_label,
    label_of_part,
    parts_legend,
    place_of,
    traces_table,
)
from paste_agent.dashboard.query import BadQuery
from paste_agent.dashboard.view import (
    IDENTITY,
    Page,
    View,
    code_block,
    empty,
    section,
    time_tag,
    transaction_link,
)
from paste_agent.kept import TraceRow
from paste_agent.recorder.layout import WHY_KEPT
from paste_agent.store import kept_traces, lookup
from paste_agent.store.inside_summary import SHARED, code_of, dicts, number
from paste_agent.store.kept_traces import NEWEST, SLOWEST, Place, Wanted
from paste_agent.store.summary import probability_of, spans_text
from paste_agent.store.trace_tree import Node, all_of, trees
from paste_agent.wording import OWN, duration, host_text, many, one_line, share_text, value_text

_NS = 1_000_000_000
_PAGE = 50
#: Transactions of one trace that are shown: a client may give every request the same id.
_MOST = 100
_MOST_ROWS = 2000
_MOST_TEXT = 20_000
_DEEPEST = 12
_ID = re.compile(r"[0-9a-f]{8,32}")
_BEFORE = re.compile(r"([0-9]{1,19})-([0-9a-f]{16})")
_WHYS = {word: bit for bit, word in WHY_KEPT.items()}
_PLANS = ("paste_agent.db.plan", "db.query.plan")
#: Said elsewhere on the page.
_SAID = frozenset((
    "url.path", "code.stacktrace", "paste_agent.stack.age", "paste_agent.sampling.probability", "paste.layers",
    "paste_agent.spans.dropped",
))  # fmt: skip

# -- the list ------------------------------------------------------------------------------------------------------


def traces(view: View) -> Page:
    query = view.query
    order = query.choice("order", (NEWEST, SLOWEST), NEWEST)
    why = query.choice("why", ("", *_WHYS), "")
    wanted = Wanted(
        where=_where(view),
        failed=True if query.flag("failed") else None,
        why=_WHYS.get(why, 0),
        min_duration_ns=int((query.number("slower", 0, 1e6) or 0) * _NS),
        text=query.text("q") or "",
    )
    before = _before(view) if order == NEWEST else None
    start_s, end_s = view.window.start_s, view.window.end_s
    rows = kept_traces.find(view.store, start_s, end_s, wanted, order=order, limit=_PAGE + 1, after=before)
    form = _filter(view, why, order)
    if not rows:
        return Page("Traces", join((form, _none(view, before is not None))), "/traces")
    body: list[Child] = [form, _chosen(view), traces_table(view, "Kept traces", rows[:_PAGE])]
    steps: list[Child] = []
    if before is not None:
        steps.append(tag("a", "Newest", href=view.again(before=None)))
    if len(rows) > _PAGE and order == NEWEST:
        last = rows[_PAGE - 1]
        steps.append(
            tag("a", "Older", href=view.again(before=f"{last.started_at_ns}-{last.span_id.hex()}"), rel="next")
        )
    count = kept_traces.count(view.store, start_s, end_s, wanted)
    body.append(tag("p", f"{many(count, 'kept transaction')} in all. ", join(steps, " · "), class_="note"))
    return Page("Traces", join(body), "/traces")


def _where(view: View) -> dict[str, object]:
    task = view.query.text("task")
    if task is not None:
        return {"paste_agent.task.name": task}
    if view.query.text("method") is None:
        return {}
    return {attribute: view.query.text(field) for field, attribute in IDENTITY.items()}


def _before(view: View) -> Place | None:
    text = view.query.text("before")
    if text is None:
        return None
    match = _BEFORE.fullmatch(text)
    if match is None or int(match[1]) >= 1 << 63:
        raise BadQuery(f"before = {text!r}: expected what the link to the next page says")
    return Place(int(match[1]), bytes.fromhex(match[2]))


def _filter(view: View, why: str, order: str) -> Markup:
    query = view.query
    own = ("q", "failed", "slower", "why", "order", "before")
    hidden = [
        tag("input", type="hidden", name=name, value=value) for name, value in query.fields.items() if name not in own
    ]
    options = [tag("option", word or "for any reason", value=word, selected=word == why) for word in ("", *_WHYS)]
    orders = [tag("option", word, value=word, selected=word == order) for word in (NEWEST, SLOWEST)]
    return tag(
        "form",
        hidden,
        tag("label", "Has text ", tag("input", name="q", type="search", value=query.text("q") or "", size=18)),
        tag("label", "took at least ", tag("input", name="slower", value=query.text("slower") or "", size=5), " s"),
        tag("label", "kept ", tag("select", options, name="why")),
        tag("label", tag("input", name="failed", type="checkbox", value="1", checked=query.flag("failed")), " failed"),
        tag("label", "order ", tag("select", orders, name="order")),
        tag("button", "Filter"),
        action=view.prefix + "/traces", method="get", class_="filter",
    )  # fmt: skip


def _chosen(view: View) -> Child:
    """Of which transaction the list is, where it is of one."""
    where = {name: value for name, value in _where(view).items() if value is not None}
    if not where:
        return None
    rest = tag("a", "show all", href=view.again(method=None, route=None, task=None, before=None))
    return tag("p", "Of ", transaction_link(view, where), " alone; ", rest, ".")


def _none(view: View, is_later_page: bool) -> Markup:
    filters = ("q", "failed", "slower", "why", "method", "route", "task", "before")
    if is_later_page or any(view.query.text(name) for name in filters):
        return empty("No kept trace is like that.", tag("a", "Show all", href=view.link("/traces")), ".")
    return empty(
        "No trace was kept in this span of time.",
        "Slow and failed transactions are kept, those that a caller has sampled, and a few at random. Send the service"
        " some requests, or choose a longer span above.",
    )


# -- one trace -----------------------------------------------------------------------------------------------------


def trace(view: View, name: str) -> Page:
    found = lookup.trace_ids(view.store, name.lower()) if _ID.fullmatch(name.lower()) else []
    if len(found) != 1:
        what = "More than one trace has an ID that begins so." if found else "There is no such trace."
        cure = ("The store may have forgotten it. See ", tag("a", "those that it has", href=view.link("/traces")), ".")
        return Page("Trace", empty(what, *cure), "/traces", status=404)
    rows = lookup.transactions_of(view.store, found[0], _MOST + 1)
    everything = view.query.flag("all")
    roots = trees(rows[:_MOST], fold=not everything)
    told = f"{many(min(len(rows), _MOST), 'transaction')}{' and more' if len(rows) > _MOST else ''}, {spans_text(rows)}"
    if any(len(node.times) > 1 for node in all_of(roots)):
        fold: Markup | None = tag("a", "Show each of the identical spans", href=view.again(all=1))
    else:
        fold = tag("a", "Fold identical spans", href=view.again(all=None)) if everything else None
    body: list[Child] = [tag("p", told, class_="dim"), _waterfall(view, roots), tag("p", fold) if fold else None]
    nodes = sorted((node for node in all_of(roots) if node.row is not None), key=lambda node: node.start_ns)
    body.extend(_about(view, node) for node in nodes)
    return Page(
        f"Trace {lookup.own_digits(found[0])[:12]}",
        join(body),
        "/traces",
        subtitle=tag("span", found[0], class_="mono"),
    )


class _Scale(NamedTuple):
    start_ns: int
    length_ns: int


def _scale_of(roots: Sequence[Node]) -> _Scale:
    times = [time for node in all_of(roots) for time in node.times]
    start_ns = min(start for start, _ in times)
    return _Scale(start_ns, max(1, max(start + length for start, length in times) - start_ns))


def _waterfall(view: View, roots: Sequence[Node]) -> Markup:
    whole = _scale_of(roots)
    # Transactions that lie far apart, as those of a client that gives all its requests one id, get a scale each.
    apart = len(roots) > 1 and whole.length_ns > 20 * sum(_scale_of([root]).length_ns for root in roots)
    lines: list[Markup] = []
    more = 0
    for root in roots:
        scale = _scale_of([root]) if apart else whole
        for node, depth in _in_order(root):
            if len(lines) < _MOST_ROWS:
                lines.append(_line(view, node, depth, scale))
            else:
                more += 1
    ends = ("0", tag("span", duration(whole.length_ns / _NS), class_="right"))
    axis: Child = "each tree from its own beginning" if apart else ends
    head = tag(
        "tr", tag("th", "span", scope="col"), tag("th", "took", scope="col", class_="n"),
        tag("th", "own", scope="col", class_="n"),
        tag("th", axis, scope="col", class_="time"),
    )  # fmt: skip
    whole_table = tag(
        "table", tag("caption", "Spans", class_="hidden"), tag("thead", head), tag("tbody", lines), class_="waterfall"
    )
    note = tag("p", f"{many(more, 'span')} more; `paste-agent trace --json` has them.", class_="note") if more else None
    scrolled = tag("div", whole_table, class_="table", tabindex="0", role="region", aria_label="Waterfall of the spans")
    seen = {node.category for node in all_of(roots)}
    return join((scrolled, note, parts_legend([name for name in SHARED if name in seen])))


def _in_order(root: Node) -> Iterator[tuple[Node, int]]:
    waiting = [(root, 0)]
    while waiting:
        node, depth = waiting.pop()
        yield node, depth
        waiting.extend((child, depth + 1) for child in reversed(node.children))


def _line(view: View, node: Node, depth: int, scale: _Scale) -> Markup:
    css = (
        "p-transaction"
        if node.row is not None
        else css_of_part(node.category if node.category in _COLOURED else "other")
    )
    attributes: Mapping[str, Any] = node.attributes if node.row is None else node.row.attributes
    status = attributes.get("http.response.status_code")
    name: list[Child] = [
        tag("span", one_line(node.name, 160) or "(no name)", class_="bad" if node.error is not None else None)
    ]
    if len(node.times) > 1:
        name.append(tag("span", f" ×{len(node.times):,}", class_="warn"))
    if node.category in ("call", "message") and attributes.get("server.address"):
        host = host_text(attributes["server.address"], attributes.get("server.port"))
        name.append(tag("small", f" {one_line(host, 60)}", class_="dim"))
    if status is not None:
        name.append(tag("small", f" {one_line(status, 8)}", class_="dim"))
    details = list(_details(node))
    content: Child = tag("details", tag("summary", name), details) if details else tag("div", name, class_="leaf")
    took, own = duration(node.duration_ns / _NS), duration(node.own_ns / _NS)
    start = duration(max(0, node.start_ns - scale.start_ns) / _NS)
    return tag(
        "tr",
        tag("th", content, scope="row", class_=f"d{min(depth, _DEEPEST)}{' whole' if node.row is not None else ''}"),
        tag("td", took, class_="n"),
        tag("td", own, class_="n" if 2 * node.own_ns > node.duration_ns else "n dim"),
        tag(
            "td",
            timeline(node.times, scale.start_ns, scale.length_ns, css, f"begins at {start}, takes {took}"),
            class_="time",
        ),
    )


_COLOURED = frozenset((*SHARED, "function"))


def _details(node: Node) -> Iterator[Markup]:
    """What there is to tell of a span beyond its line."""
    if node.row is not None:
        return
    attributes = node.attributes
    if node.error is not None:
        code = attributes.get("db.response.status_code")
        yield tag("p", one_line(f"{node.error} {code}" if code else node.error, 400), class_="bad")
    if len(node.times) > 1:
        mean_s = node.duration_ns / len(node.times) / _NS
        most_s = max(took for _, took in node.times) / _NS
        yield tag("p", f"{duration(mean_s)} each, the slowest {duration(most_s)}")
    if node.text:
        yield tag("pre", node.text[:_MOST_TEXT], tabindex="0")
    code_place = code_of({
        "file": attributes.get("code.file.path"), "line": attributes.get("code.line.number"),
        "function": attributes.get("code.function.name"),
    })  # fmt: skip
    if code_place is not None:
        yield tag("p", place_of(code_place), class_="mono")
    for plan in filter(None, map(attributes.get, _PLANS)):
        yield tag("pre", str(plan)[:_MOST_TEXT], tabindex="0")
    rest = [
        (str(key), value)
        for key, value in attributes.items()
        if key != "db.query.text" and key not in _PLANS and not str(key).startswith("code.")
    ]
    if rest:
        yield _facts(rest)


def _facts(pairs: Sequence[tuple[str, Child]]) -> Markup:
    return tag(
        "dl",
        [
            tag("div", tag("dt", key), tag("dd", value if isinstance(value, Markup) else one_line(value, 400)))
            for key, value in pairs
        ],
        class_="facts",
    )


# -- about a transaction -------------------------------------------------------------------------------------------


def _about(view: View, node: Node) -> Markup:
    """All else that is known of one transaction."""
    row = node.row
    assert row is not None
    detail: Mapping[str, Any] = row.detail or {}
    found = _object(detail, "attributes")
    body: list[Child] = [_facts(list(_told(view, row, detail, node)))]
    body.append(_spent(row, detail))
    findings = [_finding(one) for one in dicts(detail.get("findings"))]
    if findings:
        body.append(tag("div", tag("h3", "Queries worth a look"), tag("ul", findings), class_="block"))
    own, exception = detail.get("own_files"), _object(detail, "exception")
    if exception:
        message = exception.get("message")
        title = f"{exception.get('type')}: {message}" if message else str(exception.get("type"))
        body.append(
            code_block(one_line(title, 1000), str(exception.get("stacktrace") or "")[:_MOST_TEXT], "bad-block", own)
        )
    stack = found.get("code.stacktrace")
    if stack:
        age = found.get("paste_agent.stack.age")
        when = f" after {duration(age)}" if isinstance(age, (int, float)) else ""
        body.append(code_block(f"Where it was{when}", str(stack)[:_MOST_TEXT], own=own))
    postmortem = _object(detail, "postmortem")
    if postmortem.get("text"):
        body.append(code_block("Its worker died over it", str(postmortem["text"])[:_MOST_TEXT], "bad-block", own))
        if isinstance(postmortem.get("id"), str):
            body.append(tag("p", tag("a", "The post-mortem", href=view.link(f"/postmortem/{_path(postmortem['id'])}"))))
    return section(one_line(node.name, 160), *body)


def _path(name: str) -> str:
    return "".join(char for char in name if char.isalnum() or char in "-_.")[:100]


def _told(view: View, row: TraceRow, detail: Mapping[str, Any], node: Node) -> Iterator[tuple[str, Child]]:
    found = _object(detail, "attributes")
    yield "transaction", transaction_link(view, row.attributes)
    yield "began", join((time_tag(row.started_at_ns / _NS), f", took {duration(row.duration_ns / _NS)}"))
    if found.get("url.path"):
        yield "path", str(found["url.path"])
    status = row.attributes.get("http.response.status_code")
    if status is not None:
        yield "status", str(status)
    why = ", ".join(word for bit, word in WHY_KEPT.items() if row.why & bit)
    probability = probability_of(detail)
    stands = f"; one of about {1 / probability:,.0f} like it" if probability < 0.67 else ""
    yield "kept", f"{why or 'for no known reason'}{stands}"
    if row.parent_id is not None and node.parent is None:
        yield "caller", f"span {row.parent_id.hex()}, not of this store"
    elif node.parent is not None:
        yield "caller", node.parent.name
    if not detail:
        yield "inside", "not written: by its process, which may have died, or not yet"
    errors = dicts(detail.get("errors"))
    for one in errors:
        place = f" in {one['place']}" if one.get("place") else ""
        yield (
            "error",
            tag("span", one_line(f"{one.get('type')}{place}", 200), class_="good" if one.get("expected") else "bad"),
        )
    own = row.attributes.get("error.type")
    if own is not None and not errors:
        yield "error", tag("span", one_line(own, 200), class_="bad")
    layers = found.get("paste.layers")
    if isinstance(layers, list) and layers:
        yield "layers", ", ".join(map(str, layers))
    for name, value in found.items():
        if name not in _SAID:
            yield str(name), value_text(value)


def _spent(row: TraceRow, detail: Mapping[str, Any]) -> Child:
    parts = {name: number(ns) for name, ns in _object(detail, "parts").items()}
    if not parts:
        return None
    whole_ns = row.duration_ns or 1
    found = [(name, parts[name] / whole_ns) for name in SHARED if name in parts]
    found.append((OWN, max(0.0, 1.0 - sum(share for _, share in found))))
    told = ", ".join(f"{label_of_part(name)} {share_text(share)}" for name, share in found if share > 0)
    keys = [
        key_label(css_of_part(name), f"{label_of_part(name)} {share_text(share)}") for name, share in found if share > 0
    ]
    return tag(
        "div", tag("h3", "What its time was spent on"), shares(found, css_of_part, told), tag("p", keys), class_="block"
    )


def _finding(one: Mapping[str, Any]) -> Markup:
    repeated = one.get("kind") == "repeated"
    what = f"{number(one.get('count')):,} times the same query" if repeated else "slow query"
    code = code_of(one.get("code"))
    return tag(
        "li",
        tag("span", f"{what}, {duration(number(one.get('duration')) / _NS)}: ", class_="warn"),
        tag("code", one_line(one.get("text") or "", 400)),
        tag("small", place_of(code), class_="dim below") if code else None,
    )


def _object(detail: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = detail.get(name)
    return found if isinstance(found, dict) else {}
