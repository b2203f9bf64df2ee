"""`paste-agent top`: what the workers are doing now, live in a terminal, or once for a script."""

from __future__ import annotations

import json
import sys
import time

import click

from paste_agent.cli import top_page
from paste_agent.cli.style import console_of
from paste_agent.cli.target import service_of
from paste_agent.cli.top_state import State
from paste_agent.errors import AgentError
from paste_agent.live import Live, pace, snapshot
from paste_agent.settings import Settings

#: Rates, busy shares and routes are of so long.
WINDOW_S = 30.0


@click.command(short_help="What the workers are doing now, live.")
@click.argument("path", metavar="INI", default="production.ini")
@click.option("--service", help="Which service, when the ini measures several.")
@click.option(
    "--interval",
    type=click.FloatRange(0.2, 60),
    default=1.0,
    show_default=True,
    help="Seconds from one look to the next.",
)
@click.option("--once", is_flag=True, help="Look twice, an interval apart, print that and end.")
@click.option("--json", "as_json", is_flag=True, help="With --once: print one JSON object instead.")
def command(path: str, service: str | None, interval: float, once: bool, as_json: bool) -> None:
    """Show each worker with the request that it works on, for how long and where in it; requests in flight, throughput,
    busy share, queue time and the slowest routes. Looks into the workers' flight recorders, and asks nothing of them.

    Keys: arrows choose a worker, Enter shows it with its stack, / filters, s sorts, q ends; h lists all.
    """
    if as_json and not once:
        raise click.UsageError("--json prints one object: use it with --once")
    if not once and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError("this is no terminal: use --once")
    found = service_of(path, service)
    first = _snapshot(found, None)
    if not once:
        _watch(found, first, interval)
        return
    time.sleep(interval)
    second = _snapshot(found, first)
    told = pace([first, second])
    if as_json:
        click.echo(json.dumps(top_page.as_object(found, second, told), indent=2))
    else:
        console = console_of()
        console.print(top_page.once(found, second, told, console.width))


def _snapshot(found: Settings, before: Live | None) -> Live:
    live = snapshot(found, before)
    if live.why_not:
        raise AgentError(f"{found.service_name}: {live.why_not}")
    return live


def _watch(found: Settings, first: Live, interval: float) -> None:
    from paste_agent.cli.terminal import screen  # only POSIX has it

    console = console_of()
    state = State()
    lives = [first]
    due = time.monotonic() + interval
    told = pace(lives)
    shown = (first, told)
    with screen(console) as terminal:
        try:
            while not state.ended:
                shown = shown if state.held else (lives[-1], told)
                terminal.show(top_page.lines(terminal, found, *shown, state))
                for key in terminal.keys(max(0.0, due - time.monotonic())):
                    state.press(key, top_page.workers(*shown, state), terminal.size[1])
                if time.monotonic() >= due:
                    due = time.monotonic() + interval
                    lives.append(snapshot(found, lives[-1]))
                    while len(lives) > 2 and lives[-1].at_ns - lives[1].at_ns >= WINDOW_S * 1e9:
                        del lives[0]
                    told = pace(lives)
        except (KeyboardInterrupt, EOFError):
            pass  # as good as q
