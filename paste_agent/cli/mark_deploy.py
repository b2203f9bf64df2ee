"""`paste-agent mark-deploy`: when which version went out."""

from __future__ import annotations

import getpass
import time
from typing import Any

import click

from paste_agent.cli.spans import Moment
from paste_agent.cli.target import target_of
from paste_agent.errors import StoreError
from paste_agent.store import deployments
from paste_agent.store.store import READ_ERRORS, Store
from paste_agent.store.summary import rfc3339


class _Line(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click alone
    """Text of one line."""

    name = "text"

    def __init__(self, most: int) -> None:
        self.most = most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value).strip()
        if not text or len(text) > self.most or not text.isprintable():
            self.fail(f"{value!r}: expected 1 to {self.most} printable characters", param, ctx)
        return text


@click.command(short_help="Mark that a version went out.")
@click.argument("version", type=_Line(100))
@click.argument("path", metavar="INI|STORE", default="production.ini")
@click.option("--description", type=_Line(500), default=None, help="What changed, a line.")
@click.option("--at", "at_s", type=Moment(), help="When: 2026-11-26T14:00Z, or 10m for ten minutes ago. [default: now]")
@click.option("--service", help="Which service, when the ini measures several.")
def command(version: str, path: str, description: str | None, at_s: float | None, service: str | None) -> None:
    """Note in the store that VERSION went out: a line on the charts of the dashboard, and what
    `paste-agent report --compare VERSION` compares before and after.
    """
    target = target_of(path, service)
    at_s = time.time() if at_s is None else at_s
    store = Store(target.store)
    try:
        deployments.add(store, at_s, version, description or "", _user())
    except READ_ERRORS as error:
        raise StoreError(f"{target.store}: cannot be written to: {error}; do it as the user of the service") from None
    finally:
        store.close()
    click.echo(f"{version} marked at {rfc3339(at_s)[:19]}Z in {target.store}")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # one that has no name, as in a container
        return ""
