"""TurboGears' own quickstart: controllers, SQLAlchemy over SQLite, Kajiki, sessions and repoze.who."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

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
from tests.serving import GUNICORN_PASTER, NO_CONTROL_SOCKET, environment, serve

skip_without("tg", "gearbox", "devtools", "kajiki", "repoze.who", "alembic")

CLIENTS, ROUNDS = 4, 1
DEMO = Kind("GET", "/demo", "/demo")
ADD = Kind("POST", "/demo/add", "/demo/add", data={"title": "tea {number}"})
OVERFLOW = Kind("POST", "/demo/toggle", "/demo/toggle", data={"todo_id": "9" * 30, "done": "1"})
KINDS = [
    Kind("GET", "/", "/"),
    DEMO,
    Kind("GET", "/demo/todos", "/demo/todos"),
    ADD,
    Kind("POST", "/demo/add", None),  # without what the action asks for there is none
    Kind("POST", "/demo/toggle", "/demo/toggle", data={"todo_id": "1", "done": "1"}),
    Kind("POST", "/demo/toggle", "/demo/toggle", data={"todo_id": "none-{number}"}),
    OVERFLOW,
    Kind("GET", "/demo/protected", "/demo/protected"),
    Kind("GET", "/login", "/login"),
    Kind("GET", "/nope/{number}", None),
    Kind("GET", "/css/style.css", None),
]


class Wiki:
    """A project as `gearbox quickstart` makes it, installed in a directory of its own."""

    def __init__(self, here: Path) -> None:
        self.home = here / "wiki"
        self.path = os.pathsep.join([str(here / "site"), environment()["PYTHONPATH"]])
        self._run([script("gearbox"), "quickstart", "-s", "-a", "wiki"], here)
        installing = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(here / "site")]
        self._run([*installing, "--disable-pip-version-check", str(self.home)], here)
        self._run([script("gearbox"), "setup-app", "-c", "development.ini"], self.home)

    def _run(self, command: list[str], directory: Path) -> None:
        done = subprocess.run(
            command, cwd=directory, env=environment(PYTHONPATH=self.path), timeout=2 * PATIENCE_S,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout.decode(errors="replace")


@pytest.fixture(scope="module")
def wiki(tmp_path_factory: pytest.TempPathFactory) -> Wiki:
    made = Wiki(tmp_path_factory.mktemp("turbogears"))
    install(made.home / "development.ini")
    return made


@pytest.fixture(scope="module", params=["true", "false"])
def debug(request: pytest.FixtureRequest) -> str:
    """With it TurboGears answers an error with a page of its own, and with a generator that begins the answer late."""
    return str(request.param)


@pytest.fixture(scope="module")
def outcome(wiki: Wiki, debug: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    here = tmp_path_factory.mktemp("served")
    text = (wiki.home / "development.ini").read_text()
    assert text.count("debug = true\n") == 1
    ini = wiki.home / f"debug-{debug}.ini"
    ini.write_text(text.replace("debug = true\n", f"debug = {debug}\n"))
    env = agent_environment(here, PYTHONPATH=wiki.path, PASTE_AGENT_SERVICE_NAME="wiki")
    run = [*GUNICORN_PASTER, "--workers", "2", "--bind", "127.0.0.1:0", *NO_CONTROL_SOCKET, str(ini)]
    with serve(run, cwd=here, env=env) as server:
        seen = drive(server.url, KINDS, CLIENTS, ROUNDS) + drive_traced(server.url, KINDS)
        assert server.stop() == 0
        yield Outcome(here, KINDS, seen, server.output())


def test_every_request_is_counted_by_route_and_status(outcome: Outcome) -> None:
    assert sum(outcome.seen.values()) == (CLIENTS * ROUNDS + 1) * len(KINDS)
    assert {status for _, _, status in outcome.seen} == {200, 302, 404, 500}
    assert outcome.counted() == dict(outcome.seen)


def test_what_fails_is_told_with_its_error(outcome: Outcome) -> None:
    assert [key for key, _ in outcome.failures()] == [("POST", "/demo/toggle", 500)]
    (error,) = outcome.summary()["errors_seen"]
    assert (error["type"], error["place"]) == ("OverflowError", "wiki.controllers.demo.toggle")
    assert error["count"] == CLIENTS * ROUNDS + 1
    assert outcome.trace(OVERFLOW).failed


def spans(outcome: Outcome, kind: Kind) -> list[tuple[str, str]]:
    """Without what happens once in a worker, and what another application's page about this one renders."""
    return [
        (category, name)
        for category, name in outcome.spans(kind)
        if name != "connect" and not name.startswith(("PRAGMA ", "compile ", "templates/"))
    ]


def test_actions_queries_and_templates_have_spans(outcome: Outcome) -> None:
    select = [("database", "SELECT todo_item"), ("database", "fetch SELECT todo_item")]
    assert spans(outcome, DEMO) == [
        ("function", "wiki.controllers.demo:DemoController.index"), *select, ("template", "demo/index.xhtml"),
    ]  # fmt: skip
    assert spans(outcome, ADD) == [
        ("function", "wiki.controllers.demo:DemoController.add"), ("database", "INSERT todo_item"), *select,
        ("template", "demo/todo_list.xhtml"), ("database", "COMMIT"),
    ]  # fmt: skip
    assert spans(outcome, OVERFLOW)[:2] == [
        ("function", "wiki.controllers.demo:DemoController.toggle"), ("database", "SELECT todo_item"),
    ]  # fmt: skip
    queries = {one["summary"] for one in outcome.summary()["queries"]}
    assert queries >= {"SELECT todo_item", "INSERT todo_item", "COMMIT"}
