"""Turns what a kept transaction left behind into a row of the store. For the reporter: it reads source files."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote, unquote

from paste_agent import stacks
from paste_agent.kept import TraceRow
from paste_agent.naming import KNOWN_METHODS, readable
from paste_agent.transaction import KeptTransaction, Raised

_NO_SPAN = bytes(8)
_MAX_STACK = 16_384


def trace_row(
    kept: KeptTransaction, attributes: Mapping[str, str | int], wall_offset_ns: int, record_query: bool
) -> TraceRow:
    """The row of a kept transaction.

    attributes: of its series. wall_offset_ns: see Folder.fold. record_query: whether `url.query` is.
    """
    attributes_of_span = _attributes(kept, record_query)
    if kept.stack is not None:
        taken_ns, stack = kept.stack
        # Where the time went, without any instrumentation.
        attributes_of_span["code.stacktrace"] = stacks.render(stacks.parse(stack))
        attributes_of_span["paste_agent.stack.age"] = max(0, taken_ns - kept.start_ns) / 1e9
    detail: dict[str, object] = {"attributes": attributes_of_span}
    if kept.tracestate:
        detail["tracestate"] = kept.tracestate
    if kept.error is not None:
        detail["exception"] = {
            "type": kept.error.type,
            "message": kept.error.message,
            "stacktrace": stacktrace(kept.error),
        }
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


def _attributes(kept: KeptTransaction, record_query: bool) -> dict[str, str | int | float]:
    """Attributes of the span beyond those of its series."""
    headers = kept.headers
    address, port = _server(headers)
    found: dict[str, str | int | float | None] = {
        "url.path": readable(kept.path),
        "url.query": redacted(kept.query) if record_query and kept.query else None,
        "http.request.method_original": None if kept.method in KNOWN_METHODS else kept.method,
        "server.address": address,
        "server.port": port,
        "client.address": readable(headers["REMOTE_ADDR"]) if "REMOTE_ADDR" in headers else None,
        "network.peer.address": readable(headers["REMOTE_ADDR"]) if "REMOTE_ADDR" in headers else None,
        "user_agent.original": readable(headers["HTTP_USER_AGENT"]) if "HTTP_USER_AGENT" in headers else None,
        "paste_agent.request.queue.duration": (kept.queue_us - 1) / 1e6 if kept.queue_us else None,
    }
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


def stacktrace(raised: Raised) -> str:
    """An exception with its causes, as Python prints it; the innermost part where it is too long."""
    parts: list[str] = []
    if raised.cause is not None:
        parts.append(stacktrace(raised.cause))
        parts.append(
            "\nThe above exception was the direct cause of the following exception:\n\n"
            if raised.explicit_cause
            else "\nDuring handling of the above exception, another exception occurred:\n\n"
        )
    parts.append("Traceback (most recent call last):\n")
    parts.append(stacks.render(raised.frames))
    parts.append(f"{raised.type}: {raised.message}\n" if raised.message else f"{raised.type}\n")
    return "".join(parts)[-_MAX_STACK:]
