"""A real Chromium, and what it tells about a page: its console, what it asked for, what is in it.

    with chromium() as browser:
        browser.open(f"{url}/transactions")
        browser.clean(url)

Chromium and ChromeDriver are Debian's packages `chromium` and `chromium-driver`; selenium is told where they are, and
looks for none itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.prometheus import program
from tests.serving import wait_for

PATIENCE_S = 60.0
_ARGUMENTS = (
    "--headless=new",
    "--hide-scrollbars",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--force-color-profile=srgb",
    "--lang=en-US",
    # What a browser does for itself is none of a page's doing. No name is ever looked up.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
#: Elements that no page of the dashboard has, and how many of the others are not as they should be.
_FOREIGN = """
const all = [...document.querySelectorAll("*")];
const scripts = all.filter((one) => one.localName === "script");
const foreign = "img iframe object embed base style template math marquee foreignObject animate set".split(" ");
const places = ["href", "src", "action", "formaction", "xlink:href"];
const links = all.flatMap((one) => places.map((name) => one.getAttribute(name)));
return {
  touched: window.touched,
  scripts: scripts.map((one) => new URL(one.src).pathname + one.textContent),
  foreign: all.filter((one) => foreign.includes(one.localName)).map((one) => one.outerHTML.slice(0, 200)),
  handlers: all.filter((one) => [...one.attributes].some((attribute) => attribute.name.startsWith("on"))).length,
  elsewhere: links.filter((link) => link !== null && new URL(link, location.href).origin !== location.origin),
};
"""


class Browser:
    """One window, whose log is read by `clean`."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    # -- where to --------------------------------------------------------------------------------------------------

    def open(self, url: str) -> None:
        """Load a page, and wait until it is there with all that belongs to it."""
        self.driver.get(url)

    def click(self, css: str) -> None:
        """Click. A page that it leads to is waited for by `until`."""
        self.find(css).click()

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait until a condition holds, which may meet a page that is being replaced."""

        def holds() -> object:
            try:
                return condition()
            except (StaleElementReferenceException, NoSuchElementException):
                return None

        wait_for(holds, what, PATIENCE_S, poll_s=0.05)

    # -- what is there ---------------------------------------------------------------------------------------------

    def find(self, css: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def all(self, css: str) -> list[WebElement]:
        return list(self.driver.find_elements(By.CSS_SELECTOR, css))

    def link(self, text: str) -> str:
        """Address of the first link with this text."""
        return str(self.driver.find_element(By.LINK_TEXT, text).get_attribute("href"))

    @property
    def url(self) -> str:
        return self.driver.current_url

    @property
    def text(self) -> str:
        """That is to be seen."""
        return self.find("body").text

    def run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    @property
    def status(self) -> int:
        """Of the answer that brought the page."""
        return int(self.run("return performance.getEntriesByType('navigation')[0].responseStatus"))

    def links(self) -> list[str]:
        """Of the page, without fragments."""
        found = self.run("return [...document.links].map((link) => link.href)")
        return [link.partition("#")[0] for link in found]

    # -- what it did -----------------------------------------------------------------------------------------------

    def console(self) -> list[str]:
        """What was written since it was read last."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def asked(self) -> list[str]:
        """Addresses that were asked for since they were read last, `data:` and the like among them."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]

    def clean(self, origin: str) -> None:
        """Fails for a page that ran, loaded or holds what is not the dashboard's, or that the browser complains of."""
        said = self.console()
        if self.status >= 400 and said:  # that it was such an answer is said there too
            assert f"status of {self.status}" in said.pop(0)
        assert said == [], self.url
        strangers = [url for url in self.asked() if not url.startswith((f"{origin}/", "about:", "chrome:"))]
        assert strangers == [], self.url
        found = self.run(_FOREIGN)
        (script,) = found.pop("scripts")
        assert script.endswith("/static/script.js"), self.url
        assert found == {"touched": None, "foreign": [], "handlers": 0, "elsewhere": []}, self.url

    # -- as whom it looks ------------------------------------------------------------------------------------------

    def tell(self, command: str, **parameters: object) -> Any:
        """A command of the DevTools protocol."""
        return self.driver.execute_cdp_cmd(command, parameters)

    @contextlib.contextmanager
    def told(self, command: str, before: dict[str, object], after: dict[str, object]) -> Iterator[None]:
        """The same for the time of the block."""
        self.tell(command, **before)
        try:
            yield
        finally:
            self.tell(command, **after)

    def dark(self) -> contextlib.AbstractContextManager[None]:
        """As who prefers dark pages."""
        dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
        return self.told("Emulation.setEmulatedMedia", dark, {"features": []})

    def without_script(self) -> contextlib.AbstractContextManager[None]:
        return self.told("Emulation.setScriptExecutionDisabled", {"value": True}, {"value": False})

    def in_zone(self, zone: str) -> contextlib.AbstractContextManager[None]:
        return self.told("Emulation.setTimezoneOverride", {"timezoneId": zone}, {"timezoneId": ""})

    @contextlib.contextmanager
    def sized(self, width: int, height: int) -> Iterator[None]:
        self.tell("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        try:
            yield
        finally:
            self.tell("Emulation.clearDeviceMetricsOverride")


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A browser that keeps nothing. Skips, or fails, where there is none (see `program`)."""
    options = ChromeOptions()
    options.binary_location = program("chromium")
    service = ChromeService(program("chromedriver"))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for argument in (*_ARGUMENTS, "--window-size=1280,900", f"--user-data-dir={profile}"):
            options.add_argument(argument)
        if os.geteuid() == 0:
            options.add_argument("--no-sandbox")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = Chrome(options=options, service=service)
        try:
            driver.set_page_load_timeout(PATIENCE_S)
            yield Browser(driver)
        finally:
            driver.quit()
