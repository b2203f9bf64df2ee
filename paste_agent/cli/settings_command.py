"""`paste-agent settings`: what is in effect, and where each value came from."""

from __future__ import annotations

import json
import os

import click

from paste_agent.cli.settings_table import as_object, table_of
from paste_agent.cli.sources import source_of
from paste_agent.cli.style import console_of


@click.command(short_help="Effective settings, and where each is from.")
@click.argument("path", metavar="[INI]", required=False)
@click.option("--all", "show_all", is_flag=True, help="List also the settings that have no value.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
def command(path: str | None, show_all: bool, as_json: bool) -> None:
    """Show every effective setting, and where its value came from. What is secret is shown as ***.

    INI is a service's ini, or a file with a section [paste_agent]. Without it: the file that
    PASTE_AGENT_CONFIG_FILE names, else production.ini of this directory, else what the environment says.

    Nothing is connected to, and nothing is written; `paste-agent check` tries what is set.
    """
    source = source_of(path, os.environ)
    if as_json:
        services = [as_object(found, show_all) for found in source.services]
        click.echo(json.dumps({"file": source.path, "services": services}, indent=2))
        return
    console = console_of()
    for found in source.services:
        console.print(table_of(found, source.place(found), show_all))
