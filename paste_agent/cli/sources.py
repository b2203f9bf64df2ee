"""Where the settings are that a subcommand is asked about: an ini, a file of the agent's own, or the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from paste_agent import ini
from paste_agent.launch import configuration
from paste_agent.settings import CONFIG_FILE, Settings

DEFAULT = "production.ini"


class Source(NamedTuple):
    """services: one or more. path: of the file, as it was given; None: the environment alone."""

    path: str | None
    services: list[Settings]

    def place(self, found: Settings) -> str:
        """Where the settings of a service are, for a heading."""
        return "the environment" if self.path is None else f"{self.path} [{found.section}]"


def source_of(path: str | None, environ: Mapping[str, str]) -> Source:
    """path: None: the file that PASTE_AGENT_CONFIG_FILE names, or production.ini of this directory, or none at all.

    Raises IniError and SettingError.
    """
    if path is None and not environ.get(CONFIG_FILE):
        if not os.path.exists(DEFAULT):
            return Source(None, [configuration.settings_of(environ)])
        path = DEFAULT
    if path is None:
        return Source(environ[CONFIG_FILE], [configuration.settings_of(environ)])
    return Source(path, configuration.services_in(path, environ))


def is_own_file(path: str) -> bool:
    """Whether the file is the agent's own, and no pipeline's. Raises IniError."""
    return ini.parser_of(path).has_section(configuration.SECTION)
