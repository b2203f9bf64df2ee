"""What every driver that follows DB-API 2 has in common: how its calls become spans.

A driver's file says where its classes are and what it knows of a connection. Classes written in Python are
instrumented in place; those written in C get subclasses; `wrap_connect` puts thin proxies before any other. Within a
span of a database nothing is counted again: layers above a driver, and methods that call each other, come out once.

Not timed are rows that are fetched one by one, `stream` and its like, and asynchronous variants.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter_ns
from types import ModuleType
from typing import Any, NamedTuple

from paste_agent import lifecycle, statements
from paste_agent.inside import DATABASE, Attributes, with_one
from paste_agent.raised import type_name
from paste_agent.recorder.writer import Key, SpanKey
from paste_agent.spans import Span, begin, end
from paste_agent.statements import Later, Source, Statement, budget, source_of
from paste_agent.transaction import current

#: On what has been wrapped: what it was before. On classes that are instrumented: true.
MARK = "_paste_agent"
SEEN = "_paste_agent_seen"
#: On a connection: the source that it belongs to.
SOURCE = "_paste_agent_source"
#: Attribute of a span.
PLAN = "paste_agent.db.plan"
_MAX_PLAN, _MAX_PLAN_LINES = 4000, 200
#: Plans a minute and process.
_MAX_PLANS = 10
_MINUTE_NS = 60_000_000_000
_PROCEDURE = re.compile(r"[\w.$]{1,100}")
_STATUS = re.compile(r"[\w-]{1,40}")

Call = Callable[..., Any]
_current = current.get


class Target(NamedTuple):
    """The database at the other end of a connection, as far as it is known."""

    system: str
    namespace: str | None = None
    address: str | None = None
    port: int | None = None


class Driver:
    """What differs from driver to driver. All but `source` and `prepared` may raise: then it is not known."""

    def __init__(self, system: str, statement: str = "operation") -> None:
        """system: `db.system.name`. statement: name of the parameter of `execute` for callers that name it."""
        self.system = system
        self.statement = statement

    # -- to be overridden

    def target_of(self, connection: Any) -> Target:
        return Target(self.system)

    def target_of_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Target:
        """Of a call that connects."""
        return Target(self.system)

    def text_of(self, cursor: Any, statement: Any) -> str:
        """The text of a statement that is no str."""
        return statement.decode("utf-8", "replace") if isinstance(statement, (bytes, bytearray)) else ""

    def status_of(self, error: BaseException) -> object:
        """SQLSTATE, or the database's own number of an error."""
        return getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)

    def is_idle(self, connection: Any) -> bool:
        """Whether to commit on it does nothing."""
        return False

    def explain(self, cursor: Any, statement: str, arguments: Any) -> Callable[[], list[str]] | None:
        """What asks for the plan of a SELECT that the cursor has just executed; None where it is better not to ask.

        It returns the plan as it may be shown.
        """
        return None

    # -- as it is

    def source(self, connection: Any) -> Source:
        """The source of a connection; found out once."""
        found = getattr(connection, SOURCE, None)
        if found.__class__ is Source:
            return found
        try:
            target = self.target_of(connection)
        except Exception:  # closed, or of somebody else's making
            target = Target(self.system)
        return self.belongs(connection, target)

    def belongs(self, connection: Any, target: Target) -> Source:
        """Note what a connection leads to."""
        source = source_of(*target)
        try:
            setattr(connection, SOURCE, source)
        except Exception:  # it takes no attributes
            pass
        return source

    def prepared(self, cursor: Any, connection: Any, statement: Any) -> Statement:
        """What is known of a statement that is about to be executed."""
        try:
            source = self.source(connection)
            if statement.__class__ is not str:
                statement = statement if isinstance(statement, str) else self.text_of(cursor, statement)
            elif len(statement) <= statements.MAX_KEY and (found := source.young.get(statement)) is not None:
                return found
            return source.find(statement)
        except Exception as fault:
            lifecycle.on_fault("look at a statement", RuntimeError(type_name(fault)))  # the message may have values
            return source_of(self.system).command("unknown")


def counts() -> bool:
    """Whether what this thread does now is a call of its own: within a transaction, and in no other such call."""
    around = _current()
    return around is not None and not (type(around) is Span and around.category == DATABASE)


# -- one call ---------------------------------------------------------------------------------------------------------


def run(
    driver: Driver,
    prepared: Statement,
    call: Call,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    told: Callable[[Span, Statement, Any], None] | None = None,
    counted: bool = True,
) -> Any:
    """Call within a span; returns and raises what the call does. told: ends the span of a call that succeeded."""
    span = begin(DATABASE, prepared.text)
    if span is None:
        return call(*args, **kwargs)
    budget.now_ns = span.start_ns
    try:
        result = call(*args, **kwargs)
    except BaseException as error:
        failed(driver, span, prepared, error)
        raise
    if told is not None:
        told(span, prepared, result)
    else:
        end(span, prepared.name, prepared.key if counted else None, None, prepared.attributes)
    return result


def failed(driver: Driver, span: Span, prepared: Statement, error: BaseException) -> None:
    """End the span of a call that raised. Raises nothing."""
    attributes: Attributes = prepared.attributes
    kind: str | None = None
    key: SpanKey | Key = prepared.key
    try:
        kind = type_name(error)
        key = prepared.key_of(kind)
        status = driver.status_of(error)
        if status is not None and _STATUS.fullmatch(str(status)):
            attributes = with_one, attributes, "db.response.status_code", str(status)
    except Exception:  # the driver's error is not what it was
        pass
    end(span, prepared.name, key, kind or "unknown", attributes)


def uncount(span: Span) -> None:
    """What the span does is not one more execution of a statement, which might be one too many. Before its end."""
    inside = span.transaction.inside
    if inside is not None:
        inside.queries[span.text] = inside.queries.get(span.text, 0) - 1


def executed(driver: Driver, cursor: Any, span: Span, prepared: Statement, statement: Any, arguments: Any) -> None:
    """End the span of a statement that was executed, with the number of rows where it is known. Raises nothing."""
    attributes: Attributes = prepared.attributes
    if prepared.__class__ is Later:  # others begin with the same word
        uncount(span)
    if prepared.operation == "SELECT":
        try:
            rows = cursor.rowcount
            if rows >= 0:
                attributes = with_one, attributes, "db.response.returned_rows", rows
        except Exception:
            pass
        if statements.explaining:
            end_explained(driver, cursor, span, prepared, attributes, statement, arguments)
            return
    end(span, prepared.name, prepared.key, None, attributes)


# -- what wraps a method ----------------------------------------------------------------------------------------------


def executing(driver: Driver, original: Call, connection_of: Callable[[Any], Any], *, many: bool = False) -> Call:
    """Around `execute` or `executemany` of a cursor. connection_of: the connection of a cursor."""
    parameter = driver.statement

    @functools.wraps(original)
    def execute(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not counts():
            return original(self, *args, **kwargs)
        statement = args[0] if args else kwargs.get(parameter)
        prepared = driver.prepared(self, _connection(connection_of, self), statement)
        span = begin(DATABASE, prepared.text)
        if span is None:
            return original(self, *args, **kwargs)
        budget.now_ns = span.start_ns
        try:
            result = original(self, *args, **kwargs)
        except BaseException as error:
            failed(driver, span, prepared, error)
            raise
        if many:
            end(span, prepared.name, prepared.key, None, _of_batch(prepared, args))
        else:
            executed(driver, self, span, prepared, statement, args[1] if len(args) > 1 else _second(kwargs, parameter))
        return result

    setattr(execute, MARK, original)
    return execute


def _connection(connection_of: Callable[[Any], Any], cursor: Any) -> Any:
    try:
        return connection_of(cursor)
    except Exception:  # closed: the call will say so
        return None


def _second(kwargs: Mapping[str, Any], first: str) -> Any:
    """The arguments of a statement, when they are given by name."""
    for name, value in kwargs.items():
        if name != first and name in ("args", "vars", "params", "parameters"):
            return value
    return None


def _of_batch(prepared: Statement, args: Sequence[Any]) -> Attributes:
    rows = args[1] if len(args) > 1 else None
    if rows.__class__ in (list, tuple) and len(rows) > 1:
        return with_one, prepared.attributes, "db.operation.batch.size", len(rows)
    return prepared.attributes


def commanding(driver: Driver, original: Call, operation: str, source_of_self: Callable[[Any], Source]) -> Call:
    """Around something that a cursor or a connection does without a statement. source_of_self: of what it belongs to.

    operation: `CALL` is followed by the name of a procedure, the first argument.
    """

    @functools.wraps(original)
    def command(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not counts():
            return original(self, *args, **kwargs)
        prepared = _command(driver, operation, self, args, source_of_self)
        return run(driver, prepared, original, (self, *args), kwargs)

    setattr(command, MARK, original)
    return command


def _command(
    driver: Driver, operation: str, self: Any, args: Sequence[Any], source_of_self: Callable[[Any], Source]
) -> Statement:
    try:
        name = args[0] if operation == "CALL" and args else None
        known = isinstance(name, str) and _PROCEDURE.fullmatch(name) is not None
        return source_of_self(self).command(operation, name if known else None)
    except Exception:
        return source_of(driver.system).command(operation)


def finishing(driver: Driver, original: Call, operation: str) -> Call:
    """Around `commit` or `rollback` of a connection; nothing where the driver does nothing."""
    command = commanding(driver, original, operation, driver.source)

    @functools.wraps(original)
    def finish(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _current() is None or is_idle(driver, self):
            return original(self, *args, **kwargs)
        return command(self, *args, **kwargs)

    setattr(finish, MARK, original)
    return finish


def is_idle(driver: Driver, connection: Any) -> bool:
    try:
        return driver.is_idle(connection)
    except Exception:
        return False


def connecting(driver: Driver, original: Call, *, method: bool = False) -> Call:
    """Around what connects: a span, which is counted where it fails. method: it is one, of a class or an instance."""

    @functools.wraps(original)
    def connect(*args: Any, **kwargs: Any) -> Any:
        if not counts():
            return original(*args, **kwargs)
        try:
            target = driver.target_of_call(args[1:] if method else args, kwargs)
        except Exception:  # the driver will say so
            target = Target(driver.system)
        return run(driver, source_of(*target).command("connect"), original, args, kwargs, counted=False)

    setattr(connect, MARK, original)
    return connect


# -- plans ------------------------------------------------------------------------------------------------------------


class _Rate:
    """How many plans have been asked for. Off by a few where threads meet."""

    begun_ns = -_MINUTE_NS
    plans = 0

    def take(self, now_ns: int) -> bool:
        if now_ns - self.begun_ns >= _MINUTE_NS:
            self.begun_ns, self.plans = now_ns, 0
        self.plans += 1
        return self.plans <= _MAX_PLANS


_rate = _Rate()
#: Figures of PostgreSQL's, which are estimates and no values.
_ESTIMATE = re.compile(r"\s*\(cost=[\d.]+ rows=\d+ width=\d+\)$")


def end_explained(
    driver: Driver,
    cursor: Any,
    span: Span,
    prepared: Statement,
    attributes: Attributes,
    statement: Any,
    arguments: Any,
    counted: bool = True,
) -> None:
    """End the span of a SELECT, and ask for its plan if it was slow. Raises nothing of its own."""
    key = prepared.key if counted else None
    now_ns = perf_counter_ns()
    ask = None
    if now_ns - span.start_ns > span.transaction.recorder.sampler.slow_query_ns:
        ask = _asking(driver, cursor, statement, arguments)
    if ask is None or not _rate.take(now_ns):
        end(span, prepared.name, key, None, attributes)
        return
    # The place of the plan is there from the start: whoever reads the attributes sees no mapping that grows.
    extended = with_one(attributes, PLAN, None)
    end(span, prepared.name, key, None, extended)
    asked = begin(DATABASE, b"EXPLAIN")
    if asked is None:
        return
    kind: str | None = None
    try:
        extended[PLAN] = "\n".join(ask()[:_MAX_PLAN_LINES])[:_MAX_PLAN]
    except Exception as error:
        kind = type_name(error)
        # Without its message, which may have values.
        asked.transaction.recorder.on_fault("EXPLAIN", RuntimeError(kind))
    finally:
        end(asked, "EXPLAIN", None, kind, {"db.system.name": driver.system, "db.operation.name": "EXPLAIN"})


def _asking(driver: Driver, cursor: Any, statement: Any, arguments: Any) -> Callable[[], list[str]] | None:
    """What asks for a plan; None for several statements at once, and where the driver says no."""
    try:
        text = statement if isinstance(statement, str) else driver.text_of(cursor, statement)
        text = text.rstrip("; \t\r\n")
        return driver.explain(cursor, text, arguments) if text and ";" not in text else None
    except Exception:  # a cursor, or a statement, that is not what it was
        return None


def plan_of_lines(lines: Sequence[str], system: str) -> list[str]:
    """A plan in a database's own words, as it may be shown."""
    shown = []
    for line in lines[:_MAX_PLAN_LINES]:
        estimate = _ESTIMATE.search(line)
        end_at = len(line) if estimate is None else estimate.start()
        shown.append(statements.shown_line(line[:end_at], system) + line[end_at:])
    return shown


def plan_of_rows(rows: Sequence[Mapping[str, object]], system: str) -> list[str]:
    """A plan that is a table, as it may be shown: a line a row, of those columns that are known."""
    columns = ("id", "select_type", "table", "type", "possible_keys", "key", "key_len", "ref", "rows")
    shown = []
    for row in rows[:_MAX_PLAN_LINES]:
        parts = [f"{name}={row[name]}" for name in columns if row.get(name) is not None]
        if extra := row.get("Extra"):
            parts.append(f"Extra={statements.shown_line(str(extra), system)}")
        shown.append(" ".join(parts))
    return shown


# -- any other driver -------------------------------------------------------------------------------------------------


def wrap_connect(module: ModuleType, system: str) -> None:
    """Have a driver's `connect` return a proxy, which everything passes through that DB-API 2 defines.

    For drivers that are written in C and take no factories. A second call does nothing.
    """
    original = module.connect
    if hasattr(original, MARK):
        return
    driver = Driver(system)
    connect = connecting(driver, original)

    @functools.wraps(original)
    def proxied(*args: Any, **kwargs: Any) -> Any:
        return ConnectionProxy(connect(*args, **kwargs), driver)

    setattr(proxied, MARK, original)
    module.connect = proxied  # type: ignore[attr-defined]


class _Proxy:
    """Passes on what it does not have, both ways."""

    __slots__ = (SOURCE, "_driver", "_wrapped")

    def __init__(self, wrapped: Any, driver: Driver) -> None:
        object.__setattr__(self, "_wrapped", wrapped)
        object.__setattr__(self, "_driver", driver)

    def __getattr__(self, name: str) -> Any:
        if name in (SOURCE, "_wrapped"):  # not set yet
            raise AttributeError(name)
        return getattr(self._wrapped, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == SOURCE:
            object.__setattr__(self, name, value)
        else:
            setattr(self._wrapped, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._wrapped, name)

    def __repr__(self) -> str:
        return repr(self._wrapped)

    def __exit__(self, *exc_info: Any) -> Any:
        return self._wrapped.__exit__(*exc_info)

    def __enter__(self) -> Any:
        entered = self._wrapped.__enter__()
        return self if entered is self._wrapped else entered


class ConnectionProxy(_Proxy):
    """Before a connection of any driver."""

    __slots__ = ()

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        return CursorProxy(self._wrapped.cursor(*args, **kwargs), self._driver, self)

    def commit(self, *args: Any, **kwargs: Any) -> Any:
        return self._command("COMMIT", self._wrapped.commit, args, kwargs)

    def rollback(self, *args: Any, **kwargs: Any) -> Any:
        return self._command("ROLLBACK", self._wrapped.rollback, args, kwargs)

    def _command(self, operation: str, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not counts():
            return call(*args, **kwargs)
        return run(self._driver, self._driver.source(self).command(operation), call, args, kwargs)


class CursorProxy(_Proxy):
    """Before a cursor of any driver."""

    __slots__ = ("connection",)

    def __init__(self, wrapped: Any, driver: Driver, connection: ConnectionProxy) -> None:
        super().__init__(wrapped, driver)
        object.__setattr__(self, "connection", connection)

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        return self._execute(self._wrapped.execute, args, kwargs)

    def executemany(self, *args: Any, **kwargs: Any) -> Any:
        return self._execute(self._wrapped.executemany, args, kwargs)

    def callproc(self, *args: Any, **kwargs: Any) -> Any:
        call = self._wrapped.callproc
        if not counts():
            return call(*args, **kwargs)
        prepared = _command(self._driver, "CALL", self.connection, args, self._driver.source)
        return run(self._driver, prepared, call, args, kwargs)

    def _execute(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        driver = self._driver
        if not counts():
            result = call(*args, **kwargs)
        else:
            statement = args[0] if args else next((value for value in kwargs.values() if isinstance(value, str)), None)
            result = run(driver, driver.prepared(self, self.connection, statement), call, args, kwargs)
        return self if result is self._wrapped else result

    def __iter__(self) -> Any:
        return iter(self._wrapped)

    def __next__(self) -> Any:
        return next(self._wrapped)
