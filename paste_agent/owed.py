"""What is recorded while there is no agent, as when an arbiter imports an application: the next one counts it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from paste_agent.recorder.layout import KIND_BACKGROUND, KIND_COUNT, KIND_LOAD, KIND_TIMING

#: Kind, fields, start and duration (ns), whether it failed.
Record = tuple[int, tuple[str | None, ...], int, int, bool]
#: Records of a kind.
MOST = 1000
_KINDS = (KIND_LOAD, KIND_BACKGROUND, KIND_TIMING, KIND_COUNT)


class Owed:
    """Each kind has a bound of its own: a counter that is busy pushes out no task.

    No lock: several threads may add, and a finalizer in the middle of it. What a queue does is one step each.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._queues: dict[int, deque[Record]] = {kind: deque() for kind in _KINDS}
        self.dropped = 0  #: since the last `take`; threads that drop at the same time may miss one

    def __iter__(self) -> Iterator[Record]:
        return iter([record for queue in self._queues.values() for record in queue])

    def add(self, record: Record) -> None:
        """record: of a kind that belongs to no request."""
        queue = self._queues[record[0]]
        queue.append(record)
        if record[0] == KIND_COUNT:
            if len(queue) > 2 * MOST:
                self._sum_up(queue)
        elif len(queue) > MOST:
            try:
                queue.popleft()
            except IndexError:  # another thread has just taken them all
                return
            self.dropped += 1

    def take(self) -> tuple[list[Record], int]:
        """All of it, each kind in its order, and how many more were dropped; none of it is owed any longer."""
        self._sum_up(self._queues[KIND_COUNT])
        dropped, self.dropped = self.dropped, 0
        return [record for queue in self._queues.values() for record in _emptied(queue)], dropped

    def _sum_up(self, queue: deque[Record]) -> None:
        """Leave one record for each counter, and drop counters beyond the bound."""
        whole: list[Record] = []
        sums: dict[tuple[str | None, ...], Record] = {}
        for record in _emptied(queue):
            kind, fields, start_ns, amount, failed = record
            before = sums.get(fields)
            if before is not None and before[3] <= start_ns:
                record = kind, fields, start_ns - before[3], amount + before[3], failed
            elif before is not None:  # a record that ends now cannot have begun before the clock did
                whole.append(before)
            sums[fields] = record
        kept = [*whole, *sums.values()]
        queue.extend(kept[:MOST])
        self.dropped += len(kept[MOST:])


def _emptied(queue: deque[Record]) -> list[Record]:
    """What was in the queue. Of two threads that ask at the same time each gets a part of it."""
    found: list[Record] = []
    for _ in range(len(queue)):
        try:
            found.append(queue.popleft())
        except IndexError:
            break
    return found
