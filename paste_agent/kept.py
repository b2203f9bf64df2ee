"""Kept transactions on their way to the store: from the process that recorded them to the lead, as files.

Only the lead writes to the store, and only the lead carries SQLite. A reporter puts what its process has kept into a
file of the runtime directory, a line of JSON each; the lead stores the lines and removes the file. Files survive the
process that wrote them. They are untrusted when they are read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from paste_agent import runtime_dir

SUFFIX = ".kept"
#: Of one file; a reporter writes two a second at the most, and more of them when its process ends.
MAX_BYTES = 4 * 1024 * 1024
_INT64 = 1 << 63


class TraceRow(NamedTuple):
    """A kept transaction, as the store has it."""

    trace_id: bytes  #: 16 bytes
    span_id: bytes  #: 8 bytes
    parent_id: bytes | None
    started_at_ns: int  #: since the epoch
    duration_ns: int
    failed: bool
    why: int  #: KEPT_ bits
    attributes: Mapping[str, str | int]  #: of its series
    #: Attributes of the span beyond those of its series, tracestate, exception: see `detail.trace_row`. None: the
    #: process that recorded it has not written it (yet).
    detail: Mapping[str, object] | None


def write(path: str, lines: Iterable[bytes]) -> None:
    """Make the file of what `line_of` has made, MAX_BYTES at the most; whole or not at all. Raises OSError."""
    runtime_dir.write_file(path, b"".join(lines))


def read(path: str) -> list[TraceRow]:
    """The rows of a file; lines that are no rows are passed over. Raises OSError."""
    data = runtime_dir.read_file(path, MAX_BYTES)
    found = [_row(line) for line in data.splitlines()]
    return [row for row in found if row is not None]


def line_of(row: TraceRow) -> bytes:
    fields = {
        **row._asdict(),
        "trace_id": row.trace_id.hex(),
        "span_id": row.span_id.hex(),
        "parent_id": None if row.parent_id is None else row.parent_id.hex(),
    }
    # As it is, text beyond ASCII takes half the room; surrogates too come back, which `json.loads` lets pass.
    return json.dumps(fields, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def _row(line: bytes) -> TraceRow | None:
    try:
        fields: Any = json.loads(line)
        parent = fields["parent_id"]
        row = TraceRow(
            trace_id=bytes.fromhex(fields["trace_id"]),
            span_id=bytes.fromhex(fields["span_id"]),
            parent_id=None if parent is None else bytes.fromhex(parent),
            started_at_ns=int(fields["started_at_ns"]),
            duration_ns=int(fields["duration_ns"]),
            failed=bool(fields["failed"]),
            why=int(fields["why"]),
            attributes=fields["attributes"],
            detail=fields["detail"],
        )
    except (ValueError, OverflowError, TypeError, KeyError, RecursionError):
        return None
    if not isinstance(row.attributes, dict) or not isinstance(row.detail, dict):
        return None
    fits = all(0 <= number < _INT64 for number in (row.started_at_ns, row.duration_ns, row.why))
    return row if fits and len(row.trace_id) == 16 and len(row.span_id) == 8 else None
