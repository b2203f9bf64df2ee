"""A Django project under `gunicorn_django` and `manage.py run_gunicorn`, on real gunicorn."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest

from paste_agent.store.store import Store
from tests.recorders import requests_of
from tests.serving import NO_CONTROL_SOCKET, Served, children_of, environment, run, serve, wait_for

MANAGE = """
import os, sys
from django.core.management import execute_from_command_line

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
    sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "apps"))
    execute_from_command_line(sys.argv)
"""
SETTINGS = """
import sys
sys.path.append({apps!r})
SECRET_KEY = "of a test"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "shop.urls"
INSTALLED_APPS = ["paste_agent.django", "basket"]
USE_TZ = True
"""
URLS = """
from django.urls import path
from shop import views

urlpatterns = [path("items/<int:pk>/", views.item), path("hang/", views.hang)]
"""
VIEWS = """
import time
from pathlib import Path
from django.conf import settings
from django.http import HttpResponse

def item(request, pk):
    return HttpResponse(f"first {settings.SETTINGS_MODULE} {request.META.get('shop.wsgi')}")

def hang(request):
    Path("hangs").touch()
    time.sleep(300)
"""
WSGI = """
from django.core.wsgi import get_wsgi_application
from shop.prices import price

inner = get_wsgi_application()

def application(environ, start_response):
    environ["shop.wsgi"] = price()
    return inner(environ, start_response)
"""

#: In a file, since an arbiter that upgrades itself starts the same command line again.
START = "import sys; del sys.path[0]; from paste_agent.server.gunicorn_django import run; run()\n"
COMMANDS = {"gunicorn_django": ["start.py"], "run_gunicorn": ["manage.py", "run_gunicorn"]}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """As Django makes one, and an application that only manage.py and the settings know where to find."""
    tmp_path.chmod(0o700)
    here = tmp_path / "www"
    files = {
        "manage.py": MANAGE,
        "start.py": START,
        "shop/__init__.py": "",
        "shop/settings.py": SETTINGS.format(apps=str(here / "apps")),
        "shop/live.py": "from shop.settings import *\nWSGI_APPLICATION = 'shop.wsgi.application'\n",
        "shop/urls.py": URLS,
        "shop/views.py": VIEWS,
        "shop/wsgi.py": WSGI,
        "shop/prices.py": "def price():\n    return 7\n",
        "apps/basket/__init__.py": "",
    }
    for name, text in files.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(text)
    return here


def env(project: Path, **more: str) -> dict[str, str]:
    state = {"XDG_STATE_HOME": str(project.parent), "PASTE_AGENT_RUNTIME_DIR": str(project.parent / "run")}
    variables = environment(PYTHONDONTWRITEBYTECODE="1", PASTE_AGENT_SHUTDOWN_TIMEOUT_S="20", **state)
    return {**{name: text for name, text in variables.items() if name != "DJANGO_SETTINGS_MODULE"}, **more}


def command(way: str, *options: str) -> list[str]:
    return [sys.executable, *COMMANDS[way], *NO_CONTROL_SOCKET, *options]


def store_of(project: Path, service: str = "shop") -> Path:
    return project.parent / "paste-agent" / f"{service}.sqlite"


def get(url: str) -> str:
    with urllib.request.urlopen(f"{url}/items/7/", timeout=60) as response:
        text: str = response.read().decode()
    return text


def replaced(server: Served, before: list[int]) -> None:
    """Wait until only other workers than those serve."""
    server.wait_for(lambda: server.workers() and not set(before) & set(server.workers()), "other workers")


def hang(url: str) -> None:
    with pytest.raises((OSError, urllib.error.URLError)):
        urllib.request.urlopen(f"{url}/hang/", timeout=60)


# -- serving -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "options"),
    [
        ("gunicorn_django", ["--bind", "127.0.0.1:0"]),
        ("gunicorn_django", ["--bind", "127.0.0.1:0", "-k", "gevent", "--preload"]),
        ("run_gunicorn", ["0", "--preload"]),
        ("run_gunicorn", ["-k", "gevent", "127.0.0.1:0"]),
    ],
)
def test_served_and_counted(project: Path, way: str, options: list[str]) -> None:
    """Each request once, in all that a worker's life may bring; and of what the one died that was killed."""
    (project / "gunicorn.conf.py").write_text(
        "def on_exit(server):\n    server.log.info('the hook of the project')\n"
        "def post_worker_init(worker):\n    worker.log.info('it serves')\n"
    )
    with serve(command(way, *options), project, env(project)) as server:
        url = server.url
        for _ in range(3):
            assert get(url) == "first shop.settings None"
        hanging = threading.Thread(target=hang, args=(url,))
        hanging.start()
        server.wait_for((project / "hangs").exists, "a request that hangs")
        (killed,) = server.workers()
        os.kill(killed, signal.SIGKILL)
        hanging.join()
        replaced(server, [killed])
        server.wait_for_output("it serves", times=2)
        assert get(url) == "first shop.settings None"
        before = server.workers()
        server.send(signal.SIGHUP)
        server.wait_for_output("it serves", times=3)
        replaced(server, before)
        assert get(url) == "first shop.settings None"
        assert server.stop() == 0
        assert "the hook of the project" in server.output()
        assert "a fault of the agent" not in server.output()
    with closing(Store(str(store_of(project)), read_only=True)) as store:
        assert requests_of(store) == {("GET", "/items/<int:pk>/", 200): 5}
        (died,) = store.postmortems(0, time.time() + 1, 10)
    assert died.reason == "signal"
    assert "ended by SIGKILL" in str(died.summary["evidence"])  # which the arbiter alone knows
    assert "/hang/" in str(died.summary)


@pytest.mark.parametrize("way", COMMANDS)
def test_a_reload_brings_the_project_anew(project: Path, way: str) -> None:
    options = ["--bind", "127.0.0.1:0"]
    (project / "gunicorn.conf.py").write_text("def post_worker_init(worker):\n    worker.log.info('it serves')\n")
    with serve(command(way, *options), project, env(project)) as server:
        server.wait_for_output("it serves")
        assert get(server.url) == "first shop.settings None"  # Django imports urls.py over the first request
        for name in ("views.py", "urls.py", "settings.py"):
            text = (project / "shop" / name).read_text()
            changed = text.replace("first", "second").replace("items/", "wares/").replace("basket", "trolley")
            (project / "shop" / name).write_text(changed)
        server.send(signal.SIGHUP)
        server.wait_for_output(
            "Not reloaded, the running configuration stays: shop.settings: No module named 'trolley'"
        )
        assert get(server.url) == "first shop.settings None"

        before = server.workers()
        (project / "apps" / "basket").rename(project / "apps" / "trolley")
        server.send(signal.SIGHUP)
        replaced(server, before)
        server.wait_for_output("it serves", times=2)
        with urllib.request.urlopen(f"{server.url}/wares/7/", timeout=60) as response:
            assert response.read() == b"second shop.settings None"
        assert server.stop() == 0
    with closing(Store(str(store_of(project)), read_only=True)) as store:
        counted = {("GET", "/items/<int:pk>/", 200): 2, ("GET", "/wares/<int:pk>/", 200): 1}
        assert requests_of(store) == counted


def test_an_upgrade_starts_the_command_again(project: Path) -> None:
    second = project / "gunicorn.pid.2"
    with serve(command("run_gunicorn", "0", "-p", "gunicorn.pid", "-v", "2"), project, env(project)) as server:
        url = server.url
        server.send(signal.SIGUSR2)
        server.wait_for(lambda: second.exists() and second.read_text().strip(), "a second arbiter")
        pid = int(second.read_text())
        wait_for(lambda: children_of(pid), "its worker")
        assert server.stop() == 0
        assert get(url) == "first shop.settings None"
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: server.output().count("Shutting down: Master") == 2, "the end of the second")
    with closing(Store(str(store_of(project)), read_only=True)) as store:
        assert requests_of(store) == {("GET", "/items/<int:pk>/", 200): 1}


@pytest.mark.parametrize("way", COMMANDS)
def test_switched_off(project: Path, way: str) -> None:
    with serve(command(way, "--bind", "127.0.0.1:0"), project, env(project, PASTE_AGENT_ENABLED="false")) as server:
        assert get(server.url) == "first shop.settings None"
        assert server.stop() == 0
    assert not store_of(project).exists()
    assert not (project.parent / "run").exists()


def test_settings_of_the_agent_in_a_file(project: Path) -> None:
    """Found from where the command was given, though the project is served from elsewhere."""
    (project.parent / "agent.ini").write_text(
        "[paste_agent]\nstore = here.sqlite\ntrace_functions = shop.prices:price\n"
    )
    options = ["--chdir", str(project), "--bind", "127.0.0.1:0", "--settings", "shop.live"]
    variables = env(project, PASTE_AGENT_CONFIG_FILE="agent.ini")
    start = [sys.executable, str(project / "start.py"), *NO_CONTROL_SOCKET]
    with serve([*start, *options], project.parent, variables) as server:
        assert get(server.url) == "first shop.live 7"
        assert server.stop() == 0
    with closing(Store(str(project.parent / "here.sqlite"), read_only=True)) as store:
        assert requests_of(store) == {("GET", "/items/<int:pk>/", 200): 1}
        (trace,) = store.traces(0, time.time() + 1, "newest", False, 10)  # the first one is kept
    spans = str(trace.detail)
    assert "shop.views.item" in spans
    assert "shop.prices.price" in spans  # which wsgi.py took hold of while it was imported


# -- which project, and how it is told ------------------------------------------------------------------------------


def configured(project: Path, way: str, *arguments: str, **variables: str) -> dict[str, str]:
    """What --print-config prints; it loads the application as well."""
    status, out, err = run(command(way, "--print-config", *arguments), project, env(project, **variables))
    assert (status, err) == (0, "")
    pairs = (line.partition("=") for line in out.splitlines())
    return {name.strip(): text.strip() for name, _, text in pairs}


@pytest.mark.parametrize(
    ("arguments", "variables", "conf", "settings"),
    [
        ([], {}, "", "shop.settings"),
        (["../www"], {"DJANGO_SETTINGS_MODULE": "shop.live"}, "", "shop.live"),
        (["shop/live.py"], {"DJANGO_SETTINGS_MODULE": "shop.nothing"}, "", "shop.live"),
        (["--settings", "shop.live"], {}, "django_settings = 'shop.nothing'\n", "shop.live"),
        (["shop.live"], {"GUNICORN_CMD_ARGS": "--settings shop.nothing"}, "django_settings = 'shop.no'\n", "shop.live"),
        ([], {"GUNICORN_CMD_ARGS": "--settings shop.live"}, "django_settings = 'shop.nothing'\n", "shop.live"),
        ([], {}, "django_settings = 'shop.live'\n", "shop.live"),
        (["-e", "DJANGO_SETTINGS_MODULE=shop.live"], {}, "", "shop.live"),
        (["--pythonpath", "elsewhere", "outside"], {}, "", "outside"),
    ],
)
def test_forms_of_the_argument(
    project: Path, arguments: list[str], variables: dict[str, str], conf: str, settings: str
) -> None:
    (project / "gunicorn.conf.py").write_text(conf)
    (project / "elsewhere").mkdir()
    (project / "elsewhere" / "outside.py").write_text("from shop.settings import *\n")
    found = configured(project, "gunicorn_django", *arguments, **variables)
    assert found["default_proc_name"] == settings


def test_each_source_is_stronger_than_the_one_before(project: Path) -> None:
    (project / "gunicorn.conf.py").write_text("backlog = timeout = keepalive = 40\nraw_env = ['A=1']\n")
    for way in COMMANDS:
        variables = {"GUNICORN_CMD_ARGS": "--timeout 42 --keep-alive 42"}
        settings = configured(project, way, "--keep-alive", "43", **variables)
        assert [settings[name] for name in ("backlog", "timeout", "keepalive")] == ["40", "42", "43"]
        assert settings["raw_env"] == "['A=1', 'DJANGO_SETTINGS_MODULE=shop.settings']"


# -- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "arguments", "status", "line"),
    [
        ("gunicorn_django", ["apps"], 1, "Error: {here}/apps: no Django project: "),
        ("gunicorn_django", ["nowhere.settings"], 1, "Error: nowhere.settings: no module nowhere in {here}"),
        ("gunicorn_django", ["shop.nothing"], 1, "Error: shop.nothing: No module named 'shop.nothing'"),
        ("gunicorn_django", ["--worker-class", "nosuch"], 1, "Error: worker_class = 'nosuch': "),
        ("gunicorn_django", ["--bind", "a:b"], 1, "Error: 'b' is not a valid port number."),
        ("gunicorn_django", ["--workers", "many"], 2, "gunicorn_django: error: argument -w/--workers: invalid int"),
        ("gunicorn_django", ["a", "b"], 2, "gunicorn_django: error: give one project directory or settings module"),
        ("run_gunicorn", ["70000"], 1, "CommandError: addrport = '70000': expected a port"),
        ("run_gunicorn", ["-b", ":0", "8000"], 1, "CommandError: --bind and 8000: both say where to listen"),
        ("run_gunicorn", ["--workers", "many"], 2, "manage.py run_gunicorn: error: argument -w/--workers: invalid int"),
        ("run_gunicorn", ["--worker-class", "nosuch"], 1, "Error: worker_class = 'nosuch': "),
    ],
)
def test_what_is_wrong_is_one_line(project: Path, way: str, arguments: list[str], status: int, line: str) -> None:
    check = ["--check-config"] if status == 1 and "b" not in arguments else []
    ended, out, err = run(command(way, *check, *arguments), project, env(project))
    assert (ended, out) == (status, ""), err
    said = [text for text in err.splitlines() if text and not text.startswith("usage: ")]
    assert len(said) == 1, err
    assert said[0].startswith(line.format(here=project)), err


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ("WSGI_APPLICATION = 'shop.nothing'", "shop.settings: WSGI_APPLICATION = 'shop.nothing': "),
        ("WSGI_APPLICATION = 'shop.wsgi.nothing'", "shop.settings: WSGI_APPLICATION = 'shop.wsgi.nothing': "),
        ("WSGI_APPLICATION = 'shop.urls.urlpatterns'", "WSGI_APPLICATION = 'shop.urls.urlpatterns': names nothing"),
        ("INSTALLED_APPS = ['nothing']", "shop.settings: No module named 'nothing'"),
        ("INSTALLED_APPS = ['basket', 'basket']", "shop.settings: Application labels aren't unique"),
    ],
)
def test_settings_that_name_what_there_is_not(project: Path, settings: str, line: str) -> None:
    with (project / "shop" / "settings.py").open("a") as file:
        file.write(settings)
    status, _out, err = run(command("gunicorn_django", "--bind", "127.0.0.1:0"), project, env(project))
    assert status == 1
    assert "Traceback" not in err
    (said,) = [text for text in err.splitlines() if text.startswith("Error: ")]
    assert line in said


def test_a_fault_within_the_settings_keeps_its_traceback(project: Path) -> None:
    for text in ("import nothing\n", "1/0\n", "if\n"):
        (project / "shop" / "settings.py").write_text(text)
        status, _out, err = run(command("gunicorn_django", "--bind", "127.0.0.1:0"), project, env(project))
        assert status == 3
        assert err.count("Traceback (most recent call last)") == 1
        assert 'shop/settings.py", line 1' in err


def test_without_django(project: Path) -> None:
    code = "import sys; sys.modules['django'] = None; from paste_agent.server.gunicorn_django import run; run()"
    status, _out, err = run([sys.executable, "-c", code], project, env(project))
    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith("Error: Django is not installed here; pip install 'paste-agent[django]'")


def test_wrong_settings_of_the_agent(project: Path) -> None:
    for way in COMMANDS:
        status, _out, err = run(command(way), project, env(project, PASTE_AGENT_APDEX_T_S="soon"))
        assert (status, err.count("\n")) == (1, 1)
        assert err.startswith("Error: PASTE_AGENT_APDEX_T_S = 'soon': ")


def test_called_by_other_code(project: Path) -> None:
    """It would be replaced by a server, with all that it was about to do."""
    code = (
        "import django; django.setup(); from django.core.management import call_command; call_command('run_gunicorn')"
    )
    status, _out, err = run([sys.executable, "-c", code], project, env(project, DJANGO_SETTINGS_MODULE="shop.settings"))
    assert status == 1
    assert "CommandError: run_gunicorn replaces its process" in err
