"""Each row of docs/starting.md, started for real: what was served is in the store."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import pytest

from tests.starting.ways import WAYS, metrics_in, requests_in, rows, services_in, started


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
        server.stop(way.stop)
    routes = requests_in(tmp_path)
    assert routes == way.routes
    assert services_in(tmp_path) == [way.service]
    # What is known of gunicorn's workers before they serve, only its arbiter tells.
    knows = "paste_agent.worker.boot.duration" in metrics_in(tmp_path)
    assert knows == way.arbiter
    assert rows()[row][1] == ("yes" if way.arbiter else "no")
