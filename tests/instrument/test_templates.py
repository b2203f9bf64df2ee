"""Jinja2, Mako, Chameleon and Kajiki: spans around the rendering and the compilation of templates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chameleon
import jinja2
import kajiki
import pytest
from mako import lookup as mako_lookup
from mako import template as mako_template

from paste_agent.inside import TEMPLATE, FinishedSpan
from paste_agent.recorder.writer import Recorder
from tests.instrument.asking import instrumented
from tests.recorders import spans_within


@pytest.fixture(autouse=True)
def patched() -> Iterator[None]:
    with instrumented("jinja2", "mako", "chameleon", "kajiki"):
        yield


def names(spans: list[FinishedSpan]) -> list[str]:
    assert {span.category for span in spans} <= {TEMPLATE}
    return [span.name for span in sorted(spans)]


# -- Jinja2 --------------------------------------------------------------------------------------------------------


def test_jinja(keeping: Recorder) -> None:
    templates = {"page.html": "<b>{{ x }}</b>{% include 'part.html' %}", "part.html": "part", "bad.html": "{{ 1 / 0 }}"}
    environment = jinja2.Environment(loader=jinja2.DictLoader(templates))
    seen: list[str] = []

    def render() -> None:
        seen.append(environment.get_template("page.html").render(x=1))
        seen.append(environment.from_string("{{ self_ }}").render({"self_": 2}))

    spans = spans_within(keeping, render)
    assert seen == ["<b>1</b>part", "2"]
    assert names(spans) == ["compile page.html", "page.html", "compile part.html", "compile <template>", "<template>"]
    part = next(span for span in spans if span.name == "compile part.html")
    page = next(span for span in spans if span.name == "page.html")
    assert part.parent == page.number
    assert page.own_ns < page.duration_ns
    with pytest.raises(ZeroDivisionError):
        environment.get_template("bad.html").render()

    def break_down() -> None:
        with pytest.raises(ZeroDivisionError):
            environment.get_template("bad.html").render()

    (bad,) = spans_within(keeping, break_down)
    assert (bad.name, bad.failed) == ("bad.html", "ZeroDivisionError")


def test_what_one_template_of_jinja_renders_in_another_is_inside_of_it(keeping: Recorder) -> None:
    environment = jinja2.Environment(loader=jinja2.DictLoader({"in": "in", "out": "{{ inner() }}"}))
    inner, outer = environment.get_template("in"), environment.get_template("out")
    spans = sorted(spans_within(keeping, lambda: outer.render(inner=inner.render)))
    assert names(spans) == ["out", "in"]
    assert spans[1].parent == spans[0].number


def test_a_stream_of_jinja_has_no_span(keeping: Recorder) -> None:
    template = jinja2.Environment().from_string("{{ x }}")
    assert spans_within(keeping, lambda: "".join(template.generate(x=1))) == []


def test_jinja_compiles_as_ever(keeping: Recorder) -> None:
    environment = jinja2.Environment()
    made: list[Any] = []
    spans = spans_within(keeping, lambda: made.append(environment.compile("x", "a name", raw=True)))
    assert names(spans) == ["compile a name"]
    assert isinstance(made[0], str)
    with pytest.raises(jinja2.TemplateSyntaxError):
        environment.compile("{% if %}", name="bad")


# -- Mako ----------------------------------------------------------------------------------------------------------


def test_mako(keeping: Recorder, tmp_path: Path) -> None:
    (tmp_path / "page.mako").write_text("<b>${x}</b><%include file='part.mako'/>")
    (tmp_path / "part.mako").write_text("part")
    lookup = mako_lookup.TemplateLookup(directories=[str(tmp_path)])
    seen: list[object] = []

    def render() -> None:
        seen.append(lookup.get_template("/page.mako").render(x=1))
        seen.append(lookup.get_template("/page.mako").render_unicode(x=2))

    spans = spans_within(keeping, render)
    assert seen == ["<b>1</b>part", "<b>2</b>part"]
    assert names(spans) == ["compile /page.mako", "/page.mako", "compile /part.mako", "/page.mako"]


def test_a_text_of_mako_is_not_named_by_its_address(keeping: Recorder) -> None:
    def render() -> None:
        assert mako_template.Template("${x}").render(x=1) == "1"

    assert names(spans_within(keeping, render)) == ["compile <template>", "<template>"]


def test_a_module_of_mako_is_compiled_once(keeping: Recorder, tmp_path: Path) -> None:
    (tmp_path / "page.mako").write_text("${x}")

    def render() -> None:
        lookup = mako_lookup.TemplateLookup(directories=[str(tmp_path)], module_directory=str(tmp_path / "modules"))
        assert lookup.get_template("/page.mako").render(x=1) == "1"

    assert names(spans_within(keeping, render)) == ["compile /page.mako", "/page.mako"]
    assert names(spans_within(keeping, render)) == ["/page.mako"]


# -- Chameleon -----------------------------------------------------------------------------------------------------


def test_chameleon(keeping: Recorder, tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "page.pt").write_text("<b>${x}</b>")

    def render() -> None:
        template = chameleon.PageTemplateFile(str(tmp_path / "templates" / "page.pt"))
        assert template.render(x=1) == "<b>1</b>"
        assert template(x=2) == "<b>2</b>"
        assert chameleon.PageTemplate("<i>${self_}</i>").render(self_=3) == "<i>3</i>"

    spans = spans_within(keeping, render)
    found = names(spans)
    assert [name for name in found if not name.startswith("compile ")] == [
        "templates/page.pt",
        "templates/page.pt",
        "<template>",
    ]
    assert sorted(name for name in found if name.startswith("compile ")) == [
        "compile <template>",
        "compile templates/page.pt",
    ]


def test_a_variable_may_have_any_name(keeping: Recorder) -> None:
    template = chameleon.PageTemplate("<i>${call} ${what}</i>")
    assert spans_within(keeping, lambda: template.render(call=1, what=2)) != []
    assert template.render(call=1, what=2) == "<i>1 2</i>"
    assert mako_template.Template("${call} ${what}").render(call=1, what=2) == "1 2"
    assert jinja2.Template("{{ call }} {{ what }}").render(call=1, what=2) == "1 2"


# -- Kajiki --------------------------------------------------------------------------------------------------------


def test_kajiki(keeping: Recorder, tmp_path: Path) -> None:
    pages = tmp_path / "pages"
    pages.mkdir()
    (pages / "outer.html").write_text('<html><body><py:block name="body">outer</py:block></body></html>')
    (pages / "page.html").write_text(
        '<html py:extends="outer.html"><py:block name="body"><b>${x}</b></py:block></html>'
    )
    loader = kajiki.FileLoader(path=str(pages))

    def render() -> None:
        for number in (1, 2):
            assert f"<b>{number}</b>" in loader.load("page.html")({"x": number}).render()
        assert kajiki.XMLTemplate(None, str(pages / "outer.html"))().render()
        assert kajiki.TextTemplate("$x")({"x": 3}).render() == "3"

    spans = spans_within(keeping, render)
    assert names(spans) == [
        "compile pages/page.html",
        "pages/page.html",
        "compile pages/outer.html",
        "pages/page.html",
        "compile pages/outer.html",
        "pages/outer.html",
        "compile <template>",
        "<template>",
    ]


def test_a_template_of_kajiki_that_fails(keeping: Recorder) -> None:
    template = kajiki.XMLTemplate("<b>${1 / 0}</b>")

    def break_down() -> None:
        with pytest.raises(ZeroDivisionError):
            template().render()

    (bad,) = spans_within(keeping, break_down)
    assert (bad.name, bad.failed) == ("<template>", "ZeroDivisionError")
