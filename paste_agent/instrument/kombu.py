"""kombu: the messages that a transaction publishes, Celery's tasks among them, and whose they are.

The headers that say so are added to the message's own. A task's message is named by the task, any other by its
exchange, or where that is the default one by its queue.

Tested with 5.3.0, 5.4.0 and 5.7.0.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

from paste_agent import lifecycle
from paste_agent.inside import MESSAGE
from paste_agent.instrument.wrapping import wrap
from paste_agent.raised import type_name
from paste_agent.spans import Span, begin, end, headers_of
from paste_agent.transaction import current

#: Places of arguments of `Producer.publish`, itself and the message before them.
_ROUTING_KEY_AT, _HEADERS_AT, _EXCHANGE_AT = 0, 8, 10
_MAX_NAME = 120
#: By what kombu calls a transport's kind, where the conventions call it otherwise.
_SYSTEMS = {"amqp": "rabbitmq", "qpid": "qpid", "sqs": "aws_sqs", "gcpubsub": "gcp_pubsub"}
#: Queues that are made for one reader bear numbers, which would make a name each.
_NUMBERED = re.compile(r"amq\.gen|[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-|[0-9a-fA-F]{16}|[0-9]{6}")
#: Some transports keep a whole URL there, with a password in it.
_HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:]+")

_get = current.get


def install(module: ModuleType) -> None:
    """Wrap `Producer.publish`, which all messages pass. A second call does nothing."""
    wrap([(module.Producer, "publish", _publishing)])


def _publishing(original: Callable[..., Any]) -> Callable[..., Any]:
    def publish(self: Any, body: Any, *args: Any, **kwargs: Any) -> Any:
        if _get() is None:
            return original(self, body, *args, **kwargs)
        name, attributes, args, kwargs, span = _begun(self, args, kwargs)
        if span is None:
            return original(self, body, *args, **kwargs)
        failed = None
        try:
            return original(self, body, *args, **kwargs)
        except BaseException as error:
            failed = type_name(error)
            raise
        finally:
            _add_place(self, attributes)
            end(span, name, None, failed, attributes)

    return publish


def _begun(
    producer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[str, dict[str, object], tuple[Any, ...], dict[str, Any], Span | None]:
    """Name, attributes, arguments with headers in them, and the span of a message. Raises nothing."""
    span = None
    name = "publish"
    attributes: dict[str, object] = {"messaging.operation.name": "publish", "messaging.operation.type": "send"}
    try:
        headers = _argument(args, kwargs, _HEADERS_AT, "headers")
        exchange = _argument(args, kwargs, _EXCHANGE_AT, "exchange") or producer.exchange
        exchange = str(getattr(exchange, "name", exchange) or "")
        routing_key = _argument(args, kwargs, _ROUTING_KEY_AT, "routing_key")
        routing_key = str((producer.routing_key if routing_key is None else routing_key) or "")
        destination = exchange or routing_key
        if _NUMBERED.search(destination):
            attributes["messaging.destination.temporary"] = True
            destination = "(temporary)"
        destination = destination[:_MAX_NAME]
        attributes["messaging.destination.name"] = destination
        task = headers.get("task") if isinstance(headers, dict) and "lang" in headers else None
        if isinstance(task, str):
            attributes["celery.task_name"] = task
            destination = task[:_MAX_NAME]
        name = f"publish {destination}".rstrip()
        span = begin(MESSAGE, name.encode("utf-8", "replace"))
        if span is not None:
            args, kwargs = _with_headers(args, kwargs, headers, span)
    except Exception as fault:
        lifecycle.on_fault("a message", fault)
    return name, attributes, args, kwargs, span


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], at: int, name: str) -> Any:
    return args[at] if len(args) > at else kwargs.get(name)


def _with_headers(
    args: tuple[Any, ...], kwargs: dict[str, Any], headers: Any, span: Span
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with ours among the headers, in a dictionary of their own: the caller may use his again."""
    given = {} if headers is None else headers
    if not isinstance(given, dict) or "traceparent" in given:
        return args, kwargs
    told = {**dict(headers_of(span)), **given}
    if len(args) > _HEADERS_AT:
        return (*args[:_HEADERS_AT], told, *args[_HEADERS_AT + 1 :]), kwargs
    return args, {**kwargs, "headers": told}


def _add_place(producer: Any, attributes: dict[str, object]) -> None:
    """Add where the message went; known once there is a connection. Raises nothing."""
    try:
        channel = producer.__dict__.get("_channel")
        connection = getattr(getattr(channel, "connection", None), "client", None)
        connection = producer.__dict__.get("__connection__") or connection
        if connection is None:
            return
        kind = str(getattr(connection.transport, "driver_type", "") or "")
        if kind:
            attributes["messaging.system"] = _SYSTEMS.get(kind, kind)
        host, port = connection.hostname, connection.port
        if isinstance(host, str) and _HOST.fullmatch(host) and kind not in ("memory", "filesystem"):
            attributes["server.address"] = host
            if isinstance(port, int) and port:
                attributes["server.port"] = port
    except Exception as fault:
        lifecycle.on_fault("a message", fault)
