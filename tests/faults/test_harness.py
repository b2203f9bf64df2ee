"""The harness itself: it finds what it is there to find, and users can run it on a service of their own."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.load import KINDS, Load, Tally
from tests.faults.service import APPLICATION
from tests.faults.verdict import Counts, Verdict
from tests.receiver import Answer, Receiver
from tests.serving import ROOT, run

HELLO = ("GET", "/hello", 200)
FAILS = ("GET", "/fails", 500)
SEEN = Tally(served=Counter({HELLO: 10}), cut_off=Counter({("GET", "/hello"): 2}))


NAMELESS = ("GET", None, 500)


@pytest.mark.parametrize(
    "counted",
    [{HELLO: 10}, {HELLO: 11}, {HELLO: 12}, {HELLO: 10, ("GET", "/hello", None): 2}, {HELLO: 11, NAMELESS: 1}],
)
def test_what_is_exact(counted: Counts) -> None:
    """What was cut off may be counted, under whatever status."""
    verdict = Verdict("exact", SEEN, counted, dict(counted))
    assert verdict.faults() == []
    assert (verdict.lost, verdict.twice) == (0, 0)
    verdict.check()


@pytest.mark.parametrize(
    ("stored", "received", "fault"),
    [
        ({HELLO: 9}, {HELLO: 9}, "1 requests were lost"),
        ({}, {}, "10 requests were lost"),
        ({HELLO: 13}, {HELLO: 13}, "1 requests were counted twice"),
        ({HELLO: 10, NAMELESS: 3}, None, "1 requests were counted twice"),
        ({HELLO: 10, FAILS: 1}, {HELLO: 10, FAILS: 1}, "1 requests were counted twice, or never made"),
        ({HELLO: 9, ("GET", "/hello", 404): 1}, None, "1 requests were lost"),
        ({HELLO: 11}, {HELLO: 10}, "store and collector differ in 1 series"),
        (None, {HELLO: 9}, "1 requests were lost"),
    ],
)
def test_what_is_not(stored: Counts | None, received: Counts | None, fault: str) -> None:
    verdict = Verdict("not exact", SEEN, stored, received)
    with pytest.raises(AssertionError, match=fault):
        verdict.check()
    assert "| GET /hello 200 | 10 | 2 |" in str(verdict)


def test_nothing_served_shows_nothing() -> None:
    assert Verdict("idle", Tally(), {}, {}).faults()


def test_where_nobody_listens_a_request_is_refused() -> None:
    """Nothing was sent: no service can have counted it."""
    with Receiver() as gone:
        port = gone.port
    with Load(lambda: port, 0, requests=10) as load:
        while load.tally.refused < 10:
            assert load.is_alive()
        load.stop()
    assert (load.tally.sent, load.tally.wrong) == (0, [])


def test_a_connection_that_closes_without_a_word_is_a_request_cut_off() -> None:
    forms = [kind for kind in KINDS if kind.method == "POST"]
    with Receiver() as other:
        other.default = Answer(raw=lambda handler: None)
        with Load(lambda: other.port, 0, requests=8, clients=2, kinds=forms) as load:
            pass
    assert (load.tally.cut_off.total(), load.tally.sent, load.tally.wrong) == (8, 8, [])


def test_a_service_of_ones_own(tmp_path: Path) -> None:
    """The long runs take an ini as it is, and leave what belongs to it alone."""
    shutil.copy(APPLICATION, tmp_path / "somebodys.py")
    ini = tmp_path / "shop.ini"
    ini.write_text(
        "[app:main]\npaste.app_factory = somebodys:factory\nfilter-with = agent\n"
        "[filter:agent]\nuse = egg:paste_agent\nstore = %(here)s/shop.sqlite\nruntime_dir = %(here)s/run\n"
        "endpoint = http://127.0.0.1:9\n[server:main]\nuse = egg:paste_agent\nport = 80\nworkers = 40\n"
    )
    command = [
        sys.executable,
        str(ROOT / "bench" / "faults.py"),
        "--rounds",
        "1",
        "--row",
        "SIGTERM",
        "--ini",
        str(ini),
    ]
    command += ["--worker-class", "sync", "--request", "GET /hello", "--request", "GET /fails"]
    status, out, err = run(command, tmp_path)
    assert status == 0, out + err
    assert "| GET None 200 |" in out
    assert "| GET None 500 |" in out
    (line,) = (line for line in out.splitlines() if line.startswith("| SIGTERM |"))
    *_, lost, twice, _ = line.split("|")
    assert (lost.strip(), twice.strip()) == ("0", "0")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shop.ini", "somebodys.py"]
