"""`paste-agent top` without a server: keys, sizes, forged recorders, and what it refuses."""

from __future__ import annotations

import io
import json
import os
import random
from pathlib import Path

import pytest
from rich.console import Console

from paste_agent.cli import top_page
from paste_agent.cli.terminal import Screen, _split
from paste_agent.cli.top_state import SORTS, State
from paste_agent.live import Live, pace, snapshot
from paste_agent.recorder import layout
from paste_agent.recorder.writer import Recorder
from paste_agent.settings import Settings
from paste_agent.store.store import Store
from tests.commands import Run, ini_of, refused, shell
from tests.recorders import (
    forged,
    in_flight,
    leading,
    leave,
    open_recorder,
    series_of,
    since,
    written,
)

NASTY = "\x1b]0;pwned\x07\x1b[2J\r\n\u202e"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    return shell(capsys, monkeypatch, tmp_path)


@pytest.fixture
def screen() -> Screen:
    """One of 80 columns and 24 lines that nobody sees."""
    return Screen(Console(file=io.StringIO(), width=80, height=24, force_terminal=True, highlight=False), -1)


def worker(directory: Path, *ages_s: float, path: bytes = b"/", memory_mib: int = 50) -> Recorder:
    recorder = open_recorder(directory)
    recorder.set_word(layout.W_SERVING, 1)
    recorder.set_word(layout.W_MEMORY_BYTES, memory_mib << 20)
    for age_s in ages_s:
        in_flight(recorder, since(age_s), path=path)
    return recorder


# -- keys ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("q", ["q"]),
        ("\x1b[A\x1b[B\r", ["up", "down", "enter"]),
        ("\x1b", ["escape"]),
        ("\x1b\x1b[A", ["escape", "up"]),
        ("\x1b[5~\x1b[6~", ["page up", "page down"]),
        ("\x1b[1;5Cx", ["x"]),  # Ctrl and an arrow: nothing here
        ("\x1b[200~ab\x1b[201~", ["a", "b"]),  # pasted
        ("/é\x7f\n", ["/", "é", "backspace", "enter"]),
        ("\x00\x01", []),
        ("\x1b[", []),
    ],
)
def test_what_a_terminal_sends(text: str, keys: list[str]) -> None:
    assert _split(text) == keys


def pressed(state: State, keys: str | list[str], lives: list[Live]) -> State:
    for key in keys:
        state.press(key, top_page.workers(lives[-1], pace(lives), state), 24)
    return state


def test_orders(found: Settings, directory: Path) -> None:
    young, old, idle = worker(directory, 3, memory_mib=90), worker(directory, 60), worker(directory, memory_mib=20)
    lives = [snapshot(found)]
    state = State()

    def order() -> list[str]:
        return [one.recorder for one in top_page.workers(lives[-1], pace(lives), state)]

    assert order() == [old.id, young.id, idle.id]
    pressed(state, "m", lives)
    assert order() == [young.id, old.id, idle.id]
    seen = {pressed(state, "s", lives).sort for _ in SORTS}
    assert seen == set(SORTS.values())


def test_the_choice_stays_with_its_worker(found: Settings, directory: Path) -> None:
    old, young = worker(directory, 60), worker(directory, 3)
    lives = [snapshot(found)]
    state = pressed(State(), ["down"], lives)
    assert state.chosen(top_page.workers(lives[-1], pace(lives), state)).recorder == young.id
    pressed(state, "n", lives)
    assert state.chosen(top_page.workers(lives[-1], pace(lives), state)).recorder == young.id
    pressed(state, ["a", "up", "up", "enter"], lives)
    assert (state.details, state.selected) == (True, old.id)
    old.set_word(layout.W_CLOSED, 1)
    lives = [snapshot(found)]
    assert pressed(state, "p", lives).held
    assert not pressed(state, " ", lives).held


def test_a_worker_that_ended_while_it_is_looked_at(found: Settings, directory: Path, screen: Screen) -> None:
    ended, _ = worker(directory, 60), worker(directory)
    state = pressed(State(), ["enter"], [snapshot(found)])
    ended.set_word(layout.W_CLOSED, 1)
    assert "It has ended." in "\n".join(top_page.lines(screen, found, snapshot(found), pace([]), state))


def test_keys_when_nothing_is_shown(found: Settings, directory: Path, screen: Screen) -> None:
    lives = [snapshot(found)]
    state = pressed(State(), ["up", "down", "enter", "end", "s", "x", "right", "escape", "tab"], lives)
    assert not state.details
    assert "No worker serves." in "\n".join(top_page.lines(screen, found, lives[-1], pace(lives), state))
    assert pressed(state, "hxqq", lives).ended


@pytest.mark.parametrize(
    "wanted", ["/items/7", "select stock", str(os.getpid()), "/ITEMS/{id}"], ids=["path", "span", "pid", "route"]
)
def test_the_filter_looks_everywhere(found: Settings, directory: Path, wanted: str) -> None:
    one = worker(directory)
    at = in_flight(one, since(5), path=b"/items/7")
    one.set_route(at, 1, "/items/{id}")
    one.enter_span(at, b"SELECT stock")
    lives = [snapshot(found)]
    state = pressed(State(), ["/", *wanted, "enter"], lives)
    assert [worker.recorder for worker in top_page.workers(lives[-1], pace(lives), state)] == [one.id]
    pressed(state, ["/", "#", "enter"], lives)
    assert top_page.workers(lives[-1], pace(lives), state) == []
    pressed(state, ["escape"], lives)
    assert len(top_page.workers(lives[-1], pace(lives), state)) == 1


# -- sizes, and what nobody should trust -----------------------------------------------------------------------------


@pytest.mark.parametrize("width", [20, 80, 200])
@pytest.mark.parametrize("height", [1, 3, 10, 50])
def test_it_fits(found: Settings, directory: Path, width: int, height: int) -> None:
    kept = [worker(directory, *range(place), path=b"/long" * 20) for place in range(12)]
    for one in kept:
        leave(one, series_of(one, "/route" * 20))
    small = Screen(Console(file=io.StringIO(), width=width, height=height, highlight=False), -1)
    lives = [snapshot(found)]
    lives.append(snapshot(found, lives[-1]))
    for keys in ([], ["end"], ["enter"], ["end", "h"], ["/", "x"]):
        shown = top_page.lines(small, found, lives[-1], pace(lives), pressed(State(), keys, lives))[:height]
        assert len(shown) <= height
        assert max(map(len, shown)) <= width


def nasty(directory: Path) -> Recorder:
    recorder = worker(directory)
    raw = NASTY.encode()
    at = in_flight(recorder, since(5), method=raw[:16], path=raw, traceparent=b"00-" + raw)
    recorder.set_route(at, 1, NASTY)
    recorder.enter_span(at, raw)
    recorder.set_stack(at, 1, since(1), f'  File "{NASTY[:10]}", line 7, in x{NASTY}\n  File "y", line 1, in f\n')
    leave(recorder, series_of(recorder, NASTY))
    return recorder


def test_nothing_that_a_client_sent_reaches_the_terminal(found: Settings, directory: Path) -> None:
    kept = nasty(directory)
    leave(kept, series_of(kept, NASTY))
    before = snapshot(found)
    leave(kept, series_of(kept, NASTY))
    lives = [before, snapshot(found, before)]
    plain = Screen(Console(file=io.StringIO(), width=150, height=50, highlight=False), -1)
    for keys in ([], ["enter"], ["/", "f", "enter"]):
        shown = "\n".join(top_page.lines(plain, found, lives[-1], pace(lives), pressed(State(), keys, lives)))
        assert [char for char in shown if not char.isprintable() and char != "\n"] == []
    assert json.loads(json.dumps(top_page.as_object(found, lives[-1], pace(lives))))["in_flight"] == 1


def test_forged_recorders_break_nothing(found: Settings, directory: Path, screen: Screen) -> None:
    chance = random.Random(7)
    for _ in range(150):
        slot = chance.randbytes(512)
        number = slot[8:16]
        slots = [slot[:264] + number + slot[272:], bytes(7) + b"\1" + slot[8:264] + number + slot[272:]]
        data = forged(
            pid=os.getpid(),
            words={place: chance.getrandbits(chance.choice((3, 64))) for place in range(1, 28)},
            slots=slots,
            stacks=[number + chance.randbytes(4088)] * 2,
            series=[(place + 1).to_bytes(4, "little") + chance.randbytes(60) for place in range(4)],
            records=[
                (
                    chance.randrange(5),
                    0,
                    chance.getrandbits(32),
                    chance.getrandbits(50),
                    chance.getrandbits(62),
                    place + 1,
                )
                for place in range(16)
            ],
        )
        written(directory / f"7-1{layout.SUFFIX}", bytes(data))
        lives = [snapshot(found)]
        lives.append(snapshot(found, lives[-1]))
        for keys in ([], ["enter"]):
            top_page.lines(screen, found, lives[-1], pace(lives), pressed(State(), keys, lives))
        json.dumps(top_page.as_object(found, lives[-1], pace(lives)))
        assert pace(lives).seconds > 0


# -- the command ---------------------------------------------------------------------------------------------------


def test_once(run: Run, tmp_path: Path, found: Settings, directory: Path) -> None:
    recorder = worker(directory, 5, path=b"/slow")
    with leading(tmp_path, recorder) as lead:
        lead.drain()
    written(directory / f"7-9{layout.SUFFIX}", b"no recorder")
    ini = ini_of(tmp_path, "service_name = shop")
    result = run("top", ini, "--once", "--interval", "0.2")
    assert (result.status, result.errors) == (0, "")
    assert "GET /slow" in result.output
    assert "50.0 MiB" in result.output
    assert "shorter than its header; skipped" in result.output
    told = json.loads(run("top", ini, "--once", "--interval", "0.2", "--json").output)
    assert [(one["number"], one["pid"]) for one in told["workers"]] == [(1, os.getpid())]
    assert len(told["broken"]) == 1


def test_what_cannot_be_looked_at_is_one_line(run: Run, tmp_path: Path) -> None:
    refused(run("top", ini_of(tmp_path), "--once"), "shop", "does not run on this host")
    refused(run("top", tmp_path / "nowhere.ini", "--once"), "no such file")
    Store(str(tmp_path / "shop.sqlite")).close()
    refused(run("top", tmp_path / "shop.sqlite", "--once"), "give the service's ini")


@pytest.mark.parametrize("options", [[], ["--json"], ["--once", "--interval", "0"]])
def test_wrong_usage(run: Run, tmp_path: Path, options: list[str]) -> None:
    assert run("top", ini_of(tmp_path), *options).status == 2
