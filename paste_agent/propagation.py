"""Trace context and baggage as headers: read from a request, written for an outbound call. Pure functions.

Sources: W3C Trace Context, level 1 with what level 2 adds to it (https://www.w3.org/TR/trace-context/,
https://www.w3.org/TR/trace-context-2/); W3C Baggage (https://www.w3.org/TR/baggage/); B3
(https://github.com/openzipkin/b3-propagation); Jaeger's propagation format.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16
# Level 2's keys: whatever level 1 allows, and `@` and a digit in places where it does not.
_MEMBER_KEY = re.compile(r"[a-z0-9][a-z0-9_\-*/@]{0,255}", re.ASCII)
_MEMBER_VALUE = re.compile(r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]", re.ASCII)
_TOKEN, _OCTETS = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*"
# Without white space: the space before a `;` would fit in two places, and trying them all takes quadratic time.
_BAGGAGE_MEMBER = re.compile(rf"({_TOKEN})=({_OCTETS})(?:;{_TOKEN}(?:={_OCTETS})?)*", re.ASCII)
_B3 = re.compile(r"([0-9a-f]{32}|[0-9a-f]{16})-([0-9a-f]{16})(?:-([01d])(?:-[0-9a-f]{16})?)?", re.ASCII)
_B3_TRACE = re.compile(r"[0-9a-f]{32}|[0-9a-f]{16}", re.ASCII)
_B3_SPAN = re.compile(r"[0-9a-f]{16}", re.ASCII)
_B3_STATES = {"1": True, "true": True, "d": True, "0": False, "false": False, "": False}
_HEX = "[0-9a-fA-F]"
_JAEGER = re.compile(rf"({_HEX}{{1,32}}):({_HEX}{{1,16}}):{_HEX}{{1,16}}:({_HEX}{{1,2}})", re.ASCII)
#: Of the environ: the caller's span, or None, of a request whose `traceparent` does not tell it. Then its tracestate
#: belongs to another parent.
PARENT_KEY = "paste_agent.parent"
MAX_MEMBERS = 32
MAX_STATE_LENGTH = 512
MAX_PARENT_LENGTH = 512  #: a later version's header may be longer than 55 characters, not without end
MAX_BAGGAGE_MEMBERS = 64
MAX_BAGGAGE_LENGTH = 8192  #: bytes
#: Of received baggage no more is looked at, and a longer tracestate breaks its own limits, unless it is mostly space.
MAX_LIST_LENGTH = 32768
_SPACE = " \t"
_SAMPLED = 0x01
_JAEGER_SAMPLED = 0x03  # the sampled flag, or the debug flag, which implies it


class Parent(NamedTuple):
    """Where a request comes from."""

    trace_id: bytes  #: 16 bytes
    span_id: bytes  #: 8 bytes
    sampled: bool


def _parent(trace_id: str, span_id: str, sampled: bool) -> Parent | None:
    """Of hexadecimal ids, up to 32 and 16 digits; None where one of them is zero."""
    trace_id, span_id = trace_id.zfill(32), span_id.zfill(16)
    if trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    return Parent(bytes.fromhex(trace_id), bytes.fromhex(span_id), sampled)


def format_traceparent(trace_id: bytes, span_id: bytes, sampled: bool) -> str:
    """The header of a call, version 00, of 16 and 8 bytes that are not all zero: the caller sees to it."""
    return f"00-{trace_id.hex()}-{span_id.hex()}-{'01' if sampled else '00'}"


def parse_traceparent(header: str) -> Parent | None:
    """The caller's span, or None for a header that starts a new trace instead.

    Invalid: version ff, ids of zeros, upper case, two headers joined by a comma, version 00 with anything after the
    flags. A later version is read by its first four fields, whatever follows them. Of the flags sampled alone counts.
    """
    if len(header) > MAX_PARENT_LENGTH:
        return None
    match = _TRACEPARENT.fullmatch(header.strip(_SPACE))
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == "ff" or trace_id == _NO_TRACE or span_id == _NO_SPAN or (version == "00" and more):
        return None
    return Parent(bytes.fromhex(trace_id), bytes.fromhex(span_id), bool(int(flags, 16) & _SAMPLED))


def parse_tracestate(header: str) -> str:
    """The list as it is passed on, or '' when it breaks the recommendation: the whole list goes then, not the trace.

    Empty members are allowed, dropped, and not counted; keys are unique. Beyond 512 characters whole members are cut
    off, from the end: first those of over 128 characters, then any. The first one says whose span the parent is.
    """
    if len(header) > MAX_LIST_LENGTH:
        return ""
    members: list[str] = []
    seen: set[str] = set()
    for item in header.split(","):
        member = item.strip(_SPACE)
        if not member:
            continue
        key, equals, value = member.partition("=")
        valid = equals and _MEMBER_KEY.fullmatch(key) and _MEMBER_VALUE.fullmatch(value)
        if not valid or key in seen or len(members) == MAX_MEMBERS:
            return ""
        seen.add(key)
        members.append(member)
    while members and len(",".join(members)) > MAX_STATE_LENGTH:
        last = len(members) - 1
        del members[next((place for place in range(last, -1, -1) if len(members[place]) > 128), last)]
    return ",".join(members)


def _without_space(member: str) -> str:
    """The member without the white space that is optional: around it, around each `;`, and around each first `=`."""
    parts = [part.partition("=") for part in member.split(";")]
    return ";".join([f"{key.strip(_SPACE)}{equals}{value.strip(_SPACE)}" for key, equals, value in parts])


def _baggage(header: str) -> Iterator[re.Match[str]]:
    """The members that are passed on, within the limits: group 0 is all of one, 1 its key, 2 its value as encoded."""
    count, length = 0, -1  # the first member has no comma
    # What a cut leaves of a member is not passed on: it would be another one.
    whole = header if len(header) <= MAX_LIST_LENGTH else header[:MAX_LIST_LENGTH].rpartition(",")[0]
    for item in whole.split(","):
        if not item:
            continue
        match = _BAGGAGE_MEMBER.fullmatch(_without_space(item) if " " in item or "\t" in item else item)
        if match is None:
            continue
        longer = length + 1 + match.end()
        if longer > MAX_BAGGAGE_LENGTH:
            continue  # a later one may be short enough
        count, length = count + 1, longer
        yield match
        if count == MAX_BAGGAGE_MEMBERS:
            return


def parse_baggage(header: str) -> str:
    """The baggage as it is passed on, without optional white space; '' when nothing of it is valid.

    Several headers come joined by commas. An invalid member is dropped, and the others stay, in their order, with
    their properties, and with keys that occur twice. Of more than 64 members the first are kept; a member that would
    make it longer than 8,192 bytes is left out whole.
    """
    return ",".join([member[0] for member in _baggage(header)])


def baggage_members(header: str) -> dict[str, str]:
    """Key to decoded value of what `parse_baggage` passes on; of a key that occurs twice, the last.

    What is encoded and no UTF-8 becomes U+FFFD. A percent sign that encodes nothing stays.
    """
    return {member[1]: unquote(member[2], "utf-8", "replace") for member in _baggage(header)}


def parse_b3(single: str) -> Parent | None:
    """The caller's span by the `b3` header: trace id, span id and, if they are there, state and the parent's id.

    None for what is malformed, and for a state alone, which names no span.
    """
    if len(single) > MAX_PARENT_LENGTH:
        return None
    match = _B3.fullmatch(single.strip(_SPACE))
    if match is None:
        return None
    trace_id, span_id, state = match.groups("")
    return _parent(trace_id, span_id, _B3_STATES[state])


def parse_b3_multi(trace_id: str, span_id: str, sampled: str = "", flags: str = "") -> Parent | None:
    """The caller's span by the `X-B3-` headers; '' for one that is absent. None for what is malformed.

    The words true and false are what tracers older than B3's description send. Flags other than 1, debug, say nothing.
    """
    if len(trace_id) + len(span_id) + len(sampled) + len(flags) > MAX_PARENT_LENGTH:
        return None
    trace_id, span_id = trace_id.strip(_SPACE), span_id.strip(_SPACE)
    # Of several headers of a state, joined by commas, the first counts.
    state = _B3_STATES.get(sampled.partition(",")[0].strip(_SPACE).lower())
    if state is None or not _B3_TRACE.fullmatch(trace_id) or not _B3_SPAN.fullmatch(span_id):
        return None
    return _parent(trace_id, span_id, state or flags.partition(",")[0].strip(_SPACE) == "1")


def parse_jaeger(value: str) -> Parent | None:
    """The caller's span by the `uber-trace-id` header, percent-encoded or not. None for what is malformed.

    Ids may have lost their leading zeros. The third field, the parent's own parent, is not used.
    """
    if len(value) > MAX_PARENT_LENGTH:
        return None
    match = _JAEGER.fullmatch((unquote(value) if "%" in value else value).strip(_SPACE))
    if match is None:
        return None
    trace_id, span_id, flags = match.groups()
    return _parent(trace_id, span_id, bool(int(flags, 16) & _JAEGER_SAMPLED))


def _header(environ: Mapping[str, object], key: str) -> str:
    value = environ.get(key)
    return value if type(value) is str else ""


def _parent_of(environ: Mapping[str, object], formats: Collection[str]) -> Parent | None:
    if "tracecontext" in formats and (header := _header(environ, "HTTP_TRACEPARENT")):
        parent = parse_traceparent(header)
        if parent is not None:
            return parent
    if "b3" in formats or "b3multi" in formats:
        if header := _header(environ, "HTTP_B3"):
            parent = parse_b3(header)
            if parent is not None:
                return parent
        if header := _header(environ, "HTTP_X_B3_TRACEID"):
            parent = parse_b3_multi(
                header,
                _header(environ, "HTTP_X_B3_SPANID"),
                _header(environ, "HTTP_X_B3_SAMPLED"),
                _header(environ, "HTTP_X_B3_FLAGS"),
            )
            if parent is not None:
                return parent
    if "jaeger" in formats and (header := _header(environ, "HTTP_UBER_TRACE_ID")):
        return parse_jaeger(header)
    return None


def caller_of(environ: Mapping[str, Any]) -> Parent | None:
    """The caller's span of a request that is measured, by the headers that `propagators` names."""
    if PARENT_KEY in environ:
        found: Parent | None = environ[PARENT_KEY]
        return found
    header = environ.get("HTTP_TRACEPARENT")
    return parse_traceparent(header) if header.__class__ is str else None


def parent_of(environ: Mapping[str, object], formats: Collection[str]) -> Parent | None:
    """The caller's span by the first of the formats that a request's headers hold a valid one of. Never raises.

    `formats` are OpenTelemetry's names of propagators. However they are ordered, tracecontext goes before b3 (single
    before multi, and b3multi means the same), and b3 before jaeger; others are passed over.
    """
    try:
        return _parent_of(environ, formats)
    except Exception:  # an environ, or a key in it, that only looks like one
        return None
