"""Kinto, which nobody here wrote: its own ini and one line, under gunicorn_paster with four workers."""

from __future__ import annotations

import configparser
import functools
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.apps.traffic import Kind, Outcome, agent_environment, drive, install, skip_without
from tests.collector import Collector, rotel
from tests.receiver import RequestKey
from tests.serving import GUNICORN_PASTER, NO_CONTROL_SOCKET, serve

skip_without("kinto")

CLIENTS = 4
ROUNDS = 60  # of all KINDS, for each client: 3,120 requests in all
kind = functools.partial(Kind, auth=("admin", "s3cret"), headers={"Content-Type": "application/json"})

KINDS = [
    kind("GET", "/v1/__heartbeat__", "/v1/__heartbeat__", auth=None),
    kind("GET", "/v1/", "/v1/", auth=None),
    kind("GET", "/", "/{path}", auth=None),
    kind("PUT", "/v1/accounts/admin", "/v1/accounts/{id}", json={"data": {"password": "s3cret"}}, auth=None),
    kind("PUT", "/v1/buckets/b", "/v1/buckets/{id}"),
    kind("PUT", "/v1/buckets/b/collections/c", "/v1/buckets/{bucket_id}/collections/{id}"),
    kind("POST", "/v1/buckets/b/collections/c/records", "/v1/buckets/{bucket_id}/collections/{collection_id}/records",
         json={"data": {"title": "one"}}),
    kind("GET", "/v1/buckets/b/collections/c/records", "/v1/buckets/{bucket_id}/collections/{collection_id}/records"),
    kind("GET", "/v1/buckets/b/collections/c/records/{number}",
         "/v1/buckets/{bucket_id}/collections/{collection_id}/records/{id}"),
    kind("POST", "/v1/buckets/b/collections/c/records", "/v1/buckets/{bucket_id}/collections/{collection_id}/records",
         body="{broken"),
    kind("GET", "/v1/buckets", "/v1/buckets", auth=None),
    kind("GET", "/v1/nope/{number}", None, auth=None),
    kind("POST", "/v1/batch", "/v1/batch",
         json={"requests": [{"path": "/buckets/b"}, {"path": "/buckets/b/collections/c"}]}),
]  # fmt: skip


@pytest.fixture
def kinto_ini(tmp_path: Path) -> Path:
    """The ini that `kinto init` makes, with the filter and with four workers; nothing else is changed."""
    ini = tmp_path / "config" / "kinto.ini"
    made = [sys.executable, "-c", "from kinto.__main__ import main; main()", "init", "--ini", str(ini)]
    made += ["--backend", "memory", "--cache-backend", "memory", "--host", "127.0.0.1"]
    subprocess.run(made, check=True, capture_output=True, timeout=60)
    assert configparser.RawConfigParser().read(ini)
    install(ini)
    return ini


def test_client_store_and_collector_agree_on_every_route_and_status(kinto_ini: Path, tmp_path: Path) -> None:
    with rotel() as collector:
        env = agent_environment(
            tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint, OTEL_METRIC_EXPORT_INTERVAL="1000"
        )
        command = [*GUNICORN_PASTER, "--workers", "4", "--bind", "127.0.0.1:0", *NO_CONTROL_SOCKET, str(kinto_ini)]
        with serve(command, cwd=tmp_path, env=env) as server:
            served = drive(server.url, KINDS, CLIENTS, ROUNDS)
            assert server.stop() == 0
            outcome = Outcome(tmp_path, KINDS, served, server.output())
        assert sum(served.values()) == CLIENTS * ROUNDS * len(KINDS)
        assert len({status for _, _, status in served}) >= 5  # several kinds of answers, or the test says little
        assert outcome.counted() == dict(served)
        assert collected(collector, served) == dict(served)


def collected(collector: Collector, served: Counter[RequestKey]) -> dict[RequestKey, int]:
    """What the collector got, once it has printed all of it."""
    try:
        collector.wait_for(lambda it: sum(it.request_counts().values()) >= sum(served.values()), 10.0)
    except AssertionError:
        pass  # the comparison says more than a time-out
    return collector.request_counts()
