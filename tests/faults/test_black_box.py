"""A black box for every worker: what log, store, commands and collector know of one that died."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.faults.cgroup import MIB, memory_group
from tests.faults.running import classes
from tests.receiver import Receiver, attributes_of
from tests.serving import NO_CONTROL_SOCKET_INI, Served, environment, run, serve, wait_for

COMMANDS = {
    "gunicorn_paster": "from paste_agent.server.gunicorn_paster import run; run()",
    "gunicorn": "from gunicorn.app.wsgiapp import run; run()",
    "pserve": "import sys; from pyramid.scripts.pserve import main; sys.exit(main())",
}
ARGUMENTS = {"gunicorn_paster": [], "gunicorn": ["--paste"], "pserve": []}
#: A fatal signal is told of at once, and a silent worker after this; as short as gunicorn's own sign of life allows.
TIMEOUT_S = 2
INI = """\
[app:dying]
use = call:dying_app:factory
[filter:agent]
use = egg:paste_agent
service_name = dying
store = {here}/store.sqlite
runtime_dir = {here}/run
apdex_t_s = 0.25
stuck_request_s = 2
[pipeline:main]
pipeline = agent dying
[server:main]
use = egg:paste_agent
{server}
"""


class Dying:
    """The service while it runs."""

    def __init__(self, directory: Path, server: Served, collector: Receiver) -> None:
        self.directory = directory
        self.server = server
        self.collector = collector
        self.url = server.url  # once for all: the output is not to be read by two threads at a time

    def ask(self, path: str, **headers: str) -> int:
        """Status of the answer; 0: none came, the worker has died over it."""
        request = urllib.request.Request(self.url + path, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except OSError:
            return 0

    def ask_without_waiting(self, path: str) -> threading.Thread:
        thread = threading.Thread(target=self.ask, args=(path,))
        thread.start()
        return thread

    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.command("report", "--json", "dying.ini"))
        return found

    def command(self, *words: str) -> str:
        status, out, err = self.run(*words)
        assert (status, err) == (0, ""), err
        return out

    def run(self, *words: str) -> tuple[int, str, str]:
        command = [sys.executable, "-c", "from paste_agent.cli.main import run; run()", *words]
        return run(command, self.directory)

    def postmortems(self, count: int = 1) -> list[dict[str, Any]]:
        """The newest first, once there are so many."""
        found: list[dict[str, Any]] = []

        def met() -> bool:
            status, out, _ = self.run("report", "--json", "dying.ini")
            found[:] = json.loads(out)["postmortems"] if status == 0 else []  # 1: there is no store yet
            return len(found) >= count

        wait_for(met, f"{count} post-mortems")
        assert len(found) == count
        return found


@contextmanager
def dying(
    directory: Path, way: str = "gunicorn_paster", env: Mapping[str, str] | None = None, **gunicorn: str
) -> Iterator[Dying]:
    """A service whose workers may die. gunicorn: its settings."""
    settings = {"bind": "127.0.0.1:0", "workers": "1", "timeout": str(TIMEOUT_S), "graceful_timeout": "3", **gunicorn}
    lines = "".join(f"{name} = {value}\n" for name, value in settings.items())
    shutil.copy(Path(__file__).with_name("dying_app.py"), directory)
    (directory / "run.py").write_text(COMMANDS[way])
    (directory / "dying.ini").write_text(INI.format(here=directory, server=lines + NO_CONTROL_SOCKET_INI))
    if way == "gunicorn":  # reads nothing of the ini's [server:main]
        conf = "".join(f"{name} = {int(value) if value.isdigit() else value!r}\n" for name, value in settings.items())
        (directory / "gunicorn.conf.py").write_text(conf + NO_CONTROL_SOCKET_INI.replace("true", "True"))
    with Receiver() as collector:
        variables = environment(
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint,
            OTEL_METRIC_EXPORT_INTERVAL="300",
            OTEL_BSP_SCHEDULE_DELAY="300",
            **(env or {}),
        )
        with serve([sys.executable, "run.py", *ARGUMENTS[way], "dying.ini"], directory, variables) as server:
            service = Dying(directory, server, collector)
            wait_for(lambda: service.ask("/") == 200, "the first answer")
            yield service


def only(requests: list[dict[str, Any]]) -> dict[str, Any]:
    """The one that was lost; another one may have had its answer a moment before, and be on its way out."""
    lost = [request for request in requests if not request["answered"]]
    assert len(lost) == 1, requests
    return lost[0]


def lost(collector: Receiver) -> dict[str, int]:
    """The counter of lost workers, by reason."""
    return {found["reason"]: point.as_int for found, point in collector.last_points("paste_agent.worker.lost")}


QUERY = "SELECT slow(?), ? FROM sqlite_master UNION SELECT slow(?), ?"


@pytest.mark.parametrize(
    ("worker_class", "way", "page"),
    [
        ("sync", "gunicorn_paster", "/query"),
        ("sync", "gunicorn", "/query"),
        ("sync", "pserve", "/clutch"),
        # The main thread of a gthread worker gives the sign of life, unless nobody lets it have the interpreter.
        ("gthread", "gunicorn_paster", "/clutch"),
        ("gthread", "gunicorn", "/clutch"),
    ],
)
def test_timeout_in_a_page_that_sleeps_in_a_query(tmp_path: Path, worker_class: str, way: str, page: str) -> None:
    """Names the page, the query and the line of code, wherever one looks."""
    with dying(tmp_path, way, worker_class=worker_class, threads="2" if worker_class == "gthread" else "1") as service:
        parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        status = service.ask(f"{page}/17", traceparent=parent)
        assert status == (500 if page == "/query" else 0)  # a sync worker that sees SIGABRT answers
        wait_for(lambda: service.ask("/") == 200, "the next worker")  # under plain gunicorn it leads from now on
        service.server.wait_for_output("was lost")
        (found,) = service.postmortems()
        assert found["reason"] == "timeout"
        request = only(found["requests"])
        assert (request["method"], request["path"]) == ("GET", f"{page}/17")
        assert request["age_s"] > 0.9 * TIMEOUT_S
        assert request["span"] == QUERY
        assert "connection.execute(" in request["stack"]
        assert ("time.sleep(seconds)" if page == "/query" else "library.pthread_mutex_lock(mutex)") in request["stack"]
        assert "gunicorn" not in request["stack"]
        assert found["uptime_s"] > TIMEOUT_S
        assert found["requests_served"] >= 1
        assert "a-secret" not in json.dumps(found)

        said = service.command("postmortem", "dying.ini", found["id"][:12])
        assert f"GET {page}/17 was in flight for" in said
        assert "connection.execute(" in said
        log = service.server.output()
        assert f"(pid {found['pid']}) was lost" in log
        assert "killed by the arbiter" in log
        assert log.count(f"post-mortem {found['pid']}-") == 1

        service.collector.wait_for(lambda it: bool(lost(it)) and any("lost" in one.event_name for one in it.logs))
        assert lost(service.collector) == {"timeout": 1}
        (record,) = [one for one in service.collector.logs if one.event_name == "paste_agent.worker.lost"]
        assert record.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
        assert f"GET {page}/17 was in flight" in record.body.string_value
        assert "connection.execute(" in attributes_of(record.attributes)["code.stacktrace"]
        (span,) = [one for one in service.collector.spans if one.span_id == record.span_id][-1:]
        assert span.parent_span_id.hex() == "b7ad6b7169203331"
        assert span.status.code == span.status.STATUS_CODE_ERROR
        assert span.status.message == "worker lost: timeout"
        assert service.server.stop() == 0


def test_timeout_in_a_computation(tmp_path: Path) -> None:
    with dying(tmp_path) as service:
        service.ask("/compute")
        (found,) = service.postmortems()
        assert found["reason"] == "timeout"
        assert "sum(range(1000))" in only(found["requests"])["stack"]


@classes("sync", "gthread", "gevent", "eventlet")
def test_killed_while_serving(tmp_path: Path, worker_class: str) -> None:
    with dying(tmp_path, worker_class=worker_class, timeout="30") as service:
        asking = service.ask_without_waiting("/hang/4")
        service.server.wait_for_output("in flight for")
        line = next(line for line in service.server.output().splitlines() if "in flight for" in line)
        assert "GET /hang/4 in flight for" in line
        assert "dying_app.py" in line
        (pid,) = service.server.workers()
        os.kill(pid, signal.SIGKILL)
        asking.join()
        (found,) = service.postmortems()
        assert (found["reason"], found["pid"]) == ("signal", pid)
        assert "ended by SIGKILL" in found["evidence"]
        request = only(found["requests"])
        assert (request["method"], request["path"], request["route"]) == ("GET", "/hang/4", "/hang/{number}")
        assert "time.sleep(6)" in request["stack"]
        wait_for(lambda: service.ask("/") == 200, "the next worker")
        assert lost_in_the_end(service) == {"signal": 1}


def lost_in_the_end(service: Dying) -> dict[str, int]:
    """After an orderly stop, when everything has been sent."""
    assert service.server.stop() == 0
    return lost(service.collector)


@pytest.mark.parametrize(
    ("page", "reason", "evidence", "line"),
    [
        ("/crash", "signal", "ended by SIGSEGV", "ctypes.string_at(0)"),
        ("/leave", "exit", "ended with exit status 7", ""),
    ],
)
@pytest.mark.parametrize("worker_class", ["sync", "gthread"])
def test_died_by_its_own_hand(
    tmp_path: Path, worker_class: str, page: str, reason: str, evidence: str, line: str
) -> None:
    with dying(tmp_path, worker_class=worker_class) as service:
        assert service.ask(f"{page}/1") == 0
        (found,) = service.postmortems()
        assert found["reason"] == reason
        assert evidence in found["evidence"]
        request = only(found["requests"])
        assert request["path"] == f"{page}/1"
        assert line in request["stack"]


def test_out_of_memory(tmp_path: Path) -> None:
    with memory_group(128 * MIB) as group:
        (tmp_path / "gunicorn.conf.py").write_text(
            "import os\n"
            "def post_fork(server, worker):\n"
            "    with open(os.environ['PROCS'], 'w') as file:\n"
            "        file.write(str(os.getpid()))\n"
        )
        with dying(tmp_path, env={"PROCS": str(group.procs)}, workers="2", timeout="30") as service:
            assert service.ask("/eat/1") == 0
            (found,) = service.postmortems()
            assert found["reason"] == "out_of_memory"
            assert only(found["requests"])["path"] == "/eat/1"
            assert found["memory_bytes"] > 0
            assert lost_in_the_end(service) == {"out_of_memory": 1}


def test_a_request_that_was_slow_and_ended_well_says_where_the_time_went(tmp_path: Path) -> None:
    with dying(tmp_path, timeout="30") as service:
        assert service.ask("/slow/3") == 200
        service.collector.wait_for(lambda it: any("/slow" in one.name for one in it.spans))
        (span,) = [one for one in service.collector.spans if "/slow" in one.name]
        attributes = attributes_of(span.attributes)
        assert "time.sleep(2.5)" in attributes["code.stacktrace"]
        assert attributes["paste_agent.stack.age"] > 1
        assert service.report()["postmortems"] == []


@classes("gthread", "gevent", "eventlet")
def test_what_hangs_and_is_not_killed_is_told_of(tmp_path: Path, worker_class: str) -> None:
    """Once a threshold, while it lasts: 2 s here, and then 4 s."""
    with dying(tmp_path, worker_class=worker_class) as service:
        assert service.ask("/hang/4") == 200
        lines = [line for line in service.server.output().splitlines() if "GET /hang/4 in flight for" in line]
        assert len(lines) == 2
        assert all("time.sleep" not in line and "dying_app.py" in line for line in lines)


def test_the_arbiter_tells_what_only_it_knows(tmp_path: Path) -> None:
    """Recycling, and the time from fork to ready, which counts the starts."""
    with dying(tmp_path, timeout="30", max_requests="10") as service:
        for _ in range(34):
            wait_for(lambda: service.ask("/") == 200, "an answer")
        assert service.server.stop() == 0
        (recycled,) = service.collector.last_points("paste_agent.worker.recycled")
        assert recycled[0] == {"reason": "max_requests"}
        (booted,) = service.collector.last_points("paste_agent.worker.boot.duration")
        # The first request was the fixture's: 35 in all, and one worker that was still at work.
        assert (recycled[1].as_int, booted[1].count) == (3, 4)
        assert lost(service.collector) == {}


def test_a_worker_that_cannot_boot_is_counted(tmp_path: Path) -> None:
    (tmp_path / "gunicorn.conf.py").write_text(
        "import os\n"
        "def post_worker_init(worker):\n"
        "    if os.path.exists('broken'):\n"
        "        raise RuntimeError('on purpose')\n"
    )
    with dying(tmp_path) as service:
        (tmp_path / "broken").touch()
        (pid,) = service.server.workers()
        os.kill(pid, signal.SIGKILL)
        service.server.process.wait(30)
        service.collector.wait_for(lambda it: "boot" in lost(it))
        assert lost(service.collector) == {"boot": 1, "signal": 1}
