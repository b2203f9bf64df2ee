"""Troubles are said once a kind and interval."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from paste_agent import log
from paste_agent.log import INTERVAL_S, Warnings
from tests.recorders import run_script


def test_once_a_kind_and_interval(caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    warn = Warnings("shop", lambda: now)
    for _ in range(5):
        warn("store", "the disk is full")
    warn("collector", "100% of it %s refuses")
    now += INTERVAL_S - 1
    warn("store", "the disk is full")
    assert [record.getMessage() for record in caplog.records] == [
        "shop: the disk is full",
        "shop: 100% of it %s refuses",
    ]
    now += 2
    warn("store", "the disk is still full")
    warn("store", "the disk is still full")
    assert caplog.records[-1].getMessage() == "shop: the disk is still full (5 times more since it was last said)"
    now += INTERVAL_S
    warn("store", "and again")
    assert caplog.records[-1].getMessage() == "shop: and again (1 times more since it was last said)"
    now += INTERVAL_S
    warn("store", "quiet meanwhile")
    assert caplog.records[-1].getMessage() == "shop: quiet meanwhile"
    assert {(record.name, record.levelname) for record in caplog.records} == {("paste_agent", "WARNING")}


def test_services_speak_for_themselves(caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a", "b"):
        Warnings(name)("store", "full")
    assert [record.getMessage() for record in caplog.records] == ["a: full", "b: full"]


def test_a_handler_that_raises_keeps_no_waiting_line_from_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())
            raise ValueError("gone")

    said: list[str] = []
    handler = Handler()
    monkeypatch.setattr(log, "_unsaid", type(log._unsaid)([(logging.WARNING, "one"), (logging.WARNING, "two")]))
    log.logger.addHandler(handler)
    try:
        log.flush()
    finally:
        log.logger.removeHandler(handler)
    assert said == ["one", "two"]


# -- where threads are greenlets -----------------------------------------------------------------------------------

GREENLETS = """
from gevent import monkey
monkey.patch_all()
import gevent, logging, sys
from pathlib import Path
from paste_agent import lifecycle, log, native
from paste_agent.filter import AgentFilter
from tests.recorders import environ_of, settings_of

said = []

class Handler(logging.Handler):
    def emit(self, record):
        if record.getMessage() in ('one', 'two'):
            said.append(record.getMessage())
            raise ValueError('gone')

def application(environ, start_response):
    start_response('200 OK', [])
    return [b'x']

log.logger.addHandler(Handler())
agent = lifecycle.agent_of(settings_of(Path(sys.argv[1])))
body = AgentFilter(application, agent)(environ_of('/'), lambda status, headers, exc_info=None: None)
list(body)
body.close()

def say(line):  # as the reporter does
    native.start_thread(lambda: log.say(logging.WARNING, line))
    with gevent.Timeout(30):
        while line not in said:
            gevent.sleep(0.01)
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    pytest.importorskip("gevent")
    tmp_path.chmod(0o700)
    return tmp_path


def test_who_waits_for_all_greenlets_does_not_wait_for_the_agents(directory: Path) -> None:
    assert run_script(GREENLETS + "print(gevent.wait(timeout=20))\n", directory) == "True\n"


def test_a_handler_that_raises_does_not_silence_the_agent(directory: Path) -> None:
    assert run_script(GREENLETS + "say('one')\nsay('two')\nprint(said)\n", directory) == "['one', 'two']\n"


def test_lines_are_said_also_after_somebody_has_waited_for_all_greenlets(directory: Path) -> None:
    script = "assert gevent.wait(timeout=20)\nsay('one')\nprint(said)\n"
    assert run_script(GREENLETS + script, directory) == "['one']\n"
