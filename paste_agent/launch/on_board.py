"""What is done at the start of every Python that has the agent on board: next to nothing.

It waits until something is imported that serves. Whatever else a program starts, a migration, a package's
installation, is left as it is.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

#: Variables of the agent's own, for the programs that are started with it: which Python it is installed for, and where
#: the libraries that it needs are, separated as in PATH.
PYTHON, LIBRARIES = "PASTE_AGENT__PYTHON", "PASTE_AGENT__LIBRARIES"

_SERVERS = ("waitress.server", "paste.httpserver", "wsgiref.simple_server", "werkzeug.serving", "gevent.pywsgi")
_SCRIPTS = ("waitress.runner", "pyramid.scripts.pserve", "paste.script.serve")
_GUNICORN = ("gunicorn.arbiter", "gunicorn.app.base")

_is_on_board = False


def is_on_board() -> bool:
    """Whether this process was started with the agent on board."""
    return _is_on_board


def board() -> None:
    """Wait for what serves; for sitecustomize, once a process."""
    global _is_on_board
    if _is_on_board:
        return
    _is_on_board = True
    directories = [entry for entry in os.environ.get(LIBRARIES, "").split(os.pathsep) if entry]
    if not set(directories) <= set(sys.path):  # a program of another virtual environment
        from paste_agent.launch import libraries

        libraries.lend(directories)
    from paste_agent.on_import import when_imported

    for name in (*_SERVERS, *_SCRIPTS, *_GUNICORN):
        when_imported(name, _on_server)


def _on_server(module: ModuleType) -> None:
    """Change one of the modules that serve, so that it asks for the application to be measured. Raises nothing."""
    try:
        if module.__name__ in _GUNICORN:
            from paste_agent.server import launched

            launched.install(module)
        else:
            from paste_agent.launch import servers

            servers.install(module)
    except Exception as fault:  # a version that is not what is expected here: it serves, and is not measured
        from paste_agent import log

        log.logger.warning("%s is not measured: %s: %s", module.__name__, type(fault).__name__, fault)
