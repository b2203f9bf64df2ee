"""The rows of the table of faults that are about exactness, as functions: for tests, and for long runs of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from tests.faults.load import FORKING, KINDS
from tests.faults.service import Shape, kill, kill_all, wait_until_gone
from tests.faults.trial import Trial
from tests.receiver import Receiver
from tests.serving import Served, children_of, wait_for

Row = Callable[[Trial], None]


def ends_by(number: signal.Signals, trial: Trial) -> None:
    """The arbiter gets a signal that ends the service, under load.

    At a quick end gunicorn says 500 to what it breaks off, often before the application has seen it: that cannot be
    told from the 500 that an exception makes, so nobody asks for the latter then.
    """
    kinds = [kind for kind in KINDS if kind.status != 500 or number == signal.SIGTERM]
    with trial.serving() as server, trial.load(2000, kinds=kinds) as load:
        trial.moment(load, 1, 400)
        trial.expect(server.stop(number), 0, "exit status")
        load.stop()


def reloads(trial: Trial, times: int = 2) -> None:
    """SIGHUP under load."""
    with trial.serving() as server:
        with trial.load(400, pace_s=0.02) as load:
            for _ in range(times):
                trial.moment(load)
                before = set(server.workers())
                server.send(signal.SIGHUP)
                server.wait_for(_replaced(server, before), "new workers")
                trial.wait_until_all_serve()
        trial.expect(server.stop(), 0, "exit status")


def _replaced(server: Served, before: set[int]) -> Callable[[], bool]:
    return lambda: bool(server.workers()) and not before & set(server.workers())


def upgrades(trial: Trial, reload: bool = False) -> None:
    """SIGUSR2 under load: a second arbiter, then SIGTERM for the first, then for the second.

    reload: SIGHUP for the second in between.
    """
    second = trial.directory / "gunicorn.pid.2"
    first = trial.directory / "gunicorn.pid"
    with trial.serving() as server:
        with trial.load(300, pace_s=0.02) as load:
            trial.moment(load)
            server.send(signal.SIGUSR2)
            server.wait_for(lambda: second.exists() and second.read_text().strip(), "a second arbiter")
            pid = int(second.read_text())
            trial.wait_until_all_serve(arbiter=pid)
            trial.moment(load)
            trial.expect(server.stop(), 0, "exit status of the first")
        wait_for(lambda: first.exists() and int(first.read_text()) == pid, "the second in place of the first")
        with trial.load(100, pace_s=0.02):
            if reload:
                before = set(children_of(pid))
                os.kill(pid, signal.SIGHUP)
                wait_for(lambda: not before & set(children_of(pid)), "other workers")
                wait_for(lambda: trial.all_serve(arbiter=pid), "workers that serve")
        os.kill(pid, signal.SIGTERM)
        wait_until_gone([pid])


def scales(trial: Trial) -> None:
    """SIGTTIN and SIGTTOU under load."""
    with trial.serving() as server:
        with trial.load(600, pace_s=0.01) as load:
            for number, workers in ((signal.SIGTTIN, 3), (signal.SIGTTOU, 2), (signal.SIGTTOU, 1), (signal.SIGTTIN, 2)):
                trial.moment(load)
                server.send(number)
                trial.wait_until_all_serve(workers)
        trial.expect(server.stop(), 0, "exit status")


def recycles(trial: Trial) -> None:
    """Workers that gunicorn replaces every 100 requests or so."""
    with trial.serving() as server:
        with trial.load(700):
            pass
        trial.wait_until_all_serve()
        trial.expect(server.stop(), 0, "exit status")
    recycled = trial.service.output.count("Autorestarting worker")
    # The others look once a second whether they have served enough, and may be through with all of it by then.
    if recycled < 2 and trial.shape.worker_class in ("sync", "gthread"):
        trial.troubles.append(f"only {recycled} workers were recycled")
    if isinstance(trial.collector, Receiver):
        instances = {resource.get("service.instance.id") for resource in trial.collector.resources()}
        trial.expect(len(instances), 1, "number of instance ids")


def workers_killed(trial: Trial, kills: int = 10) -> None:
    """SIGKILL to one worker after the other."""
    with trial.serving() as server:
        with trial.load(4000, pace_s=0.01) as load:
            for _ in range(kills):
                trial.narrow_moment(load)
                server.wait_for(lambda: len(server.workers()) == trial.shape.workers, "all workers")
                kill(trial.random.choice(server.workers()))
            trial.wait_until_all_serve()
            load.more(50)
            load.stop()
        trial.expect(server.stop(), 0, "exit status")


def lead_killed(trial: Trial, kills: int = 4) -> None:
    """SIGKILL to whoever leads: any time, between commit and what follows, and in the middle of an export."""
    with trial.serving() as server:
        with trial.load(4000, pace_s=0.01) as load:
            for turn in range(kills):
                pid = trial.lead()
                if turn % 2 and isinstance(trial.collector, Receiver):
                    pid = trial.kill_lead_at_export()
                else:
                    trial.narrow_moment(load)
                    kill(pid)
                trial.lead(but=pid)
            trial.wait_until_all_serve()
            load.more(50)
            load.stop()
        trial.expect(server.stop(), 0, "exit status")


def all_killed(trial: Trial, kills: int = 2) -> None:
    """SIGKILL to the whole service, which is started again; the last time it ends in order."""
    with trial.load(4000, pace_s=0.01) as load:
        for _ in range(kills):
            with trial.serving() as server:
                load.more(20)
                trial.narrow_moment(load)
                kill_all(server)
        with trial.serving() as server:
            load.more(100)
            load.stop()
            server.wait_for(lambda: not load.is_alive(), "the end of the clients")
            trial.expect(server.stop(), 0, "exit status")


def left_behind(trial: Trial) -> None:
    """SIGKILL to the whole service, which is not started again: a report counts what is left."""
    with trial.load(1000) as load, trial.serving() as server:
        trial.moment(load, 50, 300)
        kill_all(server)
        load.stop()
    trial.subject.recover(trial.directory)


def forks_killed(trial: Trial, kills: int = 5) -> None:
    """SIGKILL to workers whose requests fork."""
    with trial.serving() as server:
        with trial.load(1000, kinds=(*FORKING, *KINDS)) as load:
            for _ in range(kills):
                trial.moment(load, 5, 30)
                server.wait_for(server.workers, "a worker")
                kill(trial.random.choice(server.workers()))
            trial.wait_until_all_serve()
            load.more(20)
            load.stop()
        trial.expect(server.stop(), 0, "exit status")


def forks(trial: Trial) -> None:
    """Requests that fork, by os.fork, by multiprocessing and by subprocess with preexec_fn."""
    with trial.serving() as server:
        with trial.load(90, kinds=(*FORKING, KINDS[0])):
            pass
        trial.expect(server.stop(), 0, "exit status")


#: Name, function, and what it changes of the shape that it is run in.
ROWS: dict[str, tuple[Row, Callable[[Shape], Shape]]] = {
    "SIGTERM": (partial(ends_by, signal.SIGTERM), lambda shape: shape),
    "SIGINT": (partial(ends_by, signal.SIGINT), lambda shape: shape),
    "SIGQUIT": (partial(ends_by, signal.SIGQUIT), lambda shape: shape),
    "SIGHUP": (reloads, lambda shape: shape),
    "SIGUSR2": (upgrades, lambda shape: shape),
    "SIGTTIN and SIGTTOU": (scales, lambda shape: shape),
    "max_requests": (
        recycles,
        lambda shape: replace(shape, gunicorn={"max_requests": "100", "max_requests_jitter": "20"}),
    ),
    "worker SIGKILLed": (workers_killed, lambda shape: replace(shape, workers=3)),
    "lead SIGKILLed": (lead_killed, lambda shape: replace(shape, workers=3)),
    "all SIGKILLed, started again": (all_killed, lambda shape: shape),
    "all SIGKILLed, then a report": (left_behind, lambda shape: shape),
    "SIGUSR2 and SIGHUP": (partial(upgrades, reload=True), lambda shape: shape),
    "fork": (forks, lambda shape: shape),
    "fork, worker SIGKILLed": (forks_killed, lambda shape: replace(shape, workers=3)),
}
