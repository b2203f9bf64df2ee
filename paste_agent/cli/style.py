"""How the commands print: tables, bars, and, from `wording`, figures and untrusted text."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from paste_agent.stacks import marked
from paste_agent.wording import LABELS as LABELS
from paste_agent.wording import OWN as OWN
from paste_agent.wording import duration as duration
from paste_agent.wording import one_line as one_line
from paste_agent.wording import place_text as place_text
from paste_agent.wording import printable as printable
from paste_agent.wording import share_text as share_text

#: What time is spent on, and its colour wherever it is told: one that is seen on white as well as on black.
COLOURS = {
    "database": "blue",
    "cache": "cyan",
    "call": "magenta",
    "message": "bright_magenta",
    "template": "green",
    "layers": "yellow",
    "function": "default",
    OWN: "bright_black",
}
#: Pieces of a bar, told apart by their form where there is no colour.
_FORMS, _ASCII_FORMS = "█▓▒░", "#=+-"


def console_of() -> Console:
    """The terminal. Where its encoding has no word for a character, it gets a question mark and no traceback."""
    out: Any = sys.stdout
    if "utf" not in str(out.encoding or "").lower() and hasattr(out, "reconfigure"):
        out.reconfigure(errors="replace")
    return Console(highlight=False)


class SharesBar:
    """A bar that is divided between what took the time. For a table: it has a fixed width."""

    def __init__(self, shares: Sequence[tuple[str, float]], width: int) -> None:
        """shares: name and share, of 1; what is beyond the whole is cut off."""
        self.shares = shares
        self.width = width

    def cells(self) -> list[int]:
        """Cells of each share: rounded so that together they come to the width, as far as the shares do to 1."""
        ends: list[int] = []
        so_far = 0.0
        for _, share in self.shares:
            so_far += max(0.0, share)
            ends.append(round(min(so_far, 1.0) * self.width))
        return [end - begin for begin, end in zip([0, *ends], ends, strict=False)]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        forms = _ASCII_FORMS if options.ascii_only else _FORMS
        one_form = console.color_system is not None and not console.no_color
        for place, ((name, _), cells) in enumerate(zip(self.shares, self.cells(), strict=True)):
            form = forms[0 if one_form else place % len(forms)]
            yield Segment(form * cells, Style.parse(COLOURS.get(name, "default")))
        yield Segment.line()

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(self.width, self.width)


def stack_lines(text: str, own: object, beside: str = "") -> Iterator[Text]:
    """The lines of a text with stacks in it. Where it is known which frames are the application's own, these stand out,
    without colour by a mark before them.

    own: see `stacks.marked`. beside: style of what is no frame.
    """
    lines = list(marked(text, own))
    known = any(is_own for _, is_own in lines)
    for line, is_own in lines:
        shown, is_frame = printable(line, 1024).rstrip(), line.lstrip().startswith("File ")
        if is_own and is_frame and shown.startswith("  "):
            indent = len(shown) - len(shown.lstrip())
            shown = f"{shown[: indent - 2]}> {shown[indent:]}"
        plain = "" if is_frame and not known else "dim"
        yield Text(shown, style=beside if is_own is None else "bold" if is_own else plain)


def table_of(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )


def numbers(table: Table, *headings: str) -> None:
    """Add columns of figures."""
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)


def count_of_errors(count: int) -> Text:
    return Text(f"{count:,}", style="red") if count else Text("0", style="dim")
