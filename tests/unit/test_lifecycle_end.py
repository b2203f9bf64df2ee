"""The end of a process, and what it does without: every request is counted once, by the process that served it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.forking import counts, run, start

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def test_subprocesses_see_nothing_of_the_agent(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        """
serve("/parent")
lead()
before = set(recorders())
outs = [
    subprocess.run(["ls", "-l", "/proc/self/fd"], capture_output=True, text=True, close_fds=False,
                   preexec_fn=preexec).stdout
    for preexec in (None, lambda: None)
]
say(found=[line for out in outs for line in out.splitlines() if DIRECTORY in line], same=before == set(recorders()))
serve("/parent")
""",
    )
    assert said == {"found": [], "same": True}
    assert counts(tmp_path) == {"/parent": 2}


def test_the_parent_completes_what_its_workers_left(tmp_path: Path) -> None:
    """As gunicorn's arbiter does when it ends: without a reporter of its own, after workers that were killed."""
    said = run(
        tmp_path,
        """
pids = []
for number in range(4):
    pids.append(os.fork())
    if pids[-1] == 0:
        lifecycle.start_reporters()
        serve("/worker", 10)
        os.kill(os.getpid(), signal.SIGKILL if number % 2 else signal.SIGTERM)
for pid in pids:
    joined(pid)
before = len(os.listdir("/proc/self/task"))
lifecycle.finish([SETTINGS])
lifecycle.finish([SETTINGS])
say(before=before, tasks=len(os.listdir("/proc/self/task")), left=recorders())
""",
    )
    assert said["before"] == 1
    assert said["left"] == []
    assert counts(tmp_path) == {"/worker": 40}


def test_what_is_recorded_without_serving_is_drained_by_the_workers(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        """
AGENT.open()
say(tasks=len(os.listdir("/proc/self/task")), files=len(recorders()))
pid = os.fork()
if pid == 0:
    serve("/worker", 3)
    say(seen=len(recorders()))
    sys.exit(0)
joined(pid)
""",
    )
    assert said == {"tasks": 1, "files": 1, "seen": 2}
    assert counts(tmp_path) == {"/worker": 3}


@pytest.mark.parametrize("times", [1, 3])
def test_finishing_completes_however_often(tmp_path: Path, times: int) -> None:
    said = run(
        tmp_path,
        f"""
serve("/first", 1000)
for _ in range({times}):
    AGENT.finish()
say(left=recorders(), tasks=len(os.listdir("/proc/self/task")))
""",
    )
    assert said["left"] == []
    assert counts(tmp_path) == {"/first": 1000}


def test_a_runtime_directory_that_is_refused_costs_recovery_only(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o755)
    process = start(tmp_path, 'serve("/memory", 5)\npid = os.fork()\nif pid: joined(pid)\nserve("/both")')
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "Traceback" not in out + err
    assert err.count("chmod 700 it; recording in memory, without recovery after a kill") == 1
    assert counts(tmp_path) == {"/memory": 5, "/both": 2}


def test_where_no_thread_can_be_started_requests_are_counted_all_the_same(tmp_path: Path) -> None:
    script = """
threading.stack_size(1 << 62)  # so large that no thread can have it
serve("/first")
opened = len(os.listdir("/proc/self/fd"))
serve("/later", 20)
say(more=len(os.listdir("/proc/self/fd")) - opened, path=AGENT._crash_file.path, recorders=len(recorders()),
    crash=glob.glob(f"{DIRECTORY}/run/*/*.crash"))
lifecycle.finish([SETTINGS])
say(left=glob.glob(f"{DIRECTORY}/run/*/*.*"))
"""
    process = start(tmp_path, script)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert err.count("RuntimeError: can't start new thread") == 1
    first, last = map(json.loads, out.splitlines())
    assert first == {"more": 0, "path": first["path"], "recorders": 1, "crash": [first["path"]]}
    assert last == {"left": []}
    assert counts(tmp_path) == {"/first": 1, "/later": 20}
