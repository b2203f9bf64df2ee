"""Composing the agent's server hooks with the user's."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable

import pytest
from gunicorn.config import Config

from paste_agent import lifecycle
from paste_agent.recorder import layout
from paste_agent.server import hooks
from tests.filtering import Measured
from tests.recorders import S


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    said: list[object] = []
    monkeypatch.setattr(lifecycle, "start_reporters", lambda: said.append("start"))
    monkeypatch.setattr(lifecycle, "finish", lambda services: said.append(("finish", services)))
    monkeypatch.setattr(hooks, "_said", set())
    return said


def test_the_users_hook_runs_first(calls: list[object]) -> None:
    cfg = Config()
    cfg.set("post_worker_init", lambda worker: calls.append(worker))
    cfg.set("on_exit", lambda arbiter: calls.append(arbiter))
    hooks.install(cfg, [])
    cfg.post_worker_init("worker")
    cfg.on_exit("arbiter")
    assert calls == ["worker", "start", "arbiter", ("finish", [])]


class Methods:
    def ready(self, worker: object) -> None:
        pass

    def __call__(self, worker: object) -> None:
        pass


@pytest.mark.parametrize("hook", [Methods().ready, Methods(), functools.partial(lambda word, worker: None, "x")])
def test_any_callable_that_gunicorn_takes(calls: list[object], hook: object) -> None:
    cfg = Config()
    cfg.set("post_worker_init", hook)
    hooks.install(cfg, [])
    cfg.post_worker_init("worker")
    assert calls == ["start"]


def test_every_hook_of_the_table_keeps_its_arity(calls: list[object]) -> None:
    cfg = Config()
    hooks.install(cfg, [])
    for name in hooks._OURS:
        setting = cfg.settings[name]
        setting.set(setting.get())  # gunicorn's own check


def test_the_users_exception_passes(calls: list[object]) -> None:
    def fail(anything: object) -> None:
        raise ValueError("the user's")

    cfg = Config()
    cfg.set("post_worker_init", fail)
    cfg.set("on_exit", fail)
    hooks.install(cfg, [])
    with pytest.raises(ValueError, match="the user's"):
        cfg.post_worker_init("worker")
    assert calls == []
    with pytest.raises(ValueError, match="the user's"):
        cfg.on_exit("arbiter")
    assert calls == [("finish", [])]  # or what the last worker left would be lost


def test_an_exception_of_ours_is_told_once(
    calls: list[object], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise ValueError("ours")

    monkeypatch.setattr(lifecycle, "start_reporters", fail)
    cfg = Config()
    hooks.install(cfg, [])
    with caplog.at_level(logging.WARNING, "paste_agent"):
        cfg.post_worker_init("worker")
        cfg.post_worker_init("worker")
    assert [record.levelname for record in caplog.records if record.name == "paste_agent"] == ["WARNING"]


class Worker:
    """As much of gunicorn's as the hooks look at."""


@pytest.mark.parametrize("same_user", [True, False])
def test_a_worker_tells_how_long_it_took_to_boot_and_that_there_is_a_witness(
    measure: Callable[..., Measured], monkeypatch: pytest.MonkeyPatch, same_user: bool
) -> None:
    service = measure()
    monkeypatch.setattr(lifecycle, "start_reporters", lambda: [service.agent])
    cfg, worker = Config(), Worker()
    hooks.install(cfg, [service.settings])
    cfg.pre_fork("arbiter", worker)
    if not same_user:  # the worker has changed it since
        user = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    cfg.post_worker_init(worker)
    monkeypatch.undo()
    totals = {metric: total for ((metric, _), _), total in service.delta().totals.items()}
    assert totals["paste_agent.worker.boot.duration"].count == 1
    assert 0 < totals["paste_agent.worker.boot.duration"].sum_ns < 60 * S
    assert service.word(layout.W_WITNESSED) == same_user


def test_without_an_arbiter_there_is_neither(measure: Callable[..., Measured], monkeypatch: pytest.MonkeyPatch) -> None:
    service = measure()
    monkeypatch.setattr(lifecycle, "start_reporters", lambda: [service.agent])
    cfg = Config()
    hooks.install(cfg, [service.settings])
    cfg.post_worker_init(Worker())
    assert service.delta().totals == {}
    assert service.word(layout.W_WITNESSED) == 0
