"""What an application may hand to the agent by mistake."""

from __future__ import annotations

import math
import sys
from typing import Any


class Hostile:
    """Raises whatever is asked of it."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)

    __str__ = __repr__ = __len__ = __iter__ = __bool__ = __hash__ = __eq__ = __int__ = __float__ = None  # type: ignore[assignment]


class Text(str):
    """A string that is not what it looks like."""

    def __str__(self) -> str:
        raise RuntimeError("str")

    def __len__(self) -> int:
        raise RuntimeError("len")

    def __getitem__(self, item: Any) -> str:
        raise RuntimeError("item")


class Unwilling(Exception):
    def __str__(self) -> str:
        raise RuntimeError("str")


ODD: list[Any] = [
    None, "", " ", "\0", "\ud800", "x" * 10_000, b"bytes", 0, -1, 1 << 80, 10**5000, 1.5, math.nan, math.inf, True,
    [], {}, {"app.k": object()}, {None: 1}, {"": ""}, ("a", "b"), (None, None, None), object(), Hostile(), Text("app"),
    ValueError, Unwilling("x"), KeyboardInterrupt(), sys.exc_info, lambda: 1,
]  # fmt: skip
