"""Settings where no pipeline has a section of ours: from the file that PASTE_AGENT_CONFIG_FILE names."""

from __future__ import annotations

import os
from collections.abc import Mapping

from paste_agent import ini, settings
from paste_agent.errors import IniError, SettingError
from paste_agent.settings import CONFIG_FILE, ENVIRONMENT, Settings

#: Of a file that is the agent's own.
SECTION = "paste_agent"


def settings_of(environ: Mapping[str, str], name: str | None = None) -> Settings:
    """The settings of a program that is started with the agent on board.

    They are those of [paste_agent] in the file that PASTE_AGENT_CONFIG_FILE names, [paste_agent:NAME] laid over them
    where PASTE_AGENT_ENVIRONMENT is NAME; or of the filter's section, where the file is a PasteDeploy ini. Without
    a file they are those of the environment.

    name: of the service, where there is neither a file nor a setting that gives it one.
    Raises IniError and SettingError.
    """
    path = environ.get(CONFIG_FILE)
    environment = environ.get(ENVIRONMENT)
    if not path:
        if environment:
            raise SettingError(ENVIRONMENT, environment, f"says which section of {CONFIG_FILE} counts; set that too")
        return settings.load({}, {}, environ, "environment", name)
    path = os.path.abspath(path)
    parser = ini.parser_of(path)
    if not parser.has_section(SECTION):
        if parser.has_section("newrelic"):
            raise IniError(f"{path}: the file of another agent; `paste-agent generate-config` makes one of this one's")
        return _of_pipeline(path, environ)
    conf = {"__file__": path, "here": os.path.dirname(path)}
    found = dict(parser.items(SECTION))
    if environment:
        section = f"{SECTION}:{environment}"
        if not parser.has_section(section):
            known = [name.partition(":")[2] for name in parser.sections() if name.startswith(f"{SECTION}:")]
            raise SettingError(
                ENVIRONMENT,
                environment,
                f"{path} has no [{section}]; it has {', '.join(known) or 'none but the first'}",
            )
        settings.load(found, conf, environ, SECTION)  # so that an error names the section that it is in
        laid_over = dict(parser.items(section))
        settings.load(laid_over, conf, environ, section)
        found.update(laid_over)
        return settings.load(found, conf, environ, section)
    return settings.load(found, conf, environ, SECTION)


def services_in(path: str, environ: Mapping[str, str]) -> list[Settings]:
    """The settings of every service that a file configures: an ini, or one with a section [paste_agent].

    Raises IniError and SettingError.
    """
    if ini.parser_of(path).has_section(SECTION):
        return [settings_of({**environ, CONFIG_FILE: path})]
    return ini.services(path, environ)


def _of_pipeline(path: str, environ: Mapping[str, str]) -> Settings:
    """Of the one section of an ini whose `use` is this package."""
    found = ini.services(path, environ)
    if len(found) != 1:
        chosen = [one for one in found if one.section == settings.DEFAULT_SECTION]
        if len(chosen) != 1:
            sections = ", ".join(f"[{one.section}]" for one in found)
            raise IniError(f"{path}: has {sections}; give the one that counts a section [{SECTION}] of its own")
        return chosen[0]
    return found[0]
