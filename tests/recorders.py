"""Real recorders, stores and requests for tests of what happens between them; no server, no thread.

recorder = open_recorder(tmp_path)
serve(recorder, "/items/17", route="/items/{id}")
with leading(tmp_path) as lead:
    lead.drain()
    assert requests_of(lead.store) == {("GET", "/items/{id}", 200): 1}
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paste_agent import settings
from paste_agent.aggregate import REQUEST_DURATION
from paste_agent.error_rules import ErrorRules
from paste_agent.filter import AgentFilter
from paste_agent.inside import FinishedSpan
from paste_agent.kept import TraceRow
from paste_agent.lead import Lead
from paste_agent.log import Warnings
from paste_agent.recorder import layout
from paste_agent.recorder.reader import Reader
from paste_agent.recorder.writer import Recorder
from paste_agent.sampler import Sampler
from paste_agent.settings import Settings
from paste_agent.store.store import PostmortemRow, Store
from paste_agent.transaction import current
from tests.serving import environment

MS = 1_000_000
S = 1_000_000_000
NO_RULES = ErrorRules()


class KeepAll(Sampler):
    """Keeps every transaction as a trace, as if chance had picked it."""

    def __init__(self, **keys: Any) -> None:
        super().__init__(**keys)
        self.next_random = 0

    def take_failed(self) -> bool:
        return True

    def decide(self, number: int, duration_ns: int, *, failed: bool, decided: int = 0, **rest: Any) -> Any:
        return layout.KEPT_RANDOM | (layout.KEPT_FAILED if failed else decided & layout.KEPT_FAILED), None


def open_recorder(
    directory: Path | None,
    *,
    records: int = 1024,
    slots: int = 16,
    max_series: int = 2000,
    keep_all: bool = False,
    service: str = "shop",
    sampler: Sampler | None = None,
    error_rules: ErrorRules = NO_RULES,
) -> Recorder:
    """A recorder as `lifecycle.Agent` opens it. A fault of the agent fails the test that causes it."""

    def on_fault(where: str, fault: BaseException) -> None:
        raise AssertionError(f"a fault of the agent in {where}: {fault!r}") from fault

    return Recorder(
        directory=None if directory is None else str(directory),
        service=service,
        records=records,
        slots=slots,
        max_series=max_series,
        sampler=sampler
        or (KeepAll if keep_all else Sampler)(slow_ns=2 * S, parent=60, random=0, slow=60, failed=60, seed=1),
        on_fault=on_fault,
        error_rules=error_rules,
    )


def reader_of(recorder: Recorder) -> Reader:
    """A second look at a recorder: through its file where it has one."""
    if recorder.path is not None:
        return Reader.of_file(recorder.path)
    return Reader(recorder.id, recorder.read, recorder.write, -1)


def die(recorder: Recorder) -> None:
    """What the kernel does to the recorder of a process that is killed: the lock goes, the bytes stay."""
    recorder.detach()


class _Serving:
    """As much of `lifecycle.Agent` as the filter looks at while requests are served."""

    def __init__(self, recorder: Recorder) -> None:
        self.serving = recorder


def environ_of(path: str = "/", **more: Any) -> dict[str, Any]:
    return {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8080",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.url_scheme": "http",
        **more,
    }


def serve(
    recorder: Recorder,
    path: str = "/",
    *,
    route: object = None,
    status: str = "200 OK",
    meanwhile: Callable[[], object] = lambda: None,
    **environ: Any,
) -> None:
    """One request through the filter. meanwhile: called while it is in flight."""

    def application(environ: dict[str, Any], start_response: Callable[..., object]) -> list[bytes]:
        if route is not None:
            environ["paste_agent.route"] = route
        meanwhile()
        start_response(status, [])
        return [b"x"]

    filtered = AgentFilter(application, _Serving(recorder))  # type: ignore[arg-type]  # see _Serving
    body: Any = filtered(environ_of(path, **environ), lambda status, headers, exc_info=None: lambda data: None)
    for _ in body:
        pass
    body.close()


def spans_within(recorder: Recorder, run: Callable[[], object], **environ: Any) -> list[FinishedSpan]:
    """The spans that `run` leaves in a request that it is called in, in the order in which they ended."""
    found: list[FinishedSpan] = []

    def meanwhile() -> None:
        try:
            run()
        finally:
            within = current.get()
            assert within is not None
            inside = within.transaction.inside
            found.extend(map(FinishedSpan.of, inside.finished if inside is not None else ()))

    serve(recorder, meanwhile=meanwhile, **environ)
    return found


def tree(found: list[FinishedSpan]) -> dict[str, str | None]:
    """Names of spans, and of those around them."""
    names = {span.number: span.name for span in found}
    return {span.name: names.get(span.parent) for span in sorted(found)}


def leave(
    recorder: Recorder,
    series: int,
    *,
    duration_ns: int = MS,
    end_ns: int | None = None,
    why: int = 0,
    queue_us: int = 0,
    number: int | None = None,
) -> int:
    """Leave one record whose times the test chooses; its number. end_ns: half a second ago when not given."""
    if number is None:
        number = recorder.last = recorder.next()
    end_ns = time.perf_counter_ns() - S // 2 if end_ns is None else end_ns
    layout.RECORD_BODY.pack_into(
        recorder.buffer,
        recorder.ring_at + number % recorder.records * layout.RECORD_SIZE + layout.RECORD_BODY_AT,
        series,
        why,
        queue_us,
        end_ns - duration_ns,
        duration_ns,
        number + 1,
    )
    return number


def in_flight(
    recorder: Recorder,
    start_ns: int,
    *,
    method: bytes = b"GET",
    scheme: int = 4,
    path: bytes = b"/",
    traceparent: bytes = b"",
    thread: int = 1,
    series: int = -1,
    answered_ns: int = 0,
) -> int:
    """Take a slot as a request does; its place. series, answered_ns: that it was answered with, and since when."""
    at = recorder.pop_slot()
    number = recorder.started()
    layout.SLOT.pack_into(
        recorder.buffer, at, start_ns, number, thread, scheme, method, traceparent, path, series + 1, answered_ns,
        number,
    )  # fmt: skip
    return at


def series_of(recorder: Recorder, route: str = "/", status: str = "200 OK", error: str | None = None) -> int:
    return recorder.intern_server(("GET", status, route, error, "http", "HTTP/1.1"))


# -- files that nobody should trust --------------------------------------------------------------------------------

GEOMETRY = layout.Geometry(records=16, slots=2, series=4)


def forged(
    *,
    records: list[tuple[int, int, int, int, int, int]] = (),  # type: ignore[assignment]  # only read
    series: list[bytes] = (),  # type: ignore[assignment]
    slots: list[bytes] = (),  # type: ignore[assignment]
    stacks: list[bytes] = (),  # type: ignore[assignment]
    words: dict[int, int] | None = None,
    geometry: layout.Geometry = GEOMETRY,
    pid: int = 7,
    opened_ns: int = 1,
) -> bytearray:
    """A recorder's file as somebody might write it: the geometry holds, the rest is up to them."""
    data = bytearray(geometry.size)
    layout.HEADER.pack_into(
        data, 0, layout.MAGIC, layout.VERSION, layout.HEADER_SIZE, pid, opened_ns, opened_ns,
        geometry.records, geometry.slots, geometry.series, layout.boot_id(),
    )  # fmt: skip
    for index, word in (words or {}).items():
        struct.pack_into("<Q", data, layout.WORDS_AT + 8 * index, word)
    for place, slot in enumerate(slots[: geometry.slots]):
        at = geometry.slots_at + place * 512
        data[at : at + 512] = slot[:512].ljust(512, b"\0")
    for place, stack in enumerate(stacks[: geometry.slots]):
        at = geometry.stacks_at + place * layout.STACK_SIZE
        data[at : at + layout.STACK_SIZE] = stack[: layout.STACK_SIZE].ljust(layout.STACK_SIZE, b"\0")
    for place, entry in enumerate(series[: geometry.series]):
        at = geometry.series_at + place * 512
        data[at : at + 512] = entry[:512].ljust(512, b"\0")
    for place, body in enumerate(records[: geometry.records]):
        layout.RECORD_BODY.pack_into(data, geometry.ring_at + place * 64 + layout.RECORD_BODY_AT, *body)
    return data


def written(path: Path, data: bytes) -> str:
    """A private file; its path."""
    path.write_bytes(data)
    path.chmod(0o600)
    return str(path)


# -- the lead ------------------------------------------------------------------------------------------------------


def settings_of(directory: Path, **keys: str) -> Settings:
    """The settings of a service whose recorders and store are both in `directory`."""
    keys = {"service_name": "shop", "store": str(directory / "shop.sqlite"), "runtime_dir": str(directory), **keys}
    return settings.load(keys, {"__file__": str(directory / "shop.ini")}, {})


def silent(kind: str, message: str) -> None:
    pass


@contextmanager
def leading(
    directory: Path, *own: Recorder, store: str | None = None, warn: Callable[[str, str], None] = silent, **keys: str
) -> Iterator[Lead]:
    """A lead over the recorders in `directory`, and those in memory that are given."""
    configured = settings_of(directory, **keys)
    lead = Lead(configured, Store(store or configured.store), str(directory), [reader_of(one) for one in own], warn)
    try:
        yield lead
    finally:
        lead.close()


def serving(directory: Path, **keys: Any) -> Recorder:
    """A recorder of a process that serves."""
    opened = open_recorder(directory, **keys)
    opened.set_word(layout.W_SERVING, 1)
    return opened


def reading(lead: Lead, metric: str, **attributes: object) -> list[float]:
    """What the gauges of a lead show that have these attributes."""
    return [
        found.value
        for found in lead.readings
        if found.metric == metric and attributes.items() <= dict(found.attributes).items()
    ]


def requests_of(store: Store) -> dict[tuple[Any, Any, Any], int]:
    """Totals by method, route and status."""
    counts: dict[tuple[Any, Any, Any], int] = {}
    for found in store.totals():
        if found.metric == REQUEST_DURATION:
            of = found.attributes
            key = (of.get("http.request.method"), of.get("http.route"), of.get("http.response.status_code"))
            counts[key] = counts.get(key, 0) + found.total.count
    return counts


def counts_of(store: Store, metric: str) -> dict[str, int]:
    """Totals of one metric, by its attributes as JSON."""
    counts: dict[str, int] = {}
    for found in store.totals():
        if found.metric == metric:
            key = json.dumps(found.attributes, sort_keys=True)
            counts[key] = counts.get(key, 0) + found.total.count
    return counts


def count_of(store: Store) -> int:
    return sum(requests_of(store).values())


def accounts(lead: Lead) -> list[PostmortemRow]:
    """Post-mortems, the newest first."""
    return lead.store.postmortems(0, 1e12, 100)


def lost_by_reason(lead: Lead) -> dict[str, int]:
    """`paste_agent.worker.lost` by its attributes."""
    name = "paste_agent.worker.lost"
    return {attributes: value for (found, attributes), value in lead.store.counters().items() if found == name}


def traces_of(lead: Lead) -> list[TraceRow]:
    return lead.store.traces(0, 1e12, "newest", False, 1000)


def states(lead: Lead) -> list[str]:
    return [row.state for row in lead.store.recorders()]


def since(seconds: float) -> int:
    """A time of the monotonic clock so many seconds ago."""
    return time.perf_counter_ns() - round(seconds * S)


def recorders_in(directory: Path) -> list[str]:
    return sorted(name for name in os.listdir(directory) if layout.SUFFIX in name)


def warnings() -> Warnings:
    return Warnings("shop")


# -- processes of their own ----------------------------------------------------------------------------------------


def run_script(script: str, *arguments: object, expect: int = 0, timeout_s: float = 60.0) -> str:
    """Run Python code in a process of its own; what it printed. expect: its exit status, -9 for SIGKILL."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=environment(),
    )
    assert done.returncode == expect, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


_POSTMORTEM = re.compile(r"[^\n]*: worker [0-9]+ \(pid ([0-9]+)\) was lost, .*?\n  post-mortem [^\n]*\n", re.S)


def postmortems_in(errors: str) -> list[int]:
    """Pids of those that a process gave account of on its stderr; fails when it said anything else there."""
    assert _POSTMORTEM.sub("", errors) == ""
    return sorted(int(pid) for pid in _POSTMORTEM.findall(errors))


class Script:
    """Python code that runs in a process of its own and is talked to by lines; killed at the end if it still runs."""

    def __init__(self, script: str, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )

    def __enter__(self) -> Script:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def say(self, line: object = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        """The next line that it prints; fails with what it complained of when there is none."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.end()
        return line.rstrip("\n")

    def close_input(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def end(self, timeout_s: float = 60.0) -> tuple[str, str]:
        """Close its input and wait until it ends; what it printed meanwhile, and what it complained of."""
        return self.process.communicate(timeout=timeout_s)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(30)


@contextmanager
def scripts(count: int, script: str, *arguments: object) -> Iterator[list[Script]]:
    """So many processes of the same script; each gets its number, from 0, as a further argument."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Script(script, *arguments, place)) for place in range(count)]
