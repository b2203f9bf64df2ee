"""psycopg2: the statements that a transaction executes on PostgreSQL.

Connections and cursors are of subclasses, those of `psycopg2.extras` and of an application's own too, so that
isinstance and all of `psycopg2.extensions` work as ever. A factory that is no class is left as it is; so is a
connection that was opened before, and whoever imported `connect` from psycopg2 before the agent came. Of a named cursor
`fetchmany` and `fetchall` are spans, iteration is not.

Tested with 2.9.5, 2.9.9 and 2.9.13.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from paste_agent.instrument.dbapi import (
    MARK,
    SEEN,
    SOURCE,
    Call,
    Driver,
    Target,
    commanding,
    connecting,
    executing,
    finishing,
    plan_of_lines,
)

_READY = 1  #: `extensions.STATUS_READY`: no transaction has begun
_IDLE, _IN_TRANSACTION = 0, 2  #: as libpq has them
_MAX_CLASSES = 100
_SAVEPOINT = "paste_agent_explain"


class _Psycopg2(Driver):
    """extensions: of psycopg2."""

    def __init__(self, extensions: Any) -> None:
        super().__init__("postgresql", "query")
        self.extensions = extensions

    def target_of(self, connection: Any) -> Target:
        return target_of_parameters(connection.get_dsn_parameters())

    def target_of_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Target:
        dsn = args[0] if args else kwargs.get("dsn")
        given = {
            name: value
            for name, value in kwargs.items()
            if name not in ("dsn", "connection_factory", "cursor_factory", "async", "async_")
        }
        return target_of_parameters(self.extensions.parse_dsn(self.extensions.make_dsn(dsn, **given)))

    def text_of(self, cursor: Any, statement: Any) -> str:
        render = getattr(statement, "as_string", None)
        return render(cursor) if render is not None else super().text_of(cursor, statement)

    def is_idle(self, connection: Any) -> bool:
        return bool(connection.status == _READY)

    def explain(self, cursor: Any, statement: str, arguments: Any) -> Callable[[], list[str]] | None:
        connection = cursor.connection
        status = connection.get_transaction_status()
        if cursor.name is not None or connection.async_:
            return None
        within = status == _IN_TRANSACTION
        if not within and not (status == _IDLE and connection.autocommit):
            return None
        return lambda: explained(self.extensions.cursor(connection), statement, arguments, within=within)


def explained(cursor: Any, statement: str, arguments: Any, within: bool, **keys: Any) -> list[str]:
    """A plan, asked for with a cursor of its own, which is closed. within: in a transaction, which must not be hurt."""
    try:
        if within:
            cursor.execute(f"SAVEPOINT {_SAVEPOINT}")
        try:
            cursor.execute(f"EXPLAIN {statement}", arguments, **keys)
            return plan_of_lines([str(row[0]) for row in cursor.fetchall()], "postgresql")
        except BaseException:
            if within:
                cursor.execute(f"ROLLBACK TO SAVEPOINT {_SAVEPOINT}")
            raise
        finally:
            if within:
                cursor.execute(f"RELEASE SAVEPOINT {_SAVEPOINT}")
    finally:
        cursor.close()


def target_of_parameters(parameters: dict[str, str]) -> Target:
    """From what libpq calls connection parameters. Without a port where the host is a directory."""
    host, port = parameters.get("host") or None, parameters.get("port") or "5432"
    named = host is not None and not host.startswith(("/", "@"))
    return Target(
        "postgresql",
        parameters.get("dbname") or parameters.get("user") or None,
        host,
        int(port) if named and port.isdigit() else None,
    )


def install(module: ModuleType) -> None:
    """Have `psycopg2.connect` make such connections. A second call does nothing."""
    original = module.connect
    if hasattr(original, MARK):
        return
    extensions: Any = module.extensions
    driver = _Psycopg2(extensions)
    connection_class = _connection_classes(driver)
    counted = connecting(driver, original)

    def connect(dsn: Any = None, connection_factory: Any = None, *args: Any, **kwargs: Any) -> Any:
        if connection_factory is None:
            connection_factory = extensions.connection
        return counted(dsn, connection_class(connection_factory), *args, **kwargs)

    connect.__doc__, connect.__module__ = original.__doc__, original.__module__
    setattr(connect, MARK, original)
    connect.__wrapped__ = original  # type: ignore[attr-defined]
    module.connect = connect  # type: ignore[attr-defined]


def _cursor_classes(driver: _Psycopg2) -> tuple[type, type]:
    """A cursor, and one that has a name: each of its fetches asks the server."""
    plain: Any = driver.extensions.cursor

    def connection_of(cursor: Any) -> Any:
        return cursor.connection

    def source_of_cursor(cursor: Any) -> Any:
        return driver.source(cursor.connection)

    def around(name: str, operation: str) -> Call:
        return commanding(driver, getattr(plain, name), operation, source_of_cursor)

    methods = {
        "execute": executing(driver, plain.execute, connection_of),
        "executemany": executing(driver, plain.executemany, connection_of, many=True),
        "copy_expert": _copying(driver, plain.copy_expert),
        **{name: around(name, operation) for name, operation in (("callproc", "CALL"), ("copy_from", "COPY"))},
        "copy_to": around("copy_to", "COPY"),
        "__slots__": (),
        "__doc__": plain.__doc__,
        "__module__": plain.__module__,
        SEEN: True,
    }
    fetches = {name: around(name, "FETCH") for name in ("fetchmany", "fetchall")}
    seen = type("cursor", (plain,), methods)
    return seen, type("cursor", (seen,), {**fetches, "__slots__": (), "__module__": plain.__module__})


def _copying(driver: _Psycopg2, original: Call) -> Call:
    """`copy_expert(sql, file, size)`: a statement, and what goes with it."""
    named = _Psycopg2(driver.extensions)
    named.statement = "sql"
    return executing(named, original, lambda cursor: cursor.connection, many=True)


def _connection_classes(driver: _Psycopg2) -> Any:
    """What gives the class that connections are of which shall be of a factory."""
    plain: Any = driver.extensions.connection
    cursors = _cursor_classes(driver)
    library = driver.extensions.cursor

    def cursor(self: Any, name: Any = None, cursor_factory: Any = None, *args: Any, **kwargs: Any) -> Any:
        factory = cursor_factory or self.cursor_factory or library
        if isinstance(factory, type) and issubclass(factory, library):
            factory = _like(factory, cursors[name is not None], library)
        return plain.cursor(self, name, factory, *args, **kwargs)

    cursor.__doc__ = plain.cursor.__doc__
    seen = type(
        "connection",
        (plain,),
        {
            "cursor": cursor,
            "commit": finishing(driver, plain.commit, "COMMIT"),
            "rollback": finishing(driver, plain.rollback, "ROLLBACK"),
            "__doc__": plain.__doc__,
            "__module__": plain.__module__,
            SEEN: True,
            SOURCE: None,
        },
    )

    def connection_class(factory: Any) -> Any:
        if isinstance(factory, type) and issubclass(factory, plain):
            return _like(factory, seen, plain)
        return factory

    return connection_class


_classes: dict[tuple[type, type], Any] = {}


def _like(kind: type, ours: type, plain: type) -> Any:
    """The class of an application, or of psycopg2.extras, with ours between it and the library's own."""
    if kind is plain:
        return ours
    if getattr(kind, SEEN, False):
        return kind
    found = _classes.get((kind, ours))
    if found is None:
        if len(_classes) >= _MAX_CLASSES:
            return kind
        try:
            names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
            found = type(kind)(kind.__name__, (kind, ours), names)
        except Exception:  # slots of its own, or a metaclass that has something against it
            found = kind
        _classes[kind, ours] = found
    return found
