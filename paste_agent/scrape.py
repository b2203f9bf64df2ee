"""The WSGI application that Prometheus scrapes: `[app:metrics] use = egg:paste_agent#metrics`.

Whichever worker answers reads the service's store, so all of them say the same. A scrape is a request like any other:
it takes no lock that others wait for, and pauses so that they get the interpreter.
"""

from __future__ import annotations

import hmac
import os
import re
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module, util
from typing import TYPE_CHECKING, NamedTuple

from paste_agent import ini, native
from paste_agent.errors import AgentError, IniError, RuntimeDirError, SettingError
from paste_agent.launch import configuration
from paste_agent.log import Warnings
from paste_agent.runtime_dir import existing_service_dir
from paste_agent.settings import CONFIG_FILE, IN_MEMORY, Settings
from paste_agent.transaction import Environ, StartResponse

if TYPE_CHECKING:
    from paste_agent.exporters.prometheus import Breath

SECTION = "app:metrics"
#: Known keys of it.
KEYS = ("service", "access_token")
NEEDED = "pip install 'paste-agent[prometheus]'"
#: What prometheus_client imports, in pieces: whoever serves beside gets the interpreter in between.
_PIECES = (
    *("ssl", "email.parser", "http.server", "urllib.request", "wsgiref.simple_server", "sqlite3", "prometheus_client"),
    *("paste_agent.store.snapshot", "paste_agent.store.opening", "paste_agent.exporters.prometheus"),
)
_CHUNK = 1 << 16
_GZIP = 16 + zlib.MAX_WBITS
_PATHS = ("", "/", "/metrics")

Say = Callable[[str, str], None]


class Unreadable(Exception):
    """The store cannot be read now. str() of it is for anybody, `detail` for who runs the service."""

    def __init__(self, message: str, detail: str) -> None:
        super().__init__(message)
        self.detail = detail


class Source(NamedTuple):
    """What is read. settings: of the service; None when `path`, its store, is all that is known."""

    settings: Settings | None
    path: str = ""

    def store(self) -> str:
        """Path of the store as of now. Raises Unreadable."""
        if self.settings is None:
            return self.path
        from paste_agent.store.opening import existing_store

        name = self.settings.service_name
        try:
            directory = existing_service_dir(self.settings, os.environ)
        except RuntimeDirError as error:
            if self.settings.store == IN_MEMORY:
                raise Unreadable("the service's processes have no store in common; see its log", str(error)) from None
            directory = None
        path = existing_store(self.settings, directory)
        if path is None:
            message = "no store yet; send the service a request"
            raise Unreadable(message, f"{name} has {message}")
        return path


def import_needed() -> None:
    """Import what a scrape needs, when the first one comes. Raises ImportError."""
    for name in _PIECES:
        if name not in sys.modules:
            with native.UNDIVIDED:
                import_module(name)
            time.sleep(0.001)


def render(source: Source, *, as_openmetrics: bool, breath: Breath | None = None) -> Iterator[bytes]:
    """All metrics of a service as text, in parts. Raises Unreadable, when some of them may have been given already."""
    from paste_agent.exporters import prometheus
    from paste_agent.exporters.resource import facts, resource_of
    from paste_agent.store import snapshot
    from paste_agent.store.store import Store

    path = source.store()
    try:
        store = Store(path, read_only=True)
        try:
            found = snapshot.read(store, time.time(), examples=as_openmetrics)
        finally:
            store.close()
        if source.settings is not None:
            resource = resource_of(source.settings, found.instance_id, facts())
        else:
            resource = {"service.name": found.service, "service.instance.id": found.instance_id}
        breath = breath or prometheus.Breath()
        yield from prometheus.write(found, resource, as_openmetrics=as_openmetrics, breath=breath)
    except AgentError as error:
        raise Unreadable("the store cannot be read; see the service's log", str(error)) from None
    except Exception as error:  # its pages may hold anything
        detail = f"{path}: cannot be read: {type(error).__name__}: {error}"
        raise Unreadable("the store cannot be read; see the service's log", detail) from None


class MetricsApp:
    """Answers GET and HEAD. Holds nothing between two requests."""

    def __init__(self, source: Source, access_token: str | None, say: Say) -> None:
        """access_token: that a request has to bring; None: anybody may ask. say: told why there is no answer."""
        self._source = source
        self._authorization = None if access_token is None else f"Bearer {access_token}".encode()
        self._say = say

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        # Where the agent stands in front of it: no path that anybody may choose becomes a route.
        environ["paste_agent.route"] = environ.get("SCRIPT_NAME") or "/metrics"
        status, fields, body = self._answer(environ)
        fields += [("Content-Length", str(len(body))), ("Cache-Control", "no-store")]
        start_response(status, fields)
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else body]

    def _answer(self, environ: Environ) -> tuple[str, list[tuple[str, str]], bytes]:
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _line("405 Method Not Allowed", "GET and HEAD are answered", ("Allow", "GET, HEAD"))
        if not self._may(environ.get("HTTP_AUTHORIZATION", "")):
            text = "a token is needed: `access_token` of the metrics' section, as a Bearer token"
            return _line("401 Unauthorized", text, ("WWW-Authenticate", 'Bearer realm="metrics"'))
        if environ.get("PATH_INFO", "") not in _PATHS:
            return _line("404 Not Found", "nothing here; the metrics are at /metrics")
        try:
            import_needed()
            return self._metrics(environ)
        except Unreadable as error:
            self._say("scrape", f"metrics: {error.detail}")
            return _line("503 Service Unavailable", str(error))

    def _may(self, authorization: str) -> bool:
        if self._authorization is None:
            return True
        scheme, _, token = authorization.partition(" ")
        # WSGI carries a header's bytes as latin-1. Of the scheme the case does not matter.
        given = f"{scheme.title()} {token.strip()}".encode("latin-1", "replace")
        return hmac.compare_digest(given, self._authorization)

    def _metrics(self, environ: Environ) -> tuple[str, list[tuple[str, str]], bytes]:
        from paste_agent.exporters import prometheus

        as_openmetrics = prometheus.is_openmetrics(environ.get("HTTP_ACCEPT", ""))
        breath = prometheus.Breath()
        parts = render(self._source, as_openmetrics=as_openmetrics, breath=breath)
        fields = [
            ("Content-Type", prometheus.OPENMETRICS_TYPE if as_openmetrics else prometheus.TEXT_TYPE),
            ("Vary", "Accept, Accept-Encoding"),
        ]
        if _takes_gzip(environ.get("HTTP_ACCEPT_ENCODING", "")):
            parts = _zipped(parts, breath)
            fields.append(("Content-Encoding", "gzip"))
        return "200 OK", fields, b"".join(parts)


def _line(status: str, text: str, *fields: tuple[str, str]) -> tuple[str, list[tuple[str, str]], bytes]:
    return status, [("Content-Type", "text/plain; charset=utf-8"), *fields], f"{text}\n".encode()


def _takes_gzip(accepted: str) -> bool:
    return any(
        re.fullmatch(r"\s*gzip\s*(;\s*q=(1(\.0*)?|0?\.0*[1-9][0-9]*)\s*)?", part, re.ASCII | re.IGNORECASE)
        for part in accepted.split(",")
    )


def _zipped(parts: Iterable[bytes], breath: Breath) -> Iterator[bytes]:
    """In pieces: where greenlets serve, nobody else would run until all is done."""
    zipper = zlib.compressobj(6, zlib.DEFLATED, _GZIP)
    for part in parts:
        for begin in range(0, len(part), _CHUNK):
            yield zipper.compress(part[begin : begin + _CHUNK])
            breath()
    yield zipper.flush()


# -- the section ---------------------------------------------------------------------------------------------------


def main(global_conf: Mapping[str, str], **local_conf: str) -> MetricsApp:
    """The `paste.app_factory` named `metrics`.

    local_conf: `service`: whose metrics, where the ini measures several; `access_token`: `${NAME}` in it stands for a
    variable of the environment.
    Raises SettingError and IniError, one line each.
    """
    for key in local_conf:
        if key not in KEYS and not (key.startswith("__") and key.endswith("__")):
            raise SettingError(f"[{SECTION}] {key}", None, f"unknown key; known are {' and '.join(KEYS)}")
    if util.find_spec("prometheus_client") is None:
        raise SettingError(f"[{SECTION}] use", "egg:paste_agent#metrics", f"prometheus_client is missing: {NEEDED}")
    chosen = _service_of(global_conf or {}, local_conf.get("service"))
    token = None
    if "access_token" in local_conf:
        token = token_of(f"[{SECTION}] access_token", _expanded(local_conf["access_token"].strip()))
    return MetricsApp(Source(chosen), token, Warnings(chosen.service_name))


def _service_of(global_conf: Mapping[str, str], wanted: str | None) -> Settings:
    path = global_conf.get("__file__")
    try:
        if not path:
            raise IniError(f"[{SECTION}]: not loaded from an ini, and no {CONFIG_FILE} says what is measured")
        found = ini.services(path, os.environ, global_conf)
    except IniError:
        if not os.environ.get(CONFIG_FILE):
            raise
        found = [configuration.settings_of(os.environ)]
    chosen = found if wanted is None else [one for one in found if one.service_name == wanted]
    if len(chosen) != 1:
        names = ", ".join(one.service_name for one in found)
        raise SettingError(f"[{SECTION}] service", wanted, f"expected one of {names}")
    return chosen[0]


def _expanded(text: str) -> str:
    variable = re.fullmatch(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}", text)
    if variable is None:
        return text
    if not os.environ.get(variable[1]):
        raise SettingError(f"[{SECTION}] access_token", text, f"the environment variable {variable[1]} is not set")
    return os.environ[variable[1]]


def token_of(place: str, text: str) -> str:
    """A token without the white space around it. place: for messages. Raises SettingError, which does not show it."""
    token = text.strip()
    # What a header can carry. Source: RFC 6750, b64token.
    if not re.fullmatch(r"[A-Za-z0-9._~+/-]+=*", token):
        cure = "expected a token of letters, digits and ._~+/- alone, for example of `openssl rand -hex 32`"
        raise SettingError(place, "***", cure)
    return token
