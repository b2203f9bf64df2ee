"""Sums up what is inside of transactions: queries, calls, layers, errors, and what the time is spent on. Reads only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, NamedTuple

from paste_agent.aggregate import (
    CALL_DURATION,
    COUNT,
    DATABASE_DURATION,
    ERRORS,
    LAYER_DURATION,
    LOAD_DURATION,
    PART_DURATION,
    PART_SPANS,
    REQUEST_DURATION,
    SLOT_S,
    TASK_DURATION,
    TIMING,
    Total,
)
from paste_agent.inside import PARTS
from paste_agent.kept import TraceRow
from paste_agent.store import lookup
from paste_agent.store.cover import Summed
from paste_agent.store.store import SeriesTotal, Store

_NS = 1_000_000_000
#: Parts that divide a transaction's time between them; the others, gc and cpu, lie across these.
SHARED = ("database", "cache", "call", "message", "template", "layers")
#: Kept traces that findings, and the messages of errors, are taken from: the newest.
_TRACES = 500
#: How exact the times of errors are that are older than a quarter of an hour: to be more so would take much longer.
_WITHIN_S = 3600
_OVERFLOW = "otel.metric.overflow"

Key = tuple[Any, ...]


def rfc3339(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def latency(total: Total) -> dict[str, Any]:
    """The figures of durations that everything has: count, sum, percentiles and maximum, s."""
    return {
        "count": total.count,
        "sum_s": total.sum_ns / _NS,
        "p50_s": round(total.quantile_ns(0.50) / _NS, 9),
        "p95_s": round(total.quantile_ns(0.95) / _NS, 9),
        "p99_s": round(total.quantile_ns(0.99) / _NS, 9),
        "max_s": total.max_ns / _NS,
    }


class _Group:
    """Series that are shown as one."""

    def __init__(self) -> None:
        self.total: Total = Summed()
        self.errors = 0

    def figures(self, whole_ns: int) -> dict[str, Any]:
        share = self.total.sum_ns / whole_ns if whole_ns else 0.0
        return {"errors": self.errors, "share": round(share, 4), **latency(self.total)}


def _grouped(
    series: Iterable[SeriesTotal], metric: str, key: Callable[[Mapping[str, Any]], Key]
) -> tuple[list[tuple[Key, _Group]], int]:
    """The series of a metric by `key` of their attributes, what took most time first; and the time of all, ns."""
    groups: dict[Key, _Group] = {}
    for found in series:
        if found.metric == metric and found.total.count:
            group = groups.setdefault(key(found.attributes), _Group())
            group.total.add(found.total)
            if "error.type" in found.attributes:
                group.errors += found.total.count
    return (
        sorted(groups.items(), key=lambda item: -item[1].total.sum_ns),
        sum(group.total.sum_ns for group in groups.values()),
    )


# -- what the time is spent on -------------------------------------------------------------------------------------


def breakdown(series: Sequence[SeriesTotal]) -> list[dict[str, Any]]:
    """What the time of each route was spent on, the route that took most of it first; [] where nothing is known.

    Each: `method` and `route` (both None: background tasks, all together), `count` of transactions, `sum_s` of their
    durations, `parts` and `own_s`, the rest: the application's own code. `parts` has, by name (database, cache, call,
    message, template, layers; gc and cpu lie across these and are no part of the rest), `sum_s`, `share` of the time
    of the route, `count` of transactions that had any, and `spans`, how many there were in all.
    """
    wholes, _ = _grouped(series, REQUEST_DURATION, _of_route)
    tasks, _ = _grouped(series, TASK_DURATION, lambda attributes: (None, None))
    parts: dict[Key, dict[str, tuple[Total, int]]] = {}
    spans = {_part_key(found.attributes): found.total.sum_ns for found in series if found.metric == PART_SPANS}
    for found in series:
        part = found.attributes.get("paste_agent.part")
        if found.metric == PART_DURATION and part in PARTS and found.total.count:
            key = _of_route(found.attributes)
            parts.setdefault(key, {})[str(part)] = (found.total, spans.get((*key, part), 0))
    if not parts:
        return []
    whole = [(key, group.total) for key, group in (*wholes, *tasks)]
    return [_breakdown(key, total, parts.get(key, {})) for key, total in sorted(whole, key=lambda one: -one[1].sum_ns)]


def _of_route(attributes: Mapping[str, Any]) -> Key:
    method, route = attributes.get("http.request.method"), attributes.get("http.route")
    # Whoever has written them: what is no text is no name.
    return method if isinstance(method, str) else None, route if isinstance(route, str) else None


def _part_key(attributes: Mapping[str, Any]) -> Key:
    return (*_of_route(attributes), attributes.get("paste_agent.part"))


def _breakdown(key: Key, total: Total, parts: Mapping[str, tuple[Total, int]]) -> dict[str, Any]:
    whole_ns = max(total.sum_ns, 1)
    spent_ns = sum(parts[name][0].sum_ns for name in SHARED if name in parts)
    return {
        "method": key[0],
        "route": key[1],
        "count": total.count,
        "sum_s": total.sum_ns / _NS,
        # Two threads of one transaction may spend more than it lasts.
        "own_s": max(0, total.sum_ns - spent_ns) / _NS,
        "parts": {
            name: {
                "sum_s": parts[name][0].sum_ns / _NS,
                "share": round(parts[name][0].sum_ns / whole_ns, 4),
                "count": parts[name][0].count,
                "spans": parts[name][1],
            }
            for name in PARTS
            if name in parts
        },
    }


# -- by metric -----------------------------------------------------------------------------------------------------


def queries(series: Sequence[SeriesTotal]) -> list[dict[str, Any]]:
    """Operations of databases and caches, those that took most time first.

    Each: `name` (the query's summary, or operation and collection), `system`, `namespace`, `operation`, `collection`,
    `summary` (None where unknown; all None and `overflow` true: what was beyond the bound of series), `errors`,
    `share` of the time of all, and the figures of `latency`.
    """
    names = ("db.system.name", "db.namespace", "db.operation.name", "db.collection.name", "db.query.summary")
    groups, whole_ns = _grouped(
        series, DATABASE_DURATION, lambda found: (*map(found.get, names), bool(found.get(_OVERFLOW)))
    )
    listed: list[dict[str, Any]] = []
    for (system, namespace, operation, collection, summary, overflow), group in groups:
        words = " ".join(word for word in (operation, collection) if word)
        listed.append(
            {
                "name": summary or words or ("(all others)" if overflow else system or "query"),
                "system": system,
                "namespace": namespace,
                "operation": operation,
                "collection": collection,
                "summary": summary,
                "overflow": overflow,
                **group.figures(whole_ns),
            }
        )
    return listed


def calls(series: Sequence[SeriesTotal]) -> list[dict[str, Any]]:
    """Calls of other services, those that took most time first.

    Each: `method`, `address`, `port` (None where unknown), `overflow`, `errors`, `share` of the time of all calls, and
    the figures of `latency`.
    """
    names = ("http.request.method", "server.address", "server.port")
    groups, whole_ns = _grouped(
        series, CALL_DURATION, lambda found: (*map(found.get, names), bool(found.get(_OVERFLOW)))
    )
    return [
        {"method": method, "address": address, "port": port, "overflow": overflow, **group.figures(whole_ns)}
        for (method, address, port, overflow), group in groups
    ]


def layers(series: Sequence[SeriesTotal], all_totals: Iterable[SeriesTotal]) -> list[dict[str, Any]]:
    """Layers of the pipeline by their own time, what took most of it first.

    Each: `name`, `share` of the time of all layers, `load_s` (mean time that it took to load; None where unknown), and
    the figures of `latency`.
    all_totals: from the making of the store on. A layer is loaded once, mostly before the span of time that is told.
    """
    groups, whole_ns = _grouped(series, LAYER_DURATION, _of_layer)
    loads = {key[0]: group.total for key, group in _grouped(all_totals, LOAD_DURATION, _of_layer)[0]}
    loads |= {key[0]: group.total for key, group in _grouped(series, LOAD_DURATION, _of_layer)[0]}
    served = dict(groups)
    idle = [((name,), _Group()) for name in loads if (name,) not in served]
    listed: list[dict[str, Any]] = []
    for (name,), group in (*groups, *idle):
        load = loads.get(name)
        figures = group.figures(whole_ns)
        del figures["errors"]
        load_s = None if load is None else round(load.sum_ns / load.count / _NS, 9)
        listed.append({"name": name, "load_s": load_s, **figures})
    return listed


def _of_layer(attributes: Mapping[str, Any]) -> Key:
    return (str(attributes.get("paste.layer", "(all others)")),)


def custom(series: Iterable[SeriesTotal]) -> list[dict[str, Any]]:
    """What the application measures itself, by name.

    Each: `name`, `kind`: `timing` with the figures of `latency`, or `count` with `count` (how often it was counted) and
    `value` (what it has come to).
    """
    listed: list[dict[str, Any]] = []
    for found in sorted(series, key=lambda one: one.metric):
        if found.metric.startswith(TIMING):
            listed.append({"name": found.metric.removeprefix(TIMING), "kind": "timing", **latency(found.total)})
        elif found.metric.startswith(COUNT):
            name = found.metric.removeprefix(COUNT)
            listed.append({"name": name, "kind": "count", "count": found.total.count, "value": found.total.sum_ns})
    return listed


# -- from kept traces ----------------------------------------------------------------------------------------------


def findings(store: Store, start_s: float, end_s: float) -> list[dict[str, Any]]:
    """Queries of kept transactions that are worth a look, those that took most time in one transaction first.

    Each: `kind` (`slow`, or `repeated`: one statement many times under one parent), `text` without values, `route` and
    `method`, `code` (`file`, `line`, `function` of the application; None unknown), `transactions` that it was found
    in, `per_request` (most in one of them), `duration_s` (longest in one of them) and `trace_id` of that one.
    """
    found: dict[Key, dict[str, Any]] = {}
    for row in lookup.digests(store, start_s, end_s, _TRACES, "findings"):
        route = _of_route(row.attributes)
        for one in dicts((row.detail or {}).get("findings")):
            code = code_of(one.get("code"))
            kind, text = str(one.get("kind", "")), str(one.get("text", ""))
            duration_s, count = number(one.get("duration")) / _NS, number(one.get("count"))
            key = (kind, text, *route, None if code is None else tuple(code.values()))
            known = found.get(key)
            if known is None:
                known = found[key] = {
                    "kind": kind, "text": text, "method": route[0], "route": route[1], "code": code,
                    "transactions": 0, "per_request": 0, "duration_s": -1.0, "trace_id": "",
                }  # fmt: skip
            known["transactions"] += 1
            known["per_request"] = max(known["per_request"], count)
            if duration_s > known["duration_s"]:
                known["duration_s"], known["trace_id"] = duration_s, row.trace_id.hex()
    return sorted(found.values(), key=lambda one: -one["duration_s"])


class _ErrorKey(NamedTuple):
    type: Any
    place: Any
    route: Any
    expected: bool


class _Seen:
    """What is known of one kind of error."""

    def __init__(self) -> None:
        self.count = 0
        self.first_s = self.last_s = 0.0  # 0: unknown
        self.oldest_s = 0.0  #: of those that were kept
        self.newest: TraceRow | None = None
        self.message: str | None = None

    def at(self, first_s: float, last_s: float) -> None:
        self.first_s = min(self.first_s, first_s) if self.first_s else first_s
        self.last_s = max(self.last_s, last_s)

    def times(self) -> tuple[float, float]:
        """When it was seen first and last: where a rollup begins, unless a kept transaction tells it better."""
        if self.count == 1:
            only_s = self.oldest_s or self.last_s
            return only_s, only_s
        is_closer = 0 < self.oldest_s - self.first_s < SLOT_S
        return self.oldest_s if is_closer else self.first_s, self.last_s


def errors(store: Store, series: Sequence[SeriesTotal], start_s: float, end_s: float) -> list[dict[str, Any]]:
    """Errors by type, place and route, those that nobody expects first, the most frequent of them first.

    Each: `type`, `place` (`module.function`; None unknown), `route`, `expected`, `count`, `first_seen` and `last_seen`
    (not after it: by where the rollup begins, which is 10 s wide, or by where the quarter of an hour or the hour
    does once it is over; by a kept trace where that is within these 10 s, or is later than the last; the same for a
    single one), `last_message` and `last_trace_id` of the newest kept one. Counted whether they left the application or
    were handled.
    """
    seen: dict[_ErrorKey, _Seen] = {}
    for found in series:
        if found.metric == ERRORS and found.total.count:
            seen.setdefault(_error_key(found.attributes), _Seen()).count += found.total.count
    _add_uncounted(seen, series)
    for metric, having in ((ERRORS, ""), (REQUEST_DURATION, "error.type")):
        for attributes, first_s, last_s in lookup.times_seen(store, metric, start_s, end_s, having, within_s=_WITHIN_S):
            known = seen.get(_error_key(attributes))
            if known is not None:
                known.at(first_s, last_s)
    _add_newest(seen, store, start_s, end_s)
    ranked = sorted(seen.items(), key=lambda item: (item[0].expected, -item[1].count))
    return [
        {
            "type": key.type,
            "place": key.place,
            "route": key.route,
            "expected": key.expected,
            "count": known.count,
            "last_message": known.message,
            "first_seen": rfc3339(first_s) if first_s else None,
            "last_seen": rfc3339(last_s) if last_s else None,
            "last_trace_id": known.newest.trace_id.hex() if known.newest is not None else None,
        }
        for key, known in ranked
        for first_s, last_s in (known.times(),)
    ]


def _error_key(attributes: Mapping[str, Any]) -> _ErrorKey:
    return _ErrorKey(
        "(all others)" if attributes.get(_OVERFLOW) else attributes.get("error.type"),
        attributes.get("paste_agent.error.place"),
        attributes.get("http.route"),
        attributes.get("paste_agent.error.expected") == "true",
    )


def _add_uncounted(seen: dict[_ErrorKey, _Seen], series: Iterable[SeriesTotal]) -> None:
    """Failed requests whose errors were not counted by themselves: by an agent that did not yet, or for want of room.

    Of these the place is unknown.
    """
    failed: dict[_ErrorKey, int] = {}
    for found in series:
        if found.metric == REQUEST_DURATION and "error.type" in found.attributes:
            key = _error_key(found.attributes)
            failed[key] = failed.get(key, 0) + found.total.count
    by_type: dict[Key, int] = {}
    by_route: dict[Any, int] = {}
    for other, one in seen.items():
        if not other.expected:
            by_type[other.type, other.route] = by_type.get((other.type, other.route), 0) + one.count
            by_route[other.route] = by_route.get(other.route, 0) + one.count
    # Those that failed by an exception first: what is left of the route's errors are those that were handled, and made
    # the others fail by their status.
    for key, count in sorted(failed.items(), key=lambda item: _is_status(item[0].type)):
        counted = by_route.get(key.route, 0) if _is_status(key.type) else by_type.get((key.type, key.route), 0)
        by_route[key.route] = by_route.get(key.route, 0) - min(count, counted)
        if count > counted:
            seen.setdefault(key, _Seen()).count += count - counted


def _is_status(error_type: object) -> bool:
    return isinstance(error_type, str) and error_type.isdecimal()


def _add_newest(seen: Mapping[_ErrorKey, _Seen], store: Store, start_s: float, end_s: float) -> None:
    """Of each, the newest kept transaction that had it, and its message."""
    for row in lookup.digests(store, start_s, end_s, _TRACES, "errors"):
        detail, route = row.detail or {}, row.attributes.get("http.route")
        exception = detail.get("exception")
        exception = exception if isinstance(exception, dict) else {}
        keys = [
            _ErrorKey(one.get("type"), one.get("place") or None, route, bool(one.get("expected")))
            for one in dicts(detail.get("errors"))
        ]
        own = row.attributes.get("error.type")
        if own is not None and own not in [key.type for key in keys]:
            keys.append(_ErrorKey(own, None, route, False))
        for key in keys:
            known = seen.get(key) if _hashable(key) else None
            if known is None:
                continue
            if known.newest is None:
                known.newest = row
                known.at(row.started_at_ns / _NS, row.started_at_ns / _NS)
            known.oldest_s = row.started_at_ns / _NS
            # One exception of a transaction is taken down, and the newest of this type may not be the one.
            if known.message is None and exception.get("type", key.type) == key.type:
                message = exception.get("message")
                known.message = message if isinstance(message, str) else None


# -- what is read from a detail: anybody may have written it -------------------------------------------------------


def dicts(found: object) -> list[dict[str, Any]]:
    """The objects of a list; [] for what is none."""
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def number(found: object) -> int:
    """A whole number that SQLite could hold; 0 for what is none."""
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not abs(found) < 1 << 63:
        return 0
    return int(found)


def code_of(found: object) -> dict[str, Any] | None:
    """`file`, `line` and `function` of a place in the code; None where there is none."""
    if not isinstance(found, dict) or not found.get("file"):
        return None
    return {
        "file": str(found["file"]),
        "line": number(found.get("line")),
        "function": str(found.get("function") or ""),
    }


def _hashable(key: _ErrorKey) -> bool:
    return all(isinstance(value, (str, int, type(None))) for value in key)
