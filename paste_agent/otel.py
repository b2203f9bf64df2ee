"""OpenTelemetry's tracing API: what is said through it inside of a transaction becomes spans of that transaction.

Without a provider the API's tracers do nothing. What they hand out in a transaction is ours instead; outside of one,
and wherever the application brings an SDK, the API is as it was. No provider is set, so that the application can set
its own at any time, and nothing is put into the API's context but what the application puts there.

Imported once `opentelemetry.trace` has been, which is not a dependency. Tested with opentelemetry-api 1.20.0, 1.30.0
and 1.45.2.
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from time import perf_counter_ns, time_ns
from types import FrameType, MappingProxyType, ModuleType, TracebackType
from typing import Any, TypeVar

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from paste_agent import naming, propagation, spans, trace_ids
from paste_agent.inside import FUNCTION, MAX_ATTRIBUTES, MESSAGE, Identity, Inside
from paste_agent.raised import type_name
from paste_agent.said import Said, add
from paste_agent.transaction import Transaction, UnderWay, Within, current

_MAX_NAME = 255
#: Of a span: a kept trace shows no more.
_MAX_OF_SPAN = 32
_MARK = "_paste_agent"
_SDK = "opentelemetry.sdk.trace"
_WHERE = "OpenTelemetry's API"
#: Where OpenTelemetry's own instrumentations are from.
_INSTRUMENTATIONS = "opentelemetry.instrumentation."

_get = current.get
_current_span = trace.get_current_span
_use_span = trace.use_span
_R = TypeVar("_R")
_Manager = Callable[..., AbstractContextManager[trace.Span]]
#: As the API has it: newer versions also decorate coroutines.
_managed: Callable[[Callable[..., Iterator[trace.Span]]], _Manager] = getattr(
    trace, "_agnosticcontextmanager", contextmanager
)


def install(module: ModuleType) -> None:
    """Take the place of what does nothing in `opentelemetry.trace`. A second call does nothing.

    AttributeError, before anything is replaced, where the API is not what it was.
    """
    if hasattr(trace.use_span, _MARK):
        return
    proxy = trace.ProxyTracer
    tracer_of = proxy._tracer.fget  # type: ignore[attr-defined]  # a property
    proxy("paste_agent")._noop_tracer, trace._TRACER_PROVIDER  # what is used below is there

    def tracer(self: trace.ProxyTracer) -> object:
        found = tracer_of(self)
        return _BRIDGE if found is self._noop_tracer and not _has_sdk() else found

    proxy._tracer = property(tracer)  # type: ignore[assignment,method-assign]
    setattr(use_span, _MARK, True)
    trace.use_span = use_span  # type: ignore[assignment]
    trace.get_current_span = trace.propagation.get_current_span = get_current_span


def _has_sdk() -> bool:
    """Whether somebody else looks after spans.

    A provider that is only used by hand, and not set, is not to find parents of ours either: it would sample as they
    are sampled.
    """
    return trace._TRACER_PROVIDER is not None or _SDK in sys.modules


def _harmless(method: Callable[..., _R]) -> Callable[..., _R | None]:
    """A method of a span that raises nothing: a fault is counted, and the result is None."""

    @functools.wraps(method)
    def harmless(self: Any, *args: Any, **kwargs: Any) -> _R | None:
        try:
            return method(self, *args, **kwargs)
        except Exception as fault:
            self._transaction.recorder.on_fault(_WHERE, fault)
            return None

    return harmless


# -- which span the code is in ---------------------------------------------------------------------------------------


class _Place(SpanContext):
    """Trace and span id. Whether it is sampled is decided when somebody asks, who passes it on: a log does not."""

    @classmethod
    def of(cls, around: Within) -> SpanContext:
        ids = trace_ids.of(around)
        if ids is None:
            return trace.INVALID_SPAN_CONTEXT
        place = cls(int(ids[0], 16), int(ids[1], 16), False)
        # Whoever keeps a place, to link to it say, keeps no request's objects with it.
        place.__dict__["_transaction"] = weakref.ref(around.transaction)
        return place

    def __reduce__(self) -> tuple[Any, ...]:
        return SpanContext, (self.trace_id, self.span_id, False, self.trace_flags, self.trace_state)

    @property
    def trace_flags(self) -> TraceFlags:
        identity = self._identity()
        return TraceFlags(TraceFlags.SAMPLED if identity is not None and identity.sampled else TraceFlags.DEFAULT)

    @property
    def trace_state(self) -> TraceState:
        identity = self._identity()
        return TraceState.from_header([identity.tracestate] if identity is not None and identity.tracestate else [])

    def _identity(self) -> Identity | None:
        known: Identity | None = self.__dict__.get("_known")
        transaction: UnderWay | None = self.__dict__["_transaction"]()
        if known is not None or transaction is None:
            return known
        try:
            if transaction.environ is not None:
                known = transaction.identify()
            elif transaction.inside is not None:
                known = transaction.inside.identity
        except Exception as fault:
            transaction.recorder.on_fault(_WHERE, fault)
        self.__dict__["_known"] = known
        return known


class _Ours(trace.Span):
    """What is common to spans of ours: what nobody shows, and what can be read of them.

    The API has nothing to be read. But a library that is told that a span is recorded takes it for one of the SDK's,
    and asks for its kind, say.
    """

    kind = SpanKind.INTERNAL
    events: tuple[object, ...] = ()
    links: tuple[object, ...] = ()
    _around: Within
    _transaction: UnderWay
    _context: SpanContext | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return trace.NonRecordingSpan, (self.get_span_context(),)  # a copy is not what is measured

    @property
    def context(self) -> SpanContext:
        return self.get_span_context()

    def get_span_context(self) -> SpanContext:
        if self._context is None:
            self._context = _Place.of(self._around)
        return self._context

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        try:
            if isinstance(attributes, Mapping):
                for key, value in list(attributes.items()):
                    self.set_attribute(key, value)
        except Exception as fault:  # what calls itself a mapping may do anything
            self._transaction.recorder.on_fault(_WHERE, fault)

    def add_event(self, name: str, attributes: Any = None, timestamp: int | None = None) -> None:
        pass

    def note(self, error: object) -> None:
        """Note an error of its transaction, whichever this thread works for. May raise what the error raises."""
        transaction: Any = self._transaction
        if transaction.environ is not None and issubclass(type(error), BaseException):
            transaction.note(error)

    def add_link(self, context: SpanContext, attributes: Any = None) -> None:
        pass

    def update_name(self, name: str) -> None:
        pass

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        pass

    def end(self, end_time: int | None = None) -> None:
        pass


class _Here(_Ours):
    """What is current where no span of the API's is: the transaction, by the id of what is the innermost in it."""

    def __init__(self, around: Within) -> None:
        self._around = around
        self._transaction = transaction = around.transaction
        if isinstance(transaction, Transaction):
            self.kind = SpanKind.SERVER

    @property
    def name(self) -> str:
        """As long as no route is known: the method, or the name of a task."""
        return str(getattr(self._transaction, "method", None) or getattr(self._transaction, "name", ""))

    @property
    def start_time(self) -> int | None:
        """ns since the epoch."""
        return _epoch_ns(getattr(self._transaction, "start_ns", None))

    @property
    def end_time(self) -> int | None:
        return None

    @property
    def status(self) -> Status:
        return Status()

    @property
    def parent(self) -> SpanContext | None:
        return None

    @property
    def attributes(self) -> Mapping[str, object]:
        inside = self._transaction.inside
        return MappingProxyType((inside.attributes if inside is not None else None) or {})

    def is_recording(self) -> bool:
        return self._transaction.environ is not None

    @_harmless
    def set_attribute(self, key: str, value: Any) -> None:
        transaction = self._transaction
        if transaction.environ is None:
            return
        inside = transaction.inside
        if inside is None:
            inside = transaction.inside = Inside()
        if inside.attributes is None:
            inside.attributes = {}
        add(inside.attributes, MAX_ATTRIBUTES, key, value)

    @_harmless
    def record_exception(
        self, exception: BaseException, attributes: Any = None, timestamp: int | None = None, escaped: bool = False
    ) -> None:
        if not escaped:
            self.note(exception)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Here) and other._around is self._around

    def __hash__(self) -> int:
        return id(self._around)


class _Told(_Ours):
    """A span that a tracer has begun."""

    def __init__(self, span: spans.Span, name: str, kind: SpanKind, fails: bool) -> None:
        """fails: when an exception leaves it that it is the context manager of."""
        self._around = self._span = span
        self._open: spans.Span | None = span  #: None: it has ended
        self._transaction = span.transaction
        self.name = name
        self._end_ns: int | None = None
        if isinstance(kind, SpanKind):
            self.kind = kind
        self._fails = fails
        self._attributes = Said()
        self._status = StatusCode.UNSET
        self._raised: str | None = None  #: type of the last exception that it was told of
        self.at_once = False  #: its thread is in it as soon as it has begun
        self._entered = False
        self._sends = kind is SpanKind.PRODUCER

    @property
    def start_time(self) -> int | None:
        """ns since the epoch."""
        return _epoch_ns(self._span.start_ns)

    @property
    def end_time(self) -> int | None:
        return _epoch_ns(self._end_ns)

    @property
    def status(self) -> Status:
        return Status(self._status)

    @property
    def parent(self) -> SpanContext | None:
        return _Place.of(self._span.around)

    @property
    def attributes(self) -> Mapping[str, object]:
        return MappingProxyType(self._attributes)

    def is_recording(self) -> bool:
        return self._open is not None and self._transaction.environ is not None

    @_harmless
    def set_attribute(self, key: str, value: Any) -> None:
        if self._open is not None:
            add(self._attributes, _MAX_OF_SPAN, key, value)

    @_harmless
    def update_name(self, name: str) -> None:
        if self._open is not None:
            self.name = naming.text_of(name, _MAX_NAME)
            spans.rename(self._span, self.name.encode("utf-8", "replace"))

    @_harmless
    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        code = status.status_code if isinstance(status, Status) else status
        # As the API has it: that it went well is final, and that nobody has said so is no news.
        if code in (StatusCode.OK, StatusCode.ERROR) and self._status is not StatusCode.OK:
            self._status = code

    @_harmless
    def record_exception(
        self, exception: BaseException, attributes: Any = None, timestamp: int | None = None, escaped: bool = False
    ) -> None:
        if self._open is None or not issubclass(type(exception), BaseException):
            return
        self._raised = type_name(exception)
        add(self._attributes, _MAX_OF_SPAN, "exception.type", self._raised)
        if not escaped:  # else it is noted if it leaves the application, or whoever handles it says so
            self.note(exception)

    @_harmless
    def leave_by(self, error: BaseException) -> None:
        """An exception leaves it."""
        self._raised = type_name(error)

    @_harmless
    def enter(self) -> spans.Entered | None:
        """This thread is in it from now on, until `leave`."""
        entered = spans.enter(self._span, self._span.start_ns if self.at_once else None)
        self.at_once = False
        self._entered = self._entered or entered is not None
        return entered

    @_harmless
    def leave(self, entered: spans.Entered) -> None:
        spans.leave(self._span, entered)

    @_harmless
    def end(self, end_time: int | None = None) -> None:
        span, self._open = self._open, None
        if span is None:
            return
        self._end_ns = perf_counter_ns()
        # What no thread was in, or has been seen as one already, would be summed up twice.
        if self._sends and self._entered and not _has_message(span):
            span.category = MESSAGE
        failed = None
        if self._status is StatusCode.ERROR:
            # An `error.type` that the application gives is an attribute as any other, which settings may keep out.
            failed = self._raised or "_OTHER"
        spans.end_aside(span, self.name, failed, self._attributes or None)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._fails and isinstance(error, Exception):
            self.leave_by(error)
            self.set_status(StatusCode.ERROR)
        self.end()


def _has_message(span: spans.Span) -> bool:
    """Whether a span is inside of a message, or a message inside of it: as what publishes, one may be the other's."""
    around: Within = span.around
    while isinstance(around, spans.Span):
        if around.category == MESSAGE:
            return True
        around = around.around
    inside = span.transaction.inside
    finished = list(inside.finished) if inside is not None else []
    parents = {done[0]: done[1] for done in finished}
    for number in [done[0] for done in finished if done[2] == MESSAGE]:
        while number and number != span.number:
            number = parents.get(number, 0)
        if number:
            return True
    return False


def get_current_span(context: Context | None = None) -> trace.Span:
    """As the API's; where no span of its own is current, the transaction that this thread works for."""
    found = _current_span(context)
    if _has_sdk():
        # One of ours that nobody has detached would be a parent that was not sampled.
        return trace.INVALID_SPAN if isinstance(found, _Ours) else found
    if context is not None:
        return found
    if found is trace.INVALID_SPAN and _is_instrumentation(sys._getframe(1)):
        return found
    around = _get()
    if around is not None and around.transaction.environ is None:
        around = None
    if isinstance(found, _Ours):
        # A span that nobody has detached, as of a request before this one, is no place to be.
        if found._transaction.environ is not None and (around is None or around.transaction is found._transaction):
            return found
    elif around is None or not _is_nobody(found, around.transaction):
        return found
    return trace.INVALID_SPAN if around is None else _Here(around)


def _is_instrumentation(frame: FrameType) -> bool:
    """Whether one of OpenTelemetry's asks: where nothing is current, it is the first, and takes baggage over."""
    return str(frame.f_globals.get("__name__")).startswith(_INSTRUMENTATIONS)


def _is_nobody(span: trace.Span, transaction: UnderWay) -> bool:
    """Whether a span is none, or its transaction's caller: what there is without a provider. Raises nothing."""
    if span is trace.INVALID_SPAN:
        return True
    if not isinstance(span, trace.NonRecordingSpan):
        return False
    try:
        place = span.get_span_context()
        parent = propagation.caller_of(transaction.environ or {})
        ids = place.trace_id.to_bytes(16, "big"), place.span_id.to_bytes(8, "big")
        return not place.is_valid or (parent is not None and (parent.trace_id, parent.span_id) == ids)
    except Exception as fault:
        transaction.recorder.on_fault(_WHERE, fault)
        return False


@_managed
def use_span(
    span: trace.Span,
    end_on_exit: bool = False,
    record_exception: bool = True,
    set_status_on_exception: bool = True,
) -> Iterator[trace.Span]:
    """As the API's; a span of ours is what its thread is in meanwhile, for the agent too."""
    if not isinstance(span, _Ours):
        with _use_span(span, end_on_exit, record_exception, set_status_on_exception):
            yield span
        return
    told = span if isinstance(span, _Told) else None
    entered = None if told is None else told.enter()
    try:
        # An exception that passes is no error yet: somebody may handle it.
        # Nor is it made a text of, as the API would: that runs the application's code.
        with _use_span(span, end_on_exit, False, False):
            try:
                yield span
            except Exception as error:
                if told is not None:
                    told.leave_by(error)
                    if set_status_on_exception:
                        told.set_status(StatusCode.ERROR)
                raise
    finally:
        if told is not None and entered is not None:
            told.leave(entered)


# -- tracers ---------------------------------------------------------------------------------------------------------


class _Tracer:
    """What a tracer asks that has no provider: one for all, since names of libraries are not kept."""

    def __init__(self) -> None:
        self._noop = trace.NoOpTracer()

    def start_span(
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Any = None,
        links: Any = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
        **more: Any,
    ) -> trace.Span:
        span = _begun(name, context, kind, attributes, set_status_on_exception)
        if span is not None:
            return span
        return self._noop.start_span(
            name, context, kind, attributes, links, start_time, record_exception, set_status_on_exception, **more
        )

    @contextmanager
    def start_as_current_span(
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Any = None,
        links: Any = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
        end_on_exit: bool = True,
        **more: Any,
    ) -> Iterator[trace.Span]:
        span = _begun(name, context, kind, attributes, set_status_on_exception)
        if span is not None:
            span.at_once = True
            with use_span(span, end_on_exit, record_exception, set_status_on_exception):
                yield span
            return
        with self._noop.start_as_current_span(
            name, context, kind, attributes, links, start_time, record_exception, set_status_on_exception, end_on_exit,
            **more,
        ) as nothing:  # fmt: skip
            yield nothing


_BRIDGE = _Tracer()


def _begun(name: str, context: Context | None, kind: SpanKind, attributes: Any, fails: bool) -> _Told | None:
    """A span that this thread is not in yet; None without a transaction. Raises nothing."""
    around = _get()
    if around is None:
        return _begun_elsewhere(name, context, kind, attributes, fails)
    if around.transaction.environ is None:
        return None
    try:
        parent = _parent(around, context)
        shown = naming.text_of(name, _MAX_NAME)
        span = spans.begin(FUNCTION, shown.encode("utf-8", "replace"))
        if span is None:
            return None
        spans.step_aside(span)
        span.around = parent
        told = _Told(span, shown, kind, fails)
        if attributes:
            told.set_attributes(attributes)
        return told
    except Exception as fault:
        around.transaction.recorder.on_fault(_WHERE, fault)
        return None


def _begun_elsewhere(name: str, context: Context | None, kind: SpanKind, attributes: Any, fails: bool) -> _Told | None:
    """In a thread that was handed the API's context alone."""
    found = _current_span(context)
    if not isinstance(found, _Told) or found._transaction.environ is None:
        return None
    token = current.set(found._span)
    try:
        return _begun(name, context, kind, attributes, fails)
    finally:
        current.reset(token)


def _parent(around: Within, context: Context | None) -> Within:
    """What a new span is inside of: what the API says, where that is of this transaction and not around `around`."""
    found = _current_span(context)
    if not isinstance(found, _Told) or found._transaction is not around.transaction:
        return around
    step = around
    while context is None and isinstance(step, spans.Span):
        if step is found._span:
            return around
        step = step.around
    return found._span


def _epoch_ns(clock_ns: int | None) -> int | None:
    """A time of the monotonic clock, in ns since the epoch."""
    return None if clock_ns is None else time_ns() - perf_counter_ns() + clock_ns
