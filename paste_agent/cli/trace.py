"""`paste-agent trace`: one trace from within, as a tree of its transactions and spans."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click
from rich.text import Text

from paste_agent.cli import trace_page
from paste_agent.cli.style import console_of
from paste_agent.cli.target import target_of
from paste_agent.errors import StoreError
from paste_agent.kept import TraceRow
from paste_agent.recorder.layout import WHY_KEPT
from paste_agent.store import lookup
from paste_agent.store.inside_summary import dicts, number
from paste_agent.store.store import READ_ERRORS, Store
from paste_agent.store.summary import probability_of, rfc3339, trace_name
from paste_agent.store.trace_tree import all_of, error_of, trees

_DEFAULT = "production.ini"
#: A shorter beginning is no id but a typing error.
_LEAST = 8
#: Transactions of one trace: a client may give every request the same id.
_MOST = 100
_NS = 1_000_000_000


@click.command(short_help="One trace from within, as a tree.")
@click.argument("words", metavar="[INI|STORE] ID", nargs=-1)
@click.option("--service", help="Which service, when the ini measures several.")
@click.option("--all", "everything", is_flag=True, help="Show each of many identical spans.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead, with every span.")
def command(words: tuple[str, ...], service: str | None, everything: bool, as_json: bool) -> None:
    """Print what happened inside of the trace with this ID, or this beginning of an ID, of at least 8 digits.

    `paste-agent report` lists the IDs.
    """
    rows, service_name = _read(*_path_and_id(words), service)
    if as_json:
        click.echo(json.dumps(as_object(rows[:_MOST], service_name), indent=2))
        return
    console = console_of()
    forms = trace_page.ASCII if console.options.ascii_only else trace_page.UNICODE
    more = len(rows) > _MOST
    for line in trace_page.lines_of(rows[:_MOST], console.width, fold=not everything, more=more, forms=forms):
        console.print(line, soft_wrap=True)


def page_of(path: str, name: str, width: int) -> Iterator[Text]:
    """What the command prints of a trace, line by line: docs/generate.py makes its picture of it."""
    return trace_page.lines_of(_read(path, name, None)[0], width, forms=trace_page.UNICODE)


def _read(path: str, name: str, service: str | None) -> tuple[list[TraceRow], str]:
    """The transactions of a trace, one more than are shown, and the name of the service."""
    target = target_of(path, service)
    store = Store(target.store, read_only=True)
    try:
        rows = _found(store, name, target.store)
        service_name = target.settings.service_name if target.settings else (store.meta("service.name") or "")
    except READ_ERRORS as error:
        raise StoreError(f"{target.store}: cannot be read: {error}") from None
    finally:
        store.close()
    return rows, service_name


def _path_and_id(words: tuple[str, ...]) -> tuple[str, str]:
    """Of two words the first is the path; a single one is the ID."""
    if len(words) == 2:
        return words[0], words[1]
    if len(words) != 1 or os.path.exists(words[0]) or words[0].endswith((".ini", ".sqlite")):
        raise click.UsageError("give an ini or a store, which may be left out, and the ID of a trace")
    return _DEFAULT, words[0]


def _found(store: Store, name: str, path: str) -> list[TraceRow]:
    """The transactions of the one trace. Raises StoreError where there is none, or more than one."""
    if len(name) < _LEAST:
        raise StoreError(f"{name!r}: too short for the ID of a trace; give at least {_LEAST} digits")
    found = lookup.trace_ids(store, name)
    if len(found) != 1:
        what = "more than one trace has" if found else "no kept trace has"
        raise StoreError(f"{path}: {what} an ID that begins with {name[:64]!r}; `paste-agent report` lists some")
    return lookup.transactions_of(store, found[0], _MOST + 1)


def as_object(rows: Sequence[TraceRow], service: str) -> dict[str, Any]:
    """What `--json` prints: fields are added and not renamed.

    `trace_id`, `service`, and `transactions`, in the order in which they began. Each of these: `span_id`, `parent_id`
    (None: nobody called), `parent_known` (whether the caller is in this trace), `name`, `start`, `duration_s`,
    `own_s` (not in any span), `status`, `failed`, `error_type`, `why_kept`, `probability`, `attributes`, `parts` (s by
    name), `errors` (`type`, `place`, `expected`), `findings` (`kind`, `text`, `count`, `duration_s`, `code`),
    `exception` and `postmortem` (None: none), `own_files` (of their stacks, those of the application itself), and
    `spans`: `id`, `parent` (id of a span; None: the transaction), `category`, `name`, `start_s` (from the
    transaction's), `duration_s`, `own_s`, `error` and `attributes`.
    """
    nodes = {id(node.row): node for node in all_of(trees(rows, fold=False)) if node.row is not None}
    return {
        "trace_id": rows[0].trace_id.hex(),
        "service": service,
        "transactions": [_transaction(row, nodes[id(row)].own_ns, nodes[id(row)].parent is not None) for row in rows],
    }


def _transaction(row: TraceRow, own_ns: int, parent_known: bool) -> dict[str, Any]:
    detail: Mapping[str, Any] = row.detail or {}
    return {
        "span_id": row.span_id.hex(),
        "parent_id": None if row.parent_id is None else row.parent_id.hex(),
        "parent_known": parent_known,
        "name": trace_name(row.attributes),
        "start": rfc3339(row.started_at_ns / _NS),
        "duration_s": row.duration_ns / _NS,
        "own_s": own_ns / _NS,
        "status": row.attributes.get("http.response.status_code"),
        "failed": row.failed,
        "error_type": row.attributes.get("error.type"),
        "why_kept": [word for bit, word in WHY_KEPT.items() if row.why & bit],
        "probability": probability_of(detail),
        "attributes": _object(detail.get("attributes")) or {},
        "parts": {name: number(ns) / _NS for name, ns in (_object(detail.get("parts")) or {}).items()},
        "errors": dicts(detail.get("errors")),
        "findings": [
            {**{name: value for name, value in one.items() if name != "duration"}, "duration_s": _s(one, "duration")}
            for one in dicts(detail.get("findings"))
        ],
        "exception": _object(detail.get("exception")),
        "postmortem": _object(detail.get("postmortem")),
        "own_files": detail.get("own_files") or [],
        "spans": list(_spans(detail)),
    }


def _spans(detail: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for one in dicts(detail.get("spans")):
        yield {
            "id": one.get("id"),
            "parent": one.get("parent"),
            "category": one.get("category"),
            "name": one.get("name"),
            "start_s": _s(one, "start"),
            "duration_s": _s(one, "duration"),
            "own_s": _s(one, "own"),
            "error": error_of(one),
            "attributes": _object(one.get("attributes")) or {},
        }


def _s(fields: Mapping[str, Any], name: str) -> float:
    return number(fields.get(name)) / _NS


def _object(found: object) -> dict[str, Any] | None:
    return found if isinstance(found, dict) else None
