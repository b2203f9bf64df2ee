"""Decides which transactions are kept as traces. Metrics count everything, whatever is decided here.

Kept are those that a parent sampled, those that chance picks, the slow and the failed, each under a token bucket of
its own: neither an outage nor a client that sets the sampled flag on every request can multiply what is kept.

The request's thread only compares numbers and pops tokens; the reporter fills the buckets and draws the chances.
"""

from __future__ import annotations

import math
from random import Random

from paste_agent.recorder.layout import KEPT_FAILED, KEPT_PARENT, KEPT_RANDOM, KEPT_SLOW

_NEVER = 1 << 62
#: What is kept between two ticks of the reporter is memory of the worker.
_BURST = 60


class TokenBucket:
    """Lets through `per_minute`, and a minute's worth but no more than _BURST at once; never waits.

    Tokens are the items of a list: `list.pop` is one step for the interpreter, so no lock is needed.
    """

    def __init__(self, per_minute: float) -> None:
        self._per_minute = per_minute
        self._capacity = min(math.ceil(per_minute), _BURST)
        self._owed = 0.0
        self._tokens = [None] * self._capacity

    def take(self) -> bool:
        """Whether there was a token left."""
        try:
            self._tokens.pop()
        except IndexError:
            return False
        return True

    def refill(self, elapsed_s: float) -> None:
        """Put in what `elapsed_s` seconds are worth. For the reporter alone."""
        self._owed = min(self._owed + self._per_minute * elapsed_s / 60, float(self._capacity))
        whole = int(self._owed)
        self._owed -= whole
        room = self._capacity - len(self._tokens)
        self._tokens.extend([None] * min(whole, room))


class Sampler:
    """One process's decisions. Made after fork, with a seed of its own."""

    def __init__(self, *, slow_ns: int, parent: float, random: float, slow: float, failed: float, seed: int) -> None:
        """slow_ns: a transaction that takes longer is slow. The other four: traces a minute."""
        self.slow_ns = slow_ns
        #: The first record number that chance picks next; a plain number, compared on the request's thread.
        self.next_random = 0 if random else _NEVER
        self._parent = TokenBucket(parent)
        self._random = TokenBucket(random)
        self._slow = TokenBucket(slow)
        self._failed = TokenBucket(failed)
        self._per_minute = random
        self._chance = 1.0
        self._draw = Random(seed)

    def take_failed(self) -> bool:
        """Whether one more failed transaction may be kept."""
        return self._failed.take()

    def decide(self, number: int, duration_ns: int, *, failed: bool, parent_sampled: bool) -> int:
        """Why the transaction is kept, as KEPT_ bits; 0 when it is not.

        number: of its record, counted up by one a transaction.
        failed: whether it failed and `take_failed` has not been asked yet.
        """
        why = 0
        if failed and self._failed.take():
            why |= KEPT_FAILED
        if duration_ns > self.slow_ns and self._slow.take():
            why |= KEPT_SLOW
        if parent_sampled and self._parent.take():
            why |= KEPT_PARENT
        if number >= self.next_random:
            self.next_random = number + self._gap()
            if self._random.take():
                why |= KEPT_RANDOM
        return why

    def tick(self, elapsed_s: float, finished: int, last: int) -> None:
        """Refill the buckets, and fit the chance to the traffic. For the reporter alone.

        finished: transactions that ended in these `elapsed_s` seconds. last: number of the last one.
        """
        for bucket in (self._parent, self._random, self._slow, self._failed):
            bucket.refill(elapsed_s)
        if not self._per_minute or elapsed_s <= 0:
            return
        per_minute = finished * 60 / elapsed_s
        wanted = min(1.0, self._per_minute / per_minute) if per_minute else 1.0
        # Half the way each time: a burst of one second does not decide for the next.
        before, self._chance = self._chance, (self._chance + wanted) / 2
        if self._chance > before:
            # Drawn when there was more traffic, the next one may be very far. To draw again is fair: what chance has
            # not picked so far says nothing about what it picks next.
            self.next_random = min(self.next_random, last + self._gap())

    def _gap(self) -> int:
        """How many transactions further chance picks the next: each has the same chance, drawn once for all."""
        if self._chance >= 1:
            return 1
        return 1 + int(math.log(1 - self._draw.random()) / math.log1p(-self._chance))
