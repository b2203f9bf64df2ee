"""Real cache servers for tests: each started once a session, on a free port of the loopback.

Import the fixture where it is used. Without the server a test is skipped, or fails where REQUIRE_SERVERS is set.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

_PATIENCE_S = 60.0


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
def _running(command: Sequence[str], port: int, directory: Path) -> Iterator[None]:
    """The process of a server from when it listens until the end of the block."""
    log = directory / f"{port}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=directory, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
                break
            except OSError:
                assert process.poll() is None, f"{command[0]} ended:\n{log.read_text(errors='replace')}"
                assert time.monotonic() < deadline, f"{command[0]} does not listen"
                time.sleep(0.02)
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=_PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def redis_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Port of a redis-server that keeps nothing."""
    directory, port = tmp_path_factory.mktemp("redis"), free_port()
    command = [_program("redis-server"), "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"]
    with _running(command, port, directory):
        yield port


@pytest.fixture(scope="session")
def redis_cluster_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Port of a redis-server that is a cluster by itself; its bus is 1 above it, or wherever there is room."""
    directory, port = tmp_path_factory.mktemp("redis-cluster"), free_port()
    command = [_program("redis-server"), "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no",
               "--cluster-enabled", "yes", "--cluster-port", str(free_port())]  # fmt: skip
    with _running(command, port, directory):
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
    directory, port = tmp_path_factory.mktemp("memcached"), free_port()
    command = [_program("memcached"), "-l", "127.0.0.1", "-p", str(port), "-U", "0", "-m", "16", "-t", "1"]
    if os.getuid() == 0:  # it refuses to run as root without being told as whom
        command += ["-u", "nobody"]
    with _running(command, port, directory):
        yield port
