"""Monitoring for WSGI applications that PasteDeploy configures and gunicorn serves.

Switched on by one line of ini: `[filter:agent] use = egg:paste_agent`. What an application may import is listed in
`__all__`; it is loaded when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["background_task", "span"]

if TYPE_CHECKING:
    from paste_agent.background import background_task
    from paste_agent.spans import span

_HOMES = {"background_task": "paste_agent.background", "span": "paste_agent.spans"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = found
    return found
