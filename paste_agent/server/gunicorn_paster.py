"""The console script `gunicorn_paster [gunicorn options] FILE.ini[#app]`.

Precedence, lowest to highest: gunicorn's defaults, gunicorn's configuration file, the ini ([DEFAULT], then
[server:main]), GUNICORN_CMD_ARGS, the command line.
"""

from __future__ import annotations

import argparse
import configparser
import os
import sys
import traceback
from typing import Any
from urllib.parse import quote

from gunicorn import util
from gunicorn.errors import AppImportError
from paste.deploy import loadwsgi

from paste_agent.errors import AgentError, IniError, SettingError
from paste_agent.server import section
from paste_agent.server.application import IniApplication, one_line, services_of
from paste_agent.server.rehearsal import rehearse

USAGE = "%(prog)s [OPTIONS] FILE.ini[#app]"

#: Modules between `load` and the application: an error that none but them took part in needs no traceback.
_LOADERS = (__name__, "paste_agent.layers", "paste.deploy", "importlib", "configparser", "_frozen_importlib")


class PasterApplication(IniApplication):
    """The application of an ini, loaded by each worker, or by the arbiter when `preload_app` is set."""

    path: str  #: of the ini, absolute
    name: str  #: of the application in it

    def configure(self) -> None:
        parser = self.cfg.parser()
        line = parser.parse_args()
        given, config_file = self._given(parser, line)
        if len(line.args) != 1:
            parser.error("give one ini file")
        self.chdir()  # the working directory of the start, which a former `chdir` may have left
        path, _, name = line.args[0].partition("#")
        self.path, self.name = os.path.abspath(path), name or "main"
        self._set_global_conf(given)
        self.prepare(section.read(self.path, self.global_conf), config_file)
        self._set_global_conf(given)
        self.settle(section.read(self.path, self.global_conf), given)
        check_application(self.path, self.name, self.global_conf)
        self.install_hooks(services_of(self.path, self.global_conf, {**os.environ, **self.cfg.env}))

    @property
    def global_conf(self) -> dict[str, str]:
        """What `--paste-global` says."""
        return self.cfg.paste_global_conf or {}

    def load(self) -> Any:
        os.chdir(self.cfg.chdir)
        try:
            return loadwsgi.loadapp(f"config:{quote(self.path)}", name=self.name, global_conf=self.global_conf)
        except Exception as error:
            line = self._plain(error)
            if line is None:
                raise
        if self.cfg.check_config or self.cfg.print_config:
            sys.exit(f"Error: {line}")
        # In a worker: gunicorn prints it, and halts instead of starting the next worker.
        raise AppImportError(f"Error: {line}")

    def try_out(self) -> None:
        super().try_out()
        if self.cfg.preload_app:
            self.wsgi()
            return
        fault = rehearse(self._load_as_worker, self._told, self.cfg.timeout)
        if fault is not None:
            raise AppImportError(fault)

    def _load_as_worker(self) -> None:
        util.set_owner_process(self.cfg.uid, self.cfg.gid, initgroups=self.cfg.initgroups)
        self.load()

    def _told(self, error: Exception) -> str | None:
        return self.explain(error) if isinstance(error, AppImportError) else None

    def _plain(self, error: Exception) -> str | None:
        """One line for an error that the ini is to blame for; None for one of the application's own."""
        if isinstance(error, AgentError):
            return one_line(error)
        if not _is_loaders(error):
            return None
        line = one_line(error)
        return line if self.path in line else f"{self.path}: {line}"

    def _given(self, parser: argparse.ArgumentParser, line: argparse.Namespace) -> tuple[dict[str, Any], str | None]:
        """The settings of GUNICORN_CMD_ARGS and of the command line, and which configuration file they name."""
        environment = parser.parse_args(self.cfg.get_cmd_args_from_env())
        given: dict[str, Any] = {}
        for source in (environment, line):
            given.update({name: value for name, value in vars(source).items() if value is not None and name != "args"})
        return given, given.get("config")

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
