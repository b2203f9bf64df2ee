"""The lead's part of forwarding logs: it stores what the processes have left in files."""

from __future__ import annotations

import os
from collections.abc import Callable

from paste_agent import log_files, native, runtime_dir
from paste_agent.settings import Settings
from paste_agent.store.log_rows import add_logs
from paste_agent.store.store import Store


def take(directory: str | None, store: Store, settings: Settings, warn: Callable[[str, str], None]) -> None:
    """Store the log records that wait in the runtime directory. Raises sqlite3.Error; then they wait on.

    Killed between storing and removing a file, the next lead stores it again, which changes nothing.
    """
    if directory is None:
        return
    wanted = settings.target("logs") is not None
    for name in sorted(name for name in os.listdir(directory) if name.endswith(log_files.SUFFIX)):
        path = os.path.join(directory, name)
        try:
            rows = log_files.read(path) if wanted else []
        except OSError as error:
            warn("bad logs", f"{path}: {error.strerror}; removed")
            rows = []
        if rows:
            add_logs(store, os.fsencode(name).decode(errors="replace"), rows)
        runtime_dir.unlink(path)
        native.sleep(0)
