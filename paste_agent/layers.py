"""What each layer of a pipeline takes by itself, and what it took to load; named by its section of the ini.

PasteDeploy imports the agent's filter while it finds out what a pipeline is made of, and makes all of it afterwards.
So `install`, called by that import, is in time: from then on whatever is made to stand below an agent gets a `Layer`
around it. What stands above the agent, the agent itself, and pipelines without one stay as they are.

What `loadwsgi` has between its functions is no interface. When it is not what is expected here, there are no layers.
Tested with PasteDeploy 3.0 and 3.1.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from time import perf_counter_ns
from types import FrameType
from typing import Any

from paste.deploy import loadwsgi

from paste_agent import instrument, lifecycle, naming, raised, settings
from paste_agent.errors import AgentError
from paste_agent.inside import MAX_SPANS
from paste_agent.recorder.layout import KIND_LAYER, KIND_LOAD
from paste_agent.transaction import TRANSACTION_KEY, Environ, StartResponse, WSGIApplication

_MARK = "_paste_agent"
#: Attributes of a context: the name of its section; that it stands below an agent; that nothing but it does.
_NAME, _BELOW, _ALONE = "_paste_agent_name", "_paste_agent_below", "_paste_agent_alone"
#: What the layers are made of; "invoke" of each is wrapped.
_TYPES = ("APP", "FILTER", "PIPELINE", "FILTER_APP", "FILTER_WITH")
_MAX_NAME = 255

_mains: list[object] = []  #: the factory of the agent's filter


class Layer:
    """A filter with all that is below it, or an application; measured in requests that are, else only passed through.

    Its own time is what its call takes without the calls of layers below it that it makes. What happens while the body
    is iterated is not in it, nor is it told apart from spans within: a query that a filter makes counts for both.
    In all else it passes for what it wraps.
    """

    __slots__ = (
        "__weakref__",
        "_paste_agent_is_app",
        "_paste_agent_key",
        "_paste_agent_layer",
        "_paste_agent_mounted",
        "_paste_agent_wrapped",
    )

    _paste_agent_is_app: bool
    _paste_agent_key: tuple[int, tuple[str | None, ...]]
    _paste_agent_layer: str
    _paste_agent_mounted: str  #: path that a composite has it at; ''
    _paste_agent_wrapped: WSGIApplication

    def __init__(self, wrapped: WSGIApplication, name: str, is_app: bool) -> None:
        """is_app: the innermost one, whose own time is not a filter's."""
        put = object.__setattr__
        put(self, "_paste_agent_wrapped", wrapped)
        put(self, "_paste_agent_layer", name)
        put(self, "_paste_agent_key", (KIND_LAYER, (name,)))
        put(self, "_paste_agent_is_app", is_app)
        put(self, "_paste_agent_mounted", "")

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        transaction = environ.get(TRANSACTION_KEY)
        if transaction is None:
            return self._paste_agent_wrapped(environ, start_response)
        beside_ns = transaction.below_ns
        transaction.below_ns = 0
        if self._paste_agent_mounted:
            # What was found before, by a try of this one too, is not what it finds now.
            route_before, transaction.route = transaction.route, None
        start_ns = perf_counter_ns()
        try:
            return self._paste_agent_wrapped(environ, start_response)
        finally:
            total_ns = perf_counter_ns() - start_ns
            own_ns = total_ns - transaction.below_ns
            transaction.below_ns = beside_ns + total_ns
            try:
                if self._paste_agent_mounted:
                    transaction.route = _route_in_full(transaction, environ, self._paste_agent_mounted) or route_before
                if own_ns < 0:  # it has called several layers at a time, in threads
                    own_ns = 0
                if transaction.environ is not None:
                    transaction.recorder.record_span(self._paste_agent_key, start_ns, own_ns)
                    if not self._paste_agent_is_app:
                        layers = transaction.layers
                        if layers is None:
                            transaction.layers = [(self._paste_agent_layer, own_ns)]
                        elif len(layers) < MAX_SPANS:
                            layers.append((self._paste_agent_layer, own_ns))
            except Exception as fault:
                transaction.recorder.on_fault("layer", fault)

    def __getattr__(self, name: str) -> Any:
        if name in Layer.__slots__:  # copied or unpickled, and not filled yet
            raise AttributeError(name)
        return getattr(self._paste_agent_wrapped, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._paste_agent_wrapped, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._paste_agent_wrapped, name)

    @property  # type: ignore[misc]  # isinstance() asks for it, and nobody sets it
    def __class__(self) -> Any:
        return self._paste_agent_wrapped.__class__

    def __repr__(self) -> str:
        return repr(self._paste_agent_wrapped)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return layer_of, (self._paste_agent_wrapped, self._paste_agent_layer, self._paste_agent_is_app)


#: What the language itself asks a type for, and not an object: an urlmap is used like a dictionary.
_SPECIAL = (
    "__len__", "__getitem__", "__setitem__", "__delitem__", "__iter__", "__contains__", "__bool__", "__eq__",
    "__hash__", "__enter__", "__exit__",
)  # fmt: skip
_kinds: dict[frozenset[str], type[Layer]] = {}


def layer_of(wrapped: WSGIApplication, name: str, is_app: bool) -> WSGIApplication:
    """A layer around `wrapped` that can all that it can; see Layer."""
    kind = type(wrapped)
    is_hashable = kind.__hash__ is not None
    names = frozenset(
        special
        for special in _SPECIAL
        if getattr(kind, special, None) not in (None, getattr(object, special, None))
        or (special == "__hash__" and is_hashable)  # a class with an `__eq__` would be without
    )
    made = _kinds.get(names)
    if made is None:
        methods: dict[str, Any] = {special: _passed_on(special) for special in names}
        made = _kinds[names] = type("Layer", (Layer,), {"__slots__": (), "__hash__": None, **methods})
    return made(wrapped, name, is_app)


def _route_in_full(transaction: Any, environ: Environ, mounted: str) -> str | None:
    """The route that an application has found, after the path that it is mounted at; None: it has found none.

    What it says itself, in the environ, is in full already.
    """
    route = naming.route_of(transaction.route)
    if route is None and naming.ROUTE_KEY not in environ:
        route = naming.route_of_routing_args(environ)
    if route is None:
        return None
    return f"{mounted}/{route}" if route[0] == "*" else mounted + route


def _tell_mounted(composite: Any) -> None:
    """Tell the layers that a composite passes requests on to by path, as paste.urlmap has them and those like it."""
    paths: dict[int, set[str]] = {}
    for entry in getattr(composite, "applications", ()):
        match entry:
            case ((_, str(path)), application) if issubclass(type(application), Layer):
                known = paths.setdefault(id(application), set())
                known.add(path)
                # At several, nobody knows which of them a request came by.
                object.__setattr__(application, "_paste_agent_mounted", path if len(known) == 1 else "")


def _passed_on(special: str) -> Callable[..., Any]:
    def method(self: Layer, *args: Any) -> Any:
        wrapped = self._paste_agent_wrapped
        return getattr(type(wrapped), special)(wrapped, *args)

    method.__name__ = special
    return method


# -- what PasteDeploy does, and what is done in between ------------------------------------------------------------


def install(main: Callable[..., WSGIApplication]) -> None:
    """Wrap what `loadwsgi` makes layers with. Raises nothing; a second call does nothing.

    main: the factory of the agent's filter.
    """
    try:
        if main not in _mains:
            _mains.append(main)
        get_context = loadwsgi.ConfigLoader.get_context
        if hasattr(get_context, _MARK):
            return
        types = [getattr(loadwsgi, name) for name in _TYPES]
        invokes = [kind.invoke for kind in types]
        wrappers = (_app, _filter, _pipeline, _filter_app, _filter_with)
        naming = _naming(get_context)
        frame_names = _names_of_frames(sys._getframe(1), get_context)
    except Exception as fault:
        lifecycle.on_fault("layers", fault)
        return
    loadwsgi.ConfigLoader.get_context = naming
    for kind, invoke, wrapper in zip(types, invokes, wrappers, strict=True):
        kind.invoke = functools.partial(wrapper, invoke)
    for object_type, context, name in frame_names:
        _set_names(object_type, context, name)


def _naming(get_context: Callable[..., Any]) -> Callable[..., Any]:
    """`ConfigLoader.get_context`, which is told the name of a section and keeps it to itself, made to leave it."""

    @functools.wraps(get_context)
    def naming(self: Any, object_type: Any, name: str | None = None, *args: Any, **kwargs: Any) -> Any:
        context = get_context(self, object_type, name, *args, **kwargs)
        _set_name(context, name)
        return context

    setattr(naming, _MARK, get_context)
    return naming


def _set_name(context: Any, name: str | None) -> None:
    """Give the name of a section to the layer that the section describes. Raises nothing."""
    try:
        kind = context.object_type
        if kind is loadwsgi.FILTER_WITH:
            _set_name(context.next_context, name)
        elif kind is loadwsgi.FILTER_APP:
            _set_name(context.filter_context, name)
        elif kind is not loadwsgi.PIPELINE:
            setattr(context, _NAME, (name or "main")[:_MAX_NAME])
    except Exception as fault:
        lifecycle.on_fault("layers", fault)


def _set_names(object_type: Any, context: Any, name: str) -> None:
    """As `_set_name`, for all that the section describes; where the ini does not tell, there is no name."""
    _set_name(context, name)
    try:
        loader, kind = context.loader, context.object_type
        if kind not in (loadwsgi.FILTER_WITH, loadwsgi.FILTER_APP, loadwsgi.PIPELINE):
            return
        # Of `config:other.ini#name` the loader is that of the other file.
        own = name.partition("#")[2] or "main" if loader.absolute_name(name) else name
        section = loader.find_config_section(object_type, own)
        if kind is loadwsgi.FILTER_WITH:
            _set_names(loadwsgi.FILTER, context.filter_context, loader.parser.get(section, "filter-with"))
        elif kind is loadwsgi.FILTER_APP:
            _set_names(loadwsgi.APP, context.next_context, loader.parser.get(section, "next"))
        else:
            *filters, app = loader.parser.get(section, "pipeline").split()
            _set_names(loadwsgi.APP, context.app_context, app)
            for one, of in zip(context.filter_contexts, filters, strict=True):
                _set_names(loadwsgi.FILTER, one, of)
    except Exception:  # a section that uses another one's pipeline, or has been changed meanwhile
        pass


def _names_of_frames(frame: FrameType | None, get_context: Callable[..., Any]) -> list[tuple[Any, Any, str]]:
    """Contexts that were made before the agent was imported: what each was asked for as, itself, its name.

    A pipeline's application comes before its filters, so it is too late to be told of it: but the functions that have
    been told are all still running. They are the callers of this import.
    """
    loader = loadwsgi.ConfigLoader
    of_section = get_context.__code__
    of_pipeline, of_filter_app = loader._pipeline_app_context.__code__, loader._filter_app_context.__code__
    found: list[tuple[Any, Any, str]] = []
    while frame is not None:
        code = frame.f_code
        if code in (of_section, of_pipeline, of_filter_app):
            known = frame.f_locals
            context: Any = known.get("context")
            if code is of_pipeline and hasattr(context, "app_context"):
                found.append((loadwsgi.APP, context.app_context, known["pipeline"][-1]))
            elif code is of_filter_app and hasattr(context, "next_context"):
                found.append((loadwsgi.APP, context.next_context, known["next_name"]))
            elif code is of_section and context is not None:  # of a section with `filter-with`
                found.append((known["object_type"], context, known["section"].partition(":")[2].strip()))
        frame = frame.f_back
    return found


def _pipeline(invoke: Callable[..., Any], context: Any) -> Any:
    try:
        filters, app = context.filter_contexts, context.app_context
        if _is_below(context):
            _set_below([*filters, app])
        else:
            for place, one in enumerate(filters):
                found = _agent_in(one)
                if found is not None:
                    agent, is_last = found
                    inner = filters[place + 1 :]
                    _put_below(agent, [*inner, app], is_last and not inner)
                    break
    except Exception as fault:
        lifecycle.on_fault("layers", fault)
    return invoke(context)


def _filter_app(invoke: Callable[..., Any], context: Any) -> Any:
    _under_filter(context)
    return invoke(context)


def _filter_with(invoke: Callable[..., Any], context: Any) -> Any:
    _under_filter(context)
    return invoke(context)


def _under_filter(context: Any) -> None:
    """What [filter-app:…] and `filter-with` have in common: one filter, and what comes next. Raises nothing."""
    try:
        inner, outer = context.next_context, context.filter_context
        found = _agent_in(outer)
        if _is_below(context):
            _set_below([outer, inner])
        elif found is not None:
            _put_below(found[0], [inner], found[1])
    except Exception as fault:
        lifecycle.on_fault("layers", fault)


def _agent_in(context: Any) -> tuple[Any, bool] | None:
    """The context of the agent in that of a filter, and whether nothing else in there stands below it; None: no agent.

    A section with `filter-with` describes two filters, the other one around its own.
    """
    if context.object_type is not loadwsgi.FILTER_WITH:
        return (context, True) if context.object in _mains else None
    outer = _agent_in(context.filter_context)
    return (outer[0], False) if outer is not None else _agent_in(context.next_context)


def _put_below(agent: Any, contexts: list[Any], is_last: bool) -> None:
    """Have layers made of all that `contexts` make, if the agent above them, a context, wants any.

    is_last: nothing stands between the agent and them.
    """
    try:
        effective = settings.load(agent.local_conf, agent.global_conf, os.environ)
    except AgentError:  # the filter's factory is about to say so
        return
    if effective.enabled:
        # Before the application is made: what it takes hold of then is instrumented.
        instrument.install_for(effective)
    if effective.enabled and effective.layers:
        _set_below(contexts)
        if is_last and contexts[0].object_type is loadwsgi.APP and not _is_composite(contexts[0]):
            setattr(contexts[0], _ALONE, True)


def _set_below(contexts: list[Any]) -> None:
    for context in contexts:
        setattr(context, _BELOW, True)


def _is_below(context: Any) -> bool:
    # What a layer loads while it is made itself, as a composite does, is below it.
    return hasattr(context, _BELOW) or _loading.get() is not None


def _is_composite(context: Any) -> bool:
    return bool(context.protocol != "paste.app_factory")


def _name_of(context: Any) -> str:
    name = getattr(context, _NAME, None)
    return name if isinstance(name, str) else str(getattr(context.object, "__qualname__", "unknown"))[:_MAX_NAME]


# -- loading -------------------------------------------------------------------------------------------------------


class _Load:
    """The making of one layer, in one step or two."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.start_ns = perf_counter_ns()
        self.own_ns = 0
        self.below_ns = 0  #: of the step under way: spent on layers below

    def step(self, make: Callable[[Any], Any], of: Any) -> Any:
        """make(of), timed. What it raises is raised, and recorded as a load that has failed."""
        token = _loading.set(self)
        start_ns = perf_counter_ns()
        failed = True
        try:
            made = make(of)
            failed = False
            return made
        finally:
            total_ns = perf_counter_ns() - start_ns
            _loading.reset(token)
            self.own_ns += max(total_ns - self.below_ns, 0)
            self.below_ns = 0
            around = _loading.get()
            if around is not None:
                around.below_ns += total_ns
            if failed:
                self.record(failed)

    def record(self, failed: bool = False) -> None:
        lifecycle.owe(KIND_LOAD, (self.name,), self.start_ns, self.own_ns, failed)


#: What is being made here: the innermost one.
_loading: ContextVar[_Load | None] = ContextVar("paste_agent.loading", default=None)


def _app(invoke: Callable[..., Any], context: Any) -> Any:
    try:
        load = _Load(_name_of(context)) if _is_below(context) else None
        if load is not None and not _is_composite(context):
            raised.claim(context.object)
    except Exception as fault:
        lifecycle.on_fault("layers", fault)
        load = None
    if load is None:
        return invoke(context)
    made = load.step(invoke, context)
    load.record()
    if _is_composite(context):
        try:
            _tell_mounted(made)
        except Exception as fault:
            lifecycle.on_fault("layers", fault)
    if not callable(made) or hasattr(context, _ALONE):
        return made
    return layer_of(made, load.name, not _is_composite(context))


def _filter(invoke: Callable[..., Any], context: Any) -> Any:
    try:
        load = _Load(_name_of(context)) if _is_below(context) and context.object not in _mains else None
    except Exception as fault:
        lifecycle.on_fault("layers", fault)
        load = None
    if load is None:
        return invoke(context)
    made = load.step(invoke, context)
    return _applying(load, made) if callable(made) else made


def _applying(load: _Load, made: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The filter, which makes a layer of itself when it gets what is below it."""
    first = [load]

    @functools.wraps(made, updated=())
    def layered(app: Any) -> Any:
        step = first.pop() if first else _Load(load.name)
        application = step.step(made, app)
        step.record()
        if application is app or not callable(application):  # it has decided to be none
            return application
        return layer_of(application, step.name, False)

    return layered
