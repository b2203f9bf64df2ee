"""What the agent raises at its users, each as one line that names the place, the value and the cure."""


class AgentError(Exception):
    """Base of all that the agent raises on purpose; `str()` of it is one line for a person."""


class SettingError(AgentError):
    """A setting that cannot be used: start-up stops."""

    def __init__(self, place: str, value: str | None, cure: str) -> None:
        """place: where it stands, such as `[filter:agent] report_interval_s`; value: as found, None for no value."""
        self.place = place
        self.value = value
        self.cure = cure
        super().__init__(f"{place}: {cure}" if value is None else f"{place} = {value!r}: {cure}")


class IniError(AgentError):
    """An ini file that is missing, or that the loader would not read."""


class StoreError(AgentError):
    """A store that cannot be opened, or is not one."""


class RuntimeDirError(AgentError):
    """A runtime directory that is not private to this user, or cannot be made."""
