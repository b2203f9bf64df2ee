"""HTML as values: what was not made there is escaped, whatever it is; charts of any numbers are sound."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paste_agent.aggregate import Total
from paste_agent.dashboard import charts
from paste_agent.dashboard.charts import (
    Line,
    Mark,
    clock_text,
    histogram,
    line_chart,
    shares,
    spark,
    stacked_chart,
    timeline,
)
from paste_agent.dashboard.html import Markup, join, tag, text
from paste_agent.store.history import Window
from paste_agent.wording import duration
from tests.dashboards import Page
from tests.recorders import MS, S

WINDOW = Window(1_000_000, 1_000_600, 60)
HOSTILE = "<script>alert(1)</script>\"'&\u202e\x00\ud800"
ANY = st.text(st.characters(exclude_categories=()))


def test_text_is_escaped_and_markup_is_not() -> None:
    made = tag("b", "x < y")
    assert tag("p", "1 & 2 ", made, class_="a'b") == '<p class="a&#x27;b">1 &amp; 2 <b>x &lt; y</b></p>'
    assert join(["<", None, made, 3], tag("br")) == "&lt;<br><b>x &lt; y</b><br>3"
    assert tag("p", [["a"], None, ("b", made)]) == "<p>ab<b>x &lt; y</b></p>"


def test_markup_that_has_been_changed_is_text_again() -> None:
    assert tag("p", tag("i", "a") + "<b>") == "<p>&lt;i&gt;a&lt;/i&gt;&lt;b&gt;</p>"
    assert tag("p", "{}".format("<b>")) == "<p>&lt;b&gt;</p>"


def test_attributes() -> None:
    assert (
        tag("a", class_="x", data_form="y", aria_label=None, hidden=True, open=False)
        == '<a class="x" data-form="y" hidden></a>'
    )
    assert tag("input", name="n", value=0) == '<input name="n" value="0">'


@pytest.mark.parametrize("attributes", [{"style": "color:red"}, {"onclick": "x()"}, {"onmouseover": "x()"}])
def test_what_the_policy_forbids_cannot_be_made(attributes: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="give the element a class"):
        tag("p", **attributes)


def test_what_no_page_may_have_is_replaced() -> None:
    assert text("a\x00b\u202ec\ud800d") == "a\ufffdb\ufffdc\ufffdd"
    assert text("a\n\tb\u00a0c\u2009d é 漢") == "a\n\tb\u00a0c\u2009d é 漢"


@given(ANY)
def test_any_text_is_one_text(value: str) -> None:
    page = Page(tag("p", value, title=value))
    assert [one.name for one in page.elements] == ["p"]
    assert list(page.elements[0].attributes) == ["title"]
    page.html.encode()


# -- charts --------------------------------------------------------------------------------------------------------

VALUES = st.lists(st.none() | st.floats(0, 1e300) | st.sampled_from([0.0, 5e-324, 1.0]), min_size=10, max_size=10)


def numbers_in(html: str) -> list[str]:
    """What stands in the places of numbers of a drawing."""
    names = ("x", "y", "x1", "x2", "y1", "y2", "width", "height", "cx", "cy")
    return [value or "" for one in Page(html).elements for name, value in one.attributes.items() if name in names]


@given(VALUES, VALUES)
def test_charts_of_any_numbers(first: list[float | None], second: list[float | None]) -> None:
    lines = [Line(HOSTILE, first, "c0"), Line("b", second, "c1")]
    for drawn in (
        line_chart(HOSTILE, WINDOW, lines, duration, marks=[Mark(1_000_100, HOSTILE)], limit=3.0, limit_label=HOSTILE),
        stacked_chart("t", WINDOW, lines, lambda value: f"{value:.3g}", note=HOSTILE),
        tag("div", spark(first)),
    ):
        assert isinstance(drawn, Markup)
        for number in numbers_in(drawn):
            assert math.isfinite(float(number))
        paths = [one.attributes["d"] or "" for one in Page(drawn).all("path")]
        assert not any("nan" in path or "inf" in path for path in paths)


def test_a_chart_tells_its_values_in_words_and_to_the_script() -> None:
    page = Page(
        line_chart("Load", WINDOW, [Line("now", [None, 1.0, 3.0, *[None] * 7], "c0")], lambda value: f"{value:g}/s")
    )
    (figure,) = page.all("figure")
    assert page.all("svg")[0].attributes["aria-label"] == "Load. now: 1/s to 3/s, at last 3/s"
    data = json.loads(figure.attributes["data-chart"] or "")
    assert (data["start"], data["step"]) == (WINDOW.start_s, 60)
    assert data["lines"] == [["now", ["–", "1/s", "3/s", *["–"] * 7]]]
    assert "nothing in this span" not in page.text


def test_an_empty_chart_says_so() -> None:
    assert (
        "nothing in this span of time" in Page(line_chart("Load", WINDOW, [Line("now", [None] * 10, "c0")], str)).text
    )


def test_lines_are_interrupted_and_lonely_points_are_dots() -> None:
    page = Page(line_chart("Load", WINDOW, [Line("now", [1.0, 2.0, None, 1.0, *[None] * 6], "c0")], str))
    (path,) = page.all("path")
    assert (path.attributes["d"] or "").count("L") == 1
    assert len(page.all("circle")) == 1


def test_layers_stand_on_each_other() -> None:
    values = [1.0] * 10
    page = Page(stacked_chart("Load", WINDOW, [Line("a", values, "c0"), Line("b", values, "c1")], str))
    first, second = page.all("path")
    # The lower end of the second is the upper end of the first.
    assert (second.attributes["d"] or "").split("h")[0].split()[1] == (first.attributes["d"] or "").split("V")[1].split(
        "h"
    )[0]


def test_marks_outside_of_the_window_are_left_out() -> None:
    marks = [
        Mark(WINDOW.start_s - 1, "before"),
        Mark(WINDOW.start_s + 60, "version 2"),
        Mark(WINDOW.end_s + 1, "after"),
    ]
    page = Page(line_chart("Load", WINDOW, [Line("now", [1.0] * 10, "c0")], str, marks=marks))
    assert [one.text for one in page.all("title")] == ["version 2"]


@given(st.lists(st.integers(0, 1 << 60), max_size=30))
def test_histograms_of_any_durations(durations: list[int]) -> None:
    total = Total()
    for one in durations:
        total.observe(one)
    drawn = histogram("t", total)
    if not durations:
        assert drawn == ""
        return
    counts = [int(one.text.rpartition(" ")[2].replace(",", "")) for one in Page(drawn).all("title")]
    assert sum(counts) == len(durations)
    for number in numbers_in(drawn):
        assert math.isfinite(float(number))


@pytest.mark.parametrize(
    ("parts", "widths"),
    [
        ([("a", 0.5), ("b", 0.25)], [500, 250]),
        ([("a", 0.9), ("b", 0.9)], [900, 100]),
        ([("a", -1.0), ("b", 0.0)], []),
    ],
)
def test_shares(parts: list[tuple[str, float]], widths: list[int]) -> None:
    page = Page(shares(parts, lambda name: name, "told"))
    assert [int(one.attributes["width"] or "") for one in page.all("rect")] == widths


@pytest.mark.parametrize(
    ("time", "place"),
    [
        ((0, 100 * MS), (0, 1000)),
        ((50 * MS, 10 * MS), (500, 100)),
        ((50 * MS, 0), (500, 3)),  # can still be seen
        ((100 * MS, 0), (997, 3)),
        ((-S, 10), (0, 3)),
        ((0, S), (0, 1000)),
    ],
)
def test_timelines(time: tuple[int, int], place: tuple[int, int]) -> None:
    (found,) = Page(timeline([time], 0, 100 * MS, "c0", "told")).all("rect")
    assert (int(found.attributes["x"] or ""), int(found.attributes["width"] or "")) == place


@pytest.mark.parametrize(
    ("most", "top", "count"), [(0, 1.0, 1), (3, 3.0, 4), (0.95, 1.0, 3), (100, 100, 3), (7, 10, 3), (1e-9, 1e-9, 3)]
)
def test_scales_end_above_their_values(most: float, top: float, count: int) -> None:
    found, ticks = charts._scale([most])
    assert found == pytest.approx(top)
    assert len(ticks) == count
    assert ticks[0] == 0
    assert found >= most


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("clock", "08:00"),
        ("second", "08:00:00"),
        ("day", "15 Jan"),
        ("day-clock", "15 Jan 08:00"),
        ("full", "2027-01-15 08:00:00"),
    ],
)
def test_times_are_of_utc(form: str, expected: str) -> None:
    assert clock_text(1_800_000_000, form) == expected


@pytest.mark.parametrize("at", [-1.0, 1e300, 0])
def test_times_that_no_calendar_has(at: Any) -> None:
    assert clock_text(at, "full")
