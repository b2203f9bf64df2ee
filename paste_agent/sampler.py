"""Decides which transactions are kept as traces. Metrics count everything, whatever is decided here.

Kept are those that a parent sampled, those that chance picks, the slow and the failed, each under a token bucket of
its own: neither an outage nor a client that sets the sampled flag on every request can multiply what is kept.

The request's thread only compares numbers and pops tokens; the reporter fills the buckets and draws the chances.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

from paste_agent.recorder.layout import KEPT_FAILED, KEPT_PARENT, KEPT_QUERIES, KEPT_RANDOM, KEPT_SLOW

_NEVER = 1 << 62
#: What is kept between two ticks of the reporter is memory of the worker.
_BURST = 60
#: What share a bucket lets through is told from so many seconds, or so many tokens where they are rare.
_KNOWN_S, _KNOWN_TOKENS = 60.0, 16
#: Keys of the environ that become attributes of a kept span.
HEADERS = ("HTTP_HOST", "SERVER_NAME", "SERVER_PORT", "REMOTE_ADDR", "HTTP_USER_AGENT", "wsgi.url_scheme")


class TokenBucket:
    """Lets through `per_minute`, and a minute's worth but no more than _BURST at once; never waits.

    Tokens are the items of a list: `list.pop` is one step for the interpreter, so no lock is needed.
    """

    def __init__(self, per_minute: float) -> None:
        self._per_minute = per_minute
        self._capacity = min(math.ceil(per_minute), _BURST)
        self._owed = 0.0
        self._tokens = [None] * self._capacity
        #: How often it was asked, and let through, since the last refill; off by a few where threads meet.
        self._asked = self._taken = 0
        #: The same, of lately: what is older counts less.
        self._known_asked = self._known_taken = 0.0
        self._was_full = True
        #: Of those who asked lately, how many were let through.
        self.share = 1.0 if per_minute else 0.0

    def take(self) -> bool:
        """Whether there was a token left."""
        self._asked += 1
        try:
            self._tokens.pop()
        except IndexError:
            return False
        self._taken += 1
        return True

    def give_back(self) -> None:
        """Undo a `take` that let through."""
        self._asked -= 1
        self._taken -= 1
        self._tokens.append(None)

    def refill(self, elapsed_s: float) -> None:
        """Put in what `elapsed_s` seconds are worth. For the reporter alone."""
        self._owed = min(self._owed + self._per_minute * elapsed_s / 60, float(self._capacity))
        whole = int(self._owed)
        self._owed -= whole
        if self._per_minute and elapsed_s > 0:
            self._learn(elapsed_s)
        room = self._capacity - len(self._tokens)
        self._tokens.extend([None] * min(whole, room))
        self._was_full = len(self._tokens) >= self._capacity

    def forget(self) -> None:
        """What asked so far says nothing of what asks from now on: few are expected to be turned away."""
        self._known_asked = self._known_taken = 4.0
        self.share = 1.0

    def _learn(self, elapsed_s: float) -> None:
        """Tell the share of the next seconds by that of the last."""
        asked, taken = self._asked, self._taken
        self._asked = self._taken = 0
        known_s = max(_KNOWN_S, _KNOWN_TOKENS * 60 / self._per_minute)
        if self._was_full and not asked:
            self._known_asked = self._known_taken = 0.0
            self.share = 1.0
            return
        if self._was_full and taken < asked:
            # What had been saved up is gone: from now on it lets through what is put in.
            self._known_asked = asked * known_s / elapsed_s
            self._known_taken = self._per_minute * known_s / 60
        else:
            older = 0.5 ** (elapsed_s / known_s)
            self._known_asked = self._known_asked * older + asked
            self._known_taken = self._known_taken * older + taken
        if self._known_asked:
            self.share = min(max(self._known_taken, 0.5) / self._known_asked, 1.0)


class Sampler:
    """One process's decisions. Made after fork, with a seed of its own."""

    def __init__(
        self,
        *,
        slow_ns: int,
        parent: float,
        random: float,
        slow: float,
        failed: float,
        seed: int,
        queries: float = 0.0,
        slow_query_ns: int = _NEVER,
        repeated: int = _NEVER,
        headers: Sequence[str] = (),
    ) -> None:
        """slow_ns: a transaction that takes longer is slow. parent … failed, queries: traces a minute.

        slow_query_ns: a query that takes longer is slow. repeated: as many queries of one transaction may be too many.
        headers: keys of the environ, beyond HEADERS, that a kept transaction tells.
        """
        self.slow_ns = slow_ns
        self.slow_query_ns = slow_query_ns
        self.repeated = repeated
        self.headers = (*HEADERS, *headers)
        #: The first transaction that chance picks next, by number; compared on the request's thread.
        self.next_random = 0 if random else _NEVER
        self._parent = TokenBucket(parent)
        self._random = TokenBucket(random)
        self._slow = TokenBucket(slow)
        self._failed = TokenBucket(failed)
        self._queries = TokenBucket(queries)
        self._per_minute = random
        self._chance = self._learnt_at = 1.0
        #: Transactions of lately, and the seconds that they took to come: what is older counts less.
        self._seen = self._seen_s = 0.0
        self._draw = Random(seed)

    def take_failed(self) -> bool:
        """Whether one more failed transaction may be kept."""
        return self._failed.take()

    def give_back_failed(self) -> None:
        """What `take_failed` let through turned out to be no failure."""
        self._failed.give_back()

    def choose(self, number: int) -> bool:
        """Whether chance picks this transaction; decided before its end when a service that it calls has to be told."""
        if number < self.next_random:
            return False
        self.next_random = number + self._gap()
        return self._random.take()

    def decide(
        self,
        number: int,
        duration_ns: int,
        *,
        failed: bool,
        parent_sampled: bool,
        queries: bool = False,
        decided: int = 0,
    ) -> int:
        """Why the transaction is kept, as KEPT_ bits; 0 when it is not.

        number: of the transaction in its process, counted up by one each.
        failed: whether it failed and `take_failed` has not been asked yet. queries: whether one of its queries is
        slow, or repeats. decided: what `choose` has said before.
        """
        why = decided
        if failed and self._failed.take():
            why |= KEPT_FAILED
        if duration_ns > self.slow_ns and self._slow.take():
            why |= KEPT_SLOW
        if parent_sampled and self._parent.take():
            why |= KEPT_PARENT
        if queries and self._queries.take():
            why |= KEPT_QUERIES
        if self.choose(number):
            why |= KEPT_RANDOM
        return why

    def probability(self, *, slow: bool, failed: bool, parent_sampled: bool, queries: bool) -> float:
        """How likely it is that a transaction like this is kept: one over it is how many each of them stands for.

        Each reason keeps it by itself, so it goes unkept only where all of them pass it over.
        """
        passed_over = 1.0 - self._chance * self._random.share if self._per_minute else 1.0
        for applies, bucket in (
            (slow, self._slow),
            (failed, self._failed),
            (parent_sampled, self._parent),
            (queries, self._queries),
        ):
            if applies:
                passed_over *= 1.0 - bucket.share
        return min(1.0, max(1.0 - passed_over, 1e-6))

    def tick(self, elapsed_s: float, finished: int, last: int) -> None:
        """Refill the buckets, and fit the chance to the traffic. For the reporter alone.

        finished: transactions that ended in these `elapsed_s` seconds. last: number of the last one.
        """
        for bucket in (self._parent, self._random, self._slow, self._failed, self._queries):
            bucket.refill(elapsed_s)
        if not self._per_minute or elapsed_s <= 0:
            return
        # A burst of one second does not decide for the next, nor does one that a few happened to miss.
        older = 0.5 if self._seen > 100 else 0.9
        self._seen = self._seen * older + max(finished, 0)
        self._seen_s = self._seen_s * older + elapsed_s
        per_minute = self._seen * 60 / self._seen_s
        self._chance = min(1.0, max(self._per_minute / per_minute, 1e-9)) if per_minute else 1.0
        if not 0.5 < self._chance / self._learnt_at < 2:
            self._learnt_at = self._chance
            self._random.forget()
        # Drawn when there was more traffic, the next one may be very far. To draw again is fair, each time: what chance
        # has not picked so far says nothing about what it picks next. (To take the nearer of two draws would not be.)
        self.next_random = last + self._gap()

    def _gap(self) -> int:
        """How many transactions further chance picks the next: each has the same chance, drawn once for all."""
        if self._chance >= 1:
            return 1
        return 1 + int(math.log(1 - self._draw.random()) / math.log1p(-self._chance))
