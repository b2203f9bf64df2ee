"""Puts the agent's filter into the text of an ini, and takes it out again. Nothing is read, loaded or written here."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from paste_agent.errors import IniError
from paste_agent.ini_text import IniText, Option, Section, Word

APPLICATIONS = ("app", "application", "composite", "composit", "pipeline", "filter-app")
_COMPOSITES = ("composite", "composit")
_FILTERS = ("filter",)
_USE = "egg:paste_agent"
_NAMES = ("agent", "paste_agent", *(f"paste_agent_{number}" for number in range(2, 100)))
#: Added to the name of a section that a pipeline has taken the place of.
_INNER = "_without_agent"
_SCHEME = re.compile(r"[a-zA-Z]+:")


IsPlain = Callable[[Section], bool]


class Reference(NamedTuple):
    """Where a section calls for the agent. word: None: the section itself is the agent around another one."""

    section: Section
    option: Option
    word: Word | None


def install(text: str, name: str, ours: Collection[str], is_plain: IsPlain) -> str:
    """The text with the agent around all that `[…:name]` is.

    ours: names of the sections, such as `filter:agent`, whose `use` is this package. is_plain: whether a section is
    an application to the loader, when its own `filter-with` is left out: nothing else can have one.
    Raises IniError where that takes a decision.
    """
    ini = IniText(text)
    agent, is_new = _agent_of(ini, ours)
    section = _spot(ini, name, is_plain, set())
    if section.kind == "pipeline":
        if "filter-with" in section.options:
            raise IniError(
                f"[{section.name}] filter-with: PasteDeploy cannot serve it in a pipeline; put that filter first in it"
            )
        changed, anchor = ini.with_first_word(section.options["pipeline"], agent), section.name
    elif section.kind == "filter-app" or not is_plain(section):
        changed, anchor = _wrapped(ini, section, agent)
    else:
        _refuse_shadow(ini)
        section = _outermost(ini, section)
        changed, anchor = ini.with_option(section, "filter-with", agent), section.name
    if is_new:
        ini = IniText(changed)
        changed = ini.with_section(ini.named(anchor), f"filter:{agent}", {"use": _USE})
    return changed


def _agent_of(ini: IniText, ours: Collection[str]) -> tuple[str, bool]:
    """What the pipeline calls the filter, and whether it is to be made."""
    known = [one.called for one in ini.sections if one.name in ours and one.kind in _FILTERS]
    if known:
        return ("agent" if "agent" in known else known[0]), False
    return next(name for name in _NAMES if ini.section(_FILTERS, name) is None), True


def check_name(text: str, name: str) -> None:
    """Raise IniError when nothing that can be served is called `name`."""
    _application(IniText(text), name)


def _application(ini: IniText, name: str) -> Section:
    section = ini.section(APPLICATIONS, name)
    if section is None:
        known = ", ".join(dict.fromkeys(one.called for one in ini.sections if one.kind in APPLICATIONS))
        choose = f"choose one with --app: {known}" if known else "it has no section such as [app:main] at all"
        raise IniError(f"no application is called {name}; {choose}")
    return section


def _spot(ini: IniText, name: str, is_plain: IsPlain, seen: set[str]) -> Section:
    """The section to change: the one of that name, or the one that it merely stands for."""
    section = _application(ini, name)
    use = section.value("use") or ""
    if section.kind in ("pipeline", "filter-app") or name in seen or is_plain(section):
        return section
    if not _SCHEME.match(use) and ini.section(APPLICATIONS, use) is not None:
        return _spot(ini, use, is_plain, seen | {name})
    return section


def _wrapped(ini: IniText, section: Section, agent: str) -> tuple[str, str]:
    """A pipeline in the place of a section that keeps all but its name."""
    name, inner = section.called, section.called + _INNER
    users = [one for one in ini.sections if one.value("use") == name and one.kind in APPLICATIONS]
    if users:
        raise IniError(f"[{section.name}] is what [{users[0].name}] uses too; give it a pipeline by hand")
    if ini.section(APPLICATIONS, inner) is not None:
        raise IniError(f"{inner} is the name of a section already; rename it, or make [pipeline:{name}] by hand")
    renamed = IniText(ini.with_name(section, f"{section.kind}:{inner}"))
    made = renamed.named(f"{section.kind}:{inner}")
    pipeline = f"pipeline:{name}"
    return renamed.with_section(made, pipeline, {"pipeline": f"{agent} {inner}"}), pipeline


def _refuse_shadow(ini: IniText) -> None:
    if any("filter-with" in one.options for one in ini.sections if one.name == "DEFAULT"):
        raise IniError(
            "[DEFAULT] filter-with: hides the key of that name in every section; move it to where it belongs"
        )


def _outermost(ini: IniText, section: Section) -> Section:
    """Where the chain of `filter-with` ends that begins in this section: what a filter names is around that filter."""
    seen: set[str] = set()
    while (name := section.value("filter-with")) is not None:
        inner = ini.section(_FILTERS, name)
        if inner is None or inner.name in seen:
            raise IniError(
                f"[{section.name}] filter-with = {name}: is no section of this file;"
                f" make it one, such as [filter:theirs] with use = {name}, and name that"
            )
        seen.add(inner.name)
        section = inner
    return section


# -- out again -----------------------------------------------------------------------------------------------------


def references(text: str, name: str, ours: Collection[str]) -> list[Reference]:
    """Where the agent is called for in what `[…:name]` leads to, what a composite mounts included."""
    ini = IniText(text)
    section = ini.section(APPLICATIONS, name)
    return [] if section is None else list(_references(ini, section, ours, set()))


def _references(ini: IniText, section: Section, ours: Collection[str], seen: set[str]) -> Iterator[Reference]:
    if section.name in seen:
        return
    seen.add(section.name)
    if section.kind == "filter-app" and _is_ours(ini, section.value("use") or "", ours):
        yield Reference(section, section.options["use"], None)
    for option, word, kinds in _calls(section):
        # One section of ours may use another one: that is a name for it, and no call.
        if kinds == _FILTERS and option.key != "use" and _is_ours(ini, word.text, ours):
            yield Reference(section, option, word)
        inner = ini.section(kinds, word.text)
        if inner is not None:
            yield from _references(ini, inner, ours, seen)


def _calls(section: Section) -> Iterator[tuple[Option, Word, tuple[str, ...]]]:
    """Words of a section that may be names of others, and of which kind."""
    own_kinds = _FILTERS if section.kind in _FILTERS else APPLICATIONS
    for key, option in section.options.items():
        words = option.words
        if key == "filter-with":
            yield from ((option, word, _FILTERS) for word in words[:1])
        elif key == "pipeline" and section.kind == "pipeline":
            yield from ((option, word, _FILTERS) for word in words[:-1])
            yield from ((option, word, APPLICATIONS) for word in words[-1:])
        elif key in ("use", "next") and section.kind != "filter-app":
            yield from ((option, word, own_kinds) for word in words[:1])
        elif key == "next" or section.kind in _COMPOSITES:
            yield from ((option, word, APPLICATIONS) for word in words)
            # Some composites are given pipelines, of which they choose one.
            yield from ((option, word, _FILTERS) for word in words[:-1] if key != "next")


def _is_ours(ini: IniText, word: str, ours: Collection[str]) -> bool:
    scheme, colon, rest = word.partition(":")
    if colon:
        return scheme.lower() == "egg" and rest.partition("#")[0].lower() in ("paste_agent", "paste-agent")
    section = ini.section(_FILTERS, word)
    return section is not None and section.name in ours


def remove(text: str, name: str, ours: Collection[str]) -> str:
    """The text without the agent in what `[…:name]` leads to, and without its section when nothing calls for that then.

    A section that says more than `use`, or a comment, stays for when the agent is installed again. What `install` has
    made of a text it makes that text again. Raises IniError where that takes a decision.
    """
    while found := references(text, name, ours):
        text = _without(IniText(text), found[0], ours)
    while (unused := _unused(IniText(text), ours)) is not None:
        ini = IniText(text)
        text = ini.without_section(ini.named(unused))
    return text


def _without(ini: IniText, found: Reference, ours: Collection[str]) -> str:
    section, option, word = found
    if word is None:
        raise IniError(
            f"[{section.name}] is the agent itself; make it [app:{section.called}] with use = {section.value('next')}"
        )
    filter_section = ini.section(_FILTERS, word.text)
    around = filter_section.value("filter-with") if filter_section is not None else None
    if around is not None:
        return ini.with_word(word, around)
    if option.key == "filter-with":
        return ini.without_option(option)
    inner = ini.section(APPLICATIONS, section.called + _INNER)
    if inner is not None and [one.text for one in option.words] == [word.text, inner.called]:
        rest = IniText(ini.without_section(section))
        return rest.with_name(rest.named(inner.name), f"{inner.kind}:{section.called}")
    return ini.without_word(option, word)


def _unused(ini: IniText, ours: Collection[str]) -> str | None:
    """A section of the agent that no other one calls for, and that has nothing to say."""
    called = {
        word.text
        for section in ini.sections
        for _, word, kinds in _calls(section)
        if kinds == _FILTERS and not (section.kind in _FILTERS and word.text == section.called)
    }
    called |= {section.value("use") or "" for section in ini.sections if section.kind == "filter-app"}
    return next(
        (
            one.name
            for one in ini.sections
            if one.name in ours and one.kind in _FILTERS and one.called not in called
            if set(one.options) == {"use"} and not ini.has_comment(one)
        ),
        None,
    )
