"""Kept transactions with spans inside of them, as a store has them."""

from __future__ import annotations

from typing import Any

from paste_agent.kept import TraceRow
from paste_agent.recorder.layout import KEPT_SLOW
from tests.recorders import MS, S

START = 1_800_000_000 * S
TRACE = "0af7651916cd43dd8448eb211c80319c"
ROUTE = {"http.request.method": "GET", "http.route": "/items", "http.response.status_code": 200}


def one(
    name: str, start: int = 0, duration: int = MS, *, id: str = "", parent: str | None = None, **more: Any
) -> dict[str, Any]:
    """A span as a detail has it. id: its name when not given."""
    fields = {"id": id or name, "parent": parent, "name": name, "start": start, "duration": duration, "own": duration}
    return {**fields, "category": "database", **more}


def row_of(
    *spans: dict[str, Any],
    number: int = 1,
    parent: str | None = None,
    start: int = 0,
    duration: int = 100 * MS,
    trace: str = TRACE,
    why: int = KEPT_SLOW,
    series: dict[str, Any] | None = None,
    **detail: Any,
) -> TraceRow:
    """A kept transaction. number: its span id. parent: span id of its caller. series: attributes that it has there."""
    return TraceRow(
        bytes.fromhex(trace),
        number.to_bytes(8, "big"),
        None if parent is None else bytes.fromhex(parent),
        START + start,
        duration,
        False,
        why,
        series or ROUTE,
        {"spans": list(spans), **detail},
    )
