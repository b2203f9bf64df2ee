"""Forks, threads and the end of a process: every request is counted once, by the process that served it.

What forks is a process of its own, never the one that runs the tests.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from paste_agent import runtime_dir
from paste_agent.recorder import lock
from paste_agent.recorder.reader import Reader
from tests.forking import counts, end_group, run, start
from tests.serving import wait_for

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


FORK = """
serve("/parent", 3)
lead()
parents = AGENT.serving
pid = os.fork()
if pid == 0:
    say(unopened=AGENT.serving is None and AGENT._recorder is None, tasks=len(os.listdir("/proc/self/task")),
        shared=links(), mapped=mapped())
    serve("/child", 5)
    say(own=AGENT.serving.id != parents.id, pid=str(AGENT.serving.id).startswith(f"{os.getpid()}-"),
        files=len(recorders()), maps=len(set(mapped())),
        parent_dead=Reader.of_file(parents.path).is_dead())
    END
status = joined(pid)
serve("/parent", 2)
say(status=status, same=AGENT.serving is parents, alive=not Reader.of_file(parents.path).is_dead())
"""


@pytest.mark.parametrize("end", ["os._exit(0)", "sys.exit(0)", "os.kill(os.getpid(), signal.SIGKILL)", "pass"])
def test_a_forked_child_is_a_process_of_its_own(tmp_path: Path, end: str) -> None:
    # `pass`: the child goes on with the parent's code, and finds nothing to wait for.
    script = FORK.replace("END", end).replace("status = joined(pid)", "status = joined(pid) if pid else 0")
    said = run(tmp_path, script)
    assert said["unopened"]
    assert said["tasks"] == 1
    # SQLite's own are left open: closing them is what would let go of locks.
    assert [link for link in said["shared"] if "store.sqlite" not in link] == []
    assert said["mapped"] == []
    assert said["own"]
    assert said["pid"]
    assert said["files"] == 2
    assert said["maps"] == 1
    assert not said["parent_dead"]
    assert said["alive"]
    if end != "pass":
        assert said["same"]
        assert counts(tmp_path) == {"/parent": 5, "/child": 5}
    else:
        assert counts(tmp_path) == {"/parent": 7, "/child": 5}
    assert list((tmp_path / "run").glob("*/*.recorder")) == []


def test_a_child_that_serves_nothing_leaves_nothing(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        """
serve("/parent")
lead()
for end in (sys.exit, os._exit, exit):
    pid = os.fork()
    if pid == 0:
        end(0)
    joined(pid)
say(files=len(recorders()))
""",
    )
    assert said["files"] == 1
    assert counts(tmp_path) == {"/parent": 1}


def test_a_fork_before_anything_is_recorded(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
pids = []
for _ in range(3):
    pids.append(os.fork())
    if pids[-1] == 0:
        serve("/child", 10)
        sys.exit(0)
for pid in pids:
    joined(pid)
serve("/parent", 10)
""",
    )
    assert counts(tmp_path) == {"/child": 30, "/parent": 10}


def test_children_of_children(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
for generation in range(4):
    serve(f"/{generation}", 7)
    pid = os.fork()
    if pid:
        joined(pid)
        sys.exit(0)
serve("/last")
""",
    )
    assert counts(tmp_path) == {"/0": 7, "/1": 7, "/2": 7, "/3": 7, "/last": 1}


IN_FLIGHT = """
def forks(environ, start_response):
    start_response("200 OK", [])
    global pid
    pid = os.fork()
    return [b"x"]

def forks_while_it_streams(environ, start_response):
    global pid
    start_response("200 OK", [])
    yield b"x"
    pid = os.fork()
    yield b"y"

def forks_and_fails(environ, start_response):
    global pid
    pid = os.fork()
    raise ValueError("after the fork")

serve("/before")
lead()
try:
    serve("/forks", 1, APPLICATION)
except ValueError:
    pass
if pid == 0:
    serve("/child", 2)
    sys.exit(0)
joined(pid)
say(in_flight=len(Reader(AGENT.serving.id, AGENT.serving.read, AGENT.serving.write, -1).in_flight()))
"""


@pytest.mark.parametrize("application", ["forks", "forks_while_it_streams", "forks_and_fails"])
def test_a_request_in_flight_during_the_fork_is_counted_once(tmp_path: Path, application: str) -> None:
    said = run(tmp_path, IN_FLIGHT.replace("APPLICATION", application))
    assert said["in_flight"] == 0
    assert counts(tmp_path) == {"/before": 1, "/forks": 1, "/child": 2}


KILLED = """
serve("/parent", 4)
lead()
CHILD
say(child=pid, recorder=AGENT.serving.path)
os.kill(os.getpid(), signal.SIGKILL)
"""
CHILDREN = {
    "fork": "pid = os.fork()\nif pid == 0:\n    time.sleep(60)\n    os._exit(0)",
    "fork that serves": "pid = os.fork()\nif pid == 0:\n    serve('/child')\n    time.sleep(60)\n    os._exit(0)",
    "preexec_fn": "pid = subprocess.Popen(['sleep', '60'], preexec_fn=lambda: None, close_fds=False).pid",
    "preexec_fn that serves": "pid = subprocess.Popen(['sleep', '60'], preexec_fn=lambda: serve('/child')).pid",
    "subprocess": "pid = subprocess.Popen(['sleep', '60'], close_fds=False).pid",
    "multiprocessing": "child = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,))\n"
    "child.start()\npid = child.pid",
}


@pytest.mark.parametrize("child", CHILDREN)
def test_a_child_keeps_no_lock_of_a_parent_that_was_killed(tmp_path: Path, child: str) -> None:
    process = start(tmp_path, KILLED.replace("CHILD", CHILDREN[child]))
    with process:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        assert process.wait(60) == -signal.SIGKILL
        try:
            os.kill(said["child"], 0)
            reader = Reader.of_file(said["recorder"])
            # The child may not have run yet since it was forked.
            wait_for(reader.is_dead, "the recorder of a dead process to be free")
            reader.close()
            if child != "fork that serves":  # that one may lead by now
                lease = os.open(Path(said["recorder"]).parent / runtime_dir.LEASE, os.O_RDWR)
                wait_for(lambda: lock.try_lock(lease), "the lease of a dead process to be free")
                os.close(lease)
        finally:
            end_group(process)


def test_two_threads_first_requests_open_one_recorder(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        """
sys.setswitchinterval(1e-6)
barrier = threading.Barrier(16)
def first():
    barrier.wait()
    serve("/first")
threads = [threading.Thread(target=first) for _ in range(16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
for _ in range(1000):
    if len(os.listdir("/proc/self/task")) <= 2:
        break  # the kernel takes a moment to forget a thread
    time.sleep(0.01)
say(files=len(recorders()), tasks=len(os.listdir("/proc/self/task")), maps=len(set(mapped())))
""",
    )
    assert said == {"files": 1, "tasks": 2, "maps": 1}
    assert counts(tmp_path) == {"/first": 16}


def test_a_fork_while_another_thread_opens(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        """
AGENT._opening.acquire()
pid = os.fork()
if pid == 0:
    serve("/child")
    sys.exit(0)
status = joined(pid)
AGENT._opening.release()
serve("/parent")
say(status=status)
""",
    )
    assert said["status"] == 0
    assert counts(tmp_path) == {"/child": 1, "/parent": 1}


def test_forks_among_the_requests_of_threads(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
stop = threading.Event()
served = [0] * 4
def keep_serving(place):
    while not stop.is_set():
        serve("/parent")
        served[place] += 1
        time.sleep(0.001)
threads = [threading.Thread(target=keep_serving, args=(place,)) for place in range(4)]
for thread in threads:
    thread.start()
for number in range(25):
    pid = os.fork()
    if pid == 0:
        serve("/child", 3)
        os._exit(0) if number % 2 else os.kill(os.getpid(), signal.SIGKILL)
    joined(pid)
stop.set()
for thread in threads:
    thread.join()
serve("/total", sum(served))
""",
    )
    found = counts(tmp_path)
    assert found["/child"] == 75
    assert found["/parent"] == found["/total"]


def test_multiprocessing(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
context = multiprocessing.get_context("fork")
def application(environ, start_response):
    with context.Pool(2) as pool:
        pool.starmap(serve, [("/pool", 5)] * 4)
    return fine(environ, start_response)
serve("/parent", 1, application)
workers = [context.Process(target=serve, args=("/process", 20)) for _ in range(3)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
""",
    )
    assert counts(tmp_path) == {"/parent": 1, "/pool": 20, "/process": 60}


def test_no_fork_finds_an_import_of_the_agents_half_done(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        """
from paste_agent import native
done, begun = [], threading.Event()
def work():
    with native.UNDIVIDED:
        begun.set()
        time.sleep(0.3)
        done.append(1)
threading.Thread(target=work).start()
begun.wait()
pid = os.fork()
if pid == 0:
    serve("/child")
    say(child=len(done))
    sys.exit(0)
joined(pid)
serve("/parent")
""",
    )
    assert said == {"child": 1}
    assert counts(tmp_path) == {"/child": 1, "/parent": 1}


def test_a_fork_waits_for_the_agent_no_longer_than_a_moment(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        """
from paste_agent import native
begun, end = threading.Event(), threading.Event()
def work():
    with native.UNDIVIDED:
        begun.set()
        end.wait()
thread = threading.Thread(target=work)
thread.start()
begun.wait()
pid = os.fork()  # this thread holds what the other waits for
if pid == 0:
    serve("/child")
    sys.exit(0)
joined(pid)
end.set()
thread.join()
pid = os.fork()
if pid == 0:
    os._exit(0)
serve("/parent")
say(status=joined(pid))
""",
    )
    assert said == {"status": 0}
    assert counts(tmp_path) == {"/child": 1, "/parent": 1}


def test_forks_while_the_reporter_begins(tmp_path: Path) -> None:
    """The reporter imports, takes the lease and opens the store just then; children have to do the same."""
    for number in range(8):
        run(
            tmp_path,
            f"""
serve("/parent")
time.sleep({number} * 0.01)
pid = os.fork()
if pid == 0:
    try:
        serve("/child", 1, lambda environ, start_response: 1 / 0)
    except ZeroDivisionError:
        sys.exit(0)
joined(pid)
""",
        )
    assert counts(tmp_path) == {"/parent": 8, "/child": 8}


WITHIN = """
import paste_agent

def forks(environ, start_response):
    pid = os.fork()
    if pid == 0:
        for _ in range(3):
            paste_agent.count("jobs.done")
            with paste_agent.span("job"):
                pass
        say(within=paste_agent.trace_context() is not None)
        sys.stdout.flush()
        lifecycle.finish([])
        os._exit(0)
    status = joined(pid)
    paste_agent.count("jobs.done")
    start_response("200 OK", [])
    return [b"x"]

serve("/forks", application=forks)
lifecycle.finish([])
from paste_agent.store.store import Store
store = Store(f"{DIRECTORY}/store.sqlite", read_only=True)
say(done=sum(one.total.sum_ns for one in store.totals() if one.metric == "count:jobs.done"))
store.close()
"""


def test_a_child_forked_within_a_request_is_not_within_it(tmp_path: Path) -> None:
    said = run(tmp_path, WITHIN)
    assert said["within"] is False
    assert said["done"] == 4
