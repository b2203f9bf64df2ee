"""Lends the agent its libraries in a program whose virtual environment does not have them.

They come last, after all that the program has itself, and only for what the agent imports: a library that the program
lacks is still missing when it asks for it, unless the agent has imported it by then.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

#: Modules that the agent needs, with all that is in them, and what these need in turn.
NEEDED = (
    "paste.deploy", "requests", "urllib3", "certifi", "idna", "charset_normalizer", "google.protobuf",
    "opentelemetry.proto",
)  # fmt: skip
_OUTERMOST = frozenset(name.partition(".")[0] for name in NEEDED)
_BELOW = tuple(f"{name}." for name in (*NEEDED, "paste_agent"))
#: A module beside the package that belongs to it, where it is compiled; its name differs from version to version.
_COMPILED = "__mypyc"


class _Lender:
    """The last finder of a process."""

    def __init__(self, directories: Sequence[str]) -> None:
        self._directories = list(directories)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not _is_lent(name) or not _is_asked_by_us():
            return None
        if name in _OUTERMOST and name not in NEEDED:
            # A namespace. What else our own directories have in it is not the program's, so it has no place to look at.
            return ModuleSpec(name, None, is_package=True)
        inside = name.split(".")[:-1]
        return PathFinder.find_spec(name, ["/".join([directory, *inside]) for directory in self._directories], target)


def _is_lent(name: str) -> bool:
    return name in _OUTERMOST or f"{name}.".startswith(_BELOW) or name.endswith(_COMPILED)


def _is_asked_by_us() -> bool:
    """Whether the innermost import that is under way stands in the agent, or in one of its libraries."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name != __name__ and not name.startswith(("importlib", "_frozen_importlib", "paste_agent.on_import")):
            return f"{name}.".startswith(_BELOW)
        frame = frame.f_back  # type: ignore[assignment]
    return False


def lend(directories: Sequence[str]) -> None:
    """Have the agent find its libraries in `directories` where this process has none of its own."""
    if not any(isinstance(finder, _Lender) for finder in sys.meta_path):
        sys.meta_path.append(_Lender(directories))
