"""CPU that an agent adds to a page: three queries, a call to another service, and a template.

    python bench/page.py [--starts 7] [--rounds 15] [--pages 50] [--only NAME …] [--json]

The page asks sqlite3 three times, gets another one with requests from a server in a process of its own, and renders a
table with Jinja2: five spans. The floor does the least that spans must: it reads the clock before and after each of
the five, keeps name and times in a list, and tells the other service whose call it is.

Each subject runs in a process of its own, the bare page too, and all of them on one core. They take turns, round after
round. Where a process's memory happens to lie makes more of a difference than some agents do, so all are started
anew several times: a figure is the median, over the starts, of the medians of a start's rounds. It is the CPU time of
the thread that serves, so that waiting for the other service counts for nobody. Peers are measured when they are
installed: see bench/requirements.txt.
"""

from __future__ import annotations

import argparse
import http.server
import importlib
import json
import os
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import overhead

#: name, what it imports
SUBJECTS = {
    "bare": "",
    "bare, once more": "",
    "floor": "",
    "paste-agent": "paste_agent",
    "paste-agent, every page kept": "paste_agent",
    "OpenTelemetry": "opentelemetry.instrumentation.sqlite3",
    "OpenTelemetry, 1 %": "opentelemetry.instrumentation.sqlite3",
    "New Relic": "newrelic",
}
SPANS = 5
#: Dictionaries lie the same in all of them.
ENVIRON = {**os.environ, "PYTHONHASHSEED": "0"}
WARM_UP = 300  #: pages
TEMPLATE = """<table>{% for name, price in goods %}
<tr><td>{{ name }}</td><td>{{ "%.2f"|format(price) }}</td></tr>{% endfor %}
</table><p>{{ stock }} in stock, {{ orders }} orders</p>"""


class Page:
    """The application. Made after the subject has instrumented what it uses."""

    def __init__(self, port):
        import jinja2
        import requests

        self.database = sqlite3.connect(":memory:")
        self.database.execute("CREATE TABLE goods (id INTEGER PRIMARY KEY, name TEXT, price REAL, stock INTEGER)")
        self.database.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, good INTEGER)")
        rows = [(f"good {number}", number * 1.5, number) for number in range(100)]
        self.database.executemany("INSERT INTO goods (name, price, stock) VALUES (?, ?, ?)", rows)
        self.session = requests.Session()
        self.url = f"http://127.0.0.1:{port}/rates"
        self.template = jinja2.Environment(autoescape=True).from_string(TEMPLATE)

    def __call__(self, environ, start_response):
        ask = self.database.cursor
        goods = ask().execute("SELECT name, price FROM goods WHERE id < ? ORDER BY id", (20,)).fetchall()
        (stock,) = ask().execute("SELECT stock FROM goods WHERE id = ?", (17,)).fetchone()
        (orders,) = ask().execute("SELECT count(*) FROM orders WHERE good = ?", (17,)).fetchone()
        self.session.get(self.url, timeout=30)
        body = self.template.render(goods=goods, stock=stock, orders=orders).encode()
        start_response("200 OK", [("Content-Type", "text/html"), ("Content-Length", str(len(body)))])
        return [body]


class Other(http.server.BaseHTTPRequestHandler):
    """The other service."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body at one go: else the second waits 40 ms for an acknowledgement

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *args):
        pass


# -- subjects ------------------------------------------------------------------------------------------------------


class Floor:
    """The least that a measurement of the request and of what is inside of it does."""

    def __init__(self, port):
        import http.client

        import jinja2

        self.spans = []
        self.plain_connect = sqlite3.connect
        sqlite3.connect = self.connect
        self.timed(jinja2.Template, "render")
        self.timed(http.client.HTTPConnection, "getresponse")
        self.told(http.client.HTTPConnection)
        self.measured = overhead.Floor(Page(port))

    def connect(self, database):
        floor = self

        class Cursor(sqlite3.Cursor):
            pass

        class Connection(sqlite3.Connection):
            def cursor(self):
                return sqlite3.Connection.cursor(self, Cursor)

        floor.timed(Cursor, "execute")
        return self.plain_connect(database, factory=Connection)

    def timed(self, owner, name):
        spans, original = self.spans, getattr(owner, name)

        def call(*args, **kwargs):
            start_ns = time.perf_counter_ns()
            result = original(*args, **kwargs)
            spans.append((name, start_ns, time.perf_counter_ns() - start_ns))
            return result

        setattr(owner, name, call)

    def told(self, owner):
        original, draw = owner.endheaders, random.Random(1).getrandbits

        def endheaders(connection, *args, **kwargs):
            connection.putheader("traceparent", f"00-{draw(128):032x}-{draw(64):016x}-01")
            return original(connection, *args, **kwargs)

        owner.endheaders = endheaders

    def __call__(self, environ, start_response):
        self.spans.clear()
        return self.measured(environ, start_response)


def paste_agent(port, directory, every_page):
    keys = {"random_traces_per_min": "1000000"} if every_page else {}
    return overhead.paste_agent(directory, leads=False, make=lambda: Page(port), **keys)


def opentelemetry(port, ratio):
    from opentelemetry.instrumentation.jinja2 import Jinja2Instrumentor
    from opentelemetry.instrumentation.requests import RequestsInstrumentor
    from opentelemetry.instrumentation.sqlite3 import SQLite3Instrumentor

    wrapper = overhead.opentelemetry(ratio)
    for instrumentor in (SQLite3Instrumentor, RequestsInstrumentor, Jinja2Instrumentor):
        instrumentor().instrument()
    wrapper.wsgi = Page(port)
    return wrapper


def new_relic(port, directory):
    import newrelic.agent

    overhead.new_relic(directory)
    return newrelic.agent.WSGIApplicationWrapper(Page(port))


def wrapped_by(subject, port, directory):
    if subject.startswith("bare"):
        return Page(port)
    if subject == "floor":
        return Floor(port)
    if subject.startswith("paste-agent"):
        return paste_agent(port, directory, "every" in subject)
    if subject.startswith("OpenTelemetry"):
        return opentelemetry(port, 0.01 if "1 %" in subject else 1.0)
    return new_relic(port, directory)


def on_one_core():
    """Have this process, and what any service has loaded, where all subjects are."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    for module in ("logging", "socket", "threading", "json", "paste.deploy", "urllib.request", "ssl", "email"):
        importlib.import_module(module)


def answer(wrapped, environ):
    """Answer lines on standard input, each with how many requests to serve, with the CPU time of one, ns."""
    print("ready", flush=True)
    for line in sys.stdin:
        print(overhead.cpu_ns_of(wrapped, environ, int(line)), flush=True)
    if "paste_agent" in sys.modules:
        from paste_agent import lifecycle

        lifecycle.finish([])  # before the directory goes


def child(subject, port):
    on_one_core()
    with tempfile.TemporaryDirectory(dir=overhead.MEMORY, ignore_cleanup_errors=True) as directory:
        answer(wrapped_by(subject, port, directory), overhead.environ_of(False))


class Subject:
    """A child process, asked in turns."""

    def __init__(self, script, name, argument):
        command = [sys.executable, script, "--child", name, str(argument)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRON)
        self.times_ns = []
        while self.process.stdout.readline() != "ready\n":  # New Relic has more to say
            assert self.process.poll() is None, f"{name} does not start"

    def serve(self, requests):
        self.process.stdin.write(f"{requests}\n")
        self.process.stdin.flush()
        self.times_ns.append(float(self.process.stdout.readline()))

    def close(self):
        self.process.stdin.close()
        self.process.wait(30)


def in_turns(subjects, rounds, requests, warm_up):
    """Median CPU time of a request by subject, ns. Ends the subjects."""
    try:
        for subject in subjects.values():
            for _ in range(warm_up // requests):
                subject.serve(requests)
            subject.times_ns.clear()
        for _ in range(rounds):
            for subject in subjects.values():
                subject.serve(requests)
    finally:
        for subject in subjects.values():
            subject.close()
    return {name: statistics.median(subject.times_ns) for name, subject in subjects.items()}


def measure(names, starts, rounds, pages):
    """CPU time of a page by subject, ns: a figure a start."""
    figures = {name: [] for name in names}
    for _ in range(starts):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Other)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            subjects = {name: Subject(__file__, name, server.server_address[1]) for name in names}
            for name, page_ns in in_turns(subjects, rounds, pages, WARM_UP).items():
                figures[name].append(page_ns)
        finally:
            server.shutdown()
            server.server_close()
    return figures


def compared(figures):
    """By subject: time of the bare one, what is added to it, µs, and that as a multiple of the floor's."""
    # Compared within each start: what slows one subject down slows its neighbours.
    added_us = {
        name: statistics.median((ns - bare) / 1000 for ns, bare in zip(all_ns, figures["bare"], strict=True))
        for name, all_ns in figures.items()
    }
    bare_us = statistics.median(figures["bare"]) / 1000
    return {name: (bare_us, added, added / added_us["floor"]) for name, added in added_us.items()}


def table(figures):
    print("| subject | CPU of a page, µs | of the bare page | added, µs | for each of 5 spans, µs | of the floor |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, (bare_us, added, floors) in compared(figures).items():
        print(
            f"| {name} | {bare_us + added:.0f} | {1 + added / bare_us:.2f} | {added:.0f} | {added / SPANS:.1f} "
            f"| {floors:.1f} |"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--starts", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--pages", type=int, default=50)
    parser.add_argument("--only", nargs="+", choices=SUBJECTS, help="bare and floor are always measured")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child[0], int(options.child[1]))
        return
    names = [name for name in SUBJECTS if name in ("bare", "floor") or not options.only or name in options.only]
    missing = [name for name in names if not overhead.installed(SUBJECTS[name])]
    figures = measure([name for name in names if name not in missing], options.starts, options.rounds, options.pages)
    print(json.dumps(figures, indent=2)) if options.json else table(figures)
    if missing:
        print(f"not installed, so not measured: {', '.join(missing)}", file=sys.stderr)


if __name__ == "__main__":
    main()
