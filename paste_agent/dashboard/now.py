"""What the processes of a service are doing at this moment, from their flight recorders. Looks, and touches nothing."""

from __future__ import annotations

import os
import time
from typing import NamedTuple

from paste_agent.errors import RuntimeDirError
from paste_agent.recorder import layout
from paste_agent.recorder.reader import BadRecorder, InFlight, Reader
from paste_agent.runtime_dir import existing_service_dir
from paste_agent.settings import Settings

#: Recorders that are looked at, and stacks that are read of each.
_MOST, _STACKS = 200, 20


class Doing(NamedTuple):
    """One transaction in flight."""

    recorder: str  #: id of the recorder of its process
    pid: int
    age_s: float
    stack_age_s: float | None  #: how long ago its stack was taken; None: there is none
    request: InFlight


def doing(settings: Settings) -> tuple[list[Doing], str]:
    """All that is in flight, the oldest first; and why nothing can be said, '' when it can."""
    try:
        directory = existing_service_dir(settings, os.environ)
    except RuntimeDirError as error:
        return [], str(error)
    if directory is None:
        return [], "there is no runtime directory: the service does not run on this host, or runs as another user"
    found: list[Doing] = []
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(layout.SUFFIX))[:_MOST]
    except OSError as error:
        return [], f"{directory}: {error.strerror}"
    for name in names:
        try:
            reader = Reader.of_file(os.path.join(directory, name))
        except (BadRecorder, OSError):
            continue  # not one of ours, or just gone; the lead tells of it
        try:
            # That of a process which ended in order has nothing in flight; its slots say what it was doing last.
            if reader.is_of_this_boot and not reader.words()[layout.W_CLOSED]:
                found += _of(reader)
        finally:
            reader.close()
    return sorted(found, key=lambda one: -one.age_s), ""


def _of(reader: Reader) -> list[Doing]:
    now_ns = time.perf_counter_ns()
    return [
        Doing(
            reader.id,
            reader.pid,
            max(0, now_ns - request.start_ns) / 1e9,
            max(0, now_ns - request.stack_ns) / 1e9 if request.stack else None,
            request,
        )
        for request in reader.in_flight(stacks=_STACKS)
    ]
