"""The agent's server hooks, composed with the user's own.

gunicorn keeps one function per hook. The agent never takes that place from the user: `install` sets, for every hook in
`_OURS`, a function that calls the user's first and the agent's second.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from gunicorn.config import Config

from paste_agent import lifecycle
from paste_agent.recorder import layout
from paste_agent.settings import Settings

log = logging.getLogger("paste_agent")

#: Services of the ini first, then what gunicorn passes to the hook.
Hook = Callable[..., None]


#: Where a worker carries when it was forked, ns of the monotonic clock, and by which user.
_FORKED = "_paste_agent_forked"


def _pre_fork(services: Sequence[Settings], arbiter: Any, worker: Any) -> None:
    setattr(worker, _FORKED, (time.perf_counter_ns(), os.geteuid()))


def _post_worker_init(services: Sequence[Settings], worker: Any) -> None:
    forked_ns, user = getattr(worker, _FORKED, (0, -1))
    witnessed = [lifecycle.identity_of(settings) for settings in services]
    knows = not services
    for agent in lifecycle.start_reporters():
        is_witnessed = lifecycle.identity_of(agent.settings) in witnessed
        knows = knows or is_witnessed
        recorder = agent.open()
        if forked_ns:
            agent.record(layout.KIND_BOOT, (), forked_ns, time.perf_counter_ns() - forked_ns)
        # The arbiter finds the recorders of its own user, and of the services that it knows of.
        if user == os.geteuid() and is_witnessed:
            recorder.set_word(layout.W_WITNESSED, 1)
    if not knows:
        _disown(worker)


def _disown(worker: Any) -> None:
    """Tell the arbiter that this worker has booted, and serves none of the services that the arbiter knows of.

    By the size of the file that both have open, whose time is the worker's sign of life.
    """
    os.pwrite(worker.tmp.fileno(), b"\0", 0)
    worker.tmp.notify()


def is_disowned(worker: Any) -> bool:
    """For the arbiter, of a worker in its table."""
    try:
        return os.fstat(worker.tmp.fileno()).st_size > 0
    except (OSError, ValueError):  # closed
        return False


def _on_exit(services: Sequence[Settings], arbiter: Any) -> None:
    lifecycle.finish(services)


#: gunicorn's name of the hook: what the agent does there. A further hook is a further line.
_OURS: dict[str, Hook] = {
    "pre_fork": _pre_fork,
    "post_worker_init": _post_worker_init,
    "on_exit": _on_exit,
}

#: Hooks at the end of a process: the agent's part runs even when the user's part raises, or counts would be lost.
_ENDINGS = frozenset({"on_exit", "child_exit", "worker_exit", "worker_int", "worker_abort"})

#: Attribute of a hook that has the agent's part.
_MARK = "_paste_agent"
_said: set[str] = set()


def install(cfg: Config, services: Sequence[Settings]) -> None:
    """Compose the agent's hooks with those in `cfg`, which is complete and has not been through here before.

    services: of every enabled agent section of the ini; may be empty.
    """
    lifecycle.announce(services)
    compose(cfg, services)


def compose(cfg: Config, services: Sequence[Settings]) -> None:
    """As `install`, for services that are not known yet: what `services` holds when a hook is called counts."""
    for name, ours in _OURS.items():
        cfg.set(name, _composed(name, cfg.settings[name].get(), functools.partial(ours, services)))


def are_composed(cfg: Config) -> bool:
    """Whether `cfg` has been through `compose`."""
    return all(hasattr(cfg.settings[name].get(), _MARK) for name in _OURS)


def _composed(name: str, theirs: Callable[..., object], ours: Callable[..., None]) -> Callable[..., object]:
    # gunicorn counts the parameters of a hook with inspect.signature, which follows __wrapped__ to the user's.
    @functools.wraps(theirs)
    def hook(*args: object) -> object:
        try:
            result = theirs(*args)
        except BaseException:
            if name in _ENDINGS:
                _guarded(name, ours, args)
            raise
        _guarded(name, ours, args)
        return result

    setattr(hook, _MARK, True)
    return hook


def _guarded(name: str, ours: Callable[..., None], args: tuple[object, ...]) -> None:
    """No fault of the agent's reaches the server; the first of each hook is told."""
    try:
        ours(*args)
    except Exception:
        if name not in _said:
            _said.add(name)
            log.warning("the agent's part of gunicorn's hook %s failed; serving goes on", name, exc_info=True)
