"""What is known of statements, and how calls of any driver become spans; the drivers have tests of their own."""

from __future__ import annotations

import gc
import sqlite3
import threading
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from paste_agent import instrument, lifecycle, statements
from paste_agent.inside import DATABASE, FinishedSpan
from paste_agent.instrument import dbapi
from paste_agent.instrument import sqlalchemy as sqlalchemy_instrumentation
from paste_agent.recorder.layout import KIND_DATABASE
from paste_agent.recorder.writer import Recorder
from paste_agent.spans import begin, end, span
from paste_agent.statements import Budget, Later, Prepared, Source, source_of
from paste_agent.transaction import current
from tests.databases import free_port, restored
from tests.recorders import S, die, open_recorder, serve, spans_within


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    opened = open_recorder(tmp_path)
    yield opened
    die(opened)


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(statements, "budget", Budget(statements.PER_SECOND))
    monkeypatch.setattr(statements, "_again", Budget(statements.PER_SECOND))
    monkeypatch.setattr(statements, "_sources", {})
    yield
    statements.configure("sanitised", False)


def exhausted(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names:
        monkeypatch.setattr(statements, name, Budget(0))


# -- statements ------------------------------------------------------------------------------------------------------


def test_a_statement_that_comes_again_is_the_same_object() -> None:
    source = Source("postgresql", "shop", "db", 5432)
    statement = "SELECT a FROM items WHERE b = 's3cret'"
    first = source.find(statement)
    assert source.young == {}  # what has come once fills nothing
    again = source.find(statement)
    assert source.young == {statement: again}
    assert source.find(statement) is again
    assert isinstance(first, Prepared)
    for found in (first, again):
        assert (found.text, found.name, found.operation) == (
            b"SELECT a FROM items WHERE b = ?",
            "SELECT items",
            "SELECT",
        )
        assert tuple(found.key) == (KIND_DATABASE, ("postgresql", "shop", "SELECT", "items", "SELECT items", None))
        assert found.key_of("x.Error")[1][-1] == "x.Error"
        assert dict(found.attributes) == {
            "db.system.name": "postgresql",
            "db.namespace": "shop",
            "server.address": "db",
            "server.port": 5432,
            "db.operation.name": "SELECT",
            "db.collection.name": "items",
            "db.query.summary": "SELECT items",
            "db.query.text": "SELECT a FROM items WHERE b = ?",
        }


def test_statements_that_never_repeat_fill_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statements, "budget", Budget(10**6))
    source = Source("sqlite")
    for number in range(3 * statements._MAX_SEEN):
        source.find(f"SELECT {number}")
    assert source.young == source._old == {}
    assert len(source._seen) + len(source._seen_before) <= 2 * statements._MAX_SEEN


def test_two_generations_are_a_bound_and_what_is_used_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statements, "_again", Budget(10**6))
    source = Source("sqlite", generation=8)
    source.find("SELECT a FROM hot")
    hot = source.find("SELECT a FROM hot")
    for number in range(100):
        source.find(f"SELECT a FROM t{number}")
        source.find(f"SELECT a FROM t{number}")
        assert source.find("SELECT a FROM hot") is hot
        assert len(source.young) <= 8
        assert len(source._old) <= 8
    assert "SELECT a FROM t0" not in {*source.young, *source._old}


def test_long_statements_are_not_kept() -> None:
    source = Source("sqlite")
    long = "SELECT a FROM items WHERE b IN (" + "1, " * statements.MAX_KEY + "2)"
    for _ in range(3):
        assert source.find(long).name == "SELECT items"
    assert source.young == {}
    assert source._seen == set()


def test_beyond_the_budget_only_the_first_word_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    exhausted(monkeypatch, "budget", "_again")
    source = Source("sqlite", "shop")
    found = source.find("  delete FROM items WHERE a = 's3cret'")
    assert isinstance(found, Later)
    assert (found.text, found.name, found.operation) == (b"DELETE", "DELETE", "DELETE")
    assert tuple(found.key) == (KIND_DATABASE, ("sqlite", "shop", "DELETE", None, "DELETE", None))
    assert found.key_of("Error") == (KIND_DATABASE, ("sqlite", "shop", "DELETE", None, "DELETE", "Error"))
    assert found.attributes["db.query.text"] == "delete FROM items WHERE a = ?"
    assert found.attributes["db.collection.name"] == "items"
    assert len(found.attributes) == len(dict(found.attributes)) == 6
    assert source.young == {}
    for odd in ("", "   ", "s3cret", "'s3cret'", "(SELECT 's3cret')", "\N{LATIN SMALL LETTER A WITH DIAERESIS}"):
        found = source.find(odd)
        assert (found.text, found.name, found.operation) == (b"sqlite", "sqlite", None)
        assert "s3cret" not in str(found.key)
    assert None not in source._verbs
    assert set(source._verbs) <= {"delete"}


def test_a_budget_is_refilled_by_the_times_of_spans() -> None:
    budget = Budget(2)
    at_ns = 100 * S
    assert [budget.take(at_ns) for _ in range(3)] == [True, True, False]
    assert not budget.take(at_ns + S // 4)
    assert budget.take(at_ns + S // 2)
    assert not budget.take(at_ns + S // 2)
    assert [budget.take(at_ns + 100 * S) for _ in range(3)] == [True, True, False]
    assert not budget.take(at_ns)  # a thread whose span began earlier


def test_the_time_goes_on_within_a_transaction_and_between_them(recorder: Recorder) -> None:
    seen: list[int] = []

    def meanwhile() -> None:
        seen.append(statements._now_ns())

    serve(recorder, meanwhile=meanwhile)
    serve(recorder, meanwhile=meanwhile)
    assert 0 < seen[0] < seen[1]
    statements.budget.now_ns = seen[1] + S
    assert statements._now_ns() == seen[1] + S


def test_there_are_not_more_sources_than_a_bound() -> None:
    made = [source_of("sqlite", f"tenant{number}.sqlite") for number in range(statements._MAX_SOURCES + 1)]
    assert made[0]._generation > made[-2]._generation
    assert len(statements._sources) <= statements._MAX_SOURCES
    assert source_of("sqlite", f"tenant{statements._MAX_SOURCES}.sqlite") is made[-1]
    assert source_of("sqlite", "tenant0.sqlite") is not made[0]


def test_sources_that_nobody_uses_go() -> None:
    before = len(statements._sources_made)
    Source("sqlite")
    gc.collect()
    assert len(statements._sources_made) <= before


def test_threads_find_the_same() -> None:
    source = Source("sqlite", generation=4)
    wrong: list[str] = []

    def work() -> None:
        for number in range(2000):
            name = f"t{number % 12}"
            found = source.find(f"SELECT a FROM {name}")
            if found.name not in (f"SELECT {name}", "SELECT"):
                wrong.append(found.name)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# -- calls -----------------------------------------------------------------------------------------------------------


def names(spans: list[FinishedSpan]) -> list[str]:
    return [one.name for one in spans]


class Cursor:
    """As an application's driver might have it."""

    def __init__(self, connection: Any = None) -> None:
        self.connection = connection
        self.rowcount: Any = 3

    def execute(self, operation: Any, parameters: Any = ()) -> str:
        if operation == "raise":
            raise LookupError("s3cret")
        return "done"

    def executemany(self, operation: str, parameters: Any) -> list[str]:
        return [self.execute(operation, one) for one in parameters]


@pytest.fixture
def cursor_class() -> Iterator[type[Cursor]]:
    with restored(Cursor):
        driver = dbapi.Driver("other_sql")
        for name in ("execute", "executemany"):
            method = getattr(Cursor, name)
            setattr(
                Cursor, name, dbapi.executing(driver, method, lambda cursor: cursor.connection, many=name != "execute")
            )
        yield Cursor


def test_methods_that_call_each_other_count_once(recorder: Recorder, cursor_class: type[Cursor]) -> None:
    def run() -> None:
        assert cursor_class().executemany("INSERT INTO t VALUES (?)", [1, 2, 3]) == ["done"] * 3
        assert cursor_class().execute(operation="SELECT a FROM t") == "done"
        with span("in between"):
            assert cursor_class().execute("SELECT a FROM t", parameters=(1,)) == "done"

    spans = spans_within(recorder, run)
    assert names(spans) == ["INSERT t", "SELECT t", "SELECT t", "in between"]
    assert (spans[0].attributes or {})["db.operation.batch.size"] == 3
    assert (spans[1].attributes or {})["db.response.returned_rows"] == 3


def test_within_a_layer_that_counts_nothing_counts_again(recorder: Recorder, cursor_class: type[Cursor]) -> None:
    def run() -> None:
        around = begin(DATABASE, b"a layer")
        assert around is not None
        cursor_class().execute("SELECT 1")
        end(around, "a layer")

    assert names(spans_within(recorder, run)) == ["a layer"]


def test_an_error_passes_as_it_is(recorder: Recorder, cursor_class: type[Cursor]) -> None:
    def run() -> None:
        with pytest.raises(LookupError) as raised:
            cursor_class().execute("raise")
        assert (raised.value.__cause__, raised.value.__context__) == (None, None)

    (failed,) = spans_within(recorder, run)
    assert failed.failed == "LookupError"
    assert "s3cret" not in str(failed)


class Hostile:
    """Whatever it is asked for, it raises."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("s3cret")


class OddText(str):
    def __hash__(self) -> int:
        raise RuntimeError("s3cret")

    def __str__(self) -> str:
        raise RuntimeError("s3cret")

    __eq__ = str.__eq__


@pytest.mark.parametrize("statement", [None, 7, b"SELECT 1", [], OddText("SELECT 1"), object()])
@pytest.mark.parametrize("connection", [None, 7, object(), SimpleNamespace()])
def test_odd_objects_reach_the_library(
    recorder: Recorder, cursor_class: type[Cursor], statement: Any, connection: Any
) -> None:
    assert len(spans_within(recorder, lambda: cursor_class(connection).execute(statement))) == 1


def test_a_fault_is_counted_and_the_library_works(
    recorder: Recorder, cursor_class: type[Cursor], monkeypatch: pytest.MonkeyPatch
) -> None:
    faults: list[str] = []
    monkeypatch.setattr(lifecycle, "on_fault", lambda where, fault: faults.append(f"{where}: {fault}"))

    def run() -> None:
        cursor = cursor_class(Hostile())
        cursor.rowcount = Hostile()
        assert cursor.execute("SELECT 1") == "done"

    assert len(spans_within(recorder, run)) == 1
    assert faults == ["look at a statement: RuntimeError"]


@pytest.mark.parametrize("name", ["psycopg2", "psycopg", "pymysql", "mysqlclient", "sqlalchemy"])
def test_a_library_of_another_shape_is_left_as_it_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    faults: list[str] = []
    monkeypatch.setattr(lifecycle, "on_fault", lambda where, fault: faults.append(where))
    called = {"mysqlclient": "MySQLdb"}.get(name, name)
    module: Any = ModuleType(called)
    module.connect = connect = lambda: None
    # As an import finds them.
    for below in ("", ".cursors", ".connections", ".engine.default", ".pool"):
        monkeypatch.setitem(__import__("sys").modules, f"{called}{below}", module if not below else ModuleType(below))
    before = dict(vars(module))
    instrument._install(name, module)
    assert faults == [f"instrumentation of {name}"]
    assert dict(vars(module)) == before
    assert module.connect is connect


def test_statements_of_which_little_is_known_do_not_repeat(
    recorder: Recorder, cursor_class: type[Cursor], monkeypatch: pytest.MonkeyPatch
) -> None:
    exhausted(monkeypatch, "budget", "_again")
    recorder.sampler.repeated = 3
    notable: list[bool] = []

    def run() -> None:
        for number in range(5):
            cursor_class().execute(f"SELECT {number}")
        around = current.get()
        assert around is not None
        assert around.transaction.inside is not None
        notable.append(around.transaction.inside.notable)

    assert names(spans_within(recorder, run)) == ["SELECT"] * 5
    assert notable == [False]


# -- any other driver ------------------------------------------------------------------------------------------------


@pytest.fixture
def other() -> ModuleType:
    """A driver that the agent has no file for: sqlite3 by another name."""
    module: Any = ModuleType("other")
    module.connect = lambda *args, **kwargs: sqlite3.connect(*args, **kwargs)
    dbapi.wrap_connect(module, "other_sql")
    wrapped = module.connect
    dbapi.wrap_connect(module, "other_sql")
    assert module.connect is wrapped
    made: ModuleType = module
    return made


def test_proxies_count_and_pass_on_the_rest(recorder: Recorder, other: Any) -> None:
    def run() -> None:
        connection = other.connect(":memory:")
        connection.row_factory = sqlite3.Row
        assert connection.row_factory is sqlite3.Row
        with connection as entered:
            assert entered is connection
            cursor = connection.cursor()
            assert cursor.connection is connection
            assert cursor.execute("CREATE TABLE t (a)") is cursor
            cursor.executemany("INSERT INTO t VALUES (?)", [(1,), (2,)])
        connection.rollback()
        connection.commit()
        cursor.execute("SELECT a FROM t ORDER BY a")
        assert [row["a"] for row in cursor] == [1, 2]
        cursor.execute("SELECT a FROM t ORDER BY a")
        assert next(cursor)["a"] == 1
        cursor.arraysize = 5
        assert cursor.arraysize == 5
        assert len(cursor.fetchall()) == 1
        with pytest.raises(AttributeError):
            cursor.callproc("absent")
        with pytest.raises(AttributeError):
            cursor.absent  # noqa: B018
        with pytest.raises(sqlite3.OperationalError):
            cursor.execute("SELECT a FROM absent")
        assert "sqlite3" in repr(connection)
        connection.close()

    spans = spans_within(recorder, run)
    assert names(spans) == [
        "connect",
        "CREATE TABLE t",
        "INSERT t",
        "ROLLBACK",
        "COMMIT",
        "SELECT t",
        "SELECT t",
        "SELECT absent",
    ]
    assert [one.failed for one in spans[:-1]] == [None] * 7
    assert spans[-1].failed == "sqlite3.OperationalError"
    assert {(one.attributes or {})["db.system.name"] for one in spans} == {"other_sql"}


def test_proxies_are_there_outside_of_a_transaction_too(recorder: Recorder, other: Any) -> None:
    connection = other.connect(":memory:")
    cursor = connection.cursor()
    assert cursor.execute("SELECT 1") is cursor
    assert cursor.fetchall() == [(1,)]
    assert names(spans_within(recorder, lambda: cursor.execute("SELECT 2"))) == ["SELECT"]
    connection.close()


# -- SQLAlchemy over a driver that the agent does not know ----------------------------------------------------------


def test_sqlalchemy_counts_what_its_driver_does_not(recorder: Recorder, tmp_path: Path) -> None:
    sqlalchemy = pytest.importorskip("sqlalchemy")
    dialect = import_module("sqlalchemy.engine.default").DefaultDialect

    def run() -> None:
        engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/app.sqlite", future=True)
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("CREATE TABLE t (a)"))
            connection.execute(sqlalchemy.text("INSERT INTO t VALUES (:a)"), [{"a": 1}, {"a": 2}])
            rows = connection.execute(sqlalchemy.text("SELECT a FROM t WHERE a = 's3cret'"))
            assert rows.fetchall() == []
        engine.dispose()

    with restored(dialect, sqlalchemy.pool.QueuePool):
        sqlalchemy_instrumentation.install(sqlalchemy)
        spans = spans_within(recorder, run)
    assert names(spans)[0] == "connect"
    assert [name for name in names(spans) if name.endswith(" t")] == ["CREATE TABLE t", "INSERT t", "SELECT t"]
    assert names(spans).count("COMMIT") == 1
    selected = next(one for one in spans if one.name == "SELECT t")
    assert selected.attributes is not None
    assert selected.attributes["db.query.text"] == "SELECT a FROM t WHERE a = ?"
    assert "s3cret" not in str(spans)


@pytest.mark.parametrize("name", ["psycopg2", "pymysql"])
def test_sqlalchemy_tells_where_it_could_not_connect(recorder: Recorder, name: str) -> None:
    sqlalchemy = pytest.importorskip("sqlalchemy")
    pytest.importorskip(name)
    system = {"psycopg2": "postgresql", "pymysql": "mysql"}[name]
    dialect = import_module("sqlalchemy.engine.default").DefaultDialect
    own = import_module("sqlalchemy.dialects.postgresql.psycopg2").PGDialect_psycopg2
    mysqldb = import_module("sqlalchemy.dialects.mysql.mysqldb").MySQLDialect_mysqldb
    port = free_port()

    def run() -> None:
        engine = sqlalchemy.create_engine(f"{system}+{name}://a:s3cret@127.0.0.1:{port}/shop", future=True)
        with pytest.raises(sqlalchemy.exc.OperationalError):
            engine.connect()

    with restored(dialect, own, mysqldb, sqlalchemy.pool.QueuePool):
        sqlalchemy_instrumentation.install(sqlalchemy)
        (failed,) = spans_within(recorder, run)
    assert (failed.name, str(failed.failed).rpartition(".")[2]) == ("connect", "OperationalError")
    where = {"db.system.name": system, "db.namespace": "shop", "server.address": "127.0.0.1", "server.port": port}
    assert where.items() <= dict(failed.attributes or {}).items()
    assert "s3cret" not in str(failed)
