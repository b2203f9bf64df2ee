"""Kept transactions by what is known of them, a page at a time. Reads only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from paste_agent.kept import TraceRow
from paste_agent.store.history import Window
from paste_agent.store.store import Store

_NS = 1_000_000_000
_ORDERS = {
    "newest": "started_at_ns DESC, span_id DESC",
    "slowest": "duration_ns DESC, started_at_ns DESC, span_id DESC",
}


class Filter(NamedTuple):
    """What transactions must be like; None and empty: any."""

    where: Mapping[str, object] = {}  #: attributes of their series; None: without it
    failed: bool = False
    least_s: float | None = None  #: that they took
    why: int = 0  #: KEPT_ bit
    text: str | None = None  #: anywhere in what is kept of them: path, query, message


def traces(
    store: Store,
    window: Window,
    wanted: Filter,
    *,
    order: str = "newest",
    limit: int = 50,
    before: tuple[int, bytes] | None = None,
) -> list[TraceRow]:
    """Those that began in the window. order: newest or slowest. before: start, ns, and span id: where a page of the
    newest ends, the next one begins.
    """
    condition, parameters = _condition(window, wanted)
    if before is not None:
        condition += " AND (started_at_ns, span_id) < (?, ?)"
        parameters += [before[0], before[1]]
    rows = store.query(
        "SELECT trace_id, span_id, parent_id, started_at_ns, duration_ns, failed, why, attributes, detail FROM traces"
        f" WHERE {condition} ORDER BY {_ORDERS[order]} LIMIT ?",
        (*parameters, limit),
    )
    return [_row(row) for row in rows]


def count(store: Store, window: Window, wanted: Filter) -> int:
    """How many there are."""
    condition, parameters = _condition(window, wanted)
    ((found,),) = store.query(f"SELECT count(*) FROM traces WHERE {condition}", parameters)
    return int(found)


def _condition(window: Window, wanted: Filter) -> tuple[str, list[object]]:
    parts = ["started_at_ns >= ? AND started_at_ns < ?"]
    parameters: list[object] = [window.start_s * _NS, min(window.end_s * _NS, (1 << 63) - 1)]
    for name, value in wanted.where.items():
        parts.append(f"CASE WHEN json_valid(attributes) THEN json_extract(attributes, '$.\"{name}\"') END IS ?")
        parameters.append(value)
    if wanted.failed:
        parts.append("failed")
    if wanted.least_s is not None:
        parts.append("duration_ns >= ?")
        parameters.append(int(wanted.least_s * _NS))
    if wanted.why:
        parts.append("why & ?")
        parameters.append(wanted.why)
    if wanted.text:
        # As JSON has it: quotes and what is beyond ASCII are escaped there.
        needle = json.dumps(wanted.text)[1:-1].lower()
        parts.append("(instr(lower(attributes), ?) OR instr(lower(detail), ?) OR hex(trace_id) LIKE ?)")
        digits = "".join(char for char in wanted.text if char in "0123456789abcdefABCDEF")
        parameters += [needle, needle, f"{digits}%" if digits == wanted.text else ""]
    return " AND ".join(parts), parameters


def _row(columns: tuple[Any, ...]) -> TraceRow:
    trace_id, span_id, parent_id, started_at_ns, duration_ns, failed, why, attributes, detail = columns
    known = None if detail is None else _object(detail)
    return TraceRow(
        trace_id, span_id, parent_id, started_at_ns, duration_ns, bool(failed), why, _object(attributes), known
    )


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
