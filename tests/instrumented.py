"""Libraries that are instrumented for the time of one test.

with instrumented(http_client, http.client, http.client.HTTPConnection):
    found = spans_within(recorder, lambda: ...)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def as_they_were(*classes: type) -> Iterator[None]:
    """Give classes back the attributes that they have now, however they were wrapped meanwhile."""
    before = [(where, dict(vars(where))) for where in classes]
    try:
        yield
    finally:
        for where, attributes in before:
            for name, value in attributes.items():
                if vars(where).get(name) is not value:
                    setattr(where, name, value)


@contextmanager
def instrumented(instrumentation: Any, module: Any, *classes: type) -> Iterator[None]:
    """Have an instrumentation installed for a library's module, twice, since twice is once. classes: what it wraps."""
    with as_they_were(*classes):
        instrumentation.install(module)
        after = [dict(vars(where)) for where in classes]
        instrumentation.install(module)
        assert [dict(vars(where)) for where in classes] == after
        yield
