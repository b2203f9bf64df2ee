"""What sqlite3 says of itself while a transaction waits for it; and that nothing else changes."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from paste_agent import statements
from paste_agent.aggregate import DATABASE_DURATION
from paste_agent.inside import DATABASE, FinishedSpan
from paste_agent.instrument import dbapi, sqlite
from paste_agent.recorder.writer import Recorder
from paste_agent.transaction import current
from tests.databases import restored
from tests.recorders import die, leading, open_recorder, reader_of, serve, spans_within


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    opened = open_recorder(tmp_path)
    yield opened
    die(opened)


@pytest.fixture(autouse=True)
def unpatched() -> Iterator[None]:
    """Other tests use sqlite3 as it is."""
    with restored(sqlite3, sqlite3.dbapi2):
        yield
    statements.configure("sanitised", False)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Opens connections, to `app.sqlite` unless told otherwise, and closes them."""
    made: list[sqlite3.Connection] = []

    def connect(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        made.append(sqlite3.connect(*(args or (tmp_path / "app.sqlite",)), **kwargs))
        return made[-1]

    yield connect
    for connection in made:
        connection.close()


def spans_seen(recorder: Recorder, run: Callable[[Callable[[], None]], None]) -> list[str]:
    """What the slot of a request says at the moments when `run` calls what it is given, and after it."""
    seen: list[str] = []

    def look() -> None:
        (request,) = reader_of(recorder).in_flight()
        seen.append(request.span)

    def meanwhile() -> None:
        run(look)
        look()

    serve(recorder, "/", meanwhile=meanwhile)
    return seen


# -- while it runs ---------------------------------------------------------------------------------------------------


def test_every_way_to_execute_names_its_statement(recorder: Recorder, opened: Callable[..., Any]) -> None:
    sqlite.install(sqlite3)
    sqlite.install(sqlite3)  # twice is once

    def run(look: Callable[[], None]) -> None:
        connection = opened(":memory:")
        connection.executescript("CREATE TABLE t (a); CREATE TABLE u (a); INSERT INTO u VALUES (0), (0);")
        connection.create_function("look", 1, lambda value: look())
        connection.execute("SELECT look(1)")
        connection.cursor().execute("SELECT look(1)")
        connection.executemany("INSERT INTO t VALUES (look(?))", [(1,)])
        connection.executescript("SELECT look(1);")

    assert spans_seen(recorder, run) == [
        "SELECT look(?)",
        "SELECT look(?)",
        "INSERT INTO t VALUES (look(?))",
        "SELECT look(?);",
        "",
    ]


def test_rows_that_are_computed_when_they_are_fetched_name_it_too(
    recorder: Recorder, opened: Callable[..., Any]
) -> None:
    sqlite.install(sqlite3)

    def run(look: Callable[[], None]) -> None:
        connection = opened(":memory:")
        connection.create_function("look", 1, lambda value: look())
        rows = connection.execute("SELECT 1 UNION ALL SELECT look(2) UNION ALL SELECT look(3)")
        rows.fetchall()

    assert spans_seen(recorder, run) == ["SELECT ? UNION ALL SELECT look(?) UNION ALL SELECT look(?)"] * 2 + [""]


# -- what is left of it ----------------------------------------------------------------------------------------------


def named(spans: list[FinishedSpan]) -> list[str]:
    return [span.name for span in spans]


def test_spans_tell_what_was_done_and_where(recorder: Recorder, opened: Callable[..., Any]) -> None:
    sqlite.install(sqlite3)

    def run() -> None:
        connection = opened()
        connection.execute("CREATE TABLE items (a, b)")
        connection.executemany("INSERT INTO items VALUES (?, 's3cret')", [(1,), (2,)])
        connection.commit()
        connection.commit()  # there is nothing to end
        assert connection.execute("SELECT a FROM items WHERE b = 's3cret'").fetchall() == [(1,), (2,)]
        with pytest.raises(sqlite3.OperationalError, match="no such table"):
            connection.execute("SELECT a FROM absent WHERE b = 's3cret'")

    spans = spans_within(recorder, run)
    assert named(spans) == [
        "connect",
        "CREATE TABLE items",
        "INSERT items",
        "COMMIT",
        "SELECT items",
        "fetch SELECT items",
        "SELECT absent",
    ]
    assert {span.category for span in spans} == {DATABASE}
    assert spans[4].attributes == {
        "db.system.name": "sqlite",
        "db.namespace": "app.sqlite",
        "db.operation.name": "SELECT",
        "db.collection.name": "items",
        "db.query.summary": "SELECT items",
        "db.query.text": "SELECT a FROM items WHERE b = ?",
    }
    assert spans[5].attributes is not None
    assert spans[5].attributes["db.response.returned_rows"] == 2
    assert [span.failed for span in spans[:-1]] == [None] * 6
    assert spans[6].failed == "sqlite3.OperationalError"
    if sys.version_info >= (3, 11):
        assert spans[6].attributes is not None
        assert spans[6].attributes["db.response.status_code"] == "SQLITE_ERROR"
    assert "s3cret" not in str(spans)


def test_each_execution_counts_once(recorder: Recorder, opened: Callable[..., Any], tmp_path: Path) -> None:
    sqlite.install(sqlite3)

    def run() -> None:
        connection = opened()
        with connection:
            connection.execute("CREATE TABLE items (a)")
            connection.execute("INSERT INTO items VALUES (1)")
        for _ in range(5):
            connection.execute("SELECT a FROM items").fetchall()
        with pytest.raises(ZeroDivisionError), connection:
            connection.execute("DELETE FROM items").rowcount / 0
        with pytest.raises(sqlite3.OperationalError):
            connection.execute("SELECT a FROM absent")
        with pytest.raises(sqlite3.OperationalError):
            opened(tmp_path / "no" / "such" / "place.sqlite")

    serve(recorder, meanwhile=run)
    recorder.mark_closed()
    with leading(tmp_path) as lead:
        lead.drain()
        found = {
            (of.get("db.namespace"), of.get("db.query.summary"), of.get("error.type")): row.total.count
            for row in lead.store.totals()
            if row.metric == DATABASE_DURATION
            for of in [row.attributes]
        }
    assert found == {
        ("app.sqlite", "CREATE TABLE items", None): 1,
        ("app.sqlite", "INSERT items", None): 1,
        ("app.sqlite", "COMMIT", None): 1,
        ("app.sqlite", "SELECT items", None): 5,
        ("app.sqlite", "DELETE items", None): 1,
        ("app.sqlite", "ROLLBACK", None): 1,
        ("app.sqlite", "SELECT absent", "sqlite3.OperationalError"): 1,
        ("place.sqlite", "connect", "sqlite3.OperationalError"): 1,
    }


def test_fetches_do_not_make_a_statement_repeat(recorder: Recorder, opened: Callable[..., Any]) -> None:
    sqlite.install(sqlite3)
    recorder.sampler.repeated = 4

    def run(times: int) -> bool:
        noted: list[bool] = []

        def meanwhile() -> None:
            connection = opened()
            for _ in range(times):
                connection.execute("SELECT 1").fetchall()

        def look() -> None:
            meanwhile()
            around = current.get()
            assert around is not None
            assert around.transaction.inside is not None
            noted.append(around.transaction.inside.notable)

        serve(recorder, meanwhile=look)
        return noted[0]

    assert not run(3)
    assert run(4)


@pytest.mark.parametrize(
    ("how", "text"),
    [("sanitised", "SELECT ? WHERE ? = ?"), ("raw", "SELECT 'a' WHERE 1 = ?"), ("off", None)],
)
def test_a_setting_says_what_is_told_of_the_text(
    recorder: Recorder, opened: Callable[..., Any], how: str, text: str | None
) -> None:
    sqlite.install(sqlite3)
    statements.configure(how, False)
    shown: list[bytes] = []

    def run() -> None:
        connection = opened(":memory:")
        for _ in range(3):  # parsed, parsed to be kept, kept
            connection.execute("SELECT 'a' WHERE 1 = ?", (1,))

    def meanwhile() -> None:
        run()
        around = current.get()
        assert around is not None
        assert around.transaction.inside is not None
        shown.extend(around.transaction.inside.queries)

    spans = spans_within(recorder, meanwhile)
    assert [(span.attributes or {}).get("db.query.text") for span in spans[1:]] == [text] * 3
    assert b"SELECT 'a'" not in b" ".join(shown)


@pytest.mark.parametrize(
    ("database", "namespace"),
    [
        (":memory:", ":memory:"),
        ("/a/b/shop.db", "shop.db"),
        ("file:/a/b/shop.db?mode=ro", "shop.db"),
        ("", None),
    ],
)
def test_a_database_is_named_by_its_file(database: str, namespace: str | None) -> None:
    assert sqlite._driver.target_of_call((database,), {}).namespace == namespace
    assert sqlite._driver.target_of_call((), {"database": database}).namespace == namespace


# -- plans -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text_factory", [str, bytes, bytearray])
def test_the_plan_of_a_slow_query_is_kept_with_it(
    recorder: Recorder, opened: Callable[..., Any], text_factory: type
) -> None:
    sqlite.install(sqlite3)
    statements.configure("sanitised", True)
    recorder.sampler.slow_query_ns = 0
    nobody_has_asked_for_plans()

    def run() -> None:
        connection = opened(":memory:")
        connection.text_factory = text_factory
        connection.execute("CREATE TABLE items (a, b)")
        connection.execute("INSERT INTO items VALUES (1, 'x')")
        cursor = connection.execute("SELECT a FROM items WHERE b = ? ORDER BY a", ("x",))
        assert cursor.fetchall() == [(1,)]
        changes = connection.total_changes
        connection.execute("SELECT a FROM items WHERE b = :b", {"b": "x"}).fetchall()
        assert connection.total_changes == changes

    spans = spans_within(recorder, run)
    plans = {span.name: (span.attributes or {}).get("paste_agent.db.plan") for span in spans}
    assert plans == {
        "connect": None,
        "CREATE TABLE items": None,
        "INSERT items": None,
        "SELECT items": "SCAN items",
        "fetch SELECT items": "SCAN items",
        "EXPLAIN": None,
    }
    ordered = next(span for span in spans if span.name == "SELECT items")
    assert ordered.attributes is not None
    assert ordered.attributes["paste_agent.db.plan"] == "SCAN items\nUSE TEMP B-TREE FOR ORDER BY"


def nobody_has_asked_for_plans() -> None:
    dbapi._rate.plans, dbapi._rate.begun_ns = 0, -dbapi._MINUTE_NS


# -- nothing else changes --------------------------------------------------------------------------------------------


class Own(sqlite3.Connection):
    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        kwargs.setdefault("factory", OwnCursor)
        return super().cursor(*args, **kwargs)


class OwnCursor(sqlite3.Cursor):
    def execute(self, sql: str, *args: Any) -> Any:
        return super().execute(sql.replace("{", "").replace("}", ""), *args)


class Slotted(sqlite3.Cursor):
    __slots__ = ("mine",)


def test_sqlite3_is_what_it_was(opened: Callable[..., Any], tmp_path: Path) -> None:
    sqlite.install(sqlite3)
    connection = opened(str(tmp_path / "a.sqlite"), timeout=3, isolation_level=None)
    connection.row_factory = sqlite3.Row
    cursor = connection.cursor()
    assert isinstance(connection, sqlite3.Connection)
    assert isinstance(cursor, sqlite3.Cursor)
    assert cursor.connection is connection
    assert cursor.execute("CREATE TABLE t (a)") is cursor
    assert cursor.executemany("INSERT INTO t VALUES (?)", [(1,), (2,)]).rowcount == 2
    assert [row["a"] for row in connection.execute("SELECT a FROM t ORDER BY a")] == [1, 2]
    assert connection.execute("SELECT a FROM t WHERE a = :a", {"a": 2}).fetchone()["a"] == 2
    assert connection.execute("SELECT a FROM t").fetchmany(1)[0]["a"] == 1
    with pytest.raises(sqlite3.OperationalError):
        connection.execute("SELECT absent")
    with connection as entered:
        assert entered is connection
        connection.execute("DELETE FROM t")
    assert connection.execute("SELECT count(*) FROM t").fetchall()[0][0] == 0
    with pytest.raises(TypeError):
        connection.cursor(None)
    assert sqlite3.connect.__doc__ == sqlite3.connect._paste_agent.__doc__  # type: ignore[attr-defined]


@pytest.mark.parametrize("connect", [lambda: sqlite3.connect, lambda: sqlite3.dbapi2.connect])
def test_classes_of_the_application_are_seen_and_do_what_they_did(
    recorder: Recorder, connect: Callable[[], Any]
) -> None:
    sqlite.install(sqlite3)

    def run() -> None:
        connection = connect()(":memory:", factory=Own)
        assert isinstance(connection, Own)
        cursor = connection.cursor()
        assert isinstance(cursor, OwnCursor)
        assert cursor.execute("SELECT {1}").fetchall() == [(1,)]
        other = connection.cursor(factory=Slotted)
        assert isinstance(other, Slotted)
        assert other.execute("SELECT 2").fetchall() == [(2,)]
        made = connect()(":memory:", factory=lambda *args, **kwargs: sqlite3.Connection(*args))
        assert type(made) is sqlite3.Connection
        assert made.execute("SELECT 3").fetchall() == [(3,)]
        made.close()
        connection.close()

    spans = spans_within(recorder, run)
    assert named(spans)[:3] == ["connect", "SELECT", "fetch SELECT"]
    assert spans[1].attributes is not None
    assert spans[1].attributes["db.query.text"] == "SELECT ?"


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="deprecated there")
def test_a_factory_may_come_by_its_place(opened: Callable[..., Any]) -> None:
    sqlite.install(sqlite3)
    assert isinstance(opened(":memory:", 5, 0, "", True, Own), Own)


@pytest.mark.parametrize("of", ["connection", "cursor"])
@pytest.mark.parametrize("name", ["execute", "executemany", "executescript"])
def test_a_statement_is_positional_only_as_ever(of: str, name: str) -> None:
    plain = sqlite3.connect
    sqlite.install(sqlite3)
    for connect in (plain, sqlite3.connect):
        connection = connect(":memory:")
        where = connection if of == "connection" else connection.cursor()
        with pytest.raises(TypeError):
            getattr(where, name)(sql="SELECT 1")
        connection.close()


@pytest.mark.parametrize("run", ["execute", "executemany", "executescript", "cursor", "commit", "rollback"])
def test_what_goes_wrong_goes_wrong_as_ever(recorder: Recorder, run: str) -> None:
    """With and without the agent, in a request and outside: the same type, message, cause and context."""

    def said(connect: Callable[..., Any]) -> list[tuple[Any, ...]]:
        found = []
        connection = connect(":memory:")
        calls: list[tuple[Any, tuple[Any, ...]]] = []
        if run.startswith("execute"):
            many = ([(1,)],) if run == "executemany" else ()
            statements = ["SELECT absent", 7, None, b"SELECT 1", "SELECT ?; SELECT 2", "\0"]
            calls = [(getattr(connection, run), (statement, *many)) for statement in statements]
        for call, args in calls:
            try:
                call(*args)
            except Exception as error:
                found.append((type(error), str(error), error.__cause__, error.__context__))
            else:
                found.append(())
        connection.close()
        try:
            getattr(connection, run)(*(("SELECT 1", [()])[: 1 + (run == "executemany")] if calls else ()))
        except Exception as error:
            found.append((type(error), str(error), error.__cause__, error.__context__))
        return found

    plain = sqlite3.connect
    sqlite.install(sqlite3)
    expected = said(plain)
    assert expected
    assert said(sqlite3.connect) == expected
    within: list[Any] = []
    serve(recorder, meanwhile=lambda: within.extend(said(sqlite3.connect)))
    assert within == expected


def test_a_query_within_a_query_is_not_counted_again(recorder: Recorder, opened: Callable[..., Any]) -> None:
    sqlite.install(sqlite3)

    def run() -> None:
        inner = opened(":memory:")
        outer = opened(":memory:")
        outer.create_function("ask", 0, lambda: inner.execute("SELECT 2").fetchone()[0])
        assert outer.execute("SELECT ask()").fetchone() == (2,)

    assert named(spans_within(recorder, run)) == ["connect", "connect", "SELECT"]


# -- an application's own classes ----------------------------------------------------------------------------------


class Prepared(sqlite3.Connection):
    """Has cursors of its own, which it prepares by a statement."""

    made = 0

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        self.made += 1
        if sys.version_info >= (3, 11):  # else this would never end
            self.execute("PRAGMA user_version")
        return super().cursor(*args, **kwargs)


@pytest.mark.parametrize("within", [True, False])
def test_shortcuts_ask_no_cursor_of_the_applications(
    recorder: Recorder, opened: Callable[..., Any], within: bool
) -> None:
    plain = sqlite3.connect(":memory:", factory=Prepared)
    sqlite.install(sqlite3)
    connection = opened(":memory:", factory=Prepared)

    def run(one: Any) -> int:
        one.execute("CREATE TABLE t (a)")
        one.executemany("INSERT INTO t VALUES (?)", [(1,)])
        one.executescript("SELECT 1;")
        return int(one.made)

    expected = run(plain)
    plain.close()
    if within:
        spans_within(recorder, lambda: run(connection))
    else:
        run(connection)
    assert connection.made == expected


class Stubborn(sqlite3.Cursor):
    """Has attributes in its own way."""

    def __setattr__(self, name: str, value: object) -> None:
        raise RuntimeError(name)

    def __getattr__(self, name: str) -> object:
        raise KeyError(name)


def test_a_cursor_with_attributes_of_its_own_way_is_left_to_it(recorder: Recorder, opened: Callable[..., Any]) -> None:
    sqlite.install(sqlite3)
    connection = opened(":memory:")
    outside = connection.cursor(Stubborn)
    outside.execute("SELECT 2")

    def run() -> None:
        assert connection.cursor(Stubborn).execute("SELECT 1").fetchall() == [(1,)]
        assert outside.fetchall() == [(2,)]

    spans = spans_within(recorder, run)
    assert [span.name for span in spans] == ["SELECT", "fetch SELECT"]
    assert current.get() is None


@pytest.mark.parametrize("by_name", [True, False])
def test_an_object_is_asked_for_its_path_once(tmp_path: Path, by_name: bool) -> None:
    class Fresh:
        asked = 0

        def __fspath__(self) -> str:
            self.asked += 1
            return str(tmp_path / f"{self.asked}.sqlite")

    sqlite.install(sqlite3)
    fresh = Fresh()
    connection = sqlite3.connect(database=fresh) if by_name else sqlite3.connect(fresh)
    connection.close()
    assert fresh.asked == 1
