"""One web request, from the call until its response is closed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from time import perf_counter_ns
from types import TracebackType
from typing import Any, NamedTuple, Protocol

from paste_agent import naming, propagation
from paste_agent.recorder import layout
from paste_agent.recorder.layout import ANSWER, ANSWER_AT, FAILED, RECORD_BODY, RECORD_BODY_AT, RECORD_SIZE
from paste_agent.recorder.writer import Recorder

Environ = dict[str, Any]
Write = Callable[[bytes], object]
StartResponse = Callable[..., Write]
WSGIApplication = Callable[[Environ, StartResponse], Iterable[bytes]]
ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]

#: Where a request's transaction is found by what runs inside of it.
TRANSACTION_KEY = "paste_agent.transaction"

_pack_record = RECORD_BODY.pack_into
_pack_answer = ANSWER.pack_into
_MAX_MESSAGE = 1024
_MAX_FRAMES = 50
_MAX_CHAIN = 4
_MAX_PATH = 1024
_MAX_HEADER = 256
#: Seconds, milliseconds and microseconds since the epoch differ by their size for some thousand years.
_UNITS = ((1e14, 1e6), (1e11, 1e3), (1e8, 1.0))
_MAX_QUEUE_US = 0xFFFFFFFE


class Frame(NamedTuple):
    """One frame of a stack; the reporter looks up the line of source."""

    file: str
    line: int
    function: str


class Raised(NamedTuple):
    """An exception, without references to anything that lives: its frames would keep whole requests alive."""

    type: str
    message: str
    frames: tuple[Frame, ...]  #: outermost first; in the middle cut to the bound
    cause: Raised | None
    explicit_cause: bool  #: `raise … from …`, rather than raised while another was handled


class UnderWay(Protocol):
    """A transaction, as those see it who say where it is: a request, or a background task."""

    recorder: Recorder
    slot: int  #: 0: none was free


#: What this thread, or greenlet, works for; set while the application runs.
current: ContextVar[UnderWay | None] = ContextVar("paste_agent.transaction", default=None)


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


class Transaction:
    """A request under way. One object, no dictionary; made by AgentFilter, ended by what `response` has."""

    __slots__ = (
        "body",
        "environ",
        "error_type",
        "iterator",
        "method",
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
    raised: Raised  #: set by a failure that is kept
    sent: bool  #: set once a part of the body has gone to the server, and the status with it

    def start_response(self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None) -> Write:
        """The server's start_response; what it refuses does not count."""
        if exc_info is None:
            write = self.server_start_response(status, headers)
        else:
            write = self.server_start_response(status, headers, exc_info)
        self.status = status
        return write

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
            # A number that is taken and not written is a hole that the drain waits at.
            if series >= 0 and (recorder.last < recorder.limit or recorder.has_room()):
                number = recorder.last = recorder.next()
                sampler = recorder.sampler
                why = 0
                if (
                    series >= FAILED
                    or number >= sampler.next_random
                    or duration_ns > sampler.slow_ns
                    or "HTTP_TRACEPARENT" in environ
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
            route = self.route or environ.get("paste_agent.route")
            if route is None and "wsgiorg.routing_args" in environ:
                route = naming.route_of_routing_args(environ)
            protocol = environ.get("SERVER_PROTOCOL")
            try:
                series = recorder.series[self.method, self.status, route, self.error_type, self.scheme, protocol]
            except (KeyError, TypeError):
                series = recorder.intern_server(
                    (self.method, self.status, route, self.error_type, self.scheme, protocol)
                )
            self.series = series
            slot = self.slot
            if slot:
                _pack_answer(recorder.buffer, slot + ANSWER_AT, series + 1, perf_counter_ns())
        except Exception as fault:
            recorder.on_fault("hand over", fault)
            self._hand_over_without_route()

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
            code = status_of_exception(error)
            sent = getattr(self, "sent", False)
            if not sent or self.status is None:
                # Whatever start_response was told, the client gets what is made of the exception. (Not if the
                # application has used write(); telling that would cost every request.)
                self.status = "500" if code is None else str(code)
            if code is not None and code < 500 and not sent:
                # Raised on purpose, for a layer above to turn into a response: no failure.
                return
            self.error_type = type_name(error)
            if self.recorder.sampler.take_failed():
                self.raised = raised_of(error)
        except Exception as fault:
            self.recorder.on_fault("fail", fault)

    def _keep(self, environ: Environ, number: int, series: int, duration_ns: int) -> int:
        """Decide whether this transaction is kept as a trace; where it is, hand it to the reporter. KEPT_ bits."""
        recorder = self.recorder
        header = environ.get("HTTP_TRACEPARENT")
        parent = propagation.parse_traceparent(header) if header.__class__ is str else None
        why = recorder.sampler.decide(
            number,
            duration_ns,
            failed=series >= FAILED and self.error_type is None,
            parent_sampled=parent is not None and parent.sampled,
        )
        raised: Raised | None = getattr(self, "raised", None)  # set by a failure that may be kept, else not at all
        if raised is not None:
            why |= layout.KEPT_FAILED
        if why == 0:
            return 0
        trace_id, span_id = self._ids()
        if parent:
            trace_id = parent.trace_id
        parent_id = parent.span_id if parent else bytes(8)
        recorder.write_ids(number, trace_id, span_id, parent_id)
        recorder.kept.append(
            KeptTransaction(
                trace_id=trace_id,
                span_id=span_id,
                parent_id=parent_id,
                why=why,
                series=series & ~FAILED,
                failed=series >= FAILED,
                start_ns=self.start_ns,
                duration_ns=duration_ns,
                queue_us=self.queue_us,
                method=str(self.method)[:_MAX_HEADER],
                path=str(self.path)[:_MAX_PATH],
                query=str(environ.get("QUERY_STRING", ""))[:_MAX_PATH],
                headers={key: environ[key][:_MAX_HEADER] for key in _HEADERS if environ.get(key).__class__ is str},
                tracestate=str(environ.get("HTTP_TRACESTATE", ""))[:4096] if parent else "",
                error=raised,
                stack=recorder.stack_of(self.slot) if self.slot and duration_ns > recorder.sampler.slow_ns else None,
            )
        )
        return why

    def _ids(self) -> tuple[bytes, bytes]:
        """A trace id and a span id: those that a post-mortem would name, had the process died."""
        if self.slot:
            return layout.minted_ids(self.recorder.id, self.recorder.number_of(self.slot))
        return self.recorder.new_id(16), self.recorder.new_id(8)


#: Keys of the environ that become attributes of a kept span.
_HEADERS = ("HTTP_HOST", "SERVER_NAME", "SERVER_PORT", "REMOTE_ADDR", "HTTP_USER_AGENT", "wsgi.url_scheme")
#: Where the agent's own frames are from: an application's stack begins after them.
OWN_FILES = frozenset(os.path.join(os.path.dirname(__file__), name) for name in ("filter.py", "response.py"))


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


def type_name(error: BaseException) -> str:
    """`module.Class`, without the module for a builtin: `error.type` of the conventions."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def status_of_exception(error: BaseException) -> int | None:
    """The HTTP status that an exception stands for, as webob's, Paste's and Zope's do; None for any other."""
    get_status = getattr(error, "getStatus", None)  # zExceptions
    if callable(get_status):
        code = get_status()
    elif callable(error):  # a WSGI application itself; urllib's HTTPError has a code too, but it is another server's
        code = getattr(error, "code", None)
    else:
        return None
    return code if isinstance(code, int) and 100 <= code <= 599 else None


def raised_of(error: BaseException, depth: int = 0) -> Raised:
    """Take down an exception with its causes. Walks its frames, reads no file, keeps no reference."""
    try:
        message = str(error)[:_MAX_MESSAGE]
    except Exception:  # the application's own __str__
        message = "<unprintable>"
    cause = error.__cause__
    explicit = cause is not None
    if cause is None and not error.__suppress_context__:
        cause = error.__context__
    return Raised(
        type=type_name(error),
        message=message,
        frames=_frames_of(error.__traceback__),
        cause=raised_of(cause, depth + 1) if cause is not None and depth < _MAX_CHAIN else None,
        explicit_cause=explicit,
    )


def _frames_of(traceback: TracebackType | None) -> tuple[Frame, ...]:
    frames: list[Frame] = []
    steps = 0
    while traceback is not None and steps < 10 * _MAX_FRAMES:
        code = traceback.tb_frame.f_code
        if code.co_filename not in OWN_FILES:
            frames.append(Frame(code.co_filename, traceback.tb_lineno, code.co_name))
        if len(frames) > _MAX_FRAMES:
            # The innermost frames tell where it broke, the outermost how it came there.
            del frames[_MAX_FRAMES // 2]
        traceback = traceback.tb_next
        steps += 1
    return tuple(frames)
