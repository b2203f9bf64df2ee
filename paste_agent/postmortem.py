"""Says of a process that died what it was doing, and of what it died. Pure, but for lines of source.

Everything that it is told comes from files that anybody may have written: it is bounded, made printable, and believed
no further than it makes sense.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from paste_agent import naming, stacks
from paste_agent.kept import TraceRow
from paste_agent.propagation import parse_traceparent
from paste_agent.raised import OWN_FILES, Frame
from paste_agent.recorder import layout
from paste_agent.recorder.layout import KEPT_LOST
from paste_agent.recorder.reader import InFlight
from paste_agent.stacks import Crash
from paste_agent.wording import duration

TIMEOUT, OUT_OF_MEMORY, SIGNAL, EXIT, UNKNOWN = "timeout", "out_of_memory", "signal", "exit", "unknown"
#: Requests that one account names; a worker of greenlets may have had thousands.
MAX_REQUESTS = 20
_MAX_SHOWN = 5
_NS = 1_000_000_000
#: A request that began just after the worker had last said that it is alive is a little younger than the timeout.
_NEARLY = 0.9
_ABORTED = "Aborted"


@dataclass(frozen=True)
class Evidence:
    """What is known of a process that has ended."""

    recorder: str  #: its id
    pid: int
    worker: int  #: its number; 0: it did not serve
    words: Sequence[int]  #: of its header, by the W_ constants
    requests_served: int
    opened_ns: int  #: as all times here, of the monotonic clock
    ended_ns: int
    flight: Sequence[InFlight]
    crash: Crash
    oom_kills: int  #: of its control group by now, + 1; 0: unknown


@dataclass
class Lost:
    """A transaction that was in flight."""

    method: str  #: '' for a background task
    path: str  #: or the task's name
    route: str
    age_s: float
    span: str
    stack: str
    answered: bool  #: the server had its answer, or the first part of it
    trace_id: str
    span_id: str
    parent_id: str


@dataclass
class Postmortem:
    """The account of a process that died."""

    id: str
    at: float  #: s since the epoch
    reason: str  #: one of the constants above
    headline: str  #: what happened, in half a sentence
    evidence: list[str]
    worker: int
    pid: int
    uptime_s: float
    requests_served: int
    memory_bytes: int  #: at its last report
    requests: list[Lost] = field(default_factory=list)
    more_requests: int = 0  #: that were in flight as well
    stack: str = ""  #: of the thread that the signal arrived in, where nothing else tells where it was
    own_files: list[str] = field(default_factory=list)  #: of all these stacks, those of the application itself

    def summary(self) -> dict[str, Any]:
        return asdict(self)


def examine(found: Evidence, wall_offset_ns: int) -> Postmortem:
    """wall_offset_ns: makes the monotonic clock the time of day."""
    reason, headline, evidence = _reason(found)
    postmortem = Postmortem(
        id=found.recorder,
        at=(found.ended_ns + wall_offset_ns) / _NS,
        reason=reason,
        headline=headline,
        evidence=evidence,
        worker=found.worker,
        pid=found.pid,
        uptime_s=max(0.0, (found.ended_ns - found.opened_ns) / _NS),
        requests_served=found.requests_served,
        memory_bytes=found.words[layout.W_MEMORY_BYTES],
        requests=[_lost(found, request) for request in found.flight[:MAX_REQUESTS]],
        more_requests=max(0, len(found.flight) - MAX_REQUESTS),
    )
    threads = {request.thread for request in found.flight}
    if found.crash.current not in {0, *threads} and not any(lost.stack for lost in postmortem.requests):
        postmortem.stack = _rendered(found.crash.threads.get(found.crash.current, []))
    postmortem.own_files = stacks.own_files(postmortem.stack, *(lost.stack for lost in postmortem.requests))
    return postmortem


# -- of what it died -----------------------------------------------------------------------------------------------


def _reason(found: Evidence) -> tuple[str, str, list[str]]:
    """The reason, half a sentence for the headline, and all that speaks for it."""
    words = found.words
    timeout_s = words[layout.W_TIMEOUT_MS] / 1000
    oldest_s = max((_age_s(found, request) for request in found.flight), default=0.0)
    status = words[layout.W_EXIT] - 1 if 0 < words[layout.W_EXIT] <= 0x10000 else None
    number = status & 0x7F if status is not None else 0
    too_old = timeout_s > 0 and oldest_s >= _NEARLY * timeout_s
    saw_abort = bool(words[layout.W_ABORTED])
    aborted = saw_abort or found.crash.error == _ABORTED
    evidence = _evidence(found, status, oldest_s, timeout_s)
    clean = bool(words[layout.W_CLOSED])
    # Without an arbiter that tells, SIGABRT is taken to be its: nobody else sends it to a worker.
    if words[layout.W_TIMED_OUT] or (aborted and too_old) or (saw_abort and not words[layout.W_WITNESSED]):
        silence = f": not a sign of life for {timeout_s:g} s" if timeout_s else ""
        return TIMEOUT, f"killed by the arbiter{silence}", evidence
    if not clean and number in (0, signal.SIGKILL) and status in (None, number) and _was_short_of_memory(found):
        return OUT_OF_MEMORY, "killed by the kernel: out of memory", evidence
    if number:
        return SIGNAL, f"killed by {_signal_name(number)}", evidence
    if found.crash.error or aborted:
        return SIGNAL, f"crashed: {_printable(found.crash.error or _ABORTED)}", evidence
    if status is not None and not clean:
        return EXIT, f"exited with status {status >> 8} in the middle of its work", evidence
    if clean:
        return EXIT, "ended while requests were in flight", evidence
    if too_old:
        return TIMEOUT, f"killed, probably by the arbiter after {timeout_s:g} s without a sign of life", evidence
    return UNKNOWN, "killed, nobody knows by whom", evidence


def _evidence(found: Evidence, status: int | None, oldest_s: float, timeout_s: float) -> list[str]:
    words = found.words
    said: list[str] = []
    if words[layout.W_TIMED_OUT]:
        said.append(f"the arbiter missed its sign of life for {timeout_s:g} s")
    if words[layout.W_KILLED_WITH]:
        said.append(f"the arbiter sent {_signal_name(words[layout.W_KILLED_WITH])}")
    if words[layout.W_ABORTED]:
        said.append("the worker saw SIGABRT")
    elif found.crash.error == _ABORTED:
        said.append("SIGABRT arrived, and the worker had no time to see it")
    elif found.crash.error:
        said.append(f"the interpreter says: {_printable(found.crash.error)}")
    if status is not None:
        number = status & 0x7F
        said.append(f"ended by {_signal_name(number)}" if number else f"ended with exit status {status >> 8}")
    if words[layout.W_CLOSED]:
        said.append("it still came to an orderly end")
    elif status is None:
        said.append("no mark of an orderly end")
    if oldest_s >= 1:
        against = f", gunicorn's timeout is {timeout_s:g} s" if timeout_s else ""
        said.append(f"the oldest request was in flight for {oldest_s:.1f} s{against}")
    if _was_short_of_memory(found):
        said.append("the kernel has killed for want of memory since its last report")
    return said


def _was_short_of_memory(found: Evidence) -> bool:
    before = found.words[layout.W_OOM_KILLS]
    return bool(before and found.oom_kills and found.oom_kills > before)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# -- what it was doing ---------------------------------------------------------------------------------------------


def _age_s(found: Evidence, request: InFlight) -> float:
    return max(0.0, (found.ended_ns - request.start_ns) / _NS)


def _lost(found: Evidence, request: InFlight) -> Lost:
    parent = parse_traceparent(request.traceparent)
    trace_id, span_id = layout.minted_ids(found.recorder, request.number)
    # What the interpreter wrote in its last moment is newer than any stack that was taken before.
    frames = found.crash.threads.get(request.thread) or stacks.parse(request.stack)
    return Lost(
        method=_printable(request.method) if request.is_request else "",
        path=_printable(_path(request)),
        route=_printable(request.route),
        age_s=round(_age_s(found, request), 3),
        span=_printable(request.span),
        stack=_rendered(frames),
        answered=bool(request.answered_ns),
        trace_id=(parent.trace_id if parent else trace_id).hex(),
        span_id=span_id.hex(),
        parent_id=parent.span_id.hex() if parent else "",
    )


def _path(request: InFlight) -> str:
    """As the client sent it, without what is left of a character that the slot had no room for; or a task's name."""
    return naming.readable(request.path.rstrip("\ufffd")) if request.is_request else request.path


def _rendered(frames: Sequence[Frame]) -> str:
    return _printable(stacks.render(stacks.without_server(frames, OWN_FILES)), more="\n")


def _printable(text: str, more: str = "") -> str:
    """Nothing that a terminal or a log would obey."""
    return "".join(char if char.isprintable() or char in more else "�" for char in text)


def trace_rows(postmortem: Postmortem, found: Evidence, wall_offset_ns: int) -> list[TraceRow]:
    """A failed span for each request that was lost, so that it is seen where the others are."""
    rows: list[TraceRow] = []
    for lost, request in zip(postmortem.requests, found.flight, strict=False):
        if not request.is_request or request.answered_ns:
            continue  # what is answered is counted as it was answered
        attributes: dict[str, str | int] = {
            "http.request.method": naming.method_of(request.method),
            "url.scheme": request.scheme,
            "error.type": f"worker_{postmortem.reason}",
        }
        if lost.route:
            attributes["http.route"] = lost.route
        detail: dict[str, object] = {
            "attributes": {"url.path": lost.path} if lost.path else {},
            "postmortem": {
                "id": postmortem.id,
                "reason": postmortem.reason,
                "text": describe(postmortem, [lost]),
                "span": lost.span,
                "stack": lost.stack,
            },
        }
        if own_files := stacks.own_files(lost.stack):
            detail["own_files"] = own_files
        rows.append(
            TraceRow(
                trace_id=bytes.fromhex(lost.trace_id),
                span_id=bytes.fromhex(lost.span_id),
                parent_id=bytes.fromhex(lost.parent_id) if lost.parent_id else None,
                started_at_ns=max(0, request.start_ns + wall_offset_ns),
                duration_ns=max(0, found.ended_ns - request.start_ns),
                failed=True,
                why=KEPT_LOST,
                attributes=attributes,
                detail=detail,
            )
        )
    return rows


# -- for people ----------------------------------------------------------------------------------------------------


def describe(postmortem: Postmortem, requests: Sequence[Lost] | None = None) -> str:
    """The account as one entry of a log, several lines. requests: those to tell of; the oldest few when not given."""
    shown = postmortem.requests[:_MAX_SHOWN] if requests is None else requests
    more = len(postmortem.requests) + postmortem.more_requests - len(shown)
    who = f"worker {postmortem.worker}" if postmortem.worker else "process"
    served = f"{postmortem.requests_served:,} request{'' if postmortem.requests_served == 1 else 's'} served"
    memory = f"{postmortem.memory_bytes / 1048576:.0f} MiB at its last report"
    lines = [
        f"{who} (pid {postmortem.pid}) was lost, {postmortem.headline}",
        f"  up {_duration(postmortem.uptime_s)}, {served}, {memory}",
        *(f"  - {said}" for said in postmortem.evidence),
    ]
    for lost in shown:
        lines.extend(_lines_of(lost))
    if more:
        lines.append(f"  {more} more {'was' if more == 1 else 'were'} in flight")
    if not postmortem.requests:
        lines.append("  nothing was in flight")
    if postmortem.stack:
        lines += ["  the signal arrived at", *_indented(postmortem.stack)]
    lines.append(f"  post-mortem {short_id(postmortem.id)}")
    return "\n".join(lines)


def _lines_of(lost: Lost) -> list[str]:
    what = f"{lost.method} {lost.path}".rstrip() if lost.method else f"task {lost.path}"
    route = f", route {lost.route}" if lost.route and lost.route != lost.path else ""
    lines = [f"  {what} was in flight for {_duration(lost.age_s)}{route}, trace {lost.trace_id}"]
    if lost.answered:
        lines.append("    its answer was with the server, or a part of it")
    if lost.span:
        lines.append(f"    in {lost.span}")
    if lost.stack:
        lines.extend(_indented(lost.stack))
    return lines


def _indented(stack: str) -> list[str]:
    return [f"  {line}" for line in stack.splitlines()]


def _duration(seconds: float) -> str:
    if seconds < 10:
        return duration(seconds)
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def short_id(name: str) -> str:
    """As much of an id as tells it from all others: pid and 32 bits."""
    pid, dash, rest = name.partition("-")
    return f"{pid}{dash}{rest[:8]}"


# -- read back -----------------------------------------------------------------------------------------------------


def of_summary(name: str, at: float, reason: str, summary: Mapping[str, Any]) -> Postmortem:
    """A stored account as the one that it was; what is missing, as in a store of a newer version, reads as nothing.

    name: id of the recorder. at: s since the epoch.
    """
    known: dict[str, Any] = {
        "id": name, "at": at, "reason": reason, "headline": reason, "evidence": [], "worker": 0, "pid": 0,
        "uptime_s": 0.0, "requests_served": 0, "memory_bytes": 0,
    }  # fmt: skip
    known |= _known_of(Postmortem, summary)
    requests = summary.get("requests")
    nothing = dict.fromkeys((one.name for one in fields(Lost)), "") | {"age_s": 0.0, "answered": False}
    known["requests"] = [Lost(**(nothing | _known_of(Lost, one))) for one in requests or () if isinstance(one, Mapping)]
    return Postmortem(**known)


def _known_of(kind: type[Any], summary: Mapping[str, Any]) -> dict[str, Any]:
    names = {one.name for one in fields(kind)}
    return {name: value for name, value in summary.items() if name in names}
