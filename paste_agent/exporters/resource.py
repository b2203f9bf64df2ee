"""The resource: what all telemetry of one service on one host has in common."""

from __future__ import annotations

import platform
import socket
from dataclasses import dataclass

import paste_agent
from paste_agent import probes
from paste_agent.settings import Settings


@dataclass(frozen=True)
class Facts:
    """What only the running process knows. webengine: name and version of the server; None where it is not known."""

    host_name: str
    runtime_name: str  #: such as cpython
    runtime_version: str  #: such as 3.11.7
    webengine: tuple[str, str] | None = None


def facts() -> Facts:
    """Of this process."""
    runtime, version = platform.python_implementation().lower(), platform.python_version()
    return Facts(socket.gethostname(), runtime, version, probes.web_engine())


def resource_of(settings: Settings, instance_id: str, facts: Facts) -> dict[str, str]:
    """Attributes of the resource, without those that have no value.

    instance_id: the store's, stable through restarts.
    What the user says wins. `service.name` has two places to say it: the setting `service_name` goes before
    `resource_attributes`, as OTEL_SERVICE_NAME goes before OTEL_RESOURCE_ATTRIBUTES, unless it is only the default.
    Source: OpenTelemetry semantic conventions, resource; OpenTelemetry SDK environment variables.
    """
    ours = {
        "service.name": settings.service_name,
        "service.instance.id": instance_id,
        "host.name": facts.host_name,
        "process.runtime.name": facts.runtime_name,
        "process.runtime.version": facts.runtime_version,
        "telemetry.sdk.name": "paste-agent",
        "telemetry.sdk.language": "python",
        "telemetry.sdk.version": paste_agent.__version__,
    }
    if facts.webengine is not None:
        ours["webengine.name"], ours["webengine.version"] = facts.webengine
    users = {key: value for key, value in settings.resource_attributes.items() if value}
    if settings.origins.get("service_name") != "default":
        users.pop("service.name", None)
    return {key: value for key, value in {**ours, **users}.items() if value}
