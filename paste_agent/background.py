"""Background tasks: work that no request asks for."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextvars import Token
from time import perf_counter_ns
from types import TracebackType
from typing import Any

from paste_agent import error_rules, lifecycle, naming, spans
from paste_agent.decorating import Decorator
from paste_agent.inside import Identity, Inside
from paste_agent.raised import raised_of, type_name
from paste_agent.recorder import layout
from paste_agent.recorder.layout import FAILED, KIND_BACKGROUND, KIND_ERROR, SCHEME_BACKGROUND
from paste_agent.recorder.writer import Recorder
from paste_agent.transaction import KeptTransaction, Within, current

_MAX_NAME = 160


class background_task(Decorator):
    """Counts and times a task, by its name; as a context manager or as a decorator.

        with background_task("warm caches"):
            ...

    It may run anywhere: while the application is imported, in a hook of gunicorn, in a thread. What it raises is
    counted as its error, and passes.
    """

    def __init__(self, name: str) -> None:
        """name: one of few: it becomes an attribute of a metric."""
        self.name = naming.text_of(name, _MAX_NAME)
        self.slot = 0
        self.recorder: Recorder
        self.inside: Inside | None = None
        #: As a request's: None once it has ended.
        self.environ: dict[str, Any] | None = None
        self.number = 0
        self._on_fault: Callable[[str, BaseException], None] | None = None  #: None: there was no agent
        self._token: Token[Within | None] | None = None
        self._start_ns = 0
        self._pid = 0

    @property
    def transaction(self) -> background_task:
        """Itself, as a span's is the one that it belongs to."""
        return self

    def _recreate_cm(self) -> background_task:
        return background_task(self.name)  # each call of a decorated function is a task of its own

    def _in_steps(self) -> _TaskInSteps:
        return _TaskInSteps(self.name)

    def identify(self) -> Identity:
        """What services that it calls are told of it."""
        inside = self.inside = self.inside or Inside()
        if inside.identity is None:
            trace_id, span_id = self._ids()
            inside.why |= self.recorder.sampler.choose(self.number)
            sampled = inside.why == layout.KEPT_RANDOM
            inside.identity = Identity(trace_id, span_id, bytes(8), False, sampled, "", "")
        return inside.identity

    def note(self, error: BaseException, *, expected: bool = False) -> None:
        """Note an error that has been handled, as `Transaction.note` does. May raise what the error raises."""
        recorder = self.recorder
        verdict = error_rules.EXPECTED if expected else recorder.error_rules.verdict(error)
        if verdict == error_rules.IGNORED:
            return
        self.inside = self.inside or Inside()
        self.inside.note(error, verdict == error_rules.EXPECTED, recorder.sampler.take_failed)

    def _ids(self) -> tuple[bytes, bytes]:
        if self.number:
            return layout.minted_ids(self.recorder.id, self.number)
        return self.recorder.new_id(16), self.recorder.new_id(8)

    def __enter__(self) -> background_task:
        self._start_ns = perf_counter_ns()
        self._pid = os.getpid()
        around, agent = current.get(), lifecycle.current_agent()
        opened = None
        if around is not None and around.transaction.environ is not None:  # of a process's services, this one's
            opened = around.transaction.recorder
            self._on_fault = opened.on_fault
        else:
            self._on_fault = None if agent is None else agent.on_fault
        try:
            if opened is None and agent is not None:
                opened = agent.open()
            if opened is not None:
                self._begin(opened)
        except Exception as fault:
            if self._on_fault is not None:
                self._on_fault("begin of a task", fault)
        return self

    def _begin(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.inside = None
        self.environ = {}
        name = self.name.encode("utf-8", "replace")
        self.slot = recorder.enter_slot(self._start_ns, SCHEME_BACKGROUND, b"", name)
        self.number = recorder.number_of(self.slot) if self.slot else 0
        self._token = current.set(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        duration_ns = perf_counter_ns() - self._start_ns
        if kind is GeneratorExit:  # nobody wants more of it, which is no failure
            error = None
        fields = (self.name, None if error is None else type_name(error))
        if self._on_fault is None:
            if self._pid == os.getpid():  # else it was forked meanwhile, and the parent counts it
                lifecycle.owe(KIND_BACKGROUND, fields, self._start_ns, duration_ns, error is not None)
            return
        self.environ = None
        try:
            if self._token is not None:
                try:
                    self._record(fields, duration_ns, error)
                finally:
                    self.recorder.leave_slot(self.slot)
                    self.slot = 0
        except Exception as fault:
            self._on_fault("end of a task", fault)
        try:
            if self._token is not None:
                current.reset(self._token)
        except ValueError:  # it ends in another context than it began in, which is no fault
            pass
        self._token = None

    def _record(self, fields: tuple[str, str | None], duration_ns: int, error: BaseException | None) -> None:
        recorder = self.recorder
        end_ns = self._start_ns + duration_ns
        if error is not None:
            if self.inside is None or not self.inside.ignored:
                self.note(error)
            if recorder.error_rules.verdict(error) != error_rules.COUNTS:  # it is no failure
                error, fields = None, (fields[0], None)
        inside = self.inside
        if inside is not None:
            if inside.ignored:
                if inside.raised is not None:
                    recorder.sampler.give_back_failed()
                return
            fields = (inside.task or inside.name or self.name)[:_MAX_NAME], fields[1]
        for seen in (inside.errors or ()) if inside is not None else ():
            place = (KIND_ERROR, (seen.type, seen.place or None, None, "true" if seen.expected else None))
            recorder.record_span(place, end_ns, 0)
        series = recorder.series_of(KIND_BACKGROUND, fields) | (FAILED if error is not None else 0)
        if inside is not None:
            recorder.record_parts(series, end_ns, inside.parts)
        number = recorder.take_number()
        if number is None:
            return
        why = self._keep(number, series, duration_ns, error)
        recorder.write_record(number, series, why, 0, self._start_ns, duration_ns)

    def _keep(self, number: int, series: int, duration_ns: int, error: BaseException | None) -> int:
        """Decide whether it is kept as a trace; that it takes long is no reason, for a task. KEPT_ bits."""
        recorder, inside, sampler = self.recorder, self.inside, self.recorder.sampler
        notable = inside is not None and inside.notable
        raised = inside.raised if inside is not None else None
        seen = inside.errors if inside is not None else None
        noted = seen is not None and not all(one.expected for one in seen)
        why, alike = sampler.decide(
            -1 if inside is not None and inside.identity is not None else self.number,
            0,
            failed=error is not None and not noted,  # else it has been asked
            parent_sampled=False,
            queries=notable,
            noted=noted,
            decided=(inside.why if inside is not None else 0) | (layout.KEPT_FAILED if raised is not None else 0),
        )
        if why == 0:
            return 0
        identity = inside.identity if inside is not None else None
        trace_id, span_id = identity[:2] if identity else self._ids()
        recorder.write_ids(number, trace_id, span_id, bytes(8))
        recorder.kept.append(
            KeptTransaction(
                trace_id=trace_id,
                span_id=span_id,
                parent_id=bytes(8),
                why=why,
                series=series & ~FAILED,
                failed=error is not None,
                start_ns=self._start_ns,
                duration_ns=duration_ns,
                queue_us=0,
                method="",
                path="",
                query="",
                headers={},
                tracestate="",
                error=raised_of(error) if error is not None and raised is None else raised,
                inside=inside,
                alike=alike,
            )
        )
        return why


class _TaskInSteps(background_task):
    """Around a generator."""

    def __enter__(self) -> _TaskInSteps:
        super().__enter__()
        self._has_begun = self._token is not None
        self._place: Within | None = None  #: of its spans, the one that is open
        self.pause()
        return self

    def resume(self) -> None:
        """The thread works for it from now on."""
        if self._has_begun:
            self._token = current.set(spans.again(self._place, self))

    def pause(self) -> None:
        """And no longer; its consumer may, for a request."""
        token, self._token = self._token, None
        try:
            if token is not None:
                self._place = current.get()
                current.reset(token)
        except ValueError:  # in another context
            pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.resume()
        super().__exit__(kind, error, traceback)
