"""`paste-agent postmortem`: what a worker was doing when it died, and of what it died."""

from __future__ import annotations

import json
import os

import click

from paste_agent.cli.style import console_of, stack_lines
from paste_agent.cli.target import target_of
from paste_agent.errors import StoreError
from paste_agent.postmortem import Postmortem, describe, of_summary, short_id
from paste_agent.store.store import READ_ERRORS, PostmortemRow, Store
from paste_agent.store.summary import rfc3339

_DEFAULT = "production.ini"
_LISTED = 10
_FOR_EVER = 1e12


@click.command(short_help="Why a worker died, and over which request.")
@click.argument("words", metavar="[INI|STORE] [ID]", nargs=-1)
@click.option("--service", help="Which service, when the ini measures several.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
def command(words: tuple[str, ...], service: str | None, as_json: bool) -> None:
    """Print the account of a worker that died: the newest, or the one with this ID or beginning of an ID.

    `paste-agent report` lists the IDs.
    """
    path, name = _path_and_id(words)
    target = target_of(path, service)
    store = Store(target.store, read_only=True)
    try:
        row = _found(store, name, target.store)
        others = [one for one in store.postmortems(0, _FOR_EVER, _LISTED + 1) if row is None or one.id != row.id]
    except READ_ERRORS as error:
        raise StoreError(f"{target.store}: cannot be read: {error}") from None
    finally:
        store.close()
    if as_json:
        click.echo(json.dumps({} if row is None else dict(row.summary), indent=2))
    elif row is None:
        click.echo("No worker has died.")
    else:
        console, account = console_of(), _account(row)
        for line in stack_lines(f"{rfc3339(row.at)}  {describe(account, account.requests)}", account.own_files):
            console.print(line, soft_wrap=True)
        if others and name is None:
            click.echo("\nEarlier:")
            for one in others[:_LISTED]:
                click.echo(f"  {rfc3339(one.at)}  {short_id(one.id)}  {_account(one).headline}")


def _path_and_id(words: tuple[str, ...]) -> tuple[str, str | None]:
    """One word is the path of a file, if there is one, and else an ID."""
    if len(words) > 2:
        raise click.UsageError("give an ini or a store, and an ID; both may be left out")
    if len(words) == 2:
        return words[0], words[1]
    if words and not os.path.exists(words[0]) and not words[0].endswith((".ini", ".sqlite")):
        return _DEFAULT, words[0]
    return (words[0] if words else _DEFAULT), None


def _found(store: Store, name: str | None, path: str) -> PostmortemRow | None:
    if name is None:
        newest = store.postmortems(0, _FOR_EVER, 1)
        return newest[0] if newest else None
    found = store.postmortem(name)
    if len(found) != 1:
        what = "more than one post-mortem has" if found else "no post-mortem has"
        raise StoreError(f"{path}: {what} an ID that begins with {name!r}; `paste-agent report` lists them")
    return found[0]


def _account(row: PostmortemRow) -> Postmortem:
    return of_summary(row.id, row.at, row.reason, row.summary)
