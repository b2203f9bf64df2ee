"""OpenStack's Barbican as its own ini has it: urlmap, oslo.middleware, keystonemiddleware, Pecan, SQLAlchemy.

MariaDB is real; of Keystone there is what answers whose a token is. Runs where the extra `openstack` is installed.
"""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from tests.apps.traffic import (
    PATIENCE_S,
    Kind,
    Outcome,
    agent_environment,
    drive,
    drive_traced,
    install,
    script,
    skip_without,
)
from tests.databases import Server, or_skipped, running_mariadb
from tests.serving import GUNICORN_PASTER, NO_CONTROL_SOCKET, environment, serve

skip_without("barbican", "keystonemiddleware", "pymysql")

CLIENTS, ROUNDS = 4, 3
ANN = {"X-Auth-Token": "ann"}
LIST = Kind("GET", "/v1/secrets", "/v1/secrets", headers=ANN)
STORE = Kind("POST", "/v1/secrets", "/v1/secrets", headers=ANN,
             json={"name": "one", "payload": "hidden", "payload_content_type": "text/plain"})  # fmt: skip
#: Keystone itself fails when it is asked.
BROKEN = Kind("GET", "/v1/secrets", None, headers={"X-Auth-Token": "{broken}"})
KINDS = [
    Kind("GET", "/", "/"),
    Kind("GET", "/healthcheck", None),
    Kind("GET", "/v1/", "/v1/", headers=ANN),
    Kind("GET", "/v1/", None),
    LIST,
    STORE,
    Kind("POST", "/v1/secrets", "/v1/secrets", headers=ANN, json={"payload": 17}),
    Kind("GET", "/v1/secrets", None, headers={"X-Auth-Token": "nobody"}),
    Kind("GET", "/v1/containers?limit=3", "/v1/containers", headers=ANN),
    Kind("GET", "/v1/secrets/{number}", None, headers=ANN),
    Kind("GET", "/v1/nope/{number}", None, headers=ANN),
    BROKEN,
]
TOKEN = """\
{"token": {"methods": ["password"], "audit_ids": ["a"], "catalog": [],
 "issued_at": "2020-01-01T00:00:00.000000Z", "expires_at": "2099-01-01T00:00:00.000000Z",
 "user": {"id": "ann", "name": "ann", "domain": {"id": "default", "name": "Default"}},
 "project": {"id": "shop", "name": "shop", "domain": {"id": "default", "name": "Default"}},
 "roles": [{"id": "1", "name": "admin"}, {"id": "2", "name": "creator"}, {"id": "3", "name": "member"}]}}
"""


class Keystone(BaseHTTPRequestHandler):
    """Knows one token."""

    protocol_version = "HTTP/1.1"
    traceparents: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.traceparents.append(self.headers.get("traceparent", ""))
        known = {"ann": (200, TOKEN), "nobody": (404, "{}")}
        status, text = known.get(self.headers.get("X-Subject-Token", ""), (500, "{}"))
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def keystone() -> Iterator[int]:
    """The port that it listens on."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Keystone)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield int(server.server_address[1])
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def mariadb() -> Iterator[Server]:
    yield from or_skipped(running_mariadb)


@pytest.fixture(scope="module")
def outcome(keystone: int, mariadb: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    here = tmp_path_factory.mktemp("barbican")
    (here / ".barbican").mkdir()
    database = f"mysql+pymysql://{mariadb.user}@{mariadb.host}:{mariadb.port}/{mariadb.database}"
    (here / ".barbican" / "barbican.conf").write_text(
        f"[database]\nconnection = {database}\n"
        f"[simple_crypto_plugin]\nkek = {base64.urlsafe_b64encode(os.urandom(32)).decode()}\n"
        f"[keystone_authtoken]\nauth_type = admin_token\nendpoint = http://127.0.0.1:{keystone}/v3\ntoken = service\n"
        "http_request_max_retries = 0\n"
        "[oslo_messaging_notifications]\ndriver = noop\n"
    )
    subprocess.run(
        [script("barbican-manage"), "db", "upgrade"], check=True, capture_output=True, timeout=PATIENCE_S, cwd=here,
        env=environment(HOME=str(here)),
    )  # fmt: skip
    ini = here / "barbican-api-paste.ini"
    shutil.copy(Path(sys.prefix) / "etc" / "barbican" / ini.name, ini)
    install(ini)
    run = [*GUNICORN_PASTER, "--workers", "2", "--bind", "127.0.0.1:0", *NO_CONTROL_SOCKET, str(ini)]
    with serve(run, cwd=here, env=agent_environment(here, HOME=str(here))) as server:
        seen = drive(server.url, KINDS, CLIENTS, ROUNDS) + drive_traced(server.url, KINDS)
        assert server.stop() == 0
        yield Outcome(here, KINDS, seen, server.output())


def test_every_request_is_counted_by_route_and_status(outcome: Outcome) -> None:
    assert sum(outcome.seen.values()) == (CLIENTS * ROUNDS + 1) * len(KINDS)
    assert {status for _, _, status in outcome.seen} == {200, 201, 300, 400, 401, 404, 503}
    assert outcome.counted() == dict(outcome.seen)


def test_a_keystone_that_fails_is_seen_as_the_call_that_failed(outcome: Outcome) -> None:
    assert outcome.failures() == {(("GET", None, 503), "503"): CLIENTS * ROUNDS + 1}
    (error,) = outcome.summary()["errors_seen"]
    assert (error["type"], error["place"]) == (
        "webob.exc.HTTPServiceUnavailable", "keystonemiddleware.auth_token.fetch_token",
    )  # fmt: skip
    *filters, call = outcome.spans(BROKEN)
    assert filters[-1] == ("function", "keystonemiddleware.auth_token:AuthProtocol.__call__")
    assert call == ("call", "GET")
    (calls,) = outcome.summary()["calls"]
    assert calls["errors"] >= CLIENTS * ROUNDS + 1


def test_keystone_is_asked_as_a_part_of_the_trace(outcome: Outcome) -> None:
    assert outcome.trace(BROKEN).trace_id.hex() in {parent.split("-")[1] for parent in Keystone.traceparents}


def test_sections_are_layers(outcome: Outcome) -> None:
    layers = {one["name"]: one["count"] for one in outcome.summary()["layers"]}
    kinds = len(KINDS)
    reached = {
        "main": kinds, "healthcheck": 1, "versionapp": 1, "cors": kinds - 1, "request_id": kinds - 1,
        "http_proxy_to_wsgi": kinds - 1, "authtoken": kinds - 2, "context": kinds - 5, "microversion": kinds - 4,
        "apiapp": kinds - 5,
    }  # fmt: skip
    assert layers == {name: (CLIENTS * ROUNDS + 1) * count for name, count in reached.items()}


def test_functions_and_queries_have_spans(outcome: Outcome) -> None:
    spans = outcome.spans(STORE)
    assert [name for category, name in spans if category == "function"] == [
        "oslo_middleware.cors:CORS.__call__",
        "oslo_middleware.request_id:RequestId.__call__",
        "oslo_middleware.http_proxy_to_wsgi:HTTPProxyToWSGI.__call__",
        "keystonemiddleware.auth_token:AuthProtocol.__call__",
        "barbican.api.middleware.context:ContextMiddleware.__call__",
        "barbican.api.middleware.microversion:MicroversionMiddleware.__call__",
        "barbican.api.controllers.handler",
    ]
    assert {("database", "SELECT projects"), ("database", "INSERT secrets"), ("database", "COMMIT")} <= set(spans)


def test_a_query_for_each_row_is_found(outcome: Outcome) -> None:
    """Barbican's list asks once more for each of the ten secrets on its page."""
    found = [one for one in outcome.summary()["findings"] if one["route"] == LIST.route and one["kind"] == "repeated"]
    assert {one["per_request"] for one in found} == {10}
    # The service itself is installed as the libraries are that it uses.
    assert all("/barbican/" in one["code"]["file"] for one in found)
