"""The server runner of `[server:main] use = egg:paste_agent`, for `pserve` and `paster serve`.

They load the application and hand it over ready-made: it lives in the arbiter before the first fork, whatever
`preload_app` says, and SIGHUP cannot load it again. Neither the command line nor GUNICORN_CMD_ARGS is read.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from paste_agent.server import section
from paste_agent.server.application import IniApplication, services_of


class BuiltApplication(IniApplication):
    """An application that somebody else has loaded."""

    def __init__(self, application: Any, global_conf: Mapping[str, str], local_conf: Mapping[str, str]) -> None:
        self._application = application
        self._global_conf = global_conf
        self._local_conf = local_conf
        super().__init__()

    def configure(self) -> None:
        server = section.of_runner(self._global_conf, self._local_conf)
        self.prepare(server)
        self.settle(server, {})
        self.install_hooks(services_of(server.path, self._global_conf, {**os.environ, **self.cfg.env}))

    def load(self) -> Any:
        return self._application


def main(app: Any, global_conf: Mapping[str, str] | None, **local_conf: str) -> None:
    """Serve `app` with gunicorn; PasteDeploy's `paste.server_runner`. Returns by SystemExit only."""
    try:
        BuiltApplication(app, dict(global_conf or {}), local_conf).run()
    except SystemExit as leaving:
        if not leaving.code:
            raise
        _exit(leaving.code)


def _exit(code: int | str) -> NoReturn:
    """End this process with the status of `sys.exit(code)`.

    Both `pserve` and `paster serve` catch SystemExit and end with 0. Of the arbiter that would hide the failure from
    whoever started it, and of a worker it would hide from the arbiter that the worker cannot boot: it would start
    another, and another.
    """
    if isinstance(code, str):
        sys.stderr.write(f"{code}\n")
        code = 1
    atexit._run_exitfuncs()  # os._exit would skip them
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
