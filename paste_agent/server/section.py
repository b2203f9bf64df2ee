"""`[DEFAULT]` and `[server:main]` of an ini file, as settings of gunicorn.

The section is read with a plain parser, not with PasteDeploy's loader: that would import what `use` names, refuse the
whole file for one `%(x)s` that nothing defines, and drop every key that `[DEFAULT]` has too.
"""

from __future__ import annotations

import configparser
import difflib
import logging
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from gunicorn import config as gunicorn_config
from gunicorn import util
from gunicorn.config import Config

from paste_agent import ini
from paste_agent.errors import IniError, SettingError

log = logging.getLogger("paste_agent")

MAIN = "server:main"
#: A port without a host is served here, as the old `gunicorn_paster` runner did: not to the world by accident.
DEFAULT_HOST = "127.0.0.1"

#: Keys of the section with a meaning of their own; not warned about.
_OWN_KEYS = frozenset({"use", "host", "port", "config"})
#: Too general a name to be meant for gunicorn when it stands in [DEFAULT].
_NOT_FROM_DEFAULT = frozenset({"config"})
_KEY_VALUE = frozenset({"raw_env", "raw_paste_global_conf"})


@dataclass(frozen=True)
class ServerSection:
    """What an ini says to the server; values are interpolated one by one, when they are needed."""

    path: str  #: of the ini; '' when there is none
    name: str  #: such as `server:main`
    defaults: Mapping[str, str] = field(default_factory=dict)  #: [DEFAULT], raw
    own: Mapping[str, str] = field(default_factory=dict)  #: the section without [DEFAULT], raw
    variables: Mapping[str, str] | None = None  #: what %(x)s may name; None: the values are interpolated already

    def value(self, key: str) -> str | None:
        """A key of the section, interpolated; None when it has no such key. Raises SettingError."""
        return self._resolve(self.name, key, self.own[key]) if key in self.own else None

    def config_file(self) -> str | None:
        """gunicorn's configuration file that the key `config` names, in gunicorn's form. Raises SettingError."""
        location = self.value("config")
        if not location or location.startswith("python:"):
            return location or None
        name = location.removeprefix("file:")
        here = os.path.dirname(self.path) or os.getcwd()
        for directory in (here, os.getcwd()):
            if os.path.exists(os.path.join(directory, name)):
                return os.path.join(directory, name)
        raise SettingError(f"[{self.name}] config", location, f"no such file in {here} or in the working directory")

    def apply(self, cfg: Config, overridden: Collection[str] = ()) -> dict[str, str]:
        """Set what the ini says in `cfg`: [DEFAULT] first, then the section. A line is logged for each unknown key.

        overridden: names of settings that a stronger source sets, so that the ini's value is not even looked at.
        Returns where each setting came from, such as {"workers": "[server:main] workers"}.
        Raises SettingError for a value that gunicorn does not take.
        """
        places: dict[str, str] = {}
        for key, raw in self.defaults.items():
            if key in cfg.settings and key not in _NOT_FROM_DEFAULT and key not in overridden and key not in self.own:
                _set(cfg, key, self._resolve("DEFAULT", key, raw), f"[DEFAULT] {key}")
                places[key] = f"[DEFAULT] {key}"
        if "bind" not in overridden and "bind" not in self.own:
            self._bind(cfg, places)
        for key, raw in self.own.items():
            name = key.lower()
            if key in _OWN_KEYS or key.startswith(("set ", "get ", "__")):
                continue
            if name not in cfg.settings:
                self._warn(key, raw, cfg)
            elif name not in overridden:
                _set(cfg, name, self._resolve(self.name, key, raw), f"[{self.name}] {key}")
                places[name] = f"[{self.name}] {key}"
        return places

    def _bind(self, cfg: Config, places: dict[str, str]) -> None:
        host, port = self.value("host") or "", self.value("port") or ""
        if not host and not port:
            return
        if port and not (port.isdecimal() and int(port) <= 65535):
            raise SettingError(f"[{self.name}] port", port, "expected a number from 0 to 65535, for example 8080")
        key = "host" if host else "port"
        hosts = [part.strip() for part in (host or DEFAULT_HOST).split(",") if part.strip()]
        _set(cfg, "bind", [_address(part, port) for part in hosts], f"[{self.name}] {key}", host or port)
        places["bind"] = f"[{self.name}] {key}"

    def _resolve(self, section: str, key: str, raw: str) -> str:
        if self.variables is None or "%" not in raw:
            return raw
        variables = {**self.variables, **self.defaults, **(self.own if section != "DEFAULT" else {})}
        parser = configparser.ConfigParser()
        parser.optionxform = str  # type: ignore[assignment,method-assign]  # keys keep their case
        if section != "DEFAULT":
            parser.add_section(section)
        try:
            return configparser.BasicInterpolation().before_get(parser, section, key, raw, variables)
        except configparser.InterpolationMissingOptionError as error:
            missing = error.reference
            cure = (
                f"nothing defines {missing}; give it with --paste-global {missing}=..., or write %% for a percent sign"
            )
        except configparser.InterpolationError:
            cure = "expected %(name)s, or %% for a percent sign"
        raise SettingError(f"[{section}] {key}", raw, cure)

    def _warn(self, key: str, raw: str, cfg: Config) -> None:
        near = difflib.get_close_matches(key.lower(), list(cfg.settings), n=1)
        hint = f"did you mean {near[0]}?" if near else "no setting has a similar name"
        log.warning("%s: [%s] %s = %r: not a setting of gunicorn; %s", self.path, self.name, key, raw, hint)


def read(path: str, global_conf: Mapping[str, str], name: str | None = None) -> ServerSection:
    """The server section of the ini at `path`; an empty one when it has none.

    global_conf: what `--paste-global` added.
    name: of the section; None: `[server:main]`.
    Raises IniError for a file that cannot be read.
    """
    parser = ini.parser_of(path)
    defaults = dict(parser.defaults())
    parser[parser.default_section].clear()  # from here on items() of a section are its own
    if name is None:
        name = next((section for section in parser.sections() if _is_main(section)), MAIN)
    own = dict(parser.items(name)) if parser.has_section(name) else {}
    here = {"here": os.path.dirname(path).replace("%", "%%"), "__file__": path.replace("%", "%%")}
    # As in PasteDeploy: within the ini [DEFAULT] is stronger than what was passed from outside.
    return ServerSection(path, name, defaults, own, {**global_conf, **here})


def of_runner(global_conf: Mapping[str, str], local_conf: Mapping[str, str]) -> ServerSection:
    """The section that PasteDeploy called a server runner for; nothing in it is left to interpolate.

    Raises SettingError for a key that the loader had dropped and that cannot be interpolated.
    """
    path = global_conf.get("__file__", "")
    name, dropped = MAIN, dict[str, str]()
    found = _called_section(path, local_conf) if path else None
    if found is not None:
        section = read(path, global_conf, found)
        name = found
        dropped = {key: section.value(key) or "" for key in section.own if key in section.defaults}
    return ServerSection(path, name, global_conf, {**dropped, **local_conf})


def has_loggers(path: str) -> bool:
    """Whether the file at `path` is an ini with a [loggers] section."""
    try:
        return ini.parser_of(path).has_section("loggers")
    except IniError:
        return False


def _called_section(path: str, local_conf: Mapping[str, str]) -> str | None:
    """The server section that has just these keys: PasteDeploy does not tell which one it called for."""
    try:
        parser = ini.parser_of(path)
    except IniError:  # other loaders than PasteDeploy's read other formats
        return None
    defaults = parser.defaults()
    given = {key for key in local_conf if not key.startswith("__")}
    fitting = []
    for section in parser.sections():
        if section.partition(":")[0].strip() == "server":
            own = {key for key in parser.options(section) if not key.startswith(("set ", "get ")) and key != "use"}
            if own - set(defaults) == given:
                fitting.append(section)
    return fitting[0] if len(fitting) == 1 else next((section for section in fitting if _is_main(section)), None)


def _is_main(section: str) -> bool:
    kind, _, name = section.partition(":")
    return kind.strip() == "server" and name.strip() in ("", "main")


def _address(host: str, port: str) -> str:
    """`host` with `port`, in the form that gunicorn's `bind` takes."""
    if not port or host.startswith(("unix:", "fd://")):
        return host
    return f"[{host}]:{port}" if util.is_ipv6(host) else f"{host}:{port}"


def _set(cfg: Config, name: str, value: str | list[str], place: str, shown: str | None = None) -> None:
    """Set one setting; `shown` is the value as the user wrote it, where that is not `value`."""
    setting = cfg.settings[name]
    try:
        setting.set(_listed(setting, value))
        _check(name, setting.get())
    except Exception as error:
        raise SettingError(place, str(value) if shown is None else shown, _cure(setting, error)) from None


def _listed(setting: gunicorn_config.Setting, value: str | list[str]) -> str | list[str]:
    """A list's items stand on lines of their own; addresses may be separated by commas too."""
    lists = (gunicorn_config.validate_list_string, getattr(gunicorn_config, "validate_list_of_files_or_patterns", None))
    if isinstance(value, str) and (setting.validator in lists or setting.name == "reload_extra_files"):
        lines = value.replace(",", "\n") if setting.name == "bind" else value
        return [line.strip() for line in lines.splitlines() if line.strip()]
    return value


def _check(name: str, value: object) -> None:
    """What gunicorn would find out only once it has started, and then with a traceback."""
    if name == "bind" and isinstance(value, list):
        for address in value:
            util.parse_address(address)
    elif name in _KEY_VALUE and isinstance(value, list):
        for item in value:
            if "=" not in item:
                raise ValueError("expected name=value, one on a line")


def _cure(setting: gunicorn_config.Setting, error: Exception) -> str:
    if setting.validator is gunicorn_config.validate_bool:
        return "expected true or false"
    if setting.validator is gunicorn_config.validate_pos_int:
        return f"expected a whole number from 0, for example {setting.default or 1}"
    if setting.validator is gunicorn_config.validate_dict:
        return "a dictionary can be set in a gunicorn configuration file only"
    return " ".join(str(error).split()) or type(error).__name__
