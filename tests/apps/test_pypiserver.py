"""pypiserver behind urlmap, the agent around both: an application of Bottle, of which it brings a copy of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.apps.traffic import Kind, Outcome, agent_environment, drive, drive_traced, install, skip_without
from tests.serving import GUNICORN_PASTER, NO_CONTROL_SOCKET, serve

skip_without("pypiserver")

CLIENTS, ROUNDS = 4, 8
INI = """\
[composite:main]
use = egg:Paste#urlmap
/ = pypi

[app:pypi]
use = egg:pypiserver#main
root = %(here)s/packages
authenticate =
password_file = .
disable_fallback = true
"""
UPLOAD = Kind("POST", "/", "/", data={":action": "file_upload"}, files={"content": ("up-1.{number}.tar.gz", b"new")})
DOWNLOAD = Kind("GET", "/packages/shop-1.0.tar.gz", "/packages/:filename")
BROKEN = Kind("POST", "/RPC2", "/RPC2", body="<methodCall><methodName>search</methodName></methodCall>",
              headers={"Content-Type": "text/xml"})  # fmt: skip
KINDS = [
    Kind("GET", "/", "/"),
    Kind("GET", "/simple/", "/simple/"),
    Kind("HEAD", "/simple/", "/simple/"),
    Kind("GET", "/simple/shop/", "/simple/:project/"),
    Kind("GET", "/simple/Shop/", "/simple/:project/"),
    Kind("GET", "/simple/nope-{number}/", "/simple/:project/"),
    Kind("GET", "/packages/", "/packages/"),
    DOWNLOAD,
    Kind("GET", "/packages/nope-{number}.tar.gz", "/packages/:filename"),
    Kind("GET", "/shop/json", "/:project/json"),
    Kind("GET", "/nope-{number}/nope/nope", None),
    UPLOAD,
    UPLOAD._replace(files={"content": ("shop-1.0.tar.gz", b"another")}),
    BROKEN,
]
PACKAGE = bytes(range(256)) * 1024


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    here = tmp_path_factory.mktemp("pypiserver")
    (here / "packages").mkdir()
    (here / "packages" / "shop-1.0.tar.gz").write_bytes(PACKAGE)
    ini = here / "pypi.ini"
    ini.write_text(INI)
    install(ini)
    command = [*GUNICORN_PASTER, "--workers", "2", "--worker-class", "gthread", "--threads", "4"]
    with serve(
        [*command, "--bind", "127.0.0.1:0", *NO_CONTROL_SOCKET, str(ini)], cwd=here, env=agent_environment(here)
    ) as server:
        seen = drive(server.url, KINDS, CLIENTS, ROUNDS) + drive_traced(server.url, KINDS)
        assert server.stop() == 0
        yield Outcome(here, KINDS, seen, server.output())


def test_every_request_is_counted_by_route_and_status(outcome: Outcome) -> None:
    assert sum(outcome.seen.values()) == (CLIENTS * ROUNDS + 1) * len(KINDS)
    assert {status for _, _, status in outcome.seen} == {200, 301, 404, 409, 500}
    assert outcome.counted() == dict(outcome.seen)


def test_what_fails_is_told_with_its_error(outcome: Outcome) -> None:
    assert outcome.failures() == {(("POST", "/RPC2", 500), "500"): CLIENTS * ROUNDS + 1}
    # Bottle has made a response of it: the request has failed by its status, and the error is known all the same.
    (error,) = outcome.summary()["errors_seen"]
    assert (error["type"], error["place"]) == ("IndexError", "pypiserver._app.handle_rpc")
    assert error["count"] == CLIENTS * ROUNDS + 1


def test_callbacks_have_spans_and_sections_are_layers(outcome: Outcome) -> None:
    assert outcome.spans(DOWNLOAD) == [("function", "pypiserver._app.protector")]
    assert outcome.spans(KINDS[0]) == [("function", "pypiserver._app.root")]
    layers = {one["name"]: one["count"] for one in outcome.summary()["layers"]}
    assert layers == {"main": sum(outcome.seen.values()), "pypi": sum(outcome.seen.values())}
