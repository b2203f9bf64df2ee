"""sqlite3, of the standard library: the statements that a transaction executes.

Connections and cursors are of subclasses: whoever asks for their type by isinstance gets the answer that he expects.
So are those of an application's own classes, given as `factory`; a factory that is no class is left as it is, and so
is a connection that was opened before. SQLite computes rows when they are asked for: `fetchall` has a span of its own,
which is not counted; rows that are fetched one by one are not timed.

Tested with the modules of Python 3.10 to 3.13.
"""

from __future__ import annotations

import functools
import os
import sqlite3
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from paste_agent import statements
from paste_agent.inside import DATABASE, with_one
from paste_agent.instrument.dbapi import (
    MARK,
    SEEN,
    SOURCE,
    Call,
    Driver,
    Target,
    connecting,
    counts,
    end_explained,
    executed,
    failed,
    plan_of_lines,
    run,
    uncount,
)
from paste_agent.spans import Span, begin, end
from paste_agent.statements import Later, Prepared, Source, Statement, budget
from paste_agent.transaction import current

#: Places of `factory` and of `database` among the positional arguments of `sqlite3.connect`.
_FACTORY_AT, _DATABASE_AT = 5, 0

_current = current.get
_cursor = sqlite3.Connection.cursor
_execute, _executemany = sqlite3.Cursor.execute, sqlite3.Cursor.executemany
_executescript, _fetchall = sqlite3.Cursor.executescript, sqlite3.Cursor.fetchall


class _SQLite(Driver):
    def target_of_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Target:
        database = args[_DATABASE_AT] if args else kwargs["database"]
        return Target("sqlite", _name_of(os.fsdecode(database)))

    def status_of(self, error: BaseException) -> object:
        return getattr(error, "sqlite_errorname", None)  # from Python 3.11 on

    def explain(self, cursor: Any, statement: str, arguments: Any) -> Callable[[], list[str]] | None:
        return functools.partial(self._plan, cursor, statement, arguments)

    def _plan(self, cursor: Any, statement: str, arguments: Any) -> list[str]:
        plain = sqlite3.Cursor(cursor.connection)
        plain.row_factory = None
        try:
            _execute(plain, f"EXPLAIN QUERY PLAN {statement}", arguments or ())
            return plan_of_lines([_text_of(row[3]) for row in _fetchall(plain)], self.system)
        finally:
            plain.close()


def _text_of(detail: Any) -> str:
    """Of whatever the connection's `text_factory` makes."""
    return detail.decode("utf-8", "replace") if isinstance(detail, (bytes, bytearray)) else str(detail)


def _name_of(database: str) -> str | None:
    """The file's name, without what leads there: a path may name a user."""
    if database.startswith("file:"):
        database = database[5:].partition("?")[0]
    return os.path.basename(database) or None


_driver = _SQLite("sqlite", "sql")


class Cursor(sqlite3.Cursor):
    """A cursor whose calls are spans. Comes last among the bases of an application's own cursors."""

    __slots__ = ("_paste_agent_asked", "_paste_agent_last")

    def execute(self, sql: str, /, *args: Any) -> Any:
        around = _current()
        if around is None or (type(around) is Span and around.category == DATABASE):
            return _execute(self, sql, *args)
        prepared: Statement | None = None
        if sql.__class__ is str:  # a subclass may compare in its own way
            try:
                source: Source = self.connection._paste_agent_source  # type: ignore[attr-defined]
                prepared = source.young.get(sql) or source.find(sql)
            except Exception:  # of a connection that is not ours, or of none
                pass
        if prepared is None:
            prepared = _prepared(self, sql)
        span = begin(DATABASE, prepared.text)
        if span is None:
            return _execute(self, sql, *args)
        budget.now_ns = span.start_ns
        _set_last(self, prepared)
        try:
            # A call with a star takes longer than the rest of this method.
            result = _execute(self, sql, args[0]) if len(args) == 1 else _execute(self, sql, *args)
        except BaseException as error:
            failed(_driver, span, prepared, error)
            raise
        if statements.explaining:
            asked = sql, args[0] if args else ()
            _set_asked(self, asked)
            executed(_driver, self, span, prepared, *asked)
        else:
            if prepared.__class__ is Later:  # others begin with the same word
                uncount(span)
            end(span, prepared.name, prepared.key, None, prepared.attributes)
        return result

    def executemany(self, sql: str, /, *args: Any) -> Any:
        if not counts():
            return _executemany(self, sql, *args)
        return run(_driver, _prepared(self, sql), _executemany, (self, sql, *args), {})

    def executescript(self, sql: str, /) -> Any:
        if not counts():
            return _executescript(self, sql)
        return run(_driver, _prepared(self, sql), _executescript, (self, sql), {})

    def fetchall(self) -> list[Any]:
        if not counts():
            return _fetchall(self)
        prepared = _kept(_get_last, self)
        if prepared is None:  # there is nothing to fetch, or it was executed outside of the transaction
            return _fetchall(self)
        prepared = prepared.fetching()
        span = begin(DATABASE, prepared.text)
        if span is None:
            return _fetchall(self)
        try:
            rows = _fetchall(self)
        except BaseException as error:
            failed(_driver, span, prepared, error)
            raise
        _fetched(self, span, prepared, rows)
        return rows


# By the slots themselves: a class of the application's may have attributes in its own way.
_set_last, _get_last = Cursor._paste_agent_last.__set__, Cursor._paste_agent_last.__get__  # type: ignore[attr-defined]
_set_asked, _get_asked = Cursor._paste_agent_asked.__set__, Cursor._paste_agent_asked.__get__  # type: ignore[attr-defined]


def _kept(get: Callable[[Cursor], Any], cursor: Cursor) -> Any:
    try:
        return get(cursor)
    except AttributeError:
        return None


def _prepared(cursor: Cursor, sql: object) -> Statement:
    try:
        connection = cursor.connection
    except Exception:  # its __init__ was never called
        connection = None
    return _driver.prepared(cursor, connection, sql)


def _fetched(cursor: Cursor, span: Span, prepared: Prepared, rows: list[Any]) -> None:
    """End the span of a fetch that succeeded. It does not count as one more execution of the statement."""
    attributes = with_one, prepared.attributes, "db.response.returned_rows", len(rows)
    uncount(span)
    asked = _kept(_get_asked, cursor) if statements.explaining else None
    if asked is not None:
        _set_asked(cursor, None)  # nothing of the application's is kept
    if asked is not None and prepared.operation == "SELECT":
        end_explained(_driver, cursor, span, prepared, attributes, asked[0], asked[1], counted=False)
    else:
        end(span, prepared.name, None, None, attributes)


class Connection(sqlite3.Connection):
    """A connection whose cursors are such, and whose ends of transactions are spans."""

    def cursor(self, factory: Any = sqlite3.Cursor) -> Any:
        return _cursor(self, Cursor if factory is sqlite3.Cursor else cursor_class(factory))

    # sqlite3's own shortcuts make a cursor of its own type.

    def execute(self, sql: str, /, *args: Any) -> Any:
        return _shortcut(self).execute(sql, *args)

    def executemany(self, sql: str, /, *args: Any) -> Any:
        return _shortcut(self).executemany(sql, *args)

    def executescript(self, sql: str, /) -> Any:
        return _shortcut(self).executescript(sql)

    def commit(self) -> None:
        _end_transaction(self, "COMMIT", sqlite3.Connection.commit)

    def rollback(self) -> None:
        _end_transaction(self, "ROLLBACK", sqlite3.Connection.rollback)

    def __exit__(self, *exc_info: Any) -> Any:
        operation = "COMMIT" if exc_info[:1] == (None,) else "ROLLBACK"
        return _end_transaction(self, operation, sqlite3.Connection.__exit__, *exc_info)


def _shortcut(connection: Connection) -> Any:
    """The cursor of a connection's own `execute`; from Python 3.11 on that asks no `cursor` of the application's."""
    if sys.version_info < (3, 11):
        return connection.cursor()
    return sqlite3.Connection.cursor(connection, Cursor)


def _end_transaction(connection: Connection, operation: str, call: Call, *args: Any) -> Any:
    if not counts() or not _in_transaction(connection):
        return call(connection, *args)
    return run(_driver, _driver.source(connection).command(operation), call, (connection, *args), {})


def _in_transaction(connection: Connection) -> bool:
    try:
        return connection.in_transaction
    except Exception:  # closed: the call will say so
        return False


for _seen in (Cursor, Connection):
    setattr(_seen, SEEN, True)


def _like(kind: Any, ours: type) -> Any:
    """The application's class with ours between it and the library's; itself where that cannot be."""
    if not isinstance(kind, type) or getattr(kind, SEEN, False):
        return kind
    try:
        return _classes[kind]
    except KeyError:
        pass
    if len(_classes) >= _MAX_CLASSES:
        return kind
    try:
        like: Any = type(
            kind.__name__, (kind, ours), {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
        )
    except Exception:  # slots of its own, or a metaclass that has something against it
        like = kind
    _classes[kind] = like
    return like


_MAX_CLASSES = 100
_classes: dict[Any, Any] = {sqlite3.Cursor: Cursor, sqlite3.Connection: Connection}


def cursor_class(factory: Any) -> Any:
    """The class that cursors are of which shall be of `factory`."""
    if factory is sqlite3.Cursor:
        return Cursor
    if isinstance(factory, type) and issubclass(factory, sqlite3.Cursor):
        return _like(factory, Cursor)
    return factory


def _connection_class(factory: Any) -> Any:
    if isinstance(factory, type) and issubclass(factory, sqlite3.Connection):
        return _like(factory, Connection)
    return factory


def install(module: ModuleType) -> None:
    """Have `sqlite3.connect` make such connections. A second call does nothing."""
    places = [(place, place.connect) for place in (sqlite3, sqlite3.dbapi2)]
    for place, original in places:
        if not hasattr(original, MARK):
            place.connect = _connecting(original)  # type: ignore[attr-defined]


def _with_path(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of `connect` with the path that an object stands for, which is asked for it just once."""
    try:
        if args and not isinstance(args[0], (str, bytes)):
            return (os.fspath(args[0]), *args[1:]), kwargs
        if not args and not isinstance(kwargs["database"], (str, bytes)):
            return args, {**kwargs, "database": os.fspath(kwargs["database"])}
    except Exception:  # the library will complain of it
        pass
    return args, kwargs


def _connecting(original: Callable[..., sqlite3.Connection]) -> Callable[..., sqlite3.Connection]:
    counted = connecting(_driver, original)

    @functools.wraps(original)
    def connect(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        args, kwargs = _with_path(args, kwargs)
        if len(args) > _FACTORY_AT:
            args = (*args[:_FACTORY_AT], _connection_class(args[_FACTORY_AT]), *args[_FACTORY_AT + 1 :])
        else:
            kwargs["factory"] = _connection_class(kwargs.get("factory", sqlite3.Connection))
        connection: sqlite3.Connection = counted(*args, **kwargs)
        try:
            _driver.belongs(connection, _driver.target_of_call(args, kwargs))
        except Exception:  # what it was opened with is no name
            pass
        return connection

    setattr(connect, MARK, original)
    return connect


#: Where a connection keeps its source.
setattr(Connection, SOURCE, None)
