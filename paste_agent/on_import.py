"""Calls back once a module has been imported.

Done by hand, in one page: the library for it imports asyncio and much else, which is more memory than the whole agent
takes in a worker.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # typing is not imported: a program that is started with the agent on board may do without it
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

    Call = Callable[[ModuleType], None]

_waiting: dict[str, list[Call]] = {}


class _Finder:
    """Finds nothing by itself: it asks the other finders, and puts a step behind the loader that they name."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in _waiting:
            return None
        for finder in sys.meta_path:
            # Finders of old libraries have another method; the interpreter asks them by itself, after this one.
            find: Any = None if finder is self else getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = None if find is None else find(name, path, target)
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _Loader(spec, spec.loader)  # type: ignore[assignment]  # it has what is called
                return spec
        return None


class _Loader:
    """Stands for a loader until it is asked to execute its module: then the module gets the loader itself."""

    def __init__(self, spec: ModuleSpec, loader: Any) -> None:
        self._spec = spec
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        created: ModuleType | None = self._loader.create_module(spec)
        return created

    def exec_module(self, module: ModuleType) -> None:
        self._spec.loader = self._loader
        for place in (module, getattr(module, "__spec__", None)):
            for name in ("__loader__", "loader"):
                if getattr(place, name, None) is self:
                    setattr(place, name, self._loader)
        self._loader.exec_module(module)
        for call in _waiting.pop(self._spec.name, []):
            call(module)


def when_imported(name: str, call: Call) -> bool:
    """Have `call`, which raises nothing, called with the module once it is imported; at once where it has been.

    Returns False for a module that is just being imported: it is too late to be told of its end, so ask again.
    """
    module = sys.modules.get(name)
    if module is not None:
        if getattr(getattr(module, "__spec__", None), "_initializing", False):
            return False
        call(module)
        return True
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    _waiting.setdefault(name, []).append(call)
    return True
