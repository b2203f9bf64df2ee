"""The lease: one holder at a time, whichever processes want it and however they end."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from paste_agent.lease import Holder, Lease
from tests.recorders import Script, run_script, scripts

TAKES = """
import sys
from paste_agent.lease import Holder, Lease
lease = Lease(sys.argv[1], Holder(f'{sys.argv[2]}-recorder', 100 + int(sys.argv[2])))
for line in sys.stdin:
    if line == 'let go\\n':
        lease.let_go()
        print('gone', flush=True)
    elif line == 'previous\\n':
        print(lease.previous, flush=True)
    else:
        print(lease.try_take(), flush=True)
"""


def ask(process: Script, line: str = "take") -> str:
    process.say(line)
    return process.hear()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "lease")


def test_one_process_holds_it_at_a_time(path: str) -> None:
    with scripts(4, TAKES, path) as processes:
        held = [ask(process) for process in processes]
        assert held == ["True", "False", "False", "False"]
        assert ask(processes[0]) == "True"  # and keeps it
        assert ask(processes[1]) == "False"
        assert ask(processes[0], "let go") == "gone"
        assert [ask(processes[place]) for place in (2, 0, 1)] == ["True", "False", "False"]


def test_the_next_takes_over_when_the_holder_is_killed(path: str) -> None:
    with scripts(4, TAKES, path) as processes:
        for place, process in enumerate(processes):
            assert ask(process) == "True"
            assert [ask(other) for other in processes[place + 1 :]] == ["False"] * (3 - place)
            before = None if place == 0 else Holder(f"{place - 1}-recorder", 99 + place)
            assert ask(process, "previous") == str(before)
            process.kill()


def test_processes_that_want_it_at_once_never_both_get_it(path: str) -> None:
    with scripts(4, TAKES, path) as processes:
        for process in processes:
            assert ask(process, "let go") == "gone"
        for _ in range(40):
            for process in processes:
                process.say("take")
            taken = [place for place, process in enumerate(processes) if process.hear() == "True"]
            assert len(taken) == 1
            assert ask(processes[taken[0]], "let go") == "gone"


def test_the_holder_can_be_told(path: str) -> None:
    lease, other = Lease(path, Holder("1-a", 7)), Lease(path, Holder("", 8))
    assert lease.holder() is None
    assert lease.try_take()
    assert lease.previous is None
    assert other.holder() == Holder("1-a", 7)
    assert not other.try_take()
    lease.let_go()
    lease.let_go()
    assert other.try_take()
    assert other.previous == Holder("1-a", 7)
    assert lease.holder() == Holder("", 8)
    other.let_go()


def test_the_file_is_private_and_a_link_is_not_followed(path: str, tmp_path: Path) -> None:
    lease = Lease(path, Holder("1-a", 7))
    before = os.umask(0)
    try:
        assert lease.try_take()
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    lease.let_go()
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    link = tmp_path / "link"
    link.symlink_to(victim)
    with pytest.raises(OSError, match="symbolic"):
        Lease(str(link), Holder("1-a", 7)).try_take()
    assert victim.read_bytes() == b"precious"


@pytest.mark.parametrize(
    "data",
    [b"", b"\n", b"\xff\xfe\xfd", b"7", b"x y", b"7 ../../etc/passwd", b"-1 a", b" 7 a", b"9" * 300, b"7 a b\n\n"],
)
def test_whatever_the_file_says_the_lock_decides(path: str, data: bytes) -> None:
    Path(path).write_bytes(data)
    lease = Lease(path, Holder("1-a", 7))
    held_by = lease.holder()
    assert held_by is None or "/" not in held_by.recorder
    assert lease.try_take()
    assert Path(path).read_text() == "7 1-a\n"
    lease.let_go()


def test_a_longer_holder_before_leaves_nothing_behind(path: str) -> None:
    long, short = Lease(path, Holder("1-" + "a" * 60, 1_000_000)), Lease(path, Holder("", 1))
    assert long.try_take()
    long.let_go()
    assert short.try_take()
    assert Path(path).read_text() == "1 \n"
    short.let_go()


def test_without_a_path_there_is_nobody_to_share_with() -> None:
    first, second = Lease(None, Holder("1-a", 7)), Lease(None, Holder("2-b", 7))
    assert first.try_take()
    assert second.try_take()
    assert first.holder() is None
    first.let_go()


def test_a_directory_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Lease(str(tmp_path / "gone" / "lease"), Holder("1-a", 7)).try_take()


def test_descriptors_of_those_who_do_not_get_it_are_closed(path: str) -> None:
    holder, other = Lease(path, Holder("1-a", 7)), Lease(path, Holder("2-b", 7))
    assert holder.try_take()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        assert not other.try_take()
    assert len(os.listdir("/proc/self/fd")) == before
    holder.let_go()


FORKS = """
import os, sys
from paste_agent.lease import Holder, Lease
lease = Lease(sys.argv[1], Holder('1-a', 7))
assert lease.try_take()
pid = os.fork()
if pid == 0:
    lease.let_go()
    os._exit(1 if Lease(sys.argv[1], Holder('2-b', 8)).try_take() else 0)
assert os.waitpid(pid, 0)[1] == 0, 'the child could take it'
assert not Lease(sys.argv[1], Holder('3-c', 9)).try_take(), 'the child has unlocked it'
print('held')
"""


def test_a_forked_child_that_lets_go_leaves_it_to_its_parent(path: str) -> None:
    assert run_script(FORKS, path) == "held\n"
