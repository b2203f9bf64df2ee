"""The service whose workers die: copied beside its ini. Each page is a way to come to grief."""

from __future__ import annotations

import ctypes
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterable
from typing import Any

Environ = dict[str, Any]
SECRET = "-".join(("a", "secret"))  # so that no line of source has it


def nap(seconds: int) -> int:
    time.sleep(seconds)
    return seconds


def clutch(seconds: int) -> int:
    """Hangs as an extension module does that never lets go of the interpreter; no signal wakes it."""
    mutex = ctypes.create_string_buffer(128)
    library = ctypes.PyDLL(None)
    library.pthread_mutex_lock(mutex)
    return int(library.pthread_mutex_lock(mutex))


def query(function: Callable[[int], int]) -> None:
    """A page that sleeps in a query."""
    connection = sqlite3.connect(":memory:")
    try:
        connection.create_function("slow", 1, function)
        connection.execute(f"SELECT slow(60), {SECRET!r} FROM sqlite_master UNION SELECT slow(60), 1").fetchall()
    finally:
        connection.close()


def compute() -> None:
    while True:
        sum(range(1000))


def crash() -> None:
    ctypes.string_at(0)


def leave() -> None:
    os._exit(7)


def eat() -> None:
    """Allocates until the kernel has had enough, and sees to it that this process is the one that it takes."""
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    eaten = []
    while True:
        eaten.append(os.urandom(1 << 20))


PAGES: dict[str, Callable[[], object]] = {
    "/query": lambda: query(nap),
    "/clutch": lambda: query(clutch),
    "/compute": compute,
    "/crash": crash,
    "/leave": leave,
    "/eat": eat,
    "/slow": lambda: time.sleep(2.5),
    "/hang": lambda: time.sleep(6),
    "/": lambda: None,
}


def factory(global_conf: dict[str, str], **local_conf: str) -> Callable[..., Iterable[bytes]]:
    def application(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        page = environ["PATH_INFO"]
        environ["paste_agent.route"] = re.sub(r"\d+", "{number}", page)
        PAGES[re.sub(r"/\d+$", "", page) or "/"]()
        body = b"still here"
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
        return [body]

    return application
