"""Clients that know what became of each of their requests, while something is done to the service that they ask."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple

from tests.receiver import RequestKey
from tests.serving import PATIENCE_S, wait_for

#: Method and route; None: not told apart.
Route = tuple["str | None", "str | None"]
#: What a client waits for an answer; a request that takes longer hangs.
ANSWER_S = PATIENCE_S
#: Between two tries to connect where nobody listens.
_REFUSED_PAUSE_S = 0.01


class Kind(NamedTuple):
    """A request, and what its answer is when nothing is wrong."""

    method: str
    route: str  #: the path too
    status: int  #: 0: any
    body: bytes | None = None
    weight: int = 1
    looks_right: Callable[[bytes], bool] = bool


def _clean_child(body: bytes) -> bool:
    """What a child tells of itself: no thread but its own, nothing of its parent's recorder and lease."""
    return bool(json.loads(body) == {"threads": 1, "descriptors": []})


KINDS = (
    Kind("GET", "/hello", 200, weight=5, looks_right=b"Hello, world!".__eq__),
    Kind("GET", "/missing", 404, weight=2),
    Kind("GET", "/fails", 500),
    Kind("GET", "/stream", 200, weight=2, looks_right=b"".join(b"chunk %d\n" % n for n in range(5)).__eq__),
    Kind("POST", "/form", 201, body=b"x" * 300, weight=2, looks_right=b"300 bytes".__eq__),
    Kind("GET", "/slow", 200),
)
FORKING = tuple(
    Kind("GET", route, 200, looks_right=_clean_child) for route in ("/forks", "/multiprocessing", "/subprocess")
)

#: Fails at length: what is kept of it takes some kilobytes.
VERBOSE = (Kind("GET", "/verbose", 500),)


@dataclass
class Tally:
    """What clients saw."""

    served: Counter[RequestKey] = field(default_factory=Counter)  #: the whole answer came
    cut_off: Counter[Route] = field(default_factory=Counter)  #: sent, at least in part; no whole answer
    refused: int = 0  #: there was no connection: nothing was sent
    wrong: list[str] = field(default_factory=list)  #: what no fault excuses: hangs, answers that nobody made

    @property
    def sent(self) -> int:
        return sum(self.served.values()) + sum(self.cut_off.values())

    def add(self, other: Tally) -> None:
        self.served.update(other.served)
        self.cut_off.update(other.cut_off)
        self.refused += other.refused
        self.wrong += other.wrong


class Load:
    """Several clients at work. A context manager: at its end all of them have come to theirs.

    with Load(address, seed, requests=400) as load:
        load.until(0.3)
        server.send(signal.SIGHUP)
    assert load.tally.served
    """

    def __init__(
        self,
        port: Callable[[], int | None],
        seed: int,
        *,
        requests: int,
        clients: int = 4,
        kinds: Sequence[Kind] = KINDS,
        pace_s: float = 0.0,
    ) -> None:
        """port: where the service is; None: nowhere just now, wait. requests: the most that are sent in all.
        pace_s: the longest pause of a client between two requests."""
        self.requests = requests
        self._port = port
        self._seed = seed
        self._kinds = kinds
        self._weights = [kind.weight for kind in kinds]
        self._pace_s = pace_s
        self._stopping = threading.Event()
        self._tallies = [Tally() for _ in range(clients)]
        self._threads = [threading.Thread(target=self._guarded, args=(number,)) for number in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self.stop()
        for thread in self._threads:
            thread.join()

    def stop(self) -> None:
        """Every client ends after the request that it has under way. For faults after which nobody serves."""
        self._stopping.set()

    @property
    def tally(self) -> Tally:
        """Of all clients so far; exact once they have ended."""
        whole = Tally()
        for one in self._tallies:
            whole.add(one)
        return whole

    @property
    def sent(self) -> int:
        return sum(one.sent for one in self._tallies)

    def until(self, share: float) -> None:
        """Return once this share of the requests has been answered or cut off."""
        self.until_sent(round(share * self.requests))

    def until_sent(self, count: int) -> None:
        wait_for(
            lambda: self.sent >= count or not self.is_alive(),
            f"{count} of {self.requests} requests",
            2 * PATIENCE_S,
            poll_s=0.001,
        )

    def more(self, count: int) -> None:
        """Return once so many more requests have ended."""
        self.until_sent(min(self.sent + count, self.requests))

    def is_alive(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    # -- one client ------------------------------------------------------------------------------------------------

    def _guarded(self, number: int) -> None:
        tally = self._tallies[number]
        try:
            _Client(self, number, tally).run()
        except Exception as error:
            tally.wrong.append(f"client {number} broke: {error!r}")


class _Client:
    def __init__(self, load: Load, number: int, tally: Tally) -> None:
        self._load = load
        self._tally = tally
        self._random = random.Random(f"{load._seed}/{number}")
        share, rest = divmod(load.requests, len(load._threads))
        self._budget = share + (number < rest)
        self._connection: http.client.HTTPConnection | None = None

    def run(self) -> None:
        load = self._load
        try:
            while self._tally.sent < self._budget and not load._stopping.is_set() and not self._tally.wrong:
                (kind,) = self._random.choices(load._kinds, load._weights)
                if self._random.random() < 0.3:
                    self._hang_up()
                if not self._connected():
                    load._stopping.wait(_REFUSED_PAUSE_S)
                    continue
                self._ask(kind)
                if load._pace_s:
                    load._stopping.wait(self._random.uniform(0, load._pace_s))
        finally:
            self._hang_up()

    def _connected(self) -> bool:
        if self._connection is not None and self._connection.sock is not None:
            return True
        self._hang_up()
        port = self._load._port()
        if port is None:
            return False
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
        connection.auto_open = 0  # else it connects again without our knowing
        try:
            connection.connect()
        except TimeoutError:
            self._tally.wrong.append(f"no connection in {ANSWER_S:g} s")
            return False
        except OSError:
            connection.close()
            self._tally.refused += 1
            return False
        self._connection = connection
        return True

    def _ask(self, kind: Kind) -> None:
        connection, tally = self._connection, self._tally
        assert connection is not None
        began = time.monotonic()
        try:
            connection.request(kind.method, kind.route, body=kind.body)
            with connection.getresponse() as response:
                if response.length is None and not response.chunked:
                    tally.wrong.append(f"{kind.route}: an answer whose end nobody can tell")
                body = response.read()
        except TimeoutError:
            tally.wrong.append(f"{kind.route}: no answer in {time.monotonic() - began:.1f} s")
            self._hang_up()
        except (OSError, http.client.HTTPException):
            tally.cut_off[kind.method, kind.route] += 1
            self._hang_up()
        else:
            if (response.status == 500 and kind.status not in (0, 500)) or body.startswith(b"HTTP/1.1 "):
                # The server's own word for a request that it has broken off, in place of the answer or inside of it.
                tally.cut_off[kind.method, kind.route] += 1
                self._hang_up()
                return
            tally.served[kind.method, kind.route, response.status] += 1
            if response.status != (kind.status or response.status) or not kind.looks_right(body):
                tally.wrong.append(f"{kind.route}: {response.status} {body[:200]!r}")

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
