"""What PyMySQL and mysqlclient have in common: what is put in place of their methods, and what they connect to."""

from __future__ import annotations

import functools
from typing import Any

from paste_agent.instrument.dbapi import MARK, SEEN, Call, Driver, Target, commanding, executing, finishing

_MAX_STATUS = 10**6
#: Places of the parameters of a connection, for those who do not name them.
_PLACES = ("host", "user", "password", "database", "port", "unix_socket")


class MySQL(Driver):
    """cursors: the library's module of that name."""

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


def instrument(driver: MySQL, cursor: Any, connection: Any, name: str, connect: Call) -> None:
    """Wrap the methods of a class of cursors and one of connections that reach the server.

    name, connect: of the method that connects, and what is put in its place.
    """

    def connection_of(cursor: Any) -> Any:
        return cursor.connection

    def source_of_cursor(cursor: Any) -> Any:
        return driver.source(cursor.connection)

    wrapped = [
        (cursor, "execute", executing(driver, cursor.execute, connection_of)),
        (cursor, "executemany", executing(driver, cursor.executemany, connection_of, many=True)),
        (cursor, "callproc", commanding(driver, cursor.callproc, "CALL", source_of_cursor)),
        (cursor, SEEN, True),
        (connection, name, connect),
        (connection, "commit", finishing(driver, connection.commit, "COMMIT")),
        (connection, "rollback", finishing(driver, connection.rollback, "ROLLBACK")),
        (connection, "select_db", _selecting(driver, connection.select_db)),
        (connection, SEEN, True),
    ]
    for where, method, value in wrapped:
        setattr(where, method, value)


def system_of(connection: Any) -> str:
    """Of a connection that is open."""
    return "mariadb" if "MariaDB" in str(connection.get_server_info()) else "mysql"


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


def _selecting(driver: Driver, original: Call) -> Call:
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
