"""The visitor's basket, which lives in a cookie: product number to quantity, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping

COOKIE = "basket"
#: A cookie is the visitor's to write, so what is read from it is bounded.
MOST_PRODUCTS = 20
MOST_PIECES = 99
_LINE = re.compile(r"([1-9][0-9]{0,8})x([1-9][0-9]?)", re.ASCII)


def parse(cookie: str) -> dict[int, int]:
    """The basket in a cookie such as `12x1.45x3`; what does not belong there is left out."""
    basket: dict[int, int] = {}
    for part in cookie[:1000].split("."):
        line = _LINE.fullmatch(part)
        if line and len(basket) < MOST_PRODUCTS:
            basket[int(line[1])] = int(line[2])
    return basket


def render(basket: Mapping[int, int]) -> str:
    """The cookie's value for a basket."""
    return ".".join(f"{number}x{quantity}" for number, quantity in basket.items())


def add(basket: Mapping[int, int], number: int) -> dict[int, int]:
    """The basket with one more piece of product `number`; a full one stays as it is."""
    if number not in basket and len(basket) >= MOST_PRODUCTS:
        return dict(basket)
    return {**basket, number: min(basket.get(number, 0) + 1, MOST_PIECES)}
