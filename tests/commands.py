"""`paste-agent` as from a shell, inis and stores that it is pointed at, and what is wrong with some of them."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from paste_agent.aggregate import REQUEST_DURATION, Delta, canonical
from paste_agent.cli import main
from paste_agent.kept import TraceRow
from paste_agent.recorder import layout
from paste_agent.store.store import RUNNING, RecorderRow, Store

NOW = int(time.time())


class Result(NamedTuple):
    status: int
    output: str
    errors: str


Run = Callable[..., Result]


def shell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, directory: Path) -> Run:
    """`paste-agent` with some arguments, as from a shell without the agent's variables, in a terminal that is wide.

    directory: that it is in.
    """
    for name in list(os.environ):
        if name.startswith(("PASTE_AGENT_", "OTEL_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("XDG_STATE_HOME", str(directory / "state"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(directory)

    def paste_agent(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["paste-agent", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main.run()
        captured = capsys.readouterr()
        status = ended.value.code
        assert isinstance(status, int)
        assert "Traceback" not in captured.err
        return Result(status, captured.out, captured.err)

    return paste_agent


def refused(result: Result, *words: str) -> None:
    """One line on stderr, exit status 1."""
    assert result.status == 1
    assert result.output == ""
    assert result.errors.startswith("paste-agent: ")
    assert result.errors.count("\n") == 1
    for word in words:
        assert word in result.errors


PIPELINE = """
[app:shop]
use = egg:paste_agent#demo

[pipeline:main]
pipeline = agent shop
"""


def ini_of(directory: Path, keys: str = "", rest: str = PIPELINE, name: str = "shop.ini", default: str = "") -> Path:
    directory.chmod(0o700)
    path = directory / name
    filter_section = f"[filter:agent]\nuse = egg:paste_agent\nstore = shop.sqlite\nruntime_dir = {directory}\n{keys}\n"
    path.write_text((f"[DEFAULT]\n{default}\n" if default else "") + filter_section + rest)
    return path


def delta_of(route: str | None, count: int, slot_s: int, *, status: int = 200, error: str | None = None) -> Delta:
    attributes = {"http.request.method": "GET", "http.response.status_code": status, "url.scheme": "http"}
    attributes |= {"http.route": route} if route is not None else {}
    attributes |= {"error.type": error} if error is not None else {}
    delta = Delta()
    total = delta.at((REQUEST_DURATION, json.dumps(attributes, sort_keys=True)), slot_s)
    for _ in range(count):
        total.observe(20_000_000)
    total.satisfied = count
    return delta


def count(store: Store, metric: str, attributes: Mapping[str, Any] | str, *durations_ns: int, at: int) -> None:
    """Count durations under a series, in the rollup that begins at `at`. attributes: or canonical JSON of them."""
    delta = Delta()
    total = delta.at((metric, attributes if isinstance(attributes, str) else canonical(attributes)), at)
    for duration_ns in durations_ns:
        total.observe(duration_ns)
    store.commit_drain(delta, [], {}, 100)


def trace_of(span: int, *, path: str = "/", message: str | None = None, failed: bool = False) -> TraceRow:
    detail: dict[str, object] = {"attributes": {"url.path": path}}
    if message is not None:
        detail["exception"] = {"type": "ValueError", "message": message, "stacktrace": message}
    attributes: dict[str, str | int] = {
        "http.request.method": "GET",
        "http.route": "/items",
        "error.type": "ValueError",
    }
    return TraceRow(
        bytes(15) + b"\1", span.to_bytes(8, "big"), None, (NOW - 30) * 10**9, 10**9, failed, 8, attributes, detail
    )


@contextmanager
def filled(tmp_path: Path) -> Iterator[Store]:
    """What a service has measured, an hour ago and just now."""
    opened = Store(str(tmp_path / "shop.sqlite"))
    opened.instance_id("the instance")
    words = [0] * 18
    words[layout.W_MEMORY_BYTES] = 50 << 20
    row = RecorderRow("7-a", 0, 1, 4711, True, RUNNING, NOW - 100.0, NOW - 1.0, 140, 2, 0.25, words)
    just_now, before = (NOW - 30) // 10 * 10, (NOW - 3600) // 10 * 10
    opened.commit_drain(delta_of("/items/{id}", 100, just_now), [(None, row)], {}, 100)
    opened.commit_drain(delta_of("/items", 10, just_now, status=500, error="ValueError"), [], {}, 100)
    opened.commit_drain(delta_of("/old", 30, before), [], {("paste_agent.records.dropped", "{}"): 3}, 100)
    opened.add_traces([trace_of(1, path="/items/1"), trace_of(2, message="no stock", failed=True)], 1.0)
    yield opened
    opened.close()


# -- what the commands refuse ----------------------------------------------------------------------------------------


def missing(tmp_path: Path) -> Path:
    return tmp_path / "nowhere.ini"


def no_store_yet(tmp_path: Path) -> Path:
    return ini_of(tmp_path)


def no_store_in_memory(tmp_path: Path) -> Path:
    path = ini_of(tmp_path)
    path.write_text(path.read_text().replace("store = shop.sqlite", "store = memory"))
    return path


def a_directory(tmp_path: Path) -> Path:
    return tmp_path


def not_an_ini(tmp_path: Path) -> Path:
    path = tmp_path / "shop.ini"
    path.write_text("no section\nat all\n")
    return path


def binary(tmp_path: Path) -> Path:
    path = tmp_path / "shop.ini"
    path.write_bytes(bytes(range(256)) * 10)
    return path


def empty(tmp_path: Path) -> Path:
    path = tmp_path / "shop.ini"
    path.touch()
    return path


def without_agent(tmp_path: Path) -> Path:
    path = tmp_path / "shop.ini"
    path.write_text(PIPELINE)
    return path


def wrong_value(tmp_path: Path) -> Path:
    return ini_of(tmp_path, "apdex_t_s = soon")


def foreign(tmp_path: Path) -> Path:
    with closing(sqlite3.connect(tmp_path / "theirs.sqlite")) as db:
        db.execute("CREATE TABLE customers (name TEXT)")
        db.commit()
    return tmp_path / "theirs.sqlite"


def newer(tmp_path: Path) -> Path:
    Store(str(tmp_path / "shop.sqlite")).close()
    with closing(sqlite3.connect(tmp_path / "shop.sqlite")) as db:
        db.execute("PRAGMA user_version = 99")
    return tmp_path / "shop.sqlite"


def cut(tmp_path: Path) -> Path:
    with closing(Store(str(tmp_path / "shop.sqlite"))) as made:
        for place in range(300):
            made.commit_drain(delta_of(f"/{place}", 1, NOW), [], {}, 1000)
    data = (tmp_path / "shop.sqlite").read_bytes()
    (tmp_path / "shop.sqlite").write_bytes(data[: len(data) // 3])
    return tmp_path / "shop.sqlite"


def torn(tmp_path: Path) -> Path:
    path = cut(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\x5a" * (len(data) - 4096))
    return path
