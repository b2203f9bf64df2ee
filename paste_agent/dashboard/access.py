"""Who may see the dashboard, and what every answer tells a browser about it.

A dashboard that is served by itself on the loopback address is open to this host, to requests that name it as such: a
page of somebody else's whose name was made to lead here is refused. Any other one takes a token. Behind a proxy every
address is the loopback's, so that of one which an ini mounts no address opens anything.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from typing import NamedTuple

#: As which a host calls itself.
_LOCAL_NAMES = frozenset(("localhost", "localhost.localdomain"))
_HOST = re.compile(r"\[([^\]]*)\](?::[0-9]*)?|([^:]*)(?::[0-9]*)?")
_MOST_TOKEN = 512

HEADERS = (
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
        " form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    # Not `no-referrer`: with it a browser calls the origin of our own form `null`.
    ("Referrer-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)


class Access(NamedTuple):
    """How one dashboard is guarded.

    token: that opens it; None: nothing does, unless it is open. is_open: to everybody who reaches it by a name of this
    host, which is for a server that listens on the loopback address alone.
    """

    token: str | None
    is_open: bool = False

    @property
    def cookie(self) -> str:
        """Its name. Two dashboards on two ports of a host share their cookies: so each has a name of its own."""
        return f"paste_agent_{self._derived('name')[:8]}"

    @property
    def cookie_value(self) -> str:
        """Stands for the token, and does not tell it."""
        return self._derived("cookie")

    def admits_token(self, offered: str | None) -> bool:
        return self.token is not None and offered is not None and _same(offered[: _MOST_TOKEN + 1], self.token)

    def admits_cookie(self, offered: str | None) -> bool:
        return self.token is not None and offered is not None and _same(offered[:_MOST_TOKEN], self.cookie_value)

    def _derived(self, purpose: str) -> str:
        key = (self.token or "").encode()
        return hmac.new(key, f"paste_agent dashboard {purpose}".encode(), hashlib.sha256).hexdigest()


def _same(offered: str, wanted: str) -> bool:
    """In a time that says nothing about where they differ."""
    return hmac.compare_digest(offered.encode("utf-8", "replace"), wanted.encode("utf-8", "replace"))


def is_loopback(host: str) -> bool:
    """Whether an address or a name is this host's own, and nobody else's."""
    if host.lower().rstrip(".") in _LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def names_this_host(header: str) -> bool:
    """Whether a Host header is one that a browser on this host sends for the loopback address."""
    match = _HOST.fullmatch(header.strip())
    return match is not None and is_loopback(match[1] or match[2] or "")


def is_own_origin(origin: str | None, host: str) -> bool:
    """Whether a form was sent from a page of ours. Who sends no Origin is no browser, and follows no foreign form.

    host: of the request. Its scheme is not looked at: behind a proxy it may be another one here than there.
    """
    if origin is None:
        return True
    scheme, _, found = origin.lower().partition("://")
    # A browser leaves the port of the scheme out of an origin; a proxy may have put it into the Host.
    port = {"http": ":80", "https": ":443"}.get(scheme)
    return bool(host) and port is not None and found == host.lower().removesuffix(port)
