"""What the arbiter knows of a worker goes into that worker's recorder, and into nothing else."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from paste_agent import lifecycle
from paste_agent.recorder import layout
from paste_agent.recorder.writer import Recorder
from paste_agent.runtime_dir import service_dir
from paste_agent.server.witness import BOOT, Witness
from paste_agent.settings import Settings
from tests.filtering import Measured
from tests.recorders import die, open_recorder, settings_of

PID = os.getpid()
TOLD = {
    layout.W_EXIT: "exit", layout.W_EXIT_AT: "exit_at", layout.W_KILLED_WITH: "killed_with",
    layout.W_TIMED_OUT: "timed_out",
}  # fmt: skip


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    tmp_path.chmod(0o700)
    return settings_of(tmp_path)


@pytest.fixture
def directory(settings: Settings) -> Path:
    return Path(service_dir(settings, {}))


@pytest.fixture
def recorder(directory: Path) -> Iterator[Recorder]:
    opened = open_recorder(directory)
    yield opened
    die(opened)


def told(recorder: Recorder) -> dict[str, int]:
    return {name: recorder.word(word) for word, name in TOLD.items() if recorder.word(word)}


@pytest.mark.parametrize("status", [0, 9, 6, 139, 3 << 8, 255 << 8])
def test_how_a_worker_ended_is_told(settings: Settings, recorder: Recorder, status: int) -> None:
    before_ns = time.perf_counter_ns()
    Witness([settings]).has_ended(PID, status)
    found = told(recorder)
    assert before_ns <= found.pop("exit_at") <= time.perf_counter_ns()
    assert found == {"exit": status + 1}


@pytest.mark.parametrize(
    ("number", "timed_out", "expected"),
    [
        (signal.SIGABRT, True, {"killed_with": 6, "timed_out": 1}),
        (signal.SIGKILL, True, {"killed_with": 9, "timed_out": 1}),
        (signal.SIGABRT, False, {"killed_with": 6}),
        (signal.SIGKILL, False, {"killed_with": 9}),
        (signal.SIGTERM, False, {}),
        (signal.SIGQUIT, False, {}),
    ],
)
def test_a_signal_that_kills_is_told_with_its_reason(
    settings: Settings, recorder: Recorder, number: int, timed_out: bool, expected: dict[str, int]
) -> None:
    Witness([settings]).has_sent(PID, number, timed_out)
    assert told(recorder) == expected


def test_a_later_signal_does_not_take_the_reason_away(settings: Settings, recorder: Recorder) -> None:
    witness = Witness([settings])
    witness.has_sent(PID, signal.SIGABRT, True)
    witness.has_sent(PID, signal.SIGKILL, False)
    assert told(recorder) == {"killed_with": 9, "timed_out": 1}


def test_all_services_of_a_worker_are_told(settings: Settings, recorder: Recorder, tmp_path: Path) -> None:
    other = settings_of(tmp_path, service_name="other")
    second = open_recorder(Path(service_dir(other, {})))
    Witness([settings, other]).has_ended(PID, 9)
    assert told(recorder)["exit"] == told(second)["exit"] == 10
    die(second)


def test_only_recorders_of_that_process_are_told(settings: Settings, recorder: Recorder, directory: Path) -> None:
    data = Path(str(recorder.path)).read_bytes()
    names = [f"{PID}1-aa.recorder", f"1{PID}-aa.recorder", f"x{PID}-aa.recorder", f"{PID}.recorder"]
    names += [f"{PID}-aa.kept", f"{PID}-aa.recorder.new", "lease"]
    for name in names:
        (directory / name).write_bytes(data)
        (directory / name).chmod(0o600)
    Witness([settings]).has_ended(PID, 9)
    assert told(recorder)["exit"] == 10
    assert [name for name in names if (directory / name).read_bytes() != data] == []


def test_nothing_but_its_words_is_written(settings: Settings, recorder: Recorder) -> None:
    path = Path(str(recorder.path))
    before = path.read_bytes()
    witness = Witness([settings])
    witness.has_sent(PID, signal.SIGABRT, True)
    witness.has_ended(PID, 6)
    after = path.read_bytes()
    assert len(after) == len(before)
    changed = {place // 8 for place in range(len(before)) if before[place] != after[place]}
    assert changed <= {layout.WORDS_AT // 8 + word for word in TOLD}
    assert len(changed) == 4


# -- what is no recorder of ours -----------------------------------------------------------------------------------


def _link(path: Path) -> None:
    path.symlink_to(path.with_name("target"))


def _directory(path: Path) -> None:
    path.mkdir()


def _fifo(path: Path) -> None:
    os.mkfifo(path, 0o600)


def _short(path: Path) -> None:
    path.write_bytes(b"short" * 100)


def _of_another_owner(path: Path) -> None:
    path.write_bytes(bytes(layout.HEADER_SIZE))
    try:
        os.chown(path, os.geteuid() + 4711, -1)
    except PermissionError:
        pytest.skip("only root can give a file away")


@pytest.mark.parametrize("make", [_link, _directory, _fifo, _short, _of_another_owner])
@pytest.mark.parametrize("name", ["0000.recorder", "zzzz.recorder"])
def test_what_is_no_recorder_is_left_alone_and_keeps_nothing_from_the_rest(
    settings: Settings, directory: Path, recorder: Recorder, make: Callable[[Path], None], name: str
) -> None:
    target = directory / "target"
    target.write_bytes(bytes(layout.HEADER_SIZE))
    path = directory / f"{PID}-{name}"
    make(path)
    before = path.read_bytes() if path.is_file() else b""
    for _ in range(3):  # the order of a directory is nobody's choice
        Witness([settings]).has_ended(PID, 9)
    assert target.read_bytes() == bytes(layout.HEADER_SIZE)
    assert before == (path.read_bytes() if path.is_file() else b"")
    assert told(recorder).get("exit") == 10


def test_a_directory_that_is_missing_stays_missing(settings: Settings, tmp_path: Path) -> None:
    witness = Witness([settings])
    witness.has_sent(PID, signal.SIGKILL, True)
    witness.has_ended(PID, signal.SIGTERM)
    assert os.listdir(tmp_path) == []


def test_a_directory_that_others_may_enter_is_not_used(settings: Settings, directory: Path, recorder: Recorder) -> None:
    directory.chmod(0o755)
    Witness([settings]).has_ended(PID, 9)
    assert told(recorder) == {}


def test_one_that_has_just_gone_is_no_fault(settings: Settings, directory: Path, recorder: Recorder) -> None:
    (directory / f"{PID}-gone.recorder").symlink_to(directory / "nowhere")
    os.unlink(str(recorder.path))
    Witness([settings]).has_ended(PID, 9)
    assert told(recorder) == {}


# -- those that never served ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    # An exit status of gunicorn's own; or a signal that ends no worker in order, and no recorder tells of it.
    ("status", "lost"),
    [(3 << 8, 1), (4 << 8, 1), (0, 0), (1 << 8, 0), (5 << 8, 0), (3, 0), (15, 0), (9, 1), (11, 1)],
)
def test_a_worker_that_could_not_begin_to_serve_is_counted(
    measure: Callable[..., Measured], status: int, lost: int
) -> None:
    service = measure()
    service.recorder()
    Witness([service.settings]).has_ended(4711, status)
    assert lifecycle.agent_of(service.settings) is service.agent
    found = {(metric, attributes): total.count for ((metric, attributes), _), total in service.delta().totals.items()}
    assert found == ({("paste_agent.worker.lost", f'{{"reason": "{BOOT}"}}'): 1} if lost else {})


def test_a_worker_that_served_is_not_one_that_could_not_boot(
    settings: Settings, directory: Path, recorder: Recorder
) -> None:
    recorder.set_word(layout.W_SERVING, 1)
    witness = Witness([settings])
    assert not witness._did_not_boot(PID, 9)
    recorder.set_word(layout.W_SERVING, 0)
    assert witness._did_not_boot(PID, 9)
    assert not Witness([settings], os.geteuid() + 1)._did_not_boot(PID, 9)  # its recorders are not to be found
