"""What an application says through OpenTelemetry's API is in the trace that an operator prints, under a real server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.commands import shell
from tests.serving import GUNICORN_PASTER, NO_CONTROL_SOCKET, PATIENCE_S, environment, serve

APP = """
import sqlite3

import paste_agent
from opentelemetry import propagate, trace

tracer = trace.get_tracer("shop")

def factory(global_conf, **local_conf):
    return application

@tracer.start_as_current_span("reserve")
def reserve():
    connection = sqlite3.connect(":memory:")
    connection.execute("SELECT 1").fetchall()
    connection.close()
    trace.get_current_span().set_attribute("shop.items", 3)

def application(environ, start_response):
    headers = {}
    propagate.inject(headers)
    trace.get_current_span().set_attribute("shop.plan", "gold")
    with tracer.start_as_current_span("order", kind=trace.SpanKind.CLIENT) as order:
        reserve()
        try:
            with tracer.start_as_current_span("charge"):
                raise LookupError("no such card")
        except LookupError as error:
            order.record_exception(error)
    with paste_agent.background_task("mail"), tracer.start_as_current_span("send", kind=trace.SpanKind.PRODUCER):
        pass
    body = headers["traceparent"].encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
"""
INI = """
[pipeline:main]
pipeline = agent served
[filter:agent]
use = egg:paste_agent
service_name = shop
store = %(here)s/store.sqlite
runtime_dir = %(here)s/run
random_traces_per_min = 1000000
[app:served]
paste.app_factory = served:factory
"""


def test_its_spans_are_in_the_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "served.py").write_text(APP)
    (tmp_path / "shop.ini").write_text(INI)
    variables = environment(PYTHONDONTWRITEBYTECODE="1")
    variables["PYTHONPATH"] += f":{tmp_path}"
    command = [*GUNICORN_PASTER, *NO_CONTROL_SOCKET, "--bind", "127.0.0.1:0", "-k", "gthread", "--preload", "shop.ini"]
    with serve(command, tmp_path, variables) as server, requests.Session() as session:
        session.trust_env = False
        traceparent = session.get(server.url, timeout=PATIENCE_S).text
        server.stop()
        assert "fault of the agent" not in server.output()

    trace_id = traceparent.split("-")[1]
    run = shell(capsys, monkeypatch, tmp_path)
    printed = run("trace", "shop.ini", trace_id).output
    for name in ("order", "reserve", "SELECT", "charge"):
        assert name in printed
    (transaction,) = json.loads(run("trace", "--json", "shop.ini", trace_id).output)["transactions"]
    spans: dict[str, Any] = {span["name"]: span for span in transaction["spans"]}
    by_id = {span["id"]: name for name, span in spans.items()}
    around = {name: by_id.get(span["parent"]) for name, span in spans.items()}
    assert {name: around[name] for name in ("order", "reserve", "SELECT", "charge")} == {
        "order": None, "reserve": "order", "SELECT": "reserve", "charge": "order",
    }  # fmt: skip
    assert (spans["charge"]["error"], spans["reserve"]["attributes"]) == ("LookupError", {"shop.items": 3})
    assert transaction["attributes"]["shop.plan"] == "gold"
    report = json.loads(run("report", "--json", "shop.ini").output)
    assert [(error["type"], error["count"]) for error in report["errors_seen"]] == [("LookupError", 1)]
    parts = {row["method"]: {part: one["spans"] for part, one in row["parts"].items()} for row in report["breakdown"]}
    assert parts == {"GET": {"database": 3}, None: {"message": 1}}  # the task's
