"""What a subcommand is pointed at: an ini, or the path of a store."""

from __future__ import annotations

import logging
import os
from typing import NamedTuple

from paste_agent.errors import IniError, RuntimeDirError
from paste_agent.launch.configuration import services_in
from paste_agent.log import Warnings, logger
from paste_agent.recorder import layout
from paste_agent.runtime_dir import STORE, existing_service_dir
from paste_agent.settings import IN_MEMORY, Settings
from paste_agent.store.opening import store_path
from paste_agent.store.store import READ_ERRORS

_SQLITE = b"SQLite format 3\0"


class Target(NamedTuple):
    """A store to read. settings: of its service; None when the store itself was named."""

    store: str
    settings: Settings | None


def target_of(path: str, service: str | None) -> Target:
    """Find the store behind `path`.

    service: which one, when the ini measures several.
    Raises IniError, SettingError and StoreError, each one line.
    """
    found = settings_of(path, service)
    if found is None:
        return Target(path, None)
    catch_up(found)
    return Target(store_path(found), found)


def settings_of(path: str, service: str | None) -> Settings | None:
    """Of the service that `path` is the ini of; None where it is a store.

    service: which one, when the ini measures several.
    Raises IniError and SettingError, each one line.
    """
    return None if _is_store(path) else _service_in(path, service)


def service_of(path: str, service: str | None) -> Settings:
    """The settings of a service, of whose store nothing is needed.

    Raises IniError and SettingError, each one line.
    """
    found = settings_of(path, service)
    if found is None:
        raise IniError(f"{path}: is a store, which does not say where its processes are; give the service's ini")
    return found


def _is_store(path: str) -> bool:
    if not os.path.exists(path):
        raise IniError(f"{path}: no such file; give the service's ini, or the path of its store")
    if os.path.isdir(path):
        raise IniError(f"{path}: is a directory; give the service's ini, or the path of its store")
    try:
        with open(path, "rb") as file:
            return file.read(len(_SQLITE)) == _SQLITE
    except OSError as error:
        raise IniError(f"{path}: {error.strerror}; give the service's ini, or the path of its store") from None


def _service_in(path: str, service: str | None) -> Settings:
    measured = services_in(path, os.environ)
    services = [found for found in measured if service in (None, found.service_name)]
    if len(services) != 1:
        names = ", ".join(found.service_name for found in measured)
        if not services:
            raise IniError(f"{path}: measures no service {service!r}; choose one of {names} with --service")
        raise IniError(f"{path}: measures the services {names}; choose one with --service")
    return services[0]


def catch_up(settings: Settings) -> None:
    """Count what processes that were killed have left, unless somebody leads; where that cannot be, the store is read
    as it is.

    There may be no store yet: the first worker has died over its first request.
    """
    try:
        directory = existing_service_dir(settings, os.environ)
    except RuntimeDirError:
        return
    if directory is None or not any(name.endswith(layout.SUFFIX) for name in os.listdir(directory)):
        return
    path = settings.store if settings.store != IN_MEMORY else os.path.join(directory, STORE)
    if os.path.exists(path) and not os.access(path, os.W_OK):
        return
    from paste_agent import reporter

    # The post-mortems of what it finds are about to be shown, and not to be logged to the terminal as well.
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    try:
        reporter.catch_up(settings, directory, Warnings(settings.service_name))
    except (OSError, *READ_ERRORS):
        pass  # busy, or full
