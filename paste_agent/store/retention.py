"""Keeps the store within its bounds: rollups age into wider ones, and what is too old or too much goes."""

from __future__ import annotations

import sqlite3

from paste_agent.aggregate import SLOT_S
from paste_agent.store import copies
from paste_agent.store.log_rows import forget_logs
from paste_agent.store.store import ENDED, LOST, Store, add_total, total_of

_HOUR = 3600
_DAY = 86_400
#: From which width to which, and after how long.
_STEPS = ((SLOT_S, 60, 6 * _HOUR), (60, _HOUR, 4 * _DAY))
#: Rows moved in one transaction: others write in between.
_BATCH = 500
#: Recorders of processes that ended, kept to be looked at.
_ENDED_KEPT = 100
#: Post-mortems that are kept; a service that crashes once a second would have 86,400 a day.
_POSTMORTEMS_KEPT = 500


def tidy(store: Store, now_s: float, retention_days: float, max_bytes: int) -> None:
    """One round of everything. Cheap where there is nothing to do. Raises sqlite3.Error."""
    with store.transaction() as db:
        copies.forget(db, now_s)  # before rows age that they were made of
    for width, wider, after_s in _STEPS:
        while _age(store, width, wider, now_s - after_s):
            pass
    oldest = now_s - retention_days * _DAY
    with store.transaction() as db:
        db.execute("DELETE FROM rollups WHERE start < ?", (oldest,))
        db.execute("DELETE FROM traces WHERE started_at_ns < ?", (int(oldest * 1e9),))
        forget_logs(db, int(oldest * 1e9))
        db.execute(
            "DELETE FROM postmortems WHERE at < ? OR id NOT IN (SELECT id FROM postmortems ORDER BY at DESC LIMIT ?)",
            (oldest, _POSTMORTEMS_KEPT),
        )
        db.execute(
            "DELETE FROM recorders WHERE state IN (?, ?) AND id NOT IN"
            " (SELECT id FROM recorders WHERE state IN (?, ?) ORDER BY seen_at DESC LIMIT ?)",
            (ENDED, LOST, ENDED, LOST, _ENDED_KEPT),
        )
    copies.update(store, now_s)
    _shrink(store, now_s, max_bytes)


def _age(store: Store, width: int, wider: int, before_s: float) -> bool:
    """Move a batch of rollups that are all of a wider slot's; whether there may be more."""
    limit = int(before_s) // wider * wider
    with store.transaction() as db:
        rows = db.execute(
            "SELECT start, series, count, sum_ns, max_ns, satisfied, tolerating, frustrated, buckets FROM rollups"
            " WHERE width = ? AND start < ? ORDER BY start LIMIT ?",
            (width, limit, _BATCH),
        ).fetchall()
        for start, series, *columns in rows:
            add_total(
                db, "rollups", {"start": start // wider * wider, "width": wider, "series": series}, total_of(columns)
            )
            db.execute("DELETE FROM rollups WHERE start = ? AND width = ? AND series = ?", (start, width, series))
    return len(rows) == _BATCH


def _used_bytes(db: sqlite3.Connection) -> int:
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    (free,) = db.execute("PRAGMA freelist_count").fetchone()
    (size,) = db.execute("PRAGMA page_size").fetchone()
    return int((pages - free) * size)


def _shrink(store: Store, now_s: float, max_bytes: int) -> None:
    """Beyond `max_bytes` the oldest logs go first, then traces, post-mortems, rollups. Totals stay: they are exact.

    With the rollups go the copies that were made of them.
    """
    for table, order in (("logs", "at_ns"), ("traces", "started_at_ns"), ("postmortems", "at"), ("rollups", "start")):
        while True:
            with store.transaction() as db:
                if _used_bytes(db) <= max_bytes:
                    return
                (count,) = db.execute(f"SELECT count(*) FROM {table}").fetchone()
                if not count:
                    break
                oldest = f"SELECT {order} FROM {table} ORDER BY {order} LIMIT {max(1, count // 10)}"
                db.execute(f"DELETE FROM {table} WHERE {order} <= (SELECT max({order}) FROM ({oldest}))")
                if table == "rollups":
                    copies.forget(db, now_s)
