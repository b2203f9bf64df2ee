"""`paste-agent run-program` and `run-python`: what is refused, what is passed on, and programs that serve nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from paste_agent.launch.program import own_python
from tests.receiver import Receiver
from tests.serving import run, wait_for
from tests.starting.ways import BIN, GUNICORN_OPTIONS, requests_in, run_program, services_in, started, variables

PASTE_AGENT = str(BIN / "paste-agent")
#: What the agent imports where nothing is served.
LITTLE = ["paste_agent", "paste_agent.launch", "paste_agent.launch.on_board", "paste_agent.on_import"]


#: Starts what comes after it with the directory `theirs` last on Python's path: not seen by `paste-agent` itself.
WITH_THEIRS = ["sh", "-c", 'export PYTHONPATH="$PYTHONPATH:theirs"; exec "$@"', "sh"]


def run_in(here: Path, command: Sequence[str], **env: str) -> tuple[int, str, str]:
    return run(command, here, variables(here, **env))


def script(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o755)
    return str(path)


# -- what is refused -------------------------------------------------------------------------------------------------


def test_without_a_command_it_says_how_it_is_used(tmp_path: Path) -> None:
    status, out, err = run_in(tmp_path, run_program())
    assert (status, out) == (2, "")
    assert "Usage: paste-agent run-program [OPTIONS] COMMAND..." in err


@pytest.mark.parametrize(
    ("command", "expected", "env", "words"),
    [
        (
            ["./opentelemetry-instrument", "gunicorn"],
            1,
            {},
            ["opentelemetry-instrument paste-agent run-program gunicorn"],
        ),
        (["no-such-command"], 127, {}, ["no-such-command", "no such command in PATH"]),
        (["./nothing"], 127, {}, ["./nothing", "no such file"]),
        (["./plain"], 126, {}, ["./plain", "chmod +x"]),
        (["/"], 126, {}, ["/: is a directory"]),
        (["./no_interpreter"], 126, {}, ["./no_interpreter"]),
        (["true"], 1, {"PASTE_AGENT_APDEX_T_S": "soon"}, ["PASTE_AGENT_APDEX_T_S = 'soon'", "seconds"]),
        (["true"], 1, {"PASTE_AGENT_NAME": "shop"}, ["PASTE_AGENT_NAME", "unknown"]),
        (["true"], 1, {"PASTE_AGENT_CONFIG_FILE": "nowhere.ini"}, ["nowhere.ini", "No such file"]),
        (["true"], 1, {"PASTE_AGENT_CONFIG_FILE": "wrong.ini"}, ["[paste_agent] apdex_t_s = 'soon'"]),
        (["./isolated"], 1, {}, ["./isolated", "-I keeps the agent out"]),
        (["./behind_env"], 1, {}, ["./behind_env", "-I keeps the agent out"]),
        ([sys.executable, "-sE", "-c", "1"], 1, {}, ["-sE keeps the agent out"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_refused_in_one_line(
    tmp_path: Path, command: list[str], expected: int, env: Mapping[str, str], words: list[str]
) -> None:
    (tmp_path / "plain").write_text("")
    (tmp_path / "wrong.ini").write_text("[paste_agent]\napdex_t_s = soon\n")
    script(tmp_path / "isolated", f"#!{sys.executable} -I", "print('it runs')")
    script(tmp_path / "behind_env", "#!/usr/bin/env -S LANG=C python3 -I", "print('it runs')")
    script(tmp_path / "no_interpreter", "#!/no/such/interpreter")
    script(tmp_path / "opentelemetry-instrument", "#!/bin/sh")
    status, out, err = run_in(tmp_path, run_program(*command), **env)
    assert (status, out) == (expected, "")
    assert err.startswith("paste-agent: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err


def other_pythons() -> list[str]:
    """Of other versions than this one: the oldest, which may be very old, and the newest."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [str(path) for path in versions.glob("*/bin/python")]
    found += [path for minor in range(8, 15) if (path := shutil.which(f"python3.{minor}"))]
    own = f"{sys.version_info[0]}.{sys.version_info[1]}"
    answers = {}
    for path in sorted(found):
        code = "import sys; print('%d.%d' % tuple(sys.version_info[:2]))"
        answer = subprocess.run([path, "-c", code], capture_output=True, text=True)
        if answer.returncode == 0 and answer.stdout.strip() != own:
            answers.setdefault(answer.stdout.strip(), path)
    newest_last = sorted(answers, key=lambda version: [int(part) for part in version.split(".")])
    return [answers[version] for version in dict.fromkeys((newest_last[0], newest_last[-1]))] if answers else []


def test_another_python_is_refused_and_left_alone_where_it_is_a_child(tmp_path: Path) -> None:
    others = other_pythons()
    if not others:
        pytest.skip("there is one version of Python here")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "sitecustomize.py").write_text("import sys\nsys.stderr.write('the other one\\n')\n")
    program = script(tmp_path / "program", f"#!{others[0]}", "print('it runs')")
    behind_env = script(tmp_path / "behind_env", "#!/usr/bin/env python", "print('it runs')")
    path = os.pathsep.join([str(Path(others[0]).parent), os.environ.get("PATH", os.defpath)])
    for command in ([program], [behind_env], [others[0], "-c", "print('it runs')"], ["python", "-c", "1"]):
        status, out, err = run_in(tmp_path, run_program(*command), PATH=path)
        assert (status, out, err.count("\n")) == (1, "", 1), err
        assert own_python() in err
        assert "install paste-agent for that Python" in err
    for other in others:
        status, out, err = run_in(tmp_path, [*run_program(*WITH_THEIRS), other, "-c", "print('it runs')"])
        assert (status, out) == (0, "it runs\n"), err
        said, chained = err.splitlines()
        assert said.startswith(f"paste-agent: {other} is not measured: it is ")
        assert chained == "the other one"


# -- what is passed on -----------------------------------------------------------------------------------------------


def test_options_of_the_command_are_the_commands(tmp_path: Path) -> None:
    program = script(tmp_path / "program", f"#!{sys.executable}", "import sys", "print(sys.argv[1:])", "sys.exit(7)")
    words = ["--help", "-h", "--version", "--", "-x", "--service=1", ""]
    assert run_in(tmp_path, run_program(program, *words)) == (7, f"{words}\n", "")
    status, out, _ = run_in(tmp_path, [PASTE_AGENT, "run-python", "-W", "error", "-X", "dev", program, *words])
    assert (status, out) == (7, f"{words}\n")
    status, out, _ = run_in(tmp_path, [PASTE_AGENT, "run-python", "-c", "import sys; print(sys.prefix)", "--help"])
    assert (status, out) == (0, f"{sys.prefix}\n")


def test_a_program_that_is_no_python_is_started_as_it_is(tmp_path: Path) -> None:
    # SIGPIPE, which Python ignores, ends it as it does without the agent.
    status, out, err = run_in(tmp_path, run_program("sh", "-c", "kill -PIPE $$; echo ignored"))
    assert (status, out, err) == (-signal.SIGPIPE, "", "")


# -- programs that serve nothing -------------------------------------------------------------------------------------

LOOK = """
import sys
import json, logging.config, sqlite3, http.client, wsgiref.simple_server
print(sys.path)
print(http.client.HTTPConnection.request.__module__, sqlite3.connect.__module__)
print(sorted(name for name in sys.modules if name.startswith("paste_agent")))
"""


def test_a_program_that_serves_nothing_is_as_it_is_without(tmp_path: Path) -> None:
    (tmp_path / "look.py").write_text(LOOK)
    without = run_in(tmp_path, [sys.executable, "look.py"])[1].splitlines()
    status, out, err = run_in(tmp_path, run_program(sys.executable, "look.py"))
    found = out.splitlines()
    assert (status, err) == (0, "")
    assert found[:-1] == without[:-1]
    # What serves has been imported, and been made ready to ask; nothing of what measures has.
    assert found[-1] == str(sorted([*LITTLE, "paste_agent.launch.servers", "paste_agent.launch.service_name"]))
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "store.sqlite").exists()


def test_a_child_of_what_is_served_has_next_to_nothing_on_board(tmp_path: Path) -> None:
    with started(tmp_path, run_program("gunicorn", *GUNICORN_OPTIONS, "app:application")) as (server, url):
        with urllib.request.urlopen(f"{url}/child", timeout=60) as answer:
            assert answer.read().decode().strip() == str(LITTLE)
        assert server.stop() == 0
    assert requests_in(tmp_path) == {"/child": 1}
    assert services_in(tmp_path) == ["app"]


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    code = "import os, sys; print(os.environ.get('PYTHONPATH'), [m for m in sys.modules if 'paste_agent.' in m])"
    command = run_program(sys.executable, "-c", code)
    status, out, err = run_in(tmp_path, command, PASTE_AGENT_ENABLED="false")
    assert (status, out, err) == (0, f"{tmp_path} []\n", "")


@pytest.mark.parametrize(
    "theirs",
    [
        "import sys; sys.stderr.write('theirs\\n'); import builtins; builtins.mark = __file__",
        "raise ValueError('theirs')",
        "import no_such_module",
        "raise ImportError('theirs')",
    ],
)
def test_another_sitecustomize_is_what_it_is_without(tmp_path: Path, theirs: str) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "sitecustomize.py").write_text(theirs)
    code = (
        "import sys, builtins; it = sys.modules.get('sitecustomize'); "
        "print(it is not None, getattr(it, '__file__', ''), getattr(builtins, 'mark', ''))"
    )
    without = run_in(tmp_path, [*WITH_THEIRS, sys.executable, "-c", code])
    assert "theirs" in without[2] or "no_such_module" in without[2]
    assert run_in(tmp_path, run_program(*WITH_THEIRS, sys.executable, "-c", code)) == without
    measured = "import sys; print('paste_agent.launch.on_board' in sys.modules)"
    assert run_in(tmp_path, run_program(*WITH_THEIRS, sys.executable, "-c", measured))[1] == "True\n"


CHAINS = """
import os, sys
sys.stderr.write("theirs\\n")
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
here = os.path.dirname(os.path.abspath(__file__))
spec = PathFinder.find_spec("sitecustomize", [entry for entry in sys.path if os.path.abspath(entry) != here])
if spec is not None:
    spec.loader.exec_module(module_from_spec(spec))
"""


def test_another_sitecustomize_that_comes_first_and_makes_way_runs_once(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "sitecustomize.py").write_text(CHAINS)
    first = ["sh", "-c", 'export PYTHONPATH="$PWD/theirs:$PYTHONPATH"; exec "$@"', "sh"]
    code = "import sys; print('paste_agent.launch.on_board' in sys.modules, sys.path[1:3])"
    status, out, err = run_in(tmp_path, run_program(*first, sys.executable, "-c", code))
    assert (status, out, err) == (0, f"True {[f'{tmp_path}/theirs', str(tmp_path)]}\n", "theirs\n")


# -- another virtual environment -------------------------------------------------------------------------------------

FOREIGN = """
import sys

def has(name):
    try:
        __import__(name)
    except ImportError:
        return False
    return True

def application(environ, start_response):
    environ["paste_agent.route"] = environ["PATH_INFO"]
    start_response("200 OK", [("Content-Type", "text/plain")])
    names = ("click", "requests", "urllib3", "google.protobuf", "paste.httpserver", "pyramid")
    return [repr([name for name in names if name not in sys.modules and has(name)]).encode()]
"""


def test_a_program_of_another_virtual_environment(tmp_path: Path) -> None:
    """It has gunicorn and nothing else; the agent brings what it needs to export, and nothing for the program."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    for name in ("gunicorn", "packaging"):
        module = __import__(name)
        (packages / name).symlink_to(Path(module.__file__ or "").parent)
    gunicorn = script(
        tmp_path / "venv" / "bin" / "gunicorn",
        f"#!{tmp_path}/venv/bin/python",
        "from gunicorn.app.wsgiapp import run",
        "run()",
    )
    files = {"app.py": FOREIGN}
    with Receiver() as collector:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint, "PASTE_AGENT_REPORT_INTERVAL_S": "0.3"}
        with started(tmp_path, run_program(gunicorn, *GUNICORN_OPTIONS, "app:application"), files, env) as (
            server,
            url,
        ):
            with urllib.request.urlopen(f"{url}/page", timeout=60) as answer:
                assert answer.read() == b"[]"
            wait_for(lambda: sum(collector.request_counts().values()) == 1, "an export")
            assert server.stop() == 0
            assert "WARNING" not in server.output()
    assert requests_in(tmp_path) == {"/page": 1}
    assert services_in(tmp_path) == ["app"]
