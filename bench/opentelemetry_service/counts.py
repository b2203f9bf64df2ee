"""How many requests OpenTelemetry's SDK has reported, from what a receiver took.

Without a route, which the WSGI middleware does not know. A request whose exception escaped the application has no
status there: gunicorn answers it with 500, and so it is counted here.
"""

from __future__ import annotations

from typing import Any

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.receiver import Receiver, RequestKey, attributes_of

#: By its old name, which is the default, and by the stable one.
_HISTOGRAMS = ("http.server.duration", "http.server.request.duration")
_ESCAPED = 500


def span_counts(receiver: Receiver) -> dict[RequestKey, int]:
    """Server spans by method and status. One that was sent twice is counted twice."""
    counts: dict[RequestKey, int] = {}
    for span in receiver.spans:
        if span.kind == Span.SPAN_KIND_SERVER:
            key = _key(attributes_of(span.attributes))
            counts[key] = counts.get(key, 0) + 1
    return counts


def metric_counts(receiver: Receiver) -> dict[RequestKey, int]:
    """Requests in the duration histograms by method and status.

    They are cumulative, one series a process: the highest count of each resource and start time, summed up.
    """
    highest: dict[tuple[str, int, str], tuple[RequestKey, int]] = {}
    for message in list(receiver.metrics):
        for one in message.resource_metrics:
            resource = _canonical(attributes_of(one.resource.attributes))
            found = [metric for scope in one.scope_metrics for metric in scope.metrics if metric.name in _HISTOGRAMS]
            for point in (point for metric in found for point in metric.histogram.data_points):
                attributes = attributes_of(point.attributes)
                series = (resource, point.start_time_unix_nano, _canonical(attributes))
                if series not in highest or highest[series][1] < point.count:
                    highest[series] = (_key(attributes), point.count)
    counts: dict[RequestKey, int] = {}
    for key, count in highest.values():
        counts[key] = counts.get(key, 0) + count
    return counts


def _key(attributes: dict[str, Any]) -> RequestKey:
    method = attributes.get("http.request.method", attributes.get("http.method"))
    status = attributes.get("http.response.status_code", attributes.get("http.status_code", _ESCAPED))
    return (method, None, status)


def _canonical(attributes: dict[str, Any]) -> str:
    return str(sorted(attributes.items()))
