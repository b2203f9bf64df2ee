"""Where flight recorders and the lease lie: on a memory file system, in a directory of this user's alone.

Such places are shared with every user of the host. A directory that somebody else made, or can write to, or that is
a link, is refused.
"""

from __future__ import annotations

import os
import stat
import time
import zlib
from collections.abc import Iterator, Mapping

from paste_agent import native
from paste_agent.errors import RuntimeDirError
from paste_agent.recorder import layout
from paste_agent.settings import Settings, file_name_of

#: Each version of the recorders' layout has a lead of its own, as during an upgrade of the package under SIGUSR2.
LEASE = f"lease-{layout.VERSION}"
#: A file that a process was killed over before it got its name.
_STALE_S = 60.0
#: The store of a service that has none on disk.
STORE = "store.sqlite"


def service_dir(settings: Settings, environ: Mapping[str, str]) -> str:
    """The private directory of this service, made where it is missing.

    Two services, or two stores of one service, never share one.
    Raises RuntimeDirError when there is no place that is private to this user.
    """
    name = _name_of(settings)
    refused: list[str] = []
    for base in _bases(settings, environ):
        try:
            _private(base)
            return _private(os.path.join(base, name))
        except RuntimeDirError as error:
            refused.append(str(error))
    raise RuntimeDirError("; ".join(refused) or "no memory file system; set `runtime_dir`")


def existing_service_dir(settings: Settings, environ: Mapping[str, str]) -> str | None:
    """The same for somebody who only looks: None where there is none."""
    for base in _bases(settings, environ):
        directory = os.path.join(base, _name_of(settings))
        if os.path.isdir(directory):
            return _private(directory)
    return None


def _name_of(settings: Settings) -> str:
    mark = zlib.crc32(f"{settings.service_name}\0{settings.store}".encode())
    return f"{file_name_of(settings.service_name)}-{mark:08x}"


def _bases(settings: Settings, environ: Mapping[str, str]) -> Iterator[str]:
    if settings.runtime_dir is not None:
        yield settings.runtime_dir
        return
    if os.path.isdir("/dev/shm"):
        yield f"/dev/shm/paste-agent-{os.geteuid()}"
    # Second, since a service and the shell that asks about it may not have the same one.
    if environ.get("XDG_RUNTIME_DIR"):
        yield os.path.join(environ["XDG_RUNTIME_DIR"], "paste-agent")


def _private(path: str) -> str:
    """`path`, made with mode 0700 unless it is there. Raises RuntimeDirError when it is not this user's alone."""
    try:
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        except FileNotFoundError:
            os.makedirs(path, 0o700, exist_ok=True)
        status = os.lstat(path)
    except OSError as error:
        raise RuntimeDirError(
            f"{path}: cannot be made: {error.strerror}; set `runtime_dir` to a directory of this user"
        ) from None
    if not stat.S_ISDIR(status.st_mode):
        raise RuntimeDirError(f"{path}: is not a directory; remove it, or set `runtime_dir`")
    if status.st_uid != os.geteuid():
        raise RuntimeDirError(f"{path}: belongs to user {status.st_uid}; remove it, or set `runtime_dir`")
    if status.st_mode & 0o077:
        raise RuntimeDirError(f"{path}: others may enter it (mode {status.st_mode & 0o777:o}); chmod 700 it")
    if not os.access(path, os.W_OK | os.X_OK):
        raise RuntimeDirError(f"{path}: cannot be written to; chmod 700 it, or set `runtime_dir`")
    return path


# -- files in it ---------------------------------------------------------------------------------------------------


def unlink(path: str) -> bool:
    """Whether it is gone now; not so what no agent has made, such as a directory."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass  # removed by hand, or never there
    except OSError:
        return False
    return True


def is_private(path: str) -> bool:
    """Whether it is a file of this user alone."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077


def remove_stale(path: str) -> None:
    """Remove what a process was killed over before it got its name."""
    try:
        if time.time() - os.lstat(path).st_mtime > _STALE_S:
            os.unlink(path)
    except OSError:
        pass


def write_file(path: str, data: bytes) -> None:
    """Make a private file, whole or not at all. Raises OSError."""
    unfinished = f"{path}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with native.UNDIVIDED:  # a child that is forked meanwhile would have the file open as well
        with open(os.open(unfinished, flags, 0o600), "wb") as file:
            file.write(data)
        os.rename(unfinished, path)


def read_file(path: str, most: int) -> bytes:
    """What a file says, `most` bytes at the most; no link is followed, and nothing is waited for. Raises OSError."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with native.UNDIVIDED:
        descriptor = os.open(path, flags)
        try:
            return os.read(descriptor, most)
        finally:
            os.close(descriptor)
