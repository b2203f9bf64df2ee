"""What an application tells of itself arrives at a collector, under real servers."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.collector import rotel
from tests.receiver import Receiver, attributes_of
from tests.serving import GUNICORN_PASTER, NO_CONTROL_SOCKET, Served, environment, serve

APP = """
import logging
import paste_agent

log = logging.getLogger("shop.orders")
paste_agent.count("shop.imported")

def factory(global_conf, **local_conf):
    return application

def application(environ, start_response):
    body = VIEWS[environ["PATH_INFO"]]() or "ok"
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body.encode()]

def named():
    paste_agent.name_transaction("orders/list")
    paste_agent.add_attributes({"shop.plan": "gold", "shop.items": 3})
    with paste_agent.span("reserve"):
        log.warning("low on %s", "tea")
    return paste_agent.outbound_headers()["traceparent"]

def ignored():
    paste_agent.ignore_transaction()

def background():
    paste_agent.mark_as_background("feed")

def handled():
    paste_agent.name_transaction("pay")
    try:
        raise LookupError("no such card")
    except LookupError:
        paste_agent.notice_error(attributes={"shop.step": 2})
        log.exception("not paid")

def figures():
    paste_agent.name_transaction("figures")
    paste_agent.count("shop.sold", 3)
    paste_agent.timing("shop.wait", 0.25)

def task():
    paste_agent.name_transaction("task")
    with paste_agent.background_task("mail"):
        paste_agent.add_attribute("shop.list", "news")
        log.error("bounced")

VIEWS = {f"/{view.__name__}": view for view in (named, ignored, background, handled, figures, task)}
"""
INI = """
[pipeline:main]
pipeline = agent served
[filter:agent]
use = egg:paste_agent
service_name = shop
store = %(here)s/store.sqlite
runtime_dir = %(here)s/run
endpoint = {endpoint}
forward_logs = warning
random_traces_per_min = 1000000
shutdown_timeout_s = 20
[app:served]
paste.app_factory = served:factory

[loggers]
keys = root
[handlers]
keys = console
[formatters]
keys = trace
[logger_root]
level = INFO
handlers = console
[handler_console]
class = StreamHandler
args = (sys.stderr,)
formatter = trace
[formatter_trace]
class = paste_agent.logs.TraceFormatter
format = LINE %(service_name)s [%(trace_id)s %(span_id)s] %(message)s
"""
#: Options, and how many processes import the application.
WORKERS = {
    "sync": (["-k", "sync", "--workers", "2"], 2),
    "gthread": (["-k", "gthread", "--threads", "4"], 1),
    "gthread, preload": (["-k", "gthread", "--threads", "4", "--workers", "2", "--preload"], 1),
    "gevent": (["-k", "gevent"], 1),
}


@contextmanager
def served(here: Path, endpoint: str, options: list[str]) -> Iterator[Served]:
    (here / "served.py").write_text(APP)
    (here / "shop.ini").write_text(INI.format(endpoint=endpoint))
    variables = environment(PYTHONDONTWRITEBYTECODE="1")
    env = {
        **{name: value for name, value in variables.items() if not name.lower().endswith("_proxy")},
        "PYTHONPATH": f"{variables['PYTHONPATH']}:{here}",
    }
    command = [*GUNICORN_PASTER, *NO_CONTROL_SOCKET, "--bind", "127.0.0.1:0", *options, "shop.ini"]
    with serve(command, here, env) as server:
        yield server


def get(server: Served, path: str) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        response = connection.getresponse()
        assert response.status == 200
        return response.read().decode()
    finally:
        connection.close()


def use_all(server: Served) -> str:
    """One request of each kind; the traceparent that another service would have got."""
    for path in ("/ignored", "/background", "/handled", "/figures", "/task"):
        assert get(server, path) == "ok"
    return get(server, "/named")


def points(receiver: Receiver, metric: str, of: str) -> dict[Any, Any]:
    """The newest points of a metric by one attribute."""
    return {attributes.get(of): point for attributes, point in receiver.last_points(metric)}


@pytest.mark.parametrize("worker", WORKERS)
def test_all_of_it_arrives(tmp_path: Path, worker: str) -> None:
    if worker == "gevent":
        pytest.importorskip("gevent")
    options, imports = WORKERS[worker]
    with Receiver() as receiver:
        with served(tmp_path, receiver.endpoint, options) as server:
            traceparent = use_all(server)
            server.stop()
            output = server.output()
        assert "fault of the agent" not in output

        requests = points(receiver, "http.server.request.duration", "http.route")
        assert {route: point.count for route, point in requests.items()} == {
            "/orders/list": 1, "/pay": 1, "/figures": 1, "/task": 1,
        }  # fmt: skip
        tasks = points(receiver, "paste_agent.background_task.duration", "paste_agent.task.name")
        assert {name: point.count for name, point in tasks.items()} == {"feed": 1, "mail": 1}
        errors = points(receiver, "paste_agent.errors", "error.type")
        assert {kind: point.as_int for kind, point in errors.items()} == {"LookupError": 1}
        assert points(receiver, "shop.sold", "")[None].as_int == 3
        assert points(receiver, "shop.imported", "")[None].as_int == imports
        wait = points(receiver, "shop.wait", "")[None]
        assert (wait.count, wait.sum) == (1, 0.25)

        spans = {span.name: span for span in receiver.spans}
        named, reserve, mail = spans["GET /orders/list"], spans["reserve"], spans["mail"]
        attributes = attributes_of(named.attributes)
        assert (attributes["shop.plan"], attributes["shop.items"]) == ("gold", 3)
        assert attributes_of(spans["GET /pay"].attributes)["shop.step"] == 2
        assert attributes_of(mail.attributes)["shop.list"] == "news"
        assert not [name for name in spans if "ignored" in name]
        assert traceparent == f"00-{named.trace_id.hex()}-{named.span_id.hex()}-01"

        logs = {record.body.string_value: record for record in receiver.logs if record.body.string_value}
        bound = {"low on tea": reserve, "not paid": spans["GET /pay"], "bounced": mail}
        for body, span in bound.items():
            assert (logs[body].trace_id, logs[body].span_id) == (span.trace_id, span.span_id)
            assert f"LINE shop [{span.trace_id.hex()} {span.span_id.hex()}] {body}\n" in output
        paid = attributes_of(logs["not paid"].attributes)
        assert (paid["exception.type"], paid["exception.message"]) == ("LookupError", "no such card")


def test_a_real_collector_takes_it(tmp_path: Path) -> None:
    with rotel() as collector:
        with served(tmp_path, collector.endpoint, []) as server:
            traceparent = use_all(server)
            server.stop()
        shown = (
            "Name: shop.sold", "Name: shop.wait", "Name           : GET /orders/list", "shop.plan: Str(gold)",
            "Name           : mail", "low on tea", "shop.orders", "exception.type: Str(LookupError)",
        )  # fmt: skip
        collector.wait_for(lambda one: all(text in one.output() for text in shown))
        assert traceparent.split("-")[1] in collector.output()
