"""httpx: whom a transaction calls through its transports, of clients of both kinds.

A request is one span until the headers of its answer are there; redirects, and what an authentication asks for, are
requests of their own. A client with a transport of somebody else's making is not seen.

Tested with 0.24.1, 0.27.2 and 0.28.1.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from paste_agent import lifecycle
from paste_agent.inside import CALL
from paste_agent.instrument.http_client import Target, end_call, text_of
from paste_agent.instrument.wrapping import wrap
from paste_agent.raised import type_name
from paste_agent.spans import Span, begin, headers_of
from paste_agent.transaction import current

_MAX_URL = 2048

_get = current.get


def install(module: ModuleType) -> None:
    """Wrap how the two transports handle a request. A second call does nothing."""
    wrap(
        [
            (module.HTTPTransport, "handle_request", _handling),
            (module.AsyncHTTPTransport, "handle_async_request", _handling_async),
        ]
    )


#: As http.client has them.
_VERSIONS = {"HTTP/1.0": 10, "HTTP/1.1": 11, "HTTP/2": 20}


class _Call:
    """A request under way, its headers on it; they are taken off at the end: the caller may use the request again."""

    __slots__ = ("method", "request", "span", "target", "told")

    def __init__(self, request: Any, span: Span, target: Target) -> None:
        self.request = request
        self.span = span
        self.target = target
        self.method = request.method
        self.told: list[str] = []

    def tell(self) -> None:
        try:
            headers = self.request.headers
            if "traceparent" in headers:
                return
            for name, value in headers_of(self.span):
                if name not in headers:
                    headers[name] = value
                    self.told.append(name)
        except Exception as fault:
            lifecycle.on_fault("propagation", fault)

    def end(self, response: Any, failed: str | None) -> None:
        status = version = None
        try:
            for name in self.told:
                self.request.headers.pop(name, None)
            if response is not None:
                status = int(response.status_code)
                version = _VERSIONS.get(response.http_version)
        except Exception as fault:
            lifecycle.on_fault("a call", fault)
        end_call(self.span, self.method, self.target, status, failed, version)


def _begun(request: Any) -> _Call | None:
    try:
        target = _target_of(request.url)
        span = begin(CALL, text_of(request.method, target))
        if span is None:
            return None
        call = _Call(request, span, target)
    except Exception as fault:
        lifecycle.on_fault("a call", fault)
        return None
    call.tell()
    return call


def _target_of(url: Any) -> Target:
    host, port = url.host, url.port or {"http": 80, "https": 443}.get(url.scheme)
    shown = f"[{host}]" if ":" in host else host
    path = url.raw_path.decode("ascii", "replace").partition("?")[0]
    return Target(host or None, port, f"{url.scheme}://{shown}{'' if port is None else f':{port}'}{path}"[:_MAX_URL])


def _handling(original: Callable[..., Any]) -> Callable[..., Any]:
    def handle_request(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        call = None if _get() is None else _begun(request)
        if call is None:
            return original(self, request, *args, **kwargs)
        try:
            response = original(self, request, *args, **kwargs)
        except BaseException as error:
            call.end(None, type_name(error))
            raise
        call.end(response, None)
        return response

    return handle_request


def _handling_async(original: Callable[..., Any]) -> Callable[..., Any]:
    async def handle_async_request(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        call = None if _get() is None else _begun(request)
        if call is None:
            return await original(self, request, *args, **kwargs)
        try:
            response = await original(self, request, *args, **kwargs)
        except BaseException as error:
            call.end(None, type_name(error))
            raise
        call.end(response, None)
        return response

    return handle_async_request
