"""`paste-agent`: the group that the subcommands belong to."""

from __future__ import annotations

import sys

import click

import paste_agent
from paste_agent.cli import check, dashboard, demo_traffic, postmortem, report, trace
from paste_agent.errors import AgentError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(paste_agent.__version__, prog_name="paste-agent")
def group() -> None:
    """See what a service measured, and check how it is set up."""


group.add_command(report.command, "report")
group.add_command(trace.command, "trace")
group.add_command(postmortem.command, "postmortem")
group.add_command(dashboard.command, "dashboard")
group.add_command(check.command, "check")
group.add_command(demo_traffic.command, "demo-traffic")


def run() -> None:
    """The console script. What the agent raises on purpose is one line and exit status 1."""
    try:
        group(prog_name="paste-agent")
    except AgentError as error:
        click.echo(f"paste-agent: {error}", err=True)
        sys.exit(1)
