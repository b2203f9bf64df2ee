"""Lists kept transactions as somebody asks for them, page by page. Reads only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

from paste_agent.kept import TraceRow
from paste_agent.store.lookup import knows_json
from paste_agent.store.store import TRACE_COLUMNS, Store, trace_row

_MAX_NS = (1 << 63) - 1
NEWEST, SLOWEST = "newest", "slowest"
_ORDERS = {NEWEST: "started_at_ns DESC, span_id DESC", SLOWEST: "duration_ns DESC, started_at_ns DESC, span_id DESC"}
#: What is said of the error that a transaction ended with. What is no JSON to SQLite is looked through as it is.
_ERROR = (
    "CASE WHEN instr(detail, '\"exception\": ') = 0 THEN ''"
    " WHEN json_valid(detail) THEN coalesce(json_extract(detail, '$.exception.type'), '')"
    " || ': ' || coalesce(json_extract(detail, '$.exception.message'), '') ELSE detail END"
)


class Wanted(NamedTuple):
    """Which transactions; what is left out is not asked for."""

    #: Attributes of the series, all of which must be equal; None: it has no such attribute. For a route:
    #: {"http.request.method": "GET", "http.route": "/items/{id}"}; for a task: {"paste_agent.task.name": "mail"}.
    where: Mapping[str, object] = {}  # nobody writes to it
    failed: bool | None = None
    why: int = 0  #: KEPT_ bits, one of which it was kept for; KEPT_SLOW: those that were slow
    min_duration_ns: int = 0
    error: str = ""  #: to be found in `type: message` of its error; upper and lower case are the same
    text: str = ""  #: the same anywhere in what is kept of it, or the beginning of its trace's id


class Place(NamedTuple):
    """Of a transaction among the newest: where the next page goes on."""

    started_at_ns: int
    span_id: bytes


def place_of(row: TraceRow) -> Place:
    return Place(row.started_at_ns, row.span_id)


def find(
    store: Store,
    start_s: float,
    end_s: float,
    wanted: Wanted = Wanted(),  # noqa: B008  # a constant
    *,
    order: str = NEWEST,
    limit: int = 50,
    after: Place | None = None,
    bare: bool = False,
) -> list[TraceRow]:
    """Those that began in [start_s, end_s), `limit` at the most.

    after: the last one of the page before, of the newest alone. bare: without detail, which is most of what there is
    to read. Raises sqlite3.Error.
    """
    asked, parameters = _asked(store, start_s, end_s, wanted)
    if after is not None:
        assert order == NEWEST, "only the newest have pages"
        # The first comparison is the one that the index is good for.
        asked += " AND started_at_ns <= ? AND (started_at_ns, span_id) < (?, ?)"
        parameters += [after.started_at_ns, *after]
    columns = TRACE_COLUMNS.removesuffix("detail") + "NULL" if bare else TRACE_COLUMNS
    # Sorted by their keys alone: a detail may be 100 KB.
    chosen = f"SELECT trace_id AS t, span_id AS s FROM traces WHERE {asked} ORDER BY {_ORDERS[order]} LIMIT ?"
    rows = store.query(
        f"SELECT {columns} FROM ({chosen}) CROSS JOIN traces WHERE trace_id = t AND span_id = s"
        f" ORDER BY {_ORDERS[order]}",
        [*parameters, limit],
    )
    return [trace_row(row) for row in rows]


def count(store: Store, start_s: float, end_s: float, wanted: Wanted = Wanted()) -> int:  # noqa: B008  # a constant
    """How many there are of them. Raises sqlite3.Error."""
    asked, parameters = _asked(store, start_s, end_s, wanted)
    return int(store.query(f"SELECT count(*) FROM traces WHERE {asked}", parameters)[0][0])


def _asked(store: Store, start_s: float, end_s: float, wanted: Wanted) -> tuple[str, list[object]]:
    asked = ["started_at_ns >= ? AND started_at_ns < ?"]
    parameters: list[object] = [_ns(start_s), _ns(end_s)]
    if wanted.failed is not None:
        asked.append("failed = ?")
        parameters.append(int(wanted.failed))
    if wanted.why:
        asked.append("why & ?")
        parameters.append(wanted.why)
    if wanted.min_duration_ns > 0:
        asked.append("duration_ns >= ?")
        parameters.append(min(wanted.min_duration_ns, _MAX_NS))
    for name, value in wanted.where.items():
        # Attributes are canonical JSON: a name and its value, and then the next name or the end. A text cannot look
        # like a name, since its quotes are escaped.
        if value is None:
            asked.append("NOT instr(attributes, ?)")
            parameters.append(f"{json.dumps(name)}: ")
        else:
            asked.append("(instr(attributes, ?) OR instr(attributes, ?))")
            pair = f"{json.dumps(name)}: {json.dumps(value)}"
            parameters += [f"{pair}, ", f"{pair}}}"]
    if wanted.error:
        asked.append(f"instr(lower({_ERROR if knows_json(store) else 'detail'}), lower(?))")
        parameters.append(wanted.error)
    if wanted.text:
        # As JSON has it: quotes, and what is beyond ASCII, are escaped there.
        needle = json.dumps(wanted.text)[1:-1]
        asked.append(
            "(instr(lower(detail), lower(?)) OR instr(lower(attributes), lower(?))"
            " OR instr(hex(trace_id), upper(?)) = 1)"
        )
        parameters += [needle, needle, wanted.text]
    return " AND ".join(asked), parameters


def _ns(time_s: float) -> int:
    return min(max(int(min(max(time_s, 0.0), 1e12) * 1e9), 0), _MAX_NS)
