"""Trace and span id of where the code is, for lines of a log: found without deciding whether the trace is kept."""

from __future__ import annotations

from paste_agent import propagation
from paste_agent.recorder import layout
from paste_agent.spans import Span
from paste_agent.transaction import Environ, UnderWay, Within, current

#: Of the environ: both ids, once somebody has asked for them.
_IDS_KEY = "paste_agent.ids"


def here() -> tuple[str, str] | None:
    """Trace id and span id, 32 and 16 hex characters; None without a transaction. Raises nothing.

    The span is the one that runs, else the transaction's own. A kept trace has the same ids. Unlike
    `Transaction.identify` it draws no chance, so that a line in the log of each request keeps none of them.
    """
    around = current.get()
    return None if around is None else of(around)


def of(around: Within) -> tuple[str, str] | None:
    """The same for what a thread is in, or was; None once its transaction has ended. Raises nothing."""
    transaction = around.transaction
    environ = transaction.environ
    if environ is None:
        return None
    try:
        ids: tuple[str, str] | None = environ.get(_IDS_KEY)
        if ids is None:
            ids = environ[_IDS_KEY] = _ids_of(transaction, environ)
        if not isinstance(around, Span):
            return ids
        if around.span_id is None:
            around.span_id = transaction.recorder.new_id(8)
        return ids[0], around.span_id.hex()
    except Exception as fault:
        transaction.recorder.on_fault("trace ids", fault)
        return None


def _ids_of(transaction: UnderWay, environ: Environ) -> tuple[str, str]:
    slot, inside, recorder = transaction.slot, transaction.inside, transaction.recorder
    if slot == 0 or (inside is not None and inside.identity is not None):
        # Without a slot its ids are random: somebody has to remember them.
        identity = transaction.identify()
        return identity.trace_id.hex(), identity.span_id.hex()
    trace_id, span_id = layout.minted_ids(recorder.id, recorder.number_of(slot))
    parent = propagation.caller_of(environ)
    if parent is not None:
        trace_id = parent.trace_id
    return trace_id.hex(), span_id.hex()
