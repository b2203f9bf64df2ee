"""What `gunicorn_paster` and the server runner share: a gunicorn application that an ini file configures.

Precedence, lowest to highest: gunicorn's defaults, gunicorn's configuration file, the ini, then what the subclass adds.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from gunicorn.app.base import Application, BaseApplication
from gunicorn.config import get_default_config_file
from gunicorn.errors import AppImportError

from paste_agent import ini, lifecycle
from paste_agent.errors import AgentError, IniError
from paste_agent.launch import on_board, service_name
from paste_agent.server import hooks, section
from paste_agent.server.arbiter import IniArbiter, ReloadRefused
from paste_agent.settings import Settings


class _Arbitrated(BaseApplication):  # type: ignore[misc]  # gunicorn ships no types
    """Stands between Application, whose run() ends in super().run(), and BaseApplication, whose run() names Arbiter."""

    def run(self) -> None:
        try:
            IniArbiter(self).run()
        except (RuntimeError, AppImportError) as error:  # AppImportError: the application is preloaded
            sys.exit(f"Error: {self.explain(error)}")
        except Exception as error:
            if not _passed(error, "logging.config"):
                raise
            sys.exit(
                f"Error: {self.cfg.logconfig}: [loggers] and what it names: {type(error).__name__}: {one_line(error)}"
            )

    def explain(self, error: Exception) -> str:
        """`error` in one line."""
        return one_line(error)


class IniApplication(Application, _Arbitrated):  # type: ignore[misc]  # gunicorn ships no types
    """A gunicorn application configured by an ini. Subclasses say where its parts come from."""

    cfg: Any
    callable: Any

    def __init__(self, usage: str | None = None, prog: str | None = None) -> None:
        self.places: dict[str, str] = {}  # setting: where in the ini it stands
        self.services: Sequence[Settings] = ()  # of every enabled agent section of the ini
        self.ini_path = ""
        super().__init__(usage, prog)

    def configure(self) -> None:
        """Read everything into `self.cfg`: `prepare`, `settle`, `install_hooks`. Raises AgentError."""
        raise NotImplementedError

    def try_out(self) -> None:
        """Raise whatever would stop the new configuration from being served; called on SIGHUP."""
        _ = (self.cfg.worker_class, self.cfg.logger_class, self.cfg.address)

    def run(self) -> None:
        if self.cfg.check_config:  # gunicorn looks at the application only
            try:
                IniApplication.try_out(self)
            except RuntimeError as error:
                sys.exit(f"Error: {self.explain(error)}")
        super().run()

    def load_config(self) -> None:
        try:
            self.configure()
        except Exception as error:
            sys.exit(f"Error: {one_line(error)}")

    def reload(self) -> None:
        """Read the configuration again. Raises ReloadRefused, with the old one in place, if it cannot be served."""
        cfg, application, places, services = self.cfg, self.callable, self.places, self.services
        environ = os.environ.copy()
        # BaseApplication.wsgi() keeps a preloaded application for ever: new workers would run the old one.
        self.callable = None
        try:
            super().reload()
            os.environ.update(self.cfg.env)  # as Arbiter.setup will, before it loads
            self.try_out()
        except (Exception, SystemExit) as error:
            line = self._why(error)
            os.environ.clear()
            os.environ.update(environ)
            self.cfg, self.callable, self.places, self.services = cfg, application, places, services
            lifecycle.announce(services)
            self.chdir()
            told = isinstance(error, (SystemExit, AppImportError, RuntimeError))
            raise ReloadRefused(line) from (None if told else error)

    def prepare(self, server: section.ServerSection, config_file: str | None = None) -> None:
        """Set what is weaker than the ini: what its mere presence implies, and gunicorn's configuration file.

        config_file: stronger than the one that the ini names.
        Raises AgentError.
        """
        self.ini_path = server.path
        self.lead_path(server.path)
        if server.path:
            self.cfg.set("default_proc_name", server.path)
            if section.has_loggers(server.path):
                self.cfg.set("logconfig", server.path)
        location = config_file or server.config_file() or get_default_config_file()
        if location is not None:
            self.load_config_from_file(location)

    def settle(self, server: section.ServerSection, given: Mapping[str, Any]) -> None:
        """Set the ini's settings and then `given`, which is stronger. Raises AgentError."""
        self.places = server.apply(self.cfg, given)
        for name, value in given.items():
            self.cfg.set(name, value)
        if server.path and self.cfg.reload:
            self.cfg.set("reload_extra_files", [*self.cfg.reload_extra_files, server.path])
        self.chdir()
        self.lead_path(server.path)  # chdir() puts the working directory first

    def lead_path(self, path: str) -> None:
        """Put the ini's directory first on sys.path, so that a module beside the ini imports."""
        if path:
            directory = os.path.dirname(path)
            with contextlib.suppress(ValueError):
                sys.path.remove(directory)
            sys.path.insert(0, directory)

    def install_hooks(self, services: Sequence[Settings]) -> None:
        self.services = services
        hooks.install(self.cfg, services)

    def dashboards(self) -> Sequence[str]:
        """URL paths at which the ini mounts the dashboard."""
        try:
            return ini.mounted_at(self.ini_path) if self.ini_path else ()
        except IniError:
            return ()

    def explain(self, error: Exception) -> str:
        text = str(error)
        for name in ("worker_class", "logger_class"):
            value = self.cfg.settings[name].get()
            if text.startswith("class uri") and repr(value) in text:
                # gunicorn puts a whole traceback into the message; its last line is the reason.
                return f"{self.places.get(name, name)} = {value!r}: {text.rstrip(']').split(chr(10))[-2].strip()}"
        return one_line(error).removeprefix("Error: ")

    def _why(self, error: BaseException) -> str:
        if isinstance(error, SystemExit):
            # A number: gunicorn itself has already printed what is wrong.
            return error.code.removeprefix("Error: ") if isinstance(error.code, str) else "see the error above"
        assert isinstance(error, Exception)
        line = self.explain(error)
        return line if isinstance(error, (AppImportError, RuntimeError)) else f"{type(error).__name__}: {line}"


def services_of(path: str, global_conf: Mapping[str, str], environ: Mapping[str, str]) -> list[Settings]:
    """The settings of every enabled agent section of the ini.

    Without such a section: those of the program, when it was started with the agent on board; none otherwise.
    Raises SettingError for a wrong setting.
    """
    try:
        has_section = bool(ini.filter_sections(path))
    except IniError:
        has_section = False
    if not has_section:
        return _of_program(path, environ)
    return [service for service in ini.services(path, environ, global_conf) if service.enabled]


def _of_program(path: str, environ: Mapping[str, str]) -> list[Settings]:
    if not on_board.is_on_board():
        return []
    from paste_agent.launch import wrapping

    return wrapping.fallback(service_name.of_served(path) or service_name.of_command(sys.argv), environ)


def _passed(error: Exception, module: str) -> bool:
    """Whether `error` passed through a function of `module`."""
    return any(frame.f_globals.get("__name__") == module for frame, _ in traceback.walk_tb(error.__traceback__))


def one_line(error: BaseException) -> str:
    """str() of `error` without line breaks; its type when it says nothing."""
    text = " ".join(str(error).split())
    return text if text or isinstance(error, AgentError) else type(error).__name__
