"""Measures the application that a server is about to serve, unless a pipeline has done so."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

from paste_agent import filter as agent_filter
from paste_agent import ini, instrument, lifecycle, log
from paste_agent.errors import AgentError, IniError
from paste_agent.launch import on_board
from paste_agent.launch.configuration import settings_of
from paste_agent.settings import Settings
from paste_agent.transaction import WSGIApplication

#: Serve what a program says about itself, and are no part of what it is for.
_ASIDE = ("prometheus_client",)

_seen = 0  #: of `agent_filter.made`: filters that belong to an application that was asked about
_left_alone: object = None  #: the last application that has a filter in it
_said: set[str] = set()


def wrapped(application: WSGIApplication, settings: Settings) -> WSGIApplication:
    """The application, measured; the application itself where one of the agent's filters is around it or in it.

    To be asked once the application has been loaded, and before another one is: a filter cannot be seen from outside.
    What a pipeline has made in this process since the last call is taken to be in this application.
    """
    global _seen, _left_alone
    if is_measured(application) or application is _left_alone:
        return application
    if agent_filter.made != _seen:
        _seen, _left_alone = agent_filter.made, application
        lifecycle.withdraw(settings)
        return application
    return agent_filter.measured(application, settings)


def is_measured(application: object) -> bool:
    """Whether the agent is the outermost part of it."""
    return isinstance(application, agent_filter.AgentFilter)


def launched(application: Any, name: Callable[[], str]) -> Any:
    """What a server is to serve in place of `application`, in a process with the agent on board. Raises nothing.

    name: tells the service's, where no setting does.
    """
    try:
        settings = settings_here(name)
        if settings is None or not settings.enabled:
            return application
        if is_measured(application) or type(application).__module__.startswith(_ASIDE):
            return application
        if getattr(application, "__module__", "").startswith(_ASIDE):
            return application
        if agent_filter.made == _seen:
            reason = why_not(application)
            if reason:
                say("application", f"{settings.service_name}: not measured: {reason}")
                return application
        return wrapped(application, settings)
    except Exception as fault:
        say("wrapping", f"the application is not measured: {type(fault).__name__}: {fault}")
        return application


def why_not(application: Any) -> str:
    """Why what is served is no WSGI application; '' when it is one, or may be."""
    if not callable(application):
        return f"{type(application).__name__} is not callable"
    for call in (application, getattr(application, "__call__", None)):  # noqa: B004
        if inspect.iscoroutinefunction(call):
            return "the application is an ASGI application, and the agent measures WSGI"
    try:
        signature = inspect.signature(application)
    except (TypeError, ValueError):  # compiled code
        return ""
    try:
        signature.bind(None, None)
    except TypeError:
        return "the application does not take environ and start_response, as WSGI has it"
    return ""


def settings_here(name: Callable[[], str], environ: Mapping[str, str] | None = None) -> Settings | None:
    """The settings of this process, which has the agent on board; None, and a line is said, when they are wrong.

    The program that put the agent on board has found them right: they have changed, or the file has.
    """
    if not on_board.is_on_board():
        return None
    try:
        return settings_of(os.environ if environ is None else environ, name())
    except AgentError as error:
        say("settings", f"not measured: {error}")
        return None


def fallback(name: str, environ: Mapping[str, str]) -> list[Settings]:
    """The services of a process whose ini has no section of ours: one, when the agent is on board; none otherwise."""
    settings = settings_here(lambda: name, environ)
    return [settings] if settings is not None and settings.enabled else []


def prepare(name: Callable[[], str], ini_path: str | None = None) -> None:
    """Before an application is loaded: instrument, so that what it takes hold of is. Raises nothing.

    ini_path: of the ini that says what to load. Where that has a section of ours, the section decides.
    """
    try:
        if ini_path is not None and _has_section(ini_path):
            return
        settings = settings_here(name)
        if settings is not None and settings.enabled:
            instrument.install_for(settings)
            if settings.trace_functions:
                from paste_agent import functions

                functions.install(settings.trace_functions, log.Warnings(settings.service_name))
    except Exception as fault:
        lifecycle.on_fault("launch", fault)


def _has_section(path: str) -> bool:
    try:
        return bool(ini.filter_sections(path))
    except IniError:
        return False


def say(kind: str, line: str) -> None:
    """Once of a kind in this process."""
    if kind not in _said:
        _said.add(kind)
        log.say(logging.WARNING, line)
