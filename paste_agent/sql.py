"""SQL text without its values, short enough for a slot of the flight recorder.

Where the dialect decides whether something is a value, it is taken for one: a quoted name may be hidden, a value is
never shown.
"""

from __future__ import annotations

import functools
import re

#: Characters that are looked at; what is longer is cut, and a value that was cut is hidden like any other.
_MOST = 2048
_PARTS = re.compile(
    r"""
      (?P<comment>  --[^\n]*  |  \#[^\n]*  |  /\*.*?(?:\*/|\Z)  )
    | (?P<value>
          \$(?P<tag>[A-Za-z_0-9]*)\$.*?(?:\$(?P=tag)\$|\Z)        # PostgreSQL's dollar quotes
        | [A-Za-z]{0,2}'(?:[^'\\]|''|\\.)*(?:'|\Z)                # also E'…', N'…', x'…', and those with escapes
        | "(?:[^"\\]|""|\\.)*(?:"|\Z)                             # a name in standard SQL, a string in MySQL
        | (?<![\w$@:])[+-]?(?:0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?!\w)
      )
    """,
    re.VERBOSE | re.DOTALL,
)
_LISTS = re.compile(r"\(\s*\?(?:\s*,\s*\?)+\s*\)")


def sanitized(statement: str) -> str:
    """The statement with `?` for each value, lists of values folded, without comments, on one line."""
    return _sanitized(statement[:_MOST])  # before the cache: it keeps what it was asked for


@functools.lru_cache(maxsize=256)
def _sanitized(statement: str) -> str:
    text = _PARTS.sub(lambda part: " " if part["comment"] else "?", statement)
    return _LISTS.sub("(?)", " ".join(text.split()))
