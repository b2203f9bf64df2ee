"""What the tests of real applications share: clients that count their answers, and what the store has in the end."""

from __future__ import annotations

import importlib.util
import itertools
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests

from paste_agent.aggregate import REQUEST_DURATION
from paste_agent.kept import TraceRow
from paste_agent.naming import method_of
from paste_agent.store.lookup import transactions_of
from paste_agent.store.store import Store
from paste_agent.store.summary import summarize
from tests.receiver import RequestKey, request_key
from tests.serving import environment, run

#: A worker that was just started may have the first of its application to load.
PATIENCE_S = 60


def skip_without(*packages: str) -> None:
    """Skip the test module where one is not installed. None is imported: some change the process that does."""
    for name in packages:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed", allow_module_level=True)


def script(name: str) -> str:
    """Path of a command that a package has installed beside the interpreter."""
    found = shutil.which(name, path=str(Path(sys.executable).parent))
    assert found is not None, f"{name} is not beside {sys.executable}"
    return found


def install(ini: Path) -> None:
    """Put the agent into an ini as its own command does it."""
    code = "from paste_agent.cli.main import run; run()"
    status, _, errors = run([sys.executable, "-c", code, "install", "--yes", str(ini)], cwd=ini.parent)
    assert (status, errors) == (0, "")


def agent_environment(here: Path, **more: str) -> dict[str, str]:
    """Says where the agent's files are to be: so there is nothing of it in the ini but what `install` has put there."""
    return environment(PASTE_AGENT_STORE=f"{here}/store.sqlite", PASTE_AGENT_RUNTIME_DIR=f"{here}/run", **more)


class Kind(NamedTuple):
    """A request, and the route that the application has for it; None: it has none."""

    method: str
    path: str  #: {number} stands for one that no other request has
    route: str | None
    json: Any = None
    body: str | bytes | None = None
    data: Mapping[str, str] | None = None  #: of a form; {number} as in a path
    files: Mapping[str, tuple[str, bytes]] = {}  #: of a form, each with its name; {number} again
    auth: tuple[str, str] | None = None
    headers: Mapping[str, str] = {}


def ask(session: requests.Session, url: str, kind: Kind, number: str, **headers: str) -> requests.Response:
    form = {key: text.format(number=number) for key, text in (kind.data or {}).items()}
    return session.request(
        kind.method,
        url + kind.path.format(number=number),
        json=kind.json,
        data=form or kind.body,
        files={key: (name.format(number=number), content) for key, (name, content) in kind.files.items()},
        headers={**kind.headers, **headers},
        auth=kind.auth,
        allow_redirects=False,
        timeout=PATIENCE_S,
    )


def drive(url: str, kinds: Sequence[Kind], clients: int, rounds: int) -> Counter[RequestKey]:
    """So many clients at a time, each with all kinds, round after round; what they were answered."""
    seen: list[Counter[RequestKey]] = [Counter() for _ in range(clients)]
    failures: list[BaseException] = []

    def client(place: int) -> None:
        try:
            with requests.Session() as session:
                for number, kind in itertools.product(range(rounds), kinds):
                    answer = ask(session, url, kind, f"{place}-{number}")
                    seen[place][method_of(kind.method), kind.route, answer.status_code] += 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=client, args=(place,)) for place in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return sum(seen, Counter())


def _trace_id(place: int) -> str:
    return f"{place + 1:032x}"


def drive_traced(url: str, kinds: Sequence[Kind]) -> Counter[RequestKey]:
    """Each kind once, as a part of a trace that its caller keeps: number of the kind from 1 on."""
    seen: Counter[RequestKey] = Counter()
    with requests.Session() as session:
        for place, kind in enumerate(kinds):
            parent = f"00-{_trace_id(place)}-00f067aa0ba902b7-01"
            answer = ask(session, url, kind, f"traced-{place}", traceparent=parent)
            seen[method_of(kind.method), kind.route, answer.status_code] += 1
    return seen


class Outcome:
    """What clients saw, and what is in the store of a server that has ended."""

    def __init__(self, here: Path, kinds: Sequence[Kind], seen: Counter[RequestKey], output: str) -> None:
        """here: as of `agent_environment`."""
        self.seen = seen
        self.output = output
        self._store = here / "store.sqlite"
        self._kinds = list(kinds)

    def _read(self, ask: Callable[[Store], Any]) -> Any:
        with closing(Store(str(self._store), read_only=True)) as store:
            return ask(store)

    def counted(self) -> dict[RequestKey, int]:
        """By method, route and status."""
        found: list[Any] = self._read(Store.totals)
        counts: Counter[RequestKey] = Counter()
        for one in found:
            if one.metric == REQUEST_DURATION:
                counts[request_key(dict(one.attributes))] += one.total.count
        return dict(counts)

    def failures(self) -> dict[tuple[RequestKey, str], int]:
        """Requests that count as failed, with the types of their errors."""
        found: list[Any] = self._read(Store.totals)
        counts: Counter[tuple[RequestKey, str]] = Counter()
        for one in found:
            if one.metric == REQUEST_DURATION and "error.type" in one.attributes:
                counts[request_key(dict(one.attributes)), str(one.attributes["error.type"])] += one.total.count
        return dict(counts)

    def summary(self) -> dict[str, Any]:
        """What `paste-agent report --json` prints."""
        found: dict[str, Any] = self._read(lambda store: summarize(store, "it", 0, time.time() + 60))
        return found

    def trace(self, kind: Kind) -> TraceRow:
        """Of the request of this kind that its caller kept."""
        (found,) = self._read(lambda store: transactions_of(store, _trace_id(self._kinds.index(kind)), 2))
        row: TraceRow = found
        return row

    def spans(self, kind: Kind) -> list[tuple[str, str]]:
        """Category and name of what is inside of that request, in the order in which it began."""
        inside = (self.trace(kind).detail or {}).get("spans", [])
        return [(one["category"], one["name"]) for one in sorted(inside, key=lambda one: one["start"])]
