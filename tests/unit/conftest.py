"""Fixtures that several files of unit tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from paste_agent.recorder.reader import Reader
from paste_agent.recorder.writer import Recorder
from paste_agent.runtime_dir import service_dir
from paste_agent.settings import Settings
from paste_agent.store.store import Store
from tests.filtering import Measured
from tests.recorders import reader_of, settings_of


@pytest.fixture
def measure(tmp_path: Path) -> Iterator[Callable[..., Measured]]:
    """Makes services. At the end each is finished, and its store must hold what its ring held."""
    made: list[Measured] = []

    def make(**local_conf: str) -> Measured:
        made.append(Measured(tmp_path, **local_conf))
        return made[-1]

    yield make
    for service in made:
        opened = service.agent._recorder is not None
        if opened and service.agent.serving is not None:
            assert service.stored() == service.counts()
        service.agent.finish()


@pytest.fixture
def service(measure: Callable[..., Measured]) -> Measured:
    return measure()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty one."""
    opened = Store(str(tmp_path / "shop.sqlite"))
    yield opened
    opened.close()


@pytest.fixture
def found(tmp_path: Path) -> Settings:
    """The settings of a service that keeps recorders and store in the test's directory."""
    tmp_path.chmod(0o700)
    return settings_of(tmp_path)


@pytest.fixture
def directory(found: Settings) -> Path:
    """Where the recorders of that service are."""
    return Path(service_dir(found, {}))


@pytest.fixture
def reader(recorder: Recorder) -> Iterator[Reader]:
    """Of the recorder that a file's own fixture opens."""
    opened = reader_of(recorder)
    yield opened
    opened.close()
