"""Zope: the name of what is published as the route, a span for it, and errors that an exception view has answered, or a
layer above the publisher does.

Objects have their names from their users. So a route has the name of a method or of a view, `/*traverse/manage_main`;
of an object that is published itself, such as a document, it has the class, `/*traverse/{DTMLDocument}`.

Tested with Zope 6.3.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import MethodType, ModuleType
from typing import Any

from paste_agent.instrument.views import Named, called, is_http_answer, name_of, named, note, replace, told
from paste_agent.transaction import TRANSACTION_KEY, Transaction, current

#: Where classes of pages are from that lie in files of the code, and not in the database.
_PAGES = ("App.", "Products.PageTemplates.PageTemplateFile")


def install(module: ModuleType) -> None:
    """Wrap what the publisher calls of its own module. A second call does nothing."""
    replace((module, "mapply", _publishing), (module, "_exc_view_created_response", _handling))


def _publishing(original: Callable[..., Any]) -> Callable[..., Any]:
    def mapply(object: Any, *args: Any, **kwargs: Any) -> Any:
        request = args[-1] if args else None
        if current.get() is None or request is None:
            return original(object, *args, **kwargs)
        # Objects of Zope answer to any name, in ways of their own.
        return called(is_http_answer, told("route of Zope", _tell, object, request), original, object, *args, **kwargs)

    return mapply


def _tell(published: Any, request: Any) -> Named | None:
    """Name the route; what the span is called. None where neither can be told."""
    transaction: Transaction | None = request.environ.get(TRANSACTION_KEY)
    if transaction is None:
        return None
    what, name = _names_of(published)
    transaction.route = f"/*traverse/{name}"
    return what


def _names_of(published: Any) -> tuple[Named, str]:
    """Of the span, and in the route."""
    function = getattr(published, "__func__", None)
    kind = published.__class__
    if function is not None:
        owner = published.__self__.__class__
        name = str(function.__name__)
        # By the class: the object is of one request, and wrapped in where it was found.
        return name_of(MethodType(function, owner)), name
    module = str(kind.__module__)
    own = kind.__dict__.get("__name__") if isinstance(kind, type) else None
    if isinstance(own, str) and own:  # a view that was registered by that name
        return name_of(kind), f"@@{own}"
    if module.startswith(_PAGES):
        name = str(getattr(published, "__name__", kind.__name__))
        return named(f"{module}:{kind.__name__} {name}")._replace(attributes=None), name
    return name_of(kind), f"{{{kind.__name__}}}"


def _handling(original: Callable[..., Any]) -> Callable[..., Any]:
    def _exc_view_created_response(exc: Any, request: Any, response: Any, *args: Any, **kwargs: Any) -> Any:
        raised = sys.exc_info()[1] or exc  # the exception itself may be one that was made of it, without a traceback
        created = original(exc, request, response, *args, **kwargs)
        if isinstance(raised, BaseException) and not is_http_answer(exc):
            note(raised, response.getStatus if created else 500)
        return created

    return _exc_view_created_response
