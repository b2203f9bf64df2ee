"""Log lines that name their trace, and log records on their way from a request to a collector."""

from __future__ import annotations

import io
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from paste_agent import lifecycle, log_files, log_forwarding, native, trace_ids
from paste_agent.log_forwarding import ForwardingHandler, severity_of
from paste_agent.logs import TraceFilter, TraceFormatter
from paste_agent.recorder import layout
from paste_agent.recorder.writer import Recorder
from tests.filtering import HEADERS, Measured, serve
from tests.receiver import Receiver, attributes_of
from tests.recorders import open_recorder, run_script
from tests.recorders import serve as serve_by

NOWHERE = ("0" * 32, "0" * 16)
shop = logging.getLogger("shop.stock")


@pytest.fixture
def make(measure: Callable[..., Measured], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Measured]:
    """Makes the services of this process."""
    monkeypatch.setattr(lifecycle, "_agents", {})
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return measure


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as one:
        yield one


def within(service: Measured, call: Callable[[], object], **environ: Any) -> None:
    """One request in which `call` is called."""

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        call()
        start_response("200 OK", HEADERS[:])
        return [b"x"]

    serve(service.around(app), **environ)


# -- lines that name their trace -----------------------------------------------------------------------------------


@contextmanager
def logging_to(handler: logging.Handler) -> Iterator[None]:
    shop.addHandler(handler)
    shop.propagate = False
    try:
        yield
    finally:
        shop.removeHandler(handler)
        shop.propagate = True


def test_a_formatter_binds_a_line_to_its_trace(make: Callable[..., Measured]) -> None:
    service = make()
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(TraceFormatter("%(levelname)s [%(trace_id)s %(span_id)s] %(service_name)s: %(message)s"))

    def call() -> None:
        shop.warning("low on %s", "tea")
        seen.append(trace_ids.here() or NOWHERE)

    seen = [NOWHERE]
    with logging_to(handler):
        shop.warning("outside")
        within(service, call)
    assert seen[1] != NOWHERE
    assert out.getvalue().splitlines() == [
        f"WARNING [{trace} {span}] {service.settings.service_name}: {message}"
        for (trace, span), message in zip(seen, ("outside", "low on tea"), strict=True)
    ]


def test_an_ini_needs_nothing_but_the_formatter(tmp_path: Path) -> None:
    ini = tmp_path / "production.ini"
    ini.write_text(f"""
[loggers]
keys = root
[handlers]
keys = file
[formatters]
keys = trace
[logger_root]
level = INFO
handlers = file
[handler_file]
class = FileHandler
args = ({str(tmp_path / "log")!r},)
formatter = trace
[formatter_trace]
class = paste_agent.logs.TraceFormatter
format = %(levelname)s [%(trace_id)s] %(message)s
""")
    script = "import logging.config, sys; logging.config.fileConfig(sys.argv[1]); logging.getLogger('x').info('up')"
    run_script(script, ini)
    assert (tmp_path / "log").read_text() == f"INFO [{'0' * 32}] up\n"


def test_a_filter_binds_what_another_thread_formats(make: Callable[..., Measured]) -> None:
    service = make()
    records: list[logging.LogRecord] = []

    class Queue(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    handler = Queue()
    handler.addFilter(TraceFilter())
    seen: list[Any] = []
    with logging_to(handler):
        within(service, lambda: (shop.warning("x"), seen.append(trace_ids.here())))
    lines: list[str] = []
    thread = threading.Thread(
        target=lambda: lines.append(TraceFormatter("%(trace_id)s %(span_id)s").format(records[0]))
    )
    thread.start()
    thread.join()
    assert lines == [" ".join(seen[0])]
    assert TraceFilter("shop").filter(records[0])
    assert not TraceFilter("other").filter(records[0])


# -- the handler ---------------------------------------------------------------------------------------------------


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    one = open_recorder(tmp_path)
    yield one
    one.detach()


@contextmanager
def forwarding(recorder: Recorder, level: int = logging.WARNING) -> Iterator[ForwardingHandler]:
    handler = ForwardingHandler(level, recorder)
    logging.getLogger().handlers.append(handler)
    try:
        yield handler
    finally:
        logging.getLogger().handlers.remove(handler)


@pytest.mark.parametrize(
    ("level", "number"),
    [(0, 0), (5, 4), (10, 5), (20, 9), (25, 12), (29, 12), (30, 13), (32, 15), (40, 17), (50, 21), (99, 24)],
)
def test_severities_are_those_of_otlp(level: int, number: int) -> None:
    assert severity_of(level) == number


def test_what_is_copied_of_a_record(recorder: Recorder) -> None:
    def call() -> None:
        try:
            raise ValueError("x")
        except ValueError:
            shop.exception("low on %s", "tea")
        seen.append(trace_ids.here())

    seen: list[Any] = []
    with forwarding(recorder) as handler:
        shop.info("not this one")
        serve_by(recorder, meanwhile=call)
    (entry,) = handler.entries
    assert (entry.level, entry.level_name, entry.logger, entry.body) == (40, "ERROR", "shop.stock", "low on tea")
    assert (os.path.basename(entry.file), entry.function) == ("test_logs.py", "call")
    assert entry.raised is not None
    assert entry.raised.type == "ValueError"
    assert entry.ids == seen[0] is not None
    assert abs(entry.at_s - time.time()) < 60


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("str")


@pytest.mark.parametrize(
    ("message", "arguments", "body"),
    [
        ("%d", ("x",), "%d"),
        ("%s", (), "%s"),
        (Unprintable(), (), "<unprintable>"),
        ("%s", (Unprintable(),), "%s"),
        ("x" * 10_000, (), "x" * 4096),
        (17, (), "17"),
    ],
)
def test_odd_messages(recorder: Recorder, message: Any, arguments: tuple[Any, ...], body: str) -> None:
    record = logging.LogRecord("shop", logging.ERROR, "shop.py", 1, message, arguments, None)
    with forwarding(recorder) as handler:
        assert handler.handle(record)
    assert [entry.body for entry in handler.entries] == [body]


def test_a_burst_and_no_more(recorder: Recorder) -> None:
    with forwarding(recorder) as handler:
        for number in range(100):
            shop.warning("%d", number)
        assert [entry.body for entry in handler.entries] == [str(number) for number in range(60)]
        assert handler.dropped == 40
        handler.bucket.refill(1.0)  # 600 a minute are 10 a second
        for number in range(100):
            shop.warning("%d", number)
    assert len(handler.entries) == 70


def test_what_does_not_pass_is_not_formatted(recorder: Recorder) -> None:
    with forwarding(recorder) as handler:
        for _ in range(60):
            shop.warning("x")
        record = logging.LogRecord("shop", logging.ERROR, "shop.py", 1, Unprintable(), (), None)
        assert not handler.handle(record)


@pytest.mark.parametrize("name", ["paste_agent", "paste_agent.anything"])
def test_the_agent_itself_is_not_forwarded(recorder: Recorder, name: str) -> None:
    with forwarding(recorder) as handler:
        logging.getLogger(name).error("x")
        done = native.Flag()

        def own() -> None:
            logging.getLogger("urllib3").error("x")
            done.set()

        native.start_thread(own)
        assert done.wait(30)
    assert not handler.entries
    assert handler.dropped == 0


def test_no_lock_is_waited_for(recorder: Recorder) -> None:
    with forwarding(recorder) as handler:
        assert handler.lock is None
        handler.acquire()
        handler.release()
        assert handler.name is None
        repr(handler)
        handler.flush()
        handler.close()


def test_services_of_one_process_do_not_mix(recorder: Recorder, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = open_recorder(tmp_path / "other")
    with forwarding(recorder) as first, forwarding(other) as second:
        serve_by(recorder, meanwhile=lambda: shop.warning("first"))
        serve_by(other, meanwhile=lambda: shop.warning("second"))
        shop.warning("nobody's")
    other.detach()
    assert [entry.body for entry in first.entries] == ["first", "nobody's"]
    assert [entry.body for entry in second.entries] == ["second"]


@pytest.mark.parametrize("forward_logs", ["off", "debug", "error"])
def test_who_has_not_configured_logging_sees_what_he_saw(tmp_path: Path, forward_logs: str) -> None:
    script = """
import logging, sys
from paste_agent import lifecycle, settings
keys = {"endpoint": "http://127.0.0.1:9", "forward_logs": sys.argv[2], "runtime_dir": sys.argv[1],
        "store": sys.argv[1] + "/s", "shutdown_timeout_s": "0.1"}
agents = [lifecycle.agent_of(settings.load({**keys, "service_name": name}, {}, {})) for name in ("a", "b")]
for agent in agents:
    agent.serve()
sys.stderr = sys.stdout
with_handler = logging.getLogger("with")
with_handler.addHandler(logging.NullHandler())
for logger in (logging.getLogger("shop"), with_handler, logging.getLogger()):
    logger.info("info")
    logger.warning("warning of %s", logger.name)
"""
    said = run_script(script, tmp_path, forward_logs).splitlines()
    assert [line for line in said if not line.startswith(("a: ", "b: "))] == ["warning of shop", "warning of root"]


# -- when it listens -----------------------------------------------------------------------------------------------


def handlers() -> list[logging.Handler]:
    return [one for one in logging.getLogger().handlers if isinstance(one, ForwardingHandler)]


def test_it_listens_from_the_first_request_until_the_end(make: Callable[..., Measured], receiver: Receiver) -> None:
    service = make(endpoint=receiver.endpoint, forward_logs="warning")
    assert handlers() == []
    within(service, lambda: None)
    assert len(handlers()) == 1
    logging.getLogger().handlers.remove(handlers()[0])  # as whoever configures logging anew does
    deadline = time.monotonic() + 60
    while not handlers() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(handlers()) == 1
    service.agent.finish()
    assert handlers() == []


@pytest.mark.parametrize(
    "conf", [{}, {"forward_logs": "off", "endpoint": "x"}, {"endpoint": "x", "high_security": "true"}]
)
def test_where_nothing_is_to_be_forwarded_nobody_listens(
    make: Callable[..., Measured], receiver: Receiver, conf: dict[str, str]
) -> None:
    endpoint = {"endpoint": receiver.endpoint} if "endpoint" in conf else {}
    service = make(**{"forward_logs": "debug", **conf, **endpoint})
    within(service, lambda: None)
    assert handlers() == []


def test_a_forked_child_does_not_forward(tmp_path: Path) -> None:
    script = """
import logging, os, sys
from paste_agent import lifecycle, settings
from paste_agent.log_forwarding import ForwardingHandler

def listening():
    return [one for one in logging.getLogger().handlers if isinstance(one, ForwardingHandler)]

keys = {"endpoint": "http://127.0.0.1:9", "forward_logs": "info", "runtime_dir": sys.argv[1],
        "store": sys.argv[1] + "/s", "shutdown_timeout_s": "0.1"}
agent = lifecycle.agent_of(settings.load(keys, {}, {}))
logging.basicConfig(level=logging.CRITICAL)
agent.serve()
assert len(listening()) == 1
pid = os.fork()
if pid == 0:
    os._exit(len(listening()))
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert len(listening()) == 1
"""
    run_script(script, tmp_path)


# -- all the way ---------------------------------------------------------------------------------------------------


def fail() -> None:
    try:
        raise KeyError(" ".join(("a", "secret")))
    except KeyError:
        shop.error("out of tea", exc_info=True)
    shop.warning("low on coffee")


@pytest.mark.parametrize("messages", ["true", "false"])
def test_records_arrive_bound_to_their_trace(make: Callable[..., Measured], receiver: Receiver, messages: str) -> None:
    service = make(
        endpoint=receiver.endpoint, forward_logs="warning", record_error_messages=messages, shutdown_timeout_s="60"
    )
    within(service, lambda: (fail(), shop.info("not this one")))
    shop.critical("outside")
    service.agent.finish()
    (span,) = receiver.spans
    found = {record.body.string_value: record for record in receiver.logs}
    assert {body: (one.severity_number, one.severity_text) for body, one in found.items()} == {
        "out of tea": (17, "ERROR"), "low on coffee": (13, "WARNING"), "outside": (21, "CRITICAL"),
    }  # fmt: skip
    for body in ("out of tea", "low on coffee"):
        assert (found[body].trace_id, found[body].span_id) == (span.trace_id, span.span_id)
    assert (found["outside"].trace_id, found["outside"].span_id) == (b"", b"")
    attributes = attributes_of(found["out of tea"].attributes)
    assert attributes["code.function.name"] == "fail"
    assert attributes["code.file.path"] == __file__
    assert attributes["exception.type"] == "KeyError"
    assert attributes.get("exception.message") == ("'a secret'" if messages == "true" else None)
    assert ("a secret" in attributes["exception.stacktrace"]) == (messages == "true")
    scopes = {scope.scope.name for request in receiver.log_requests for one in request.resource_logs
              for scope in one.scope_logs}  # fmt: skip
    assert scopes == {"shop.stock"}
    assert [name for name in os.listdir(service.agent._directory or "/") if name.endswith(log_files.SUFFIX)] == []


def test_what_is_too_much_is_counted_until_the_process_ends(make: Callable[..., Measured], receiver: Receiver) -> None:
    service = make(endpoint=receiver.endpoint, forward_logs="warning", shutdown_timeout_s="60")
    within(service, lambda: [shop.warning("%d", number) for number in range(100)])
    service.agent.finish()
    ((_, point),) = receiver.last_points(log_forwarding.DROPPED)
    assert len(receiver.logs) >= 60
    assert point.as_int == 100 - len(receiver.logs)
    assert service.word(layout.W_INTERNAL_ERRORS) == 0
