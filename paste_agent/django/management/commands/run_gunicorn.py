"""`manage.py run_gunicorn [gunicorn options] [addrport]`.

manage.py has imported the project by the time that a command runs, and what an arbiter has imported its workers never
import anew. So the command replaces its process, by one that has imported nothing yet.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from paste_agent.errors import SettingError
from paste_agent.server import gunicorn_django
from paste_agent.server.django_project import VARIABLE


class Command(BaseCommand):  # type: ignore[misc]  # Django ships no types
    """Serves the project with gunicorn, and the agent on board."""

    help = "Serves the project with gunicorn, measured by paste-agent. Takes all options of gunicorn."
    _command: Sequence[str] = ()

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        # The usage that argparse makes, of all the options, is a page long, before every error.
        return super().create_parser(prog_name, subcommand, usage="%(prog)s [OPTIONS] [addrport]", **kwargs)

    def add_arguments(self, parser: CommandParser) -> None:
        gunicorn_django.add_options(parser)

    def run_from_argv(self, argv: list[str]) -> None:
        self._command = argv
        super().run_from_argv(argv)

    def handle(self, addrport: str | None = None, **options: object) -> None:
        if not self._command:
            raise CommandError("run_gunicorn replaces its process: start it from a command line, not by call_command")
        if not os.environ.get(VARIABLE):
            raise CommandError(f"{VARIABLE} is not set: the workers would not know which settings to import")
        if addrport is not None:
            if options.get("bind"):
                raise CommandError(f"--bind and {addrport}: both say where to listen; give one of them")
            try:
                gunicorn_django.bind_of(addrport)
            except SettingError as error:
                raise CommandError(str(error)) from None
        self.stdout.flush()
        self.stderr.flush()
        paths = os.pathsep.join(_projects_paths())
        flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # as multiprocessing has it
        os.execv(sys.executable, [sys.executable, *flags, "-m", "paste_agent.django", paths, *self._command])


def _projects_paths() -> list[str]:
    """What sys.path has besides the interpreter's own: manage.py's directory, and what manage.py has added."""
    own = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib", "scripts")]
    paths = dict.fromkeys(os.path.abspath(path) for path in sys.path)
    return [
        path
        for path in paths
        if not path.endswith(".zip") and not any(path == each or path.startswith(f"{each}{os.sep}") for each in own)
    ]
