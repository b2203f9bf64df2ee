"""Rows for the comparison that tests/faults/rows.py does not have; each works with any subject."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults.load import Kind
from tests.faults.rows import Row
from tests.faults.service import Shape, Subject
from tests.faults.trial import Trial
from tests.faults.verdict import Counts
from tests.receiver import Answer, Receiver

#: Answered long after the arbiter has lost its patience: never. Python handles the arbiter's SIGABRT in a request that
#: sleeps, so that the worker ends as it likes; while C code computes it does not, and SIGKILL follows.
SLEEPS = Kind("GET", "/sleeps", 200)
COMPUTES = Kind("GET", "/computes", 200)
_SLEEPS_S = 30.0
_ITERATIONS = 100_000_000  # a minute or so
_OUTAGE_S = 25.0


def hanging(app: Callable[..., Iterable[bytes]], global_conf: dict[str, str]) -> Callable[..., Iterable[bytes]]:
    """A `paste.filter_app_factory`: the application, and two pages that take too long."""

    def application(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path in (SLEEPS.route, COMPUTES.route):
            environ["paste_agent.route"] = path
        if path == SLEEPS.route:
            time.sleep(_SLEEPS_S)
        elif path == COMPUTES.route:
            hashlib.pbkdf2_hmac("sha256", b"password", b"salt", _ITERATIONS)
        return app(environ, start_response)

    return application


@dataclass
class Hanging:
    """A subject whose application has the pages that take too long."""

    subject: Subject

    @property
    def name(self) -> str:
        return self.subject.name

    def sections(self, directory: Path) -> str:
        hang = "[filter:hang]\npaste.filter_app_factory = bench.opentelemetry_service.rows:hanging\n"
        return f"{self.subject.sections(directory)}\n{hang}"

    def pipeline(self) -> str:
        return f"{self.subject.pipeline()} hang"

    def environment(self, endpoint: str | None) -> dict[str, str]:
        return self.subject.environment(endpoint)

    def stored(self, directory: Path) -> Counts | None:
        return self.subject.stored(directory)

    def recover(self, directory: Path) -> None:
        self.subject.recover(directory)

    def troubles(self, directory: Path, output: str) -> list[str]:
        return self.subject.troubles(directory, output)


def times_out(kind: Kind, trial: Trial) -> None:
    """The arbiter ends a worker whose request takes too long, three times. The trial's subject is `Hanging`."""
    with trial.serving() as server:
        with trial.load(20_000, pace_s=0.02) as load:
            for _ in range(3):
                trial.moment(load)
                with trial.load(1, kinds=(kind,), clients=1):
                    pass
            load.more(50)
            load.stop()
        server.wait_for(lambda: len(server.workers()) == trial.shape.workers, "all workers")
        trial.expect(server.stop(), 0, "exit status")


def collector_down(trial: Trial) -> None:
    """The collector answers 503 for 25 s, and then takes everything again."""
    receiver = trial.collector
    assert isinstance(receiver, Receiver)
    with trial.serving() as server:
        with trial.load(20_000, pace_s=0.05) as load:
            trial.moment(load)
            receiver.default = Answer(503)
            time.sleep(_OUTAGE_S)
            receiver.default = Answer()
            load.more(200)
            load.stop()
        trial.expect(server.stop(), 0, "exit status")


#: As in tests/faults/rows.py.
ROWS: dict[str, tuple[Row, Callable[[Shape], Shape]]] = {
    "timeout, asleep": (partial(times_out, SLEEPS), lambda shape: replace(shape, gunicorn={"timeout": "2"})),
    "timeout, in C code": (partial(times_out, COMPUTES), lambda shape: replace(shape, gunicorn={"timeout": "2"})),
    "collector down for 25 s": (collector_down, lambda shape: shape),
}
