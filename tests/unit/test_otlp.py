"""What waits in a real store is sent to a real server, settled and counted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsPartialSuccess, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsPartialSuccess,
    ExportMetricsServiceResponse,
)

from paste_agent import settings
from paste_agent.aggregate import REQUEST_DURATION, Delta, canonical
from paste_agent.exporters import otlp
from paste_agent.exporters.otlp import OtlpExporter
from paste_agent.exporters.otlp_encode import empty_request
from paste_agent.kept import TraceRow
from paste_agent.metrics import EXPORT_FAILED
from paste_agent.settings import Settings
from paste_agent.store.store import Store
from tests.clock import WALL, Clock
from tests.collector import free_port
from tests.receiver import Answer, Receiver


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NETRC"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as one:
        yield one


@pytest.fixture
def clock() -> Clock:
    return Clock()


def settings_for(endpoint: str, **conf: str) -> Settings:
    return settings.load({"endpoint": endpoint, **conf}, {}, {})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    one = Store(str(tmp_path / "store.sqlite"))
    one.instance_id("one")
    yield one
    one.close()


class Exporting:
    """An exporter with all that it reports to."""

    def __init__(self, clock: Clock, endpoint: str, **conf: str) -> None:
        self.clock = clock
        self.warnings: list[tuple[str, str]] = []
        self.exporter = OtlpExporter(
            settings.load({"endpoint": endpoint, **conf} if endpoint else conf, {}, {}),
            {"service.name": "shop"},
            lambda kind, message: self.warnings.append((kind, message)),
            clock=clock,
            wall_ns=clock.wall_ns,
            sleep=clock.sleep,
        )

    def metrics(self, store: Store, within_s: float = 20.0) -> bool:
        return self.exporter.export_metrics(store, [], self.clock.now + within_s)

    def traces(self, store: Store, within_s: float = 20.0, **options: Any) -> bool:
        return self.exporter.export_traces(store, self.clock.now + within_s, **options)


@pytest.fixture
def exporting(clock: Clock) -> Iterator[Callable[..., Exporting]]:
    made: list[Exporting] = []

    def make(endpoint: str, **conf: str) -> Exporting:
        made.append(Exporting(clock, endpoint, **conf))
        return made[-1]

    yield make
    for one in made:
        one.exporter.close()


Make = Callable[..., Exporting]


def serve(store: Store, routes: int, each: int = 1) -> None:
    delta = Delta()
    for number in range(routes):
        attributes = {"http.request.method": "GET", "http.route": f"/{number}", "http.response.status_code": 200}
        total = delta.at((REQUEST_DURATION, canonical(attributes)), 0)
        for _ in range(each):
            total.observe(1_000_000)
    store.commit_drain(delta, [], {}, 10_000)


def keep(store: Store, count: int, exception: dict[str, str] | None = None, *, bare: bool = False) -> None:
    detail = None if bare else {"exception": exception} if exception else {}
    rows = [
        TraceRow(
            number.to_bytes(16, "big"), number.to_bytes(8, "big"), None, int(WALL * 1e9), 1, bool(exception), 2,
            {"http.request.method": "GET"}, detail,
        )
        for number in range(1, count + 1)
    ]  # fmt: skip
    store.add_traces(rows, WALL)


def failed(store: Store) -> dict[tuple[str, str], int]:
    found = {}
    for (name, attributes), value in store.counters().items():
        assert name == EXPORT_FAILED
        known = json.loads(attributes)
        found[known["signal"], known["reason"]] = value
    return found


def states(store: Store) -> dict[int, int]:
    """Number of traces by what `sent` says."""
    with store.transaction() as db:
        return dict(db.execute("SELECT sent, count(*) FROM traces GROUP BY sent"))


RAISED = {"type": "E", "message": "m", "stacktrace": "s"}


def test_nothing_is_sent_without_an_endpoint(exporting: Make, store: Store) -> None:
    serve(store, 1)
    keep(store, 1)
    one = exporting("")
    assert one.metrics(store)
    assert one.traces(store)
    assert states(store) == {0: 1}


def test_metrics_arrive_whole(receiver: Receiver, exporting: Make, store: Store) -> None:
    serve(store, 450, each=2)
    one = exporting(receiver.endpoint)
    assert one.metrics(store)
    serve(store, 1)
    assert one.metrics(store)
    counts = receiver.request_counts()
    assert len(counts) == 450
    assert counts["GET", "/0", 200] == 3
    assert counts["GET", "/449", 200] == 2
    starts = {point.start_time_unix_nano for _, point in receiver.last_points(REQUEST_DURATION)}
    assert starts == {int(store.meta("started_at_ns") or 0)}
    assert receiver.resources() == [{"service.name": "shop"}]
    assert one.warnings == []


def test_metrics_that_have_to_wait_are_not_counted_as_lost(receiver: Receiver, exporting: Make, store: Store) -> None:
    serve(store, 250)
    receiver.default = Answer(503)
    one = exporting(receiver.endpoint)
    assert not one.metrics(store)
    assert failed(store) == {}
    ((kind, message),) = one.warnings
    assert kind == "export metrics status_503"
    assert message.startswith(f"{receiver.endpoint}/v1/metrics did not take data points: 503 Service Unavailable")
    receiver.default = Answer()
    assert one.metrics(store)
    assert sum(receiver.request_counts().values()) == 250


def test_refused_metrics_are_counted(receiver: Receiver, exporting: Make, store: Store) -> None:
    serve(store, 250)
    receiver.answers.append(Answer(400, b"\x12\x03bad"))
    one = exporting(receiver.endpoint)
    assert one.metrics(store)
    assert failed(store) == {("metrics", "status_400"): 100}
    assert sum(receiver.request_counts().values()) == 150
    ((kind, message),) = one.warnings
    assert kind == "export metrics status_400"
    assert "refused 100 data points for good: 400 Bad Request: bad" in message


@pytest.mark.parametrize(("rejected", "counted"), [(7, 7), (10**15, 53)])
def test_rejected_points_are_counted(
    receiver: Receiver, exporting: Make, store: Store, rejected: int, counted: int
) -> None:
    serve(store, 50)  # and three zones of the Apdex
    partial = ExportMetricsPartialSuccess(rejected_data_points=rejected, error_message="too old")
    receiver.answers.append(Answer(200, ExportMetricsServiceResponse(partial_success=partial).SerializeToString()))
    one = exporting(receiver.endpoint)
    assert one.metrics(store)
    assert failed(store) == {("metrics", "partial_success"): counted}
    assert f"rejected {counted} data points: too old" in one.warnings[0][1]


def test_traces_arrive_once(receiver: Receiver, exporting: Make, store: Store) -> None:
    keep(store, 450, RAISED)
    one = exporting(receiver.endpoint)
    assert one.traces(store)
    assert one.traces(store)
    assert len({span.span_id for span in receiver.spans}) == len(receiver.spans) == 450
    assert len(receiver.logs) == 450
    assert states(store) == {1: 450}
    assert one.warnings == []


def test_a_row_without_detail_waits_for_it(receiver: Receiver, exporting: Make, store: Store) -> None:
    keep(store, 1, bare=True)
    one = exporting(receiver.endpoint)
    assert one.traces(store)
    assert receiver.spans == []
    one.clock.now += 6
    assert one.traces(store)
    assert len(receiver.spans) == 1


def test_a_row_without_detail_can_be_sent_at_once(receiver: Receiver, exporting: Make, store: Store) -> None:
    keep(store, 1, bare=True)
    assert exporting(receiver.endpoint).traces(store, bare_after_s=-1.0)
    assert len(receiver.spans) == 1


def test_big_stacks_are_spread_over_requests(receiver: Receiver, exporting: Make, store: Store) -> None:
    keep(store, 150, {"type": "E", "message": "m", "stacktrace": "s" * 16_384})
    assert exporting(receiver.endpoint).traces(store)
    assert len(receiver.logs) == 150
    assert max(len(request.body) for request in receiver.requests) < 1 << 21


def test_traces_wait_while_the_collector_is_away(receiver: Receiver, exporting: Make, store: Store) -> None:
    keep(store, 3)
    receiver.answers.append(Answer(503, headers={"Retry-After": "60"}))
    one = exporting(receiver.endpoint)
    assert not one.traces(store)
    assert (states(store), failed(store)) == ({0: 3}, {})
    one.clock.now += 61
    assert one.traces(store)
    assert states(store) == {1: 3}


def test_refused_traces_are_settled_and_counted(receiver: Receiver, exporting: Make, store: Store) -> None:
    keep(store, 3)
    receiver.answers.append(Answer(404))
    one = exporting(receiver.endpoint)
    assert one.traces(store)
    assert (states(store), failed(store)) == ({2: 3}, {("traces", "status_404"): 3})
    assert "check `endpoint`" in one.warnings[0][1]


def test_spans_are_not_sent_again_when_only_logs_have_to_wait(
    receiver: Receiver, exporting: Make, store: Store
) -> None:
    keep(store, 3, RAISED)
    receiver.answers.extend([Answer(), Answer(503, headers={"Retry-After": "60"})])
    one = exporting(receiver.endpoint)
    assert not one.traces(store)
    assert (len(receiver.spans), len(receiver.logs), states(store)) == (3, 0, {0: 3})
    one.clock.now += 61
    assert one.traces(store)
    assert (len(receiver.spans), len(receiver.logs), states(store)) == (3, 3, {1: 3})


def test_refused_spans_stay_refused_when_logs_have_to_wait(receiver: Receiver, exporting: Make, store: Store) -> None:
    keep(store, 2, RAISED)
    receiver.answers.extend([Answer(400), Answer(503, headers={"Retry-After": "60"})])
    one = exporting(receiver.endpoint)
    assert not one.traces(store)
    one.clock.now += 61
    assert one.traces(store)
    assert (len(receiver.spans), len(receiver.logs), states(store)) == (0, 2, {2: 2})
    assert failed(store) == {("traces", "status_400"): 2}


def test_logs_alone(receiver: Receiver, exporting: Make, store: Store) -> None:
    keep(store, 2, RAISED)
    partial = ExportLogsPartialSuccess(error_message="next time in English")
    receiver.answers.append(Answer(200, ExportLogsServiceResponse(partial_success=partial).SerializeToString()))
    one = exporting("", logs_endpoint=f"{receiver.endpoint}/v1/logs")
    assert one.traces(store)
    assert one.metrics(store)
    assert (len(receiver.spans), len(receiver.logs), states(store), failed(store)) == (0, 2, {1: 2}, {})
    assert "next time in English" in one.warnings[0][1]


def test_a_signal_that_has_no_exporter_stays_in_the_store(receiver: Receiver, exporting: Make, store: Store) -> None:
    serve(store, 1)
    keep(store, 2)
    one = exporting(receiver.endpoint, traces_exporter="none", logs_exporter="none")
    assert one.traces(store)
    assert one.metrics(store)
    assert (len(receiver.spans), states(store), [request.path for request in receiver.requests]) == (
        0, {0: 2}, ["/v1/metrics"],
    )  # fmt: skip


def test_where_nothing_is_taken_at_the_port_for_grpc_the_other_one_is_named(
    receiver: Receiver, exporting: Make, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", receiver.endpoint)  # so that the port need not be free
    serve(store, 1)
    receiver.answers.append(Answer(415))
    one = exporting("http://collector.test:4317")
    assert one.metrics(store)
    ((_, message),) = one.warnings
    assert message.endswith("; 4317 is usually a collector's port for gRPC, its port for HTTP is usually 4318")
    assert one.metrics(store)  # some collector takes HTTP there
    assert len(one.warnings) == 1


def test_refused_logs_do_not_make_sent_spans_refused(receiver: Receiver, exporting: Make, store: Store) -> None:
    keep(store, 2, RAISED)
    receiver.answers.extend([Answer(), Answer(400)])
    assert exporting(receiver.endpoint).traces(store)
    assert (states(store), failed(store)) == ({1: 2}, {("logs", "status_400"): 2})


def test_nothing_begins_after_the_deadline(receiver: Receiver, exporting: Make, store: Store) -> None:
    serve(store, 1)
    keep(store, 1)
    one = exporting(receiver.endpoint)
    assert not one.metrics(store, within_s=0)
    assert not one.traces(store, within_s=0)
    assert receiver.requests == []


def test_warnings_do_not_show_what_is_secret(exporting: Make, store: Store) -> None:
    serve(store, 1)
    port = free_port()
    conf = {"metrics_endpoint": f"http://me:pass@127.0.0.1:{port}/m?key=secret", "headers": "x-key=secret"}
    one = exporting("", **conf)
    assert not one.metrics(store, within_s=0.2)
    ((_, message),) = one.warnings
    assert f"http://127.0.0.1:{port}/m did not take data points: connection refused; they are sent later" in message
    assert "pass" not in message
    assert "secret" not in message


def test_try_collector(receiver: Receiver) -> None:
    receiver.answers.extend([Answer(), Answer(401, b"\x12\x06no key")])
    conf = {"logs_endpoint": f"http://127.0.0.1:{free_port()}/v1/logs"}
    found = list(otlp.try_collector(settings_for(receiver.endpoint, **conf), 10.0))
    assert [one[:4] for one in found] == [
        ("traces", f"{receiver.endpoint}/v1/traces", True, "200"),
        ("metrics", f"{receiver.endpoint}/v1/metrics", False, "401 Unauthorized: no key"),
        ("logs", conf["logs_endpoint"], False, "connection refused"),
    ]
    assert [request.body for request in receiver.requests] == [empty_request("traces"), empty_request("metrics")]


def test_try_collector_without_one() -> None:
    assert list(otlp.try_collector(settings.load({}, {}, {}), 1.0)) == []
