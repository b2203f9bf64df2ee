"""`paste-agent top` in a real terminal, against a gunicorn whose workers are slow."""

from __future__ import annotations

import json
import signal
import termios
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.serving import GUNICORN_PASTER, NO_CONTROL_SOCKET_INI, Served, run, serve, wait_for
from tests.terminals import DOWN, ENTER, ESCAPE, PASTE_AGENT, UP, terminal

INI = f"""
[server:main]
use = egg:paste_agent
host = 127.0.0.1
port = 0
workers = 2
timeout = 600
{NO_CONTROL_SOCKET_INI}
[filter:agent]
use = egg:paste_agent
service_name = shop
store = shop.sqlite
slow_request_s = 0.5
runtime_dir = %(here)s/run

[app:shop]
paste.app_factory = slow_shop:make

[pipeline:main]
pipeline = agent shop
"""
APPLICATION = """
import os
import sqlite3
import time


def make(global_conf):
    return shop


def shop(environ, start_response):
    path = environ["PATH_INFO"]
    environ["paste_agent.route"] = "/slow/{id}" if path.startswith("/slow") else path
    if path.startswith("/slow"):
        wait_for_stock()
    failed = path == "/fail"
    start_response("500 Oops" if failed else "200 OK", [("Content-Type", "text/plain")])
    return [b"x"]


def wait_for_stock():
    db = sqlite3.connect(":memory:")
    db.create_function("released", 0, released)
    db.execute("SELECT released() AS stock").fetchall()
    db.close()


def released():
    while not os.path.exists("release"):
        time.sleep(0.02)
    return 1
"""
TOP = [*PASTE_AGENT, "top", "shop.ini", "--interval", "0.3"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("top")
    directory.chmod(0o700)
    (directory / "shop.ini").write_text(INI)
    (directory / "slow_shop.py").write_text(APPLICATION)
    return directory


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Served]:
    with serve([*GUNICORN_PASTER, "shop.ini"], cwd=place) as started:
        yield started


@pytest.fixture(scope="module")
def hanging(server: Served, place: Path) -> Iterator[Served]:
    """The server while one of its workers hangs in a query."""
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(requests.get, f"{server.url}/slow/17", timeout=120)
        try:
            wait_for(lambda: top_object(place)["in_flight"] == 1, "a request that hangs")
            yield server
        finally:
            (place / "release").touch()
            assert slow.result().ok


def top_object(place: Path) -> dict[str, Any]:
    status, output, errors = run([*TOP, "--once", "--json"], cwd=place)
    assert (status, errors) == (0, "")
    found: dict[str, Any] = json.loads(output)
    return found


def test_once_tells_programs(hanging: Served, place: Path) -> None:
    def told() -> dict[str, Any]:
        (busy,) = [worker for worker in top_object(place)["workers"] if worker["in_flight"]]
        return {**busy, **busy["in_flight"][0]}

    wait_for(lambda: told()["stack"], "a stack")  # one look of the agent's a second
    busy = told()
    assert busy["pid"] in hanging.workers()
    assert (busy["method"], busy["path"], busy["route"]) == ("GET", "/slow/17", "/slow/{id}")
    assert busy["span"] == "SELECT released() AS stock"
    assert "wait_for_stock" in [frame["function"] for frame in busy["stack"]]
    assert busy["busy"] == pytest.approx(1.0, abs=0.01)
    assert 0 < busy["timeout_in_s"] < busy["timeout_s"] == 600


def test_once_tells_people(hanging: Served, place: Path) -> None:
    status, output, errors = run([*TOP, "--once"], cwd=place)
    assert (status, errors) == (0, "")
    assert "\x1b" not in output
    assert "GET /slow/17" in output
    assert output.startswith("shop  ")


def test_keys(hanging: Served, place: Path) -> None:
    with terminal(TOP, cwd=place) as screen:
        frame = screen.shows("1 in flight", "GET /slow/17", "for▾", "SELECT")
        assert len(frame.split("\n")) == 24
        assert max(map(len, frame.split("\n"))) <= 80
        screen.press(ENTER)
        screen.shows("gunicorn's timeout of 600 s", "wait_for_stock()", "stack, taken", "SELECT released() AS stock")
        screen.resize(80, 10)
        wait_for(lambda: screen.frame.count("\n") == 9, "a frame of ten lines")
        screen.press(DOWN * 5)
        screen.shows("Esc back", without="gunicorn's timeout")
        screen.press(ESCAPE)
        screen.resize(80, 24)
        screen.shows("Enter details")
        screen.press("/nothing like that")
        screen.shows("/nothing like that▏", "None of the workers has that.")
        screen.press("\x7f" * 30 + "SLOW")
        screen.shows("/SLOW▏", "GET /slow/17")
        screen.press(ENTER)
        screen.shows("only 'SLOW'")
        screen.press(ESCAPE)
        screen.shows("q end", without="only")
        for key, heading in (("n", "#▾"), ("s", "for▾"), ("m", "memory▾"), ("b", "busy▾"), ("t", "sort: throughput")):
            screen.press(key)
            screen.shows(heading)
        screen.press("h")
        screen.shows("Ctrl-C", "hold what is shown")
        screen.press("h")
        screen.press("p")
        screen.shows("held")
        screen.press("q")
        assert screen.ended() == 0


def test_the_chosen_worker(hanging: Served, place: Path) -> None:
    with terminal(TOP, cwd=place) as screen:
        screen.shows("GET /slow/17")
        screen.press("a" + UP + UP + DOWN + ENTER)
        # The one that hangs is first; below it is one with nothing, unless it has served no request yet.
        screen.shows("Worker ", "pid ")
        screen.press("q")
        assert screen.ended() == 0


def test_what_passes_by_is_counted(hanging: Served, place: Path) -> None:
    with terminal(TOP, cwd=place) as screen:
        screen.shows("1 in flight")
        for _ in range(20):
            assert requests.get(f"{hanging.url}/fast", timeout=60).ok
        assert requests.get(f"{hanging.url}/fail", timeout=60).status_code == 500
        screen.shows("GET /fast", "GET /fail", "slowest routes", "errors 5%")
        screen.press("q")
        assert screen.ended() == 0


def test_another_size(hanging: Served, place: Path) -> None:
    with terminal(TOP, cwd=place) as screen:
        screen.shows("GET /slow/17", without="requests")
        screen.resize(200, 40)
        frame = screen.shows("GET /slow/17", "CPU", "requests")
        assert len(frame.split("\n")) == 40
        screen.resize(40, 4)
        wait_for(lambda: len(screen.frame.split("\n")) == 4, "a frame of four lines")
        screen.press("q")
        assert screen.ended() == 0


@pytest.mark.parametrize(("how", "status"), [("q", 0), ("\x03", 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_the_terminal_is_as_it_was(hanging: Served, place: Path, how: str | signal.Signals, status: int) -> None:
    with terminal(TOP, cwd=place) as screen:
        before = screen.modes()
        screen.shows("GET /slow/17")
        assert not screen.modes()[3] & termios.ICANON
        if isinstance(how, str):
            screen.press(how)
        else:
            screen.process.send_signal(how)
        assert screen.ended() == status
        assert screen.modes() == before
        wait_for(lambda: screen.said.endswith("\x1b[?25h\x1b[?1049l"), "the screen that was there before")
        assert "Traceback" not in screen.said


def test_it_is_no_terminal(server: Served, place: Path) -> None:
    status, output, errors = run(TOP, cwd=place)
    assert (status, output) == (2, "")
    assert "this is no terminal: use --once" in errors


def test_the_service_ends_and_is_away(place: Path, hanging: Served) -> None:
    """Last, since it ends the server."""
    with terminal(TOP, cwd=place) as screen:
        screen.shows("1 in flight")
        (place / "release").touch()
        hanging.stop()
        screen.shows("No worker serves.")
        screen.press("q")
        assert screen.ended() == 0
    status, output, _ = run([*TOP, "--once"], cwd=place)
    assert status == 0
    assert "No worker serves." in output
