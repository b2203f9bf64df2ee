"""Puts the transactions and spans of a trace together as trees, and folds what repeats. Pure.

What it is told comes from a store that anybody may have written: parents that are missing or go in circles, times
before the beginning, any type in any place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from paste_agent.kept import TraceRow
from paste_agent.store.inside_summary import dicts, number
from paste_agent.store.summary import trace_name

TRANSACTION = "transaction"
#: From how many identical siblings on they are shown as one.
FOLD = 6
_TEXT = "db.query.text"
#: Spans that differ in these are of different calls.
_TOLD_APART = (_TEXT, "server.address", "server.port", "http.response.status_code")
#: Of one span of a loop: where it was issued, and how it was carried out.
_OF_ONE = frozenset(
    ("code.file.path", "code.line.number", "code.function.name", "paste_agent.db.plan", "db.query.plan")
)


class Node:
    """A transaction, a span, or several spans that are shown as one."""

    __slots__ = (
        "attributes",
        "category",
        "children",
        "duration_ns",
        "error",
        "id",
        "name",
        "own_ns",
        "parent",
        "row",
        "shape",
        "start_ns",
        "times",
        "transaction",
    )

    def __init__(self, id: str, category: str, name: str, start_ns: int, duration_ns: int) -> None:
        """start_ns: since the epoch."""
        self.id = id
        self.category = category
        self.name = name
        self.start_ns = start_ns
        self.duration_ns = duration_ns  #: of all that are shown as this one
        self.own_ns = duration_ns  #: without what is inside of it
        self.error: str | None = None
        self.attributes: Mapping[str, Any] = {}
        self.row: TraceRow | None = None  #: of a transaction
        self.transaction = self  #: that it is a part of
        self.parent: Node | None = None
        self.children: list[Node] = []
        self.times: list[tuple[int, int]] = [(start_ns, duration_ns)]  #: start and duration of each of them
        self.shape = 0  #: the same number: the same but for times

    @property
    def text(self) -> str:
        """Of a query, without values; '' for anything else."""
        return str(self.attributes.get(_TEXT) or "")


def trees(rows: Sequence[TraceRow], fold: bool = True) -> list[Node]:
    """The transactions of a trace that have no parent among these, with all that is below them; the first first."""
    nodes = _nodes(rows)
    _break_circles(nodes)
    roots: list[Node] = []
    for node in nodes:
        (roots if node.parent is None else node.parent.children).append(node)
    roots.sort(key=_by_start)
    for node in nodes:
        node.children.sort(key=_by_start)
        if node.row is not None:
            spent_ns = sum(child.duration_ns for child in node.children if child.transaction is node)
            left_out_ns = max(0, number((node.row.detail or {}).get("dropped_ns")))
            node.own_ns = max(0, node.duration_ns - spent_ns - left_out_ns)
    if fold:
        _fold(roots)
    return roots


def all_of(roots: Iterable[Node]) -> Iterator[Node]:
    """Every node, parents before their children."""
    waiting = list(roots)
    while waiting:
        node = waiting.pop()
        yield node
        waiting.extend(node.children)


def _by_start(node: Node) -> int:
    return node.start_ns


def _nodes(rows: Sequence[TraceRow]) -> list[Node]:
    """All of them, each with its parent."""
    nodes: list[Node] = []
    everywhere: dict[str, Node] = {}
    for row in rows:
        transaction = _transaction_of(row)
        spans = [_span_of(fields, transaction) for fields in dicts((row.detail or {}).get("spans"))]
        own = {span.id: span for span in spans}
        for span, fields in zip(spans, dicts((row.detail or {}).get("spans")), strict=True):
            parent = own.get(str(fields.get("parent")))
            span.parent = transaction if parent is None or parent is span else parent
        nodes += [transaction, *spans]
        everywhere |= {span.id: span for span in spans}
        everywhere[transaction.id] = transaction
    for node in nodes:
        if node.row is not None and node.row.parent_id is not None:
            parent = everywhere.get(node.row.parent_id.hex())
            # A span of its own is no caller of it.
            node.parent = None if parent is None or parent.transaction is node else parent
    return nodes


def _transaction_of(row: TraceRow) -> Node:
    node = Node(
        row.span_id.hex(), TRANSACTION, trace_name(row.attributes), number(row.started_at_ns), number(row.duration_ns)
    )
    node.row = row
    error = row.attributes.get("error.type")
    node.error = str(error) if error is not None else ("failed" if row.failed else None)
    return node


def _span_of(fields: Mapping[str, Any], transaction: Node) -> Node:
    duration_ns = max(0, number(fields.get("duration")))
    node = Node(
        str(fields.get("id")),
        str(fields.get("category")),
        str(fields.get("name")),
        transaction.start_ns + number(fields.get("start")),
        duration_ns,
    )
    node.own_ns = max(0, number(fields.get("own", duration_ns)))
    node.transaction = transaction
    attributes = fields.get("attributes")
    node.attributes = attributes if isinstance(attributes, dict) else {}
    error = error_of(fields)
    node.error = None if error is None else str(error)
    return node


def error_of(fields: Mapping[str, Any]) -> object:
    """What a span of the store has failed with, None: it has not. As on the wire, what it says of itself goes first."""
    error, attributes = fields.get("error"), fields.get("attributes")
    if error is None or not isinstance(attributes, dict):
        return error
    return attributes.get("error.type", error)


def _break_circles(nodes: Iterable[Node]) -> None:
    """Where parents go in a circle, a transaction of it begins a tree; one of mere spans hangs below its own."""
    sound: set[int] = set()
    for node in nodes:
        while True:
            path: dict[int, Node] = {}
            at: Node | None = node
            while at is not None and id(at) not in sound and id(at) not in path:
                path[id(at)] = at
                at = at.parent
            if at is None or id(at) in sound:
                sound.update(path)
                break
            circle = list(path.values())[list(path).index(id(at)) :]
            first = next((one for one in circle if one.row is not None), None)
            if first is not None:
                first.parent = None
            else:
                at.parent = at.transaction


# -- folding -------------------------------------------------------------------------------------------------------


def _fold(roots: Sequence[Node]) -> None:
    """Show many siblings of one shape as one: from the leaves up, so that what is inside of them is folded before."""
    shapes: dict[object, int] = {}
    for node in reversed(list(all_of(roots))):
        # A transaction has much to tell of itself: it is never folded.
        shape = (
            id(node)
            if node.row is not None
            else (
                node.category,
                node.name,
                node.error,
                tuple(str(node.attributes.get(name)) for name in _TOLD_APART),
                tuple(child.shape for child in node.children),
            )
        )
        node.shape = shapes.setdefault(shape, len(shapes))
        _fold_children(node)


def _fold_children(node: Node) -> None:
    """Also where others stand in between: a loop with two queries in it repeats both."""
    if len(node.children) < FOLD:
        return
    groups: dict[int, list[Node]] = {}
    for child in node.children:
        groups.setdefault(child.shape, []).append(child)
    if all(len(group) < FOLD for group in groups.values()):
        return
    node.children = sorted(
        (child for group in groups.values() for child in ([_merged(group)] if len(group) >= FOLD else group)),
        key=_by_start,
    )


def _merged(group: Sequence[Node]) -> Node:
    """Nodes of one shape as one. As deep as they are: many of a shape cannot be deep, there are but so many spans."""
    first = group[0]
    merged = Node(first.id, first.category, first.name, first.start_ns, sum(one.duration_ns for one in group))
    merged.own_ns = sum(one.own_ns for one in group)
    merged.error, merged.parent, merged.transaction, merged.shape = (
        first.error,
        first.parent,
        first.transaction,
        first.shape,
    )
    shown = next((one.attributes for one in group if "code.file.path" in one.attributes), first.attributes)
    merged.attributes = {
        name: value
        for name, value in shown.items()
        if name in _OF_ONE or all(name in one.attributes and one.attributes[name] == value for one in group)
    }
    merged.times = [times for one in group for times in one.times]
    merged.children = [_merged(children) for children in zip(*(one.children for one in group), strict=False)]
    return merged
