"""A memory cgroup with a limit of its own, for a kill by the kernel's out-of-memory killer that hits nobody else.

    with memory_group(64 * MIB) as group:
        group.procs.write_text(str(pid))  # or a process writes its own, first thing it does

Needs root and a cgroup file system that can be written to; skips with the reason where there is none. Put only those
processes in that may be killed: of these the kernel takes the biggest. A process makes sure to be taken by writing
1000 to its own /proc/self/oom_score_adj, which needs no right.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.serving import wait_for

MIB = 1024 * 1024


@dataclass(frozen=True)
class MemoryGroup:
    """A memory cgroup that exists."""

    path: Path
    version: int  #: of the cgroup interface: 1 or 2

    @property
    def procs(self) -> Path:
        """Write a pid to it in order to put that process into the group."""
        return self.path / "cgroup.procs"

    @property
    def events(self) -> Path:
        """The file whose line `oom_kill N` counts the processes of this group that the kernel killed."""
        return self.path / ("memory.oom_control" if self.version == 1 else "memory.events")

    def oom_kills(self) -> int:
        return int(dict(line.split() for line in self.events.read_text().splitlines())["oom_kill"])

    def pids(self) -> list[int]:
        return [int(pid) for pid in self.procs.read_text().split()]

    def _limit(self, limit_bytes: int) -> None:
        """Processes get no more than that, swap included."""
        limit, with_swap, swap = (
            ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", str(limit_bytes))
            if self.version == 1
            else ("memory.max", "memory.swap.max", "0")
        )
        (self.path / limit).write_text(str(limit_bytes))
        if (self.path / with_swap).exists():  # not where the kernel does not account for swap
            (self.path / with_swap).write_text(swap)


@contextmanager
def memory_group(limit_bytes: int) -> Iterator[MemoryGroup]:
    """A group with that limit, gone at the end. All processes in it must have ended by then."""
    group = _made(*_hierarchy())
    try:
        try:
            group._limit(limit_bytes)
        except OSError as error:
            pytest.skip(f"{group.path}: no limit can be set: {error.strerror}")
        yield group
    finally:
        wait_for(lambda: not group.pids(), f"the processes in {group.path} to end")
        group.path.rmdir()


def _made(root: Path, version: int) -> MemoryGroup:
    # At the top and not below this process's own group: a group of version 2 with processes has no controlled children.
    path = root / f"paste-agent-test-{uuid.uuid4().hex[:12]}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"{root}: no cgroup can be made: {error.strerror}")
    return MemoryGroup(path, version)


def _hierarchy() -> tuple[Path, int]:
    """Where the cgroups that have the memory controller are mounted, and the version of their interface."""
    if os.geteuid() != 0:
        pytest.skip("a memory cgroup can only be made by root")
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, details = line.partition(" - ")
        root, (kind, _, options) = Path(mount.split()[4]), details.split(" ", 2)
        if kind == "cgroup" and "memory" in options.split(","):
            return root, 1
        if kind == "cgroup2" and "memory" in (root / "cgroup.subtree_control").read_text().split():
            return root, 2
    pytest.skip("no cgroup file system with the memory controller is mounted")
