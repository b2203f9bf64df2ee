"""The embedded store: atomic, guarded by positions, private, and never opened over somebody else's data."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from paste_agent.aggregate import OVERFLOW, REQUEST_DURATION, Delta, Total
from paste_agent.errors import StoreError
from paste_agent.kept import TraceRow
from paste_agent.recorder import lock
from paste_agent.store import schema
from paste_agent.store.opening import name_instance, open_store
from paste_agent.store.store import (
    LOST,
    MEMORY,
    REFUSED,
    RUNNING,
    SENT,
    RecorderRow,
    Store,
    pack_buckets,
    unpack_buckets,
)
from tests.recorders import Script, count_of, run_script, scripts, settings_of, silent


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(str(tmp_path / "shop.sqlite"))
    yield opened
    opened.close()


def delta_of(count: int = 1, attributes: str = "{}", slot_s: int = 1000, metric: str = REQUEST_DURATION) -> Delta:
    delta = Delta()
    total = delta.at((metric, attributes), slot_s)
    total.add(Total(count, 5 * count, 5, count, 0, 0, {3: count}))
    return delta


def row_of(name: str = "7-a", position: int = 0) -> RecorderRow:
    return RecorderRow(name, position, 1, 7, True, RUNNING, 1.0, 2.0, position, 0, 0.5, [0, 1, 2])


def trace_of(span: int = 1, detail: dict[str, object] | None = None, started_at_ns: int = 10**18) -> TraceRow:
    return TraceRow(
        trace_id=bytes(15) + b"\x01",
        span_id=span.to_bytes(8, "big"),
        parent_id=None,
        started_at_ns=started_at_ns,
        duration_ns=5,
        failed=False,
        why=1,
        attributes={"http.route": "/"},
        detail=detail,
    )


def contents(path: str) -> list[tuple[object, ...]]:
    """Every row of every table."""
    with closing(sqlite3.connect(path)) as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
        return [(name, *row) for name in tables for row in db.execute(f"SELECT * FROM {name}")]


# -- what a drain brings -------------------------------------------------------------------------------------------


def test_a_drain_adds_totals_rollups_counters_and_positions(store: Store) -> None:
    store.commit_drain(delta_of(3), [(None, row_of(position=3))], {("lost", "{}"): 2}, 100)
    store.commit_drain(delta_of(4, slot_s=1010), [(row_of(position=3), row_of(position=7))], {("lost", "{}"): 5}, 100)
    (found,) = store.totals()
    assert found.total == Total(7, 35, 5, 7, 0, 0, {3: 7})
    assert [found.total.count for found in store.totals_between(1000, 1010)] == [3]
    assert [found.total.count for found in store.totals_between(0, 2000)] == [7]
    assert store.span_of_time() == (1000, 1020)
    assert store.counters() == {("lost", "{}"): 7}
    assert store.recorders() == [row_of(position=7)]


def _second_insert_fails(db: sqlite3.Connection) -> None:
    db.execute("CREATE TRIGGER t BEFORE INSERT ON rollups BEGIN SELECT RAISE(ABORT, 'no'); END")


def _counters_fail(db: sqlite3.Connection) -> None:
    db.execute("CREATE TRIGGER t BEFORE INSERT ON counters BEGIN SELECT RAISE(FAIL, 'no'); END")


def _positions_fail(db: sqlite3.Connection) -> None:
    db.execute("CREATE TRIGGER t BEFORE UPDATE ON recorders BEGIN SELECT RAISE(ABORT, 'no'); END")


@pytest.mark.parametrize("fail", [_second_insert_fails, _counters_fail, _positions_fail])
def test_a_statement_that_fails_leaves_nothing(store: Store, fail: object) -> None:
    store.commit_drain(delta_of(3), [(None, row_of(position=3))], {("lost", "{}"): 2}, 100)
    with store.transaction() as db:
        fail(db)  # type: ignore[operator]
    before = contents(store.path)
    with pytest.raises(sqlite3.Error, match="no"):
        store.commit_drain(
            delta_of(1, '{"new": 1}'),
            [(row_of(position=3), row_of(position=4)), (None, row_of("8-b"))],
            {("lost", "{}"): 2},
            100,
        )
    assert contents(store.path) == before
    with store.transaction() as db:
        db.execute("DROP TRIGGER t")
    store.commit_drain(delta_of(1), [(row_of(position=3), row_of(position=4))], {}, 100)
    assert count_of(store) == 4


def test_an_exception_inside_a_transaction_rolls_it_back(store: Store) -> None:
    def interrupted() -> None:
        with store.transaction() as db:
            db.execute("INSERT INTO meta VALUES ('a', 'b')")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert store.meta("a") is None
    store.set_meta("a", "c")
    assert store.meta("a") == "c"


@pytest.mark.parametrize("began_at", [-1, 0, 2, 4])
def test_a_second_lead_from_the_same_position_is_refused(store: Store, began_at: int) -> None:
    before = None if began_at < 0 else row_of(position=began_at)
    store.commit_drain(delta_of(3), [(None, row_of(position=3))], {}, 100)
    with pytest.raises(sqlite3.IntegrityError):
        store.commit_drain(delta_of(3), [(before, row_of(position=6))], {}, 100)
    assert count_of(store) == 3
    assert store.recorders() == [row_of(position=3)]


def test_one_recorder_that_has_moved_refuses_the_whole_drain(store: Store) -> None:
    store.commit_drain(delta_of(3), [(None, row_of(position=3)), (None, row_of("8-b", 1))], {}, 100)
    with pytest.raises(sqlite3.IntegrityError, match="8-b"):
        store.commit_drain(
            delta_of(9), [(row_of(position=3), row_of(position=9)), (row_of("8-b", 0), row_of("8-b", 4))], {}, 100
        )
    assert count_of(store) == 3
    assert [row.position for row in store.recorders()] == [3, 1]


def test_series_beyond_the_bound_fold_into_one(store: Store) -> None:
    for place in range(40):
        store.commit_drain(delta_of(1, f'{{"http.route": "/{place}"}}', slot_s=1000 + place), [], {}, 10)
    store.commit_drain(delta_of(5, "{}", metric="other"), [], {}, 10)  # a bound of each metric's own
    totals = {str(found.attributes): found.total.count for found in store.totals() if found.metric == REQUEST_DURATION}
    assert len(totals) == 11
    assert totals.pop("{'otel.metric.overflow': True}") == 30
    assert set(totals.values()) == {1}
    assert count_of(store) == 40
    assert sum(found.total.count for found in store.totals_between(0, 2000)) == 45
    store.commit_drain(delta_of(1, '{"http.route": "/3"}'), [], {}, 10)  # a known one keeps its name
    store.commit_drain(delta_of(1, OVERFLOW), [], {}, 10)
    assert count_of(store) == 42


@pytest.mark.parametrize("kind", ["timing:", "count:"])
def test_names_of_an_applications_own_are_bounded_together(store: Store, kind: str) -> None:
    for number in range(5):
        store.commit_drain(delta_of(metric=f"{kind}name{number}"), [], {}, 3)
    counts = {found.metric: found.total.count for found in store.totals()}
    assert counts == {f"{kind}name0": 1, f"{kind}name1": 1, f"{kind}name2": 1, f"{kind}paste_agent.custom.overflow": 2}


@pytest.mark.parametrize("buckets", [{}, {0: 1}, {230: 1, 3: (1 << 64) - 1, 65535: 2}])
def test_buckets_survive_their_packing(buckets: dict[int, int]) -> None:
    assert unpack_buckets(pack_buckets(buckets)) == buckets
    assert len(pack_buckets(buckets)) == 10 * len(buckets)


# -- opening -------------------------------------------------------------------------------------------------------


def test_the_files_are_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with closing(Store(str(tmp_path / "new" / "shop.sqlite"))) as store:
            store.set_meta("a", "b")
            modes = {
                name: stat.S_IMODE(os.stat(tmp_path / "new" / name).st_mode) for name in os.listdir(tmp_path / "new")
            }
    finally:
        os.umask(before)
    assert set(modes) == {"shop.sqlite", "shop.sqlite-wal", "shop.sqlite-shm"}
    assert set(modes.values()) == {0o600}


@pytest.mark.parametrize("name", ["a?b.sqlite", "a#b.sqlite", "a%20b.sqlite", "ä b.sqlite", "mode=memory.sqlite"])
def test_any_name_of_a_file_is_that_file(tmp_path: Path, name: str) -> None:
    with closing(Store(str(tmp_path / name))) as store:
        store.set_meta("a", "b")
    assert os.listdir(tmp_path) == [name]
    with closing(Store(str(tmp_path / name), read_only=True)) as store:
        assert store.meta("a") == "b"


@pytest.mark.parametrize("read_only", [False, True])
def test_a_newer_schema_is_refused_with_one_line(tmp_path: Path, read_only: bool) -> None:
    path = str(tmp_path / "shop.sqlite")
    Store(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    before = Path(path).read_bytes()
    with pytest.raises(StoreError, match="newer paste-agent") as caught:
        Store(path, read_only=read_only)
    assert "\n" not in str(caught.value)
    assert path in str(caught.value)
    assert Path(path).read_bytes() == before


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("user_version", [0, schema.VERSION, schema.VERSION + 5])
def test_somebody_elses_database_is_refused_and_left_as_it_is(
    tmp_path: Path, user_version: int, read_only: bool
) -> None:
    path = str(tmp_path / "theirs.sqlite")
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE customers (name TEXT)")
        db.execute(f"PRAGMA user_version = {user_version}")
        db.commit()
    before = Path(path).read_bytes()
    with pytest.raises(StoreError, match="not a store of paste-agent"):
        Store(path, read_only=read_only)
    assert Path(path).read_bytes() == before
    assert os.listdir(tmp_path) == ["theirs.sqlite"]


def test_an_empty_file_becomes_a_store_unless_it_is_only_read(tmp_path: Path) -> None:
    path = tmp_path / "shop.sqlite"
    path.touch()
    with pytest.raises(StoreError):
        Store(str(path), read_only=True)
    assert path.read_bytes() == b""
    with closing(Store(str(path))) as store:
        assert store.totals() == []


@pytest.mark.parametrize(
    ("make", "read_only"),
    [("missing", True), ("directory", True), ("directory", False), ("in a file", True), ("in a file", False)],
)
def test_what_cannot_be_opened_is_told_in_one_line(tmp_path: Path, make: str, read_only: bool) -> None:
    path = tmp_path / "shop.sqlite"
    if make == "directory":
        path.mkdir()
    elif make == "in a file":
        path.touch()
        path = path / "deeper.sqlite"
    with pytest.raises(StoreError) as caught:
        Store(str(path), read_only=read_only)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_reading_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "shop.sqlite"
    with closing(Store(str(path))) as store:
        store.commit_drain(delta_of(3), [(None, row_of(position=3))], {}, 100)
    before = path.read_bytes(), path.stat().st_mtime_ns
    with closing(Store(str(path), read_only=True)) as store:
        assert count_of(store) == 3
        for change in (lambda: store.set_meta("a", "b"), lambda: store.add_counter("a", "{}", 1)):
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                change()
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            store.commit_drain(delta_of(), [], {}, 100)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_a_reader_sees_what_is_committed_while_another_writes(store: Store) -> None:
    with closing(Store(store.path, read_only=True)) as other:
        with store.transaction() as db:
            db.execute("INSERT INTO meta VALUES ('a', 'b')")
            assert other.meta("a") is None
        assert other.meta("a") == "b"


MAKE = """
import sys
from paste_agent.store.store import Store
print('ready', flush=True)
for line in sys.stdin:
    store = Store(line.strip())
    print(store.instance_id('of ' + sys.argv[1]), flush=True)
    store.close()
"""


def test_processes_that_make_the_store_at_once_share_one(tmp_path: Path) -> None:
    with scripts(4, MAKE) as processes:
        for process in processes:
            assert process.hear() == "ready"
        for attempt in range(15):
            for process in processes:
                process.say(tmp_path / f"{attempt}.sqlite")
            assert len({process.hear() for process in processes}) == 1
        for process in processes:
            assert process.end() == ("", "")


# -- what stands in for a store that cannot be opened --------------------------------------------------------------


def _noise(path: Path) -> None:
    path.write_bytes(b"this is no database at all" * 400)


def _broken_header(path: Path) -> None:
    Store(str(path)).close()
    data = bytearray(path.read_bytes())
    data[:16] = bytes(16)
    path.write_bytes(data)


def _broken_schema(path: Path) -> None:
    Store(str(path)).close()
    data = bytearray(path.read_bytes())
    data[100:4096] = b"\xff" * 3996
    path.write_bytes(data)


@pytest.mark.parametrize("break_it", [_noise, _broken_header, _broken_schema])
def test_a_corrupt_store_is_set_aside_not_deleted(tmp_path: Path, break_it: object) -> None:
    path = tmp_path / "shop.sqlite"
    break_it(path)  # type: ignore[operator]
    before = path.read_bytes()
    said: list[str] = []
    with closing(open_store(settings_of(tmp_path), None, lambda kind, message: said.append(message))) as store:
        assert store.path == str(path)
        store.set_meta("a", "b")
    asides = [name for name in os.listdir(tmp_path) if ".corrupt-" in name and name[-4:] not in ("-wal", "-shm")]
    assert len(asides) == 1
    assert (tmp_path / asides[0]).read_bytes() == before
    assert len(said) == 1
    assert "\n" not in said[0]
    assert asides[0] in said[0]


def test_two_that_are_corrupt_in_the_same_second_are_both_kept(tmp_path: Path) -> None:
    path = tmp_path / "shop.sqlite"
    for content in (b"first" * 1000, b"second" * 1000, b"third" * 1000):
        for name in (path, *(path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))):
            name.unlink(missing_ok=True)
        path.write_bytes(content)
        open_store(settings_of(tmp_path), None, silent).close()
    kept = {(tmp_path / name).read_bytes() for name in os.listdir(tmp_path) if ".corrupt-" in name}
    assert kept == {b"first" * 1000, b"second" * 1000, b"third" * 1000}


#: Tells of its first wait for somebody else.
TELLS = """
from paste_agent import native

def told(seconds, sleep=native.sleep):
    print('waits', flush=True)
    native.sleep = sleep
    sleep(seconds)

native.sleep = told
"""
OPEN = """
import sys
from pathlib import Path
from paste_agent.store.opening import open_store
from tests.recorders import settings_of, silent
settings = settings_of(Path(sys.argv[1]))
print('ready', flush=True)
sys.stdin.readline()
store = open_store(settings, None, lambda kind, message: kind == 'store' and print(message))
store.add_counter('opened', '{}', 1)
print(store.path)
store.close()
"""


def test_processes_that_find_it_corrupt_at_once_share_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "shop.sqlite"
    _noise(path)
    before = path.read_bytes()
    with scripts(5, OPEN, tmp_path) as processes:
        for process in processes:
            assert process.hear() == "ready"
        for process in processes:
            process.say()
        for process in processes:
            assert process.end() == (f"{path}\n", "")
    asides = [name for name in os.listdir(tmp_path) if ".corrupt-" in name]
    assert [(tmp_path / name).read_bytes() for name in asides] == [before]
    with closing(Store(str(path), read_only=True)) as store:
        assert store.counters() == {("opened", "{}"): 5}


def test_a_process_waits_for_another_that_sets_the_store_aside(tmp_path: Path) -> None:
    path = tmp_path / "shop.sqlite"
    _noise(path)
    held = os.open(tmp_path, os.O_RDONLY)
    assert lock.try_lock(held)
    with Script(TELLS + OPEN, tmp_path) as process:
        assert process.hear() == "ready"
        process.say()
        assert process.hear() == "waits"
        path.rename(tmp_path / "aside")
        with closing(Store(str(path))) as store:
            store.add_counter("opened", "{}", 1)
            os.close(held)
            assert process.end() == (f"{path}\n", "")
            assert store.counters() == {("opened", "{}"): 2}
    assert not [name for name in os.listdir(tmp_path) if ".corrupt-" in name]


def test_a_process_waits_for_another_that_makes_the_store(tmp_path: Path) -> None:
    path = tmp_path / "shop.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None)) as other, Script(TELLS + OPEN, tmp_path) as process:
        other.execute("BEGIN IMMEDIATE")
        assert process.hear() == "ready"
        process.say()
        assert process.hear() == "waits"
        other.execute("COMMIT")
        assert process.end() == (f"{path}\n", "")


def _newer(path: Path) -> None:
    Store(str(path)).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {schema.VERSION + 1}")


def _theirs(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE customers (name TEXT)")
        db.commit()


def _not_a_file(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("spoil", [_newer, _theirs, _not_a_file])
@pytest.mark.parametrize("with_directory", [True, False])
def test_a_store_that_cannot_be_used_is_stood_in_for(tmp_path: Path, spoil: object, with_directory: bool) -> None:
    path = tmp_path / "shop.sqlite"
    spoil(path)  # type: ignore[operator]
    runtime = tmp_path / "run"
    runtime.mkdir()
    said: list[str] = []
    directory = str(runtime) if with_directory else None
    with closing(open_store(settings_of(tmp_path), directory, lambda kind, message: said.append(message))) as store:
        assert store.path.startswith(str(runtime) if with_directory else MEMORY)
        store.commit_drain(delta_of(3), [], {}, 100)
        assert count_of(store) == 3
    assert len(said) == 1
    assert str(path) in said[0]
    assert ".corrupt-" not in "".join(os.listdir(tmp_path))


def test_a_store_in_memory_is_shared_by_the_connections_of_the_process(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, store="memory")
    with closing(open_store(settings, None, silent)) as store:
        store.commit_drain(delta_of(3), [], {}, 100)
        with closing(Store(store.path)) as other:
            assert count_of(other) == 3


def test_the_instance_stays_the_same_when_the_store_is_begun_anew(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    told = []
    for _ in range(2):
        with closing(open_store(settings, None, silent)) as store:
            name_instance(settings, store)
            name_instance(settings, store)
            told.append(store.meta("service.instance.id"))
        os.rename(store.path, f"{store.path}.{len(told)}")
    assert told[0] == told[1] is not None


# -- traces --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [("bare", "full"), ("full", "bare"), ("bare", "full", "bare"), ("full", "other")])
def test_a_row_with_detail_wins_whatever_the_order(store: Store, order: tuple[str, ...]) -> None:
    details: dict[str, dict[str, object] | None] = {"bare": None, "full": {"attributes": {"url.path": "/a"}}}
    details["other"] = {"attributes": {"url.path": "/b"}}
    for name in order:
        store.add_traces([trace_of(detail=details[name])], 1.0)
    (found,) = store.traces(0, 1e10, "newest", False, 10)
    assert found == trace_of(detail=details["full"])


def test_both_at_once_leave_the_one_with_detail(store: Store) -> None:
    store.add_traces([trace_of(), trace_of(detail={"a": 1}), trace_of()], 1.0)
    (found,) = store.traces(0, 1e10, "newest", False, 10)
    assert found.detail == {"a": 1}


def test_a_bare_trace_waits_for_its_detail_and_then_goes_without(store: Store) -> None:
    store.add_traces([trace_of(1), trace_of(2, {"a": 1})], 100.0)
    assert [row.span_id[-1] for row in store.traces_to_send(10, bare_before=100.0)] == [2]
    assert {row.span_id[-1] for row in store.traces_to_send(10, bare_before=100.1)} == {1, 2}
    assert len(store.traces_to_send(1, bare_before=200.0)) == 1


@pytest.mark.parametrize("state", [SENT, REFUSED])
def test_a_settled_trace_is_never_sent_again(store: Store, state: int) -> None:
    store.add_traces([trace_of(1), trace_of(2, {"a": 1})], 100.0)
    store.settle_traces([trace_of(1)], state)
    # Its detail comes late, or its lead is killed and the next one reads the same record again.
    store.add_traces([trace_of(1)], 101.0)
    store.add_traces([trace_of(1, {"late": 1})], 102.0)
    assert [row.span_id[-1] for row in store.traces_to_send(10, 1e9)] == [2]
    assert len(store.traces(0, 1e10, "newest", False, 10)) == 2


@pytest.mark.parametrize("order", ["slowest", "newest"])
def test_traces_are_chosen_by_time_order_and_failure(store: Store, order: str) -> None:
    rows = [
        trace_of(place, started_at_ns=(100 - place) * 10**9)._replace(duration_ns=place, failed=place % 2 == 0)
        for place in range(1, 11)
    ]
    store.add_traces(rows, 1.0)
    found = store.traces(91, 99, order, False, 3)
    assert [row.span_id[-1] for row in found] == ([9, 8, 7] if order == "slowest" else [2, 3, 4])
    assert all(row.failed for row in store.traces(0, 1e12, order, True, 100))
    assert len(store.traces(0, float(1 << 62), order, True, 100)) == 5


def test_attributes_and_details_survive(store: Store) -> None:
    row = trace_of(detail={"exception": {"message": "\x00\x1b[31m\ud800 'quotes' \"too\" 語"}})
    row = row._replace(attributes={"http.route": "/\x00", "status": 200}, parent_id=bytes(8))
    store.add_traces([row], 1.0)
    assert store.traces(0, 1e10, "newest", False, 1) == [row]


# -- recorders and meta --------------------------------------------------------------------------------------------


def test_states_are_set_for_those_named(store: Store) -> None:
    store.commit_drain(Delta(), [(None, row_of("a")), (None, row_of("b"))], {}, 100)
    store.set_state(["b", "unknown"], LOST)
    assert {row.id: row.state for row in store.recorders()} == {"a": RUNNING, "b": LOST}
    assert store.recorders()[0] == replace(row_of("a"))


def test_the_first_instance_id_stays(store: Store) -> None:
    assert store.instance_id("one") == "one"
    assert store.instance_id("two") == "one"
    assert int(store.meta("started_at_ns") or 0) > 10**18


# -- a disk that is full -------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_a_clean_state(store: Store) -> None:
    store.commit_drain(delta_of(3), [(None, row_of(position=3))], {}, 100)
    with store.transaction() as db:
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        db.execute(f"PRAGMA max_page_count = {pages}")
    before = contents(store.path)
    for attempt in range(3):
        many = [trace_of(span, {"x": "y" * 4000}) for span in range(50)]
        with pytest.raises(sqlite3.OperationalError, match="full"):
            store.add_traces(many, 1.0)
        delta = Delta()
        for place in range(500):
            delta.at((REQUEST_DURATION, f'{{"http.route": "/{attempt}/{place}"}}'), 1000).add(Total(1))
        with pytest.raises(sqlite3.OperationalError, match="full"):
            store.commit_drain(delta, [(row_of(position=3), row_of(position=503))], {}, 10_000)
        assert contents(store.path) == before
    with store.transaction() as db:
        db.execute("PRAGMA max_page_count = 1000000")
    store.commit_drain(delta_of(4), [(row_of(position=3), row_of(position=7))], {}, 100)
    assert count_of(store) == 7


FULL_DISK = """
import os, sqlite3, subprocess, sys
from paste_agent.aggregate import Delta, Total, REQUEST_DURATION
from paste_agent.kept import TraceRow
from paste_agent.store.store import Store

directory = sys.argv[1]
if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=256k', 'tmpfs', directory], capture_output=True).returncode:
    print('no mount'); sys.exit()
try:
    store = Store(os.path.join(directory, 'shop.sqlite'))
    committed, refused = 0, 0
    for place in range(400):
        delta = Delta()
        delta.at((REQUEST_DURATION, '{"http.route": "/%s"}' % ('x' * 900 + str(place))), place * 10).add(Total(1))
        try:
            store.commit_drain(delta, [], {}, 10_000)
            committed += 1
        except sqlite3.Error:
            refused += 1
    assert refused, 'the disk never filled up'
    assert sum(found.total.count for found in store.totals()) == committed
    store.close()
    store = Store(os.path.join(directory, 'shop.sqlite'), read_only=True)
    assert sum(found.total.count for found in store.totals()) == committed
    store.close()
    print('held')
finally:
    subprocess.run(['umount', directory], check=True)
"""


def test_a_disk_that_fills_up_keeps_what_was_committed(tmp_path: Path) -> None:
    told = run_script(FULL_DISK, tmp_path)
    if told == "no mount\n":
        pytest.skip("mounting a file system takes root")
    assert told == "held\n"


def test_who_looks_while_the_store_is_just_being_made_is_told_so(tmp_path: Path) -> None:
    path = str(tmp_path / "new.sqlite")
    with closing(sqlite3.connect(path)) as made:
        made.execute("PRAGMA journal_mode = WAL")
        with pytest.raises(StoreError, match="just making it"):
            Store(path, read_only=True)
