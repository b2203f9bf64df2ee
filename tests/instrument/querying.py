"""What the tests of database drivers share: a connection for the time of a request, and what its spans tell.

spans = spans_of(recorder, driver, {"host": ...}, lambda connection: connection.cursor().execute("SELECT 1"))
assert names(spans)[-1:] == ["SELECT"]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from paste_agent.inside import FinishedSpan
from paste_agent.recorder.writer import Recorder
from tests.recorders import spans_within

#: Of every span of a connection to the server.
OF_SERVER = ("db.system.name", "db.namespace", "server.address", "server.port")


def closing(connection: Any, run: Callable[[Any], object]) -> Any:
    try:
        return run(connection)
    finally:
        connection.close()


def spans_of(
    recorder: Recorder, driver: Any, where: dict[str, Any], run: Callable[[Any], object]
) -> list[FinishedSpan]:
    """What `run` leaves that gets a connection, in a request."""
    return spans_within(recorder, lambda: closing(driver.connect(**where), run))


def names(spans: list[FinishedSpan]) -> list[str]:
    return [span.name for span in spans]


def told(span: FinishedSpan, *without: str) -> dict[str, object]:
    return {name: value for name, value in (span.attributes or {}).items() if name not in without}
