"""Makes a store as a busy service leaves it, to measure reads on.

    python bench/big_store.py PATH [--days 30] [--routes 300] [--requests 20000000] [--traces 5000]

A service with day and night, a few routes that take most of the load and many that are seldom asked for, several
statuses, failures, parts, queries, calls, layers, background tasks, kept traces with spans and findings, post-mortems
and workers. What is older is in wider rollups, as ageing leaves it. It ends just now. The same arguments make the same
numbers.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from paste_agent import metrics
from paste_agent.aggregate import (
    BOOT_DURATION,
    CALL_DURATION,
    DATABASE_DURATION,
    ERRORS,
    LAYER_DURATION,
    LOAD_DURATION,
    PART_DURATION,
    PART_SPANS,
    QUEUE_DURATION,
    REPORT_DURATION,
    REQUEST_DURATION,
    TASK_DURATION,
    TIMING,
    WORKER_LOST,
    Delta,
    Total,
    canonical,
)
from paste_agent.kept import TraceRow
from paste_agent.recorder import layout
from paste_agent.store import copies, deployments, history
from paste_agent.store.store import (
    ENDED,
    LOST,
    RUNNING,
    SENT,
    PostmortemRow,
    RecorderRow,
    Store,
    columns_of,
    pack_buckets,
)

HOUR, DAY = 3600, 86_400
PARTS = (("database", 0.9), ("template", 0.5), ("cache", 0.3), ("call", 0.15))
THINGS = ("orders", "items", "users", "carts", "prices", "stock", "reviews", "images", "payments", "shipments")
FAULTS = (("ValueError", "shop.prices.parse"), ("KeyError", "shop.cart.add"), ("TimeoutError", "shop.stock.ask"))
SAMPLES = 4096


class Durations:
    """Totals of so many durations of one kind, log-normal around a median; made once and used again."""

    def __init__(self, draw, median_s, spread=0.8):
        self._draw = draw
        self._values = [round(draw.lognormvariate(math.log(median_s * 1e9), spread)) for _ in range(SAMPLES)]
        whole = Total()
        for value in self._values:
            whole.observe(value)
        self._mean = whole.sum_ns / SAMPLES
        self._max = whole.max_ns
        self._shares = sorted(whole.buckets.items(), key=lambda item: -item[1])
        self._known = {}

    def columns(self, count):
        """sum_ns, max_ns, satisfied, tolerating, frustrated, buckets."""
        key = (count, self._draw.randrange(8) if count < 64 else 0)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._made(count)
        return found

    def _made(self, count):
        if count < 64:
            total = Total()
            for value in self._draw.choices(self._values, k=count):
                total.observe(value)
            sum_ns, max_ns, buckets = total.sum_ns, total.max_ns, total.buckets
        else:
            buckets = {bucket: here for bucket, share in self._shares if (here := share * count // SAMPLES)}
            buckets[self._shares[0][0]] = buckets.get(self._shares[0][0], 0) + count - sum(buckets.values())
            sum_ns, max_ns = round(self._mean * count), self._max
        frustrated, tolerating = count // 100, count // 20
        return sum_ns, max_ns, count - frustrated - tolerating, tolerating, frustrated, pack_buckets(buckets)


class Service:
    """Which series there are, and what a slot of time adds to each."""

    def __init__(self, routes, seed=1):
        self.draw = random.Random(seed)
        self.series = []  # (metric, attributes), by id - 1
        self._kinds = [Durations(self.draw, 0.004 * 1.7**step) for step in range(10)]
        self._quick = Durations(self.draw, 0.0008)
        self.names = [f"/{THINGS[place % len(THINGS)]}/{place // len(THINGS)}/{{id}}" for place in range(routes)]
        weights = [1 / (place + 2) for place in range(routes)]
        self._routes = [
            (weight / sum(weights), self._route(place, name))
            for place, (weight, name) in enumerate(zip(weights, self.names, strict=True))
        ]
        self._shared = self._others()

    def _new(self, metric, **attributes):
        found = {name.replace("__", "."): value for name, value in attributes.items()}
        self.series.append((metric, canonical(found)))
        return len(self.series)

    def _request(self, method, name, status, error=None):
        fields = {"http__request__method": method, "url__scheme": "https", "http__route": name}
        fields |= {"http__response__status_code": status, "network__protocol__version": "1.1"}
        return self._new(REQUEST_DURATION, **fields, **({"error__type": error} if error else {}))

    def _route(self, place, name):
        """Series of the requests by status, the one with the rest first; and those of what is inside of them.

        Each: (series, share of the requests, durations or None, spans of each)
        """
        method = ("GET", "GET", "GET", "POST", "DELETE")[place % 5]
        kind = self._kinds[self.draw.randrange(len(self._kinds))]
        fault, where = FAULTS[place % len(FAULTS)]
        statuses = [
            (self._request(method, name, 200), 0.0, kind, 0),
            (self._request(method, name, 404), 0.02, self._quick, 0),
            (self._request(method, name, 302), 0.006, self._quick, 0),
            (self._request(method, name, 500, fault), 0.004, kind, 0),
        ]
        error = {"error__type": fault, "paste_agent__error__place": where, "http__route": name}
        inside = [(self._new(ERRORS, **error, paste_agent__error__expected="false"), 0.004, self._quick, 0)]
        for part, chance in PARTS:
            if self.draw.random() < chance:
                fields = {"http__request__method": method, "http__route": name, "paste_agent__part": part}
                inside.append((self._new(PART_DURATION, **fields), 0.95, self._quick, 0))
                inside.append((self._new(PART_SPANS, **fields), 0.95, None, 3))
        return statuses, inside

    def _others(self):
        found = []
        for place in range(150):
            table, verb = THINGS[place % 10], ("SELECT", "SELECT", "INSERT", "UPDATE")[place % 4]
            fields = {"db__system__name": "postgresql", "db__namespace": "shop", "db__operation__name": verb}
            fields |= {"db__collection__name": table, "db__query__summary": f"{verb} {table} {place}"}
            found.append((self._new(DATABASE_DURATION, **fields), 3 / (place + 5), self._quick, 0))
        for place in range(12):
            fields = {"http__request__method": "GET", "server__address": f"service-{place}.example"}
            fields |= {"server__port": 443, "http__response__status_code": 200}
            found.append((self._new(CALL_DURATION, **fields), 0.1 / (place + 1), self._kinds[place % 10], 0))
        for place in range(8):
            found.append((self._new(LAYER_DURATION, paste__layer=f"filter-{place}"), 1.0, self._quick, 0))
        for place in range(5):
            name = {"paste_agent__task__name": f"task-{place}"}
            found.append((self._new(TASK_DURATION, **name), 0.001, self._kinds[place], 0))
        found.append((self._new(QUEUE_DURATION), 1.0, self._quick, 0))
        found.append((self._new(REPORT_DURATION), 0.1, self._quick, 0))
        found.append((self._new(f"{TIMING}checkout"), 0.05, self._kinds[3], 0))
        found.append((self._new(WORKER_LOST, reason="timeout"), 0.000002, self._kinds[0], 0))
        found.append((self._new(BOOT_DURATION), 0.00005, self._kinds[9], 0))
        found.extend(
            (self._new(LOAD_DURATION, paste__layer=f"filter-{place}"), 0.00005, self._quick, 0) for place in range(8)
        )
        return found

    def rows(self, start, width, requests):
        """The rollups of one slot, by series."""
        counts, left, chance = [], requests, self.draw.random
        for weight, (statuses, inside) in reversed(self._routes):
            busiest = statuses is self._routes[0][1][0]
            here = left if busiest else min(left, int(requests * weight + chance()))
            if here:
                left -= here
                few = [(number, int(here * share + chance()), kind, 0) for number, share, kind, _ in statuses[1:]]
                rest = here - sum(count for _, count, _, _ in few)
                # Of very few requests none is left for the others.
                counts += (
                    [(statuses[0][0], rest, statuses[0][2], 0), *few]
                    if rest >= 0
                    else [(statuses[0][0], here, statuses[0][2], 0)]
                )
                counts += [(number, int(here * share + chance()), kind, more) for number, share, kind, more in inside]
        counts += [(number, int(requests * share + chance()), kind, 0) for number, share, kind, _ in self._shared]
        return [
            (start, width, number, count, *(kind.columns(count) if kind else (count * more, 0, 0, 0, 0, b"")))
            for number, count, kind, more in sorted(counts, key=lambda one: one[0])
            if count
        ]


def slots(now, days):
    """Start and width of each rollup's slot, as ageing leaves them."""
    start = (now - days * DAY) // HOUR * HOUR
    for width, age_s in ((HOUR, 4 * DAY), (60, 6 * HOUR), (10, 0)):
        end = (now - age_s) // width * width if width > 10 else now // 10 * 10
        while start < end:
            yield start, width
            start += width


def load(start):
    """How much of the load falls on a moment: little by night."""
    return 1 + 0.9 * math.sin(2 * math.pi * (start % DAY - 9 * HOUR) / DAY)


def add_rollups(store, service, now, options):
    plan = list(slots(now, options.days))
    share = options.requests / sum(load(start) * width for start, width in plan)
    due = done = 0.0
    with store.transaction() as db:
        for start, width in plan:
            due += load(start) * width * share
            requests = round(due - done)
            done += requests
            db.executemany(f"INSERT INTO rollups VALUES ({', '.join('?' * 10)})", service.rows(start, width, requests))
        db.executemany(
            "INSERT INTO series VALUES (?, ?, ?)", [(place, *key) for place, key in enumerate(service.series, 1)]
        )


def add_totals(store, now):
    with store.transaction() as db:
        known = {(metric, attributes): number for number, metric, attributes in db.execute("SELECT * FROM series")}
    found = history.totals(store, 0, now + DAY)
    with store.transaction() as db:
        for one in found:
            total = one.total
            db.execute(
                f"INSERT INTO totals VALUES ({', '.join('?' * 8)})",
                (known[one.metric, canonical(one.attributes)], *columns_of(total)),
            )


def trace(service, now, place, options):
    """A kept transaction with spans inside of it, findings and errors."""
    draw = service.draw
    number = min(int(draw.expovariate(8 / options.routes)), options.routes - 1)
    name, failed = service.names[number], place % 9 == 0
    fault, where = FAULTS[number % len(FAULTS)]
    started_ns = int((now - draw.random() * options.days * DAY) * 1e9)
    attributes = {"http.request.method": "GET", "http.route": name, "url.scheme": "https"}
    attributes["http.response.status_code"] = 500 if failed else 200
    duration_ns = round(draw.lognormvariate(19, 1))
    spans = [
        {
            "id": f"{draw.getrandbits(64):016x}", "parent": None, "category": "database", "name": f"SELECT {THINGS[0]}",
            "start": step * 1_000_000, "duration": 900_000, "own": 900_000,
            "attributes": {"db.system.name": "postgresql", "db.query.text": "SELECT * FROM orders WHERE id = ? " * 4},
        }
        for step in range(draw.randrange(2, 40))
    ]  # fmt: skip
    detail = {"attributes": {"url.path": f"/some/{place}", "client.address": "192.0.2.1"}, "spans": spans}
    if place % 7 == 0:
        code = {"file": "shop/views.py", "line": number, "function": "listed"}
        text = "SELECT * FROM orders WHERE id = ?"
        found = {"kind": ("slow", "repeated")[place % 2], "text": text, "count": 20, "duration": 10**8, "code": code}
        detail["findings"] = [found]
    if failed:
        attributes["error.type"] = fault
        detail["errors"] = [{"type": fault, "place": where, "expected": False}]
        detail["exception"] = {"type": fault, "message": f"no {place}", "stacktrace": "  File x, line 1, in y\n" * 20}
    why = layout.KEPT_FAILED if failed else (layout.KEPT_RANDOM, layout.KEPT_SLOW)[place % 2]
    ids = draw.getrandbits(128).to_bytes(16, "big"), draw.getrandbits(64).to_bytes(8, "big")
    return TraceRow(*ids, None, started_ns, duration_ns, failed, why, attributes, detail)


def add_rest(store, service, now, options):
    """Traces, processes and their accounts, counters, deployments."""
    traces = [trace(service, now, place, options) for place in range(options.traces)]
    store.add_traces(traces, now - 60)
    store.settle_traces(traces[20:], SENT)
    words = [0] * layout.WORDS_KEPT
    words[layout.W_MEMORY_BYTES], words[layout.W_THREADS] = 80 << 20, 4
    rows = [
        RecorderRow(
            id=f"{1000 + place}-{place:04x}", position=10_000, worker=place % 4 + 1, pid=1000 + place, serving=True,
            state=RUNNING if place < 4 else (ENDED, LOST)[place % 2], opened_at=now - DAY, seen_at=now - place * HOUR,
            requests=10_000, in_flight=2, busy=0.3, words=words,
        )
        for place in range(80)
    ]  # fmt: skip
    lost = {
        "method": "GET",
        "path": "/orders",
        "route": service.names[0],
        "age_s": 31.0,
        "span": "",
        "stack": "x\n" * 30,
    }
    accounts = [
        PostmortemRow(
            f"{place}-dead", now - place * 14 * HOUR, ("timeout", "signal", "out_of_memory")[place % 3],
            {"headline": "was killed", "evidence": ["SIGKILL"], "worker": 1, "pid": place, "requests": [lost] * 3},
        )
        for place in range(min(50, options.days * 2))
    ]  # fmt: skip
    counters = {(metrics.RECORDS_DROPPED, canonical({metrics.REASON: "ring_full"})): 17}
    counters[metrics.INTERNAL_ERRORS, "{}"] = 2
    counters[metrics.EXPORT_FAILED, canonical({metrics.SIGNAL: "traces"})] = 40
    store.commit_drain(Delta(), [(None, row) for row in rows], counters, 10_000, accounts)
    for place in range(options.days):
        deployments.add(store, now - place * DAY, f"1.{options.days - place}", "as every day", "ci")


def say(began, what):
    print(f"{time.monotonic() - began:6.1f} s  {what}", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("path")
    for name, default in (("days", 30), ("routes", 300), ("requests", 20_000_000), ("traces", 5000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    if os.path.exists(options.path):
        parser.error(f"{options.path}: is there already; remove it, or name another")
    if options.days < 1 or options.routes < 1 or options.requests < 1 or options.traces < 0:
        parser.error("--days, --routes and --requests: expected 1 or more")
    began, now = time.monotonic(), int(time.time())
    store, service = Store(options.path), Service(options.routes)
    try:
        store.query("PRAGMA synchronous = OFF")
        store.query("PRAGMA cache_size = -65536")
        store.set_meta("service.name", "big")
        store.instance_id("big")
        add_rollups(store, service, now, options)
        say(began, "rollups")
        add_rest(store, service, now, options)
        say(began, "traces and the rest")
        copies.update(store, now, budget_s=None)
        say(began, "copies")
        add_totals(store, now)
        store.query("PRAGMA wal_checkpoint(TRUNCATE)")
        for table in ("series", "rollups", "copies", "traces"):
            say(began, f"{store.query(f'SELECT count(*) FROM {table}')[0][0]:,} rows in {table}")
    finally:
        store.close()
    print(json.dumps({"bytes": os.path.getsize(options.path), "end_s": now}))


if __name__ == "__main__":
    main()
