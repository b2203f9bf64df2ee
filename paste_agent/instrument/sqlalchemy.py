"""SQLAlchemy: what only it knows. Its statements are counted by the driver below it where the agent knows the driver.

Where it does not, the three methods of a dialect that execute are wrapped, as are connecting and the ends of
transactions: a span that begins in one engine event and ends in another would stay open whenever a listener between
them raises. Waiting for a connection while a QueuePool has none left is a span `pool checkout`, which is no database's
time and counts nowhere; taking one that is there is none.

Tested with 1.4.54, 2.0.58 and 2.1.9.
"""

from __future__ import annotations

import functools
from importlib import import_module
from types import ModuleType
from typing import Any

from paste_agent.inside import FUNCTION
from paste_agent.instrument.dbapi import MARK, SEEN, SOURCE, Call, Driver, Target, counts, executed, run
from paste_agent.spans import Span, timed
from paste_agent.statements import Source, Statement, source_of

#: By name of a dialect: `db.system.name`. Others go by their dialect's.
_SYSTEMS = {
    "mssql": "microsoft.sql_server",
    "oracle": "oracle.db",
    "redshift": "aws.redshift",
    "db2": "ibm.db2",
    "ibm_db_sa": "ibm.db2",
    "hana": "sap.hana",
    "firebird": "firebirdsql",
}
#: Methods of a dialect that execute.
_EXECUTE = ("do_execute", "do_execute_no_params", "do_executemany")
_POOL_CHECKOUT = "pool checkout"


class _OfDialect(Driver):
    """Drivers that the agent does not know. A dialect stands for the connections of its engine."""

    def status_of(self, error: BaseException) -> object:
        number = error.args[0] if error.args else None
        number = number if isinstance(number, int) else None
        state = super().status_of(error)
        return number or state if self.system in ("mysql", "mariadb") else state or number


def _driver_of(dialect: Any) -> _OfDialect:
    found = dialect.__dict__.get("_paste_agent_driver")
    if found is None:
        name = str(dialect.name)
        found = dialect._paste_agent_driver = _OfDialect(_SYSTEMS.get(name, name))
    driver: _OfDialect = found
    return driver


def _source_of(dialect: Any, context: Any = None) -> Source:
    """What the dialect's engine leads to; known once something has been executed."""
    found = dialect.__dict__.get(SOURCE)
    if found is None:
        system = _driver_of(dialect).system
        if context is None:
            return source_of(system)
        try:
            url = context.root_connection.engine.url
            found = source_of(*Target(system, url.database or None, url.host or None, url.port))
        except Exception:  # a context of somebody else's making
            return source_of(system)
        setattr(dialect, SOURCE, found)
    source: Source = found
    return source


def install(module: ModuleType) -> None:
    """Wrap what every dialect inherits, and the pool that waits. A second call does nothing."""
    dialect: Any = import_module("sqlalchemy.engine.default").DefaultDialect
    pool: Any = import_module("sqlalchemy.pool").QueuePool
    if hasattr(dialect.do_execute, MARK):
        return
    wrapped = [
        *((dialect, name, _executing(getattr(dialect, name))) for name in _EXECUTE),
        (dialect, "connect", _connecting(dialect.connect)),
        (dialect, "do_commit", _finishing(dialect.do_commit, "COMMIT")),
        (dialect, "do_rollback", _finishing(dialect.do_rollback, "ROLLBACK")),
        (pool, "_do_get", _waiting(pool._do_get)),
    ]
    for where, name, value in wrapped:
        setattr(value, MARK, getattr(where, name))
        setattr(where, name, value)


def _wrap_overrides(kind: type) -> None:
    """A dialect may have a way of its own to execute: it is wrapped before its first connection is made."""
    for place in kind.__mro__:
        for name in _EXECUTE:
            own = vars(place).get(name)
            if callable(own) and not hasattr(own, MARK) and hasattr(place, "create_connect_args"):
                wrapped = _executing(own)
                setattr(wrapped, MARK, own)
                setattr(place, name, wrapped)


def _executing(original: Call) -> Call:
    @functools.wraps(original)
    def execute(self: Any, cursor: Any, statement: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(type(cursor), SEEN, False) or not counts():
            return original(self, cursor, statement, *args, **kwargs)
        driver, prepared = _prepared(self, statement, args[-1] if args else None, kwargs)

        def told(span: Span, prepared: Statement, result: Any) -> None:
            executed(driver, cursor, span, prepared, statement, None)

        return run(driver, prepared, original, (self, cursor, statement, *args), kwargs, told)

    return execute


def _prepared(dialect: Any, statement: Any, last: Any, kwargs: dict[str, Any]) -> tuple[Driver, Statement]:
    try:
        driver = _driver_of(dialect)
        context = kwargs.get("context", last)
        connection = _Leading(_source_of(dialect, context))
    except Exception:
        driver, connection = _UNKNOWN, None
    return driver, driver.prepared(None, connection, statement)


class _Leading:
    """In the place of a connection: it leads to a source."""

    __slots__ = (SOURCE,)

    def __init__(self, source: Source) -> None:
        setattr(self, SOURCE, source)


_UNKNOWN = _OfDialect("other_sql")


def _connecting(original: Call) -> Call:
    @functools.wraps(original)
    def connect(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            _wrap_overrides(type(self))
        except Exception:  # a class that cannot be changed
            pass
        if not counts() or _knows(self):
            return original(self, *args, **kwargs)
        driver = _driver_of(self)
        source = source_of(*_target_of(driver.system, kwargs))
        return run(driver, source.command("connect"), original, (self, *args), kwargs, counted=False)

    return connect


def _target_of(system: str, parameters: dict[str, Any]) -> Target:
    """As far as the parameters of a driver go by the usual names."""
    database = parameters.get("database") or parameters.get("dbname") or parameters.get("db")
    host, port = parameters.get("host"), parameters.get("port")
    return Target(
        system,
        database if isinstance(database, str) else None,
        host if isinstance(host, str) else None,
        port if isinstance(port, int) else None,
    )


def _knows(dialect: Any) -> bool:
    """Whether the driver of a dialect is instrumented, and sees itself when it connects."""
    driver = getattr(dialect, "dbapi", None)
    connect = getattr(driver, "connect", None)
    return hasattr(connect, MARK) or getattr(connect, SEEN, False) is True


def _finishing(original: Call, operation: str) -> Call:
    @functools.wraps(original)
    def finish(self: Any, dbapi_connection: Any, *args: Any, **kwargs: Any) -> Any:
        below = getattr(dbapi_connection, "dbapi_connection", dbapi_connection)
        if getattr(type(below), SEEN, False) or not counts():
            return original(self, dbapi_connection, *args, **kwargs)
        prepared = _source_of(self).command(operation)
        return run(_driver_of(self), prepared, original, (self, dbapi_connection, *args), kwargs)

    return finish


def _waiting(original: Call) -> Call:
    @functools.wraps(original)
    def _do_get(self: Any, *args: Any, **kwargs: Any) -> Any:
        if counts() and _is_exhausted(self):
            return timed(FUNCTION, _POOL_CHECKOUT, original, self, *args, **kwargs)
        return original(self, *args, **kwargs)

    return _do_get


def _is_exhausted(pool: Any) -> bool:
    """Whether the pool has no connection to give, and may not make another one."""
    try:
        return bool(-1 < pool._max_overflow <= pool._overflow and pool._pool.empty())
    except Exception:  # not the pool that it was
        return False
