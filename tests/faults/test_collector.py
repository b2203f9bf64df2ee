"""A collector that refuses, fails, hangs, breaks off or takes only a part, while clients are being served."""

from __future__ import annotations

from collections import Counter
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from paste_agent.errors import StoreError
from paste_agent.store.store import REFUSED, SENT, Store
from tests.faults.load import VERBOSE, Load
from tests.faults.running import classes
from tests.faults.service import PasteAgent, Shape, counters_of
from tests.faults.trial import SEEDS, Trial
from tests.receiver import Answer, Receiver
from tests.serving import wait_for

#: Kept, all that fail and that are asked for; and no export that hangs is waited for longer than this.
SETTINGS = {"failed_traces_per_min": "100000", "random_traces_per_min": "100000", "timeout_s": "0.5"}


def halfway(handler: BaseHTTPRequestHandler) -> None:
    """Through its first line: one that has said 200 has taken what it was sent."""
    handler.wfile.write(b"HTTP/1.1 2")


def no_word(handler: BaseHTTPRequestHandler) -> None:
    """Closed without an answer."""


def hang(handler: BaseHTTPRequestHandler) -> None:
    """Longer than the agent waits."""
    handler.server.receiver.stopping.wait(1.0)  # type: ignore[attr-defined]  # it is the receiver's own server


def traces_of(directory: Path) -> Counter[int]:
    """How many kept transactions are in which state."""
    store = Store(str(directory / "store.sqlite"), read_only=True)
    try:
        with store.transaction() as db:
            return Counter(dict(db.execute("SELECT sent, count(*) FROM traces GROUP BY sent")))
    finally:
        store.close()


def failed(directory: Path, reason: str) -> int:
    """paste_agent.export.failed for this reason."""
    found = counters_of(directory).items()
    return sum(value for (name, key), value in found if name == "paste_agent.export.failed" and f'"{reason}"' in key)


def misbehave(receiver: Receiver, load: Load, answer: Answer) -> None:
    """Answer in this way until several exports have had it, requests being served all the while."""
    receiver.default = answer
    seen, served = len(receiver.requests), load.sent
    wait_for(lambda: len(receiver.requests) >= seen + 2, f"exports that are answered with {answer}")
    wait_for(lambda: load.sent > served or not load.is_alive(), "a request that is served meanwhile")


@pytest.mark.parametrize("seed", SEEDS)
@classes("gevent")  # where the exporter is a thread among greenlets
def test_everything_arrives_once_it_is_well(tmp_path: Path, worker_class: str, seed: int) -> None:
    """503, no word, half an answer, a slow one and none at all: nothing that the collector would take is lost."""
    with Receiver() as receiver:
        subject = PasteAgent(SETTINGS)
        trial = Trial("collector ill", tmp_path, seed, Shape(worker_class), subject=subject, collector=receiver)
        answers = [
            Answer(503),
            Answer(429, headers={"Retry-After": "1"}),
            Answer(raw=no_word),
            Answer(raw=halfway),
            Answer(delay_s=0.3),
            Answer(raw=hang),
        ]
        trial.random.shuffle(answers)
        with trial.serving() as server:
            with trial.load(20_000, pace_s=0.03) as load:
                for answer in answers:
                    misbehave(receiver, load, answer)
                receiver.default = Answer()
                load.more(20)
                load.stop()
            # Longer than the collector may ask to be left alone, or the last export would fall into that time.
            taken = len(receiver.metrics)
            server.wait_for(lambda: len(receiver.metrics) > taken + 1, "exports that are taken")
            assert server.stop() == 0
        trial.verdict().check()
        states = traces_of(tmp_path)
        assert set(states) == {SENT}
        # A transaction whose answer was lost is sent again, the same: ids make it one.
        assert len({span.span_id for span in receiver.spans}) >= states[SENT] > 0


@pytest.mark.parametrize("seed", SEEDS)
def test_what_it_refuses_is_counted_and_not_sent_again(tmp_path: Path, seed: int) -> None:
    """400 and partial success."""
    with Receiver() as receiver:
        trial = Trial("collector refuses", tmp_path, seed, subject=PasteAgent(SETTINGS), collector=receiver)
        metrics = ExportMetricsServiceResponse()
        metrics.partial_success.rejected_data_points = 3
        traces = ExportTraceServiceResponse()
        traces.partial_success.rejected_spans = 3
        with trial.serving() as server:
            with trial.load(20_000, pace_s=0.03) as load:
                misbehave(receiver, load, Answer(400))
                # The field has the same number in both messages.
                assert metrics.SerializeToString() == traces.SerializeToString()
                misbehave(receiver, load, Answer(body=traces.SerializeToString()))
                receiver.default = Answer()
                load.more(20)
                load.stop()
            assert server.stop() == 0
        trial.verdict().check()  # the newest metrics say it all, whatever was refused before
        states = traces_of(tmp_path)
        assert set(states) <= {SENT, REFUSED}
        assert failed(tmp_path, "status_400") > 0
        assert failed(tmp_path, "partial_success") > 0
        spans = [span.span_id for span in receiver.spans]
        assert len(spans) == len(set(spans)), "a transaction was sent twice"
        assert len(spans) == states[SENT], "what was refused for good was sent again, or not all was sent"


@pytest.mark.parametrize("seed", SEEDS)
def test_nobody_listens_for_a_while(tmp_path: Path, seed: int) -> None:
    """At the start, then after a time of health, then again at the end; what was kept back goes out after that."""
    first, second = Receiver(), Receiver()
    port = first.port
    with first, second:
        trial = Trial("collector away", tmp_path, seed, subject=PasteAgent(SETTINGS), collector=first)
        with trial.serving() as server, trial.load(20_000, pace_s=0.02) as load:
            first.wait_for(lambda it: len(it.metrics) > 1)
            first.close()
            load.more(100)
            with Receiver(port=port) as back:
                back.wait_for(lambda it: len(it.metrics) > 1)
            load.more(50)
            load.stop()
            server.wait_for(lambda: not load.is_alive(), "the end of the clients")
            assert server.stop() == 0
        verdict = trial.verdict(agree=False)
        verdict.check()
        trial.collector = second
        with trial.serving() as server:
            second.wait_for(lambda it: it.request_counts() == verdict.stored)
            assert server.stop() == 0
        trial.verdict().check()
        assert set(traces_of(tmp_path)) == {SENT}
        spans = {span.span_id for one in (first, back, second) for span in one.spans}
        assert len(spans) >= traces_of(tmp_path)[SENT]


def test_nobody_listens_for_long(tmp_path: Path) -> None:
    """The disk that it takes is bounded; the oldest transactions go first; the counts stay exact."""
    subject = PasteAgent({**SETTINGS, "store_max_mib": "8"})
    trial = Trial("collector gone", tmp_path, 0, Shape(workers=4), subject=subject)
    endpoint = "http://127.0.0.1:9"  # discard: nobody listens there
    with trial.service.start(endpoint) as server:
        trial.wait_until_all_serve()
        with trial.load(20_000, kinds=VERBOSE, pace_s=0.02) as load:
            server.wait_for(lambda: used_bytes(tmp_path) > 9 << 20, "more than the store may hold")
            load.stop()
        assert server.stop() == 0
    before = started(tmp_path)
    with trial.service.start(endpoint) as server:  # whoever begins to lead tidies
        trial.wait_until_all_serve()
        with trial.load(20):
            pass
        server.wait_for(lambda: len(started(tmp_path)) < len(before), "a store within its bounds")
        assert server.stop() == 0
    left = started(tmp_path)
    assert len(left) > 0
    assert min(left) > min(before), "the oldest are still there"
    assert max(left) >= max(before), "the newest have gone"
    assert used_bytes(tmp_path) <= 8 << 20
    trial.verdict().check()


def used_bytes(directory: Path) -> int:
    """Of the store; 0 while there is none."""
    try:
        store = Store(str(directory / "store.sqlite"), read_only=True)
    except StoreError:  # it is just being made
        return 0
    try:
        with store.transaction() as db:
            pages, free, size = (
                db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
            )
        return int((pages - free) * size)
    finally:
        store.close()


def started(directory: Path) -> list[int]:
    """When the kept transactions began."""
    store = Store(str(directory / "store.sqlite"), read_only=True)
    try:
        with store.transaction() as db:
            return [at for (at,) in db.execute("SELECT started_at_ns FROM traces")]
    finally:
        store.close()
