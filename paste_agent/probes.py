"""Reads the state of this process: CPU, memory, threads, garbage collector. For the reporter: all are system calls."""

from __future__ import annotations

import gc
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple


def _read_file(path: str) -> str:
    with open(path, encoding="ascii", errors="replace") as file:
        return file.read()


class Probe(NamedTuple):
    """One reading, in the order of the recorder's words from W_PROBED_AT on; 0 where the platform does not tell."""

    probed_at_ns: int
    cpu_user_ns: int
    cpu_system_ns: int
    memory_bytes: int
    virtual_bytes: int
    threads: int
    file_descriptors: int
    collections: tuple[int, int, int]
    oom_kills: int  #: + 1; 0: the platform does not tell

    def words(self) -> list[int]:
        return [
            self.probed_at_ns,
            self.cpu_user_ns,
            self.cpu_system_ns,
            self.memory_bytes,
            self.virtual_bytes,
            self.threads,
            self.file_descriptors,
            *self.collections,
            self.oom_kills,
        ]


def probe(
    read_file: Callable[[str], str] = _read_file,
    list_dir: Callable[[str], list[str]] = os.listdir,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
) -> Probe:
    """Read this process."""
    times = os.times()
    try:
        fields = dict(line.split(":", 1) for line in read_file("/proc/self/status").splitlines() if ":" in line)
    except OSError:
        fields = {}
    try:
        descriptors = len(list_dir("/proc/self/fd"))
    except OSError:
        descriptors = 0
    first, second, third = (generation["collections"] for generation in gc.get_stats()[:3])
    return Probe(
        probed_at_ns=clock_ns(),
        cpu_user_ns=round(times.user * 1e9),
        cpu_system_ns=round(times.system * 1e9),
        memory_bytes=_kib(fields, "VmRSS") * 1024,
        virtual_bytes=_kib(fields, "VmSize") * 1024,
        threads=_kib(fields, "Threads"),
        file_descriptors=descriptors,
        collections=(first, second, third),
        oom_kills=oom_kills(read_file),
    )


#: Of each version of control groups: the line of /proc/self/cgroup that names the group, and the file that counts.
_COUNTS_OF_KILLS = (
    (re.compile(r"^0::(/.*)$", re.M), "/sys/fs/cgroup{}/memory.events"),
    (
        re.compile(r"^[0-9]+:(?:.*,)?memory(?:,.*)?:(/.*)$", re.M),
        "/sys/fs/cgroup/memory{}/memory.oom_control",
    ),
)


def oom_kills(read_file: Callable[[str], str] = _read_file) -> int:
    """How many processes of this one's control group the kernel has killed for want of memory, + 1; 0: unknown.

    Where no group tells, of the whole host. In a container the group is often mounted as the root of the tree.
    """
    try:
        groups = read_file("/proc/self/cgroup")
    except OSError:
        groups = ""
    paths: list[str] = []
    for line, file in _COUNTS_OF_KILLS:
        found = line.search(groups)
        if found is not None:
            paths += [file.format(found[1].rstrip("/")), file.format("")]
    for path in (*paths, "/proc/vmstat"):
        try:
            count = re.search(r"^oom_kill ([0-9]+)$", read_file(path), re.M)
        except OSError:
            continue
        if count is not None:
            return int(count[1]) + 1
    return 0


def _kib(fields: dict[str, str], name: str) -> int:
    """The leading number of a line of /proc/self/status."""
    words = fields.get(name, "0").split()
    return int(words[0]) if words and words[0].isdecimal() else 0


#: The clock may have been set in between.
_CLOCK_S = 60.0


def lives_since(pid: int, time_s: float, read_file: Callable[[str], str] = _read_file) -> bool:
    """Whether there is a process with this pid that is as old as that, s since the epoch.

    A pid is used again: in a container by the same worker's successor, at every start.
    """
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass
    try:
        ticks = int(read_file(f"/proc/{pid}/stat").rpartition(")")[2].split()[19])
        booted_s = int(re.findall(r"^btime ([0-9]+)$", read_file("/proc/stat"), re.M)[0])
        return booted_s + ticks / os.sysconf("SC_CLK_TCK") <= time_s + _CLOCK_S
    except (OSError, ValueError, IndexError):
        return True


def gunicorn_worker() -> Any:
    """The gunicorn worker that this process is, or None.

    Its handler of SIGABRT is a method of the worker: the way to it that every version and every way to start has.
    """
    return getattr(signal.getsignal(signal.SIGABRT), "__self__", None)


def root_pid() -> int:
    """The process that all processes of this service come from: gunicorn's arbiter, or this one."""
    arbiter = getattr(gunicorn_worker(), "ppid", None)
    return arbiter if isinstance(arbiter, int) else os.getpid()


def concurrency() -> int:
    """How many requests this process serves at once, as far as its gunicorn worker tells; else 1.

    Workers of greenlets count as one: they share one core.
    """
    worker = gunicorn_worker()
    if type(worker).__name__ != "ThreadWorker":
        return 1
    threads = getattr(getattr(worker, "cfg", None), "threads", 1)
    return threads if isinstance(threads, int) and threads > 0 else 1


def timeout_ms() -> int:
    """gunicorn's `timeout`: how long the arbiter lets a worker be silent; 0: for ever, or there is no arbiter."""
    timeout = getattr(getattr(gunicorn_worker(), "cfg", None), "timeout", 0)
    return round(timeout * 1000) if isinstance(timeout, (int, float)) and 0 <= timeout < 1e9 else 0


def has_served_its_time() -> bool:
    """Whether this process is a gunicorn worker that ends because it has served `max_requests`."""
    worker = gunicorn_worker()
    served, most = getattr(worker, "nr", 0), getattr(worker, "max_requests", None)
    return isinstance(served, int) and isinstance(most, int) and served >= most


def web_engine() -> tuple[str, str] | None:
    """Name and version of the server around us, where it is gunicorn."""
    gunicorn = sys.modules.get("gunicorn")
    version = getattr(gunicorn, "__version__", None)
    return ("gunicorn", str(version)) if version else None
