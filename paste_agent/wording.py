"""Figures and untrusted text as people read them, the same in commands and on pages."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

#: What is left of a transaction's time without the parts that are known.
OWN = "own code"
#: Parts as headings and in sentences.
LABELS = {"call": "calls", "message": "messages", "template": "templates"}


def duration(seconds: float) -> str:
    """Three figures and a unit: 12.3 ms."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}" if seconds / scale < 100 else f"{seconds / scale:,.0f} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def share_text(share: float) -> str:
    """A share as a whole per cent; what is not nothing is not shown as such."""
    return "<1%" if 0 < share < 0.005 else f"{share:.0%}"


def printable(text: object, limit: int = 200) -> str:
    """Paths, messages and routes come from anybody: nothing that a terminal would obey, and no more than fits."""
    return "".join(char if char.isprintable() else "�" for char in str(text)[:limit])


def one_line(text: object, limit: int = 200) -> str:
    """Text of several lines, such as a query, as one, with a mark where it is cut."""
    line = printable(" ".join(str(text)[: 8 * limit].split()), limit + 1)
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def value_text(value: object) -> str:
    """The value of an attribute; the items of a list without Python's marks around them."""
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def place_text(code: Mapping[str, Any], folders: int = 2) -> str:
    """A place in the code, the file with its last few folders: what is before them is the same for all."""
    parts = str(code["file"]).split(os.sep)
    file = str(code["file"]) if len(parts) <= folders + 2 else os.sep.join(["…", *parts[-folders - 1 :]])
    return printable(f"{file}:{code['line']}" + (f" in {code['function']}" if code["function"] else ""))


def host_text(address: object, port: object) -> str:
    """A host with its port, if that is known; the address of an IPv6 host stands in brackets then."""
    if not port:
        return str(address)
    return f"[{address}]:{port}" if ":" in str(address) and not str(address).startswith("[") else f"{address}:{port}"


def rate_text(count: int, seconds: float) -> str:
    if seconds <= 0:
        return "–"
    rate = count / seconds
    return f"{rate:.1f}/s" if rate >= 1 else f"{rate * 60:.1f}/min"


def apdex_text(apdex: float | None) -> str:
    return "–" if apdex is None else f"{apdex:.2f}"


def bytes_text(count: float) -> str:
    """Such as 48.2 MiB; of what is less than a KiB, bytes."""
    size, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" or abs(size) >= 100 else f"{size:.1f} {unit}"


def many(count: int, word: str) -> str:
    """Such as `1 request` and `2,000 requests`."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def age_text(seconds: float) -> str:
    """How long something has lasted, in the unit that says most: 45 s, 12 min, 5 h, 3 d."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
