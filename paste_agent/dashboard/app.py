"""The dashboard as an application of an ini: `[app:dashboard] use = egg:paste_agent#dashboard`, mounted anywhere.

Little is imported here, and nothing opened: every worker of a service may load it, and few are ever looked at by it.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from paste_agent import ini, settings
from paste_agent.dashboard.access import Access
from paste_agent.errors import IniError, SettingError
from paste_agent.settings import Settings

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

#: Where an application tells the agent the name of the route that it chose.
ROUTE_KEY = "paste_agent.route"
_KEYS = {
    "ini": "the ini of the service; without it this one",
    "service": "which service, when the ini measures several",
    "store": "path of a store, instead of an ini",
    "access_token": "opens the dashboard; without it that of the service",
}


class Dashboard:
    """The WSGI application. It keeps no open file, handle, thread or lock: servers may fork after it is made."""

    def __init__(self, store: str | None, found: Settings | None, guard: Access) -> None:
        """store: path of the store; None: that of the settings. One of the two is given."""
        self.store = store
        self.settings = found
        self.guard = guard

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request. Source: PEP 3333."""
        from webob import Request

        from paste_agent.dashboard import site

        environ[ROUTE_KEY] = f"/paste-agent{site.route_of(str(environ.get('PATH_INFO') or '/'))}"
        name = self.settings.service_name if self.settings is not None else ""
        response: Any = site.answer(Request(environ), site.Source(self.store, self.settings, name), self.guard)
        if response.status_int == 303:
            # As it is: WebOb would put the host before it that this process is called by, behind a proxy another one
            # than the viewer's.
            start_response(response.status, response.headerlist)
            return [] if environ["REQUEST_METHOD"] == "HEAD" else [response.body]
        answered: Iterable[bytes] = response(environ, start_response)
        return answered


def main(global_conf: Mapping[str, str], **local_conf: str) -> Dashboard:
    """The factory of `paste.app_factory`. Keys of its section, all of which may be left out: see `_KEYS`.

    Raises SettingError and IniError, one line each.
    """
    place = f"[{_section(global_conf)}]"
    for key in local_conf:
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, n=1)
            cure = f"unknown key; did you mean {near[0]}?" if near else f"unknown key; known are {', '.join(_KEYS)}"
            raise SettingError(f"{place} {key}", None, cure)
    here = global_conf.get("here") or os.getcwd()
    token = local_conf.get("access_token")
    if token is not None:
        token = str(settings.read("access_token", f"{place} access_token", token))
    if "store" in local_conf:
        if "ini" in local_conf or "service" in local_conf:
            raise SettingError(f"{place} store", local_conf["store"], "give either a store, or the ini of a service")
        path = str(settings.read("store", f"{place} store", local_conf["store"]))
        return Dashboard(os.path.join(here, path), None, Access(token))
    found = _service(global_conf, local_conf, here, place)
    return Dashboard(None, found, Access(token or found.access_token))


def _service(global_conf: Mapping[str, str], local_conf: Mapping[str, str], here: str, place: str) -> Settings:
    """The settings of the service that the dashboard is about."""
    if "ini" in local_conf:
        path = os.path.join(here, os.path.expanduser(local_conf["ini"].strip()))
        given = None
    else:
        path = global_conf.get("__file__", "")
        given = global_conf
        if not path:
            raise SettingError(
                f"{place} ini", None, "expected the path of the service's ini, or `store`, that of a store"
            )
    services = ini.services(path, os.environ, given)
    wanted = local_conf.get("service")
    chosen = [one for one in services if wanted is None or one.service_name == wanted.strip()]
    if len(chosen) != 1:
        names = ", ".join(one.service_name for one in services)
        raise SettingError(f"{place} service", wanted, f"expected one of the services that {path} measures: {names}")
    return chosen[0]


def _section(global_conf: Mapping[str, str]) -> str:
    """The section that the factory was probably called for, for messages: PasteDeploy does not tell it."""
    path = global_conf.get("__file__")
    try:
        found = ini.sections_that_use(path, "dashboard") if path else []
    except IniError:
        found = []
    return " or ".join(found) or "app:dashboard"
