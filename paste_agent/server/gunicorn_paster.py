"""The console script `gunicorn_paster [gunicorn options] FILE.ini[#app]`.

Precedence, lowest to highest: gunicorn's defaults, gunicorn's configuration file, the ini ([DEFAULT], then
[server:main]), GUNICORN_CMD_ARGS, the command line.
"""

from __future__ import annotations

import configparser
import os
import traceback
from typing import Any
from urllib.parse import quote

from paste.deploy import loadwsgi

from paste_agent.errors import AgentError, IniError, SettingError
from paste_agent.server import section
from paste_agent.server.application import one_line, services_of
from paste_agent.server.loading import LoadingApplication

USAGE = "%(prog)s [OPTIONS] FILE.ini[#app]"

#: Modules between `load` and the application: an error that none but them took part in needs no traceback.
_LOADERS = (
    "paste_agent.server",
    "paste_agent.layers",
    "paste.deploy",
    "importlib",
    "configparser",
    "_frozen_importlib",
)


class PasterApplication(LoadingApplication):
    """The application of an ini, loaded by each worker, or by the arbiter when `preload_app` is set."""

    path: str  #: of the ini, absolute
    name: str  #: of the application in it

    def configure(self) -> None:
        parser = self.cfg.parser()
        line = parser.parse_args()
        given = self.given(line)
        if len(line.args) != 1:
            parser.error("give one ini file")
        self.chdir()  # the working directory of the start, which a former `chdir` may have left
        path, _, name = line.args[0].partition("#")
        self.path, self.name = os.path.abspath(path), name or "main"
        self._set_global_conf(given)
        self.prepare(section.read(self.path, self.global_conf), given.get("config"))
        self._set_global_conf(given)
        self.settle(section.read(self.path, self.global_conf), given)
        check_application(self.path, self.name, self.global_conf)
        self.install_hooks(services_of(self.path, self.global_conf, {**os.environ, **self.cfg.env}))

    @property
    def global_conf(self) -> dict[str, str]:
        """What `--paste-global` says."""
        return self.cfg.paste_global_conf or {}

    def make(self) -> Any:
        return loadwsgi.loadapp(f"config:{quote(self.path)}", name=self.name, global_conf=self.global_conf)

    def plain(self, error: Exception) -> str | None:
        if isinstance(error, AgentError):
            return one_line(error)
        if not _is_loaders(error):
            return None
        line = one_line(error)
        return line if self.path in line else f"{self.path}: {line}"

    def _set_global_conf(self, given: dict[str, Any]) -> None:
        # Before the ini is read, since it takes part in reading it; and again after gunicorn's configuration file.
        if "raw_paste_global_conf" in given:
            for pair in given["raw_paste_global_conf"]:
                if "=" not in pair:
                    raise SettingError("--paste-global", pair, "expected key=value")
            self.cfg.set("raw_paste_global_conf", given["raw_paste_global_conf"])


def check_application(path: str, name: str, global_conf: dict[str, str]) -> None:
    """Raise IniError unless the ini has the sections that application `name` is made of; imports nothing of it.

    Looks as far as pipelines go: what a composite mounts, only its factory knows.
    """
    try:
        loader = loadwsgi.ConfigLoader(path)
        loader.update_defaults(global_conf, overwrite=False)
        seen: set[str] = set()
        while not loader.absolute_name(name) and name not in seen:
            seen.add(name)
            found = loader.find_config_section(loadwsgi.APP, name)
            if not found.startswith("pipeline:"):
                return
            *filters, name = loader.parser.get(found, "pipeline").split() or [""]
            for each in filters:
                if not loader.absolute_name(each):
                    loader.find_config_section(loadwsgi.FILTER, each)
    except (LookupError, configparser.Error) as error:
        line = one_line(error)
        raise IniError(line if path in line else f"{path}: {line}") from None


def _is_loaders(error: Exception) -> bool:
    """Whether the loader itself raised it: a wrong name in the ini, not a fault within the application."""
    kinds = (
        LookupError,
        ImportError,
        AttributeError,
        TypeError,
        configparser.Error,
    )
    frames = (frame for frame, _line in traceback.walk_tb(error.__traceback__))
    return isinstance(error, kinds) and all(
        frame.f_globals.get("__name__", "").startswith(_LOADERS) for frame in frames
    )


def run() -> None:
    """The `gunicorn_paster` command."""
    PasterApplication(USAGE, prog="gunicorn_paster").run()
