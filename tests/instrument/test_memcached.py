"""Commands of pymemcache's clients against a real server: by their names, each counted once."""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pymemcache.client import base, hash, retrying
from pymemcache.exceptions import MemcacheIllegalInputError

from paste_agent import instrument, lifecycle
from paste_agent.inside import CACHE
from paste_agent.instrument import pymemcache as instrumentation
from paste_agent.recorder import layout
from paste_agent.recorder.writer import Recorder
from tests.caches import free_port, memcached_port  # noqa: F401
from tests.instrumented import instrumented
from tests.recorders import spans_within


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def on_fault(where: str, fault: BaseException) -> None:
        raise AssertionError(f"a fault of the agent in {where}: {fault!r}") from fault

    monkeypatch.setattr(lifecycle, "on_fault", on_fault)
    with instrumented(instrumentation, base, base.Client):
        yield


def fields_of(recorder: Recorder) -> list[tuple[str | None, ...]]:
    return [fields for kind, fields in recorder._by_number.values() if kind == layout.KIND_DATABASE]


def clients(port: int) -> list[Any]:
    where = ("127.0.0.1", port)
    return [
        base.Client(where),
        base.PooledClient(where),
        hash.HashClient([where]),
        hash.HashClient([where], use_pooling=True),
        retrying.RetryingClient(base.Client(where)),
    ]


@pytest.mark.parametrize("kind", range(5))
def test_a_command_is_one_span_without_keys_and_values(
    recorder: Recorder,
    memcached_port: int,  # noqa: F811
    kind: int,
) -> None:
    client = clients(memcached_port)[kind]

    def run() -> None:
        assert client.set("s3cret-key", b"s3cret-value", noreply=False)
        assert client.get("s3cret-key") == b"s3cret-value"
        assert client.get("s3cret-nothing", "default") == "default"
        assert client.get_many(["s3cret-key", "s3cret-nothing"]) == {"s3cret-key": b"s3cret-value"}
        assert client.get_multi(["s3cret-key"]) == {"s3cret-key": b"s3cret-value"}
        assert client.set_many({"s3cret-a": b"1"}, noreply=False) == []
        assert client.incr("s3cret-a", 2) == 3
        assert client.delete("s3cret-key", noreply=False)

    found = spans_within(recorder, run)
    names = ["set", "get", "get", "get_many", "get_many", "set_many", "incr", "delete"]
    assert [(span.category, span.name, span.failed, span.parent) for span in found] == [
        (CACHE, name, None, 0) for name in names
    ]
    assert found[1].attributes == {
        "db.system.name": "memcached",
        "db.operation.name": "get",
        "server.address": "127.0.0.1",
        "server.port": memcached_port,
    }
    assert "s3cret" not in str(found)
    assert fields_of(recorder) == [("memcached", None, name, None, None, None) for name in dict.fromkeys(names)]
    client.close()


def test_as_a_mapping(recorder: Recorder, memcached_port: int) -> None:  # noqa: F811
    client = base.Client(("127.0.0.1", memcached_port))

    def run() -> None:
        client["a"] = b"1"
        assert client["a"] == b"1"
        del client["a"]

    assert [span.name for span in spans_within(recorder, run)] == ["set", "get", "delete"]
    client.close()


def test_failures(recorder: Recorder, memcached_port: int) -> None:  # noqa: F811
    client = base.Client(("127.0.0.1", memcached_port))
    nobody = base.Client(("127.0.0.1", free_port()))

    def run() -> None:
        with pytest.raises(MemcacheIllegalInputError):
            client.get("with space")
        with pytest.raises(ConnectionRefusedError):
            nobody.get("a")

    found = spans_within(recorder, run)
    wrong = "pymemcache.exceptions.MemcacheIllegalInputError"
    assert [(span.name, span.failed) for span in found] == [("get", wrong), ("get", "ConnectionRefusedError")]
    assert ("memcached", None, "get", None, None, wrong) in fields_of(recorder)
    client.close()


def test_a_socket_of_this_host_is_named_by_its_path(recorder: Recorder, tmp_path: Path) -> None:
    client = base.Client(f"unix:{tmp_path}/nobody", ignore_exc=True)
    (span,) = spans_within(recorder, lambda: client.get("a"))
    assert span.attributes is not None
    assert span.attributes["server.address"] == f"{tmp_path}/nobody"


def test_without_a_transaction_it_is_what_it_was(recorder: Recorder, memcached_port: int) -> None:  # noqa: F811
    before = recorder.read(recorder.geometry.size, 0)
    for client in clients(memcached_port):
        assert client.set("a", b"1", noreply=False)
        assert client.get("a") == b"1"
        client.close()
    assert recorder.read(recorder.geometry.size, 0) == before


def test_a_library_of_another_shape_is_left_alone_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    faults: list[str] = []
    monkeypatch.setattr(lifecycle, "on_fault", lambda where, fault: faults.append(where))
    other = types.ModuleType("pymemcache.client.base")

    class Client:
        def get(self, key: str) -> str:
            return key

    plain = Client.get
    other.Client = Client  # type: ignore[attr-defined]
    instrument._install("pymemcache", other)
    assert faults == ["instrumentation of pymemcache"]
    assert Client.get is plain


def test_a_client_of_another_shape_is_passed_on(
    recorder: Recorder,
    memcached_port: int,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    faults: list[str] = []
    monkeypatch.setattr(lifecycle, "on_fault", lambda where, fault: faults.append(where))
    client = base.Client(("127.0.0.1", memcached_port))
    client.set("a", b"1", noreply=False)
    client.server = ("127.0.0.1", "none")  # connected before it became nonsense
    (span,) = spans_within(recorder, lambda: client.get("a"))
    assert (span.name, span.failed) == ("get", None)
    assert faults == ["a command of memcached"]
    client.close()
