"""The server runner `egg:paste_agent`, under `pserve` and `paster serve`."""

from __future__ import annotations

import signal
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.serving import NO_CONTROL_SOCKET_INI, Served, environment, run, serve

MYAPP = """
import os
PID = os.getpid()

def factory(global_conf, message="hello", **local_conf):
    def application(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [f"{message} {PID}".encode()]
    return application
"""
HOOKS = """
import sys

def ready(worker):
    print("HOOK ready", file=sys.stderr, flush=True)

def failing(worker):
    raise ValueError("a hook of the user's")
"""
COMMANDS = {
    "pserve": [sys.executable, "-c", "import sys; from pyramid.scripts.pserve import main; sys.exit(main())"],
    "paster": [sys.executable, "-W", "ignore", "-c", "from paste.script.command import run; run()", "serve"],
}
APP = "[app:main]\nuse = call:myapp:factory\n"
SERVER = f"[server:main]\nuse = egg:paste_agent\nhost = 127.0.0.1\nport = 0\n{NO_CONTROL_SOCKET_INI}"


@pytest.fixture(params=COMMANDS)
def command(request: pytest.FixtureRequest) -> list[str]:
    return COMMANDS[request.param]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "myapp.py").write_text(MYAPP)
    (tmp_path / "myhooks.py").write_text(HOOKS)
    return tmp_path


def env(here: Path) -> dict[str, str]:
    variables = environment(GUNICORN_CMD_ARGS="--workers 7")
    return {**variables, "PYTHONPATH": f"{variables['PYTHONPATH']}:{here}"}


def get(server: Served) -> str:
    with urllib.request.urlopen(server.url, timeout=10) as response:
        text: str = response.read().decode()
    return text


def test_the_section_is_served(here: Path, command: list[str]) -> None:
    (here / "conf.py").write_text(
        "threads = workers = 9\ntimeout = 77\ndef when_ready(arbiter):\n    c = arbiter.cfg\n"
        "    print('CFG', c.workers, c.threads, c.timeout, c.keepalive, flush=True)\n"
    )
    (here / "a.ini").write_text(
        f"[DEFAULT]\nworkers = 3\nkeepalive = 5\n{APP}message = built\n"
        f"{SERVER}config = conf.py\nworkers = 2\nthreads = 1\nworkerz = 4\npost_worker_init = myhooks.ready\n"
    )
    with serve([*command, "a.ini"], here, env(here)) as server:
        server.wait_for_output("HOOK ready", times=2)
        assert get(server) == f"built {server.pid}"
        # Not the 3 of [DEFAULT], for which PasteDeploy drops the section's, nor the 7 of GUNICORN_CMD_ARGS.
        assert "CFG 2 1 77 5" in server.output()
        assert len(server.workers()) == 2
        assert "[server:main] workerz = '4': not a setting of gunicorn; did you mean workers?" in server.output()
        assert server.stop() == 0


def test_hup_keeps_the_built_application(here: Path, command: list[str]) -> None:
    (here / "a.ini").write_text(f"{APP}{SERVER}")
    with serve([*command, "a.ini"], here, env(here)) as server:
        before = get(server)
        (here / "gunicorn.conf.py").write_text("workers = 'many'\n")
        server.send(signal.SIGHUP)
        server.wait_for_output("Not reloaded, the running configuration stays")
        assert get(server) == before
        (here / "gunicorn.conf.py").write_text("workers = 2\n")
        server.send(signal.SIGHUP)
        server.wait_for(lambda: len(server.workers()) == 2, "two workers")
        assert get(server) == before


def test_loggers_and_a_section_of_another_name(here: Path) -> None:
    (here / "a.ini").write_text(
        f"[DEFAULT]\nworkers = 1\n{APP}{SERVER}{SERVER.replace(':main', ':other')}workers = 2\nbad.key = 1\n"
        "[loggers]\nkeys = root, errors\n[handlers]\nkeys = out\n[formatters]\nkeys = plain\n"
        "[logger_root]\nlevel = INFO\nhandlers = out\n"
        "[logger_errors]\nqualname = gunicorn.error\nhandlers =\n"
        "[handler_out]\nclass = StreamHandler\nargs = (sys.stderr,)\nformatter = plain\n"
        "[formatter_plain]\nformat = ROOT %(message)s\n"
    )
    with serve([*COMMANDS["pserve"], "--server-name", "other", "a.ini"], here, env(here)) as server:
        server.wait_for(lambda: len(server.workers()) == 2, "two workers")
        assert "ROOT Listening at" in server.output()
        assert "[server:other] bad.key = '1'" in server.output()


def test_a_bad_value_is_one_line(here: Path, command: list[str]) -> None:
    (here / "a.ini").write_text(f"{APP}{SERVER}workers = many\n")
    status, out, err = run([*command, "a.ini"], here, env(here))
    assert status == 1
    assert "Traceback" not in out + err
    assert "Error: [server:main] workers = 'many': expected a whole number from 0" in err


def test_a_worker_that_cannot_boot_halts_the_server(here: Path, command: list[str]) -> None:
    (here / "a.ini").write_text(f"{APP}{SERVER}post_worker_init = myhooks.failing\n")
    status, out, err = run([*command, "a.ini"], here, env(here))
    assert status == 3
    assert (out + err).count("Booting worker") == 1
