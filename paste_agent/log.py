"""The agent's one logger: one line at start, warnings once per kind and interval, silence otherwise.

Where greenlets stand in for threads, the locks of `logging` are theirs, and a real thread that waits for one of them is
woken in the wrong hub, or never; and whoever had the lock before it, too. So the agent's own threads never log there:
they leave their lines to a greenlet.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable

from paste_agent import native

logger = logging.getLogger("paste_agent")

#: A trouble that lasts is said again after so many seconds, with how often it came meanwhile.
INTERVAL_S = 600.0
#: Lines that wait for a greenlet.
_MOST_UNSAID = 1000
_FLUSH_S = 0.2

_unsaid: deque[tuple[int, str]] = deque(maxlen=_MOST_UNSAID)
_flushing: list[object] = []  #: not empty: greenlets of this process log what waits
#: Loggers of what the agent's threads use. A filter of a logger comes before any lock.
_CHATTY = ("urllib3.connectionpool", "urllib3.connection", "urllib3.poolmanager", "urllib3.util.retry")


def say(level: int, message: str) -> None:
    """Log one message, now or as soon as a thread can that may. Raises nothing but what handlers raise."""
    if native.is_own_thread() and native.has_greenlets():
        _unsaid.append((level, message))
    else:
        logger.log(level, "%s", message)


def flush() -> None:
    """Log what waits; for a thread that may."""
    while _unsaid:
        level, message = _unsaid.popleft()
        try:
            logger.log(level, "%s", message)
        except Exception:
            pass  # a handler of the user's; the next line may fare better


def hush_exports() -> None:
    """The agent's own exports are no news to whoever debugs the calls of his application."""
    for name in _CHATTY:
        logging.getLogger(name).addFilter(_not_ours)


def start_flushing() -> None:
    """Where the agent's threads may not log, have a greenlet do it. For a thread that serves, once a process."""
    if native.has_greenlets() and not _flushing:
        native.call_in_greenlets(flush, _FLUSH_S, _flushing)


def forget() -> None:
    """In a forked child: the parent says what waits."""
    _unsaid.clear()
    _flushing.clear()


def _not_ours(record: logging.LogRecord) -> bool:
    return not native.is_own_thread()


class Warnings:
    """Says each kind of trouble once an interval. Never called on a request's thread without need."""

    def __init__(self, service: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._service = service
        self._clock = clock
        self._said: dict[str, tuple[float, int]] = {}

    def __call__(self, kind: str, message: str) -> None:
        """kind: few and fixed; message: one line. Raises nothing."""
        now = self._clock()
        said_at, unsaid = self._said.get(kind, (None, 0))
        if said_at is not None and now - said_at < INTERVAL_S:
            self._said[kind] = (said_at, unsaid + 1)
            return
        self._said[kind] = (now, 0)
        more = f" ({unsaid} times more since it was last said)" if unsaid else ""
        say(logging.WARNING, f"{self._service}: {message}{more}")
