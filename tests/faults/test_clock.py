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


@pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")
@pytest.mark.parametrize("seed", SEEDS)
def test_durations_and_counts_do_not_notice(tmp_path: Path, seed: int) -> None:
    today = int(time.time() // 86_400)
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
                for offset in (7200, -3600, FAR, -7200, 0):
                    step = tmp_path / "clock.new"
                    step.write_text(str(offset))
                    step.rename(clock)
                    trial.moment(load, 20, 60)
                    if offset == FAR:
                        server.wait_for(lambda: max(days_of(tmp_path), default=0) > today, "a transaction in that time")
                load.stop()
            assert server.stop() == 0
        # The newest by its own time may be one that was sent before the clock went back.
        receiver.forget_metrics(but=1)
        trial.verdict().check()
    assert min(days_of(tmp_path)) in (today, today + 1), "the clock has not come back"
    store = Store(str(tmp_path / "store.sqlite"), read_only=True)
    try:
        longest_ns = max(one.total.max_ns for one in store.totals() if one.metric == REQUEST_DURATION)
    finally:
        store.close()
    assert longest_ns < 600e9, "a step of the clock was measured as a duration"


def days_of(directory: Path) -> set[int]:
    """On which days since the epoch the kept transactions began."""
    if not (directory / "store.sqlite").exists():
        return set()
    store = Store(str(directory / "store.sqlite"), read_only=True)
    try:
        rows = store.traces(0, 1e12, "newest", False, 1000)
        return {row.started_at_ns // (86_400 * 10**9) for row in rows}
    finally:
        store.close()
