"""`paste-agent dashboard`: serves the pages about one service to who looks at it from this host, or with a token."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import sys
import threading
import webbrowser
from collections.abc import Iterator
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import click

from paste_agent import ini
from paste_agent.cli.target import target_of
from paste_agent.dashboard.access import Access, is_loopback
from paste_agent.dashboard.app import Dashboard
from paste_agent.errors import IniError, StoreError
from paste_agent.wording import host_text

#: A client that says nothing for so long is sent away. s
_SILENT_S = 30.0


@click.command()
@click.argument("path", metavar="INI|STORE", default="production.ini")
@click.option("--service", help="Which service, when the ini measures several.")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen at; any but a loopback one takes a token."
)
@click.option(
    "--port", type=click.IntRange(0, 65_535), default=8900, show_default=True, help="Port; 0: any that is free."
)
@click.option("--browser/--no-browser", default=True, help="Open a browser, where there is one.")
def command(path: str, service: str | None, host: str, port: int, browser: bool) -> None:
    """Serve the dashboard of a service, from its store. Ctrl-C ends it.

    On another address than this host's own it prints a token that the pages ask for: `access_token` of the ini, or one
    that is made for the time that it runs.
    """
    application = _application(path, service, host)
    with _server(host, port, application) as server:
        address = _url(host, server.server_port)
        token = application.guard.token
        if application.guard.is_open:
            click.echo(f"Dashboard of {_name(application, path)}: {address}")
        else:
            click.echo(f"Dashboard of {_name(application, path)}: {address}?token={token}")
            click.echo(
                "Who has that address sees paths, queries and errors of the service; the way there is not encrypted."
            )
        click.echo("Ctrl-C ends it.")
        sys.stdout.flush()
        if browser and _has_browser():
            opened = address if application.guard.is_open else f"{address}?token={token}"
            threading.Thread(target=webbrowser.open, args=(opened,), daemon=True).start()
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever(poll_interval=0.2)


def _application(path: str, service: str | None, host: str) -> Dashboard:
    found = None
    try:
        target = target_of(path, service)
        store, found = target.store, target.settings
    except StoreError as error:
        # No request was served yet: the pages say so, until one is.
        services = [one for one in ini.services(path, os.environ) if service in (None, one.service_name)]
        if "no store yet" not in str(error):
            raise
        (found,) = services
        store = found.store
    if is_loopback(host):
        guard = Access(None, is_open=True)
    else:
        guard = Access((found.access_token if found else None) or secrets.token_urlsafe(24))
    return Dashboard(store if found is None else None, found, guard)


def _name(application: Dashboard, path: str) -> str:
    return application.settings.service_name if application.settings is not None else path


def _has_browser() -> bool:
    """One that opens a window: a browser in the terminal would take it over."""
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or sys.platform == "darwin"):
        return False
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return True


def _url(host: str, port: int) -> str:
    shown = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname(), "": socket.gethostname()}.get(host, host)
    return f"http://{host_text(shown, port)}/"


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each connection. Ends without waiting for those that are open."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 32

    def server_bind(self) -> None:
        # As the base class, without asking the network for this host's name.
        if self.allow_reuse_address:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a browser that went away


class _Handler(WSGIRequestHandler):
    """Logs nothing: the address may have the token."""

    timeout = _SILENT_S

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def get_stderr(self) -> Any:
        return sys.stderr


class _ServerIPv6(_Server):
    address_family = socket.AF_INET6


@contextlib.contextmanager
def _server(host: str, port: int, application: Dashboard) -> Iterator[_Server]:
    kind = _ServerIPv6 if ":" in host else _Server
    try:
        server = kind((host, port), _Handler)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise IniError(
            f"{host_text(host, port)}: cannot be listened at: {reason}; give another --host or --port"
        ) from None
    try:
        server.set_app(application)
        yield server
    finally:
        server.server_close()
