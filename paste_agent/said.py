"""Attributes that an application, or a library on its behalf, gives: what is kept of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice
from typing import Any

from paste_agent.addresses import bare, bare_within
from paste_agent.inside import AttributeValue

_MAX_KEY = 128
_MAX_VALUE = 1024
_INT64 = 1 << 63
#: Items of a sequence that is the value of an attribute.
_MAX_ITEMS = 64
#: Characters of a text that its addresses are looked for in: a user that is cut in the middle would be none.
_MAX_READ = 4 * _MAX_VALUE
#: Attributes of libraries' that hold what a client has sent: texts and parameters of statements, queries, headers, and
#: messages of exceptions, which are the agent's own to show or not.
_UNSAFE = (
    *("db.statement", "db.query.text", "db.query.parameter.", "db.operation.parameter.", "db.connection_string"),
    *("graphql.document", "graphql.source", "graphql.param.", "graphql.arg"),
    *("url.query", "http.target", "http.request.header.", "http.response.header."),
    *("rpc.request.metadata.", "rpc.response.metadata."),
    *(f"rpc.{system}.{way}.metadata." for system in ("grpc", "connect_rpc") for way in ("request", "response")),
    *("exception.message", "exception.stacktrace"),
)
#: What may come without a scheme.
_ADDRESSES = ("url.full", "url.original", "http.url", "messaging.url", "peer.address")


class Said(dict[str, object]):
    """Attributes of a span that the application has given, whatever its category: settings may keep them out."""


def plain_value(value: Any) -> AttributeValue | None:
    """A value as it is kept, of one of the plain types, text cut to 1,024 characters; None for what cannot be.

    By type(): to ask an object for its class can run its code.
    """
    kind = type(value)
    if kind is bool:
        return bool(value)
    if issubclass(kind, str):  # whatever a subclass makes of itself
        return str.__str__(value)[:_MAX_VALUE]
    if issubclass(kind, int):
        whole = int.__int__(value)
        return whole if -_INT64 <= whole < _INT64 else None
    if issubclass(kind, float):
        number = float.__float__(value)
        return number if math.isfinite(number) else None
    return None


def add(attributes: dict[str, Any], most: int, key: object, value: object) -> None:
    """Add an attribute under a name of the conventions, if there is room for it, and if it is not to be kept out.

    most: as many there may be. A sequence becomes text; an address, in a longer text too, loses user and query. What
    it is not, or cannot be, is left out.
    """
    if not issubclass(type(key), str):
        return
    name = str.__str__(key)[:_MAX_KEY]
    if not name or (len(attributes) >= most and name not in attributes) or name.startswith(_UNSAFE):
        return
    kept = _shown(name, value)
    if kept is None and isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray, memoryview)):
        kept = plain_value(_joined(name, value))
    if kept is not None:
        attributes[name] = kept


def _joined(name: str, items: Sequence[Any]) -> str:
    """The items as text; no more of them than make what is kept."""
    shown: list[str] = []
    length = 0
    for item in islice(items, _MAX_ITEMS):
        one = _shown(name, item)
        if one is not None:
            shown.append(str(one))
            length += len(shown[-1])
            if length >= _MAX_VALUE:
                break
    return ", ".join(shown)


def _shown(name: str, value: Any) -> AttributeValue | None:
    """As `plain_value`, without what addresses have in them that is nobody's business."""
    if issubclass(type(value), str):
        text = str.__str__(value)[:_MAX_READ]
        if name in _ADDRESSES:
            text = bare(text)
        value = bare_within(text)
    return plain_value(value)
