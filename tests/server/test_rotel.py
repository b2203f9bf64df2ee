"""A real collector takes and shows what the exporter sends."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from paste_agent import settings as settings_module
from paste_agent.aggregate import REQUEST_DURATION, Delta, canonical
from paste_agent.exporters.otlp import OtlpExporter, try_collector
from paste_agent.kept import TraceRow
from paste_agent.metrics import WORKER_BUSY, WORKER_NUMBER, Reading
from paste_agent.recorder.layout import KEPT_FAILED, KEPT_SLOW
from paste_agent.settings import Settings
from paste_agent.store.store import Store
from tests.collector import rotel
from tests.receiver import RequestKey

TRACE_ID, SPAN_ID, PARENT_ID = bytes(range(16)), bytes(range(1, 9)), bytes(range(11, 19))


def settings_for(endpoint: str, compression: str) -> Settings:
    conf = {"endpoint": endpoint, "compression": compression, "service_name": "shop"}
    return settings_module.load(conf, {}, {})


def serve(store: Store, counts: dict[RequestKey, int]) -> None:
    """Add so many requests to the store's totals."""
    delta = Delta()
    for (method, route, status), count in counts.items():
        attributes = {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status,
            "url.scheme": "http",
        }
        known = {name: value for name, value in attributes.items() if value is not None}
        total = delta.at((REQUEST_DURATION, canonical(known)), 0)
        for _ in range(count):
            total.observe(3_000_000)
    store.commit_drain(delta, [], {}, 2000)


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_takes_and_shows_every_signal(tmp_path: Path, compression: str) -> None:
    troubles: list[tuple[str, str]] = []
    with rotel() as collector:
        store = Store(str(tmp_path / "store.sqlite"))
        settings = settings_for(collector.endpoint, compression)
        exporter = OtlpExporter(settings, {"service.name": "shop"}, lambda *trouble: troubles.append(trouble))
        try:
            store.instance_id("one")
            serve(store, {("GET", "/a {b}/(c)", 200): 3, ("POST", None, 500): 1})
            readings = [Reading(WORKER_BUSY, {WORKER_NUMBER: 1}, 0.25)]
            assert exporter.export_metrics(store, readings, time.monotonic() + 20)
            serve(store, {("GET", "/a {b}/(c)", 200): 4})
            assert exporter.export_metrics(store, readings, time.monotonic() + 20)
            exception = {"type": "ValueError", "message": "no such thing", "stacktrace": "Traceback\n  more"}
            attributes: dict[str, str | int] = {"http.route": "/a", "http.response.status_code": 500}
            row = TraceRow(
                TRACE_ID, SPAN_ID, PARENT_ID, 10**18, 10**9, True, KEPT_SLOW | KEPT_FAILED,
                {"http.request.method": "GET", **attributes},
                {"attributes": {"url.path": "/a"}, "tracestate": "k=v", "exception": exception},
            )  # fmt: skip
            store.add_traces([row], 1.0)
            assert exporter.export_traces(store, time.monotonic() + 20)
            expected = {("GET", "/a {b}/(c)", 200): 7, ("POST", None, 500): 1}
            collector.wait_for(lambda one: one.request_counts() == expected and "exception.type" in one.output())
            output = collector.output()
        finally:
            exporter.close()
            store.close()
    assert troubles == []
    for shown in (
        "service.name: Str(shop)",
        "Name: paste_agent.worker.busy",
        f"Trace ID       : {TRACE_ID.hex()}",
        f"Parent ID      : {PARENT_ID.hex()}",
        "Name           : GET /a",
        "SPAN_KIND_SERVER",
        "STATUS_CODE_ERROR",
        "TraceState     : k=v",
        "paste_agent.why_kept: Slice(Str(slow), Str(failed))",
        "exception.type: Str(ValueError)",
        "exception.message: Str(no such thing)",
        "SeverityText: ERROR",
    ):
        assert shown in output, shown


def test_says_what_each_address_answers() -> None:
    with rotel() as collector:
        conf = {"endpoint": collector.endpoint, "logs_endpoint": f"{collector.endpoint}/elsewhere"}
        found = list(try_collector(settings_module.load(conf, {}, {}), 20.0))
    assert [(one.signal, one.taken) for one in found] == [("traces", True), ("metrics", True), ("logs", False)]
    assert found[0][1:4] == (f"{collector.endpoint}/v1/traces", True, "200")
    assert found[2].answer.startswith("404 Not Found")
