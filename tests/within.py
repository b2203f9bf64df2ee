"""What the code of a test, as an application's in a request, asks of where it is."""

from __future__ import annotations

from typing import Any

from paste_agent.inside import Inside
from paste_agent.recorder import layout
from paste_agent.sampler import Sampler
from paste_agent.transaction import Transaction, current

CALL_KEY = (layout.KIND_CALL, ("GET", "stock.example", "80", "200", None))


def sampler(**more: Any) -> Sampler:
    """Keeps what a parent has sampled, what fails, and queries that are worth a look; else what `more` says."""
    keys: dict[str, Any] = {"slow_ns": 1 << 61, "parent": 60, "random": 0, "slow": 0, "failed": 60, "queries": 60}
    return Sampler(**{**keys, "seed": 1, **more})


def here() -> Transaction:
    within: Any = current.get()
    found: Transaction = within.transaction
    return found


def inside_of() -> Inside:
    found = here().inside
    assert found is not None
    return found
