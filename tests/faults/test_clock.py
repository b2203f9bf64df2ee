"""The time of day steps by hours while clients are being served."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest

from paste_agent.aggregate import REQUEST_DURATION
from paste_agent.store.store import Store
from tests.faults.service import Shape
from tests.faults.trial import SEEDS, Trial
from tests.receiver import Receiver

SOURCE = Path(__file__).with_name("clock_step.c")
COMPILER = shutil.which("cc")
FAR = 40_000_000  #: s: more than a year
STEPS = (7200, -3600, FAR, -7200, 0)  #: s: by which the clock is wrong; each is met once
ALLOWED_S = 900  #: from a transaction's beginning until the test looks, and less than between any two of the steps


@pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")
@pytest.mark.parametrize("seed", SEEDS)
def test_durations_and_counts_do_not_notice(tmp_path: Path, seed: int) -> None:
    clock, library = tmp_path / "clock", tmp_path / "clock_step.so"
    clock.write_text("0")
    subprocess.run([str(COMPILER), "-shared", "-fPIC", "-o", str(library), str(SOURCE)], check=True)
    env = {"LD_PRELOAD": str(library), "CLOCK_STEP_FILE": str(clock)}
    # Whatever gunicorn itself measures by the time of day must not end this.
    shape = Shape("gthread", gunicorn={"timeout": "0"})
    with Receiver() as receiver:
        trial = Trial("clock steps", tmp_path, seed, shape, collector=receiver)
        with trial.serving(env=env) as server:
            with trial.load(20_000, pace_s=0.03) as load:
                for offset in STEPS:
                    step = tmp_path / "clock.new"
                    step.write_text(str(offset))
                    step.rename(clock)
                    trial.moment(load, 20, 60)
                    if offset in (FAR, -7200):  # more than a year ahead, and back
                        server.wait_for(lambda step=offset: step in steps_of(tmp_path), "a transaction in that time")
                load.stop()
            assert server.stop() == 0
        # The newest by its own time may be one that was sent before the clock went back.
        receiver.forget_metrics(but=1)
        trial.verdict().check()
    store = Store(str(tmp_path / "store.sqlite"), read_only=True)
    try:
        longest_ns = max(one.total.max_ns for one in store.totals() if one.metric == REQUEST_DURATION)
    finally:
        store.close()
    assert longest_ns < 600e9, "a step of the clock was measured as a duration"


def steps_of(directory: Path) -> set[int]:
    """In which of the times the kept transactions began."""
    store = Store(str(directory / "store.sqlite"), read_only=True)
    try:
        rows = store.traces(0, 1e12, "newest", False, 1000)
    finally:
        store.close()
    wrong_s = [row.started_at_ns / 1e9 - time.time() for row in rows]
    return {step for step in STEPS for wrong in wrong_s if abs(wrong - step) < ALLOWED_S}
