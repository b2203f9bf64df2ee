"""What the clients saw, what the store holds and what the collector got, side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tests.faults.load import Route, Tally
from tests.receiver import RequestKey

Counts = Mapping[RequestKey, int]


@dataclass
class Verdict:
    """The end of one trial."""

    title: str  #: of the row, with all that it takes to repeat it
    tally: Tally
    stored: Counts | None  #: None: the subject has no store
    received: Counts | None  #: None: the trial has no collector
    agree: bool = True  #: whether store and collector must be equal: after an end in order
    troubles: list[str] = field(default_factory=list)  #: further ones, for a person

    @property
    def counted(self) -> Counts:
        """What the subject says: its store's counts, where it has a store."""
        found = self.received if self.stored is None else self.stored
        return {} if found is None else found

    @property
    def lost(self) -> int:
        """Requests of which a client has the whole answer, and that nobody counted."""
        return sum(max(0, count - self.counted.get(key, 0)) for key, count in self.tally.served.items())

    @property
    def twice(self) -> int:
        """What was counted beyond all that were served or cut off, per route: a request that was cut off has one.

        Unless it was broken off before the application could name it: then it is one of no route.
        """
        seen: Counter[Route] = Counter(self.tally.cut_off)
        for (method, route, _), count in self.tally.served.items():
            seen[method, route] += count
        counted: Counter[Route] = Counter()
        for (method, route, _), count in self.counted.items():
            counted[method, route] += count
        beyond = counted - seen
        nameless = sum(beyond.pop(route) for route in list(beyond) if route[1] is None)
        return beyond.total() + max(0, nameless - (seen - counted).total())

    def faults(self) -> list[str]:
        """All that is wrong; empty: exact."""
        found = [*self.tally.wrong, *self.troubles]
        if not self.tally.served:
            found.append("not one request was served: this shows nothing")
        if self.lost:
            found.append(f"{self.lost} requests were lost")
        if self.twice:
            found.append(f"{self.twice} requests were counted twice, or never made")
        if self.agree and self.stored is not None and self.received is not None:
            differing = {key for key in {*self.stored, *self.received} if self._differ(key)}
            if differing:
                found.append(f"store and collector differ in {len(differing)} series")
        return found

    def _differ(self, key: RequestKey) -> bool:
        assert self.stored is not None
        assert self.received is not None
        return self.stored.get(key, 0) != self.received.get(key, 0)

    def folded(self) -> Verdict:
        """By method and status alone, for a service whose routes nobody knows."""
        tally = Tally(refused=self.tally.refused, wrong=self.tally.wrong)
        tally.served.update(_folded(self.tally.served))
        for (method, _), count in self.tally.cut_off.items():
            tally.cut_off[method, None] += count
        stored, received = (None if it is None else _folded(it) for it in (self.stored, self.received))
        return replace(self, tally=tally, stored=stored, received=received)

    def check(self) -> None:
        """AssertionError that shows everything unless the trial was exact."""
        faults = self.faults()
        assert not faults, f"{'; '.join(faults)}\n{self}"

    def __str__(self) -> str:
        tally = self.tally
        rows = [
            f"{self.title}: {tally.sent} sent, {tally.refused} times refused",
            "| method, route, status | served | cut off | store | collector |",
            "| --- | ---: | ---: | ---: | ---: |",
        ]
        keys = {*tally.served, *(self.stored or {}), *(self.received or {})}
        shown_cut: set[Route] = set()
        for key in sorted(keys, key=str):
            route = key[:2]
            cut = tally.cut_off.get(route, 0) if route not in shown_cut else ""
            shown_cut.add(route)
            columns = (tally.served.get(key, 0), cut, _of(self.stored, key), _of(self.received, key))
            rows.append(f"| {' '.join(map(str, key))} | {' | '.join(map(str, columns))} |")
        for route, count in tally.cut_off.items():
            if route not in shown_cut:
                rows.append(f"| {' '.join(map(str, route))} – | 0 | {count} | – | – |")
        return "\n".join(rows)


def _folded(counts: Counts) -> Counts:
    found: Counter[RequestKey] = Counter()
    for (method, _, status), count in counts.items():
        found[method, None, status] += count
    return found


def _of(counts: Counts | None, key: RequestKey) -> object:
    return "–" if counts is None else counts.get(key, 0)
