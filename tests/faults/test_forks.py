"""Requests that fork: exact, and nothing of the agent's is shared with the child."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.faults.rows import forks
from tests.faults.running import classes, outcome
from tests.faults.service import WAYS, Shape
from tests.faults.trial import SEEDS, Trial
from tests.receiver import Receiver
from tests.serving import environment, run

REPORT = [sys.executable, "-c", "from paste_agent.cli.main import run; run()", "report", "--json", "faults.ini"]


def background_of(directory: Path) -> dict[str, int]:
    """How often each background task ran, as a report has it."""
    status, out, err = run(REPORT, directory, environment())
    assert status == 0, err
    found: dict[str, int] = {}
    for one in json.loads(out)["background"]:
        found[one["name"]] = found.get(one["name"], 0) + one["count"]
    return found


@pytest.mark.parametrize("seed", SEEDS)
@classes("sync", "gthread", "gevent")
def test_in_a_worker(tmp_path: Path, worker_class: str, seed: int) -> None:
    """What the children record is counted too, also of those that end by os._exit."""
    with Receiver() as receiver:
        trial = Trial("fork", tmp_path, seed, Shape(worker_class), collector=receiver)
        forks(trial)
        trial.verdict().check()
    served = trial.seen.served
    expected = {
        "in a forked child": served["GET", "/forks", 200],
        "in a process": served["GET", "/multiprocessing", 200],
    }
    assert served["GET", "/multiprocessing", 200]
    assert background_of(tmp_path) == {name: count for name, count in expected.items() if count}


@pytest.mark.parametrize("seed", SEEDS)
def test_while_it_is_killed(tmp_path: Path, seed: int) -> None:
    outcome("fork, worker SIGKILLed", tmp_path, seed, Shape("gthread")).check()


@pytest.mark.parametrize("way", WAYS)
def test_preloaded_with_a_task_that_runs_meanwhile(tmp_path: Path, way: str) -> None:
    """A task while the application is imported, which under preload is in the arbiter."""
    shape = Shape(way=way, preload=True, warm="warm caches")
    outcome("SIGTERM", tmp_path, 0, shape).check()
    assert background_of(tmp_path) == {"warm caches": 1}


def test_loaded_by_each_worker_with_a_task(tmp_path: Path) -> None:
    outcome("SIGTERM", tmp_path, 0, Shape(warm="warm caches", workers=3)).check()
    assert background_of(tmp_path) == {"warm caches": 3}


HOOKS = """
from paste_agent import background_task

def on_starting(arbiter):
    with background_task("on_starting"):
        pass

@background_task("on_reload")
def on_reload(arbiter):
    pass

def when_ready(arbiter):
    with background_task("when_ready"):
        pass

def pre_fork(arbiter, worker):
    with background_task("pre_fork"):
        pass

def pre_exec(arbiter):
    with background_task("pre_exec"):
        pass

def post_fork(arbiter, worker):
    with background_task("post_fork"):
        pass
"""


@pytest.mark.parametrize("way", ["gunicorn_paster", "pserve"])
def test_hooks_of_gunicorn(tmp_path: Path, way: str) -> None:
    """Work in them is reported, each time once, through a reload and an upgrade.

    Not that of an arbiter of gunicorn's own, which knows of no service: only the workers load the ini there.
    """
    shape = Shape(way=way, hooks=HOOKS)
    outcome("SIGUSR2 and SIGHUP", tmp_path, 0, shape).check()
    # Two arbiters with two workers each, and two more after the reload of the second.
    assert background_of(tmp_path) == {
        "on_starting": 2,
        "when_ready": 2,
        "pre_exec": 1,
        "on_reload": 1,
        "pre_fork": 6,
        "post_fork": 6,
    }
