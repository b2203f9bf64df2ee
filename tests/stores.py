"""What the tests of the store put into one."""

from __future__ import annotations

from paste_agent.aggregate import REQUEST_DURATION, Delta, Total
from paste_agent.store.store import RUNNING, RecorderRow


def delta_of(count: int = 1, attributes: str = "{}", slot_s: int = 1000, metric: str = REQUEST_DURATION) -> Delta:
    """So many requests of one series in one slot."""
    delta = Delta()
    total = delta.at((metric, attributes), slot_s)
    total.add(Total(count, 5 * count, 5, count, 0, 0, {3: count}))
    return delta


def row_of(name: str = "7-a", position: int = 0) -> RecorderRow:
    """A process that has been drained up to `position`."""
    return RecorderRow(name, position, 1, 7, True, RUNNING, 1.0, 2.0, position, 0, 0.5, [0, 1, 2])
