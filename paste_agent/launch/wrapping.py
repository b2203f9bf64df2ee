"""The application of a program that was started with the agent on board, measured once."""

from __future__ import annotations

from paste_agent import filter as measuring
from paste_agent.settings import Settings
from paste_agent.transaction import WSGIApplication


def wrapped(application: WSGIApplication, settings: Settings) -> WSGIApplication:
    """`application`, measured; itself when `enabled` is false, or when it is measured already."""
    if isinstance(application, (measuring.AgentFilter, measuring.ParentHeaders)):
        return application
    return measuring.measured(application, settings)
