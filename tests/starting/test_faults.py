"""Faults under load, applied to a service that knows nothing of the agent: exact under run-program as everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from paste_agent.launch import program
from paste_agent.launch.configuration import settings_of
from tests.faults.running import outcome
from tests.faults.service import PasteAgent, Shape
from tests.serving import environment


@dataclass
class OnBoard(PasteAgent):
    """The agent in the environment alone, as run-program puts it there."""

    directory: Path = Path()

    def sections(self, directory: Path) -> str:
        return ""

    def pipeline(self) -> str:
        return ""

    def environment(self, endpoint: str | None) -> dict[str, str]:
        settings = {
            "PASTE_AGENT_SERVICE_NAME": "faults",
            "PASTE_AGENT_STORE": f"{self.directory}/store.sqlite",
            "PASTE_AGENT_RUNTIME_DIR": f"{self.directory}/run",
            "PASTE_AGENT_SHUTDOWN_TIMEOUT_S": "20",
        }
        variables = {**environment(), **super().environment(endpoint), **settings}
        return program.environment(settings_of(variables), variables)


@pytest.mark.parametrize(("row", "preload"), [("worker SIGKILLed", True), ("SIGHUP", False), ("SIGUSR2", False)])
def test_exact(tmp_path: Path, row: str, preload: bool) -> None:
    outcome(row, tmp_path, 0, Shape(way="gunicorn", preload=preload), OnBoard(directory=tmp_path)).check()
