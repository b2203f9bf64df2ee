"""http.client, which urllib, urllib3 and requests are built upon: whom a transaction connects to, and waits for."""

from __future__ import annotations

import functools
import re
from http.client import HTTPConnection, HTTPSConnection
from typing import Any

from paste_agent.spans import span

_MARK = "_paste_agent"
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def install() -> None:
    """Wrap the three methods that every request passes. A second call does nothing."""
    if hasattr(HTTPConnection.putrequest, _MARK):
        return
    putrequest, getresponse = HTTPConnection.putrequest, HTTPConnection.getresponse
    endheaders = HTTPConnection.endheaders

    @functools.wraps(putrequest)
    def remembering(self: HTTPConnection, method: str, url: str, *args: Any, **kwargs: Any) -> Any:
        self._paste_agent_asked = method, url  # type: ignore[attr-defined]
        return putrequest(self, method, url, *args, **kwargs)

    @functools.wraps(endheaders)
    def connecting(self: HTTPConnection, *args: Any, **kwargs: Any) -> Any:
        with span(_name_of(self)):
            return endheaders(self, *args, **kwargs)

    @functools.wraps(getresponse)
    def waiting(self: HTTPConnection, *args: Any, **kwargs: Any) -> Any:
        with span(_name_of(self)):
            return getresponse(self, *args, **kwargs)

    setattr(remembering, _MARK, putrequest)
    HTTPConnection.putrequest = remembering  # type: ignore[method-assign]
    HTTPConnection.endheaders = connecting  # type: ignore[method-assign]
    HTTPConnection.getresponse = waiting  # type: ignore[method-assign]


def _name_of(connection: HTTPConnection) -> str:
    """`GET http://host:port/path`, without a query and without credentials; '' where it cannot be told."""
    try:
        method, url = connection._paste_agent_asked  # type: ignore[attr-defined]
        scheme = "https" if isinstance(connection, HTTPSConnection) else "http"
        host, port = connection.host, connection.port
        if tunnel := getattr(connection, "_tunnel_host", None):  # the host is a proxy then
            host, port = tunnel, getattr(connection, "_tunnel_port", None) or port
        path = str(url).partition("?")[0].partition("#")[0]
        if _ABSOLUTE.match(path):  # as a proxy is asked; what is before the last @ may be a password
            scheme, _, rest = path.partition("://")
            return f"{method} {scheme}://{rest.rpartition('@')[2]}"
        return f"{method} {scheme}://{host}:{port}{path if path.startswith('/') else ''}"
    except Exception:  # a connection of somebody else's making
        return ""
