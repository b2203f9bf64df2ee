"""Requests that are held in flight, and the watch that looks at them.

with Held(recorder, "/slow"):
    watch_of(recorder).look(only(reader).start_ns + 3 * S)  # as if three seconds had passed
    assert only(reader).stack
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from paste_agent.recorder.reader import InFlight, Reader
from paste_agent.recorder.writer import Recorder
from paste_agent.watch import Watch
from tests import recorders
from tests.recorders import S
from tests.serving import PATIENCE_S

STUCK_NS = 30 * S


class Held:
    """A request in a thread of its own that is in flight until the block ends; `inside` runs before it waits."""

    def __init__(
        self,
        recorder: Recorder,
        path: str = "/",
        inside: Callable[[Callable[[], None]], None] | None = None,
        **more: Any,
    ) -> None:
        """inside: gets what it has to call, from as deep as it likes, in order to wait."""
        self._entered, self._released = threading.Event(), threading.Event()
        meanwhile = self.wait_here if inside is None else lambda: inside(self.wait_here)
        self._thread = threading.Thread(
            target=self.server_of_the_test, args=(recorder, path), kwargs={"meanwhile": meanwhile, **more}
        )

    def server_of_the_test(self, *arguments: Any, **more: Any) -> None:
        recorders.serve(*arguments, **more)

    def wait_here(self) -> None:
        self._entered.set()
        assert self._released.wait(PATIENCE_S)

    def __enter__(self) -> Held:
        self._thread.start()
        assert self._entered.wait(PATIENCE_S)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.end()

    def end(self) -> None:
        self._released.set()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


def watch_of(recorder: Recorder, slow_ns: int = 2 * S, **more: Any) -> Watch:
    return Watch(recorder, "shop", slow_ns, STUCK_NS, **more)


def only(reader: Reader) -> InFlight:
    (found,) = reader.in_flight(stacks=1)
    return found
