"""What belongs to psycopg2 works with it instrumented: its extras, the application's factories, its pool."""

from __future__ import annotations

import io
import pickle
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from paste_agent.recorder.writer import Recorder
from tests.databases import Server
from tests.instrument.postgresql import as_they_were, instrumented, psycopg2, where_of
from tests.instrument.querying import names, spans_of
from tests.recorders import spans_within


@pytest.fixture(autouse=True)
def unpatched() -> Iterator[None]:
    with as_they_were():
        yield


@pytest.fixture
def where(postgresql: Server) -> dict[str, Any]:
    return where_of(postgresql)


def test_what_belongs_to_psycopg2_works_with_it(recorder: Recorder, where: dict[str, Any]) -> None:
    instrumented("psycopg2")

    def run(connection: Any) -> None:
        assert isinstance(connection, psycopg2.extensions.connection)
        psycopg2.extras.register_uuid(conn_or_curs=connection)
        cursor = connection.cursor()
        assert isinstance(cursor, psycopg2.extensions.cursor)
        psycopg2.extensions.register_type(psycopg2.extensions.UNICODE, connection)
        psycopg2.extensions.register_type(psycopg2.extensions.UNICODEARRAY, cursor)
        value = uuid.uuid4()
        cursor.execute("SELECT %s, %s::jsonb", (value, psycopg2.extras.Json({"a": 1})))
        assert cursor.fetchone() == (value, {"a": 1})
        cursor.execute("CREATE TEMP TABLE t (a int, b text)")
        psycopg2.extras.execute_values(cursor, "INSERT INTO t VALUES %s", [(1, "x"), (2, "y")])
        psycopg2.extras.execute_batch(cursor, "INSERT INTO t VALUES (%s, %s)", [(3, "z"), (4, "w")])
        cursor.copy_expert("COPY t FROM STDIN", io.StringIO("5\tv\n"))
        cursor.copy_from(io.StringIO("6\tu\n"), "t")
        out = io.StringIO()
        cursor.copy_to(out, "t", columns=("a",))
        cursor.copy_expert(sql="COPY t (a) TO STDOUT", file=out)
        assert out.getvalue() == "1\n2\n3\n4\n5\n6\n" * 2
        cursor.execute("SELECT a FROM t ORDER BY a")
        assert [row[0] for row in cursor] == [1, 2, 3, 4, 5, 6]
        assert cursor.mogrify("SELECT %s", (1,)) == b"SELECT 1"
        cursor.callproc("upper", ["abc"])
        assert cursor.fetchone() == ("ABC",)
        named = connection.cursor("rows", withhold=False)
        named.itersize = 2
        named.execute("SELECT a FROM t ORDER BY a")
        assert next(iter(named)) == (1,)
        assert len(named.fetchmany(2)) == 2
        named.close()

    spans = spans_of(recorder, psycopg2, where, run)
    assert names(spans).count("INSERT t") == 2
    assert [name for name in names(spans) if name.startswith(("COPY", "CALL", "FETCH"))] == [
        "COPY t",
        "COPY",
        "COPY",
        "COPY t",
        "CALL upper",
        "FETCH",
    ]


@pytest.mark.parametrize("name", ["DictCursor", "RealDictCursor", "NamedTupleCursor"])
def test_cursors_of_extras(recorder: Recorder, where: dict[str, Any], name: str) -> None:
    instrumented("psycopg2")
    kind = getattr(psycopg2.extras, name)

    def read(connection: Any, cursor: Any) -> None:
        assert isinstance(cursor, kind)
        assert type(cursor).__name__ == name
        cursor.execute("SELECT 1 AS a, 2 AS b")
        (row,) = cursor.fetchall()
        assert (row.a if name == "NamedTupleCursor" else row["a"]) == 1
        assert type(row).__module__ in ("psycopg2.extras", "builtins")
        assert pickle.loads(pickle.dumps(tuple(row))) == tuple(row)

    def run() -> None:
        for connection in (
            psycopg2.connect(cursor_factory=kind, **where),
            psycopg2.connect(
                connection_factory=getattr(psycopg2.extras, name.replace("Cursor", "Connection")), **where
            ),
        ):
            read(connection, connection.cursor())
            assert isinstance(connection.cursor(cursor_factory=psycopg2.extensions.cursor), psycopg2.extensions.cursor)
            named = connection.cursor("rows")
            assert isinstance(named, kind)
            named.execute("SELECT 1 AS a")
            assert len(named.fetchall()) == 1
            connection.close()

    assert names(spans_within(recorder, run)) == ["connect", "connect", *["SELECT", "SELECT", "FETCH"] * 2]


class OwnConnection(psycopg2.extensions.connection):  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.mine = True


class Slotted(psycopg2.extensions.cursor):  # type: ignore[misc]
    __slots__ = ("mine",)


def test_factories_of_the_application(recorder: Recorder, where: dict[str, Any]) -> None:
    instrumented("psycopg2")

    def run() -> None:
        own = psycopg2.connect(connection_factory=OwnConnection, **where)
        assert isinstance(own, OwnConnection)
        assert own.mine
        cursor = own.cursor(cursor_factory=Slotted)
        assert isinstance(cursor, Slotted)
        cursor.execute("SELECT 1")
        made = psycopg2.connect("", lambda dsn: psycopg2.extensions.connection(dsn), **where)
        assert type(made) is psycopg2.extensions.connection
        made.cursor().execute("SELECT 1")
        for connection in (own, made):
            connection.close()

    assert names(spans_within(recorder, run)) == ["connect", "SELECT", "connect"]


def test_a_pool_of_psycopg2(recorder: Recorder, where: dict[str, Any]) -> None:
    instrumented("psycopg2")

    def run() -> None:
        pool = psycopg2.pool.ThreadedConnectionPool(1, 2, **where)
        connection = pool.getconn()
        connection.cursor().execute("SELECT 1")
        pool.putconn(connection)
        pool.closeall()

    assert names(spans_within(recorder, run)) == ["connect", "SELECT", "ROLLBACK"]
