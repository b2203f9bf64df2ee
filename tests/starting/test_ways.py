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
from tests.starting.ways import WAYS, metrics_in, requests_in, rows, services_in, started

#: Longer than the agent's last drain takes, which a second signal would cut short.
PAUSE_S = 5.0


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
