"""Opening a store: private, never over somebody else's data, by many at once; what stands in for a broken one."""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from paste_agent.errors import StoreError
from paste_agent.recorder import lock
from paste_agent.store import schema
from paste_agent.store.opening import name_instance, open_store
from paste_agent.store.store import (
    MEMORY,
    Store,
)
from tests.recorders import Script, count_of, scripts, settings_of, silent
from tests.stores import delta_of, row_of

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


def test_who_looks_while_the_store_is_just_being_made_is_told_so(tmp_path: Path) -> None:
    path = str(tmp_path / "new.sqlite")
    with closing(sqlite3.connect(path)) as made:
        made.execute("PRAGMA journal_mode = WAL")
        with pytest.raises(StoreError, match="just making it"):
            Store(path, read_only=True)
