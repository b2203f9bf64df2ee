"""Takes log records of the application, and leaves them for the lead to store and send. Setting `forward_logs`.

A handler of the root logger copies what it needs of a record, on the thread that logs: no lock, no I/O. What loggers
with `propagate = False` write never comes to it. The reporter writes the copies to a file, once a second.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from paste_agent import native, trace_ids
from paste_agent.raised import Raised, raised_of
from paste_agent.recorder import layout
from paste_agent.sampler import TokenBucket
from paste_agent.transaction import current

if TYPE_CHECKING:
    from paste_agent.log import Warnings
    from paste_agent.log_files import LogRow
    from paste_agent.recorder.writer import Recorder
    from paste_agent.settings import Settings

#: Records that a process forwards; a minute's worth at once would be a burst of 60, see TokenBucket.
PER_MINUTE = 600.0
#: Counter of those that it does not.
DROPPED = "paste_agent.logs.dropped"
_MOST_WAITING = 1024
_MOST_FILES = 64
_MAX_BODY = 4096
_MAX_WORD = 1024
#: OTLP's severity numbers, by the level that they begin at: each has three more above it.
_SEVERITIES = ((50, 21), (40, 17), (30, 13), (20, 9), (10, 5), (1, 1))


class LogEntry(NamedTuple):
    """What is copied of a record: nothing that keeps anything of the application alive."""

    at_s: float  #: since the epoch
    level: int
    level_name: str
    logger: str
    body: str
    file: str
    line: int
    function: str
    raised: Raised | None
    ids: tuple[str, str] | None  #: of trace and span, hex


class ForwardingHandler(logging.Handler):
    """Of one recorder's process."""

    def __init__(self, level: int, recorder: Recorder) -> None:
        # Not Handler's own: it takes locks of `logging`, which no thread of the agent may wait for.
        logging.Filterer.__init__(self)
        self._name = None
        # Also called with what goes to stderr where nobody has configured logging: see _say_as_before.
        self.level = min(level, logging.WARNING)
        self._least = level
        self.formatter = None
        self._closed = False
        self.lock = None
        self.entries: deque[LogEntry] = deque(maxlen=_MOST_WAITING)
        self.bucket = TokenBucket(PER_MINUTE)
        self.dropped = 0
        self._next_dropped = count(1).__next__
        self._recorder = recorder

    def createLock(self) -> None:
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        """Copy a record, where there is room for it. Raises nothing, and logs nothing."""
        try:
            handlers = logging.getLogger().handlers
            is_first = _first(handlers) is self
            if is_first and all(isinstance(one, ForwardingHandler) for one in handlers):
                _say_as_before(record)
            if record.levelno < self._least:
                return False
            name = record.name
            if name == "paste_agent" or name.startswith("paste_agent.") or native.is_own_thread():
                return False
            # Of several services each has what its transactions log; the first one has the rest.
            around = current.get()
            if not (is_first if around is None else around.transaction.recorder is self._recorder):
                return False
            if not self.bucket.take():
                self.dropped = self._next_dropped()
                return False
            self.entries.append(_entry(record))
            return True
        except Exception as fault:
            self._recorder.on_fault("log record", fault)
            return False

    def emit(self, record: logging.LogRecord) -> None:
        self.handle(record)


def _first(handlers: list[logging.Handler]) -> logging.Handler | None:
    return next((one for one in handlers if isinstance(one, ForwardingHandler)), None)


def _say_as_before(record: logging.LogRecord) -> None:
    """Where a record meets no handler, `logging` has one of last resort. It does not know that ours does not count."""
    last = logging.lastResort
    if last is None or record.levelno < last.level:
        return
    one: object = logging.getLogger().manager.loggerDict.get(record.name)
    while isinstance(one, logging.Logger):
        if not all(isinstance(handler, ForwardingHandler) for handler in one.handlers):
            return
        one = one.parent
    last.handle(record)


def _entry(record: logging.LogRecord) -> LogEntry:
    try:
        body = record.getMessage()
    except Exception:  # arguments that do not fit, which the other handlers complain of; or an object's own __str__
        body = record.msg if isinstance(record.msg, str) else "<unprintable>"
    error = record.exc_info[1] if isinstance(record.exc_info, tuple) and len(record.exc_info) == 3 else None
    return LogEntry(
        record.created,
        record.levelno,
        str(record.levelname)[:_MAX_WORD],
        record.name[:_MAX_WORD],
        body[:_MAX_BODY],
        str(record.pathname)[:_MAX_WORD],
        record.lineno,
        str(record.funcName or "")[:_MAX_WORD],
        raised_of(error) if isinstance(error, BaseException) else None,
        trace_ids.here(),
    )


def severity_of(level: int) -> int:
    """OTLP's number for a level of `logging`, 1 to 24; 0 for none."""
    for begins, number in _SEVERITIES:
        if level >= begins:
            return number + min(level - begins, 3)
    return 0


class Forwarding:
    """What a process forwards, from when it serves until it ends. Where nothing is to be forwarded, it does nothing."""

    def __init__(self, settings: Settings, recorder: Recorder, directory: str | None, warn: Warnings) -> None:
        """directory: the service's runtime directory; without one nothing is forwarded."""
        self._recorder = recorder
        self._directory = directory or ""
        self._warn = warn
        self._messages = settings.record_error_messages
        self._handler: ForwardingHandler | None = None
        self._files: deque[str] = deque()
        self._written = self._told = 0
        self._telling = native.make_lock()
        self._stopped = False
        if settings.forward_logs == "off" or settings.target("logs") is None:
            return
        if directory is None:
            warn("logs", "no runtime directory: log records are not forwarded")
            return
        self._handler = ForwardingHandler(getattr(logging, settings.forward_logs.upper()), recorder)

    def listen(self) -> None:
        """Be among the root logger's handlers once there are any, also after somebody has configured them anew."""
        # By hand: `addHandler` takes a lock, which a real thread must not wait for where greenlets have it.
        handlers = logging.getLogger().handlers
        # Not as the only one: to `logging.basicConfig` that would look as if all had been configured.
        if self._handler is not None and handlers and self._handler not in handlers and not self._stopped:
            handlers.append(self._handler)
            if self._stopped:  # meanwhile, by another thread
                self.stop()

    def stop(self) -> None:
        """Take no more records. What has been taken can still be written."""
        self._stopped = True
        try:
            if self._handler is not None:
                logging.getLogger().handlers.remove(self._handler)
        except ValueError:  # somebody has configured logging anew, or another thread was faster
            pass

    def tick(self, elapsed_s: float) -> None:
        """Once a second, by the reporter."""
        if self._handler is not None:
            self._handler.bucket.refill(elapsed_s)
            self.listen()
            self.write()

    def write(self) -> None:
        """Hand on what has been logged since."""
        if self._handler is None:
            return
        self._count_dropped(self._handler)
        while self._handler.entries:
            self._write_some(self._handler.entries)

    def finish(self) -> None:
        """The process ends: take no more records, and count those that were dropped, while its recorder is open."""
        self.stop()
        if self._handler is not None:
            self._count_dropped(self._handler)

    def _count_dropped(self, handler: ForwardingHandler) -> None:
        # By the reporter once a second, and by whichever thread ends the process: nobody else waits for this.
        self._telling.acquire()
        try:
            lost = handler.dropped - self._told
            if lost <= 0 or self._recorder.word(layout.W_CLOSED):
                return
            self._told += lost
            self._recorder.record_span((layout.KIND_COUNT, (DROPPED,)), time.perf_counter_ns() - lost, lost)
        finally:
            self._telling.release()
        self._warn("log records", f"more than {PER_MINUTE:g} log records a minute: {lost} were not forwarded")

    def _write_some(self, entries: deque[LogEntry]) -> None:
        with native.UNDIVIDED:
            from paste_agent import detail, log_files
        rows: list[LogRow] = []
        size = 0
        while entries and len(rows) < log_files.MAX_ROWS and size < log_files.MAX_BYTES // 8:  # JSON's escapes
            entry = entries.popleft()
            stack = "" if entry.raised is None else detail.stacktrace(entry.raised, self._messages)
            row = _row(entry, stack[-log_files.MAX_STACK :], self._messages)
            rows.append(row)
            size += len(row.body) + sum(len(str(value)) for value in row.attributes.values())
            native.sleep(0)
        self._written += 1
        path = os.path.join(self._directory, f"{self._recorder.id}.{self._written}{log_files.SUFFIX}")
        try:
            log_files.write(path, rows)
            self._files.append(path)
            self._forget_oldest()
        except OSError as error:
            self._warn("log files", f"{path}: {error.strerror}; {len(rows)} log records are lost")

    def _forget_oldest(self) -> None:
        while self._files and not os.path.exists(self._files[0]):
            self._files.popleft()  # stored
        if len(self._files) > _MOST_FILES:
            os.unlink(self._files.popleft())
            self._warn("log files", "the store takes no log records; the oldest go")


def _row(entry: LogEntry, stack: str, messages: bool) -> LogRow:
    from paste_agent.log_files import LogRow

    attributes: dict[str, str | int] = {
        "code.file.path": entry.file,
        "code.line.number": entry.line if isinstance(entry.line, int) else 0,
        "code.function.name": entry.function,
    }
    raised = entry.raised
    if raised is not None:
        attributes["exception.type"] = raised.type
        if messages and raised.message:
            attributes["exception.message"] = raised.message
        attributes["exception.stacktrace"] = stack
    trace_id, span_id = entry.ids or (None, None)
    return LogRow(
        at_ns=int(entry.at_s * 1e9),
        severity=severity_of(entry.level),
        severity_text=entry.level_name,
        logger=entry.logger,
        body=entry.body,
        attributes={name: value for name, value in attributes.items() if value != ""},
        trace_id=None if trace_id is None else bytes.fromhex(trace_id),
        span_id=None if span_id is None else bytes.fromhex(span_id),
    )
