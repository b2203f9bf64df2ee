"""Factories for inis of tests: an application, a composite, and filters that write down who a request passed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

TRAIL = "tests.trail"

Application = Callable[[dict[str, Any], Callable[..., Any]], list[bytes]]


def app(global_conf: dict[str, str], **local_conf: str) -> Application:
    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [])
        return [b"hello"]

    return application


def composite(loader: Any, global_conf: dict[str, str], **local_conf: str) -> Application:
    inner: Application = loader.get_app(local_conf["inner"], global_conf=global_conf)
    return inner


def filter_app(app: Application, global_conf: dict[str, str], name: str = "?") -> Application:
    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        environ.setdefault(TRAIL, []).append(name)
        return app(environ, start_response)

    return application
