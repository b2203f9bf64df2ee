"""gunicorn in a program that is started with the agent on board, however it is started.

The application that gunicorn loads is measured, and the arbiter knows of it: hooks and witness are those of
`gunicorn_paster`, whose own application and arbiter bring theirs.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from gunicorn.arbiter import Arbiter

from paste_agent import lifecycle
from paste_agent.errors import AgentError
from paste_agent.launch import service_name, wrapping
from paste_agent.server import hooks
from paste_agent.server.arbiter import WitnessingArbiter
from paste_agent.settings import Settings

#: What `default_proc_name` is where nothing has been said to gunicorn about what it serves.
_UNSAID = "gunicorn"
#: Worker classes that serve no WSGI, by a part of their name.
_ASYNCHRONOUS = ("uvicorn", "hypercorn", "asgi", "aiohttp")


class LaunchedArbiter(WitnessingArbiter):
    """The arbiter of any gunicorn application."""

    def __init__(self, app: Any) -> None:
        self._services: list[Settings] = []
        super().__init__(app)

    def served(self) -> Sequence[Settings]:
        return self._services

    def setup(self, app: Any) -> None:
        """gunicorn's, at the start and at each SIGHUP, when `app.cfg` is complete."""
        try:
            self._compose(app)
        except Exception as fault:
            lifecycle.on_fault("launch", fault)
        super().setup(app)
        try:
            if app.cfg.preload_app:  # it is known by now what serves
                self._announce(lifecycle.served())
        except Exception as fault:
            lifecycle.on_fault("launch", fault)

    def _compose(self, app: Any) -> None:
        if hooks.are_composed(app.cfg):
            return
        found = lifecycle.served() or _services_of(app)
        hooks.compose(app.cfg, self._services)
        if app.cfg.preload_app and not lifecycle.served():
            self._services[:] = found  # and announced when it has loaded: its pipeline may have services of its own
        else:
            self._announce(found)

    def _announce(self, services: Sequence[Settings]) -> None:
        self._services[:] = services
        lifecycle.announce(services)


def install(module: ModuleType) -> None:
    """Change `gunicorn.arbiter` or `gunicorn.app.base`, just imported."""
    found: Any = module
    if getattr(found, "Arbiter", None) is Arbiter:
        found.Arbiter = LaunchedArbiter
    base = getattr(found, "BaseApplication", None)
    if base is not None:
        base.wsgi = _measuring(base.wsgi)


def _measuring(wsgi: Any) -> Any:
    """`BaseApplication.wsgi`, which loads the application at its first call and keeps it."""

    @functools.wraps(wsgi)
    def measuring(self: Any) -> Any:
        if self.callable is not None:
            return wsgi(self)
        is_wsgi = not _is_asynchronous(self)
        name = functools.partial(_name_of, self)
        if is_wsgi:
            wrapping.prepare(name, _ini_of(self))
        application = wsgi(self)
        if is_wsgi:
            application = wrapping.launched(application, name)
        else:
            wrapping.say("worker", f"{name()}: not measured: its workers serve ASGI, and the agent measures WSGI")
        if self.callable is not None:
            self.callable = application
        return application

    return measuring


def _is_asynchronous(app: Any) -> bool:
    name = str(app.cfg.settings["worker_class"].get()).lower()
    return any(word in name for word in _ASYNCHRONOUS)


def _name_of(app: Any) -> str:
    said = app.cfg.default_proc_name
    if said == _UNSAID:
        said = app.cfg.wsgi_app or ""
    return service_name.of_module(said) or service_name.of_command(sys.argv)


def _ini_of(app: Any) -> str | None:
    path: str = app.cfg.paste or app.cfg.default_proc_name
    path = os.path.abspath(path.removeprefix("config:").partition("#")[0])
    return path if path.endswith(".ini") else None


def _services_of(app: Any) -> list[Settings]:
    """What the workers will probably serve."""
    from paste_agent.server import application  # which imports gunicorn's, and that the arbiter

    environ = {**os.environ, **app.cfg.env}
    path = _ini_of(app)
    if path is None:
        return wrapping.fallback(_name_of(app), environ)
    try:
        return application.services_of(path, app.cfg.paste_global_conf or {}, environ)
    except AgentError:  # whoever loads the pipeline says so
        return []
