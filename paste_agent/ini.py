"""Finds the agent's sections in an ini file, read as PasteDeploy's loader reads it."""

from __future__ import annotations

import configparser
import os
from collections.abc import Mapping

from paste.deploy import loadwsgi

from paste_agent import settings
from paste_agent.errors import IniError

_OURS = ("paste_agent", "paste-agent")


def parser_of(path: str) -> configparser.ConfigParser:
    """A parser over `path` that interpolates nothing and has no defaults of its own.

    Raises IniError for a file that is missing or is no ini.
    """
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # PasteDeploy's keys keep their case
    try:
        with open(path, encoding="utf-8") as file:
            parser.read_file(file)
    except OSError as error:
        raise IniError(f"{path}: {error.strerror}; give the path of the service's ini file") from None
    except (configparser.Error, UnicodeDecodeError) as error:
        raise IniError(f"{path}: not an ini file: {' '.join(str(error).split())}") from None
    return parser


def filter_sections(path: str) -> list[str]:
    """Names of the sections, such as `filter:agent`, whose `use` is this package. Raises IniError."""
    parser = parser_of(path)
    return [name for name in parser.sections() if name.startswith("filter") and _is_ours(parser, name)]


def sections_that_use(path: str, name: str) -> list[str]:
    """Names of the sections whose `use` is the entry point `name` of this package. Raises IniError."""
    parser = parser_of(path)
    found: list[str] = []
    for section in parser.sections():
        scheme, _, rest = parser.get(section, "use", fallback="").strip().partition(":")
        package, _, entry = rest.partition("#")
        if scheme == "egg" and package.strip().lower() in _OURS and entry.strip() == name:
            found.append(section)
    return found


def mounted_at(path: str) -> list[str]:
    """URL paths at which the ini mounts the dashboard, as far as its composites tell. Raises IniError."""
    parser = parser_of(path)
    names = {section.partition(":")[2].strip() for section in sections_that_use(path, "dashboard")}
    found: list[str] = []
    for section in parser.sections():
        if section.partition(":")[0] in ("composite", "composit"):
            items = parser._sections[section].items()  # type: ignore[attr-defined]  # without [DEFAULT]
            found += [key.rstrip("/") for key, value in items if key.startswith("/") and value.strip() in names]
    return found


def dropped_keys(path: str, section: str) -> list[str]:
    """Keys of `section` that the loader drops because [DEFAULT] has them too. Raises IniError."""
    parser = parser_of(path)
    defaults = parser.defaults()
    own = parser._sections[section]  # type: ignore[attr-defined]  # the public view has [DEFAULT] mixed in
    return [key for key in own if key in defaults]


def services(
    path: str, environ: Mapping[str, str], global_conf: Mapping[str, str] | None = None
) -> list[settings.Settings]:
    """The settings of every service that the ini measures, in the order of its sections.

    global_conf: what `--paste-global` added.
    Raises IniError when the file cannot be read or has no section of ours, SettingError for a wrong value.
    """
    path = os.path.abspath(path)
    sections = filter_sections(path)
    if not sections:
        raise IniError(
            f"{path}: no section says `use = egg:paste_agent`; add [filter:agent] and put it first in the pipeline,"
            " or let `paste-agent install` do it"
        )
    found: list[settings.Settings] = []
    for section in sections:
        local_conf, merged = section_conf(path, section, global_conf)
        found.append(settings.load(local_conf, merged, environ, section))
    return found


def section_conf(
    path: str, section: str, global_conf: Mapping[str, str] | None = None
) -> tuple[dict[str, str], dict[str, str]]:
    """The local and the global configuration that the loader passes to the factory of filter section `section`.

    Raises IniError when the loader would not get that far.
    """
    kind, _, name = section.partition(":")
    given = dict(global_conf or {})
    try:
        loader = loadwsgi.ConfigLoader(path)
        loader.update_defaults(given, overwrite=False)
        if kind == "filter-app":
            name = _filter_alone(loader, section)
        context = loader.get_context(loadwsgi.FILTER, name.strip() or "main", given)
    except (LookupError, ValueError, ImportError, configparser.Error) as error:
        raise IniError(f"{path}: [{section}]: {' '.join(str(error).split())}") from None
    if context.object_type is loadwsgi.FILTER_WITH:
        context = context.next_context
    return dict(context.local_conf), dict(context.global_conf)


def section_of(global_conf: Mapping[str, str]) -> str:
    """The section that a factory was probably called for, for messages: PasteDeploy does not tell it."""
    path = global_conf.get("__file__")
    if path:
        try:
            sections = filter_sections(path)
        except IniError:
            return settings.DEFAULT_SECTION
        if len(sections) == 1:
            return sections[0]
        if sections:
            return " or ".join(sections)
    return settings.DEFAULT_SECTION


def _filter_alone(loader: loadwsgi.ConfigLoader, section: str) -> str:
    """The filter of a [filter-app:…] as a section of its own: loading all of it would import the application."""
    parser = loader.parser
    name = f"of {section}"
    parser.add_section(f"filter:{name}")
    for key, value in parser._sections[section].items():
        if key != "next":
            parser.set(f"filter:{name}", key, value)
    return name


def _is_ours(parser: configparser.ConfigParser, section: str) -> bool:
    """Whether `use` names this package, or another section of the file that does."""
    seen = set()
    while section not in seen:
        seen.add(section)
        use = parser.get(section, "use", fallback="").strip()
        scheme, colon, rest = use.partition(":")
        if colon:
            return scheme == "egg" and rest.partition("#")[0].strip().lower() in _OURS
        section = next((name for name in parser.sections() if _filter_name(name) == use), section)
    return False


def _filter_name(section: str) -> str | None:
    """The name that `use` calls a filter's section by; None for a section of another kind."""
    kind, colon, name = section.partition(":")
    return name.strip() if colon and kind == "filter" else None
