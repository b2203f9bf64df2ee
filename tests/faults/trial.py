"""One run of a row of the table of faults: a service, its clients, a collector, and the moments at which things happen.

    with Receiver() as receiver:
        trial = Trial("SIGTERM", tmp_path, seed=7, collector=receiver)
        with trial.serving() as server, trial.load(400) as load:
            trial.moment(load)
            server.stop()
            load.stop()
        trial.verdict().check()

What is random is the same for the same seed.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Protocol

from tests.faults.load import KINDS, Kind, Load, Tally
from tests.faults.service import (
    SERVES,
    OwnIni,
    PasteAgent,
    Service,
    Shape,
    Subject,
    is_alive,
    kill,
    lead_pid,
    recorders_in,
)
from tests.faults.verdict import Counts, Verdict
from tests.receiver import Answer, Receiver
from tests.serving import PATIENCE_S, Served, children_of, wait_for


class Takes(Protocol):
    """A collector: the receiver of the tests, or a real one."""

    @property
    def endpoint(self) -> str: ...
    def request_counts(self) -> Counts: ...


#: How often each row runs, each time with another seed. More of them find what one does not.
ROUNDS = max(1, int(os.environ.get("FAULTS_ROUNDS", "1")))
SEEDS = range(ROUNDS)


class Trial:
    """collector: None: the service has no endpoint. seed: of all that varies."""

    def __init__(
        self,
        row: str,
        directory: Path,
        seed: int = 0,
        shape: Shape | None = None,
        *,
        subject: Subject | None = None,
        collector: Takes | None = None,
    ) -> None:
        self.shape = shape or Shape()
        self.title = f"{row}, seed {seed}, {self.shape}"
        self.directory = directory
        self.random = random.Random(f"{row}/{seed}")
        self.subject: Subject = subject or PasteAgent()
        self.collector = collector
        self.service = Service(directory, self.subject, self.shape)
        self.troubles: list[str] = []  #: that the row itself finds
        self.seen = Tally()
        self._seed = seed
        self._loads = 0

    # -- serving ---------------------------------------------------------------------------------------------------

    @contextmanager
    def serving(self, *, prefix: Sequence[str] = (), env: Mapping[str, str] | None = None) -> Iterator[Served]:
        """prefix: of the command, such as one that enters a namespace. env: added to its environment."""
        endpoint = None if self.collector is None else self.collector.endpoint
        with self.service.start(endpoint, prefix=prefix, env=env) as server:
            self.wait_until_all_serve()
            yield server

    def wait_until_all_serve(self, workers: int | None = None, arbiter: int | None = None) -> None:
        """Return once there are so many workers, as many as at the start if not given, and each of them serves."""
        server = self.service.server
        assert server is not None
        server.wait_for(lambda: self.all_serve(workers, arbiter), "all workers to serve")

    def all_serve(self, workers: int | None = None, arbiter: int | None = None) -> bool:
        """arbiter: its pid, where it is not the first one."""
        server = self.service.server
        assert server is not None
        # Not one that was killed, and that its arbiter has not yet taken notice of.
        pids, said = [pid for pid in children_of(arbiter or server.pid) if is_alive(pid)], server.output()
        return len(pids) == (workers or self.shape.workers) and all(f"[{pid}] [INFO] {SERVES}" in said for pid in pids)

    @contextmanager
    def load(
        self, requests: int, *, kinds: Sequence[Kind] | None = None, clients: int = 4, pace_s: float = 0.0
    ) -> Iterator[Load]:
        """Clients that send so many requests in all; what they saw is added to that of the trial."""
        self._loads += 1
        seed = self._seed * 1000 + self._loads
        if isinstance(self.subject, OwnIni):
            pages = [page.split() for page in self.subject.requests]
            kinds = [Kind(method, route, 0, looks_right=lambda body: True) for method, route in pages]
        kinds = [
            kind
            for kind in kinds or KINDS
            if (self.shape.answers_exceptions or kind.status != 500)
            and (self.shape.waits_for_children or kind.route not in ("/forks", "/subprocess"))
        ]
        load = Load(self.service.port, seed, requests=requests, clients=clients, kinds=kinds, pace_s=pace_s)
        try:
            with load:
                yield load
        finally:
            self.seen.add(load.tally)

    # -- moments ---------------------------------------------------------------------------------------------------

    def moment(self, load: Load, fewest: int = 10, most: int = 60) -> None:
        """Return after a random number of further requests, and a little later than the last of them."""
        load.more(self.random.randint(fewest, most))
        time.sleep(self.random.uniform(0, 0.01))

    def narrow_moment(self, load: Load) -> None:
        """Return at a moment of any kind: any time, or just when the store was written."""
        if self.random.random() < 0.5:
            self.moment(load)
        else:
            self.at_commit()

    def at_commit(self) -> None:
        """Return right after somebody wrote to the store: between commit and what follows it."""
        log = self.directory / "store.sqlite-wal"

        def written() -> tuple[int, int]:
            try:
                found = log.stat()
            except FileNotFoundError:
                return 0, 0
            return found.st_mtime_ns, found.st_size

        before = written()
        # A service that is idle, or that nobody leads, writes nothing: then any time is as good.
        deadline = time.monotonic() + 2.0
        while written() == before and time.monotonic() < deadline:
            time.sleep(0.0002)
        time.sleep(self.random.choice((0.0, 0.0, 0.0005, 0.002)))

    # -- the lead --------------------------------------------------------------------------------------------------

    def lead(self, but: int | None = None) -> int:
        """Pid of the process that leads, once there is one other than `but`."""
        wait_for(lambda: lead_pid(self.directory) not in (None, but), "a lead", poll_s=0.005)
        found = lead_pid(self.directory)
        return self.lead(but) if found is None else found

    def kill_lead_at_export(self) -> int:
        """SIGKILL the lead while it waits for the collector's answer; its pid."""
        receiver = self.collector
        assert isinstance(receiver, Receiver)
        killed: list[int] = []

        def instead_of_an_answer(handler: BaseHTTPRequestHandler) -> None:
            pid = lead_pid(self.directory)
            if pid is not None:
                kill(pid)
                killed.append(pid)

        receiver.answers.append(Answer(raw=instead_of_an_answer))
        wait_for(lambda: killed or not receiver.answers, "an export", PATIENCE_S)
        wait_for(lambda: killed, "the end of the one that exports", PATIENCE_S)
        return killed[0]

    def expect(self, found: object, expected: object, what: str) -> None:
        if found != expected:
            self.troubles.append(f"{what}: {found!r} instead of {expected!r}")

    # -- the end ---------------------------------------------------------------------------------------------------

    def verdict(self, *, agree: bool = True, in_order: bool = True) -> Verdict:
        """agree: whether store and collector must. in_order: whether the service ended so, and left no recorder."""
        # Where the application is preloaded by gunicorn itself, the arbiter has a recorder that ends after all others.
        in_order = in_order and not (self.shape.way == "gunicorn" and self.shape.preload)
        troubles = [*self.troubles, *self.subject.troubles(self.directory, self.service.output)]
        if in_order and isinstance(self.subject, PasteAgent):
            troubles += [f"left: {path.name}" for path in recorders_in(self.directory)]
        return Verdict(
            self.title,
            self.seen,
            self.subject.stored(self.directory),
            None if self.collector is None else self.collector.request_counts(),
            agree=agree,
            troubles=troubles,
        )
