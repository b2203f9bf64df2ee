"""What `paste-agent run-program` finds out about a program before the program takes its place, and what it tells it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec

from paste_agent.errors import AgentError
from paste_agent.launch import on_board
from paste_agent.launch.libraries import NEEDED
from paste_agent.settings import CONFIG_FILE, HERE, Settings

#: To the shell, a program that is not there, and one that cannot be executed.
NOT_FOUND, NOT_EXECUTABLE = 127, 126

#: With -E, -I or -S in it, before a -W or -X that takes the rest.
_BARRING = re.compile(r"-[A-VYZa-z]*[EIS].*")
_PYTHON = re.compile(r"(?:python|pypy)[\d.]*[a-z]*")
_ASK = (
    "import sys; i = getattr(getattr(sys, 'implementation', None), 'name', 'python'); "
    "print('%s %d.%d%s' % (i, sys.version_info[0], sys.version_info[1], getattr(sys, 'abiflags', '')))"
)
_ASK_TIMEOUT_S = 10.0
#: Start programs as run-program does, and have no regard for whoever was there before.
_FIRST = frozenset(("opentelemetry-instrument",))
_MAX_LINE = 4096


class ProgramError(AgentError):
    """A program that cannot be started. status: that the shell would end with."""

    def __init__(self, line: str, status: int = 1) -> None:
        self.status = status
        super().__init__(line)


def own_python() -> str:
    """Implementation and version of the interpreter that the agent is installed for, as the programs compare it."""
    major, minor = sys.version_info[:2]
    return f"{sys.implementation.name} {major}.{minor}{sys.abiflags}"


def found(command: str, environ: Mapping[str, str]) -> str:
    """The path of a command. Raises ProgramError."""
    path = shutil.which(command, path=environ.get("PATH", os.defpath))
    if path is not None:
        return path
    if os.sep in command and os.path.exists(command):
        what = "is a directory" if os.path.isdir(command) else "may not be executed; try chmod +x"
        raise ProgramError(f"{command}: {what}", NOT_EXECUTABLE)
    where = "no such file" if os.sep in command else "no such command in PATH"
    raise ProgramError(f"{command}: {where}", NOT_FOUND)


def check(path: str, arguments: Sequence[str], environ: Mapping[str, str]) -> None:
    """Raise ProgramError when it is certain that the agent cannot come on board of the program at `path`."""
    name = os.path.basename(path)
    if name in _FIRST:
        raise ProgramError(
            f"{path}: puts a sitecustomize before the agent's; the other way round both work: "
            f"{name} paste-agent run-program {' '.join(arguments[:1]) or 'COMMAND'} ..."
        )
    interpreter, options = _interpreter(path, arguments, environ)
    if interpreter is None:
        return  # no Python; those that it may start look by themselves
    barring = next((option for option in options if _BARRING.fullmatch(option)), None)
    if barring is not None:
        raise ProgramError(
            f"{path}: Python's option {barring} keeps the agent out, which comes by PYTHONPATH and sitecustomize; "
            "start it without, as in `paste-agent run-program python SCRIPT`"
        )
    version = _version(interpreter)
    if version is not None and version != own_python():
        raise ProgramError(
            f"{path}: runs under {version} ({interpreter}), and the agent is installed for {own_python()}; "
            "install paste-agent for that Python, and use the paste-agent command that comes with it"
        )


def environment(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a program that is to have the agent on board; as it is where `enabled` is false."""
    result = dict(environ)
    if not settings.enabled:
        return result
    aboard = os.path.join(os.path.dirname(os.path.abspath(__file__)), "aboard")
    others = [entry for entry in environ.get("PYTHONPATH", "").split(os.pathsep) if entry != aboard]
    result["PYTHONPATH"] = os.pathsep.join([aboard, *others] if any(others) else [aboard])
    result[on_board.PYTHON] = own_python()
    result[on_board.LIBRARIES] = os.pathsep.join(_libraries())
    if environ.get(CONFIG_FILE):
        result[CONFIG_FILE] = os.path.abspath(environ[CONFIG_FILE])
    else:
        result[HERE] = os.getcwd()
    return result


def _libraries() -> list[str]:
    """The directories on this process's path that the agent's libraries are in."""
    directories: list[str] = []
    for name in NEEDED:
        spec = find_spec(name)
        if spec is None or not spec.origin:
            continue
        directory = os.path.dirname(spec.origin)  # of a package
        for _ in name.split("."):
            directory = os.path.dirname(directory)
        if directory not in directories:
            directories.append(directory)
    return directories


def _interpreter(path: str, arguments: Sequence[str], environ: Mapping[str, str]) -> tuple[str | None, Sequence[str]]:
    """The Python that will run the program, and the options that it gets; None when it is none, or cannot be told."""
    if _PYTHON.fullmatch(os.path.basename(path)):
        return path, _options(arguments)
    words = _first_words(path)
    if words and os.path.basename(words[0]) == "env":
        words = words[1:]
        while words and (words[0].startswith("-") or "=" in words[0]):  # options and variables
            words = words[1:]
        words[:1] = [shutil.which(word, path=environ.get("PATH", os.defpath)) or word for word in words[:1]]
    if words and _PYTHON.fullmatch(os.path.basename(words[0])):
        return words[0], _options(words[1:])
    return None, ()


def _options(words: Sequence[str]) -> list[str]:
    """Those before the program."""
    options: list[str] = []
    for word in words:
        if not word.startswith("-") or word.startswith("--") or word[1:2] in ("c", "m", ""):
            break
        options.append(word)
    return options


def _first_words(path: str) -> list[str]:
    """What a script says is to run it."""
    try:
        with open(path, "rb") as file:
            lines = file.read(_MAX_LINE).decode(errors="replace").split("\n")
    except OSError:
        return []
    if not lines[0].startswith("#!"):
        return []
    words = lines[0][2:].split()
    # The way around a limit of the first line's length: a shell that makes way for the Python on the second line.
    if len(lines) > 1 and lines[1].startswith("'''exec' "):
        try:
            words = shlex.split(lines[1])[1:]
        except ValueError:
            return []
        return words[:1]
    return words


def _version(interpreter: str) -> str | None:
    """As `own_python`, of another one; None when it does not say."""
    if os.path.realpath(interpreter) == os.path.realpath(sys.executable):
        return own_python()
    try:
        answer = subprocess.run(
            [interpreter, "-E", "-S", "-c", _ASK],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_ASK_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None  # starting it will tell why
    return answer.stdout.strip() or None
