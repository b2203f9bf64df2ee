"""The filter under every way to serve an ini: what the clients saw is what the store holds."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from paste_agent.aggregate import REQUEST_DURATION
from paste_agent.store.store import Store
from tests.dashboards import PASTE_AGENT
from tests.serving import GUNICORN_PASTER, NO_CONTROL_SOCKET, Served, environment, run, serve, wait_for

#: Method, route, status.
Key = tuple["str | None", "str | None", "int | None"]

APP = """
import io, os
from webob.exc import HTTPNotFound

VERSION = "one"
SIZE = 300_000

def factory(global_conf, **local_conf):
    return application

def application(environ, start_response):
    path = environ["PATH_INFO"]
    environ["paste_agent.route"] = path
    view = VIEWS.get(path)
    if view is None:
        start_response("404 Not Found", [("Content-Type", "text/plain"), ("Content-Length", "2")])
        return [b"no"]
    return view(environ, start_response)

def ok(environ, start_response):
    status = "201 Created" if environ["REQUEST_METHOD"] == "POST" else "200 OK"
    start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(VERSION)))])
    return [VERSION.encode()]

def fail(environ, start_response):
    raise ValueError("in the call")

def not_found(environ, start_response):
    raise HTTPNotFound()  # of which nobody makes a response here

def bad_header(environ, start_response):
    start_response("200 OK", [("X-Name", "of\\ntwo lines")])
    return [b""]

def fail_after_start(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    raise ValueError("after start_response")

def fail_first(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    if environ:
        raise ValueError("in the first chunk")
    yield b""

def stream(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    for _ in range(5):
        yield b"chunk"

def one_chunk(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield b"chunk"

def many(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return (b"a", b"b")

def written(environ, start_response):
    write = start_response("200 OK", [("Content-Type", "text/plain")])
    write(b"a")
    return [b"b"]

def file(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(SIZE))])
    return environ["wsgi.file_wrapper"](open(os.path.join(os.path.dirname(__file__), "file.bin"), "rb"))

def echo(environ, start_response):
    body = environ["wsgi.input"].read()
    assert environ["wsgi.input_terminated"] is True
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]

def hints(environ, start_response):
    environ["wsgi.early_hints"]([("Link", "</style.css>; rel=preload")])
    return ok(environ, start_response)

def endless(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    while True:
        yield b"x" * 65_536

VIEWS = {f"/{view.__name__}": view for view in (
    ok, fail, not_found, bad_header, fail_after_start, fail_first, stream, one_chunk, many, written, file, echo, hints,
    endless,
)}
"""
FILE = bytes(range(256)) * 1172
INI = """
[pipeline:main]
pipeline = agent served
[filter:agent]
use = egg:paste_agent
service_name = {name}
store = %(here)s/store.sqlite
runtime_dir = %(here)s/run
[app:served]
paste.app_factory = served:factory
[server:main]
use = {server}
host = 127.0.0.1
port = {port}
"""
#: The scripts themselves: their reloaders start them again by name.
PSERVE = [sys.executable, str(Path(sys.executable).parent / "pserve")]
PASTER = [sys.executable, "-W", "ignore", str(Path(sys.executable).parent / "paster"), "serve"]
GUNICORN = [sys.executable, "-c", "import sys; from gunicorn.app.wsgiapp import run; sys.exit(run())"]
OURS = "egg:paste_agent"
FAILING = ("/fail", "/not_found", "/fail_after_start", "/fail_first")


class Way(NamedTuple):
    """A way to serve an ini."""

    command: list[str]
    server: str = OURS
    reload: bool = False
    stop: signal.Signals = signal.SIGTERM

    @property
    def by_gunicorn(self) -> bool:
        return "unicorn" in self.server or self.server == OURS


def _plain(*options: str) -> list[str]:
    return [*GUNICORN, *NO_CONTROL_SOCKET, "--bind", "127.0.0.1:PORT", *options, "--paste"]


WAYS = {
    "gunicorn --paste": Way(_plain("--workers", "2")),
    "gunicorn --paste --preload": Way(_plain("--preload")),
    "gunicorn --paste --reload": Way(_plain("--reload"), reload=True),
    "gunicorn_paster": Way([*GUNICORN_PASTER, *NO_CONTROL_SOCKET, "--workers", "2"]),
    "gunicorn_paster --reload": Way([*GUNICORN_PASTER, *NO_CONTROL_SOCKET, "--reload"], reload=True),
    "pserve": Way(PSERVE),
    "pserve --reload": Way([*PSERVE, "--reload"], reload=True, stop=signal.SIGINT),
    "paster serve": Way(PASTER),
    "paster serve --reload": Way([*PASTER, "--reload"], reload=True, stop=signal.SIGINT),
    "pserve, egg:gunicorn": Way(PSERVE, "egg:gunicorn#main"),
    "pserve, egg:waitress": Way(PSERVE, "egg:waitress#main", stop=signal.SIGINT),
    "paster serve, egg:waitress": Way(PASTER, "egg:waitress#main", stop=signal.SIGINT),
    "pserve --reload, egg:waitress": Way([*PSERVE, "--reload"], "egg:waitress#main", reload=True, stop=signal.SIGINT),
    "pserve, egg:Paste#http": Way(PSERVE, "egg:Paste#http", stop=signal.SIGINT),
    "paster serve, egg:Paste#http": Way(PASTER, "egg:Paste#http", stop=signal.SIGINT),
    "paster serve --reload, egg:Paste#http": Way(
        [*PASTER, "--reload"], "egg:Paste#http", reload=True, stop=signal.SIGINT
    ),
}


class Client:
    """Sends requests, and counts what it saw."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.seen: Counter[Key] = Counter()
        #: Requests that were asked and got no whole answer: whether the server had one is not for us to see.
        self.cut: Counter[tuple[str, str]] = Counter()

    def get(self, path: str, method: str = "GET") -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.connect()
            try:
                connection.request(method, path, headers={"Connection": "close"})
                response = connection.getresponse()
                body = response.read()
            except (OSError, http.client.HTTPException):
                self.cut[method, path] += 1
                raise
        finally:
            connection.close()
        self.seen[method, path, response.status] += 1
        return body

    @contextmanager
    def raw(self, head: str, *keys: Key) -> Iterator[socket.socket]:
        """A connection that has sent `head`; what it will be seen as is counted."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            connection.sendall(head.replace("\n", "\r\n").encode())
            yield connection
        self.seen.update(keys)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def group(leader: int) -> list[int]:
    """The living processes of a group, without those that nobody has reaped."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, process_group = path.read_text().rpartition(") ")[2].split()[:3]
        except OSError:
            continue  # just gone
        if int(process_group) == leader and state != "Z":
            found.append(int(path.parent.name))
    return found


@contextmanager
def served(here: Path, way: Way) -> Iterator[tuple[Served, Client]]:
    """A server that listens, and a client of it. At the end it is stopped, and the store compared with the client."""
    port = free_port()
    (here / "served.py").write_text(APP)
    (here / "file.bin").write_bytes(FILE[:300_000])
    (here / "service.ini").write_text(INI.format(name=here.name, server=way.server, port=port))
    variables = environment()
    # gunicorn's control socket has a setting of [server:main] only where gunicorn itself reads the section.
    if way.by_gunicorn and way.command[: len(GUNICORN)] != GUNICORN and NO_CONTROL_SOCKET:
        with (here / "service.ini").open("a") as file:
            file.write("control_socket_disable = true\n")
    env = {**variables, "PYTHONPATH": f"{variables['PYTHONPATH']}:{here}", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [word.replace("PORT", str(port)) for word in way.command]
    with serve([*command, "service.ini"], here, env, wait=False) as server:
        server.wait_for(lambda: listens(port), "a port that is listened to")
        client = Client(port)
        yield server, client
        if way.reload and way.stop is signal.SIGINT:
            os.killpg(server.pid, way.stop)  # as Ctrl-C in a terminal does
        else:
            server.send(way.stop)
        server.process.wait(30)
        # A reloader's monitor may end before what it monitors.
        wait_for(lambda: not group(server.pid), "the processes of the server to end")
        assert "fault of the agent" not in server.output()
        if way.reload:  # a reloader ends its process at once: who looks next completes the count
            run([*PASTE_AGENT, "report", "service.ini"], cwd=here)
        expect(here, client)


def stored(here: Path) -> dict[Key, int]:
    store = Store(str(here / "store.sqlite"), read_only=True)
    try:
        found: Counter[Key] = Counter()
        for one in store.totals():
            if one.metric == REQUEST_DURATION:
                method, route, status = (
                    one.attributes.get(name)
                    for name in ("http.request.method", "http.route", "http.response.status_code")
                )
                found[method, route, status] += one.total.count  # type: ignore[index]
        return dict(found)
    finally:
        store.close()


def expect(here: Path, client: Client) -> None:
    """What was served is counted once; what a reloader has cut off, once at the most."""
    counted = stored(here)
    for (method, path), cut in client.cut.items():
        key = (method, path, 200)
        more = counted.get(key, 0) - client.seen[key]
        if 0 < more <= cut:
            counted[key] -= more
    assert counted == dict(client.seen)


class Change:
    """A new version of the application, waited for by asking for it."""

    def __init__(self, here: Path, client: Client) -> None:
        self.file = here / "served.py"
        self.client = client
        self.asked = 0

    def came(self) -> bool:
        # A reloader may first look at the file after it was changed, and then sees no change: so now and then again.
        if self.asked % 60 == 0:
            later = self.file.stat().st_mtime + 10
            self.file.write_text(APP.replace('"one"', '"two!"'))
            os.utime(self.file, (later, later))
        self.asked += 1
        return self.is_served()

    def is_served(self) -> bool:
        try:
            return self.client.get("/ok") == b"two!"
        except (OSError, http.client.HTTPException):
            return False  # nobody serves just now


@pytest.mark.parametrize("name", WAYS)
def test_every_way_to_serve_counts_the_same(tmp_path: Path, name: str) -> None:
    way = WAYS[name]
    with served(tmp_path, way) as (server, client):
        for _ in range(2):
            assert client.get("/ok") == b"one"
            assert client.get("/ok", "HEAD") == b""
            assert client.get("/ok", "POST") == b"one"
            assert client.get("/missing") == b"no"
            assert client.get("/stream") == b"chunk" * 5
            assert client.get("/one_chunk") == b"chunk"
            assert client.get("/many") == b"ab"
            assert client.get("/written") == b"ab"
            for path in FAILING:
                client.get(path)
            if not way.server.startswith("egg:Paste"):  # which has no wsgi.file_wrapper
                assert client.get("/file") == FILE[:300_000]
        statuses = {path: status for _, path, status in client.seen}
        assert {statuses[path] for path in FAILING} == {500}
        if way.reload:
            change = Change(tmp_path, client)
            server.wait_for(change.came, "the new version")
            server.wait_for(change.is_served, "the new version again")


CONNECTION = "Host: x\nConnection: close\n"


def received(connection: socket.socket, until: bytes = b"") -> bytes:
    """What comes until `until`, or until the end."""
    data = b""
    while not (until and until in data):
        more = connection.recv(65_536)
        if not more:
            break
        data += more
    return data


@pytest.mark.parametrize("options", [["-k", "sync"], ["-k", "gthread", "--threads", "4"]], ids=["sync", "gthread"])
def test_what_http_has_beyond_a_plain_request(tmp_path: Path, options: list[str]) -> None:
    with served(tmp_path, Way(_plain(*options))) as (_, client):
        for _ in range(3):
            assert client.get("/file") == FILE[:300_000]
        assert client.get("/file", "HEAD") == b""

        head = f"POST /echo HTTP/1.1\n{CONNECTION}Content-Length: 5\nExpect: 100-continue\n\n"
        with client.raw(head, ("POST", "/echo", 200)) as connection:
            assert received(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 100 Continue\r\n")
            connection.sendall(b"hello")
            assert received(connection).endswith(b"\r\n\r\nhello")

        head = f"POST /echo HTTP/1.1\n{CONNECTION}Transfer-Encoding: chunked\n\n3\nhel\n2\nlo\n0\n\n"
        with client.raw(head, ("POST", "/echo", 200)) as connection:
            assert received(connection).endswith(b"\r\n\r\nhello")

        # Of a body that breaks off in the middle gunicorn tells the application, and the client that it is to blame.
        head = f"POST /echo HTTP/1.1\n{CONNECTION}Transfer-Encoding: chunked\n\nZZ\n"
        with client.raw(head, ("POST", "/echo", 400)) as connection:
            assert received(connection).startswith(b"HTTP/1.1 400 ")

        with client.raw(f"GET /hints HTTP/1.1\n{CONNECTION}\n", ("GET", "/hints", 200)) as connection:
            found = received(connection)
            assert found.startswith(
                b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\nHTTP/1.1 200 OK"
            )
            assert found.endswith(b"one")

        with client.raw("GET /ok HTTP/1.0\n\n", ("GET", "/ok", 200)) as connection:
            assert received(connection).endswith(b"one")

        # Of what the application must not send gunicorn 27 makes an error, older ones the client's fault.
        assert client.get("/bad_header") is not None

        # What the server refuses by itself never reaches the application, nor the count.
        with client.raw("GET /ok HTTP/1.1\nbad header\n\n") as connection:
            assert received(connection).startswith(b"HTTP/1.1 400 ")

        for _ in range(2):
            with client.raw(f"GET /endless HTTP/1.1\n{CONNECTION}\n", ("GET", "/endless", 200)) as connection:
                assert len(connection.recv(1000)) > 0
        assert client.get("/ok") == b"one"
