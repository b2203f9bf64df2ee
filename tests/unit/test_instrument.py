"""What sqlite3 and http.client say of themselves while a transaction waits for them; and that nothing else changes."""

from __future__ import annotations

import http.client
import socket
import sqlite3
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import requests

from paste_agent.instrument import http_client, sqlite
from paste_agent.recorder.writer import Recorder
from tests.recorders import die, open_recorder, reader_of, serve
from tests.serving import wait_for


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    opened = open_recorder(tmp_path)
    yield opened
    die(opened)


@pytest.fixture
def unpatched() -> Iterator[None]:
    """Other tests use the two libraries as they are."""
    places = [(sqlite3, "connect"), (sqlite3.dbapi2, "connect")]
    places += [(http.client.HTTPConnection, name) for name in ("putrequest", "endheaders", "getresponse")]  # type: ignore[list-item]
    before = [(where, name, getattr(where, name)) for where, name in places]
    yield
    for where, name, value in before:
        setattr(where, name, value)


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


# -- sqlite3 -------------------------------------------------------------------------------------------------------


def ways_to_execute(connection: sqlite3.Connection) -> list[tuple[str, Callable[[], object]]]:
    return [
        ("SELECT look(?)", lambda: connection.execute("SELECT look(1)")),
        ("SELECT look(?)", lambda: connection.cursor().execute("SELECT look(1)")),
        ("INSERT INTO t VALUES (look(?))", lambda: connection.executemany("INSERT INTO t VALUES (look(?))", [(1,)])),
        ("SELECT look(?);", lambda: connection.executescript("SELECT look(1);")),
        (
            "SELECT a, look(a) FROM u",
            lambda: connection.execute("SELECT a, look(a) FROM u WHERE a > 0 OR look(a)").fetchall(),
        ),
    ]


def test_every_way_to_execute_names_its_statement(recorder: Recorder, unpatched: None) -> None:
    sqlite.install()
    sqlite.install()  # twice is once

    def run(look: Callable[[], None]) -> None:
        connection = sqlite3.connect(":memory:")
        try:
            connection.executescript("CREATE TABLE t (a); CREATE TABLE u (a); INSERT INTO u VALUES (0), (0);")
            connection.create_function("look", 1, lambda value: look())
            for _, execute in ways_to_execute(connection)[:4]:
                execute()
        finally:
            connection.close()

    assert spans_seen(recorder, run) == [
        "SELECT look(?)",
        "SELECT look(?)",
        "INSERT INTO t VALUES (look(?))",
        "SELECT look(?);",
        "",
    ]


def test_rows_that_are_computed_when_they_are_fetched_name_it_too(recorder: Recorder, unpatched: None) -> None:
    sqlite.install()

    def run(look: Callable[[], None]) -> None:
        connection = sqlite3.connect(":memory:")
        try:
            connection.create_function("look", 1, lambda value: look())
            rows = connection.execute("SELECT 1 UNION ALL SELECT look(2) UNION ALL SELECT look(3)")
            rows.fetchall()
        finally:
            connection.close()

    assert spans_seen(recorder, run) == ["SELECT ? UNION ALL SELECT look(?) UNION ALL SELECT look(?)"] * 2 + [""]


def test_sqlite3_is_what_it_was(unpatched: None, tmp_path: Path) -> None:
    sqlite.install()
    connection = sqlite3.connect(str(tmp_path / "a.sqlite"), timeout=3, isolation_level=None)
    connection.row_factory = sqlite3.Row
    cursor = connection.cursor()
    assert isinstance(connection, sqlite3.Connection)
    assert isinstance(cursor, sqlite3.Cursor)
    assert cursor.execute("CREATE TABLE t (a)") is cursor
    assert cursor.executemany("INSERT INTO t VALUES (?)", [(1,), (2,)]).rowcount == 2
    assert [row["a"] for row in connection.execute("SELECT a FROM t ORDER BY a")] == [1, 2]
    assert connection.execute("SELECT a FROM t WHERE a = :a", {"a": 2}).fetchone()["a"] == 2
    assert connection.execute("SELECT a FROM t").fetchmany(1)[0]["a"] == 1
    with pytest.raises(sqlite3.OperationalError):
        connection.execute("SELECT nothing")
    with connection:
        connection.execute("DELETE FROM t")
    assert connection.execute("SELECT count(*) FROM t").fetchall()[0][0] == 0

    class Own(sqlite3.Connection):
        pass

    class OwnCursor(sqlite3.Cursor):
        pass

    for made in (sqlite3.connect(":memory:", factory=Own), sqlite3.dbapi2.connect(":memory:", factory=Own)):
        assert type(made) is Own
        made.close()
    assert type(connection.cursor(OwnCursor)) is OwnCursor
    assert type(connection.cursor(factory=OwnCursor)) is OwnCursor
    connection.close()


@pytest.mark.parametrize("of", ["connection", "cursor"])
@pytest.mark.parametrize("name", ["execute", "executemany", "executescript"])
def test_a_statement_is_positional_only_as_ever(unpatched: None, of: str, name: str) -> None:
    plain = sqlite3.connect
    sqlite.install()
    for connect in (plain, sqlite3.connect):
        connection = connect(":memory:")
        where = connection if of == "connection" else connection.cursor()
        with pytest.raises(TypeError):
            getattr(where, name)(sql="SELECT 1")
        connection.close()


# -- http.client ---------------------------------------------------------------------------------------------------


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.look()  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def peer() -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), _Answers) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def _urllib(url: str) -> object:
    with urllib.request.urlopen(url) as answer:
        return answer.read()


def _requests(url: str) -> object:
    with requests.Session() as session:
        return session.get(url).content


def _http_client(url: str) -> object:
    host, _, path = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host)
    try:
        connection.request("GET", f"/{path}")
        with connection.getresponse() as answer:
            return answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize("get", [_urllib, _requests, _http_client])
def test_a_call_is_named_without_what_may_be_secret(
    recorder: Recorder, unpatched: None, peer: HTTPServer, get: Callable[[str], object]
) -> None:
    http_client.install()
    http_client.install()
    address = f"127.0.0.1:{peer.server_address[1]}"
    waited_for: list[str] = []

    def run(look: Callable[[], None]) -> None:
        def until_it_waits() -> None:
            """Between the sending of a request and the waiting for its answer a client is in no span for a moment."""
            seen = reader_of(recorder)
            found = [""]

            def names_one() -> bool:
                found[0] = seen.in_flight()[0].span
                return bool(found[0])

            wait_for(names_one, "a span")
            waited_for.append(found[0])
            seen.close()

        peer.look = until_it_waits  # type: ignore[attr-defined]
        assert get(f"http://{address}/stock/17?key=s3cret") == b"ok"

    assert spans_seen(recorder, run) == [""]
    assert waited_for == [f"GET http://{address}/stock/17"]


def test_without_a_transaction_a_call_is_what_it_was(unpatched: None, peer: HTTPServer) -> None:
    http_client.install()
    peer.look = lambda: None  # type: ignore[attr-defined]
    assert _requests(f"http://127.0.0.1:{peer.server_address[1]}/") == b"ok"


def test_a_proxy_is_asked_without_credentials() -> None:
    connection = http.client.HTTPConnection("proxy", 3128)
    connection._paste_agent_asked = ("GET", "http://user:s3cret@host:8080/a?b=c#d")  # type: ignore[attr-defined]
    assert http_client._name_of(connection) == "GET http://host:8080/a"


def named(connection: http.client.HTTPConnection, method: str, url: str) -> str:
    connection._paste_agent_asked = (method, url)  # type: ignore[attr-defined]
    return http_client._name_of(connection)


@pytest.mark.parametrize(
    ("method", "url", "name"),
    [
        ("GET", "/web/2020/http://example.com/", "GET http://web:80/web/2020/http://example.com/"),
        ("GET", "/a?to=http://user:s3cret@host/", "GET http://web:80/a"),
        ("GET", "/a#s3cret", "GET http://web:80/a"),
        ("GET", "http://user:s3/cret@host/a", "GET http://host/a"),
        ("GET", "http://user:s3@cret@host/a", "GET http://host/a"),
        ("GET", "HTTPS://user:s3cret@host/a?b", "GET HTTPS://host/a"),
        ("CONNECT", "user:s3cret@host", "CONNECT http://web:80"),
        ("CONNECT", "host:443", "CONNECT http://web:80"),
        ("OPTIONS", "*", "OPTIONS http://web:80"),
        ("GET", "", "GET http://web:80"),
    ],
)
def test_names_tell_where_it_goes_and_nothing_secret(method: str, url: str, name: str) -> None:
    assert named(http.client.HTTPConnection("web"), method, url) == name


def test_a_tunnel_is_named_by_its_end() -> None:
    connection = http.client.HTTPSConnection("proxy", 3128)
    connection.set_tunnel("api.bank.example", 8443)
    assert named(connection, "GET", "/v1/x") == "GET https://api.bank.example:8443/v1/x"


class OverASocket(http.client.HTTPConnection):
    """As clients make them that bring a connection of their own: it has neither host nor port."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__("unused")
        del self.host, self.port
        self.sock = sock


def test_a_connection_of_somebody_elses_making_works_on(recorder: Recorder, unpatched: None) -> None:
    http_client.install()

    def run(look: Callable[[], None]) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            connection = OverASocket(ours)
            connection.putrequest("GET", "/a", skip_host=True)
            connection.endheaders()
            look()
            assert theirs.recv(1024).startswith(b"GET /a HTTP/1.1\r\n")
            theirs.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            with connection.getresponse() as answer:
                assert answer.read() == b"ok"

    assert spans_seen(recorder, run) == ["", ""]


def test_what_is_not_loaded_is_not_loaded_for_it() -> None:
    """A filter without an application loads neither."""
    script = (
        "import sys\n"
        "from paste_agent import instrument\n"
        "before = set(sys.modules)\n"
        "instrument.install_loaded()\n"
        "print(sorted({'sqlite3', 'pyramid', 'http.client'} & (set(sys.modules) - before)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
