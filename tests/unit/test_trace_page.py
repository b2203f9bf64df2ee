"""How a trace is printed: trees, bars, folds, and what stands beside them, however odd what is in the store."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import indent
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from paste_agent.cli.trace_page import ASCII, UNICODE, Scale, columns_of, lines_of
from paste_agent.kept import TraceRow
from paste_agent.recorder.layout import KEPT_QUERIES, KEPT_SLOW
from paste_agent.store.trace_tree import all_of, trees
from tests.kept import ROUTE, START, one, row_of
from tests.recorders import MS, S

WIDTHS = (40, 80, 140)


def page(*rows: TraceRow, width: int = 80, **keys: Any) -> list[str]:
    return [line.plain.rstrip() for line in lines_of(rows, width, **keys)]


def tree(*rows: TraceRow, width: int = 80, **keys: Any) -> list[str]:
    """The first column of the tree: heading and what follows left out."""
    lines = page(*rows, width=width, **keys)
    heading = next(place for place, line in enumerate(lines) if " took " in line)
    return [line[: columns_of(width).name].rstrip() for line in lines[heading + 1 : lines.index("", heading)]]


# -- the tree ------------------------------------------------------------------------------------------------------


def test_spans_stand_below_their_parents_in_the_order_of_their_beginning() -> None:
    row = row_of(
        one("render", 50 * MS, category="template"),
        one("list", 10 * MS, 30 * MS, category="function"),
        one("SELECT b", 30 * MS, parent="list"),
        one("SELECT a", 20 * MS, parent="list"),
        one("inner", 21 * MS, parent="SELECT a"),
    )
    assert tree(row) == [
        "GET /items 200",
        "├╴list",
        "│ ├╴SELECT a",
        "│ │ └╴inner",
        "│ └╴SELECT b",
        "└╴render",
    ]
    assert tree(row, forms=ASCII)[2:5] == ["| |-SELECT a", "| | `-inner", "| `-SELECT b"]


def test_durations_and_bars_are_of_one_scale() -> None:
    row = row_of(one("first", 0, 50 * MS), one("second", 50 * MS, 25 * MS, own=5 * MS), one("third", 75 * MS, 25 * MS))
    bars = {line[2:34].split()[0]: line[columns_of(80).whole - columns_of(80).bar :] for line in page(row)[3:7]}
    assert bars == {
        "T": "━" * 24,
        "first": "━" * 12,
        "second": " " * 12 + "━" * 6,
        "third": " " * 18 + "━" * 6,
    }
    line = next(line for line in page(row) if "second" in line)
    assert "25 ms     5 ms" in line
    assert "100 ms     0 µs" in page(row)[3]  # own time of the transaction: what no span has


@pytest.mark.parametrize(
    ("times", "bar"),
    [
        ([(0, 0)], "╸   "),
        ([(100, 0)], "   ╺"),
        ([(0, 1)], "╸   "),
        ([(13, 12)], "╺   "),
        ([(0, 50), (75, 25)], "━━ ━"),
        ([(-50, 60)], "╸   "),
        ([(90, 500)], "   ╺"),
        ([(-50, 500)], "━━━━"),
        ([(-(1 << 63), 1 << 64)], "━━━━"),
        ([(-(1 << 63), 0), (1 << 63, 0)], "╸  ╺"),
    ],
)
def test_a_bar_begins_and_ends_where_its_times_do(times: list[tuple[int, int]], bar: str) -> None:
    assert Scale(0, 100).bar(times, 4, UNICODE) == bar


def test_what_there_is_to_tell_of_a_span_stands_below_it() -> None:
    code = {"code.file.path": "/home/me/shop/shop/views.py", "code.line.number": 17, "code.function.name": "items"}
    text = {"db.query.text": "SELECT *\n  FROM items", "paste_agent.db.plan": "Seq Scan on items\n  Filter: ?"}
    row = row_of(
        one("SELECT items", error="Timeout", attributes={**text, **code, "db.response.status_code": "57014"}),
        one(
            "GET",
            MS,
            category="call",
            attributes={"server.address": "api", "server.port": 80, "url.full": "http://api/"},
        ),
        one("reserve", 2 * MS, category="function", attributes={"tenant": "acme", "n": 3, "code.line.number": 1}),
        one("child", 3 * MS, parent="reserve"),
    )
    assert [line.rstrip() for line in page(row)[3:15]] == [
        page(row)[3],
        page(row)[4],
        "│   Timeout 57014",
        "│   SELECT * FROM items",
        "│   …/shop/shop/views.py:17 in items",
        "│   Seq Scan on items",
        "│     Filter: ?",
        page(row)[10],
        "│   http://api/",
        page(row)[12],
        "  │ tenant=acme n=3",
        page(row)[14],
    ]
    assert page(row)[10].startswith("├╴GET api:80 ")
    assert page(row)[14].startswith("  └╴child ")


def test_the_same_query_is_not_told_twice_in_a_row() -> None:
    queries = [one("SELECT", place * MS, id=str(place), attributes={"db.query.text": "SELECT ?"}) for place in (1, 2)]
    assert sum("SELECT ?" in line for line in tree(row_of(*queries))) == 1


def test_only_what_is_beside_the_point_is_dim() -> None:
    console = Console()
    lines = list(lines_of([row_of(one("SELECT", attributes={"db.query.text": "SELECT ?"}), tenant="acme")], 80))
    assert not lines[4].get_style_at_offset(console, lines[4].plain.index("SELECT")).dim
    assert lines[4].get_style_at_offset(console, 0).dim
    assert lines[5].get_style_at_offset(console, lines[5].plain.index("SELECT ?")).dim


def test_many_identical_siblings_are_one_line() -> None:
    spans = [one("SELECT items", place * MS, id=str(place)) for place in range(36)]
    spans.append(one("SELECT items", 40 * MS, 4 * MS, id="slow"))
    lines = page(row_of(*spans))
    (line,) = [line for line in lines if "SELECT" in line]
    assert line.startswith("└╴SELECT items ×37 ")
    assert " 40 ms " in line
    assert "    1.08 ms each, slowest 4 ms" in lines
    assert sum("SELECT" in line for line in tree(row_of(*spans), fold=False)) == 37


@pytest.mark.parametrize(("count", "lines"), [(5, 5), (6, 1)])
def test_a_few_siblings_are_shown_each(count: int, lines: int) -> None:
    spans = [one("SELECT", place * MS, id=str(place)) for place in range(count)]
    assert sum("SELECT" in line for line in tree(row_of(*spans))) == lines


def test_what_repeats_in_turns_is_folded_together_with_what_is_inside() -> None:
    spans = []
    for place in range(8):
        spans.append(one("load", 4 * place * MS, 2 * MS, id=f"l{place}", category="function"))
        spans.append(one("SELECT a", 4 * place * MS, id=f"a{place}", parent=f"l{place}"))
        spans.append(one("SELECT a", 4 * place * MS + 1, id=f"b{place}", parent=f"l{place}"))
        spans.append(one("SELECT c", (4 * place + 2) * MS, id=f"c{place}"))
    spans.append(one("load", 90 * MS, id="failed", category="function", error="KeyError"))
    assert [line for line in tree(row_of(*spans)) if "each" not in line] == [
        "GET /items 200",
        "├╴load ×8",
        "│ ├╴SELECT a ×8",
        "│ └╴SELECT a ×8",
        "├╴SELECT c ×8",
        "└╴load",
        "    KeyError",
    ]


def test_calls_that_differ_are_not_told_as_one() -> None:
    def calls(name: str, paths: tuple[str, ...] = ("/x",), **more: Any) -> list[dict[str, Any]]:
        attributes = {"server.address": "::1", "server.port": 80, "http.response.status_code": 200, **more}
        return [
            one("GET", MS, id=f"{name}{place}", category="call", attributes={**attributes, "url.full": path})
            for place in range(6)
            for path in paths
        ]

    paths = tuple(f"/{place}" for place in range(2))
    spans = calls("a") + calls("b", **{"server.port": 81}) + calls("c", paths, **{"http.response.status_code": 302})
    found = [line for line in tree(row_of(*spans)) if "each" not in line]
    assert found[1:] == [
        "├╴GET [::1]:80 200 ×6", "│   /x", "├╴GET [::1]:81 200 ×6", "│   /x", "└╴GET [::1]:80 302 ×12",
    ]  # fmt: skip


# -- several transactions ------------------------------------------------------------------------------------------


def test_a_transaction_stands_below_the_span_that_called_for_it() -> None:
    caller = one("GET", 10 * MS, 50 * MS, id="00000000000000aa", category="call", attributes={"server.address": "me"})
    rows = [
        row_of(caller, one("last", 70 * MS)),
        row_of(one("SELECT", 0), number=2, parent="00000000000000aa", start=20 * MS, duration=30 * MS),
        row_of(number=3, parent=(2).to_bytes(8, "big").hex(), start=25 * MS, duration=MS),
        row_of(number=4, parent="00000000000000ff", start=95 * MS, duration=MS),
    ]
    assert tree(*rows) == [
        "GET /items 200",
        "├╴GET me",
        "│ └╴GET /items 200",
        "│   ├╴SELECT",
        "│   └╴GET /items 200",
        "└╴last",
        "GET /items 200",
    ]
    lines = page(*rows)
    assert lines[0].endswith("4 transactions, 3 spans")
    # A transaction that hangs below another one, and not below a span of it, is no part of its time.
    assert " 30 ms    29 ms " in lines[5]
    assert "  caller  GET me, of GET /items 200" in lines
    assert "  caller  GET /items 200" in lines
    assert "  caller  span 00000000000000ff, not of this store" in lines


def test_transactions_that_lie_far_apart_have_a_scale_each() -> None:
    near, far = row_of(number=2, start=200 * MS), row_of(number=2, start=3600 * S)
    headings = [line for line in page(row_of(), near) if " own " in line]
    assert [line.split()[-1] for line in headings] == ["ms"]
    assert "300 ms" in headings[0]
    headings = [line for line in page(row_of(), far) if " own " in line]
    assert len(headings) == 2
    assert all("100 ms" in line for line in headings)


def names_of(*rows: TraceRow) -> list[str]:
    return sorted(node.name for node in all_of(trees(rows)))


def test_spans_without_their_parents_stand_below_their_transaction() -> None:
    odd = [one("a", parent="gone"), one("b", parent="b"), one("c", parent="d"), one("d", parent="c")]
    row = row_of(*odd, one("e", parent="d"))
    assert names_of(row) == sorted(["GET /items", "a", "b", "c", "d", "e"])
    (root,) = trees([row])
    assert {child.name for child in root.children} >= {"a", "b"}


def test_transactions_in_a_circle_are_shown() -> None:
    first = row_of(one("x", id="00000000000000a1"), number=1, parent="00000000000000a2")
    second = row_of(one("y", id="00000000000000a2"), number=2, parent="00000000000000a1")
    itself = row_of(one("z", id="00000000000000a3"), number=3, parent="00000000000000a3")
    assert names_of(first, second, itself) == ["GET /items"] * 3 + ["x", "y", "z"]
    assert len(trees([first, second, itself])) == 2
    # A circle of spans with a transaction of the other below it, which the first hangs below.
    x = one("x", id="00000000000000a1", parent="00000000000000a3")
    w = one("w", id="00000000000000a3", parent="00000000000000a1")
    first = row_of(x, w, parent="00000000000000a2")
    assert names_of(first, second) == ["GET /items"] * 2 + ["w", "x", "y"]
    assert len(trees([first, second])) == 1


@pytest.mark.parametrize("width", [60, 80, 140])
def test_512_spans_in_one_another_fit(width: int) -> None:
    deep = [one(f"level {place}", place, parent=f"level {place - 1}") for place in range(512)]
    lines = page(row_of(*deep), width=width)
    assert sum("━" in line or "╸" in line or "╺" in line for line in lines) == 513
    assert max(map(len, lines[1:])) <= width
    assert any("(512) le" in line for line in lines)


def test_times_that_make_no_sense_are_shown() -> None:
    rows = [
        row_of(
            one("before", -40 * MS, MS), one("after", 300 * MS, 100 * MS), one("long", 0, 10**6 * S),
            one("nothing", 5, 0), one("negative", 5, -5, own=-5), one("huge", 1 << 62, 1 << 62), one("float", 1.5),
        ),
        row_of(number=2, duration=0, start=-START),
    ]  # fmt: skip
    for width in WIDTHS:
        assert max(map(len, page(*rows, width=width)[1:])) <= width
    assert page(row_of(one("x", 0, 0), duration=0))[3].endswith("╸")


def test_the_page_says_that_spans_were_not_kept() -> None:
    row = row_of(one("SELECT a", 0, 40 * MS), dropped_ns=50 * MS, attributes={"paste_agent.spans.dropped": 93})
    lines = page(row)
    assert lines[0].endswith("1 transaction, 1 span; 93 more were not kept")
    assert "100 ms    10 ms" in lines[3]
    assert "dropped" not in "".join(lines)


# -- what else is told ---------------------------------------------------------------------------------------------


def test_a_transaction_tells_all_that_is_known_of_it() -> None:
    row = row_of(
        why=KEPT_SLOW | KEPT_QUERIES,
        series={**ROUTE, "error.type": "shop.OutOfStock", "http.response.status_code": 500},
        parts={"database": 60 * MS, "template": 10 * MS, "gc": 2 * MS, "cpu": 5 * MS},
        errors=[
            {"type": "shop.OutOfStock", "place": "shop.order", "expected": False},
            {"type": "KeyError", "place": "", "expected": True},
        ],
        findings=[{"kind": "repeated", "text": "SELECT ?", "count": 37, "duration": 50 * MS, "code": None}],
        exception={"type": "shop.OutOfStock", "message": "none\nleft", "stacktrace": "Traceback:\n  File \"x\"\nend"},
        postmortem={"text": "worker 1 was lost\n  - by SIGKILL"},
        attributes={
            "url.path": "/items/17", "tenant": "acme", "paste_agent.sampling.probability": 0.02,
            "paste.layers": ["gzip 0.300 ms", "auth 1.200 ms"], "paste_agent.stack.age": 1.5,
            "code.stacktrace": '  File "/shop/views.py", line 3, in order\n    wait()\n',
        },
    )  # fmt: skip
    lines = page(row)
    text = "\n".join(lines)
    for line in (
        "GET /items 500",
        "  began      2027-01-15 08:00:00.000Z, took 100 ms",
        "  path       /items/17",
        "  kept       slow, queries; one of about 50 like it",
        "  time       database 60%  templates 10%  own code 30%",
        "  GC pauses  2 ms",
        "  CPU time   5 ms",
        "  error      shop.OutOfStock in shop.order",
        "  error      KeyError, expected",
        "  layers     gzip 0.300 ms, auth 1.200 ms",
        "  tenant     acme",
        "  37 times the same query, 50 ms  SELECT ?",
        "  shop.OutOfStock: none left",
        "    Traceback:",
        "  Where it was after 1.5 s",
        '      File "/shop/views.py", line 3, in order',
        "        wait()",
        "  Its worker died over it",
        "      - by SIGKILL",
    ):
        assert f"\n{line}" in text


def test_frames_of_the_application_stand_out() -> None:
    theirs = f'File "{pytest.__file__}", line 7, in wait'
    stack = f'  File "/shop/views.py", line 3, in order\n    wait()\n  {theirs}\n    sleep()\n'
    stacks = {
        "exception": {"type": "KeyError", "stacktrace": f"Traceback:\n{stack}KeyError\n"},
        "postmortem": {"text": f"worker 1 was lost\n{indent(stack, '  ')}"},
        "attributes": {"code.stacktrace": stack},
    }
    lines = list(lines_of([row_of(**stacks, own_files=["/shop/views.py"])], 80))
    text = "\n".join(line.plain for line in lines)
    assert text.count('\n    > File "/shop/views.py", line 3, in order\n        wait()\n') == 2
    assert text.count('\n      > File "/shop/views.py", line 3, in order\n          wait()\n') == 1
    assert text.count(f"  {theirs}\n") == 3
    console = Console()
    styles = {
        line.plain.strip(): line.get_style_at_offset(console, len(line.plain) - 1) for line in lines if line.plain
    }
    assert styles["wait()"].bold
    assert styles["sleep()"].dim
    assert styles[theirs].dim
    # A store of an earlier version has no such field.
    assert 'File "/shop' in (plain := "\n".join(page(row_of(**stacks))))
    assert "> File" not in plain


@pytest.mark.parametrize("width", WIDTHS)
def test_lines_fit_whatever_is_in_them(width: int) -> None:
    wide = "語" * 300
    spans: Sequence[dict[str, Any]] = [
        one(
            wide,
            place,
            id=str(place),
            parent=str(place - 1),
            attributes={"db.query.text": wide, "code.file.path": wide},
        )
        for place in range(20)
    ]
    row = row_of(*spans, findings=[{"kind": "slow", "text": wide}], attributes={"url.path": wide, wide: wide})
    assert max(cell_len(line) for line in page(row, width=width)[1:]) <= width
