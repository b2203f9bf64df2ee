"""Reads the state of this process: CPU, memory, threads, garbage collector. For the reporter: all are system calls."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import NamedTuple


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
    )


def _kib(fields: dict[str, str], name: str) -> int:
    """The leading number of a line of /proc/self/status."""
    words = fields.get(name, "0").split()
    return int(words[0]) if words and words[0].isdecimal() else 0


def _gunicorn_worker() -> object:
    """The gunicorn worker that this process is, or None.

    Its handler of SIGABRT is a method of the worker: the way to it that every version and every way to start has.
    """
    return getattr(signal.getsignal(signal.SIGABRT), "__self__", None)


def root_pid() -> int:
    """The process that all processes of this service come from: gunicorn's arbiter, or this one."""
    arbiter = getattr(_gunicorn_worker(), "ppid", None)
    return arbiter if isinstance(arbiter, int) else os.getpid()


def concurrency() -> int:
    """How many requests this process serves at once, as far as its gunicorn worker tells; else 1.

    Workers of greenlets count as one: they share one core.
    """
    worker = _gunicorn_worker()
    if type(worker).__name__ != "ThreadWorker":
        return 1
    threads = getattr(getattr(worker, "cfg", None), "threads", 1)
    return threads if isinstance(threads, int) and threads > 0 else 1


def web_engine() -> tuple[str, str] | None:
    """Name and version of the server around us, where it is gunicorn."""
    gunicorn = sys.modules.get("gunicorn")
    version = getattr(gunicorn, "__version__", None)
    return ("gunicorn", str(version)) if version else None
