"""Effective settings for people and for programs. What is secret is never in them."""

from __future__ import annotations

import re
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from paste_agent import settings
from paste_agent.settings import Settings

#: Of a URL: user and password.
_USERINFO = re.compile(r"//[^/?#]*@")
_QUERY = re.compile(r"\?.*", re.DOTALL)
_MASK = "***"
_NOTHING: tuple[object, ...] = (None, {}, ())


def table_of(found: Settings, title: str, show_all: bool) -> Table:
    """A row for each setting; those without a value only with `show_all`."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=Text(title), title_justify="left")
    table.add_column("setting", no_wrap=True)
    table.add_column("value", overflow="fold", ratio=1)
    table.add_column("from", no_wrap=True)
    hidden = 0
    for row in settings.TABLE.values():
        origin, value = found.origins[row.key], found.values[row.key]
        if value in (None, {}) and not show_all:
            hidden += 1
            continue
        table.add_row(row.key, _value_text(row, value), Text(origin, style="dim" if origin == "default" else "bold"))
    if hidden:
        table.caption = f"{hidden} that have no value are left out; --all lists them"
    return table


def as_object(found: Settings, show_all: bool) -> dict[str, Any]:
    """The same for JSON: value, unit and origin of each setting by its key."""
    return {
        "service": found.service_name,
        "section": found.section,
        "overruled": list(found.overruled),
        "settings": {
            row.key: {
                "value": _masked(row, found.values[row.key]),
                "unit": row.unit or None,
                "from": found.origins[row.key],
            }
            for row in settings.TABLE.values()
            if show_all or found.values[row.key] not in (None, {})
        },
    }


def _masked(row: settings.Setting, value: object) -> object:
    if row.secret and isinstance(value, dict):
        return dict.fromkeys(value, _MASK)
    if row.secret and value is not None:
        return _MASK
    if row.key.endswith("endpoint") and value is not None:
        # A key may stand in the query as well.
        return _QUERY.sub(f"?{_MASK}", _USERINFO.sub(f"//{_MASK}@", str(value)))
    return value


def _value_text(row: settings.Setting, value: object) -> Text:
    value = _masked(row, value)
    if value in _NOTHING:
        return Text("–", style="dim")
    if isinstance(value, dict):
        return Text(", ".join(f"{name}={text}" for name, text in value.items()))
    if isinstance(value, tuple):
        return Text(" ".join(map(str, value)))
    if isinstance(value, bool):
        return Text(str(value).lower())
    if isinstance(value, float):
        return Text(f"{value:g} {row.unit}".strip())
    return Text(f"{value} {row.unit}".strip())
