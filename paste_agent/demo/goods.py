"""Made-up goods and past orders, the same every time: what a new catalogue is filled with."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import NamedTuple

PRODUCTS = 200
PAST_ORDERS = 600
#: Lists of manners, materials and things by category; any of each makes a believable name.
_WORDS: dict[str, tuple[str, str, str]] = {
    "Kitchen": (
        "Deep Shallow Lidded Heavy Small",
        "copper enamel cast-iron stoneware steel",
        "saucepan colander kettle mixing-bowl casserole milk-jug",
    ),
    "Table": (
        "Plain Ribbed Speckled Tall Wide",
        "glass stoneware porcelain oak olive-wood",
        "serving-dish carafe beaker salad-bowl platter egg-cup",
    ),
    "Garden": (
        "Folding Long Broad Sturdy Narrow",
        "ash galvanised willow larch hazel",
        "trug watering-can plant-stand cold-frame trellis bench",
    ),
    "Workroom": (
        "Compact Hinged Stacking Flat Divided",
        "birch pine beech tin canvas",
        "tool-box tray drawer-unit pencil-case shelf letter-rack",
    ),
    "Linen": (
        "Striped Quilted Soft Woven Checked",
        "cotton linen wool hemp flannel",
        "blanket tea-towel apron cushion table-runner bath-mat",
    ),
}
_MAKING = ("Made in small batches", "Made to last", "Finished by hand", "Made from one piece", "Made to be repaired")
_CARE = ("wipe clean and dry", "wash warm", "keep dry in winter", "oil once a year", "no care needed")


class Goods(NamedTuple):
    """One product as a new catalogue gets it; price in cents."""

    number: int
    name: str
    category: str
    price_cents: int
    stock: int
    description: str


class PastOrder(NamedTuple):
    """One order from before the shop opened; lines are (product number, quantity)."""

    age_s: int
    lines: tuple[tuple[int, int], ...]


def products() -> Iterator[Goods]:
    """The products, `PRODUCTS` of them, with names that differ."""
    dice = random.Random(1)
    each = PRODUCTS // len(_WORDS)
    number = itertools.count(1)
    for category, words in _WORDS.items():
        names = [" ".join(name).replace("-", " ") for name in itertools.product(*(word.split() for word in words))]
        for name in dice.sample(names, each):
            price_cents = dice.randrange(6, 140) * 100 + dice.choice((0, 50, 90))
            description = f"{dice.choice(_MAKING)}; {dice.choice(_CARE)}."
            yield Goods(next(number), name, category, price_cents, dice.randrange(0, 90), description)


def past_orders() -> Iterator[PastOrder]:
    """Orders of the last twelve weeks, oldest first."""
    dice = random.Random(2)
    weeks = 12 * 7 * 24 * 3600
    for age_s in sorted((dice.randrange(3600, weeks) for _ in range(PAST_ORDERS)), reverse=True):
        numbers = dice.sample(range(1, PRODUCTS + 1), dice.randint(1, 4))
        yield PastOrder(age_s, tuple((number, dice.randint(1, 3)) for number in numbers))
