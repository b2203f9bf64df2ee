"""`flock`: the kernel itself tells a living process from a dead one.

The lock belongs to the open file, not to the process: it lasts until every descriptor of it is closed, those that a
forked child inherited included. Nobody who is to keep it unlocks; everybody closes.
"""

from __future__ import annotations

try:
    import fcntl
except ImportError:  # Windows: see AVAILABLE
    AVAILABLE = False
else:
    AVAILABLE = True


def try_lock(descriptor: int) -> bool:
    """Take the lock of an open file without waiting; False when somebody else holds it, or where there are none."""
    if not AVAILABLE:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def is_held(descriptor: int) -> bool:
    """Whether somebody else holds the lock of an open file. For who only looks: nothing stays locked."""
    if not AVAILABLE:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False
