"""Which store a service gets, and what stands in for one that cannot be opened: the application does not notice."""

from __future__ import annotations

import os
import socket
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from paste_agent import native
from paste_agent.errors import StoreError
from paste_agent.recorder import lock
from paste_agent.runtime_dir import STORE, existing_service_dir
from paste_agent.settings import IN_MEMORY, Settings
from paste_agent.store.store import MEMORY, Store

_PATIENCE_S = 5.0


def open_store(settings: Settings, directory: str | None, warn: Callable[[str, str], None]) -> Store:
    """The service's store; where it cannot be opened, one in the runtime directory; at last one in memory.

    directory: the service's runtime directory, or None.
    """
    memory = f"{MEMORY}-{os.getpid()}?mode=memory&cache=shared"
    fallback = os.path.join(directory, STORE) if directory is not None else memory
    wanted = fallback if settings.store == IN_MEMORY else settings.store
    for path in dict.fromkeys((wanted, fallback)):
        try:
            return _open_or_set_aside(path, warn)
        except StoreError as error:
            warn("store", f"{error}; measurements are kept in {fallback} meanwhile")
    return Store(memory)


def existing_store(settings: Settings, directory: str | None) -> str | None:
    """Where the service's store is that all its processes share; None where there is none yet, or none at all.

    directory: the service's runtime directory, or None. The lead may keep another store for a time, see `open_store`:
    so of two that exist it is the one that was written last.
    """
    fallback = None if directory is None else os.path.join(directory, STORE)
    wanted = fallback if settings.store == IN_MEMORY else settings.store
    found = [path for path in dict.fromkeys((wanted, fallback)) if path is not None and os.path.exists(path)]
    return max(found, key=_written_at, default=None)


def _written_at(path: str) -> float:
    times = [0.0]
    for name in (path, f"{path}-wal"):
        try:
            times.append(os.stat(name).st_mtime)
        except OSError:
            pass  # SQLite has just removed it
    return max(times)


def _open_or_set_aside(path: str, warn: Callable[[str, str], None]) -> Store:
    """Open a store; one that is no database any more is renamed, never deleted."""
    try:
        return Store(path)
    except StoreError as error:
        if error.__cause__ is None:  # readable, but not for us
            raise
    # One process at a time: another may be setting it aside just now, and what is there then is its new store.
    with _one_at_a_time(os.path.dirname(os.path.abspath(path))):
        try:
            return Store(path)
        except StoreError as error:
            if not is_corrupt(error.__cause__):
                raise
            _set_aside(path, str(error), warn)
        return Store(path)


def is_corrupt(error: BaseException | None) -> bool:
    """Whether an error of SQLite's says that the file is no sound database: not that it is busy, full or read-only."""
    passing = (sqlite3.OperationalError, sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.NotSupportedError)
    return isinstance(error, sqlite3.DatabaseError) and not isinstance(error, passing)


def set_aside(path: str, error: sqlite3.Error, warn: Callable[[str, str], None]) -> None:
    """Rename a store that turned out to be corrupt after it was opened. It is closed. Raises StoreError."""
    with _one_at_a_time(os.path.dirname(os.path.abspath(path))):
        _set_aside(path, f"{path}: {error}", warn)


def _set_aside(path: str, reason: str, warn: Callable[[str, str], None]) -> None:
    aside = f"{path}.corrupt-{time.strftime('%Y%m%dT%H%M%S')}"
    while os.path.lexists(aside):
        aside += "x"  # nothing is written over
    try:
        # The database last: once it is gone, another process may make a new one, with files of its own beside it.
        for suffix in ("-wal", "-shm", ""):
            if os.path.exists(path + suffix):
                os.rename(path + suffix, aside + suffix)
    except OSError as failure:
        raise StoreError(f"{path}: corrupt, and cannot be set aside: {failure.strerror}") from None
    warn("corrupt store", f"{reason}; set aside as {aside}, starting a new one")


@contextmanager
def _one_at_a_time(directory: str) -> Iterator[None]:
    """Hold the lock of a directory; whoever else does renames a file and makes another one, so the wait is short."""
    if not lock.AVAILABLE:
        yield
        return
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # whatever is wrong with it, the store in it will say so again
        yield
        return
    try:
        deadline = time.monotonic() + _PATIENCE_S
        while not lock.try_lock(descriptor) and time.monotonic() < deadline:
            native.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def name_instance(settings: Settings, store: Store) -> None:
    """`service.instance.id`: the same for the service on this host even when the store had to be begun anew."""
    same = f"{socket.gethostname()}/{settings.service_name}/{settings.store}"
    shared = not store.path.startswith(MEMORY)
    store.set_meta("service.name", settings.service_name)
    store.instance_id(str(uuid.uuid5(uuid.NAMESPACE_URL, same) if shared else uuid.uuid4()))


def store_path(settings: Settings) -> str:
    """Where the service's store is on this host. Raises StoreError when it has none yet."""
    path = settings.store
    if path == IN_MEMORY:
        directory = existing_service_dir(settings, os.environ)
        path = os.path.join(directory, STORE) if directory else ""
    if not os.path.exists(path):
        where = path or "the runtime directory"
        raise StoreError(f"{where}: no store yet; start the service and send it a request")
    return path
