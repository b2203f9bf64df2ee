"""A real OpenTelemetry collector: rotel, which prints what it receives."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import rotel as rotel_package  # type: ignore[import-untyped]

from tests.receiver import RequestKey, request_key

_BINARY = os.path.join(os.path.dirname(rotel_package.__file__), "rotel-agent")
_START_TIMEOUT_S = 15.0
_ATTRIBUTE = re.compile(r"     -> ([^:]+): (Str|Int|Bool|Double)\((.*)\)")


class Collector:
    """A running collector. endpoint: of its OTLP/HTTP."""

    def __init__(self, endpoint: str, path: str) -> None:
        self.endpoint = endpoint
        self._path = path

    def output(self) -> str:
        """All that it has printed so far."""
        with open(self._path, encoding="utf-8", errors="replace") as file:
            return file.read()

    def wait_for(self, condition: Callable[[Collector], bool], timeout_s: float = 20.0) -> None:
        """Return as soon as `condition` holds; fail with the output when it does not in `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while not condition(self):
            assert time.monotonic() < deadline, f"in vain; the collector printed:\n{self.output()}"
            time.sleep(0.05)

    def request_counts(self) -> dict[RequestKey, int]:
        """Served requests by method, route and status, from the newest point of each series."""
        newest: dict[str, tuple[int, dict[str, Any], int]] = {}
        for resource, metric, point, timestamp, count in _histogram_points(self.output()):
            if metric == "http.server.request.duration":
                key = f"{sorted(resource.items())} {sorted(point.items())}"
                if key not in newest or newest[key][0] <= timestamp:
                    newest[key] = (timestamp, point, count)
        counts: dict[RequestKey, int] = {}
        for _, attributes, count in newest.values():
            counts[request_key(attributes)] = counts.get(request_key(attributes), 0) + count
        return counts


def _histogram_points(output: str) -> Iterator[tuple[dict[str, Any], str, dict[str, Any], int, int]]:
    """Resource, metric, attributes, time and count of each point of a histogram that the output shows."""
    resource: dict[str, Any] = {}
    point: dict[str, Any] = {}
    attributes = resource
    metric, timestamp, in_histogram = "", 0, False
    for line in output.splitlines():
        if line.startswith("Resource attributes:"):
            attributes = resource = {}
        elif line.startswith("     -> Name: "):
            metric = line.removeprefix("     -> Name: ")
        elif "DataPoints #" in line:
            in_histogram = line.startswith("HistogramDataPoints #")
            attributes = point = {}
        elif found := _ATTRIBUTE.fullmatch(line):
            name, kind, text = found.groups()
            attributes[name] = int(text) if kind == "Int" else text
        elif line.startswith("Timestamp: "):
            timestamp = int(line.removeprefix("Timestamp: "))
        elif in_histogram and line.startswith("Count: "):
            yield resource, metric, point, timestamp, int(line.removeprefix("Count: "))


@contextmanager
def rotel(passes_to: str | None = None) -> Iterator[Collector]:
    """A collector on free ports of the loopback; stopped at the end.

    passes_to: where it sends traces to, over OTLP/HTTP; None: it keeps them to itself.
    """
    with tempfile.TemporaryDirectory(prefix="rotel-") as directory:
        for attempt in (1, 2, 3):
            path = os.path.join(directory, f"output-{attempt}")
            with open(path, "wb") as output:
                port = free_port()
                process = _started(port, free_port(), directory, output, passes_to)
            try:
                if _listens(process, port):
                    yield Collector(f"http://127.0.0.1:{port}", path)
                    return
            finally:
                _stop(process)
        # Another process may have taken a port in between; not three times.
        with open(path, encoding="utf-8", errors="replace") as file:
            said = file.read()
        if "cannot open shared object file" in said:
            pytest.skip("rotel needs a libpython, which this interpreter is built without")
        raise AssertionError(f"rotel does not start:\n{said}")


def _started(
    http_port: int, grpc_port: int, directory: str, output: Any, passes_to: str | None
) -> subprocess.Popen[bytes]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("ROTEL_", "OTEL_"))}
    # The binary is linked against the interpreter's library, which may lie where the linker does not look.
    environ["LD_LIBRARY_PATH"] = os.pathsep.join(
        path for path in (sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH")) if path
    )
    exporter = ["--exporter", "blackhole"]
    if passes_to is not None:
        exporter = ["--exporter", "otlp", "--otlp-exporter-endpoint", passes_to, "--otlp-exporter-protocol", "http"]
    debug = [word for signal in ("traces", "metrics", "logs") for word in ("--debug-log", signal)]
    return subprocess.Popen(
        [_BINARY, "start", "--otlp-grpc-endpoint", f"127.0.0.1:{grpc_port}",
         "--otlp-http-endpoint", f"127.0.0.1:{http_port}", *exporter,
         *debug, "--debug-log-verbosity", "detailed"],
        stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=directory,
        env=environ,
    )  # fmt: skip


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        assert isinstance(port, int)
        return port


def _listens(process: subprocess.Popen[bytes], port: int) -> bool:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
            return True
        except OSError:
            time.sleep(0.05)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
