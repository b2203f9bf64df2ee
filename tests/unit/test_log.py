"""Troubles are said once a kind and interval."""

from __future__ import annotations

import pytest

from paste_agent.log import INTERVAL_S, Warnings


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
