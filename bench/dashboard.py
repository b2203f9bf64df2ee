"""Server time of what a page reads, on a store such as bench/big_store.py makes.

    python bench/dashboard.py STORE [--rounds 5] [--budget-ms 200] [URL ...]

Reads of the store first: each is what one part of a page asks for, over each span of time, ending where the store ends.
Each round opens the store anew, as a request does. A figure is the median, in ms of CPU time, so that others on the
same machine spoil it less. With URLs of a dashboard that is being served, each is fetched as often, and timed by the
clock from the request to the last byte.

Every statement's plan is looked at as well: whether it goes through the whole of a table that grows with time.
Ends with status 1 when a figure is over the budget, or when there is such a plan.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
import time
import urllib.request
from contextlib import closing

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from paste_agent.aggregate import (
    CALL_DURATION,
    DATABASE_DURATION,
    ERRORS,
    LAYER_DURATION,
    LOAD_DURATION,
    PART_DURATION,
    PART_SPANS,
    REQUEST_DURATION,
    TASK_DURATION,
)
from paste_agent.errors import StoreError
from paste_agent.store import deployments, history, inside_summary, kept_traces
from paste_agent.store.health import health
from paste_agent.store.kept_traces import SLOWEST, Wanted
from paste_agent.store.store import READ_ERRORS, Store

SPANS = {"10 min": 600, "1 h": 3600, "6 h": 6 * 3600, "24 h": 86_400, "7 d": 7 * 86_400, "30 d": 30 * 86_400}
BIG = re.compile(r"SCAN (rollups|copies|traces|logs|postmortems)\b(?!.* INDEX \w+_to_send)")
STATUS = "http.response.status_code"


def quantiles(totals):
    return [total.quantile_ns(share) for total in totals for share in (0.5, 0.95, 0.99)]


def overview(store, window, route):
    points = history.points(store, window, REQUEST_DURATION, by=STATUS)
    quantiles(points[None])
    found = history.totals(store, window.start_s, window.end_s, [REQUEST_DURATION])
    sorted(found, key=lambda one: -one.total.sum_ns)
    deployments.between(store, window.start_s, window.end_s)
    store.recorders()


def transactions(store, window, route):
    metrics = [REQUEST_DURATION, TASK_DURATION, PART_DURATION, PART_SPANS]
    found = history.totals(store, window.start_s, window.end_s, metrics)
    inside_summary.breakdown(found)
    quantiles(one.total for one in found if one.metric == REQUEST_DURATION)


def transaction(store, window, route):
    for total in history.totals(store, window.start_s, window.end_s, None, route):
        quantiles([total.total])
    quantiles(history.points(store, window, REQUEST_DURATION, route, STATUS)[None])
    history.points(store, window, PART_DURATION, route, "paste_agent.part")
    kept_traces.find(store, window.start_s, window.end_s, Wanted(route), order=SLOWEST, limit=10)
    kept_traces.find(store, window.start_s, window.end_s, Wanted(route, failed=True), limit=10)


def traces(store, window, route):
    kept_traces.find(store, window.start_s, window.end_s)
    kept_traces.count(store, window.start_s, window.end_s)
    kept_traces.find(store, window.start_s, window.end_s, Wanted(error="timeout"))


def errors(store, window, route):
    found = history.totals(store, window.start_s, window.end_s, [ERRORS, REQUEST_DURATION])
    inside_summary.errors(store, found, window.start_s, window.end_s)
    history.points(store, window, ERRORS, by="error.type")


def queries(store, window, route):
    inside_summary.queries(history.totals(store, window.start_s, window.end_s, [DATABASE_DURATION]))
    inside_summary.findings(store, window.start_s, window.end_s)
    history.points(store, window, DATABASE_DURATION)


def calls(store, window, route):
    inside_summary.calls(history.totals(store, window.start_s, window.end_s, [CALL_DURATION]))
    history.points(store, window, CALL_DURATION, by="server.address")


def layers(store, window, route):
    found = history.totals(store, window.start_s, window.end_s, [LAYER_DURATION, LOAD_DURATION])
    inside_summary.layers(found, [one for one in store.totals() if one.metric == LOAD_DURATION])


def workers(store, window, route):
    store.recorders()
    store.postmortems(window.start_s, window.end_s, 100)


def agent(store, window, route):
    health(store, window.start_s, window.end_s)


def everything(store, window, route):
    history.totals(store, window.start_s, window.end_s)


PAGES = [overview, transactions, transaction, traces, errors, queries, calls, layers, workers, agent, everything]


def read(path, page, length_s, asked):
    """ms of one reading."""
    began = time.process_time()
    with closing(Store(path, read_only=True)) as store:
        if asked is not None:
            store.trace(asked.add)
        _, end_s = store.span_of_time()
        route = {"http.request.method": "GET", "http.route": "/orders/0/{id}"}
        with store.reading():
            page(store, history.window_of(end_s - length_s, end_s), route)
    return (time.process_time() - began) * 1000


def whole_tables(path, asked):
    """What the plans of statements say of going through big tables."""
    found = set()
    with closing(Store(path, read_only=True)) as store:
        store.use_members({})
        for statement in asked:
            if statement.startswith("SELECT"):
                plan = [row[3] for row in store.query(f"EXPLAIN QUERY PLAN {statement}")]
                found |= {(step, statement[:160]) for step in plan if BIG.match(step)}
    return sorted(found)


def fetch(url):
    began = time.perf_counter()
    with urllib.request.urlopen(url, timeout=60) as response:
        response.read()
    return (time.perf_counter() - began) * 1000


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("store")
    parser.add_argument("urls", nargs="*", metavar="URL")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budget-ms", type=float, default=200.0)
    options = parser.parse_args()
    asked, over = set(), 0
    print(f"| read, ms | {' | '.join(SPANS)} |")
    print(f"| --- |{' ---: |' * len(SPANS)}")
    for page in PAGES:
        figures = []
        for length_s in SPANS.values():
            read(options.store, page, length_s, asked)
            figures.append(statistics.median(read(options.store, page, length_s, None) for _ in range(options.rounds)))
        over += sum(figure > options.budget_ms for figure in figures)
        print(f"| {page.__name__} | {' | '.join(f'{figure:.0f}' for figure in figures)} |", flush=True)
    for url in options.urls:
        figure = statistics.median(fetch(url) for _ in range(options.rounds))
        over += figure > options.budget_ms
        print(f"{figure:6.0f} ms  {url}")
    slow = whole_tables(options.store, asked)
    for step, statement in slow:
        print(f"whole table: {step}: {statement}")
    print(f"{over} over {options.budget_ms:.0f} ms; {len(slow)} plans that go through a whole table")
    return 1 if over or slow else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (StoreError, *READ_ERRORS, OSError) as error:
        sys.exit(f"dashboard: {error}")
