"""`paste-agent install`: the text that it makes, and what PasteDeploy then makes of that."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paste.deploy import loadwsgi

from paste_agent import ini
from paste_agent.cli import install as install_command
from paste_agent.errors import IniError
from paste_agent.filter import AgentFilter
from paste_agent.ini_text import IniText
from tests.commands import Run, refused, shell
from tests.pasted import TRAIL

APP = "[app:shop]\npaste.app_factory = tests.pasted:app\n"
MAIN = APP.replace("shop", "main")
FILTER = "[filter:{0}]\npaste.filter_app_factory = tests.pasted:filter_app\nname = {0}\n"
AGENT = "[filter:agent]\nuse = egg:paste_agent\n\n"


@pytest.fixture(scope="module", autouse=True)
def quiet_agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a filter is made with: nothing of it is left behind, and no layers stand between it and its application."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))
        for name, value in {"STORE": "memory", "LAYERS": "false", "GC_PAUSES": "false"}.items():
            patch.setenv(f"PASTE_AGENT_{name}", value)
        yield


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    found = shell(capsys, monkeypatch, tmp_path)
    for name, value in {"STORE": "memory", "LAYERS": "false", "GC_PAUSES": "false"}.items():
        monkeypatch.setenv(f"PASTE_AGENT_{name}", value)
    return found


def served(path: Path, name: str = "main") -> Any:
    return loadwsgi.loadapp(f"config:{path}", name=name)


def trail_of(application: Any) -> list[str]:
    """The filters that a request passes, from the outermost; 'agent' without going through it."""
    before = []
    while isinstance(application, AgentFilter):
        before.append("agent")
        application = application.application
    environ: dict[str, Any] = {}
    assert application(environ, lambda *_: None) == [b"hello"]
    return before + environ.get(TRAIL, [])


def written(tmp_path: Path, text: str, name: str = "shop.ini") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode())
    return path


# -- how it looks ----------------------------------------------------------------------------------------------------

A, B = FILTER.format("a"), FILTER.format("b")
PARTS = APP + A + B
LOOKS: dict[str, tuple[str, str, list[str]]] = {
    "one line": (
        PARTS + "\n[pipeline:main]\npipeline = a b shop\n",
        PARTS + "\n" + AGENT + "[pipeline:main]\npipeline = agent a b shop\n",
        ["agent", "a", "b"],
    ),
    "an application alone in a pipeline": (
        PARTS + "[pipeline:main]\npipeline: shop",
        PARTS + AGENT + "[pipeline:main]\npipeline: agent shop",
        ["agent"],
    ),
    "one a line, below the key": (
        PARTS + "[pipeline:main]\npipeline =\n  # outside\n  a\n\n  # inside\n  shop\n",
        PARTS + AGENT + "[pipeline:main]\npipeline =\n  # outside\n  agent\n  a\n\n  # inside\n  shop\n",
        ["agent", "a"],
    ),
    "one a line, beside the key": (
        PARTS + "[pipeline:main]\npipeline = a\n           b\n           shop\n",
        PARTS + AGENT + "[pipeline:main]\npipeline = agent\n           a\n           b\n           shop\n",
        ["agent", "a", "b"],
    ),
    "the pipeline's own comment": (
        PARTS + "\n# What is served.\n; Really.\n[pipeline:main]\npipeline = shop\n# the end",
        PARTS + "\n" + AGENT + "# What is served.\n; Really.\n[pipeline:main]\npipeline = agent shop\n# the end",
        ["agent"],
    ),
    "a comment that is the file's": (
        "# My shop\n" + MAIN,
        "# My shop\n" + AGENT + MAIN + "filter-with = agent\n",
        ["agent"],
    ),
    "lines that end as on Windows": (
        (PARTS + "[pipeline:main]\npipeline =\n\ta\n\tshop\n").replace("\n", "\r\n"),
        (PARTS + AGENT + "[pipeline:main]\npipeline =\n\tagent\n\ta\n\tshop\n").replace("\n", "\r\n"),
        ["agent", "a"],
    ),
    "an application": (
        "[app:main]\nuse    = egg:paste_agent#demo\nslow_s = 3\n\n[server:main]\nuse = egg:paste_agent\n",
        AGENT
        + "[app:main]\nuse    = egg:paste_agent#demo\nfilter-with = agent\nslow_s = 3\n\n"
        + "[server:main]\nuse = egg:paste_agent\n",
        [],
    ),
    "an application whose line has no end": (
        "[app:main]\npaste.app_factory=tests.pasted:app",
        AGENT + "[app:main]\npaste.app_factory=tests.pasted:app\nfilter-with=agent",
        ["agent"],
    ),
    "indented": (
        "  [app:main]\n  use = shop\n  key = x\n    y\n" + PARTS,
        "  [filter:agent]\n  use = egg:paste_agent\n\n"
        "  [app:main]\n  use = shop\n  filter-with = agent\n  key = x\n    y\n" + PARTS,
        ["agent"],
    ),
    "a composite": (
        PARTS + "[composite:main]\npaste.composite_factory = tests.pasted:composite\ninner = shop\n",
        PARTS
        + AGENT
        + "[composite:main]\npaste.composite_factory = tests.pasted:composite\nfilter-with = agent\ninner = shop\n",
        ["agent"],
    ),
    "their filter stays within": (
        MAIN + "filter-with = a\n" + A,
        MAIN + "filter-with = a\n" + AGENT + A.replace("name", "filter-with = agent\nname"),
        ["agent", "a"],
    ),
    "their chain stays within": (
        MAIN + "filter-with = a\n" + A + "filter-with = b\n" + B,
        MAIN + "filter-with = a\n" + A + "filter-with = b\n" + AGENT + B.replace("name", "filter-with = agent\nname"),
        ["agent", "b", "a"],
    ),
    "what the section stands for": (
        PARTS + "[app:main]\nuse = p\n[pipeline:p]\npipeline = a shop\n",
        PARTS + "[app:main]\nuse = p\n" + AGENT + "[pipeline:p]\npipeline = agent a shop\n",
        ["agent", "a"],
    ),
    "around what has a filter already": (
        APP + "filter-with = a\n" + A + "[app:main]\nuse = shop\n",
        APP + "filter-with = a\n" + AGENT + A.replace("name", "filter-with = agent\nname") + "[app:main]\nuse = shop\n",
        ["agent", "a"],
    ),
    "a filter-app": (
        APP + "[filter-app:main]\npaste.filter_app_factory = tests.pasted:filter_app\nname = a\nnext = shop\n",
        APP
        + AGENT
        + "[pipeline:main]\npipeline = agent main_without_agent\n\n[filter-app:main_without_agent]\n"
        + "paste.filter_app_factory = tests.pasted:filter_app\nname = a\nnext = shop\n",
        ["agent", "a"],
    ),
    "a name that is taken": (
        PARTS + FILTER.format("agent") + "[pipeline:main]\npipeline = agent shop\n",
        PARTS
        + FILTER.format("agent")
        + AGENT.replace("agent]", "paste_agent]")
        + "[pipeline:main]\npipeline = paste_agent agent shop\n",
        ["agent", "agent"],
    ),
    "a section of ours that nothing calls": (
        PARTS + AGENT + "apdex_t_s = 1\n[pipeline:main]\npipeline = shop\n",
        PARTS + AGENT + "apdex_t_s = 1\n[pipeline:main]\npipeline = agent shop\n",
        ["agent"],
    ),
    "other characters": (
        "# caf\u00e9\u2028[x]\n" + PARTS + "[pipeline:main]\npipeline = a shop\n",
        "# caf\u00e9\u2028[x]\n" + PARTS + AGENT + "[pipeline:main]\npipeline = agent a shop\n",
        ["agent", "a"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LOOKS)
def test_what_is_written_and_undone(run: Run, tmp_path: Path, case: str) -> None:
    before, after, trail = LOOKS[case]
    path = written(tmp_path, before)
    result = run("install", "--yes", path)
    assert (result.status, result.errors) == (0, "")
    assert path.read_bytes().decode() == after
    assert "the loader finds all of [main], with the agent outermost" in result.output
    if trail:
        assert trail_of(served(path)) == trail
    again = run("install", "--yes", path)
    assert (again.status, again.errors) == (0, "")
    assert "already: nothing to do" in again.output
    assert path.read_bytes().decode() == after
    removed = run("install", "--yes", "--remove", path)
    assert (removed.status, removed.errors) == (0, "")
    assert path.read_bytes().decode() == before
    assert "nothing to do" in run("install", "--remove", path).output


def test_a_pipeline_of_another_file(run: Run, tmp_path: Path) -> None:
    other = written(tmp_path, PARTS + "[pipeline:main]\npipeline = a shop\n", "other.ini")
    before = "[app:main]\nuse = config:other.ini\n"
    path = written(tmp_path, before)
    assert run("install", "--yes", path).status == 0
    assert trail_of(served(path)) == ["agent", "a"]
    assert path.read_text().endswith("[app:main_without_agent]\nuse = config:other.ini\n")
    assert run("install", "--yes", "--remove", path).status == 0
    assert path.read_text() == before
    assert run("install", "--yes", other).status == 0
    assert "already: nothing to do" in run("install", "--yes", path).output
    refused(run("install", "--remove", "--yes", path), "another file that [main] uses")


def test_an_application_of_another_file(run: Run, tmp_path: Path) -> None:
    written(tmp_path, MAIN, "other.ini")
    path = written(tmp_path, "[app:main]\nuse = config:other.ini\n")
    assert run("install", "--yes", path).status == 0
    assert path.read_text() == AGENT + "[app:main]\nuse = config:other.ini\nfilter-with = agent\n"
    assert trail_of(served(path)) == ["agent"]


def test_another_application(run: Run, tmp_path: Path) -> None:
    path = written(tmp_path, PARTS + "[pipeline:main]\npipeline = a shop\n")
    assert run("install", "--yes", "--app", "shop", path).status == 0
    assert trail_of(served(path, "shop")) == ["agent"]
    assert not isinstance(served(path), AgentFilter)
    assert "further in" not in run("install", "--app", "shop", path).output
    assert "further in" in run("install", path).output


def test_services_behind_a_composite_are_left_alone(run: Run, tmp_path: Path) -> None:
    composite = "[composite:main]\npaste.composite_factory = tests.pasted:composite\ninner = p\n"
    path = written(tmp_path, PARTS + composite + AGENT + "[pipeline:p]\npipeline = agent a shop\n")
    assert "the agent is in [pipeline:p] already: nothing to do" in run("install", path).output
    assert run("install", "--yes", "--remove", path).status == 0
    assert path.read_text() == PARTS + composite + "[pipeline:p]\npipeline = a shop\n"


# -- what somebody has put in by hand --------------------------------------------------------------------------------

CHOICE = "[composite:main]\npaste.composite_factory = tests.pasted:composite\ninner = shop\n"
BY_HAND: dict[str, tuple[str, str]] = {
    "in the middle": (
        PARTS + AGENT + "[pipeline:main]\npipeline = a agent b shop\n",
        PARTS + "[pipeline:main]\npipeline = a b shop\n",
    ),
    "with a comment below": (
        PARTS + AGENT + "[pipeline:main]\npipeline =\n a\n agent\n # the shop\n shop\n",
        PARTS + "[pipeline:main]\npipeline =\n a\n # the shop\n shop\n",
    ),
    "beside the key, with a comment below": (
        PARTS + AGENT + "[pipeline:main]\npipeline = agent\n # the shop\n shop\n",
        PARTS + "[pipeline:main]\npipeline = \n # the shop\n shop\n",
    ),
    "from the egg": (
        PARTS + "[pipeline:main]\npipeline = egg:paste_agent a shop\n",
        PARTS + "[pipeline:main]\npipeline = a shop\n",
    ),
    "twice": (
        PARTS + AGENT + "[pipeline:main]\npipeline = agent a agent shop\n",
        PARTS + "[pipeline:main]\npipeline = a shop\n",
    ),
    "with their filter around it": (
        MAIN + "filter-with = agent\n[filter:agent]\nuse = egg:paste_agent\nfilter-with = a\n" + A,
        MAIN + "filter-with = a\n[filter:agent]\nuse = egg:paste_agent\nfilter-with = a\n" + A,
    ),
    "with settings": (
        PARTS + "[pipeline:main]\npipeline = agent shop\n[filter:agent]\nuse = egg:paste_agent\napdex_t_s = 1\n",
        PARTS + "[pipeline:main]\npipeline = shop\n[filter:agent]\nuse = egg:paste_agent\napdex_t_s = 1\n",
    ),
    "with settings that are commented out": (
        PARTS + "[pipeline:main]\npipeline = agent shop\n[filter:agent]\nuse = egg:paste_agent\n#apdex_t_s = 1\n",
        PARTS + "[pipeline:main]\npipeline = shop\n[filter:agent]\nuse = egg:paste_agent\n#apdex_t_s = 1\n",
    ),
    "at the end": (
        PARTS + "[pipeline:main]\npipeline = agent shop\n\n[filter:agent]\nuse = egg:paste_agent\n",
        PARTS + "[pipeline:main]\npipeline = shop\n",
    ),
    "in a composite's choice of pipelines": (
        PARTS + AGENT + CHOICE + "keystone = a agent shop\nnoauth =\n  agent\n  shop\n",
        PARTS + CHOICE + "keystone = a shop\nnoauth =\n  shop\n",
    ),
    "under another name": (
        PARTS + "[filter:x]\nuse = agent\n\n" + AGENT + "[pipeline:main]\npipeline = x shop\n",
        PARTS + "[pipeline:main]\npipeline = shop\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BY_HAND)
def test_what_was_put_in_by_hand_is_taken_out(run: Run, tmp_path: Path, case: str) -> None:
    before, after = BY_HAND[case]
    path = written(tmp_path, before)
    result = run("install", "--yes", "--remove", path)
    assert (result.status, result.errors) == (0, "")
    assert path.read_text() == after
    assert "agent" not in trail_of(served(path))
    assert ("[filter:agent] stays" in result.output) == ("[filter:agent]" in after)


def test_a_section_that_another_pipeline_uses_stays(run: Run, tmp_path: Path) -> None:
    rest = AGENT + "[pipeline:other]\npipeline = agent shop\n"
    path = written(tmp_path, PARTS + "[pipeline:main]\npipeline = agent a shop\n" + rest)
    assert run("install", "--yes", "--remove", path).status == 0
    assert path.read_text() == PARTS + "[pipeline:main]\npipeline = a shop\n" + rest


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["no application is called main", "no section such as [app:main] at all"]),
        (APP, ["no application is called main; choose one with --app: shop"]),
        (PARTS + "[pipeline:main]\npipeline = a nowhere\n", ["the loader fails", "nowhere"]),
        ("[app:main]\nuse = egg:no-such-thing-at-all\n", ["the loader fails"]),
        (PARTS + "[pipeline:main]\npipeline = a shop\nfilter-with = b\n", ["[main]", "around a pipeline"]),
        (MAIN + "filter-with = egg:paste_agent#nothing\n", ["the loader fails"]),
        ("[DEFAULT]\nfilter-with = a\n" + MAIN + "filter-with = a\n" + A, ["[DEFAULT] filter-with", "hides"]),
        ("[DEFAULT]\nfilter-with = a\n" + MAIN + A, ["[DEFAULT] filter-with", "hides"]),
        (MAIN + "filter-with = %(them)s\n[DEFAULT]\nthem = a\n" + A, ["[app:main] filter-with = %(them)s", "section"]),
        (PARTS + "[filter-app:main]\nuse = a\nnext = shop\n[app:x]\nuse = main\n", ["[app:x] uses too"]),
        ("pipeline = a\n", ["not an ini"]),
        ("[app:main]\nuse = a\n[app:main]\n", ["not an ini", "already exists"]),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_line(run: Run, tmp_path: Path, text: str, words: list[str]) -> None:
    path = written(tmp_path, text)
    refused(run("install", "--yes", path), "shop.ini", *words)
    assert path.read_bytes().decode() == text
    assert os.listdir(tmp_path) == ["shop.ini"]


def test_a_filter_app_of_ours_is_taken_out_by_hand(run: Run, tmp_path: Path) -> None:
    path = written(tmp_path, APP + "[filter-app:main]\nuse = egg:paste_agent\nnext = shop\n")
    refused(run("install", "--yes", "--remove", path), "[filter-app:main]", "[app:main]", "use = shop")


def test_what_is_no_file(run: Run, tmp_path: Path) -> None:
    refused(run("install", tmp_path / "nowhere.ini"), "nowhere.ini: No such file")
    refused(run("install", tmp_path), "Is a directory")


# -- asking and writing ----------------------------------------------------------------------------------------------

BEFORE = PARTS + "[pipeline:main]\npipeline = a shop\n"


def test_a_dry_run_writes_nothing(run: Run, tmp_path: Path) -> None:
    path = written(tmp_path, BEFORE)
    result = run("install", "--dry-run", "--yes", path)
    assert (result.status, result.errors) == (0, "")
    lines = result.output.splitlines()
    assert "-pipeline = a shop" in lines
    assert "+pipeline = agent a shop" in lines
    assert "+[filter:agent]" in lines
    assert path.read_text() == BEFORE
    assert os.listdir(tmp_path) == ["shop.ini"]


@pytest.mark.parametrize(("answer", "status"), [("y\n", 0), ("n\n", 1), ("\n", 1), ("", 1)])
def test_it_asks_before_it_writes(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, status: int
) -> None:
    path = written(tmp_path, BEFORE)
    (tmp_path / "answer").write_text(answer)
    with open(tmp_path / "answer") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        result = run("install", path)
    assert result.status == status
    assert ("nothing was changed" in result.errors) == bool(status)
    assert (path.read_text() == BEFORE) == bool(status)


def test_mode_and_links_stay(run: Run, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    real = written(tmp_path / "etc", BEFORE, "real.ini")
    real.chmod(0o640)
    link = tmp_path / "shop.ini"
    link.symlink_to("etc/real.ini")
    if os.geteuid() == 0:
        os.chown(real, 1, 2)
    before = real.stat()
    assert run("install", "--yes", link).status == 0
    assert link.is_symlink()
    assert "pipeline = agent a shop" in real.read_text()
    after = real.stat()
    assert stat.S_IMODE(after.st_mode) == 0o640
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)
    assert os.listdir(tmp_path / "etc") == ["real.ini"]


def test_a_file_that_changes_while_somebody_is_asked(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, BEFORE)

    def edit(question: str) -> bool:
        path.write_text(BEFORE + "# edited\n")
        return True

    monkeypatch.setattr(install_command.click, "confirm", edit)
    refused_at_the_end = run("install", path)
    assert refused_at_the_end.status == 1
    assert "has changed meanwhile" in refused_at_the_end.errors
    assert path.read_text() == BEFORE + "# edited\n"
    assert os.listdir(tmp_path) == ["shop.ini"]


# -- any ini ---------------------------------------------------------------------------------------------------------


@st.composite
def sections(draw: st.DrawFn) -> list[list[str]]:
    """Sections of an ini that can be served, as lines without ends; one of them is main."""
    delimiter = draw(st.sampled_from(["=", " = ", ": ", "   = "]))
    words = draw(st.sampled_from(["a b shop", "a shop", "shop"])).split()
    pipeline = draw(
        st.sampled_from(
            [
                [f"pipeline{delimiter}{' '.join(words)}"],
                [f"pipeline{delimiter}".rstrip(), *(f"\t{word}" for word in words)],
                [f"pipeline{delimiter}{words[0]}", *(f"    {word}" for word in words[1:])],
                [f"pipeline{delimiter}".rstrip(), "  # said", *(f"  {word}" for word in words), "  ; done"],
                [f"pipeline{delimiter}".rstrip(), "", f"  {' '.join(words)}"],
            ]
        )
    )
    factory = f"paste.app_factory{delimiter}tests.pasted:app"
    filter_with = draw(st.sampled_from([[], ["filter-with = a"], ["filter-with: b"]]))
    main = draw(
        st.sampled_from(
            [
                ["[pipeline:main]", *pipeline],
                ["[app:main]", factory, *filter_with, "key = x", "  y"],
                ["[application: main]", f"use{delimiter}shop", *filter_with],
                ["[composite:main]", "paste.composite_factory = tests.pasted:composite", *filter_with, "inner = shop"],
                ["[filter-app:main]", "use = a", "next = shop"],
                ["[app:main]", "use = other"],
            ]
        )
    )
    chain = draw(st.sampled_from([[], ["filter-with = c"]]))
    shop = ["[app:shop]", factory]
    parts = [
        main,
        shop,
        ["[pipeline:other]", *pipeline],
        [*FILTER.format("a").splitlines(), *chain],
        FILTER.format("b").splitlines(),
        FILTER.format("c").splitlines(),
        draw(st.sampled_from([["[DEFAULT]", "here_too = 1"], ["[loggers]", "keys = root"], ["[x]"]])),
    ]
    if draw(st.booleans()):
        parts.append(FILTER.format("agent").splitlines())
    return draw(st.permutations(parts))


@st.composite
def inis(draw: st.DrawFn) -> str:
    lines = list(draw(st.sampled_from([[], ["# The shop"], ["", "; x", ""]])))
    for section in draw(sections()):
        lines += draw(st.sampled_from([[], ["# about it"], ["", "# about it"], [" # about", "", ""]]))
        lines += section
        lines += draw(st.sampled_from([[], [""], ["#key = 1"], ["", " ", "# end"]]))
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    text = end.join(lines)
    return text + draw(st.sampled_from(["", end, end * 3]))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("inis")


@settings(max_examples=50)
@given(text=inis())
def test_any_ini_serves_the_same_behind_the_agent_and_is_undone_to_the_byte(directory: Path, text: str) -> None:
    path = written(directory, text)
    before = trail_of(served(path))
    install_command._edit(str(path), "main", remove=False, dry_run=False, yes=True)
    application = served(path)
    assert isinstance(application, AgentFilter)
    assert trail_of(application) == ["agent", *before]
    assert len(ini.filter_sections(str(path))) == 1
    install_command._edit(str(path), "main", remove=True, dry_run=False, yes=True)
    assert path.read_bytes().decode() == text


@given(text=st.lists(st.sampled_from(
    ["[a]", "[app:main]", " [b]", "key = x", "  key = y", "use: z", "\tmore", "# said", "  ; said", "", "  ", "a:b=c"]
), max_size=12).map("\n".join))  # fmt: skip
def test_lines_are_told_apart_as_the_parser_does(text: str) -> None:
    try:
        parsed = install_command._parsed(text)
    except IniError:
        return
    found = IniText(text)
    assert {section.name for section in found.sections} == parsed.keys() - {"DEFAULT"}
    for section in found.sections:
        words = {key: option.value.split() for key, option in section.options.items()}
        assert words == {key: value.split() for key, value in parsed[section.name].items()}
