"""The reporter: requests through the real filter, in real processes, counted exactly however those end."""

from __future__ import annotations

import os
import random
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from paste_agent import kept, reporter, runtime_dir
from paste_agent.lease import Holder, Lease
from paste_agent.recorder import layout
from paste_agent.store.store import ENDED, LOST, Store
from tests.recorders import Script, postmortems_in, requests_of, run_script, scripts, settings_of, warnings
from tests.serving import wait_for

NOBODY = Holder("", 0)
#: Serves as many requests as each line of its input says, and acknowledges each on its output.
SERVES = """
import sys, time
from pathlib import Path
from paste_agent import filter, lifecycle
from tests.recorders import environ_of

directory, number = Path(sys.argv[1]), sys.argv[2]

def application(environ, start_response):
    environ['paste_agent.route'] = '/route/' + number
    if environ['PATH_INFO'] == '/raises':
        raise ValueError('as asked')
    start_response(environ['PATH_INFO'][1:] + ' Status', [])
    return [b'x']

keys = {'service_name': 'shop', 'store': str(directory / 'shop.sqlite'), 'runtime_dir': str(directory),
        'ring_records': '131072'}  # as fast as this is no service: between two drains all of it has to fit
wrapped = filter.main(application, {'__file__': str(directory / 'shop.ini')}, **keys)

def serve(path='/200'):
    try:
        body = wrapped(environ_of(path), lambda status, headers, exc_info=None: None)
    except ValueError:
        return
    for _ in body:
        pass
    body.close()

print('ready', flush=True)
for line in sys.stdin:
    amount, _, path = line.strip().partition(' ')
    for _ in range(int(amount)):
        serve(path or '/200')
        sys.stdout.write('.\\n')
        sys.stdout.flush()
    print('done', flush=True)
"""
#: The same, ending in order inside the script: what it left can be looked at before the interpreter ends.
FINISHES = SERVES + "lifecycle._finish_all()\nprint('finished', flush=True)\n"


def served(process: Script, amount: int, path: str = "/200") -> None:
    process.say(f"{amount} {path}")
    lines = 0
    while process.hear() != "done":
        lines += 1
    assert lines == amount


def counts_in(directory: Path) -> dict[tuple[str, int], int]:
    """By route and status, as a reader of the store finds them."""
    with closing(Store(str(directory / "shop.sqlite"), read_only=True)) as store:
        return {(route, status): count for (_, route, status), count in requests_of(store).items()}


def states_in(directory: Path) -> Counter[str]:
    with closing(Store(str(directory / "shop.sqlite"), read_only=True)) as store:
        return Counter(row.state for row in store.recorders())


def dropped_in(directory: Path) -> int:
    with closing(Store(str(directory / "shop.sqlite"), read_only=True)) as store:
        return sum(count for (name, _), count in store.counters().items() if name == "paste_agent.records.dropped")


def left_in(directory: Path) -> list[str]:
    """Recorders and files of traces that nobody has taken up."""
    place = runtime_dir.service_dir(settings_of(directory), {})
    return [name for name in os.listdir(place) if name.endswith((layout.SUFFIX, kept.SUFFIX))]


def catch_up(directory: Path) -> None:
    settings = settings_of(directory)
    reporter.catch_up(settings, runtime_dir.service_dir(settings, {}), warnings())


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


def test_what_was_served_is_in_the_store_when_the_process_has_finished(directory: Path) -> None:
    with Script(FINISHES, directory, 0) as process:
        assert process.hear() == "ready"
        for path, amount in (("/200", 250), ("/404", 30), ("/503", 20), ("/raises", 10)):
            served(process, amount, path)
        output, errors = process.end()
        assert output == "finished\n"
        assert errors == ""
        assert process.process.returncode == 0
    assert counts_in(directory) == {
        ("/route/0", 200): 250,
        ("/route/0", 404): 30,
        ("/route/0", 503): 20,
        ("/route/0", 500): 10,
    }
    assert left_in(directory) == []
    assert states_in(directory) == {ENDED: 1}


def test_a_process_without_traffic_leaves_nothing(directory: Path) -> None:
    run_script(SERVES, directory, 0)
    assert sorted(os.listdir(directory)) == []


def test_a_process_that_lives_for_one_request_is_counted(directory: Path) -> None:
    script = SERVES.replace("for line in sys.stdin:", "serve(); sys.exit()\nfor line in ():")
    for number in range(3):
        run_script(script, directory, number)
    assert counts_in(directory) == {(f"/route/{number}", 200): 1 for number in range(3)}
    assert left_in(directory) == []


POISONED = """
import threading
from tests.recorders import reader_of
from tests.serving import wait_for

class Detached:
    def __hash__(self):
        raise RuntimeError('detached')

def hangs(environ, start_response):
    environ['wsgiorg.routing_args'] = (), {'item': Detached()}
    assert released.wait(60)
    start_response('200 OK', [])
    return [b'x']

def serve_poisoned():
    filtered = filter.AgentFilter(hangs, wrapped.agent)
    body = filtered(environ_of('/poisoned'), lambda status, headers, exc_info=None: None)
    list(body)
    body.close()

released = threading.Event()
thread = threading.Thread(target=serve_poisoned, daemon=True)
thread.start()
wait_for(lambda: wrapped.agent.serving is not None, 'the first request')
seen = reader_of(wrapped.agent.serving)
wait_for(lambda: [one for one in seen.in_flight(stacks=1) if one.stack], 'its stack')
seen.close()
print('ready', flush=True)
for line in sys.stdin:
    for _ in range(int(line)):
        serve()
    print('done', flush=True)
released.set()
thread.join()
"""


def test_a_request_whose_route_raises_keeps_nobody_from_being_drained(directory: Path) -> None:
    script = SERVES.partition("print('ready'")[0].replace("'ring_records'", "'slow_request_s': '0.1', 'ring_records'")
    with Script(script + POISONED, directory, 0) as process:
        assert process.hear() == "ready"  # the reporter has looked at it
        process.say(50)
        assert process.hear() == "done"

        def drained() -> bool:
            return (directory / "shop.sqlite").exists() and counts_in(directory) == {("/route/0", 200): 50}

        wait_for(drained, "a drain")
        _, errors = process.end()
        assert process.process.returncode == 0, errors
        assert "fault of the agent in report" not in errors
    assert sorted(counts_in(directory).values()) == [1, 50]
    assert dropped_in(directory) == 0


def test_failed_requests_have_their_details_in_the_store(directory: Path) -> None:
    with Script(SERVES, directory, 0) as process:
        assert process.hear() == "ready"
        served(process, 5, "/raises")
        assert process.end() == ("", "")
    with closing(Store(str(directory / "shop.sqlite"), read_only=True)) as store:
        rows = store.traces(0, 1e12, "newest", True, 100)
        assert len(rows) == 5
        for row in rows:
            assert row.detail is not None
            assert row.attributes["error.type"] == "ValueError"
            assert "as asked" in str(row.detail["exception"])


def test_a_process_that_ends_leaves_all_details_however_long(directory: Path) -> None:
    many = """
        from paste_agent.spans import span
        for _ in range(200):
            with span('row') as one:
                for name in 'abc':
                    one.set(name, 'x' * 1000)"""
    raises = "    if environ['PATH_INFO'] == '/raises':"
    with Script(SERVES.replace(raises, raises + many), directory, 0) as process:
        assert process.hear() == "ready"
        served(process, 8, "/raises")
        assert process.end() == ("", "")
    assert left_in(directory) == []
    with closing(Store(str(directory / "shop.sqlite"), read_only=True)) as store:
        details: list[Any] = [row.detail for row in store.traces(0, 1e12, "newest", True, 100)]
        assert [len((detail or {}).get("spans", ())) for detail in details] == [200] * 8


def test_two_processes_that_end_at_the_same_time_are_both_counted(directory: Path) -> None:
    for turn in range(4):
        with scripts(2, SERVES, directory) as processes:
            for process in processes:
                assert process.hear() == "ready"
                served(process, 50)
            for process in processes:
                process.close_input()
            for process in processes:
                assert process.process.wait(60) == 0
        assert counts_in(directory) == {(f"/route/{number}", 200): 50 * (turn + 1) for number in range(2)}
        assert left_in(directory) == []
    assert states_in(directory) == {ENDED: 8}


def test_a_process_that_ends_leaves_the_lead_to_the_other(directory: Path) -> None:
    with scripts(3, SERVES, directory) as processes:
        for process in processes:
            assert process.hear() == "ready"
            served(process, 40)
        for process in processes:
            assert process.end() == ("", "")
            for other in processes:
                if other.process.poll() is None:
                    served(other, 7)
    assert counts_in(directory) == {("/route/0", 200): 40, ("/route/1", 200): 47, ("/route/2", 200): 54}
    assert left_in(directory) == []


#: Tells when it waits for the lease in order to complete the count.
WAITS = FINISHES.replace(
    "print('ready', flush=True)",
    """
from paste_agent import native, reporter

def told(seconds, sleep=native.sleep):
    if seconds == reporter._LEASE_POLL_S:
        print('waits', flush=True)
        native.sleep = sleep
    sleep(seconds)

native.sleep = told
print('ready', flush=True)
""",
).replace("'131072'", "'131072', 'shutdown_timeout_s': '60'")


def test_a_process_that_ends_waits_for_a_lead_that_ends_too(directory: Path) -> None:
    """The arbiter, say, which may have done its last drain already."""
    place = runtime_dir.service_dir(settings_of(directory), {})
    arbiter = Lease(os.path.join(place, runtime_dir.LEASE), Holder("", 1))
    assert arbiter.try_take()
    with Script(WAITS, directory, 0) as process:
        assert process.hear() == "ready"
        served(process, 20)
        process.close_input()
        assert process.hear() == "waits"
        arbiter.let_go()
        assert process.hear() == "finished"
        assert counts_in(directory) == {("/route/0", 200): 20}
    assert left_in(directory) == []


def test_a_process_that_ends_does_not_wait_for_a_lead_that_stays(directory: Path) -> None:
    with Script(SERVES, directory, 0) as lead, Script(WAITS, directory, 1) as process:
        assert lead.hear() == process.hear() == "ready"
        served(lead, 1)
        lease = Lease(os.path.join(runtime_dir.service_dir(settings_of(directory), {}), runtime_dir.LEASE), NOBODY)
        wait_for(lease.holder, "the lead")
        served(process, 20)
        assert process.end() == ("finished\n", "")
        assert lead.end() == ("", "")
    assert counts_in(directory) == {("/route/0", 200): 1, ("/route/1", 200): 20}


def test_the_lead_is_killed_and_nothing_is_lost(directory: Path) -> None:
    with scripts(2, SERVES, directory) as processes:
        for process in processes:
            assert process.hear() == "ready"
        served(processes[0], 100)  # the first to serve leads
        served(processes[1], 100)
        processes[0].kill()
        served(processes[1], 50)
        output, errors = processes[1].end()
        assert output == ""
        assert postmortems_in(errors) == [processes[0].process.pid]
        assert "nothing was in flight" in errors
    assert counts_in(directory) == {("/route/0", 200): 100, ("/route/1", 200): 150}
    assert left_in(directory) == []
    assert states_in(directory) == {ENDED: 1, LOST: 1}


def test_a_whole_service_that_is_killed_is_counted_when_somebody_looks(directory: Path) -> None:
    with scripts(3, SERVES, directory) as processes:
        for process in processes:
            assert process.hear() == "ready"
            served(process, 60)
        for process in processes:
            process.kill()
    catch_up(directory)
    assert counts_in(directory) == {(f"/route/{number}", 200): 60 for number in range(3)}
    assert left_in(directory) == []
    catch_up(directory)
    assert sum(counts_in(directory).values()) == 180


def test_a_whole_service_that_is_killed_is_counted_by_the_next_start(directory: Path) -> None:
    with scripts(2, SERVES, directory) as processes:
        for process in processes:
            assert process.hear() == "ready"
            served(process, 60)
        for process in processes:
            process.kill()
    with Script(SERVES, directory, 9) as process:
        assert process.hear() == "ready"
        served(process, 1)
        output, errors = process.end()
        assert output == ""
        assert postmortems_in(errors) == sorted(one.process.pid for one in processes)
    assert counts_in(directory) == {("/route/0", 200): 60, ("/route/1", 200): 60, ("/route/9", 200): 1}
    assert states_in(directory) == {ENDED: 1, LOST: 2}


def test_catching_up_leaves_a_living_service_to_its_lead(directory: Path) -> None:
    with Script(SERVES, directory, 0) as process:
        assert process.hear() == "ready"
        served(process, 10)
        for _ in range(5):
            catch_up(directory)
        served(process, 10)
        assert process.end() == ("", "")
    assert counts_in(directory) == {("/route/0", 200): 20}
    assert states_in(directory) == {ENDED: 1}


def test_processes_that_are_killed_again_and_again_are_counted_exactly(directory: Path) -> None:
    """Ten rounds of three processes, killed in the middle of their work or ended in order.

    Of a process that is killed, every request that it acknowledged counts, and at most one that it had finished but
    not yet acknowledged.
    """
    draw = random.Random(4)
    acknowledged: Counter[str] = Counter()
    may_be_more: Counter[str] = Counter()
    for _ in range(10):
        with scripts(3, SERVES, directory) as processes:
            for process in processes:
                assert process.hear() == "ready"
                process.say(1_000_000)
            for number, process in enumerate(processes):
                for _ in range(draw.randrange(50, 2000)):
                    assert process.hear() == "."
                    acknowledged[f"/route/{number}"] += 1
            order = [0, 1, 2]
            draw.shuffle(order)
            for number in order:  # the lead among them, sooner or later
                processes[number].kill()
                stdout = processes[number].process.stdout
                assert stdout is not None
                acknowledged[f"/route/{number}"] += stdout.read().count(".\n")
                may_be_more[f"/route/{number}"] += 1
    catch_up(directory)
    assert dropped_in(directory) == 0
    counted = {route: count for (route, _), count in counts_in(directory).items()}
    for route, least in acknowledged.items():
        assert least <= counted[route] <= least + may_be_more[route]
    assert sum(acknowledged.values()) > 5000
    assert left_in(directory) == []


def test_some_killed_and_some_ended_are_counted_exactly(directory: Path) -> None:
    draw = random.Random(5)
    expected: Counter[tuple[str, int]] = Counter()
    waiting: set[int] = set()  # for their post-mortem
    for _ in range(6):
        with scripts(3, SERVES, directory) as processes:
            for number, process in enumerate(processes):
                assert process.hear() == "ready"
                for status in (200, 404, 500):
                    amount = draw.randrange(1, 120)
                    served(process, amount, f"/{status}")
                    expected[f"/route/{number}", status] += amount
            killed: list[int] = []
            told: list[int] = []  # by one that lives on; the rest in the next round, or in the last look
            for process in draw.sample(processes, 3):
                if draw.random() < 0.5:
                    process.kill()
                    killed.append(process.process.pid)
                else:
                    output, errors = process.end()
                    assert output == ""
                    told += postmortems_in(errors)
            assert len(set(told)) == len(told)
            assert set(told) <= {*killed, *waiting}
            waiting = {*killed, *waiting} - set(told)
    catch_up(directory)
    assert counts_in(directory) == expected
    assert left_in(directory) == []


def test_a_service_without_a_place_for_recorders_is_counted_in_its_own_memory(directory: Path) -> None:
    runtime = directory / "open"
    runtime.mkdir(mode=0o755)
    runtime.chmod(0o755)  # others may enter it: refused
    script = SERVES.replace("'runtime_dir': str(directory)", "'runtime_dir': str(directory / 'open')")
    with Script(script, directory, 0) as process:
        assert process.hear() == "ready"
        served(process, 30)
        served(process, 3, "/raises")
        _, errors = process.end()
        assert "recording in memory" in errors
        assert errors.count("\n") == 1
    assert counts_in(directory) == {("/route/0", 200): 30, ("/route/0", 500): 3}
    with closing(Store(str(directory / "shop.sqlite"), read_only=True)) as store:
        assert len(store.traces(0, 1e12, "newest", True, 100)) == 3
    assert os.listdir(runtime) == []


FORKS = SERVES.replace(
    "print('ready', flush=True)",
    """
import os
print('ready', flush=True)
serve()
pids = []
for child in range(3):
    pid = os.fork()
    if pid == 0:
        number = f'child-{child}'
        for _ in range(20):
            serve()
        if child == 0:
            os._exit(0)          # as multiprocessing ends: nothing is told, nothing must be lost
        sys.exit(0)
    pids.append(pid)
    serve()
for pid in pids:
    assert os.waitpid(pid, 0)[1] == 0
serve()
""",
)


def test_children_that_are_forked_while_serving_are_counted_too(directory: Path) -> None:
    run_script(FORKS, directory, 0)
    assert counts_in(directory) == {
        ("/route/0", 200): 5,
        ("/route/child-0", 200): 20,
        ("/route/child-1", 200): 20,
        ("/route/child-2", 200): 20,
    }
    assert left_in(directory) == []
