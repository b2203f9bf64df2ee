"""What a span costs: by itself, and around a query of sqlite3 that is instrumented.

    python bench/span.py [--rounds 15]

Inside of a request, as an application's code. The plain and the instrumented connection take turns; a figure is the
median of the rounds, in µs a call.
"""

from __future__ import annotations

import argparse
import itertools
import sqlite3
import statistics
import tempfile
from time import perf_counter_ns

from paste_agent import filter, lifecycle, span
from paste_agent.instrument import sqlite

CALLS = 5000


def per_call(call):
    begin_ns = perf_counter_ns()
    for _ in range(CALLS):
        call()
    return (perf_counter_ns() - begin_ns) / CALLS / 1000


def nothing():
    pass


def a_span():
    with span("a part of the work"):
        pass


def measure(rounds, plain):
    sqlite.install()
    instrumented = sqlite3.connect(":memory:").cursor()
    numbers = itertools.count()
    pairs = {
        "span": (nothing, a_span),
        "query, the same statement": [
            lambda cursor=cursor: cursor.execute("SELECT 1 WHERE 1 = ?", (1,)) for cursor in (plain, instrumented)
        ],
        "query, never the same": [
            lambda cursor=cursor: cursor.execute(f"SELECT 1 WHERE 1 = {next(numbers)}")
            for cursor in (plain, instrumented)
        ],
    }
    found = {name: [] for name in pairs}
    for _ in range(rounds):
        for name, (without, within) in pairs.items():
            found[name].append(per_call(within) - per_call(without))
    print("| what | added, µs |")
    print("| --- | ---: |")
    for name, added in found.items():
        print(f"| {name} | {statistics.median(added):.2f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()

    plain = sqlite3.connect(":memory:").cursor()  # before the filter is made, which instruments what it finds

    def application(environ, start_response):
        measure(options.rounds, plain)
        start_response("200 OK", [])
        return [b""]

    with tempfile.TemporaryDirectory() as directory:
        keys = {"store": f"{directory}/a.sqlite", "runtime_dir": directory, "service_name": "bench"}
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "wsgi.url_scheme": "http"}
        body = filter.main(application, {}, **keys)(environ, lambda status, headers, exc_info=None: None)
        body.close()
        lifecycle.finish([])


if __name__ == "__main__":
    main()
