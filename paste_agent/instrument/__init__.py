"""What the agent learns from libraries, one file each."""

from __future__ import annotations

import sys
from importlib import import_module

#: What has to be loaded, and which module of this package then instruments it.
_HOMES = {
    "pyramid.router": "pyramid",
    "sqlite3": "sqlite",
    "http.client": "http_client",
}


def install_loaded() -> None:
    """Instrument what has been imported so far: by the time that the filter is made, the application is loaded."""
    for library, home in _HOMES.items():
        if library in sys.modules:
            import_module(f"{__name__}.{home}").install()
