"""The lease: which one of a service's reporters on this host leads."""

from __future__ import annotations

import os
from typing import NamedTuple

from paste_agent.recorder import lock


class Holder(NamedTuple):
    """Who leads, as it wrote into the lease: only a hint, since the lock alone decides."""

    recorder: str  #: id of its recorder; '' for an arbiter, which has none
    root: int  #: pid of the process that all of the service's come from


class Lease:
    """Who leads: the holder of a file's lock. The kernel lets go of it when the holder dies."""

    def __init__(self, path: str | None, holder: Holder) -> None:
        """path: of the file, in a private directory; None: there is nobody to share with."""
        self._path = path
        self._holder = holder
        self._descriptor = -1
        #: Who led before this process, where somebody did.
        self.previous: Holder | None = None

    def try_take(self) -> bool:
        """Whether this process leads from now on. Raises OSError when the file cannot be made."""
        if self._descriptor >= 0 or self._path is None or not lock.AVAILABLE:
            return True
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        if not lock.try_lock(descriptor):
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        self.previous = _holder_of(os.pread(descriptor, 256, 0))
        text = f"{self._holder.root} {self._holder.recorder}\n".encode()
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text, 0)
        return True

    def holder(self) -> Holder | None:
        """Who has it now, where that can be told."""
        if self._path is None:
            return None
        try:
            with open(self._path, "rb") as file:
                return _holder_of(file.read(256))
        except OSError:
            return None

    def let_go(self) -> None:
        """By closing: in a forked child that leaves the parent's lease alone, unlocking would not."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _holder_of(data: bytes) -> Holder | None:
    root, _, recorder = data.decode("ascii", "replace").strip().partition(" ")
    return Holder(recorder, int(root)) if root.isdecimal() and "/" not in recorder else None
