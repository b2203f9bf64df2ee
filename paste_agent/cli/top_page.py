"""What `paste-agent top` shows: of snapshots, in the form that keys have given it. Touches no terminal."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from paste_agent.cli.style import count_of_errors, duration, numbers, one_line, printable, share_text
from paste_agent.cli.top_state import HELP, State
from paste_agent.live import Doing, Live, Pace, Worker, WorkerPace
from paste_agent.naming import readable
from paste_agent.recorder import layout
from paste_agent.settings import Settings
from paste_agent.stacks import parse, render
from paste_agent.store.inside_summary import latency, rfc3339
from paste_agent.wording import age_text, bytes_text, many, rate_text

if TYPE_CHECKING:
    from paste_agent.cli.terminal import Screen

#: Columns from which on there is room for all figures of a worker.
_WIDE = 120
_ROUTES = 5
_NOBODY = WorkerPace(0, None, None)
_DASH = Text("–", style="dim")


def lines(terminal: Screen, settings: Settings, live: Live, told: Pace, state: State) -> list[str]:
    """The whole screen. told: of the snapshots up to `live`."""
    width, height = terminal.size
    top = terminal.lines(_head(settings, live, told, state))
    foot = terminal.lines(_foot(state, width))
    room = max(1, height - len(top) - len(foot))
    if state.help:
        body = terminal.lines(_help())
    elif state.details:
        body = terminal.lines(details(settings, state.selected, live, told))
        state.scroll = min(state.scroll, max(0, len(body) - room))
        body = body[state.scroll :]
    else:
        body = _overview(terminal, settings, live, told, state, room)
    body = body[:room]
    return [*top, *body, *[""] * (room - len(body)), *foot]


def once(settings: Settings, live: Live, told: Pace, width: int) -> RenderableType:
    """The same without a screen: all workers and all routes."""
    state = State()
    parts: list[RenderableType] = [_head(settings, live, told, state), ""]
    parts.append(_workers(settings, workers(live, told, state), told, width) if live.workers else _nothing(live))
    if told.routes:
        parts += ["", _routes(told, len(told.routes), "")]
    return Group(*parts, *_broken(live))


def workers(live: Live, told: Pace, state: State) -> list[Worker]:
    """Those that are shown, in the order that was asked for."""
    wanted = state.filter.lower()
    found = [worker for worker in live.workers if not wanted or wanted in _searched(worker)]

    def of(worker: Worker) -> WorkerPace:
        return told.workers.get(worker.recorder, _NOBODY)

    orders: dict[str, Callable[[Worker], float]] = {
        "number": lambda worker: -(1 << 30) if worker.number else 0,
        # Whole seconds: lines that change places with every look cannot be read.
        "age": lambda worker: -(worker.doing[0].age_s // 1) if worker.doing else 0.0,
        "busy": lambda worker: -(of(worker).busy or 0.0),
        "memory": lambda worker: -worker.memory_bytes,
        "CPU": lambda worker: -(of(worker).cpu or 0.0),
        "throughput": lambda worker: -of(worker).requests,
    }
    return sorted(found, key=lambda worker: (orders[state.sort](worker), worker.number or 1 << 30, worker.pid))


def _searched(worker: Worker) -> str:
    words = [str(worker.pid)]
    for one in worker.doing:
        words += [one.request.method, _path(one), one.request.route, one.request.span]
    return "\n".join(words).lower()


# -- parts of the screen -------------------------------------------------------------------------------------------


def _head(settings: Settings, live: Live, told: Pace, state: State) -> Text:
    serving = [worker for worker in live.workers if worker.serving]
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(printable(settings.service_name), style="bold")
    text.append(f"  {many(len(serving), 'worker')}, {sum(len(worker.doing) for worker in live.workers)} in flight")
    if told.seconds:
        text.append(f"  {_rate(told.requests, told.seconds)}")
        shares = [told.workers[worker.recorder].busy for worker in serving]
        known = [share for share in shares if share is not None]
        if known:
            text.append(f"  busy {share_text(sum(known) / len(known))}")
        if told.requests:
            style = "red" if told.errors else ""
            text.append("  errors ").append(share_text(told.errors / told.requests), style=style)
        if told.queue.count:
            text.append(f"  queue p95 {duration(told.queue.quantile_ns(0.95) / 1e9)}")
    text.append(f"  {time.strftime('%H:%M:%S', time.gmtime(live.at_s))}Z", style="dim")
    if state.held:
        text.append("  held", style="bold yellow")
    return text


def _foot(state: State, width: int) -> Text:
    if state.is_typing:
        text = Text.assemble(("/", "bold"), printable(state.filter), ("▏", "bold"), ("  Enter, Esc", "dim"))
    elif state.details:
        text = Text("Esc back  ↑↓ scroll  p hold  q end", style="dim")
    elif state.help:
        text = Text("h back  q end", style="dim")
    else:
        text = Text(f"↑↓ Enter details  / filter  s sort: {state.sort}  p hold  h help  q end", style="dim")
        if state.filter:
            text.append(f"  only {state.filter!r}, Esc: all", style="yellow")
    text.no_wrap, text.overflow = True, "ellipsis"
    text.truncate(width)
    return text


def _help() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for keys, what in HELP:
        table.add_row(keys, what)
    return table


def _overview(terminal: Screen, settings: Settings, live: Live, told: Pace, state: State, room: int) -> list[str]:
    """Workers, and below them the slowest routes; so many lines at the most."""
    width = terminal.size[0]
    below: list[str] = [""]
    if (routes := _routes(told, _ROUTES, state.filter)).row_count:
        below += terminal.lines(routes)
    for note in _broken(live):
        below += terminal.lines(note)
    shown = workers(live, told, state)
    if live.why_not or not shown:
        nothing = _nothing(live) if not live.workers or live.why_not else Text("None of the workers has that.", "dim")
        return [*terminal.lines(nothing), *below]
    # One line is the heading; where it is narrow the routes have to go.
    fitting = room - 1 - len(below)
    if fitting < min(len(shown), 3):
        below, fitting = [], room - 1
    fitting = max(1, fitting)
    chosen = state.chosen(shown)
    first = min(max(0, shown.index(chosen) - fitting // 2), max(0, len(shown) - fitting))
    visible = shown[first : first + fitting]
    return [*terminal.lines(_workers(settings, visible, told, width, chosen, state.sort)), *below]


def _nothing(live: Live) -> Text:
    if live.why_not:
        return Text(printable(live.why_not, 500), style="yellow")
    return Text("No worker serves. One is seen from its first request on.", style="yellow")


def _rate(count: int, seconds: float) -> str:
    return rate_text(count, seconds) if count else "0/s"


def _broken(live: Live) -> list[Text]:
    return [Text(printable(line, 500), style="yellow") for line in live.broken]


def _table() -> Table:
    return Table(box=None, pad_edge=False, expand=True, header_style="bold dim", padding=(0, 1))


def _workers(
    settings: Settings,
    shown: Sequence[Worker],
    told: Pace,
    width: int,
    chosen: Worker | None = None,
    sort: str | None = None,
) -> Table:
    """A line a worker, with the oldest of its requests."""
    table = _table()
    wide = width >= _WIDE
    headings = {"number": "#", "pid": "pid", "busy": "busy", "memory": "memory"}
    if wide:
        headings |= {"CPU": "CPU", "throughput": "rate", "requests": "requests"}
    headings |= {"age": "for"}
    numbers(table, *(f"{text}▾" if name == sort else text for name, text in headings.items()))
    table.add_column("request", no_wrap=True, overflow="ellipsis", ratio=3)
    table.add_column("in", no_wrap=True, overflow="ellipsis", ratio=2)
    for worker in shown:
        of = told.workers.get(worker.recorder, _NOBODY)
        first = worker.doing[0] if worker.doing else None
        more = []
        if wide:
            cpu = _DASH if of.cpu is None else Text(share_text(of.cpu))
            rate = Text(_rate(of.requests, told.seconds))
            more = [cpu, rate, _DASH if worker.requests is None else Text(f"{worker.requests:,}")]
        table.add_row(
            str(worker.number or "–"),
            str(worker.pid),
            _DASH if of.busy is None else share_text(of.busy),
            bytes_text(worker.memory_bytes),
            *more,
            _DASH if first is None else _age(settings, worker, first),
            _request(worker, first),
            Text(one_line(first.request.span), style="cyan") if first is not None and first.request.span else _DASH,
            style="reverse" if worker is chosen else "",
        )
    return table


def _request(worker: Worker, first: Doing | None) -> Text:
    if first is None:
        return Text("idle" if worker.serving else "does not serve", style="dim")
    text = Text(_what(first))
    if len(worker.doing) > 1:
        text = Text.assemble((f"+{len(worker.doing) - 1} ", "yellow"), text)
    if first.request.route and first.request.route != _path(first):
        text.append(f"  {one_line(first.request.route)}", style="dim")
    return text


def _age(settings: Settings, worker: Worker, one: Doing) -> Text:
    left_s = worker.timeout_in_s
    if left_s is not None and left_s < worker.timeout_s / 2:
        return Text(duration(one.age_s), style="bold red")
    return Text(duration(one.age_s), style="yellow" if one.age_s >= settings.slow_request_s else "")


def _path(one: Doing) -> str:
    return readable(one.request.path) if one.request.is_request else one.request.path


def _what(one: Doing) -> str:
    """Such as `GET /items/17`; what a client sent is made printable."""
    return one_line(f"{one.request.method if one.request.is_request else 'task'} {_path(one)}")


def _routes(told: Pace, limit: int, wanted: str) -> Table:
    """The slowest routes of the time that is looked at."""
    table = _table()
    table.add_column(f"slowest routes, last {told.seconds:.0f} s", no_wrap=True, overflow="ellipsis", ratio=1)
    numbers(table, "rate", "errors", "p50", "p95", "max")
    ranked = sorted(told.routes, key=lambda route: -route.total.quantile_ns(0.95))
    for route in [route for route in ranked if wanted.lower() in route.name.lower()][:limit]:
        total = route.total
        table.add_row(
            Text(printable(route.name)),
            _rate(total.count, told.seconds),
            count_of_errors(route.errors),
            *(duration(ns / 1e9) for ns in (total.quantile_ns(0.5), total.quantile_ns(0.95), total.max_ns)),
        )
    return table


# -- one worker ----------------------------------------------------------------------------------------------------


def details(settings: Settings, recorder: str, live: Live, told: Pace) -> RenderableType:
    """All that is known of a worker, with each of its requests and its stack. recorder: its id."""
    worker = next((worker for worker in live.workers if worker.recorder == recorder), None)
    if worker is None:
        return Text("It has ended. `paste-agent postmortem` tells of those that died.", style="yellow")
    of = told.workers.get(worker.recorder, _NOBODY)
    who = f"Worker {worker.number}" if worker.number else "A worker" if worker.serving else "A process"
    facts = [f"pid {worker.pid}", f"up {age_text(time.time() - worker.opened_at_s)}"]
    if worker.requests is not None:
        facts.append(f"{many(worker.requests, 'request')} served")
    facts += [f"{bytes_text(worker.memory_bytes)} of memory", many(worker.threads, "thread")]
    if of.busy is not None:
        facts.append(f"busy {share_text(of.busy)}")
    if of.cpu is not None:
        facts.append(f"CPU {share_text(of.cpu)}")
    if told.seconds:
        facts.append(_rate(of.requests, told.seconds))
    parts: list[RenderableType] = [Text.assemble((who, "bold"), f", {', '.join(facts)}")]
    if worker.timeout_in_s is not None:
        left = f"gunicorn's timeout of {worker.timeout_s:g} s: a sync worker has {duration(worker.timeout_in_s)} left"
        parts.append(Text(left, style="yellow" if worker.timeout_in_s < worker.timeout_s / 2 else "dim"))
    if not worker.doing:
        parts.append(Text("\nNothing is in flight.", style="dim"))
    for one in worker.doing:
        parts += ["", *_of_request(settings, worker, one)]
    return Group(*parts)


def _of_request(settings: Settings, worker: Worker, one: Doing) -> list[RenderableType]:
    request = one.request
    head = Text.assemble((_what(one), "bold"), "  for ", _age(settings, worker, one))
    facts = [("route", request.route), ("in", request.span), ("trace", _trace_id(one))]
    parts: list[RenderableType] = [head]
    parts += [Text(f"  {name}  {one_line(value)}", style="cyan") for name, value in facts if value]
    if request.answered_ns:
        parts.append(Text("  its answer is with the server, or a part of it", style="dim"))
    if request.stack:
        age = "" if one.stack_age_s is None else f", taken {duration(one.stack_age_s)} ago"
        parts += [Text(f"  stack{age}, the innermost last", style="dim"), Text(printable_lines(request.stack))]
        return parts
    after = duration(settings.slow_request_s)
    parts.append(Text(f"  no stack yet: the agent takes one of what is slower than {after}", style="dim"))
    if shutil.which("py-spy"):
        parts.append(Text(f"  `py-spy dump --pid {worker.pid}` shows where its threads are now", style="dim"))
    return parts


def printable_lines(stack: str) -> str:
    """A stack with its lines of source, each such that a terminal obeys nothing in it."""
    return "\n".join(printable(line, 500) for line in render(parse(stack)).splitlines())


def _trace_id(one: Doing) -> str:
    """That of the traceparent that it came with, else the one that it was given."""
    parts = one.request.traceparent.split("-")
    return parts[1] if len(parts) > 2 else layout.minted_ids(one.recorder, one.request.number)[0].hex()


# -- for programs --------------------------------------------------------------------------------------------------


def as_object(settings: Settings, live: Live, told: Pace) -> dict[str, Any]:
    """The object that `--once --json` prints: a stable interface, fields are added and not renamed."""
    return {
        "service": settings.service_name,
        "at": rfc3339(live.at_s),
        "seconds": round(told.seconds, 3),
        "in_flight": sum(len(worker.doing) for worker in live.workers),
        "requests": told.requests,
        "errors": told.errors,
        "queue": latency(told.queue),
        "routes": [{"name": route.name, "errors": route.errors, **latency(route.total)} for route in told.routes],
        "workers": [_worker_object(worker, told.workers[worker.recorder]) for worker in live.workers],
        "broken": list(live.broken),
    }


def _worker_object(worker: Worker, of: WorkerPace) -> dict[str, Any]:
    return {
        "number": worker.number or None,
        "pid": worker.pid,
        "serving": worker.serving,
        "since": rfc3339(worker.opened_at_s),
        "requests": worker.requests,
        "finished": of.requests,
        "busy": None if of.busy is None else round(of.busy, 4),
        "cpu": None if of.cpu is None else round(of.cpu, 4),
        "memory_bytes": worker.memory_bytes,
        "threads": worker.threads,
        "concurrency": worker.concurrency,
        "timeout_s": worker.timeout_s or None,
        "timeout_in_s": None if worker.timeout_in_s is None else round(worker.timeout_in_s, 3),
        "in_flight": [_request_object(one) for one in worker.doing],
    }


def _request_object(one: Doing) -> dict[str, Any]:
    request = one.request
    return {
        "task": None if request.is_request else request.path,
        "method": request.method if request.is_request else None,
        "path": _path(one) if request.is_request else None,
        "route": request.route or None,
        "span": request.span or None,
        "age_s": round(one.age_s, 6),
        "answered": bool(request.answered_ns),
        "trace_id": _trace_id(one),
        "stack": [frame._asdict() for frame in parse(request.stack)],
        "stack_age_s": None if one.stack_age_s is None else round(one.stack_age_s, 6),
    }
