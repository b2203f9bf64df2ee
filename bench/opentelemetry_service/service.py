"""The service of the fault tests behind OpenTelemetry's WSGI middleware.

OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318 gunicorn --config bench/opentelemetry_service/gunicorn.conf.py \
    bench.opentelemetry_service.service:app
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from opentelemetry import trace
from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware

from tests.faults.wsgi_app import application

Application = Callable[..., Iterable[bytes]]


def wrapped(app: Application, global_conf: dict[str, str], warm: str = "", **local_conf: str) -> Application:
    """A `paste.filter_app_factory`. warm: name of a task that is traced while the application is loaded."""
    if warm:
        with trace.get_tracer(__name__).start_as_current_span(warm):
            pass
    middleware: Any = OpenTelemetryMiddleware(app)
    return middleware  # type: ignore[no-any-return]


app = wrapped(application, {})
