"""The service that faults are applied to: copied beside its ini, so that it is a module of somebody's own.

Each route is named before anything else happens, so that nearly every request that is cut off has one.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Environ = dict[str, Any]
Answer = tuple[str, Iterable[bytes]]


class Broken(Exception):
    """The application's own fault, on purpose."""


def _hello(environ: Environ) -> Answer:
    return "200 OK", [b"Hello, world!"]


def _missing(environ: Environ) -> Answer:
    return "404 Not Found", [b"nothing here"]


def _fails(environ: Environ) -> Answer:
    raise Broken("on purpose")


def _verbose(environ: Environ) -> Answer:
    """Fails with as long a story as an agent may keep."""

    def deeper(left: int) -> Answer:
        if left:
            return deeper(left - 1)
        raise Broken(os.urandom(500).hex())

    try:
        deeper(45)
    except Broken as first:
        try:
            deeper(45)
        except Broken as second:
            raise second from first
    raise AssertionError("unreachable")


def _stream(environ: Environ) -> Answer:
    def chunks() -> Iterator[bytes]:
        for number in range(5):
            yield b"chunk %d\n" % number

    return "200 OK", chunks()


def _form(environ: Environ) -> Answer:
    length = int(environ.get("CONTENT_LENGTH") or 0)
    return "201 Created", [b"%d bytes" % len(environ["wsgi.input"].read(length))]


def _slow(environ: Environ) -> Answer:
    time.sleep(0.05)
    return "200 OK", [b"at last"]


# -- children -----------------------------------------------------------------------------------------------------


def inherited() -> dict[str, Any]:
    """What a child must not have: threads other than its own, and descriptors of its parent's recorder and lease."""
    links = []
    for name in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:  # that of the listing itself
            pass
    ours = [link for link in links if link.endswith(".recorder") or "/lease-" in link]
    return {"threads": len(os.listdir("/proc/self/task")), "descriptors": ours}


def _told_by_fork() -> bytes:
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        # os._exit runs no atexit: what the child has recorded is all in its file.
        try:
            os.close(ours)
            told = json.dumps(inherited()).encode()
            _work("in a forked child")
            os.write(theirs, told)
        finally:
            os._exit(0)
    os.close(theirs)
    with open(ours, "rb") as pipe:
        told = pipe.read()
    os.waitpid(pid, 0)
    return told


def _forks(environ: Environ) -> Answer:
    return "200 OK", [_told_by_fork()]


def _into(connection: Any) -> None:
    told = inherited()
    _work("in a process")
    connection.send(told)
    connection.close()


def _multiprocessing(environ: Environ) -> Answer:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_into, args=(theirs,))
    process.start()
    theirs.close()
    told = ours.recv()
    ours.close()
    process.join()
    process.close()
    return "200 OK", [json.dumps(told).encode()]


def _subprocess(environ: Environ) -> Answer:
    ours, theirs = os.pipe()
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", "pass"],
        preexec_fn=lambda: os.write(theirs, json.dumps(inherited()).encode()) and None,
        stdin=subprocess.DEVNULL,
    )
    os.close(theirs)
    with open(ours, "rb") as pipe:
        told = pipe.read()
    return ("200 OK" if done.returncode == 0 else "500 Child Failed"), [told]


def _work(name: str) -> None:
    """A background task of this name, where the agent is installed."""
    try:
        from paste_agent import background_task
    except ImportError:
        return
    with background_task(name):
        pass


_ROUTES: dict[str, Callable[[Environ], Answer]] = {
    "/hello": _hello,
    "/missing": _missing,
    "/fails": _fails,
    "/verbose": _verbose,
    "/stream": _stream,
    "/form": _form,
    "/slow": _slow,
    "/forks": _forks,
    "/multiprocessing": _multiprocessing,
    "/subprocess": _subprocess,
}


def application(environ: Environ, start_response: Callable[..., object]) -> Iterable[bytes]:
    path = environ["PATH_INFO"]
    environ["paste_agent.route"] = path
    status, body = _ROUTES[path](environ)
    headers = [("Content-Type", "text/plain")]
    if isinstance(body, list):
        headers.append(("Content-Length", str(sum(map(len, body)))))
    start_response(status, headers)
    return body


def factory(global_conf: dict[str, str], warm: str = "", **local_conf: str) -> Callable[..., Iterable[bytes]]:
    """warm: name of a background task that runs while the application is loaded."""
    if warm:
        _work(warm)
    return application
