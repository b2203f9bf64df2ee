"""The agent's one logger: one line at start, warnings once per kind and interval, silence otherwise."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

logger = logging.getLogger("paste_agent")

#: A trouble that lasts is said again after so many seconds, with how often it came meanwhile.
INTERVAL_S = 600.0


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
        logger.warning("%s: %s%s", self._service, message, more)
