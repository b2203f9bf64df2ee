"""What the processes of a service are doing at this moment, from their flight recorders. Looks, and touches nothing.

first = snapshot(settings)
second = snapshot(settings, first)   # a second later
pace([first, second])                # what ended in between, and how busy who was
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from paste_agent.aggregate import QUEUE_DURATION, REQUEST_DURATION, Apdex, Delta, Folder, SeriesKey, Total
from paste_agent.errors import RuntimeDirError, StoreError
from paste_agent.recorder import layout
from paste_agent.recorder.reader import BadRecorder, InFlight, Reader
from paste_agent.runtime_dir import existing_service_dir
from paste_agent.settings import Settings
from paste_agent.store.opening import store_path
from paste_agent.store.store import READ_ERRORS, RecorderRow, Store
from paste_agent.store.summary import route_name

_NS = 1_000_000_000
#: Recorders that are looked at, and stacks that are read of each.
_MOST, _STACKS = 200, 20
#: Records that are read at one go.
_CHUNK = 4096
#: What is younger may not be all written; the drain leaves it alone as well.
_YOUTH_NS = 100_000_000
#: What the rate at one look is of: so long, or no more drained records of each process than these.
RATE_S, _RATE_RECORDS = 10.0, 2048
#: Directories of users in /dev/shm.
_OF_USER = re.compile(r"paste-agent-([0-9]{1,10})", re.ASCII)


class Doing(NamedTuple):
    """One transaction in flight."""

    recorder: str  #: id of the recorder of its process
    pid: int
    age_s: float
    stack_age_s: float | None  #: how long ago its stack was taken; None: there is none
    request: InFlight


class Worker(NamedTuple):
    """One process that lives, as its recorder has it."""

    recorder: str
    at_ns: int  #: when it was looked at, of the monotonic clock
    number: int  #: 0: the store does not know it yet, or it does not serve
    pid: int
    serving: bool  #: not so of one that only records, such as an arbiter
    opened_at_s: float  #: when its recorder was opened, s since the epoch
    concurrency: int  #: requests that it serves at once
    timeout_s: float  #: gunicorn's `timeout`; 0: none, or unknown
    memory_bytes: int
    threads: int
    cpu_ns: int  #: until `probed_ns`, user and system
    probed_ns: int  #: of the monotonic clock; 0: never
    doing: tuple[Doing, ...]  #: the oldest first
    requests: int | None  #: finished since its start; None: nobody knows
    finished: int  #: of those, since the snapshot before
    served_ns: int  #: what finished transactions have taken, since it was first looked at
    busy_ns: int  #: that, and what those in flight have taken so far; the difference of two such sums means something
    busy: float | None  #: by the store, of the last minute; None: it does not know
    position: int  #: number of the record that is read next
    missed: int  #: records that were written over before they could be read, since the snapshot before

    @property
    def timeout_in_s(self) -> float | None:
        """How long its request may still take before the arbiter kills the worker; None where that is not known.

        Workers of class `sync` alone are silent while they serve. Others are told by what such a one never does:
        several requests at once, or one that is older than the timeout.
        """
        if not self.timeout_s or self.concurrency != 1 or len(self.doing) != 1 or not self.doing[0].request.is_request:
            return None
        left_s = self.timeout_s - self.doing[0].age_s
        return left_s if left_s > 0 else None


class Live(NamedTuple):
    """A service at one moment."""

    at_s: float  #: s since the epoch
    at_ns: int  #: of the monotonic clock
    workers: tuple[Worker, ...]  #: those that serve by number, the others after them
    broken: tuple[str, ...] = ()  #: a line for each recorder that cannot be read
    why_not: str = ""  #: why nothing can be said at all, '' when it can
    finished: Mapping[SeriesKey, Total] = {}  #: what left a record since the snapshot before; empty for a first one

    @property
    def doing(self) -> list[Doing]:
        """All that is in flight, the oldest first."""
        return sorted((one for worker in self.workers for one in worker.doing), key=lambda one: -one.age_s)


def snapshot(settings: Settings, before: Live | None = None) -> Live:
    """A service now. before: a snapshot of the same service; records are read on from where that one came to.

    Raises nothing: `why_not` tells.
    """
    now_ns = time.perf_counter_ns()
    now_s = time.time()
    known = {} if before is None else {worker.recorder: worker for worker in before.workers}
    broken: list[str] = []
    delta = Delta()
    apdex = Apdex(settings.apdex_t_s)
    workers: list[Worker] = []
    try:
        directory = _directory(settings)
        names = _names(directory)
        rows = _rows(settings, {name.removesuffix(layout.SUFFIX) for name in names}, known)
        for reader in _readers(directory, names, broken):
            is_new = before is not None and reader.opened_ns > before.at_ns
            earlier = known.get(reader.id)
            own = delta if earlier is not None or is_new else Delta()
            workers.append(_worker(reader, Folder(reader, apdex), own, rows.get(reader.id), earlier))
    except _Unknown as error:
        return Live(now_s, now_ns, (), why_not=str(error))
    finished: dict[SeriesKey, Total] = {}
    for (key, _), total in delta.totals.items():
        finished.setdefault(key, Total()).add(total)
    workers.sort(key=lambda worker: (not worker.serving, worker.number or 1 << 30, worker.opened_at_s))
    return Live(now_s, now_ns, tuple(workers), tuple(broken), "", finished)


def doing(settings: Settings) -> tuple[list[Doing], str]:
    """All that is in flight, the oldest first; and why nothing can be said, '' when it can."""
    try:
        directory = _directory(settings)
        readers = _readers(directory, _names(directory), [])
        found = [one for reader in readers for one in _doing(reader, time.perf_counter_ns())]
    except _Unknown as error:
        return [], str(error)
    return sorted(found, key=lambda one: -one.age_s), ""


class Rate(NamedTuple):
    """Requests that a process has finished lately."""

    requests: int
    seconds: float  #: in which they ended: RATE_S, or fewer where its last records do not go back so far


def rates(settings: Settings) -> dict[str, Rate]:
    """How many requests each process has finished lately, by id of its recorder; empty when nothing can be said.

    Unlike `pace` it needs one look: what has been drained stays in the ring until it is written over.
    """
    try:
        directory = _directory(settings)
        return {reader.id: _rate(reader) for reader in _readers(directory, _names(directory), [])}
    except _Unknown:
        return {}


def _rate(reader: Reader) -> Rate:
    now_ns = time.perf_counter_ns()
    tail, ring = reader.words()[layout.W_TAIL], reader.geometry.records
    first = position = max(0, tail - min(_RATE_RECORDS, ring))
    end = tail + ring  # a forged file may go on for ever, a ring does not
    kinds: dict[int, bool] = {}
    ended_ns: list[int] = []
    oldest_ns = now_ns
    while position < end and (data := reader.chunk(position, min(_CHUNK, end - position))):
        for series, _, _, start_ns, duration_ns, sequence in layout.RECORDS.iter_unpack(data):
            position += 1
            if sequence == position:
                oldest_ns = min(oldest_ns, start_ns + duration_ns)
                if series not in kinds:
                    kinds[series] = _is_request(reader, series)
                if kinds[series]:
                    ended_ns.append(start_ns + duration_ns)
            elif position > tail:  # else it was written over, or never written
                end = position
                break
    known_ns = max(reader.opened_ns, now_ns - round(RATE_S * _NS), oldest_ns if first else 0)
    requests = sum(known_ns <= one <= now_ns for one in ended_ns)
    return Rate(requests, max(0, now_ns - known_ns) / _NS)


def _is_request(reader: Reader, series: int) -> bool:
    entry = reader.series(series & ~layout.FAILED)
    return entry is not None and entry[0] & ~layout.KIND_OVERFLOW == layout.KIND_SERVER


# -- between snapshots ---------------------------------------------------------------------------------------------


class Route(NamedTuple):
    """Requests of one method and route."""

    name: str
    total: Total
    errors: int


class WorkerPace(NamedTuple):
    """How one worker fared between two snapshots."""

    requests: int
    busy: float | None  #: share of the time, of all that it could serve; None: not known yet
    cpu: float | None  #: of one core; None: not known yet


class Pace(NamedTuple):
    """What happened between snapshots."""

    seconds: float  #: 0: there is one snapshot, or none
    requests: int
    errors: int
    routes: tuple[Route, ...]  #: what took most time first
    queue: Total  #: time that requests waited for a worker
    workers: Mapping[str, WorkerPace]  #: by id of the recorder


def pace(lives: Sequence[Live]) -> Pace:
    """lives: snapshots, each made with the one before it, the oldest first. What the first says ended is left out."""
    totals: dict[SeriesKey, Total] = {}
    for live in lives[1:]:
        for key, total in live.finished.items():
            totals.setdefault(key, Total()).add(total)
    routes: dict[str, Route] = {}
    errors = requests = 0
    for (metric, attributes), total in totals.items():
        if metric == REQUEST_DURATION:
            name, failed = _route_of(attributes)
            route = routes.setdefault(name, Route(name, Total(), 0))
            route.total.add(total)
            routes[name] = route._replace(errors=route.errors + (total.count if failed else 0))
            requests += total.count
            errors += total.count if failed else 0
    queue = Total()
    for (metric, _), total in totals.items():
        if metric == QUEUE_DURATION:
            queue.add(total)
    return Pace(
        (lives[-1].at_ns - lives[0].at_ns) / _NS if lives else 0.0,
        requests,
        errors,
        tuple(sorted(routes.values(), key=lambda route: -route.total.sum_ns)),
        queue,
        {worker.recorder: _pace_of(worker, lives) for worker in (lives[-1].workers if lives else ())},
    )


def _pace_of(last: Worker, lives: Sequence[Live]) -> WorkerPace:
    seen = [worker for live in lives for worker in live.workers if worker.recorder == last.recorder]
    first = seen[0]
    elapsed_ns = last.at_ns - first.at_ns
    probed_ns = last.probed_ns - first.probed_ns
    busy = last.busy
    if elapsed_ns > 0:
        busy = min(1.0, max(0.0, (last.busy_ns - first.busy_ns) / elapsed_ns / max(1, last.concurrency)))
    return WorkerPace(
        sum(worker.finished for worker in seen[1:]),
        busy,
        max(0.0, (last.cpu_ns - first.cpu_ns) / probed_ns) if first.probed_ns and probed_ns > 0 else None,
    )


def _route_of(attributes: str) -> tuple[str, bool]:
    """Name of a series of requests, and whether these failed."""
    found = json.loads(attributes)
    return route_name(found), "error.type" in found


# -- one recorder --------------------------------------------------------------------------------------------------


class _Unknown(Exception):
    """Nothing can be said; str() says why."""


def _directory(settings: Settings) -> str:
    try:
        directory = existing_service_dir(settings, os.environ)
    except RuntimeDirError as error:
        raise _Unknown(_of_another_user(settings) or str(error)) from None
    if directory is None:
        raise _Unknown(
            _of_another_user(settings)
            or "there is no runtime directory: the service does not run on this host, or runs as another user"
        )
    return directory


def _of_another_user(settings: Settings) -> str:
    """A line that says as whom to look, '' when it is not that."""
    mine = os.geteuid()
    if settings.runtime_dir is not None:
        try:
            owners = {os.stat(settings.runtime_dir).st_uid} - {mine}
        except OSError:
            return ""
        if not owners:
            return ""
        where = f"{settings.runtime_dir} belongs to"
    else:
        try:
            names = os.listdir("/dev/shm")
        except OSError:
            return ""
        owners = {int(found[1]) for name in names if (found := _OF_USER.fullmatch(name))} - {mine}
        where = "agents run on this host as"
    if not owners:
        return ""
    users = ", ".join(_user(uid) for uid in sorted(owners)[:5])
    return f"nothing of this service that user {_user(mine)} may read, {where} {users}: look as that user"


def _user(uid: int) -> str:
    import pwd  # Windows has none

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _names(directory: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(directory) if name.endswith(layout.SUFFIX))[:_MOST]
    except OSError as error:
        raise _Unknown(f"{directory}: {error.strerror}") from None


def _readers(directory: str, names: Sequence[str], broken: list[str]) -> Iterator[Reader]:
    """Recorders of processes that live, each open until the next one is asked for. broken: gets a line for the bad."""
    for name in names:
        try:
            reader = Reader.of_file(os.path.join(directory, name))
        except BadRecorder as error:
            broken.append(f"{os.path.join(directory, name)}: {error}; skipped")
            continue
        except OSError:
            continue  # just gone
        try:
            # That of a process which ended has nothing in flight; its slots say what it was doing last.
            if reader.is_of_this_boot and not reader.words()[layout.W_CLOSED] and _lives(reader):
                yield reader
        finally:
            reader.close()


def _lives(reader: Reader) -> bool:
    try:
        os.kill(reader.pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        # Of another container that shares the directory, whose pids are not seen here: then its lock tells.
        return reader.is_held()
    return True


def _rows(settings: Settings, wanted: set[str], known: Mapping[str, Worker]) -> dict[str, RecorderRow]:
    """What the store says of them, by id. It is not asked when the snapshot before knows all of them by number."""
    if all(name in known and (known[name].number or not known[name].serving) for name in wanted):
        return {}
    try:
        store = Store(store_path(settings), read_only=True)
    except (StoreError, RuntimeDirError):
        return {}  # none yet, or not now: the recorders are there all the same
    try:
        return {row.id: row for row in store.recorders()}
    except READ_ERRORS:
        return {}
    finally:
        store.close()


def _worker(reader: Reader, folder: Folder, delta: Delta, row: RecorderRow | None, earlier: Worker | None) -> Worker:
    words = reader.words()
    # Before the records: what leaves its slot from now on is in one of the two.
    now_ns = time.perf_counter_ns()
    flight = tuple(_doing(reader, now_ns))
    begin = earlier.position if earlier is not None else max(words[layout.W_TAIL], row.position if row else 0)
    read = _read_on(reader, folder, delta, begin, words[layout.W_TAIL])
    if earlier is not None:
        requests = None if earlier.requests is None else earlier.requests + read.requests
        served_ns = earlier.served_ns + read.served_ns
    else:
        # A store that has not counted it yet has counted nothing of it, unless somebody has.
        requests = row.requests + read.requests if row is not None else read.requests if begin == 0 else None
        served_ns = read.served_ns
    busy_ns = served_ns + sum(round(one.age_s * _NS) for one in flight)
    return Worker(
        recorder=reader.id,
        at_ns=now_ns,
        number=row.worker if row is not None else earlier.number if earlier is not None else 0,
        pid=reader.pid,
        serving=bool(words[layout.W_SERVING]),
        opened_at_s=reader.opened_at_ns / _NS,
        concurrency=max(1, words[layout.W_CONCURRENCY]),
        timeout_s=words[layout.W_TIMEOUT_MS] / 1000,
        memory_bytes=words[layout.W_MEMORY_BYTES],
        threads=words[layout.W_THREADS],
        cpu_ns=words[layout.W_CPU_USER_NS] + words[layout.W_CPU_SYSTEM_NS],
        probed_ns=words[layout.W_PROBED_AT],
        doing=flight,
        requests=requests,
        finished=read.requests,
        served_ns=served_ns,
        # What has just left its slot has a record that is too young to be read: for a moment it is in neither.
        busy_ns=busy_ns if earlier is None else max(busy_ns, earlier.busy_ns),
        busy=row.busy if row is not None else earlier.busy if earlier is not None else None,
        position=read.position,
        missed=read.missed,
    )


def _doing(reader: Reader, now_ns: int) -> list[Doing]:
    return [
        Doing(
            reader.id,
            reader.pid,
            max(0, now_ns - request.start_ns) / _NS,
            max(0, now_ns - request.stack_ns) / _NS if request.stack else None,
            request,
        )
        for request in reader.in_flight(stacks=_STACKS)
    ]


class _Read(NamedTuple):
    position: int
    requests: int
    served_ns: int
    missed: int


def _read_on(reader: Reader, folder: Folder, delta: Delta, begin: int, tail: int) -> _Read:
    """Fold the records from `begin` on. tail: what is below it has been drained, and may be written over."""
    ready_ns = time.perf_counter_ns() - _YOUTH_NS
    # Slots of time mean nothing here: whichever they are, they are added up.
    position, requests, served_ns, missed = begin, 0, 0, 0
    end = begin + reader.geometry.records  # a forged file may go on for ever, a ring does not
    while position < end:
        run = folder.fold(delta, reader.chunk(position, _CHUNK), position, ready_ns, 0)
        reached = run.position
        if reached == position:
            # Written over or never written, if it has been drained; else it is young, or just being written.
            if position >= tail:
                break
            reached = min(reader.next_written(position) or tail, tail)
            missed += reached - position
        position = reached
        requests += run.requests
        served_ns += run.served_ns
    return _Read(position, requests, served_ns, missed)
