"""Where threads are greenlets, the agent's own threads say what they have to say without stopping the application's."""

from __future__ import annotations

import sys
import threading
from http.client import HTTPConnection
from pathlib import Path

from tests.faults.running import classes
from tests.receiver import Receiver
from tests.serving import NO_CONTROL_SOCKET_INI, environment, serve

CLIENTS, REQUESTS = 40, 50
APPLICATION = """
import logging, time
log = logging.getLogger("chatty")
def factory(global_conf):
    def application(environ, start_response):
        for number in range(3):
            log.info("line %d of %s", number, environ["PATH_INFO"])
        time.sleep(0.01)
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "13")])
        return [b"Hello, world!"]
    return application
"""
INI = """\
[app:chatty]
use = call:chatty:factory
[filter:agent]
use = egg:paste_agent
service_name = chatty
store = {here}/store.sqlite
runtime_dir = {here}/run
report_interval_s = 0.2
trace_interval_s = 0.2
[pipeline:main]
pipeline = agent chatty
[server:main]
use = egg:paste_agent
bind = 127.0.0.1:0
worker_class = {worker_class}
{server}
[loggers]
keys = root
[handlers]
keys = file
[formatters]
keys = plain
[logger_root]
level = DEBUG
handlers = file
[handler_file]
class = StreamHandler
args = (sys.stderr,)
formatter = plain
[formatter_plain]
format = %(levelname)s [%(name)s] %(message)s
"""


@classes("sync", "gthread", "gevent", "eventlet")
def test_an_application_that_logs_goes_on(tmp_path: Path, worker_class: str) -> None:
    """From the first moment on, when the lead says its lines of a start, and while it exports."""
    (tmp_path / "chatty.py").write_text(APPLICATION)
    server_settings = NO_CONTROL_SOCKET_INI + ("threads = 8" if worker_class == "gthread" else "")
    (tmp_path / "a.ini").write_text(INI.format(here=tmp_path, worker_class=worker_class, server=server_settings))
    answered: list[int] = []

    def ask(port: int) -> None:
        for _ in range(REQUESTS // (10 if worker_class == "sync" else 1)):
            connection = HTTPConnection("127.0.0.1", port, timeout=30)
            try:
                connection.request("GET", "/")
                with connection.getresponse() as answer:
                    answered.append(len(answer.read()))
            finally:
                connection.close()

    with Receiver() as collector:
        command = [sys.executable, "-c", "from paste_agent.server.gunicorn_paster import run; run()", "a.ini"]
        env = environment(OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint, OTEL_EXPORTER_OTLP_PROTOCOL="grpc")
        with serve(command, tmp_path, env, wait=False) as server:
            server.wait_for_output("Listening at")
            port = int(server.output().partition("Listening at: http://127.0.0.1:")[2].split()[0])
            clients = [threading.Thread(target=ask, args=(port,)) for _ in range(CLIENTS)]
            for client in clients:
                client.start()
            for client in clients:
                client.join()
            collector.wait_for(lambda it: bool(it.metrics))
            assert set(answered) == {13}
            sent = len(answered)
            assert server.stop() == 0
            output = server.output()
    assert sent == CLIENTS * (REQUESTS // (10 if worker_class == "sync" else 1))
    assert output.count("[chatty] line 0") == sent
    assert output.count("INFO [paste_agent] service chatty: measurements in") == 1
    assert output.count("WARNING [paste_agent] chatty: OTEL_EXPORTER_OTLP_PROTOCOL = 'grpc': passed over") == 1
    assert "[urllib3" not in output  # the agent's own exports are nobody's business
    assert sum(collector.request_counts().values()) == sent
