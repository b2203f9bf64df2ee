"""sqlite3, of the standard library: which statement a transaction waits for.

Connections and cursors are of subclasses: whoever asks for their type gets the answer that he expects. A connection
that is opened with a `factory`, or a cursor, is left as it is. Rows are fetched one by one without us.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

from paste_agent.spans import span
from paste_agent.sql import sanitized

_MARK = "_paste_agent"
#: Place of `factory` among the positional arguments of `sqlite3.connect`.
_FACTORY_AT = 5


class Cursor(sqlite3.Cursor):
    """A cursor that says what it executes."""

    _statement = ""

    def execute(self, sql: str, /, *args: Any) -> Any:
        self._statement = _text(sql)
        with span(self._statement):
            return super().execute(sql, *args)

    def executemany(self, sql: str, /, *args: Any) -> Any:
        self._statement = _text(sql)
        with span(self._statement):
            return super().executemany(sql, *args)

    def executescript(self, sql: str, /) -> Any:
        with span(_text(sql)):
            return super().executescript(sql)

    def fetchall(self) -> list[Any]:
        with span(self._statement):  # SQLite computes rows when they are asked for
            return super().fetchall()


class Connection(sqlite3.Connection):
    """A connection whose cursors say what they execute."""

    def cursor(self, factory: Any = Cursor) -> Any:
        return super().cursor(factory)

    # sqlite3's own shortcuts make a cursor of its own type.

    def execute(self, sql: str, /, *args: Any) -> Any:
        return self.cursor().execute(sql, *args)

    def executemany(self, sql: str, /, *args: Any) -> Any:
        return self.cursor().executemany(sql, *args)

    def executescript(self, sql: str, /) -> Any:
        return self.cursor().executescript(sql)


def install() -> None:
    """Have `sqlite3.connect` make such connections. A second call does nothing."""
    for module in (sqlite3, sqlite3.dbapi2):
        original = module.connect
        if not hasattr(original, _MARK):
            module.connect = _connecting(original)  # type: ignore[attr-defined]


def _connecting(original: Callable[..., sqlite3.Connection]) -> Callable[..., sqlite3.Connection]:
    def connect(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        if len(args) <= _FACTORY_AT:
            kwargs.setdefault("factory", Connection)
        return original(*args, **kwargs)

    setattr(connect, _MARK, original)
    return connect


def _text(sql: object) -> str:
    return sanitized(sql) if isinstance(sql, str) else ""
