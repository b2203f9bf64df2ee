"""Celery's tasks: published once, run as background tasks, and run eagerly as spans."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

import celery
import celery.signals
import kombu.messaging
import pytest
from celery.exceptions import Reject

from paste_agent import background, instrument, lifecycle
from paste_agent.inside import FUNCTION, MESSAGE
from paste_agent.instrument import celery as instrumentation
from paste_agent.instrument import kombu as publishing
from paste_agent.recorder import layout
from paste_agent.recorder.writer import Recorder
from paste_agent.transaction import current
from tests.instrumented import instrumented
from tests.recorders import spans_within


class _Opened:
    """As much of `lifecycle.Agent` as a background task looks at."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def open(self) -> Recorder:
        return self.recorder

    def on_fault(self, where: str, fault: BaseException) -> None:
        raise AssertionError(f"a fault of the agent in {where}: {fault!r}") from fault


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch, recorder: Recorder) -> Iterator[None]:
    def on_fault(where: str, fault: BaseException) -> None:
        faults.append((where, fault))

    faults: list[tuple[str, BaseException]] = []
    monkeypatch.setattr(lifecycle, "on_fault", on_fault)
    monkeypatch.setattr(background.lifecycle, "current_agent", lambda: _Opened(recorder))
    signals = celery.signals.task_prerun, celery.signals.task_failure, celery.signals.task_postrun
    before = [list(signal.receivers) for signal in signals]
    with instrumented(publishing, kombu.messaging, kombu.messaging.Producer):
        instrumentation.install(celery.signals)
        instrumentation.install(celery.signals)
        assert [len(signal.receivers) - len(one) for signal, one in zip(signals, before, strict=True)] == [1, 1, 1]
        yield
    for signal in signals:
        signal.disconnect(dispatch_uid="paste_agent")
    assert [list(signal.receivers) for signal in signals] == before
    assert faults == []


class Shop:
    """An application with tasks, over a broker and a store of results in memory."""

    def __init__(self) -> None:
        self.app = app = celery.Celery("shop", broker="memory://", backend="cache+memory://", set_as_current=False)
        app.conf.update(task_publish_retry=False, worker_hijack_root_logger=False)
        app.conf.broker_transport_options = {"polling_interval": 0.02}
        self.seen: list[Any] = []

        @app.task(name="shop.add", shared=False)
        def add(left: int, right: int) -> int:
            self.seen.append(current.get())
            return left + right

        @app.task(name="shop.fail", shared=False)
        def fail() -> None:
            raise LookupError("s3cret")

        @app.task(name="shop.refuse", shared=False)
        def refuse() -> None:
            raise Reject("no")

        @app.task(name="shop.again", shared=False, bind=True, max_retries=1, default_retry_delay=0)
        def again(task: Any) -> str:
            if task.request.retries == 0:
                raise task.retry()
            return "done"

        self.add, self.fail, self.refuse, self.again = add, fail, refuse, again


@pytest.fixture
def shop() -> Iterator[Shop]:
    made = Shop()
    messages(made)  # of another test: what is in memory is the process's
    yield made
    made.app.close()


def tasks_of(recorder: Recorder) -> list[tuple[str | None, ...]]:
    return [fields for kind, fields in recorder._by_number.values() if kind == layout.KIND_BACKGROUND]


def messages(shop: Shop) -> list[Any]:
    """What waits in the tasks' queue, taken out."""
    got: list[Any] = []
    with shop.app.connection_for_read() as connection:
        queue = shop.app.amqp.queues[shop.app.conf.task_default_queue](connection.default_channel)
        while (message := queue.get()) is not None:
            message.ack()
            got.append(message)
    return got


def work_off(shop: Shop, messages: list[Any]) -> list[Any]:
    """Run tasks as a worker's process does; what their tracers return."""
    from celery.app.trace import build_tracer

    done = []
    for message in messages:
        task = shop.app.tasks[message.headers["task"]]
        args, kwargs, _ = message.decode()
        request = {**message.headers, "delivery_info": message.delivery_info, "hostname": "worker", "is_eager": False}
        tracer = build_tracer(task.name, task, app=shop.app)
        done.append(tracer(message.headers["id"], args, kwargs, request))
    return done


def test_a_task_is_published_once_and_says_whose_it_is(recorder: Recorder, shop: Shop) -> None:
    def run() -> None:
        shop.add.delay(1, 2)
        shop.add.apply_async((3, 4), countdown=0)
        shop.app.send_task("shop.add", (5, 6))

    found = spans_within(recorder, run)
    assert [(span.category, span.name, span.failed) for span in found] == [(MESSAGE, "publish shop.add", None)] * 3
    assert found[0].attributes is not None
    assert found[0].attributes["celery.task_name"] == "shop.add"
    assert found[0].attributes["messaging.destination.name"] == "celery"
    told = [message.headers["traceparent"].split("-")[2] for message in messages(shop)]
    assert told == [span.span_id.hex() for span in found if span.span_id]


def test_a_task_that_runs_is_a_background_task(recorder: Recorder, shop: Shop) -> None:
    shop.add.delay(1, 2)
    shop.fail.delay()
    done = work_off(shop, messages(shop))
    assert done[0].retval == 3
    assert tasks_of(recorder) == [("shop.add", None), ("shop.fail", "LookupError")]
    assert [type(one).__name__ for one in shop.seen] == ["background_task"]
    assert current.get() is None
    assert list(recorder.kept)  # the one that failed
    assert recorder.kept[0].error is not None
    assert recorder.kept[0].error.type == "LookupError"


def test_a_task_that_is_put_back_or_tried_again_has_not_failed(recorder: Recorder, shop: Shop) -> None:
    shop.again.delay()
    shop.refuse.delay()
    waiting = messages(shop)
    work_off(shop, waiting[:1])
    (done,) = work_off(shop, waiting[1:])
    assert done.info.state == "REJECTED"
    (again,) = messages(shop)
    (done,) = work_off(shop, [again])
    assert done.retval == "done"
    assert tasks_of(recorder) == [("shop.again", None), ("shop.refuse", None)]
    assert current.get() is None


def test_a_worker_runs_it(recorder: Recorder, shop: Shop) -> None:
    """In a thread: what a task does is a part of it, and nothing of it stays behind in the thread."""
    from celery.contrib.testing.worker import start_worker

    def as_it_is(**given: Any) -> None:
        """With a receiver of this signal Celery leaves the logging of its process, which is ours, alone."""

    celery.signals.setup_logging.connect(as_it_is)
    shop.app.conf.update(worker_pool="solo", worker_redirect_stdouts=False)
    with start_worker(shop.app, pool="solo", perform_ping_check=False, shutdown_timeout=60):
        assert shop.add.delay(1, 2).get(timeout=60, interval=0.02, disable_sync_subtasks=False) == 3
        with pytest.raises(LookupError):
            shop.fail.delay().get(timeout=60, interval=0.02, disable_sync_subtasks=False)
    assert tasks_of(recorder) == [("shop.add", None), ("shop.fail", "LookupError")]


def test_a_task_that_is_run_eagerly_is_a_span(recorder: Recorder, shop: Shop) -> None:
    shop.app.conf.update(task_always_eager=True)

    def run() -> None:
        assert shop.add.delay(1, 2).get() == 3
        assert shop.fail.delay().state == "FAILURE"
        assert shop.again.delay().get() == "done"
        assert current.get() is not None

    found = spans_within(recorder, run)
    assert [(span.category, span.name, span.failed) for span in found] == [
        (FUNCTION, "run shop.add", None),
        (FUNCTION, "run shop.fail", "LookupError"),
        (FUNCTION, "run shop.again", None),
        (FUNCTION, "run shop.again", None),
    ]
    assert tasks_of(recorder) == []


def test_run_eagerly_outside_of_a_transaction_it_is_a_task(recorder: Recorder, shop: Shop) -> None:
    shop.app.conf.update(task_always_eager=True)
    assert shop.add.delay(1, 2).get() == 3
    assert tasks_of(recorder) == [("shop.add", None)]
    assert current.get() is None


def test_a_library_of_another_shape_is_left_alone_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    faults: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(lifecycle, "on_fault", lambda where, fault: faults.append(where))
        other = types.ModuleType("celery.signals")
        other.task_prerun = celery.signals.Signal()  # type: ignore[attr-defined]
        instrument._install("celery", other)
        assert other.task_prerun.receivers == []
    assert faults == ["instrumentation of celery"]


def test_a_task_of_another_shape_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    faults: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(lifecycle, "on_fault", lambda where, fault: faults.append(where))
        celery.signals.task_prerun.send(sender=None, task=object())
        celery.signals.task_failure.send(sender=None, exception=None)
        celery.signals.task_postrun.send(sender=None, task=object())
    assert faults == ["a task of Celery"] * 3
    assert current.get() is None
