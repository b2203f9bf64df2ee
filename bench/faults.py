"""The rows of the table of faults that are about exactness, again and again, each time with another seed.

    python bench/faults.py [--rounds 10] [--row NAME …] [--worker-class sync …] [--subject paste-agent] [--seed 0]
    python bench/faults.py --ini production.ini [--request "GET /" …] [--row NAME …]

Each run starts real gunicorn, sends requests through several clients, applies the fault while they are served, and
compares what the clients saw with what the store holds and what a collector got:

    lost     the client has the whole answer, and the request is not counted
    twice    counted more often than it was served or cut off

A request that is cut off may be counted once or not at all: nobody can know whether it was served. Needs what the
tests need. Of what is not exact the seed is printed, and all three counts; the exit status is then 1.

--ini: the same for a service of one's own, in the shapes that the rows have: a copy of its ini gets a store, a runtime
directory and an address of its own. It must stand to be started, killed and asked for its pages a thousand times: not
in production. Its requests are told apart by method and status alone.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.faults.rows import ROWS
from tests.faults.running import outcome, why_not
from tests.faults.service import OwnIni, PasteAgent, Shape, Subject
from tests.faults.verdict import Verdict

#: Who can be looked at; a subject says how its ini reads, and where its counts are.
SUBJECTS: dict[str, Callable[[], Subject]] = {"paste-agent": PasteAgent}


@dataclass
class Line:
    """One line of the table."""

    row: str
    runs: int = 0
    requests: int = 0
    served: int = 0
    cut_off: int = 0
    counted: int = 0
    lost: int = 0
    twice: int = 0
    broken: int = 0  #: runs that are not exact, or did not come to an end

    def add(self, verdict: Verdict) -> None:
        self.runs += 1
        self.requests += verdict.tally.sent
        self.served += verdict.tally.served.total()
        self.cut_off += verdict.tally.cut_off.total()
        self.counted += sum(verdict.counted.values())
        self.lost += verdict.lost
        self.twice += verdict.twice

    def __str__(self) -> str:
        numbers = (self.runs, self.requests, self.served, self.cut_off, self.counted, self.lost, self.twice)
        return f"| {self.row} | {' | '.join(f'{number:,}' for number in numbers)} |"


def attempt(line: Line, seed: int, shape: Shape, subject: Subject) -> None:
    """One run, added to the line."""
    said = io.StringIO()
    with tempfile.TemporaryDirectory(prefix="faults-") as directory, contextlib.redirect_stderr(said):
        try:
            verdict = outcome(line.row, Path(directory), seed, shape, subject)
            verdict = verdict.folded() if isinstance(subject, OwnIni) else verdict
        except AssertionError as error:
            line.broken += 1
            line.runs += 1
            print(f"{line.row}, seed {seed}, {shape}: {error}\n{said.getvalue()[-4000:]}", flush=True)
            return
    verdict.agree = verdict.agree and "report" not in line.row  # a report sends nothing
    line.add(verdict)
    faults = verdict.faults()
    if faults:
        line.broken += 1
    print(f"{verdict}\n{'; '.join(faults) or 'exact'}\n", flush=True)


def subject_of(options: argparse.Namespace) -> Subject:
    if options.ini is not None:
        return OwnIni(path=options.ini, requests=options.request or ["GET /"])
    return SUBJECTS[options.subject]()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=10, help="runs of each row and worker class")
    parser.add_argument("--row", action="append", choices=list(ROWS), help="all, unless given")
    parser.add_argument("--worker-class", action="append", help="sync, gthread, gevent and tornado, unless given")
    parser.add_argument("--subject", choices=list(SUBJECTS), default="paste-agent")
    parser.add_argument("--ini", type=Path, help="of a service of one's own")
    parser.add_argument("--request", action="append", help="to it, such as 'GET /'; may be given several times")
    parser.add_argument("--seed", type=int, default=0, help="the first one; the others follow")
    options = parser.parse_args()
    classes = options.worker_class or ["sync", "gthread", "gevent", "tornado"]
    missing = {name: why_not(name) for name in classes if why_not(name)}
    for name, reason in missing.items():
        print(f"without {name}: {reason}")
    # Pages that fork and tasks that are counted are the own application's.
    rows = options.row or [row for row in ROWS if options.ini is None or "fork" not in row]
    lines = []
    for row in rows:
        line = Line(row)
        lines.append(line)
        for seed in range(options.seed, options.seed + options.rounds):
            for name in classes:
                if name not in missing:
                    attempt(line, seed, Shape(name, preload=seed % 3 == 2), subject_of(options))
    print("| row | runs | requests | served | cut off | counted | lost | twice |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    print(*lines, sep="\n")
    sys.exit(any(line.broken for line in lines))


if __name__ == "__main__":
    main()
