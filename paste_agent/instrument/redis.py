"""redis-py: which command a transaction waits for, by its name alone: keys and values are the application's.

A pipeline is one span, and what a subscriber waits for is one that is not counted. The client of asyncio is not seen.
Of a cluster only the command is known, not the node that answers.

Tested with 4.5.0, 5.0.0, 5.3.1 and 8.1.0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

from paste_agent import lifecycle
from paste_agent.inside import CACHE
from paste_agent.instrument.wrapping import wrap
from paste_agent.raised import type_name
from paste_agent.recorder.layout import KIND_DATABASE
from paste_agent.spans import begin, end, timed
from paste_agent.transaction import current

#: Of a pool: the commands that it has been asked for so far.
_KNOWN = "_paste_agent_commands"
_MAX_WORD = 32
_MAX_KNOWN = 512
#: Commands of a pipeline that its span names.
_MAX_NAMED = 20
_OTHER = "_OTHER"
_WORD = re.compile(r"[A-Z][A-Z0-9._-]{0,31}")
#: Their next word is a part of the name, if it is given with it.
_CONTAINERS = frozenset(
    (
        *("ACL", "CLIENT", "CLUSTER", "COMMAND", "CONFIG", "DEBUG", "FUNCTION", "LATENCY", "MEMORY", "MODULE"),
        *("OBJECT", "PUBSUB", "SCRIPT", "SENTINEL", "SLOWLOG", "XGROUP", "XINFO"),
    )
)

_get = current.get


class Command:
    """A command as all its spans show it. operation: its name."""

    __slots__ = ("attributes", "key", "operation", "text")

    def __init__(self, operation: str, query: str, place: dict[str, object]) -> None:
        self.operation = operation
        self.text = f"redis {query}".encode()
        self.attributes: dict[str, object] = {
            "db.system.name": "redis",
            "db.operation.name": operation,
            "db.query.text": query,
            **place,
        }
        self.key = self.key_of(None)

    def key_of(self, failed: str | None) -> tuple[int, tuple[str | None, ...]]:
        namespace = self.attributes.get("db.namespace")
        fields = ("redis", None if namespace is None else str(namespace), self.operation, None, None, failed)
        return KIND_DATABASE, fields


_UNKNOWN = Command(_OTHER, _OTHER, {})


def install(module: ModuleType) -> None:
    """Wrap the clients of `redis.client`, or those of `redis.cluster`. A second call does nothing."""
    if module.__name__ == "redis.cluster":
        wrap(
            [
                (module.RedisCluster, "execute_command", _executing),
                (module.ClusterPipeline, "execute", _executing_all),
            ]
        )
        return
    wrap(
        [
            (module.Redis, "execute_command", _executing),
            (module.Pipeline, "immediate_execute_command", _executing),
            (module.Pipeline, "execute", _executing_all),
            (module.PubSub, "execute_command", _executing),
            (module.PubSub, "parse_response", _listening),
        ]
    )


def _spanned(
    original: Callable[..., Any], command_of: Callable[[Any, tuple[Any, ...]], Command | None]
) -> Callable[..., Any]:
    """Around what sends one command, or all of a pipeline. command_of: which; None: nothing that is to be seen."""

    def execute(self: Any, *args: Any, **options: Any) -> Any:
        if _get() is None:
            return original(self, *args, **options)
        command = command_of(self, args)
        span = None if command is None else begin(CACHE, command.text)
        if span is None or command is None:
            return original(self, *args, **options)
        failed = None
        try:
            return original(self, *args, **options)
        except BaseException as error:
            failed = type_name(error)
            raise
        finally:
            key = command.key if failed is None else command.key_of(failed)
            end(span, command.operation, key, failed, command.attributes)

    return execute


def _executing(original: Callable[..., Any]) -> Callable[..., Any]:
    return _spanned(original, _command_of)


def _executing_all(original: Callable[..., Any]) -> Callable[..., Any]:
    return _spanned(original, lambda pipeline, args: _pipeline_of(pipeline))


def _listening(original: Callable[..., Any]) -> Callable[..., Any]:
    def parse_response(self: Any, block: Any = True, timeout: Any = 0, **kwargs: Any) -> Any:
        if _get() is None or not (block or timeout):
            return original(self, block, timeout, **kwargs)
        return timed(CACHE, "redis pubsub wait", original, self, block, timeout, **kwargs)

    return parse_response


def _command_of(client: Any, args: tuple[Any, ...]) -> Command:
    """The command of a call. Raises nothing."""
    try:
        owner = getattr(client, "connection_pool", client)
        known = owner.__dict__.get(_KNOWN)
        if known is None:
            known = owner.__dict__[_KNOWN] = {}
        word = args[0] if args and isinstance(args[0], (str, bytes)) else ""
        has_more = len(args) > 1
        found: Command | None = known.get((word, has_more))
        if found is None:
            operation, given = _operation_of(word)
            found = Command(operation, f"{operation} ?" if has_more or given else operation, _place_of(owner))
            # A longer one is a whole command, with keys and values.
            if len(known) < _MAX_KNOWN and len(word) <= _MAX_WORD and not given:
                known[word, has_more] = found
        return found
    except Exception as fault:
        lifecycle.on_fault("a command of redis", fault)
        return _UNKNOWN


def _operation_of(word: str | bytes) -> tuple[str, bool]:
    """The name of a command, and whether there is more in the word that it was given as: the library splits it."""
    parts = (word.decode("latin-1") if isinstance(word, bytes) else word).upper().split(None, 2)
    if not parts or _WORD.fullmatch(parts[0]) is None:
        return _OTHER, bool(parts)
    if len(parts) > 1 and parts[0] in _CONTAINERS and _WORD.fullmatch(parts[1]):
        return f"{parts[0]} {parts[1]}", len(parts) > 2
    return parts[0], len(parts) > 1


def _place_of(owner: Any) -> dict[str, object]:
    """Where a pool connects to, of what it says itself; a cluster has one database."""
    settings = getattr(owner, "connection_kwargs", None)
    if not isinstance(settings, dict):
        return {"db.namespace": "0"}
    place: dict[str, object] = {"db.namespace": str(settings.get("db") or 0)}
    if path := settings.get("path"):
        place["server.address"] = str(path)
    elif host := settings.get("host"):
        place["server.address"] = str(host)
        port = settings.get("port") or 6379
        place["server.port"] = int(port)
    return place


def _pipeline_of(pipeline: Any) -> Command | None:
    """What a pipeline is about to execute; None where that is nothing. Raises nothing."""
    try:
        size = len(pipeline)
        if not size and not getattr(pipeline, "watching", False):
            return None
        place = _place_of(getattr(pipeline, "connection_pool", pipeline))
        if size > 1:
            place["db.operation.batch.size"] = size
        command = Command("PIPELINE", _names_of(_stack_of(pipeline)), place)
        command.text = f"redis PIPELINE of {size}".encode()
        return command
    except Exception as fault:
        lifecycle.on_fault("a pipeline of redis", fault)
        return None


def _stack_of(pipeline: Any) -> Iterable[Any]:
    """Commands that a pipeline holds; newer versions of a cluster's keep them elsewhere."""
    strategy = getattr(pipeline, "_execution_strategy", None)
    found: Any = getattr(strategy, "command_queue", None) or getattr(pipeline, "command_stack", ())
    return found if isinstance(found, (list, tuple)) else ()


def _names_of(stack: Iterable[Any]) -> str:
    names = []
    for entry in stack:
        args = entry[0] if isinstance(entry, tuple) else entry.args
        operation, given = _operation_of(args[0] if args and isinstance(args[0], (str, bytes)) else "")
        names.append(f"{operation} ?" if given or len(args) > 1 else operation)
        if len(names) == _MAX_NAMED:
            break
    return "\n".join(names) or "PIPELINE"
