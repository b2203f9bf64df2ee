"""Sums up a span of time of a store, as `paste-agent report` prints it. Reads only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from paste_agent.aggregate import REQUEST_DURATION, TASK_DURATION, Total
from paste_agent.kept import TraceRow
from paste_agent.metrics import RECORDS_DROPPED
from paste_agent.recorder.layout import W_MEMORY_BYTES, WHY_KEPT
from paste_agent.store import deployments, history, inside_summary
from paste_agent.store.cover import Summed
from paste_agent.store.inside_summary import latency, number
from paste_agent.store.inside_summary import rfc3339 as rfc3339  # where the commands look for it
from paste_agent.store.store import RUNNING, PostmortemRow, RecorderRow, SeriesTotal, Store
from paste_agent.wording import many

_NS = 1_000_000_000
#: Kept traces that a report lists, of the slowest and of the failed each.
TRACES = 10
#: Post-mortems that a report lists, the newest.
POSTMORTEMS = 100


def summarize(
    store: Store, service: str, start_s: float, end_s: float, marked_until_s: float | None = None
) -> dict[str, Any]:
    """The object that `paste-agent report --json` prints: a stable interface, fields are added and not renamed.

    start_s, end_s: s since the epoch; what began in between is summed up. marked_until_s: deployments are listed up to
    that time, where it is later: one may have had no request yet. `breakdown`, `queries`, `findings`, `calls`,
    `layers`, `custom` and `errors_seen` are lists, each described by the function of that name in `inside_summary`
    (`errors` for the last); empty where nothing is known.
    """
    between = history.totals(store, start_s, end_s)
    series = [found for found in between if found.metric == REQUEST_DURATION]
    slowest = store.traces(start_s, end_s, "slowest", False, TRACES)
    failed = store.traces(start_s, end_s, "newest", True, TRACES)
    marked = deployments.between(store, start_s, max(end_s, marked_until_s or 0))
    dropped = sum(value for (name, _), value in store.counters().items() if name == RECORDS_DROPPED)
    return {
        "service": service,
        "instance": store.meta("service.instance.id"),
        "from": rfc3339(start_s),
        "to": rfc3339(end_s),
        "requests": sum(found.total.count for found in series),
        "errors": sum(found.total.count for found in series if "error.type" in found.attributes),
        "dropped": dropped,
        "routes": [_route(found) for found in sorted(series, key=lambda found: -found.total.sum_ns)],
        "background": _background(between),
        "workers": [_worker(row) for row in store.recorders() if row.state == RUNNING and row.serving],
        "traces": [_trace(row) for row in {(row.trace_id, row.span_id): row for row in (*slowest, *failed)}.values()],
        "errors_seen": inside_summary.errors(store, between, start_s, end_s),
        "postmortems": [_postmortem(row) for row in store.postmortems(start_s, end_s, POSTMORTEMS)],
        "deployments": [_deployment(found) for found in marked],
        "breakdown": inside_summary.breakdown(between),
        "queries": inside_summary.queries(between),
        "findings": inside_summary.findings(store, start_s, end_s),
        "calls": inside_summary.calls(between),
        "layers": inside_summary.layers(between, store.totals()),
        "custom": inside_summary.custom(between),
    }


def overall(totals: Iterable[SeriesTotal]) -> Total:
    """All of them as one."""
    everything: Total = Summed()
    for found in totals:
        everything.add(found.total)
    return everything


def trace_name(attributes: Mapping[str, object]) -> str:
    """The name of a transaction: method and route, never a path; of a background task its own."""
    task = attributes.get("paste_agent.task.name")
    if task is not None:
        return str(task)
    method = str(attributes.get("http.request.method", "_OTHER"))
    method = "HTTP" if method == "_OTHER" else method
    route = attributes.get("http.route")
    return f"{method} {route}" if route else method


def route_name(attributes: Mapping[str, object]) -> str:
    """As `trace_name`, of a series of requests; says where there is no route, or what came after the bound."""
    if attributes.get("otel.metric.overflow"):
        return "(all others)"
    name = trace_name(attributes)
    return name if "http.route" in attributes else f"{name} (no route)"


class RouteTotal(NamedTuple):
    """Requests of one route, or of several."""

    total: Total
    errors: int

    @classmethod
    def of_all(cls, those: Iterable[RouteTotal]) -> RouteTotal:
        total, errors = Total(), 0
        for one in those:
            total.add(one.total)
            errors += one.errors
        return cls(total, errors)


def by_route(series: Iterable[SeriesTotal]) -> dict[str, RouteTotal]:
    """Series of requests by the name of their route, all statuses together."""
    found: dict[str, RouteTotal] = {}
    for one in series:
        name = route_name(one.attributes)
        total, errors = found.get(name) or RouteTotal(Total(), 0)
        total.add(one.total)
        found[name] = RouteTotal(total, errors + (one.total.count if "error.type" in one.attributes else 0))
    return found


def _route(found: SeriesTotal) -> dict[str, Any]:
    total, attributes = found.total, found.attributes
    return {
        "method": attributes.get("http.request.method"),
        "route": attributes.get("http.route"),
        "status": attributes.get("http.response.status_code"),
        "error_type": attributes.get("error.type"),
        "overflow": bool(attributes.get("otel.metric.overflow", False)),
        **figures(total),
    }


def _background(series: Iterable[SeriesTotal]) -> list[dict[str, Any]]:
    """Background tasks, by name and error; the ones that took most time first."""
    tasks = sorted((one for one in series if one.metric == TASK_DURATION), key=lambda one: -one.total.sum_ns)
    return [
        {
            "name": str(one.attributes.get("paste_agent.task.name", "")),
            "error_type": one.attributes.get("error.type"),
            **figures(one.total),
        }
        for one in tasks
    ]


def _postmortem(row: PostmortemRow) -> dict[str, Any]:
    return {**row.summary, "id": row.id, "at": rfc3339(row.at), "reason": row.reason}


def _deployment(found: deployments.Deployment) -> dict[str, Any]:
    return {
        "at": rfc3339(found.at_s),
        "version": found.version,
        "description": found.description,
        "user": found.user,
    }


def figures(total: Total) -> dict[str, Any]:
    """`latency`, and `apdex`, None where nothing was rated."""
    apdex = total.apdex()
    return {**latency(total), "apdex": None if apdex is None else round(apdex, 4)}


def _worker(row: RecorderRow) -> dict[str, Any]:
    return {
        "number": row.worker,
        "pid": row.pid,
        "state": row.state,
        "requests": row.requests,
        "in_flight": row.in_flight,
        "busy": round(row.busy, 4),
        "memory_bytes": row.words[W_MEMORY_BYTES] if len(row.words) > W_MEMORY_BYTES else 0,
        "since": rfc3339(row.opened_at),
        "seen": rfc3339(row.seen_at),
    }


def probability_of(detail: Mapping[str, object]) -> float:
    """That a transaction like this one is kept: one over it is how many it stands for."""
    attributes = detail.get("attributes")
    found = attributes.get("paste_agent.sampling.probability") if isinstance(attributes, dict) else None
    return float(found) if isinstance(found, (int, float)) and 0 < found <= 1 else 1.0


def dropped_of(rows: Iterable[TraceRow]) -> int:
    """How many spans transactions had beyond those that were kept."""
    attributes = ((row.detail or {}).get("attributes") for row in rows)
    return sum(max(0, number(one.get("paste_agent.spans.dropped"))) for one in attributes if isinstance(one, dict))


def spans_text(rows: Iterable[TraceRow]) -> str:
    """How many spans there are inside of transactions, for people."""
    rows = list(rows)
    text = many(sum(len(inside_summary.dicts((row.detail or {}).get("spans"))) for row in rows), "span")
    dropped = dropped_of(rows)
    return f"{text}; {dropped:,} more {'was' if dropped == 1 else 'were'} not kept" if dropped else text


def _trace(row: TraceRow) -> dict[str, Any]:
    """`spans`: how many were kept of those inside of it; `spans_dropped`: how many were not; see `probability_of`."""
    detail = row.detail or {}
    attributes = detail.get("attributes")
    exception = detail.get("exception")
    return {
        "trace_id": row.trace_id.hex(),
        "span_id": row.span_id.hex(),
        "name": trace_name(row.attributes),
        "start": rfc3339(row.started_at_ns / _NS),
        "duration_s": row.duration_ns / _NS,
        "status": row.attributes.get("http.response.status_code"),
        "failed": row.failed,
        "error_type": row.attributes.get("error.type"),
        "why_kept": [word for bit, word in WHY_KEPT.items() if row.why & bit],
        "path": attributes.get("url.path") if isinstance(attributes, dict) else None,
        "message": exception.get("message") if isinstance(exception, dict) else None,
        "spans": len(inside_summary.dicts(detail.get("spans"))),
        "spans_dropped": dropped_of([row]),
        "probability": probability_of(detail),
    }
