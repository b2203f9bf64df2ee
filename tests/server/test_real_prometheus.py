"""Metrics as a real Prometheus sees them: of a service that is reloaded, scaled, killed and started again."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from paste_agent.store.store import Store
from tests.faults.load import KINDS, Load
from tests.faults.service import APPLICATION, kill, kill_all, lead_pid
from tests.prometheus import Prometheus, running_prometheus
from tests.recorders import requests_of
from tests.serving import GUNICORN_PASTER, NO_CONTROL_SOCKET, PATIENCE_S, ROOT, Served, serve, wait_for

INI = """
[app:service]
use = call:wsgi_app:factory

[filter:agent]
use = egg:paste_agent
service_name = shop
store = %(here)s/store.sqlite
runtime_dir = %(here)s/run

[pipeline:shop]
pipeline = agent service

[app:metrics]
use = egg:paste_agent#metrics

[composite:main]
use = egg:Paste#urlmap
/ = shop
/metrics = metrics

[server:main]
use = egg:paste_agent
bind = 127.0.0.1:0
workers = 3
"""
#: Panels of the dashboard about what it does not do: it asks no database and no other service.
NOT_OF_THIS_SERVICE = {
    "Time by part", "Queries, time by summary", "Queries, p95", "Calls of other services, p95",
    "Layers of the pipeline", "Background tasks, mean", "Wait for a worker",
}  # fmt: skip
REQUESTS = "http_server_request_duration_seconds_count"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    shutil.copy(APPLICATION, tmp_path / "wsgi_app.py")
    (tmp_path / "shop.ini").write_text(INI)
    return tmp_path


@pytest.fixture
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with running_prometheus(tmp_path_factory.mktemp("prometheus")) as server:
        yield server


def command() -> list[str]:
    return [*GUNICORN_PASTER, *NO_CONTROL_SOCKET, "shop.ini"]


def scrape(server: Served) -> str:
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=PATIENCE_S) as response:
        return str(response.read().decode())


def lines_about_requests(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("http_server_request_duration")]


def counted(directory: Path) -> dict[tuple[str | None, str | None], int]:
    """Requests in the store, by route and status."""
    found: dict[tuple[str | None, str | None], int] = {}
    with closing(Store(str(directory / "store.sqlite"), read_only=True)) as store:
        for (_, route, status), count in requests_of(store).items():
            key = (route, None if status is None else str(status))
            found[key] = found.get(key, 0) + count
    return found


def test_every_worker_says_the_same(here: Path) -> None:
    with serve(command(), here) as server:
        server.wait_for(lambda: len(server.workers()) == 3 and (here / "store.sqlite").exists(), "three workers")
        with Load(lambda: server.port, 1, requests=60, kinds=[kind for kind in KINDS if kind.route != "/slow"]):
            pass
        server.wait_for(lambda: sum(counted(here).values()) == 60, "all requests in the store")
        texts = []
        for alone in server.workers():
            others = [pid for pid in server.workers() if pid != alone]
            for pid in others:
                os.kill(pid, signal.SIGSTOP)
            try:
                texts.append(lines_about_requests(scrape(server)))
            finally:
                for pid in others:
                    os.kill(pid, signal.SIGCONT)
        assert texts[0] == texts[1] == texts[2]
        total = sum(float(line.rpartition(" ")[2]) for line in texts[0] if line.startswith(REQUESTS))
        assert total == 60
        assert re.search(r"\npaste_agent_worker_count 3\.0\n", scrape(server))
        server.stop()


def test_a_real_prometheus_sees_no_counter_go_back(here: Path, prometheus: Prometheus) -> None:
    began = time.time()
    ports: list[Served] = []
    port_of: dict[int, int] = {}

    def port() -> int | None:
        if not ports:
            return None
        return port_of.setdefault(ports[0].pid, ports[0].port)

    with Load(port, 1, requests=100_000, pace_s=0.02) as load:
        for turn in range(2):
            with serve(command(), here) as server:
                ports.append(server)
                prometheus.scrapes(server.port)
                scraped = f"count_over_time(up[1m]) >= {5 * (turn + 1)} and up == 1"
                wait_for(lambda: load.sent > 0 and bool(prometheus.query(scraped)), "scrapes")  # noqa: B023
                trouble(server, load, here)
                if turn == 0:
                    ports.clear()
                    kill_all(server)
                    continue
                load.stop()
                wait_for(lambda: not load.is_alive(), "the end of the load")
                wait_for(lambda: agree(prometheus, here, load), "what the store holds", 2 * PATIENCE_S)
                look_through(prometheus, began)
                assert without_data(prometheus) <= NOT_OF_THIS_SERVICE
                ports.clear()
                server.stop()
    assert load.tally.wrong == []
    assert sum(seen(prometheus).values()) <= load.sent


def agree(prometheus: Prometheus, directory: Path, load: Load) -> bool:
    """Whether Prometheus has what the store has, which is all that clients saw served."""
    found = seen(prometheus)
    return found == counted(directory) and sum(found.values()) >= sum(load.tally.served.values())


def trouble(server: Served, load: Load, directory: Path) -> None:
    """All that may happen to workers, one after the other."""
    before = set(server.workers())
    server.send(signal.SIGHUP)
    server.wait_for(lambda: len(server.workers()) == 3 and not before & set(server.workers()), "other workers")
    load.more(30)
    for number, workers in ((signal.SIGTTIN, 4), (signal.SIGTTOU, 3), (signal.SIGTTOU, 2), (signal.SIGTTIN, 3)):
        server.send(number)
        server.wait_for(lambda: len(server.workers()) == workers, f"{workers} workers")  # noqa: B023
        load.more(15)
    for _ in range(3):
        server.wait_for(lambda: lead_pid(directory) is not None, "a lead")
        pid = lead_pid(directory)
        assert pid is not None
        kill(pid)
        server.wait_for(lambda: len(server.workers()) == 3, "all workers")
        load.more(30)


def seen(prometheus: Prometheus) -> dict[tuple[str | None, str | None], int]:
    """Requests as Prometheus has them, by route and status."""
    found: dict[tuple[str | None, str | None], int] = {}
    for labels, value in prometheus.query(f"last_over_time({REQUESTS}[5m])"):
        key = (labels.get("http_route"), labels.get("http_response_status_code"))
        found[key] = found.get(key, 0) + round(value)
    return found


def look_through(prometheus: Prometheus, began: float) -> None:
    counters = '{__name__=~".+_(total|count|sum|bucket)", __name__!~"(paste_agent_worker|process_.+)_count"}'
    names = {labels["__name__"] for labels, _ in prometheus.query(f"count by (__name__) ({counters})")}
    assert {REQUESTS, "paste_agent_apdex_total", "process_cpu_time_seconds_total"} <= names
    resets = {name: prometheus.query(f"max(resets({name}[10m]))")[0][1] for name in sorted(names)}
    assert [name for name, times in resets.items() if times] == []
    (lost,) = prometheus.query("sum(paste_agent_worker_lost_total)")
    assert lost[1] >= 6
    # One instance through it all, and no series that belongs to a process.
    assert len(prometheus.query("count by (service_instance_id) (last_over_time(target_info[10m]))")) == 1
    labels = {name for found, _ in prometheus.query('last_over_time({job="shop"}[10m])') for name in found}
    assert not {name for name in labels if "pid" in name}
    workers = prometheus.query("count by (paste_agent_worker_number) (last_over_time(process_memory_usage_bytes[10m]))")
    assert 3 <= len(workers) <= 12
    exemplars = prometheus.exemplars("http_server_request_duration_seconds_bucket", began, time.time())
    assert exemplars
    assert all(re.fullmatch("[0-9a-f]{32}", labels["trace_id"]) for labels in exemplars)


def without_data(prometheus: Prometheus) -> set[str]:
    """Titles of the dashboard's panels that would have nothing to show."""
    panels = json.loads((ROOT / "docs" / "grafana" / "paste-agent.json").read_text(encoding="utf-8"))["panels"]
    words = {"$__rate_interval": "1m", "$__range": "5m", "$job": "shop", "$instance": ".*", "$route": ".*"}
    empty = set()
    for panel in panels:
        queries = [target["expr"] for target in panel.get("targets", [])]
        answers = [prometheus.query(re.sub(r"\$\w+", lambda found: words[found[0]], query)) for query in queries]
        if queries and not any(answers):
            empty.add(panel["title"])
    return empty
