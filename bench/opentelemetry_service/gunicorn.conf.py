"""opentelemetry-sdk under gunicorn as its documentation sets it up, but for OTLP over HTTP in place of gRPC.

Source: https://opentelemetry-python.readthedocs.io/en/latest/examples/fork-process-model/README.html and the
gunicorn.conf.py of its example. The SDK's providers flush at the interpreter's exit by themselves.
"""

from __future__ import annotations

from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor


def post_fork(server: Any, worker: Any) -> None:
    # The worker's pid, as in the example: without it the workers' cumulative metrics overwrite each other.
    resource = Resource.create({"service.name": "faults", "worker": worker.pid})
    tracer_provider = TracerProvider(resource=resource)
    tracer_provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(tracer_provider)
    reader = PeriodicExportingMetricReader(OTLPMetricExporter())
    metrics.set_meter_provider(MeterProvider(resource=resource, metric_readers=[reader]))
