"""Log records in files, in the store, and on the wire."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paste_agent import lead_logs, log_files, log_forwarding
from paste_agent.exporters.otlp import OtlpExporter
from paste_agent.log_files import LogRow
from paste_agent.log_forwarding import ForwardingHandler
from paste_agent.metrics import EXPORT_FAILED
from paste_agent.recorder.writer import Recorder
from paste_agent.store import log_rows, retention, schema
from paste_agent.store.store import REFUSED, SENT, Store
from tests.clock import Clock
from tests.receiver import Answer, Receiver
from tests.recorders import open_recorder, settings_of, silent

shop = logging.getLogger("shop.stock")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as one:
        yield one


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    one = open_recorder(tmp_path)
    yield one
    one.detach()


def handlers() -> list[logging.Handler]:
    return [one for one in logging.getLogger().handlers if isinstance(one, ForwardingHandler)]


# -- files ---------------------------------------------------------------------------------------------------------


def row_of(body: str = "x", at_ns: int = 10**18, **more: Any) -> LogRow:
    fields = {"attributes": {"code.line.number": 7}, "trace_id": bytes(range(16)), "span_id": bytes(range(8)), **more}
    return LogRow(at_ns=at_ns, severity=13, severity_text="WARNING", logger="shop", body=body, **fields)


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = str(tmp_path / "1.logs")
    rows = [row_of("a\nb\u2028c\ud800"), row_of("", trace_id=None, span_id=None, attributes={})]
    log_files.write(path, rows)
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert log_files.read(path) == rows
    assert os.listdir(tmp_path) == ["1.logs"]
    (tmp_path / "2.logs.new").touch()
    with pytest.raises(FileExistsError):  # what somebody else has put there is not written to
        log_files.write(str(tmp_path / "2.logs"), rows)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    log_files.write(str(tmp_path / "1.logs"), [row_of()])
    (tmp_path / "2.logs").symlink_to(tmp_path / "1.logs")
    with pytest.raises(OSError, match="link"):
        log_files.read(str(tmp_path / "2.logs"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.sampled_from(sorted(LogRow._fields))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.dictionaries(FIELDS, JSON, max_size=8), max_size=3), st.binary(max_size=50))
def test_nothing_in_a_file_is_trusted(tmp_path_factory: pytest.TempPathFactory, changes: Any, noise: bytes) -> None:
    path = tmp_path_factory.mktemp("files") / "1.logs"
    whole = json.loads(log_files._line(row_of()))
    path.write_bytes(noise + b"\n" + b"\n".join(json.dumps({**whole, **change}).encode() for change in changes))
    for row in log_files.read(str(path)):
        assert 0 <= row.at_ns < 1 << 63
        assert 0 <= row.severity <= 24
        assert isinstance(row.body, str)
        assert len(row.body) <= log_files.MAX_BODY
        assert row.trace_id is None or len(row.trace_id) == 16
        assert all(isinstance(value, (str, int)) for value in row.attributes.values())


def test_a_process_leaves_so_many_files_and_no_more(tmp_path: Path, recorder: Recorder) -> None:
    said: list[str] = []
    configured = settings_of(tmp_path, endpoint="http://127.0.0.1:9", forward_logs="warning")
    one = log_forwarding.Forwarding(configured, recorder, str(tmp_path), lambda kind, _: said.append(kind))  # type: ignore[arg-type]
    one.listen()
    try:
        for number in range(70):
            shop.warning("%d", number)
            one.tick(1.0)
    finally:
        one.stop()
    files = sorted(tmp_path.glob("*.logs"), key=lambda path: int(path.name.split(".")[-2]))
    assert len(files) == 64
    assert [log_files.read(str(path))[0].body for path in files] == [str(number) for number in range(6, 70)]
    assert set(said) == {"log files"}


def test_without_a_directory_it_is_said_that_nothing_is_forwarded(tmp_path: Path, recorder: Recorder) -> None:
    said: list[str] = []
    configured = settings_of(tmp_path, endpoint="http://127.0.0.1:9", forward_logs="warning")
    one = log_forwarding.Forwarding(configured, recorder, None, lambda kind, _: said.append(kind))  # type: ignore[arg-type]
    one.listen()
    assert handlers() == []
    assert said == ["logs"]


# -- the store -----------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    one = Store(str(tmp_path / "store.sqlite"))
    yield one
    one.close()


def bodies(store: Store) -> list[str]:
    return [one.row.body for one in log_rows.logs_to_send(store, 1_000_000)]


def test_the_lead_takes_what_waits_once(tmp_path: Path, store: Store) -> None:
    configured = settings_of(tmp_path, endpoint="http://127.0.0.1:9")
    log_files.write(str(tmp_path / "a.1.logs"), [row_of("one", 1), row_of("two", 2)])
    data = (tmp_path / "a.1.logs").read_bytes()
    lead_logs.take(str(tmp_path), store, configured, silent)
    assert bodies(store) == ["one", "two"]
    (tmp_path / "a.1.logs").write_bytes(data)  # as if it had been killed before it could remove the file
    (tmp_path / "b.1.logs").mkdir()  # which no agent has made
    Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), b"\xff.logs"))).write_bytes(data)
    lead_logs.take(str(tmp_path), store, configured, silent)
    assert bodies(store) == ["one", "one", "two", "two"]
    assert sorted(path.name for path in tmp_path.glob("*.logs")) == ["b.1.logs"]


def test_without_an_endpoint_nothing_is_stored(tmp_path: Path, store: Store) -> None:
    log_files.write(str(tmp_path / "a.1.logs"), [row_of()])
    lead_logs.take(str(tmp_path), store, settings_of(tmp_path), silent)
    assert bodies(store) == []
    assert list(tmp_path.glob("*.logs")) == []


def test_a_row_comes_back_as_it_was(store: Store) -> None:
    rows = [row_of("a\ud800\n"), row_of("", 10**18 + 1, trace_id=None, span_id=None, attributes={})]
    log_rows.add_logs(store, "a", rows)
    assert [one.row for one in log_rows.logs_to_send(store, 10)] == rows


def test_old_ones_go_and_those_beyond_the_bound(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_rows, "MOST_ROWS", 3)
    now_s = 1_800_000_000
    ages_s = (0, 10, 20, 30, 40, 100 * 86_400)
    log_rows.add_logs(store, "a", [row_of(str(age_s), int((now_s - age_s) * 1e9)) for age_s in ages_s])
    retention.tidy(store, now_s, 30.0, 1 << 30)
    assert bodies(store) == ["20", "10", "0"]


def test_a_store_that_is_too_large_gives_up_logs_first(store: Store) -> None:
    log_rows.add_logs(store, "a", [row_of("x" * 4000, number) for number in range(1000, 3000)])
    retention.tidy(store, 0.000002, 30.0, 4 << 20)
    left = bodies(store)
    assert 0 < len(left) < 2000
    assert log_rows.logs_to_send(store, 1)[0].row.at_ns == 3000 - len(left)


def test_a_store_of_the_version_before_gets_the_table(tmp_path: Path) -> None:
    path = str(tmp_path / "old.sqlite")
    with sqlite3.connect(path) as db:
        for step in (schema._V1, schema._V2):
            db.executescript(step)
        db.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        db.execute("PRAGMA user_version = 2")
    db.close()
    Store(path, read_only=True).close()
    store = Store(path)
    try:
        log_rows.add_logs(store, "a", [row_of("x")])
        assert bodies(store) == ["x"]
    finally:
        store.close()


# -- the exporter --------------------------------------------------------------------------------------------------


def exporting(tmp_path: Path, receiver: Receiver, **conf: str) -> tuple[OtlpExporter, Clock]:
    clock = Clock()
    configured = settings_of(tmp_path, endpoint=receiver.endpoint, **conf)
    return OtlpExporter(configured, {}, silent, clock=clock, wall_ns=clock.wall_ns, sleep=clock.sleep), clock


def test_all_that_waits_is_sent_in_batches(tmp_path: Path, store: Store, receiver: Receiver) -> None:
    log_rows.add_logs(store, "a", [row_of(f"{number:03}" + "x" * 4000, number) for number in range(500)])
    exporter, clock = exporting(tmp_path, receiver)
    try:
        assert exporter.export_logs(store, clock.now + 20)
        assert exporter.export_logs(store, clock.now + 20)
    finally:
        exporter.close()
    assert [int(record.body.string_value[:3]) for record in receiver.logs] == list(range(500))
    assert max(len(request.body) for request in receiver.requests) < 2_000_000
    assert bodies(store) == []
    assert store.query("SELECT sent, count(*) FROM logs GROUP BY sent") == [(SENT, 500)]


def test_what_is_refused_is_settled_and_counted(tmp_path: Path, store: Store, receiver: Receiver) -> None:
    log_rows.add_logs(store, "a", [row_of("a", 1), row_of("b", 2)])
    exporter, clock = exporting(tmp_path, receiver)
    receiver.default = Answer(503)
    try:
        assert not exporter.export_logs(store, clock.now + 5)
        assert bodies(store) == ["a", "b"]
        receiver.default = Answer(400)
        assert exporter.export_logs(store, clock.now + 1000)
    finally:
        exporter.close()
    assert store.query("SELECT DISTINCT sent FROM logs") == [(REFUSED,)]
    assert store.counters() == {(EXPORT_FAILED, '{"reason": "status_400", "signal": "logs"}'): 2}


def test_what_somebody_else_has_written_to_the_store_is_sent_as_far_as_it_can_be(
    tmp_path: Path, store: Store, receiver: Receiver
) -> None:
    noise = ["", "[]", "null", '{"severity": "x", "body": 1, "logger": [], "attributes": [], "severity_text": {}}',
             '{"severity": 1e400, "attributes": {"a": {}, "": 1}}', "[" * 100_000]  # fmt: skip
    with store.transaction() as db:
        for line, record in enumerate(noise):
            db.execute("INSERT INTO logs VALUES ('a', ?, ?, ?, ?, ?, 0)", (line, -line, b"x", "text", record))
    exporter, clock = exporting(tmp_path, receiver)
    try:
        assert exporter.export_logs(store, clock.now + 20)
    finally:
        exporter.close()
    assert len(receiver.logs) == len(noise)
    assert {record.trace_id for record in receiver.logs} == {b""}
