"""Servers other than gunicorn: each is given the application that it is handed, measured."""

from __future__ import annotations

import functools
import sys
from types import ModuleType
from typing import Any

from paste_agent.launch import service_name


def install(module: ModuleType) -> None:
    """Change a module of a server, just imported; or prepare for the application that a server's script will load."""
    change = {
        "waitress.server": _waitress,
        "paste.httpserver": _paste,
        "wsgiref.simple_server": _wsgiref,
        "werkzeug.serving": _werkzeug,
        "gevent.pywsgi": _gevent,
    }.get(module.__name__)
    if change is not None:
        change(module)
    else:
        from paste_agent.launch import wrapping

        wrapping.prepare(_name, _ini())


def _measured(application: Any) -> Any:
    from paste_agent.launch import wrapping  # and with it what measures: not before something is served

    return wrapping.launched(application, _name)


def _name() -> str:
    return service_name.of_command(sys.argv)


def _ini() -> str | None:
    """The ini that the program is told to serve."""
    found = (word.removeprefix("config:").partition("#")[0] for word in sys.argv[1:] if not word.startswith("-"))
    return next((path for path in found if path.endswith(".ini")), None)


def _first_argument(function: Any) -> Any:
    """`function`, whose first argument is an application, with a measured one."""

    @functools.wraps(function)
    def with_measured(application: Any, *args: Any, **kwargs: Any) -> Any:
        return function(_measured(application), *args, **kwargs)

    return with_measured


def _waitress(module: Any) -> None:
    module.create_server = _first_argument(module.create_server)


def _paste(module: Any) -> None:
    module.serve = _first_argument(module.serve)  # server_runner, of egg:Paste#http, looks it up


def _wsgiref(module: Any) -> None:
    """Django's development server, and many others, are made of it."""
    set_app = module.WSGIServer.set_app

    @functools.wraps(set_app)
    def set_measured(self: Any, application: Any) -> None:
        set_app(self, _measured(application))

    module.WSGIServer.set_app = set_measured


def _werkzeug(module: Any) -> None:
    """The development server of Flask."""
    _after_init(module.BaseWSGIServer, "app")


def _gevent(module: Any) -> None:
    _after_init(module.WSGIServer, "application")


def _after_init(server: Any, attribute: str) -> None:
    """Have a class of servers keep a measured application in `attribute`."""
    init = server.__init__

    @functools.wraps(init)
    def init_measured(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        application = getattr(self, attribute, None)
        if application is not None:
            setattr(self, attribute, _measured(application))

    server.__init__ = init_measured
