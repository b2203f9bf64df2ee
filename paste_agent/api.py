"""What an application may tell of itself. `paste_agent` hands all of it on.

None of it raises anything, whatever it is given: what cannot be recorded is said once in the log, and left out. What
belongs to a transaction does nothing without one, and nothing where the agent is switched off.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from time import perf_counter_ns
from typing import Any

from paste_agent import lifecycle, log, spans, trace_ids
from paste_agent.background import background_task
from paste_agent.inside import MAX_ATTRIBUTES, AttributeValue, Inside
from paste_agent.recorder.layout import KIND_COUNT, KIND_TIMING
from paste_agent.said import plain_value
from paste_agent.transaction import Transaction, UnderWay, current

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.\-/]{0,63}", re.ASCII)
#: The agent's own metrics begin so.
_TAKEN = ("paste_agent.", "http.server.", "http.client.", "db.client.", "process.", "cpython.")
_MAX_NAME = 160
_MAX_ROUTE = 255
_MAX_KEY = 128
#: Of one call: a record ends when it is made, and begins so many nanoseconds earlier.
_MAX_COUNT = 1_000_000_000
_LONGEST_S = 365 * 86_400.0
#: Complaints about different things; and names that are known to be right.
_MOST_SAID = 50
_MOST_NAMES = 4096

_said: set[str] = set()
_names: set[str] = set()


# -- the transaction that runs -------------------------------------------------------------------------------------


def name_transaction(name: str) -> None:
    """Give the transaction a name of the application's: `http.route` of a request, the name of a background task.

    name: one of few, 1 to 255 characters, without anything that a client has sent; a slash is put before that of a
    request. It counts more than what the framework says, and has to come before the response is handed over.
    """
    transaction = _transaction()
    if transaction is None:
        return
    if type(name) is not str or not name or len(name) > _MAX_ROUTE:
        _complain("name_transaction", "expected text of 1 to 255 characters")
        return
    _inside_of(transaction).name = name
    if isinstance(transaction, Transaction):
        transaction.route = name  # for who looks while it runs


def ignore_transaction() -> None:
    """Do not count the transaction, and do not keep it: a health check, say. What it has called is counted."""
    transaction = _transaction()
    if transaction is not None:
        _inside_of(transaction).ignored = True


def mark_as_background(name: str) -> None:
    """Count the request as a background task by this name: one that streams for hours says nothing about requests.

    name: one of few, 1 to 160 characters.
    """
    transaction = _transaction()
    if transaction is None:
        return
    if type(name) is not str or not name or len(name) > _MAX_NAME:
        _complain("mark_as_background", "expected text of 1 to 160 characters")
        return
    _inside_of(transaction).task = name


def add_attribute(key: str, value: AttributeValue) -> None:
    """Give the transaction an attribute, which its trace shows if it is kept. A second value takes the first's place.

    key: 1 to 128 characters. value: text, cut to 1,024 characters, a number of 64 bits, or a bool; None: no attribute.
    """
    transaction = _transaction()
    if transaction is None or value is None:
        return
    try:
        _add(_inside_of(transaction), key, value)
    except Exception as fault:
        lifecycle.on_fault("add_attribute", fault)


def add_attributes(attributes: Mapping[str, AttributeValue]) -> None:
    """The same for several."""
    transaction = _transaction()
    if transaction is None:
        return
    try:
        for key, value in attributes.items():
            if value is not None:
                _add(_inside_of(transaction), key, value)
    except Exception:  # what calls itself a mapping may do anything
        _complain("add_attributes", "expected a mapping of names to values")


def notice_error(
    error: BaseException | None = None,
    expected: bool = False,
    attributes: Mapping[str, AttributeValue] | None = None,
) -> None:
    """Note an error that the application has handled: it is counted, and the transaction is likely to be kept.

    error: None: the one that is being handled. expected: it is recorded, and nobody is to be called for it.
    attributes: for the transaction, as of `add_attributes`.
    The settings `ignore_errors`, `expected_errors` and `record_error_messages` hold for it too.
    """
    transaction = _transaction()
    if transaction is None:
        return
    found: Any = sys.exc_info()[1] if error is None else error
    # By type(), here and below: to ask an object for its class can run its code.
    if type(found) is tuple and len(found) == 3:  # what `sys.exc_info` returns
        found = found[1]
    if not issubclass(type(found), BaseException):
        if error is not None:
            _complain("notice_error", "expected an exception")
        return
    try:
        if isinstance(transaction, (Transaction, background_task)):
            transaction.note(found, expected=expected is True)
    except Exception as fault:
        lifecycle.on_fault("notice_error", fault)
    if attributes is not None:
        add_attributes(attributes)


# -- other services, and the log -----------------------------------------------------------------------------------


def outbound_headers() -> dict[str, str]:
    """The headers that tell a service which is called now whose call it is; {} without a transaction.

    For ways to call that the agent does not know: it adds them by itself to what it instruments.
    """
    around = current.get()
    if around is None or around.transaction.environ is None:
        return {}
    try:
        if isinstance(around, spans.Span):
            return dict(spans.headers_of(around))
        itself = spans.Span()
        itself.transaction = around.transaction
        itself.span_id = around.transaction.identify().span_id
        return dict(spans.headers_of(itself))
    except Exception as fault:
        lifecycle.on_fault("outbound_headers", fault)
        return {}


def trace_context() -> tuple[str, str] | None:
    """Trace id and span id of where the code is, 32 and 16 hex characters; None without a transaction."""
    return trace_ids.here()


# -- figures of the application's own ------------------------------------------------------------------------------


def count(name: str, by: int = 1) -> None:
    """Add to a counter, in a transaction or not.

    name: one of few, and it becomes a metric's: letters, digits, `_`, `.`, `-` and `/`, at most 64, a letter first.
    by: a whole number from 0 to 1,000,000,000.
    """
    if not _is_name("count", name):
        return
    now_ns = perf_counter_ns()
    if type(by) is not int or not 0 <= by <= min(_MAX_COUNT, now_ns):
        _complain(f"count {name}", "expected a whole number from 0 to 1,000,000,000")
        return
    _record(KIND_COUNT, name, now_ns, by)


def timing(name: str, seconds: float) -> None:
    """Add a duration that has just passed to a histogram, in a transaction or not.

    name: as of `count`. seconds: from 0 to a year, and no longer than the host has been up.
    """
    if not _is_name("timing", name):
        return
    if type(seconds) not in (float, int) or not 0 <= seconds <= _LONGEST_S:  # nor is a NaN
        _complain(f"timing {name}", "expected seconds, from 0 to a year")
        return
    now_ns = perf_counter_ns()
    _record(KIND_TIMING, name, now_ns, min(round(seconds * 1e9), now_ns))


def _record(kind: int, name: str, end_ns: int, amount: int) -> None:
    """Leave a record of `amount` ns, or things, that ends now."""
    try:
        transaction = _transaction()
        if transaction is not None:
            transaction.recorder.record_span((kind, (name,)), end_ns - amount, amount)
            return
        agent = lifecycle.current_agent()
        if agent is not None:
            agent.record(kind, (name,), end_ns - amount, amount)
        else:
            lifecycle.owe(kind, (name,), end_ns - amount, amount, False)
    except Exception as fault:
        lifecycle.on_fault("a figure of the application", fault)


# -- what all of them need -----------------------------------------------------------------------------------------


def _transaction() -> UnderWay | None:
    """What this thread works for; None where that is nothing, or has ended."""
    around = current.get()
    if around is None:
        return None
    transaction = around.transaction
    return None if transaction.environ is None else transaction


def _inside_of(transaction: UnderWay) -> Inside:
    inside = transaction.inside
    if inside is None:
        inside = transaction.inside = Inside()
    return inside


def _add(inside: Inside, key: str, value: AttributeValue) -> None:
    if type(key) is not str or not 0 < len(key) <= _MAX_KEY:
        _complain("add_attribute", "expected a name of 1 to 128 characters")
        return
    kept = plain_value(value)
    if kept is None:
        what = f"expected text, a number of 64 bits or a bool, not {type(value).__name__}"
        _complain(f"add_attribute {key!r:.80}", what)
        return
    attributes = inside.attributes
    if attributes is None:
        attributes = inside.attributes = {}
    if len(attributes) < MAX_ATTRIBUTES or key in attributes:
        attributes[key] = kept
    else:
        _complain("add_attribute", f"a transaction has no more than {MAX_ATTRIBUTES}")


def _is_name(function: str, name: str) -> bool:
    if type(name) is str:
        if name in _names:
            return True
        if _NAME.fullmatch(name) and not name.startswith(_TAKEN):
            if len(_names) < _MOST_NAMES:
                _names.add(name)
            return True
    _complain(
        f"{function} {name!r:.80}" if type(name) is str else function,
        "expected a name of letters, digits, `_`, `.`, `-` and `/`, at most 64, a letter first, that is no metric's of"
        " the agent",
    )
    return False


def _complain(what: str, expected: str) -> None:
    """Say once that something was not recorded."""
    if what in _said or len(_said) >= _MOST_SAID:
        return
    _said.add(what)
    try:
        log.say(logging.WARNING, f"paste_agent: {what}: {expected}; not recorded")
    except Exception:  # a handler of the user's
        pass
