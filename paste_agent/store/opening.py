"""Which store a service gets, and what stands in for one that cannot be opened: the application does not notice."""

from __future__ import annotations

import os
import socket
import sqlite3
import time
import uuid
from collections.abc import Callable

from paste_agent.errors import StoreError
from paste_agent.runtime_dir import STORE
from paste_agent.settings import IN_MEMORY, Settings
from paste_agent.store.store import MEMORY, Store


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


def _open_or_set_aside(path: str, warn: Callable[[str, str], None]) -> Store:
    """Open a store; one that is no database any more is renamed, never deleted."""
    try:
        return Store(path)
    except StoreError as error:
        cause = error.__cause__
        if not isinstance(cause, sqlite3.DatabaseError) or isinstance(cause, sqlite3.OperationalError):
            raise
        aside = f"{path}.corrupt-{time.strftime('%Y%m%dT%H%M%S')}"
        try:
            for suffix in ("", "-wal", "-shm"):
                if os.path.exists(path + suffix):
                    os.rename(path + suffix, aside + suffix)
        except OSError as failure:
            raise StoreError(f"{path}: corrupt, and cannot be set aside: {failure.strerror}") from None
        warn("corrupt store", f"{error}; set aside as {aside}, starting a new one")
        return Store(path)


def name_instance(settings: Settings, store: Store) -> None:
    """`service.instance.id`: the same for the service on this host even when the store had to be begun anew."""
    same = f"{socket.gethostname()}/{settings.service_name}/{settings.store}"
    shared = not store.path.startswith(MEMORY)
    store.instance_id(str(uuid.uuid5(uuid.NAMESPACE_URL, same) if shared else uuid.uuid4()))
