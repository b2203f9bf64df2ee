"""The PasteDeploy filter: a request's way through the agent.

Measured by bench/overhead.py. What is not done here is done by the reporter: no lock, no I/O, no system call, and
nothing that waits.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from time import perf_counter_ns

from paste_agent import ini, instrument, layers, lifecycle, pauses, propagation, settings
from paste_agent.inside import Inside
from paste_agent.recorder.layout import PARENT, PARENT_AT, SLOT
from paste_agent.response import ListResponse, respond
from paste_agent.transaction import (
    TRANSACTION_KEY,
    Environ,
    StartResponse,
    Transaction,
    WSGIApplication,
    current,
    queue_us_of,
)

_pack_slot = SLOT.pack_into
_enter, _leave = current.set, current.reset


class AgentFilter:
    """A WSGI application around another one. `lifecycle.Agent` decides where its records go."""

    def __init__(
        self, application: WSGIApplication, agent: lifecycle.Agent, formats: Collection[str] = ("tracecontext",)
    ) -> None:
        """formats: names of `propagators` that say which trace a request belongs to."""
        self._beyond = application
        self.application = application if set(formats) == _W3C else ParentHeaders(application, formats)
        self.agent = agent

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if "paste_agent.transaction" in environ:  # twice in one pipeline: the outer one measures
            return self._beyond(environ, start_response)
        transaction = ListResponse()
        transaction.start_ns = start_ns = perf_counter_ns()
        transaction.environ = environ
        transaction.status = transaction.route = transaction.error_type = transaction.inside = transaction.layers = None
        transaction.series = -1
        transaction.number = transaction.below_ns = 0
        transaction.server_start_response = start_response
        try:
            transaction.recorder = recorder = self.agent.serving or self.agent.serve()
            # All as the client sent it: urlmap and others move parts of the path while the request runs.
            transaction.method = method = environ["REQUEST_METHOD"]
            transaction.path = path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
            transaction.scheme = scheme = environ["wsgi.url_scheme"]
            transaction.queue_us = (
                queue_us_of(environ) if "HTTP_X_REQUEST_START" in environ or "HTTP_X_QUEUE_START" in environ else 0
            )
            transaction.number = number = recorder.started()
            transaction.slot = slot = recorder.pop_slot()
            _pack_slot(
                recorder.buffer,
                slot,
                start_ns,
                number,
                recorder.ident(),
                len(scheme),
                method.encode(),
                environ["HTTP_TRACEPARENT"].encode() if "HTTP_TRACEPARENT" in environ else b"",
                path.encode(),
                0,
                0,
                number,
            )
        except Exception as fault:
            self._begin_all_the_same(transaction, environ, fault)
        if transaction.environ is None:  # outside of `except`: what the application raises has no context of ours
            return self.application(environ, start_response)
        environ["paste_agent.transaction"] = transaction
        around = _enter(transaction)
        try:
            body = self.application(environ, transaction.start_response)
        except BaseException as error:
            _leave(around)
            transaction.fail(error)
            transaction.finish()
            raise
        _leave(around)
        if body.__class__ is list:
            transaction.body = body
            return transaction
        return respond(transaction, body, environ)

    def _begin_all_the_same(self, transaction: ListResponse, environ: Environ, fault: Exception) -> None:
        """Measure a request whose begin failed, without what failed. One that cannot be measured at all is ended.

        No slot free is no fault: more requests are in flight than the recorder has slots for.
        """
        recorder = self.agent.serving
        if recorder is None:
            transaction.environ = None
            self.agent.on_fault("open", fault)
            return
        if isinstance(fault, IndexError):
            recorder.count_unslotted()
        else:
            recorder.on_fault("begin", fault)
            if hasattr(transaction, "slot"):
                recorder.push_slot(transaction.slot)
        transaction.recorder = recorder
        transaction.slot = 0
        transaction.queue_us = 0
        transaction.method = str(environ.get("REQUEST_METHOD", ""))
        transaction.path = str(environ.get("SCRIPT_NAME", "")) + str(environ.get("PATH_INFO", ""))
        transaction.scheme = str(environ.get("wsgi.url_scheme", ""))


#: How many filters pipelines have had made in this process, those that are switched off too.
made = 0
_W3C = frozenset(("tracecontext",))
_PARENT_FORMATS = _W3C | {"b3", "b3multi", "jaeger"}


class ParentHeaders:
    """Finds which trace a request belongs to where W3C's header is not all that tells it; inside of an AgentFilter.

    The headers stay as the client sent them: a tracer of the application's own reads them too.
    """

    def __init__(self, application: WSGIApplication, formats: Collection[str]) -> None:
        self.application = application
        self._reads_w3c = "tracecontext" in formats
        self._others = frozenset(formats) - _W3C

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        transaction = environ.get(TRANSACTION_KEY)
        if transaction is not None:
            self._find(transaction, environ)
        return self.application(environ, start_response)

    def _find(self, transaction: Transaction, environ: Environ) -> None:
        """Raises nothing."""
        try:
            environ.pop(propagation.PARENT_KEY, None)  # of the request that this one's environ was copied from
            if self._reads_w3c and propagation.parent_of(environ, _W3C) is not None:
                return
            parent = environ[propagation.PARENT_KEY] = propagation.parent_of(environ, self._others)
            if transaction.slot:
                header = b"" if parent is None else propagation.format_traceparent(*parent).encode()
                PARENT.pack_into(transaction.recorder.buffer, transaction.slot + PARENT_AT, header)
            if parent is not None and parent.sampled:
                # A traceparent is what the end of a request looks for by itself.
                transaction.inside = transaction.inside or Inside()
                transaction.inside.remarkable = True
        except Exception as fault:
            transaction.recorder.on_fault("parent", fault)


def measured(app: WSGIApplication, effective: settings.Settings) -> WSGIApplication:
    """The application, measured; the application itself when `enabled` is false. Warns of what it cannot trace."""
    if not effective.enabled:
        return app
    instrument.install_for(effective)
    agent = lifecycle.agent_of(effective)
    agent.has_filter = True
    if effective.trace_functions:
        from paste_agent import functions

        functions.install(effective.trace_functions, agent.warn)
    if effective.gc_pauses and pauses.IS_SAFE:
        pauses.install()
    formats = _PARENT_FORMATS & set(effective.propagators)
    return AgentFilter(pauses.CpuClock(app) if effective.cpu_time else app, agent, formats)


def main(app: WSGIApplication, global_conf: Mapping[str, str], **local_conf: str) -> WSGIApplication:
    """The `paste.filter_app_factory`: the application, measured; the application itself when `enabled` is false.

    Raises SettingError, one line that names section, key, value and cure.
    """
    global made
    made += 1
    global_conf = global_conf or {}
    section = ini.section_of(global_conf) if global_conf.get("__file__") else settings.DEFAULT_SECTION
    return measured(app, settings.load(local_conf, global_conf, os.environ, section))


layers.install(main)  # a loader imports this module before it makes anything of a pipeline
