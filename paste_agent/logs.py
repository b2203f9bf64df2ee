"""Lines of a log that name the trace which they belong to: for `logging`, in code or in an ini.

[formatter_generic]
class = paste_agent.logs.TraceFormatter
format = %(asctime)s %(levelname)-5.5s [%(trace_id)s %(span_id)s] %(name)s: %(message)s

Costs nothing until a record is formatted. The attributes that a record gets:

    trace_id      32 hex characters; zeros outside of a transaction
    span_id       16 hex characters: of the span that runs, else of the transaction; zeros outside
    service_name  of this process's first service; '' before its filter is made
"""

from __future__ import annotations

import logging

from paste_agent import lifecycle, trace_ids

_NOWHERE = ("0" * 32, "0" * 16)


class TraceFormatter(logging.Formatter):
    """A `logging.Formatter` whose format may say trace_id, span_id and service_name. `fileConfig` needs no more."""

    def format(self, record: logging.LogRecord) -> str:
        bind(record)
        return super().format(record)


class TraceFilter(logging.Filter):
    """Lets everything through, and binds it to its trace: for records that another thread formats, as a queue's."""

    def filter(self, record: logging.LogRecord) -> bool:
        if super().filter(record):  # `name` works as that of any filter
            bind(record)
            return True
        return False


def bind(record: logging.LogRecord) -> None:
    """Give a record the attributes, unless it has been given them before: by then another thread may have it."""
    if "trace_id" not in record.__dict__:
        agent = lifecycle.current_agent()
        record.service_name = "" if agent is None else agent.settings.service_name
        record.trace_id, record.span_id = trace_ids.here() or _NOWHERE
