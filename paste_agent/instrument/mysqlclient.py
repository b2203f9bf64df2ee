"""mysqlclient, module MySQLdb: the statements that a transaction executes on MySQL or MariaDB.

Its classes, which are written in Python over one in C, are instrumented in place. What is read from an option file is
not known.

Tested with 2.2.0 and 2.3.2.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

from paste_agent.instrument.dbapi import MARK, SEEN, Call, Target, connecting, plan_of_rows
from paste_agent.instrument.mysql import MySQL, instrument, system_of, target_of_parameters


class _MySQLClient(MySQL):
    def target_of(self, connection: Any) -> Target:
        return Target(system_of(connection))

    def target_of_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Target:
        return target_of_parameters(args[1:], kwargs)

    def explain(self, cursor: Any, statement: str, arguments: Any) -> Callable[[], list[str]] | None:
        if not self.can_explain(cursor, statement):
            return None
        return functools.partial(self._plan, cursor.connection, statement, arguments)

    def _plan(self, connection: Any, statement: str, arguments: Any) -> list[str]:
        plain = self.cursors.DictCursor(connection)
        try:
            plain.execute(f"EXPLAIN {statement}", arguments)
            return plan_of_rows(plain.fetchall(), self.system)
        finally:
            plain.close()


def install(module: ModuleType) -> None:
    """Wrap the methods that reach the server. A second call does nothing."""
    if module.__name__ != "MySQLdb":  # PyMySQL goes by this name where somebody wants it so
        return
    connections, cursors = import_module("MySQLdb.connections"), import_module("MySQLdb.cursors")
    cursor: Any = cursors.BaseCursor
    connection: Any = connections.Connection
    if getattr(cursor, SEEN, False):
        return
    driver = _MySQLClient(cursors)
    instrument(driver, cursor, connection, "__init__", _connecting(driver, connection.__init__))


def _connecting(driver: _MySQLClient, original: Call) -> Call:
    """The constructor connects."""
    counted = connecting(driver, original)

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        counted(self, *args, **kwargs)
        try:
            system = driver.target_of(self).system
            driver.belongs(self, target_of_parameters(args, kwargs, system))
        except Exception:  # it is connected, and that is what counts
            pass

    setattr(__init__, MARK, original)
    return __init__
