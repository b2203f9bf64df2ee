"""Where a Django project is: the name of its settings module, and what sys.path needs for it.

Files are read, and nothing of the project is imported: what an arbiter imports, every later worker inherits.
"""

from __future__ import annotations

import ast
import os
from typing import NamedTuple

from paste_agent.errors import AgentError

VARIABLE = "DJANGO_SETTINGS_MODULE"
_MANAGE = "manage.py"
#: Of a package that is called so the name says nothing about the project.
_GENERAL = frozenset({"settings", "config", "conf"})
_MOST_BYTES = 1 << 20


class ProjectError(AgentError):
    """No project, or more than one, where the user said."""


class Project(NamedTuple):
    """settings: dotted name of the module. paths: directories that come first on sys.path, in this order.

    home: the directory that it is known by; None: the first of the paths.
    """

    settings: str
    paths: tuple[str, ...]
    home: str | None = None

    @property
    def name(self) -> str:
        """Of its package; of its directory, where there is no package or one such as `config`."""
        package, _, module = self.settings.partition(".")
        if module and package not in _GENERAL:
            return package
        home = self.home or "".join(self.paths[:1])
        return os.path.basename(home) or package


def project_of(target: str | None, settings: str | None, fallback: str | None, start: str, here: str) -> Project:
    """Find the project. What names a settings module outright is stronger than what names a place to look in.

    target: of the command line: a directory, a file, or a dotted module.
    settings: of the option `--settings`. fallback: of what is weaker than the command line. Dotted modules.
    start: directory that a relative path of `target` starts from.
    here: working directory, in which a project is looked for when nothing else names one.
    Raises ProjectError.
    """
    path = None if target is None else os.path.join(start, target)
    if path is not None and os.path.isfile(path) and os.path.basename(path) == _MANAGE:
        path = os.path.dirname(path)
    if target is not None and (path is None or not os.path.isdir(path)):
        if settings:
            raise ProjectError(f"{target}, --settings {settings}: both name a settings module; give one of them")
        if path is not None and os.path.isfile(path):
            return _of_file(os.path.normpath(path))
        if os.sep in target or not _is_dotted(target):
            raise ProjectError(f"{target}: no such file or directory; give a project's directory or a settings module")
        return Project(target, (here,))
    directory = os.path.normpath(path) if path is not None else here
    module = settings or fallback
    if module is None:
        return _in_directory(directory)
    if not _is_dotted(module):
        place = "--settings" if settings else f"django_settings or {VARIABLE}"
        raise ProjectError(f"{place} = {module!r}: expected the dotted name of a module, such as shop.settings")
    return Project(module, (directory,) if path is None else _paths(directory))


def _in_directory(directory: str) -> Project:
    named = _named_by_manage(directory)
    if named is not None:
        return Project(named, (directory,))
    own = _settings_in(directory)
    if own is not None:
        return _of_file(own)
    found = [name for name in sorted(os.listdir(directory)) if _settings_in(os.path.join(directory, name))]
    modules = [f"{name}.settings" for name in found if name.isidentifier()]
    if len(modules) == 1:
        return Project(modules[0], (directory,))
    if modules:
        raise ProjectError(f"{directory}: has {', '.join(modules)}; say which one, for example --settings {modules[0]}")
    raise ProjectError(
        f"{directory}: no Django project: no manage.py that names a settings module, and no settings.py; "
        "give the project's directory, or its settings module"
    )


def _of_file(path: str) -> Project:
    stem, extension = os.path.splitext(path)
    if extension != ".py":
        raise ProjectError(f"{path}: expected a project's directory, or a settings module that ends in .py")
    if os.path.basename(stem) == "__init__":
        stem = os.path.dirname(stem)
    directory = os.path.dirname(stem)
    paths = _paths(directory)
    parts = os.path.relpath(stem, paths[0]).split(os.sep)
    for part in parts:
        if not part.isidentifier():
            raise ProjectError(f"{path}: cannot be imported: {part!r} is no name of a module")
    return Project(".".join(parts), paths)


def _paths(directory: str) -> tuple[str, ...]:
    """What sys.path needs so that modules of `directory` import under the names that the project calls them by."""
    root = _root(directory)
    # A project of the first years of Django had manage.py within its package, and imported by both names.
    return (root, directory) if root != directory and os.path.isfile(os.path.join(directory, _MANAGE)) else (root,)


def _root(directory: str) -> str:
    """The directory of manage.py, if that names a settings module; else the one that the outermost package is in."""
    at = directory
    while _named_by_manage(at) is None:
        parent = os.path.dirname(at)
        if parent == at or not os.path.basename(at).isidentifier():
            break
        at = parent
    else:
        return at
    at = directory
    while os.path.isfile(os.path.join(at, "__init__.py")) and os.path.dirname(at) != at:
        at = os.path.dirname(at)
    return at


def _settings_in(directory: str) -> str | None:
    for name in ("settings.py", os.path.join("settings", "__init__.py")):
        path = os.path.join(directory, name)
        if os.path.isfile(path):
            return path
    return None


def _named_by_manage(directory: str) -> str | None:
    """The module that manage.py makes VARIABLE, where it is written there as a constant."""
    try:
        with open(os.path.join(directory, _MANAGE), "rb") as file:
            tree = ast.parse(file.read(_MOST_BYTES))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    for node in ast.walk(tree):
        words: list[ast.expr] = []
        if isinstance(node, ast.Call):
            words = node.args
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
            words = [node.targets[0].slice, node.value]
        values = [word.value for word in words if isinstance(word, ast.Constant)]
        if len(values) == 2 and values[0] == VARIABLE and isinstance(values[1], str) and _is_dotted(values[1]):
            return values[1]
    return None


def _is_dotted(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))
