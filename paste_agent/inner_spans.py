"""Turns the spans inside of a kept transaction into what the store keeps of them. For the reporter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from paste_agent.inside import CACHE, CALL, DATABASE, FUNCTION, MESSAGE, TEMPLATE, FinishedSpan, Inside, is_fetch
from paste_agent.said import Said

#: Of a span's attributes: characters of one value, and how many there may be.
_MAX_VALUE = 4000
_MAX_ATTRIBUTES = 32
_INT64 = 1 << 63
#: Findings of one transaction.
_MAX_FINDINGS = 10
_MASK = (1 << 64) - 1
_CODE = ("code.file.path", "code.line.number", "code.function.name")
#: By category: what a span is called in the store and in a report.
CATEGORIES = {
    DATABASE: "database",
    CACHE: "cache",
    CALL: "call",
    MESSAGE: "message",
    TEMPLATE: "template",
    FUNCTION: "function",
}


def spans_of(inside: Inside, span_id: bytes, start_ns: int) -> list[dict[str, Any]]:
    """The spans of a transaction as JSON, in the order in which they began; times in ns from its start.

    span_id: of the transaction. A span whose service was told of it keeps its id, the others get theirs here. `said`:
    names of those attributes that are the application's.
    """
    found = sorted(map(FinishedSpan.of, list(inside.finished)))
    ids = {span.number: (span.span_id or _id_of(span_id, span.number)).hex() for span in found}
    return [_as_json(span, ids, start_ns) for span in found]


def _id_of(span_id: bytes, number: int) -> bytes:
    """An id that no other span of the trace has, as likely as with chance."""
    return ((int.from_bytes(span_id, "big") + number * 0x9E3779B97F4A7C15) & _MASK or 1).to_bytes(8, "big")


def _as_json(span: FinishedSpan, ids: Mapping[int, str], start_ns: int) -> dict[str, Any]:
    attributes = attributes_as_json(span.attributes or {})
    said = set(attributes) if isinstance(span.attributes, Said) else set()
    if span.code is not None:
        attributes.update(zip(_CODE, span.code, strict=True))
        said.difference_update(_CODE)
    fields: dict[str, Any] = {
        "id": ids[span.number],
        "parent": ids.get(span.parent),  # None: the transaction itself, or one that has not ended in time
        "category": CATEGORIES.get(span.category, "function"),
        "name": span.name,
        "start": span.start_ns - start_ns,
        "duration": span.duration_ns,
        "own": span.own_ns,
    }
    if span.failed is not None:
        fields["error"] = span.failed
    if attributes:
        fields["attributes"] = attributes
    if said:
        fields["said"] = said
    return fields


def attributes_as_json(attributes: Mapping[str, object], most: int = _MAX_ATTRIBUTES) -> dict[str, Any]:
    """Attributes of any making, bounded, of types that can be sent; values that are none are left out."""
    found: dict[str, Any] = {}
    for key, value in list(attributes.items())[:most]:
        if isinstance(value, str):
            found[str(key)] = value[:_MAX_VALUE]
        elif isinstance(value, (bool, float)) or (isinstance(value, int) and -_INT64 <= value < _INT64):
            found[str(key)] = value
        elif value is not None and not isinstance(value, int):
            found[str(key)] = str(value)[:_MAX_VALUE]
    return found


def findings_of(inside: Inside, repeated: int, slow_query_ns: int, *, texts: bool = True) -> list[dict[str, Any]]:
    """Queries of a transaction that are worth a look: one statement many times under one parent, and slow ones.

    repeated: from how many times on. texts: whether statements are shown, rather than names of spans. The ones that
    took most time first.
    """
    groups: dict[tuple[int, str], list[FinishedSpan]] = {}
    found: list[dict[str, Any]] = []
    for span in map(FinishedSpan.of, list(inside.finished)):
        if span.category == DATABASE and not is_fetch(span.name):
            text = str((span.attributes or {}).get("db.query.text") or span.name)
            groups.setdefault((span.parent, text), []).append(span)
            if span.duration_ns > slow_query_ns:
                found.append(_finding("slow", text if texts else span.name, [span]))
    left = getattr(inside, "left_out", None)
    for (parent, text), spans in groups.items():
        more, more_ns = left.queries.get((parent, text), (0, 0)) if left is not None else (0, 0)
        if len(spans) + more >= repeated:
            one = _finding("repeated", text if texts else spans[0].name, spans)
            found.append({**one, "count": one["count"] + more, "duration": one["duration"] + more_ns})
    return sorted(found, key=lambda finding: -finding["duration"])[:_MAX_FINDINGS]


def _finding(kind: str, text: str, spans: Sequence[FinishedSpan]) -> dict[str, Any]:
    code = next((span.code for span in spans if span.code is not None), None)
    return {
        "kind": kind,
        "text": text[:_MAX_VALUE],
        "count": len(spans),
        "duration": sum(span.duration_ns for span in spans),
        "code": None if code is None else {"file": code[0], "line": code[1], "function": code[2]},
    }
