"""Deployments that were marked: when which version went out."""

from __future__ import annotations

from typing import NamedTuple

from paste_agent.store.store import Store

#: Since which version of the schema there is the table.
_VERSION = 4


class Deployment(NamedTuple):
    """One that was marked."""

    at_s: float  #: s since the epoch
    version: str
    description: str
    user: str


def add(store: Store, at_s: float, version: str, description: str = "", user: str = "") -> None:
    """Mark a deployment. at_s: s since the epoch. user: who did it. Raises sqlite3.Error."""
    with store.transaction() as db:
        db.execute("INSERT INTO deployments VALUES (?, ?, ?, ?)", (at_s, version, description, user))


def between(store: Store, start_s: float, end_s: float) -> list[Deployment]:
    """Those in [start_s, end_s), the oldest first. Raises sqlite3.Error."""
    if store.version < _VERSION:
        return []
    rows = store.query(
        'SELECT at, version, description, "user" FROM deployments WHERE at >= ? AND at < ? ORDER BY at, rowid',
        (start_s, end_s),
    )
    return [Deployment(*row) for row in rows]
