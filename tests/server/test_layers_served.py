"""The layers of a pipeline, under real gunicorn: what its workers served and loaded is in the store, layer by layer."""

from __future__ import annotations

import urllib.request
from collections.abc import Mapping
from pathlib import Path

import pytest

from paste_agent import pauses
from paste_agent.aggregate import LAYER_DURATION, LOAD_DURATION, PART_DURATION, REQUEST_DURATION
from paste_agent.store.store import Store
from tests.serving import GUNICORN_PASTER, NO_CONTROL_SOCKET, environment, serve

PARTS = """
import gc

class Filter:
    def __init__(self, app):
        self.app = app

    def __call__(self, environ, start_response):
        return self.app(environ, start_response)

def filter_factory(global_conf):
    return Filter

def reserve():
    gc.collect()
    return b"reserved"

def app_factory(global_conf):
    print("one is loaded")
    def application(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [reserve()]
    return application
"""
INI = """
[pipeline:main]
pipeline = gate agent gzip session site
[filter:agent]
use = egg:paste_agent
service_name = shop
store = %(here)s/store.sqlite
runtime_dir = %(here)s/run
cpu_time = true
trace_functions = parts:reserve
[filter:gate]
paste.filter_factory = parts:filter_factory
[filter:gzip]
paste.filter_factory = parts:filter_factory
[filter:session]
use = gzip
[composite:site]
use = egg:Paste#urlmap
/ = shop
/admin = admin
[pipeline:admin]
pipeline = login shop
[filter:login]
use = gzip
[app:shop]
paste.app_factory = parts:app_factory
[server:main]
use = egg:paste_agent
"""


def counts_in(store: Path) -> Mapping[tuple[str, str], int]:
    """How often, by metric and the name of the layer, or of the part."""
    opened = Store(str(store), read_only=True)
    try:
        found: dict[tuple[str, str], int] = {}
        for one in opened.totals():
            name = one.attributes.get("paste.layer") or one.attributes.get("paste_agent.part") or ""
            found[one.metric, str(name)] = found.get((one.metric, str(name)), 0) + one.total.count
        return found
    finally:
        opened.close()


@pytest.mark.parametrize("preload", [False, True])
@pytest.mark.parametrize("worker", ["sync", "gthread"])
def test_every_layer_is_counted(tmp_path: Path, worker: str, preload: bool) -> None:
    (tmp_path / "parts.py").write_text(PARTS)
    (tmp_path / "service.ini").write_text(INI)
    loaded = 1 if preload else 2  # by the arbiter, or by each worker
    times = 2  # each worker tells it
    options = ["--worker-class", worker, "--workers", "2", "--threads", "1" if worker == "sync" else "4"]
    command = [*GUNICORN_PASTER, *NO_CONTROL_SOCKET, "--bind", "127.0.0.1:0", *options, *["--preload"] * preload]
    with serve([*command, "service.ini"], tmp_path, environment(PYTHONDONTWRITEBYTECODE="1")) as server:
        server.wait_for_output("one is loaded", 2 * loaded)
        for path in ["/", "/", "/admin", "/", "/admin"]:
            with urllib.request.urlopen(server.url + path, timeout=60) as answer:
                assert answer.read() == b"reserved"
        assert server.stop() == 0
        assert "fault of the agent" not in server.output()
        assert "was lost" not in server.output()
    found = counts_in(tmp_path / "store.sqlite")
    assert found[REQUEST_DURATION, ""] == 5
    assert {name: count for (metric, name), count in found.items() if metric == LAYER_DURATION} == {
        "gzip": 5,
        "session": 5,
        "site": 5,
        "login": 2,
        "shop": 5,
    }
    loads = {name: count for (metric, name), count in found.items() if metric == LOAD_DURATION}
    assert loads == {"gzip": times, "session": times, "site": times, "login": times, "shop": 2 * times}
    for part in ("layers", "gc", "cpu") if pauses.IS_SAFE else ("layers", "cpu"):
        assert found[PART_DURATION, part] == 5
