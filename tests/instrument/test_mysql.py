"""PyMySQL, mysqlclient, and SQLAlchemy over them, against a real MariaDB: what is told, and that nothing changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from paste_agent import statements
from paste_agent.aggregate import DATABASE_DURATION
from paste_agent.inside import DATABASE
from paste_agent.instrument import dbapi
from paste_agent.instrument import mysqlclient as mysqlclient_instrumentation
from paste_agent.instrument import pymysql as pymysql_instrumentation
from paste_agent.instrument import sqlalchemy as sqlalchemy_instrumentation
from paste_agent.recorder.writer import Recorder
from tests.databases import Server, free_port, or_skipped, restored, running_mariadb
from tests.instrument.querying import OF_SERVER, closing, names, spans_of, told
from tests.recorders import leading, serve, spans_within

INSTRUMENTATIONS: dict[str, Any] = {"pymysql": pymysql_instrumentation, "MySQLdb": mysqlclient_instrumentation}


@pytest.fixture(scope="session")
def mariadb() -> Iterator[Server]:
    yield from or_skipped(running_mariadb)


@pytest.fixture(params=list(INSTRUMENTATIONS))
def plain(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A module that is not instrumented yet; as it was, afterwards."""
    module = pytest.importorskip(request.param)
    cursors = import_module(f"{request.param}.cursors")
    kind = cursors.Cursor if request.param == "pymysql" else cursors.BaseCursor
    with restored(module, kind, import_module(f"{request.param}.connections").Connection):
        yield module
    statements.configure("sanitised", False)


def instrument(module: Any) -> None:
    INSTRUMENTATIONS[module.__name__].install(module)
    INSTRUMENTATIONS[module.__name__].install(module)  # twice is once


@pytest.fixture
def driver(plain: Any) -> Any:
    instrument(plain)
    return plain


@pytest.fixture
def where(mariadb: Server) -> dict[str, Any]:
    return {
        "host": mariadb.host,
        "port": mariadb.port,
        "user": mariadb.user,
        "password": "",
        "database": mariadb.database,
    }


def test_a_statement_tells_what_it_is_and_where(recorder: Recorder, driver: Any, where: dict[str, Any]) -> None:
    def run(connection: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("CREATE TEMPORARY TABLE items (a int, b text)")
        assert cursor.executemany("INSERT INTO items VALUES (%s, %s)", [(1, "s3cret"), (2, "s3cret"), (3, "y")]) == 3
        assert cursor.execute('SELECT a FROM items WHERE b = "s3cret" AND a < %s', (7,)) == 2
        assert list(cursor.fetchall()) == [(1,), (2,)]
        connection.commit()
        cursor.execute("DELETE FROM items")
        connection.rollback()

    spans = spans_of(recorder, driver, where, run)
    assert names(spans)[0] == "connect"
    assert names(spans)[2:] == ["INSERT items", "SELECT items", "COMMIT", "DELETE items", "ROLLBACK"]
    assert {span.category for span in spans} == {DATABASE}
    server = {
        "db.system.name": "mariadb",
        "db.namespace": "shop",
        "server.address": "127.0.0.1",
        "server.port": where["port"],
    }
    for span in spans[1:]:
        assert {name: (span.attributes or {})[name] for name in OF_SERVER} == server
        assert span.failed is None
    assert told(spans[3], *OF_SERVER) == {
        "db.operation.name": "SELECT",
        "db.collection.name": "items",
        "db.query.summary": "SELECT items",
        "db.query.text": "SELECT a FROM items WHERE b = ? AND a < %s",
        "db.response.returned_rows": 2,
    }
    assert told(spans[2], *OF_SERVER)["db.operation.batch.size"] == 3
    assert "s3cret" not in str(spans)


def test_each_execution_counts_once(recorder: Recorder, driver: Any, where: dict[str, Any], tmp_path: Path) -> None:
    def run(connection: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("CREATE TEMPORARY TABLE items (a int PRIMARY KEY)")
        # No form that the library folds into one statement: it executes each by itself.
        cursor.executemany("UPDATE items SET a = %s WHERE a = %s", [(1, 2), (2, 3), (3, 4)])
        cursor.executemany("INSERT INTO items VALUES (%s)", [(1,), (2,)])
        connection.commit()
        for number in range(5):
            cursor.execute("SELECT a FROM items WHERE a = %s", (number,))
        with pytest.raises(driver.IntegrityError):
            cursor.execute("INSERT INTO items VALUES (1)")
        connection.rollback()

    serve(recorder, meanwhile=lambda: closing(driver.connect(**where), run))
    recorder.mark_closed()
    with leading(tmp_path) as lead:
        lead.drain()
        found = {
            (row.attributes.get("db.operation.name"), row.attributes.get("error.type")): row.total.count
            for row in lead.store.totals()
            if row.metric == DATABASE_DURATION
        }
    module = driver.IntegrityError.__module__
    create = next(operation for operation, _ in found if str(operation).startswith("CREATE"))
    assert found == {
        (create, None): 1,
        ("UPDATE", None): 1,
        ("INSERT", None): 1,
        ("COMMIT", None): 1,
        ("SELECT", None): 5,
        ("INSERT", f"{module}.IntegrityError"): 1,
        ("ROLLBACK", None): 1,
    }


@pytest.mark.parametrize(
    ("statement", "status"), [("SELECT * FROM absent", "1146"), ("SELEC 1", "1064"), ("SELECT absent", "1054")]
)
def test_an_error_has_its_number(
    recorder: Recorder, driver: Any, where: dict[str, Any], statement: str, status: str
) -> None:
    def run(connection: Any) -> None:
        with pytest.raises(driver.Error) as raised:
            connection.cursor().execute(statement)
        assert raised.value.args[0] == int(status)

    failed = spans_of(recorder, driver, where, run)[-1]
    assert failed.failed is not None
    assert failed.failed.endswith("Error")
    assert (failed.attributes or {})["db.response.status_code"] == status


def test_a_connection_that_fails_tells_where(recorder: Recorder, driver: Any, tmp_path: Path) -> None:
    port = free_port()

    def run() -> None:
        with pytest.raises(driver.OperationalError):
            driver.connect(host="127.0.0.1", port=port, user="agent", password="s3cret", database="shop")

    (span,) = spans_within(recorder, run)
    assert span.name == "connect"
    assert span.failed == f"{driver.OperationalError.__module__}.OperationalError"
    assert told(span, "db.operation.name", "db.query.summary") == {
        "db.system.name": "mysql",  # nobody has said that it is MariaDB
        "db.namespace": "shop",
        "server.address": "127.0.0.1",
        "server.port": port,
        "db.response.status_code": "2003" if driver.__name__ == "pymysql" else "2002",
    }
    assert "s3cret" not in str(span)
    recorder.mark_closed()
    with leading(tmp_path) as lead:
        lead.drain()
        (row,) = [row for row in lead.store.totals() if row.metric == DATABASE_DURATION]
        assert (row.attributes["error.type"], row.attributes["db.operation.name"]) == (span.failed, "connect")


def test_what_belongs_to_the_library_works_with_it(recorder: Recorder, driver: Any, where: dict[str, Any]) -> None:
    cursors = import_module(f"{driver.__name__}.cursors")

    def run(connection: Any) -> None:
        assert type(connection) is driver.connections.Connection
        cursor = connection.cursor(cursors.DictCursor)
        assert type(cursor) is cursors.DictCursor
        cursor.execute(query=b"SELECT 's3cret' AS a")
        assert list(cursor.fetchall()) == [{"a": "s3cret"}]
        cursor.execute("CREATE TEMPORARY TABLE t (a int AUTO_INCREMENT PRIMARY KEY)")
        cursor.execute("INSERT INTO t VALUES (), ()")
        assert (cursor.rowcount, cursor.lastrowid, connection.insert_id()) == (2, 1, 1)
        with connection.cursor(cursors.SSCursor) as unbuffered:
            unbuffered.execute("SELECT a FROM t ORDER BY a")
            assert list(unbuffered) == [(1,), (2,)]
        cursor.execute("DROP PROCEDURE IF EXISTS twice")
        cursor.execute("CREATE PROCEDURE twice (n int) SELECT 2 * n AS a")
        cursor.callproc("twice", (21,))
        assert list(cursor.fetchall()) == [{"a": 42}]
        while cursor.nextset():
            pass
        cursor.execute("CREATE DATABASE IF NOT EXISTS other")
        connection.select_db("other")
        cursor.execute("SELECT DATABASE() AS a")
        assert cursor.fetchone() == {"a": "other"}

    spans = spans_of(recorder, driver, where, run)
    assert names(spans)[-3:][::2] == ["CALL twice", "SELECT"]
    assert [told(span)["db.namespace"] for span in spans[-3:]] == ["shop", "shop", "other"]
    assert told(spans[1])["db.query.text"] == "SELECT ? AS a"


SLOW = "SELECT table_name FROM information_schema.tables WHERE table_name = %s AND 's3cret' <> table_schema"


def test_the_plan_of_a_slow_query(recorder: Recorder, driver: Any, where: dict[str, Any]) -> None:
    statements.configure("sanitised", True)
    recorder.sampler.slow_query_ns = 0
    dbapi._rate.plans, dbapi._rate.begun_ns = 0, -dbapi._MINUTE_NS
    cursors = import_module(f"{driver.__name__}.cursors")

    def run(connection: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(SLOW, ("absent",))
        assert (cursor.rowcount, list(cursor.fetchall())) == (0, [])
        with connection.cursor(cursors.SSCursor) as unbuffered:
            unbuffered.execute("SELECT 1 UNION SELECT 2")
            assert len(unbuffered.fetchall()) == 2
        cursor.execute("SELECT SQL_CALC_FOUND_ROWS 1 FROM information_schema.tables LIMIT 1")
        cursor.execute("SELECT 7 AS a")
        assert cursor.fetchone() == (7,)

    spans = spans_of(recorder, driver, where, run)
    plans = [str(plan) for span in spans if (plan := told(span).get(dbapi.PLAN))]
    assert len(plans) == 2
    assert plans[0].startswith("id=1 select_type=SIMPLE table=tables type=ALL")
    assert "s3cret" not in str(spans)


def test_what_goes_wrong_goes_wrong_as_ever(recorder: Recorder, plain: Any, where: dict[str, Any]) -> None:
    """With and without the agent, in a request and outside: the same type, message and cause."""

    def said() -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = []

        def attempt(call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
            try:
                call(*args, **kwargs)
            except Exception as error:
                # A method in C says its class by another name when it is called through a subclass.
                found.append((type(error), str(error).lower(), type(error.__cause__), type(error.__context__)))
            else:
                found.append(())

        connection = plain.connect(**where)
        cursor = connection.cursor()
        for args in [("SELECT %s",), ("SELECT %s", ()), ("SELECT %s %s", (1,)), (7,), (None,), (), ("", 1, 2, 3)]:
            attempt(cursor.execute, *args)
        attempt(cursor.execute, absent="SELECT 1")
        attempt(cursor.executemany, "SELECT %s")
        attempt(cursor.callproc, "absent")
        attempt(connection.select_db, "absent")
        attempt(connection.commit, 1)
        cursor.close()
        attempt(cursor.execute, "SELECT 1")
        connection.close()
        attempt(connection.commit)
        attempt(plain.connect, absent=1)
        return found

    expected = said()
    assert len(expected) == 15
    instrument(plain)
    assert said() == expected
    within: list[Any] = []
    serve(recorder, meanwhile=lambda: within.extend(said()))
    assert within == expected


@pytest.mark.parametrize("known", [True, False])
def test_sqlalchemy_counts_once(recorder: Recorder, plain: Any, where: dict[str, Any], known: bool) -> None:
    """Whether the agent knows the driver below it, or not."""
    sqlalchemy = pytest.importorskip("sqlalchemy")
    names_of_dialects = {"pymysql": "pymysql", "MySQLdb": "mysqldb"}
    name = names_of_dialects[plain.__name__]
    default = import_module("sqlalchemy.engine.default").DefaultDialect
    mysqldb = import_module("sqlalchemy.dialects.mysql.mysqldb").MySQLDialect_mysqldb
    so_far: list[int] = []

    def run() -> None:
        engine = sqlalchemy.create_engine(f"mysql+{name}://root@{where['host']}:{where['port']}/shop", future=True)
        try:
            with engine.connect() as connection:
                connection.execute(sqlalchemy.text("SELECT 's3cret' AS first"))
                connection.execute(sqlalchemy.text("CREATE TEMPORARY TABLE t (a int)"))
                connection.execute(sqlalchemy.text("INSERT INTO t VALUES (:a)"), [{"a": 1}, {"a": 2}])
                with pytest.raises(sqlalchemy.exc.ProgrammingError):
                    connection.execute(sqlalchemy.text("SELECT * FROM absent"))
        finally:
            engine.dispose()

    with restored(default, mysqldb, sqlalchemy.pool.QueuePool):
        sqlalchemy_instrumentation.install(sqlalchemy)
        if known:
            instrument(plain)
        spans = spans_within(recorder, run)
    texts = [str(told(span).get("db.query.text")) for span in spans]
    so_far.append(texts.index("SELECT ? AS first"))
    spans = spans[so_far[0] :]
    assert [name for name in names(spans) if not name.startswith("CREATE")] == [
        "SELECT",
        "INSERT t",
        "SELECT absent",
        "ROLLBACK",
    ]
    assert told(spans[3])["db.response.status_code"] == "1146"
    assert told(spans[3])["db.namespace"] == "shop"
    assert told(spans[3])["db.system.name"] == ("mariadb" if known else "mysql")
    assert "s3cret" not in str(spans)
