"""Real cache servers for tests: each started once a session, on a free port of the loopback.

Import the fixture where it is used. Without the server a test is skipped, or fails where REQUIRE_SERVERS is set.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

_PATIENCE_S = 60.0
_ATTEMPTS = 5


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        if os.environ.get("REQUIRE_SERVERS"):
            pytest.fail(f"{name} is not installed, and REQUIRE_SERVERS is set")
        pytest.skip(f"{name} is not installed")
    return found


@contextmanager
def _running(command_of: Callable[[int], Sequence[str]], directory: Path) -> Iterator[int]:
    """The port of a server from when it listens until the end of the block.

    Somebody else may be faster to take a port, as client of another server: then another one.
    """
    log = directory / "log"
    for _ in range(_ATTEMPTS):
        port = free_port()
        with log.open("wb") as out:
            process = subprocess.Popen(
                command_of(port), cwd=directory, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
            )
        try:
            if _listens(process, port):
                yield port
                return
            said = log.read_text(errors="replace")
            assert "already in use" in said, f"{command_of(port)[0]} ended:\n{said}"
        finally:
            process.terminate()
            try:
                process.wait(timeout=_PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    pytest.fail("no port stays free for as long as a server needs to take it")


def _listens(process: subprocess.Popen[bytes], port: int) -> bool:
    """Whether a server has come to listen, rather than ended."""
    deadline = time.monotonic() + _PATIENCE_S
    while process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
            return process.poll() is None
        except OSError:
            assert time.monotonic() < deadline, "it does not listen"
            time.sleep(0.02)
    return False


@pytest.fixture(scope="session")
def redis_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Port of a redis-server that keeps nothing."""
    with _running(_redis, tmp_path_factory.mktemp("redis")) as port:
        yield port


def _redis(port: int, *more: str) -> list[str]:
    program = _program("redis-server")
    return [program, "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no", *more]


@pytest.fixture(scope="session")
def redis_cluster_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Port of a redis-server that is a cluster by itself; its bus is wherever there is room."""

    def command_of(port: int) -> list[str]:
        return _redis(port, "--cluster-enabled", "yes", "--cluster-port", str(free_port()))

    with _running(command_of, tmp_path_factory.mktemp("redis-cluster")) as port:
        _ask(port, b"CLUSTER ADDSLOTSRANGE 0 16383\r\n", b"+OK")
        deadline = time.monotonic() + _PATIENCE_S
        while b"cluster_state:ok" not in _ask(port, b"CLUSTER INFO\r\n"):
            assert time.monotonic() < deadline, "the cluster is not there"
            time.sleep(0.02)
        yield port


def _ask(port: int, command: bytes, expected: bytes = b"") -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_S) as connection:
        connection.sendall(command)
        answer = connection.recv(65536)
    assert answer.startswith(expected), answer
    return answer


@pytest.fixture(scope="session")
def memcached_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Port of a memcached."""
    # It refuses to run as root without being told as whom.
    user = ["-u", "nobody"] if os.getuid() == 0 else []

    def command_of(port: int) -> list[str]:
        return [_program("memcached"), "-l", "127.0.0.1", "-p", str(port), "-U", "0", "-m", "16", "-t", "1", *user]

    with _running(command_of, tmp_path_factory.mktemp("memcached")) as port:
        yield port
