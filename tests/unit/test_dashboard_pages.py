"""Pages of the dashboard on real stores: what they show, what they link to, and what they say where nothing is."""

from __future__ import annotations

import copy
import os
import pickle
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest

from paste_agent.aggregate import LOAD_DURATION, REQUEST_DURATION, Delta, canonical
from paste_agent.dashboard import site as module
from paste_agent.recorder import layout
from paste_agent.settings import SIGNALS
from paste_agent.store import schema
from paste_agent.store.store import PostmortemRow, Store
from tests.commands import count, filled
from tests.dashboard_data import NOW, SLOT, TRACE, fill, trace_row
from tests.dashboards import PAGES, Browser, Page, dashboard_of, sound
from tests.kept import one
from tests.recorders import MS, die, in_flight, leading, open_recorder, serve, settings_of, since

#: Breaks out of text, of attributes, of scripts, of comments; turns the direction of what follows; ends nothing.
HOSTILE = (
    "</title></svg><script>alert('1')</script><img src=x onerror=\"alert(2)\">&lt;b&gt;--> \u202e{{7*7}}\x00\ud800"
)
SEEN = HOSTILE.replace("\u202e", "\ufffd").replace("\x00", "\ufffd").replace("\ud800", "\ufffd")
STORABLE = HOSTILE.replace("\ud800", "")


@pytest.fixture
def site(store: Store) -> Browser:
    fill(store)
    return Browser(dashboard_of(store.path))


def addresses(trace: str) -> list[str]:
    """Every kind of page, in every order, about everything that `fill` has made."""
    sorts = ("time", "name", "requests", "errors", "p50", "p95", "p99", "max", "apdex")
    return [
        *PAGES,
        *(f"/transactions?sort={sort}" for sort in sorts),
        *(f"/queries?sort={sort}" for sort in ("time", "count", "errors", "p50", "p95", "max", "name")),
        "/transaction?method=GET&route=/items",
        "/traces?order=slowest&failed=1&slower=0.1&why=slow",
        f"/trace/{trace}",
        f"/trace/{trace}?all=1",
        *(f"/?range={word}" for word in ("15m", "6h", "24h", "7d", "30d", "90m")),
        f"/workers?from={SLOT - 60}&to={SLOT + 60}",
        f"/errors?from={SLOT - 300 * 86_400}",
    ]


# -- what they show ------------------------------------------------------------------------------------------------


def test_pages_of_a_service_that_was_measured(tmp_path: Path) -> None:
    """From requests that real recorders have counted to the pages."""
    recorder = open_recorder(tmp_path, keep_all=True)
    for _ in range(3):
        serve(recorder, "/items/1", route="/items/{id}")
    serve(recorder, "/old", route="/old", status="500 Oh no")
    recorder.set_word(layout.W_SERVING, 1)
    with leading(tmp_path) as lead:
        time.sleep(0.15)  # records that are younger than a tenth of a second are left to the next drain
        lead.drain()
        in_flight(recorder, since(3), path=b"/stuck")
        die(recorder)
        lead.patient = False
        lead.drain()
    found = settings_of(tmp_path)
    site = Browser(dashboard_of(None, found))
    overview = site.get("/")
    assert "In trouble" in overview.text
    assert "1 worker lost" in overview.text
    assert overview.all("span", "service")[0].text == "shop"
    rows = [one.text for one in site.get("/transactions").all("tr")]
    assert any(row.startswith("GET /items/{id}3") for row in rows)
    assert "status 500" in site.get("/errors").text
    workers = site.get("/workers")
    (account,) = {link for link in workers.links() if link.startswith("/postmortem/")}
    told = site.get(account.partition("?")[0])
    assert "GET /stuck" in told.text
    assert "no mark of an orderly end" in told.text
    assert "runtime_dir" in site.get("/agent").text
    traces = [link for link in site.get("/traces").links() if link.startswith("/trace/")]
    assert len(traces) == 5  # and the one that its worker died over
    headings = [site.get(link).all("h2")[0].text for link in traces]
    assert sorted(headings) == ["GET", *["GET /items/{id}"] * 3, "GET /old"]


def test_every_link_of_every_page_leads_somewhere(site: Browser) -> None:
    waiting, seen = {"/"}, set()
    while waiting:
        address = waiting.pop()
        seen.add(address)
        page = site.get(address)
        found = {link for link in page.links() if link.startswith("/")}
        # One span of time is enough: ranges lead to the same pages.
        waiting |= {link for link in found if "range=1h" in link and "sort=" not in link and "postm" not in link} - seen
    paths = {address.partition("?")[0] for address in seen}
    assert {*PAGES, "/transaction"} <= paths
    assert any(path.startswith("/trace/") for path in paths)


def test_a_span_of_time_goes_along_with_links(site: Browser) -> None:
    page = site.get(f"/transactions?from={SLOT - 600}&to={SLOT + 60}")
    inner = [link for link in page.links() if link.startswith("/") and "range=" not in link]
    assert len(inner) > len(PAGES)
    assert all(f"from={SLOT - 600}&to={SLOT + 60}" in link for link in inner)


def test_transactions_are_sorted(store: Store) -> None:
    for route, durations in {"/a": [50 * MS], "/b": [10 * MS] * 9, "/c": [20 * MS] * 2}.items():
        count(store, REQUEST_DURATION, {"http.request.method": "GET", "http.route": route}, *durations, at=SLOT)
    site = Browser(dashboard_of(store.path))

    def order(sort: str) -> str:
        page = site.get(f"/transactions?sort={sort}")
        return "".join(one.text[-1] for one in page.all("th") if one.attributes.get("scope") == "row")

    assert (order("time"), order("name"), order("requests"), order("p95")) == ("bac", "abc", "bca", "acb")
    chosen = [one.text for one in site.get("/transactions?sort=p95").all("th") if one.attributes.get("aria-sort")]
    assert chosen == ["p95"]
    assert order("time&q=/B") == "b"


def test_statuses_of_one_transaction(site: Browser) -> None:
    page = site.get("/transaction?method=GET&route=word")
    answers = [one.text for one in page.all("tr") if one.text.startswith(("200", "500"))]
    assert [answer[:3] for answer in answers] == ["200", "500"]
    assert "91" in page.all("dd")[0].text  # 90 and the one that failed
    assert "database" in page.text


def test_traces_are_filtered_and_come_in_pages(store: Store) -> None:
    store.add_traces(
        [trace_row(number, text=f"/path/{number}", failed=number % 2 == 0) for number in range(1, 121)], NOW
    )
    site = Browser(dashboard_of(store.path))

    def shown(address: str) -> list[int]:
        rows = [link for link in site.get(address).links() if link.startswith("/trace/")]
        return [int(link[7:].partition("?")[0][-2:], 16) for link in rows]

    first = site.get("/traces")
    assert shown("/traces") == list(range(1, 51))
    assert "120 kept transactions" in first.text
    (older,) = [link for link in first.links() if "before=" in link]
    assert shown(older) == list(range(51, 101))
    (oldest,) = [link for link in site.get(older).links() if "before=" in link]
    assert shown(oldest) == list(range(101, 121))
    assert shown("/traces?q=path/77") == [77]
    assert shown("/traces?slower=1.995") == [1, 2, 3, 4, 5]
    assert shown("/traces?failed=1&slower=1.995") == [2, 4]
    assert shown("/traces?order=slowest&slower=1.998") == [1, 2]
    assert shown("/traces?why=random") == []
    assert shown("/traces?method=GET&route=/nothing") == []
    assert shown(f"/traces?q={TRACE[:30]}4d") == [77]


def test_one_trace_from_within(store: Store) -> None:
    spans = [one("list", 0, 50 * MS, category="function"), *[
        one("SELECT a", place * 5 * MS, 5 * MS, parent="list", id=f"s{place}",
            attributes={"db.query.text": "SELECT a FROM b WHERE c = ?"})
        for place in range(8)
    ]]  # fmt: skip
    store.add_traces([trace_row(1, spans=spans)], NOW)
    site = Browser(dashboard_of(store.path))
    trace = f"/trace/{TRACE[:30]}01"
    page = site.get(trace)
    assert "SELECT a ×8" in page.text
    assert "SELECT a FROM b WHERE c = ?" in page.text
    assert len(page.all("svg", "timeline")) == 3
    (whole,) = [link for link in page.links() if "all=1" in link]
    assert len(site.get(whole).all("svg", "timeline")) == 10
    assert site.get(trace[:-4]).all("h1")[0].text == page.all("h1")[0].text  # a beginning is enough


def test_frames_of_the_application_are_marked(store: Store) -> None:
    stack = '  File "/shop/<views>.py", line 3, in order\n    wait()\n  File "/lib/time.py", line 7, in wait\n    s()\n'
    own = ["/shop/<views>.py"]
    store.add_traces([trace_row(1, exception={"type": "E", "stacktrace": stack}, own_files=own)], NOW)
    summary = {"requests": [{"method": "GET", "path": "/slow", "stack": stack}], "own_files": own}
    store.commit_drain(Delta(), [], {}, 100, [PostmortemRow("7-aa", NOW - 60, "timeout", summary)])
    site = Browser(dashboard_of(store.path))
    for path in (f"/trace/{TRACE[:30]}01", "/postmortem/7-aa"):
        page = site.get(path)
        assert [one.text for one in page.all("mark")] == ['File "/shop/<views>.py", line 3, in order', "wait()"]
        assert stack.rstrip() in [one.text for one in page.all("pre")]
    assert "/shop/<views>.py:3 in order" in site.get("/workers").text


def test_a_layer_that_was_not_timed_has_no_figures(store: Store) -> None:
    count(store, LOAD_DURATION, {"paste.layer": "site"}, 5 * MS, at=SLOT)
    (figures,) = Browser(dashboard_of(store.path)).get("/layers").all("tbody")
    assert figures.text == "site" + 5 * "–" + "5 ms"


def test_deployments_are_marked_on_every_chart(site: Browser) -> None:
    page = site.get("/")
    over_time = [one for one in page.all("figure") if "data-chart" in one.attributes]
    marks = [one.text for one in page.all("title") if "figure" in one.inside]
    assert marks == ["deployed word word"] * len(over_time)


def test_settings_are_shown_and_secrets_are_not(tmp_path: Path, store: Store) -> None:
    fill(store)
    found = settings_of(
        tmp_path, endpoint="http://me:hunter2hunter2@127.0.0.1:1/?key=hunter2", headers="x-api-key=hunter2hunter2",
        access_token="hunter2hunter2hunter2",
    )  # fmt: skip
    page = Browser(dashboard_of(None, found)).get("/agent")
    assert "x-api-key=***" in page.text
    assert "hunter2" not in page.html
    assert "traces, metrics, logs" in page.text
    assert "Raise ring_records" in page.text


@pytest.mark.parametrize(
    ("keys", "told", "untold"),
    [
        ({}, "No endpoint is set", "traces that wait"),
        ({"endpoint": "http://127.0.0.1:1"}, "traces, metrics, logs", "No endpoint"),
        ({"endpoint": "http://127.0.0.1:1", "logs_exporter": "none"}, "traces that wait", "logs, "),
        ({"endpoint": "http://127.0.0.1:1", "traces_exporter": "none", "logs_exporter": "none"}, "sent", "that wait"),
        ({f"{signal}_exporter": "none" for signal in SIGNALS}, "No signal has an exporter", "No endpoint"),
    ],
)
def test_what_is_sent_is_told(tmp_path: Path, store: Store, keys: dict[str, str], told: str, untold: str) -> None:
    fill(store)
    page = Browser(dashboard_of(None, settings_of(tmp_path, **keys))).get("/agent")
    (section,) = [one.text for one in page.all("section") if one.text.startswith("Export")]
    assert told in section
    assert untold not in section


# -- where nothing is ----------------------------------------------------------------------------------------------


def test_an_empty_store_says_what_to_do(store: Store) -> None:
    site = Browser(dashboard_of(store.path))
    for path in PAGES:
        site.get(path)
    assert "No request was measured yet" in site.get("/").text
    assert "Not serving" in site.get("/").text
    assert "No trace was kept" in site.get("/traces").text
    assert "No query was seen" in site.get("/queries").text


def test_a_span_without_requests_leads_to_the_last_ones(store: Store) -> None:
    before = SLOT - 86_400
    count(store, REQUEST_DURATION, {"http.request.method": "GET", "http.route": "/a"}, MS, at=before)
    site = Browser(dashboard_of(store.path))
    (link,) = [link for link in site.get("/").links() if "from=" in link]
    assert "GET /a" in site.get(link).text


@pytest.mark.parametrize("path", [*PAGES, "/transaction?method=GET&route=/a"])
def test_no_store_yet(tmp_path: Path, path: str) -> None:
    page = Browser(dashboard_of(None, settings_of(tmp_path))).get(path)
    assert "Nothing was measured yet of shop" in page.text
    assert not os.path.exists(tmp_path / "shop.sqlite")
    assert "send it a request" in Browser(dashboard_of(str(tmp_path / "other.sqlite"))).get(path).text


def test_a_store_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "shop.sqlite"
    path.write_bytes(b"no database at all" * 1000)
    assert "cannot be opened" in Browser(dashboard_of(str(path))).get("/", 503).text
    with closing(sqlite3.connect(tmp_path / "other.sqlite")) as db:
        db.execute("CREATE TABLE a (b)")
    assert "not a store" in Browser(dashboard_of(str(tmp_path / "other.sqlite"))).get("/", 503).text


def test_a_store_whose_tables_are_broken(store: Store) -> None:
    fill(store)
    with store.transaction() as db:
        db.execute("DROP TABLE traces")
    site = Browser(dashboard_of(store.path))
    assert "cannot be read just now" in site.get("/traces", 503).text
    assert "GET word" in site.get("/transactions").text


@pytest.mark.parametrize("version", range(1, schema.VERSION))
def test_a_store_of_an_older_agent_is_read_as_it_is(tmp_path: Path, version: int) -> None:
    path = tmp_path / "old.sqlite"
    with closing(sqlite3.connect(path)) as db:
        for step in range(version):
            db.executescript(schema._STEPS[step])
        db.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {version}")
        attributes = canonical({"http.request.method": "GET", "http.route": "/items"})
        db.execute("INSERT INTO series VALUES (1, ?, ?)", (REQUEST_DURATION, attributes))
        db.execute("INSERT INTO rollups VALUES (?, 10, 1, 5, 5000, 1000, 5, 0, 0, x'')", (SLOT,))
        db.commit()
    site = Browser(dashboard_of(str(path)))
    for address in PAGES:
        site.get(address)
    assert "GET /items" in site.get("/").text
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (version,)


def test_nothing_is_written(store: Store, site: Browser) -> None:
    before = list(store._db.iterdump())
    for address in addresses(TRACE[:30] + "01"):
        site.ask(address)
    assert list(store._db.iterdump()) == before


# -- addresses that say something wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("/?range=1x", "expected a length of time such as 15m"),
        ("/?range=0h", "expected a length of time"),
        ("/?range=9999999d", "expected a length of time"),
        ("/?range=99999d", "expected a length of time"),
        ("/?to=5", "`to` needs a `from`"),
        ("/?from=x", "expected a time of UTC"),
        ("/?from=nan", "expected a time of UTC"),
        ("/?from=-5", "expected a time of UTC"),
        ("/?from=1e9", "expected a time of UTC"),
        ("/?from=9999999999999", "expected a time of UTC"),
        ("/?from=2026-02-30", "expected a time of UTC"),
        ("/?from=0001-01-01T00:00%2B23:59", "expected a time of UTC"),
        ("/?from=2000000000&to=1000000000", "expected a time before to"),
        ("/?from=9000000000", "expected a time before now"),
        ("/?from=1000000000&to=1900000000", "more than 400 days"),
        ("/transactions?sort=colour", "expected time, name"),
        ("/queries?sort=apdex", "expected time, count"),
        ("/transaction", "expected the method of a request"),
        ("/transaction?route=/a", "expected the method of a request"),
        ("/traces?order=best", "expected newest or slowest"),
        ("/traces?why=because", "expected"),
        ("/traces?slower=-1", "expected a number from 0"),
        ("/traces?slower=inf", "expected a number from 0"),
        ("/traces?failed=yes", "expected 0 or 1"),
        ("/traces?before=1", "expected what the link"),
        ("/traces?before=99999999999999999999-0102030405060708", "expected what the link"),
        ("/traces?q=" + "x" * 1001, "longer than 1,000 characters"),
        ("/?" + "&".join(f"a{place}=1" for place in range(41)), "more than 40 fields"),
        ("/?range=%3Cscript%3E", "range = '<script>'"),
    ],
)
def test_wrong_addresses(site: Browser, address: str, words: str) -> None:
    assert words in site.get(address, 400).text


@pytest.mark.parametrize(
    "path",
    ["/nowhere", "/traces/", "/transaction/x", "/trace/", "/trace/xyz", "/trace/0a", f"/trace/{'0' * 32}",
     "/trace/%ff%fe", "/postmortem/nobody", "/postmortem/", "/postmortem/..%2f..", "/%00", "/<script>"],
)  # fmt: skip
def test_what_there_is_not(site: Browser, path: str) -> None:
    site.get(path, 404)


def test_a_time_may_be_written_as_people_do(site: Browser) -> None:
    for text in (
        "2026-01-01T10:00",
        "2026-01-01 10:00",
        "2026-01-01T10:00:00Z",
        "2026-01-01T11:00:00+01:00",
        "1767261600",
    ):
        page = site.get("/?" + urlencode({"from": text, "to": "2026-01-01T12:00"}))
        assert page.all("input")[0].attributes["value"] == "2026-01-01T10:00"


# -- somebody else's words -------------------------------------------------------------------------------------------


@pytest.fixture
def hostile(store: Store) -> Browser:
    fill(store, STORABLE)
    return Browser(dashboard_of(store.path))


@pytest.mark.parametrize("address", addresses(TRACE[:30] + "02"), ids=lambda address: address.partition("?")[0])
def test_hostile_words_are_words(hostile: Browser, address: str) -> None:
    hostile.get(address)  # which fails for a page that they have changed


@pytest.mark.parametrize(
    "address",
    ["/", "/transactions", "/errors", "/queries", "/calls", "/layers", "/traces", f"/trace/{TRACE[:30]}02"],
)
def test_hostile_words_are_shown_as_they_are(hostile: Browser, address: str) -> None:
    assert "</title></svg><script>alert('1')</script>" in hostile.get(address).text


def test_hostile_routes_are_linked_and_found(hostile: Browser) -> None:
    links = [link for link in hostile.get("/transactions").links() if link.startswith("/transaction?")]
    assert len(links) == 3
    for link in links:
        assert "Nothing of this transaction" not in hostile.get(link).text


@pytest.mark.parametrize(
    "name", ["q", "sort", "range", "from", "order", "why", "method", "route", "task", "before", "token"]
)
@pytest.mark.parametrize("path", ["/", "/transactions", "/transaction", "/traces"])
def test_hostile_fields(hostile: Browser, path: str, name: str) -> None:
    response = hostile.ask(f"{path}?" + urlencode({name: SEEN}))
    assert response.status_int in (200, 400)
    hostile.get(f"{path}?" + urlencode({name: SEEN}), response.status_int)


@pytest.mark.parametrize(
    "query", ["%ff%fe=%ff", "a=%", "=", "&&&", "range", "q=%00", "\xff=\xff", "q=" + "%F0%9F%92%A9" * 9]
)
def test_queries_that_are_none(hostile: Browser, query: str) -> None:
    response = hostile.ask("/traces", QUERY_STRING=query)
    assert response.status_int in (200, 400)


def test_columns_of_another_kind_than_expected(store: Store) -> None:
    """A store that somebody has written into by hand."""
    fill(store)
    odd: list[object] = ["text", [1], {"a": 1}, None, -1, 1e300, True]
    for place, value in enumerate(odd, start=10):
        detail = dict.fromkeys(("attributes", "spans", "findings", "errors", "exception", "parts", "postmortem"), value)
        nested = {
            "spans": [value, {"id": value, "parent": value, "start": value, "duration": value, "attributes": value}],
            "findings": [{"kind": value, "text": value, "count": value, "duration": value, "code": value}],
            "errors": [{"type": value, "place": value}], "parts": {"database": value},
            "exception": {"type": value, "message": value, "stacktrace": value},
            "attributes": {"url.path": value, "code.stacktrace": value, "paste.layers": value},
            "postmortem": {"id": value, "text": value},
        }  # fmt: skip
        store.add_traces([trace_row(place, **detail), trace_row(place + 50, **nested)], NOW)
    site = Browser(dashboard_of(store.path))
    for address in PAGES:
        site.get(address)
    for place, _ in enumerate(odd, start=10):
        site.get(f"/trace/{TRACE[:30]}{place:02x}")
        site.get(f"/trace/{TRACE[:30]}{place + 50:02x}")


# -- mounted, and faults -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["/inside", "/a/b", "/w%20x/é".encode().decode("latin-1")])
def test_below_a_prefix(store: Store, prefix: str) -> None:
    fill(store)
    site = Browser(dashboard_of(store.path), prefix)
    shown = quote(prefix.encode("latin-1"))
    for address in addresses(TRACE[:30] + "01"):
        response = site.ask(address)
        sound(Page(response.text), shown)
    moved = site.ask("")
    assert (moved.status_int, moved.headers["Location"]) == (303, f"{shown}/")


def test_a_fault_is_told_by_a_number_that_the_log_has(
    site: Browser, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(view: object) -> None:
        raise KeyError("the secret of the page")

    monkeypatch.setitem(module._PAGES, "/calls", broken)
    page = site.get("/calls", 500)
    assert "secret" not in page.html
    number = page.all("code")[0].text
    assert number in caplog.text
    assert "the secret of the page" in caplog.text


def test_an_instance_is_passed_on_to_children(tmp_path: Path) -> None:
    """Servers fork after the application is made: nothing in it may be open, or a lock."""
    with filled(tmp_path) as opened:
        application = dashboard_of(opened.path)
        assert Browser(application).ask("/").status_int == 200
        assert vars(pickle.loads(pickle.dumps(application))).keys() == vars(copy.deepcopy(application)).keys()
