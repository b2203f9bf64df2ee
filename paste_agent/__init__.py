"""Monitoring for WSGI applications that PasteDeploy configures and gunicorn serves.

Switched on by one line of ini: `[filter:agent] use = egg:paste_agent`. What an application may import is listed in
`__all__`; it is loaded when it is first asked for.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing is not imported, nor anything else: see launch/aboard/sitecustomize.py

__version__ = "0.1.0"
__all__ = [
    "add_attribute",
    "add_attributes",
    "background_task",
    "count",
    "ignore_transaction",
    "mark_as_background",
    "name_transaction",
    "notice_error",
    "outbound_headers",
    "span",
    "timing",
    "trace_context",
]

if TYPE_CHECKING:
    from paste_agent.api import (
        add_attribute,
        add_attributes,
        count,
        ignore_transaction,
        mark_as_background,
        name_transaction,
        notice_error,
        outbound_headers,
        timing,
        trace_context,
    )
    from paste_agent.background import background_task
    from paste_agent.spans import span

_HOMES = {"background_task": "paste_agent.background", "span": "paste_agent.spans"}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found: object = getattr(import_module(_HOMES.get(name, "paste_agent.api")), name)
    globals()[name] = found
    return found
