"""Kept traces on their way through the lead: files that processes have left, and those that are none."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from paste_agent import kept
from paste_agent.recorder.writer import Recorder
from paste_agent.spans import span
from paste_agent.store.store import Store
from paste_agent.trace_writer import TraceWriter
from tests.recorders import (
    count_of,
    die,
    leading,
    open_recorder,
    serve,
    settings_of,
    warnings,
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path


# -- kept traces that processes leave as files ---------------------------------------------------------------------


def keep(recorder: Recorder, directory: Path) -> TraceWriter:
    writer = TraceWriter(settings_of(directory), recorder, str(directory), warnings())
    writer.write()
    return writer


def test_what_came_after_the_tick_waits_for_the_next(directory: Path) -> None:
    opened = open_recorder(directory, keep_all=True)
    for path in ("/1", "/2", "/3"):
        serve(opened, path)
    TraceWriter(settings_of(directory), opened, str(directory), warnings()).write(2)
    assert [one.path for one in opened.kept] == ["/3"]


def many_spans(amount: int, text: str) -> Callable[[], None]:
    def meanwhile() -> None:
        for _ in range(amount):
            with span("row") as one:
                for name in "abcd":
                    one.set(name, text)

    return meanwhile


def test_no_file_is_longer_than_what_is_read_of_it(directory: Path) -> None:
    """Text beyond ASCII takes more bytes than characters; a request that is too long by itself loses spans."""
    text = "語" * 999 + "\ud800"
    opened = open_recorder(directory, keep_all=True)
    for amount in (100, 100, 250, 400, 100):
        serve(opened, meanwhile=many_spans(amount, text))
    writer = TraceWriter(settings_of(directory), opened, str(directory), warnings())
    writer.write_last(time.monotonic() + 60)
    assert not opened.kept
    files = [path for path in directory.iterdir() if path.suffix == kept.SUFFIX]
    assert all(path.stat().st_size <= kept.MAX_BYTES for path in files)
    with leading(directory) as lead:
        lead.drain()
        details: list[Any] = [row.detail for row in lead.store.traces(0, 1e12, "newest", False, 10)]
        dropped = {len(one["spans"]): one["attributes"].get("paste_agent.spans.dropped") for one in details}
        assert dropped == {100: None, 250: None, 200: 200}
        assert len(details) == 5
        assert {text for one in details for text in one["spans"][0]["attributes"].values()} == {text}
    die(opened)


def test_what_does_not_fit_is_for_the_next_round(directory: Path) -> None:
    opened = open_recorder(directory, keep_all=True)
    for _ in range(3):
        serve(opened, meanwhile=many_spans(200, "語" * 1000))
    writer = keep(opened, directory)
    assert len(opened.kept) == 2
    assert writer.write(1) == 0
    assert len(opened.kept) == 1
    die(opened)


@pytest.mark.parametrize("first", ["record", "file"])
def test_a_kept_trace_has_its_detail_whichever_comes_first(directory: Path, first: str) -> None:
    opened = open_recorder(directory, keep_all=True)
    serve(opened, "/items/1", route="/items/{id}", HTTP_USER_AGENT="test/1")
    opened.mark_closed()
    with leading(directory) as lead:
        if first == "record":
            lead.drain()
            keep(opened, directory)
        else:
            keep(opened, directory)
        lead.drain()
        lead.drain()
        (row,) = lead.store.traces(0, 1e12, "newest", False, 10)
        assert row.detail is not None
        attributes = row.detail["attributes"]
        assert isinstance(attributes, dict)
        assert attributes["url.path"] == "/items/1"
        assert row.attributes["http.route"] == "/items/{id}"
        assert [name for name in os.listdir(directory) if kept.SUFFIX in name] == []
    die(opened)


def test_kept_traces_wait_for_a_store_that_refuses(directory: Path) -> None:
    opened = open_recorder(directory, keep_all=True)
    serve(opened)
    keep(opened, directory)
    with leading(directory) as lead, closing(Store(settings_of(directory).store)) as other:
        with lead.store.transaction() as db:
            db.execute("PRAGMA busy_timeout = 20")
        with other.transaction(), pytest.raises(sqlite3.OperationalError):
            lead.drain()
        assert len([name for name in os.listdir(directory) if name.endswith(kept.SUFFIX)]) == 1
        lead.drain()
        assert len(lead.store.traces(0, 1e12, "newest", False, 10)) == 1
    die(opened)


GOOD = {
    "trace_id": "01" * 16, "span_id": "02" * 8, "parent_id": None, "started_at_ns": 5, "duration_ns": 5,
    "failed": False, "why": 1, "attributes": {"a": 1}, "detail": {"attributes": {}},
}  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b"null",
        b"[]",
        b"{}",
        b"1e999",
        *(
            json.dumps({**GOOD, **change}).encode()
            for change in (
                {"started_at_ns": float("inf")},
                {"started_at_ns": float("nan")},
                {"duration_ns": -1},
                {"why": 1 << 70},
                {"trace_id": "00"},
                {"trace_id": "zz" * 16},
                {"span_id": 7},
                {"parent_id": "zz"},
                {"attributes": [[1, 2], ["a", 3]]},
                {"attributes": None},
                {"detail": [["a", 1]]},
                {"detail": None},
            )
        ),
    ],
)
def test_lines_of_kept_files_that_are_no_rows_are_passed_over(directory: Path, line: bytes) -> None:
    path = directory / f"x{kept.SUFFIX}"
    path.write_bytes(line + b"\n" + json.dumps(GOOD).encode() + b"\n" + line)
    with leading(directory) as lead:
        lead.drain()
        assert [row.trace_id for row in lead.store.traces(0, 1e12, "newest", False, 10)] == [b"\x01" * 16]
        assert not path.exists()


@pytest.mark.parametrize("make", ["directory", "fifo", "link", "dangling"])
def test_kept_files_that_are_none_stop_nothing(directory: Path, make: str) -> None:
    path = directory / f"x{kept.SUFFIX}"
    if make == "directory":
        path.mkdir()
    elif make == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(directory / ("shop.sqlite" if make == "link" else "nowhere"))
    opened = open_recorder(directory)
    serve(opened)
    die(opened)
    with leading(directory) as lead:
        lead.drain()
        descriptors = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            lead.drain()
        assert len(os.listdir("/proc/self/fd")) == descriptors
        assert count_of(lead.store) == 1
