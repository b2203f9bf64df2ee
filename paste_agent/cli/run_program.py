"""`paste-agent run-program` and `run-python`: a program with the agent on board, without a word of it in its code."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from paste_agent.launch import program
from paste_agent.launch.configuration import settings_of

#: What comes after the command is the command's.
_PASSED_ON = {"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": ["--help"]}


@click.command(context_settings=_PASSED_ON, short_help="Run a program with the agent on board.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run_program(command: tuple[str, ...]) -> None:
    """Run COMMAND with its arguments, and measure what it serves.

    For a service whose ini has no section of the agent's, or that has no ini. Settings come from the file that
    PASTE_AGENT_CONFIG_FILE names, or from PASTE_AGENT_ variables; none is needed. The command, and every Python that it
    starts in turn, has the agent on board; those that serve nothing do not notice.

    \b
    paste-agent run-program gunicorn app:application
    PASTE_AGENT_CONFIG_FILE=agent.ini paste-agent run-program waitress-serve app:application
    """
    _become(program.found(command[0], os.environ), command)


@click.command(context_settings=_PASSED_ON, short_help="Run Python with the agent on board.")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def run_python(args: tuple[str, ...]) -> None:
    """Run Python with ARGS, and measure what it serves: the Python that the agent is installed for.

    See `paste-agent run-program --help`.

    \b
    paste-agent run-python -m gunicorn app:application
    paste-agent run-python serve.py
    """
    _become(sys.executable, (sys.executable, *args))


def _become(path: str, command: Sequence[str]) -> NoReturn:
    """Raises AgentError; returns in no other way."""
    settings = settings_of(os.environ)
    if settings.enabled:
        program.check(path, command[1:], os.environ)
    environ = program.environment(settings, os.environ)
    sys.stdout.flush()
    sys.stderr.flush()
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # ignored by Python, and what is ignored stays so
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execve(path, list(command), environ)
    except OSError as error:
        raise program.ProgramError(f"{command[0]}: {error.strerror}", program.NOT_EXECUTABLE) from None
