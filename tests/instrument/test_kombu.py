"""Messages that are published through kombu, in memory: their spans, and the headers that they carry."""

from __future__ import annotations

import socket
import types
from collections.abc import Iterator
from typing import Any

import kombu
import kombu.messaging
import pytest

from paste_agent import instrument, lifecycle
from paste_agent.inside import MESSAGE
from paste_agent.instrument import kombu as instrumentation
from paste_agent.recorder.writer import Recorder
from tests.instrumented import instrumented
from tests.recorders import reader_of, serve, spans_within

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = {"HTTP_TRACEPARENT": f"00-{TRACE_ID}-00f067aa0ba902b7-01", "HTTP_BAGGAGE": "tenant=7"}


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def on_fault(where: str, fault: BaseException) -> None:
        raise AssertionError(f"a fault of the agent in {where}: {fault!r}") from fault

    monkeypatch.setattr(lifecycle, "on_fault", on_fault)
    with instrumented(instrumentation, kombu.messaging, kombu.messaging.Producer):
        yield


@pytest.fixture
def connection() -> Iterator[Any]:
    with kombu.Connection("memory://") as made:
        yield made


def taken(connection: Any, queue: Any) -> list[tuple[Any, dict[str, Any]]]:
    """Bodies and headers of what is in a queue."""
    got: list[tuple[Any, dict[str, Any]]] = []

    def on_message(body: Any, message: Any) -> None:
        got.append((body, dict(message.headers)))
        message.ack()

    with connection.Consumer(queue, callbacks=[on_message]):
        while True:
            try:
                connection.drain_events(timeout=0.05)
            except socket.timeout:  # noqa: UP041  # TimeoutError since Python 3.10
                return got


def queue_of(name: str) -> Any:
    return kombu.Queue(name, kombu.Exchange(f"{name}-exchange"), routing_key=name)


def test_a_message_is_one_span_and_says_whose_it_is(recorder: Recorder, connection: Any) -> None:
    queue = queue_of("orders")

    def run() -> None:
        connection.Producer().publish(
            {"order": "s3cret"}, exchange=queue.exchange, routing_key="orders", declare=[queue], headers={"own": 1}
        )

    (span,) = spans_within(recorder, run, **PARENT)
    assert (span.category, span.name, span.failed) == (MESSAGE, "publish orders-exchange", None)
    assert span.attributes == {
        "messaging.system": "memory",
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.destination.name": "orders-exchange",
    }
    assert span.span_id is not None
    ((body, headers),) = taken(connection, queue)
    assert body == {"order": "s3cret"}
    assert headers == {"own": 1, "traceparent": f"00-{TRACE_ID}-{span.span_id.hex()}-01", "baggage": "tenant=7"}


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"routing_key": "mails"}, "publish mails"),
        ({"routing_key": "mails", "exchange": ""}, "publish mails"),
        ({"routing_key": "reply.6f1c2d34-aaaa-bbbb-cccc-1234567890ab"}, "publish (temporary)"),
        ({"routing_key": "amq.gen-JzTY20BRgKO-HjmUJj0wLg"}, "publish (temporary)"),
        ({"exchange": "events", "routing_key": "user.17"}, "publish events"),
        ({"exchange": kombu.Exchange("events")}, "publish events"),
        ({}, "publish"),
    ],
)
def test_it_is_named_by_one_of_few(recorder: Recorder, connection: Any, arguments: dict[str, Any], name: str) -> None:
    (span,) = spans_within(recorder, lambda: connection.Producer(auto_declare=False).publish("x", **arguments))
    assert span.name == name


def test_a_producer_may_have_it_all(recorder: Recorder, connection: Any) -> None:
    queue = queue_of("invoices")
    queue(connection.default_channel).declare()
    producer = kombu.Producer(connection, exchange=queue.exchange, routing_key="invoices")
    own = {"own": 1}

    def run() -> None:
        # All by place: routing_key comes first, headers ninth, exchange last.
        producer.publish("a", "invoices", None, False, False, 0, None, None, "json", own, None, queue.exchange)
        producer.publish("b", headers=own, retry=True)
        producer.publish("c")
        producer.publish(body="d")

    found = spans_within(recorder, run)
    assert [span.name for span in found] == ["publish invoices-exchange"] * 4
    got = taken(connection, queue)
    assert [body for body, _ in got] == ["a", "b", "c", "d"]
    assert [headers["traceparent"].split("-")[2] for _, headers in got] == [
        span.span_id.hex() for span in found if span.span_id
    ]
    assert own == {"own": 1}


def test_who_has_set_the_header_keeps_it(recorder: Recorder, connection: Any) -> None:
    queue = queue_of("own")
    own = "00-11111111111111111111111111111111-2222222222222222-00"

    def run() -> None:
        connection.Producer().publish(
            "x", exchange=queue.exchange, routing_key="own", declare=[queue], headers={"traceparent": own}
        )

    spans_within(recorder, run, **PARENT)
    assert taken(connection, queue) == [("x", {"traceparent": own})]


def test_a_failure(recorder: Recorder, connection: Any) -> None:
    def run() -> None:
        with pytest.raises(kombu.exceptions.EncodeError):
            connection.Producer().publish(object(), routing_key="a", serializer="json")

    (span,) = spans_within(recorder, run)
    assert span.failed == "kombu.exceptions.EncodeError"


def test_a_broker_that_is_not_there(recorder: Recorder) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def run() -> None:
        url, soon = f"amqp://user:s3cret@127.0.0.1:{port}//", {"max_retries": 0, "interval_start": 0}
        nobody = kombu.Connection(url, transport_options=soon)
        with nobody, pytest.raises(kombu.exceptions.OperationalError):
            nobody.Producer().publish("x", routing_key="a")

    (span,) = spans_within(recorder, run)
    assert span.name == "publish a"
    assert span.failed is not None
    assert span.attributes is not None
    assert span.attributes["messaging.system"] == "rabbitmq"
    assert (span.attributes["server.address"], span.attributes["server.port"]) == ("127.0.0.1", port)
    assert "s3cret" not in str(span)


def test_the_black_box_names_it(recorder: Recorder, connection: Any) -> None:
    shown: list[str] = []

    class Looking(str):
        """A body that is encoded while the message is published."""

        def encode(self, *args: Any, **kwargs: Any) -> bytes:
            reader = reader_of(recorder)
            shown.append(reader.in_flight()[0].span)
            reader.close()
            return super().encode(*args, **kwargs)

    serve(
        recorder, meanwhile=lambda: connection.Producer().publish(Looking("x"), routing_key="mails", serializer="raw")
    )
    assert set(shown) == {"publish mails"}


def test_without_a_transaction_it_is_what_it_was(recorder: Recorder, connection: Any) -> None:
    queue = queue_of("plain")
    before = recorder.read(recorder.geometry.size, 0)
    connection.Producer().publish("x", exchange=queue.exchange, routing_key="plain", declare=[queue])
    assert taken(connection, queue) == [("x", {})]
    assert recorder.read(recorder.geometry.size, 0) == before


def test_a_library_of_another_shape_is_left_alone_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    faults: list[str] = []
    monkeypatch.setattr(lifecycle, "on_fault", lambda where, fault: faults.append(where))
    instrument._install("kombu", types.ModuleType("kombu.messaging"))
    assert faults == ["instrumentation of kombu"]


def test_a_producer_of_another_shape_is_passed_on(
    recorder: Recorder, connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults: list[str] = []
    monkeypatch.setattr(lifecycle, "on_fault", lambda where, fault: faults.append(where))

    class NoName:
        name = ""

        def __str__(self) -> str:
            raise LookupError

    producer = connection.Producer(auto_declare=False)

    def run() -> None:
        with pytest.raises(LookupError):
            str(NoName())
        producer.publish("x", routing_key=NoName(), exchange="events")

    assert spans_within(recorder, run) == []
    assert faults == ["a message"]
