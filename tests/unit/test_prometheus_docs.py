"""The dashboard and the alert rules ask for what is written, and Prometheus understands what they ask."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import parser

from paste_agent import metrics
from paste_agent.aggregate import ERRORS, KIND_NAMES, PART_SPANS, QUEUE_DURATION, REPORT_DURATION, Delta, canonical
from paste_agent.exporters import prometheus
from paste_agent.metrics import CPU_MODE, GC_GENERATION, REASON, SIGNAL, WORKER_NUMBER
from paste_agent.recorder import layout
from paste_agent.store import snapshot
from paste_agent.store.store import RUNNING, RecorderRow, Store
from tests.commands import count
from tests.prometheus import promtool

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
DASHBOARD = json.loads((DOCS / "grafana" / "paste-agent.json").read_text(encoding="utf-8"))
ALERTS = DOCS / "prometheus" / "alerts.yml"
#: Of PromQL, and of every target.
WORDS = frozenset(
    "sum avg max min count topk by on and or rate increase histogram_quantile last_over_time vector up".split()  # noqa: SIM905
)
COUNTERS = {
    metrics.CPU_TIME: (CPU_MODE, WORKER_NUMBER),
    metrics.GC_COLLECTIONS: (GC_GENERATION, WORKER_NUMBER),
    metrics.WORKER_LOST: (REASON,),
    metrics.WORKER_RECYCLED: (REASON,),
    metrics.RECORDS_DROPPED: (REASON,),
    metrics.SPANS_DROPPED: (REASON,),
    metrics.EXPORT_FAILED: (REASON, SIGNAL),
    metrics.INTERNAL_ERRORS: (REASON,),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Labels of every sample that there can be, by its name."""
    with closing(Store(str(tmp_path_factory.mktemp("all") / "store.sqlite"))) as store:
        for kind, fields in layout.FIELDS.items():
            name = KIND_NAMES[kind]
            if name in metrics.TABLE and name not in COUNTERS:
                count(store, name, dict.fromkeys(fields, "x"), 1, at=0)
        part = dict.fromkeys(layout.FIELDS[layout.KIND_PART], "x")
        for name, attributes in ((QUEUE_DURATION, {}), (REPORT_DURATION, {}), (PART_SPANS, part)):
            count(store, name, attributes, 1, at=0)
        counters = {(name, canonical(dict.fromkeys(labels, "x"))): 1 for name, labels in COUNTERS.items()}
        words = [1] * layout.WORDS_KEPT
        row = RecorderRow("1-a", 0, 1, 1, True, RUNNING, time.time(), time.time(), 1, 1, 0.5, words)
        active = {snapshot.ACTIVE: snapshot.active_text({("GET", "http"): 1})}
        store.commit_drain(Delta(), [(None, row)], counters, 100, (), active)
        found = snapshot.read(store, time.time())
        resource = {"service.name": "shop", "telemetry.sdk.name": "paste-agent"}
        parts = prometheus.write(found, resource, as_openmetrics=False, breath=prometheus.Breath())
        text = b"".join(parts).decode()
    names: dict[str, set[str]] = {}
    for family in parser.text_string_to_metric_families(text):
        for sample in family.samples:
            names.setdefault(sample.name, set()).update(sample.labels)
    return names


def queries_of(node: Any) -> Iterator[str]:
    """PromQL of all panels and annotations, and what the variables list."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("expr", "definition") and isinstance(value, str):
                yield value
            else:
                yield from queries_of(value)
    elif isinstance(node, list):
        for value in node:
            yield from queries_of(value)


QUERIES = list(dict.fromkeys(queries_of(DASHBOARD)))


def rules() -> list[str]:
    """Expressions of the alert rules, which stand on one line or on those below `expr: |`."""
    text = ALERTS.read_text(encoding="utf-8")
    found = re.findall(r"^        expr: (?:\|\n((?:          .*\n)+)|(.+)\n)", text, re.M)
    assert len(found) == text.count("- alert:")
    return [several or one for several, one in found]


@pytest.mark.parametrize("query", [*QUERIES, *rules()])
def test_what_is_asked_for_is_written(query: str, written: dict[str, set[str]]) -> None:
    labels = set()
    if query.startswith("label_values("):
        query, label = query.removeprefix("label_values(").removesuffix(")").rsplit(", ", 1)
        labels.add(label)
    bare = re.sub(r'"[^"]*"', '""', query)
    for inside in re.findall(r"\{([^}]*)\}", bare):
        labels |= set(re.findall(r"(\w+) *(?:=~|!~|!=|=)", inside))
    for inside in re.findall(r"\b(?:by|on) *\(([^)]*)\)", bare):
        labels |= set(re.findall(r"\w+", inside))
    bare = re.sub(r"\{[^}]*\}|\b(by|on) *\([^)]*\)|\[[^]]*\]", " ", bare)
    names = set(re.findall(r"[a-zA-Z_:]\w*", bare)) - WORDS
    assert names
    assert names - written.keys() == set()
    known = {"job", "instance"}.union(*(written[name] for name in names))
    assert labels - known == set()


def test_every_metric_is_in_the_dashboard_but_for_a_few(written: dict[str, set[str]]) -> None:
    asked = " ".join(QUERIES)
    families = {
        re.sub("_(bucket|sum|count|total)$", "", name) for name in written if name != "paste_agent_worker_count"
    }
    missing = {name for name in families if name not in asked}
    errors = ERRORS.replace(".", "_")
    assert missing == {
        "process_memory_virtual_bytes",
        "paste_agent_layer_load_duration_seconds",
        "paste_agent_transaction_part_spans",
        errors,
    }


def test_the_alert_rules_do_what_they_say() -> None:
    assert "11 rules found" in promtool("check", "rules", ALERTS)
    assert "SUCCESS" in promtool("test", "rules", DOCS.parent / "tests" / "alerts_test.yml")


def test_the_examples_of_the_page_are_configurations(tmp_path: Path) -> None:
    (tmp_path / "alerts.yml").write_text(ALERTS.read_text(encoding="utf-8"))
    (tmp_path / "token").touch()
    examples = re.findall(r"```yaml\n(.*?)```", (DOCS / "prometheus.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 2
    together = "".join(examples).replace("/etc/prometheus/shop.token", str(tmp_path / "token"))
    (tmp_path / "prometheus.yml").write_text(together)
    assert "11 rules found" in promtool("check", "config", tmp_path / "prometheus.yml")


def test_the_page_lists_the_alerts() -> None:
    names = re.findall(r"- alert: (\w+)", ALERTS.read_text(encoding="utf-8"))
    assert (
        re.findall(r"^\| `((?:Service|Agent)\w+)`", (DOCS / "prometheus.md").read_text(encoding="utf-8"), re.M) == names
    )


def test_prometheus_understands_the_dashboard(tmp_path: Path) -> None:
    queries = [query for query in QUERIES if not query.startswith("label_values(")]
    assert len(queries) > 30
    known = {"$__rate_interval": "5m", "$__range": "1h", "$job": ".*", "$instance": ".*", "$route": ".*"}
    exprs = [re.sub(r"\$\w+", lambda found: known[found[0]], query) for query in queries]
    groups = [{"name": "all", "rules": [{"record": f"query:{at}", "expr": expr} for at, expr in enumerate(exprs)]}]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": groups}))  # JSON is YAML
    assert f"{len(exprs)} rules found" in promtool("check", "rules", tmp_path / "rules.yml")


def test_the_dashboard_is_whole() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells
        assert panel["type"] == "row" or panel["targets"]
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(panels)))
    assert {name for name in used if not name.startswith("__")} == variables
