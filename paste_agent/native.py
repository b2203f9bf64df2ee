"""The interpreter's own threads, locks and sleep, where gevent or eventlet have put theirs in place of them.

A reporter that is a greenlet stalls the hub while it works, and is stalled by it; so it is a real thread always.
"""

from __future__ import annotations

import gc
import sys
import weakref
from _thread import get_ident
from collections.abc import Callable, Sequence
from importlib import import_module
from types import FrameType
from typing import Any, Protocol


class Lock(Protocol):
    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...
    def release(self) -> None: ...


def _original(module: str, name: str) -> Any:
    """`module.name` as it was before anything patched it."""
    gevent = sys.modules.get("gevent.monkey")
    if gevent is not None and gevent.is_module_patched("threading"):
        return gevent.get_original(module, name)
    eventlet = sys.modules.get("eventlet.patcher")
    if eventlet is not None and eventlet.is_monkey_patched("thread"):
        return getattr(eventlet.original(module), name)
    return getattr(__import__(module), name)


#: Idents, of the operating system's threads, of those that run for the agent.
_own_threads: set[int] = set()


def start_thread(function: Callable[[], None]) -> None:
    """Run `function` in a thread of the operating system, which does not keep the interpreter from ending."""

    def run() -> None:
        ident = _real_ident()
        _own_threads.add(ident)
        try:
            function()
        finally:
            _own_threads.discard(ident)

    _original("_thread", "start_new_thread")(run, ())


def is_own_thread() -> bool:
    """Whether the thread that asks was made by `start_thread`."""
    return bool(_own_threads) and _real_ident() in _own_threads


def _real_ident() -> int:
    ident: int = _original("_thread", "get_ident")()
    return ident


def call_in_greenlets(function: Callable[[], None], every_s: float, kept: list[object]) -> None:
    """Call `function` again and again in greenlets of their own; for a process that has them.

    kept: takes what has to live as long as this goes on.
    """
    gevent = sys.modules.get("gevent")
    if gevent is not None and sys.modules["gevent.monkey"].is_module_patched("threading"):
        # A timer that nobody waits for: gevent.wait() returns as it would without it.
        timer: Any = gevent.get_hub().loop.timer(every_s, repeat=every_s, ref=False)
        timer.start(lambda: gevent.spawn(function))
        kept.append(timer)
        return
    eventlet = sys.modules["eventlet"]

    def again() -> None:
        function()
        eventlet.spawn_after(every_s, again)

    kept.append(eventlet.spawn_after(every_s, again))


def make_lock() -> Lock:
    lock: Lock = _original("_thread", "allocate_lock")()
    return lock


def sleep(seconds: float) -> None:
    """Sleep; `sleep(0)` lets a thread run that waits for the interpreter."""
    _original("time", "sleep")(seconds)


# -- who runs, and where it is -------------------------------------------------------------------------------------

#: The greenlets that have served a request and live, by ident.
_greenlets: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
#: Ident of the thread of the operating system that they run in.
_hub_thread = 0


def ident_function() -> Callable[[], int]:
    """What tells one request's thread of control from another: ident of the thread, or of the greenlet.

    To be asked for once the process serves, by a thread that serves: only then is it certain whether its threads are
    greenlets, and of which thread.
    """
    global _hub_thread
    greenlet = sys.modules.get("greenlet")
    if greenlet is None or not has_greenlets():
        return get_ident
    _hub_thread = _real_ident()
    current: Callable[[], Any] = greenlet.getcurrent

    def ident() -> int:
        one = current()
        number = id(one)
        if number not in _greenlets:
            _greenlets[number] = one
        return number

    return ident


def has_greenlets() -> bool:
    """Whether gevent or eventlet have put greenlets in the place of this process's threads."""
    gevent, eventlet = sys.modules.get("gevent.monkey"), sys.modules.get("eventlet.patcher")
    return bool(
        (gevent is not None and gevent.is_module_patched("threading"))
        or (eventlet is not None and eventlet.is_monkey_patched("thread"))
    )


def frame_of(ident: int) -> FrameType | None:
    """Where the thread or greenlet with this ident, one of `ident_function`'s, is now; None when it has ended."""
    greenlet = _greenlets.get(ident)
    if greenlet is None:
        return _current_frames().get(ident)
    frame: FrameType | None = greenlet.gr_frame
    if frame is None and not greenlet.dead:  # it is the one that runs: the thread's own frame is its
        return _current_frames().get(_hub_thread)
    return frame


def _current_frames() -> dict[int, FrameType]:
    """`sys._current_frames()`, without garbage being collected in the middle of it.

    Before 3.12 it may be: the interpreter's list of threads is locked then, and what the collector calls may let
    another thread run, which waits for that lock with the GIL in its hands when it starts a thread or ends. Nothing
    runs any more.
    """
    if sys.version_info >= (3, 12) or not gc.isenabled():
        return sys._current_frames()
    gc.disable()
    try:
        return sys._current_frames()
    finally:
        gc.enable()


class Flag:
    """Set once, waited for with a time limit; a threading.Event that works between greenlets and real threads."""

    def __init__(self) -> None:
        self._lock = make_lock()
        self._lock.acquire()
        self._set = False

    def set(self) -> None:
        if not self._set:
            self._set = True
            self._lock.release()

    def is_set(self) -> bool:
        return self._set

    def wait(self, timeout_s: float) -> bool:
        """Whether it is set by then."""
        if not self._set and self._lock.acquire(timeout=max(0.0, timeout_s)):
            self._lock.release()
        return self._set


#: A fork waits no longer: what holds it up might in turn be waiting for the thread that forks.
_FORK_PATIENCE_S = 1.0


class _Undivided:
    """`with UNDIVIDED`: around what no fork may find half done in another thread, an import above all.

    Of all threads a child has only the one that forked: a module that another was importing would stay half imported,
    and a lock that another had just taken would be kept without anybody knowing of it.
    """

    def __init__(self) -> None:
        self._lock = make_lock()
        self._forks = 0  #: ident of the thread that forks

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self._lock.release()

    def before_fork(self) -> None:
        if self._lock.acquire(timeout=_FORK_PATIENCE_S):
            self._forks = get_ident()

    def after_fork_in_parent(self) -> None:
        if self._forks == get_ident():
            self._forks = 0
            self._lock.release()

    def after_fork_in_child(self) -> None:
        self.__init__()  # type: ignore[misc]


UNDIVIDED = _Undivided()
#: Between two imports: a thread that serves, and waits for the interpreter, gets it at the latest then.
_BREATH_S = 0.01


def import_gently(names: Sequence[str], breathes: Callable[[], bool] = lambda: True) -> None:
    """Import modules one after the other, and let the threads that serve run in between.

    An import that takes 50 ms at one go costs a hub as many switch intervals as it makes system calls meanwhile.
    breathes: whether there is time for that.
    """
    for name in names:
        if name not in sys.modules:
            with UNDIVIDED:
                try:
                    import_module(name)
                except ImportError:
                    continue  # a piece that this version of a library does without
            if breathes():
                sleep(_BREATH_S)
