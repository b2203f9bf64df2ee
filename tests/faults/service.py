"""A service that faults are applied to, in each way that gunicorn can be started from an ini.

    service = Service(tmp_path, PasteAgent(), Shape("gthread"))
    with service.start(receiver.endpoint) as server:
        ...

Everything that it needs and leaves lies in that directory.
"""

from __future__ import annotations

import configparser
import io
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from paste_agent.errors import StoreError
from paste_agent.lease import Holder, Lease
from paste_agent.recorder import layout
from paste_agent.runtime_dir import LEASE
from paste_agent.store.store import Counters, Store
from tests.faults.verdict import Counts
from tests.recorders import requests_of
from tests.serving import NO_CONTROL_SOCKET, PATIENCE_S, Served, environment, run, serve, wait_for

APPLICATION = Path(__file__).with_name("wsgi_app.py")

SERVES = "this worker serves"
#: In a file, since an arbiter that upgrades itself starts the same command line again.
_RUN = {
    "gunicorn_paster": "from paste_agent.server.gunicorn_paster import run; run()",
    "gunicorn": "from gunicorn.app.wsgiapp import run; run()",
    "pserve": "import sys; from pyramid.scripts.pserve import main; sys.exit(main())",
}
_ARGUMENTS = {
    "gunicorn_paster": ["faults.ini"],
    "gunicorn": ["--paste", "faults.ini"],
    "pserve": ["faults.ini"],
}
WAYS = tuple(_RUN)

#: A worker says when it serves: a signal that gunicorn sends to one that still boots is lost.
_CONF = f"""\
def post_worker_init(worker):
    worker.log.info("{SERVES}")
"""
_INI = """\
[app:service]
use = call:wsgi_app:factory
{app}
{sections}
[pipeline:main]
pipeline = {pipeline}

[server:main]
use = egg:paste_agent
{server}
"""


@dataclass(frozen=True)
class Shape:
    """How the service runs."""

    worker_class: str = "sync"
    way: str = "gunicorn_paster"
    workers: int = 2
    preload: bool = False
    warm: str = ""  #: name of a background task that runs while the application is loaded
    gunicorn: Mapping[str, str] = field(default_factory=dict)  #: further settings of gunicorn
    hooks: str = ""  #: added to gunicorn.conf.py

    def __str__(self) -> str:
        words = [self.way, self.worker_class, f"{self.workers} workers", *(["preload"] if self.preload else [])]
        return ", ".join([*words, *(f"{name}={value}" for name, value in self.gunicorn.items())])

    @property
    def answers_exceptions(self) -> bool:
        """Tornado logs what a WSGI application raises, and leaves its client waiting for ever."""
        return self.worker_class != "tornado"

    @property
    def waits_for_children(self) -> bool:
        """Under gunicorn's gevent os.fork and subprocess hang in a request, with or without an agent."""
        return self.worker_class not in ("gevent", "eventlet")

    @property
    def server_settings(self) -> dict[str, str]:
        """All that gunicorn is told."""
        threads = {"threads": "4"} if self.worker_class == "gthread" else {}
        return {
            "bind": "127.0.0.1:0",
            "workers": str(self.workers),
            "worker_class": self.worker_class,
            "preload_app": str(self.preload).lower(),
            "pidfile": "gunicorn.pid",
            "graceful_timeout": "5",
            **threads,
            **({"control_socket_disable": "true"} if NO_CONTROL_SOCKET else {}),
            **self.gunicorn,
        }


class Subject(Protocol):
    """What counts the requests: an agent, as its documentation says that it is set up."""

    name: str

    def sections(self, directory: Path) -> str:
        """Of the ini; may leave further files in the directory."""

    def pipeline(self) -> str:
        """Of the ini's filters, before the application."""

    def environment(self, endpoint: str | None) -> dict[str, str]:
        """With which the service starts. endpoint: of the collector's OTLP/HTTP."""

    def stored(self, directory: Path) -> Counts | None:
        """What its store holds; None: it has none, and what the collector got is all."""

    def recover(self, directory: Path) -> None:
        """Count what a service that was killed has left, where nothing else does."""

    def troubles(self, directory: Path, output: str) -> list[str]:
        """What it did wrong beside counting."""


@dataclass
class PasteAgent:
    """This project's agent. settings: further keys of its section. damaged: its recorders are, on purpose."""

    settings: Mapping[str, str] = field(default_factory=dict)
    damaged: bool = False
    name: str = "paste-agent"

    def sections(self, directory: Path) -> str:
        keys = {
            "store": f"{directory}/store.sqlite",
            "runtime_dir": f"{directory}/run",
            # That the last export fits into the 2 s of the default is a matter of the machine; what is asked here is
            # whether it is exact.
            "shutdown_timeout_s": "20",
            **self.settings,
        }
        return "[filter:agent]\nuse = egg:paste_agent\nservice_name = faults\n" + "".join(
            f"{name} = {value}\n" for name, value in keys.items()
        )

    def pipeline(self) -> str:
        return "agent"

    def environment(self, endpoint: str | None) -> dict[str, str]:
        if endpoint is None:
            return {}
        # Often: a fault is to find an export under way.
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_METRIC_EXPORT_INTERVAL": "300",
            "OTEL_BSP_SCHEDULE_DELAY": "300",
        }

    def stored(self, directory: Path) -> Counts:
        store = Store(str(directory / "store.sqlite"), read_only=True)
        try:
            return requests_of(store)
        finally:
            store.close()

    def recover(self, directory: Path) -> None:
        command = [sys.executable, "-c", "from paste_agent.cli.main import run; run()", "report", "--json"]
        status, _out, err = run([*command, "faults.ini"], directory, environment())
        assert status == 0, err

    def troubles(self, directory: Path, output: str) -> list[str]:
        found = [f"it said: {line}" for line in output.splitlines() if "a fault of the agent" in line]
        found += [f"it said: {line}" for line in output.splitlines() if "exporting stopped" in line]
        for (name, attributes), value in counters_of(directory).items():
            if self.damaged and BAD_RECORDER in attributes:
                continue
            # A number that a killed process had taken and not written is the request that it was about to count.
            if name == "paste_agent.internal.errors" or (
                name == "paste_agent.records.dropped" and "unwritten" not in attributes
            ):
                found.append(f"{name} {attributes} is {value}")
        return found


@dataclass
class OwnIni(PasteAgent):
    """Somebody's service, as its ini has it, with a store, a runtime directory and an address of its own.

    path: of the ini; what it names by `%(here)s` is found, what it names relative to itself otherwise is not.
    requests: pages to ask for, such as "GET /".
    """

    path: Path = Path("production.ini")
    requests: Sequence[str] = ("GET /",)

    def text(self, directory: Path, shape: Shape) -> str:
        """A copy of the ini for `directory`. Raises ValueError where the agent is in no section of it."""
        parser = configparser.RawConfigParser(delimiters=("=",), comment_prefixes=("#", ";"), strict=False)
        parser.optionxform = str  # type: ignore[assignment,method-assign]  # keys keep their case
        parser.read_string(self.path.read_text().replace("%(here)s", str(self.path.resolve().parent)))
        agents = [name for name in parser.sections() if parser.get(name, "use", fallback="").startswith(_AGENT)]
        filters = [name for name in agents if name.startswith("filter")]
        if not filters:
            raise ValueError(f"{self.path}: no section has `use = {_AGENT}`")
        for name in filters:
            own = {"service_name": "faults", "store": f"{directory}/store.sqlite", "runtime_dir": f"{directory}/run"}
            for key in [key for key in parser[name] if key.endswith(("endpoint", "interval_s"))]:
                parser.remove_option(name, key)
            parser[name].update(own)
        if not parser.has_section("server:main"):
            parser.add_section("server:main")
        for key in ("host", "port", "config", "logconfig"):
            parser.remove_option("server:main", key)
        parser["server:main"].update(shape.server_settings)
        for name in [name for name in parser.sections() if name.startswith(("logger", "handler", "formatter"))]:
            parser.remove_section(name)  # the trial reads what is logged
        written = io.StringIO()
        parser.write(written)
        return written.getvalue()

    def environment(self, endpoint: str | None) -> dict[str, str]:
        path = os.pathsep.join([str(self.path.resolve().parent), environment()["PYTHONPATH"]])
        return {**super().environment(endpoint), "PYTHONPATH": path}


_AGENT = "egg:paste_agent"
#: Reason of paste_agent.internal.errors: a file that is no recorder, or not any more.
BAD_RECORDER = "bad_recorder"


# -- what lies in the service's directory --------------------------------------------------------------------------


def counters_of(directory: Path) -> Counters:
    """The store's counters; none where there is no store that can be read."""
    try:
        store = Store(str(directory / "store.sqlite"), read_only=True)
    except StoreError:
        return {}
    try:
        return store.counters()
    finally:
        store.close()


def runtime_dir(directory: Path) -> Path:
    """Where the service's recorders lie."""
    (found,) = (directory / "run").iterdir()
    return found


def recorders_in(directory: Path) -> list[Path]:
    return sorted(runtime_dir(directory).glob(f"*{layout.SUFFIX}"))


def lead_pid(directory: Path) -> int | None:
    """Pid of the process that leads, which its recorder's name begins with; None while nobody does."""
    run_dir = directory / "run"
    if not run_dir.is_dir() or not any(run_dir.iterdir()):
        return None
    lease = Lease(str(runtime_dir(directory) / LEASE), Holder("", 0))
    holder = lease.holder()
    if holder is None or not holder.recorder:
        return None
    pid = int(holder.recorder.partition("-")[0])
    return pid if is_alive(pid) else None


def is_alive(pid: int) -> bool:
    """Whether it runs: one that is dead and not yet reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Service:
    """A service in a directory of its own; may be started again and again."""

    def __init__(self, directory: Path, subject: Subject, shape: Shape) -> None:
        self.directory = directory
        self.subject = subject
        self.shape = shape
        self.server: Served | None = None
        self._port: int | None = None
        self.output = ""  #: of former starts
        directory.mkdir(exist_ok=True)
        shutil.copy(APPLICATION, directory / "wsgi_app.py")
        (directory / "run.py").write_text(_RUN[shape.way] + "\n")
        # gunicorn itself reads its settings from here, and the others theirs from the ini.
        server = shape.server_settings
        conf = "".join(f"{name} = {value!r}\n" for name, value in server.items()) if shape.way == "gunicorn" else ""
        (directory / "gunicorn.conf.py").write_text(conf + _CONF + shape.hooks)
        text = _INI.format(
            app=f"warm = {shape.warm}" if shape.warm else "",
            sections=subject.sections(directory),
            pipeline=f"{subject.pipeline()} service",
            server="".join(f"{name} = {value}\n" for name, value in server.items() if shape.way != "gunicorn"),
        )
        if isinstance(subject, OwnIni):
            text = subject.text(directory, shape)
        (directory / "faults.ini").write_text(text)

    @property
    def command(self) -> list[str]:
        return [sys.executable, "run.py", *_ARGUMENTS[self.shape.way]]

    @contextmanager
    def start(
        self, endpoint: str | None = None, *, prefix: Sequence[str] = (), env: Mapping[str, str] | None = None
    ) -> Iterator[Served]:
        """endpoint: of the collector. prefix: of the command. env: added to its environment."""
        variables = {**environment(), **self.subject.environment(endpoint), **(env or {})}
        with serve([*prefix, *self.command], self.directory, variables) as server:
            self._port, self.server = None, server
            try:
                yield server
            finally:
                self.output += server.output()
                self.server = None

    def port(self) -> int | None:
        """Where it listens; None while it does not run. Looked up once a start: its output grows long."""
        server = self.server
        if server is None:
            return None
        if self._port is None:
            self._port = server.port
        return self._port


def kill(pid: int) -> None:
    """SIGKILL to a process of the service that may be gone already; it is gone afterwards."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    wait_for(lambda: not is_alive(pid), f"the end of {pid}", poll_s=0.001)


def kill_all(server: Served) -> None:
    """SIGKILL to the arbiter and then to all of its group, so that nothing is started again in between."""
    os.kill(server.pid, signal.SIGKILL)
    os.killpg(server.pid, signal.SIGKILL)
    server.process.wait(PATIENCE_S)


def wait_until_gone(pids: list[int]) -> None:
    wait_for(lambda: not any(map(is_alive, pids)), f"the end of {pids}")
