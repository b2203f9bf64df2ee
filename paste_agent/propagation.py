"""W3C Trace Context, read from a request. Source: the W3C recommendation, level 1, https://www.w3.org/TR/trace-context/."""

from __future__ import annotations

import re
from typing import NamedTuple

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16
_MEMBER_KEY = re.compile(r"[a-z][a-z0-9_\-*/]{0,255}|[a-z0-9][a-z0-9_\-*/]{0,240}@[a-z][a-z0-9_\-*/]{0,13}", re.ASCII)
_MEMBER_VALUE = re.compile(r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]", re.ASCII)
MAX_MEMBERS = 32
MAX_STATE_LENGTH = 512
MAX_PARENT_LENGTH = 512  #: a later version's header may be longer than 55 characters, not without end
_SAMPLED = 0x01


class Parent(NamedTuple):
    """Where a request comes from."""

    trace_id: bytes  #: 16 bytes
    span_id: bytes  #: 8 bytes
    sampled: bool


def parse_traceparent(header: str) -> Parent | None:
    """The caller's span, or None for a header that starts a new trace instead.

    Invalid: version ff, ids of zeros, upper case, two headers joined by a comma, version 00 with anything after the
    flags. A later version is read by its first four fields.
    """
    if len(header) > MAX_PARENT_LENGTH:
        return None
    match = _TRACEPARENT.fullmatch(header.strip(" \t"))
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == "ff" or trace_id == _NO_TRACE or span_id == _NO_SPAN or (version == "00" and more):
        return None
    return Parent(bytes.fromhex(trace_id), bytes.fromhex(span_id), bool(int(flags, 16) & _SAMPLED))


def parse_tracestate(header: str) -> str:
    """The list as it is passed on, or '' when it breaks the recommendation: the whole list goes then, not the trace.

    Empty members are allowed and dropped; keys are unique. Beyond 512 characters whole members are cut off: first
    those of over 128 characters, then from the end.
    """
    members: list[str] = []
    seen: set[str] = set()
    for item in header.split(","):
        member = item.strip(" \t")
        if not member:
            continue
        key, equals, value = member.partition("=")
        valid = equals and _MEMBER_KEY.fullmatch(key) and _MEMBER_VALUE.fullmatch(value)
        if not valid or key in seen or len(members) == MAX_MEMBERS:
            return ""
        seen.add(key)
        members.append(member)
    while members and len(",".join(members)) > MAX_STATE_LENGTH:
        longest = next((place for place, member in enumerate(members) if len(member) > 128), len(members) - 1)
        del members[longest]
    return ",".join(members)
