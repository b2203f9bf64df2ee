"""`paste-agent install`: the agent's filter into an ini, and out of it."""

from __future__ import annotations

import configparser
import difflib
import io
import os
import sys

import click

from paste_agent import ini, ini_edit
from paste_agent.cli import loading
from paste_agent.cli.replacing import replace
from paste_agent.cli.style import printable
from paste_agent.errors import IniError
from paste_agent.ini_text import Section

_EDITED = ("pipeline", "filter-with")
_COLOURS = {"+": "green", "-": "red", "@": "cyan"}


@click.command(short_help="Put the agent into an ini, or take it out.")
@click.argument("path", metavar="INI")
@click.option("--app", "name", default="main", show_default=True, help="Section that the server loads.")
@click.option("--remove", is_flag=True, help="Take the agent out again.")
@click.option("--dry-run", is_flag=True, help="Show what would change, and write nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def command(path: str, name: str, remove: bool, dry_run: bool, yes: bool) -> None:
    """Put the agent into a PasteDeploy ini: first in its pipeline, or around its application.

    Shows what would change, and asks before it is written. Comments, order and every other line stay as they
    are. The file is loaded as the server loads it, before and after; nothing is written unless all of it is
    found, with the agent outermost.

    --remove undoes it, and also takes out an agent that was put in by hand. A section of the agent that has
    settings of its own stays.
    """
    try:
        _edit(path, name, remove, dry_run, yes)
    except IniError as error:
        text = str(error)
        raise IniError(text if text.startswith((path, os.path.abspath(path))) else f"{path}: {text}") from None


def _edit(path: str, name: str, remove: bool, dry_run: bool, yes: bool) -> None:
    ours = ini.filter_sections(path)
    with open(path, "rb") as file:
        data = file.read()
    text = data.decode()
    ini_edit.check_name(text, name)
    absolute = os.path.abspath(path)
    try:
        context = loading.context_of(absolute, name)
    except IniError as error:
        raise IniError(f"{error}; mend that first, or run the paste-agent of the environment that serves it") from None
    if loading.unservable(context) and not remove:
        raise IniError(
            f"[{name}]: PasteDeploy cannot serve a `filter-with` around a pipeline; put it into the pipeline"
        )
    calls = ini_edit.references(text, name, ours)
    is_there = any(map(loading.is_agent, loading.layers(context)))
    if remove and not calls:
        if is_there:
            raise IniError(f"the agent is in another file that [{name}] uses; remove it from that one")
        click.echo(f"{path}: the agent is not in [{name}]: nothing to do")
        return
    if not remove and (calls or is_there):
        click.echo(f"{path}: {_where(context, calls, name)}: nothing to do")
        return
    changed = ini_edit.remove(text, name, ours) if remove else ini_edit.install(text, name, ours, _plainness(absolute))
    _verify(text, changed, absolute, name, remove)
    _show(path, text, changed)
    left = [one for one in ours if one in _parsed(changed)] if remove else []
    if left:
        click.echo(f"[{'], ['.join(left)}] stays: it has settings or comments of its own")
    if dry_run:
        click.echo("dry run: nothing was written")
        return
    if not yes and not _agreed(path):
        click.echo("nothing was changed", err=True)
        sys.exit(1)
    replace(path, changed.encode(), expected=data)
    _say_done(path, name, remove, absolute, data)


def _where(context: loading.Context, calls: list[ini_edit.Reference], name: str) -> str:
    place = calls[0].section.name if calls else name
    layers = list(loading.layers(context))
    inner = any(map(loading.is_agent, layers)) and not loading.is_agent(layers[0])
    return f"the agent is in [{place}] already" + (", and measures what is further in than itself" if inner else "")


def _plainness(path: str) -> ini_edit.IsPlain:
    def is_plain(section: Section) -> bool:
        context = loading.context_of(path, section.called)
        own = "filter-with" in section.options
        return loading.is_application(loading.without_filter_with(context) if own else context)

    return is_plain


def _verify(before: str, after: str, path: str, name: str, removed: bool) -> None:
    """Raise IniError when the new text would do anything but what it is for."""
    found = _strange(_parsed(before), _parsed(after))
    if found:
        raise IniError(f"[{found}] cannot be edited without changing more than it should; edit it by hand")
    context = loading.context_of(path, name, after)
    layers = list(map(loading.is_agent, loading.layers(context)))
    if any(layers) if removed else loading.unservable(context) or not layers[0]:
        raise IniError(f"[{name}] is put together in a way that this command does not know; edit it by hand")


def _parsed(text: str) -> dict[str, dict[str, str]]:
    parser = configparser.RawConfigParser()
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # PasteDeploy's keys keep their case
    try:
        parser.read_file(io.StringIO(text, newline=None))
    except configparser.Error as error:
        raise IniError(f"cannot be edited: {' '.join(str(error).split())}") from None
    own = parser._sections  # type: ignore[attr-defined]  # the public view has [DEFAULT] mixed in
    return {"DEFAULT": dict(parser.defaults()), **{name: dict(options) for name, options in own.items()}}


def _strange(before: dict[str, dict[str, str]], after: dict[str, dict[str, str]]) -> str | None:
    """A section that is in both texts, and differs in what is no business of an edit; None when there is none."""
    for name in before.keys() & after.keys():
        if name.startswith("composit"):  # any key may be a pipeline
            continue
        for key in before[name].keys() | after[name].keys():
            if before[name].get(key) != after[name].get(key) and key not in _EDITED:
                return name
    return None


def _show(path: str, before: str, after: str) -> None:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), path, f"{path}, changed", lineterm="", n=3)
    for line in lines:
        colour = _COLOURS.get(line[0]) if not line.startswith(("+++", "---")) else None
        click.secho(printable(line.expandtabs(), 1000), fg=colour, bold=line.startswith(("+++", "---")))


def _agreed(path: str) -> bool:
    try:
        return click.confirm(f"Write this to {path}?")
    except click.Abort:  # nobody is there to ask
        click.echo("", err=True)
        return False


def _say_done(path: str, name: str, remove: bool, absolute: str, data: bytes) -> None:
    try:
        loading.context_of(absolute, name)
    except IniError as error:
        replace(path, data)
        raise IniError(f"{error}; the file is again what it was") from None
    if not remove:
        click.echo(f"{path}: written; the loader finds all of [{name}], with the agent outermost")
        click.echo(f"Next: paste-agent check {path}, then restart the service")
        return
    click.echo(f"{path}: written; the loader finds all of [{name}], without the agent")
