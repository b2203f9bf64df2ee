"""Reads and writes the store. SQLite in WAL mode: one writes, any number read meanwhile."""

from __future__ import annotations

import json
import os
import sqlite3
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from paste_agent import native
from paste_agent.aggregate import BOUNDS, COUNT, CUSTOM_OVERFLOW, OVERFLOW, SLOT_S, TIMING, Delta, SeriesKey, Total
from paste_agent.errors import StoreError
from paste_agent.kept import TraceRow
from paste_agent.recorder.layout import KEPT_LOST
from paste_agent.store import schema

_BUCKET = struct.Struct("<HQ")
BUCKET_BYTES = _BUCKET.size
_MAX_INTEGER = (1 << 63) - 1
#: Of a total, in the order that `total_of` takes.
COLUMNS = "count, sum_ns, max_ns, satisfied, tolerating, frustrated, buckets"
#: Another thread or process may write: the exporter, a command. Long enough for its transaction, no longer.
_BUSY_TIMEOUT_S = 2.0
#: Pages of memory a connection may keep: the default is 2 MB, a quarter of which does for a worker.
_CACHE_KIB = 512

#: Begins the path of a store in memory, an SQLite URI that further connections of this process can open as well.
MEMORY = "file:paste-agent"

#: What reading may raise: somebody else may have written to the file.
READ_ERRORS = (sqlite3.Error, ValueError, struct.error)

WAITING, SENT, REFUSED = 0, 1, 2
#: States of a recorder's process.
RUNNING, ENDED, LOST = "running", "ended", "lost"


@dataclass
class RecorderRow:
    """A recorder as the lead left it; a row outlives its process."""

    id: str
    position: int
    worker: int  #: small, from 1, reused
    pid: int
    serving: bool
    state: str
    opened_at: float  #: s since the epoch, as all times here
    seen_at: float
    requests: int
    in_flight: int
    busy: float  #: share of the time that it served, 0 to 1
    words: list[int]  #: of its header, as read last


@dataclass(frozen=True)
class PostmortemRow:
    """The account of a process that died."""

    id: str
    at: float
    reason: str
    summary: Mapping[str, Any]  #: see postmortem.Postmortem


@dataclass(frozen=True)
class SeriesTotal:
    metric: str
    attributes: Mapping[str, str | int | bool]
    total: Total


Counters = dict[tuple[str, str], int]  #: by name and canonical attributes


class Store:
    """One connection. Belongs to the thread that opened it."""

    def __init__(self, path: str, *, read_only: bool = False) -> None:
        """Open the store at `path`, made where there is none.

        Raises StoreError for a path that cannot be opened, is no store, or is of a newer agent.
        """
        self.path = path
        try:
            if not read_only:
                _make_private(path)
            self._db = _connect(path, read_only)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"{path}: cannot be opened: {getattr(error, 'strerror', None) or error}") from error
        try:
            schema.refuse_foreign(self._db, path, may_be_empty=not read_only)
            if not read_only:
                _use_wal(self._db)
                # A crash of the machine may lose the last commits; a crash of a process loses none.
                self._db.execute("PRAGMA synchronous = NORMAL")
                schema.prepare(self._db)
            #: Not so of an older agent's store, for who only looks at it.
            version = schema.version_of(self._db)
            self._has_postmortems = version >= 2
        except sqlite3.Error as error:
            self._db.close()
            raise StoreError(f"{path}: cannot be read as a store: {error}") from error
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """The one place that begins, commits and rolls back. Raises sqlite3.Error after having rolled back."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
            self._db.commit()
        except BaseException:
            self._db.rollback()
            raise

    @contextmanager
    def reading(self) -> Iterator[None]:
        """All that is read inside sees one state of the store, whatever is committed meanwhile. May be nested."""
        if self._db.in_transaction:
            yield
            return
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.rollback()

    @property
    def version(self) -> int:
        """Of its tables: an older agent's, for who only looks at it, until its service has been upgraded."""
        return schema.version_of(self._db)

    def query(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Rows of one statement that only reads. Raises sqlite3.Error."""
        return self._db.execute(sql, parameters).fetchall()

    def trace(self, called: Callable[[str], object] | None) -> None:
        """Call with every statement from now on, its values in it; None: with none any more."""
        self._db.set_trace_callback(called)

    def use_members(self, keys: Mapping[int, int]) -> None:
        """Fill the table `member` of this connection alone: number and key. For what is too much for a statement."""
        self._db.execute("CREATE TEMP TABLE IF NOT EXISTS member (number INTEGER PRIMARY KEY, key INTEGER NOT NULL)")
        self._db.execute("DELETE FROM temp.member")
        self._db.executemany("INSERT INTO temp.member VALUES (?, ?)", keys.items())

    # -- the lead writes -------------------------------------------------------------------------------------------

    def commit_drain(
        self,
        delta: Delta,
        rows: Iterable[tuple[RecorderRow | None, RecorderRow]],
        counters: Mapping[tuple[str, str], int],
        max_series: int,
        postmortems: Iterable[PostmortemRow] = (),
        meta: Mapping[str, str] | None = None,
    ) -> None:
        """Add what one drain brought, together with the positions that it came to.

        rows: the recorder as it was when the drain began (None: it is new), and as it is now.
        counters: to be added. meta: words that take the place of those before.
        Raises sqlite3.Error; then nothing has changed. Also when a recorder is no longer as it was:
        another lead has been at it, and its totals hold what `delta` has.
        """
        with self.transaction() as db:
            for before, row in rows:
                _move(db, before, row)
            for (key, slot_s), total in delta.totals.items():
                series = _series_id(db, key, max_series)
                add_total(db, "totals", {"series": series}, total)
                add_total(db, "rollups", {"start": slot_s, "width": SLOT_S, "series": series}, total)
            _mark_late(db, {slot_s for _, slot_s in delta.totals})
            for (name, attributes), value in counters.items():
                db.execute(
                    "INSERT INTO counters VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET value = value + excluded.value",
                    (name, attributes, value),
                )
            db.executemany(
                "INSERT OR REPLACE INTO postmortems VALUES (?, ?, ?, ?)",
                [(row.id, row.at, row.reason, json.dumps(row.summary)) for row in postmortems],
            )
            db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", (meta or {}).items())

    def set_state(self, ids: Iterable[str], state: str) -> None:
        """Of recorders whose files are gone."""
        with self.transaction() as db:
            db.executemany("UPDATE recorders SET state = ? WHERE id = ?", [(state, name) for name in ids])

    def set_meta(self, key: str, value: str) -> None:
        with self.transaction() as db:
            db.execute("INSERT INTO meta VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value", (key, value))

    def instance_id(self, wanted: str) -> str:
        """`service.instance.id` of this store: `wanted` when the store is new, ever the same from then on."""
        with self.transaction() as db:
            db.execute("INSERT OR IGNORE INTO meta VALUES ('service.instance.id', ?)", (wanted,))
            db.execute("INSERT OR IGNORE INTO meta VALUES ('started_at_ns', ?)", (str(time.time_ns()),))
        return self.meta("service.instance.id") or wanted

    def add_traces(self, rows: Sequence[TraceRow], written_at: float) -> None:
        """Keep transactions. A row with detail takes the place of one without, never the other way round.

        What a post-mortem says of a transaction is added to what is known of it, whichever comes first.
        """
        with self.transaction() as db:
            for row in rows:
                values = _trace_values(_with_known(db, row), written_at)
                db.execute(
                    """INSERT INTO traces VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0)
                       ON CONFLICT DO UPDATE SET detail = excluded.detail, attributes = excluded.attributes,
                       why = excluded.why, failed = excluded.failed,
                       sent = CASE WHEN (why | excluded.why) & ? THEN 0 ELSE sent END
                       WHERE excluded.detail IS NOT NULL AND (detail IS NULL OR
                       ((why | excluded.why) & ? AND detail IS NOT excluded.detail))""",
                    (*values, KEPT_LOST, KEPT_LOST),
                )

    # -- exporters -------------------------------------------------------------------------------------------------

    def traces_to_send(self, limit: int, bare_before: float) -> list[TraceRow]:
        """The oldest kept transactions that wait; one without detail only if it was written before `bare_before`."""
        rows = self._db.execute(
            f"SELECT {TRACE_COLUMNS} FROM traces WHERE sent = 0 AND (detail IS NOT NULL OR written_at < ?)"
            " ORDER BY written_at LIMIT ?",
            (bare_before, limit),
        )
        return [trace_row(row) for row in rows]

    def settle_traces(self, rows: Iterable[TraceRow], state: int) -> None:
        """state: SENT or REFUSED; neither is tried again."""
        with self.transaction() as db:
            db.executemany(
                "UPDATE traces SET sent = ? WHERE trace_id = ? AND span_id = ?",
                [(state, row.trace_id, row.span_id) for row in rows],
            )

    def add_counter(self, name: str, attributes: str, value: int) -> None:
        with self.transaction() as db:
            db.execute(
                "INSERT INTO counters VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET value = value + excluded.value",
                (name, attributes, value),
            )

    # -- anyone reads ----------------------------------------------------------------------------------------------

    def meta(self, key: str) -> str | None:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def totals(self, metric: str | None = None) -> list[SeriesTotal]:
        """All series, or those of a metric, cumulative."""
        asked = "" if metric is None else " WHERE metric = ?"
        rows = self._db.execute(
            f"SELECT metric, attributes, {COLUMNS} FROM totals JOIN series ON series.id = series{asked}",
            () if metric is None else (metric,),
        )
        return [SeriesTotal(row[0], json_object(row[1]), total_of(row[2:])) for row in rows]

    def totals_between(self, start_s: float, end_s: float) -> list[SeriesTotal]:
        """All series, summed over the rollups that begin in [start_s, end_s)."""
        rows = self._db.execute(
            f"SELECT metric, attributes, {COLUMNS} FROM rollups JOIN series ON series.id = series"
            " WHERE start >= ? AND start < ?",
            (start_s, end_s),
        )
        found: dict[SeriesKey, Total] = {}
        for metric, attributes, *columns in rows:
            found.setdefault((metric, attributes), Total()).add(total_of(columns))
        return [SeriesTotal(metric, json_object(attributes), total) for (metric, attributes), total in found.items()]

    def span_of_time(self) -> tuple[float, float] | None:
        """Start of the first and end of the last rollup, s since the epoch; None for an empty store."""
        # What begins an hour or more before the last one, ends before that: none is wider.
        first, last = self._db.execute(
            "SELECT (SELECT min(start) FROM rollups), (SELECT max(start + width) FROM rollups"
            " WHERE start > (SELECT max(start) FROM rollups) - 3600)"
        ).fetchone()
        return None if first is None else (float(first), float(last))

    def counters(self) -> Counters:
        return {(name, attributes): value for name, attributes, value in self._db.execute("SELECT * FROM counters")}

    def recorders(self) -> list[RecorderRow]:
        """By worker number, the oldest of each first."""
        rows = self._db.execute("SELECT * FROM recorders ORDER BY worker, opened_at")
        return [_recorder_row(*row) for row in rows]

    def traces(self, start_s: float, end_s: float, order: str, failed: bool, limit: int) -> list[TraceRow]:
        """Kept transactions that began in [start_s, end_s). order: 'slowest' or 'newest'. failed: those alone."""
        by = {"slowest": "duration_ns", "newest": "started_at_ns"}[order]
        rows = self._db.execute(
            f"SELECT {TRACE_COLUMNS} FROM traces WHERE started_at_ns >= ? AND started_at_ns < ? AND failed >= ?"
            f" ORDER BY {by} DESC LIMIT ?",
            (int(start_s * 1e9), min(int(end_s * 1e9), (1 << 63) - 1), int(failed), limit),
        )
        return [trace_row(row) for row in rows]

    def postmortems(self, start_s: float, end_s: float, limit: int) -> list[PostmortemRow]:
        """Of processes that died in [start_s, end_s), the newest first."""
        if not self._has_postmortems:
            return []
        rows = self._db.execute(
            "SELECT id, at, reason, summary FROM postmortems WHERE at >= ? AND at < ? ORDER BY at DESC LIMIT ?",
            (start_s, end_s, limit),
        )
        return [PostmortemRow(name, at, reason, json_object(summary)) for name, at, reason, summary in rows]

    def postmortem(self, beginning: str) -> list[PostmortemRow]:
        """Those whose id begins so, two at the most."""
        if not self._has_postmortems:
            return []
        rows = self._db.execute(
            "SELECT id, at, reason, summary FROM postmortems WHERE substr(id, 1, ?) = ? ORDER BY at DESC LIMIT 2",
            (len(beginning), beginning),
        )
        return [PostmortemRow(name, at, reason, json_object(summary)) for name, at, reason, summary in rows]


# -- connections ---------------------------------------------------------------------------------------------------


def _make_private(path: str) -> None:
    """Make the file before SQLite does: paths and messages that it will hold are nobody else's business."""
    if path.startswith(MEMORY):
        return
    directory = os.path.dirname(path)
    if directory:
        os.makedirs(directory, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _connect(path: str, read_only: bool) -> sqlite3.Connection:
    name = path if path.startswith(MEMORY) else f"file:{quote(path)}?mode={'ro' if read_only else 'rw'}"
    connection = sqlite3.connect(
        name,
        timeout=_BUSY_TIMEOUT_S,
        isolation_level=None,
        uri=True,
        factory=sqlite3.Connection,  # not the instrumented one
    )
    try:
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        # Sorting must not fail for want of room in a directory that nobody thinks of.
        connection.execute("PRAGMA temp_store = MEMORY")
    except BaseException:
        connection.close()
        raise
    return connection


def _use_wal(connection: sqlite3.Connection) -> None:
    """Turn to WAL mode. For this one SQLite does not wait by itself while another process makes the same store."""
    deadline = time.monotonic() + _BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() >= deadline:
                raise
        native.sleep(0.01)


# -- rows ----------------------------------------------------------------------------------------------------------


#: The bucket that ends at 1 ms came with the metrics of databases. Its number in a store is one of its own: so those of
#: the others are what they always were, and an older agent that still uses the store takes none for another.
_NEW_BUCKET, _NEW_NUMBER = BOUNDS.index(1_000_000), 0x1000


def pack_buckets(buckets: Mapping[int, int]) -> bytes:
    """Number (u16) and count (u64) of each bucket that is not empty; by index into aggregate.BOUNDS."""
    return b"".join(
        _BUCKET.pack(_NEW_NUMBER if bucket == _NEW_BUCKET else bucket - (bucket > _NEW_BUCKET), count)
        for bucket, count in sorted(buckets.items())
    )


def unpack_buckets(data: bytes) -> dict[int, int]:
    """The same back; of what is damaged, as far as it goes."""
    whole = data[: len(data) // _BUCKET.size * _BUCKET.size]
    return {
        _NEW_BUCKET if number == _NEW_NUMBER else number + (number >= _NEW_BUCKET): count
        for number, count in _BUCKET.iter_unpack(whole)
    }


def sum_buckets(data: bytes) -> dict[int, int]:
    """Buckets of several totals, packed one after the other, added up; of what is damaged, as far as it goes."""
    counts: dict[int, int] = {}
    count_of = counts.get
    for number, count in _BUCKET.iter_unpack(data[: len(data) // _BUCKET.size * _BUCKET.size]):
        counts[number] = count_of(number, 0) + count
    return {
        _NEW_BUCKET if number == _NEW_NUMBER else number + (number >= _NEW_BUCKET): count
        for number, count in counts.items()
    }


def json_object(text: str) -> Any:
    """A JSON object of the store; an empty one where somebody else has written there."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def total_of(columns: Sequence[Any]) -> Total:
    """A total from COLUMNS."""
    count, sum_ns, max_ns, satisfied, tolerating, frustrated, buckets = columns
    return Total(count, sum_ns, max_ns, satisfied, tolerating, frustrated, unpack_buckets(buckets))


def columns_of(total: Total) -> tuple[int | bytes, ...]:
    """The same back, for COLUMNS."""
    numbers = (
        total.count,
        total.sum_ns,
        total.max_ns,
        total.satisfied,
        total.tolerating,
        total.frustrated,
    )
    # A forged recorder may claim more time than SQLite's integers hold: centuries.
    return (*(min(number, _MAX_INTEGER) for number in numbers), pack_buckets(total.buckets))


def _recorder_row(*columns: Any) -> RecorderRow:
    row = RecorderRow(*columns)
    row.serving = bool(row.serving)
    row.words = json.loads(columns[-1])
    return row


def add_total(db: sqlite3.Connection, table: str, key: Mapping[str, int], total: Total) -> None:
    where = " AND ".join(f"{column} = ?" for column in key)
    values = tuple(key.values())
    found = db.execute(f"SELECT {COLUMNS} FROM {table} WHERE {where}", values).fetchone()
    merged = total_of(found) if found else Total()
    merged.add(total)
    if found:  # cheaper than to replace it, and wakes no trigger: see _mark_late
        db.execute(
            f"UPDATE {table} SET ({COLUMNS}) = (?, ?, ?, ?, ?, ?, ?) WHERE {where}", (*columns_of(merged), *values)
        )
        return
    db.execute(
        f"INSERT INTO {table} ({', '.join(key)}, {COLUMNS}) VALUES ({', '.join('?' * (len(key) + 7))})",
        (*values, *columns_of(merged)),
    )


def _mark_late(db: sqlite3.Connection, slots: Iterable[int]) -> None:
    """Note what has been copied before these slots got their rows; a trigger does so for rows that are new."""
    db.executemany(
        "INSERT OR IGNORE INTO copy_stale SELECT ?1 / 60 * 60 FROM copy_spans"
        " WHERE width = 60 AND grouped = 1 AND ?1 < until",
        [(slot_s,) for slot_s in slots],
    )


def _series_id(db: sqlite3.Connection, key: SeriesKey, max_series: int) -> int:
    """The id of a series; beyond the bound, of the one that holds the rest."""
    row = db.execute("SELECT id FROM series WHERE metric = ? AND attributes = ?", key).fetchone()
    if row is not None:
        return int(row[0])
    metric, attributes = key
    if attributes != OVERFLOW:
        prefix = next((kind for kind in (TIMING, COUNT) if metric.startswith(kind)), None)
        if prefix is None:
            (known,) = db.execute("SELECT count(*) FROM series WHERE metric = ?", (metric,)).fetchone()
        else:  # there the names are the application's own: they are what is bounded
            (known,) = db.execute(
                "SELECT count(*) FROM series WHERE metric >= ? AND metric < ?", (prefix, f"{prefix}\U0010ffff")
            ).fetchone()
        if known >= max_series:
            return _series_id(db, (metric if prefix is None else prefix + CUSTOM_OVERFLOW, OVERFLOW), max_series)
    added = db.execute("INSERT INTO series (metric, attributes) VALUES (?, ?)", key).lastrowid
    assert added is not None
    return added


def _move(db: sqlite3.Connection, before: RecorderRow | None, row: RecorderRow) -> None:
    values = (
        row.position, row.worker, row.pid, row.serving, row.state, row.opened_at, row.seen_at, row.requests,
        row.in_flight, row.busy, json.dumps(row.words),
    )  # fmt: skip
    if before is None:
        db.execute("INSERT INTO recorders VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (row.id, *values))
        return
    # All that a drain counts by: records by the position, the end of the process by its state, the rest by words.
    changed = db.execute(
        """UPDATE recorders SET (position, worker, pid, serving, state, opened_at, seen_at, requests, in_flight, busy,
           words) = (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) WHERE id = ? AND position = ? AND state = ? AND words = ?""",
        (*values, row.id, before.position, before.state, json.dumps(before.words)),
    )
    if changed.rowcount != 1:
        raise sqlite3.IntegrityError(f"recorder {row.id} is no longer at {before.position}")


#: In the order that `trace_row` takes.
TRACE_COLUMNS = "trace_id, span_id, parent_id, started_at_ns, duration_ns, failed, why, attributes, detail"


def _trace_values(row: TraceRow, written_at: float) -> tuple[object, ...]:
    detail = None if row.detail is None else json.dumps(row.detail)
    return (
        row.trace_id, row.span_id, row.parent_id, row.started_at_ns, row.duration_ns, int(row.failed), row.why,
        json.dumps(dict(row.attributes), sort_keys=True), detail, written_at,
    )  # fmt: skip


def _with_known(db: sqlite3.Connection, row: TraceRow) -> TraceRow:
    """A row together with what a post-mortem, or the process before it died, has written of the same transaction."""
    if row.detail is None:
        return row
    found = db.execute(
        f"SELECT {TRACE_COLUMNS} FROM traces WHERE trace_id = ? AND span_id = ? AND (why | ?) & ?",
        (row.trace_id, row.span_id, row.why, KEPT_LOST),
    ).fetchone()
    if found is None:
        return row
    known = trace_row(found)
    lost, ended = (row, known) if row.why & KEPT_LOST else (known, row)
    return row._replace(
        why=row.why | known.why,
        failed=True,
        attributes={**lost.attributes, **ended.attributes},
        detail={**(lost.detail or {}), **(ended.detail or {})},
    )


def trace_row(row: Sequence[Any]) -> TraceRow:
    trace_id, span_id, parent_id, started_at_ns, duration_ns, failed, why, attributes, detail = row
    return TraceRow(
        trace_id=trace_id,
        span_id=span_id,
        parent_id=parent_id,
        started_at_ns=started_at_ns,
        duration_ns=duration_ns,
        failed=bool(failed),
        why=why,
        attributes=json_object(attributes),
        detail=None if detail is None else json_object(detail),
    )
