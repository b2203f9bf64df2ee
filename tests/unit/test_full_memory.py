"""A memory file system that is full: shared by all users of a host, and only 64 MB in many containers."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.serving import ROOT, environment

# Run in a mount namespace of its own, so that nothing stays mounted whatever happens.
_SCRIPT = """
import logging, os, sys, threading
logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stdout)
from paste_agent import filter, lifecycle, settings
from paste_agent.recorder import layout
where, state = sys.argv[1:]

def application(environ, start_response):
    environ["paste_agent.route"] = environ["PATH_INFO"]
    start_response("200 OK", [])
    return [b"fine"]

keys = {"service_name": "full", "store": state + "/full.sqlite", "runtime_dir": where, "shutdown_timeout_s": "30"}
app = filter.main(application, {}, **keys)
agent = lifecycle.agent_of(settings.load(keys, {}, {}))

def begin(path):
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "wsgi.url_scheme": "http"}
    return app(environ, lambda *args: None)

def fill():
    "Leave nothing of the file system."
    with open(where + "/other", "wb", buffering=0) as other:
        try:
            while True:
                other.write(bytes(65536))
        except OSError:
            pass
"""


def run(tmp_path: Path, size_kib: int, body: str) -> str:
    where = tmp_path / "shm"
    where.mkdir()
    (tmp_path / "script.py").write_text(_SCRIPT + textwrap.dedent(body))
    mount = f"mount -t tmpfs -o size={size_kib}k,mode=0700 tmpfs {where}"
    probe = subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True)
    if probe.returncode:
        pytest.skip("needs the right to mount")
    command = f"{mount} && exec {sys.executable} {tmp_path / 'script.py'} {where} {tmp_path}"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", command], capture_output=True, text=True, timeout=60, cwd=ROOT, env=environment()
    )
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    return done.stdout


def test_no_room_at_the_start_is_recorded_in_memory_and_said_once(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        400,
        """
        for number in range(20_000):
            begin("/a").close()
        print("dropped", agent.serving.word(layout.W_DROPPED) > 0, "path", agent.serving.path)
        """,
    )
    assert said.count("recording in memory") == 1
    assert "No space left on device" in said
    assert "path None" in said


def test_no_room_later_costs_slots_and_names_of_series_but_no_request(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        3 * 1024,
        """
        begin("/first").close()
        fill()
        recorder = agent.serving
        open_ones = [begin("/same") for _ in range(300)]
        for one in open_ones:
            one.close()
        for number in range(1500):
            begin(f"/{number}").close()
        agent.finish()
        os.unlink(where + "/other")
        from paste_agent.store.store import Store
        store = Store(state + "/full.sqlite", read_only=True)
        totals = [one for one in store.totals() if one.metric == "http.server.request.duration"]
        print("counted", sum(one.total.count for one in totals))
        print("apart", sum("http.route" in one.attributes for one in totals) in range(400, 513))
        """,
    )
    assert "counted 1801" in said
    assert "apart True" in said
