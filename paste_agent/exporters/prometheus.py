"""A store's metrics as Prometheus and OpenMetrics text. The home of prometheus_client, which writes both.

Names are those that OpenTelemetry's compatibility specification makes of ours: `http.server.request.duration` in
seconds is `http_server_request_duration_seconds`. No file, no network; a pause now and then, see `Breath`.

Source: OpenTelemetry, Prometheus and OpenMetrics compatibility; OpenMetrics 1.0.
"""

from __future__ import annotations

import json
import re
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from itertools import islice

from prometheus_client import exposition
from prometheus_client.core import Exemplar, Metric, Sample
from prometheus_client.openmetrics import exposition as openmetrics

from paste_agent import metrics
from paste_agent.aggregate import REQUEST_DURATION, TASK_DURATION, WORKER_LOST, Total, export_bounds
from paste_agent.exporters.points import ZONES, points_of
from paste_agent.store.snapshot import Snapshot

TEXT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"

#: Sorted pairs of name and value.
Labels = tuple[tuple[str, str], ...]

_UNITS = {"s": "seconds", "By": "bytes"}
#: What the samples of a family may be called after its own name.
_SUFFIXES = {
    "histogram": ("", "_bucket", "_count", "_sum", "_created"),
    "counter": ("", "_total", "_created"),
    "gauge": ("",),
    "info": ("", "_info"),
}
_REASONS = ("timeout", "out_of_memory", "signal", "exit", "unknown", "boot")
#: What has not happened yet is 0 and not missing: Prometheus sees no increase in a series that begins with 1.
_ZEROS: tuple[tuple[str, Mapping[str, str]], ...] = (
    *((WORKER_LOST, {metrics.REASON: reason}) for reason in _REASONS),
    (metrics.WORKER_RECYCLED, {metrics.REASON: "max_requests"}),
    *((metrics.RECORDS_DROPPED, {metrics.REASON: reason}) for reason in ("ring_full", "unwritten")),
    (metrics.SPANS_DROPPED, {metrics.REASON: "ring_full"}),
    (metrics.INTERNAL_ERRORS, {}),
    (metrics.INTERNAL_ERRORS, {metrics.REASON: "bad_recorder"}),
    *((metrics.APDEX, {metrics.APDEX_ZONE: zone}) for zone in ZONES),
)
_PLACES = {name: place for place, name in enumerate(metrics.TABLE)}
_MAX_NS = 1 << 63
#: Series that are written before others get the interpreter: about a millisecond.
_AT_ONCE = 5
#: Of OpenMetrics: without it an answer is not whole.
_END = b"# EOF\n"


class Breath:
    """Called again and again by what takes long: pauses so that others get the interpreter, threads or greenlets."""

    #: What a thread that serves waits at the most; and what it gets then.
    SLICE_S, PAUSE_S = 0.001, 0.0005

    def __init__(
        self, clock: Callable[[], float] = time.perf_counter, sleep: Callable[[float], None] | None = None
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._since = clock()

    def __call__(self) -> None:
        if self._clock() - self._since >= self.SLICE_S:
            # Looked up at each call: where greenlets serve, it is theirs.
            (self._sleep or time.sleep)(self.PAUSE_S)
            self._since = self._clock()


def is_openmetrics(accept: str) -> bool:
    """Whether an Accept header asks for OpenMetrics rather than for text; for neither it is text."""
    best = {"application/openmetrics-text": 0.0, "text/plain": 0.0}
    for part in accept.split(","):
        kind, *parameters = (word.strip().lower() for word in part.split(";"))
        words = dict(word.partition("=")[::2] for word in parameters)
        if kind not in best or (kind != "text/plain" and words.get("version", "1.0.0") not in ("1.0.0", "0.0.1")):
            continue
        try:
            weight = float(words.get("q", "1"))
        except ValueError:
            continue
        best[kind] = max(best[kind], weight)
    return best["application/openmetrics-text"] > 0 and best["application/openmetrics-text"] >= best["text/plain"]


def write(
    snapshot: Snapshot, resource: Mapping[str, object], *, as_openmetrics: bool, breath: Breath
) -> Iterator[bytes]:
    """The answer to a scrape, in many parts: the whole of it may be megabytes.

    resource: of `target_info`. as_openmetrics: else the older text, which has no exemplars.
    """
    exemplars = _exemplars_of(snapshot) if as_openmetrics else {}
    write_one = _openmetrics_of if as_openmetrics else exposition.generate_latest
    for family in _families_of(snapshot, resource, breath):
        head = write_one(_Only(family.metric()))
        yield head
        points = iter(family.points.items())
        while some := list(islice(points, _AT_ONCE)):
            metric = family.metric()
            metric.samples.extend(sample for point in some for sample in _samples_of(family, *point, exemplars))
            yield write_one(_Only(metric)).removeprefix(head)
            breath()
    if as_openmetrics:
        yield _END


class _Only:
    """What prometheus_client calls a registry, with one metric in it."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> list[Metric]:
        return [self._metric]


def _openmetrics_of(one: _Only) -> bytes:
    return bytes(openmetrics.generate_latest(one)).removesuffix(_END)  # type: ignore[no-untyped-call]


# -- families ------------------------------------------------------------------------------------------------------


class _Family:
    """One metric, and all its series."""

    def __init__(self, row: metrics.Metric) -> None:
        self.row = row
        self.type = {"histogram": "histogram", "counter": "counter"}.get(row.instrument, "gauge")
        self.name, self.unit = _name_of(row)
        self.points: dict[Labels, Total | int | float] = {}

    def metric(self) -> Metric:
        """For prometheus_client, without samples yet."""
        return Metric(self.name, self.row.description, self.type, self.unit)

    def add(self, labels: Labels, value: Total | int | float) -> None:
        """Two series that have become one are summed up; of gauges the later one counts."""
        known = self.points.get(labels)
        if known is None or self.type == "gauge":
            self.points[labels] = value
        elif isinstance(known, Total) and isinstance(value, Total):
            known.add(value)
        elif not isinstance(known, Total) and not isinstance(value, Total):
            self.points[labels] = known + value


def _families_of(snapshot: Snapshot, resource: Mapping[str, object], breath: Breath) -> list[_Family]:
    """In the order of the table; what the application measures itself comes last, by name."""
    families: dict[tuple[int, str, str], _Family] = {}

    def family_of(row: metrics.Metric) -> _Family:
        place = _PLACES[row.name] if metrics.TABLE.get(row.name) is row else len(_PLACES)
        made = _Family(row)
        return families.setdefault((place, made.name, made.type), made)

    for name, attributes in _ZEROS:
        family_of(metrics.TABLE[name]).add(_labels_of(attributes), 0)
    for row, found, value in points_of(snapshot.series(), snapshot.counters, snapshot.readings):
        family_of(row).add(_labels_of(found), value)
        breath()
    target = _Family(metrics.Metric("target", "gauge", "", "What is measured."))
    target.type = "info"
    target.points[_labels_of(resource)] = 1
    taken = set(_RESERVED)
    kept = [target]
    for key in sorted(families):
        family = families[key]
        if metrics.TABLE.get(family.row.name) is not family.row:
            names = _names_of(family)
            if names & taken:  # what the application calls so would pass for another metric
                continue
            taken |= names
        kept.append(family)
    return kept


def _names_of(family: _Family) -> set[str]:
    return {family.name + suffix for suffix in _SUFFIXES[family.type]}


def _name_of(row: metrics.Metric) -> tuple[str, str]:
    """Name of the family, without `_total`; and its unit, '' for none."""
    name = re.sub(r"[^a-zA-Z0-9:]+", "_", row.name)
    name = f"_{name}" if name[:1].isdigit() else name or "_"
    unit = "ratio" if row.unit == "1" and row.instrument == "gauge" else _UNITS.get(row.unit, "")
    if row.instrument == "counter":
        name = name.removesuffix("_total") or "_"
    return (name if not unit or name.endswith(f"_{unit}") else f"{name}_{unit}"), unit


def _labels_of(attributes: Mapping[str, object]) -> Labels:
    found: dict[str, str] = {}
    for key in sorted(attributes):
        text = _text_of(attributes[key])
        if not text:
            continue  # to Prometheus an empty label is none
        name = re.sub(r"[^a-zA-Z0-9]+", "_", key)
        if not name or name[0].isdigit() or name == "le":
            name = f"key_{name}"
        found[name] = f"{found[name]};{text}" if name in found else text
    return tuple(sorted(found.items()))


def _text_of(value: object) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    # A lone surrogate, which JSON may hold, is no text in UTF-8.
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


#: Of the agent's own metrics, whether or not there is anything to say of them yet.
_RESERVED = {"target", "target_info"}.union(*(_names_of(_Family(row)) for row in metrics.TABLE.values()))


# -- samples -------------------------------------------------------------------------------------------------------

#: By family and labels: of each bucket, by its place.
_Exemplars = Mapping[tuple[str, Labels], Mapping[int, Exemplar]]


def _samples_of(family: _Family, labels: Labels, value: Total | int | float, exemplars: _Exemplars) -> Iterator[Sample]:
    if isinstance(value, Total):
        yield from _histogram_of(family, labels, value, exemplars.get((family.name, labels), {}))
    else:
        name = family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
        yield Sample(name, dict(labels), value)


def _histogram_of(family: _Family, labels: Labels, total: Total, exemplars: Mapping[int, Exemplar]) -> Iterator[Sample]:
    bounds_s = export_bounds(family.row.name)
    bucket, words = f"{family.name}_bucket", dict(labels)
    below = 0
    for place, count in enumerate(total.export_counts(bounds_s)):
        below += count
        bound = str(bounds_s[place]) if place < len(bounds_s) else "+Inf"
        exemplar = exemplars.get(place) if count else None
        yield Sample(bucket, {**words, "le": bound}, below, None, exemplar)
    # Not total.count: it has to be what the buckets come to.
    yield Sample(f"{family.name}_count", words, below)
    yield Sample(f"{family.name}_sum", words, total.sum_ns / family.row.divisor)


def _exemplars_of(snapshot: Snapshot) -> _Exemplars:
    """The newest kept trace of each bucket, by the series that it was counted under."""
    found: dict[tuple[str, Labels], dict[int, Exemplar]] = {}
    for kept in snapshot.kept():
        metric = TASK_DURATION if "paste_agent.task.name" in kept.attributes else REQUEST_DURATION
        ended_ns = kept.started_at_ns + kept.duration_ns
        if not 0 <= kept.duration_ns <= ended_ns < _MAX_NS:
            continue
        took_s = kept.duration_ns / 1e9
        family = _name_of(metrics.TABLE[metric])[0]
        place = bisect_left(export_bounds(metric), took_s)
        labels = {"trace_id": kept.trace_id, "span_id": kept.span_id}
        found.setdefault((family, _labels_of(kept.attributes)), {}).setdefault(
            place, Exemplar(labels, took_s, ended_ns / 1e9)
        )
    return found
