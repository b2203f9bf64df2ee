"""Every way to start a program with the agent on board, by its row in docs/starting.md, and what it takes to try it."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from paste_agent.aggregate import REQUEST_DURATION
from paste_agent.store.store import Store
from tests.serving import NO_CONTROL_SOCKET, NO_CONTROL_SOCKET_INI, ROOT, Served, children_of, environment, serve

BIN = Path(sys.executable).parent
PAGE = ROOT / "docs" / "starting.md"

APP = """
import os

def application(environ, start_response):
    path = environ["PATH_INFO"]
    environ["paste_agent.route"] = path
    if path == "/hang":
        while True:
            pass
    if path == "/child":
        import subprocess, sys
        code = "import sys; print(sorted(name for name in sys.modules if name.startswith('paste_agent')))"
        body = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout
    else:
        body = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]

def factory(global_conf, **local_conf):
    return application
"""
SERVE = """
import sys
from wsgiref.simple_server import make_server
from app import application
make_server("127.0.0.1", 0, application).serve_forever()
"""
FLASK = """
from flask import Flask
application = Flask(__name__)

@application.get("/<page>")
def page(page):
    return page
"""
DJANGO = {
    "manage.py": """
import os, sys
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
from django.core.management import execute_from_command_line
execute_from_command_line(sys.argv)
""",
    "shop/__init__.py": "",
    "shop/settings.py": """
SECRET_KEY = "of a test"
ALLOWED_HOSTS = ["127.0.0.1"]
INSTALLED_APPS = ["paste_agent.django"]
ROOT_URLCONF = "shop.urls"
""",
    "shop/urls.py": """
from django.http import HttpResponse
from django.urls import path
urlpatterns = [path("<page>", lambda request, page: HttpResponse(page))]
""",
}
BARE = "[app:main]\npaste.app_factory = app:factory\n"
WITH_AGENT = (
    "[pipeline:main]\npipeline = agent served\n[filter:agent]\nuse = egg:paste_agent\nservice_name = of_the_ini\n"
    "[app:served]\npaste.app_factory = app:factory\n"
)
#: A worker says when it serves: a signal that gunicorn sends to one that still boots is lost.
SERVES = "this worker serves"
CONF = f'def post_worker_init(worker):\n    worker.log.info("{SERVES}")\n'
# One worker: the one that has answered.
GUNICORN_INI = f"{NO_CONTROL_SOCKET_INI}host = 127.0.0.1\nport = 0\nworkers = 1\n"
GUNICORN_OPTIONS = (*NO_CONTROL_SOCKET, "--bind", "127.0.0.1:0", "--workers", "1")


def server(use: str) -> str:
    gunicorn = "gunicorn" in use or "paste_agent" in use
    return f"[server:main]\nuse = {use}\n" + (GUNICORN_INI if gunicorn else "host = 127.0.0.1\nport = 0\n")


@dataclass(frozen=True)
class Way:
    """How to try a row. command: as from a shell in a directory with `files` and app.py in it."""

    command: Sequence[str]
    service: str  #: name that it gets
    files: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    arbiter: bool = True  #: gunicorn's knows of the agent
    stop: signal.Signals = signal.SIGTERM
    routes: Mapping[str, int] = field(default_factory=lambda: {"/one": 1, "/two": 2})  #: of what is asked for


def run_program(*command: str) -> list[str]:
    return [str(BIN / "paste-agent"), "run-program", *command]


def django(command: Sequence[str]) -> Way:
    return Way(command, "shop", DJANGO, routes={"/<page>": 3})


#: By the first column of docs/starting.md.
WAYS: dict[str, Way] = {
    "gunicorn_paster shop.ini": Way(
        [str(BIN / "gunicorn_paster"), "shop.ini"],
        "of_the_ini",
        {"shop.ini": WITH_AGENT + server("egg:paste_agent")},
    ),
    "gunicorn --paste shop.ini": Way(
        [str(BIN / "gunicorn"), *GUNICORN_OPTIONS, "--paste", "shop.ini"],
        "of_the_ini",
        {"shop.ini": WITH_AGENT},
        arbiter=False,
    ),
    "pserve shop.ini, with egg:paste_agent": Way(
        [str(BIN / "pserve"), "shop.ini"], "of_the_ini", {"shop.ini": WITH_AGENT + server("egg:paste_agent")}
    ),
    "pserve shop.ini, with egg:gunicorn": Way(
        [str(BIN / "pserve"), "shop.ini"],
        "of_the_ini",
        {"shop.ini": WITH_AGENT + server("egg:gunicorn")},
        arbiter=False,
    ),
    "paster serve shop.ini, with egg:paste_agent": Way(
        [str(BIN / "paster"), "serve", "shop.ini"],
        "of_the_ini",
        {"shop.ini": WITH_AGENT + server("egg:paste_agent")},
    ),
    "paster serve shop.ini, with egg:gunicorn": Way(
        [str(BIN / "paster"), "serve", "shop.ini"],
        "of_the_ini",
        {"shop.ini": WITH_AGENT + server("egg:gunicorn")},
        arbiter=False,
    ),
    "paste-agent run-program gunicorn app:application": Way(
        run_program("gunicorn", *GUNICORN_OPTIONS, "app:application"), "app"
    ),
    "paste-agent run-program gunicorn_paster shop.ini": Way(
        run_program("gunicorn_paster", "shop.ini"), "shop", {"shop.ini": BARE + server("egg:paste_agent")}
    ),
    "paste-agent run-program gunicorn --paste shop.ini": Way(
        run_program("gunicorn", *GUNICORN_OPTIONS, "--paste", "shop.ini"), "shop", {"shop.ini": BARE}
    ),
    "paste-agent run-program pserve shop.ini": Way(
        run_program("pserve", "shop.ini"),
        "shop",
        {"shop.ini": BARE + server("egg:waitress")},
        arbiter=False,
        stop=signal.SIGINT,
    ),
    "paste-agent run-program pserve shop.ini, with egg:gunicorn": Way(
        run_program("pserve", "shop.ini"), "shop", {"shop.ini": BARE + server("egg:gunicorn")}
    ),
    "paste-agent run-program paster serve shop.ini": Way(
        run_program("paster", "serve", "shop.ini"),
        "shop",
        {"shop.ini": BARE + server("egg:Paste#http")},
        arbiter=False,
        stop=signal.SIGINT,
    ),
    "paste-agent run-program waitress-serve app:application": Way(
        run_program("waitress-serve", "--listen=127.0.0.1:0", "app:application"),
        "app",
        arbiter=False,
        stop=signal.SIGINT,
    ),
    "paste-agent run-program flask --app app run": Way(
        run_program("flask", "--app", "app", "run", "--port", "0"),
        "app",
        {"app.py": FLASK},
        arbiter=False,
        stop=signal.SIGINT,
        routes={"/<page>": 3},
    ),
    "paste-agent run-python -m gunicorn app:application": Way(
        [str(BIN / "paste-agent"), "run-python", "-m", "gunicorn", *GUNICORN_OPTIONS, "app:application"], "app"
    ),
    "paste-agent run-python serve.py": Way(
        [str(BIN / "paste-agent"), "run-python", "serve.py"],
        "serve",
        {"serve.py": SERVE},
        arbiter=False,
        stop=signal.SIGINT,
    ),
    "gunicorn_django shop": django([str(BIN / "gunicorn_django"), *GUNICORN_OPTIONS, "shop"]),
    "python manage.py run_gunicorn": django([sys.executable, "manage.py", "run_gunicorn", *GUNICORN_OPTIONS]),
    "paste-agent run-program gunicorn_django shop": django(run_program("gunicorn_django", *GUNICORN_OPTIONS, "shop")),
    "paste-agent run-program python manage.py run_gunicorn": django(
        run_program(sys.executable, "manage.py", "run_gunicorn", *GUNICORN_OPTIONS)
    ),
    "PASTE_AGENT_CONFIG_FILE=agent.ini paste-agent run-program gunicorn app:application": Way(
        run_program("gunicorn", *GUNICORN_OPTIONS, "app:application"),
        "of_the_file",
        {"agent.ini": "[paste_agent]\nservice_name = of_the_file\n"},
        {"PASTE_AGENT_CONFIG_FILE": "agent.ini"},
    ),
}


def rows() -> dict[str, list[str]]:
    """The table of docs/starting.md: the other columns, by what the first one says in code."""
    found: dict[str, list[str]] = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| `") and len(cells) > 1:
            found[re.sub("`", "", cells[0])] = cells[1:]
    return found


def variables(here: Path, **more: str) -> dict[str, str]:
    """The environment of a program that keeps all that the agent writes in `here`; nothing else of the agent's."""
    path = os.pathsep.join([str(BIN), os.environ.get("PATH", os.defpath)])
    own = {"PASTE_AGENT_STORE": f"{here}/store.sqlite", "PASTE_AGENT_RUNTIME_DIR": f"{here}/run"}
    # Not so that the agent is found: under run-program it is there without that.
    env = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
    return {**env, "PYTHONPATH": str(here), "PATH": path, "PYTHONDONTWRITEBYTECODE": "1", **own, **more}


@contextmanager
def started(
    here: Path, command: Sequence[str], files: Mapping[str, str] | None = None, env: Mapping[str, str] | None = None
) -> Iterator[tuple[Served, str]]:
    """A program in `here`, once it listens, and its URL without a slash at the end."""
    for name, text in {"app.py": APP, "gunicorn.conf.py": CONF, **(files or {})}.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(text)
    with serve(command, here, variables(here, **(env or {})), wait=False) as server:
        server.wait_for(lambda: port_of(server), "a port that is listened to")
        yield server, f"http://127.0.0.1:{port_of(server)}"
        assert "fault of the agent" not in server.output()


def port_of(server: Served) -> int:
    """That the program or a child of it listens at; 0 for none yet."""
    inodes = set()
    try:
        for pid in (server.pid, *children_of(server.pid)):
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):  # closed meanwhile
                    inodes.add(os.readlink(descriptor))
    except OSError:
        pass  # a process that has just gone
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if words[3] == "0A" and f"socket:[{words[9]}]" in inodes:
            return int(words[1].partition(":")[2], 16)
    return 0


def requests_in(here: Path) -> dict[str, int]:
    """Count of each route in the store."""
    with closing(Store(str(here / "store.sqlite"), read_only=True)) as store:
        found: Counter[str] = Counter()
        for one in store.totals():
            if one.metric == REQUEST_DURATION:
                found[str(one.attributes["http.route"])] += one.total.count
        return dict(found)


def metrics_in(here: Path) -> set[str]:
    with closing(Store(str(here / "store.sqlite"), read_only=True)) as store:
        return {one.metric for one in store.totals()}


def services_in(here: Path) -> list[str]:
    """Names of the services that have something in the runtime directory."""
    return sorted(path.name.rpartition("-")[0] for path in (here / "run").iterdir())
