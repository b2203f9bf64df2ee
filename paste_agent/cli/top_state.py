"""What `paste-agent top` has been told by keys. Knows no terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from paste_agent.live import Worker

#: Orders of workers, and the key of each.
SORTS: Mapping[str, str] = {
    "n": "number",
    "a": "age",
    "b": "busy",
    "m": "memory",
    "c": "CPU",
    "t": "throughput",
}
HELP = (
    ("↑ ↓", "choose a worker; in its details, scroll"),
    ("Enter", "details of the worker: all that it works on, with stacks; again, or Esc: back"),
    ("s", "next order: " + ", ".join(SORTS.values())),
    (" ".join(SORTS), "that order at once, by its first letter"),
    ("/", "show only what has a text in its request, route, span or pid; Enter ends it, Esc takes it back"),
    ("p, space", "hold what is shown, and go on"),
    ("h, ?", "this help, and back"),
    ("q, Ctrl-C", "end"),
)


class State:
    """How it looks, as the keys have made it."""

    def __init__(self) -> None:
        self.ended = False
        self.sort = "age"
        self.filter = ""
        self.is_typing = False  #: the filter
        self.selected = ""  #: id of a recorder; one that is not shown any more counts as the first
        self.details = False
        self.help = False
        self.scroll = 0  #: lines of the details that are above the screen
        self.held = False

    def press(self, key: str, shown: Sequence[Worker], height: int) -> None:
        """One key. shown: workers in the order in which they are. height: of the screen, lines."""
        if self.is_typing:
            self._type(key)
        elif key == "q":
            self.ended = True
        elif key in ("h", "?"):
            self.help = not self.help
        elif self.help:
            self.help = key != "escape"
        elif key in ("p", " "):
            self.held = not self.held
        elif key == "/":
            self.is_typing, self.details = True, False
        elif key == "s":
            orders = list(SORTS.values())
            self.sort = orders[(orders.index(self.sort) + 1) % len(orders)]
        elif key in SORTS:
            self.sort = SORTS[key]
        elif key == "enter":
            self.selected = self.chosen(shown).recorder if shown else ""
            self.details, self.scroll = bool(shown) and not self.details, 0
        elif key in ("escape", "left"):
            if not self.details:
                self.filter = ""
            self.details = False
        else:
            self._move({"up": -1, "k": -1, "down": 1, "j": 1, "page up": 2 - height, "page down": height - 2,
                        "home": -(1 << 20), "end": 1 << 20}.get(key, 0), shown)  # fmt: skip

    def chosen(self, shown: Sequence[Worker]) -> Worker:
        """The worker that is chosen, of those that are shown, of which there must be one."""
        return next((worker for worker in shown if worker.recorder == self.selected), shown[0])

    def _type(self, key: str) -> None:
        if key in ("enter", "escape"):
            self.is_typing = False
            self.filter = self.filter if key == "enter" else ""
        elif key == "backspace":
            self.filter = self.filter[:-1]
        elif len(key) == 1:
            self.filter += key

    def _move(self, steps: int, shown: Sequence[Worker]) -> None:
        if self.details:
            self.scroll = max(0, self.scroll + steps)
        elif shown and steps:
            place = list(shown).index(self.chosen(shown)) + steps
            self.selected = shown[min(max(0, place), len(shown) - 1)].recorder
