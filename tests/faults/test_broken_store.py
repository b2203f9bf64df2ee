"""A store that cannot be written, and a runtime directory that cannot be used: requests go on, and it is said once."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from paste_agent.store.store import Store
from tests.faults.service import PasteAgent, Shape, counters_of, runtime_dir
from tests.faults.trial import Trial
from tests.receiver import Receiver
from tests.recorders import requests_of
from tests.serving import wait_for


def mounted(directory: Path, options: str) -> list[str]:
    """What starts a command in a mount namespace of its own where `directory` is a small file system."""
    directory.mkdir()
    mount = f"mount -t tmpfs -o {options} tmpfs {directory}"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    return ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh"]


class Elsewhere(PasteAgent):
    """The agent with a store that cannot be looked at from outside of its namespace."""

    def stored(self, directory: Path) -> None:  # type: ignore[override]  # see Subject
        return None


def test_the_disk_is_full_for_a_while(tmp_path: Path) -> None:
    """What could not be written waits, and is counted and sent once there is room."""
    prefix = mounted(tmp_path / "disk", "size=6m,mode=0700")
    with Receiver() as receiver:
        subject = Elsewhere({"store": f"{tmp_path}/disk/store.sqlite"})
        trial = Trial("disk full", tmp_path, 0, subject=subject, collector=receiver)
        with trial.serving(prefix=prefix) as server:
            with trial.load(100):
                pass
            receiver.wait_for(lambda it: sum(it.request_counts().values()) == 100)
            # Its view of the file system, through any of its processes.
            other = Path(f"/proc/{server.pid}/root{tmp_path}/disk/other")
            fill(other)
            with trial.load(400):
                pass
            server.wait_for_output("measurements wait in")
            with trial.load(100):
                pass
            assert sum(receiver.request_counts().values()) < 600
            other.unlink()
            receiver.wait_for(lambda it: sum(it.request_counts().values()) == 600)
            assert server.stop() == 0
            assert server.output().count("database or disk is full") == 1
        trial.verdict().check()


def fill(path: Path) -> None:
    """Leave nothing of a file system."""
    with open(path, "wb", buffering=0) as file:
        for size in (65536, 512, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass


def test_the_store_is_read_only(tmp_path: Path) -> None:
    """Another one is kept in the runtime directory, and exported from."""
    prefix = mounted(tmp_path / "disk", "ro,mode=0700")
    with Receiver() as receiver:
        subject = Elsewhere({"store": f"{tmp_path}/disk/store.sqlite"})
        trial = Trial("disk read-only", tmp_path, 0, subject=subject, collector=receiver)
        with trial.serving(prefix=prefix) as server:
            with trial.load(300):
                pass
            assert server.stop() == 0
            assert server.output().count("are kept in") <= trial.shape.workers + 1  # once a process
            assert "are kept in" in server.output()
        trial.verdict().check()
        store = Store(str(runtime_dir(tmp_path) / "store.sqlite"), read_only=True)
        try:
            assert requests_of(store) == dict(trial.seen.served)
        finally:
            store.close()


def test_a_corrupt_store_is_set_aside(tmp_path: Path) -> None:
    noise = os.urandom(50_000)
    (tmp_path / "store.sqlite").write_bytes(noise)
    (tmp_path / "store.sqlite").chmod(0o600)
    with Receiver() as receiver:
        trial = Trial("store corrupt", tmp_path, 0, collector=receiver)
        with trial.serving() as server:
            with trial.load(300):
                pass
            assert server.stop() == 0
            assert server.output().count("set aside as") == 1
        trial.verdict().check()
    (aside,) = tmp_path.glob("store.sqlite.corrupt-*")
    assert aside.read_bytes() == noise


def test_a_store_that_becomes_corrupt(tmp_path: Path) -> None:
    """Requests go on; what the next lead finds is set aside, and counting begins anew with what has waited."""
    store = tmp_path / "store.sqlite"
    trial = Trial("store becomes corrupt", tmp_path, 0)
    with trial.serving() as server:
        with trial.load(200):
            pass
        wait_for(lambda: sum((trial.subject.stored(tmp_path) or {}).values()) == 200, "the first requests")
        for path in (store, tmp_path / "store.sqlite-wal"):
            size = path.stat().st_size
            path.write_bytes(os.urandom(size))
        with trial.load(200):
            pass
        assert server.stop() == 0
    assert trial.seen.cut_off.total() == 0
    second = Trial("store is corrupt", tmp_path, 1)
    second.service.output = ""
    with second.serving() as server:
        with second.load(200):
            pass
        assert server.stop() == 0
    assert list(tmp_path.glob("store.sqlite.corrupt-*"))
    assert "fault of the agent" not in trial.service.output + second.service.output
    second.seen.cut_off.update({key[:2]: count for key, count in trial.seen.served.items()})
    second.verdict().check()


@pytest.mark.parametrize("whose", ["open to all", "somebody else's", "a file"])
def test_a_runtime_directory_that_is_not_ours(tmp_path: Path, whose: str) -> None:
    """Recorded in memory, each worker for itself, and counted all the same."""
    run = tmp_path / "run"
    if whose == "a file":
        run.write_text("")
    else:
        run.mkdir()
        run.chmod(0o777 if whose == "open to all" else 0o700)
    if whose == "somebody else's":
        if os.geteuid() != 0:
            pytest.skip("needs the right to give a directory away")
        os.chown(run, 65534, 65534)
    with Receiver() as receiver:
        trial = Trial(f"runtime directory {whose}", tmp_path, 0, Shape("gthread"), collector=receiver)
        with trial.serving() as server:
            with trial.load(400):
                pass
            assert server.stop() == 0
            assert 1 <= server.output().count("recording in memory") <= trial.shape.workers + 1  # once a process
        trial.verdict(in_order=False).check()
        assert not any(name == "paste_agent.internal.errors" for name, _ in counters_of(tmp_path))
