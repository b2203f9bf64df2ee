"""Calling back once a module has been imported."""

from __future__ import annotations

import importlib
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from zipfile import ZipFile

import pytest

from paste_agent.on_import import when_imported
from tests.serving import ROOT


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory to import from; what was imported of it is forgotten."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_it_is_called_once_after_the_module_has_run(library: Path) -> None:
    (library / "lately.py").write_text("ready = True\n")
    seen: list[bool] = []
    when_imported("lately", lambda module: seen.append(module.ready))
    assert seen == []
    module = importlib.import_module("lately")
    assert seen == [True]
    importlib.reload(module)
    assert seen == [True]


def test_a_module_that_is_there_already_is_not_waited_for(library: Path) -> None:
    (library / "early.py").write_text("")
    module = importlib.import_module("early")
    seen: list[ModuleType] = []
    when_imported("early", seen.append)
    assert seen == [module]


def test_several_may_wait_and_a_submodule_too(library: Path) -> None:
    (library / "box").mkdir()
    (library / "box" / "__init__.py").write_text("")
    (library / "box" / "inner.py").write_text("")
    seen: list[str] = []
    for name in ("box", "box.inner", "box.inner"):
        when_imported(name, lambda module: seen.append(module.__name__))
    importlib.import_module("box.inner")
    assert seen == ["box", "box.inner", "box.inner"]


def test_the_module_is_what_it_is_without_us(library: Path) -> None:
    (library / "plain.py").write_text("")
    (library / "watched.py").write_text("")
    when_imported("watched", lambda module: None)
    plain, watched = importlib.import_module("plain"), importlib.import_module("watched")
    assert type(watched.__loader__) is type(plain.__loader__)
    assert vars(watched.__loader__).keys() == vars(plain.__loader__).keys()
    assert watched.__spec__ is not None
    assert watched.__spec__.loader is watched.__loader__
    assert watched.__loader__.get_source("watched") == ""  # type: ignore[union-attr]


def test_one_that_fails_to_import_is_waited_for_on(library: Path) -> None:
    path = library / "broken.py"
    path.write_text("raise RuntimeError\n")
    seen: list[str] = []
    when_imported("broken", lambda module: seen.append("called"))
    with pytest.raises(RuntimeError):
        importlib.import_module("broken")
    assert seen == []
    path.write_text("ok = 1  # longer, so that no cached code is taken for it\n")
    importlib.invalidate_caches()
    importlib.import_module("broken")
    assert seen == ["called"]


def test_one_that_does_not_exist_is_not_found(library: Path) -> None:
    when_imported("no_such_module_anywhere", lambda module: None)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("no_such_module_anywhere")


def test_one_that_is_just_being_imported_is_not_waited_for(library: Path) -> None:
    (library / "asks.py").write_text(
        "from paste_agent.on_import import when_imported\nseen = []\n"
        "told = when_imported('asks', lambda module: seen.append('called'))\n"
    )
    module = importlib.import_module("asks")
    assert (module.told, module.seen) == (False, [])
    assert when_imported("asks", lambda module: module.seen.append("later"))
    assert module.seen == ["later"]


class OldFinder:
    """As old libraries put one there, without `find_spec`."""

    def find_module(self, name: str, path: object = None) -> None:
        return None


def test_finders_of_old_libraries_are_passed_over(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (library / "beside.py").write_text("")
    monkeypatch.setattr(sys, "meta_path", [OldFinder(), *sys.meta_path, OldFinder()])
    seen: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImportWarning)  # the interpreter's own word on such finders
        when_imported("not_there_at_all", lambda module: None)
        when_imported("beside", lambda module: seen.append(module.__name__))
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("not_there_at_all")
        importlib.import_module("beside")
    assert seen == ["beside"]


SHARED = """
import sys
from importlib import import_module
from paste_agent.on_import import when_imported
from tests.serving import ROOT
seen = []
for name in ("_symtable", "__hello__"):
    assert name not in sys.modules
    when_imported(name, lambda module: seen.append(module.__name__))
for name in ("_symtable", "__hello__", "_tokenize", "__phello__"):
    try:
        import_module(name)
    except ModuleNotFoundError:
        assert name == "_tokenize"  # not on every version
assert set(seen) == {"_symtable", "__hello__"}, seen
"""


def test_loaders_that_are_classes_stay_what_they_are() -> None:
    found = subprocess.run([sys.executable, "-c", SHARED], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert found.returncode == 0, found.stderr


def test_a_module_of_an_archive_that_fails_leaves_nothing(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ZipFile(library / "failing.zip", "w") as archive:
        archive.writestr("fails_zipped.py", "raise RuntimeError\n")
    monkeypatch.syspath_prepend(library / "failing.zip")
    when_imported("fails_zipped", lambda module: None)
    for _ in range(2 * sys.getrecursionlimit()):
        with pytest.raises(RuntimeError) as raised:
            importlib.import_module("fails_zipped")
        assert type(raised.value) is RuntimeError


def test_modules_of_an_archive(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ZipFile(library / "archive.zip", "w") as archive:
        archive.writestr("zipped.py", "ready = True\n")
        archive.writestr("other_zipped.py", "ready = True\n")
    monkeypatch.syspath_prepend(library / "archive.zip")
    seen: list[str] = []
    when_imported("zipped", lambda module: seen.append(module.__name__))
    importlib.import_module("other_zipped")
    importlib.import_module("zipped")
    assert seen == ["zipped"]
