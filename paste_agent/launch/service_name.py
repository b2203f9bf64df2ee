"""The name of a service that nobody has given one: that of what is served, as its operator knows it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from itertools import pairwise

_INI = re.compile(r"(?:config:)?([^#]*)\.ini(?:#.*)?")
_ATTRIBUTE = re.compile(r"([^\W\d][\w.]*):[^\W\d].*")
_MODULE = re.compile(r"[^\W\d][\w.]*")
#: The module of a package that holds nothing but the application.
_LAST = ".wsgi"
_MOST = 255
#: Options whose value is a module with an application.
_FLASK = ("--app", "-A")
#: Programs that every project has: a package's, as `python -m` runs it, and Django's.
_OF_A_DIRECTORY = ("__main__", "manage")
UNKNOWN = "unknown_service"


def of_served(what: str) -> str | None:
    """Of an ini, its name; of `module:application`, the module, without `.wsgi` at its end; None: it is neither."""
    ini = _INI.fullmatch(what)
    if ini is not None:
        return _usable(os.path.basename(ini[1]))
    module = _ATTRIBUTE.fullmatch(what)
    return None if module is None else _usable(module[1].removesuffix(_LAST))


def of_module(name: str) -> str | None:
    """As `of_served`, where a module alone means the application in it."""
    return of_served(name if ":" in name or not _MODULE.fullmatch(name) else f"{name}:application")


def of_command(argv: Sequence[str]) -> str:
    """Of a program's arguments: of the first one that names what is served, else of the program itself."""
    for option, word in pairwise(argv):
        found = None if word.startswith("-") else of_served(word)
        if found is None and option in _FLASK:
            found = of_module(os.path.basename(word).removesuffix(".py"))
        if found is not None:
            return found
    program = os.path.abspath(argv[0]) if argv and argv[0] not in ("", "-c") else ""
    stem, _ = os.path.splitext(os.path.basename(program))
    if stem in _OF_A_DIRECTORY:
        stem = os.path.basename(os.path.dirname(program))
    return _usable(stem) or UNKNOWN


def _usable(name: str) -> str | None:
    name = name[:_MOST]
    return name if name.strip("-_. ") and name.isprintable() else None
