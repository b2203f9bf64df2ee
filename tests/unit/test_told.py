"""What services that a transaction calls are told of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paste_agent.inside import CALL, FinishedSpan
from paste_agent.propagation import parse_traceparent
from paste_agent.recorder import layout
from paste_agent.recorder.layout import KEPT_RANDOM
from paste_agent.recorder.writer import Recorder
from paste_agent.spans import begin, end, headers_of
from tests.recorders import die, open_recorder, serve
from tests.within import CALL_KEY, here, inside_of, sampler

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    opened = open_recorder(tmp_path, sampler=sampler())
    yield opened
    die(opened)


def told(recorder: Recorder, **environ: Any) -> tuple[dict[str, str], bytes | None]:
    """The headers of one call, and the id of its span, of a request with these headers of its own."""
    found: list[Any] = []

    def run() -> None:
        begun = begin(CALL, b"GET http://stock.example/")
        assert begun is not None
        found.append(dict(headers_of(begun)))
        assert dict(headers_of(begun)) == found[0]
        end(begun, "GET", CALL_KEY)
        found.append(FinishedSpan.of(inside_of().finished[-1]).span_id)

    serve(recorder, meanwhile=run, **environ)
    return found[0], found[1]


def test_a_service_is_told_the_ids_of_the_trace_that_is_kept(tmp_path: Path) -> None:
    recorder = open_recorder(tmp_path, sampler=sampler(random=60))
    headers, span_id = told(recorder)
    parent = parse_traceparent(headers["traceparent"])
    assert parent is not None
    (kept,) = recorder.kept
    assert parent == (kept.trace_id, span_id, True)
    assert (kept.trace_id, kept.span_id) == layout.minted_ids(recorder.id, 1)
    assert kept.why == KEPT_RANDOM
    assert span_id != kept.span_id
    assert set(headers) == {"traceparent"}
    die(recorder)


@pytest.mark.parametrize("sampled", [True, False])
def test_a_service_is_told_the_trace_that_the_request_belongs_to(recorder: Recorder, sampled: bool) -> None:
    headers, span_id = told(
        recorder,
        HTTP_TRACEPARENT=f"00-{TRACE_ID}-{PARENT_ID}-0{int(sampled)}",
        HTTP_TRACESTATE="a=1,b=2",
        HTTP_BAGGAGE="user=7",
    )
    assert span_id is not None
    assert headers == {
        "traceparent": f"00-{TRACE_ID}-{span_id.hex()}-0{int(sampled)}",
        "tracestate": "a=1,b=2",
        "baggage": "user=7",
    }
    assert [(kept.trace_id.hex(), kept.parent_id.hex()) for kept in recorder.kept] == [(TRACE_ID, PARENT_ID)] * sampled


def test_each_call_has_an_id_of_its_own(recorder: Recorder) -> None:
    ids = {told(recorder)[1] for _ in range(100)}
    assert len(ids) == 100


@pytest.mark.parametrize("seed", range(3))
def test_what_a_service_is_told_of_being_kept_is_true(tmp_path: Path, seed: int) -> None:
    """Also when the reporter fits the chance to the traffic between the call and the end of the request."""
    one = sampler(random=6000, seed=seed)
    recorder = open_recorder(tmp_path, records=4096, sampler=one)
    said: dict[str, bool] = {}

    def run() -> None:
        begun = begin(CALL, b"GET")
        assert begun is not None
        parent = parse_traceparent(dict(headers_of(begun))["traceparent"])
        assert parent is not None
        said[parent.trace_id.hex()] = parent.sampled
        end(begun, "GET")
        if len(said) % 5 == 0:
            one.tick(0.005, 5, here().number - 1)

    for _ in range(1500):
        serve(recorder, meanwhile=run)
    assert len(said) == 1500
    kept = {kept.trace_id.hex() for kept in recorder.kept}
    assert kept == {trace_id for trace_id, sampled in said.items() if sampled}
    assert 30 < len(kept) < 600
    die(recorder)
