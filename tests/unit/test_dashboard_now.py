"""The Workers page while workers work: what is in flight, from recorders that live, that ended, and that are none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from paste_agent.dashboard.now import doing
from paste_agent.recorder import layout
from paste_agent.recorder.writer import Recorder
from paste_agent.runtime_dir import service_dir
from paste_agent.settings import Settings
from paste_agent.store.store import Store
from tests.dashboards import Browser, dashboard_of
from tests.recorders import GEOMETRY, forged, in_flight, leading, open_recorder, settings_of, since, written

STACK = 'File "/srv/shop/stock.py", line 7, in reserve'


@pytest.fixture
def found(tmp_path: Path) -> Settings:
    tmp_path.chmod(0o700)
    return settings_of(tmp_path)


@pytest.fixture
def directory(found: Settings) -> Path:
    return Path(service_dir(found, {}))


@pytest.fixture
def recorder(directory: Path) -> Recorder:
    made = open_recorder(directory)
    made.set_word(layout.W_SERVING, 1)
    return made


def test_the_oldest_is_first(found: Settings, recorder: Recorder) -> None:
    in_flight(recorder, since(2), path=b"/younger")
    in_flight(recorder, since(9), path=b"/older", method=b"POST")
    told, why_not = doing(found)
    assert why_not == ""
    assert [(one.request.method, one.request.path, one.pid) for one in told] == [
        ("POST", "/older", os.getpid()),
        ("GET", "/younger", os.getpid()),
    ]
    assert 9 <= told[0].age_s < 60


def test_they_are_shown(tmp_path: Path, found: Settings, directory: Path, recorder: Recorder) -> None:
    with leading(tmp_path, recorder) as lead:
        lead.drain()
        at = in_flight(recorder, since(9), path="/é<script>".encode("latin-1") + b"\xff")
        recorder.set_stack(at, 1, since(1), STACK)
        page = Browser(dashboard_of(None, found)).get("/workers")
    (row,) = [one.text for one in page.all("tr") if "<script>" in one.text]
    assert STACK in row
    assert "stack, 1" in row


def test_nothing_is_in_flight(tmp_path: Path, found: Settings, recorder: Recorder) -> None:
    Store(found.store).close()
    assert doing(found) == ([], "")
    assert "Nothing is in flight" in Browser(dashboard_of(None, found)).get("/workers").text


def test_what_ended_or_is_no_recorder_is_passed_over(found: Settings, directory: Path, recorder: Recorder) -> None:
    in_flight(recorder, since(5), path=b"/lives")
    ended = open_recorder(directory)
    in_flight(ended, since(5), path=b"/ended")
    ended.set_word(layout.W_CLOSED, 1)
    written(directory / f"7-1{layout.SUFFIX}", b"no recorder")
    written(directory / f"7-2{layout.SUFFIX}", bytes(forged())[: GEOMETRY.size // 2])
    os.mkdir(directory / f"7-3{layout.SUFFIX}")
    os.symlink(recorder.path or "", directory / f"7-4{layout.SUFFIX}")
    told, _ = doing(found)
    assert [one.request.path for one in told] == ["/lives"]


def test_it_does_not_run_here(tmp_path: Path, found: Settings) -> None:
    Store(found.store).close()
    assert "does not run on this host" in doing(found)[1]
    assert "does not run on this host" in Browser(dashboard_of(None, found)).get("/workers").text


def test_the_directory_is_somebody_elses(found: Settings, directory: Path) -> None:
    directory.chmod(0o755)
    told, why_not = doing(found)
    assert told == []
    assert "others may enter it" in why_not


def test_looking_changes_nothing(found: Settings, recorder: Recorder) -> None:
    in_flight(recorder, since(5))
    path = Path(recorder.path or "")
    before = path.read_bytes()
    doing(found)
    assert path.read_bytes() == before
