"""The application that Prometheus scrapes, below a URL prefix as a urlmap makes it."""

from __future__ import annotations

import gzip
import os
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest
from paste.deploy import loadapp
from prometheus_client import parser

from paste_agent import runtime_dir, scrape
from paste_agent.aggregate import REQUEST_DURATION
from paste_agent.errors import AgentError
from paste_agent.exporters import prometheus
from paste_agent.store.store import Store
from tests import commands
from tests.commands import count, ini_of

APP = "[app:main]\nuse = egg:paste_agent#metrics\n"
TOKEN = "abc-123.~+/=="


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    def value(self, name: str) -> float:
        families = parser.text_string_to_metric_families(self.body.decode())
        (found,) = [sample.value for family in families for sample in family.samples if sample.name == name]
        return found


def ask(app: Any, method: str = "GET", path: str = "", **headers: str) -> Answer:
    """headers: as in a WSGI environ, without HTTP_."""
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "/internal/metrics",
        "PATH_INFO": path,
        "QUERY_STRING": "",
    }
    environ.update({f"HTTP_{name}": text for name, text in headers.items()})
    setup_testing_defaults(environ)
    started: list[Any] = []
    body = validator(app)(environ, lambda status, fields, exc_info=None: started.extend([status, fields]))
    try:
        data = b"".join(body)
    finally:
        body.close()
    fields = dict(started[1])
    assert environ["paste_agent.route"] == "/internal/metrics"
    if method != "HEAD":
        assert int(fields["Content-Length"]) == len(data)
    return Answer(int(started[0].split()[0]), fields, data)


@pytest.fixture(autouse=True)
def plain_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("PASTE_AGENT_", "OTEL_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(str(tmp_path / "shop.sqlite"))) as opened:
        opened.instance_id("the instance")
        count(opened, REQUEST_DURATION, {"http.route": "/a"}, 5_000_000, at=0)
        yield opened


def app_of(tmp_path: Path, keys: str = "", filter_keys: str = "") -> Any:
    ini = ini_of(tmp_path, filter_keys, APP + keys)
    return loadapp(f"config:{ini}")


# -- answers ---------------------------------------------------------------------------------------------------------


def test_get(store: Store, tmp_path: Path) -> None:
    app = app_of(tmp_path)
    answer = ask(app)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.headers["Vary"] == "Accept, Accept-Encoding"
    assert answer.value("http_server_request_duration_seconds_count") == 1
    assert b'service_name="shop"' in answer.body
    assert b'service_instance_id="the instance"' in answer.body
    # Nothing is remembered: the next one has what was counted since.
    count(store, REQUEST_DURATION, {"http.route": "/a"}, 5_000_000, at=0)
    assert ask(app, path="/").value("http_server_request_duration_seconds_count") == 2


def test_openmetrics_and_head(store: Store, tmp_path: Path) -> None:
    app = app_of(tmp_path)
    answer = ask(app, ACCEPT="application/openmetrics-text; version=1.0.0")
    assert answer.headers["Content-Type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert answer.body.endswith(b"# EOF\n")
    head = ask(app, "HEAD", ACCEPT="application/openmetrics-text; version=1.0.0")
    assert (head.status, head.headers, head.body) == (200, answer.headers, b"")


@pytest.mark.parametrize(
    ("accepted", "zipped"),
    [("gzip", True), ("deflate, GZIP;q=0.5", True), ("gzip;q=0", False), ("gzip;q=0.0", False), ("x-gzip, br", False)],
)
def test_gzip(store: Store, tmp_path: Path, accepted: str, zipped: bool) -> None:
    answer = ask(app_of(tmp_path), ACCEPT_ENCODING=accepted)
    assert (answer.headers.get("Content-Encoding") == "gzip") is zipped
    body = gzip.decompress(answer.body) if zipped else answer.body
    assert b"http_server_request_duration_seconds_count" in body


def test_what_is_not_answered(store: Store, tmp_path: Path) -> None:
    app = app_of(tmp_path)
    assert ask(app, "POST").status == 405
    assert ask(app, "POST").headers["Allow"] == "GET, HEAD"
    assert ask(app, path="/elsewhere").status == 404


def test_a_token(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", f"{TOKEN}\n")
    for keys in (f"access_token = {TOKEN}\n", "access_token = ${TOKEN}\n"):
        app = app_of(tmp_path, keys)
        for wrong in ("", "Bearer", "Bearer x", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", "Bearer \xe9"):
            answer = ask(app, AUTHORIZATION=wrong)
            assert answer.status == 401
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
            assert b"http_server" not in answer.body
            assert TOKEN.encode() not in answer.body
        assert ask(app, AUTHORIZATION=f"Bearer {TOKEN}").status == 200
        assert ask(app, AUTHORIZATION=f"bearer  {TOKEN}").status == 200
        assert ask(app, "HEAD", AUTHORIZATION="Bearer x").status == 401


# -- a store that cannot be read -------------------------------------------------------------------------------------


def refused(answer: Answer, *words: str) -> None:
    """503 with one line, which tells nobody about files."""
    assert answer.status == 503
    assert answer.body.count(b"\n") == 1
    for word in words:
        assert word in answer.body.decode()
    assert b"/" not in answer.body


def test_no_store_yet(tmp_path: Path) -> None:
    app = app_of(tmp_path)
    refused(ask(app), "no store yet")
    with closing(Store(str(tmp_path / "shop.sqlite"))) as made:
        made.instance_id("the instance")
    assert ask(app).value("paste_agent_worker_count") == 0


@pytest.mark.parametrize("made", [commands.newer, commands.cut, commands.torn], ids=lambda made: str(made.__name__))
def test_a_store_that_is_none(tmp_path: Path, made: Any, caplog: pytest.LogCaptureFixture) -> None:
    made(tmp_path)
    app = app_of(tmp_path)
    for _ in range(3):
        refused(ask(app), "cannot be read")
    # Once, with the path, for who runs the service.
    assert [str(tmp_path / "shop.sqlite") in record.getMessage() for record in caplog.records] == [True]


def test_the_store_that_the_lead_keeps_meanwhile(store: Store, tmp_path: Path) -> None:
    """One that could not be written to any more is left behind; the other is in the runtime directory."""
    app = app_of(tmp_path)
    settings = app._source.settings
    directory = runtime_dir.service_dir(settings, os.environ)
    path = os.path.join(directory, runtime_dir.STORE)
    with closing(Store(path)) as other:
        other.instance_id("the instance")
        for _ in range(5):
            count(other, REQUEST_DURATION, {"http.route": "/a"}, 5_000_000, at=0)
        for suffix in ("", "-wal"):
            os.utime(path + suffix, (2**31, 2**31))
        assert ask(app).value("http_server_request_duration_seconds_count") == 5
    for suffix in ("", "-wal"):
        os.utime(str(tmp_path / "shop.sqlite") + suffix, (2**32, 2**32))
    assert ask(app).value("http_server_request_duration_seconds_count") == 1


def test_no_place_that_the_processes_share(tmp_path: Path) -> None:
    ini = commands.no_store_in_memory(tmp_path)
    ini.write_text(ini.read_text().replace(commands.PIPELINE, APP))
    app = loadapp(f"config:{ini}")
    refused(ask(app), "no store yet")
    os.chmod(runtime_dir.service_dir(app._source.settings, os.environ), 0o777)
    refused(ask(app), "no store in common")


def test_a_fault_of_the_writer_is_no_half_answer(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object, **keys: object) -> Iterator[bytes]:
        yield b"http_server"
        raise RuntimeError("out of order")

    monkeypatch.setattr(prometheus, "write", fails)
    refused(ask(app_of(tmp_path)), "cannot be read")


# -- the section -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("acess_token = x\n", ("[app:metrics] acess_token: unknown key", "access_token")),
        ("access_token =\n", ("[app:metrics] access_token = '***'", "expected")),
        ("access_token = two words\n", ("[app:metrics] access_token = '***'", "expected")),
        ("access_token = ${NOT_SET}\n", ("[app:metrics] access_token = '${NOT_SET}'", "not set")),
        ("service = other\n", ("[app:metrics] service = 'other'", "shop")),
    ],
)
def test_a_wrong_section(tmp_path: Path, keys: str, words: tuple[str, ...]) -> None:
    with pytest.raises(AgentError) as raised:
        app_of(tmp_path, keys)
    for word in words:
        assert word in str(raised.value)
    assert "two words" not in str(raised.value)


def test_without_prometheus_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(AgentError, match=r"pip install 'paste-agent\[prometheus\]'"):
        app_of(tmp_path)


def test_one_of_two_services(tmp_path: Path) -> None:
    second = "[filter:office]\nuse = egg:paste_agent\nservice_name = office\nstore = office.sqlite\n"
    with pytest.raises(AgentError, match=r"\[app:metrics\] service: expected one of shop, office"):
        app_of(tmp_path, second)
    ini = ini_of(tmp_path, "", f"{APP}service = office\n{second}")
    with closing(Store(str(tmp_path / "office.sqlite"))) as made:
        made.instance_id("the instance")
    assert b'service_name="office"' in ask(loadapp(f"config:{ini}")).body


def test_no_agent_in_the_ini(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.ini"
    path.write_text(APP)
    with pytest.raises(AgentError, match=r"no section says"):
        loadapp(f"config:{path}")
    own = tmp_path / "agent.ini"
    own.write_text(
        f"[paste_agent]\nservice_name = shop\nstore = {tmp_path}/shop.sqlite\nruntime_dir = {tmp_path}/run\n"
    )
    monkeypatch.setenv("PASTE_AGENT_CONFIG_FILE", str(own))
    assert ask(loadapp(f"config:{path}")).status == 200


def test_without_an_ini() -> None:
    with pytest.raises(AgentError, match="not loaded from an ini"):
        scrape.main({})
