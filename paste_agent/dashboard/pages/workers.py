"""Workers: those that serve, those that died, and the account of each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from paste_agent.aggregate import BOOT_DURATION, REQUEST_DURATION, WORKER_LOST
from paste_agent.dashboard.charts import Line, line_chart, share_bar
from paste_agent.dashboard.html import Child, Markup, join, tag
from paste_agent.dashboard.pages.common import busy_seconds, counted, latency_chart, more_note, number_form
from paste_agent.dashboard.view import (
    Column,
    Page,
    View,
    charts,
    code_block,
    empty,
    figures,
    section,
    stack_text,
    table,
    time_tag,
)
from paste_agent.live import RATE_S, Rate, doing, rates
from paste_agent.metrics import WORKER_RECYCLED
from paste_agent.naming import readable
from paste_agent.postmortem import Lost, Postmortem, of_summary, short_id
from paste_agent.recorder.layout import (
    W_CONCURRENCY,
    W_CPU_SYSTEM_NS,
    W_CPU_USER_NS,
    W_FILE_DESCRIPTORS,
    W_MEMORY_BYTES,
    W_RECYCLED,
    W_THREADS,
)
from paste_agent.stacks import application_frame, parse
from paste_agent.store.store import ENDED, LOST, RUNNING, PostmortemRow, RecorderRow
from paste_agent.wording import age_text, bytes_text, duration, many, one_line, rate_text, share_text

_NS = 1_000_000_000
_ENDED_SHOWN = 20
_LOST_SHOWN = 50
_NOW_SHOWN = 50
_ID = re.compile(r"[0-9A-Za-z_.-]{1,100}")
#: A row that was not written for so long belongs to a service that does not run. s
_STALE_S = 30.0
#: What a process has done in less says nothing of its rate. s
_SHORTEST_RATE_S = 1.0


def workers(view: View) -> Page:
    rows = view.store.recorders()
    running = [row for row in rows if row.state == RUNNING and row.serving]
    ended = sorted((row for row in rows if row.state != RUNNING and row.serving), key=lambda row: -row.seen_at)
    lost = view.store.postmortems(view.span.start_s, view.span.end_s + 1, _LOST_SHOWN)
    body: list[Child] = [_figures(view, running)]
    if running:
        body.append(_running(view, running))
    else:
        body.append(empty("No worker serves.", "Start the service; a worker appears here with its first request."))
    body.append(_now(view, {row.id: row for row in rows}))
    body.append(_charts(view))
    body.append(_lost(view, lost))
    if ended:
        body.append(_ended(ended[:_ENDED_SHOWN]))
    return Page("Workers", join(body), "/workers")


def _figures(view: View, running: Sequence[RecorderRow]) -> Markup:
    counters = view.store.counters()
    busy = share_text(sum(row.busy for row in running) / len(running)) if running else "–"
    died = counted(counters, WORKER_LOST)
    return figures(
        ("serving", f"{len(running):,}", ""),
        ("in flight", f"{sum(row.in_flight for row in running):,}", ""),
        ("busy", busy, ""),
        ("memory", bytes_text(sum(_word(row, W_MEMORY_BYTES) for row in running)) if running else "–", ""),
        ("lost, ever", f"{died:,}", "bad" if died else ""),
        ("recycled, ever", f"{counted(counters, WORKER_RECYCLED):,}", ""),
    )


def _word(row: RecorderRow, place: int) -> int:
    return row.words[place] if len(row.words) > place else 0


def _running(view: View, running: Sequence[RecorderRow]) -> Markup:
    cells: list[list[Child]] = []
    stale = False
    lately = {} if view.settings is None else rates(view.settings)  # of a store alone nobody knows where they are
    for row in running:
        silent_s = view.span.now_s - row.seen_at
        stale = stale or silent_s > _STALE_S
        cpu_s = (_word(row, W_CPU_USER_NS) + _word(row, W_CPU_SYSTEM_NS)) / _NS
        cells.append([
            str(row.worker), str(row.pid), age_text(view.span.now_s - row.opened_at), f"{row.requests:,}",
            *([_rate_cell(lately.get(row.id))] if lately else []),
            f"{row.in_flight:,} of {max(1, _word(row, W_CONCURRENCY)):,}",
            join((share_bar(row.busy), tag("span", share_text(row.busy)))),
            bytes_text(_word(row, W_MEMORY_BYTES)), duration(cpu_s), f"{_word(row, W_THREADS):,}",
            f"{_word(row, W_FILE_DESCRIPTORS):,}",
            tag("span", f"{age_text(silent_s)} ago", class_="warn" if silent_s > _STALE_S else "dim"),
        ])  # fmt: skip
    columns = (
        Column("worker"), Column("pid"), Column("up"), Column("requests"), *([Column("rate")] if lately else []),
        Column("in flight"), Column("busy", css="bar-cell"), Column("memory"), Column("CPU time"), Column("threads"),
        Column("files"), Column("last seen"),
    )  # fmt: skip
    note = f"The rate is of the last {RATE_S:g} seconds." if lately else None
    if stale:
        note = (
            "Nobody has told of some of them lately: the service may have been killed. `paste-agent report` of its ini"
            " settles that."
        )
    return section("Serving", table("Workers that serve", columns, cells), note=note)


def _rate_cell(rate: Rate | None) -> Child:
    if rate is None or rate.seconds < _SHORTEST_RATE_S:
        return tag("span", "–", class_="dim")
    return rate_text(rate.requests, rate.seconds) if rate.requests else "0/s"


def _now(view: View, rows: Mapping[str, RecorderRow]) -> Child:
    """What is in flight at this moment, from the processes' own recorders."""
    if view.settings is None:
        return None  # of a store alone nobody knows where they are
    found, why_not = doing(view.settings)
    if why_not:
        return section("Now", tag("p", f"Not known: {why_not}.", class_="dim"))
    if not found:
        return section("Now", tag("p", "Nothing is in flight.", class_="dim"))
    cells: list[list[Child]] = []
    for one in found[:_NOW_SHOWN]:
        request = one.request
        row = rows.get(one.recorder)
        path = readable(request.path) if request.is_request else request.path
        what: list[Child] = [one_line(f"{request.method if request.is_request else 'task'} {path}", 200)]
        if request.route and request.route != path:
            what.append(tag("small", one_line(request.route, 120), class_="dim below"))
        if request.stack:
            when = "" if one.stack_age_s is None else f", {duration(one.stack_age_s)} ago"
            stack = tag("pre", request.stack, tabindex="0")
            what.append(tag("details", tag("summary", f"stack{when}"), stack))
        elif request.answered_ns:
            what.append(tag("small", "answered", class_="dim below"))
        slow = one.age_s >= view.settings.slow_request_s
        cells.append([
            str(row.worker) if row is not None and row.worker else "–", str(one.pid),
            tag("span", duration(one.age_s), class_="warn" if slow else None), join(what),
            tag("code", one_line(request.span, 200)) if request.span else tag("span", "–", class_="dim"),
        ])  # fmt: skip
    columns = (
        Column("worker"), Column("pid"), Column("for"), Column("request", numeric=False, css="wide"),
        Column("in", numeric=False, css="wide"),
    )  # fmt: skip
    more = more_note(_NOW_SHOWN, len(found), "request")
    return section("Now", table("In flight now", columns, cells), more)


def _charts(view: View) -> Markup:
    whole = view.points(REQUEST_DURATION)[None]
    boot = view.points(BOOT_DURATION)[None]
    starts = [float(total.count) for total in boot]
    return charts(
        line_chart(
            "Requests in flight, mean", view.window, [Line("in flight", busy_seconds(view, whole), "c4")], number_form,
            marks=view.marks,
        ),
        line_chart("Workers started", view.window, [Line("starts", starts, "c2")], number_form, marks=view.marks),
        latency_chart(view, boot, "Time to start"),
    )  # fmt: skip


def _lost(view: View, lost: Sequence[PostmortemRow]) -> Markup:
    if not lost:
        return section("Lost", tag("p", "No worker died in this span of time.", class_="good"))
    cells: list[list[Child]] = []
    for row in lost:
        account = of_summary(row.id, row.at, row.reason, row.summary)
        cells.append([
            tag("a", short_id(row.id), href=view.link(f"/postmortem/{row.id}"), class_="mono"),
            time_tag(row.at, "day-clock"),
            tag("span", one_line(row.reason.replace("_", " "), 40), class_="bad"),
            join((one_line(account.headline, 160), _oldest(account.requests, account.own_files))),
            str(account.worker or "–"), age_text(account.uptime_s), f"{account.requests_served:,}",
            bytes_text(account.memory_bytes),
        ])  # fmt: skip
    columns = (
        Column("post-mortem", numeric=False), Column("when", numeric=False), Column("reason", numeric=False),
        Column("what happened", numeric=False, css="wide"), Column("worker"), Column("up"), Column("requests"),
        Column("memory"),
    )  # fmt: skip
    return section("Lost", table("Workers that died", columns, cells))


def _oldest(requests: Sequence[Lost], own_files: object) -> Child:
    """The request that it had longest, and where that was."""
    if not requests:
        return tag("small", "nothing was in flight", class_="dim below")
    first = requests[0]
    frame = application_frame(parse(first.stack), own_files)
    where = "" if frame is None else f", at {frame.file}:{frame.line} in {frame.function}"
    text = f"{first.method or 'task'} {first.path} in flight for {duration(first.age_s)}{where}"
    return tag("small", one_line(text, 300), class_="below")


def _ended(ended: Sequence[RecorderRow]) -> Markup:
    def how(row: RecorderRow) -> Child:
        if row.state == LOST:
            return tag("span", "lost", class_="bad")
        return "recycled" if _word(row, W_RECYCLED) else "ended" if row.state == ENDED else one_line(row.state, 20)

    cells: list[list[Child]] = [
        [
            str(row.pid), how(row), time_tag(row.opened_at, "day-clock"), time_tag(row.seen_at, "day-clock"),
            f"{row.requests:,}", bytes_text(_word(row, W_MEMORY_BYTES)),
        ]
        for row in ended
    ]  # fmt: skip
    columns = (
        Column("pid", numeric=False), Column("how", numeric=False), Column("from", numeric=False),
        Column("until", numeric=False), Column("requests"), Column("memory"),
    )  # fmt: skip
    return section("Ended", table("Workers that have ended", columns, cells))


# -- one post-mortem -----------------------------------------------------------------------------------------------


def postmortem(view: View, name: str) -> Page:
    back = tag("a", "All workers", href=view.link("/workers"))
    found = view.store.postmortem(name) if _ID.fullmatch(name) else []
    if len(found) != 1:
        what = "More than one post-mortem has an ID that begins so." if found else "There is no such post-mortem."
        nothing = empty(what, "The store may have forgotten it. See ", back, ".")
        return Page("Post-mortem", nothing, "/workers", status=404)
    row = found[0]
    account = of_summary(row.id, row.at, row.reason, row.summary)
    who = f"Worker {account.worker}" if account.worker else "A process"
    body: list[Child] = [
        tag("p", tag("strong", f"{who} (pid {account.pid}) was lost, {one_line(account.headline)}."), class_="bad"),
        figures(
            ("when", time_tag(row.at), ""),
            ("reason", one_line(row.reason.replace("_", " "), 40), ""),
            ("up", age_text(account.uptime_s), ""),
            ("requests served", f"{account.requests_served:,}", ""),
            ("memory, last report", bytes_text(account.memory_bytes), ""),
        ),
        section("Evidence", tag("ul", [tag("li", one_line(said, 300)) for said in account.evidence or ["none"]])),
        _in_flight(view, account),
    ]  # fmt: skip
    if account.stack:
        body.append(code_block("The signal arrived at", account.stack, own=account.own_files))
    return Page("Post-mortem", join(body), "/workers", subtitle=join((back, " · ", tag("span", row.id, class_="mono"))))


def _in_flight(view: View, account: Postmortem) -> Markup:
    if not account.requests:
        return section("In flight", tag("p", "Nothing was in flight."))
    blocks: list[Child] = []
    for lost in account.requests:
        what = f"{lost.method} {lost.path}" if lost.method else f"task {lost.path}"
        facts: list[tuple[str, Child]] = [("for", duration(lost.age_s))]
        if lost.route and lost.route != lost.path:
            facts.append(("route", one_line(lost.route, 160)))
        if lost.span:
            facts.append(("in", one_line(lost.span, 300)))
        if lost.answered:
            facts.append(("answered", "its answer was with the server, or a part of it"))
        if _ID.fullmatch(lost.trace_id):
            facts.append(("trace", tag("a", lost.trace_id, href=view.link(f"/trace/{lost.trace_id}"), class_="mono")))
        blocks.append(
            tag(
                "div", tag("h3", one_line(what, 300)),
                tag("dl", [tag("div", tag("dt", key), tag("dd", value)) for key, value in facts], class_="facts"),
                stack_text(lost.stack, account.own_files)
                if lost.stack
                else tag("p", "No stack was taken: it was too young.", class_="dim"),
                class_="block",
            )
        )  # fmt: skip
    more = tag("p", f"{many(account.more_requests, 'request')} more.", class_="note") if account.more_requests else None
    return section("In flight", blocks, more)
