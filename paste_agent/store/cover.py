"""Adds up what the store has of a span of time, from few rows: copies where there are, else rollups.

A copy holds exactly the rollups that begin in its slot. So which of them a sum is made of changes nothing about it, and
what is not copied yet, or not any more, is merely slower to read. Reads only.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from paste_agent.aggregate import (
    COUNT,
    DATABASE_DURATION,
    ERRORS,
    PART_DURATION,
    PART_SPANS,
    REQUEST_DURATION,
    SLOT_S,
    TASK_DURATION,
    TIMING,
    Total,
)
from paste_agent.store.store import BUCKET_BYTES, COLUMNS, Store, sum_buckets, total_of

MINUTE, HOUR, DAY = 60, 3600, 86_400
#: Since which version of the schema there are copies.
VERSION = 4
#: Of series one by one, and of groups of them.
SERIES, GROUPS = 0, 1
#: Widths of the copies of each, s, the widest first; each divides the one before it.
WIDTHS = {
    SERIES: (8 * DAY, DAY, 6 * HOUR, HOUR, 15 * MINUTE),
    GROUPS: (DAY, 6 * HOUR, HOUR, 15 * MINUTE, 5 * MINUTE, MINUTE),
}
#: By metric: what the series of a group have in common. Others have one group each, what applications name has none. To
#: change it takes a new version of the schema, since the groups have to be made again.
_GROUPED_BY = {
    REQUEST_DURATION: ("http.response.status_code", "error.type"),
    TASK_DURATION: ("error.type",),
    PART_DURATION: ("paste_agent.part",),
    PART_SPANS: ("paste_agent.part",),
    DATABASE_DURATION: ("db.system.name",),
    ERRORS: ("error.type",),
}
_ROLLUP_WIDTHS = (SLOT_S, MINUTE, HOUR)
#: Up to so many series are looked up one by one; with more of them all rows of the time are gone through.
_FEW = 64
#: Selects in one statement; SQLite takes 500.
_MOST_PIECES = 100


def grouped_by(metric: str) -> tuple[str, ...] | None:
    """Attributes that tell the groups of a metric apart; None: it has no groups."""
    return None if metric.startswith((TIMING, COUNT)) else _GROUPED_BY.get(metric, ())


class State(NamedTuple):
    """What copies there are. Holds as long as one transaction."""

    spans: Mapping[tuple[int, int], tuple[int, int]]  #: by width and kind, [since, until)
    stale: Sequence[int]  #: starts of minutes whose copies lack something
    oldest: int  #: start of the oldest rollup: an older copy has rollups in it that are gone


NOTHING = State({}, (), 0)


class Piece(NamedTuple):
    """Rows to add up: copies of one kind and width whose slots lie in [start, end); width 0: rollups."""

    width: int
    kind: int
    start: int
    end: int


def state_of(store: Store) -> State:
    """Raises sqlite3.Error. Belongs into the transaction that reads the copies."""
    if store.version < VERSION:
        return NOTHING
    spans = {(row[0], row[1]): (row[2], row[3]) for row in store.query("SELECT * FROM copy_spans")}
    stale = [start for (start,) in store.query("SELECT start FROM copy_stale ORDER BY start")]
    ((oldest,),) = store.query("SELECT min(start) FROM rollups")
    return NOTHING if oldest is None else State(spans, stale, oldest)


def cover(state: State, start: int, end: int, kind: int, divides: int = 0) -> list[Piece]:
    """Pieces that together hold all rollups that begin in [start, end), each of them once.

    kind: GROUPS: of groups where there are such copies, of series elsewhere. divides: a copy must not cross a multiple
    of it; 0: any may.
    """
    kinds = (SERIES,) if kind == SERIES else (GROUPS, SERIES)
    levels = [
        (width, one) for one in kinds for width in WIDTHS[one] if (width, one) in state.spans and divides % width == 0
    ]
    return list(_pieces(state, start, end, levels))


def _pieces(state: State, start: int, end: int, levels: Sequence[tuple[int, int]]) -> Iterator[Piece]:
    if start >= end:
        return
    if not levels:
        yield Piece(0, SERIES, start, end)
        return
    (width, kind), rest = levels[0], levels[1:]
    since, until = state.spans[width, kind]
    low = -(-max(start, since, state.oldest) // width) * width
    high = min(end, until) // width * width
    if low >= high:
        yield from _pieces(state, start, end, rest)
        return
    yield from _pieces(state, start, low, rest)
    for bad in sorted({minute // width * width for minute in state.stale if low <= minute < high}):
        if low < bad:
            yield Piece(width, kind, low, bad)
        yield from _pieces(state, bad, bad + width, rest)
        low = bad + width
    if low < high:
        yield Piece(width, kind, low, high)
    yield from _pieces(state, high, end, rest)


class Summed(Total):
    """A total of many rows. Its buckets are added up when somebody asks for them, which few do."""

    __slots__ = ("_added", "_packed")

    def __init__(self) -> None:
        self._packed: list[bytes] = []
        super().__init__()
        self._added: dict[int, int] | None = None

    @property
    def buckets(self) -> dict[int, int]:
        if self._added is None:
            self._added = sum_buckets(b"".join(self._packed))
            self._packed.clear()
        return self._added

    @buckets.setter
    def buckets(self, found: dict[int, int]) -> None:
        self._added = found

    def add(self, other: Total) -> None:
        """As of any total; what nobody has added up yet stays so."""
        if self._added is None and isinstance(other, Summed) and other._added is None:
            self.more((
                other.count, other.sum_ns, other.max_ns, other.satisfied, other.tolerating, other.frustrated, b"",
            ))  # fmt: skip
            self._packed += other._packed
        else:
            super().add(other)

    def more(self, columns: Sequence[Any]) -> None:
        """columns: of COLUMNS; of several rows, their sums, and their buckets one after the other."""
        count, sum_ns, max_ns, satisfied, tolerating, frustrated, packed = columns
        self.count += count
        self.sum_ns += sum_ns
        self.max_ns = max(self.max_ns, max_ns)
        self.satisfied += satisfied
        self.tolerating += tolerating
        self.frustrated += frustrated
        if packed:
            self._packed.append(packed)


#: By slot, counted from the start, and by key.
Sums = dict[tuple[int, int], Total]


def sums(
    store: Store, pieces: Sequence[Piece], keys: Mapping[int, int] | None, start: int = 0, step: int | None = None
) -> Sums:
    """Add up the rows of pieces.

    keys: what each series is added to, negative ones: groups; None: each series to its own number.
    start, step: where the first slot begins, and the width of each, s; None: all in slot 0.
    Raises sqlite3.Error.
    """
    found: Sums = {}
    if keys is not None and not keys:
        return found
    use(store, keys)
    for first in range(0, len(pieces), _MOST_PIECES):
        chunk = pieces[first : first + _MOST_PIECES]
        try:
            rows = store.query(statement(chunk, keys, start, step))
        except sqlite3.OperationalError as error:
            if "overflow" not in str(error):
                raise
            rows = [(0, 0, 1)]
        if any(row[-1] for row in rows):  # forged: more than SQLite's integers hold, or buckets cut short
            _add_one_by_one(found, store, chunk, keys, start, step)
            continue
        for slot, key, *columns, _ in rows:
            total = found.get((slot, key))
            if total is None:
                total = found[slot, key] = Summed()
            assert isinstance(total, Summed)
            total.more(columns)
    return found


def use(store: Store, keys: Mapping[int, int] | None) -> None:
    """Before a statement with these keys is executed."""
    if keys is not None and len(keys) > _FEW:
        store.use_members(keys)


def _add_one_by_one(
    found: Sums, store: Store, pieces: Sequence[Piece], keys: Mapping[int, int] | None, start: int, step: int | None
) -> None:
    for slot, key, *columns in store.query(_selects(pieces, keys, start, step)):
        total = found.get((slot, key))
        if total is None:
            total = found[slot, key] = Summed()
        total.add(total_of(columns))


def statement(pieces: Sequence[Piece], keys: Mapping[int, int] | None, start: int = 0, step: int | None = None) -> str:
    """The SQL that adds up. All that is in it are names of ours and whole numbers."""
    # SQLite adds much faster than Python, and lets other threads run meanwhile. It cannot add buckets, but can put them
    # one after the other.
    return (
        "SELECT slot, key, sum(count), sum(sum_ns), max(max_ns), sum(satisfied), sum(tolerating),"
        f" sum(frustrated), CAST(group_concat(buckets, '') AS BLOB), total(length(buckets) % {BUCKET_BYTES})"
        f" FROM ({_selects(pieces, keys, start, step)}) GROUP BY slot, key"
    )


def _selects(pieces: Iterable[Piece], keys: Mapping[int, int] | None, start: int, step: int | None) -> str:
    slot = "0" if step is None else f"(start - {start}) / {step}"
    return " UNION ALL ".join(
        f"SELECT {slot} AS slot, {'series AS key' if keys is None else 'key'}, {COLUMNS} FROM {source(piece, keys)}"
        for piece in pieces
    )


def source(piece: Piece, keys: Mapping[int, int] | None) -> str:
    """What stands behind FROM: the rows of a piece, with `start`, COLUMNS, and `key` or, without keys, `series`."""
    if keys is None:
        return _scanned(piece)
    sign = -1 if piece.kind == GROUPS else 1
    own = [(number, key) for number, key in keys.items() if number * sign > 0]
    if len(own) > _FEW:
        # CROSS JOIN keeps SQLite from going through the rows once for each member.
        return _scanned(piece, " CROSS JOIN temp.member") + " AND number = series"
    values = ", ".join(f"({number}, {key})" for number, key in own) or "(NULL, NULL)"
    return _sought(piece, f"(SELECT column1 AS number, column2 AS key FROM (VALUES {values}))")


def _scanned(piece: Piece, joined: str = "") -> str:
    """All rows of the time."""
    table = "copies" if piece.width else "rollups"
    which = f"width = {piece.width} AND series {'<' if piece.kind == GROUPS else '>'} 0 AND " if piece.width else ""
    return f"{table}{joined} WHERE {which}start >= {piece.start} AND start < {piece.end}"


def _sought(piece: Piece, member: str) -> str:
    """One look-up for each member and slot."""
    if piece.width:
        return (
            f"(WITH RECURSIVE slots(at) AS (SELECT {piece.start} UNION ALL"
            f" SELECT at + {piece.width} FROM slots WHERE at + {piece.width} < {piece.end}) SELECT at FROM slots)"
            f" CROSS JOIN {member} CROSS JOIN copies WHERE width = {piece.width} AND start = at AND series = number"
        )
    widths = ", ".join(f"({width})" for width in _ROLLUP_WIDTHS)
    return (
        f"(WITH RECURSIVE slots(at) AS (SELECT min(start) FROM rollups WHERE start >= {piece.start} UNION ALL"
        f" SELECT (SELECT min(start) FROM rollups WHERE start > at) FROM slots WHERE at < {piece.end})"
        f" SELECT at FROM slots WHERE at < {piece.end})"
        f" CROSS JOIN (SELECT column1 AS wide FROM (VALUES {widths})) CROSS JOIN {member} CROSS JOIN rollups"
        " WHERE start = at AND width = wide AND series = number"
    )
