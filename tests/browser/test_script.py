"""What the dashboard's script adds: values under the pointer, a closer look, refresh, the viewer's time."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from selenium.webdriver.common.action_chains import ActionChains

from tests.browser.conftest import TOKEN, Site
from tests.browser.driving import Browser

CHART = "figure[data-chart]"
INDIA = timezone(timedelta(hours=5, minutes=30))


@pytest.fixture
def page(browser: Browser, site: Site) -> Browser:
    """At the overview of a dashboard with data."""
    browser.open(f"{site.at('hostile')}?token={TOKEN}")
    return browser


def hands(browser: Browser) -> ActionChains:
    return ActionChains(browser.driver, duration=20)


def test_values_under_the_pointer(page: Browser, site: Site) -> None:
    svg = page.find(f"{CHART} svg")
    hands(page).move_to_element(svg).perform()
    tip = page.find(f"{CHART} .tip")
    assert tip.is_displayed()
    assert "requests" in tip.text
    assert tip.text[2] == ":"  # a time
    assert page.find(f"{CHART} .cursor").get_attribute("visibility") == "visible"
    hands(page).move_to_element(page.find("h1")).perform()
    assert not tip.is_displayed()
    page.clean(site.origin)


def test_dragging_over_a_chart_looks_closer(page: Browser, site: Site) -> None:
    svg = page.find(f"{CHART} svg")
    hands(page).move_to_element_with_offset(svg, -40, 0).click_and_hold().move_by_offset(120, 0).release().perform()
    page.until(lambda: "from=" in page.url, "the closer look")
    page.clean(site.origin)
    start_s, end_s = (int(page.url.partition(f"{name}=")[2].partition("&")[0]) for name in ("from", "to"))
    assert 60 <= end_s - start_s < 3000  # of an hour
    assert all(f"from={start_s}&to={end_s}" in link.get_attribute("href") for link in page.all("nav a"))
    assert not page.all("button.refresh")  # nothing that is over changes


def test_a_click_is_no_drag(page: Browser) -> None:
    hands(page).move_to_element(page.find(f"{CHART} svg")).click().perform()
    assert "from=" not in page.url


def test_refresh(page: Browser, site: Site) -> None:
    page.open(site.at("hostile"))
    page.run("document.querySelector('main').append(Object.assign(document.createElement('hr'), {className: 'old'}))")
    button = page.find("button.refresh")
    assert (button.text, button.get_attribute("aria-pressed")) == ("Refresh", "false")
    button.click()
    page.until(lambda: not page.all(".old"), "a new content")
    assert (button.text, button.get_attribute("aria-pressed")) == ("Refreshing", "true")
    # What is new is alive as well.
    hands(page).move_to_element(page.find(f"{CHART} svg")).perform()
    assert page.find(f"{CHART} .tip").is_displayed()
    page.open(site.at("hostile", "/transactions"))
    assert page.find("button.refresh").text == "Refreshing"
    page.click("button.refresh")
    page.open(site.at("hostile"))
    assert page.find("button.refresh").text == "Refresh"
    page.clean(site.origin)


def test_times_are_the_viewers(page: Browser, site: Site) -> None:
    with page.in_zone("Asia/Kolkata"):
        page.open(site.at("hostile"))
        axis = page.run(
            "return [...document.querySelectorAll('text[data-time][data-form=clock]')]"
            ".map((one) => [Number(one.dataset.time), one.textContent])"
        )
        page.open(site.at("hostile", "/postmortem/8-b"))
        full = page.find("time[data-form=full]")
        at, text = full.get_attribute("datetime"), full.text
    assert axis
    assert [told for _, told in axis] == [f"{datetime.fromtimestamp(at_s, INDIA):%H:%M}" for at_s, _ in axis]
    moment = datetime.fromisoformat(at.replace("Z", "+00:00")).astimezone(INDIA)
    assert f"{moment:%H:%M:%S}" in text
    assert "GMT+5:30" in text
    page.clean(site.origin)
