"""Pyramid: the route that a request matched. Pyramid leaves nothing of it in the environ.

Tested with 2.0 and 2.1.
"""

from __future__ import annotations

from typing import Any

from paste_agent.naming import MAX_ROUTE_LENGTH, without_expressions
from paste_agent.transaction import TRANSACTION_KEY

_MARK = "_paste_agent"


def install() -> None:
    """Wrap `Router.invoke_request`, which every router looks up at each request. A second call does nothing."""
    from pyramid.router import Router

    original = Router.invoke_request
    if hasattr(original, _MARK):
        return

    def invoke_request(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        transaction = request.environ.get(TRANSACTION_KEY)
        if transaction is None:
            return original(self, request, *args, **kwargs)
        transaction.pending = (_route_of, request)
        try:
            return original(self, request, *args, **kwargs)
        finally:
            # A subrequest that shares the environ ends before the request that made it, which has the last word.
            transaction.route = _route_of(request) or transaction.route
            transaction.pending = None  # the request refers to the transaction: no circle may be left

    setattr(invoke_request, _MARK, original)
    Router.invoke_request = invoke_request


def _route_of(request: Any) -> str | None:
    """The pattern of the matched route; for a traversed resource the name of the view that was found for it.

    A view's name comes from the URL, so it counts only once a view of that name was found: Pyramid then sets
    `__view__`.
    """
    attributes = request.__dict__
    pattern = getattr(attributes.get("matched_route"), "pattern", None)
    traversed = attributes.get("view_name")
    if pattern is not None and "*traverse" not in pattern:
        return _slashed(pattern)
    if "__view__" not in attributes or traversed is None:
        return _slashed(pattern) if pattern is not None else None
    return _slashed(f"{pattern or '*traverse'}/{traversed}" if traversed else pattern or "*traverse")


def _slashed(pattern: str) -> str:
    pattern = without_expressions(pattern)
    return (pattern if pattern.startswith("/") else f"/{pattern}")[:MAX_ROUTE_LENGTH]
