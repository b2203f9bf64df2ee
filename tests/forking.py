"""Scripts that serve, fork and end, each a process of its own, never the one that runs the tests.

said = run(tmp_path, 'serve("/parent", 3); say(pid=os.getpid())')
assert counts(tmp_path) == {"/parent": 3}
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from paste_agent.aggregate import REQUEST_DURATION
from paste_agent.store.store import Store

ROOT = Path(__file__).resolve().parent.parent
#: What every script begins with. `serve` sends a request through the filter; the route is what it is counted under.
PRELUDE = """
import glob, json, multiprocessing, os, signal, subprocess, sys, threading, time
from wsgiref.util import setup_testing_defaults
from paste_agent import lifecycle, settings
from paste_agent.filter import AgentFilter
from paste_agent.recorder.reader import Reader

DIRECTORY = sys.argv[1]
SETTINGS = settings.load(
    {"service_name": "shop", "store": f"{DIRECTORY}/store.sqlite", "runtime_dir": f"{DIRECTORY}/run"}, {}, {}
)
AGENT = lifecycle.agent_of(SETTINGS)

def fine(environ, start_response):
    start_response("200 OK", [])
    return [b"x"]

def serve(route, times=1, application=fine):
    for _ in range(times):
        environ = {"paste_agent.route": route}
        setup_testing_defaults(environ)
        body = AgentFilter(application, AGENT)(environ, lambda status, headers, exc_info=None: None)
        try:
            list(body)
        finally:
            body.close()

def recorders():
    return glob.glob(f"{DIRECTORY}/run/*/*.recorder")

def lead():
    # Until the reporter has taken the lease and opened the store: a fork then inherits all that there is.
    while not glob.glob(f"{DIRECTORY}/run/*/lease-*") or not os.path.exists(f"{DIRECTORY}/store.sqlite"):
        time.sleep(0.01)

def links(what="fd"):
    found = []
    for name in os.listdir(f"/proc/self/{what}"):
        try:
            found.append(os.readlink(f"/proc/self/{what}/{name}"))
        except OSError:
            pass
    # Not a directory that the reporter was just listing.
    return [link for link in found if link.startswith(DIRECTORY) and not os.path.isdir(link)]

def mapped():
    with open("/proc/self/maps") as file:
        return [line.split()[-1] for line in file if ".recorder" in line]

def joined(pid):
    _, status = os.waitpid(pid, 0)
    return status

def say(**what):
    print(json.dumps(what), flush=True)
"""


def start(directory: Path, script: str) -> subprocess.Popen[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PASTE_AGENT_", "OTEL_"))}
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + script, str(directory)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**env, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )


def run(directory: Path, script: str) -> dict[str, Any]:
    """Run a script to its end; returns what it said."""
    process = start(directory, script)
    with process:
        try:
            out, err = process.communicate(timeout=60)
        finally:
            end_group(process)
    assert process.returncode == 0, out + err
    assert "Traceback" not in err, err
    assert "fault of the agent" not in err, err
    said: dict[str, Any] = {}
    for line in out.splitlines():
        said.update(json.loads(line))
    return said


def end_group(process: subprocess.Popen[str]) -> None:
    """Whatever the script has left behind, by the group that was made for it."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def counts(directory: Path) -> dict[str, int]:
    """Requests in the store by route."""
    store = Store(str(directory / "store.sqlite"), read_only=True)
    try:
        found: Counter[str] = Counter()
        for one in store.totals():
            if one.metric == REQUEST_DURATION:
                found[str(one.attributes.get("http.route"))] += one.total.count
        assert store._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return dict(found)
    finally:
        store.close()
