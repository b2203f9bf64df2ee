"""Commands of redis-py against a real server: by their names alone, each counted once."""

from __future__ import annotations

import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
import redis.client
import redis.cluster
from redis.backoff import NoBackoff
from redis.retry import Retry

from paste_agent import instrument, lifecycle
from paste_agent.inside import CACHE, FinishedSpan
from paste_agent.instrument import redis as instrumentation
from paste_agent.recorder import layout
from paste_agent.recorder.writer import Recorder
from paste_agent.transaction import current
from tests.caches import free_port, redis_cluster_port, redis_port  # noqa: F401
from tests.instrumented import instrumented
from tests.recorders import leading, reader_of, serve, spans_within
from tests.serving import wait_for


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def on_fault(where: str, fault: BaseException) -> None:
        raise AssertionError(f"a fault of the agent in {where}: {fault!r}") from fault

    monkeypatch.setattr(lifecycle, "on_fault", on_fault)
    plain = redis.client.Redis, redis.client.Pipeline, redis.client.PubSub
    many = redis.cluster.RedisCluster, redis.cluster.ClusterPipeline
    with instrumented(instrumentation, redis.client, *plain), instrumented(instrumentation, redis.cluster, *many):
        yield


@pytest.fixture
def client(redis_port: int) -> Iterator[redis.Redis]:  # noqa: F811
    with redis.Redis("127.0.0.1", redis_port, db=3) as client:
        client.flushdb()
        yield client


def fields_of(recorder: Recorder) -> list[tuple[str | None, ...]]:
    return [fields for kind, fields in recorder._by_number.values() if kind == layout.KIND_DATABASE]


def queries(spans: list[FinishedSpan]) -> list[object]:
    return [(span.attributes or {}).get("db.query.text") for span in spans]


def test_a_command_is_one_span_without_keys_and_values(
    recorder: Recorder,
    client: redis.Redis,
    redis_port: int,  # noqa: F811
) -> None:
    def run() -> None:
        assert client.set("s3cret-key", "s3cret-value") is True
        assert client.get("s3cret-key") == b"s3cret-value"

    stored, read = spans_within(recorder, run)
    assert (stored.category, stored.name, stored.failed, stored.parent) == (CACHE, "SET", None, 0)
    assert read.attributes == {
        "db.system.name": "redis",
        "db.namespace": "3",
        "db.operation.name": "GET",
        "db.query.text": "GET ?",
        "server.address": "127.0.0.1",
        "server.port": redis_port,
    }
    assert "s3cret" not in str((stored, read))
    assert fields_of(recorder) == [("redis", "3", name, None, None, None) for name in ("SET", "GET")]


def test_it_is_counted_exactly(recorder: Recorder, client: redis.Redis, tmp_path: Path) -> None:
    for _ in range(3):
        serve(recorder, meanwhile=lambda: [client.incr("a") for _ in range(4)])
    with leading(tmp_path) as lead:
        time.sleep(0.2)  # what is younger than that is left to the next drain
        lead.drain()
        counts = {
            total.attributes["db.operation.name"]: total.total.count
            for total in lead.store.totals()
            if total.metric == "db.client.operation.duration"
        }
    assert counts == {"INCRBY": 12}


@pytest.mark.parametrize(
    ("command", "query"),
    [
        (("get", "s3cret"), "GET ?"),
        ((b"GET", b"s3cret"), "GET ?"),
        (("GET s3cret",), "GET ?"),
        (("CONFIG GET", "maxmemory"), "CONFIG GET ?"),
        (("CLIENT", "ID"), "CLIENT ?"),
        (("PING",), "PING"),
        (("COMMAND COUNT",), "COMMAND COUNT"),
        (("s3cret-\xe9",), "_OTHER ?"),
    ],
)
def test_a_command_is_known_by_its_name(
    recorder: Recorder, client: redis.Redis, command: tuple[str, ...], query: str
) -> None:
    def run() -> None:
        try:
            client.execute_command(*command)
        except redis.ResponseError:
            assert query == "_OTHER ?"

    found = spans_within(recorder, run)
    assert queries(found) == [query]
    assert found[0].name == query.removesuffix(" ?")


def test_a_pipeline_is_one_span(recorder: Recorder, client: redis.Redis) -> None:
    def run() -> None:
        for transaction in (True, False):
            with client.pipeline(transaction=transaction) as pipeline:
                pipeline.set("s3cret", 1).incr("s3cret").get("s3cret")
                assert pipeline.execute() == [True, 2, b"2"]
                assert pipeline.execute() == []

    found = spans_within(recorder, run)
    assert [(span.category, span.name) for span in found] == [(CACHE, "PIPELINE")] * 2
    for span in found:
        assert span.attributes is not None
        assert span.attributes["db.operation.batch.size"] == 3
        assert span.attributes["db.query.text"] == "SET ?\nINCRBY ?\nGET ?"
        assert "s3cret" not in str(span)
    assert fields_of(recorder) == [("redis", "3", "PIPELINE", None, None, None)]


def test_a_pipeline_that_watches(recorder: Recorder, client: redis.Redis) -> None:
    def run() -> None:
        client.transaction(lambda pipeline: pipeline.multi() or pipeline.incr("a"), "a")  # type: ignore[func-returns-value]

    assert [span.name for span in spans_within(recorder, run)] == ["WATCH", "PIPELINE"]


def test_a_long_pipeline_names_some(recorder: Recorder, client: redis.Redis) -> None:
    def run() -> None:
        with client.pipeline() as pipeline:
            for number in range(1000):
                pipeline.set(f"k{number}", number)
            assert pipeline.execute() == [True] * 1000

    (span,) = spans_within(recorder, run)
    assert span.attributes is not None
    assert span.attributes["db.operation.batch.size"] == 1000
    assert span.attributes["db.query.text"] == "\n".join(["SET ?"] * 20)


def test_a_script_and_a_lock(recorder: Recorder, client: redis.Redis) -> None:
    def run() -> None:
        assert client.eval("return ARGV[1]", 0, "s3cret") == b"s3cret"
        with client.lock("s3cret-lock"):
            pass

    found = spans_within(recorder, run)
    assert "EVAL" in [span.name for span in found]
    assert "SET" in [span.name for span in found]
    assert "s3cret" not in str(found)


def test_failures(recorder: Recorder, client: redis.Redis) -> None:
    port = free_port()

    def run() -> None:
        client.set("a", "x")
        with pytest.raises(redis.ResponseError):
            client.lpush("a", 1)
        with client.pipeline() as pipeline, pytest.raises(redis.ResponseError):
            pipeline.set("a", "x").lpush("a", 1).execute()
        with (
            redis.Redis("127.0.0.1", port, retry=Retry(NoBackoff(), 0)) as nobody,
            pytest.raises(redis.ConnectionError),
        ):
            nobody.get("a")

    found = spans_within(recorder, run)
    assert [(span.name, span.failed) for span in found] == [
        ("SET", None),
        ("LPUSH", "redis.exceptions.ResponseError"),
        ("PIPELINE", "redis.exceptions.ResponseError"),
        ("GET", "redis.exceptions.ConnectionError"),
    ]
    assert ("redis", "0", "GET", None, None, "redis.exceptions.ConnectionError") in fields_of(recorder)


def shown_while(recorder: Recorder, run: Callable[[], object], then: Callable[[], object]) -> str:
    """What the black box says of `run` while it waits; `then` lets it go on."""
    shown: list[str] = []

    def look() -> None:
        reader = reader_of(recorder)
        try:
            wait_for(lambda: [one for one in reader.in_flight() if one.span], "a span")
            shown.append(reader.in_flight()[0].span)
        finally:
            reader.close()
            then()

    thread = threading.Thread(target=look)
    thread.start()
    try:
        serve(recorder, meanwhile=run)
    finally:
        thread.join()
    return shown[0]


def test_what_blocks_is_seen_while_it_does(recorder: Recorder, client: redis.Redis, redis_port: int) -> None:  # noqa: F811
    with redis.Redis("127.0.0.1", redis_port, db=3) as other:
        assert shown_while(recorder, lambda: client.blpop(["s3cret"], 60), lambda: other.lpush("s3cret", 1)) == (
            "redis BLPOP ?"
        )


def test_a_subscriber_that_waits_is_seen_and_not_counted(recorder: Recorder, client: redis.Redis) -> None:
    with client.pubsub() as pubsub:

        def run() -> None:
            pubsub.subscribe("s3cret")
            assert pubsub.get_message(timeout=60) is not None
            assert pubsub.get_message() is None
            assert client.publish("s3cret", "x") == 1
            assert next(pubsub.listen())["data"] == b"x"

        found = spans_within(recorder, run)
    assert [span.name for span in found] == ["SUBSCRIBE", "redis pubsub wait", "PUBLISH", "redis pubsub wait"]
    assert [fields[2] for fields in fields_of(recorder)] == ["SUBSCRIBE", "PUBLISH"]
    assert current.get() is None


def test_one_connection_for_all(recorder: Recorder, redis_port: int) -> None:  # noqa: F811
    with redis.Redis("127.0.0.1", redis_port, single_connection_client=True) as client:
        found = spans_within(recorder, lambda: (client.ping(), client.ping()))
    assert [span.name for span in found] == ["PING", "PING"]


class Own(redis.Redis):
    """As applications make them."""

    def execute_command(self, *args: object, **options: object) -> object:
        return super().execute_command(*args, **options)


def test_a_client_of_ones_own_is_counted_once(recorder: Recorder, redis_port: int) -> None:  # noqa: F811
    with Own.from_url(f"redis://127.0.0.1:{redis_port}/5") as client:
        (span,) = spans_within(recorder, lambda: client.get("a"))
    assert span.attributes is not None
    assert span.attributes["db.namespace"] == "5"


def test_a_cluster_is_seen(recorder: Recorder, redis_cluster_port: int) -> None:  # noqa: F811
    with redis.cluster.RedisCluster("127.0.0.1", redis_cluster_port) as client:

        def run() -> None:
            client.set("s3cret", 1)
            with client.pipeline() as pipeline:
                pipeline.incr("s3cret").get("s3cret")
                assert pipeline.execute() == [2, b"2"]

        found = spans_within(recorder, run)
    assert [span.name for span in found] == ["SET", "PIPELINE"]
    assert queries(found) == ["SET ?", "INCRBY ?\nGET ?"]
    assert (found[1].attributes or {})["db.operation.batch.size"] == 2
    assert "s3cret" not in str(found)


def test_without_a_transaction_it_is_what_it_was(recorder: Recorder, client: redis.Redis) -> None:
    before = recorder.read(recorder.geometry.size, 0)
    client.set("a", 1)
    with client.pipeline() as pipeline:
        assert pipeline.get("a").execute() == [b"1"]
    assert recorder.read(recorder.geometry.size, 0) == before


def test_commands_without_end_do_not_fill_anything(recorder: Recorder, client: redis.Redis) -> None:
    def run() -> None:
        for number in range(600):
            with pytest.raises(redis.ResponseError):
                client.execute_command(f"NOTHING{number}")

    serve(recorder, meanwhile=run)
    assert len(client.connection_pool.__dict__[instrumentation._KNOWN]) <= 512


@pytest.mark.parametrize("missing", ["Redis", "Pipeline", "PubSub"])
def test_a_library_of_another_shape_is_left_alone_and_counted(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    faults: list[str] = []
    monkeypatch.setattr(lifecycle, "on_fault", lambda where, fault: faults.append(where))
    other = types.ModuleType("redis.client")
    made: list[type] = []
    for name in {"Redis", "Pipeline", "PubSub"} - {missing}:
        methods = ("execute_command", "immediate_execute_command", "execute", "parse_response")
        made.append(type(name, (), {method: lambda self: None for method in methods}))
        setattr(other, name, made[-1])
    before = [dict(vars(one)) for one in made]
    instrument._install("redis", other)
    assert faults == ["instrumentation of redis"]
    assert [dict(vars(one)) for one in made] == before


def test_a_pool_of_another_shape_is_passed_on(
    recorder: Recorder, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults: list[str] = []
    monkeypatch.setattr(lifecycle, "on_fault", lambda where, fault: faults.append(where))
    monkeypatch.setitem(client.connection_pool.connection_kwargs, "port", "none")

    def run() -> None:
        client.ping()

    client.ping()  # connected before its port became nonsense
    (span,) = spans_within(recorder, run)
    assert span.name == "_OTHER"
    assert faults == ["a command of redis"]


def test_whole_commands_are_not_remembered(recorder: Recorder, client: redis.Redis) -> None:
    def run() -> None:
        for number in range(20):
            client.execute_command(f"SET k{number} s3cret")
        client.get("k1")

    assert len(spans_within(recorder, run)) == 21
    assert "s3cret" not in str(client.connection_pool.__dict__)
