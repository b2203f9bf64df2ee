"""Charts as inline SVG, made on the server: lines, areas, bars, a histogram, and bars that go into tables.

Colours and widths of strokes are classes of the style sheet: light and dark are its business, and the policy of the
pages allows no style attributes. A chart is about as wide as its 400 units, so that its text stays readable.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import NamedTuple

from paste_agent.aggregate import BOUNDS, Total
from paste_agent.dashboard.html import NOTHING, Markup, join, tag
from paste_agent.store.history import Window
from paste_agent.wording import duration

WIDTH, HEIGHT = 400, 140
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 6, 8, 20
_NS = 1_000_000_000
#: Between two labels of the axis of time, s.
_STEPS_S = (10, 30, 60, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400, 172_800, 345_600, 604_800)
_MOST_LABELS = 5

Values = Sequence["float | None"]
Format = Callable[[float], str]


class Line(NamedTuple):
    """One line, or one layer of a stack. values: one for each step; None: nothing is known."""

    label: str
    values: Values
    css: str  #: class that gives its colour


class Mark(NamedTuple):
    """A moment that is drawn over all charts, such as a deployment."""

    at_s: float
    label: str


def line_chart(
    title: str,
    window: Window,
    lines: Sequence[Line],
    form: Format,
    *,
    marks: Sequence[Mark] = (),
    limit: float | None = None,
    limit_label: str = "",
    note: str = "",
) -> Markup:
    """Lines over time. form: a value as text. limit: a level that is drawn across, such as a capacity."""
    known = [value for line in lines for value in line.values if value is not None]
    top, ticks = _scale([*known, *([limit] if limit is not None else [])])
    drawn: list[Markup] = []
    if limit is not None:
        y = _y(limit, top)
        drawn.append(tag("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=y, y2=y, class_="limit"))
        drawn.append(tag("text", limit_label, x=WIDTH - _RIGHT, y=y - 3, class_="limit-label", text_anchor="end"))
    for line in lines:
        places = [(_x(place, window), value) for place, value in enumerate(line.values)]
        drawn.extend(_path([(x, _y(value, top)) if value is not None else None for x, value in places], line.css))
    return _figure(title, window, lines, form, [*_grid(top, ticks, form), *drawn], marks, note)


def stacked_chart(
    title: str, window: Window, layers: Sequence[Line], form: Format, *, marks: Sequence[Mark] = (), note: str = ""
) -> Markup:
    """Bars over time, the layers on top of each other, the first one lowest."""
    sums = [sum(value or 0.0 for value in values) for values in zip(*(layer.values for layer in layers), strict=True)]
    top, ticks = _scale(sums)
    step = (WIDTH - _LEFT - _RIGHT) / max(1, len(window.starts))
    width = max(step - (1.0 if step > 3 else 0.0), 0.5)
    heights = [0.0] * len(window.starts)
    drawn: list[Markup] = []
    for layer in layers:
        pieces: list[str] = []
        for place, value in enumerate(layer.values):
            if value:
                low, high = _y(heights[place], top), _y(heights[place] + value, top)
                heights[place] += value
                pieces.append(f"M{_LEFT + place * step:.1f} {low}h{width:.1f}V{high}h{-width:.1f}z")
        if pieces:
            drawn.append(tag("path", d="".join(pieces), class_=f"fill {layer.css}"))
    return _figure(title, window, layers, form, [*_grid(top, ticks, form), *drawn], marks, note)


def histogram(title: str, total: Total) -> Markup:
    """How the durations are distributed, on a logarithmic axis, with the median and the 95th percentile."""
    groups: dict[int, int] = {}
    for bucket, count in total.buckets.items():
        groups[_half_octave(bucket)] = groups.get(_half_octave(bucket), 0) + count
    if not groups:
        return NOTHING
    first, last = min(groups) - 1, max(groups) + 1
    most, ticks = _scale([float(count) for count in groups.values()])
    step = (WIDTH - _LEFT - _RIGHT) / (last - first + 1)

    def at(seconds: float) -> float:
        return round(_LEFT + (2 * math.log2(max(seconds * _NS, 1)) - first) * step, 1)

    bars = [
        tag(
            "rect",
            tag("title", f"{duration(_edge_s(group))} to {duration(_edge_s(group + 1))}: {count:,}"),
            x=round(_LEFT + (group - first) * step + 0.5, 1),
            y=_y(count, most),
            width=round(max(step - 1, 0.5), 1),
            height=round(_y(0, most) - _y(count, most), 1),
            class_="fill c0",
        )
        for group, count in sorted(groups.items())
    ]
    labels = [
        tag("text", duration(10.0**power), x=at(10.0**power), y=HEIGHT - 5, text_anchor="middle", class_="axis")
        for power in range(-6, 4)
        if _LEFT <= at(10.0**power) <= WIDTH - _RIGHT - 8
    ]
    percentiles = [("p50", total.quantile_ns(0.5) / _NS), ("p95", total.quantile_ns(0.95) / _NS)]
    lines = [
        join((
            tag("line", x1=at(value), x2=at(value), y1=_TOP, y2=HEIGHT - _BOTTOM, class_="mark"),
            tag("text", name, x=at(value) + 3, y=_TOP + 8 + 10 * place, class_="axis"),
        ))
        for place, (name, value) in enumerate(percentiles)
    ]  # fmt: skip
    told = ", ".join(f"{name} {duration(value)}" for name, value in percentiles)
    drawing = _svg(f"{title}: {total.count:,} in all, {told}", [*_grid(most, ticks, _count), *bars, *labels, *lines])
    return tag(
        "figure", tag("figcaption", tag("h3", title), tag("span", told, class_="legend")), drawing, class_="chart"
    )


def shares(parts: Sequence[tuple[str, float]], css: Callable[[str], str], told: str) -> Markup:
    """A bar that is divided. parts: name and share, of 1; what is beyond the whole is cut off.

    told: the same in words.
    """
    rectangles: list[Markup] = []
    begin = 0.0
    for name, share in parts:
        end = min(1.0, begin + max(0.0, share))
        if end > begin:
            x, width = round(begin * 1000), round(end * 1000) - round(begin * 1000)
            rectangles.append(tag("rect", x=x, y=0, width=width, height=10, class_=f"fill {css(name)}"))
        begin = end
    return _bar(rectangles, told, "shares")


def timeline(times: Sequence[tuple[int, int]], start_ns: int, length_ns: int, css: str, told: str) -> Markup:
    """Where times lie in a span: start and duration each, ns. The shortest of them can still be seen."""
    rectangles: list[Markup] = []
    for begin_ns, took_ns in times[:200]:
        x = min(max((begin_ns - start_ns) * 1000 // length_ns, 0), 997)
        width = min(max(took_ns * 1000 // length_ns, 3), 1000 - x)
        rectangles.append(tag("rect", x=x, y=0, width=width, height=10, class_=f"fill {css}"))
    return _bar(rectangles, told, "timeline")


def share_bar(share: float, css: str = "c0") -> Markup:
    """A single bar of a column of shares; what it says stands beside it."""
    width = round(1000 * min(max(share, 0.0), 1.0))
    return _bar([tag("rect", x=0, y=0, width=width, height=10, class_=f"fill {css}")], None, "share")


def spark(values: Values) -> Markup:
    """A line of the size of a word; what it says stands beside it."""
    top = max((value for value in values if value is not None), default=0.0) or 1.0
    step = 100 / max(1, len(values) - 1)
    places = [
        None if value is None else (round(place * step, 1), round(19 - 17 * value / top, 1))
        for place, value in enumerate(values)
    ]
    return tag(
        "svg",
        _path(places, "c0"),
        viewBox="0 0 100 20",
        preserveAspectRatio="none",
        class_="spark",
        aria_hidden="true",
        focusable="false",
    )


# -- pieces --------------------------------------------------------------------------------------------------------


def _bar(rectangles: Sequence[Markup], told: str | None, css: str) -> Markup:
    return tag(
        "svg",
        None if told is None else tag("title", told),
        rectangles,
        viewBox="0 0 1000 10",
        preserveAspectRatio="none",
        class_=f"bar {css}",
        role=None if told is None else "img",
        aria_label=told,
        aria_hidden="true" if told is None else None,
        focusable="false",
    )


def _svg(told: str, drawn: Sequence[Markup]) -> Markup:
    return tag("svg", drawn, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=told, focusable="false")


def _figure(
    title: str,
    window: Window,
    lines: Sequence[Line],
    form: Format,
    drawn: Sequence[Markup],
    marks: Sequence[Mark],
    note: str,
) -> Markup:
    """The chart with its heading, its legend, which tells the newest values, and what the script needs for a hover."""
    newest = [next((value for value in reversed(line.values) if value is not None), None) for line in lines]
    legend = [
        tag("span", tag("i", class_=f"key {line.css}", aria_hidden="true"), f"{line.label} ", class_="key-label")
        if value is None
        else tag(
            "span", tag("i", class_=f"key {line.css}", aria_hidden="true"), f"{line.label} ", tag("b", form(value)),
            class_="key-label",
        )
        for line, value in zip(lines, newest, strict=True)
    ]  # fmt: skip
    empty = all(value is None for value in newest)
    hover = {
        "start": window.start_s,
        "step": window.step_s,
        "x": [_LEFT, WIDTH - _RIGHT],
        "lines": [
            [line.label, ["–" if value is None else form(value) for value in line.values]] for line in lines
        ],
    }  # fmt: skip
    told = "; ".join(_in_words(line, form) for line in lines)
    nothing = tag(
        "text", "nothing in this span of time", x=WIDTH // 2, y=HEIGHT // 2, text_anchor="middle", class_="axis"
    )
    picture = _svg(
        f"{title}. {told}",
        [*drawn, *_times(window), *_marks(window, marks), *([nothing] if empty else [])],
    )
    return tag(
        "figure",
        tag("figcaption", tag("h3", title), tag("span", legend, class_="legend")),
        picture,
        tag("p", note, class_="note") if note else None,
        class_="chart",
        data_chart=json.dumps(hover, separators=(",", ":")),
    )


def _in_words(line: Line, form: Format) -> str:
    known = [value for value in line.values if value is not None]
    if not known:
        return f"{line.label}: nothing is known"
    return f"{line.label}: {form(min(known))} to {form(max(known))}, at last {form(known[-1])}"


def _grid(top: float, ticks: Sequence[float], form: Format) -> list[Markup]:
    drawn: list[Markup] = []
    for tick in ticks:
        y = _y(tick, top)
        drawn.append(tag("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=y, y2=y, class_="grid"))
        drawn.append(tag("text", form(tick) if tick else "0", x=_LEFT - 5, y=y + 3, text_anchor="end", class_="axis"))
    return drawn


def _times(window: Window) -> list[Markup]:
    """Labels of the axis of time: of UTC, which the script turns into the viewer's."""
    length = window.end_s - window.start_s
    step = next((one for one in _STEPS_S if length / one <= _MOST_LABELS), _STEPS_S[-1])
    while length / step > _MOST_LABELS:
        step *= 2
    form = "day" if step >= 86_400 else "day-clock" if length > 86_400 else "second" if step < 60 else "clock"
    drawn: list[Markup] = []
    for at_s in range(-(-window.start_s // step) * step, window.end_s + 1, step):
        x = _x_of_time(at_s, window)
        if _LEFT + 12 <= x <= WIDTH - 22:
            label = clock_text(at_s, form)
            drawn.append(
                tag(
                    "text",
                    label,
                    x=x,
                    y=HEIGHT - 5,
                    text_anchor="middle",
                    class_="axis",
                    data_time=at_s,
                    data_form=form,
                )
            )
    return drawn


def clock_text(at_s: float, form: str) -> str:
    """A time of UTC. form: `clock`, `second`, `day`, `day-clock`, `full`: the script knows the same words."""
    pattern = {"clock": "%H:%M", "second": "%H:%M:%S", "day": "%d %b", "day-clock": "%d %b %H:%M"}
    moment = datetime.fromtimestamp(min(max(at_s, 0.0), 253_402_300_799.0), timezone.utc)
    return moment.strftime(pattern.get(form, "%Y-%m-%d %H:%M:%S"))


def _marks(window: Window, marks: Sequence[Mark]) -> list[Markup]:
    return [
        tag(
            "g",
            tag("title", mark.label),
            tag("line", x1=x, x2=x, y1=_TOP - 4, y2=HEIGHT - _BOTTOM, class_="mark deployment"),
            tag("path", d=f"M{x} {_TOP + 2}l-4 -7h8z", class_="fill deployment"),
        )
        for mark in marks
        if window.start_s <= mark.at_s <= window.end_s
        for x in [_x_of_time(mark.at_s, window)]
    ]


def _path(places: Sequence[tuple[float, float] | None], css: str) -> list[Markup]:
    """Lines through the places, interrupted where there is none. One that stands alone is a dot."""
    pieces: list[str] = []
    dots: list[Markup] = []
    run: list[tuple[float, float]] = []
    for place in (*places, None):
        if place is not None:
            run.append(place)
            continue
        if len(run) == 1:
            dots.append(tag("circle", cx=run[0][0], cy=run[0][1], r=2, class_=f"fill {css}"))
        elif run:
            pieces.append("M" + "L".join(f"{x} {y}" for x, y in run))
        run = []
    return [*([tag("path", d="".join(pieces), class_=f"line {css}")] if pieces else []), *dots]


def _scale(values: Sequence[float]) -> tuple[float, list[float]]:
    """The upper end of an axis from 0 that holds the values, and where it is labelled."""
    most = max(values, default=0.0)
    if not math.isfinite(most) or most <= 0:
        return 1.0, [0.0]
    rough = most / 3
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    count = math.ceil(most / step - 1e-9)
    return step * count, [step * place for place in range(count + 1)]


def _x(place: int, window: Window) -> float:
    """Of a step: its middle."""
    return _x_of_time(window.start_s + (place + 0.5) * window.step_s, window)


def _x_of_time(at_s: float, window: Window) -> float:
    share = (at_s - window.start_s) / (window.end_s - window.start_s)
    return round(_LEFT + share * (WIDTH - _LEFT - _RIGHT), 1)


def _y(value: float, top: float) -> float:
    share = min(max(value / top, 0.0), 1.0)
    return round(HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM), 1)


def _half_octave(bucket: int) -> int:
    """The group of a fine bucket: two to each doubling."""
    low = BOUNDS[bucket - 1] if bucket else 1
    return math.floor(2 * math.log2(low) + 0.01)


def _edge_s(group: int) -> float:
    return float(2 ** (group / 2)) / _NS


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 or not value else f"{value:.1g}"
