"""The way in, as a browser goes it: shut, with a wrong token, with the right one, and what is remembered."""

from __future__ import annotations

from selenium.webdriver.common.by import By

from tests.browser.conftest import TOKEN, Site
from tests.browser.driving import Browser


def test_without_a_token_it_is_shut(browser: Browser, site: Site) -> None:
    for path in ("/", "/transactions", "/login"):
        browser.open(site.at("shut", path))
        assert "This dashboard is shut." in browser.text
        assert browser.all("nav, form") == []
        browser.clean(site.origin)


def test_the_form(browser: Browser, site: Site) -> None:
    browser.open(site.at("own", "/errors?range=6h"))
    browser.clean(site.origin)

    def offer(token: str) -> None:
        field = browser.find("input[name=token]")
        assert field.get_attribute("type") == "password"
        field.send_keys(token)
        browser.driver.find_element(By.XPATH, "//button[.='Open']").click()

    offer("wrong-horse-battery-staple")
    browser.until(lambda: browser.all("[role=alert]"), "a refusal")
    assert "not the one" in browser.find("[role=alert]").text
    assert browser.driver.get_cookies() == []
    assert "wrong-horse" not in browser.driver.page_source
    browser.clean(site.origin)
    offer(TOKEN)
    browser.until(lambda: browser.all("nav"), "the page")
    assert browser.url == site.at("own", "/errors?range=6h")
    (cookie,) = browser.driver.get_cookies()
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Lax", "/own")
    assert TOKEN not in cookie["value"]
    assert browser.run("return document.cookie") == ""
    assert TOKEN not in browser.driver.page_source
    browser.clean(site.origin)
    # Another dashboard of the same service is another matter.
    browser.open(site.at("hostile"))
    assert browser.all("input[name=token]")


def test_the_token_leaves_the_address(browser: Browser, site: Site) -> None:
    browser.open(f"{site.at('own', '/workers')}?range=6h&token={TOKEN}")
    assert browser.url == site.at("own", "/workers?range=6h")
    assert browser.find("[aria-current=page]").text == "Workers"
    browser.driver.refresh()
    assert browser.find("h1").text == "Workers"
    browser.clean(site.origin)
