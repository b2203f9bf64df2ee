"""A transport of requests with a deadline for every byte: a socket's own timeout begins anew with each that arrives."""

from __future__ import annotations

import http.client
import io
import socket
from collections.abc import Callable
from typing import Any

from requests.adapters import HTTPAdapter


class _Reads(io.RawIOBase):
    """What a socket receives, until the deadline.

    A socket's own timeout begins anew with each byte that arrives: a collector that dribbles would hold the reporter.
    """

    def __init__(self, sock: socket.socket, remaining_s: Callable[[], float]) -> None:
        self._socket = sock
        self._raw = sock.makefile("rb", buffering=0)
        self._remaining_s = remaining_s

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        remaining_s = self._remaining_s()
        if remaining_s <= 0:
            raise TimeoutError("timed out")
        self._socket.settimeout(remaining_s)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Readable:
    """All that `http.client` wants of a socket to read a response from."""

    def __init__(self, sock: socket.socket, remaining_s: Callable[[], float]) -> None:
        self._reads = _Reads(sock, remaining_s)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self._reads)


def _bounded(pool: type[Any], remaining_s: Callable[[], float]) -> type[Any]:
    """A pool like `pool` whose responses end at the deadline, headers included."""

    def response_class(_: object, sock: socket.socket, *args: Any, **options: Any) -> http.client.HTTPResponse:
        return http.client.HTTPResponse(_Readable(sock, remaining_s), *args, **options)  # type: ignore[arg-type]

    connection = type("Connection", (pool.ConnectionCls,), {"response_class": response_class})
    return type("Pool", (pool,), {"ConnectionCls": connection})


class DeadlineAdapter(HTTPAdapter):
    """Never retries by itself: the Sender does, under its one deadline."""

    def __init__(self, remaining_s: Callable[[], float]) -> None:
        self._remaining_s = remaining_s
        super().__init__(pool_connections=1, pool_maxsize=1, max_retries=0)

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self._bound(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        known = proxy in self.proxy_manager
        manager = super().proxy_manager_for(proxy, **options)
        if not known:
            self._bound(manager)
        return manager

    def _bound(self, manager: Any) -> None:
        classes = manager.pool_classes_by_scheme.items()
        manager.pool_classes_by_scheme = {scheme: _bounded(pool, self._remaining_s) for scheme, pool in classes}
