"""`paste-agent trace`: which trace it prints, that nothing in a store is too much for it, and its JSON."""

from __future__ import annotations

import json
import random
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from paste_agent import inside
from paste_agent.recorder.layout import KEPT_LOST
from paste_agent.spans import begin, end, headers_of, span
from paste_agent.store.store import Store
from paste_agent.trace_writer import TraceWriter
from tests.commands import Run, filled, ini_of, refused, shell
from tests.kept import TRACE, one, row_of
from tests.recorders import die, leading, open_recorder, run_script, serve, settings_of, traces_of, warnings


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    return shell(capsys, monkeypatch, tmp_path)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(str(tmp_path / "shop.sqlite"))) as opened:
        yield opened


def test_a_transaction_whose_inside_was_not_written_is_told_all_the_same(run: Run, store: Store) -> None:
    row = row_of(why=KEPT_LOST)
    store.add_traces([row._replace(detail=None)], 1.0)
    result = run("trace", store.path, TRACE)
    assert result.status == 0
    assert "not written" in result.output
    (found,) = json.loads(run("trace", "--json", store.path, TRACE).output)["transactions"]
    assert (found["why_kept"], found["spans"], found["exception"]) == (["lost"], [], None)


EVIL = "\x1b[2J\x1b]0;pwned\x07\x9b31m\r\x08\u202e\u2028\ud800[red][/bold] 語語\u0301"


def test_nothing_that_a_terminal_obeys_is_printed(run: Run, store: Store) -> None:
    attributes = dict.fromkeys(("db.query.text", "db.query.plan", "code.file.path", "server.address", EVIL), EVIL)
    spans = [
        one(EVIL, place, id=f"{place}{EVIL}", parent=EVIL, category=category, error=EVIL, attributes=attributes)
        for place, category in enumerate(("database", "call", "function", EVIL) * 7)
    ]
    row = row_of(
        *spans,
        series={"http.request.method": EVIL, "http.route": EVIL, "error.type": EVIL},
        attributes={"url.path": EVIL, "code.stacktrace": EVIL, EVIL: EVIL, "paste.layers": [EVIL]},
        parts={EVIL: 5, "database": 7},
        errors=[{"type": EVIL, "place": EVIL}],
        findings=[{"kind": EVIL, "text": EVIL, "code": {"file": EVIL, "function": EVIL}}],
        exception={"type": EVIL, "message": EVIL, "stacktrace": EVIL},
        postmortem={"text": EVIL},
    )
    store.add_traces([row], 1.0)
    for more in ([], ["--all"]):
        result = run("trace", *more, store.path, TRACE)
        assert result.status == 0
        assert "pwned" in result.output  # as text
        assert [char for char in result.output if not char.isprintable() and char != "\n"] == []
    text = run("trace", "--json", store.path, TRACE).output
    assert text.isascii()
    assert [char for char in text if not char.isprintable() and char != "\n"] == []


def odd_value(draw: random.Random, depth: int = 0) -> Any:
    """Something that JSON can hold."""
    plain = [None, True, -1, 0, 1.5, 1e300, 1 << 62, -(1 << 63), 10**30, "", "x", "1", EVIL[:20], "000000000000000a"]
    kind = draw.random()
    if depth > 3 or kind < 0.6:
        return draw.choice(plain)
    if kind < 0.8:
        return [odd_value(draw, depth + 1) for _ in range(draw.randrange(4))]
    return {str(draw.choice(plain)): odd_value(draw, depth + 1) for _ in range(draw.randrange(4))}


KEYS = [
    "id",
    "parent",
    "category",
    "name",
    "start",
    "duration",
    "own",
    "error",
    "attributes",
    "type",
    "place",
    "expected",
    "kind",
    "text",
    "count",
    "code",
    "file",
    "line",
    "function",
    "message",
    "stacktrace",
    "url.path",
    "code.stacktrace",
    "paste.layers",
    "paste_agent.stack.age",
    "db.query.text",
    "gc",
    "database",
]


def odd_object(draw: random.Random, depth: int = 0) -> dict[str, Any]:
    return {
        key: odd_object(draw, depth + 1) if depth < 2 and draw.random() < 0.2 else odd_value(draw)
        for key in draw.sample(KEYS, draw.randrange(len(KEYS)))
    }


@pytest.mark.parametrize("seed", range(40))
def test_whatever_is_in_a_store_there_is_no_traceback(run: Run, store: Store, seed: int) -> None:
    draw = random.Random(seed)
    for number in range(1, 4):
        parts = ("attributes", "parts", "exception", "postmortem")
        detail: dict[str, Any] = {part: draw.choice([odd_object(draw), odd_value(draw)]) for part in parts}
        for part in ("spans", "findings", "errors"):
            detail[part] = draw.choice([[odd_object(draw) for _ in range(draw.randrange(12))], odd_value(draw)])
        row = row_of(number=number, parent=f"{draw.randrange(1, 12):016x}", series=odd_object(draw))
        store.add_traces([row._replace(detail=detail)], 1.0)
    for more in ([], ["--json"], ["--all"]):
        assert run("trace", *more, store.path, TRACE).status == 0
    assert run("report", "--since", "9999d", store.path).status == 0


# -- which trace ---------------------------------------------------------------------------------------------------


def test_the_beginning_of_an_id_will_do(run: Run, store: Store, tmp_path: Path) -> None:
    store.add_traces([row_of(one("SELECT")), row_of(number=2, trace="0af76519" + "f" * 24)], 1.0)
    assert "SELECT" in run("trace", store.path, TRACE[:9]).output
    assert "SELECT" in run("trace", store.path, TRACE.upper()).output
    assert "SELECT" in run("trace", ini_of(tmp_path), TRACE[:16]).output
    ini_of(tmp_path, name="production.ini")
    assert "SELECT" in run("trace", TRACE[:16]).output
    refused(run("trace", store.path, TRACE[:8]), "more than one trace has an ID that begins with '0af76519'")


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("0af7651", "too short"),
        ("", "too short"),
        ("ffffffff", "no kept trace has an ID that begins with 'ffffffff'"),
        (TRACE + "0", "no kept trace has"),
        ("nonsense", "no kept trace has"),
        ("0af76519\n\x1b[2J", "no kept trace has"),
        ("%" * 5000, "no kept trace has"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_an_id_that_is_none_is_one_line(run: Run, store: Store, name: str, word: str, more: list[str]) -> None:
    store.add_traces([row_of()], 1.0)
    refused(run("trace", *more, store.path, name), word)


def test_an_empty_store_has_no_trace(run: Run, store: Store) -> None:
    refused(run("trace", store.path, TRACE), "no kept trace has")


def test_what_is_no_store_is_one_line(run: Run, tmp_path: Path) -> None:
    refused(run("trace", tmp_path / "nowhere.ini", TRACE), "no such file")
    refused(run("trace", ini_of(tmp_path), TRACE), "no store yet")
    refused(run("trace", TRACE), "production.ini: no such file")


@pytest.mark.parametrize("words", [[], ["shop.sqlite"], ["gone.ini"], ["shop.sqlite", TRACE, "x"]])
def test_without_an_id_the_usage_is_told(run: Run, store: Store, words: list[str]) -> None:
    result = run("trace", *words)
    assert (result.status, result.output) == (2, "")
    assert "the ID of a trace" in result.errors


def test_a_store_of_an_older_agent_is_only_looked_at(run: Run, tmp_path: Path) -> None:
    with filled(tmp_path) as old:
        pass
    with closing(sqlite3.connect(old.path)) as db:
        db.execute("DROP TABLE postmortems")
        db.execute("PRAGMA user_version = 1")
    result = run("trace", old.path, "0" * 31 + "1")
    assert result.status == 0
    assert "2 transactions, 0 spans" in result.output
    assert "no stock" in result.output
    assert run("report", old.path).status == 0
    with closing(sqlite3.connect(old.path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)


def test_no_more_than_a_hundred_transactions_are_shown(run: Run, store: Store) -> None:
    store.add_traces([row_of(number=number, start=number) for number in range(1, 131)], 1.0)
    assert "100 transactions and more" in run("trace", store.path, TRACE).output
    assert len(json.loads(run("trace", "--json", store.path, TRACE).output)["transactions"]) == 100


# -- all of it -----------------------------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path: Path) -> str:
    """The store of a service that was asked for /items, and asked itself for /stock meanwhile."""
    tmp_path.chmod(0o700)
    recorder = open_recorder(tmp_path, keep_all=True)

    def stock() -> None:
        with span("count"):
            pass

    def items() -> None:
        with span("list") as listing:
            listing.set("tenant", "acme")
            for _ in range(9):
                query = begin(inside.DATABASE, b"SELECT amount FROM prices WHERE id = ?")
                assert query is not None
                end(query, "SELECT prices", attributes={"db.query.text": "SELECT amount FROM prices WHERE id = ?"})
            call = begin(inside.CALL, b"GET stock")
            assert call is not None
            headers = dict(headers_of(call))
            serve(recorder, "/stock/17", route="/stock/{id}", meanwhile=stock, HTTP_TRACEPARENT=headers["traceparent"])
            end(call, "GET", attributes={"server.address": "stock", "server.port": 8080})
        raise ValueError("no stock left")

    with pytest.raises(ValueError, match="no stock"):
        serve(recorder, "/items", route="/items", meanwhile=items)
    TraceWriter(settings_of(tmp_path), recorder, str(tmp_path), warnings()).write()
    # The drain leaves alone what is younger than this.
    time.sleep(0.11)
    with leading(tmp_path) as lead:
        lead.drain()
        assert len(traces_of(lead)) == 2
        path = lead.store.path
    die(recorder)
    return path


def test_what_a_service_did_is_printed(run: Run, served: str) -> None:
    (trace_id,) = {trace["trace_id"] for trace in json.loads(run("report", "--json", served).output)["traces"]}
    output = run("trace", served, trace_id[:16]).output
    names = [
        match[1]
        for line in output.splitlines()
        if (match := re.match(r"([│├└╴ ]*\S.*?)  +\S+ [mµ]?s +\S+ [mµ]?s  ", line))
    ]
    assert names == [
        "GET /items 500",
        "└╴list",
        "  ├╴SELECT prices ×9",
        "  └╴GET stock:8080",
        "    └╴GET /stock/{id} 200",
        "      └╴count",
    ]
    for word in ("tenant=acme", "SELECT amount FROM prices WHERE id = ?", "ValueError: no stock left", "in items"):
        assert word in output
    report = run("report", served).output
    assert "GET /items" in report
    assert "ValueError: no stock left" in report


TRANSACTION = {
    "span_id", "parent_id", "parent_known", "name", "start", "duration_s", "own_s", "status", "failed", "error_type",
    "why_kept", "probability", "attributes", "parts", "errors", "findings", "exception", "postmortem", "own_files",
    "spans",
}  # fmt: skip
SPAN = {"id", "parent", "category", "name", "start_s", "duration_s", "own_s", "error", "attributes"}


def test_json_has_the_fields_of_its_interface(run: Run, served: str) -> None:
    trace_id = json.loads(run("report", "--json", served).output)["traces"][0]["trace_id"]
    found = json.loads(run("trace", "--json", served, trace_id).output)
    assert set(found) == {"trace_id", "service", "transactions"}
    assert found["trace_id"] == trace_id
    items, stock = found["transactions"]
    assert set(items) == set(stock) == TRANSACTION
    assert (items["name"], items["status"], items["failed"], items["error_type"]) == (
        "GET /items",
        500,
        True,
        "ValueError",
    )
    assert (items["parent_id"], items["parent_known"], stock["parent_known"]) == (None, False, True)
    assert items["exception"]["message"] == "no stock left"
    assert [one["type"] for one in items["errors"]] == ["ValueError"]
    assert 0 <= items["own_s"] <= items["duration_s"]
    spans = items["spans"]
    assert [one["name"] for one in spans] == ["list", *["SELECT prices"] * 9, "GET"]
    assert all(set(one) == SPAN for one in spans)
    assert {one["parent"] for one in spans[1:]} == {spans[0]["id"]}
    assert stock["parent_id"] == spans[-1]["id"]
    assert spans[0]["attributes"]["tenant"] == "acme"
    assert items["parts"].keys() == {"database", "call"}


def test_a_terminal_that_knows_ascii_alone_gets_no_traceback(served: str) -> None:
    script = (
        "import sys; sys.stdout.reconfigure(encoding='ascii'); sys.argv[0] = 'paste-agent'\n"
        "from paste_agent.cli.main import run; run()"
    )
    with closing(Store(served, read_only=True)) as store:
        trace_id = store.traces(0, 1e12, "newest", False, 1)[0].trace_id.hex()
    for arguments in (["trace", served, trace_id], ["report", served]):
        output = run_script(script, *arguments)
        assert output.isascii()
        assert "GET /items" in output
    assert "`-list" in run_script(script, "trace", served, trace_id)
