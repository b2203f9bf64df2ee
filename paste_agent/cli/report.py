"""`paste-agent report`: what the store knows, at a glance or as JSON; and conditions that it must meet."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import click
from rich.console import Group

from paste_agent.aggregate import REQUEST_DURATION
from paste_agent.cli import comparison, gates, report_page
from paste_agent.cli.comparison import Comparison, Sides
from paste_agent.cli.gates import Gate, GateType, Verdict
from paste_agent.cli.spans import Span, span_s
from paste_agent.cli.style import console_of
from paste_agent.cli.target import target_of
from paste_agent.errors import StoreError
from paste_agent.store import history
from paste_agent.store.store import READ_ERRORS, SeriesTotal, Store
from paste_agent.store.summary import summarize

#: Columns that a terminal needs for all figures beside a route that can be read.
_WIDE = 100


@click.command(short_help="Requests, errors, durations: what a service measured.")
@click.argument("path", metavar="INI|STORE", default="production.ini")
@click.option("--since", type=Span(), help="Only what happened since then, such as 10m, 6h or 2d. [default: all]")
@click.option("--service", help="Which service, when the ini measures several.")
@click.option("--limit", type=click.IntRange(1, 1000), default=15, show_default=True, help="Most routes to list.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead, with every route.")
@click.option(
    "--compare",
    metavar="SPAN|VERSION",
    help="Set beside it the time before: so long before --since, or before a deployment and after it.",
)
@click.option(
    "--fail-if",
    "conditions",
    metavar="CONDITION",
    type=GateType(),
    multiple=True,
    help="Exit with 1 if this holds, such as 'p95_s > 0.5'; may be given several times.",
)
@click.option("--quiet", is_flag=True, help="With --fail-if: print nothing but what failed, or has no value.")
def command(
    path: str,
    since: float | None,
    service: str | None,
    limit: int,
    as_json: bool,
    compare: str | None,
    conditions: tuple[Gate, ...],
    quiet: bool,
) -> None:
    """Print requests, errors, latency and Apdex by route, and what the time was spent on; the slowest and failed
    transactions; errors, queries, calls and layers; deployments; and the workers.

    A condition is a name, a comparison and a number: error_rate, p50_s, p90_s, p95_s, p99_s, mean_s, max_s, apdex,
    requests, errors and throughput (a second), also of one route as in 'p95_s{GET /items/{id}} > 0.5'; queue_p95_s,
    workers_lost and dropped. It does not hold where there is no value, which is said.
    """
    if quiet and (not conditions or as_json):
        raise click.UsageError("--quiet is for --fail-if, without --json")
    if compare is not None and span_s(compare) is not None and since is None:
        raise click.UsageError(f"--compare {compare} is the time before --since: give that as well, such as --since 1h")
    found = _read(path, service, since, conditions, compare)
    if as_json:
        click.echo(json.dumps(found.as_object(), indent=2))
    elif not quiet:
        console = console_of()
        console.print(found.page(limit, wide=console.width >= _WIDE))
    for line in gates.lines(found.verdicts):
        click.echo(f"paste-agent: {line}", err=True)
    if any(verdict.failed for verdict in found.verdicts):
        sys.exit(1)


def page_of(path: str) -> Group:
    """What the command prints for a service: docs/generate.py makes its picture of it."""
    return _read(path, None, None).page(limit=15, wide=True)


class _Found(NamedTuple):
    """What was read of a store."""

    summary: dict[str, Any]
    series: Sequence[SeriesTotal]  #: of its requests
    seconds: float
    verdicts: Sequence[Verdict]
    comparison: Comparison | None

    def as_object(self) -> dict[str, Any]:
        more: dict[str, Any] = {}
        if self.comparison is not None:
            more["comparison"] = self.comparison.as_object()
        if self.verdicts:
            more["conditions"] = [verdict.as_object() for verdict in self.verdicts]
        return {**self.summary, **more}

    def page(self, limit: int, wide: bool) -> Group:
        if self.comparison is None:
            return report_page.page(self.summary, self.series, self.seconds, limit, wide)
        head = [report_page.head(self.summary, self.series, self.seconds)] if self.summary["requests"] else []
        return Group(*head, *comparison.page(self.comparison, limit))


def _read(
    path: str, service: str | None, since: float | None, conditions: Sequence[Gate] = (), compare: str | None = None
) -> _Found:
    """All that is asked of a store, as of one state of it."""
    target = target_of(path, service)
    store = Store(target.store, read_only=True)
    try:
        with store.reading():
            start_s, end_s = _window(store, since)
            sides = None if compare is None else _sides(store, target.store, compare, start_s, end_s, since)
            if sides is not None and sides.version:
                start_s, end_s = sides.after
            name = target.settings.service_name if target.settings else (store.meta("service.name") or target.store)
            return _Found(
                summarize(store, name, start_s, end_s, marked_until_s=time.time() if sides is None else end_s),
                history.totals(store, start_s, end_s, [REQUEST_DURATION]),
                end_s - start_s,
                gates.judge(store, conditions, start_s, end_s),
                None if sides is None else comparison.compare(store, sides),
            )
    except READ_ERRORS as error:  # its pages may hold anything
        raise StoreError(f"{target.store}: cannot be read: {error}") from None
    finally:
        store.close()


def _sides(store: Store, path: str, compare: str, start_s: float, end_s: float, since: float | None) -> Sides:
    """What is compared. Raises StoreError for a version that was not marked."""
    length_s = span_s(compare)
    if length_s is not None:
        return Sides((max(0.0, start_s - length_s), start_s), (start_s, end_s))
    known = store.span_of_time()
    begin_s = known[0] if known is not None else start_s
    sides = comparison.around(store, compare, begin_s, time.time(), end_s - begin_s if since is None else since)
    if sides is None:
        raise StoreError(f"{path}: no deployment of {compare!r} was marked; `paste-agent report` lists those that were")
    return sides


def _window(store: Store, since: float | None) -> tuple[float, float]:
    now = time.time()
    if since is not None:
        return max(0.0, now - since), now
    known = store.span_of_time()
    return (known[0], min(known[1], now)) if known else (now, now)
