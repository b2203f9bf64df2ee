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
#: One that comes so long after others that were passed over does not stand for them.
_INHERITED_S = 300.0
#: Beside the KEPT_ bits: chance picked it, and there was no token left.
TURNED_AWAY = 1 << 16
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

    def take(self) -> bool:
        """Whether there was a token left."""
        try:
            self._tokens.pop()
        except IndexError:
            return False
        return True

    def give_back(self) -> None:
        """Undo a `take` that let through; meanwhile it may have been filled."""
        if len(self._tokens) < self._capacity:
            self._tokens.append(None)

    def refill(self, elapsed_s: float) -> None:
        """Put in what `elapsed_s` seconds are worth. For the reporter alone."""
        self._owed = min(self._owed + self._per_minute * elapsed_s / 60, float(self._capacity))
        whole = int(self._owed)
        self._owed -= whole
        room = self._capacity - len(self._tokens)
        self._tokens.extend([None] * min(whole, room))


class Alike:
    """Transactions that the same reasons spoke for, of those that ended between two ticks of the reporter.

    Those kept stand for all of them. Where none was kept, all of them are handed on to the next such interval; so
    what is kept adds up to what there was, whatever the buckets, the chance, and the order of those who asked. No
    product of shares would: a request that is slow and failed finds either bucket full, or both empty.
    """

    __slots__ = ("ended", "idle_s", "inherited", "kept")

    def __init__(self, inherited: float = 0.0, idle_s: float = 0.0) -> None:
        #: How many there were, as far as is known: off by a few where threads meet.
        self.ended = self.inherited = inherited
        self.kept = 0
        self.idle_s = idle_s  #: since the last of those that are inherited

    @property
    def probability(self) -> float:
        """How likely it was that one of them is kept; known when the interval is over."""
        return min(1.0, self.kept / self.ended) if self.kept and self.ended else 1.0

    def heir(self, elapsed_s: float) -> Alike | None:
        """What the next interval begins with; None: with nothing. elapsed_s: how long this one was."""
        if self.kept:
            return None
        idle_s = self.idle_s + max(elapsed_s, 0.0) if self.ended == self.inherited else 0.0
        return Alike(self.ended, idle_s) if self.ended and idle_s < _INHERITED_S else None


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
        self._chance = 1.0
        self._alike: dict[int, Alike] = {}  # by the KEPT_ bits of what speaks for them
        #: Transactions of lately, and the seconds that they took to come: what is older counts less.
        self._seen = self._seen_s = 0.0
        self._draw = Random(seed)

    def take_failed(self) -> bool:
        """Whether one more failed transaction may be kept."""
        return self._failed.take()

    def give_back_failed(self) -> None:
        """What `take_failed` let through turned out to be no failure."""
        self._failed.give_back()

    def choose(self, number: int) -> int:
        """Whether chance picks this transaction: KEPT_RANDOM, TURNED_AWAY or 0.

        Asked before its end when a service that it calls has to be told; `decide` wants the answer.
        """
        if number < self.next_random:
            return 0
        self.next_random = number + self._gap()
        return KEPT_RANDOM if self._random.take() else TURNED_AWAY

    def decide(
        self,
        number: int,
        duration_ns: int,
        *,
        failed: bool,
        parent_sampled: bool,
        queries: bool = False,
        noted: bool = False,
        decided: int = 0,
    ) -> tuple[int, Alike | None]:
        """Why the transaction is kept, as KEPT_ bits, 0 when it is not; and those that one that is kept stands for.

        number: of the transaction in its process, counted up by one each.
        failed: whether it failed and `take_failed` has not been asked yet. noted: whether it has. queries: whether one
        of its queries is slow, or repeats. decided: what `choose` and `take_failed` have said before.
        Every transaction that a reason speaks for has to come here, kept or not.
        """
        why, reasons = decided, 0
        if number >= self.next_random:
            why |= self.choose(number)
        if failed or noted:
            reasons = KEPT_FAILED
            if failed and self._failed.take():
                why |= KEPT_FAILED
        if duration_ns > self.slow_ns:
            reasons |= KEPT_SLOW
            if self._slow.take():
                why |= KEPT_SLOW
        if parent_sampled:
            reasons |= KEPT_PARENT
            if self._parent.take():
                why |= KEPT_PARENT
        if queries:
            reasons |= KEPT_QUERIES
            if self._queries.take():
                why |= KEPT_QUERIES
        if not reasons and not why:
            return 0, None
        alike = self._alike.get(reasons) or self._alike.setdefault(reasons, Alike())
        # Those that nothing speaks for have not all been asked: each that chance picks is one of many.
        alike.ended += 1 if reasons else 1 / self._chance
        why &= ~TURNED_AWAY
        if why:
            alike.kept += 1
        return why, alike

    def tick(self, elapsed_s: float, finished: int, last: int) -> None:
        """Refill the buckets, say what those kept stand for, fit the chance to the traffic. For the reporter alone.

        finished: transactions that ended in these `elapsed_s` seconds. last: number of the last one.
        """
        for bucket in (self._parent, self._random, self._slow, self._failed, self._queries):
            bucket.refill(elapsed_s)
        heirs = {reasons: one.heir(elapsed_s) for reasons, one in self._alike.copy().items()}
        self._alike = {reasons: heir for reasons, heir in heirs.items() if heir is not None}
        if not self._per_minute or elapsed_s <= 0:
            return
        # A burst of one second does not decide for the next, nor does one that a few happened to miss.
        older = 0.5 if self._seen > 100 else 0.9
        self._seen = self._seen * older + max(finished, 0)
        self._seen_s = self._seen_s * older + elapsed_s
        per_minute = self._seen * 60 / self._seen_s
        self._chance = min(1.0, max(self._per_minute / per_minute, 1e-9)) if per_minute else 1.0
        # Drawn when there was more traffic, the next one may be very far. To draw again is fair, each time: what chance
        # has not picked so far says nothing about what it picks next. (To take the nearer of two draws would not be.)
        self.next_random = last + self._gap()

    def _gap(self) -> int:
        """How many transactions further chance picks the next: each has the same chance, drawn once for all."""
        if self._chance >= 1:
            return 1
        return 1 + int(math.log(1 - self._draw.random()) / math.log1p(-self._chance))
