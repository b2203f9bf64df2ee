"""psycopg, version 3: the statements that a transaction executes on PostgreSQL.

Its classes are instrumented in place, the synchronous ones; so are server-side, client-side and raw cursors. Of `copy`
the beginning and the end are spans, not what an application does in between. Not seen are `stream`, what an
asynchronous connection does, BEGIN and COMMIT of `Connection.transaction`, and in a pipeline when a statement is done.

Tested with 3.1.8, 3.2.13 and 3.3.9.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

from paste_agent.instrument.dbapi import (
    MARK,
    SEEN,
    Call,
    Driver,
    Target,
    commanding,
    connecting,
    counts,
    executing,
    finishing,
    run,
)
from paste_agent.instrument.psycopg2 import explained, target_of_parameters
from paste_agent.statements import Prepared, Statement

_IDLE, _IN_TRANSACTION = 0, 2  #: as libpq has them


class _Psycopg(Driver):
    def __init__(self, module: Any) -> None:
        super().__init__("postgresql", "query")
        self.module = module

    def target_of(self, connection: Any) -> Target:
        return target_of_parameters(connection.info.get_parameters())

    def target_of_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Target:
        own = ("autocommit", "conninfo", "context", "cursor_factory", "prepare_threshold", "row_factory")
        given = {name: value for name, value in kwargs.items() if name not in own}
        found = self.module.conninfo.conninfo_to_dict(args[0] if args else kwargs.get("conninfo", ""), **given)
        return target_of_parameters({name: str(value) for name, value in found.items() if value is not None})

    def text_of(self, cursor: Any, statement: Any) -> str:
        render = getattr(statement, "as_string", None)
        return render(cursor) if render is not None else super().text_of(cursor, statement)

    def is_idle(self, connection: Any) -> bool:
        return bool(connection.pgconn.transaction_status == _IDLE)

    def explain(self, cursor: Any, statement: str, arguments: Any) -> Callable[[], list[str]] | None:
        psycopg, connection = self.module, cursor.connection
        status = connection.pgconn.transaction_status
        if isinstance(cursor, psycopg.ServerCursor) or connection.pgconn.pipeline_status != 0:
            return None
        if status != _IN_TRANSACTION and not (status == _IDLE and connection.autocommit):
            return None
        raw = getattr(psycopg, "RawCursor", None)
        kind = next(
            (kind for kind in (raw, psycopg.ClientCursor) if kind is not None and isinstance(cursor, kind)),
            psycopg.Cursor,
        )
        within = status == _IN_TRANSACTION

        def ask() -> list[str]:
            plain = kind(connection, row_factory=psycopg.rows.tuple_row)
            return explained(plain, statement, arguments, within=within, prepare=False)

        return ask


def install(module: ModuleType) -> None:
    """Wrap the methods that reach the server. A second call does nothing."""
    psycopg: Any = module
    if getattr(psycopg.Cursor, SEEN, False):
        return
    driver = _Psycopg(psycopg)
    cursor, server_cursor, connection = psycopg.Cursor, psycopg.ServerCursor, psycopg.Connection

    def connection_of(cursor: Any) -> Any:
        return cursor.connection

    connect = connection.__dict__["connect"].__func__
    wrapped: list[tuple[Any, str, Any]] = [
        (cursor, "execute", executing(driver, cursor.execute, connection_of)),
        (cursor, "executemany", executing(driver, cursor.executemany, connection_of, many=True)),
        (cursor, "copy", _copying(driver, cursor.copy)),
        (server_cursor, "execute", executing(driver, server_cursor.__dict__["execute"], connection_of)),
        *(
            (server_cursor, name, _fetching(driver, server_cursor.__dict__[name]))
            for name in ("fetchone", "fetchmany", "fetchall")
        ),
        (connection, "commit", finishing(driver, connection.commit, "COMMIT")),
        (connection, "rollback", finishing(driver, connection.rollback, "ROLLBACK")),
        (connection, "connect", classmethod(connecting(driver, connect, method=True))),
        (cursor, SEEN, True),
        (connection, SEEN, True),
    ]
    same = getattr(psycopg.connect, "__func__", None) is connect
    for where, name, value in wrapped:
        setattr(where, name, value)
    if same:
        psycopg.connect = connection.connect


def _fetching(driver: Driver, original: Call) -> Call:
    return commanding(driver, original, "FETCH", lambda cursor: driver.source(cursor.connection))


def _copying(driver: Driver, original: Call) -> Call:
    @functools.wraps(original)
    def copy(self: Any, *args: Any, **kwargs: Any) -> Any:
        context = original(self, *args, **kwargs)
        if not counts():
            return context
        statement = args[0] if args else kwargs.get(driver.statement)
        return _Copying(context, driver, driver.prepared(self, getattr(self, "connection", None), statement))

    setattr(copy, MARK, original)
    return copy


class _Copying:
    """Around the context of a COPY: how long it takes to begin, and to end."""

    def __init__(self, context: Any, driver: Driver, prepared: Statement) -> None:
        self._context, self._driver, self._prepared = context, driver, prepared

    def __enter__(self) -> Any:
        if not counts():
            return self._context.__enter__()
        return run(self._driver, self._prepared, self._context.__enter__, (), {})

    def __exit__(self, *exc_info: Any) -> Any:
        if not counts():
            return self._context.__exit__(*exc_info)
        prepared = self._prepared
        ending = Prepared(prepared.text, prepared.name, prepared.operation, prepared.key, {})
        return run(self._driver, ending, self._context.__exit__, exc_info, {}, counted=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_context"], name)
