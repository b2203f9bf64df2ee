"""SIGKILL, which nothing can prepare for, to one worker, to the lead, and to everything."""

from __future__ import annotations

import http.client
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.running import classes, outcome
from tests.faults.service import Shape, kill
from tests.faults.trial import SEEDS, Trial


@pytest.mark.parametrize("seed", SEEDS)
@classes("sync", "gthread", "gevent", "tornado", "eventlet")
def test_worker(tmp_path: Path, worker_class: str, seed: int) -> None:
    outcome("worker SIGKILLed", tmp_path, seed, Shape(worker_class)).check()


@pytest.mark.parametrize("seed", SEEDS)
@classes("sync", "gevent")
def test_lead(tmp_path: Path, worker_class: str, seed: int) -> None:
    outcome("lead SIGKILLed", tmp_path, seed, Shape(worker_class)).check()


@pytest.mark.parametrize("seed", SEEDS)
@classes("gthread")
def test_everything_and_started_again(tmp_path: Path, worker_class: str, seed: int) -> None:
    outcome("all SIGKILLed, started again", tmp_path, seed, Shape(worker_class)).check()


@pytest.mark.parametrize("seed", SEEDS)
def test_everything_and_not_started_again(tmp_path: Path, seed: int) -> None:
    verdict = outcome("all SIGKILLed, then a report", tmp_path, seed)
    verdict.agree = False  # a report sends nothing
    verdict.check()


#: gunicorn writes the last byte, then the access log, and only then closes the response.
SLOW_LOG = """
import time
from gunicorn.glogging import Logger

class logger_class(Logger):
    def access(self, resp, req, environ, request_time):
        time.sleep(5)
"""


@classes("sync", "gthread", "gevent")
def test_between_the_answer_and_its_close(tmp_path: Path, worker_class: str) -> None:
    """The client has all of its answer: the request is counted, though its worker never came to end it."""
    trial = Trial("killed before close", tmp_path, 0, Shape(worker_class, workers=1, hooks=SLOW_LOG))
    with trial.serving() as server:
        (worker,) = server.workers()
        for path, status in (("/hello", 200), ("/stream", 200)):
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            try:
                connection.request("GET", path)
                with connection.getresponse() as response:
                    assert response.read()
                trial.seen.served["GET", path, status] += 1
            finally:
                connection.close()
            kill(worker)
            server.wait_for(lambda: worker not in server.workers(), "another worker")  # noqa: B023
            trial.wait_until_all_serve()
            (worker,) = server.workers()
        assert server.stop() == 0
    trial.verdict().check()


def test_a_request_that_is_killed_halfway_is_not_counted(tmp_path: Path) -> None:
    """What no client saw and no application finished is none of the requests that were served."""
    trial = Trial("killed halfway", tmp_path, 0, Shape(workers=1))
    with trial.serving() as server:
        (worker,) = server.workers()
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        try:
            connection.request("GET", "/slow")
            time.sleep(0.02)
            kill(worker)
            with pytest.raises((http.client.HTTPException, OSError)):
                connection.getresponse()
        finally:
            connection.close()
        with trial.load(20):
            pass
        assert server.stop() == 0
    trial.verdict().check()
    assert Counter(trial.subject.stored(tmp_path)) == trial.seen.served
