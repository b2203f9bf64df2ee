"""Several applications in one, by path:

    [composite:site]
    use = egg:paste_agent#mount
    / = shop
    /dashboard = dashboard

For an ini that has no other dispatcher: it knows paths and nothing else. The longest path that fits is taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from paste_agent.errors import SettingError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class Mount:
    """The WSGI application."""

    def __init__(self, applications: Mapping[str, WSGIApplication]) -> None:
        """applications: by path, without a slash at its end; '' is the root."""
        #: As paste.urlmap has them: domain and path, and what is there; the longest path first.
        self.applications = [((None, path), applications[path]) for path in sorted(applications, key=len, reverse=True)]

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Pass a request on, the path that was taken moved from PATH_INFO to SCRIPT_NAME. Source: PEP 3333."""
        path = environ.get("PATH_INFO", "")
        for (_, prefix), application in self.applications:
            if path == prefix or path.startswith(f"{prefix}/") or not prefix:
                environ["SCRIPT_NAME"] = environ.get("SCRIPT_NAME", "") + prefix
                environ["PATH_INFO"] = path[len(prefix) :]
                return application(environ, start_response)
        start_response("404 Not Found", [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", "10")])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [b"Not found\n"]


def main(loader: Any, global_conf: Mapping[str, str], **local_conf: str) -> Mount:
    """The factory of `paste.composite_factory`. Raises SettingError for what is no path."""
    applications: dict[str, WSGIApplication] = {}
    for path, name in local_conf.items():
        if not path.startswith("/") or "//" in path or not path.isascii() or not path.isprintable():
            raise SettingError(
                f"{path} = {name}", None, "expected a path and the name of an application, such as /agent = dashboard"
            )
        applications[path.rstrip("/")] = loader.get_app(name, global_conf=global_conf)
    return Mount(applications)
