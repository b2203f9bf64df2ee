"""Celery: a task that runs is a background task by its name; run eagerly, within a transaction, it is a span.

Seen in a worker whose process has loaded the application, and the agent with it. What publishes a task is in `kombu`,
through which Celery does it. The message says whose call it was, but a background task has no parent so far.

Tested with 5.3.0, 5.4.0 and 5.7.0.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from paste_agent import lifecycle
from paste_agent.background import background_task
from paste_agent.inside import FUNCTION
from paste_agent.raised import type_name
from paste_agent.spans import Span, begin, end
from paste_agent.transaction import current

#: Of a task's request, which is one for each run: what runs, and what it has raised.
_RUNNING = "_paste_agent_running"
_RAISED = "_paste_agent_raised"
_UID = "paste_agent"


def install(module: ModuleType) -> None:
    """Listen to the signals of tasks that begin, fail and end. A second call does nothing."""
    begins, fails, ends = module.task_prerun, module.task_failure, module.task_postrun
    begins.connect(_begins, weak=False, dispatch_uid=_UID)
    fails.connect(_fails, weak=False, dispatch_uid=_UID)
    ends.connect(_ends, weak=False, dispatch_uid=_UID)


def _begins(task: Any = None, **rest: Any) -> None:
    try:
        running: background_task | Span | None
        if current.get() is None:
            running = background_task(task.name).__enter__()
        else:
            running = begin(FUNCTION, f"run {task.name}".encode("utf-8", "replace"))
        task.request.__dict__[_RUNNING] = running
    except Exception as fault:
        lifecycle.on_fault("a task of Celery", fault)


def _fails(sender: Any = None, exception: Any = None, **rest: Any) -> None:
    try:
        sender.request.__dict__[_RAISED] = exception
    except Exception as fault:
        lifecycle.on_fault("a task of Celery", fault)


def _ends(task: Any = None, **rest: Any) -> None:
    try:
        request = task.request.__dict__
        running, error = request.pop(_RUNNING, None), request.pop(_RAISED, None)
        if not isinstance(error, BaseException):
            error = None
        if isinstance(running, Span):
            end(running, f"run {task.name}", None, None if error is None else type_name(error))
        elif running is not None:
            running.__exit__(*((None, None, None) if error is None else (type(error), error, error.__traceback__)))
    except Exception as fault:
        lifecycle.on_fault("a task of Celery", fault)
