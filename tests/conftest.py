"""What tests of several folders share."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from hypothesis import settings

from paste_agent import instrument

# The same examples in every run: what a run finds is no matter of luck. Other work on the machine is no fault.
settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile("same")


@pytest.fixture(autouse=True)
def callbacks_of_the_collector() -> Iterator[None]:
    """A filter that one test makes measures the collector's pauses from then on: not in the next test."""
    before = list(gc.callbacks)
    yield
    gc.callbacks[:] = before


# In this process libraries stay as they are, whatever filters tests make, unless a test instruments one itself.
instrument._registered.update(module for modules in instrument._LIBRARIES.values() for module in modules)
