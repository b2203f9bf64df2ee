"""What a span costs: by itself, and around a query of a database that is instrumented.

    python bench/span.py [--rounds 15] [--servers]

Inside of requests, as an application's code, in each as many as are kept. The plain and the instrumented connection
take turns; a figure is the median of the rounds: µs a call, and the instrumented call as a multiple of the plain one.
--servers starts a PostgreSQL of its own, where it is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sqlite3
import statistics
import sys
import tempfile
from pathlib import Path
from time import perf_counter_ns

from paste_agent import filter, lifecycle, span
from paste_agent.instrument import psycopg2 as psycopg2_instrumentation
from paste_agent.instrument import sqlite

CALLS = 5000
CALLS_OF_SERVERS = 1000
#: Calls of one request, two spans each at the most.
AT_ONCE = 250


class Application:
    """Calls what it is given, and tells how long that took; behind the agent's filter."""

    def __init__(self, keys):
        self.call = nothing
        self.took_ns = 0
        self.served = filter.main(self, {}, **keys)

    def __call__(self, environ, start_response):
        call = self.call
        begin_ns = perf_counter_ns()
        for _ in range(AT_ONCE):
            call()
        self.took_ns += perf_counter_ns() - begin_ns
        start_response("200 OK", [])
        return [b""]

    def per_call(self, call, calls):
        """µs that a call takes."""
        self.call, self.took_ns = call, 0
        for _ in range(calls // AT_ONCE):
            environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "wsgi.url_scheme": "http"}
            self.served(environ, lambda status, headers, exc_info=None: None).close()
        return self.took_ns / (calls // AT_ONCE * AT_ONCE) / 1000


def nothing():
    pass


def a_span():
    with span("a part of the work"):
        pass


def opentelemetry_spans():
    """By OpenTelemetry's API: what does nothing, and what the agent makes of it; None where it is not installed."""
    try:
        from opentelemetry import trace
    except ImportError:
        return None

    def of(tracer):
        def call():
            with tracer.start_as_current_span("a part of the work"):
                pass

        return call

    return of(trace.NoOpTracer()), of(trace.get_tracer("bench")), CALLS


def two(make, plain, instrumented):
    return make(plain), make(instrumented)


def pairs_of(plain, servers):
    """Name: what is called without the agent and with it, and how often."""
    instrumented = sqlite3.connect(":memory:").cursor()
    numbers = itertools.count()
    pairs = {
        "span": (nothing, a_span, CALLS),
        "sqlite3, the same statement": (
            *two(lambda cursor: lambda: cursor.execute("SELECT 1 WHERE 1 = ?", (1,)), plain, instrumented),
            CALLS,
        ),
        "sqlite3, the same statement and its rows": (
            *two(lambda cursor: lambda: cursor.execute("SELECT 1 WHERE 1 = ?", (1,)).fetchall(), plain, instrumented),
            CALLS,
        ),
        "sqlite3, never the same": (
            *two(lambda cursor: lambda: cursor.execute(f"SELECT 1 WHERE 1 = {next(numbers)}"), plain, instrumented),
            CALLS,
        ),
    }
    if (by_api := opentelemetry_spans()) is not None:
        pairs["span, by OpenTelemetry's API"] = by_api
    for name, (before, after) in servers.items():

        def repeating(cursor):
            def call():
                cursor.execute("SELECT 1 WHERE 1 = %s", (1,))
                cursor.fetchall()

            return call

        pairs[f"{name}, the same statement and its rows"] = (*two(repeating, before, after), CALLS_OF_SERVERS)
    return pairs


def measure(application, rounds, plain, servers):
    pairs = pairs_of(plain, servers)
    found = {name: [] for name in pairs}
    for _ in range(rounds):
        for name, (without, within, calls) in pairs.items():
            found[name].append((application.per_call(without, calls), application.per_call(within, calls)))
    print("| what | plain, µs | added, µs | ratio |")
    print("| --- | ---: | ---: | ---: |")
    for name, times in found.items():
        before = statistics.median(time for time, _ in times)
        added = statistics.median(after - before for before, after in times)
        print(f"| {name} | {before:.2f} | {added:.2f} | {(before + added) / before:.2f} |")


def servers_of(stack):
    """Plain and instrumented cursors of the servers that are installed."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from tests.databases import NotInstalled, running_postgresql

    found = {}
    try:
        import psycopg2

        server = stack.enter_context(running_postgresql())
    except (ImportError, NotInstalled) as missing:
        print(f"without psycopg2: {missing}")
        return found
    where = {"host": server.host, "port": server.port, "user": server.user, "dbname": server.database}
    plain_connect = getattr(psycopg2.connect, "_paste_agent", psycopg2.connect)
    psycopg2_instrumentation.install(psycopg2)
    plain, instrumented = (
        stack.enter_context(contextlib.closing(connect(**where))) for connect in (plain_connect, psycopg2.connect)
    )
    found["psycopg2"] = plain.cursor(), instrumented.cursor()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--servers", action="store_true")
    options = parser.parse_args()

    plain = sqlite3.connect(":memory:").cursor()  # before the filter is made, which instruments what it finds
    sqlite.install(sqlite3)
    with contextlib.ExitStack() as stack:
        servers = servers_of(stack) if options.servers else {}
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        keys = {
            "store": f"{directory}/a.sqlite",
            "runtime_dir": directory,
            "service_name": "bench",
            "ring_records": "1048576",
        }
        measure(Application(keys), options.rounds, plain, servers)
        lifecycle.finish([])


if __name__ == "__main__":
    main()
