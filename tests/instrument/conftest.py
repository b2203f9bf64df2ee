"""What several files of these tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from paste_agent.recorder.writer import Recorder
from tests.databases import Server, or_skipped, running_postgresql
from tests.recorders import die, open_recorder


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Server]:
    yield from or_skipped(running_postgresql)


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    opened = open_recorder(tmp_path)
    yield opened
    die(opened)


@pytest.fixture
def keeping(tmp_path: Path) -> Iterator[Recorder]:
    """A recorder that keeps every transaction with all that is inside of it."""
    opened = open_recorder(tmp_path, keep_all=True)
    yield opened
    die(opened)
