"""Kinds of values of settings: how each is read, and how a person is told what was expected."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from paste_agent import headers as header_texts

_TRUE = frozenset(("true", "yes", "on", "1"))
_FALSE = frozenset(("false", "no", "off", "0"))


class WrongValue(Exception):
    """str() of it says what was expected, with an example."""


def boolean(text: str) -> bool:
    word = text.strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise WrongValue("expected true or false")


def number(
    unit: str, example: str, *, low: float = 0.0, low_included: bool = False, high: float = 1e9
) -> Callable[[str], float]:
    bound = f"{unit} {'from' if low_included else 'above'} {low:g}"

    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = float("nan")
        if number > high:
            raise WrongValue(f"expected {unit} up to {high:.0f}, for example {example}")
        if not (number >= low if low_included else number > low):  # a NaN fails both
            raise WrongValue(f"expected {bound}, for example {example}")
        return number

    return read


def integer(low: int, high: int, example: str) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = low - 1
        if not low <= number <= high:
            raise WrongValue(f"expected a whole number from {low} to {high}, for example {example}")
        return number

    return read


def text(text: str) -> str:
    value = text.strip()
    if not value or len(value) > 255 or not value.isprintable():
        raise WrongValue("expected 1 to 255 printable characters")
    return value


def token(text: str) -> str:
    value = text.strip()
    # Nothing slows down who guesses: the length has to.
    if not 16 <= len(value) <= 255 or not value.isascii() or not value.isprintable() or " " in value:
        raise WrongValue("expected 16 to 255 characters without spaces, as `openssl rand -hex 20` makes them")
    return value


def path(text: str) -> str:
    value = text.strip()
    if not value or "\0" in value:
        raise WrongValue("expected a path, for example /var/lib/shop/agent.sqlite")
    return os.path.expanduser(value)


def url(text: str) -> str:
    value = text.strip()
    try:
        parts = urlsplit(value)
        parts.port  # noqa: B018 -- raises when it is no number
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise WrongValue("expected a URL, for example http://127.0.0.1:4318")
    return value


def pairs(text: str) -> dict[str, str]:
    found = header_texts.pairs(text)
    if found is None:
        raise WrongValue("expected key=value pairs separated by commas, for example team=shop,tier=web")
    return found


def headers(text: str) -> dict[str, str]:
    found = {name: value.strip(" \t") for name, value in pairs(text).items()}
    if not header_texts.can_be_sent(found):
        raise WrongValue("expected header=value pairs separated by commas, for example x-api-key=abc")
    return found


def choice(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        word = text.strip().lower()
        if word not in words:
            raise WrongValue(f"expected {' or '.join(words)}")
        return word

    return read


def words(text: str) -> list[str]:
    return [word for word in re.split(r"[\s,]+", text) if word]


def list_of(known: Sequence[str], example: str) -> Callable[[str], tuple[str, ...]]:
    """Words of a known set, separated by spaces or commas."""

    def read(text: str) -> tuple[str, ...]:
        found = tuple(word.lower() for word in words(text))
        for word in found:
            if word not in known:
                raise WrongValue(f"expected words out of {', '.join(known)}, for example {example}")
        return found

    return read


def names(pattern: str, expected: str) -> Callable[[str], tuple[str, ...]]:
    """Words of a certain form, separated by spaces or commas."""
    form = re.compile(pattern, re.ASCII)

    def read(text: str) -> tuple[str, ...]:
        found = tuple(words(text))
        if not all(form.fullmatch(word) for word in found):
            raise WrongValue(f"expected {expected}")
        return found

    return read


def statuses(text: str) -> tuple[int, ...]:
    """`404 500-504`."""
    found: list[int] = []
    for word in words(text):
        match = re.fullmatch(r"([1-5][0-9]{2})(?:-([1-5][0-9]{2}))?", word, re.ASCII)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise WrongValue("expected statuses and ranges of them, for example 503 or 502-504")
        found.extend(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(found)
