"""A gunicorn application whose workers load what they serve, or whose arbiter does when `preload_app` is set."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from gunicorn import util
from gunicorn.errors import AppImportError

from paste_agent.server.application import IniApplication
from paste_agent.server.rehearsal import rehearse


class LoadingApplication(IniApplication):
    """Subclasses say what is loaded, and which errors of that are told in one line."""

    def make(self) -> Any:
        """Load the WSGI application; the working directory is the one that it is served from."""
        raise NotImplementedError

    def plain(self, error: Exception) -> str | None:
        """One line for an error of the configuration; None for one of the application's own, whose traceback counts."""
        raise NotImplementedError

    def load(self) -> Any:
        os.chdir(self.cfg.chdir)
        try:
            return self.make()
        except Exception as error:
            line = self.plain(error)
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

    def given(self, line: argparse.Namespace) -> dict[str, Any]:
        """What GUNICORN_CMD_ARGS says, and `line`, the parsed command line, which is stronger."""
        environment = self.environment_parser().parse_args(self.cfg.get_cmd_args_from_env())
        given: dict[str, Any] = {}
        for source in (environment, line):
            given.update({name: value for name, value in vars(source).items() if value is not None and name != "args"})
        return given

    def environment_parser(self) -> argparse.ArgumentParser:
        """Of GUNICORN_CMD_ARGS."""
        parser: argparse.ArgumentParser = self.cfg.parser()
        return parser

    def _load_as_worker(self) -> None:
        util.set_owner_process(self.cfg.uid, self.cfg.gid, initgroups=self.cfg.initgroups)
        self.load()

    def _told(self, error: Exception) -> str | None:
        return self.explain(error) if isinstance(error, AppImportError) else None
