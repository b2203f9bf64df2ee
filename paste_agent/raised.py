"""What is taken down of an exception: without references to anything that lives."""

from __future__ import annotations

import os
import re
import sys
from types import TracebackType
from typing import NamedTuple

_MAX_MESSAGE = 1024
#: What follows tells of the statement that failed, and has values of it in clear.
_APPENDED = re.compile(r"\n\[SQL: |\nDETAIL: |\nLINE [0-9]+: ")
_MAX_FRAMES = 50
_MAX_CHAIN = 4
_MAX_PLACE = 160
_HERE = os.path.dirname(__file__)
#: Where the agent's own frames are from: an application's stack begins after them.
OWN_FILES = frozenset(os.path.join(_HERE, name) for name in ("filter.py", "response.py"))
#: Files, and the beginnings of their names, of frames that only stand between an application and what it calls.
BETWEEN = tuple(
    os.path.join(_HERE, name)
    for name in (
        "background.py",
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


def type_name(error: BaseException | type) -> str:
    """`module.Class`, without the module for a builtin: `error.type` of the conventions. Of an error, or of a class."""
    kind = error if isinstance(error, type) else type(error)
    try:
        return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    except Exception:  # the application's own metaclass
        return "_OTHER"


def status_of_exception(error: BaseException) -> int | None:
    """The HTTP status that an exception stands for, as webob's, Paste's and Zope's do; None for any other."""
    get_status = getattr(error, "getStatus", None)  # zExceptions
    if callable(get_status):
        code = get_status()
    elif callable(error):  # a WSGI application itself; urllib's HTTPError has a code too, but it is another server's
        code = getattr(error, "code", None)
    else:
        return None
    return code if isinstance(code, int) and 100 <= code <= 599 else None


def is_library(file: str) -> bool:
    """Whether a frame of this file is no application's."""
    installed = file.startswith(_LIBRARY) or _PACKAGES[0] in file or _PACKAGES[1] in file
    return installed and not file.startswith(_claimed)


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
    while traceback is not None and steps < 10 * _MAX_FRAMES:
        here = traceback.tb_frame
        file = here.f_code.co_filename
        if not file.startswith(BETWEEN):
            ours = not is_library(file) and "__name__" in here.f_globals
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
    while traceback is not None and traceback.tb_next is not None and steps < 10 * _MAX_FRAMES:
        traceback = traceback.tb_next
        steps += 1
    return ("", 0) if traceback is None else (traceback.tb_frame.f_code.co_filename, traceback.tb_lineno)


def raised_of(error: BaseException, depth: int = 0) -> Raised:
    """Take down an exception with its causes. Walks its frames, reads no file, keeps no reference."""
    cause = error.__cause__
    explicit = cause is not None
    if cause is None and not error.__suppress_context__:
        cause = error.__context__
    return Raised(
        type=type_name(error),
        message=_message_of(error),
        frames=_frames_of(error.__traceback__),
        cause=raised_of(cause, depth + 1) if cause is not None and depth < _MAX_CHAIN else None,
        explicit_cause=explicit,
    )


def _message_of(error: BaseException) -> str:
    """Its message, without what SQLAlchemy and PostgreSQL append to it: the statement, its parameters, and values."""
    try:
        message = str(error)
        appended = _APPENDED.search(message)
        if appended is not None:
            message = message[: appended.start()]
        if any(hasattr(one, "diag") or hasattr(one, "statement") for one in (error, error.__cause__)):
            message = message.partition("\n")[0]  # whatever language the server speaks
        return message[:_MAX_MESSAGE]
    except Exception:  # the application's own __str__
        return "<unprintable>"


def _frames_of(traceback: TracebackType | None) -> tuple[Frame, ...]:
    frames: list[Frame] = []
    steps = 0
    while traceback is not None and steps < 10 * _MAX_FRAMES:
        code = traceback.tb_frame.f_code
        if not code.co_filename.startswith(BETWEEN):
            frames.append(Frame(code.co_filename, traceback.tb_lineno, code.co_name))
        if len(frames) > _MAX_FRAMES:
            # The innermost frames tell where it broke, the outermost how it came there.
            del frames[_MAX_FRAMES // 2]
        traceback = traceback.tb_next
        steps += 1
    return tuple(frames)
