"""PyMySQL: the statements that a transaction executes on MySQL or MariaDB.

Its classes are instrumented in place. Rows of an unbuffered cursor are not timed as they come.

Tested with 1.0.2, 1.1.1 and 1.2.4.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

from paste_agent.instrument.dbapi import SEEN, Call, Driver, Target, connecting, plan_of_rows
from paste_agent.instrument.mysql import MySQL, instrument, system_of, target


class _PyMySQL(MySQL):
    def target_of(self, connection: Any) -> Target:
        return target(system_of(connection), connection.db, connection.host, connection.port, connection.unix_socket)

    def explain(self, cursor: Any, statement: str, arguments: Any) -> Callable[[], list[str]] | None:
        connection = cursor.connection
        result = connection._result
        if not self.can_explain(cursor, statement):
            return None
        if result is not None and (result.unbuffered_active or result.has_next):
            return None
        return functools.partial(self._plan, connection, statement, arguments)

    def _plan(self, connection: Any, statement: str, arguments: Any) -> list[str]:
        before = connection._result, connection._affected_rows
        try:
            with self.cursors.DictCursor(connection) as plain:
                plain.execute(f"EXPLAIN {statement}", arguments)
                return plan_of_rows(plain.fetchall(), self.system)
        finally:
            connection._result, connection._affected_rows = before


def install(module: ModuleType) -> None:
    """Wrap the methods that reach the server. A second call does nothing."""
    cursors: Any = module.cursors
    cursor: Any = cursors.Cursor
    connection: Any = module.connections.Connection
    if getattr(cursor, SEEN, False):
        return
    driver = _PyMySQL(cursors)
    instrument(driver, cursor, connection, "connect", _connecting(driver, connection.connect))


def _connecting(driver: MySQL, original: Call) -> Call:
    """`Connection.connect`, which every way to connect passes, to connect again too."""

    class OfSelf(Driver):
        def target_of_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Target:
            connection = args[0]
            return target("mysql", connection.db, connection.host, connection.port, connection.unix_socket)

        def status_of(self, error: BaseException) -> object:
            return driver.status_of(error)

    return connecting(OfSelf("mysql"), original)
