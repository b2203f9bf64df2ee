"""Every page in a real browser: nothing that was recorded runs, nothing comes from elsewhere, and all can use it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import axe_core_python
import pytest

from tests.browser.conftest import SEEN, TOKEN, Site
from tests.browser.driving import Browser
from tests.dashboards import PAGES

AXE = (Path(axe_core_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
#: Pages that others lead to, when there is something to be seen.
DEEPER = ("/transaction", "/trace/", "/postmortem/")


def kind_of(url: str, prefix: str) -> str:
    """Which page an address leads to, of those that look alike."""
    path = urlsplit(url).path.removeprefix(prefix)
    return next(
        (f"{beginning}*" for beginning in DEEPER if path.startswith(beginning) and path != "/transactions"), path
    )


def every_page(browser: Browser, origin: str, prefix: str) -> Iterator[str]:
    """Open each page that links lead to, from the overview on; at most two that look alike. Yields what it is."""
    waiting, seen, kinds = [f"{origin}{prefix}/"], set(), dict[str, int]()
    while waiting:
        url = waiting.pop(0)
        parts = urlsplit(url)
        fields = dict(parse_qsl(parts.query))
        key = (parts.path, fields.get("route"), fields.get("task"), fields.get("method"))
        kind = kind_of(url, prefix)
        if key in seen or kinds.get(kind, 0) >= 2:
            continue
        seen.add(key)
        kinds[kind] = kinds.get(kind, 0) + 1
        browser.open(url)
        # A trace may name a post-mortem that was forgotten.
        assert browser.status == 200 or (kind == "/postmortem/*" and browser.status == 404), url
        yield kind
        waiting += browser.links()


def accessible(browser: Browser, *rules: str) -> None:
    """axe-core finds nothing serious. rules: the only ones that are looked at."""
    if not browser.run("return typeof axe === 'object'"):
        browser.run(AXE)
    found = browser.driver.execute_async_script(
        "const [options, done] = arguments; axe.run(options).then(done, (fault) => done({fault: `${fault}`}))",
        {"resultTypes": ["violations"], "preload": False, **({"runOnly": list(rules)} if rules else {})},
    )
    told = [
        (one["id"], one["help"], [node["html"][:200] for node in one["nodes"][:3]])
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
    ]
    assert told == [], browser.url


def narrow(browser: Browser) -> None:
    """On a telephone the page is as wide as the window: what is wider is scrolled by itself."""
    with browser.sized(390, 800):
        wide = browser.run("return document.documentElement.scrollWidth")
        assert wide <= 390, browser.url


@pytest.fixture
def enter(browser: Browser, site: Site) -> Callable[[str], str]:
    """Opens a dashboard by its name; returns the prefix of its pages."""

    def open_it(name: str) -> str:
        browser.open(f"{site.at(name)}?token={TOKEN}")
        assert "token" not in browser.url
        browser.clean(site.origin)
        return f"/{name}"

    return open_it


def test_every_page_of_hostile_data(browser: Browser, site: Site, enter: Callable[[str], str]) -> None:
    shown = set()
    kinds = set()
    for kind in every_page(browser, site.origin, enter("hostile")):
        first = kind not in kinds
        kinds.add(kind)
        browser.clean(site.origin)
        accessible(browser)
        narrow(browser)
        if SEEN in browser.text:
            shown.add(kind)
        if first:
            with browser.dark():
                accessible(browser, "color-contrast")
    assert kinds == {*PAGES, *(f"{beginning}*" for beginning in DEEPER)}
    assert shown == kinds  # or nothing was tried


def test_every_page_of_an_empty_store(browser: Browser, site: Site, enter: Callable[[str], str]) -> None:
    kinds = []
    for kind in every_page(browser, site.origin, enter("empty")):
        kinds.append(kind)
        browser.clean(site.origin)
        accessible(browser)
        assert browser.find("h1").text
    assert sorted(kinds) == sorted(PAGES)


def test_every_page_of_the_service_itself(browser: Browser, site: Site, enter: Callable[[str], str]) -> None:
    prefix = enter("own")

    def measured() -> bool:
        browser.open(site.at("own", "/errors"))
        return "KeyError" in browser.text

    browser.until(measured, "the first errors")
    kinds = set()
    for kind in every_page(browser, site.origin, prefix):
        kinds.add(kind)
        browser.clean(site.origin)
    assert kinds == {*PAGES, "/transaction*", "/trace/*"}


def test_every_page_without_script(browser: Browser, site: Site, enter: Callable[[str], str]) -> None:
    enter("hostile")
    with browser.without_script():
        for path in PAGES:
            browser.open(site.at("hostile", path))
            assert browser.driver.title
            assert SEEN in browser.text
            assert not browser.find("button.refresh").is_displayed()
        browser.open(site.at("hostile"))
        assert len(browser.all("figure[data-chart] svg")) >= 5
        assert browser.all(".cursor") == []  # which the script makes
        browser.click("details.custom summary")
        first, second = browser.all("details.custom input[name=from], details.custom input[name=to]")
        for field, value in ((first, "2026-03-01T09:30"), (second, "2026-03-01T10:00")):
            field.clear()
            field.send_keys(value)
        browser.click("details.custom button")
        browser.until(lambda: "from=2026-03-01T09" in browser.url, "the page of these times")
        browser.until(lambda: "09:30" in browser.text, "its content")
    assert browser.console() == []


def test_dark_and_light(browser: Browser, site: Site, enter: Callable[[str], str]) -> None:
    enter("hostile")

    def brightness() -> float:
        colour = browser.run("return getComputedStyle(document.body).backgroundColor")
        red, green, blue = (int(word) for word in colour.removeprefix("rgb(").rstrip(")").split(","))
        return (red + green + blue) / 3

    light = brightness()
    with browser.dark():
        dark = brightness()
    assert dark < 64 < 192 < light
