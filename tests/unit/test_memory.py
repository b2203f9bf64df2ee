"""Memory of a service that never stops: flat, whatever it is asked and however often."""

from __future__ import annotations

import os
from pathlib import Path

from tests.recorders import run_script

#: Fewer on a host where ten million take more than half a minute.
RECORDS = int(os.environ.get("MEMORY_TEST_RECORDS", "10000000"))

RSS = """
import gc

def kib(*names):
    with open('/proc/self/status') as file:
        return sum(int(line.split()[1]) for line in file if line.split(':')[0] in names)

def rss():
    gc.collect()
    return kib('VmRSS') - kib('RssShmem', 'RssFile')  # the ring is mapped once and for all
"""

#: Fills the ring and drains it, over and over: what a service leaves in months, in less than a minute.
DRAINS = (
    RSS
    + """
import sys, time
from pathlib import Path
from paste_agent.recorder import layout
from tests.recorders import die, leading, open_recorder, requests_of, series_of

directory, records = Path(sys.argv[1]), int(sys.argv[2])
recorder = open_recorder(directory, records=16384)
recorder.set_word(layout.W_SERVING, 1)
series = [series_of(recorder, f'/{route}', status) for route in range(50) for status in ('200 OK', '404 No')]
pack, buffer, ring_at, take = layout.RECORD_BODY.pack_into, recorder.buffer, recorder.ring_at + 32, recorder.next
left = early = 0
with leading(directory) as lead:
    while left < records:
        end_ns = time.perf_counter_ns() - 200_000_000
        for place in range(min(16_000, records - left)):
            number = take()
            duration_ns = 1_000_000 + (place * 7919 & 0xFFFFFFF)
            pack(buffer, ring_at + (number & 16383) * 64, series[place % 100], 0, place & 1023,
                 end_ns - duration_ns, duration_ns, number + 1)
        left = number + 1
        assert lead.drain() + left - number - 1 > 0
        if not early and left >= records // 10:
            early = rss()
    while lead.drain():
        pass
    counts = requests_of(lead.store)
    assert sum(counts.values()) == records, (sum(counts.values()), records)
    assert len(counts) == 100
    (row,) = lead.store.recorders()
    assert (row.requests, row.position) == (records, records)
    print(rss() - early)
die(recorder)
"""
)

#: Requests through the filter and its reporter, every one of another path, half of them under a route of its own.
SERVES = (
    RSS
    + """
import sys, time
from pathlib import Path
from paste_agent import filter, lifecycle
from paste_agent.store.store import Store
from tests.recorders import count_of, environ_of

directory, paths = Path(sys.argv[1]), int(sys.argv[2])

def application(environ, start_response):
    path = environ['PATH_INFO']
    if len(path) % 2:
        environ['paste_agent.route'] = path
    start_response('404 Not Found' if path[-1] == '4' else '200 OK', [])
    return [b'x']

keys = {'service_name': 'shop', 'store': str(directory / 'shop.sqlite'), 'runtime_dir': str(directory),
        'ring_records': '131072'}
wrapped = filter.main(application, {'__file__': str(directory / 'shop.ini')}, **keys)

def serve(place):
    path = '/%d%s' % (place, 'x' * (place % 37))
    body = wrapped(environ_of(path, HTTP_USER_AGENT=f'agent {place}', QUERY_STRING=f'q={place}'),
                   lambda status, headers, exc_info=None: None)
    for _ in body:
        pass
    body.close()

def rest():
    # The reporter's turn: it drains once a second.
    deadline = time.monotonic() + 30
    recorder = next(iter(lifecycle._agents.values())).serving
    while recorder.word(2) < recorder.last + 1 and time.monotonic() < deadline:
        time.sleep(0.1)

for place in range(paths // 4):
    serve(place)
rest()
early = rss()
for place in range(paths // 4, paths):
    serve(place)
rest()
late = rss()
lifecycle._finish_all()
store = Store(str(directory / 'shop.sqlite'), read_only=True)
assert count_of(store) == paths, count_of(store)
assert len(store.totals()) < 2100
store.close()
print(late - early)
"""
)


#: The same with spans and errors of which no two are alike: statements, services that are called, places, layers.
SPANS = SERVES.replace(
    "def application(environ, start_response):\n",
    """from paste_agent.inside import CALL, DATABASE
from paste_agent.recorder import layout
from paste_agent.spans import begin, end, headers_of, span

def application(environ, start_response):
    place = environ['PATH_INFO'].rstrip('x')
    for category, key in (
        (DATABASE, (layout.KIND_DATABASE, ('sqlite', None, 'SELECT', place, f'SELECT {place}', None))),
        (CALL, (layout.KIND_CALL, ('GET', f'{place}.example', '80', '200', None))),
    ):
        begun = begin(category, place.encode())
        if category == CALL:
            headers_of(begun)
        with span(place):
            pass
        end(begun, place, key, None, {'db.query.text': f'SELECT {place}'})
    if place[-1] == '7':
        environ['paste_agent.transaction'].note(type(f'E{place[1:]}', (Exception,), {})())
""",
).replace("len(store.totals()) < 2100", "len({one.metric for one in store.totals()}) > 5")


def test_millions_of_records_take_no_more_memory_than_the_first(tmp_path: Path) -> None:
    grown_kib = int(run_script(DRAINS, tmp_path, RECORDS, timeout_s=600))
    assert grown_kib < 2048, f"{grown_kib} KiB more"


def test_a_hundred_thousand_paths_take_no_more_memory_than_the_first(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    grown_kib = int(run_script(SERVES, tmp_path, 100_000, timeout_s=300))
    assert grown_kib < 2048, f"{grown_kib} KiB more"


def test_spans_that_never_repeat_take_no_more_memory_than_the_first(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    grown_kib = int(run_script(SPANS, tmp_path, 40_000, timeout_s=300))
    assert grown_kib < 2048, f"{grown_kib} KiB more"
