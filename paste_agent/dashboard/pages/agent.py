"""The agent on itself: whether it keeps up, what it lost, what waits to be sent, and the settings in effect."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence

import paste_agent
from paste_agent import metrics, settings
from paste_agent.aggregate import REPORT_DURATION
from paste_agent.dashboard.html import Child, Markup, join, prose, tag
from paste_agent.dashboard.pages.common import counted, latency_chart, throughput_chart
from paste_agent.dashboard.view import Column, Page, View, charts, empty, figures, section, table, time_tag
from paste_agent.store.store import REFUSED, RUNNING, WAITING
from paste_agent.store.summary import overall
from paste_agent.wording import age_text, bytes_text, duration, many, one_line

_NS = 1_000_000_000
#: A lead reports every second; one that has not for so long does not run. s
_SILENT_S = 30.0
_COUNTERS = (
    (metrics.RECORDS_DROPPED, "requests that could not be recorded", "Raise `ring_records`; does the host starve it?"),
    (metrics.SPANS_DROPPED, "spans that gave way to requests", "Raise `ring_records`; the requests were all counted."),
    (metrics.INTERNAL_ERRORS, "faults of the agent", "The log has a WARNING that names each; please report it."),
    (metrics.EXPORT_FAILED, "items that a collector did not take", "`paste-agent check` shows what it answers."),
)  # fmt: skip


def agent(view: View) -> Page:
    rounds = view.totals(REPORT_DURATION)
    over_time = view.points(REPORT_DURATION)[None]
    body: list[Child] = [
        _figures(view, overall(rounds).quantile_ns(0.95) / _NS if rounds else None),
        _losses(view.store.counters()),
        charts(
            latency_chart(view, over_time, "Time of a round of reporting"),
            throughput_chart(view, over_time, "Rounds of reporting", "rounds"),
        ),
        _waiting(view),
        _settings(view.settings),
    ]
    return Page("Agent", join(body), "/agent")


def _figures(view: View, p95_s: float | None) -> Markup:
    seen = max((row.seen_at for row in view.store.recorders() if row.state == RUNNING), default=None)
    silent_s = None if seen is None else max(0.0, view.span.now_s - seen)
    alive = silent_s is not None and silent_s <= _SILENT_S
    reported = "no process runs" if silent_s is None else f"{age_text(silent_s)} ago"
    known = view.store.span_of_time()
    return figures(
        ("last report", reported, "" if alive else "warn"),
        ("a round takes, p95", "–" if p95_s is None else duration(p95_s), ""),
        ("store", bytes_text(_size_of(view.store.path)), ""),
        ("knows since", "–" if known is None else time_tag(known[0], "day-clock"), ""),
        ("series", f"{view.store.query('SELECT count(*) FROM series')[0][0]:,}", ""),
        ("schema", str(view.store.version), ""),
        ("version", paste_agent.__version__, ""),
    )


def _size_of(path: str) -> int:
    size = 0
    for suffix in ("", "-wal"):
        try:
            size += os.path.getsize(path + suffix)
        except OSError:
            pass
    return size


def _losses(counters: Mapping[tuple[str, str], int]) -> Markup:
    rows: list[list[Child]] = []
    for name, what, cure in _COUNTERS:
        count = counted(counters, name)
        reasons = [
            f"{', '.join(map(str, _values(attributes)))}: {value:,}"
            for (found, attributes), value in sorted(counters.items())
            if found == name and _values(attributes)
        ]
        rows.append([
            join((what, tag("small", name, class_="dim below mono"))),
            tag("span", f"{count:,}", class_="warn" if count else "dim"),
            one_line("; ".join(reasons), 300) if reasons else tag("span", "–", class_="dim"),
            prose(cure) if count else tag("span", "–", class_="dim"),
        ])  # fmt: skip
    columns = (
        Column("what was lost, since the store was made", numeric=False, css="wide"), Column("count"),
        Column("why", numeric=False), Column("what to do", numeric=False),
    )  # fmt: skip
    return section("Losses", table("Losses", columns, rows))


def _values(attributes: str) -> Sequence[object]:
    try:
        found = json.loads(attributes)
    except ValueError:
        return ()
    return list(found.values()) if isinstance(found, dict) else ()


def _waiting(view: View) -> Markup:
    """What an exporter has still to send. Without one nothing leaves the host."""
    configured = view.settings
    signals = () if configured is None else tuple(name for name in settings.SIGNALS if configured.target(name))
    if configured is not None and not signals:
        unsent = all(configured.values[f"{name}_exporter"] == "none" for name in settings.SIGNALS)
        why = "No signal has an exporter" if unsent else "No `endpoint` is set"
        return section("Export", tag("p", prose(f"{why}: measurements stay in the store.")))
    sent = ("sent", ", ".join(signals) or "unknown: the store was named, and no ini", "")
    if signals and not {"traces", "logs"} & set(signals):
        return section("Export", figures(sent))  # traces stay, and do not wait
    rows = view.store.query(
        "SELECT count(*), min(written_at) FROM traces WHERE sent = ? AND detail IS NOT NULL", (WAITING,)
    )
    waiting, oldest = rows[0]
    refused = view.store.query("SELECT count(*) FROM traces WHERE sent = ?", (REFUSED,))[0][0]
    lag = "nothing waits" if not waiting else age_text(view.span.now_s - oldest)
    return section(
        "Export",
        figures(
            sent,
            ("traces that wait", f"{waiting:,}", ""),
            ("the oldest waits for", lag, "warn" if waiting and view.span.now_s - oldest > 120 else ""),
            ("refused", f"{refused:,}", "warn" if refused else ""),
        ),
    )


def _settings(found: settings.Settings | None) -> Markup:
    if found is None:
        return section("Settings", empty(
            "The settings are not known.", "The dashboard was given a store. Give it the ini of the service instead.",
        ))  # fmt: skip
    rows: list[list[Child]] = []
    unset = 0
    for row in settings.TABLE.values():
        value, origin = settings.shown(row, found.values[row.key]), found.origins[row.key]
        if not value:
            unset += 1
            continue
        rows.append([
            tag("code", row.key), one_line(value, 200),
            tag("span", origin, class_="dim" if origin == "default" else None),
            tag("small", prose(row.help)),
        ])  # fmt: skip
    columns = (
        Column("setting", numeric=False), Column("value", numeric=False), Column("from", numeric=False),
        Column("meaning", numeric=False, css="wide"),
    )  # fmt: skip
    overruled = f" Overruled by high_security: {', '.join(found.overruled)}." if found.overruled else ""
    note = f"[{found.section}]. {many(unset, 'setting')} without a value are left out.{overruled}"
    return section("Settings in effect", table("Settings in effect", columns, rows), note=note)
