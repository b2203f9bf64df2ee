"""Makes the copies that long spans of time are read from: sums of rollups over wider slots.

They are made once their slot is over, the newest first, and hold nothing that the rollups do not: whatever is missing
is read from these. A copy is committed together with the span that says it is there. When a late row arrives a trigger
notes its minute: the copies that it lies in are not read until they have been made again.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping

from paste_agent import native
from paste_agent.aggregate import canonical
from paste_agent.store.cover import (
    DAY,
    GROUPS,
    HOUR,
    MINUTE,
    SERIES,
    WIDTHS,
    State,
    cover,
    grouped_by,
    state_of,
    sums,
)
from paste_agent.store.store import COLUMNS, Store, columns_of, json_object

#: How long a slot that is over waits for rows that come late, s.
_DELAY = 60
#: How long copies stay, s; others as long as the rollups. Those narrower than an hour must be gone before their rollups
#: age into hours: from then on the rollups do not tell what they told.
_KEPT = {
    (MINUTE, GROUPS): DAY,
    (5 * MINUTE, GROUPS): 2 * DAY,
    (15 * MINUTE, GROUPS): 4 * DAY - 2 * HOUR,
    (15 * MINUTE, SERIES): 30 * HOUR,
    (HOUR, SERIES): 5 * DAY,
}
#: The narrow ones first, since the wider ones are made of them.
_LEVELS = sorted(((width, kind) for kind, widths in WIDTHS.items() for width in widths), key=lambda one: one[0])
#: Minutes made again in one transaction; rows written before other threads get their turn.
_MINUTES, _CHUNK = 60, 200
#: How long one round may take; the rest is for the next one.
_BUDGET_S = 1.0


def update(store: Store, now_s: float, budget_s: float | None = _BUDGET_S) -> None:
    """Make what copies can be made by now, and remove what is too old.

    budget_s: after so long nothing more is begun; None: until all are made. Raises sqlite3.Error.
    """
    deadline = None if budget_s is None else time.monotonic() + budget_s
    maker = _Maker(store, int(now_s), deadline)
    with store.transaction() as db:
        forget(db, now_s)
    while maker.again():
        pass
    for forward in (True, False):
        for width, kind in _LEVELS:
            while maker.one_more(width, kind, forward):
                pass


def forget(db: sqlite3.Connection, now_s: float) -> None:
    """Remove copies of rollups that are gone, and those that are not wanted any longer."""
    (oldest,) = db.execute("SELECT min(start) FROM rollups").fetchone()
    spans = {(row[0], row[1]): (row[2], row[3]) for row in db.execute("SELECT * FROM copy_spans")}
    # The clock may have been far ahead, and the copies with it.
    if oldest is None or any(until > now_s + DAY for _, until in spans.values()):
        for table in ("copies", "copy_spans", "copy_stale"):
            db.execute(f"DELETE FROM {table}")
        return
    for (width, kind), (since, until) in spans.items():
        wanted = min(_oldest(width, kind, oldest, now_s), until)
        if wanted > since:
            db.execute(
                f"DELETE FROM copies WHERE width = ? AND start >= ? AND start < ? AND series {'<' if kind else '>'} 0",
                (width, since, wanted),
            )
            db.execute("UPDATE copy_spans SET since = ? WHERE width = ? AND grouped = ?", (wanted, width, kind))


def _oldest(width: int, kind: int, oldest: int, now_s: float) -> int:
    """Start of the first slot that is copied."""
    kept = _KEPT.get((width, kind))
    first = oldest if kept is None else max(oldest, int(now_s) - kept)
    return -(-first // width) * width


def _slot(db: sqlite3.Connection, which: str, beside: str, time_s: int, width: int, other: int) -> int:
    """Start of the slot of the first rollup after, or the last before, a time; `other` where there is none."""
    (found,) = db.execute(f"SELECT {which} FROM rollups WHERE start {beside} ?", (time_s,)).fetchone()
    return other if found is None else int(found) // width * width


class _Maker:
    """One round."""

    def __init__(self, store: Store, now_s: int, deadline: float | None) -> None:
        self._store = store
        self._now_s = now_s
        self._deadline = deadline
        self._members: dict[int, int] = {}
        self._known = -1

    def _is_late(self) -> bool:
        native.sleep(0)
        return self._deadline is not None and time.monotonic() >= self._deadline

    def one_more(self, width: int, kind: int, forward: bool) -> bool:
        """Make the next copies of a level, after those that there are or before; whether there may be more to make."""
        if self._is_late():
            return False
        with self._store.transaction() as db:
            state = state_of(self._store)
            if not state.oldest:
                return False
            # What is copied ends nowhere after the minutes: the trigger goes by these.
            minutes = state.spans.get((MINUTE, GROUPS), (0, self._now_s - _DELAY))
            latest = (self._now_s - _DELAY if (width, kind) == (MINUTE, GROUPS) else minutes[1]) // width * width
            oldest = _oldest(width, kind, state.oldest, self._now_s)
            since, until = state.spans.get((width, kind), (latest, latest))
            if since == until:
                since = until = max(until, latest)
            start = None
            if forward and until < latest:
                # Where there are no rollups there is nothing to copy.
                start = max(until, min(_slot(db, "min(start)", ">=", until, width, latest), latest - width))
                until = start + width
            elif not forward and since - width >= oldest:
                start = since = min(since - width, max(_slot(db, "max(start)", "<", since, width, oldest), oldest))
            db.execute("INSERT OR REPLACE INTO copy_spans VALUES (?, ?, ?, ?)", (width, kind, since, until))
            if start is None:
                return False
            self._make(db, state, width, kind, start)
        return True

    def again(self) -> bool:
        """Make copies again that late rows belong into; whether there may be more."""
        if self._is_late():
            return False
        with self._store.transaction() as db:
            state = state_of(self._store)
            minutes = state.stale[:_MINUTES]
            for width, kind in _LEVELS:
                since, until = state.spans.get((width, kind), (0, 0))
                # The narrower ones are right again by now.
                rest = state._replace(stale=state.stale[_MINUTES:])
                for start in sorted({minute // width * width for minute in minutes}):
                    if since <= start < until:
                        self._make(db, rest, width, kind, start)
            db.executemany("DELETE FROM copy_stale WHERE start = ?", [(minute,) for minute in minutes])
        return len(state.stale) > _MINUTES

    def _make(self, db: sqlite3.Connection, state: State, width: int, kind: int, start: int) -> None:
        spans = {
            level: span
            for level, span in state.spans.items()
            if level[0] < width or (kind, *level) == (GROUPS, width, SERIES)
        }
        pieces = cover(state._replace(spans=spans), start, start + width, kind)
        found = sums(self._store, pieces, self._groups(db) if kind == GROUPS else None)
        sign = "<" if kind == GROUPS else ">"
        db.execute(f"DELETE FROM copies WHERE width = ? AND start = ? AND series {sign} 0", (width, start))
        rows = sorted(((number, total) for (_, number), total in found.items()), key=lambda row: row[0])
        for first in range(0, len(rows), _CHUNK):
            db.executemany(
                f"INSERT INTO copies (width, start, series, {COLUMNS}) VALUES ({', '.join('?' * 10)})",
                [(width, start, number, *columns_of(total)) for number, total in rows[first : first + _CHUNK]],
            )
            native.sleep(0)

    def _groups(self, db: sqlite3.Connection) -> Mapping[int, int]:
        """The group of each series, and each group itself; both as numbers in `copies`."""
        (last,) = db.execute("SELECT coalesce(max(id), 0) FROM series").fetchone()
        if last != self._known:
            groups = {
                (metric, attributes): -number for number, metric, attributes in db.execute("SELECT * FROM copy_groups")
            }
            members: dict[int, int] = {}
            for number, metric, attributes in db.execute("SELECT id, metric, attributes FROM series").fetchall():
                names = grouped_by(metric)
                if names is None:
                    continue
                own = json_object(attributes)
                key = (metric, canonical({name: own[name] for name in names if name in own}))
                if key not in groups:
                    added = db.execute("INSERT INTO copy_groups (metric, attributes) VALUES (?, ?)", key).lastrowid
                    assert added is not None
                    groups[key] = -added
                members[number] = groups[key]
            self._members = members | {number: number for number in groups.values()}
            self._known = last
        return self._members
