"""Runs a row of the table, for tests and for the long runs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from gunicorn.workers import SUPPORTED_WORKERS

from tests.faults.rows import ROWS
from tests.faults.service import Shape, Subject
from tests.faults.trial import Trial
from tests.faults.verdict import Verdict
from tests.receiver import Receiver


def outcome(
    row: str, directory: Path, seed: int, shape: Shape | None = None, subject: Subject | None = None
) -> Verdict:
    """One trial of a row, with a collector of its own."""
    function, changed = ROWS[row]
    with Receiver() as collector:
        trial = Trial(row, directory, seed, changed(shape or Shape()), subject=subject, collector=collector)
        function(trial)
        return trial.verdict()


def why_not(worker_class: str) -> str:
    """Why gunicorn has no such worker here; '' when it has."""
    if worker_class not in SUPPORTED_WORKERS:
        return "this gunicorn has no such worker"
    module = {"gevent": "gevent", "eventlet": "eventlet", "tornado": "tornado"}.get(worker_class)
    # Not imported here: of what it warns, and patches, the tests' own process is to have nothing.
    if module is not None and importlib.util.find_spec(module) is None:
        return f"{module} is not installed"
    return ""


def classes(*names: str) -> pytest.MarkDecorator:
    """A test for each of these worker classes."""
    found = []
    for name in names:
        reason = why_not(name)
        found.append(pytest.param(name, marks=[pytest.mark.skip(reason=reason)] if reason else []))
    return pytest.mark.parametrize("worker_class", found)
