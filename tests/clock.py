"""A clock for what takes its clock as an argument: nothing that it times depends on the machine."""

from __future__ import annotations

WALL = 4_000_000_000.0  # later than the start of any store that is made today


class Clock:
    """Stands still but for what is slept, and for `tick` a look."""

    def __init__(self, tick: float = 0.0) -> None:
        self.now = 1000.0
        self.tick = tick
        self.slept: list[float] = []
        self.stop = False

    def __call__(self) -> float:
        self.now += self.tick
        return self.now

    def wall(self) -> float:
        return WALL + self.now - 1000.0

    def wall_ns(self) -> int:
        return int(self.wall() * 1e9)

    def sleep(self, seconds: float) -> bool:
        self.slept.append(seconds)
        self.now += seconds
        return self.stop
