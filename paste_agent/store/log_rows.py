"""Log records in the store: those that wait to be sent, and those that have been."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from paste_agent.log_files import LogRow
from paste_agent.store.store import Store

#: Those that are kept, whatever their age: about 10 MB.
MOST_ROWS = 20_000


class StoredLog(NamedTuple):
    """A log record, and the name that the store has for it."""

    source: str
    line: int
    row: LogRow


def add_logs(store: Store, source: str, rows: Sequence[LogRow]) -> None:
    """Store the rows of a file. source: its name: to store it again changes nothing. Raises sqlite3.Error."""
    with store.transaction() as db:
        db.executemany(
            "INSERT OR IGNORE INTO logs VALUES (?, ?, ?, ?, ?, ?, 0)",
            [(source, line, row.at_ns, row.trace_id, row.span_id, _packed(row)) for line, row in enumerate(rows)],
        )


def logs_to_send(store: Store, limit: int) -> list[StoredLog]:
    """The oldest that wait. Raises sqlite3.Error."""
    rows = store.query(
        "SELECT source, line, at_ns, trace_id, span_id, record FROM logs WHERE sent = 0 ORDER BY at_ns LIMIT ?",
        (limit,),
    )
    return [StoredLog(source, line, _unpacked(*columns)) for source, line, *columns in rows]


def settle_logs(store: Store, rows: Iterable[StoredLog], state: int) -> None:
    """state: SENT or REFUSED; neither is tried again. Raises sqlite3.Error."""
    with store.transaction() as db:
        db.executemany(
            "UPDATE logs SET sent = ? WHERE source = ? AND line = ?", [(state, row.source, row.line) for row in rows]
        )


def forget_logs(db: sqlite3.Connection, oldest_ns: int) -> None:
    """Remove those that are older, and those beyond MOST_ROWS, the oldest first."""
    db.execute("DELETE FROM logs WHERE at_ns < ?", (oldest_ns,))
    db.execute(
        "DELETE FROM logs WHERE at_ns <= (SELECT at_ns FROM logs ORDER BY at_ns DESC LIMIT 1 OFFSET ?)", (MOST_ROWS,)
    )


def _packed(row: LogRow) -> str:
    return json.dumps(
        {
            "severity": row.severity,
            "severity_text": row.severity_text,
            "logger": row.logger,
            "body": row.body,
            "attributes": dict(row.attributes),
        }
    )


def _unpacked(at_ns: int, trace_id: bytes | None, span_id: bytes | None, record: str) -> LogRow:
    """A row, empty where it is no record of ours: somebody else may have written to the store."""
    try:
        found: Any = json.loads(record)
    except (ValueError, RecursionError):
        found = None
    fields: dict[str, Any] = found if isinstance(found, dict) else {}
    severity, attributes = fields.get("severity"), fields.get("attributes")
    words = [found if isinstance(found := fields.get(key), str) else "" for key in ("severity_text", "logger", "body")]
    return LogRow(
        at_ns=at_ns,
        severity=severity if isinstance(severity, int) else 0,
        severity_text=words[0],
        logger=words[1],
        body=words[2],
        attributes=attributes if isinstance(attributes, dict) else {},
        trace_id=trace_id,
        span_id=span_id,
    )
