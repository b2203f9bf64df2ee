"""The agent's sections of an ini file, as the loader reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from paste.deploy import loadapp, loadwsgi

from paste_agent import ini
from paste_agent.errors import IniError, SettingError
from paste_agent.filter import AgentFilter

Write = Callable[[str], str]

PLAIN = """
[app:main]
use = egg:Paste#static
document_root = %(here)s
filter-with = agent
[filter:agent]
use = egg:paste_agent
service_name = shop
"""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(text: str, name: str = "service.ini") -> str:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return to_file


def names(path: str, environ: dict[str, str] | None = None, **global_conf: str) -> list[str]:
    return [one.service_name for one in ini.services(path, environ or {}, global_conf)]


@pytest.mark.parametrize(
    "use",
    ["egg:paste_agent", "egg:paste-agent", "egg:Paste_Agent#main", " egg:paste_agent ", "egg:paste_agent#main"],
)
def test_our_sections(write: Write, use: str) -> None:
    path = write(f"[filter:a]\nuse = {use}\nservice_name = a\n[filter:b]\nuse = egg:Paste#gzip\n[app:c]\nuse = {use}\n")
    assert ini.filter_sections(path) == ["filter:a"]
    assert names(path) == ["a"]


@pytest.mark.parametrize(
    "use", ["", "egg:", "egg:paste_agent_more", "call:paste_agent:x", "config:x.ini#agent", "b", "a"]
)
def test_sections_of_others(write: Write, use: str) -> None:
    assert ini.filter_sections(write(f"[filter:a]\nuse = {use}\n[filter:b]\nuse = a\n")) == []


def test_filter_with(write: Write) -> None:
    path = write(PLAIN)
    assert names(path) == ["shop"]
    assert isinstance(loadapp(f"config:{path}"), AgentFilter)


def test_several_sections_in_their_order(write: Write) -> None:
    path = write(
        "[filter:z]\nuse = egg:paste_agent\nservice_name = z\n[filter:a]\nuse = egg:paste_agent\nservice_name = a\n"
    )
    assert names(path) == ["z", "a"]
    assert [one.section for one in ini.services(path, {})] == ["filter:z", "filter:a"]


def test_a_section_that_builds_upon_another(write: Write) -> None:
    path = write(
        "[filter:a]\nuse = egg:paste_agent\nservice_name = a\napdex_t_s = 3\n[filter:b]\nuse = a\nservice_name = b\n"
    )
    first, second = ini.services(path, {})
    assert (first.service_name, second.service_name) == ("a", "b")
    assert second.apdex_t_s == 3.0


def test_a_filter_app_is_read_without_its_application(write: Write) -> None:
    path = write(
        "[filter-app:main]\nuse = egg:paste_agent\nnext = shop\nservice_name = fa\nstore = %(here)s/x.sqlite\n"
        "[app:shop]\nuse = call:no_such_module_anywhere:app\n"
    )
    (found,) = ini.services(path, {})
    assert (found.service_name, found.section) == ("fa", "filter-app:main")
    assert found.store == f"{Path(path).parent}/x.sqlite"


def test_a_filter_within_a_filter(write: Write) -> None:
    path = write(
        "[filter:agent]\nuse = egg:paste_agent\nservice_name = x\nfilter-with = gz\n[filter:gz]\nuse = egg:Paste#gzip\n"
    )
    assert names(path) == ["x"]


def test_values_are_interpolated_as_the_loader_does(write: Write) -> None:
    path = write(
        "[DEFAULT]\nteam = red\n[filter:agent]\nuse = egg:paste_agent\n"
        "service_name = %(team)s-shop\nstore = %(here)s/s\n"
    )
    (found,) = ini.services(path, {})
    assert (found.service_name, found.store) == ("red-shop", f"{Path(path).parent}/s")
    assert names(path, team="blue") == ["red-shop"]


def test_globals_of_the_command_line_fill_in(write: Write) -> None:
    path = write("[filter:agent]\nuse = egg:paste_agent\nservice_name = %(team)s-shop\n")
    assert names(path, team="blue") == ["blue-shop"]
    with pytest.raises(IniError, match="team"):
        names(path)


def test_set_and_get_of_the_loader(write: Write) -> None:
    path = write("[DEFAULT]\nteam = red\n[filter:agent]\nuse = egg:paste_agent\nget service_name = team\nset x = 1\n")
    assert names(path) == ["red"]


def test_keys_that_default_hides_are_told(write: Write) -> None:
    path = write(
        "[DEFAULT]\nstore = /else\nendpoint = http://x\n"
        "[filter:agent]\nuse = egg:paste_agent\nstore = /mine\nservice_name = s\n"
    )
    assert ini.dropped_keys(path, "filter:agent") == ["store"]
    (found,) = ini.services(path, {})
    assert found.origins["store"] == "default"
    assert found.values["endpoint"] is None


@pytest.mark.parametrize("directory", ["plain", "with space", "a#b", "caf\u00e9"])
def test_any_directory(write: Write, directory: str) -> None:
    assert names(write(PLAIN, f"{directory}/service.ini")) == ["shop"]


def test_a_relative_path(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(write(PLAIN))
    monkeypatch.chdir(path.parent)
    assert names(path.name) == ["shop"]


def test_the_section_is_named_in_messages(write: Write) -> None:
    path = write("[filter:mine]\nuse = egg:paste_agent\napdex_t_s = soon\n")
    with pytest.raises(SettingError, match=r"^\[filter:mine\] apdex_t_s = 'soon': expected"):
        ini.services(path, {})


def test_the_factory_names_the_section_too(write: Write) -> None:
    path = write(PLAIN.replace("filter:agent", "filter:mine").replace("= agent", "= mine") + "apdex_t_s = soon\n")
    with pytest.raises(SettingError, match=r"^\[filter:mine\] apdex_t_s = 'soon': expected"):
        loadapp(f"config:{path}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "filter:agent"),
        ("[filter:a]\nuse = egg:paste_agent\n", "filter:a"),
        ("[filter:a]\nuse = egg:paste_agent\n[filter:b]\nuse = egg:paste_agent\n", "filter:a or filter:b"),
        ("not an ini", "filter:agent"),
    ],
)
def test_which_section_a_factory_was_called_for(write: Write, text: str, said: str) -> None:
    assert ini.section_of({"__file__": write(text)}) == said


def test_no_file_no_section() -> None:
    assert ini.section_of({}) == "filter:agent"
    assert ini.section_of({"__file__": "/no/such.ini"}) == "filter:agent"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[a]\n[a]\n", "not an ini file"),
        ("x = 1\n", "not an ini file"),
        ("[app:main]\nuse = egg:paste_agent\n", "no section says `use = egg:paste_agent`"),
        ("[filter:agent]\nuse = egg:paste_agent\nstore = %(nowhere)s\n", "nowhere"),
        ("[filter:agent]\nuse = egg:paste_agent#none\n", "none"),
        ("[filter:agent]\nuse = egg:paste_agent\nstore = 100%\n", "%"),
    ],
)
def test_one_line_for_an_ini_that_cannot_be_used(write: Write, text: str, said: str) -> None:
    path = write(text)
    with pytest.raises(IniError) as raised:
        ini.services(path, {})
    assert str(raised.value).startswith(path)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"[a]\nx = \xff\xfe")
    for name in ("missing.ini", "binary", "."):
        with pytest.raises(IniError):
            ini.services(str(tmp_path / name), {})


def test_what_is_read_here_is_what_the_loader_passes(write: Write) -> None:
    path = write(PLAIN)
    context = loadwsgi.loadcontext(loadwsgi.FILTER, f"config:{path}", name="agent")
    assert ini.section_conf(path, "filter:agent") == (dict(context.local_conf), dict(context.global_conf))
