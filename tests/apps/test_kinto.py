"""Kinto, which nobody here wrote: its own ini and one line, under gunicorn_paster with four workers."""

from __future__ import annotations

import configparser
import itertools
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests

from paste_agent.aggregate import REQUEST_DURATION
from paste_agent.store.store import Store
from tests.collector import Collector, rotel
from tests.receiver import RequestKey, request_key
from tests.serving import GUNICORN_PASTER, NO_CONTROL_SOCKET, environment, serve

pytest.importorskip("kinto")

CLIENTS = 4
ROUNDS = 60  # of all KINDS, for each client: 3,120 requests in all
ADMIN = ("admin", "s3cret")


class Kind(NamedTuple):
    """A request, and the route that Kinto has for it; None: no route matches."""

    method: str
    path: str
    route: str | None
    json: Any = None
    body: str | None = None
    auth: tuple[str, str] | None = ADMIN


KINDS = [
    Kind("GET", "/v1/__heartbeat__", "/v1/__heartbeat__", auth=None),
    Kind("GET", "/v1/", "/v1/", auth=None),
    Kind("GET", "/", "/{path}", auth=None),
    Kind("PUT", "/v1/accounts/admin", "/v1/accounts/{id}", json={"data": {"password": "s3cret"}}, auth=None),
    Kind("PUT", "/v1/buckets/b", "/v1/buckets/{id}"),
    Kind("PUT", "/v1/buckets/b/collections/c", "/v1/buckets/{bucket_id}/collections/{id}"),
    Kind("POST", "/v1/buckets/b/collections/c/records", "/v1/buckets/{bucket_id}/collections/{collection_id}/records",
         json={"data": {"title": "one"}}),
    Kind("GET", "/v1/buckets/b/collections/c/records", "/v1/buckets/{bucket_id}/collections/{collection_id}/records"),
    Kind("GET", "/v1/buckets/b/collections/c/records/{number}",
         "/v1/buckets/{bucket_id}/collections/{collection_id}/records/{id}"),
    Kind("POST", "/v1/buckets/b/collections/c/records", "/v1/buckets/{bucket_id}/collections/{collection_id}/records",
         body="{broken"),
    Kind("GET", "/v1/buckets", "/v1/buckets", auth=None),
    Kind("GET", "/v1/nope/{number}", None, auth=None),
    Kind("POST", "/v1/batch", "/v1/batch",
         json={"requests": [{"path": "/buckets/b"}, {"path": "/buckets/b/collections/c"}]}),
]  # fmt: skip


@pytest.fixture
def kinto_ini(tmp_path: Path) -> Path:
    """The ini that `kinto init` makes, with the filter and with four workers; nothing else is changed."""
    ini = tmp_path / "config" / "kinto.ini"
    made = [sys.executable, "-c", "from kinto.__main__ import main; main()", "init", "--ini", str(ini)]
    made += ["--backend", "memory", "--cache-backend", "memory", "--host", "127.0.0.1"]
    subprocess.run(made, check=True, capture_output=True, timeout=60)
    text = ini.read_text()
    assert configparser.RawConfigParser().read(ini)
    assert text.count("[app:main]\n") == 1
    ini.write_text(
        text.replace("[app:main]\n", "[app:main]\nfilter-with = agent\n")
        + "\n[filter:agent]\nuse = egg:paste_agent\nservice_name = kinto\n"
        + f"store = {tmp_path}/kinto.sqlite\nruntime_dir = {tmp_path}/run\n"
    )
    return ini


def drive(url: str, client: int, seen: Counter[RequestKey]) -> None:
    """One client: every kind, round after round; counts what it was answered."""
    with requests.Session() as session:
        for number, kind in itertools.product(range(ROUNDS), KINDS):
            answer = session.request(
                kind.method,
                url + kind.path.format(number=f"{client}-{number}"),
                json=kind.json,
                data=kind.body,
                headers={"Content-Type": "application/json"},
                auth=kind.auth,
                allow_redirects=False,
                timeout=30,
            )
            seen[kind.method, kind.route, answer.status_code] += 1


def stored(path: Path) -> dict[RequestKey, int]:
    store = Store(str(path), read_only=True)
    try:
        found = [total for total in store.totals() if total.metric == REQUEST_DURATION]
        return {request_key(dict(total.attributes)): total.total.count for total in found}
    finally:
        store.close()


def test_client_store_and_collector_agree_on_every_route_and_status(kinto_ini: Path, tmp_path: Path) -> None:
    seen: list[Counter[RequestKey]] = [Counter() for _ in range(CLIENTS)]
    with rotel() as collector:
        env = environment(OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint, OTEL_METRIC_EXPORT_INTERVAL="1000")
        command = [*GUNICORN_PASTER, "--workers", "4", "--bind", "127.0.0.1:0", *NO_CONTROL_SOCKET, str(kinto_ini)]
        with serve(command, cwd=tmp_path, env=env) as server:
            clients = [threading.Thread(target=drive, args=(server.url, n, seen[n])) for n in range(CLIENTS)]
            for client in clients:
                client.start()
            for client in clients:
                client.join()
            assert server.stop() == 0
            served = sum(seen, Counter())
            assert sum(served.values()) == CLIENTS * ROUNDS * len(KINDS)
            assert len({status for _, _, status in served}) >= 5  # several kinds of answers, or the test says little
            assert stored(tmp_path / "kinto.sqlite") == dict(served)
            assert collected(collector, served) == dict(served)


def collected(collector: Collector, served: Counter[RequestKey]) -> dict[RequestKey, int]:
    """What the collector got, once it has printed all of it."""
    try:
        collector.wait_for(lambda it: sum(it.request_counts().values()) >= sum(served.values()), 10.0)
    except AssertionError:
        pass  # the comparison says more than a time-out
    return collector.request_counts()
