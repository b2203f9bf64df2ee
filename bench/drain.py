"""Records a second that the lead drains and aggregates, on one core.

    python bench/drain.py [--records 200000] [--rounds 9] [--json]

`fold` is Folder.fold alone, in chunks as the lead reads them, over a ring that has been read into memory before.
`drain` is everything that a drain does: Lead.drain over a recorder's file, reading, folding and the commit to a store
on disk with all of its series included, until the ring is empty. The rings are filled beforehand; that is not measured.

Each is measured with one series and with many (40 routes, 3 statuses each), durations log-normal around 30 ms, all
within one minute. A figure is the median of all rounds, in CPU time of the thread; the spread is from the slowest
round to the fastest.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from paste_agent import settings
from paste_agent.aggregate import Apdex, Delta, Folder
from paste_agent.lead import Lead
from paste_agent.recorder import layout
from paste_agent.recorder.reader import Reader
from paste_agent.recorder.writer import Recorder
from paste_agent.sampler import Sampler
from paste_agent.store.store import Store

CHUNK = 512
STATUSES = ("200 OK", "404 Not Found", "500 Internal Server Error")
BUDGET = 500_000  # records a second


def recorder_in(directory, records):
    sampler = Sampler(slow_ns=1 << 60, parent=0, random=0, slow=0, failed=0, seed=1)
    size = 1 << records.bit_length()
    return Recorder(
        directory=directory, service="bench", records=size, max_series=2000, sampler=sampler, on_fault=print
    )


def fill(recorder, records, routes):
    """Leave so many records, as requests that ended during the last minute would have."""
    draw = random.Random(1)
    series = [
        recorder.intern_server(("GET", status, f"/route/{route}/{{id}}", None, "http", "HTTP/1.1"))
        for route in range(routes)
        for status in (STATUSES if routes > 1 else STATUSES[:1])
    ]
    durations = [round(draw.lognormvariate(17.2, 1)) for _ in range(4096)]
    began = time.perf_counter_ns() - 60_000_000_000
    step = 59_000_000_000 // records
    for place in range(records):
        number = recorder.last = recorder.next()
        duration = durations[place & 4095]
        layout.RECORD_BODY.pack_into(
            recorder.buffer,
            recorder.ring_at + number % recorder.records * layout.RECORD_SIZE + layout.RECORD_BODY_AT,
            series[place % len(series)],
            0,
            0,
            began + place * step - duration,
            duration,
            number + 1,
        )


def fold(records, routes):
    """CPU seconds of folding a ring that is in memory."""
    recorder = recorder_in(None, records)
    fill(recorder, records, routes)
    reader = Reader(recorder.id, recorder.read, recorder.write, -1)
    chunks = [(at, reader.chunk(at, min(CHUNK, records - at))) for at in range(0, records, CHUNK)]
    folder, delta = Folder(reader, Apdex(0.5)), Delta()
    ready_ns, offset_ns = time.perf_counter_ns(), time.time_ns() - time.perf_counter_ns()
    began = time.thread_time()
    for at, data in chunks:
        folder.fold(delta, data, at, ready_ns, offset_ns)
    took = time.thread_time() - began
    assert sum(total.count for total in delta.totals.values()) == records
    recorder.detach()
    return took


def drain(records, routes):
    """CPU seconds of a lead that drains a recorder's file into a store on disk."""
    with tempfile.TemporaryDirectory(prefix="bench-drain-") as directory:
        recorder = recorder_in(directory, records)
        fill(recorder, records, routes)
        path = os.path.join(directory, "bench.sqlite")
        configured = settings.load({"service_name": "bench", "store": path}, {}, {})
        lead = Lead(configured, Store(path), directory, [], lambda kind, message: print(message, file=sys.stderr))
        drained = 0
        began = time.thread_time()
        while drained < records:
            drained += lead.drain()
        took = time.thread_time() - began
        lead.close()
        recorder.detach()
        return took


SUBJECTS = {
    "fold, one series": (fold, 1),
    "fold, 120 series": (fold, 40),
    "drain, one series": (drain, 1),
    "drain, 120 series": (drain, 40),
}


def measure(records, rounds):
    """Records a second, every round of each subject; the subjects take turns."""
    figures = {name: [] for name in SUBJECTS}
    for _ in range(rounds):
        for name, (subject, routes) in SUBJECTS.items():
            figures[name].append(records / subject(records, routes))
    return figures


def table(figures):
    print("| subject | records a second | spread | of the budget |")
    print("| --- | ---: | ---: | ---: |")
    for name, values in figures.items():
        median = statistics.median(values)
        print(f"| {name} | {median:,.0f} | {min(values):,.0f} to {max(values):,.0f} | {median / BUDGET:.1f} times |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not 0 < options.records < layout.MAX_RECORDS:
        parser.error(f"--records: expected 1 to {layout.MAX_RECORDS - 1}")
    figures = measure(options.records, options.rounds)
    print(json.dumps(figures, indent=2)) if options.json else table(figures)


if __name__ == "__main__":
    main()
