"""Worker classes of gunicorn with the agent on board: exact through reload, SIGKILL and stop; post-mortems."""

from __future__ import annotations

import json
import os
import signal
import threading
import urllib.request
from contextlib import closing, suppress
from pathlib import Path

import pytest

from paste_agent.aggregate import WORKER_LOST
from paste_agent.store.store import Store
from tests.faults.running import classes
from tests.serving import NO_CONTROL_SOCKET, Served
from tests.starting.ways import (
    APP,
    BARE,
    BIN,
    GUNICORN_OPTIONS,
    SERVES,
    WITH_AGENT,
    metrics_in,
    requests_in,
    run_program,
    server,
    services_in,
    started,
)

#: The last one for connections that a client leaves open.
GUNICORN = [*GUNICORN_OPTIONS, "--graceful-timeout", "5"]


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60) as answer:
        body: bytes = answer.read()
    return body


def hang(url: str) -> None:
    with suppress(OSError):  # the worker dies over it
        get(url)


def lost_in(here: Path) -> dict[str, int]:
    """Workers that were lost, by reason."""
    with closing(Store(str(here / "store.sqlite"), read_only=True)) as store:
        lost = {text: int(count) for (name, text), count in store.counters().items() if name == WORKER_LOST}
    return {json.loads(text)["reason"]: count for text, count in lost.items()}


def kill_worker_in_flight(program: Served, url: str, here: Path) -> None:
    """SIGKILL to the one worker, while a request is in flight there; returns once another serves."""
    (worker,) = program.workers()
    asking = threading.Thread(target=hang, args=(f"{url}/hang",))
    asking.start()
    program.wait_for((here / "hanging").exists, "the request that hangs")
    os.kill(worker, signal.SIGKILL)
    asking.join()
    program.wait_for_output(SERVES, times=2)


HANGING = APP.replace('    if path == "/hang":', '    if path == "/hang":\n        open("hanging", "w").close()')


def check_killed_and_reloaded(here: Path, command: list[str], service: str) -> None:
    files = {"app.py": HANGING, "shop.ini": BARE + server("egg:gunicorn")}
    with started(here, run_program(*command), files) as (program, url):
        for _ in range(3):
            get(f"{url}/page")
        kill_worker_in_flight(program, url, here)
        for _ in range(3):
            get(f"{url}/page")
        (before,) = program.workers()
        program.send(signal.SIGHUP)
        program.wait_for_output(SERVES, times=3)
        program.wait_for(lambda: before not in program.workers(), "the end of the former worker")
        for _ in range(3):
            get(f"{url}/page")
        assert program.stop() == 0
    assert requests_in(here) == {"/page": 9}
    assert services_in(here) == [service]
    with closing(Store(str(here / "store.sqlite"), read_only=True)) as store:
        (found,) = store.postmortems(0, 1e12, 10)
    assert found.reason == "signal"
    assert "SIGKILL" in str(found.summary)  # the arbiter's word: a process cannot write down its own
    assert "/hang" in str(found.summary)


@pytest.mark.parametrize("preload", [False, True], ids=["", "preload"])
@classes("sync", "gevent")
def test_killed_and_reloaded(tmp_path: Path, worker_class: str, preload: bool) -> None:
    options = [*GUNICORN, "-k", worker_class, *(["--preload"] if preload else [])]
    check_killed_and_reloaded(tmp_path, ["gunicorn", *options, "app:application"], "app")


@pytest.mark.parametrize("command", [["gunicorn_paster", *GUNICORN, "shop.ini"], ["pserve", "shop.ini"]], ids=" ".join)
def test_an_ini_without_the_filter_killed_and_reloaded(tmp_path: Path, command: list[str]) -> None:
    check_killed_and_reloaded(tmp_path, command, "shop")


@classes("gthread", "tornado", "eventlet")
def test_other_classes(tmp_path: Path, worker_class: str) -> None:
    with started(tmp_path, run_program("gunicorn", *GUNICORN, "-k", worker_class, "app:application")) as (program, url):
        get(f"{url}/page")
        assert program.stop() == 0
    assert requests_in(tmp_path) == {"/page": 1}


TAKES_HOLD = """
from stock import reserve

def application(environ, start_response):
    reserve()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"reserved"]

def factory(global_conf, **local_conf):
    return application
"""


@pytest.mark.parametrize(
    ("command", "stop"),
    [
        (["gunicorn", *GUNICORN, "app:application"], signal.SIGTERM),
        (["waitress-serve", "--listen=127.0.0.1:0", "app:application"], signal.SIGINT),
        (["pserve", "shop.ini"], signal.SIGINT),
        (["paster", "serve", "shop.ini"], signal.SIGINT),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_an_application_takes_hold_of_is_instrumented_by_then(
    tmp_path: Path, command: list[str], stop: signal.Signals
) -> None:
    files = {"app.py": TAKES_HOLD, "stock.py": "def reserve(): pass\n", "shop.ini": BARE + server("egg:waitress")}
    env = {"PASTE_AGENT_TRACE_FUNCTIONS": "stock:reserve"}
    with started(tmp_path, run_program(*command), files, env) as (program, url):
        get(url)
        program.stop(stop)
    with closing(Store(str(tmp_path / "store.sqlite"), read_only=True)) as store:
        (trace,) = store.traces(0, 1e12, "newest", False, 10)  # the first one is kept
    assert "stock.reserve" in str(trace.detail)


#: A worker class and an application of one's own.
EMBEDDED = """
import app
from gunicorn.app.base import BaseApplication
from gunicorn.workers.sync import SyncWorker

class Worker(SyncWorker):
    pass

class Embedded(BaseApplication):
    def load_config(self):
        for name, value in {settings}.items():
            self.cfg.set(name, value)

    def load(self):
        return app.application

if __name__ == "__main__":
    Embedded().run()
"""


def test_an_embedding_application_and_a_worker_class_of_its_own(tmp_path: Path) -> None:
    settings = {"bind": "127.0.0.1:0", "worker_class": "embed.Worker"}
    settings |= {"control_socket_disable": "true"} if NO_CONTROL_SOCKET else {}
    files = {"embed.py": EMBEDDED.format(settings=settings)}
    with started(tmp_path, [str(BIN / "paste-agent"), "run-python", "embed.py"], files) as (program, url):
        get(f"{url}/page")
        assert program.stop() == 0
    assert requests_in(tmp_path) == {"/page": 1}
    assert services_in(tmp_path) == ["embed"]


LOADS_AN_INI = """
from paste.deploy import loadapp
application = loadapp("config:shop.ini", relative_to=".")
"""


@pytest.mark.parametrize(
    "command",
    [
        ["gunicorn_paster", "shop.ini"],
        ["gunicorn", *GUNICORN, "--paste", "shop.ini"],
        ["pserve", "shop.ini"],
        ["gunicorn", *GUNICORN, "loads:application"],
        ["gunicorn", *GUNICORN, "--preload", "loads:application"],
    ],
    ids=" ".join,
)
def test_a_pipeline_that_has_the_agent_is_measured_once_under_its_own_name(tmp_path: Path, command: list[str]) -> None:
    files = {"shop.ini": WITH_AGENT + server("egg:paste_agent"), "loads.py": LOADS_AN_INI}
    with started(tmp_path, run_program(*command), files) as (program, url):
        get(f"{url}/page")
        program.send(signal.SIGHUP)
        program.wait_for_output(SERVES, times=2)
        get(f"{url}/page")
        assert program.stop() == 0
    assert requests_in(tmp_path) == {"/page": 2}
    assert services_in(tmp_path) == ["of_the_ini"]
    assert "paste_agent.worker.boot.duration" in metrics_in(tmp_path)  # the arbiter's hooks are there, once


LEFT_ALONE = """
async def application(scope, receive, send):
    raise NotImplementedError
"""


@pytest.mark.parametrize("module", ["loads", "asynchronous"])
def test_a_worker_that_serves_what_the_arbiter_does_not_know_has_booted_all_the_same(
    tmp_path: Path, module: str
) -> None:
    """SIGKILL does not make of it one that could not boot, of a service that there is not."""
    files = {"shop.ini": WITH_AGENT, "loads.py": LOADS_AN_INI, "asynchronous.py": LEFT_ALONE}
    with started(tmp_path, run_program("gunicorn", *GUNICORN, f"{module}:application"), files) as (program, url):
        program.wait_for_output(SERVES)
        if module == "loads":
            get(f"{url}/page")
        os.kill(program.workers()[0], signal.SIGKILL)
        program.wait_for_output(SERVES, times=2)
        assert program.stop() == 0
    if module == "loads":
        assert requests_in(tmp_path) == {"/page": 1}
        assert services_in(tmp_path) == ["of_the_ini"]
        assert lost_in(tmp_path) == {"unknown": 1}
    else:
        assert not (tmp_path / "run").exists()


def test_a_worker_that_cannot_boot_is_counted(tmp_path: Path) -> None:
    """Also when a signal ends it while it loads."""
    files = {
        "app.py": "import os, signal\nif not os.path.exists('ready'):\n    os.kill(os.getpid(), signal.SIGKILL)\n" + APP
    }
    with started(tmp_path, run_program("gunicorn", *GUNICORN, "app:application"), files) as (program, url):
        program.wait_for_output("Booting worker", times=2)
        (tmp_path / "ready").touch()
        program.wait_for_output(SERVES)
        get(f"{url}/page")
        assert program.stop() == 0
        booted = program.output().count("Booting worker")
    assert lost_in(tmp_path) == {"boot": booted - 1}


def test_a_pipeline_where_the_agent_is_switched_off_is_left_alone(tmp_path: Path) -> None:
    files = {"shop.ini": WITH_AGENT.replace("service_name", "enabled = false\nservice_name")}
    with started(tmp_path, run_program("gunicorn", *GUNICORN, "--paste", "shop.ini"), files) as (program, url):
        get(f"{url}/page")
        assert program.stop() == 0
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "store.sqlite").exists()


ASGI = """
async def application(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})
"""


@classes("asgi", "sync")
def test_an_asgi_application_is_left_alone_with_a_line(tmp_path: Path, worker_class: str) -> None:
    command = run_program("gunicorn", *GUNICORN, "-k", worker_class, "app:application")
    with started(tmp_path, command, {"app.py": ASGI}) as (program, url):
        program.wait_for_output("app: not measured")
        if worker_class == "asgi":
            assert get(url) == b"hello"
        assert program.stop() == 0
        assert program.output().count("not measured") == 1
    assert not (tmp_path / "run").exists()
