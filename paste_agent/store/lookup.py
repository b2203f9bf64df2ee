"""Finds kept traces by their id and by what is inside of them, and when a series was counted. Reads only."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from paste_agent.kept import TraceRow
from paste_agent.store import cover
from paste_agent.store.store import TRACE_COLUMNS, Store, json_object, trace_row

_MAX_NS = (1 << 63) - 1
_MAX_S = 1 << 60
_ID_DIGITS = 32
_PADDING = "0" * 16
#: What a digest has of a detail.
DIGEST = ("findings", "errors", "exception")
#: As a list of JSON. What is none to SQLite, such as a NaN, still is to Python.
_DIGEST = (
    "CASE WHEN json_valid(detail) THEN json_extract(detail, '$.findings', '$.errors', '$.exception') ELSE detail END"
)


def trace_ids(store: Store, beginning: str) -> list[str]:
    """Ids of kept traces that begin so, as hexadecimal digits; two at the most. [] where `beginning` is no digits.

    Of an id of 64 bits, its own 16 digits, as `own_digits` has them, do as well as all 32.
    """
    if not beginning or len(beginning) > _ID_DIGITS or not set(beginning.lower()) <= set("0123456789abcdef"):
        return []
    found: set[str] = set()
    for one in (beginning, _PADDING + beginning) if len(beginning) <= len(_PADDING) else (beginning,):
        rows = store.query(
            "SELECT DISTINCT trace_id FROM traces WHERE trace_id BETWEEN ? AND ? LIMIT 2",
            (bytes.fromhex(one.ljust(_ID_DIGITS, "0")), bytes.fromhex(one.ljust(_ID_DIGITS, "f"))),
        )
        found.update(trace_id.hex() for (trace_id,) in rows)
    return sorted(found)[:2]


def own_digits(trace_id: str) -> str:
    """Without the zeros that callers with ids of 64 bits, as B3 and Jaeger allow them, have them filled up with."""
    return trace_id.removeprefix(_PADDING)


def transactions_of(store: Store, trace_id: str, limit: int) -> list[TraceRow]:
    """The kept transactions of a trace, in the order in which they began; `limit` at the most."""
    rows = store.query(
        f"SELECT {TRACE_COLUMNS} FROM traces WHERE trace_id = ? ORDER BY started_at_ns, span_id LIMIT ?",
        (bytes.fromhex(trace_id), limit),
    )
    return [trace_row(row) for row in rows]


#: Which kept transactions have something of note, word for word as the indexes on them have it. A detail may be 100 KB,
#: most of it spans: looking for a key is cheaper than reading it as JSON, and a value cannot look like a key, since its
#: quotes are escaped.
_HAVING = {"findings": """instr(detail, '"findings": ')""", "errors": """instr(detail, '"errors": ') OR failed"""}


def digests(store: Store, start_s: float, end_s: float, limit: int, part: str) -> list[TraceRow]:
    """Kept transactions that began in [start_s, end_s) and have something of note, newest first.

    part: `findings`: those whose detail has any; `errors`: the same, and those that failed. Of each detail no more than
    DIGEST.
    """
    detail = _DIGEST if knows_json(store) else "detail"
    columns = TRACE_COLUMNS.removesuffix("detail") + detail
    rows = store.query(
        f"SELECT {columns} FROM traces WHERE started_at_ns >= ? AND started_at_ns < ?"
        f" AND ({_HAVING[part]}) ORDER BY started_at_ns DESC LIMIT ?",
        (int(start_s * 1e9), min(int(end_s * 1e9), _MAX_NS), limit),
    )
    return [trace_row((*row[:-1], None))._replace(detail=_digest(row[-1])) for row in rows]


def knows_json(store: Store) -> bool:
    """Whether SQLite was built with its functions for JSON; nearly all are."""
    try:
        store.query("SELECT json_valid('{}')")
    except sqlite3.OperationalError:
        return False
    return True


def _digest(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    if isinstance(found, list):
        found = dict(zip(DIGEST, found, strict=False))
    return {name: found[name] for name in DIGEST if found.get(name) is not None} if isinstance(found, dict) else {}


def times_seen(
    store: Store, metric: str, start_s: float, end_s: float, having: str = "", *, within_s: int = 0
) -> list[tuple[Mapping[str, object], float, float]]:
    """Attributes of each series of a metric, and where the first and the last rollup begin that it is in.

    Of the rollups that begin in [start_s, end_s); s since the epoch, as exact as the rollups are wide.
    having: an attribute that the series must have. within_s: how far before that the times may be, for speed.
    """
    with store.reading():
        named = store.query(
            "SELECT id, attributes FROM series WHERE metric = ? AND instr(attributes, ?)",
            (metric, f"{json.dumps(having)}: " if having else ""),
        )
        state = cover.state_of(store)
        span = math.ceil(start_s), math.ceil(min(end_s, _MAX_S))
        seen = _seen(store, state, [number for number, _ in named], span, within_s)
    return [(json_object(attributes), *map(float, seen[number])) for number, attributes in named if number in seen]


def _seen(
    store: Store, state: cover.State, numbers: Sequence[int], span: tuple[int, int], within_s: int
) -> dict[int, tuple[int, int]]:
    """By series, where its first and its last rollup begin. Copies tell where to look closer."""
    keys = {number: number for number in numbers}
    pieces = cover.cover(state, *span, cover.SERIES)
    if not keys or not pieces:
        return {}
    cover.use(store, keys)
    found: dict[int, list[tuple[int, int]]] = {}
    for piece in pieces:
        rows = store.query(f"SELECT key, min(start), max(start) FROM {cover.source(piece, keys)} GROUP BY key")
        for number, first, last in rows:
            found.setdefault(number, []).extend([(first, piece.width), (last, piece.width)])
    ends = {number: (min(places), max(places)) for number, places in found.items()}
    closer: dict[tuple[int, int], list[int]] = {}
    for number, places in ends.items():
        for place in {place for place in places if place[1] > within_s}:
            closer.setdefault(place, []).append(number)
    within = {place: _within(store, state, place, some, within_s) for place, some in closer.items()}
    return {
        number: (
            within[first][number][0] if first[1] > within_s else first[0],
            within[last][number][1] if last[1] > within_s else last[0],
        )
        for number, (first, last) in ends.items()
    }


def _within(
    store: Store, state: cover.State, place: tuple[int, int], numbers: Sequence[int], within_s: int
) -> dict[int, tuple[int, int]]:
    """The same of one copy's slot, by what is narrower."""
    start, width = place
    narrower = {level: span for level, span in state.spans.items() if level[0] < width}
    return _seen(store, state._replace(spans=narrower), numbers, (start, start + width), within_s)
