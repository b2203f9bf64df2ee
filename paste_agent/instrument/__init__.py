"""What the agent learns from libraries, one file each."""

from __future__ import annotations

import sys

from paste_agent.instrument import pyramid


def install_loaded() -> None:
    """Instrument what has been imported so far: by the time that the filter is made, the application is loaded."""
    if "pyramid.router" in sys.modules:
        pyramid.install()
