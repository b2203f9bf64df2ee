"""Applications of real frameworks behind the agent: what one request of them leaves.

asked = ask(recorder, app, "/items/17")
assert (asked.status, asked.route, asked.names) == ("200 OK", "/items/{id}", ["shop.views.item"])
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NamedTuple
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

from paste_agent.filter import AgentFilter
from paste_agent.inside import FinishedSpan, SeenError
from paste_agent.recorder.writer import Recorder
from tests.filtering import Server
from tests.recorders import _Serving

PREFIX = "/prefix"


class Asked(NamedTuple):
    """What the client got, and what the agent made of it."""

    status: str | None
    body: bytes
    method: str | None
    route: str | None
    error_type: str | None
    spans: list[FinishedSpan]  #: in the order in which they began
    errors: list[SeenError]
    raised: BaseException | None  #: that left the application

    @property
    def names(self) -> list[str]:
        return [span.name for span in self.spans]

    @property
    def error_types(self) -> list[tuple[str, bool]]:
        """Type, and whether it was expected."""
        return [(error.type, error.expected) for error in self.errors]


def environ_of(path: str, method: str = "GET", body: bytes = b"", prefix: str = PREFIX, **more: Any) -> dict[str, Any]:
    path, _, query = path.partition("?")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": prefix,
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "SERVER_PROTOCOL": "HTTP/1.1",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": io.StringIO(),
        "HTTP_HOST": "127.0.0.1",
        **more,
    }
    setup_testing_defaults(environ)
    return environ


def ask(recorder: Recorder, app: Any, path: str, method: str = "GET", *, validate: bool = True, **more: Any) -> Asked:
    """One request, below a prefix and as `wsgiref.validate` has it. The recorder keeps all."""
    measured: Any = AgentFilter(app, _Serving(recorder))  # type: ignore[arg-type]  # see _Serving
    server, raised = Server(), None
    recorder.kept.clear()
    try:
        server.serve(validator(measured) if validate else measured, environ_of(path, method, **more))
    except Exception as error:
        raised = error.with_traceback(None)
    (kept,) = recorder.kept
    _, fields = recorder.fields_of(kept.series)
    inside = kept.inside
    return Asked(
        status=server.status,
        body=server.sent,
        method=fields[0],
        route=fields[2],
        error_type=fields[-2],
        spans=sorted(map(FinishedSpan.of, inside.finished)) if inside is not None else [],
        errors=list(inside.errors or ()) if inside is not None else [],
        raised=raised,
    )


@contextmanager
def instrumented(*names: str) -> Iterator[None]:
    """The libraries with these names in `instrument._LIBRARIES`, as long as the test runs; they are what they were after."""  # fmt: skip  # noqa: E501
    from paste_agent import instrument

    changed: list[tuple[Any, str, Any]] = []
    views = import_module("paste_agent.instrument.views")
    replace = views.replace

    def remembering(*places: tuple[Any, str, Callable[..., Any]]) -> None:
        before = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
        replace(*places)
        changed.extend(row for row in before if getattr(row[0], row[1]) is not row[2])

    homes = [import_module(f"paste_agent.instrument.{name}") for name in names]
    for home in homes:
        home.replace = remembering  # type: ignore[attr-defined]
    try:
        for name, home in zip(names, homes, strict=True):
            for _ in range(2):  # twice is once
                for module in instrument._LIBRARIES[name]:
                    found = sys.modules.get(module)
                    if found is not None or "pypiserver" not in module:  # a copy, which changes much as it is imported
                        home.install(found or import_module(module))
        yield
    finally:
        for home in homes:
            home.replace = replace  # type: ignore[attr-defined]
        for owner, attribute, was in reversed(changed):
            setattr(owner, attribute, was)
