"""Log records on their way to the store: from the process that wrote them to the lead, as files. Like `kept`.

Files survive the process that wrote them. They are untrusted when they are read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from paste_agent import runtime_dir

SUFFIX = ".logs"
#: Of one file; a reporter writes one a second at the most.
MAX_BYTES = 4 * 1024 * 1024
#: Rows of one file that are read: many times what a process may forward in a second.
MAX_ROWS = 4096
#: Characters: of a record's text, of a stack, of anything else.
MAX_BODY, MAX_STACK, MAX_WORD = 4096, 16_384, 1024
_INT64 = 1 << 63
_ATTRIBUTES = 16


class LogRow(NamedTuple):
    """One record of a log, as the store has it."""

    at_ns: int  #: since the epoch
    severity: int  #: OTLP's number, 1 to 24; 0: unknown
    severity_text: str
    logger: str
    body: str
    attributes: Mapping[str, str | int]
    trace_id: bytes | None  #: 16 bytes; None: it was written outside of a transaction
    span_id: bytes | None  #: 8 bytes


def write(path: str, rows: Sequence[LogRow]) -> None:
    """Make the file, whole or not at all. Raises OSError."""
    runtime_dir.write_file(path, b"".join(_line(row) for row in rows))


def read(path: str) -> list[LogRow]:
    """The rows of a file; lines that are no rows are passed over. Raises OSError."""
    data = runtime_dir.read_file(path, MAX_BYTES)
    found = [_row(line) for line in data.splitlines()[:MAX_ROWS]]
    return [row for row in found if row is not None]


def _line(row: LogRow) -> bytes:
    fields = {
        **row._asdict(),
        "trace_id": None if row.trace_id is None else row.trace_id.hex(),
        "span_id": None if row.span_id is None else row.span_id.hex(),
    }
    return json.dumps(fields).encode() + b"\n"


def _row(line: bytes) -> LogRow | None:
    try:
        fields: Any = json.loads(line)
        row = LogRow(
            at_ns=int(fields["at_ns"]),
            severity=int(fields["severity"]),
            severity_text=_text(fields["severity_text"], MAX_WORD),
            logger=_text(fields["logger"], MAX_WORD),
            body=_text(fields["body"], MAX_BODY),
            attributes={
                _text(key, MAX_WORD): value[:MAX_STACK] if isinstance(value, str) else _whole(value)
                for key, value in list(fields["attributes"].items())[:_ATTRIBUTES]
            },
            trace_id=_id(fields["trace_id"], 16),
            span_id=_id(fields["span_id"], 8),
        )
    except (ValueError, OverflowError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return row if 0 <= row.at_ns < _INT64 and 0 <= row.severity <= 24 else None


def _text(value: object, most: int) -> str:
    if not isinstance(value, str):
        raise TypeError("no text")
    return value[:most]


def _whole(value: object) -> int:
    if not isinstance(value, int) or not -_INT64 <= value < _INT64:
        raise TypeError("no whole number of 64 bits")
    return value


def _id(text: object, size: int) -> bytes | None:
    if text is None:
        return None
    found = bytes.fromhex(_text(text, 2 * size))
    if len(found) != size:
        raise ValueError("no id")
    return found
