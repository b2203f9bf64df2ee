"""Where a Django project is found, by its files alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.core.management.base import BaseCommand
from gunicorn.config import Config

from paste_agent.django.management.commands.run_gunicorn import Command
from paste_agent.errors import SettingError
from paste_agent.server.django_project import Project, ProjectError, project_of
from paste_agent.server.gunicorn_django import bind_of

MANAGE = "import os\ndef main():\n    os.environ.setdefault('DJANGO_SETTINGS_MODULE', 'shop.settings.dev')\n"


def tree(here: Path, *files: str, manage: str | None = MANAGE) -> str:
    for name in files:
        path = here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text((manage or "") if path.name == "manage.py" else "")
    return str(here)


def found(
    here: str, target: str | None = None, settings: str | None = None, fallback: str | None = None
) -> tuple[str, tuple[str, ...]]:
    """Its settings module, and its paths without the beginning that is `here`."""
    project = project_of(target, settings, fallback, here, here)
    assert all(f"{path}/".startswith(f"{here}/") for path in project.paths)
    return project.settings, tuple(path[len(here) :] for path in project.paths)


TODAYS = ("www/manage.py", "www/shop/__init__.py", "www/shop/settings/__init__.py", "www/shop/settings/dev.py")


@pytest.mark.parametrize(
    ("target", "settings", "fallback", "module"),
    [
        ("www", None, None, "shop.settings.dev"),
        ("www/", None, None, "shop.settings.dev"),
        ("./www/../www", None, None, "shop.settings.dev"),
        ("www/manage.py", None, None, "shop.settings.dev"),
        ("www/shop", None, None, "shop.settings"),
        ("www/shop/settings/dev.py", None, None, "shop.settings.dev"),
        ("www/shop/settings/__init__.py", None, None, "shop.settings"),
        ("www", "shop.live", None, "shop.live"),
        ("www", "shop.live", "shop.test", "shop.live"),
        ("www", None, "shop.test", "shop.test"),
        ("www/shop", None, "shop.test", "shop.test"),
        ("www/shop/settings/dev.py", None, "shop.test", "shop.settings.dev"),
    ],
)
def test_a_project_as_django_makes_it_today(
    tmp_path: Path, target: str, settings: str | None, fallback: str | None, module: str
) -> None:
    assert found(tree(tmp_path, *TODAYS), target, settings, fallback) == (module, ("/www",))


def test_the_working_directory_is_looked_at_last(tmp_path: Path) -> None:
    here = tree(tmp_path, *TODAYS) + "/www"
    assert found(here) == ("shop.settings.dev", ("",))
    assert found(here, fallback="shop.test") == ("shop.test", ("",))
    assert found(here, settings="shop.live", fallback="shop.test") == ("shop.live", ("",))
    assert found(here, "shop.other", fallback="shop.test") == ("shop.other", ("",))
    assert project_of("www", None, None, str(tmp_path), here).paths == (here,)  # where the command was given


def test_a_package_without_init(tmp_path: Path) -> None:
    here = tree(tmp_path, "manage.py", "shop/conf/live.py")
    assert found(here, "shop/conf/live.py") == ("shop.conf.live", ("",))


def test_a_project_of_the_first_years(tmp_path: Path) -> None:
    """manage.py stands in the package; its modules import with and without the package's name."""
    here = tree(tmp_path, "www/__init__.py", "www/settings.py", "www/manage.py", manage="import settings\n")
    for target in ("www", "www/settings.py", "www/manage.py"):
        assert found(here, target) == ("www.settings", ("", "/www"))


@pytest.mark.parametrize("manage", ["print 'python 2'", "\0", "a = [1", MANAGE.replace("'shop.settings.dev'", "name")])
def test_a_manage_that_says_nothing(tmp_path: Path, manage: str) -> None:
    here = tree(tmp_path, "manage.py", "shop/settings.py", "a-b/settings.py", "docs/index.md", manage=manage)
    assert found(here) == ("shop.settings", ("",))


def test_a_manage_that_assigns(tmp_path: Path) -> None:
    here = tree(tmp_path, "manage.py", manage="import os\nos.environ['DJANGO_SETTINGS_MODULE'] = 'a.b'\n")
    assert found(here) == ("a.b", ("",))


def test_settings_alone(tmp_path: Path) -> None:
    assert found(tree(tmp_path, "settings.py")) == ("settings", ("",))


@pytest.mark.parametrize(
    ("files", "target", "settings", "words"),
    [
        ((), None, None, "no Django project"),
        (("a/settings.py", "b/settings.py"), None, None, "has a.settings, b.settings; say which one"),
        (("a/b.txt",), "a/b.txt", None, "b.txt: expected a project's directory, or a settings module"),
        (("a/my-settings.py",), "a/my-settings.py", None, "'my-settings' is no name of a module"),
        ((), "./nowhere", None, "./nowhere: no such file or directory"),
        ((), "no-where", None, "no-where: no such file or directory"),
        ((), "a.b", "c.d", "a.b, --settings c.d: both name a settings module"),
        (("a/b.py",), "a/b.py", "c.d", "a/b.py, --settings c.d: both name a settings module"),
        ((), None, "c/d", "--settings = 'c/d': expected the dotted name"),
    ],
)
def test_no_project(
    tmp_path: Path, files: tuple[str, ...], target: str | None, settings: str | None, words: str
) -> None:
    with pytest.raises(ProjectError) as error:
        found(tree(tmp_path, *files), target, settings)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "paths", "name"),
    [
        ("shop.settings", ("/srv/www",), "shop"),
        ("config.settings.live", ("/srv/www", "/srv"), "www"),
        ("settings", ("/srv/www",), "www"),
        ("settings", ("/",), "settings"),
        ("config.settings", (), "config"),
    ],
)
def test_what_the_project_is_called(settings: str, paths: tuple[str, ...], name: str) -> None:
    assert Project(settings, paths).name == name
    assert Project(settings, ("/srv/apps", *paths), "/srv/www").name == (name if name == "shop" else "www")


@pytest.mark.parametrize(
    ("addrport", "bind"),
    [
        ("8001", "127.0.0.1:8001"),
        ("0.0.0.0:8001", "0.0.0.0:8001"),
        ("[::1]:8001", "[::1]:8001"),
        ("unix:/run/a.sock", "unix:/run/a.sock"),
        ("fd://3", "fd://3"),
        ("localhost", "localhost"),
    ],
)
def test_the_address_of_the_command(addrport: str, bind: str) -> None:
    assert bind_of(addrport) == bind


@pytest.mark.parametrize("addrport", ["65536", "a:b", "fd://x", "127.0.0.1:70000"])
def test_a_wrong_address(addrport: str) -> None:
    with pytest.raises(SettingError, match=r"^addrport = '.*': expected a port"):
        bind_of(addrport)


def options_of(command: BaseCommand) -> set[str]:
    return {name for action in command.create_parser("manage.py", "x")._actions for name in action.option_strings}


def test_the_command_has_the_options_of_both() -> None:
    gunicorns = {name for setting in Config().settings.values() for name in setting.cli or ()}
    djangos = options_of(BaseCommand())
    assert options_of(Command()) == djangos | gunicorns
    assert djangos & gunicorns == {"--pythonpath"}, "docs/django.md says whose these are"
