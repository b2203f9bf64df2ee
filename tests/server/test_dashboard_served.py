"""The dashboard as it is served: by its own command, and by the workers of the service that it is about."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import requests

from tests.commands import filled, ini_of
from tests.dashboards import COMMAND, own
from tests.serving import GUNICORN_PASTER, NO_CONTROL_SOCKET_INI, PATIENCE_S, environment, serve, wait_for

TOKEN = "correct-horse-battery-staple"
SITE = f"""
[app:dashboard]
use = egg:paste_agent#dashboard
access_token = {TOKEN}

[app:shop]
use = egg:paste_agent#demo
database = shop-goods.sqlite

[composite:site]
use = egg:paste_agent#mount
/ = shop
/inside = dashboard

[pipeline:main]
pipeline = agent site

[server:main]
use = egg:paste_agent
host = 127.0.0.1
port = 0
workers = 2
{NO_CONTROL_SOCKET_INI}
"""


def test_the_command_serves_this_host_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    ini = ini_of(tmp_path)
    with filled(tmp_path), own(tmp_path, str(ini)) as served, requests.Session() as session:
        assert served.line.startswith("Dashboard of shop: http://127.0.0.1:")
        assert "token" not in served.line
        address = ("127.0.0.1", int(served.url.rsplit(":", 1)[1].strip("/")))
        with socket.create_connection(address):  # one that says nothing keeps nobody waiting
            assert "GET /items/{id}" in session.get(f"{served.url}transactions", timeout=PATIENCE_S).text
            assert session.get(served.url, headers={"Host": "evil.example"}, timeout=PATIENCE_S).status_code == 403
            status, said = served.stop()
        assert status == 0
        assert said == "Ctrl-C ends it.\n"


def test_on_another_address_the_command_asks_for_the_token_that_it_prints(tmp_path: Path) -> None:
    ini = ini_of(tmp_path)
    with filled(tmp_path), own(tmp_path, "--host", "0.0.0.0", str(ini)) as served, requests.Session() as session:
        url, _, token = served.url.partition("?token=")
        assert len(token) >= 32
        assert session.get(url, timeout=PATIENCE_S).status_code == 403
        answer = session.get(f"{url}transactions?token={token}", timeout=PATIENCE_S)
        assert "GET /items/{id}" in answer.text
        assert token not in answer.url
        assert session.get(f"{url}traces", timeout=PATIENCE_S).status_code == 200
        status, said = served.stop()
        assert status == 0
        assert token not in said


def test_the_command_waits_for_the_first_request(tmp_path: Path) -> None:
    ini = ini_of(tmp_path)
    with own(tmp_path, str(ini)) as served, requests.Session() as session:
        assert "Nothing was measured yet of shop" in session.get(served.url, timeout=PATIENCE_S).text
        with filled(tmp_path):
            assert "GET /items/{id}" in session.get(f"{served.url}transactions", timeout=PATIENCE_S).text


def test_an_address_that_cannot_be_listened_at(tmp_path: Path) -> None:
    ini = ini_of(tmp_path)
    with filled(tmp_path):
        done = subprocess.run(
            [*COMMAND[:-2], "--host", "203.0.113.1", "--port", "8900", str(ini)], cwd=tmp_path, env=environment(),
            capture_output=True, text=True, timeout=PATIENCE_S,
        )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("paste-agent: 203.0.113.1:8900: cannot be listened at: ")
    assert done.stderr.count("\n") == 1


def test_workers_serve_what_they_have_measured(tmp_path: Path) -> None:
    ini = ini_of(tmp_path, rest=SITE)
    with serve([*GUNICORN_PASTER, str(ini)], cwd=tmp_path) as server, requests.Session() as session:
        server.wait_for_output(f"Dashboard at: {server.url}/inside/")
        assert session.get(f"{server.url}/inside/", timeout=PATIENCE_S).status_code == 403
        for _ in range(5):
            assert session.get(f"{server.url}/", timeout=PATIENCE_S).ok
        page = session.post(
            f"{server.url}/inside/login", {"token": TOKEN, "next": "/transactions"}, timeout=PATIENCE_S,
            headers={"Origin": server.url},
        )  # fmt: skip
        assert page.url.startswith(f"{server.url}/inside/transactions")

        def shown() -> str:
            return session.get(f"{server.url}/inside/transactions?sort=name", timeout=PATIENCE_S).text

        # It is measured as any application is, under the names of its own pages.
        wait_for(lambda: "GET /</a>" in shown() and "GET /paste-agent/transactions" in shown(), "both applications")
        assert "KeyError" not in shown()
        assert TOKEN not in server.output()
        assert server.output().count("Dashboard at:") == 1
