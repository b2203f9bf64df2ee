"""How Django knows the application."""

from __future__ import annotations

from django.apps import AppConfig


class PasteAgentConfig(AppConfig):  # type: ignore[misc]  # Django ships no types
    """`paste_agent.django`; brings no models."""

    name = "paste_agent.django"
    label = "paste_agent"
    verbose_name = "paste-agent"
