"""Which errors count: those that an operator expects, or does not want to see at all, do not."""

from __future__ import annotations

from collections.abc import Collection

from paste_agent.raised import type_name

COUNTS, EXPECTED, IGNORED = range(3)


class ErrorRules:
    """Rules of one service, by class and by status. A class stands for its subclasses too."""

    __slots__ = ("_expected", "_expected_statuses", "_ignored", "_ignored_statuses", "_known", "_none")

    def __init__(
        self,
        expected: Collection[str] = (),
        ignored: Collection[str] = (),
        expected_statuses: Collection[int] = (),
        ignored_statuses: Collection[int] = (),
    ) -> None:
        """expected, ignored: `module.Class`, as `error.type` has it; a builtin without its module."""
        self._expected = frozenset(expected)
        self._ignored = frozenset(ignored)
        self._expected_statuses = frozenset(expected_statuses)
        self._ignored_statuses = frozenset(ignored_statuses)
        self._none = not (self._expected or self._ignored)
        self._known: dict[type[BaseException], int] = {}

    def verdict(self, error: BaseException) -> int:
        """COUNTS, EXPECTED: seen, and no failure, or IGNORED: not even seen."""
        if self._none:
            return COUNTS
        kind = type(error)
        verdict = self._known.get(kind)
        if verdict is None:
            names = {type_name(one) for one in kind.__mro__}
            verdict = IGNORED if names & self._ignored else EXPECTED if names & self._expected else COUNTS
            if len(self._known) < 1000:  # classes that are made as one goes, no two alike
                self._known[kind] = verdict
        return verdict

    def verdict_of_status(self, code: int) -> int:
        """The same for a response, whether an exception led to it or not."""
        if code in self._ignored_statuses:
            return IGNORED
        return EXPECTED if code in self._expected_statuses else COUNTS
