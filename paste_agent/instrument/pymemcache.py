"""pymemcache: which command a transaction waits for, without its keys and values.

All its clients do their work through `Client`, one a server: a client of many servers that asks several of them is as
many spans.

Tested with 4.0.0, the oldest that is supported and the newest.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from paste_agent import lifecycle
from paste_agent.inside import CACHE
from paste_agent.instrument.wrapping import wrap
from paste_agent.raised import type_name
from paste_agent.recorder.layout import KIND_DATABASE
from paste_agent.spans import begin, end
from paste_agent.transaction import current

_METHODS = (
    *("get", "get_many", "gets", "gets_many"),
    *("set", "set_many", "add", "replace", "append", "prepend", "cas"),
    *("delete", "delete_many", "incr", "decr", "touch"),
    *("stats", "version", "flush_all"),
)
#: The library's other names of the same methods.
_ALIASES = {"get_multi": "get_many", "set_multi": "set_many", "delete_multi": "delete_many"}
#: Of a client: the attributes of its spans, by method.
_KNOWN = "_paste_agent_attributes"

_get = current.get


def install(module: ModuleType) -> None:
    """Wrap the methods of `Client` that talk to its server. A second call does nothing."""
    client = module.Client
    wrap(
        [
            *((client, name, _wrapper_of(name)) for name in _METHODS),
            *((client, name, _wrapper_of(same)) for name, same in _ALIASES.items()),
        ]
    )


def _wrapper_of(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    text = f"memcached {name}".encode()
    key = KIND_DATABASE, ("memcached", None, name, None, None, None)

    def wrapper(original: Callable[..., Any]) -> Callable[..., Any]:
        def command(self: Any, *args: Any, **kwargs: Any) -> Any:
            if _get() is None:
                return original(self, *args, **kwargs)
            span = begin(CACHE, text)
            if span is None:
                return original(self, *args, **kwargs)
            failed = None
            try:
                return original(self, *args, **kwargs)
            except BaseException as error:
                failed = type_name(error)
                raise
            finally:
                counted = key if failed is None else (KIND_DATABASE, ("memcached", None, name, None, None, failed))
                end(span, name, counted, failed, _attributes_of(self, name))

        return command

    return wrapper


def _attributes_of(client: Any, name: str) -> dict[str, object]:
    """The attributes of a client's spans, made once. Raises nothing."""
    try:
        known = client.__dict__.get(_KNOWN)
        if known is None:
            known = client.__dict__[_KNOWN] = {}
        found: dict[str, object] = known.get(name)
        if found is None:
            server = client.server
            found = {"db.system.name": "memcached", "db.operation.name": name}
            if isinstance(server, (tuple, list)):
                found["server.address"], found["server.port"] = str(server[0]), int(server[1])
            else:  # a socket of this host
                found["server.address"] = str(server)
            known[name] = found
        return found
    except Exception as fault:
        lifecycle.on_fault("a command of memcached", fault)
        return {"db.system.name": "memcached", "db.operation.name": name}
