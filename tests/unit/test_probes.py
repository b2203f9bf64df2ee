"""The state of this process, as /proc, the control groups and gunicorn's worker tell it; 0 where none of them does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from paste_agent import probes
from paste_agent.probes import lives_since, oom_kills, probe
from paste_agent.recorder import layout

V1 = "/sys/fs/cgroup/memory"
V2 = "/sys/fs/cgroup"


def files(contents: Mapping[str, str]) -> Callable[[str], str]:
    """Reads from a table; a file that is not in it is missing."""

    def read(path: str) -> str:
        try:
            return contents[path]
        except KeyError:
            raise FileNotFoundError(2, "No such file or directory", path) from None

    return read


def kills(number: int) -> str:
    return f"low 0\nhigh 7\nmax 8\noom 9\noom_kill {number}\noom_group_kill 11\n"


def control(number: int) -> str:
    return f"oom_kill_disable 0\nunder_oom 1\noom_kill {number}\n"


@pytest.mark.parametrize(
    ("contents", "count"),
    [
        # Version 2, the group's own file; in a container it is the root of what is mounted.
        ({"/proc/self/cgroup": "0::/app.slice/shop\n", f"{V2}/app.slice/shop/memory.events": kills(3)}, 3),
        ({"/proc/self/cgroup": "0::/\n", f"{V2}/memory.events": kills(4)}, 4),
        ({"/proc/self/cgroup": "0::/docker/0a\n", f"{V2}/memory.events": kills(5)}, 5),
        ({"/proc/self/cgroup": "0::/a b/ü\n", f"{V2}/a b/ü/memory.events": kills(0)}, 0),
        # Version 1, alone or together with others.
        ({"/proc/self/cgroup": "7:cpu:/x\n4:memory:/shop\n", f"{V1}/shop/memory.oom_control": control(6)}, 6),
        ({"/proc/self/cgroup": "4:cpu,memory:/shop\n", f"{V1}/shop/memory.oom_control": control(7)}, 7),
        ({"/proc/self/cgroup": "4:memory,cpu:/shop\n", f"{V1}/shop/memory.oom_control": control(7)}, 7),
        ({"/proc/self/cgroup": "4:memory:/docker/0a\n", f"{V1}/memory.oom_control": control(8)}, 8),
        # Both are mounted, and memory is the old one's.
        ({"/proc/self/cgroup": "4:memory:/shop\n0::/shop\n", f"{V1}/shop/memory.oom_control": control(9)}, 9),
        # The group's own word goes before the host's.
        ({"/proc/self/cgroup": "0::/x\n", f"{V2}/x/memory.events": kills(0), "/proc/vmstat": "oom_kill 9\n"}, 0),
        (
            {
                "/proc/self/cgroup": "4:memory:/x\n",
                f"{V1}/x/memory.oom_control": control(1),
                "/proc/vmstat": "oom_kill 9\n",
            },
            1,
        ),
        # A group that does not tell: the whole host.
        ({"/proc/self/cgroup": "0::/shop\n", "/proc/vmstat": "pgfault 1\noom_kill 12\nx 1\n"}, 12),
        ({"/proc/self/cgroup": "4:memoryless:/shop\n", "/proc/vmstat": "oom_kill 12"}, 12),
        ({"/proc/vmstat": "oom_kill 13\n"}, 13),
        ({"/proc/self/cgroup": "0::/x\n", f"{V2}/x/memory.events": "oom 1\n", "/proc/vmstat": "oom_kill 14\n"}, 14),
        # Nobody tells.
        ({}, -1),
        ({"/proc/self/cgroup": "", "/proc/vmstat": "pgfault 1\n"}, -1),
        ({"/proc/self/cgroup": "noise\n", "/proc/vmstat": "oom_kill many\n"}, -1),
    ],
)
def test_kills_for_want_of_memory(contents: dict[str, str], count: int) -> None:
    assert oom_kills(files(contents)) == count + 1


def test_files_that_may_not_be_read_are_missing_ones() -> None:
    def refuse(path: str) -> str:
        raise PermissionError(13, "Permission denied")

    assert oom_kills(refuse) == 0


@pytest.mark.skipif(not os.path.exists("/proc/vmstat"), reason="needs /proc")
def test_this_host_tells() -> None:
    first = oom_kills()
    assert 0 < first <= oom_kills()


# -- one reading ---------------------------------------------------------------------------------------------------

STATUS = "Name:\tgunicorn\nVmSize:\t  200 kB\nVmRSS:\t  100 kB\nThreads:\t3\nodd line\n"


def test_the_words_are_in_the_order_of_the_recorder() -> None:
    contents = {"/proc/self/status": STATUS, "/proc/vmstat": "oom_kill 4\n"}
    found = probe(files(contents), lambda path: ["0", "1", "2", "3"], lambda: 77)
    words = dict(enumerate(found.words(), layout.W_PROBED_AT))
    assert words[layout.W_PROBED_AT] == 77
    assert (words[layout.W_MEMORY_BYTES], words[layout.W_VIRTUAL_BYTES]) == (102_400, 204_800)
    assert (words[layout.W_THREADS], words[layout.W_FILE_DESCRIPTORS]) == (3, 4)
    assert words[layout.W_OOM_KILLS] == 5
    assert max(words) == layout.W_OOM_KILLS
    assert all(isinstance(word, int) and word >= 0 for word in words.values())
    assert words[layout.W_CPU_USER_NS] > 0


def test_without_proc_there_are_zeros() -> None:
    def no_list(path: str) -> list[str]:
        raise FileNotFoundError(2, "No such file or directory")

    found = probe(files({}), no_list, time.perf_counter_ns)
    assert (found.memory_bytes, found.virtual_bytes, found.threads, found.file_descriptors) == (0, 0, 0, 0)
    assert found.oom_kills == 0
    assert found.probed_at_ns > 0


@pytest.mark.parametrize("status", ["", "VmRSS:\n", "VmRSS:\tmany kB\n", "VmRSS:\t-5 kB\n"])
def test_a_line_that_says_nothing_is_zero(status: str) -> None:
    assert probe(files({"/proc/self/status": status}), lambda path: []).memory_bytes == 0


# -- a pid that is used again --------------------------------------------------------------------------------------

BOOTED_S = 1_700_000_000
TICKS = os.sysconf("SC_CLK_TCK")


def started(seconds: float, name: str = "gunicorn") -> dict[str, str]:
    """What /proc says of this process, had it begun so many seconds after the boot."""
    ticks = round(seconds * TICKS)
    return {
        f"/proc/{os.getpid()}/stat": f"{os.getpid()} ({name}) S {' '.join('7' * 18)} {ticks} 7 7 7\n",
        "/proc/stat": f"cpu 1 2 3\nintr 4\nbtime {BOOTED_S}\nprocesses 5\n",
    }


@pytest.mark.parametrize(
    ("contents", "opened_s", "lives"),
    [
        (started(100), 101, True),
        (started(100), 1e6, True),
        (started(100), 100, True),
        (started(100), 41, True),  # the clock may have been set in between
        (started(100), 39, False),
        (started(1e7), 100, False),
        (started(100, "a) S 1 (b"), 101, True),
        (started(100, ") 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0"), 39, False),
        # Nobody tells how old it is: it may be the same.
        ({}, 0, True),
        ({**started(1e7), "/proc/stat": "cpu 1 2 3\n"}, 0, True),
        ({**started(1e7), "/proc/stat": "btime soon\n"}, 0, True),
        ({**started(1e7), f"/proc/{os.getpid()}/stat": ""}, 0, True),
        ({**started(1e7), f"/proc/{os.getpid()}/stat": "7 (x) S 1 2 3\n"}, 0, True),
        ({**started(1e7), f"/proc/{os.getpid()}/stat": f"7 (x) S {'? ' * 40}\n"}, 0, True),
    ],
)
def test_a_process_is_another_one_when_it_is_younger(contents: dict[str, str], opened_s: float, lives: bool) -> None:
    assert lives_since(os.getpid(), BOOTED_S + opened_s, files(contents)) is lives


def test_a_process_that_has_ended_does_not_live() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    assert not lives_since(ended.pid, time.time() + 1e6)
    assert not lives_since(1 << 40, time.time())


@pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="needs /proc")
def test_this_process_lives_since_it_began() -> None:
    assert lives_since(os.getpid(), time.time())
    assert not lives_since(os.getpid(), time.time() - 366 * 86_400)


# -- gunicorn's worker ---------------------------------------------------------------------------------------------


class ThreadWorker(SimpleNamespace):
    """As much of gunicorn's as is looked at."""

    def handle_abort(self, number: int, frame: object) -> None:
        raise AssertionError


class SyncWorker(ThreadWorker):
    pass


@pytest.fixture
def be(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], None]]:
    """Makes this process a worker for the time of a test."""
    before = signal.getsignal(signal.SIGABRT)
    yield lambda worker: signal.signal(signal.SIGABRT, worker.handle_abort) and None
    signal.signal(signal.SIGABRT, before)


def cfg(**values: Any) -> SimpleNamespace:
    return SimpleNamespace(**values)


def test_a_process_that_is_no_worker_has_no_word_from_one() -> None:
    assert probes.gunicorn_worker() is None
    assert (probes.timeout_ms(), probes.concurrency(), probes.has_served_its_time()) == (0, 1, False)
    assert probes.root_pid() == os.getpid()


@pytest.mark.parametrize(
    ("timeout", "milliseconds"),
    [
        (30, 30_000),
        (0, 0),
        (0.5, 500),
        (1e8, 100_000_000_000),
        (-1, 0),
        (1e9, 0),
        ("30", 0),
        (None, 0),
        (float("nan"), 0),
    ],
)
def test_the_timeout_of_the_arbiter(be: Callable[[Any], None], timeout: Any, milliseconds: int) -> None:
    be(SyncWorker(cfg=cfg(timeout=timeout)))
    assert probes.timeout_ms() == milliseconds


@pytest.mark.parametrize(
    ("served", "most", "expected"),
    [(100, 100, True), (101, 100, True), (99, 100, False), (0, sys.maxsize, False), (5, None, False), ("5", 5, False)],
)
def test_a_worker_that_has_served_its_time(be: Callable[[Any], None], served: Any, most: Any, expected: bool) -> None:
    be(SyncWorker(nr=served, max_requests=most))
    assert probes.has_served_its_time() is expected


@pytest.mark.parametrize("worker", [SyncWorker(), SyncWorker(cfg=None), SyncWorker(cfg=cfg(), nr=None)])
def test_a_worker_that_tells_nothing(be: Callable[[Any], None], worker: Any) -> None:
    be(worker)
    assert (probes.timeout_ms(), probes.concurrency(), probes.has_served_its_time()) == (0, 1, False)
    assert probes.root_pid() == os.getpid()


@pytest.mark.parametrize(
    ("worker", "expected"),
    [
        (ThreadWorker(cfg=cfg(threads=8)), 8),
        (ThreadWorker(cfg=cfg(threads=0)), 1),
        (ThreadWorker(cfg=cfg(threads="8")), 1),
        (SyncWorker(cfg=cfg(threads=8)), 1),
    ],
)
def test_requests_at_once(be: Callable[[Any], None], worker: Any, expected: int) -> None:
    be(worker)
    assert probes.concurrency() == expected


def test_the_arbiter_is_the_root_of_its_workers(be: Callable[[Any], None]) -> None:
    be(SyncWorker(ppid=4711))
    assert probes.root_pid() == 4711
