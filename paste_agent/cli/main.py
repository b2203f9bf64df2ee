"""`paste-agent`: the group that the subcommands belong to."""

from __future__ import annotations

import sys

import click

import paste_agent
from paste_agent.cli import (
    check,
    dashboard,
    demo_traffic,
    generate_config,
    install,
    mark_deploy,
    metrics,
    postmortem,
    report,
    run_program,
    send_test,
    settings_command,
    top,
    trace,
)
from paste_agent.errors import AgentError


class _InOrder(click.Group):
    """Lists its commands as they are added below: first what sets a service up, then what reads it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(paste_agent.__version__, prog_name="paste-agent")
def group() -> None:
    """Set up the agent of a service, and see what it measured."""


group.add_command(install.command, "install")
group.add_command(generate_config.command, "generate-config")
group.add_command(check.command, "check")
group.add_command(settings_command.command, "settings")
group.add_command(send_test.command, "send-test")
group.add_command(run_program.run_program, "run-program")
group.add_command(run_program.run_python, "run-python")
group.add_command(report.command, "report")
group.add_command(trace.command, "trace")
group.add_command(postmortem.command, "postmortem")
group.add_command(mark_deploy.command, "mark-deploy")
group.add_command(metrics.command, "metrics")
group.add_command(dashboard.command, "dashboard")
group.add_command(top.command, "top")
group.add_command(demo_traffic.command, "demo-traffic")


def run() -> None:
    """The console script. What the agent raises on purpose is one line and exit status 1."""
    try:
        group(prog_name="paste-agent")
    except AgentError as error:
        click.echo(f"paste-agent: {error}", err=True)
        sys.exit(getattr(error, "status", 1))
