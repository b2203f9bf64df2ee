"""Pyramid with SQLAlchemy and PostgreSQL, which calls a second service: one trace, as a real collector passes it on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.apps.orders_service import PAUSE_S
from tests.collector import rotel
from tests.databases import Server, or_skipped, running_postgresql
from tests.receiver import Receiver, attributes_of
from tests.serving import GUNICORN_PASTER, NO_CONTROL_SOCKET, ROOT, environment, serve, wait_for

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
NS = 1_000_000_000
WORKERS = {"sync": [], "gthread": ["--threads", "4"], "gevent": []}


@pytest.fixture(scope="module")
def postgresql() -> Iterator[Server]:
    yield from or_skipped(running_postgresql)


def ini_of(directory: Path, name: str, app: str) -> Path:
    path = directory / f"{name}.ini"
    path.write_text(
        f"""
[app:{name}]
{app}

[filter:pausing]
paste.filter_factory = tests.apps.orders_service:pausing_filter

[filter:agent]
use = egg:paste_agent
service_name = {name}
store = {directory}/{name}.sqlite
runtime_dir = {directory}/run-{name}
trace_interval_s = 0.5
repeated_queries = 10

[pipeline:main]
pipeline = agent pausing {name}

[server:main]
use = egg:paste_agent
host = 127.0.0.1
port = 0
"""
    )
    return path


def collected(receiver: Receiver, condition: Callable[[dict[str, Span]], object]) -> list[Span]:
    """The spans of our trace, once `condition` holds for them by name."""
    wanted = bytes.fromhex(PARENT.split("-")[1])

    def found() -> list[Span]:
        return [span for span in receiver.spans if span.trace_id == wanted]

    wait_for(lambda: condition({span.name: span for span in found()}), "the spans of the trace")
    return found()


@pytest.mark.parametrize("worker", WORKERS)
def test_one_trace_through_two_services_and_a_database(worker: str, tmp_path: Path, postgresql: Server) -> None:
    url = f"postgresql+psycopg2://{postgresql.user}@{postgresql.host}:{postgresql.port}/{postgresql.database}"
    code = "import sys; from tests.apps.orders_service import fill; fill(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, url], check=True, cwd=ROOT, env=environment(), timeout=60)
    with Receiver() as receiver, rotel(receiver.endpoint) as collector:
        env = environment(OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint)
        run = [*GUNICORN_PASTER, "-k", worker, *WORKERS[worker], *NO_CONTROL_SOCKET]
        prices_ini = ini_of(tmp_path, "prices", "paste.app_factory = tests.apps.orders_service:prices")
        with serve([*run, str(prices_ini)], cwd=tmp_path, env=env) as prices:
            orders_ini = ini_of(
                tmp_path,
                "orders",
                f"paste.app_factory = tests.apps.orders_service:orders\nprices = {prices.url}\ndatabase = {url}",
            )
            with serve([*run, str(orders_ini)], cwd=tmp_path, env=env) as orders:
                # SQLAlchemy asks a new database some questions of its own.
                assert requests.get(f"{orders.url}/orders/17", timeout=30).status_code == 200
                asked = requests.get(f"{orders.url}/orders/17", headers={"traceparent": PARENT}, timeout=30)
                assert asked.text == "tea: 2 at 3\ncups: 6 at 3\n"
                spans = collected(receiver, lambda by_name: {"GET /prices", "GET /orders/{id}"} <= by_name.keys())
                check_trace(spans, prices.port)
                check_nothing_is_told(spans)
                check_failure(orders.url, receiver)


def check_trace(spans: list[Span], prices_port: int) -> None:
    by_id = {span.span_id: span for span in spans}
    assert len(by_id) == len(spans)
    by_name = {span.name: span for span in spans}
    order, price = by_name["GET /orders/{id}"], by_name["GET /prices"]
    assert order.parent_span_id == bytes.fromhex(PARENT.split("-")[2])
    assert (order.kind, price.kind) == (Span.SPAN_KIND_SERVER, Span.SPAN_KIND_SERVER)
    call = by_id[price.parent_span_id]
    assert call.kind == Span.SPAN_KIND_CLIENT
    assert attributes_of(call.attributes).items() >= {
        ("http.request.method", "GET"), ("server.address", "127.0.0.1"), ("server.port", prices_port),
        ("http.response.status_code", 200),
    }  # fmt: skip
    queries = [span for span in spans if "db.system.name" in attributes_of(span.attributes)]
    told = [attributes_of(span.attributes) for span in queries]
    assert {one["db.system.name"] for one in told} == {"postgresql"}
    selects = [one for one in told if one.get("db.operation.name") == "SELECT"]
    assert [one.get("db.collection.name") for one in selects] == ["orders", "lines", None]
    # Below the transaction, by whatever way through the view; within it in time, one after the other.
    for span in (*queries, call):
        above = [span]
        while above[-1].span_id != order.span_id:
            around = by_id[above[-1].parent_span_id]
            assert around.start_time_unix_nano <= above[-1].start_time_unix_nano
            assert above[-1].end_time_unix_nano <= around.end_time_unix_nano
            above.append(around)
    assert queries[-1].end_time_unix_nano <= call.start_time_unix_nano
    # Two processes, one clock.
    assert call.start_time_unix_nano <= price.start_time_unix_nano + NS // 100
    assert price.end_time_unix_nano <= call.end_time_unix_nano + NS // 100
    # What slept is seen to have slept.
    slept = next(span for span in queries if "pg_sleep" in attributes_of(span.attributes).get("db.query.text", ""))
    assert slept.end_time_unix_nano - slept.start_time_unix_nano >= 0.02 * NS
    assert call.end_time_unix_nano - call.start_time_unix_nano >= PAUSE_S * NS
    template = next(span for span in spans if "paste_agent.template" in span.name or "template" in span.name.lower())
    assert template.start_time_unix_nano >= call.end_time_unix_nano


def check_nothing_is_told(spans: list[Span]) -> None:
    """Literals of statements, and what a client or the database said, stay where they were."""
    everything = "\n".join(str(span) for span in spans)
    assert "s3cret" not in everything
    assert "goods=" not in everything


def check_failure(url: str, receiver: Receiver) -> None:
    """A request that fails is kept whoever asks, with its error; one with too many queries, with where they are."""
    assert requests.get(f"{url}/orders/18", timeout=30).status_code == 500
    assert requests.get(f"{url}/many", timeout=30).status_code == 200

    def failed() -> list[Span]:
        return [span for span in receiver.spans if span.status.code == Status.STATUS_CODE_ERROR]

    wait_for(failed, "the failed request")
    attributes: dict[str, Any] = attributes_of(failed()[0].attributes)
    assert attributes["error.type"] == "LookupError"
    wait_for(lambda: [span for span in receiver.spans if span.name == "GET /many"], "the one with many queries")
    repeated = [
        attributes_of(span.attributes)
        for span in receiver.spans
        if attributes_of(span.attributes).get("code.function.name") == "many_queries"
    ]
    assert any(one.get("code.file.path", "").endswith(os.path.join("apps", "orders_service.py")) for one in repeated)
