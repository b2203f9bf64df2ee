"""A real Prometheus for tests, and promtool; each is Debian's package `prometheus`.

Without it a test is skipped, or fails where REQUIRE_SERVERS is set.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.collector import free_port
from tests.serving import PATIENCE_S, wait_for

_CONFIG = """\
global:
  scrape_interval: 1s
  scrape_timeout: 1s
scrape_configs:
  - job_name: shop
    file_sd_configs:
      - files: [targets.json]
        refresh_interval: 1s
"""
_ATTEMPTS = 5


def program(name: str) -> str:
    """Path of `prometheus` or `promtool`."""
    found = shutil.which(name)
    if found is None:
        if os.environ.get("REQUIRE_SERVERS"):
            pytest.fail(f"{name} is not installed, and REQUIRE_SERVERS is set")
        pytest.skip(f"{name} is not installed")
    return found


def promtool(*arguments: str | Path) -> str:
    """What it prints; AssertionError with all of it when it finds fault."""
    done = subprocess.run([program("promtool"), *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Prometheus:
    """A server that scrapes once a second what `scrapes` names."""

    def __init__(self, directory: Path, port: int) -> None:
        self._directory = directory
        self._url = f"http://127.0.0.1:{port}"

    def scrapes(self, port: int) -> None:
        """Scrape this port from now on: the same instance, wherever it listens."""
        targets = [{"targets": [f"127.0.0.1:{port}"], "labels": {"instance": "shop"}}]
        unfinished = self._directory / "targets.new"
        unfinished.write_text(json.dumps(targets))
        unfinished.rename(self._directory / "targets.json")

    def query(self, promql: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series that an instant query gives."""
        found = self._ask("query", query=promql)
        assert found["resultType"] == "vector"
        return [(one["metric"], float(one["value"][1])) for one in found["result"]]

    def exemplars(self, promql: str, start: float, end: float) -> list[dict[str, str]]:
        """Labels of the exemplars of all series."""
        found = self._ask("query_exemplars", query=promql, start=str(start), end=str(end))
        return [exemplar["labels"] for series in found for exemplar in series["exemplars"]]

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._url}/-/ready", timeout=5) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def _ask(self, what: str, **parameters: str) -> Any:
        url = f"{self._url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as response:
            return json.load(response)["data"]


@contextlib.contextmanager
def running_prometheus(directory: Path) -> Iterator[Prometheus]:
    """directory: of its own, empty. Somebody else may be faster to take a port: then it is another one."""
    (directory / "prometheus.yml").write_text(_CONFIG)
    log = directory / "log"
    for _ in range(_ATTEMPTS):
        port = free_port()
        command = [
            program("prometheus"),
            "--config.file=prometheus.yml",
            "--storage.tsdb.path=data",
            f"--web.listen-address=127.0.0.1:{port}",
            "--enable-feature=exemplar-storage",
        ]
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, cwd=directory, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
            )
        server = Prometheus(directory, port)
        try:
            if _starts(process, server):
                yield server
                return
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    raise AssertionError(f"Prometheus does not start: {log.read_text(errors='replace')[-4000:]}")


def _starts(process: subprocess.Popen[bytes], server: Prometheus) -> bool:
    """Whether it serves; else it has ended."""
    wait_for(lambda: process.poll() is not None or server.is_ready(), "Prometheus", 2 * PATIENCE_S)
    return process.poll() is None
