"""Replaces a file as a whole: whoever reads it meanwhile has the old one or the new one, and never a half."""

from __future__ import annotations

import os
import shutil
import tempfile

from paste_agent.errors import IniError


def replace(path: str, data: bytes, expected: bytes | None = None) -> None:
    """Give the file at `path`, or what a link there leads to, the content `data`; mode and owner stay.

    expected: what it must still say; None: anything, or nothing.
    Raises IniError, one line.
    """
    target = os.path.realpath(path)
    directory, name = os.path.split(target)
    try:
        descriptor, unfinished = tempfile.mkstemp(prefix=f".{name}.", suffix=".new", dir=directory)
    except OSError as error:
        raise IniError(f"{directory}: {error.strerror}; nothing was written") from None
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _make_alike(target, unfinished)
        if expected is not None and _content(target) != expected:
            raise IniError(f"{path}: has changed meanwhile; nothing was written, run the command again")
        os.replace(unfinished, target)
    except BaseException as error:
        os.unlink(unfinished)
        if isinstance(error, OSError):
            raise IniError(f"{path}: {error.strerror}; nothing was written") from None
        raise


def _content(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _make_alike(target: str, unfinished: str) -> None:
    """Mode, owner and extended attributes of the target; those of any new file where there is none yet."""
    try:
        status = os.stat(target)
    except FileNotFoundError:
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(unfinished, 0o666 & ~umask)
        return
    made = os.stat(unfinished)
    if (status.st_uid, status.st_gid) != (made.st_uid, made.st_gid):
        try:
            os.chown(unfinished, status.st_uid, status.st_gid)
        except PermissionError:
            raise IniError(
                f"{target}: belongs to user {status.st_uid} and group {status.st_gid}, which would be lost;"
                " nothing was written, run the command as that user or as root"
            ) from None
    shutil.copystat(target, unfinished)  # after the change of owner, which takes some bits of the mode away
    os.utime(unfinished)
