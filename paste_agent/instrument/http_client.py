"""http.client, which urllib, urllib3 and requests are built upon: whom a transaction connects to, and waits for."""

from __future__ import annotations

import functools
from http.client import HTTPConnection, HTTPSConnection
from typing import Any

from paste_agent.spans import span

_MARK = "_paste_agent"


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
    """`GET http://host:port/path`, without a query and without credentials."""
    method, url = getattr(connection, "_paste_agent_asked", ("", ""))
    scheme = "https" if isinstance(connection, HTTPSConnection) else "http"
    path = str(url).partition("?")[0].partition("#")[0]
    if "://" in path:  # as a proxy is asked
        scheme, _, rest = path.partition("://")
        host, slash, path = rest.partition("/")
        return f"{method} {scheme}://{host.rpartition('@')[2]}{slash}{path}"
    return f"{method} {scheme}://{connection.host}:{connection.port}{path}"
