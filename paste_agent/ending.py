"""What the lead makes of a process that has ended: what was answered is counted, of the rest account is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from paste_agent import postmortem, probes, stacks
from paste_agent.aggregate import Delta, Folder
from paste_agent.kept import TraceRow
from paste_agent.postmortem import Evidence, Postmortem
from paste_agent.recorder import layout
from paste_agent.recorder.reader import InFlight, Reader


class Ending(NamedTuple):
    """How it ended."""

    answered: int  #: requests that the server had an answer for, and no record tells of; added to the delta
    account: Postmortem | None  #: None: it ended as it should
    traces: list[TraceRow]  #: a failed span for each request that was lost


def look_at(
    reader: Reader,
    folder: Folder,
    delta: Delta,
    flight: Sequence[InFlight],
    *,
    words: Sequence[int],
    position: int,
    worker: int,
    requests: int,
    ended_ns: int,
    offset_ns: int,
    crash: str,
    paths: bool = True,
) -> Ending:
    """Look at a recorder whose process writes no more.

    flight: what it had in flight when it was last read. words: of its header. position: after its last record.
    worker: its number. requests: that it had served. ended_ns: when it ended, as far as is known, of the recorder's
    monotonic clock. offset_ns: makes that clock the time of day. crash: text of its crash file. paths: whether those of
    requests are told.
    """
    # What was in flight at an abort may have ended long before the process did.
    most = {"most": layout.MAX_RECORDS} if words[layout.W_ABORTED] else {}
    finished = reader.finished_among({request.start_ns for request in flight}, position, **most)
    unrecorded = [request for request in flight if request.start_ns not in finished]
    answered = [one for one in unrecorded if one.series >= 0 and one.answered_ns]
    for request in answered:
        duration_ns = request.answered_ns - request.start_ns
        folder.add_one(delta, request.series, duration_ns, request.answered_ns + offset_ns)
    # What it was aborted over was pinned, and has failed since; what has ended well since was not lost.
    aborted = bool(words[layout.W_ABORTED])
    lost = [one for one in flight if one.start_ns not in finished or (aborted and finished[one.start_ns])]
    serving = bool(words[layout.W_SERVING])
    in_order = bool(words[layout.W_CLOSED]) and not aborted
    if in_order:  # a task that goes on for ever ends with its process
        lost = [one for one in lost if one.is_request]
    if not lost and (in_order or not serving):
        return Ending(len(answered), None, [])
    if not paths:
        lost = [one._replace(path="") if one.is_request else one for one in lost]
    found = Evidence(
        recorder=reader.id,
        pid=reader.pid,
        worker=worker,
        words=words,
        requests_served=requests + len(answered),
        opened_ns=reader.opened_ns,
        ended_ns=ended_ns,
        flight=lost,
        crash=stacks.parse_crash(crash),
        oom_kills=probes.oom_kills(),
    )
    account = postmortem.examine(found, offset_ns)
    return Ending(len(answered), account, postmortem.trace_rows(account, found, offset_ns))
