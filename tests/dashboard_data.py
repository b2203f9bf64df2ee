"""Something for every page of the dashboard, in a store."""

from __future__ import annotations

import time

from paste_agent.aggregate import (
    CALL_DURATION,
    DATABASE_DURATION,
    ERRORS,
    LAYER_DURATION,
    LOAD_DURATION,
    PART_DURATION,
    QUEUE_DURATION,
    REQUEST_DURATION,
    TASK_DURATION,
    Delta,
    canonical,
)
from paste_agent.kept import TraceRow
from paste_agent.recorder import layout
from paste_agent.store import deployments
from paste_agent.store.store import LOST, RUNNING, RecorderRow, Store
from tests.commands import count
from tests.kept import one
from tests.recorders import MS, S

NOW = time.time()
SLOT = int(NOW - 120) // 10 * 10
TRACE = "0af7651916cd43dd8448eb211c80319c"


def row_of(name: str = "7-a", state: str = RUNNING, **more: object) -> RecorderRow:
    words = [0] * 32
    words[layout.W_MEMORY_BYTES], words[layout.W_CONCURRENCY] = 50 << 20, 4
    row = RecorderRow(name, 0, 1, 4711, True, state, NOW - 7200, NOW - 1.0, 140, 2, 0.25, words)
    for key, value in more.items():
        setattr(row, key, value)
    return row


def trace_row(
    number: int, *, text: str = "/items", route: str = "/items", failed: bool = False, **detail: object
) -> TraceRow:
    attributes: dict[str, str | int] = {
        "http.request.method": "GET",
        "http.route": route,
        "http.response.status_code": 200,
    }
    if failed:
        attributes["error.type"] = text
    return TraceRow(
        bytes.fromhex(TRACE)[:15] + bytes([number]), number.to_bytes(8, "big"), None, int((NOW - 100 - number) * S),
        (2000 - number) * MS, failed, layout.KEPT_SLOW, attributes,
        {"attributes": {"url.path": text}, "spans": [one(text, attributes={"db.query.text": text})], **detail},
    )  # fmt: skip


def fill(store: Store, text: str = "word") -> None:
    """Something for every page; `text` wherever somebody else has the choice."""
    store.instance_id("the instance")
    store.set_meta("service.name", text[:60])
    request = {"http.request.method": "GET", "http.route": text, "http.response.status_code": 200, "url.scheme": "http"}
    count(store, REQUEST_DURATION, request, *([20 * MS] * 90), at=SLOT)
    count(store, REQUEST_DURATION, {**request, "http.response.status_code": 500, "error.type": text}, S, at=SLOT)
    count(store, REQUEST_DURATION, {"http.request.method": text, "url.scheme": "http"}, MS, at=SLOT)
    count(store, TASK_DURATION, {"paste_agent.task.name": text}, S, at=SLOT)
    count(store, QUEUE_DURATION, {}, 3 * MS, at=SLOT)
    part = {"http.request.method": "GET", "http.route": text, "paste_agent.part": "database"}
    count(store, PART_DURATION, part, *([5 * MS] * 90), at=SLOT)
    query = {"db.system.name": text, "db.namespace": text, "db.operation.name": text, "db.query.summary": text}
    count(store, DATABASE_DURATION, {**query, "error.type": text}, 4 * MS, at=SLOT)
    call = {"http.request.method": text, "server.address": text, "server.port": 80, "error.type": text}
    count(store, CALL_DURATION, call, 30 * MS, at=SLOT)
    for metric in (LAYER_DURATION, LOAD_DURATION):
        count(store, metric, {"paste.layer": text}, 3 * MS, at=SLOT)
    error = {"error.type": text, "paste_agent.error.place": text, "http.route": text}
    count(store, ERRORS, error, 1, at=SLOT)
    count(store, ERRORS, {**error, "paste_agent.error.expected": "true"}, 1, at=SLOT)
    store.commit_drain(Delta(), [(None, row_of()), (None, row_of("8-b", LOST, pid=8))], {
        ("paste_agent.records.dropped", canonical({"reason": text})): 7,
        ("paste_agent.worker.lost", canonical({"reason": text})): 1,
    }, 100)  # fmt: skip
    finding = {"text": text, "count": 12, "duration": 600 * MS, "code": {"file": text, "line": 3, "function": text}}
    store.add_traces(
        [
            trace_row(1, text=text, findings=[{"kind": "slow", **finding}, {"kind": "repeated", **finding}]),
            trace_row(
                2, text=text, route=text, failed=True, parts={"database": 5 * MS, "gc": MS},
                exception={"type": text, "message": text, "stacktrace": text}, errors=[{"type": text, "place": text}],
                postmortem={"id": text, "text": text}, attributes={
                    "url.path": text, text: text, "paste.layers": [text], "code.stacktrace": text,
                    "paste_agent.stack.age": 2.0},
            ),
        ],
        NOW,
    )  # fmt: skip
    deployments.add(store, SLOT + 5, text, text, text)
