"""Faults applied to a service under gunicorn, behind paste-agent and behind opentelemetry-sdk: what each loses.

    python -m bench.opentelemetry_service.compare [--rounds 4] [--row NAME …] [--subject NAME …] [--worker-class sync]

Needs an environment with paste-agent's test extra, bench/requirements.txt and opentelemetry-exporter-otlp-proto-http.
Both are compared by method and status alone, for OpenTelemetry's middleware knows no route. paste-agent is read from
its store; of OpenTelemetry both the duration histograms and the spans are read, from what a receiver got: once with
an export every 0.3 s, as paste-agent makes it here, and once with its defaults, 60 s and 5 s.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bench.opentelemetry_service import rows as more
from bench.opentelemetry_service.subject import OpenTelemetry, verdicts
from tests.faults.rows import ROWS, Row
from tests.faults.service import PasteAgent, Shape, Subject
from tests.faults.trial import Trial
from tests.faults.verdict import Verdict
from tests.receiver import Receiver

SUBJECTS: dict[str, Callable[[], Subject]] = {
    "paste-agent": PasteAgent,
    "opentelemetry-sdk, every 0.3 s": OpenTelemetry,
    "opentelemetry-sdk, defaults": lambda: OpenTelemetry(often=False),
}
TABLE: dict[str, tuple[Row, Callable[[Shape], Shape]]] = {
    "SIGTERM": ROWS["SIGTERM"],
    "SIGTERM, preload": (ROWS["SIGTERM"][0], lambda shape: replace(shape, preload=True)),
    **{name: ROWS[name] for name in ("SIGHUP", "max_requests", "worker SIGKILLed", "all SIGKILLed, started again")},
    **more.ROWS,
}


def once(name: str, subject: Subject, worker_class: str, seed: int) -> dict[str, Verdict]:
    """One trial, and its verdicts by what they were read from."""
    row, changed = TABLE[name]
    with tempfile.TemporaryDirectory() as directory, Receiver() as receiver:
        trial = Trial(
            name,
            Path(directory),
            seed,
            changed(Shape(worker_class)),
            subject=more.Hanging(subject) if name.startswith("timeout") else subject,
            collector=receiver,
        )
        row(trial)
        verdict = trial.verdict()
        return {"store": verdict} if isinstance(subject, PasteAgent) else verdicts(verdict, receiver)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--row", action="append", choices=TABLE)
    parser.add_argument("--subject", action="append", choices=SUBJECTS)
    parser.add_argument("--worker-class", default="sync")
    options = parser.parse_args()
    print("| fault | subject | read from | runs | served | cut off | counted | lost | twice |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in options.row or TABLE:
        for title in options.subject or SUBJECTS:
            sums: dict[str, Counter[str]] = {}
            for seed in range(options.rounds):
                try:
                    found = once(name, SUBJECTS[title](), options.worker_class, seed)
                except AssertionError as error:
                    print(f"{name}, {title}, seed {seed}: {error}", file=sys.stderr)
                    continue
                for reading, verdict in found.items():
                    tally = verdict.tally
                    sums.setdefault(reading, Counter()).update(
                        runs=1,
                        served=sum(tally.served.values()),
                        cut_off=sum(tally.cut_off.values()),
                        counted=sum(verdict.counted.values()),
                        lost=verdict.lost,
                        twice=verdict.twice,
                    )
            for reading, of in sums.items():
                columns = (of[column] for column in ("runs", "served", "cut_off", "counted", "lost", "twice"))
                print(f"| {name} | {title} | {reading} | {' | '.join(f'{one:,}' for one in columns)} |", flush=True)


if __name__ == "__main__":
    main()
