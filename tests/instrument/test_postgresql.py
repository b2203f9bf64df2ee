"""psycopg2, psycopg 3, and SQLAlchemy over them, against a real PostgreSQL: what is told, and that nothing changes."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from paste_agent import detail, statements
from paste_agent.aggregate import DATABASE_DURATION
from paste_agent.inside import DATABASE, FUNCTION, FinishedSpan
from paste_agent.instrument import dbapi
from paste_agent.instrument import psycopg as psycopg_instrumentation
from paste_agent.instrument import psycopg2 as psycopg2_instrumentation
from paste_agent.instrument import sqlalchemy as sqlalchemy_instrumentation
from paste_agent.raised import raised_of
from paste_agent.recorder.writer import Recorder
from paste_agent.transaction import current
from tests.databases import Server, free_port
from tests.instrument.postgresql import as_they_were, instrumented, psycopg, psycopg2, sqlalchemy, where_of
from tests.instrument.querying import OF_SERVER, closing, names, spans_of, told
from tests.recorders import leading, serve, spans_within

DRIVERS = ["psycopg2", "psycopg"]


@pytest.fixture(autouse=True)
def unpatched() -> Iterator[None]:
    with as_they_were():
        yield


@pytest.fixture
def where(postgresql: Server) -> dict[str, Any]:
    return where_of(postgresql)


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> Any:
    """A module that is instrumented, twice, which is once."""
    return instrumented(request.param)


# -- what is told ----------------------------------------------------------------------------------------------------


def test_a_statement_tells_what_it_is_and_where(recorder: Recorder, driver: Any, where: dict[str, Any]) -> None:
    def run(connection: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("CREATE TEMP TABLE items (a int, b text)")
        cursor.executemany("INSERT INTO items VALUES (%s, %s)", [(1, "s3cret"), (2, "s3cret"), (3, "y")])
        cursor.execute("SELECT a FROM items WHERE b = 's3cret' AND a < %s", (7,))
        assert [row[0] for row in cursor.fetchall()] == [1, 2]
        connection.commit()
        connection.commit()  # there is nothing to end
        cursor.execute("DELETE FROM items")
        connection.rollback()

    spans = spans_of(recorder, driver, where, run)
    assert names(spans)[:1] == ["connect"]
    assert names(spans)[-5:] == ["INSERT items", "SELECT items", "COMMIT", "DELETE items", "ROLLBACK"]
    assert {span.category for span in spans} == {DATABASE}
    server = {
        "db.system.name": "postgresql",
        "db.namespace": where["dbname"],
        "server.address": "127.0.0.1",
        "server.port": where["port"],
    }
    for span in spans:
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
        cursor.execute("CREATE TEMP TABLE items (a int PRIMARY KEY)")
        cursor.executemany("INSERT INTO items VALUES (%s)", [(1,), (2,)])
        connection.commit()
        for number in range(5):
            cursor.execute("SELECT a FROM items WHERE a = %s", (number,))
            cursor.fetchall()
        with pytest.raises(driver.errors.UniqueViolation):
            cursor.execute("INSERT INTO items VALUES (1)")
        connection.rollback()

    serve(recorder, meanwhile=lambda: closing(driver.connect(**where), run))
    recorder.mark_closed()
    with leading(tmp_path) as lead:
        lead.drain()
        found = {
            (row.attributes.get("db.query.summary"), row.attributes.get("error.type")): row.total.count
            for row in lead.store.totals()
            if row.metric == DATABASE_DURATION
        }
    created = next(summary for summary, _ in found if summary is not None and str(summary).startswith("CREATE"))
    assert found == {
        (created, None): 1,
        ("INSERT items", None): 1,
        ("COMMIT", None): 1,
        ("SELECT items", None): 5,
        ("INSERT items", f"{driver.__name__}.errors.UniqueViolation"): 1,
        ("ROLLBACK", None): 1,
    }


@pytest.mark.parametrize(
    ("statement", "status", "kind"),
    [
        ("SELECT 1 / 0", "22012", "DivisionByZero"),
        ("SELECT * FROM absent", "42P01", "UndefinedTable"),
        ("SELEC 1", "42601", "SyntaxError"),
    ],
)
def test_an_error_has_its_sqlstate(
    recorder: Recorder, driver: Any, where: dict[str, Any], statement: str, status: str, kind: str
) -> None:
    def run(connection: Any) -> None:
        with pytest.raises(getattr(driver.errors, kind)) as raised:
            connection.cursor().execute(statement)
        assert raised.value.__cause__ is None

    failed = spans_of(recorder, driver, where, run)[1]
    assert failed.failed == f"{driver.__name__}.errors.{kind}"
    assert (failed.attributes or {})["db.response.status_code"] == status


@pytest.mark.parametrize("layer", ["driver", "sqlalchemy"])
def test_what_is_kept_of_an_error_has_no_values(driver: Any, where: dict[str, Any], layer: str) -> None:
    """Neither of the statement, which SQLAlchemy and the server repeat, nor of the row."""
    said: list[str] = []

    def run(execute: Callable[[str], object]) -> None:
        execute("CREATE TEMP TABLE users (email text UNIQUE)")
        execute("INSERT INTO users VALUES ('s3cret')")
        for statement in ("INSERT INTO users VALUES ('s3cret')", "SELECT absent('s3cret')"):
            try:
                execute(statement)
            except Exception as error:
                raised = raised_of(error)
                said.append(raised.message)
                assert "s3cret" in str(error)
                assert "s3cret" not in detail.stacktrace(raised)

    if layer == "driver":
        connection = driver.connect(**where)
        connection.autocommit = True
        closing(connection, lambda connection: run(connection.cursor().execute))
    else:
        if driver is psycopg:
            pytest.importorskip("sqlalchemy.dialects.postgresql.psycopg")  # from SQLAlchemy 2 on
        engine = sqlalchemy.create_engine(url_of(driver.__name__, where), future=True, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            closing(connection, lambda connection: run(lambda text: connection.execute(sqlalchemy.text(text))))
        engine.dispose()
    for found, ends in zip(said, ('violates unique constraint "users_email_key"', "does not exist"), strict=True):
        assert found.endswith(ends)


def test_a_message_of_ones_own_keeps_its_lines(driver: Any, where: dict[str, Any]) -> None:
    def run(connection: Any) -> None:
        try:
            connection.cursor().execute("SELECT absent('s3cret')")
        except Exception as error:
            try:
                raise ValueError(f"in line 7:\n- {error}\n- given up") from error
            except ValueError as own:
                raised = raised_of(own)
                assert raised.message.startswith("in line 7:\n- function absent(unknown) does not exist")
                assert "s3cret" not in raised.message
                if "LINE" not in str(error):
                    assert raised.message.endswith("\n- given up")
            try:
                raise ValueError("of\ntwo lines") from error
            except ValueError as own:
                assert raised_of(own).message == "of\ntwo lines"

    closing(driver.connect(**where), run)


def test_a_connection_that_fails_tells_where(recorder: Recorder, driver: Any, tmp_path: Path) -> None:
    port = free_port()

    def run() -> None:
        with pytest.raises(driver.OperationalError):
            driver.connect(f"host=127.0.0.1 port={port} password=s3cret", user="agent", dbname="shop")

    (span,) = spans_within(recorder, run)
    assert span.name == "connect"
    assert span.failed is not None
    assert span.failed.endswith("OperationalError") or span.failed.endswith("ConnectionTimeout")
    assert told(span, "db.operation.name", "db.query.summary") == {
        "db.system.name": "postgresql",
        "db.namespace": "shop",
        "server.address": "127.0.0.1",
        "server.port": port,
    }
    assert "s3cret" not in str(span)
    recorder.mark_closed()
    with leading(tmp_path) as lead:
        lead.drain()
        (row,) = [row for row in lead.store.totals() if row.metric == DATABASE_DURATION]
        assert (row.attributes["error.type"], row.attributes["db.operation.name"]) == (span.failed, "connect")


def test_texts_that_are_no_str(recorder: Recorder, driver: Any, where: dict[str, Any]) -> None:
    def run(connection: Any) -> None:
        cursor = connection.cursor()
        sql = driver.sql
        cursor.execute(b"SELECT 's3cret'")
        query = sql.SQL("SELECT {}, {} FROM {}").format(
            sql.Identifier("relname"), sql.Literal("s3cret"), sql.Identifier("pg_catalog", "pg_class")
        )
        cursor.execute(query)
        cursor.execute(query=sql.SQL("SELECT 1"))

    spans = spans_of(recorder, driver, where, run)
    assert [told(span)["db.query.text"] for span in spans[1:4]] == [
        "SELECT ?",
        'SELECT "relname", ? FROM "pg_catalog"."pg_class"',
        "SELECT ?",
    ]
    assert "s3cret" not in str(spans)


def fails(cursor: Any) -> None:
    cursor.execute("SELECT 1")
    raise ZeroDivisionError


def test_a_connection_as_a_context(recorder: Recorder, driver: Any, where: dict[str, Any]) -> None:
    def run() -> None:
        with driver.connect(**where) as connection:
            connection.cursor().execute("SELECT 1")
        with pytest.raises(ZeroDivisionError), driver.connect(**where) as connection:
            fails(connection.cursor())

    assert names(spans_within(recorder, run)) == ["connect", "SELECT", "COMMIT", "connect", "SELECT", "ROLLBACK"]


def test_autocommit_commits_nothing(recorder: Recorder, driver: Any, where: dict[str, Any]) -> None:
    def run(connection: Any) -> None:
        connection.autocommit = True
        connection.cursor().execute("SELECT 1")
        connection.commit()

    assert names(spans_of(recorder, driver, where, run)) == ["connect", "SELECT"]


def test_outside_of_a_transaction_nothing_is_told(recorder: Recorder, driver: Any, where: dict[str, Any]) -> None:
    before = recorder.last
    closing(driver.connect(**where), lambda connection: connection.cursor().execute("SELECT 1"))
    assert recorder.last == before


@pytest.mark.parametrize("name", DRIVERS)
def test_what_goes_wrong_goes_wrong_as_ever(recorder: Recorder, where: dict[str, Any], name: str) -> None:
    """With and without the agent, in a request and outside: the same type, message, cause and context."""
    module = {"psycopg2": psycopg2, "psycopg": psycopg}[name]

    def said() -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = []

        def attempt(call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
            try:
                call(*args, **kwargs)
            except Exception as error:
                found.append((type(error), str(error), error.__cause__, type(error.__context__)))
            else:
                found.append(())

        connection = module.connect(**where)
        cursor = connection.cursor()
        for args in [("SELECT %s",), ("SELECT %s", ()), ("SELECT %s", (object,)), (7,), (None,), (), ("", 1, 2, 3, 4)]:
            attempt(cursor.execute, *args)
            connection.rollback()
        attempt(cursor.execute, absent="SELECT 1")
        attempt(cursor.executemany, "SELECT %s")
        attempt(cursor.fetchall)
        attempt(connection.cursor, 1, 2, 3, 4, 5, 6)
        attempt(connection.commit, 1)
        cursor.close()
        attempt(cursor.execute, "SELECT 1")
        connection.close()
        attempt(connection.commit)
        attempt(connection.cursor)
        attempt(module.connect, 7)
        attempt(module.connect, "host=127.0.0.1 absent=1")
        return found

    expected = said()
    assert len(expected) == 17
    instrumented(name)
    assert said() == expected
    within: list[Any] = []
    serve(recorder, meanwhile=lambda: within.extend(said()))
    assert within == expected


# -- plans -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def explaining(recorder: Recorder) -> None:
    statements.configure("sanitised", True)
    recorder.sampler.slow_query_ns = 0
    dbapi._rate.plans, dbapi._rate.begun_ns = 0, -dbapi._MINUTE_NS


SLOW = "SELECT relname FROM pg_class WHERE relname = %s AND relkind = 's'"


def plans(spans: list[FinishedSpan]) -> list[str]:
    found = [(span.attributes or {}).get(dbapi.PLAN) for span in spans]
    return [str(plan) for plan in found if plan is not None]


@pytest.mark.usefixtures("explaining")
@pytest.mark.parametrize("autocommit", [False, True])
def test_the_plan_of_a_slow_query(recorder: Recorder, driver: Any, where: dict[str, Any], autocommit: bool) -> None:
    def run(connection: Any) -> None:
        connection.autocommit = autocommit
        cursor = connection.cursor()
        cursor.execute(SLOW, ("s3cret",))
        assert cursor.fetchall() == []
        assert cursor.rowcount == 0
        cursor.execute("SELECT count(*) FROM pg_class WHERE relname = 's3cret'")
        assert cursor.fetchone() == (0,)

    spans = spans_of(recorder, driver, where, run)
    assert names(spans)[:5] == ["connect", "SELECT pg_class", "EXPLAIN", "SELECT pg_class", "EXPLAIN"]
    first, second = plans(spans)
    assert "Scan using" in first
    assert "(cost=" in first
    assert "Aggregate" in second
    assert "s3cret" not in str(spans)


@pytest.mark.usefixtures("explaining")
def test_a_plan_that_fails_hurts_nothing(recorder: Recorder, driver: Any, where: dict[str, Any]) -> None:
    """A statement that can be executed once: the application's transaction goes on."""
    faults: list[str] = []
    recorder.on_fault = lambda where, fault: faults.append(f"{where}: {fault}")

    def run(connection: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("CREATE TEMP TABLE once (a int)")
        cursor.execute(
            "CREATE FUNCTION pg_temp.drops() RETURNS int LANGUAGE plpgsql AS 'BEGIN DROP TABLE once; RETURN 1; END'"
        )
        # Planned before the table goes, and not to be planned after it.
        cursor.execute("SELECT pg_temp.drops() WHERE (SELECT true)")
        cursor.execute("SELECT * FROM (SELECT 7 AS a) b")
        assert cursor.fetchone() == (7,)

    def with_a_failing_plan(connection: Any) -> None:
        cursor = connection.cursor()
        kind = psycopg2_instrumentation._Psycopg2 if driver is psycopg2 else psycopg_instrumentation._Psycopg
        own = kind.explain

        def explain(self: Any, cursor: Any, statement: str, arguments: Any) -> Any:
            return own(self, cursor, f"{statement} AND absent = 's3cret'", arguments)

        kind.explain = explain  # type: ignore[method-assign]
        try:
            cursor.execute("CREATE TEMP TABLE kept (a int)")
            cursor.execute(SLOW, ("a",))
            cursor.execute("SELECT count(*) FROM kept")
            assert cursor.fetchone() == (0,)
        finally:
            kind.explain = own  # type: ignore[method-assign]
        connection.commit()

    spans_of(recorder, driver, where, run)
    assert faults == []
    spans = spans_of(recorder, driver, where, with_a_failing_plan)
    assert faults
    assert all("UndefinedColumn" in fault or "SyntaxError" in fault for fault in faults)
    assert "s3cret" not in str(faults)
    assert names(spans)[-1] == "COMMIT"


@pytest.mark.usefixtures("explaining")
def test_no_plan_where_it_would_hurt(recorder: Recorder, driver: Any, where: dict[str, Any]) -> None:
    def run(connection: Any) -> None:
        named = connection.cursor(name="rows")
        named.execute("SELECT generate_series(1, 10)")
        assert len(named.fetchall()) == 10
        named.close()
        connection.cursor().execute("SELECT 1; SELECT 2")
        with pytest.raises(driver.Error):
            connection.cursor().execute("SELECT 1 / 0")

    spans = spans_of(recorder, driver, where, run)
    assert plans(spans) == []
    assert "EXPLAIN" not in names(spans)


@pytest.mark.usefixtures("explaining")
def test_no_more_plans_than_ten_a_minute(recorder: Recorder, driver: Any, where: dict[str, Any]) -> None:
    def run(connection: Any) -> None:
        cursor = connection.cursor()
        for _ in range(15):
            cursor.execute(SLOW, ("a",))

    assert len(plans(spans_of(recorder, driver, where, run))) == 10


# -- psycopg 3 -------------------------------------------------------------------------------------------------------


def test_cursors_of_psycopg(recorder: Recorder, where: dict[str, Any]) -> None:
    instrumented("psycopg")

    def run(connection: Any) -> None:
        connection.execute("CREATE TEMP TABLE t (a int)")
        with connection.cursor() as cursor, cursor.copy("COPY t FROM STDIN") as copy:
            for number in range(3):
                copy.write_row((number,))
        with connection.cursor(name="rows") as named:
            named.execute("SELECT a FROM t ORDER BY a")
            assert named.fetchone() == (0,)
            assert named.fetchmany(5) == [(1,), (2,)]
        for kind in (psycopg.ClientCursor, getattr(psycopg, "RawCursor", psycopg.ClientCursor)):
            assert kind(connection).execute("SELECT count(*) FROM t").fetchone() == (3,)
        assert connection.execute("SELECT a FROM t ORDER BY a").fetchone() == (0,)
        with connection.pipeline():
            assert connection.execute("SELECT a FROM t ORDER BY a").fetchone() == (0,)
        with connection.transaction():
            connection.execute("DELETE FROM t")
        assert pickle.loads(pickle.dumps(connection.execute("SELECT 1").fetchone())) == (1,)

    spans = spans_of(recorder, psycopg, where, run)
    assert names(spans)[2:] == [
        "COPY t",
        "COPY t",
        "SELECT t",
        "FETCH",
        "FETCH",
        *["SELECT t"] * 4,
        "DELETE t",
        "SELECT",
    ]


# -- SQLAlchemy ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DRIVERS)
@pytest.mark.parametrize("known", [True, False])
def test_sqlalchemy_counts_once(recorder: Recorder, where: dict[str, Any], name: str, known: bool) -> None:
    """Whether the agent knows the driver below it, or not."""
    if name == "psycopg":
        pytest.importorskip("sqlalchemy.dialects.postgresql.psycopg")  # from SQLAlchemy 2 on
    sqlalchemy_instrumentation.install(sqlalchemy)
    sqlalchemy_instrumentation.install(sqlalchemy)
    if known:
        instrumented(name)
    url = url_of(name, where)

    def run() -> None:
        engine = sqlalchemy.create_engine(url, future=True)
        try:
            with engine.connect() as connection:
                before.append(len(spans_so_far()))
                connection.execute(sqlalchemy.text("SELECT relname FROM pg_class WHERE relname = :a"), {"a": "s3cret"})
                connection.execute(sqlalchemy.text("CREATE TEMP TABLE t (a int)"))
                connection.execute(sqlalchemy.text("INSERT INTO t VALUES (:a)"), [{"a": 1}, {"a": 2}])
                with pytest.raises(sqlalchemy.exc.ProgrammingError):
                    connection.execute(sqlalchemy.text("SELECT * FROM absent"))
        finally:
            engine.dispose()

    before: list[int] = []
    spans = spans_within(recorder, run)
    spans = spans[before[0] :]
    assert [name for name in names(spans) if not name.startswith("CREATE")] == [
        "SELECT pg_class",
        "INSERT t",
        "SELECT absent",
        "ROLLBACK",
    ]
    assert told(spans[0])["db.namespace"] == where["dbname"]
    assert told(spans[0])["server.port"] == where["port"]
    assert told(spans[0])["db.system.name"] == "postgresql"
    assert told(spans[3])["db.response.status_code"] == "42P01"
    assert "s3cret" not in str(spans)


def url_of(driver: str, where: dict[str, Any]) -> str:
    return f"postgresql+{driver}://{where['user']}@{where['host']}:{where['port']}/{where['dbname']}"


def spans_so_far() -> list[Any]:
    around = current.get()
    assert around is not None
    assert around.transaction.inside is not None
    return around.transaction.inside.finished


def test_waiting_for_a_pool_is_a_span(recorder: Recorder, where: dict[str, Any]) -> None:
    sqlalchemy_instrumentation.install(sqlalchemy)
    instrumented("psycopg2")
    url = url_of("psycopg2", where)

    def run() -> None:
        engine = sqlalchemy.create_engine(url, pool_size=1, max_overflow=0, pool_timeout=0.05)
        with engine.connect(), pytest.raises(sqlalchemy.exc.TimeoutError):
            engine.connect()
        with engine.connect():
            pass
        engine.dispose()

    (waited,) = [span for span in spans_within(recorder, run) if span.name == "pool checkout"]
    assert (waited.category, waited.failed) == (FUNCTION, "sqlalchemy.exc.TimeoutError")
