"""What the one reporter that leads does: drains every recorder of the service on this host into the store.

Order: commit totals and positions in one transaction; then move the rings' tails; then remove what is finished.
Killed between any two of them, the next lead repeats a step that changes nothing.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from paste_agent import crash, ending, kept, lead_logs, metrics, naming, native, postmortem, probes, runtime_dir
from paste_agent.aggregate import NO_ATTRIBUTES, REPORT_DURATION, SLOT_S, WORKER_LOST, Apdex, Delta, Folder, canonical
from paste_agent.detail import matches
from paste_agent.kept import TraceRow
from paste_agent.log import say
from paste_agent.metrics import Reading
from paste_agent.recorder import layout
from paste_agent.recorder.layout import FAILED
from paste_agent.recorder.reader import BadRecorder, InFlight, OtherVersion, Reader
from paste_agent.settings import Settings
from paste_agent.store import retention
from paste_agent.store.snapshot import ACTIVE, active_of, active_text, readings_of
from paste_agent.store.store import ENDED, LOST, RUNNING, PostmortemRow, RecorderRow, Store

#: Records younger than this are left alone: by then another core has seen all of their bytes.
YOUTH_NS = 100_000_000
#: How long a number that was taken but not written is waited for while its process lives.
_PATIENCE_NS = 60_000_000_000
#: Traces rebuilt from the records of one recorder in one drain: twice what its process could keep. A forged file may
#: say of a million records that they are kept.
_MAX_TRACES = 4096
#: Records folded before other threads get their turn: 1 to 3 ms. Every turn makes the requests under way wait once, so
#: few long ones spoil fewer of them than many short ones.
_CHUNK = 2048
#: No process of an earlier boot lived longer.
_LONGEST_LIFE_NS = 10 * 366 * 86_400 * 1_000_000_000
_BUSY_WINDOW_S = 60.0
_TIDY_EVERY_S = 60.0
#: How long the arbiter may take to tell how a worker ended.
_WITNESS_NS = 2_000_000_000
_UNFINISHED = ".new"
#: Added to the name of a recorder that is none; and how many of them are kept.
_ASIDE = ".bad"
_KEPT_ASIDE = 4
BAD_RECORDER = "bad_recorder"  #: reason of `paste_agent.internal.errors`

Warn = Callable[[str, str], None]


@dataclass
class _Tracked:
    """A recorder that is being drained, and what the store holds of it."""

    reader: Reader
    folder: Folder
    row: RecorderRow
    stored: RecorderRow | None  #: the row as the store has it
    begin: int  #: the first record that has not been drained
    busy: deque[tuple[int, int]] = field(default_factory=deque)  #: (time, busy time until then), both in ns
    served_ns: int = 0  #: sum of the durations of its drained requests
    seen_ns: int = 0  #: when the lead before this one saw it last, since the epoch
    seen_alive: bool = False  #: by this lead
    found_dead_ns: int = 0  #: since when it waits for the arbiter's word; 0: it does not


@dataclass
class _Drain:
    """One drain under way: nothing of it counts before it is committed."""

    now_ns: int
    wall_offset_ns: int
    delta: Delta = field(default_factory=Delta)
    rows: list[tuple[_Tracked, RecorderRow, int]] = field(default_factory=list)  #: with the time served
    counters: dict[tuple[str, str], int] = field(default_factory=dict)
    traces: list[TraceRow] = field(default_factory=list)
    files: list[str] = field(default_factory=list)  #: that `traces` came from
    in_flight: list[InFlight] = field(default_factory=list)
    postmortems: list[postmortem.Postmortem] = field(default_factory=list)

    def count(self, name: str, more: int, attributes: Mapping[str, object]) -> None:
        if more > 0:
            key = (name, canonical(attributes))
            self.counters[key] = self.counters.get(key, 0) + more


class Lead:
    """Belongs to the thread that made it, and to whoever holds the lease."""

    def __init__(
        self, settings: Settings, store: Store, directory: str | None, own: Iterable[Reader], warn: Warn
    ) -> None:
        """directory: of the recorders' files, or None. own: recorders in this process's memory."""
        self.store = store
        self.readings: list[Reading] = []
        #: When the most loaded ring would be a quarter full, s from the last drain on.
        self.next_drain_s = 1.0
        #: Whether an arbiter is given the time to tell how a worker ended.
        self.patient = True
        self._settings = settings
        self._directory = directory
        self._warn = warn
        self._apdex = Apdex(settings.apdex_t_s)
        self._rows = {row.id: row for row in store.recorders()}
        self._tracked: dict[str, _Tracked] = {}
        self._bad: set[str] = set()
        self._newly_bad = 0
        self._active = active_of(store.meta(ACTIVE))
        self._active_said: str | None = None
        self._tidied_at = 0.0
        self._settled = False
        self._last_drain_ns = time.perf_counter_ns()
        for reader in own:
            self._track(reader)

    def close(self) -> None:
        self.close_readers()
        self._tracked.clear()
        self.store.close()

    def close_readers(self) -> None:
        for tracked in self._tracked.values():
            tracked.reader.close()

    # -- one drain -------------------------------------------------------------------------------------------------

    def drain(self) -> int:
        """Drain every recorder once, commit, and clean up. Returns the number of records.

        Raises sqlite3.Error when the store refuses: then nothing counts as drained.
        """
        began_ns = time.perf_counter_ns()
        drain = _Drain(now_ns=began_ns, wall_offset_ns=time.time_ns() - began_ns)
        finished: list[_Tracked] = []
        tracked_now = self._discover()
        if not self._settled:
            self._settle_gone()
            self._settled = True
        drain.count(metrics.INTERNAL_ERRORS, self._newly_bad, {metrics.REASON: BAD_RECORDER})
        for tracked in tracked_now:
            try:
                if self._drain_one(drain, tracked):
                    finished.append(tracked)
            except BadRecorder as error:
                drain.count(metrics.INTERNAL_ERRORS, self._forget(tracked, error), {metrics.REASON: BAD_RECORDER})
        # After the recorders: a row with detail takes the place of the bare one of its record.
        self._read_kept(drain)
        if tracked_now:  # to look at a service that has ended is no round of reporting, and adds no time to it
            slot_s = (began_ns + drain.wall_offset_ns) // 1_000_000_000 // SLOT_S * SLOT_S
            took = drain.delta.at((REPORT_DURATION, NO_ATTRIBUTES), slot_s)
            took.observe(time.perf_counter_ns() - began_ns)
        drained = self._commit(drain)
        for tracked in finished:
            self._remove(tracked)
        self.readings = self._read_out()
        lead_logs.take(self._directory, self.store, self._settings, self._warn)
        return drained

    def others_serve(self, own: str | None) -> bool:
        """Whether another process still serves, as of the last drain."""
        return any(
            tracked.row.state == RUNNING and tracked.row.serving
            for name, tracked in self._tracked.items()
            if name != own
        )

    def tidy(self) -> None:
        """Keep the store within its bounds, once a minute. Raises sqlite3.Error."""
        now = time.time()
        if abs(now - self._tidied_at) >= _TIDY_EVERY_S:
            self._tidied_at = now
            settings = self._settings
            retention.tidy(self.store, now, settings.retention_days, int(settings.store_max_mib * 1024 * 1024))

    def take_traces(self, rows: Iterable[TraceRow]) -> None:
        """Traces of this process, where it has no directory to leave them in. Raises sqlite3.Error."""
        taken = list(rows)
        if taken:
            self.store.add_traces(taken, time.time())

    def _read_kept(self, drain: _Drain) -> None:
        """Take up the files in which the processes have left their kept transactions."""
        if self._directory is None:
            return
        for name in sorted(os.listdir(self._directory)):
            path = os.path.join(self._directory, name)
            if name.endswith(_UNFINISHED):
                runtime_dir.remove_stale(path)
            if not name.endswith(kept.SUFFIX):
                continue
            try:
                drain.traces.extend(kept.read(path))
            except OSError as error:
                self._warn("bad traces", f"{path}: {error.strerror}; removed")
            drain.files.append(path)
            native.sleep(0)

    def _discover(self) -> list[_Tracked]:
        """All recorders there are, new ones taken up."""
        if self._directory is not None:
            for name in sorted(os.listdir(self._directory)):
                recorder = name.removesuffix(layout.SUFFIX)
                if name.endswith(layout.SUFFIX) and recorder not in self._tracked:
                    self._open(os.path.join(self._directory, name))
        return list(self._tracked.values())

    def _open(self, path: str) -> None:
        if path in self._bad:
            return
        try:
            # No child is forked in between: it would keep a descriptor that nobody knows of yet, and with it a lock.
            with native.UNDIVIDED:
                self._track(Reader.of_file(path))
        except FileNotFoundError:
            pass
        except OtherVersion as error:
            self._bad.add(path)
            self._warn("other recorder", f"{path}: {error}; a service of that version counts it")
        except BadRecorder as error:
            self._newly_bad += self._set_aside(path, error)

    def _forget(self, tracked: _Tracked, error: BadRecorder) -> int:
        """A recorder is no longer what it was when it was opened: somebody else has written to its file."""
        del self._tracked[tracked.reader.id]
        tracked.reader.close()
        return self._set_aside(self._path_of(tracked.reader, layout.SUFFIX), error)

    def _set_aside(self, path: str, error: BadRecorder) -> int:
        """Rename a file of ours that is no recorder, so that no later lead meets it; keep a few of them to look at.

        What is not ours is left alone. Returns how many recorders are lost by it.
        """
        self._bad.add(path)
        if not runtime_dir.is_private(path):
            self._warn("bad recorder", f"{path}: {error}; it is left alone, remove it")
            return 0
        os.rename(path, path + _ASIDE)
        runtime_dir.unlink(os.path.splitext(path)[0] + crash.SUFFIX)
        self._warn("bad recorder", f"{path}: {error}; skipped, it lies beside as {os.path.basename(path)}{_ASIDE}")
        directory = os.path.dirname(path)
        for name in sorted(name for name in os.listdir(directory) if name.endswith(_ASIDE))[:-_KEPT_ASIDE]:
            runtime_dir.unlink(os.path.join(directory, name))
        return 1

    def _track(self, reader: Reader) -> None:
        row = self._rows.get(reader.id)
        before = row
        # What has been drained into another store, such as one that was set aside since, is not there any more.
        tail = reader.words()[layout.W_TAIL]
        if row is None:
            now = time.time()
            row = RecorderRow(
                id=reader.id,
                position=0,
                worker=0,
                pid=reader.pid,
                serving=False,
                state=RUNNING,
                opened_at=reader.opened_at_ns / 1e9,
                seen_at=now,
                requests=0,
                in_flight=0,
                busy=0.0,
                words=[],
            )
        begin = max(tail, row.position)
        seen_ns = 0 if before is None else int(before.seen_at * 1e9)
        self._tracked[reader.id] = _Tracked(reader, Folder(reader, self._apdex), row, before, begin, seen_ns=seen_ns)

    def _drain_one(self, drain: _Drain, tracked: _Tracked) -> bool:
        """Fold what is new in one recorder; whether it is finished and can be removed."""
        reader, row = tracked.reader, tracked.row
        reader.check()
        # The order matters: what is found dead or closed here leaves no record after it.
        dead = reader.is_dead()
        words = reader.words()
        closed = bool(words[layout.W_CLOSED])
        # Before the records: of a process that still ends, what leaves its slot from now on is in one of the two.
        flight = reader.in_flight(stacks=postmortem.MAX_REQUESTS if dead or closed else 0)
        folded = self._fold(drain, tracked, dead or closed)
        drain.count(metrics.RECORDS_DROPPED, folded.missing, {metrics.REASON: "unwritten"})
        ended = closed or (dead and self._has_been_told(drain, tracked, words))
        tracked.seen_alive = tracked.seen_alive or not (dead or closed)
        in_flight = [] if ended else flight
        drain.in_flight.extend(in_flight)
        served_ns = tracked.served_ns + folded.served_ns
        serving = bool(words[layout.W_SERVING])
        fresh = replace(
            row,
            position=folded.position,
            worker=row.worker or (self._free_worker(drain) if serving else 0),
            serving=serving,
            state=RUNNING if not ended else ENDED if closed else LOST,
            seen_at=(drain.now_ns + drain.wall_offset_ns) / 1e9,
            requests=row.requests + folded.requests,
            in_flight=len(in_flight),
            busy=0.0 if ended else _busy(tracked, drain.now_ns, served_ns, in_flight, words[layout.W_CONCURRENCY]),
            words=list(words[: layout.WORDS_KEPT]),
        )
        if ended and row.state == RUNNING:  # else a lead before this one did, and was killed over the rest
            fresh = self._look_at_end(drain, tracked, fresh, flight)
        _count_words(drain, row.words, fresh)
        drain.rows.append((tracked, fresh, served_ns))
        return ended

    def _has_been_told(self, drain: _Drain, tracked: _Tracked, words: Sequence[int]) -> bool:
        """Whether all is known that can be known of a dead process: its arbiter may still be about to tell."""
        if not self.patient or not words[layout.W_WITNESSED] or words[layout.W_EXIT]:
            return True
        tracked.found_dead_ns = tracked.found_dead_ns or drain.now_ns
        return drain.now_ns - tracked.found_dead_ns > _WITNESS_NS

    def _look_at_end(self, drain: _Drain, tracked: _Tracked, row: RecorderRow, flight: list[InFlight]) -> RecorderRow:
        """Count what had its answer, and give account of a process that has not ended as it should."""
        reader = tracked.reader
        _, offset_ns = _times(drain, reader, True)
        end = ending.look_at(
            reader,
            tracked.folder,
            drain.delta,
            flight,
            words=row.words,
            position=row.position,
            worker=row.worker,
            requests=row.requests,
            ended_ns=self._ended_ns(drain, tracked, row, flight),
            offset_ns=offset_ns,
            crash=crash.read(self._path_of(reader, crash.SUFFIX)),
            paths=not matches("url.path", self._settings.exclude_attributes),
        )
        if end.account is not None:
            drain.postmortems.append(end.account)
            drain.traces.extend(end.traces)
            if row.serving:
                drain.count(WORKER_LOST, 1, {metrics.REASON: end.account.reason})
        return replace(row, requests=row.requests + end.answered)

    def _ended_ns(self, drain: _Drain, tracked: _Tracked, row: RecorderRow, flight: list[InFlight]) -> int:
        """When a process ended, of its monotonic clock: now, if this lead has seen it alive; else as late as is known.

        A service that was killed may be started again an hour later.
        """
        words = row.words
        if words[layout.W_EXIT_AT] or tracked.seen_alive:
            return words[layout.W_EXIT_AT] or tracked.found_dead_ns or drain.now_ns
        opened_ns, probed_ns = tracked.reader.opened_ns, words[layout.W_PROBED_AT]
        known = [opened_ns, probed_ns, *(max(one.start_ns, one.answered_ns, one.stack_ns) for one in flight)]
        if tracked.reader.is_of_this_boot:
            known.append(tracked.seen_ns - drain.wall_offset_ns)
            known.append(crash.written_at_ns(self._path_of(tracked.reader, crash.SUFFIX)) - drain.wall_offset_ns)
            return min(max(known), drain.now_ns)
        return max(known)

    def _path_of(self, reader: Reader, suffix: str) -> str:
        """Of a file that belongs to a recorder; one that is in memory has none."""
        return os.path.join(self._directory, reader.id + suffix) if self._directory is not None else ""

    def _fold(self, drain: _Drain, tracked: _Tracked, final: bool) -> _Folded:
        """Fold the records of one recorder that are ready."""
        reader, folder = tracked.reader, tracked.folder
        ready_ns, offset_ns = _times(drain, reader, final)
        position, missing, requests, served_ns, rebuilt = tracked.begin, 0, 0, 0, 0
        end = position + 2 * reader.geometry.records  # a forged file may go on for ever, a ring does not
        while position < end:
            data = reader.chunk(position, _CHUNK)
            read_ns = time.perf_counter_ns()
            run = folder.fold(drain.delta, data, position, ready_ns, offset_ns, read_ns)
            for number in run.kept[: max(0, _MAX_TRACES - rebuilt)]:
                at = (number - position) * layout.RECORD_SIZE + layout.RECORD_BODY_AT
                body = layout.RECORD_BODY.unpack_from(data, at)
                drain.traces.append(_bare_row(reader.ids(number), body, folder, offset_ns))
            rebuilt += len(run.kept)
            reached = run.position
            if reached == position:
                following = _after_hole(reader, data, position, drain.now_ns, final)
                if following is None:
                    break
                missing += following - position
                reached = following
            position = reached
            requests += run.requests
            served_ns += run.served_ns
            native.sleep(0)
        return _Folded(position, missing, requests, served_ns)

    def _free_worker(self, drain: _Drain) -> int:
        """The smallest number that no living worker has."""
        taken = {tracked.row.worker for tracked in self._tracked.values() if tracked.row.state == RUNNING}
        taken |= {row.worker for _, row, _ in drain.rows}
        return next(number for number in range(1, len(taken) + 2) if number not in taken)

    def _commit(self, drain: _Drain) -> int:
        """Write everything, then tell the rings; the number of records."""
        # First, since it changes nothing the second time: a lead that dies in between loses no trace.
        if drain.traces:
            self.store.add_traces(drain.traces, time.time())
        self._turn_into_counters(drain)
        postmortems = [PostmortemRow(one.id, one.at, one.reason, one.summary()) for one in drain.postmortems]
        moves = [(tracked.stored, row) for tracked, row, _ in drain.rows]
        active = self._active_now(drain)
        said = active_text(active)
        meta = {} if said == self._active_said else {ACTIVE: said}
        try:
            self.store.commit_drain(drain.delta, moves, drain.counters, self._settings.max_series, postmortems, meta)
        except sqlite3.IntegrityError:
            # Another lead has been at these recorders: go on from where it left them.
            rows = {row.id: row for row in self.store.recorders()}
            for tracked in self._tracked.values():
                tracked.stored = rows.get(tracked.reader.id)
                tracked.row = tracked.stored or tracked.row
                tracked.begin = max(tracked.begin, tracked.row.position)
            raise
        self._active, self._active_said = active, said
        drained = self._newly_bad = 0
        self.next_drain_s = 1.0
        elapsed_s = max((drain.now_ns - self._last_drain_ns) / 1e9, 0.001)
        self._last_drain_ns = drain.now_ns
        for tracked, row, served_ns in drain.rows:
            more = row.position - tracked.begin
            drained += more
            if more:
                quarter_s = tracked.reader.geometry.records / 4 * elapsed_s / more
                self.next_drain_s = max(0.05, min(self.next_drain_s, quarter_s))
            tracked.row, tracked.stored, tracked.begin, tracked.served_ns = row, row, row.position, served_ns
            tracked.reader.set_tail(row.position)
        for path in drain.files:
            runtime_dir.unlink(path)
        for account in drain.postmortems:
            # Where nothing was in flight, nobody has missed anything.
            level = logging.ERROR if account.requests else logging.WARNING
            say(level, f"{self._settings.service_name}: {postmortem.describe(account)}")
        return drained

    @staticmethod
    def _turn_into_counters(drain: _Drain) -> None:
        """Of records that only say that something happened, the number of them counts and not how long it took."""
        for key, slot_s in [place for place in drain.delta.totals if place[0][0] == WORKER_LOST]:
            total = drain.delta.totals.pop((key, slot_s))
            drain.counters[key] = drain.counters.get(key, 0) + total.count

    def _remove(self, tracked: _Tracked) -> None:
        del self._tracked[tracked.reader.id]
        tracked.reader.close()
        if self._directory is not None:
            path = self._path_of(tracked.reader, layout.SUFFIX)
            runtime_dir.unlink(self._path_of(tracked.reader, crash.SUFFIX))
            if not runtime_dir.unlink(path):
                # Not to be taken up again: whatever it still says has been counted.
                self._bad.add(path)

    def _settle_gone(self) -> None:
        """Rows of processes whose recorder is gone, as after a reboot: they ended, nobody knows how.

        A process that lives and has no file records in its own memory, and is its own lead.
        """
        pids = {tracked.reader.pid for tracked in self._tracked.values()}
        gone = [
            name
            for name, row in self._rows.items()
            if row.state == RUNNING
            and name not in self._tracked
            and (row.pid in pids or not probes.lives_since(row.pid, row.opened_at))
        ]
        if gone:
            self.store.set_state(gone, LOST)

    def _active_now(self, drain: _Drain) -> dict[tuple[str, str], int]:
        """Requests in flight, by method and scheme."""
        # What was in flight once is told of as none later, or a collector would show its last figure for ever.
        active = dict.fromkeys(self._active, 0)
        for request in filter(lambda one: one.is_request, drain.in_flight):
            kind = (naming.method_of(request.method), request.scheme)
            active[kind] = active.get(kind, 0) + 1
        return active

    def _read_out(self) -> list[Reading]:
        """Gauges as of the last drain."""
        return readings_of([tracked.row for tracked in self._tracked.values()], self._active)


def _times(drain: _Drain, reader: Reader, final: bool) -> tuple[int, int]:
    """Up to which end records are read, ns of their monotonic clock, and what makes that clock the time of day."""
    if not reader.is_of_this_boot:
        # The clock has begun anew since: the recorder's own times are all there is.
        return reader.opened_ns + _LONGEST_LIFE_NS, reader.opened_at_ns - reader.opened_ns
    return time.perf_counter_ns() if final else drain.now_ns - YOUTH_NS, drain.wall_offset_ns


@dataclass(frozen=True)
class _Folded:
    position: int  #: after the last record
    missing: int  #: numbers that were taken and never written
    requests: int
    served_ns: int


def _bare_row(
    ids: tuple[bytes, bytes, bytes], body: tuple[int, int, int, int, int, int], folder: Folder, wall_offset_ns: int
) -> TraceRow:
    """A kept transaction from its record alone: all that is left when the process died before it wrote more."""
    series, why, _, start_ns, duration_ns, _ = body
    trace_id, span_id, parent_id = ids
    return TraceRow(
        trace_id=trace_id,
        span_id=span_id,
        parent_id=None if parent_id == bytes(8) else parent_id,
        started_at_ns=start_ns + wall_offset_ns,
        duration_ns=duration_ns,
        failed=bool(series & FAILED),
        why=why,
        attributes=json.loads(folder.key_of(series & ~FAILED)[1]),
        detail=None,
    )


def _after_hole(reader: Reader, data: bytes, position: int, now_ns: int, final: bool) -> int | None:
    """Where to go on when record `position` cannot be read: None to wait for it, or when nothing follows."""
    if data and layout.RECORD_BODY.unpack_from(data, layout.RECORD_BODY_AT)[5] == position + 1:
        return None  # it is written, but young
    following = reader.next_written(position)
    if following is None or final:
        return following
    data = reader.chunk(following, 1)
    if not data:
        return None
    body = layout.RECORD_BODY.unpack_from(data, layout.RECORD_BODY_AT)
    return following if body[3] + body[4] < now_ns - _PATIENCE_NS else None


def _busy(tracked: _Tracked, now_ns: int, served_ns: int, in_flight: list[InFlight], concurrency: int) -> float:
    """Share of the last minute that the process served requests, of all that it could.

    Time served until now is what its finished requests took and what those under way have taken so far; the difference
    of two such sums is exact, whichever requests ended in between.
    """
    busy_ns = served_ns + sum(max(0, now_ns - request.start_ns) for request in in_flight)
    history = tracked.busy
    if not history:
        # A lead that comes later does not know what went before it.
        opened_ns = tracked.reader.opened_ns if tracked.row.position == 0 else now_ns
        history.append((min(opened_ns, now_ns), 0 if tracked.row.position == 0 else busy_ns))
    history.append((now_ns, busy_ns))
    while len(history) > 2 and now_ns - history[1][0] >= _BUSY_WINDOW_S * 1e9:
        history.popleft()
    then_ns, busy_then_ns = history[0]
    if now_ns <= then_ns:
        return tracked.row.busy
    return min(1.0, max(0.0, (busy_ns - busy_then_ns) / (now_ns - then_ns) / max(1, concurrency)))


def _count_words(drain: _Drain, before: list[int], row: RecorderRow) -> None:
    """Add to the counters what the words of a recorder have grown by since its row was written."""

    def grown(word: int) -> int:
        # A forged file may hold any number; the store's are signed and have 64 bits.
        return min(row.words[word] - (before[word] if word < len(before) else 0), 1 << 48)

    drain.count(metrics.RECORDS_DROPPED, grown(layout.W_DROPPED), {metrics.REASON: "ring_full"})
    drain.count(metrics.SPANS_DROPPED, grown(layout.W_SPANS_DROPPED), {metrics.REASON: "ring_full"})
    drain.count(metrics.INTERNAL_ERRORS, grown(layout.W_INTERNAL_ERRORS), {})
    drain.count(metrics.WORKER_RECYCLED, min(1, grown(layout.W_RECYCLED)), {metrics.REASON: "max_requests"})
    if not row.worker:
        return
    number = {metrics.WORKER_NUMBER: row.worker}
    drain.count(metrics.CPU_TIME, grown(layout.W_CPU_USER_NS), {metrics.CPU_MODE: "user", **number})
    drain.count(metrics.CPU_TIME, grown(layout.W_CPU_SYSTEM_NS), {metrics.CPU_MODE: "system", **number})
    for generation in range(3):
        more = grown(layout.W_GC_COLLECTIONS + generation)
        drain.count(metrics.GC_COLLECTIONS, more, {metrics.GC_GENERATION: generation, **number})
