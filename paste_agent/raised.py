"""What is taken down of an exception: without references to anything that lives."""

from __future__ import annotations

import builtins
import os
import re
import sys
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import NamedTuple

_MAX_MESSAGE = 1024
#: What follows tells of the statement that failed, and has values of it in clear.
_APPENDED = re.compile(r"\n\[SQL: |\nDETAIL: |\nLINE [0-9]+: ")
#: Frames of one exception: as many of the outermost, which tell how it came there, as of the innermost.
_MAX_FRAMES = 50
#: Frames that are looked at; a service may well allow more of them than Python does.
_MAX_STEPS = 10_000
#: An exception and its causes: the last ones, and the first one of all.
_MAX_CHAIN = 5
_MAX_GROUP = 10
_MAX_PLACE = 160
_HERE = os.path.dirname(__file__)
#: Where the agent's own frames are from: an application's stack begins after them.
OWN_FILES = frozenset(os.path.join(_HERE, name) for name in ("filter.py", "response.py"))
#: Files, and the beginnings of their names, of frames that only stand between an application and what it calls.
BETWEEN = tuple(
    os.path.join(_HERE, name)
    for name in (
        "background.py",
        f"dashboard{os.sep}mount.py",
        "decorating.py",
        "filter.py",
        "functions.py",
        "layers.py",
        "pauses.py",
        "response.py",
        "spans.py",
        f"instrument{os.sep}",
    )
)
#: Where libraries lie: the standard one, and those that were installed.
_LIBRARY = (os.path.dirname(os.__file__) + os.sep, "<frozen")
_PACKAGES = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
#: Installed packages that are the service itself: their directories.
_claimed: tuple[str, ...] = ()
#: What makes a response of an exception that stands for one; and servers, which make the same of each.
_ANSWERING = ("paste.httpexceptions", "pecan.", "pyramid.", "swift.", "tg.", "webob.", "ZPublisher.")
_SERVERS = frozenset(("cheroot", "eventlet", "gevent", "gunicorn", "mod_wsgi", "tornado", "waitress", "wsgiref"))
_SERVING = frozenset(("paste.httpserver", "twisted.web.wsgi", "werkzeug.serving"))
#: Packages with an application for anybody's pipeline, besides the filters that stand in it.
_FOR_ANYBODY = frozenset(("oslo_middleware", "paste"))


class Frame(NamedTuple):
    """One frame of a stack; the reporter looks up the line of source."""

    file: str
    line: int
    function: str


class Raised(NamedTuple):
    """An exception, without references to anything that lives: its frames would keep whole requests alive."""

    type: str
    message: str
    frames: tuple[Frame, ...]  #: outermost first; in the middle cut to the bound
    cause: Raised | None
    explicit_cause: bool  #: `raise … from …`, rather than raised while another was handled
    frames_left_out: int = 0  #: in the middle
    causes_left_out: int = 0  #: between it and its cause
    group: tuple[tuple[str, str], ...] = ()  #: of an exception group: type and message of those in it


def type_name(error: BaseException | type) -> str:
    """`module.Class`, without the module for a builtin: `error.type` of the conventions. Of an error, or of a class."""
    kind = error if isinstance(error, type) else type(error)
    try:
        return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    except Exception:  # the application's own metaclass
        return "_OTHER"


def status_of_exception(error: BaseException) -> int | None:
    """The HTTP status that an exception stands for, as webob's, Paste's and Zope's do; None for any other."""
    try:
        if any(kind.__module__ == "zExceptions" for kind in type(error).__mro__):
            code = getattr(error, "getStatus", int)()
        elif callable(error):  # a WSGI application itself; urllib's HTTPError has a code too: another server's
            code = getattr(error, "code", None)
        else:
            return None
        return code if isinstance(code, int) and 100 <= code <= 599 else None
    except Exception:  # the application's own attributes
        return None


def status_of_escaped(error: BaseException) -> int | None:
    """The HTTP status that comes of an exception that leaves the agent's filter; None: the server's own for errors.

    What stands for a status does so for a layer above. The server itself makes an error of everything, but for what it
    has raised itself: a client has sent what is no request, or has gone.
    """
    try:
        if type(error).__module__ == "gunicorn.http.errors":
            return _status_of_gunicorn(type(error).__name__)
        code = status_of_exception(error)
        return code if code is not None and _is_answered_above() else None
    except Exception:  # the application's own metaclass
        return None


def _status_of_gunicorn(name: str) -> int | None:
    """What a gunicorn answers to an exception of its own, by its name."""
    known = vars(sys.modules.get("gunicorn.workers.base", os))
    if name == "LimitRequestHeaders":
        return 431
    # Those of a response are the application's fault.
    return 400 if name in {"NoMoreData", *known} and not name.startswith("InvalidResponse") else None


def _is_answered_above() -> bool:
    """Whether somebody between the agent's filter and the server may make a response of an exception.

    That is, who is known to, or is the application's own. Other layers pass exceptions on, or make the same of each.
    From within the filter.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = str(frame.f_globals.get("__name__"))
        if name.startswith(_ANSWERING):
            return True
        if name.partition(".")[0] in _SERVERS or name in _SERVING:
            return False
        if not name.startswith("paste_agent.") and not is_of_library(frame):
            return True
        frame = frame.f_back
    return False


def is_library(file: str) -> bool:
    """Whether a frame of this file is no application's."""
    installed = file.startswith(_LIBRARY) or _PACKAGES[0] in file or _PACKAGES[1] in file
    return installed and not file.startswith(_claimed)


def is_of_library(frame: FrameType) -> bool:
    """Whether a frame that runs is no application's. Code that is in no file belongs to its module."""
    file = frame.f_code.co_filename
    if file.startswith("<"):
        file = getattr(sys.modules.get(str(frame.f_globals.get("__name__"))), "__file__", None) or file
    return is_library(file)


def claim(factory: object) -> None:
    """Take the package of what makes an application for the application's own, though it lies among the libraries.

    Services are installed as much as what they are built upon. A namespace is nobody's.
    """
    global _claimed
    name = str(getattr(factory, "__module__", None)).partition(".")[0]
    file = getattr(sys.modules.get(name), "__file__", None)
    if name in _FOR_ANYBODY or not isinstance(file, str):
        return
    directory, base = os.path.split(file)
    if base == "__init__.py" and directory + os.sep not in _claimed:
        _claimed += (directory + os.sep,)


def place_of(error: BaseException) -> str:
    """Where in the application an error came from, `module.function`; '' where it has no traceback.

    The innermost frame that is no library's; the innermost of all where there is none. Code that belongs to no module,
    such as an expression of a template, counts where there is nothing else.
    """
    traceback, steps, frame = error.__traceback__, 0, None
    found = False
    while traceback is not None and steps < _MAX_STEPS:
        here = traceback.tb_frame
        if not here.f_code.co_filename.startswith(BETWEEN):
            ours = "__name__" in here.f_globals and not is_of_library(here)
            if ours or (not found and (frame is None or "__name__" in here.f_globals)):
                frame, found = here, ours
        traceback = traceback.tb_next
        steps += 1
    if frame is None:
        return ""
    return f"{frame.f_globals.get('__name__', '?')}.{frame.f_code.co_name}"[:_MAX_PLACE]


def origin_of(error: BaseException) -> tuple[str, int]:
    """File and line that raised it; they stay the same however often it is raised on. ("", 0): it never was raised."""
    traceback, steps = error.__traceback__, 0
    while traceback is not None and traceback.tb_next is not None and steps < _MAX_STEPS:
        traceback = traceback.tb_next
        steps += 1
    return ("", 0) if traceback is None else (traceback.tb_frame.f_code.co_filename, traceback.tb_lineno)


def raised_of(error: BaseException) -> Raised:
    """Take down an exception with its causes. Walks its frames, reads no file, keeps no reference."""
    chain, seen = [error], {id(error)}
    while (cause := _cause_of(chain[-1])) is not None and id(cause) not in seen and len(chain) < _MAX_STEPS:
        chain.append(cause)
        seen.add(id(cause))
    left_out = max(0, len(chain) - _MAX_CHAIN)
    if left_out:
        del chain[_MAX_CHAIN - 1 : -1]
    raised: Raised | None = None
    for place in reversed(range(len(chain))):
        one = chain[place]
        frames, frames_left_out = _frames_of(one.__traceback__)
        raised = Raised(
            type=type_name(one),
            message=_message_of(one),
            frames=frames,
            cause=raised,
            explicit_cause=one.__cause__ is not None,
            frames_left_out=frames_left_out,
            causes_left_out=left_out if place == len(chain) - 2 else 0,
            group=_group_of(one),
        )
    assert raised is not None
    return raised


def _cause_of(error: BaseException) -> BaseException | None:
    return error.__cause__ if error.__suppress_context__ or error.__cause__ is not None else error.__context__


def _group_of(error: BaseException) -> tuple[tuple[str, str], ...]:
    """Types and messages of what an exception group holds. There is none before Python 3.11."""
    kind = getattr(builtins, "BaseExceptionGroup", None)
    found: Sequence[BaseException] = error.exceptions if kind is not None and isinstance(error, kind) else ()
    return tuple((type_name(one), _message_of(one)) for one in found[:_MAX_GROUP])


def _message_of(error: BaseException) -> str:
    """Its message, without what SQLAlchemy and PostgreSQL append to it: the statement, its parameters, and values."""
    try:
        message = str(error)
        appended = _APPENDED.search(message)
        if appended is not None:
            message = message[: appended.start()]
        # Whatever language the server speaks; others may have made its message their own.
        for one in (error, error.__cause__, error.__context__):
            if _is_of_database(one):
                first, _, more = str(one).rstrip().partition("\n")
                message = message.replace(f"{first}\n{more}", first) if more else message
        return message[:_MAX_MESSAGE]
    except Exception:  # the application's own __str__
        return "<unprintable>"


def _is_of_database(error: BaseException | None) -> bool:
    """Whether it is an error of psycopg's, or of SQLAlchemy's that has one."""
    try:
        return hasattr(error, "diag") or hasattr(error, "statement")
    except Exception:  # the application's own attributes
        return False


def _frames_of(traceback: TracebackType | None) -> tuple[tuple[Frame, ...], int]:
    """The outermost and the innermost frames, and how many there are between."""
    steps: list[TracebackType] = []
    while traceback is not None and len(steps) < _MAX_STEPS:
        steps.append(traceback)
        traceback = traceback.tb_next
    shown = [one for one in steps if not one.tb_frame.f_code.co_filename.startswith(BETWEEN)]
    left_out = max(0, len(shown) - _MAX_FRAMES)
    if left_out:
        del shown[_MAX_FRAMES // 2 : -(_MAX_FRAMES // 2)]
    codes = [(one.tb_frame.f_code, one.tb_lineno) for one in shown]
    return tuple(Frame(code.co_filename, line, code.co_name) for code, line in codes), left_out
