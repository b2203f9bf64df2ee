"""Headers for a collector: as a setting spells them, with keys from the environment, or from a file that may rotate."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from urllib.parse import quote, unquote

NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")  #: what http.client sends
_VARIABLE = re.compile(r"\$\{([^}]*)(\}?)")
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: More than any collector takes in its headers.
_MAX_BYTES = 65_536


def pairs(text: str) -> dict[str, str] | None:
    """`key=value,key=value`, values percent-encoded, as OTEL_RESOURCE_ATTRIBUTES and W3C Baggage have them.

    None for a text that is not in this form.
    """
    found: dict[str, str] = {}
    for item in text.split(","):
        if not item.strip():
            continue
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            return None
        found[key.strip()] = unquote(value.strip())
    return found


def can_be_sent(found: Mapping[str, str]) -> bool:
    return all(NAME.fullmatch(name) and VALUE.fullmatch(value) for name, value in found.items())


def expanded(text: str, environ: Mapping[str, str]) -> str:
    """`text` with each `${NAME}` replaced by that variable's value, percent-encoded: a comma in it parts nothing.

    Raises ValueError, whose text names the variable and never its value.
    """

    def value_of(match: re.Match[str]) -> str:
        name, end = match.groups()
        if not end or not _VARIABLE_NAME.fullmatch(name):
            raise ValueError("expected ${NAME}, the name of an environment variable; %24{ is a ${ of the value's own")
        value = environ.get(name, "").strip()  # a secret that comes out of a file often ends in a line's end
        if not value:
            raise ValueError(f"the environment variable {name} is not set; set it, or use headers_file")
        if not VALUE.fullmatch(value):
            raise ValueError(f"the environment variable {name} holds what no header can; give it on one line of ASCII")
        return quote(value, safe="")

    return _VARIABLE.sub(value_of, text)


class FileError(Exception):
    """A file of headers that cannot be used; str() of it is one line with the path, and without what the file says."""


def read_file(path: str) -> dict[str, str]:
    """The headers of a file with a `name: value` on each line; empty lines and those that begin with # say nothing.

    Raises FileError.
    """
    try:
        # Not blocking: a pipe without a writer must not hold up who exports.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise FileError(f"{path}: is not a regular file; give one with a `name: value` on each line")
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise FileError(f"{path}: {_said(error)}; the service's user must be able to read it") from None
    if len(data) > _MAX_BYTES:
        raise FileError(f"{path}: has more than 64 KiB; give a file with a `name: value` on each line")
    found: dict[str, str] = {}
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise FileError(f"{path}: is not text in UTF-8; give a file with a `name: value` on each line") from None
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, colon, value = line.partition(":")
        name, value = name.strip(), value.strip()
        if not colon or not can_be_sent({name: value}):
            raise FileError(f"{path}, line {number}: expected a header as `name: value`, in ASCII")
        found[name] = value
    return found


def _said(error: OSError) -> str:
    text = error.strerror or type(error).__name__
    return text[0].lower() + text[1:]


def open_to_others(path: str) -> bool:
    """Whether every user of the host may read the file."""
    try:
        return bool(os.stat(path).st_mode & stat.S_IROTH)
    except OSError:
        return False


class HeadersFile:
    """A file of headers, read again when it has changed: keys rotate."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._seen: tuple[int, int, int, int] | None = None
        self._headers: dict[str, str] = {}

    def read(self) -> dict[str, str]:
        """The headers as the file has them now. Raises FileError."""
        try:
            status = os.stat(self.path)
        except OSError:
            seen = None
        else:
            seen = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
        if seen is None or seen != self._seen:
            self._seen = None
            self._headers = read_file(self.path)
            self._seen = seen
        return self._headers
