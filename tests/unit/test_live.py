"""What processes are doing now: from recorders that live, that ended, and that are none; alone and on the page."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from paste_agent.live import Live, doing, pace, rates, snapshot
from paste_agent.recorder import layout
from paste_agent.recorder.writer import Recorder
from paste_agent.settings import Settings
from paste_agent.store.store import Store
from tests.dashboards import Browser, dashboard_of
from tests.recorders import (
    GEOMETRY,
    MS,
    S,
    Script,
    die,
    forged,
    in_flight,
    leading,
    leave,
    open_recorder,
    series_of,
    since,
    written,
)

STACK = 'File "/srv/shop/stock.py", line 7, in reserve'


@pytest.fixture
def recorder(directory: Path) -> Recorder:
    made = open_recorder(directory)
    made.set_word(layout.W_SERVING, 1)
    return made


def test_the_oldest_is_first(found: Settings, recorder: Recorder) -> None:
    in_flight(recorder, since(2), path=b"/younger")
    in_flight(recorder, since(9), path=b"/older", method=b"POST")
    told, why_not = doing(found)
    assert why_not == ""
    assert [(one.request.method, one.request.path, one.pid) for one in told] == [
        ("POST", "/older", os.getpid()),
        ("GET", "/younger", os.getpid()),
    ]
    assert 9 <= told[0].age_s < 60


def test_they_are_shown(tmp_path: Path, found: Settings, directory: Path, recorder: Recorder) -> None:
    with leading(tmp_path, recorder) as lead:
        lead.drain()
        at = in_flight(recorder, since(9), path="/é<script>".encode("latin-1") + b"\xff")
        recorder.set_stack(at, 1, since(1), STACK)
        page = Browser(dashboard_of(None, found)).get("/workers")
    (row,) = [one.text for one in page.all("tr") if "<script>" in one.text]
    assert STACK in row
    assert "stack, 1" in row


def test_nothing_is_in_flight(tmp_path: Path, found: Settings, recorder: Recorder) -> None:
    Store(found.store).close()
    assert doing(found) == ([], "")
    assert "Nothing is in flight" in Browser(dashboard_of(None, found)).get("/workers").text


def test_what_ended_or_is_no_recorder_is_passed_over(found: Settings, directory: Path, recorder: Recorder) -> None:
    in_flight(recorder, since(5), path=b"/lives")
    ended = open_recorder(directory)
    in_flight(ended, since(5), path=b"/ended")
    ended.set_word(layout.W_CLOSED, 1)
    written(directory / f"7-1{layout.SUFFIX}", b"no recorder")
    written(directory / f"7-2{layout.SUFFIX}", bytes(forged())[: GEOMETRY.size // 2])
    os.mkdir(directory / f"7-3{layout.SUFFIX}")
    os.symlink(recorder.path or "", directory / f"7-4{layout.SUFFIX}")
    told, _ = doing(found)
    assert [one.request.path for one in told] == ["/lives"]


def test_it_does_not_run_here(tmp_path: Path, found: Settings) -> None:
    Store(found.store).close()
    assert "does not run on this host" in doing(found)[1]
    assert "does not run on this host" in Browser(dashboard_of(None, found)).get("/workers").text


def test_the_directory_is_somebody_elses(found: Settings, directory: Path) -> None:
    directory.chmod(0o755)
    told, why_not = doing(found)
    assert told == []
    assert "others may enter it" in why_not


def test_looking_changes_nothing(found: Settings, recorder: Recorder) -> None:
    in_flight(recorder, since(5))
    path = Path(recorder.path or "")
    before = path.read_bytes()
    doing(found)
    assert path.read_bytes() == before


# -- rates ---------------------------------------------------------------------------------------------------------

RING = layout.Geometry(records=16, slots=2, series=4)


def entry_of(number: int, kind: int, fields: list[str | None]) -> bytes:
    packed = layout.encode_fields(fields)
    return layout.SERIES_HEAD.pack(number + 1, kind, len(packed)) + packed


ENTRIES = [
    entry_of(0, layout.KIND_SERVER, ["GET", "200", "/", None, "http", "1.1"]),
    entry_of(1, layout.KIND_DATABASE, ["sqlite"]),
    entry_of(2, layout.KIND_SERVER | layout.KIND_OVERFLOW, []),
]


def ring_of(directory: Path, ended_ago: list[float], *, first: int = 0, tail: int = 0, opened_ago: float = 100) -> None:
    """A recorder that has left records from number `first` on, which ended so many seconds ago."""
    records = [(0, 0, 0, 0, 0, 0)] * RING.records
    for number, ago in enumerate(ended_ago, first):
        records[number % RING.records] = (number % 3, 0, 0, since(ago) - MS, MS, number + 1)
    words = {layout.W_TAIL: tail, layout.W_SERVING: 1}
    data = forged(
        records=records, series=ENTRIES, words=words, geometry=RING, pid=os.getpid(), opened_ns=since(opened_ago)
    )
    written(directory / f"{os.getpid()}-1{layout.SUFFIX}", bytes(data))


def test_the_rate_is_of_requests_that_ended_in_the_last_ten_seconds(found: Settings, directory: Path) -> None:
    # Every third record is of a database; the first two requests, numbers 0 and 2, are too old.
    ring_of(directory, [60, 50, 40, 5, 4, 3, 2, 1, 0.5], tail=6)
    (rate,) = rates(found).values()
    assert rate == (4, pytest.approx(10))
    ring_of(directory, [60, 50, 40, 20], tail=4)
    (rate,) = rates(found).values()
    assert rate == (0, pytest.approx(10))


def test_the_rate_of_a_young_process_is_of_its_life(found: Settings, directory: Path) -> None:
    ring_of(directory, [2, 1], opened_ago=4)
    (rate,) = rates(found).values()
    assert rate.requests == 1
    assert 4 <= rate.seconds < 10


def test_the_rate_of_a_busy_process_is_of_what_its_ring_still_holds(found: Settings, directory: Path) -> None:
    # Numbers 90 to 105 are there; 96 to 101 have been drained, and what was before has been written over.
    ring_of(directory, [2 - 0.1 * place for place in range(16)], first=90, tail=102)
    (rate,) = rates(found).values()
    assert rate.requests == sum(number % 3 != 1 for number in range(90, 106))
    assert 2 <= rate.seconds < 10


def test_forged_words_give_no_endless_rate(found: Settings, directory: Path) -> None:
    ring_of(directory, [1], tail=(1 << 64) - 1)
    (rate,) = rates(found).values()
    assert rate.requests == 0


def test_rates_are_on_the_page(tmp_path: Path, found: Settings, recorder: Recorder) -> None:
    struct.pack_into("<Q", recorder.buffer, 32, since(100))  # when it was opened
    for _ in range(20):
        leave(recorder, series_of(recorder), end_ns=since(3))
    with leading(tmp_path, recorder) as lead:
        lead.drain()
    site = Browser(dashboard_of(None, found))
    page = site.get("/workers")
    assert "The rate is of the last 10 seconds." in page.text
    heads = [one.text for one in page.all("th")]
    assert heads.index("rate") == heads.index("requests") + 1
    assert "2.0/s" in [one.text for one in page.all("td")]
    recorder.mark_closed()
    assert "rate" not in [one.text for one in site.get("/workers").all("th")]


# -- snapshots -----------------------------------------------------------------------------------------------------


def finished_before(recorder: Recorder, count: int, *, series: int, duration_ns: int = MS, queue_us: int = 0) -> None:
    for _ in range(count):
        leave(recorder, series, duration_ns=duration_ns, queue_us=queue_us)


def test_a_worker_is_told_whole(tmp_path: Path, found: Settings, recorder: Recorder) -> None:
    recorder.set_word(layout.W_MEMORY_BYTES, 50 << 20)
    recorder.set_word(layout.W_CONCURRENCY, 4)
    recorder.set_word(layout.W_TIMEOUT_MS, 30_000)
    leave(recorder, series_of(recorder, "/items/{id}"))
    with leading(tmp_path, recorder) as lead:
        lead.drain()
    at = in_flight(recorder, since(3), path=b"/slow")
    recorder.set_route(at, 1, "/slow/{x}")
    recorder.set_stack(at, 1, since(1), STACK)
    live = snapshot(found)
    assert (live.why_not, live.broken, dict(live.finished)) == ("", (), {})
    (worker,) = live.workers
    assert (worker.number, worker.pid, worker.serving, worker.requests) == (1, os.getpid(), True, 1)
    assert (worker.concurrency, worker.memory_bytes, worker.timeout_s) == (4, 50 << 20, 30.0)
    (one,) = live.doing
    assert (one.request.path, one.request.route, one.request.stack) == ("/slow", "/slow/{x}", STACK)
    assert one.stack_age_s is not None
    assert 1 <= one.stack_age_s < one.age_s


def test_what_ends_between_two_snapshots_is_counted_once(tmp_path: Path, found: Settings, recorder: Recorder) -> None:
    fast, slow = series_of(recorder, "/fast"), series_of(recorder, "/slow", "500 Oops", "ValueError")
    finished_before(recorder, 5, series=fast)
    lives = [snapshot(found)]
    finished_before(recorder, 7, series=fast, queue_us=2001)
    lives.append(snapshot(found, lives[-1]))
    with leading(tmp_path, recorder) as lead:  # drained in between, they are still there
        finished_before(recorder, 2, series=slow, duration_ns=400 * MS)
        lead.drain()
        lives.append(snapshot(found, lives[-1]))
    assert [live.workers[0].requests for live in lives] == [5, 12, 14]
    told = pace(lives)
    assert (told.requests, told.errors) == (9, 2)
    assert [(route.name, route.total.count, route.errors) for route in told.routes] == [
        ("GET /slow", 2, 2),
        ("GET /fast", 7, 0),
    ]
    assert told.queue.count == 7
    assert told.workers[recorder.id].requests == 9
    assert lives[-1].workers[0].number == 1
    assert pace(lives[:1]).requests == pace([]).requests == 0


def busy_of(lives: list[Live]) -> float:
    ((_, worker),) = pace(lives).workers.items()
    assert worker.busy is not None
    return worker.busy


def test_busy_is_what_was_served_and_what_is_under_way(found: Settings, recorder: Recorder) -> None:
    idle = [snapshot(found)]
    idle.append(snapshot(found, idle[-1]))
    assert busy_of(idle) == 0.0
    in_flight(recorder, since(60))
    one = [snapshot(found)]
    one.append(snapshot(found, one[-1]))
    assert busy_of(one) == pytest.approx(1.0)
    recorder.set_word(layout.W_CONCURRENCY, 4)
    assert busy_of([one[-1], snapshot(found, one[-1])]) == pytest.approx(0.25)


def test_what_has_just_ended_was_busy_all_the_same(found: Settings, recorder: Recorder) -> None:
    at = in_flight(recorder, since(60))
    lives = [snapshot(found)]
    lives.append(snapshot(found, lives[-1]))
    recorder.leave_slot(at)  # and its record is not there yet
    lives.append(snapshot(found, lives[-1]))
    assert lives[-1].doing == []
    assert busy_of(lives) > 0
    leave(recorder, series_of(recorder), duration_ns=60 * S)
    lives.append(snapshot(found, lives[-1]))
    assert lives[-1].workers[0].busy_ns >= lives[1].workers[0].busy_ns


def test_cpu_is_of_the_time_between_two_probes(found: Settings, recorder: Recorder) -> None:
    recorder.set_word(layout.W_PROBED_AT, 10 * S)
    recorder.set_word(layout.W_CPU_USER_NS, S)
    lives = [snapshot(found)]
    assert pace(lives).workers[recorder.id].cpu is None
    recorder.set_word(layout.W_PROBED_AT, 12 * S)
    recorder.set_word(layout.W_CPU_USER_NS, 2 * S)
    lives.append(snapshot(found, lives[-1]))
    assert pace(lives).workers[recorder.id].cpu == 0.5


def test_records_that_were_written_over_are_missed_and_not_invented(
    tmp_path: Path, found: Settings, directory: Path
) -> None:
    small = open_recorder(directory, records=16)
    series = series_of(small)
    before = snapshot(found)
    with leading(tmp_path, small) as lead:
        for _ in range(3):
            finished_before(small, 16, series=series)
            lead.drain()
    live = snapshot(found, before)
    (worker,) = live.workers
    assert worker.missed + worker.finished == 48
    assert worker.missed >= 32
    assert snapshot(found, live).workers[0].finished == 0


@pytest.mark.parametrize(
    ("timeout_ms", "ages_s", "concurrency", "expected"),
    [(30_000, [10], 1, 20), (30_000, [40], 1, None), (30_000, [10, 5], 1, None), (30_000, [10], 4, None),
     (0, [10], 1, None), (30_000, [], 1, None)],
)  # fmt: skip
def test_the_timeout_to_come(
    found: Settings, recorder: Recorder, timeout_ms: int, ages_s: list[int], concurrency: int, expected: int | None
) -> None:
    recorder.set_word(layout.W_TIMEOUT_MS, timeout_ms)
    recorder.set_word(layout.W_CONCURRENCY, concurrency)
    for age_s in ages_s:
        in_flight(recorder, since(age_s))
    (worker,) = snapshot(found).workers
    left_s = worker.timeout_in_s
    assert (left_s is None) == (expected is None)
    assert left_s is None or expected is None or expected - 10 < left_s <= expected


def test_broken_recorders_are_told(found: Settings, directory: Path, recorder: Recorder) -> None:
    written(directory / f"7-1{layout.SUFFIX}", b"no recorder")
    data = bytearray(forged())
    data[8] ^= 0xFF  # the version of the layout
    written(directory / f"7-2{layout.SUFFIX}", bytes(data))
    live = snapshot(found)
    assert [worker.recorder for worker in live.workers] == [recorder.id]
    assert len(live.broken) == 2
    for line, *words in zip(live.broken, ("7-1", "7-2"), ("shorter than its header", "layout version"), strict=True):
        assert [word for word in words if word not in line] == []


def test_forged_words_and_positions_end(found: Settings, directory: Path) -> None:
    words = {layout.W_TAIL: (1 << 64) - 1, layout.W_SERVING: 7, layout.W_TIMEOUT_MS: (1 << 64) - 1}
    written(directory / f"7-1{layout.SUFFIX}", bytes(forged(words=words, pid=os.getpid())))
    live = snapshot(found)
    assert len(snapshot(found, live).workers) == 1
    assert live.finished == {}


KILLED = """
import os, signal, sys
sys.path[:0] = [os.getcwd()]
from pathlib import Path
from paste_agent.recorder import layout
from tests.recorders import in_flight, open_recorder, since
recorder = open_recorder(Path(sys.argv[1]))
recorder.set_word(layout.W_SERVING, 1)
in_flight(recorder, since(3), path=b"/last")
print("open", flush=True)
sys.stdin.read()
"""


def test_a_process_that_was_killed_is_not_there_any_more(found: Settings, directory: Path) -> None:
    with Script(KILLED, directory) as script:
        assert script.hear() == "open"
        assert [one.request.path for one in snapshot(found).doing] == ["/last"]
        script.kill()
        assert snapshot(found).workers == ()
    assert len(list(directory.glob(f"*{layout.SUFFIX}"))) == 1


def test_a_process_that_is_not_seen_here_lives_by_its_lock(found: Settings, recorder: Recorder) -> None:
    path = Path(recorder.path or "")
    data = bytearray(path.read_bytes()[: layout.HEADER.size])
    layout.HEADER.pack_into(
        data, 0, *[*layout.HEADER.unpack_from(data)[:3], (1 << 31) - 1, *layout.HEADER.unpack_from(data)[4:]]
    )
    with open(path, "r+b") as file:
        file.write(data)
    assert [worker.recorder for worker in snapshot(found).workers] == [recorder.id]
    die(recorder)
    assert snapshot(found).workers == ()


def test_the_directory_of_another_user(tmp_path: Path, found: Settings) -> None:
    if os.geteuid() != 0:
        pytest.skip("root alone gives files away")
    os.chown(tmp_path, 4711, 4711)
    why_not = snapshot(found).why_not
    assert "4711" in why_not
    assert "look as that user" in why_not
    assert "\n" not in why_not


def test_snapshots_change_nothing(found: Settings, recorder: Recorder) -> None:
    in_flight(recorder, since(5))
    finished_before(recorder, 3, series=series_of(recorder))
    path = Path(recorder.path or "")
    before = path.read_bytes()
    snapshot(found, snapshot(found))
    assert path.read_bytes() == before
