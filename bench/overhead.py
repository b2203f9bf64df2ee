"""CPU that an agent adds to a request in process; beside the floor and beside other agents.

    python bench/overhead.py [--rounds 15] [--requests 4000] [--only NAME …] [--json]

Each subject runs in a process of its own, so that none disturbs another. The processes take turns, round after round;
in each turn one serves the bare application and the wrapped one alternately, and the difference is what the wrapper
costs. A figure is the median of all turns, and a ratio is of two such medians.

The floor is a middleware that does the least that any measurement must do: wrap `start_response` and the body, and
read the clock twice. Peers are measured when they are installed: see bench/requirements.txt.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from time import perf_counter_ns

#: Where the recorder lies by default.
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
#: name, what it imports, whether requests carry a traceparent
SUBJECTS = {
    "floor": ("", False),
    "paste-agent": ("paste_agent", False),
    "paste-agent, traceparent": ("paste_agent", True),
    "paste-agent, in the lead": ("paste_agent", False),
    "OpenTelemetry SDK": ("opentelemetry.instrumentation.wsgi", False),
    "OpenTelemetry SDK, traceparent": ("opentelemetry.instrumentation.wsgi", True),
    "OpenTelemetry SDK, 1 %": ("opentelemetry.instrumentation.wsgi", False),
    "New Relic": ("newrelic", False),
}


def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "13")])
    return [b"Hello, world!"]


class Floor:
    """The least that a measurement does."""

    def __init__(self, application):
        self.application = application

    def __call__(self, environ, start_response):
        start_ns = perf_counter_ns()

        def wrapped(status, headers, exc_info=None):
            return start_response(status, headers, exc_info)

        return FloorBody(self.application(environ, wrapped), start_ns)


class FloorBody:
    def __init__(self, body, start_ns):
        self.body = body
        self.iterator = iter(body)
        self.start_ns = start_ns

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.iterator)

    def close(self):
        try:
            if hasattr(self.body, "close"):
                self.body.close()
        finally:
            self.duration_ns = perf_counter_ns() - self.start_ns


# -- subjects: each returns the wrapped application ----------------------------------------------------------------


def paste_agent(directory, leads, make=lambda: application, **more):
    """leads: whether this process drains and stores for the service too, as one of its workers does.

    make: of the application, once what it uses can be instrumented. more: settings.
    """
    from paste_agent import filter, instrument, runtime_dir, settings

    keys = {"store": os.path.join(directory, "bench.sqlite"), "runtime_dir": directory, "service_name": "bench", **more}
    conf = {"__file__": os.path.join(directory, "bench.ini")}
    instrument.install()
    wrapped = filter.main(make(), conf, **keys)
    if not leads:
        import fcntl

        lease = os.path.join(runtime_dir.service_dir(settings.load(keys, conf, {}), {}), runtime_dir.LEASE)
        held.append(os.open(lease, os.O_RDWR | os.O_CREAT, 0o600))
        fcntl.flock(held[0], fcntl.LOCK_EX)
    return wrapped


held = []


def opentelemetry(ratio):
    from opentelemetry import metrics, trace
    from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    class Nowhere(SpanExporter):
        def export(self, spans):
            return SpanExportResult.SUCCESS

    provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(ratio)))
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    trace.set_tracer_provider(provider)
    metrics.set_meter_provider(MeterProvider(metric_readers=[InMemoryMetricReader()]))
    return OpenTelemetryMiddleware(application)


def new_relic(directory):
    os.environ.update(
        NEW_RELIC_DEVELOPER_MODE="true",  # its own stand-in for its service: everything is recorded, nothing is sent
        NEW_RELIC_LICENSE_KEY="0" * 40,
        NEW_RELIC_APP_NAME="bench",
        NEW_RELIC_LOG=os.path.join(directory, "newrelic.log"),
    )
    import newrelic.agent

    newrelic.agent.initialize()
    newrelic.agent.register_application(timeout=10.0)
    return newrelic.agent.WSGIApplicationWrapper(application)


def wrapped_by(subject, directory):
    if subject == "floor":
        return Floor(application)
    if subject.startswith("paste-agent"):
        return paste_agent(directory, leads="in the lead" in subject)
    if subject.startswith("OpenTelemetry"):
        return opentelemetry(0.01 if "1 %" in subject else 1.0)
    return new_relic(directory)


# -- the measurement -----------------------------------------------------------------------------------------------


def environ_of(traceparent):
    environ = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/items/17",
        "QUERY_STRING": "",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8080",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "HTTP_HOST": "127.0.0.1:8080",
        "HTTP_USER_AGENT": "bench/1",
        "wsgi.url_scheme": "http",
        "wsgi.version": (1, 0),
        "wsgi.multithread": False,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    if traceparent:
        environ["HTTP_TRACEPARENT"] = TRACEPARENT
    return environ


def start_response(status, headers, exc_info=None):
    return None


def serve(wrapped, environ):
    """One request, as a server handles it."""
    body = wrapped(environ.copy(), start_response)
    for _ in body:
        pass
    close = getattr(body, "close", None)
    if close is not None:
        close()


def cpu_ns_of(wrapped, environ, requests):
    began = time.thread_time_ns()
    for _ in range(requests):
        serve(wrapped, environ)
    return (time.thread_time_ns() - began) / requests


def warm(wrapped, environ, requests):
    """CPU of this thread that the wrapper adds to a request, ns."""
    bare_ns, wrapped_ns = [], []
    for _ in range(4):
        bare_ns.append(cpu_ns_of(application, environ, requests // 4))
        wrapped_ns.append(cpu_ns_of(wrapped, environ, requests // 4))
    return statistics.median(wrapped_ns) - statistics.median(bare_ns)


def cold(wrapped, environ, requests):
    """The same for single requests with 3 ms of sleep before each: what the caches held is gone."""
    bare_ns, wrapped_ns = [], []
    for _ in range(requests):
        for subject, times_ns in ((application, bare_ns), (wrapped, wrapped_ns)):
            time.sleep(0.003)
            began = perf_counter_ns()
            serve(subject, environ)
            times_ns.append(perf_counter_ns() - began)
    return statistics.median(wrapped_ns) - statistics.median(bare_ns)


def child(subject, traceparent):
    """Answer lines on standard input, such as `warm 4000`, with a figure each; first what starting cost."""
    # What any service has loaded already counts for nobody.
    for module in ("logging", "socket", "threading", "json", "paste.deploy", "urllib.request", "ssl", "email"):
        importlib.import_module(module)
    with tempfile.TemporaryDirectory(dir=MEMORY, ignore_cleanup_errors=True) as directory:
        before_kib = rss_kib()
        began = time.perf_counter()
        wrapped = wrapped_by(subject, directory)
        start_ms = (time.perf_counter() - began) * 1000
        environ = environ_of(traceparent)
        answer({"start_ms": start_ms})
        for line in sys.stdin:
            what, amount = line.split()
            if what == "memory":
                for _ in range(4):
                    for _ in range(int(amount) // 4):
                        serve(wrapped, environ)
                    time.sleep(1.2)  # the reporter's turn
                answer({"memory_mib": (rss_kib() - before_kib) / 1024})
            else:
                answer({what: (warm if what == "warm" else cold)(wrapped, environ, int(amount))})
        if "paste_agent" in sys.modules:
            from paste_agent import lifecycle

            lifecycle.finish([])  # before the directory goes


def rss_kib():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))


def answer(value):
    print(json.dumps(value), flush=True)


class Subject:
    """A child process, asked in turns."""

    def __init__(self, name, traceparent, bytecode):
        """bytecode: directory of what has been compiled before, as it has in any service but the first."""
        command = [sys.executable, __file__, "--child", name, *(["--traceparent"] if traceparent else [])]
        environ = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": bytecode}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ)
        self.figures = {"start_ms": [json.loads(self.process.stdout.readline())["start_ms"]]}

    def ask(self, what, amount):
        self.process.stdin.write(f"{what} {amount}\n")
        self.process.stdin.flush()
        for name, value in json.loads(self.process.stdout.readline()).items():
            self.figures.setdefault(name, []).append(value)

    def close(self):
        self.process.stdin.close()
        self.process.wait(30)


def installed(module):
    try:
        return not module or importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def measure(names, rounds, requests, bytecode):
    for name in names:  # what is imported late is to be compiled by then, too
        first = Subject(name, SUBJECTS[name][1], bytecode)
        first.ask("memory", 40)
        first.close()
    subjects = {name: Subject(name, SUBJECTS[name][1], bytecode) for name in names}
    try:
        for subject in subjects.values():
            subject.ask("memory", 40_000)
        for _ in range(rounds):
            for subject in subjects.values():
                subject.ask("warm", requests)
        for _ in range(3):
            for subject in subjects.values():
                subject.ask("cold", 100)
    finally:
        for subject in subjects.values():
            subject.close()
    return {
        name: {figure: statistics.median(values) for figure, values in subject.figures.items()}
        for name, subject in subjects.items()
    }


def table(figures):
    floor = figures["floor"]
    print("| subject | CPU added, µs | of the floor | after 3 ms pauses, µs | memory, MiB | start, ms |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, row in figures.items():
        print(
            f"| {name} | {row['warm'] / 1000:.2f} | {row['warm'] / floor['warm']:.1f} | {row['cold'] / 1000:.1f} "
            f"| {row['memory_mib']:.1f} | {row['start_ms']:.0f} |"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--only", nargs="+", choices=SUBJECTS, help="the floor is always measured")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--traceparent", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.traceparent)
        return
    names = [name for name in SUBJECTS if name == "floor" or not options.only or name in options.only]
    missing = [name for name in names if not installed(SUBJECTS[name][0])]
    names = [name for name in names if name not in missing]
    with tempfile.TemporaryDirectory() as bytecode:
        figures = measure(names, options.rounds, options.requests, bytecode)
    print(json.dumps(figures, indent=2)) if options.json else table(figures)
    if missing:
        print(f"not installed, so not measured: {', '.join(missing)}", file=sys.stderr)


if __name__ == "__main__":
    main()
