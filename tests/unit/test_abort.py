"""A worker that is told by SIGABRT that its time is up writes down what it was at; the user's hook runs as ever."""

from __future__ import annotations

import os
import signal
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from paste_agent import reporter, runtime_dir
from paste_agent.store.store import Store
from tests.recorders import requests_of, run_script, settings_of, warnings

PRELUDE = """
import gunicorn.workers.base
import os, signal, sys, threading
from pathlib import Path
from gunicorn.config import Config
from paste_agent import lifecycle
from paste_agent.filter import AgentFilter
from paste_agent.recorder import layout
from tests.recorders import environ_of, reader_of, settings_of

agent = lifecycle.agent_of(settings_of(Path(sys.argv[1])))

class Worker(gunicorn.workers.base.Worker):
    '''The real one, as far as it has to be to abort.'''
    def __init__(self):
        self.cfg = Config()

worker = Worker()

def becomes_a_worker():
    signal.signal(signal.SIGABRT, worker.handle_abort)

def application(environ, start_response):
    environ['paste_agent.route'] = '/slow'
    in_the_page()
    start_response('200 OK', [])
    return [b'x']

def serve():
    body = AgentFilter(application, agent)(environ_of('/slow'), lambda status, headers, exc_info=None: None)
    for _ in body:
        pass
    body.close()

def in_the_page():
    os.kill(os.getpid(), signal.SIGABRT)

def told():
    reader = reader_of(recorder)
    print(recorder.word(layout.W_ABORTED), [(one.path, one.route) for one in reader.in_flight(stacks=9)])
    for one in reader.in_flight(stacks=9):
        print([line.rpartition(', in ')[2] for line in one.stack.splitlines()])
    reader.close()
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


def test_what_it_was_aborted_over_is_kept_though_it_ends(directory: Path) -> None:
    script = """
becomes_a_worker()
recorder = agent.serve()
try:
    serve()
except SystemExit:
    told()
"""
    assert run_script(PRELUDE + script, directory).splitlines() == [
        "1 [('/slow', '/slow')]",
        "['application', 'in_the_page']",  # and neither the handler nor what it called
    ]


def test_a_process_that_is_no_worker_of_gunicorns_is_not_touched(directory: Path) -> None:
    script = """
before = signal.getsignal(signal.SIGABRT)
recorder = agent.serve()
assert signal.getsignal(signal.SIGABRT) is before
os.kill(os.getpid(), signal.SIGABRT)
"""
    run_script(PRELUDE + script, directory, expect=-signal.SIGABRT)


@pytest.mark.parametrize("raises", [False, True])
def test_the_users_hook_goes_first_and_ours_follows_whatever_it_does(directory: Path, raises: bool) -> None:
    script = f"""
calls = []
def worker_abort(worker):
    calls.append(recorder.word(layout.W_ABORTED))
    if {raises}:
        raise ValueError('of the user')
worker.cfg.set('worker_abort', worker_abort)
becomes_a_worker()
recorder = agent.serve()
try:
    serve()
except (SystemExit, ValueError) as error:
    print(type(error).__name__, calls)
told()
"""
    first, second, _ = run_script(PRELUDE + script, directory).splitlines()
    assert first == ("ValueError [0]" if raises else "SystemExit [0]")
    assert second == "1 [('/slow', '/slow')]"


def test_two_services_and_two_starts_listen_once(directory: Path) -> None:
    script = """
calls = []
worker.cfg.set('worker_abort', lambda worker: calls.append(1))
becomes_a_worker()
agent.has_filter = True
other = lifecycle.agent_of(settings_of(Path(sys.argv[1]), service_name='other'))
other.has_filter = True
for _ in range(3):
    lifecycle.start_reporters()
recorder = agent.serve()
try:
    serve()
except SystemExit:
    print(calls, agent._faults, other.serving.word(layout.W_ABORTED))
told()
"""
    first, second, _ = run_script(PRELUDE + script, directory).splitlines()
    assert first == "[1] 0 1"
    assert second == "1 [('/slow', '/slow')]"


def test_all_threads_are_told_of(directory: Path) -> None:
    """The signal arrives in the main thread, which waits for its threads and serves nothing itself."""
    script = """
arrived, go_on = threading.Event(), threading.Event()

def in_the_page():
    arrived.set()
    go_on.wait(30)

becomes_a_worker()
recorder = agent.serve()
thread = threading.Thread(target=serve)
thread.start()
arrived.wait(30)
try:
    os.kill(os.getpid(), signal.SIGABRT)
except SystemExit:
    go_on.set()
thread.join()
told()
"""
    first, second = run_script(PRELUDE + script, directory).splitlines()
    assert first == "1 [('/slow', '/slow')]"
    assert second.startswith("['application', 'in_the_page', 'wait'")


def test_a_fault_of_the_agents_does_not_change_the_end(directory: Path) -> None:
    script = """
becomes_a_worker()
recorder = agent.serve()
agent._watch.last_look = lambda: 1 / 0
try:
    serve()
except SystemExit as error:
    print(error.code, recorder.word(layout.W_ABORTED), recorder.word(layout.W_INTERNAL_ERRORS))
"""
    assert run_script(PRELUDE + script, directory) == "1 1 1\n"


def test_a_forked_child_that_is_aborted_says_nothing_of_its_parent(directory: Path) -> None:
    script = """
becomes_a_worker()
recorder = agent.serve()

def in_the_page():
    pid = os.fork()
    if pid == 0:
        try:
            os.kill(os.getpid(), signal.SIGABRT)
        except SystemExit:
            os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    told()

serve()
"""
    assert run_script(PRELUDE + script, directory).splitlines() == ["0 [('/slow', '')]", "[]"]
    assert os.listdir(directory)


# -- what becomes of it until it is killed -------------------------------------------------------------------------

BEGIN = """
def begin(path, status='200 OK'):
    def application(environ, start_response):
        environ['paste_agent.route'] = path
        start_response(status, [])
        return [b'x']
    return AgentFilter(application, agent)(environ_of(path), lambda status, headers, exc_info=None: None)

def close(*bodies):
    for body in bodies:
        list(body)
        body.close()

def killed():
    os.kill(os.getpid(), signal.SIGKILL)

recorder = agent.serve()
"""


def told_of(directory: Path) -> tuple[dict[Any, int], list[list[str]]]:
    """Requests in the store by route and status; of each post-mortem the paths of what was lost."""
    settings = settings_of(directory)
    reporter.catch_up(settings, runtime_dir.service_dir(settings, {}), warnings())
    with closing(Store(settings.store, read_only=True)) as store:
        counts = {(route, status): count for (_, route, status), count in requests_of(store).items()}
        lost = [[one["path"] for one in row.summary["requests"]] for row in store.postmortems(0, 1e12, 100)]
        return counts, lost


@pytest.mark.parametrize("copy_lies_first", [False, True])
def test_an_answer_after_the_abort_is_counted_once(directory: Path, copy_lies_first: bool) -> None:
    """Handed over, and the client may have it; killed before the server closes it."""
    script = f"""
spare = recorder.pop_slot()
if not {copy_lies_first}:
    recorder.push_slot(spare)
body = begin('/late')
if {copy_lies_first}:
    recorder.push_slot(spare)
agent.abort()
list(body)
killed()
"""
    run_script(PRELUDE + BEGIN + script, directory, expect=-signal.SIGKILL)
    counts, _ = told_of(directory)
    assert counts == {("/late", 200): 1}


@pytest.mark.parametrize("more", [0, 600])
def test_an_answer_before_the_abort_is_counted_once_however_many_follow(directory: Path, more: int) -> None:
    """More of them than are looked through for the record of what was pinned."""
    script = f"""
body = begin('/early')
list(body)
agent.abort()
close(body)
for _ in range({more}):
    close(begin('/others'))
killed()
"""
    run_script(PRELUDE + BEGIN + script, directory, expect=-signal.SIGKILL)
    counts, _ = told_of(directory)
    assert counts == {("/early", 200): 1, **({("/others", 200): more} if more else {})}


@pytest.mark.parametrize("end", ["killed()", "sys.exit(1)"])
def test_what_ends_well_after_the_abort_is_not_lost_and_what_fails_is(directory: Path, end: str) -> None:
    """As the other threads' requests do; the abort makes a failure of the one that it was for."""
    script = f"""
well, failed, cut = begin('/well'), begin('/failed', '500 No'), begin('/cut')
agent.abort()
close(well, failed)
{end}
"""
    run_script(PRELUDE + BEGIN + script, directory, expect=1 if "exit" in end else -signal.SIGKILL)
    counts, lost = told_of(directory)
    assert counts == {("/well", 200): 1, ("/failed", 500): 1}
    assert lost == [["/failed", "/cut"]]
