"""Makes the file of a flight recorder: locked, and with memory behind what is used, before anybody can see it."""

from __future__ import annotations

import mmap
import os

from paste_agent.recorder import layout, lock

#: Slots, and entries for series, that have memory behind them from the start, and are added when they run short.
STEP_SLOTS = 64
STEP_SERIES = 512


def allocate(descriptor: int, at: int, size: int) -> None:
    """Set memory aside for a part of a file. Raises OSError where there is none."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, at, size)


def locked_file(path: str, header: bytes, geometry: layout.Geometry) -> tuple[int, mmap.mmap]:
    """Make the file of a recorder and map it; returns the descriptor that holds its lock, and the mapping.

    It gets its name only once it is locked and has its header: a lead that looked in between would take it for a dead
    process's. The mapping is made through a second descriptor, since `mmap` keeps a copy of the one that it is given,
    and a copy that a child inherits would keep the lock alive after the parent's death.

    Only what is used from the start gets memory here, the ring above all; `Recorder.grow` sees to the rest.
    """
    unfinished = f"{path}.new"
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    lock_fd = os.open(unfinished, flags, 0o600)
    try:
        if not lock.try_lock(lock_fd):
            raise BlockingIOError(f"{unfinished}: locked by another process")
        os.ftruncate(lock_fd, geometry.size)
        allocate(lock_fd, 0, geometry.slots_at + min(STEP_SLOTS, geometry.slots) * layout.SLOT_SIZE)
        allocate(lock_fd, geometry.series_at, min(STEP_SERIES, geometry.series) * layout.SERIES_SIZE)
        allocate(lock_fd, geometry.ring_at, geometry.size - geometry.ring_at)
        os.pwrite(lock_fd, header, 0)
        map_fd = os.open(unfinished, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            buffer = mmap.mmap(map_fd, geometry.size)
        finally:
            os.close(map_fd)
        os.rename(unfinished, path)
    except BaseException:
        os.close(lock_fd)
        try:
            os.unlink(unfinished)
        except OSError:
            pass
        raise
    return lock_fd, buffer
