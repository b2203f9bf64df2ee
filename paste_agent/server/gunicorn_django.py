"""The console script `gunicorn_django [gunicorn options] [project directory | settings module]`, and what
`manage.py run_gunicorn` becomes.

Precedence, lowest to highest: gunicorn's defaults, gunicorn's configuration file, GUNICORN_CMD_ARGS, the command line.
The arbiter imports neither the project nor Django, unless `preload_app` is set: so a reload brings the project anew.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from gunicorn import util
from gunicorn.config import Config

from paste_agent import functions, instrument, lifecycle
from paste_agent.errors import AgentError, SettingError
from paste_agent.launch.configuration import settings_of
from paste_agent.launch.wrapping import wrapped
from paste_agent.server import section
from paste_agent.server.application import one_line
from paste_agent.server.django_project import VARIABLE, Project, ProjectError, project_of
from paste_agent.server.loading import LoadingApplication
from paste_agent.settings import CONFIG_FILE, Settings

USAGE = "%(prog)s [OPTIONS] [PROJECT DIRECTORY | SETTINGS MODULE]"

#: An error that none but modules of these took part in is one of the configuration.
_LOADERS = ("paste_agent", "django", "importlib", "_frozen_importlib", "_frozen_importlib_external")
_IMPROPERLY_CONFIGURED = "django.core.exceptions.ImproperlyConfigured"

#: Options of every command of manage.py, by which it has been through when the arbiter begins.
_OF_MANAGE: Sequence[tuple[Sequence[str], Mapping[str, Any]]] = (
    (("-h", "--help"), {"action": "help"}),
    (("--version",), {"action": "store_true"}),
    (("-v", "--verbosity"), {}),
    (("--settings",), {}),
    (("--pythonpath",), {}),
    (("--traceback",), {"action": "store_true"}),
    (("--no-color",), {"action": "store_true"}),
    (("--force-color",), {"action": "store_true"}),
    (("--skip-checks",), {"action": "store_true"}),
)


class DjangoApplication(LoadingApplication):
    """A Django project, loaded by each worker, or by the arbiter when `preload_app` is set."""

    project: Project
    service: Settings  #: of the agent

    def configure(self) -> None:
        self.chdir()  # the working directory of the start, which a former `chdir` may have left
        start = os.getcwd()
        given = self._parsed()
        target, settings = given.pop("target", None), given.pop("settings", None)
        of_environment = given.pop("django_settings", None)
        self._of_file: dict[str, Any] = {}
        self.prepare(section.ServerSection("", ""), given.get("config"))
        self.settle(section.ServerSection("", ""), given)
        environ = {**os.environ, **self.cfg.env}
        fallback = of_environment or self._of_file.get("django_settings") or environ.get(VARIABLE) or None
        self.project = self.find(target, settings, fallback, start)
        self._lead_paths()
        if importlib.util.find_spec("django") is None:
            raise ProjectError("Django is not installed here; pip install 'paste-agent[django]' brings it")
        package = self.project.settings.partition(".")[0]
        if importlib.util.find_spec(package) is None:
            raise ProjectError(f"{self.project.settings}: no module {package} in {', '.join(self.project.paths)}")
        self.cfg.set("default_proc_name", self.project.settings)
        # The arbiter puts this into its environment, and takes it out again before it reloads.
        self.cfg.set("raw_env", [*self.cfg.raw_env, f"{VARIABLE}={self.project.settings}"])
        self.service = service_of(self.project, environ, start)
        self.install_hooks([self.service] if self.service.enabled else [])

    def find(self, target: str | None, settings: str | None, fallback: str | None, start: str) -> Project:
        """The project that is served, as `project_of` has it. Raises ProjectError."""
        return project_of(target, settings, fallback, start, os.getcwd())

    def load_config_from_file(self, filename: str) -> dict[str, Any]:
        # gunicorn passes over `django_settings`, which is none of its settings any more.
        self._of_file = super().load_config_from_file(filename)
        return self._of_file

    def environment_parser(self) -> argparse.ArgumentParser:
        parser = super().environment_parser()
        parser.add_argument(
            "--settings",
            dest="django_settings",
            metavar="MODULE",
            help=f"dotted name of the settings module; else {VARIABLE}, else the one of the project directory",
        )
        return parser

    def _parsed(self) -> dict[str, Any]:
        """By name, what was given in GUNICORN_CMD_ARGS and on the command line.

        Of the command line alone are `target`, its argument, and `settings`; `django_settings` is GUNICORN_CMD_ARGS'.
        """
        parser = self.environment_parser()
        line = parser.parse_args()
        if len(line.args) > 1:
            parser.error("give one project directory or settings module")
        own = {"settings": line.django_settings, "target": line.args[0] if line.args else None}
        line.django_settings = None
        return {**self.given(line), **own}

    def _lead_paths(self) -> None:
        """Put `pythonpath`, and then the project's directories, first on sys.path."""
        wanted = [os.path.abspath(path) for path in (self.cfg.pythonpath or "").split(",") if path]
        wanted += [path for path in self.project.paths if path not in wanted]
        sys.path[:] = [*wanted, *(path for path in sys.path if path not in wanted)]

    def make(self) -> Any:
        os.environ[VARIABLE] = self.project.settings
        if self.service.enabled:  # before the project takes hold of what is changed here
            instrument.install_for(self.service)
            functions.install(self.service.trace_functions, lifecycle.agent_of(self.service).warn)
        return wrapped(_application(self.project.settings), self.service)

    def plain(self, error: Exception) -> str | None:
        if isinstance(error, AgentError):
            return one_line(error)
        if not _is_configurations(error):
            return None
        return f"{self.project.settings}: {one_line(error)}"


class CommandApplication(DjangoApplication):
    """What `manage.py run_gunicorn` has become: sys.argv is that command line, and its environment is this one."""

    def __init__(self, paths: Sequence[str]) -> None:
        """paths: those of manage.py's sys.path that are not the interpreter's."""
        manage = os.path.dirname(os.path.abspath(sys.argv[0]))
        self._home = manage if manage in paths else os.getcwd()  # else: of django-admin
        # The others stay where they are: what an interpreter adds stands behind the standard library.
        self._paths = tuple(path for path in paths if path not in sys.path)
        super().__init__(prog=f"{os.path.basename(sys.argv[0])} {sys.argv[1]}")

    def find(self, target: str | None, settings: str | None, fallback: str | None, start: str) -> Project:
        return Project(os.environ[VARIABLE], self._paths, self._home)

    def _parsed(self) -> dict[str, Any]:
        parser = argparse.ArgumentParser(prog=self.prog, add_help=False)
        for names, kwargs in _OF_MANAGE:
            parser.add_argument(*names, **kwargs)
        add_options(parser)
        line = parser.parse_args(sys.argv[2:])
        address = line.addrport
        given = {name: value for name, value in self.given(line).items() if name in self.cfg.settings}
        if address is not None:
            given["bind"] = [bind_of(address)]
        return given


def add_options(parser: argparse.ArgumentParser) -> None:
    """Give the parser of a Django command all of gunicorn's options but those that are Django's, and the address."""
    parser.add_argument("addrport", nargs="?", help="port, address:port, unix:PATH or fd://NUMBER to listen at")
    taken = {name for names, _ in _OF_MANAGE for name in names}
    for setting in sorted(Config().settings.values()):
        free = [name for name in setting.cli or () if name not in taken]
        if free:
            option = setting.copy()
            option.cli = free
            option.add_option(parser)


def bind_of(addrport: str) -> str:
    """gunicorn's `bind` for the argument of the command; a port by itself is one of 127.0.0.1.

    Raises SettingError.
    """
    cure = "expected a port, address:port, unix:PATH or fd://NUMBER, for example 127.0.0.1:8000"
    try:
        parsed = util.parse_address(f"{section.DEFAULT_HOST}:{addrport}" if addrport.isdecimal() else addrport)
    except RuntimeError:
        raise SettingError("addrport", addrport, cure) from None
    if isinstance(parsed, tuple) and not 0 <= parsed[1] <= 65535:
        raise SettingError("addrport", addrport, cure)
    return f"{section.DEFAULT_HOST}:{addrport}" if addrport.isdecimal() else addrport


def service_of(project: Project, environ: Mapping[str, str], start: str) -> Settings:
    """The agent's settings. Where neither they nor a file of theirs name the service, the project does.

    start: directory that a relative path of that file starts from.
    Raises IniError and SettingError.
    """
    environ = dict(environ)
    if environ.get(CONFIG_FILE):
        environ[CONFIG_FILE] = os.path.join(start, environ[CONFIG_FILE])
    return settings_of(environ, project.name)


def _application(name: str) -> Any:
    """What the settings' WSGI_APPLICATION names; Django's own where it names nothing."""
    import django
    from django.conf import settings
    from django.core.handlers.wsgi import WSGIHandler
    from django.utils.module_loading import import_string

    found = settings.WSGI_APPLICATION
    # Before the project's wsgi.py does it: an error of the settings is then told without the frames of that.
    django.setup(set_prefix=False)
    if found is None:
        return WSGIHandler()
    try:
        application = import_string(found)
    except ImportError as error:
        if not _is_configurations(error):
            raise
        raise SettingError(f"{name}: WSGI_APPLICATION", str(found), one_line(error)) from None
    if not callable(application):
        raise SettingError(f"{name}: WSGI_APPLICATION", found, "names nothing that can be called")
    return application


def _is_configurations(error: Exception) -> bool:
    """Whether the settings name what there is not, and no code of the project took part in the error."""
    kinds = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}
    if not isinstance(error, ImportError) and _IMPROPERLY_CONFIGURED not in kinds:
        return False
    modules = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__))
    return all(module.partition(".")[0] in _LOADERS for module in modules)


def run() -> None:
    """The `gunicorn_django` command."""
    DjangoApplication(USAGE, prog="gunicorn_django").run()


def run_command(paths: Sequence[str], command: Sequence[str]) -> None:
    """Serve as `manage.py run_gunicorn` was told to.

    paths: as CommandApplication has them.
    command: its command line. gunicorn starts it once more when it is told to upgrade itself (SIGUSR2).
    """
    sys.argv = list(command)
    CommandApplication(paths).run()
