"""Addresses without what is nobody's business: the user in them and his password, query and fragment."""

from __future__ import annotations

import re

_PLAIN_HOST = re.compile(r"(?:\[[^\]@]*\]|[^:@\[\]]*)(?::[0-9]*)?")
_END_OF_HOST = re.compile(r"[/?#]")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*:)?//")
#: Addresses in a text: for each of them all that follows is gone through.
_MAX_WITHIN = 16


def bare(address: str) -> str:
    """An address, with its scheme or without one, as it may be shown."""
    scheme = _SCHEME.match(address)
    start = scheme.end() if scheme is not None else 0
    rest = without_user(address[start:])
    return address[:start] + rest.partition("?")[0].partition("#")[0]


def bare_within(text: str) -> str:
    """A text with the addresses in it as `bare` makes them.

    Where one ends cannot be told, since passwords and queries may have anything in them: all that may be a part of it
    goes, to the end of the text. So does what comes after many of them.
    """
    done = 0
    for _ in range(_MAX_WITHIN):
        slashes = text.find("://", done)
        if slashes < 0:
            return text
        done = slashes + 3
        text = text[:done] + bare(text[done:])
    return text[:done] + text[done:].partition("://")[0]


def without_user(rest: str) -> str:
    """What follows the slashes of an address, without what is before its host."""
    if _PLAIN_HOST.fullmatch(_END_OF_HOST.split(rest, maxsplit=1)[0]):
        return rest
    return rest.rpartition("@")[2]  # what is before the last one may be a password, with slashes in it
