"""One web request, from the call until its response is closed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from time import perf_counter_ns
from types import TracebackType
from typing import Any, NamedTuple, Protocol

from paste_agent import error_rules, naming, propagation
from paste_agent.inside import LAYERS, Identity, Inside, SeenError
from paste_agent.raised import Raised, status_of_escaped, type_name
from paste_agent.recorder import layout
from paste_agent.recorder.layout import (
    ANSWER,
    ANSWER_AT,
    FAILED,
    KIND_ERROR,
    KIND_SERVER,
    RECORD_BODY,
    RECORD_BODY_AT,
    RECORD_SIZE,
)
from paste_agent.recorder.writer import LENIENT, Recorder
from paste_agent.sampler import Alike

Environ = dict[str, Any]
Write = Callable[[bytes], object]
StartResponse = Callable[..., Write]
WSGIApplication = Callable[[Environ, StartResponse], Iterable[bytes]]
ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]

#: Where a request's transaction is found by what runs inside of it.
TRANSACTION_KEY = "paste_agent.transaction"

_pack_record = RECORD_BODY.pack_into
_pack_answer = ANSWER.pack_into
_NO_ID = bytes(8)
_MAX_PATH = 1024
_MAX_HEADER = 256
#: In the place of a series: the application does not want this transaction to be counted.
IGNORED = -2
#: Seconds, milliseconds and microseconds since the epoch differ by their size for some thousand years.
_UNITS = ((1e14, 1e6), (1e11, 1e3), (1e8, 1.0))
_MAX_QUEUE_US = 0xFFFFFFFE


class UnderWay(Protocol):
    """A transaction, as those see it who work for it: a request, or a background task."""

    recorder: Recorder
    slot: int  #: 0: none was free, or it has ended
    number: int  #: of the transaction in its process
    inside: Inside | None  #: None: nothing so far
    environ: dict[str, Any] | None  #: None: it has ended

    def identify(self) -> Identity:
        """What others are told of it; decides whether it is sampled, where nobody has yet."""


class Within(Protocol):
    """What a thread is in: a transaction, or a span of one."""

    @property
    def transaction(self) -> UnderWay: ...


#: What this thread, or greenlet, works for: a transaction, or the span that it is in. Set while the application runs.
current: ContextVar[Within | None] = ContextVar("paste_agent.transaction", default=None)


class KeptTransaction(NamedTuple):
    """What a kept transaction leaves for the reporter of its process."""

    trace_id: bytes
    span_id: bytes
    parent_id: bytes  #: zeros: none
    why: int  #: KEPT_ bits
    series: int
    failed: bool
    start_ns: int  #: of the monotonic clock
    duration_ns: int
    queue_us: int  #: + 1; 0: unknown
    method: str
    path: str  #: as in PATH_INFO, SCRIPT_NAME before it
    query: str
    headers: dict[str, str]  #: values of environ keys that become attributes
    tracestate: str
    error: Raised | None
    stack: tuple[int, str] | None = None  #: of a slow one: when it was taken, ns, and a line a frame
    inside: Inside | None = None
    layers: list[tuple[str, int]] | None = None  #: name and own time, ns; the innermost first
    alike: Alike | None = None  #: those that it stands for; None: for itself


class Transaction:
    """A request under way. One object, no dictionary; made by AgentFilter, ended by what `response` has."""

    __slots__ = (
        "__weakref__",
        "below_ns",
        "body",
        "environ",
        "error_type",
        "inside",
        "iterator",
        "layers",
        "method",
        "number",
        "path",
        "pending",
        "queue_us",
        "raised",
        "recorder",
        "route",
        "scheme",
        "sent",
        "series",
        "server_start_response",
        "slot",
        "start_ns",
        "status",
    )

    recorder: Recorder
    server_start_response: StartResponse
    environ: Environ | None  #: None: the transaction has ended
    body: Iterable[bytes] | None  #: None: closed
    iterator: Iterator[bytes]
    start_ns: int  #: of the monotonic clock
    slot: int  #: offset of its slot in the recorder; 0: none was free
    queue_us: int  #: + 1; 0: unknown
    method: str
    path: str
    scheme: str
    series: int  #: that the record will have; -1: not known yet
    status: str | None
    route: object
    error_type: str | None
    pending: tuple[Callable[[Any], str | None], Any] | None  #: set by frameworks: what tells the route, and of what
    inside: Inside | None  #: None: neither span nor anything said so far
    number: int  #: of the transaction in its process; 0: it has none
    below_ns: int  #: time spent in layers below the one that is running, see `layers`
    layers: list[tuple[str, int]] | None  #: that have returned so far: name and own time, ns; None: there are none
    sent: bool  #: set once a part of the body has gone to the server, and the status with it

    @property
    def transaction(self) -> Transaction:
        """Itself, so that whoever is in a transaction or in a span of it asks the same."""
        return self

    def start_response(self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None) -> Write:
        """The server's start_response; what it refuses does not count."""
        if exc_info is None:
            write = self.server_start_response(status, headers)
        else:
            write = self.server_start_response(status, headers, exc_info)
            self._note_page(status, exc_info)
        self.status = status
        return write

    def _note_page(self, status: str, exc_info: ExcInfo) -> None:
        """A layer says of what error it is that its page tells. Raises nothing."""
        try:
            code = naming.status_of(status)
            if code is not None and code >= 500 and isinstance(exc_info[1], BaseException):
                self.note(exc_info[1])
        except Exception as fault:
            self.recorder.on_fault("error page", fault)

    def finish(self) -> None:
        """Leave the record of this transaction, and free its slot. Raises nothing; a second call does nothing."""
        end_ns = perf_counter_ns()
        environ = self.environ
        if environ is None:
            return
        if self.series < 0:
            self.hand_over()
        self.environ = None  # environ refers to this object: the circle must not wait for the garbage collector
        recorder = self.recorder
        try:
            series = self.series
            start_ns = self.start_ns
            duration_ns = end_ns - start_ns
            inside = self.inside
            if inside is not None and "paste_agent.calls" in environ:
                environ["paste_agent.calls"].clear()  # those that nobody has ended end with it
            if (
                self.layers is not None
                or series >= FAILED
                or (inside is not None and (inside.parts or inside.errors is not None))
            ):
                self._leave_inside(series, end_ns)
            # A number that is taken and not written is a hole that the drain waits at.
            if series >= 0 and (recorder.last < recorder.limit or recorder.has_room()):
                number = recorder.last = recorder.next()
                if self.number > recorder.latest:  # they do not end in the order in which they began
                    recorder.latest = self.number
                sampler = recorder.sampler
                why = 0
                if (
                    series >= FAILED
                    or self.number >= sampler.next_random
                    or duration_ns > sampler.slow_ns
                    or "HTTP_TRACEPARENT" in environ
                    or (inside is not None and inside.remarkable)
                ):
                    why = self._keep(environ, number, series, duration_ns)
                _pack_record(
                    recorder.buffer,
                    recorder.ring_at + RECORD_BODY_AT + number % recorder.records * RECORD_SIZE,
                    series,
                    why,
                    self.queue_us,
                    start_ns,
                    duration_ns,
                    number + 1,
                )
        except Exception as fault:
            recorder.on_fault("finish", fault)
        slot = self.slot
        if slot:
            self.slot = 0  # what outlives the request in a copy of its context has no business there
            try:
                recorder.longs[slot >> 3] = 0
            except Exception as fault:
                recorder.on_fault("finish", fault)
            recorder.push_slot(slot)

    def hand_over(self) -> None:
        """The server has the response from now on, or the first part of it. Raises nothing.

        The client may see the whole of it long before the server calls `close`, which comes after its access log. When
        the process is killed in between, whoever finds the slot counts the request, since nobody else will.
        """
        environ = self.environ
        if environ is None:
            return
        recorder = self.recorder
        try:
            if self.inside is not None and self._hand_over_renamed(self.inside):
                return
            route = self.route or environ.get("paste_agent.route")
            if route is None and ("wsgiorg.routing_args" in environ or "swift.trans_id" in environ):
                route = naming.route_of_routing_args(environ)
            protocol = environ.get("SERVER_PROTOCOL")
            try:
                series = recorder.series[self.method, self.status, route, self.error_type, self.scheme, protocol]
            except (KeyError, TypeError):
                series = recorder.intern_server(
                    (self.method, self.status, route, self.error_type, self.scheme, protocol)
                )
                self._note_status(series)
            self.series = series
            slot = self.slot
            if slot:
                _pack_answer(recorder.buffer, slot + ANSWER_AT, series + 1, perf_counter_ns())
        except Exception as fault:
            recorder.on_fault("hand over", fault)
            self._hand_over_without_route()

    def _hand_over_renamed(self, inside: Inside) -> bool:
        """Whether the application itself has said what this transaction counts as; then it is handed over as that."""
        if inside.name is not None:
            self.route = inside.name
        if inside.task is None and not inside.ignored:
            return False
        recorder = self.recorder
        series = IGNORED if inside.ignored else recorder.intern_task(inside.task, self.status, self.error_type)
        self.series = series
        if self.slot:
            _pack_answer(recorder.buffer, self.slot + ANSWER_AT, max(series + 1, 0), perf_counter_ns())
        return True

    def _note_status(self, series: int) -> None:
        """Note a status that is expected: nobody has raised anything for it. Such a series is met anew each time."""
        code = naming.status_of(self.status)
        if code is None or series >= FAILED or self.error_type is not None:
            return
        if self.recorder.error_rules.verdict_of_status(code) == error_rules.EXPECTED:
            inside = self.inside = self.inside or Inside()
            inside.errors = inside.errors or [SeenError(str(code), "", True)]

    def _hand_over_without_route(self) -> None:
        """The application's own objects are in the way: count the request all the same."""
        try:
            recorder = self.recorder
            series = recorder.intern_server((self.method, self.status, None, self.error_type, self.scheme, None))
            self.series = series
            if self.slot:
                _pack_answer(recorder.buffer, self.slot + ANSWER_AT, series + 1, perf_counter_ns())
        except Exception as fault:
            self.recorder.on_fault("hand over", fault)

    def route_so_far(self) -> str | None:
        """The route, as far as it is known while the request runs. For the reporter."""
        environ, pending = self.environ, getattr(self, "pending", None)
        if environ is None:
            return None
        route = self.route or environ.get(naming.ROUTE_KEY)
        if route is None and pending is not None:
            find, of = pending
            route = find(of)
        return naming.route_of(route) or naming.route_of_routing_args(environ)

    def fail(self, error: BaseException) -> None:
        """Note the exception that leaves the application. The caller raises it again."""
        self.series = -1
        try:
            code = status_of_escaped(error)
            sent = getattr(self, "sent", False)
            if not sent or self.status is None:
                # Whatever start_response was told, the client gets what is made of the exception. (Not if the
                # application has used write(); telling that would cost every request.)
                self.status = "500" if code is None else str(code)
            if code is not None and code < 500 and not sent:
                # Raised on purpose, for a layer above to turn into a response: no failure.
                return
            self.note(error, escaped=True)
        except Exception as fault:
            self.recorder.on_fault("fail", fault)

    def note(self, error: BaseException, *, escaped: bool = False, expected: bool = False) -> None:
        """Note an error, whether it leaves the application or has been handled. May raise what the error raises.

        expected: it is none that anybody wants to be called for.
        """
        recorder = self.recorder
        verdict = error_rules.EXPECTED if expected else recorder.error_rules.verdict(error)
        if verdict != error_rules.COUNTS:
            if escaped or self.error_type is None:
                self.error_type = LENIENT  # whatever status is made of it
            if verdict == error_rules.IGNORED:
                return
        elif escaped:
            self.error_type = type_name(error)
        if self.inside is None:
            self.inside = Inside()
        self.inside.note(error, verdict == error_rules.EXPECTED, recorder.sampler.take_failed)

    def _judge(self, inside: Inside) -> None:
        """Apply the rules of statuses to what was raised: only now is it known which status came of it."""
        code = naming.status_of(self.status)
        verdict = error_rules.COUNTS if code is None else self.recorder.error_rules.verdict_of_status(code)
        if verdict != error_rules.COUNTS and inside.pardon(verdict == error_rules.EXPECTED):
            self.recorder.sampler.give_back_failed()

    def _leave_inside(self, series: int, end_ns: int) -> None:
        """Leave the records of what this transaction spent its time on, and of its errors. Raises nothing."""
        recorder, inside, layers = self.recorder, self.inside, self.layers
        if series < 0:  # ignored
            if inside is not None and inside.raised is not None:
                recorder.sampler.give_back_failed()
            return
        try:
            if inside is not None and inside.errors is not None:
                self._judge(inside)
            if layers is not None:
                recorder.record_parts(series, end_ns, {LAYERS: (len(layers), sum([own_ns for _, own_ns in layers]))})
            if inside is not None and inside.parts:
                recorder.record_parts(series, end_ns, inside.parts)
            if series >= FAILED or (inside is not None and inside.errors is not None):
                self._leave_errors(series, end_ns)
        except Exception as fault:
            recorder.on_fault("inside", fault)

    def _leave_errors(self, series: int, end_ns: int) -> None:
        recorder = self.recorder
        kind, fields = recorder.fields_of(series)
        route = fields[2] if kind == KIND_SERVER else None
        errors = list((self.inside.errors if self.inside is not None else None) or ())
        if series >= FAILED and not errors:
            # Nobody raised anything: a status is all there is to tell.
            errors.append(SeenError(self.error_type or str(naming.status_of(self.status) or "_OTHER"), "", False))
        for error in errors:
            place = (KIND_ERROR, (error.type, error.place or None, route, "true" if error.expected else None))
            recorder.record_span(place, end_ns, 0)

    def identify(self) -> Identity:
        """Trace and span id, and all that is passed on to services that are called. Decides whether it is sampled."""
        inside = self.inside
        if inside is None:
            inside = self.inside = Inside()
        identity = inside.identity
        if identity is None:
            environ, recorder = self.environ or {}, self.recorder
            baggage, parent = environ.get("HTTP_BAGGAGE"), propagation.caller_of(environ)
            sampled = parent is not None and parent.sampled
            # Most are told by their number that chance passes them over.
            if not sampled and self.number >= recorder.sampler.next_random:
                inside.why |= recorder.sampler.choose(self.number)
                inside.remarkable = inside.remarkable or inside.why != 0
                sampled = inside.why == layout.KEPT_RANDOM
            if baggage.__class__ is str and "baggage" in recorder.propagators:
                passed_on = propagation.parse_baggage(baggage)
            else:
                passed_on = ""
            identity = inside.identity = self._identity(environ, parent, sampled, passed_on)
        return identity

    def _identity(self, environ: Environ, parent: propagation.Parent | None, sampled: bool, baggage: str) -> Identity:
        """Costs more than most requests are worth that are neither kept nor call anybody."""
        recorder = self.recorder
        # Those that a post-mortem would name, had the process died.
        trace_id, span_id = (
            layout.minted_ids(recorder.id, self.number) if self.slot else (recorder.new_id(16), recorder.new_id(8))
        )
        if parent is None:
            return Identity(trace_id, span_id, _NO_ID, False, sampled, "", baggage)
        tracestate = environ.get("HTTP_TRACESTATE") if propagation.PARENT_KEY not in environ else None
        return Identity(
            parent.trace_id,
            span_id,
            parent.span_id,
            parent.sampled,
            sampled,
            propagation.parse_tracestate(tracestate) if tracestate.__class__ is str else "",
            baggage,
        )

    def _keep(self, environ: Environ, number: int, series: int, duration_ns: int) -> int:
        """Decide whether this transaction is kept as a trace; where it is, hand it to the reporter. KEPT_ bits.

        number: of its record.
        """
        recorder, inside, sampler = self.recorder, self.inside, self.recorder.sampler
        identity = inside.identity if inside is not None else None
        parent = propagation.caller_of(environ)
        parent_sampled = parent is not None and parent.sampled
        raised = inside.raised if inside is not None else None
        seen = inside.errors if inside is not None else None
        noted = seen is not None and not all(one.expected for one in seen)
        # Others have been told that chance passed it over: it does not get a second one.
        told = identity is not None and not parent_sampled
        why, alike = sampler.decide(
            -1 if told else self.number,
            duration_ns,
            failed=series >= FAILED and not noted,
            parent_sampled=parent_sampled,
            queries=inside is not None and inside.notable,
            noted=noted,
            decided=(inside.why if inside is not None else 0) | (layout.KEPT_FAILED if raised is not None else 0),
        )
        if why == 0:
            return 0
        if identity is None:
            identity = self._identity(environ, parent, parent_sampled, "")
        recorder.write_ids(number, identity.trace_id, identity.span_id, identity.parent_id)
        slow = duration_ns > sampler.slow_ns
        recorder.kept.append(
            KeptTransaction(
                trace_id=identity.trace_id,
                span_id=identity.span_id,
                parent_id=identity.parent_id,
                why=why,
                series=series & ~FAILED,
                failed=series >= FAILED,
                start_ns=self.start_ns,
                duration_ns=duration_ns,
                queue_us=self.queue_us,
                method=str(self.method)[:_MAX_HEADER],
                path=str(self.path)[:_MAX_PATH],
                query=str(environ.get("QUERY_STRING", ""))[:_MAX_PATH],
                headers={
                    key: environ[key][:_MAX_HEADER] for key in sampler.headers if environ.get(key).__class__ is str
                },
                tracestate=identity.tracestate,
                error=raised,
                stack=recorder.stack_of(self.slot) if self.slot and slow else None,
                inside=inside,
                layers=self.layers,
                alike=alike,
            )
        )
        return why


def queue_us_of(environ: Environ) -> int:
    """Microseconds + 1 since the proxy took the request, by X-Request-Start or X-Queue-Start; 0 where neither says.

    The value: seconds, milliseconds or microseconds since the epoch, `t=` before it or not. A clock that is ahead of
    ours counts as no time at all.
    """
    header = environ.get("HTTP_X_REQUEST_START") or environ.get("HTTP_X_QUEUE_START")
    if header.__class__ is not str:
        return 0
    try:
        value = float(header.strip().removeprefix("t="))
    except ValueError:
        return 0
    for least, per_second in _UNITS:
        if value >= least:
            # Not below 0, and not a number: min and max pass over both.
            waited_us = (time.time() - value / per_second) * 1e6
            return 1 + int(min(max(waited_us, 0.0), _MAX_QUEUE_US))
    return 0
