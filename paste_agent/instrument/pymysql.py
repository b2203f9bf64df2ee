"""PyMySQL: the statements that a transaction executes on MySQL or MariaDB.

Its classes are instrumented in place. Rows of an unbuffered cursor are not timed as they come.

Tested with 1.0.2, 1.1.1 and 1.2.4.
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
    executing,
    finishing,
    plan_of_rows,
)

_MAX_STATUS = 10**6
#: Places of the parameters of a connection, for those who do not name them.
_PLACES = ("host", "user", "password", "database", "port", "unix_socket")


class MySQL(Driver):
    """What PyMySQL and mysqlclient have in common. cursors: the library's module of that name."""

    def __init__(self, cursors: Any) -> None:
        super().__init__("mysql", "query")
        self.cursors = cursors

    def status_of(self, error: BaseException) -> object:
        number = error.args[0] if error.args else None
        return number if isinstance(number, int) and 0 < number < _MAX_STATUS else None

    def can_explain(self, cursor: Any, statement: str) -> bool:
        """Not where rows are still under way, nor where the next statement asks for what this one has left."""
        unbuffered = any(kind.__name__ == "SSCursor" for kind in type(cursor).__mro__)
        return not unbuffered and "SQL_CALC_FOUND_ROWS" not in statement.upper()


class _PyMySQL(MySQL):
    def target_of(self, connection: Any) -> Target:
        system = "mariadb" if "MariaDB" in str(connection.get_server_info()) else "mysql"
        return target(system, connection.db, connection.host, connection.port, connection.unix_socket)

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


def target_of_parameters(args: tuple[Any, ...], kwargs: dict[str, Any], system: str = "mysql") -> Target:
    """From the parameters of a connection."""
    given = {**dict(zip(_PLACES, args, strict=False)), **kwargs}
    database = given.get("database") or given.get("db")
    return target(
        system, database, given.get("host") or "localhost", given.get("port") or 3306, given.get("unix_socket")
    )


def target(system: str, database: object, host: object, port: object, socket: object) -> Target:
    if isinstance(database, bytes):
        database = database.decode("utf-8", "replace")
    namespace = database if isinstance(database, str) and database else None
    if isinstance(socket, str) and socket:
        return Target(system, namespace, socket)
    return Target(system, namespace, str(host), port if isinstance(port, int) else None)


def install(module: ModuleType) -> None:
    """Wrap the methods that reach the server. A second call does nothing."""
    cursors: Any = module.cursors
    cursor: Any = cursors.Cursor
    connection: Any = module.connections.Connection
    if getattr(cursor, SEEN, False):
        return
    driver = _PyMySQL(cursors)
    wrapped = [
        *of_cursor(driver, cursor),
        (connection, "connect", _connecting(driver, connection.connect)),
        (connection, "commit", finishing(driver, connection.commit, "COMMIT")),
        (connection, "rollback", finishing(driver, connection.rollback, "ROLLBACK")),
        (connection, "select_db", selecting(driver, connection.select_db)),
        (connection, SEEN, True),
    ]
    for where, name, value in wrapped:
        setattr(where, name, value)


def of_cursor(driver: Driver, cursor: Any) -> list[tuple[Any, str, Any]]:
    """What is put in place of the methods of a cursor: class, name, value."""

    def connection_of(cursor: Any) -> Any:
        return cursor.connection

    def source_of_cursor(cursor: Any) -> Any:
        return driver.source(cursor.connection)

    return [
        (cursor, "execute", executing(driver, cursor.execute, connection_of)),
        (cursor, "executemany", executing(driver, cursor.executemany, connection_of, many=True)),
        (cursor, "callproc", commanding(driver, cursor.callproc, "CALL", source_of_cursor)),
        (cursor, SEEN, True),
    ]


def _connecting(driver: MySQL, original: Call) -> Call:
    """`Connection.connect`, which every way to connect passes, to connect again too."""

    class OfSelf(Driver):
        def target_of_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Target:
            connection = args[0]
            return target("mysql", connection.db, connection.host, connection.port, connection.unix_socket)

        def status_of(self, error: BaseException) -> object:
            return driver.status_of(error)

    return connecting(OfSelf("mysql"), original)


def selecting(driver: Driver, original: Call) -> Call:
    """`select_db`: from now on another database."""

    @functools.wraps(original)
    def select_db(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        try:
            database = args[0] if args else next(iter(kwargs.values()))
            source = driver.source(self)
            name = database.decode("utf-8", "replace") if isinstance(database, bytes) else str(database)
            driver.belongs(self, Target(source.system, name, source.address, source.port))
        except Exception:  # it was selected, and that is what counts
            pass
        return result

    setattr(select_db, MARK, original)
    return select_db
