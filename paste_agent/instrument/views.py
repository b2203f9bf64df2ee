"""What the files of frameworks and of template engines share: names, spans, and errors that are handled."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from inspect import isclass
from types import MethodType
from typing import Any, NamedTuple

from paste_agent import spans
from paste_agent.inside import FUNCTION, TEMPLATE
from paste_agent.raised import status_of_exception, type_name
from paste_agent.transaction import current

#: On what has been wrapped: what it was.
MARK = "_paste_agent"
_MAX_NAME = 255


class Named(NamedTuple):
    """A span's name in the forms that it is needed in, made once."""

    name: str
    text: bytes
    attributes: Mapping[str, object] | None
    category: int = FUNCTION


#: Of the span of a renderer: the engine's own span right inside of it would tell the same once more.
RENDERER: dict[str, object] = {}


def replace(*places: tuple[Any, str, Callable[[Any], Callable[..., Any]]]) -> None:
    """Put wrappers around attributes of classes or modules: all of them or, where one is missing, none.

    places: owner, name of the attribute, and a function from what is there to what takes its place. What has been
    replaced before stays.
    """
    made = []
    for owner, name, wrap in places:
        was = getattr(owner, name)
        if not hasattr(was, MARK):
            made.append((owner, name, functools.update_wrapper(wrap(was), was), was))
    for owner, name, wrapper, was in made:
        setattr(wrapper, MARK, was)
        setattr(owner, name, wrapper)


def name_of(view: Any, method: str | None = None) -> Named:
    """`module.function` or `module:Class.method` of whatever answers a request.

    method: the name of the method, where the view is a class or an instance.
    """
    owner = None
    while isinstance(view, functools.partial):
        view = view.func
    if view.__class__ is MethodType:  # the object may be one request's own: its class lasts
        owner, view = view.__self__, view.__func__
        owner = owner if isclass(owner) else type(owner)
    elif not hasattr(view, "__qualname__"):  # an instance that is called
        view = type(view)
    try:
        return _named(view, owner, method)
    except TypeError:  # it cannot be hashed
        return _named.__wrapped__(view, owner, method)


@functools.lru_cache(maxsize=512)
def _named(view: Any, owner: type | None, method: str | None) -> Named:
    where = owner if owner is not None else view
    name = _own_name(where)
    if owner is not None:
        name = f"{name}.{_own_name(view).rpartition('.')[2]}"
    elif method is not None:
        name = f"{name}.{method}"
    between = ":" if "." in name or isclass(where) else "."
    return named(f"{getattr(where, '__module__', None) or '?'}{between}{name}")


def _own_name(thing: Any) -> str:
    """Within its module, without the functions that it was made in."""
    return str(getattr(thing, "__qualname__", "?")).rpartition("<locals>.")[2]


def named(name: str, category: int = FUNCTION) -> Named:
    """category: of the span. A function's name becomes an attribute too."""
    name = name[:_MAX_NAME]
    attributes = {"code.function.name": name} if category == FUNCTION else None
    return Named(name, name.encode("utf-8", "replace"), attributes, category)


def template(name: object) -> Named:
    """Of the span around the rendering of a template."""
    return _template(name if isinstance(name, str) and name else "<template>")


@functools.lru_cache(maxsize=512)
def _template(name: str) -> Named:
    return named(name, TEMPLATE)


def told(where: str, ask: Callable[..., Any], /, *args: Any) -> Any:
    """What `ask` makes of a library's objects; None where it raises, which is counted. For while a transaction runs."""
    try:
        return ask(*args)
    except Exception as fault:  # they are not as they were, or somebody else's
        within = current.get()
        if within is not None:
            within.transaction.recorder.on_fault(where, fault)
        return None


def called(is_answer: Callable[[BaseException], bool], what: Named | None, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:  # fmt: skip  # noqa: E501
    """Call something within a span, where it has a name; returns what it returns, raises what it raises.

    is_answer: whether an exception is raised on purpose, in the place of a response: it is no failure then.
    """
    span = spans.begin(what.category, what.text) if what is not None else None
    if span is None or what is None:
        return call(*args, **kwargs)
    failed = None
    try:
        return call(*args, **kwargs)
    except BaseException as error:
        failed = _failure(is_answer, error)
        raise
    finally:
        spans.end(span, what.name, None, failed, what.attributes)


_Call = Callable[..., Any]


def rendering(named_of: Callable[[tuple[Any, ...], Mapping[str, Any]], Named]) -> Callable[[_Call], _Call]:
    """A wrapper around what renders or compiles templates. A framework's renderer may have a span around it already.

    named_of: of the positional and the other arguments of a call.
    """

    def wrap(original: _Call) -> _Call:
        def render(*args: Any, **kwargs: Any) -> Any:
            around = current.get()
            if around is None or (around.__class__ is spans.Span and around.attributes is RENDERER):
                return original(*args, **kwargs)
            try:
                what = named_of(args, kwargs)
            except Exception as fault:  # its objects are not as they were
                around.transaction.recorder.on_fault("a template", fault)
                what = template(None)
            span = spans.begin(TEMPLATE, what.text)
            if span is None:
                return original(*args, **kwargs)
            try:
                result = original(*args, **kwargs)
            except BaseException as error:
                spans.end(span, what.name, None, _failure(is_http_answer, error))
                raise
            spans.end(span, what.name)
            return result

        return render

    return wrap


def _failure(is_answer: Callable[[BaseException], bool], error: BaseException) -> str | None:
    try:
        return None if is_answer(error) else type_name(error)
    except Exception:  # the application's own class
        return type(error).__qualname__


def is_http_answer(error: BaseException) -> bool:
    """An exception that stands for a response of a status below 500, as webob's, werkzeug's and Zope's do."""
    code = status_of_exception(error)
    return code is not None and code < 500


def note(error: BaseException, status: object = 500, *, is_answer: Callable[[BaseException], bool] = is_http_answer) -> None:  # fmt: skip  # noqa: E501
    """A framework has turned an error into a response: the request has it all the same. Raises nothing.

    status: of the response, or what tells it; below 500 the application has expected the error. An exception that is
    raised in the place of a response is no error.
    """
    within = current.get()
    if within is None:
        return
    transaction: Any = within.transaction
    try:
        if transaction.environ is None or is_answer(error):
            return
        code = status_code(status() if callable(status) else status)
        transaction.note(error, expected=code is not None and code < 500)
    except Exception as fault:
        transaction.recorder.on_fault("an error that was handled", fault)


def status_code(status: object) -> int | None:
    """Of a number, or of a text such as `404 Not Found`."""
    if isinstance(status, int):
        return status
    text = str(status)[:3]
    return int(text) if text.isdecimal() else None
