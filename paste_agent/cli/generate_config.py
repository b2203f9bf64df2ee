"""`paste-agent generate-config`: every setting with its meaning and its default, as an ini to begin from."""

from __future__ import annotations

import os
import textwrap

import click

from paste_agent import settings
from paste_agent.cli.replacing import replace
from paste_agent.errors import IniError
from paste_agent.launch.configuration import SECTION
from paste_agent.settings import CONFIG_FILE, ENVIRONMENT, Setting

_WIDTH = 100

OWN_HEAD = f"""\
# Settings of the agent for a program that no section [filter:agent] switches it on in. Name this file in the
# environment that the program is started with:
#
#     {CONFIG_FILE}={{name}}
#
# A line `#key = value` shows a default: take the # away to change it. A key that has none shows no value.
# What is not set here may come from the environment variables that are named beside it.

[{SECTION}]
"""
OWN_TAIL = f"""
# Laid over the above where {ENVIRONMENT}=production is set; as many of these as you like.
[{SECTION}:production]
resource_attributes = deployment.environment.name=production
#endpoint = https://collector.example.com:4318
#headers = authorization=Bearer ${{COLLECTOR_TOKEN}}
"""
FILTER_HEAD = """\
# The agent as a filter of a PasteDeploy pipeline. It measures what stands to its right:
#
#     [pipeline:main]
#     pipeline = agent myapp
#
# A line `#key = value` shows a default: take the # away to change it. A key that has none shows no value.
# What is not set here may come from the environment variables that are named beside it. A % is written %%.

[filter:agent]
use = egg:paste_agent
"""


@click.command(short_help="Print an ini with every setting explained.")
@click.option("--filter", "as_filter", is_flag=True, help="A section [filter:agent] for a PasteDeploy ini instead.")
@click.option("-o", "--output", "path", type=click.Path(dir_okay=False), help="Write it to this file.")
@click.option("--force", is_flag=True, help="Overwrite the file that is there.")
def command(as_filter: bool, path: str | None, force: bool) -> None:
    """Print an ini with every setting: what it means, its default, its environment variables.

    Without --filter it is the file that PASTE_AGENT_CONFIG_FILE names, with an example of settings that only
    hold in one environment.
    """
    text = text_of(as_filter, os.path.basename(path) if path else "agent.ini")
    if path is None:
        click.echo(text, nl=False)
        return
    if os.path.lexists(path) and not force:
        raise IniError(f"{path}: is there already; --force overwrites it")
    replace(path, text.encode())
    click.echo(f"{path}: written")


def text_of(as_filter: bool, name: str = "agent.ini") -> str:
    """The ini. name: of the file, for its comment."""
    rows = "".join(map(_row, settings.TABLE.values()))
    return FILTER_HEAD + rows if as_filter else OWN_HEAD.replace("{name}", name) + rows + OWN_TAIL


def _row(row: Setting) -> str:
    unit = f"Unit: {row.unit}. " if row.unit else ""
    variables = " or ".join(filter(None, (row.variable, row.otel)))
    about = _wrapped(row.help)
    if row.default_text:
        about += _wrapped(f"Default: {row.default_text}.")
    about += _wrapped(f"{unit}Environment: {variables}")
    value = value_of(row)
    return "\n" + "".join(f"# {line}\n" for line in about) + f"#{row.key} ={f' {value}' if value else ''}\n"


def value_of(row: Setting) -> str:
    """The default as an ini has it; '' where there is none, or where something else decides it."""
    default = row.default
    if default is None:
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, dict):
        return ",".join(f"{key}={value}" for key, value in default.items())
    if isinstance(default, tuple):
        return " ".join(map(str, default))
    return f"{default:g}" if isinstance(default, float) else str(default)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False)
