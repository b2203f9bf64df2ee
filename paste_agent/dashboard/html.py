"""HTML and SVG as values. Whatever this module has not made is text, and is escaped: nobody can forget to.

tag("p", "5 < 6", class_="note") == '<p class="note">5 &lt; 6</p>'
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import TypeAlias

#: Elements that have no content. Source: HTML, void elements.
_VOID = frozenset(("br", "col", "hr", "img", "input", "link", "meta"))
#: Not printable to Python, and harmless: spaces that do not break.
_HARMLESS = "\n\t\u00a0\u2009\u202f"


class Markup(str):
    """A piece of HTML that was made here."""

    __slots__ = ()


Child: TypeAlias = str | int | float | Iterable["Child"] | None
Value: TypeAlias = bool | str | int | float | None
NOTHING = Markup("")


def text(value: object) -> Markup:
    """Any text as HTML, for content as well as for the value of an attribute.

    What HTML does not allow, what turns the direction of what follows, and halves of characters become U+FFFD.
    """
    found = str(value)
    if not found.isprintable():
        found = "".join(char if char.isprintable() or char in _HARMLESS else "\ufffd" for char in found)
    return Markup(html.escape(found))


def tag(name: str, /, *children: Child, **attributes: Value) -> Markup:
    """An element. Of attributes, `_` stands for `-`, one at the end is left out: class_, data_chart.

    None and False leave an attribute out, True gives it no value. Scripts and styles have files of their own, which is
    all that the policy of our pages lets a browser use: raises ValueError for an attribute that holds either.
    """
    pieces = [f"<{name}"]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        attribute = key.rstrip("_").replace("_", "-")
        if attribute == "style" or attribute.startswith("on"):
            raise ValueError(f"{attribute}: give the element a class")
        pieces.append(f" {attribute}" if value is True else f' {attribute}="{text(value)}"')
    pieces.append(">")
    if name in _VOID:
        return Markup("".join(pieces))
    return Markup(f"{''.join(pieces)}{join(children)}</{name}>")


def join(children: Iterable[Child], between: Child = NOTHING) -> Markup:
    """Several pieces, one after the other; None is left out."""
    return Markup(_markup(between).join(_markup(child) for child in children if child is not None))


def prose(words: str) -> Markup:
    """Our own words, in which `backticks` stand around what is code."""
    return join(tag("code", piece) if place % 2 else piece for place, piece in enumerate(words.split("`")))


def _markup(child: Child) -> Markup:
    if isinstance(child, Markup):
        return child
    if child is None:
        return NOTHING
    if isinstance(child, (str, int, float)):
        return text(child)
    return join(child)
