"""Each row of docs/starting.md, started for real: what was served is in the store."""

from __future__ import annotations

import signal
import subprocess
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from tests.serving import Served
from tests.starting.ways import BIN, WAYS, metrics_in, requests_in, rows, services_in, started

#: Longer than the agent's last drain takes, which a second signal would cut short.
PAUSE_S = 3.0


def stop(server: Served, number: signal.Signals) -> None:
    """Some servers take a SIGINT that arrives just as they end a request for that request's, and go on."""
    deadline = time.monotonic() + 60
    while server.process.poll() is None:
        assert time.monotonic() < deadline, "it does not end"
        server.send(number)
        with suppress(subprocess.TimeoutExpired):
            server.process.wait(PAUSE_S)


def test_every_row_is_tried_and_whatever_is_tried_has_a_row() -> None:
    assert set(rows()) == set(WAYS)


@pytest.mark.parametrize("row", WAYS)
def test_what_was_served_is_in_the_store(tmp_path: Path, row: str) -> None:
    way = WAYS[row]
    pages = ["/one", "/two", "/two"]
    with started(tmp_path, way.command, way.files, way.env) as (server, url):
        for page in pages:
            with urllib.request.urlopen(url + page, timeout=60) as answer:
                assert answer.read()
        stop(server, way.stop)
    routes = requests_in(tmp_path)
    assert routes == way.routes
    assert services_in(tmp_path) == [way.service]
    # What is known of gunicorn's workers before they serve, only its arbiter tells.
    knows = "paste_agent.worker.boot.duration" in metrics_in(tmp_path)
    assert knows == way.arbiter
    assert rows()[row][1] == ("yes" if way.arbiter else "no")


PYWSGI = "from gevent.pywsgi import WSGIServer; WSGIServer(('127.0.0.1', 0), application).serve_forever()"
SERVERS = {
    "waitress": "import waitress; waitress.serve(application, host='127.0.0.1', port=0)",
    "waitress.create_server": "import waitress; waitress.create_server(application, host='127.0.0.1', port=0).run()",
    "paste": "from paste import httpserver; httpserver.serve(application, host='127.0.0.1', port=0)",
    "werkzeug": "from werkzeug.serving import run_simple; run_simple('127.0.0.1', 0, application)",
    "gevent": PYWSGI,
    "gevent, patched": PYWSGI,
}


@pytest.mark.parametrize("name", SERVERS)
def test_a_script_that_serves(tmp_path: Path, name: str) -> None:
    first = "from gevent import monkey; monkey.patch_all()" if "patched" in name else ""
    files = {"shop.py": f"{first}\nfrom app import application\n{SERVERS[name]}\n"}
    with started(tmp_path, [str(BIN / "paste-agent"), "run-python", "shop.py"], files) as (server, url):
        for _ in range(2):
            with urllib.request.urlopen(f"{url}/page", timeout=60) as answer:
                assert answer.read()
        stop(server, signal.SIGINT)
    assert requests_in(tmp_path) == {"/page": 2}
    assert services_in(tmp_path) == ["shop"]
