"""Conditions of `paste-agent report --fail-if`: what they are, and which of them hold.

p95_s > 0.5
error_rate{GET /items/{id}} >= 0.01
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import click

from paste_agent.aggregate import QUEUE_DURATION, REQUEST_DURATION, Total
from paste_agent.metrics import RECORDS_DROPPED
from paste_agent.store import history
from paste_agent.store.store import Store
from paste_agent.store.summary import RouteTotal, by_route

_NS = 1e9
_CONDITION = re.compile(
    r"\s*([A-Za-z0-9_]+)\s*(?:\{(.*)\})?\s*(<=|>=|==|!=|<|>)\s*([0-9]+(?:\.[0-9]+)?)\s*", re.ASCII | re.DOTALL
)
_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip


class _Measured(NamedTuple):
    """What a condition may ask for."""

    seconds: float
    requests: RouteTotal  #: of all, or of one route
    queue: Total
    workers_lost: int
    dropped: int


def _quantile(share: float) -> Callable[[_Measured], float | None]:
    return lambda one: one.requests.total.quantile_ns(share) / _NS if one.requests.total.count else None


def _queue(share: float) -> Callable[[_Measured], float | None]:
    return lambda one: one.queue.quantile_ns(share) / _NS if one.queue.count else None


def _share_of(one: _Measured, part: float) -> float | None:
    return part / one.requests.total.count if one.requests.total.count else None


#: Names that are of all requests, or of one route. None: there is no such value where there are no requests.
_OF_REQUESTS: Mapping[str, Callable[[_Measured], float | None]] = {
    "requests": lambda one: one.requests.total.count,
    "errors": lambda one: one.requests.errors,
    "error_rate": lambda one: _share_of(one, one.requests.errors),
    "throughput": lambda one: one.requests.total.count / one.seconds if one.seconds > 0 else None,
    "mean_s": lambda one: _share_of(one, one.requests.total.sum_ns / _NS),
    "p50_s": _quantile(0.50),
    "p90_s": _quantile(0.90),
    "p95_s": _quantile(0.95),
    "p99_s": _quantile(0.99),
    "max_s": lambda one: one.requests.total.max_ns / _NS if one.requests.total.count else None,
    "apdex": lambda one: one.requests.total.apdex(),
}
#: Names that are of the service.
_OF_SERVICE: Mapping[str, Callable[[_Measured], float | None]] = {
    "queue_p50_s": _queue(0.50),
    "queue_p95_s": _queue(0.95),
    "queue_p99_s": _queue(0.99),
    "workers_lost": lambda one: one.workers_lost,
    "dropped": lambda one: one.dropped,
}
NAMES = (*_OF_REQUESTS, *_OF_SERVICE)


class Gate(NamedTuple):
    """One condition."""

    text: str
    name: str
    route: str | None  #: method and route; None: all requests
    comparison: str
    limit: float


class Verdict(NamedTuple):
    """What came of a condition."""

    gate: Gate
    value: float | None  #: None: there is none, since nothing was measured; then it has not failed
    failed: bool

    def as_object(self) -> dict[str, Any]:
        return {"condition": self.gate.text, "value": self.value, "failed": self.failed}

    def line(self) -> str:
        """For people; '' of one that has not failed for a reason that they expect."""
        if self.failed:
            return f"failed: {self.gate.text}: it is {self.value:.6g}"
        if self.value is not None:
            return ""
        route = self.gate.route
        what, of = ("nothing was measured", "") if route is None else (f"no request of {route}", f"{{{route}}}")
        return f"no value, so not failed: {self.gate.text}: {what}; add --fail-if 'requests{of} < 1' to fail then"


class GateType(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click alone
    """A condition, such as `p95_s > 0.5`."""

    name = "condition"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Gate:
        if isinstance(value, Gate):
            return value
        match = _CONDITION.fullmatch(str(value))
        if match is None:
            self.fail(
                f"{value!r}: expected a name, a comparison and a number, for example 'p95_s > 0.5' or"
                " 'error_rate{GET /items/{id}} > 0.01'",
                param,
                ctx,
            )
        name, route, comparison, limit = match.groups()
        if name not in NAMES:
            self.fail(f"{value!r}: there is no {name}; there are {', '.join(NAMES)}", param, ctx)
        if route is not None and name not in _OF_REQUESTS:
            self.fail(f"{value!r}: {name} is of the whole service, leave out {{{route}}}", param, ctx)
        text = f"{name}{'' if route is None else f'{{{route.strip()}}}'} {comparison} {limit}"
        return Gate(text, name, None if route is None else route.strip(), comparison, float(limit))


def judge(store: Store, gates: Iterable[Gate], start_s: float, end_s: float) -> list[Verdict]:
    """Raises what store.READ_ERRORS names."""
    asked = list(gates)
    if not asked:
        return []
    series = history.totals(store, start_s, end_s, [REQUEST_DURATION, QUEUE_DURATION])
    routes = by_route(one for one in series if one.metric == REQUEST_DURATION)
    queue = Total()
    for one in series:
        if one.metric == QUEUE_DURATION:
            queue.add(one.total)
    whole = RouteTotal.of_all(routes.values())
    lost = _workers_lost(store, start_s, end_s)
    dropped = sum(value for (name, _), value in store.counters().items() if name == RECORDS_DROPPED)

    def measured(route: str | None) -> _Measured:
        requests = whole if route is None else routes.get(route, RouteTotal(Total(), 0))
        return _Measured(end_s - start_s, requests, queue, lost, dropped)

    return [_verdict(gate, measured(gate.route)) for gate in asked]


def _verdict(gate: Gate, measured: _Measured) -> Verdict:
    value = {**_OF_REQUESTS, **_OF_SERVICE}[gate.name](measured)
    return Verdict(gate, value, value is not None and _COMPARE[gate.comparison](value, gate.limit))


def _workers_lost(store: Store, start_s: float, end_s: float) -> int:
    """Those that served, and no other processes."""
    return sum(1 for row in store.postmortems(start_s, end_s, 1 << 31) if row.summary.get("worker"))


def lines(verdicts: Sequence[Verdict]) -> list[str]:
    return [line for verdict in verdicts if (line := verdict.line())]
