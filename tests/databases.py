"""Real database servers, each started once a session on a free port, with nothing but a directory of its own.

    @pytest.fixture(scope="session")
    def postgresql() -> Iterator[Server]:
        yield from or_skipped(running_postgresql)

Where a server is not installed its tests are skipped; where REQUIRE_SERVERS is set, they fail.
"""

from __future__ import annotations

import glob
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

import pytest

#: Servers refuse to run as root: the first of these that exists lends its name.
_USERS = {"postgresql": ("postgres", "nobody"), "mariadb": ("mysql", "nobody")}
_DEADLINE_S = 60.0
_ATTEMPTS = 5


class Server(NamedTuple):
    """A server that accepts connections of `user` without a password."""

    host: str
    port: int
    user: str
    database: str


class NotInstalled(Exception):
    """str() of it says what is missing."""


def _program(name: str) -> str:
    found = shutil.which(name) or next(iter(sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"), reverse=True)), None)
    found = found or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/sbin")
    if found is None:
        raise NotInstalled(f"{name} is not installed")
    # Wrapper scripts may stand in the way of a change of user.
    return os.path.realpath(found)


def _user_of(kind: str) -> str | None:
    """Whose name the server runs under; None: ours, which is not root's."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in _USERS[kind] if name in known)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _directory(user: str | None) -> Iterator[str]:
    """A directory of that user's, away from pytest's own, which only its owner may enter."""
    path = tempfile.mkdtemp(prefix="paste-agent-db-")
    try:
        if user is not None:
            entry = pwd.getpwnam(user)
            os.chown(path, entry.pw_uid, entry.pw_gid)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _environment(directory: str) -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), "HOME": directory, "LC_ALL": "C", "TMPDIR": directory}


def _ran(command: Sequence[str], directory: str, user: str | None) -> None:
    done = subprocess.run(
        command,
        user=user,
        group=None if user is None else pwd.getpwnam(user).pw_gid,
        extra_groups=None if user is None else [],
        cwd=directory,
        env=_environment(directory),
        capture_output=True,
        text=True,
        timeout=2 * _DEADLINE_S,
    )
    assert done.returncode == 0, f"{command[0]}: {done.stdout}\n{done.stderr}"


@contextmanager
def _running(
    command_of: Callable[[int], list[str]], directory: str, user: str | None, stop: signal.Signals
) -> Iterator[int]:
    """The port of a server that accepts connections. Somebody else may be faster to take a port: then another one."""
    for attempt in range(_ATTEMPTS):
        port = free_port()
        with open(os.path.join(directory, f"log-{attempt}"), "wb") as log:
            process = subprocess.Popen(
                command_of(port),
                user=user,
                group=None if user is None else pwd.getpwnam(user).pw_gid,
                extra_groups=None if user is None else [],
                cwd=directory,
                env=_environment(directory),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            if _answers(process, port):
                yield port
                return
        finally:
            _end(process, stop)
    with open(os.path.join(directory, f"log-{_ATTEMPTS - 1}"), encoding="utf-8", errors="replace") as said:
        raise AssertionError(f"the server does not start: {said.read()[-4000:]}")


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    deadline = time.monotonic() + _DEADLINE_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except OSError:
            time.sleep(0.05)
        else:
            return process.poll() is None
    return False


def _end(process: subprocess.Popen[bytes], stop: signal.Signals) -> None:
    if process.poll() is None:
        process.send_signal(stop)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(30)


@contextmanager
def running_postgresql() -> Iterator[Server]:
    """Raises NotInstalled."""
    initdb, postgres = _program("initdb"), _program("postgres")
    user = _user_of("postgresql")
    with _directory(user) as directory:
        data = os.path.join(directory, "data")
        _ran(
            [initdb, "-D", data, "-U", "agent", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C"],
            directory,
            user,
        )

        def command_of(port: int) -> list[str]:
            return [postgres, "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", directory, "-F"]

        with _running(command_of, directory, user, signal.SIGINT) as port:
            server = Server("127.0.0.1", port, "agent", "postgres")
            _until_it_serves(server)
            yield server


def _until_it_serves(server: Server) -> None:
    """PostgreSQL takes connections before it lets anybody in."""
    psycopg2 = pytest.importorskip("psycopg2")
    deadline = time.monotonic() + _DEADLINE_S
    while True:
        try:
            psycopg2.connect(host=server.host, port=server.port, user=server.user, dbname=server.database).close()
        except psycopg2.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


@contextmanager
def running_mariadb() -> Iterator[Server]:
    """With a database `shop`. Raises NotInstalled."""
    install, mariadbd = _program("mariadb-install-db"), _program("mariadbd")
    user = _user_of("mariadb")
    with _directory(user) as directory:
        data = os.path.join(directory, "data")
        os.mkdir(data)
        if user is not None:
            os.chown(data, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
        plain = [f"--datadir={data}", f"--tmpdir={directory}"]
        _ran(
            [install, "--no-defaults", *plain, "--auth-root-authentication-method=normal", "--skip-test-db"],
            directory,
            user,
        )
        os.mkdir(os.path.join(data, "shop"))
        if user is not None:
            os.chown(os.path.join(data, "shop"), pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)

        def command_of(port: int) -> list[str]:
            return [
                mariadbd,
                "--no-defaults",
                *plain,
                f"--port={port}",
                "--bind-address=127.0.0.1",
                f"--socket={directory}/socket",
                f"--pid-file={directory}/pid",
                "--innodb-flush-log-at-trx-commit=0",
                "--innodb-buffer-pool-size=16M",
                "--character-set-server=utf8mb4",
                "--skip-name-resolve",
                # Connections come from 127.0.0.1, root's account is localhost's.
                "--skip-grant-tables",
            ]

        with _running(command_of, directory, user, signal.SIGTERM) as port:
            yield Server("127.0.0.1", port, "root", "shop")


def or_skipped(start: Callable[[], AbstractContextManager[Server]]) -> Iterator[Server]:
    """For a fixture: the server, or a reason why there is none."""
    try:
        with start() as server:
            yield server
    except NotInstalled as missing:
        if os.environ.get("REQUIRE_SERVERS"):
            pytest.fail(f"{missing}, and REQUIRE_SERVERS is set")
        pytest.skip(str(missing))


@contextmanager
def restored(*places: object) -> Iterator[None]:
    """Classes and modules are afterwards as they were: instrumentation is for good, and other tests use them plain."""
    before = [(place, dict(vars(place))) for place in places]
    try:
        yield
    finally:
        for place, names in before:
            for name in list(vars(place)):
                if name not in names:
                    delattr(place, name)
                elif vars(place)[name] is not names[name]:
                    setattr(place, name, names[name])
