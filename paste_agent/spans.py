"""Spans: timed parts of a transaction, on the thread that works for it.

A span costs about a microsecond: what wraps a library calls `begin` before and `end` after what it times. Neither
raises anything, and without a transaction `begin` returns None and nothing else happens.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextvars import Token
from time import perf_counter_ns
from types import TracebackType
from typing import Any

from paste_agent import naming, propagation
from paste_agent.decorating import Decorator
from paste_agent.inside import DATABASE, FUNCTION, MAX_SPANS, PARTS, Attributes, FinishedSpan, Inside
from paste_agent.raised import BETWEEN, is_of_library, type_name
from paste_agent.recorder import layout
from paste_agent.recorder.layout import SPAN_AT
from paste_agent.recorder.writer import Key, SpanKey
from paste_agent.said import Said, plain_value
from paste_agent.transaction import UnderWay, Within, current

_ROOM = layout.SPAN.size - 8
_MAX_NAME = 255
_MAX_ATTRIBUTES = 64
_MAX_KEY = 128
_MAX_STEPS = 60
_own_parts = len(PARTS)
#: In the place of a category: it stood aside, and has ended; it has ended, and its thread left it out of turn.
_ENDED, _LEFT = -1, -2
#: What a thread was in before, how it comes back, and since when, of the monotonic clock.
Entered = tuple[Within | None, Token[Within | None], int]
_pack_span = layout.SPAN.pack_into
_get, _set, _reset = current.get, current.set, current.reset


class Span:
    """One span under way; made by `begin`."""

    __slots__ = (
        "around",
        "attributes",
        "category",
        "children_ns",
        "number",
        "span_id",
        "start_ns",
        "text",
        "token",
        "transaction",
    )

    around: Within
    transaction: UnderWay
    category: int  #: one of `inside`
    number: int  #: in its transaction
    text: bytes  #: what the black box says of it, without values
    start_ns: int  #: of the monotonic clock
    children_ns: int  #: time in spans inside of it
    span_id: bytes | None  #: once a service that is called has been told
    attributes: dict[str, object] | None  #: more that is known of it, by whoever ends it
    token: Token[Within | None]


def begin(category: int, text: bytes) -> Span | None:
    """A span begins; None without a transaction, and then there is nothing to end. Raises nothing.

    category: DATABASE and so on, of `inside`. text: what a post-mortem says if the process dies within, UTF-8, without
    values that a client or a user has sent; cut to what fits.
    """
    around = _get()
    if around is None:
        return None
    try:
        # To ask a transaction for itself is a call.
        transaction: UnderWay = around.transaction if around.__class__ is Span else around  # type: ignore[assignment]
        if transaction.environ is None:  # it has ended; a thread that it began has not
            return None
        inside = transaction.inside
        if inside is None:
            inside = transaction.inside = Inside()
        recorder = transaction.recorder
        span = Span()
        span.around = around
        span.transaction = transaction
        span.category = category
        span.number = recorder.next_span()
        span.text = text
        span.children_ns = 0
        span.span_id = span.attributes = None
        slot = transaction.slot
        if slot:
            _pack_span(recorder.buffer, slot + SPAN_AT, transaction.number, text)
        span.token = _set(span)
        span.start_ns = perf_counter_ns()
        return span
    except Exception as fault:
        around.transaction.recorder.on_fault("begin of a span", fault)
        return None


def end(span: Span, name: str, key: SpanKey | Key | None = None, failed: str | None = None, attributes: Attributes | None = None) -> None:  # fmt: skip  # noqa: E501
    """The span has ended. Raises nothing.

    name: of the span, of low cardinality. key: kind and fields that it is counted under; None: it is not.
    failed: `error.type`. attributes: of the span in a kept trace; not changed afterwards.
    """
    end_ns = perf_counter_ns()
    transaction, category = span.transaction, span.category
    recorder = transaction.recorder
    try:
        try:
            if _get() is span:
                _reset(span.token)
            else:  # its transaction has ended before it, or it ends before one inside of it
                span.category = _LEFT
                _step_out(span)
        except ValueError:  # it ends in another context than it began in
            span.category = _LEFT
            _set(_not_left(span))
        start_ns = span.start_ns
        own_ns = duration_ns = end_ns - start_ns
        if key is not None:
            recorder.record_span(key, start_ns, duration_ns, failed is not None)
        inside = transaction.inside
        if transaction.environ is None or inside is None:
            return
        around, slot = span.around, transaction.slot
        parent, code = 0, None
        if around.__class__ is Span:
            around.children_ns += duration_ns
            parent = around.number
            if slot:
                _pack_span(recorder.buffer, slot + SPAN_AT, transaction.number, around.text)
        elif slot:
            recorder.longs[(slot + SPAN_AT) >> 3] = 0
        if span.children_ns:
            # Threads of one transaction may have had spans inside of this one at the same time.
            own_ns = duration_ns - span.children_ns if duration_ns > span.children_ns else 0
        if category < _own_parts:
            part = inside.parts.get(category) or inside.parts.setdefault(category, [0, 0])  # as `Inside.spend`
            part[0] += 1
            part[1] += own_ns
        if category == DATABASE:
            queries, text, sampler = inside.queries, span.text, recorder.sampler
            times = queries.get(text, 0) + 1
            if times > 1 or len(queries) < MAX_SPANS:
                queries[text] = times
            slow = duration_ns > sampler.slow_query_ns
            if slow or times >= sampler.repeated:
                # Worth a trace, with where it was issued: a statement that repeats tells it once.
                inside.notable = inside.remarkable = True
                code = caller() if slow or times == sampler.repeated else None
        # As FinishedSpan has them; a plain tuple is made in a tenth of the time.
        done = (span.number, parent, category, name, start_ns, duration_ns, own_ns, failed, span.span_id, attributes, code)  # fmt: skip  # noqa: E501
        if len(inside.finished) < MAX_SPANS or inside.takes(done, recorder.sampler.slow_query_ns):
            inside.finished.append(done)
    except Exception as fault:
        recorder.on_fault("end of a span", fault)


def _step_out(span: Span) -> None:
    """One that has begun inside of a span goes on after it: its end does not lead back into what has ended."""
    here = inner = _get()
    while isinstance(inner, Span):
        leads_to = inner.token.old_value
        if leads_to is span:
            out = span.token.old_value
            _set(None if out is Token.MISSING else out)
            inner.token = _set(inner)
            _set(here)
            return
        inner = None if leads_to is Token.MISSING else leads_to


def _not_left(within: Within | None) -> Within | None:
    """What has been left out of turn gives way to what is around it."""
    while isinstance(within, Span) and within.category == _LEFT:
        within = within.around
    return within


def again(place: Within | None, itself: Within) -> Within:
    """What a thread is in that goes on with a generator: where that was, or `itself` if that has ended meanwhile."""
    place = _not_left(place)
    return itself if place is None or place.transaction.environ is None else place


def step_aside(span: Span) -> None:
    """The thread is not in a span that it has just begun, which goes on until `end_aside`. May raise."""
    _reset(span.token)
    _tell(span.transaction)


def end_aside(span: Span, name: str, failed: str | None, attributes: Mapping[str, object] | None) -> None:
    """As `end`, of a span that was told to `step_aside`: where the thread is does not change. Raises nothing."""
    end_ns = perf_counter_ns()
    transaction, around = span.transaction, span.around
    try:
        inside = transaction.inside
        if transaction.environ is None or inside is None:
            return
        duration_ns = end_ns - span.start_ns
        own_ns = max(duration_ns - span.children_ns, 0)
        if span.category < _own_parts:
            inside.spend(span.category, own_ns)
        done = FinishedSpan(
            number=span.number,
            parent=around.number if isinstance(around, Span) else 0,
            category=span.category,
            name=name,
            start_ns=span.start_ns,
            duration_ns=duration_ns,
            own_ns=own_ns,
            failed=failed,
            span_id=span.span_id,
            attributes=attributes,
            code=None,
        )
        if len(inside.finished) < MAX_SPANS or inside.takes(done, transaction.recorder.sampler.slow_query_ns):
            inside.finished.append(done)
        span.category = _ENDED
    except Exception as fault:
        transaction.recorder.on_fault("end of a span", fault)


def enter(span: Span, since_ns: int | None = None, place: Within | None = None) -> Entered | None:
    """The thread is in a span again that was told to `step_aside`; for `leave`, or for `pause`. May raise.

    since_ns: of the monotonic clock; None: from now on. place: what `pause` has returned. Returns None, and nothing
    happens, where the thread works for another transaction, or the span's has ended.
    """
    around, transaction = _get(), span.transaction
    if transaction.environ is None or (around is not None and around.transaction is not transaction):
        return None
    token = _set(again(place, span))
    _tell(transaction)
    return around, token, since_ns or perf_counter_ns()


def leave(span: Span, entered: Entered) -> None:
    """The thread is where it was before `enter`, and what is there had the time in between inside of it. May raise."""
    around, token, since_ns = entered
    if isinstance(around, Span) and around is not span:
        around.children_ns += perf_counter_ns() - since_ns
    try:
        if _get() is span:  # else its transaction has ended before it
            _reset(token)
            back = _not_left(_get())
            if back is not _get():
                _set(back)
        elif span.category == _ENDED:  # generators may take turns
            span.category = _LEFT
    except ValueError:  # in another context
        return
    _tell(span.transaction)


def pause(span: Span, entered: Entered) -> Within | None:
    """As `leave`, of a generator that yields: spans that it has open go with it, and its consumer is where it was.

    Returns what it is in itself, for its next `enter`. May raise.
    """
    around, _, since_ns = entered
    place, transaction = _get(), span.transaction
    if isinstance(around, Span) and around is not span:
        around.children_ns += perf_counter_ns() - since_ns
    # One that has ended meanwhile has left to the thread what it was in before.
    if transaction.environ is not None or (place is not None and place.transaction is transaction):
        _set(_not_left(around))
        _tell(transaction)
    return place


def rename(span: Span, text: bytes) -> None:
    """Have the black box call a span otherwise, as `begin` does. May raise."""
    span.text = text
    if _get() is span:
        _tell(span.transaction)


def show(around: Within | None) -> None:
    """Have the black box say what a thread is in. May raise."""
    if around is None or not (slot := around.transaction.slot):
        return
    recorder = around.transaction.recorder
    if isinstance(around, Span):
        recorder.enter_span(slot, around.text)
    else:
        recorder.leave_span(slot)


def _tell(transaction: UnderWay) -> None:
    """The same of this thread, which is in no span of the transaction if it works for another one, or for none."""
    around = _get()
    if around is not None and around.transaction is transaction:
        show(around)
    elif transaction.slot:
        transaction.recorder.leave_span(transaction.slot)


def caller() -> tuple[str, int, str] | None:
    """File, line and function of the application's innermost frame; None where there is none but libraries'."""
    frame = sys._getframe(1)
    for _ in range(_MAX_STEPS):
        file = frame.f_code.co_filename
        if not file.startswith(BETWEEN) and not is_of_library(frame):
            return file, frame.f_lineno, frame.f_code.co_name
        if frame.f_back is None:
            break
        frame = frame.f_back
    return None


def parent_of(span: Span) -> tuple[str | None, list[tuple[str, str]]]:
    """What tells the service that this span calls whose call it is. Raises nothing.

    The value of `traceparent`, None: nothing is told, or another way; and other headers, names in lower case.
    """
    transaction = span.transaction
    try:
        recorder, identity = transaction.recorder, transaction.identify()
        span_id = span.span_id
        if span_id is None:
            span_id = span.span_id = recorder.new_id(8)
        others: list[tuple[str, str]] = []
        if identity.baggage:
            others.append(("baggage", identity.baggage))
        if "tracecontext" not in recorder.propagators:
            return None, others
        if identity.tracestate:
            others.insert(0, ("tracestate", identity.tracestate))
        return propagation.format_traceparent(identity.trace_id, span_id, identity.sampled), others
    except Exception as fault:
        transaction.recorder.on_fault("propagation", fault)
        return None, []


def headers_of(span: Span) -> list[tuple[str, str]]:
    """All headers of `parent_of`, in order."""
    parent, others = parent_of(span)
    return others if parent is None else [("traceparent", parent), *others]


def timed(category: int, name: str, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call something within a span that only has a name; returns what it returns, raises what it raises."""
    span = begin(category, name.encode("utf-8", "replace"))
    if span is None:
        return call(*args, **kwargs)
    failed = None
    try:
        return call(*args, **kwargs)
    except BaseException as error:
        failed = type_name(error)
        raise
    finally:
        end(span, name, None, failed)


class span(Decorator):
    """A span around a part of the application; as a context manager or as a decorator. Nothing without a transaction.

    with span("reserve stock"):
        ...
    """

    __slots__ = ("_name", "_span", "_text")

    def __init__(self, name: str) -> None:
        """name: one of few, without values that a client or a user has sent."""
        self._name = name[:_MAX_NAME] if type(name) is str else naming.text_of(name, _MAX_NAME)
        self._text = self._name.encode("utf-8", "replace")[:_ROOM]
        self._span: Span | None = None

    def _recreate_cm(self) -> span:
        return span(self._name)  # each call of a decorated function is a span of its own

    def _in_steps(self) -> _SpanInSteps:
        return _SpanInSteps(self._name)

    def __enter__(self) -> span:
        self._span = begin(FUNCTION, self._text)
        return self

    def set(self, key: str, value: str | int | float | bool) -> None:
        """Give the span an attribute; a value that `add_attribute` would not take is left out."""
        found = self._span
        if found is None or type(key) is not str or (kept := plain_value(value)) is None:
            return
        attributes = found.attributes = found.attributes or Said()
        if len(attributes) < _MAX_ATTRIBUTES or key in attributes:
            attributes[key[:_MAX_KEY]] = kept

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        found, self._span = self._span, None
        if found is not None:
            end(found, self._name, None, None if error is None else failure_of(error), found.attributes)


class _SpanInSteps(span):
    """Around a generator. Raises nothing."""

    __slots__ = ("_entered", "_place")

    def __enter__(self) -> _SpanInSteps:
        super().__enter__()
        self._entered: Entered | None = None
        self._place: Within | None = None  #: of its own spans, the one that is open; None: it has not begun
        self._try(step_aside)
        return self

    def resume(self) -> None:
        self._try(self._resume)

    def pause(self) -> None:
        if self._entered is not None:
            self._try(self._pause)

    def _resume(self, found: Span) -> None:
        self._entered = enter(found, None, self._place)

    def _pause(self, found: Span) -> None:
        entered, self._entered = self._entered, None
        if entered is not None:
            self._place = pause(found, entered)

    def _try(self, step: Callable[[Span], None]) -> None:
        found = self._span
        if found is not None:
            try:
                step(found)
            except Exception as fault:
                found.transaction.recorder.on_fault("a generator's span", fault)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        found, self._span = self._span, None
        if found is not None:
            end_aside(found, self._name, failure_of(error), found.attributes)


def failure_of(error: BaseException | None) -> str | None:
    """`error.type` of what ended with this; a generator that nobody wants more of has not failed."""
    return None if error is None or type(error) is GeneratorExit else type_name(error)
