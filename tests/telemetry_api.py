"""What tests of OpenTelemetry's API share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry import trace

from paste_agent import otel
from paste_agent.inside import FinishedSpan
from paste_agent.recorder.reader import Reader
from paste_agent.recorder.writer import Recorder
from tests.recorders import die, open_recorder

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
#: As a library has it: taken when it is imported, before anybody has thought of a provider.
tracer = trace.get_tracer("shop", "1.0")


@pytest.fixture(autouse=True)
def installed() -> None:
    """For good: without a transaction nothing is there, and that is tested too."""
    otel.install(trace)
    otel.install(trace)


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    opened = open_recorder(tmp_path, keep_all=True)
    yield opened
    die(opened)


def told(reader: Reader) -> str:
    """What a post-mortem would say that the only request is in."""
    (one,) = reader.in_flight()
    return one.span


def ids(span: trace.Span) -> tuple[str, str]:
    of = span.get_span_context()
    return trace.format_trace_id(of.trace_id), trace.format_span_id(of.span_id)


def only(found: list[FinishedSpan]) -> FinishedSpan:
    (span,) = found
    return span
