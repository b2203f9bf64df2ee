"""SQL text without its values, short enough for a slot of the flight recorder.

Where the dialect decides whether something is a value, it is taken for one: a quoted name may be hidden, a value is
never shown.
"""

from __future__ import annotations

import functools
import re

#: Characters that are looked at: more than fit into a slot, with room for what is left out. A value that is cut at the
#: end is hidden like any other.
_MOST = 512
_PARTS = re.compile(
    r"""
      (?P<comment> --(?=\s|\Z)[^\n]* | /\*(?:(?!/\*|\*/).)*(?:\*/|\Z) )
    | (?P<rest>
          (?:--|\#)[^\n'"`$]*(?:['"`$].*)?          # a comment in one dialect, an operator in another
        | /\*.*                                     # comments in comments: not every dialect has them
        | \[\w[^\]'"`]*['"`].*                      # a quoted name here, a subscript there
        | (?<!\w)[nN]?[qQ]'.*                       # Oracle's quotes, which end with whatever they began with
        | (?<=[=:\s])(?:0[xX])?[0-9a-fA-F]{16,}.*   # a key that nobody quoted
      )
    | (?P<name> `[\w$. -]*` )
    | (?P<value>
          \$(?P<tag>[^\W\d]\w*|)\$.*?(?:\$(?P=tag)\$|\Z)       # PostgreSQL's dollar quotes
        | [A-Za-z]{0,2}'(?:[^'\\]|'')*(?:'|\\.*|\Z)           # with a backslash nobody knows where it ends
        | "(?:[^"\\]|"")*(?:"|\\.*|\Z)                       # a name in standard SQL, a string in MySQL
        | `.*
        | (?<![\w$])[+-]?\.?\d[\w.]*(?:(?<=[eE])[+-]\d+)?
      )
    """,
    re.VERBOSE | re.DOTALL,
)
#: What is set need not be quoted there.
_PRAGMA = re.compile(r"\s*PRAGMA\s+[\w.]*", re.IGNORECASE)
_LISTS = re.compile(r"\(\s*\?(?:\s*,\s*\?)+\s*\)")


def sanitized(statement: str) -> str:
    """The statement with `?` for each value, lists of values folded, without comments, on one line."""
    return _sanitized(statement[:_MOST])  # before the cache: it keeps what it was asked for


@functools.lru_cache(maxsize=256)
def _sanitized(statement: str) -> str:
    pragma = _PRAGMA.match(statement)
    if pragma is not None:
        return " ".join(pragma[0].split())
    text = _PARTS.sub(_shown, statement)
    return _LISTS.sub("(?)", " ".join(text.split()))


def _shown(part: re.Match[str]) -> str:
    if part["comment"]:
        return " "
    return part["name"] or "?"
