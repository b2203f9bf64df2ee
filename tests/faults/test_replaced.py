"""Workers and arbiters that are replaced in order while clients are being served."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.running import classes, outcome
from tests.faults.service import Shape
from tests.faults.trial import SEEDS


@pytest.mark.parametrize("seed", SEEDS)
@classes("sync", "gthread", "gevent", "eventlet")
def test_reload(tmp_path: Path, worker_class: str, seed: int) -> None:
    outcome("SIGHUP", tmp_path, seed, Shape(worker_class)).check()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("way", ["gunicorn", "pserve"])
def test_reload_however_it_was_started(tmp_path: Path, way: str, seed: int) -> None:
    outcome("SIGHUP", tmp_path, seed, Shape(way=way, preload=way == "gunicorn")).check()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", [Shape(), Shape("gthread", way="gunicorn", preload=True)], ids=str)
def test_upgrade(tmp_path: Path, shape: Shape, seed: int) -> None:
    outcome("SIGUSR2", tmp_path, seed, shape).check()


@pytest.mark.parametrize("seed", SEEDS)
@classes("gthread")
def test_more_and_fewer_workers(tmp_path: Path, worker_class: str, seed: int) -> None:
    outcome("SIGTTIN and SIGTTOU", tmp_path, seed, Shape(worker_class)).check()


@pytest.mark.parametrize("seed", SEEDS)
@classes("sync", "gevent")
def test_recycling(tmp_path: Path, worker_class: str, seed: int) -> None:
    outcome("max_requests", tmp_path, seed, Shape(worker_class, preload=worker_class == "sync")).check()
