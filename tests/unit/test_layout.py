"""The map of the package: imports point one way, heavy dependencies have one home each, and nothing grows too long."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent.parent / "paste_agent"

#: From the ground up: a module imports, at its own level, only from entries before it. A package stands for all that
#: it holds unless its modules are listed. A new module is entered here once, where it belongs.
ORDER = [
    "paste_agent",
    *("errors", "wording", "native", "log", "addresses", "naming", "propagation", "probes", "raised", "error_rules"),
    *("decorating", "on_import", "recorder", "recorder.layout", "recorder.lock", "recorder.file"),
    *("headers", "kinds", "settings", "ini", "ini_text", "ini_edit", "runtime_dir", "lease"),
    *(
        "sampler",
        "inside",
        "said",
        "recorder.writer",
        "recorder.reader",
        "transaction",
        "response",
        "spans",
        "trace_ids",
    ),
    *("crash", "stacks", "watch"),
    *("kept", "log_files", "log_forwarding", "aggregate", "metrics", "inner_spans", "detail", "trace_writer"),
    *("postmortem", "ending"),
    *("store", "store.schema", "store.store", "store.snapshot", "store.log_rows", "store.cover", "store.copies"),
    *("store.retention", "store.opening"),
    *("store.history", "store.health", "store.deployments", "store.lookup", "store.kept_traces"),
    *("store.inside_summary", "store.summary", "store.trace_tree"),
    "live",
    *("exporters", "exporters.resource", "exporters.points", "exporters.otlp_encode", "exporters.connection"),
    *("exporters.deadline", "exporters.otlp", "exporters.prometheus"),
    *("lead_logs", "lead", "leadership", "reporter", "owed", "lifecycle", "background", "api", "logs"),
    *("sql_summary", "sql", "statements", "otel"),
    # Those that others of the package are built upon come before it.
    *("instrument.wrapping", "instrument.views", "instrument.dbapi", "instrument.psycopg2", "instrument.mysql"),
    *("instrument.http_client", "instrument"),
    *("functions", "pauses", "layers"),
    "filter",
    *("launch", "scrape", "server", "django", "demo", "dashboard", "cli"),
]

#: Where a dependency may be imported at all, in functions too.
HOMES = {
    "gunicorn": ["server"],
    "webob": ["demo", "dashboard"],
    "requests": ["exporters.otlp", "exporters.deadline", "cli.demo_traffic"],
    "opentelemetry": ["exporters", "otel"],
    "google": ["exporters"],
    "prometheus_client": ["exporters.prometheus"],
    "sqlite3": ["store", "lead", "leadership", "demo", "instrument.sqlite"],
    "rich": ["cli"],
    "click": ["cli"],
    "django": ["django", "server.gunicorn_django", "instrument.django"],
    "pyramid": ["instrument.pyramid"],
    "paste": ["ini", "layers", "server", "cli"],
    "setuptools": [],
    "pkg_resources": [],
    "gevent": [],
    "eventlet": [],
}
MAX_LINES = 600
MAX_FUNCTION_LINES = 60


def name_of(path: Path) -> str:
    """Below the package: `store.schema`; `store` for its `__init__`; `paste_agent` for the package's own."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "paste_agent"


FILES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def at_module_level(node: ast.AST) -> Iterator[ast.AST]:
    """All that runs when the module is imported: not the bodies of functions, nor what is for types alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or is_for_types(child):
            continue
        yield child
        yield from at_module_level(child)


def imported(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Full names of the modules that import statements name, of the package's own as in FILES."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def own(full: str) -> str | None:
    """The module of this package that an imported name lies in, or None."""
    if full != "paste_agent" and not full.startswith("paste_agent."):
        return None
    name = full.removeprefix("paste_agent").removeprefix(".")
    while name and name not in FILES:
        name = name.rpartition(".")[0]
    return name or "paste_agent"


IMPORTS = {name: {own(full) for full in imported(at_module_level(tree))} - {None, name} for name, tree in TREES.items()}


def place(name: str) -> int:
    entry = name
    while entry and entry not in ORDER:
        entry = entry.rpartition(".")[0]
    assert entry, f"{name} is in no entry of ORDER: put it where it belongs"
    return ORDER.index(entry)


def test_every_entry_of_the_order_exists() -> None:
    assert [entry for entry in ORDER if entry not in FILES] == []
    assert len(ORDER) == len(set(ORDER))


@pytest.mark.parametrize("name", FILES)
def test_imports_point_one_way(name: str) -> None:
    # Within an entry that stands for a whole package, the order is what test_no_cycle leaves.
    later = [other for other in IMPORTS[name] if other is not None and place(other) > place(name)]
    assert later == [], f"{name} imports what stands after it in ORDER"


def test_no_cycle() -> None:
    graphlib.TopologicalSorter({name: {other for other in found if other} for name, found in IMPORTS.items()}).prepare()


@pytest.mark.parametrize("dependency", HOMES)
def test_a_dependency_has_one_home(dependency: str) -> None:
    def lives_in(name: str) -> bool:
        return any(name == home or name.startswith(f"{home}.") for home in HOMES[dependency])

    users = {
        name
        for name, tree in TREES.items()
        if any(full == dependency or full.startswith(f"{dependency}.") for full in imported(ast.walk(tree)))
    }
    assert [name for name in users if not lives_in(name)] == []


@pytest.mark.parametrize("module", ["filter", "lifecycle", "reporter", "recorder.reader", "trace_writer", "scrape"])
def test_what_every_worker_imports_is_light(module: str) -> None:
    heavy = ["requests", "google.protobuf", "opentelemetry", "sqlite3", "rich", "click", "webob", "gunicorn", "pyramid"]
    heavy.append("prometheus_client")
    code = f"import sys, paste_agent.{module}; print([name for name in {heavy!r} if name in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, cwd=PACKAGE.parent
    )
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("name", FILES)
def test_no_file_and_no_function_is_long(name: str) -> None:
    assert len(FILES[name].read_text(encoding="utf-8").splitlines()) <= MAX_LINES
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(TREES[name])
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= MAX_FUNCTION_LINES
    ]
    assert long == []


@pytest.mark.parametrize("name", FILES)
def test_a_module_says_what_it_is_for(name: str) -> None:
    assert ast.get_docstring(TREES[name])
