"""Recorder files that are cut short, filled with noise, or none: skipped, and everything else counts on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from paste_agent.store.store import Store
from tests.faults.service import (
    BAD_RECORDER,
    PasteAgent,
    Shape,
    counters_of,
    is_alive,
    kill,
    lead_pid,
    recorders_in,
    runtime_dir,
)
from tests.faults.trial import SEEDS, Trial
from tests.receiver import Receiver
from tests.serving import wait_for


def noise_over(path: Path) -> None:
    """In place: whoever has it open or mapped sees it."""
    with open(path, "r+b") as file:
        file.write(os.urandom(path.stat().st_size))


def half_of_it(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def nothing_of_it(path: Path) -> None:
    os.truncate(path, 0)


def noise_over_its_records(path: Path) -> None:
    """The header stays."""
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(os.urandom(path.stat().st_size - 4096))


DAMAGES = (noise_over, half_of_it, nothing_of_it, noise_over_its_records)


@pytest.mark.parametrize("seed", SEEDS)
def test_of_a_process_that_was_killed(tmp_path: Path, seed: int) -> None:
    """All that it held had been drained: not one count is lost, and the lead goes on."""
    shape = Shape("gthread", workers=len(DAMAGES) + 1)
    with Receiver() as receiver:
        trial = Trial("recorder damaged", tmp_path, seed, shape, subject=PasteAgent(damaged=True), collector=receiver)
        with trial.serving() as server:
            with trial.load(200):
                pass
            receiver.wait_for(lambda it: sum(it.request_counts().values()) == 200)
            lead = trial.lead()
            victims = [pid for pid in server.workers() if pid != lead]
            trial.random.shuffle(victims)
            for victim, damage in zip(victims, DAMAGES, strict=True):
                (path,) = (path for path in recorders_in(tmp_path) if path.name.startswith(f"{victim}-"))
                # Stopped, so that the lead finds the damage while the process that the file belongs to still lives.
                os.kill(victim, signal.SIGSTOP)
                damage(path)
            seen = drained_at(tmp_path)
            wait_for(lambda: drained_at(tmp_path) > seen, "a drain of what is damaged")
            for victim in victims:
                kill(victim)
            trial.wait_until_all_serve()
            assert is_alive(lead)
            with trial.load(100):
                pass
            assert server.stop() == 0
        trial.verdict(in_order=False).check()
        # Of the one whose header was left whole nothing is known to be wrong: no record of it is a record.
        assert bad_recorders(tmp_path) == len(DAMAGES) - 1


def bad_recorders(directory: Path) -> int:
    """How many have been found."""
    return sum(value for (_, attributes), value in counters_of(directory).items() if BAD_RECORDER in attributes)


def drained_at(directory: Path) -> float:
    """When the newest drain was."""
    store = Store(str(directory / "store.sqlite"), read_only=True)
    try:
        return max(row.seen_at for row in store.recorders())
    finally:
        store.close()


@pytest.mark.parametrize("seed", SEEDS)
def test_what_no_process_made(tmp_path: Path, seed: int) -> None:
    """Files of noise, of nothing, links and directories under a recorder's name, put there while it serves."""
    with Receiver() as receiver:
        trial = Trial("files of noise", tmp_path, seed, subject=PasteAgent(damaged=True), collector=receiver)
        with trial.serving() as server:
            with trial.load(200, pace_s=0.005) as load:
                load.more(20)
                run = runtime_dir(tmp_path)
                (genuine, *_) = recorders_in(tmp_path)
                header = genuine.read_bytes()[:4096]
                forged = {
                    "9-noise": os.urandom(100_000),
                    "9-empty": b"",
                    "9-header": header,
                    "9-long": header + bytes(10_000),
                    "9-flipped": bytes(byte ^ (trial.random.random() < 0.01) for byte in header) + bytes(1_200_000),
                }
                for name, data in forged.items():
                    forging = tmp_path / name  # private before anyone sees it: what is not, is left alone
                    forging.write_bytes(data)
                    forging.chmod(0o600)
                    forging.rename(run / f"{name}.recorder")
                (run / "9-link.recorder").symlink_to(genuine)
                (run / "9-directory.recorder").mkdir()
                # The link and the directory are nobody's recorders: they are left alone, by each lead anew.
                wait_for(lambda: bad_recorders(tmp_path) >= len(forged), "all of them to be counted")
            lead = lead_pid(tmp_path)
            with trial.load(100):
                pass
            assert lead_pid(tmp_path) == lead
            assert server.stop() == 0
        trial.verdict(in_order=False).check()
        assert bad_recorders(tmp_path) == len(forged)


@pytest.mark.parametrize("damage", [noise_over_its_records, half_of_it])
def test_of_a_process_that_serves(tmp_path: Path, damage: object) -> None:
    """The service goes on, whatever becomes of that worker; nothing is counted that was not served."""
    with Receiver() as receiver:
        trial = Trial("recorder damaged in use", tmp_path, 0, Shape(workers=3), collector=receiver)
        with trial.serving() as server:
            with trial.load(400, pace_s=0.01) as load:
                load.more(50)
                lead = trial.lead()
                victim = next(pid for pid in server.workers() if pid != lead)
                (path,) = (path for path in recorders_in(tmp_path) if path.name.startswith(f"{victim}-"))
                assert callable(damage)
                damage(path)
            wait_for(lambda: lead_pid(tmp_path), "a lead")
            with trial.load(50):
                pass
            assert server.stop() == 0
        verdict = trial.verdict(in_order=False)
        # Of a record whose series is noise nobody knows the route; that it was served is known all the same.
        assert sum(verdict.counted.values()) <= trial.seen.sent, verdict
        assert trial.seen.wrong == []
        assert "a fault of the agent in drain" not in trial.service.output
