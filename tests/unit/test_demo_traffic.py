"""The traffic generator, against the demo shop on a real server."""

from __future__ import annotations

import io
import json
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import pytest
from click.testing import CliRunner, Result

from paste_agent.cli import demo_traffic
from paste_agent.cli.demo_traffic import Traffic, command, url_of
from paste_agent.demo import pages
from paste_agent.demo.shop import main
from paste_agent.errors import AgentError

App = Callable[[dict[str, Any], Callable[..., Any]], Any]


class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = False  # so that closing the server waits for its threads
    request_queue_size = 64


class Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass

    def get_stderr(self) -> io.StringIO:
        return io.StringIO()  # the failing page's tracebacks, which would mix with the command's output


class Witness:
    """Counts what an application was asked, as the agent would."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.seen: Counter[tuple[str, str | None, int]] = Counter()
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        statuses = [500]

        def start(status: str, *rest: Any) -> Any:
            statuses.append(int(status[:3]))
            return start_response(status, *rest)

        try:
            return self.app(environ, start)
        finally:
            with self._lock:
                self.seen[environ["REQUEST_METHOD"], environ.get("paste_agent.route"), statuses[-1]] += 1


@contextmanager
def served(app: App) -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        server.set_app(app)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def witness(tmp_path: Path) -> Witness:
    return Witness(main({"here": str(tmp_path)}, slow_s="0"))


def run(*args: str) -> Result:
    return CliRunner().invoke(command, args, catch_exceptions=False)


def url(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def counted(output: str) -> Counter[tuple[str, str | None, int]]:
    rows = json.loads(output)["counts"]
    return Counter({(row["method"], row["route"], row["status"]): row["count"] for row in rows})


def test_counts_are_what_the_shop_saw(witness: Witness) -> None:
    with served(witness) as server:
        result = run(url(server), "--seconds", "3", "--rate", "150", "--seed", "5", "--json")
    assert result.exit_code == 0, result.output
    printed = json.loads(result.output)
    assert printed["requests"] == 450
    assert printed["unanswered"] == 0
    assert printed["url"] == url(server)
    assert printed["seed"] == 5
    assert counted(result.output) == witness.seen
    # The whole mix: every route, and each way in which it answers.
    assert {(route, status) for _, route, status in witness.seen} == {
        ("/", 200),
        ("/search", 200),
        ("/item/{id}", 200),
        ("/item/{id}", 404),
        (None, 404),
        ("/basket", 200),
        ("/basket/{id}", 303),
        ("/checkout", 200),
        ("/static/{name}", 200),
        ("/download/catalogue.csv", 200),
        ("/report/sales", 200),
        ("/broken", 500),
    }


def test_the_same_seed_sends_the_same(witness: Witness) -> None:
    outputs = []
    with served(witness) as server:
        for seed in ("1", "1", "2"):
            outputs.append(run(url(server), "--seconds", "1", "--rate", "80", "--seed", seed, "--json").output)
    first, again, other = map(counted, outputs)
    assert first == again
    assert first != other


@pytest.mark.parametrize("clients", ["1", "16"])
def test_any_number_of_clients_sends_the_planned_number(witness: Witness, clients: str) -> None:
    with served(witness) as server:
        result = run(url(server), "--seconds", "1", "--rate", "20", "--clients", clients, "--json")
    assert json.loads(result.output)["requests"] == witness.seen.total() == 20


def test_the_table_and_the_hint(witness: Witness, tmp_path: Path) -> None:
    with served(witness) as server:
        ini = tmp_path / "shop.ini"
        ini.write_text(f"[server:main]\nuse = egg:paste_agent\nhost = 0.0.0.0\nport = {server.server_port}\n")
        result = run(str(ini), "--seconds", "1", "--rate", "60", "--seed", "1")
    assert result.exit_code == 0
    assert "60 requests" in result.output
    assert "GET /item/{id}" in result.output
    assert f"paste-agent report {ini}" in result.output


def test_below_a_prefix(witness: Witness) -> None:
    def mounted(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        assert environ["PATH_INFO"].startswith("/shop/")
        environ["SCRIPT_NAME"], environ["PATH_INFO"] = "/shop", environ["PATH_INFO"][len("/shop") :]
        return witness(environ, start_response)

    with served(mounted) as server:
        result = run(f"{url(server)}/shop/", "--seconds", "1", "--rate", "60", "--seed", "1", "--json")
    assert result.exit_code == 0, result.output
    assert counted(result.output) == witness.seen
    assert witness.seen["POST", "/basket/{id}", 303]


def test_ctrl_c_reports_what_was_sent(witness: Witness, monkeypatch: pytest.MonkeyPatch) -> None:
    join, calls = Traffic.join, []

    def interrupted(self: Traffic, timeout_s: float) -> bool:
        calls.append(timeout_s)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return join(self, timeout_s)

    monkeypatch.setattr(Traffic, "join", interrupted)
    with served(witness) as server:
        result = run(url(server), "--seconds", "600", "--rate", "50", "--json")
    assert result.exit_code == 130
    assert counted(result.output) == witness.seen
    assert 5 <= witness.seen.total() < 500


class Hanging:
    """An application whose page that never ends waits for `let_go`, and fails."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.let_go = threading.Event()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        if environ["PATH_INFO"] != "/report/year":
            return self.app(environ, start_response)
        environ["paste_agent.route"] = "/report/year"
        self.let_go.wait(60)
        raise RuntimeError("killed")


def test_the_page_that_never_ends_is_asked_for_once(tmp_path: Path) -> None:
    shop = Hanging(main({"here": str(tmp_path)}, slow_s="0"))
    witness = Witness(shop)
    shop.let_go.set()
    with served(witness) as server:
        result = run(url(server), "--seconds", "1", "--rate", "20", "--hang", "--json")
    assert result.exit_code == 0
    assert counted(result.output) == witness.seen
    assert witness.seen["GET", "/report/year", 500] == 1
    assert witness.seen.total() == 21


def test_ctrl_c_does_not_wait_for_the_page_that_never_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = Hanging(main({"here": str(tmp_path)}, slow_s="0"))
    join, calls = Traffic.join, []

    def interrupted(self: Traffic, timeout_s: float) -> bool:
        calls.append(timeout_s)
        if len(calls) == 3:
            raise KeyboardInterrupt
        ended = join(self, timeout_s)
        if len(calls) > 3:
            assert ended
            assert not shop.let_go.is_set()
        return ended

    monkeypatch.setattr(Traffic, "join", interrupted)
    with served(shop) as server:
        try:
            result = run(url(server), "--seconds", "600", "--rate", "50", "--hang", "--json")
        finally:
            shop.let_go.set()
    assert result.exit_code == 130
    assert ("GET", "/report/year", 500) not in counted(result.output)


def test_no_server() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
        result = run(address)
    assert result.exit_code == 1
    assert result.output == f"Error: {address}/: no server answers; start it: gunicorn_paster production.ini\n"


def test_a_server_that_goes_away(witness: Witness) -> None:
    goes = iter([True])  # the clients are several: each may be the one that finds 20, or pass it by

    def leaving(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        if witness.seen.total() >= 20 and next(goes, False):
            threading.Thread(target=lambda: (server.shutdown(), server.socket.close())).start()
        return witness(environ, start_response)

    with served(leaving) as server:
        result = run(url(server), "--seconds", "20", "--rate", "100", "--json")
    assert result.exit_code == 1
    assert "no longer answers" in result.output
    assert "Traceback" not in result.output


def test_another_application_is_left_alone() -> None:
    asked = []

    def other(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        asked.append(environ["REQUEST_METHOD"])
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"hello"]

    with served(other) as server:
        result = run(url(server))
    assert result.exit_code == 1
    assert "not as the demo shop" in result.output
    assert result.output.count("\n") == 1
    assert asked == ["GET"]


def test_both_sides_agree_on_the_mark() -> None:
    # The command does not import the demo: it must work where WebOb is not wanted.
    assert demo_traffic.MARK == pages.MARK


@pytest.mark.parametrize(
    "target",
    [
        "http://example.com/",
        "http://10.0.0.1:8080",
        "http://127.0.0.1.example.com",
        "http://localhost.example.com:8080/",
        "http://127.0.0.1@example.com/",
        "http://[2001:db8::1]/",
        "https://127.0.0.1/",
        "ftp://127.0.0.1/",
        "http://",
        "http://127.0.0.1:99999/",
        "http://127.0.0.1:x/",
        "http://[::1/",
    ],
)
def test_refused_urls(target: str) -> None:
    result = run(target)
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert result.output.count("\n") == 1


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("host = 127.0.0.1\nport = 8080", "http://127.0.0.1:8080"),
        ("host = 0.0.0.0\nport = 8080", "http://127.0.0.1:8080"),
        ("host = ::\nport = 8080", "http://[::1]:8080"),
        ("port = 8080", "http://127.0.0.1:8080"),
        ("workers = 2", "http://127.0.0.1:8000"),
        ("host = localhost", "http://localhost:8000"),
        ("host = 127.0.0.1:9", "http://127.0.0.1:9"),
        ("bind = 127.0.0.1:9000", "http://127.0.0.1:9000"),
        ("bind = :9000", "http://127.0.0.1:9000"),
        ("bind = [::1]:9000", "http://[::1]:9000"),
        ("bind = unix:/run/shop.sock, 0.0.0.0:9000", "http://127.0.0.1:9000"),
        ("listen = 127.0.0.1:9000 [::1]:9000", "http://127.0.0.1:9000"),
        ("number = 80\nport = %(number)s80", "http://127.0.0.1:8080"),
    ],
)
def test_addresses_of_an_ini(tmp_path: Path, section: str, expected: str) -> None:
    ini = tmp_path / "a%b.ini"
    ini.write_text(f"[server:main]\nuse = egg:paste_agent\n{section}\n[formatter_x]\nformat = %(message)s\n")
    assert url_of(str(ini)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "[app:main]\nuse = x\n",
        "[server:main]\nbind = unix:/run/shop.sock\n",
        "[server:main]\nhost = 192.0.2.1\n",
        "[server:main]\nport = http\n",
        "[server:main]\nport = %(nothing)s\n",
        "no ini\n",
    ],
)
def test_inis_without_a_usable_address(tmp_path: Path, text: str) -> None:
    ini = tmp_path / "shop.ini"
    ini.write_text(text)
    with pytest.raises(AgentError) as caught:
        url_of(str(ini))
    assert "\n" not in str(caught.value)


def test_the_default_is_production_ini_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no production.ini in this directory" in run().output
    Path("production.ini").write_text("[server:main]\nport = 8080\n")
    assert url_of(None) == "http://127.0.0.1:8080"


@pytest.mark.parametrize("option", [("--seconds", "601"), ("--seconds", "0"), ("--clients", "17"), ("--rate", "0")])
def test_bounds(option: tuple[str, str]) -> None:
    assert run("http://127.0.0.1:1", *option).exit_code == 2


@pytest.mark.parametrize("name", ["production.ini", "development.ini"])
def test_the_inis_that_are_shipped(name: str) -> None:
    assert url_of(str(Path(__file__).parents[2] / name)) == "http://127.0.0.1:8080"
