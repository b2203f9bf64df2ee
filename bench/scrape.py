"""What a scrape costs, and how long another thread of the worker waits for the interpreter meanwhile.

    python bench/scrape.py [SERIES]     2000 when not given

The other thread sleeps for 0.2 ms again and again, as one that serves waits for its socket. What it sleeps longer is
how long it waited: for the processor, and while a scrape is written for the interpreter.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Iterator

from paste_agent import scrape
from paste_agent.aggregate import REQUEST_DURATION, Delta, canonical
from paste_agent.store.store import Store

NAP_S = 0.0002


def fill(path: str, series: int) -> None:
    """A store with that many routes, none of whose figures are alike."""
    delta = Delta()
    for route in range(series):
        attributes = {
            "http.request.method": "GET",
            "http.response.status_code": 200,
            "http.route": f"/items/of/some/kind/{route}/{{id}}",
            "network.protocol.version": "1.1",
            "url.scheme": "http",
        }
        total = delta.at((REQUEST_DURATION, canonical(attributes)), 0)
        for number in range(20):
            total.observe(10 ** (3 + number * route % 7) * (number + route + 1))
    store = Store(path)
    store.instance_id("bench")
    store.commit_drain(delta, [], {}, series)
    store.close()


@contextlib.contextmanager
def another_thread() -> Iterator[list[float]]:
    """How much longer than NAP_S each of its naps took, s."""
    waits: list[float] = []
    done = threading.Event()

    def serve() -> None:
        while not done.is_set():
            began = time.perf_counter()
            time.sleep(NAP_S)
            waits.append(time.perf_counter() - began - NAP_S)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield waits
    finally:
        done.set()
        thread.join()


def row(what: str, waits: list[float], rest: str) -> None:
    waits.sort()
    mean_ms, p99_ms = sum(waits) / len(waits) * 1e3, waits[len(waits) * 99 // 100] * 1e3
    print(f"{what:28}  waits: mean {mean_ms:6.2f} ms, p99 {p99_ms:6.2f} ms  {rest}")


def main(series: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "store.sqlite")
        fill(path, series)
        began = time.perf_counter()
        scrape.import_needed()
        print(f"import: {time.perf_counter() - began:.2f} s")
        from paste_agent.exporters.prometheus import Breath

        with another_thread() as waits:
            time.sleep(1)
        row("alone", waits, "")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for as_openmetrics in (False, True):
            for slice_s in (Breath.SLICE_S, float("inf")):
                breath = Breath()
                breath.SLICE_S = slice_s
                with another_thread() as waits:
                    cpu = time.thread_time()
                    parts = scrape.render(scrape.Source(None, path), as_openmetrics=as_openmetrics, breath=breath)
                    size = sum(map(len, parts))
                    cpu = time.thread_time() - cpu
                name = f"{'OpenMetrics' if as_openmetrics else 'text'}, {'no pauses' if slice_s > 1 else 'pauses'}"
                row(name, waits, f"{cpu:.2f} s of CPU, {size / 1e6:.1f} MB")
        print(f"memory, at most: {(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024:.0f} MiB")


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 2000)
