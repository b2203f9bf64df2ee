"""The console script `gunicorn_paster`, on real gunicorn."""

from __future__ import annotations

import re
import signal
import textwrap
import urllib.request
from pathlib import Path

import pytest

from tests.serving import (
    GUNICORN_PASTER,
    NO_CONTROL_SOCKET,
    NO_CONTROL_SOCKET_INI,
    Served,
    environment,
    run,
    serve,
)

MYAPP = """
import os

def factory(global_conf, message="hello", **local_conf):
    def application(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [f"{message} {global_conf.get('colour', '')} {os.getcwd()}".encode()]
    return application

def failing(global_conf, **local_conf):
    raise KeyError("from within the application")

def refused(global_conf, **local_conf):
    from paste_agent.errors import SettingError
    raise SettingError("[filter:agent] report_interval_s", "5m", "expected seconds above 0, for example 60")
"""
APP = "[app:main]\nuse = call:myapp:factory\n"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A directory with an application module; servers start from a sister of it."""
    service = tmp_path / "service"
    service.mkdir()
    (service / "myapp.py").write_text(MYAPP)
    (tmp_path / "elsewhere").mkdir()
    return service


def ini(directory: Path, text: str, name: str = "a.ini") -> Path:
    path = directory / name
    path.write_text(textwrap.dedent(text))
    return path


def paster(*options: str | Path) -> list[str]:
    return [*GUNICORN_PASTER, *NO_CONTROL_SOCKET, "--bind", "127.0.0.1:0", *map(str, options)]


def get(server: Served) -> str:
    with urllib.request.urlopen(server.url, timeout=10) as response:
        text: str = response.read().decode()
    return text


def configured(path: Path, *options: str, cwd: Path | None = None, **env: str) -> tuple[dict[str, str], str]:
    """What --print-config prints, and stderr."""
    command = [*GUNICORN_PASTER, "--print-config", *options, str(path)]
    status, out, err = run(command, cwd or path.parent, environment(**env))
    assert status == 0, err
    return {key.strip(): value for key, value in re.findall(r"^(\w+) += ?(.*)$", out, re.M)}, err


def refused(here: Path, text: str, *options: str) -> str:
    """The one line on stderr with which the ini is refused."""
    status, _out, err = run([*paster(*options), str(ini(here, text))], here)
    assert (status, "Traceback" in err) == (1, False), err
    assert err.count("\n") == 1, err
    return err


# -- settings ------------------------------------------------------------------------------------------------------


def test_each_source_is_stronger_than_the_one_before(here: Path) -> None:
    path = ini(
        here,
        f"""\
        [DEFAULT]
        timeout = 41
        keepalive = 41
        backlog = 41
        max_requests = 41
        [server:main]
        keepalive = 42
        backlog = 42
        max_requests = 42
        {APP}""".replace(APP, APP.replace("\n", "\n        ")),
    )
    (here / "gunicorn.conf.py").write_text(
        "graceful_timeout = timeout = keepalive = backlog = max_requests = 40\nraw_paste_global_conf = ['x=1']\n"
    )
    settings, _err = configured(path, "--max-requests", "44", GUNICORN_CMD_ARGS="--backlog 43 --max-requests 43")
    names = ("threads", "graceful_timeout", "timeout", "keepalive", "backlog", "max_requests")
    assert [settings[name] for name in names] == ["1", "40", "41", "42", "43", "44"]
    assert settings["default_proc_name"] == str(path)


@pytest.mark.parametrize(
    ("keys", "bind"),
    [
        ("host = 127.0.0.2\nport = 81", "['127.0.0.2:81']"),
        ("host = 127.0.0.2:82, 127.0.0.3:83", "['127.0.0.2:82', '127.0.0.3:83']"),
        ("host = 127.0.0.2, ::1\nport = 84", "['127.0.0.2:84', '[::1]:84']"),
        ("port = 85", "['127.0.0.1:85']"),
        ("host = unix:/run/a.sock\nport = 86", "['unix:/run/a.sock']"),
        ("bind = 127.0.0.2:87\nhost = 127.0.0.3\nport = %(nothing)s", "['127.0.0.2:87']"),
        ("bind =\n  127.0.0.2:88\n  unix:/run/a.sock", "['127.0.0.2:88', 'unix:/run/a.sock']"),
    ],
)
def test_host_and_port_make_bind(here: Path, keys: str, bind: str) -> None:
    settings, _err = configured(ini(here, f"{APP}[server:main]\n{keys}\n"))
    assert settings["bind"] == bind


def test_a_key_is_interpolated_when_it_is_needed(here: Path) -> None:
    path = ini(
        here,
        f"{APP}[server:main]\nuse = egg:nobody_has_this#main\nhost = %(ip)s\nport = %(http_port)s\nworkers = %(nope)s\n"
        "pidfile = %(here)s/%(n)s.pid\nproc_name = 100%%\nthreads = 3\n",
    )
    globals_ = ("--paste-global", "http_port=8123", "--paste-global", "ip=127.0.0.9", "--paste-global", "n=9")
    settings, err = configured(path, "--workers", "5", *globals_)
    assert settings["bind"] == "['127.0.0.9:8123']"
    assert (settings["workers"], settings["threads"], settings["proc_name"]) == ("5", "3", "100%")
    assert settings["pidfile"] == f"{here}/9.pid"
    assert err == ""


def test_the_ini_names_a_configuration_file(here: Path) -> None:
    (here / "conf").mkdir()
    (here / "conf" / "g.py").write_text("import myapp\nworkers = threads = 6\n")
    path = ini(here, f"{APP}[server:main]\nconfig = conf/g.py\nthreads = 7\n")
    settings, _err = configured(path, cwd=here.parent)
    assert (settings["workers"], settings["threads"]) == ("6", "7")
    (here / "h.py").write_text("workers = 8\n")
    settings, _err = configured(path, "-c", str(here / "h.py"), cwd=here.parent)
    assert (settings["workers"], settings["threads"]) == ("8", "7")


def test_loggers_make_the_ini_the_log_configuration(here: Path) -> None:
    path = ini(here, APP + LOGGERS)
    assert configured(path)[0]["logconfig"] == str(path)
    assert configured(path, "--log-config", "other.ini")[0]["logconfig"] == "other.ini"
    assert configured(ini(here, APP, "b.ini"))[0]["logconfig"] == "None"


LOGGERS = """
[loggers]
keys = root, errors
[handlers]
keys = all
[formatters]
keys = plain
[logger_root]
level = INFO
handlers = all
[logger_errors]
qualname = gunicorn.error
handlers =
[handler_all]
class = FileHandler
args = ("%(here)s/all.log",)
formatter = plain
[formatter_plain]
format = ROOT %(message)s
"""


def test_an_unknown_key_is_a_warning(here: Path) -> None:
    path = ini(
        here, f"[DEFAULT]\nworker = 1\n{APP}[server:main]\nworker-class = sync\nurl_prefix_of_all = /x\nWORKERS = 3\n"
    )
    settings, err = configured(path)
    assert settings["workers"] == "3"
    assert err.splitlines() == [
        f"{path}: [server:main] worker-class = 'sync': not a setting of gunicorn; did you mean worker_class?",
        f"{path}: [server:main] url_prefix_of_all = '/x': not a setting of gunicorn; no setting has a similar name",
    ]


def test_check_config_version_and_help(here: Path) -> None:
    path = ini(here, APP)
    assert run([*paster("--check-config"), str(path)], here)[0] == 0
    assert run([*GUNICORN_PASTER, "--version"], here)[0] == 0
    status, out, _err = run([*GUNICORN_PASTER, "--help"], here)
    assert status == 0
    assert out.startswith("usage: gunicorn_paster [OPTIONS] FILE.ini[#app]")


# -- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ("workers = many", "[server:main] workers = 'many': expected a whole number from 0, for example 1"),
        ("reload = maybe", "[server:main] reload = 'maybe': expected true or false"),
        ("port = http", "[server:main] port = 'http': expected a number from 0 to 65535, for example 8080"),
        ("bind = a:b", "[server:main] bind = 'a:b': 'b' is not a valid port number."),
        ("threads = %(x)s", "[server:main] threads = '%(x)s': nothing defines x; give it with --paste-global x=..."),
        ("on_exit = nowhere.hook", "[server:main] on_exit = 'nowhere.hook': No module named 'nowhere'"),
        ("raw_env = LANG", "[server:main] raw_env = 'LANG': expected name=value"),
        ("chdir = /no/such", "[server:main] chdir = '/no/such': can't chdir to '/no/such'"),
        ("config = no.py", "[server:main] config = 'no.py': no such file in "),
        ("secure_scheme_headers = x", "[server:main] secure_scheme_headers = 'x': a dictionary can be set in"),
    ],
)
def test_a_bad_value_is_one_line(here: Path, keys: str, line: str) -> None:
    command = [*GUNICORN_PASTER, *NO_CONTROL_SOCKET, str(ini(here, f"{APP}[server:main]\n{keys}\n"))]
    status, _out, err = run(command, here)
    assert status == 1
    assert err.startswith(f"Error: {line}"), err
    assert err.count("\n") == 1


def test_a_worker_class_that_is_none(here: Path) -> None:
    for options in ((), ("--check-config",)):
        line = refused(here, f"{APP}[server:main]\nworker_class = nosuch\n", *options)
        assert line.startswith("Error: [server:main] worker_class = 'nosuch': ")


def test_loggers_that_cannot_be_configured(here: Path) -> None:
    assert "a.ini: [loggers] and what it names: KeyError" in refused(here, f"{APP}[loggers]\nkeys = root\n")


def test_a_global_that_is_no_pair(here: Path) -> None:
    assert "--paste-global = 'x': expected key=value" in refused(here, APP, "--paste-global", "x")


def test_a_bad_value_in_default(here: Path) -> None:
    assert "[DEFAULT] workers = 'many'" in refused(here, f"[DEFAULT]\nworkers = many\n{APP}")


def test_no_file(here: Path) -> None:
    status, _out, err = run(paster("nothing.ini"), here)
    assert (status, err.count("\n")) == (1, 1)
    assert f"{here}/nothing.ini: No such file" in err


@pytest.mark.parametrize("arguments", [[], ["a.ini", "b.ini"]])
def test_not_one_argument(here: Path, arguments: list[str]) -> None:
    status, _out, err = run(paster(*arguments), here)
    assert status == 2
    assert err.startswith("usage: gunicorn_paster")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[server:main]\n", "No section 'main' (prefixed by 'app'"),
        ("[pipeline:main]\npipeline = gone app\n[app:app]\nuse = call:myapp:factory\n", "No section 'gone' (prefixed"),
        ("[pipeline:main]\npipeline = %(gone)s app\n", "gone"),
        ("no section\n", "not an ini file"),
    ],
)
@pytest.mark.parametrize("preload", [(), ("--preload",)])
def test_an_ini_without_the_application(here: Path, text: str, line: str, preload: tuple[str, ...]) -> None:
    error = refused(here, text, *preload)
    assert line in error
    assert str(here / "a.ini") in error


def test_no_such_application(here: Path) -> None:
    status, _out, err = run([*paster(), f"{ini(here, APP)}#other"], here)
    assert (status, err.count("\n")) == (1, 1)
    assert "No section 'other'" in err


LOAD_ERRORS = [
    ("use = egg:nobody_has_this", "nobody_has_this"),
    ("use = call:nowhere:factory", "No module named 'nowhere'"),
    ("use = call:myapp:nothing", "nothing"),
    ("use = call:myapp:refused", "[filter:agent] report_interval_s = '5m': expected seconds above 0, for example 60"),
    ("paste.app_factory = myapp:factory\nmessage = %(gone)s", "gone"),
]


@pytest.mark.parametrize(("keys", "line"), LOAD_ERRORS)
def test_an_application_that_cannot_be_loaded_in_the_worker(here: Path, keys: str, line: str) -> None:
    status, out, err = run([*paster("--workers", "2"), str(ini(here, f"[app:main]\n{keys}\n"))], here)
    assert status == 1, err
    assert "Traceback" not in out + err
    assert [text for text in err.splitlines() if text.startswith("Error: ") and line in text], err
    assert err.count("Booting worker") <= 2


@pytest.mark.parametrize("option", ["--preload", "--check-config"])
@pytest.mark.parametrize(("keys", "line"), LOAD_ERRORS)
def test_an_application_that_cannot_be_loaded_in_the_arbiter(here: Path, option: str, keys: str, line: str) -> None:
    assert line in refused(here, f"[app:main]\n{keys}\n", option)


def test_a_fault_of_the_application_keeps_its_traceback(here: Path) -> None:
    status, _out, err = run([*paster(), str(ini(here, "[app:main]\nuse = call:myapp:failing\n"))], here)
    assert status == 3
    assert "Traceback" in err
    assert "from within the application" in err


# -- serving -------------------------------------------------------------------------------------------------------


def test_it_serves_the_named_application_beside_the_ini(here: Path) -> None:
    ini(
        here,
        "[DEFAULT]\ncolour = red\n[server:main]\nhost = 127.0.0.1\nport = 0\nchdir = service\n"
        + NO_CONTROL_SOCKET_INI
        + f"{APP}[app:second]\nuse = call:myapp:factory\nmessage = second %(x)s\n",
    )
    command = [*GUNICORN_PASTER, "--paste-global", "x=of two", "--paste-global", "colour=blue", "service/a.ini#second"]
    with serve(command, here.parent) as server:
        assert get(server) == f"second of two blue {here}"
        assert server.stop() == 0


def test_loggers_are_configured(here: Path) -> None:
    with serve([*paster(), str(ini(here, APP + LOGGERS))], here, wait=False) as server:
        log = here / "all.log"
        server.wait_for(lambda: log.exists() and "Booting worker" in log.read_text(), "the log file")
        assert "ROOT Listening at" in log.read_text()


@pytest.mark.parametrize("preload", [(), ("--preload",)])
def test_hup_reads_the_ini_again(here: Path, preload: tuple[str, ...]) -> None:
    path = ini(here, f"{APP}message = before\n[server:main]\nworkers = 1\n")
    with serve([*paster(*preload), str(path)], here) as server:
        assert get(server).startswith("before")
        path.write_text(f"{APP}message = after\n[server:main]\nworkers = 2\n")
        server.send(signal.SIGHUP)
        server.wait_for(lambda: get(server).startswith("after"), "the new application")
        server.wait_for(lambda: len(server.workers()) == 2, "two workers")


BROKEN = [
    ("[app:main\n", "not an ini file"),
    (f"{APP}[server:main]\nworkers = many\n", "[server:main] workers = 'many'"),
    (f"{APP}[server:main]\nworker_class = nosuch\n", "[server:main] worker_class = 'nosuch'"),
    (f"[app:other]\n{APP.splitlines()[1]}\n", "No section 'main'"),
    ("[app:main]\nuse = call:myapp:refused\n", "[filter:agent] report_interval_s = '5m'"),
    ("[app:main]\nuse = call:myapp:failing\n", "KeyError: 'from within the application'"),
]


@pytest.mark.parametrize("preload", [(), ("--preload",)])
def test_hup_with_a_broken_ini_changes_nothing(here: Path, preload: tuple[str, ...]) -> None:
    good = f"{APP}message = good\n[server:main]\nraw_env = KEPT=1\n"
    path = ini(here, good)
    with serve([*paster(*preload), str(path)], here) as server:
        assert get(server).startswith("good")
        workers = server.workers()
        for text, line in BROKEN:
            path.write_text(text)
            server.send(signal.SIGHUP)
            server.wait_for_output("Not reloaded, the running configuration stays: ")
            server.wait_for(lambda: line in server.output(), line)  # noqa: B023 -- called before the next turn
            assert get(server).startswith("good")
            server.wait_for(lambda: server.workers() == workers, "the end of whoever tried the ini out")
        path.write_text(good.replace("good", "better"))
        server.send(signal.SIGHUP)
        server.wait_for(lambda: get(server).startswith("better"), "the repaired application")
        assert server.output().count("Not reloaded") == len(BROKEN)
        assert server.stop() == 0


def test_reload_watches_the_ini(here: Path) -> None:
    path = ini(here, f"{APP}message = before\n")
    with serve([*paster("--reload", "--reload-engine", "poll"), str(path)], here) as server:
        assert get(server).startswith("before")
        path.write_text(f"{APP}message = after\n")

        def changed() -> bool:
            path.touch()  # whenever the reloader looked first, this is newer
            return "a.ini modified" in server.output()

        server.wait_for(changed, "the reloader")
        server.wait_for(lambda: get(server).startswith("after"), "the new application")


HOOKS = """
import os, sys

def say(*words):
    print("HOOK", *words, file=sys.stderr, flush=True)

def ready(worker):
    say("ready")

def leaving(arbiter):
    say("leaving")
"""


def test_the_users_hooks_run_too(here: Path) -> None:
    (here / "myhooks.py").write_text(HOOKS)
    (here / "conf.py").write_text(
        "import myhooks\n"
        "on_exit = myhooks.leaving\n"
        "def when_ready(arbiter): myhooks.say('when_ready')\n"
        "def child_exit(arbiter, worker): myhooks.say('child_exit')\n"
    )
    path = ini(here, f"{APP}[server:main]\npost_worker_init = myhooks.ready\nconfig = conf.py\n")
    with serve([*paster(), str(path)], here.parent) as server:
        server.wait_for_output("HOOK ready")
        assert server.stop() == 0
        said = re.findall("HOOK (.*)", server.output())
    assert said == ["when_ready", "ready", "child_exit", "leaving"]
