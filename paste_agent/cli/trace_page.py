"""How a trace is printed: a tree with a bar for each span, and what else is known of each transaction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rich.text import Text

from paste_agent.cli.style import COLOURS, OWN, duration, one_line, place_text, printable, stack_lines
from paste_agent.cli.tables import shares_text
from paste_agent.kept import TraceRow
from paste_agent.recorder.layout import WHY_KEPT
from paste_agent.store.inside_summary import SHARED, code_of, dicts, number
from paste_agent.store.summary import probability_of, rfc3339, spans_text
from paste_agent.store.trace_tree import Node, all_of, trees
from paste_agent.wording import host_text, many, value_text

_NS = 1_000_000_000
_FIGURE = 8  #: columns of a duration
_NARROW = 40
#: Transactions that lie further apart, in times of what they took themselves, get a scale each.
_APART = 20
_MAX_PLAN = 12
_MAX_TEXT = 4096
#: Said elsewhere on the page, or the same for every request.
_SAID = frozenset((
    "url.path", "code.stacktrace", "paste_agent.stack.age", "paste_agent.sampling.probability", "paste.layers",
    "network.peer.address", "server.address", "server.port", "paste_agent.spans.dropped",
))  # fmt: skip
_PLANS = ("paste_agent.db.plan", "db.query.plan")


class Forms(NamedTuple):
    """What trees and bars are made of."""

    down: str  #: beside a child that is not the last
    branch: str
    last: str
    whole: str  #: a cell of a bar, and its halves
    left: str
    right: str


UNICODE = Forms("│ ", "├╴", "└╴", "━", "╸", "╺")
ASCII = Forms("| ", "|-", "`-", "-", "-", "-")


class Scale(NamedTuple):
    """Where the bars of one picture begin and end."""

    start_ns: int
    length_ns: int  #: at least 1

    def bar(self, times: Sequence[tuple[int, int]], width: int, forms: Forms) -> str:
        """The times as a bar, half a cell fine; the shortest of them can still be seen."""
        halves = [False] * (2 * width)
        for start_ns, duration_ns in times:
            begin = (start_ns - self.start_ns) * 2 * width // self.length_ns
            end = -((self.start_ns - start_ns - duration_ns) * 2 * width // self.length_ns)
            begin = min(max(begin, 0), 2 * width - 1)
            halves[begin : max(end, begin + 1)] = [True] * (min(max(end, begin + 1), 2 * width) - begin)
        pairs = zip(halves[::2], halves[1::2], strict=False)
        cell = {(False, False): " ", (True, True): forms.whole, (True, False): forms.left, (False, True): forms.right}
        return "".join(cell[pair] for pair in pairs)


def scale_of(roots: Sequence[Node]) -> Scale:
    times = [time for node in all_of(roots) for time in node.times]
    start_ns = min(start for start, _ in times)
    return Scale(start_ns, max(1, max(start + length for start, length in times) - start_ns))


class Columns(NamedTuple):
    """How a line is divided."""

    whole: int
    name: int
    bar: int


def columns_of(width: int) -> Columns:
    width = max(width, _NARROW)
    bar = min(max(width * 3 // 10, 10), 60)
    return Columns(width, width - bar - 2 * (_FIGURE + 1) - 2, bar)


def lines_of(
    rows: Sequence[TraceRow], width: int, *, fold: bool = True, more: bool = False, forms: Forms = UNICODE
) -> Iterator[Text]:
    """The page, line by line; all but stacks fit into `width`. more: there are transactions beside these."""
    columns = columns_of(width)
    roots = trees(rows, fold)
    yield Text.assemble(
        ("trace ", "dim"),
        (rows[0].trace_id.hex(), "bold"),
        (f"  {many(len(rows), 'transaction')}{' and more' if more else ''}, {spans_text(rows)}", "dim"),
    )
    for group in _groups(roots):
        scale = scale_of(group)
        yield Text()
        yield _heading(scale, columns)
        for root in group:
            yield from _tree(root, scale, columns, forms)
    for node in sorted((node for node in all_of(roots) if node.row is not None), key=lambda node: node.start_ns):
        yield Text()
        yield from _about(node, columns, alone=len(rows) == 1)


def _groups(roots: Sequence[Node]) -> list[list[Node]]:
    """Trees that share a scale: all, unless they lie so far apart that no bar would be seen."""
    if len(roots) > 1 and scale_of(roots).length_ns > _APART * sum(scale_of([root]).length_ns for root in roots):
        return [[root] for root in roots]
    return [list(roots)]


# -- the tree ------------------------------------------------------------------------------------------------------


def _heading(scale: Scale, columns: Columns) -> Text:
    start = rfc3339(scale.start_ns / _NS)
    end = _figure(scale.length_ns)
    name = (start.replace("T", " ") if columns.name >= len(start) else start[11:])[: columns.name]
    text = f"{name:<{columns.name}} {'took':>{_FIGURE}} {'own':>{_FIGURE}}  0{end:>{columns.bar - 1}}"
    return Text(text, style="dim")


def _figure(ns: int) -> str:
    """A duration that fits into its column, even one of centuries."""
    text = duration(ns / _NS)
    return text if len(text) <= _FIGURE else f"{ns / _NS:.0e} s"


def _tree(root: Node, scale: Scale, columns: Columns, forms: Forms) -> Iterator[Text]:
    """A line for each node, and more where there is more to tell."""
    # Node, the pieces that stand before its children, and its own.
    waiting: list[tuple[Node, tuple[str, ...], str]] = [(root, (), "")]
    deepest = max(2, columns.name // 5)
    told = ""
    while waiting:
        node, pieces, piece = waiting.pop()
        before = "".join(pieces[:deepest])
        deeper = f"({len(pieces) + 1}) " if len(pieces) > deepest else ""
        yield _line(node, before + piece, deeper, scale, columns, forms)
        below = pieces if not piece else (*pieces, forms.down if piece == forms.branch else "  ")
        indent = "".join(below[: deepest + 1]) + (forms.down if node.children else "  ")
        same = bool(node.text) and node.text == told
        room = max(columns.whole - len(indent), 1)
        for line in _more_of(node, room, same):
            line.truncate(room, overflow="ellipsis")
            yield Text().append(indent, style="dim").append_text(line)
        told = node.text
        for place, child in enumerate(reversed(node.children)):
            waiting.append((child, below, forms.branch if place else forms.last))


def _line(node: Node, before: str, deeper: str, scale: Scale, columns: Columns, forms: Forms) -> Text:
    text = Text().append(before, style="dim")
    text.append(deeper, style="dim italic")
    many = f" ×{len(node.times):,}" if len(node.times) > 1 else ""
    name = Text(_name_of(node), style="bold" if node.row is not None else "")
    if node.error is not None:
        name.stylize("red")
    name.truncate(max(4, columns.name - text.cell_len - len(many)), overflow="ellipsis")
    text.append_text(name)
    text.append(many, style="bold yellow")
    text.truncate(columns.name, overflow="ellipsis", pad=True)
    took, own = (_figure(ns).rjust(_FIGURE) for ns in (node.duration_ns, node.own_ns))
    text.append(f" {took}").append(f" {own}  ", style="" if 2 * node.own_ns > node.duration_ns else "dim")
    colour = COLOURS.get(node.category, "default")
    text.append(scale.bar(node.times, columns.bar, forms).rstrip(), style=colour)
    return text


def _name_of(node: Node) -> str:
    """With what the conventions leave out of a name: whom it called, and what it was answered."""
    attributes: Mapping[str, Any] = node.attributes if node.row is None else node.row.attributes
    words = [printable(node.name) or "(no name)"]
    address = attributes.get("server.address")
    if node.category in ("call", "message") and address:
        words.append(printable(host_text(address, attributes.get("server.port"))))
    status = attributes.get("http.response.status_code")
    if status is not None:
        words.append(printable(status, 8))
    return " ".join(words)


def _more_of(node: Node, room: int, same: bool) -> Iterator[Text]:
    """What there is to tell of a span beyond its line. room: columns. same: its query was told just before."""
    attributes = node.attributes
    if node.error is not None and node.row is None:
        code = attributes.get("db.response.status_code")
        yield Text(one_line(f"{node.error} {code}" if code else node.error, room), style="red")
    if len(node.times) > 1:
        mean_s, most_s = (ns / _NS for ns in (node.duration_ns / len(node.times), max(one for _, one in node.times)))
        yield Text(one_line(f"{duration(mean_s)} each, slowest {duration(most_s)}", room), style="yellow")
    if node.text and not same and node.text != node.name:
        yield Text(one_line(node.text, room), style="dim")
    if node.category == "call" and attributes.get("url.full"):
        yield Text(one_line(attributes["url.full"], room), style="dim")
    if node.category == "function":
        own = [f"{name}={value}" for name, value in attributes.items() if not str(name).startswith("code.")]
        if own:
            yield Text(one_line("  ".join(map(str, own)), room), style="dim")
    code = {name: attributes.get(f"code.{name}") for name in ("file.path", "line.number", "function.name")}
    place = code_of({"file": code["file.path"], "line": code["line.number"], "function": code["function.name"]})
    if place is not None:
        yield Text(one_line(place_text(place), room), style="cyan")
    for plan in filter(None, map(attributes.get, _PLANS)):
        for line in str(plan)[:_MAX_TEXT].splitlines()[:_MAX_PLAN]:
            yield Text(printable(line, room), style="green")


# -- about a transaction -------------------------------------------------------------------------------------------


def _about(node: Node, columns: Columns, alone: bool) -> Iterator[Text]:
    """All else that is known of one transaction. alone: it is the only one of the page, and needs no heading."""
    row = node.row
    assert row is not None
    detail: Mapping[str, Any] = row.detail or {}
    if not alone:
        heading = Text(_name_of(node), style="bold")
        heading.truncate(columns.whole - 24, overflow="ellipsis")
        yield heading.append(f"  span {node.id}", style="not bold dim")
    facts = list(_facts(row, detail, node.parent))
    width = min(max((len(label) for label, _ in facts), default=0), columns.whole // 3)
    for label, value in facts:
        line = Text().append(f"  {printable(label)}", style="dim")
        line.truncate(width + 2, overflow="ellipsis", pad=True)
        line.append("  ")
        value.truncate(max(8, columns.whole - line.cell_len), overflow="ellipsis")
        yield line.append_text(value)
    yield from _findings(detail, columns.whole)
    own = detail.get("own_files")
    yield from _exception(detail, columns.whole, own)
    found = _object(detail, "attributes")
    stack = found.get("code.stacktrace")
    if stack:
        age = found.get("paste_agent.stack.age")
        when = f" after {duration(age)}" if isinstance(age, (int, float)) else ""
        yield from _block(f"Where it was{when}", stack, own)
    postmortem = _object(detail, "postmortem")
    if postmortem.get("text"):
        yield from _block("Its worker died over it", postmortem["text"], own)


def _facts(row: TraceRow, detail: Mapping[str, Any], parent: Node | None) -> Iterator[tuple[str, Text]]:
    found = _object(detail, "attributes")
    yield "began", Text(f"{rfc3339(row.started_at_ns / _NS).replace('T', ' ')}, took {duration(row.duration_ns / _NS)}")
    if found.get("url.path"):
        yield "path", Text(printable(found["url.path"]))
    why = ", ".join(word for bit, word in WHY_KEPT.items() if row.why & bit)
    probability = probability_of(detail)
    stands = f"; one of about {1 / probability:,.0f} like it" if probability < 0.67 else ""
    yield "kept", Text(f"{why or 'for no known reason'}{stands}")
    if row.parent_id is not None:
        if parent is None:
            yield "caller", Text(f"span {row.parent_id.hex()}, not of this store")
        elif parent.row is None:
            yield "caller", Text(f"{_name_of(parent)}, of {_name_of(parent.transaction)}")
        else:
            yield "caller", Text(_name_of(parent))
    if detail == {}:
        yield "inside", Text("not written: by its process, which may have died, or not yet")
    yield from _spent(row, detail)
    yield from _errors(row, detail)
    layers = found.get("paste.layers")
    if isinstance(layers, list) and layers:
        yield "layers", Text(one_line(", ".join(map(str, layers))))
    for name, value in found.items():
        if name not in _SAID:
            yield str(name), Text(one_line(value_text(value)))


def _spent(row: TraceRow, detail: Mapping[str, Any]) -> Iterator[tuple[str, Text]]:
    """What its time was spent on, and the pauses and the CPU time that lie across these."""
    parts = {name: number(ns) for name, ns in _object(detail, "parts").items()}
    whole_ns = row.duration_ns or 1
    if not parts:
        return
    shares = sorted(((name, parts[name] / whole_ns) for name in SHARED if name in parts), key=lambda part: -part[1])
    yield "time", shares_text([*shares, (OWN, max(0.0, 1.0 - sum(share for _, share in shares)))])
    for name, label in (("gc", "GC pauses"), ("cpu", "CPU time")):
        if parts.get(name):
            yield label, Text(duration(parts[name] / _NS))


def _errors(row: TraceRow, detail: Mapping[str, Any]) -> Iterator[tuple[str, Text]]:
    seen = dicts(detail.get("errors"))
    for one in seen:
        place = f" in {one['place']}" if one.get("place") else ""
        expected = bool(one.get("expected"))
        text = one_line(f"{one.get('type')}{place}{', expected' if expected else ''}")
        yield "error", Text(text, style="green" if expected else "red")
    own = row.attributes.get("error.type")
    if own is not None and not seen:
        yield "error", Text(one_line(f"status {own}" if str(own).isdecimal() else own), style="red")


def _findings(detail: Mapping[str, Any], width: int) -> Iterator[Text]:
    """A line each: the tree has the rest."""
    for one in dicts(detail.get("findings")):
        repeated = one.get("kind") == "repeated"
        what = f"{number(one.get('count')):,} times the same query" if repeated else "slow query"
        line = Text().append(f"  {what}, {duration(number(one.get('duration')) / _NS)}  ", style="yellow")
        line.append(one_line(one.get("text") or ""), style="dim")
        line.truncate(width, overflow="ellipsis")
        yield line


def _exception(detail: Mapping[str, Any], width: int, own: object) -> Iterator[Text]:
    exception = _object(detail, "exception")
    if exception:
        message = exception.get("message")
        text = f"{exception.get('type')}: {message}" if message else f"{exception.get('type')}"
        yield from _block(one_line(text, 4 * width), exception.get("stacktrace"), own, style="red")


def _block(title: str, text: object, own: object, style: str = "bold") -> Iterator[Text]:
    """Text of many lines below its title. The lines are left as long as they are: a path that is cut leads nowhere."""
    yield Text()
    yield Text(f"  {printable(title, 1024)}", style=style)
    for line in stack_lines(str(text or ""), own, beside="dim"):
        yield Text("    ").append_text(line) if line.plain else line


def _object(detail: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = detail.get(name)
    return found if isinstance(found, dict) else {}
