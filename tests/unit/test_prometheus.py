"""What is written for Prometheus, read back by parsers of both formats."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics_parser

from paste_agent import metrics
from paste_agent.aggregate import (
    COUNT,
    DATABASE_DURATION,
    EXPORT_BOUNDS_S,
    OVERFLOW,
    REQUEST_DURATION,
    TASK_DURATION,
    TIMING,
    Delta,
)
from paste_agent.exporters import prometheus
from paste_agent.kept import TraceRow
from paste_agent.recorder import layout
from paste_agent.store import snapshot
from paste_agent.store.store import ENDED, RUNNING, RecorderRow, Store
from tests.commands import count
from tests.recorders import die, in_flight, leading, open_recorder

BOTH = pytest.mark.parametrize("as_openmetrics", [False, True], ids=["text", "openmetrics"])
MS = 1_000_000
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(str(tmp_path / "store.sqlite"))) as opened:
        opened.instance_id("the instance")
        yield opened


def text_of(store: Store, as_openmetrics: bool = False, **resource: object) -> str:
    found = snapshot.read(store, time.time(), examples=as_openmetrics)
    resource = resource or {"service.name": "shop"}
    parts = prometheus.write(found, resource, as_openmetrics=as_openmetrics, breath=prometheus.Breath())
    return b"".join(parts).decode()


def families_of(text: str, as_openmetrics: bool) -> list[Any]:
    parse = (openmetrics_parser if as_openmetrics else parser).text_string_to_metric_families
    return list(parse(text))


def samples_of(store: Store, as_openmetrics: bool = False) -> Samples:
    """Values by name and labels; AssertionError when one is there twice."""
    found: Samples = {}
    for family in families_of(text_of(store, as_openmetrics), as_openmetrics):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found
            found[key] = sample.value
    return found


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, tuple(sorted(labels.items()))]


def recorder(worker: int, seen_at: float, **changed: Any) -> RecorderRow:
    words = [0] * 24
    words[layout.W_PROBED_AT], words[layout.W_MEMORY_BYTES], words[layout.W_THREADS] = 1, 50 << 20, 3
    row = RecorderRow(f"{worker}-a", 0, worker, 4711, True, RUNNING, seen_at, seen_at, 9, 0, 0.25, words)
    for name, what in changed.items():
        setattr(row, name, what)
    return row


# -- names and figures -----------------------------------------------------------------------------------------------


@BOTH
def test_a_histogram_has_the_bounds_of_the_contract(store: Store, as_openmetrics: bool) -> None:
    count(store, REQUEST_DURATION, {"http.route": "/a"}, 5 * MS, 6 * MS, 20_000 * MS, at=0)
    count(store, DATABASE_DURATION, {"db.system.name": "sqlite"}, 1 * MS, 2 * MS, at=0)
    samples = samples_of(store, as_openmetrics)
    name = "http_server_request_duration_seconds"
    bounds = [dict(labels)["le"] for found, labels in samples if found == f"{name}_bucket"]
    assert bounds == [*map(str, EXPORT_BOUNDS_S), "+Inf"]
    assert value(samples, f"{name}_bucket", http_route="/a", le="0.005") == 1
    assert value(samples, f"{name}_bucket", http_route="/a", le="10.0") == 2
    assert value(samples, f"{name}_bucket", http_route="/a", le="+Inf") == 3
    assert value(samples, f"{name}_count", http_route="/a") == 3
    assert value(samples, f"{name}_sum", http_route="/a") == pytest.approx(20.011)
    name = "db_client_operation_duration_seconds"
    assert value(samples, f"{name}_bucket", db_system_name="sqlite", le="0.001") == 1
    assert len([found for found, _ in samples if found == f"{name}_bucket"]) == 10


@BOTH
def test_counters_and_gauges_have_their_units(store: Store, as_openmetrics: bool) -> None:
    counters = {
        (metrics.CPU_TIME, json.dumps({"cpu.mode": "user", metrics.WORKER_NUMBER: 1})): 1_500_000_000,
        (metrics.GC_COLLECTIONS, json.dumps({metrics.GC_GENERATION: 0, metrics.WORKER_NUMBER: 1})): 7,
    }
    rows = [(None, recorder(1, time.time())), (None, recorder(2, time.time(), state=ENDED))]
    active = {snapshot.ACTIVE: snapshot.active_text({("GET", "http"): 2})}
    store.commit_drain(Delta(), rows, counters, 100, (), active)
    samples = samples_of(store, as_openmetrics)
    assert value(samples, "process_cpu_time_seconds_total", cpu_mode="user", paste_agent_worker_number="1") == 1.5
    assert value(samples, "cpython_gc_collections_total", cpython_gc_generation="0", paste_agent_worker_number="1") == 7
    assert value(samples, "process_memory_usage_bytes", paste_agent_worker_number="1") == 50 << 20
    assert value(samples, "paste_agent_worker_busy_ratio", paste_agent_worker_number="1") == 0.25
    assert value(samples, "paste_agent_worker_count") == 1
    assert value(samples, "http_server_active_requests", http_request_method="GET", url_scheme="http") == 2


def test_types_units_and_help_are_told(store: Store) -> None:
    count(store, REQUEST_DURATION, {}, 5 * MS, at=0)
    text = text_of(store, as_openmetrics=True)
    assert text.endswith("# EOF\n")
    assert "# TYPE http_server_request_duration_seconds histogram\n" in text
    assert "# UNIT http_server_request_duration_seconds seconds\n" in text
    assert "# HELP http_server_request_duration_seconds Duration of HTTP server requests.\n" in text
    assert "# TYPE paste_agent_apdex counter\n" in text
    assert "# TYPE paste_agent_apdex_total counter\n" in text_of(store)


@BOTH
def test_the_resource_is_target_info(store: Store, as_openmetrics: bool) -> None:
    text = text_of(store, as_openmetrics, **{"service.name": "shop", "team": 'a "b"\\\n', "flag": True, "no": ""})
    (info,) = [family for family in families_of(text, as_openmetrics) if family.name.startswith("target")]
    assert info.samples[0].labels == {"service_name": "shop", "team": 'a "b"\\\n', "flag": "true"}


@BOTH
def test_what_has_not_happened_yet_is_zero(store: Store, as_openmetrics: bool) -> None:
    samples = samples_of(store, as_openmetrics)
    assert value(samples, "paste_agent_worker_lost_total", reason="timeout") == 0
    assert value(samples, "paste_agent_records_dropped_total", reason="ring_full") == 0
    assert value(samples, "paste_agent_apdex_total", apdex_zone="frustrated") == 0
    assert value(samples, "paste_agent_worker_count") == 0
    assert not [name for name, _ in samples if name.startswith("http_server_request")]


@BOTH
def test_every_metric_of_the_table_can_be_read_back(store: Store, as_openmetrics: bool) -> None:
    """Names that clash with one another, or that a parser takes for something else, would show here."""
    for row in metrics.TABLE.values():
        if row.instrument == "histogram":
            count(store, row.name, {}, MS, at=0)
        elif row.instrument == "counter":
            store.add_counter(row.name, "{}", 1)
    families = families_of(text_of(store, as_openmetrics), as_openmetrics)
    expected = {row.name for row in metrics.TABLE.values() if row.instrument in ("histogram", "counter")}
    assert {row for row in expected if not any(f.name.startswith(row.replace(".", "_")) for f in families)} == set()


# -- hostile ---------------------------------------------------------------------------------------------------------

HOSTILE = ['"', "\\", "\n", 'a"} 1\nforged_total 9', "\ud800", "\0", "é漢\u2028", "# EOF", "x" * 5000, "\r\n\t"]


@BOTH
@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_value_stays_within_its_label(store: Store, as_openmetrics: bool, hostile: str) -> None:
    count(store, REQUEST_DURATION, {"http.route": hostile}, 5 * MS, at=0)
    samples = samples_of(store, as_openmetrics)
    routes = {dict(labels)["http_route"] for name, labels in samples if name.startswith("http_server_request_duration")}
    assert routes == {hostile.encode("utf-8", "replace").decode()}
    assert not [name for name, _ in samples if name.startswith("forged")]


@BOTH
def test_hostile_attributes_of_a_store_that_others_wrote_to(store: Store, as_openmetrics: bool) -> None:
    count(
        store, REQUEST_DURATION, '{"le": "0.5", "__name__": "x", "9lives": [1], "ä ö": {"a": 1}, "": 2}', 5 * MS, at=0
    )
    count(store, REQUEST_DURATION, "no json", 5 * MS, at=0)
    count(store, REQUEST_DURATION, "[1]", 5 * MS, at=0)
    count(store, "nobody.knows.it", {}, 5 * MS, at=0)
    store.add_counter(metrics.WORKER_LOST, '{"reason": "timeout"}', -5)
    samples = samples_of(store, as_openmetrics)
    # Series that came to have the same labels are one.
    assert value(samples, "http_server_request_duration_seconds_count") == 2
    assert value(samples, "paste_agent_worker_lost_total", reason="timeout") == 0
    (odd,) = [dict(labels) for name, labels in samples if name.endswith("request_duration_seconds_count") and labels]
    assert odd["key_le"] == "0.5"
    assert odd["key_9lives"] == "[1]"


@BOTH
def test_the_overflow_is_a_series(store: Store, as_openmetrics: bool) -> None:
    for number in range(5):
        count(store, REQUEST_DURATION, OVERFLOW if number > 2 else {"http.route": f"/{number}"}, 5 * MS, at=0)
    samples = samples_of(store, as_openmetrics)
    assert value(samples, "http_server_request_duration_seconds_count", otel_metric_overflow="true") == 2


@BOTH
def test_names_that_the_application_gives(store: Store, as_openmetrics: bool) -> None:
    for name in (
        "orders.placed",
        "orders placed",
        "größe",
        "9lives",
        "!!!",
        "orders_total",
        "http.server.active_requests",
    ):
        count(store, COUNT + name, {}, 3, at=0)
    count(store, TIMING + "import", {}, 5 * MS, at=0)
    # These would be a metric of the agent's own, or samples of one.
    count(store, TIMING + "http.server.request.duration", {}, 9 * MS, at=0)
    count(store, COUNT + "paste_agent.apdex", {}, 9, at=0)
    count(store, REQUEST_DURATION, {}, 5 * MS, at=0)
    samples = samples_of(store, as_openmetrics)
    assert value(samples, "orders_placed_total") == 6
    assert value(samples, "gr_e_total") == 3
    assert value(samples, "_9lives_total") == 3
    assert value(samples, "orders_total") == 3
    assert value(samples, "import_seconds_count") == 1
    assert value(samples, "http_server_request_duration_seconds_sum") == pytest.approx(0.005)
    assert ("paste_agent_apdex_total", ()) not in samples
    assert ("http_server_active_requests_total", ()) not in samples


def test_a_store_with_noise_in_it_says_something_or_fails_whole(store: Store) -> None:
    count(store, REQUEST_DURATION, {}, 5 * MS, at=0)
    with store.transaction() as db:
        db.execute("UPDATE totals SET buckets = ?, sum_ns = -1", (b"\xff" * 35,))
        db.execute("INSERT OR REPLACE INTO meta VALUES (?, '[[1, 2]')", (snapshot.ACTIVE,))
    assert not [name for name, _ in samples_of(store) if name.startswith("http_server")]


# -- gauges ----------------------------------------------------------------------------------------------------------


def test_what_others_read_is_what_the_lead_sends(tmp_path: Path) -> None:
    serving, other = open_recorder(tmp_path), open_recorder(tmp_path)
    for one in (serving, other):
        one.set_word(layout.W_SERVING, 1)
    at = in_flight(serving, time.perf_counter_ns())
    in_flight(other, time.perf_counter_ns(), method=b"POST")
    try:
        with leading(tmp_path) as lead:
            for requests in (2, 1):
                lead.drain()
                found = snapshot.read(lead.store, time.time()).readings
                assert sorted(map(repr, found)) == sorted(map(repr, lead.readings))
                assert sum(one.value for one in found if one.metric == metrics.ACTIVE_REQUESTS) == requests
                assert [one.value for one in found if one.metric == metrics.WORKER_COUNT] == [2]
                if requests == 2:
                    layout.SLOT.pack_into(serving.buffer, at, 0, 0, 0, 0, b"", b"", b"", 0, 0, 0)
        with leading(tmp_path) as lead:  # another one, which tells of what it has never seen that it is 0
            lead.drain()
            active = {
                one.attributes["http.request.method"]: one.value
                for one in lead.readings
                if one.attributes.keys() & {"url.scheme"}
            }
            assert active == {"GET": 0, "POST": 1}
    finally:
        for one in (serving, other):
            die(one)


# -- gauges of a service that has ended ------------------------------------------------------------------------------


def test_gauges_of_a_service_that_nobody_leads_are_none(store: Store) -> None:
    active = {snapshot.ACTIVE: snapshot.active_text({("GET", "http"): 2})}
    store.commit_drain(Delta(), [(None, recorder(1, time.time() - 3600))], {}, 100, (), active)
    samples = samples_of(store)
    assert value(samples, "paste_agent_worker_count") == 0
    assert value(samples, "http_server_active_requests", http_request_method="GET", url_scheme="http") == 0
    assert not [name for name, _ in samples if name == "process_memory_usage_bytes"]


# -- exemplars -------------------------------------------------------------------------------------------------------


def kept(number: int, attributes: dict[str, str | int], duration_ns: int, at_s: int = 1_700_000_000) -> TraceRow:
    start_ns = (at_s + number) * 10**9
    return TraceRow(number.to_bytes(16, "big"), bytes(7) + b"\1", None, start_ns, duration_ns, False, 8, attributes, {})


def exemplars_of(store: Store) -> dict[tuple[str, str], Any]:
    found = {}
    for family in families_of(text_of(store, as_openmetrics=True), True):
        for sample in family.samples:
            if sample.exemplar is not None:
                found[sample.name, sample.labels["le"]] = sample.exemplar
    return found


def test_a_bucket_has_the_newest_kept_trace(store: Store) -> None:
    a: dict[str, str | int] = {"http.route": "/a", "http.response.status_code": 200}
    count(store, REQUEST_DURATION, a, 5 * MS, 6 * MS, 700 * MS, at=0)
    count(store, TASK_DURATION, {"paste_agent.task.name": "nightly"}, 20_000 * MS, at=0)
    rows = [
        kept(1, a, 6 * MS),
        kept(2, a, 7 * MS),
        kept(3, a, 700 * MS),
        kept(4, {"paste_agent.task.name": "nightly"}, 20_000 * MS),
        kept(5, {"http.route": "/other"}, 6 * MS),  # of a series that is not counted yet
        kept(6, a, 80 * MS),  # of a bucket that is empty yet
        kept(7, a, -5),
    ]
    store.add_traces(rows, 0.0)
    found = exemplars_of(store)
    name = "http_server_request_duration_seconds_bucket"
    assert {key: int(exemplar.labels["trace_id"], 16) for key, exemplar in found.items()} == {
        (name, "0.01"): 2,
        (name, "0.75"): 3,
        ("paste_agent_background_task_duration_seconds_bucket", "+Inf"): 4,
    }
    assert found[name, "0.01"].value == pytest.approx(0.007)
    assert found[name, "0.01"].labels["span_id"] == "0000000000000001"
    assert float(found[name, "0.01"].timestamp) == pytest.approx(1_700_000_002.007)
    assert "trace_id" not in text_of(store)


def test_traces_that_somebody_else_wrote_are_no_exemplars(store: Store) -> None:
    count(store, REQUEST_DURATION, {}, 6 * MS, at=0)
    store.add_traces([kept(1, {}, 6 * MS)], 0.0)
    with store.transaction() as db:
        db.execute("UPDATE traces SET trace_id = 'text'")
    assert exemplars_of(store) == {}


# -- asking ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain", False),
        ("application/openmetrics-text", True),
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", True),
        ("application/openmetrics-text;version=2.0.0", False),
        ("application/openmetrics-text;version=1.0.0;q=0.4, text/plain;q=0.5", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=soon,;;=,text/html", False),
        # Prometheus 2.42 and 3.
        (
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
            "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            True,
        ),
        (
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
            "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
            "text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            True,
        ),
    ],
)
def test_which_format_is_asked_for(accept: str, expected: bool) -> None:
    assert prometheus.is_openmetrics(accept) is expected


def test_others_get_the_interpreter_now_and_then() -> None:
    clock = iter([0.0, 0.0005, 0.002, 0.002, 0.0025, 0.0035, 0.0035])
    slept: list[float] = []
    breath = prometheus.Breath(lambda: next(clock), slept.append)
    for _ in range(4):
        breath()
    assert slept == [prometheus.Breath.PAUSE_S] * 2


def test_pauses_are_taken_while_much_is_written(store: Store) -> None:
    for number in range(50):
        count(store, REQUEST_DURATION, {"http.route": f"/{number}"}, 5 * MS, at=0)
    ticks = iter(range(10_000))
    slept: list[float] = []
    breath = prometheus.Breath(lambda: float(next(ticks)), slept.append)
    found = snapshot.read(store, time.time())
    assert list(prometheus.write(found, {}, as_openmetrics=False, breath=breath))
    assert len(slept) >= 60  # for each series when it is read, and for every few of them when they are written


def test_numbers_beyond_floats(store: Store) -> None:
    store.add_counter(metrics.WORKER_LOST, '{"reason": "exit"}', (1 << 62) + 1)
    assert math.isclose(value(samples_of(store), "paste_agent_worker_lost_total", reason="exit"), 2.0**62)
