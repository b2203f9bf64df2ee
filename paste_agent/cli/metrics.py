"""`paste-agent metrics`: what a service counted, for Prometheus: served, or printed once."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable
from importlib import util
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import click

from paste_agent import scrape
from paste_agent.cli.target import catch_up, settings_of
from paste_agent.errors import AgentError, SettingError, StoreError
from paste_agent.settings import Settings
from paste_agent.transaction import Environ, StartResponse
from paste_agent.wording import host_text

#: What OpenTelemetry's own exporter for Prometheus listens on.
PORT = 9464
#: Of a client that sends nothing.
_TIMEOUT_S = 30.0


@click.command(short_help="Metrics for Prometheus, served or printed once.")
@click.argument("path", metavar="INI|STORE", default="production.ini")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=PORT, show_default=True, help="0: any that is free.")
@click.option("--token-file", help="File with a token; scrapes have to bring it as a Bearer token.")
@click.option("--once", is_flag=True, help="Print the metrics and end.")
@click.option("--openmetrics", is_flag=True, help="With --once: as OpenMetrics, with exemplars.")
@click.option("--service", help="Which service, when the ini measures several.")
def command(
    path: str, host: str, port: int, token_file: str | None, once: bool, openmetrics: bool, service: str | None
) -> None:
    """Serve what a service counted to Prometheus, at http://127.0.0.1:9464/metrics, until it is interrupted.

    It reads the service's store, so the service itself needs no further setting, and may end and start meanwhile.
    """
    if util.find_spec("prometheus_client") is None:
        raise AgentError(f"prometheus_client is missing: {scrape.NEEDED}")
    found = settings_of(path, service)
    source = scrape.Source(found, path)
    if once:
        if found is not None:
            catch_up(found)
        try:
            scrape.import_needed()
            text = b"".join(scrape.render(source, as_openmetrics=openmetrics))
        except scrape.Unreadable as error:
            raise StoreError(error.detail) from None
        click.echo(text, nl=False)
        return
    token = None if token_file is None else _token_of(token_file)
    _serve(scrape.MetricsApp(source, token, _sayer()), found, host, port)


def _token_of(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            text = file.read(4096)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no text"
        raise SettingError("--token-file", path, f"{reason}; give a file that holds the token") from None
    return scrape.token_of("--token-file", text)


def _sayer() -> scrape.Say:
    """Says on stderr why there is no answer: once, not at every scrape."""
    said = ""

    def say(kind: str, message: str) -> None:
        nonlocal said
        if message != said:
            said = message
            click.echo(f"paste-agent: {message}", err=True)

    return say


class _Handler(WSGIRequestHandler):
    timeout = _TIMEOUT_S

    def log_message(self, format: str, *args: Any) -> None:
        """A line for each scrape tells nobody anything."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # the one in between asks DNS for a name of ours
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client has hung up."""


class _Server6(_Server):
    address_family = socket.AF_INET6


def _serve(app: scrape.MetricsApp, found: Settings | None, host: str, port: int) -> None:
    one_at_a_time = threading.Lock()

    def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if found is not None:
            with one_at_a_time:  # of a service that was killed nobody else counts the rest
                catch_up(found)
        return app(environ, start_response)

    try:
        server = (_Server6 if ":" in host else _Server)((host, port), _Handler)
    except OSError as error:
        cure = f"{error.strerror}; choose another with --host and --port"
        raise SettingError("address", host_text(host, port), cure) from None
    with server:
        server.set_app(application)
        name = "of a store" if found is None else f"of {found.service_name}"
        click.echo(f"Metrics {name} at http://{host_text(host, server.server_port)}/metrics (Ctrl-C ends it)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass
