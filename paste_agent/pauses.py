"""What a transaction's time goes to besides its own code's work: the garbage collector's pauses; and CPU time.

Both overlap with the other parts of a transaction. A pause in the middle of a query is in the query's time as well, and
CPU time is time of whatever computes.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable, Mapping
from time import perf_counter_ns, thread_time_ns

from paste_agent.inside import CPU, GC, Inside
from paste_agent.transaction import TRANSACTION_KEY, Environ, StartResponse, WSGIApplication, current

#: When the collection that is under way began, ns; 0: it concerns no transaction. There is one at a time in a process.
_started_ns = 0
_get = current.get
#: Before 3.11.8 Python 3.11 collects garbage in the middle of building a syntax tree, whose depth it counts for all
#: threads at once. What the collector calls lets another thread run: when that one parses too, `ast.parse` fails, and
#: with it the compilation of templates.
IS_SAFE = not (3, 11) <= sys.version_info < (3, 11, 8)


def install() -> None:
    """Add the pauses of the garbage collector to the transactions that they hold up, in this process from now on."""
    if _on_collection not in gc.callbacks:
        gc.callbacks.append(_on_collection)


def _on_collection(phase: str, info: Mapping[str, int]) -> None:
    """Called by the collector before and after its work, on the thread that happened to set it off. Raises nothing.

    Other threads wait too, mostly; only the one that does the work is charged with it. A finalizer may let others run
    meanwhile: its thread, or greenlet, waits for them as it waits for the collector.
    """
    global _started_ns
    around = _get()
    if around is None:
        _started_ns = 0
        return
    now_ns = perf_counter_ns()
    if phase == "start":
        _started_ns = now_ns
        return
    started_ns, _started_ns = _started_ns, 0
    if not started_ns:  # a finalizer has begun or ended the transaction
        return
    try:
        transaction = around.transaction
        if transaction.environ is None:  # it has ended
            return
        inside = transaction.inside
        if inside is None:
            inside = transaction.inside = Inside()
        inside.spend(GC, now_ns - started_ns)
    except Exception:  # a pause is not worth more words
        pass


class CpuClock:
    """Adds the CPU time that its thread spends in the call of an application to the transaction.

    Two system calls a request. What computes while the body is iterated, and in other threads, is not in it; where
    greenlets share the thread, it has the time of all that ran meanwhile.
    """

    def __init__(self, application: WSGIApplication) -> None:
        self.application = application

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        transaction = environ.get(TRANSACTION_KEY)
        if transaction is None:
            return self.application(environ, start_response)
        inside = transaction.inside
        if inside is None:
            inside = transaction.inside = Inside()
        begin_ns = thread_time_ns()
        try:
            return self.application(environ, start_response)
        finally:
            # Not added: of two clocks in one pipeline the outer one has it all, and the last word.
            inside.parts[CPU] = [1, thread_time_ns() - begin_ns]
