"""docs/walk.md, walked: the demo as production.ini serves it, its traffic, and the answers on the pages named there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.driving import Browser
from tests.dashboards import PASTE_AGENT, own
from tests.serving import GUNICORN_PASTER, NO_CONTROL_SOCKET_INI, ROOT, run, serve

#: One minute is for people; with this seed the second one that a test takes has every kind of request.
TRAFFIC = [*PASTE_AGENT, "demo-traffic", "--hang", "--seconds", "1", "--rate", "60", "--seed", "152"]
CHANGES = (
    ("port = 8080", f"port = 0\ntimeout = 15\n{NO_CONTROL_SOCKET_INI}"),
    ("slow_s = 2.5", "slow_s = 1"),
    ("service_name = shop", "service_name = shop\nruntime_dir = %(here)s"),
)


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of the demo's dashboard, when the worker has died."""
    directory = tmp_path_factory.mktemp("walk")
    directory.chmod(0o700)
    ini = (ROOT / "production.ini").read_text()
    for old, new in CHANGES:
        assert ini.count(old) == 1
        ini = ini.replace(old, new)
    (directory / "production.ini").write_text(ini)
    with serve([*GUNICORN_PASTER, "production.ini"], cwd=directory) as server:
        status, told, errors = run([*TRAFFIC, server.url], cwd=directory)
        assert (status, errors) == (0, "")
        assert "page that never ends" in told
        server.wait_for_output("was lost, killed by the arbiter")
        with own(directory, "production.ini") as served:
            yield served.url


@pytest.fixture
def overview(browser: Browser, dashboard: str) -> Browser:
    """At the first page, where everything that was sent is shown."""

    def complete() -> bool:
        browser.open(f"{dashboard}?range=15m")
        return "1 worker lost" in browser.text and "GET /report/year" in browser.text

    browser.until(complete, "the minute")
    return browser


def row(browser: Browser, heading: str, *words: str) -> int:
    """The place of the only row with these words, of the table below a heading."""
    found = browser.run(
        "const section = [...document.querySelectorAll('section')].find((one) => one.querySelector('h2').textContent"
        " === arguments[0]);"
        "return [...section.querySelectorAll('tbody tr')].map((one) => one.innerText)",
        heading,
    )
    (place,) = (place for place, text in enumerate(found) if all(word in text for word in words))
    return int(place)


def test_which_route_is_slow_and_why(overview: Browser) -> None:
    assert row(overview, "What takes the time", "GET /report/year") == 0
    assert row(overview, "What takes the time", "GET /report/sales") == 1
    overview.open(overview.link("GET /report/sales"))
    assert row(overview, "Breakdown", "database") == 0
    assert row(overview, "Queries", "WITH RECURSIVE step", "demo/catalogue.py", "in sales") == 0


def test_which_request_failed_and_where(overview: Browser) -> None:
    place = row(overview, "What fails", "KeyError", "'founder'", "/broken")
    trace = overview.run(
        "return [...document.querySelectorAll('section')].find((one) => one.querySelector('h2').textContent"
        " === 'What fails').querySelectorAll('tbody tr')[arguments[0]].querySelector('a').href",
        place,
    )
    overview.open(trace)
    assert overview.find("h1").text.startswith("Trace ")
    assert "KeyError in paste_agent.demo.shop._loyalty_price_cents" in overview.text
    assert "_LOYALTY_DISCOUNTS[tier]" in overview.text


def test_which_query_repeats(overview: Browser) -> None:
    overview.open(overview.link("Queries"))
    words = ("FROM order_lines WHERE product_id = ?", "GET /search", "40", "demo/catalogue.py", "in sold")
    assert row(overview, "N+1 queries", *words) == 0


def test_which_worker_died_and_of_what(overview: Browser) -> None:
    overview.open(overview.link("killed by the arbiter: not a sign of life for 15 s"))
    assert overview.find("h1").text == "Post-mortem"
    text = overview.text
    assert "the arbiter sent SIGABRT" in text
    assert "GET /report/year" in text
    assert "in _year" in text


def test_the_walk_says_what_was_found() -> None:
    walk = (ROOT / "docs" / "walk.md").read_text()
    for words in ("What takes the time", "What fails", "N+1 queries", "1 worker lost", "GET /report/sales", "founder",
                  "_loyalty_price_cents", "catalogue.py", "GET /search", "`_year`"):  # fmt: skip
        assert words in walk
    for picture in {part.partition(")")[0] for part in walk.split("](images/")[1:]}:
        assert (Path(ROOT) / "docs" / "images" / picture).is_file()
