"""The arbiter is told to end while clients are being served."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.collector import rotel
from tests.faults.rows import ends_by
from tests.faults.running import classes, outcome
from tests.faults.service import WAYS, Shape
from tests.faults.trial import SEEDS, Trial


@pytest.mark.parametrize("seed", SEEDS)
@classes("sync", "gthread", "gevent", "tornado", "eventlet")
def test_sigterm(tmp_path: Path, worker_class: str, seed: int) -> None:
    outcome("SIGTERM", tmp_path, seed, Shape(worker_class)).check()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("way", [way for way in WAYS if way != Shape.way])
def test_sigterm_however_it_was_started(tmp_path: Path, way: str, seed: int) -> None:
    outcome("SIGTERM", tmp_path, seed, Shape(way=way)).check()


@pytest.mark.parametrize("seed", SEEDS)
@classes("sync", "gthread")
@pytest.mark.parametrize("row", ["SIGINT", "SIGQUIT"])
def test_a_quick_end(tmp_path: Path, row: str, worker_class: str, seed: int) -> None:
    outcome(row, tmp_path, seed, Shape(worker_class, preload=worker_class == "sync")).check()


def test_a_real_collector_has_the_same_counts(tmp_path: Path) -> None:
    with rotel() as collector:
        trial = Trial("SIGTERM", tmp_path, 0, collector=collector)
        ends_by(signal.SIGTERM, trial)
        stored = trial.subject.stored(tmp_path)
        collector.wait_for(lambda it: it.request_counts() == stored)
        trial.verdict().check()
