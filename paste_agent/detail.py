"""Turns what a kept transaction left behind into a row of the store. For the reporter: it reads source files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from paste_agent import inner_spans, stacks
from paste_agent.inside import MAX_ATTRIBUTES, PARTS, Inside
from paste_agent.kept import TraceRow
from paste_agent.naming import KNOWN_METHODS, environ_key, readable
from paste_agent.raised import Raised
from paste_agent.recorder import layout
from paste_agent.settings import Settings
from paste_agent.transaction import KeptTransaction
from paste_agent.wording import many

_NO_SPAN = bytes(8)
_MAX_STACK = 16_384
#: By these a transaction is counted and named: the agent alone says what they are.
_COUNTED = frozenset((*layout.FIELDS[layout.KIND_SERVER], *layout.FIELDS[layout.KIND_BACKGROUND]))


class Rules(NamedTuple):
    """What is recorded of a kept transaction beyond what always is."""

    query: bool = False  #: `url.query`
    messages: bool = True  #: messages of exceptions
    headers: tuple[str, ...] = ()  #: names of request headers
    include: tuple[str, ...] = ()  #: patterns of the attributes that an application may set; none: all
    exclude: tuple[str, ...] = ()  #: patterns of attributes that are never recorded
    own_attributes: bool = True  #: attributes that the application sets
    repeated: int = 10
    slow_query_ns: int = 500_000_000


def rules_of(settings: Settings) -> Rules:
    return Rules(
        query=settings.record_query,
        messages=settings.record_error_messages,
        headers=settings.record_headers,
        include=settings.include_attributes,
        exclude=settings.exclude_attributes,
        own_attributes=not settings.high_security,
        repeated=settings.repeated_queries,
        slow_query_ns=round(settings.slow_query_s * 1e9),
    )


def trace_row(
    kept: KeptTransaction, attributes: Mapping[str, str | int], wall_offset_ns: int, rules: Rules
) -> TraceRow:
    """The row of a kept transaction.

    attributes: of its series. wall_offset_ns: see Folder.fold.
    """
    found = _attributes(kept, rules)
    if kept.stack is not None:
        taken_ns, stack = kept.stack
        # Where the time went, without any instrumentation.
        found["code.stacktrace"] = stacks.render(stacks.parse(stack))
        found["paste_agent.stack.age"] = max(0, taken_ns - kept.start_ns) / 1e9
    if kept.alike is not None and kept.alike.probability < 1:
        found["paste_agent.sampling.probability"] = kept.alike.probability
    if kept.layers:
        found["paste.layers"] = [f"{name} {own_ns / 1e6:.3f} ms" for name, own_ns in reversed(kept.layers)]
    detail: dict[str, object] = {"attributes": found}
    if kept.inside is not None:
        _add_inside(detail, found, kept, kept.inside, rules)
    for name in [name for name in found if matches(name, rules.exclude)]:
        del found[name]
    if kept.tracestate:
        detail["tracestate"] = kept.tracestate
    raised = ""
    if kept.error is not None:
        messages = rules.messages and not matches("exception.message", rules.exclude)
        raised = "" if matches("exception.stacktrace", rules.exclude) else stacktrace(kept.error, messages)
        detail["exception"] = {
            "type": kept.error.type,
            "message": kept.error.message if messages else "",
            "stacktrace": raised,
        }
    if own_files := stacks.own_files(str(found.get("code.stacktrace", "")), raised):
        detail["own_files"] = own_files
    return TraceRow(
        trace_id=kept.trace_id,
        span_id=kept.span_id,
        parent_id=None if kept.parent_id == _NO_SPAN else kept.parent_id,
        started_at_ns=kept.start_ns + wall_offset_ns,
        duration_ns=kept.duration_ns,
        failed=kept.failed,
        why=kept.why,
        attributes=attributes,
        detail=detail,
    )


def _add_inside(
    detail: dict[str, object], found: dict[str, Any], kept: KeptTransaction, inside: Inside, rules: Rules
) -> None:
    """Spans, what took the time, and what the application itself has said of the transaction."""
    spans = inner_spans.spans_of(inside, kept.span_id, kept.start_ns)
    for span in spans:
        own = span.get("attributes", {})
        said = span.pop("said", ())
        for name in [name for name in own if not _may_have(name, name in said, rules)]:
            del own[name]
    if spans:
        detail["spans"] = spans
    left = getattr(inside, "left_out", None)
    if left is not None and left.count:
        found["paste_agent.spans.dropped"] = left.count
        detail["dropped_ns"] = left.top_ns
    findings = inner_spans.findings_of(
        inside, rules.repeated, rules.slow_query_ns, texts=not matches("db.query.text", rules.exclude)
    )
    if findings:
        detail["findings"] = findings
    parts = {PARTS[part]: time_ns for part, (_, time_ns) in sorted(inside.parts.items())}
    if parts:
        detail["parts"] = parts
    if inside.errors:
        detail["errors"] = [{"type": one.type, "place": one.place, "expected": one.expected} for one in inside.errors]
    if inside.attributes:
        for name, value in inner_spans.attributes_as_json(inside.attributes, MAX_ATTRIBUTES).items():
            if name not in found and name not in _COUNTED and _may_have(name, True, rules):
                found[name] = value


def _may_have(name: str, said: bool, rules: Rules) -> bool:
    """Whether a span may have this attribute. said: it is the application's."""
    if matches(name, rules.exclude):
        return False
    return not said or (rules.own_attributes and (not rules.include or matches(name, rules.include)))


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether the name of an attribute is among those that a setting names."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _attributes(kept: KeptTransaction, rules: Rules) -> dict[str, Any]:
    """Attributes of the span beyond those of its series; of a background task none, which nobody has asked for."""
    if not kept.method:
        return {}
    headers = kept.headers
    address, port = _server(headers)
    found: dict[str, str | int | float | list[str] | None] = {
        "url.path": readable(kept.path),
        "url.query": redacted(kept.query) if rules.query and kept.query else None,
        "http.request.method_original": None if kept.method in KNOWN_METHODS else kept.method,
        "server.address": address,
        "server.port": port,
        "client.address": readable(headers["REMOTE_ADDR"]) if "REMOTE_ADDR" in headers else None,
        "network.peer.address": readable(headers["REMOTE_ADDR"]) if "REMOTE_ADDR" in headers else None,
        "user_agent.original": readable(headers["HTTP_USER_AGENT"]) if "HTTP_USER_AGENT" in headers else None,
        "paste_agent.request.queue.duration": (kept.queue_us - 1) / 1e6 if kept.queue_us else None,
    }
    for name in rules.headers:
        value = headers.get(environ_key(name))
        if value is not None:
            found[f"http.request.header.{name.lower()}"] = [readable(value)]
    return {name: value for name, value in found.items() if value is not None}


def _server(headers: Mapping[str, str]) -> tuple[str | None, int | None]:
    """Host and port that the client asked for; what the server is bound to where it did not say."""
    host = headers.get("HTTP_HOST", "")
    name, _, port = host.rpartition(":") if host.rpartition(":")[2].isdecimal() else (host, "", "")
    if not name:
        name, port = headers.get("SERVER_NAME", ""), headers.get("SERVER_PORT", "")
    if not port:
        port = "443" if headers.get("wsgi.url_scheme") == "https" else "80"
    number = int(port) if port.isdecimal() and len(port) <= 5 else 0
    return readable(name.strip("[]")) or None, number if 0 < number < 65536 else None


def redacted(query: str) -> str:
    """A query string with its names and without its values; what has no name may be a secret itself."""
    redacted_parts: list[str] = []
    for part in readable(query).split("&"):
        name, equals, _ = part.partition("=")
        name = quote(unquote(name, errors="replace"), errors="replace")
        redacted_parts.append(f"{name}=REDACTED" if equals else "REDACTED" if part else "")
    return "&".join(filter(None, redacted_parts))


def stacktrace(raised: Raised, messages: bool = True) -> str:
    """An exception with its causes, as Python prints it; the innermost part where it is too long.

    messages: whether its last line, and that of its causes, has the message.
    """
    parts: list[str] = []
    if raised.cause is not None:
        parts.append(stacktrace(raised.cause, messages))
        if raised.causes_left_out:
            parts.append(f"\n{many(raised.causes_left_out, 'exception')} between these two left out\n")
        parts.append(
            "\nThe above exception was the direct cause of the following exception:\n\n"
            if raised.explicit_cause
            else "\nDuring handling of the above exception, another exception occurred:\n\n"
        )
    if raised.frames:  # one that was noted may never have been raised
        parts.append("Traceback (most recent call last):\n")
    middle = len(raised.frames) // 2 if raised.frames_left_out else 0
    if middle:
        parts.append(stacks.render(raised.frames[:middle]))
        parts.append(f"  [{many(raised.frames_left_out, 'frame')} left out]\n")
    parts.append(stacks.render(raised.frames[middle:]))
    parts.append(_last_line(raised.type, raised.message if messages else ""))
    parts.extend(f"  | {_last_line(kind, message if messages else '')}" for kind, message in raised.group)
    return "".join(parts)[-_MAX_STACK:]


def _last_line(kind: str, message: str) -> str:
    return f"{kind}: {message}\n" if message else f"{kind}\n"
