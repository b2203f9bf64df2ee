"""Settings of an ini and an environment that a test makes up."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from paste_agent.errors import SettingError
from paste_agent.settings import Settings, load

INI = {"__file__": "/srv/shop/production.ini", "here": "/srv/shop"}


def loaded(environ: Mapping[str, str] | None = None, /, **local_conf: str) -> Settings:
    """Of INI, where its section has these keys."""
    return load(local_conf, INI, environ or {})


def refused(environ: Mapping[str, str] | None = None, /, **local_conf: str) -> str:
    """The line with which they are refused."""
    with pytest.raises(SettingError) as raised:
        loaded(environ, **local_conf)
    text = str(raised.value)
    assert "\n" not in text
    return text
