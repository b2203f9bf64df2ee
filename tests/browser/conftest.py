"""One browser, and one service with dashboards of every kind, for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import requests

from paste_agent.aggregate import Delta
from paste_agent.store.store import PostmortemRow, Store
from tests.browser.driving import Browser, chromium
from tests.commands import ini_of
from tests.dashboard_data import NOW, fill
from tests.serving import GUNICORN_PASTER, NO_CONTROL_SOCKET_INI, PATIENCE_S, serve

TOKEN = "correct-horse-battery-staple"
#: Ends text, attributes, scripts, styles and comments, then runs in every way that a browser knows.
HOSTILE = (
    "javascript:window.touched=1//</title></style></svg></script>--><script>window.touched=2</script>"
    '"><img src=x onerror="window.touched=3">\'><svg onload=window.touched=4><a href=javascript:window.touched=5>x</a>'
    "{{7*7}}&lt;script&gt;window.touched=6&lt;/script&gt;\u202e"
)
#: As much of it as even the shortest column has, and no more than one piece of text.
SEEN = "javascript:window.touched=1//</title>"

_SITE = f"""
[app:shop]
use = egg:paste_agent#demo
database = goods.sqlite
slow_s = 0.6

[app:own]
use = egg:paste_agent#dashboard
access_token = {TOKEN}

[app:shut]
use = egg:paste_agent#dashboard

[app:hostile]
use = egg:paste_agent#dashboard
access_token = {TOKEN}
store = %(here)s/hostile.sqlite

[app:empty]
use = egg:paste_agent#dashboard
access_token = {TOKEN}
store = %(here)s/empty.sqlite

[composite:site]
use = egg:paste_agent#mount
/ = shop
/own = own
/shut = shut
/hostile = hostile
/empty = empty

[pipeline:main]
pipeline = agent site

[server:main]
use = egg:paste_agent
host = 127.0.0.1
port = 0
workers = 2
{NO_CONTROL_SOCKET_INI}
"""


class Site(NamedTuple):
    """origin: of the service, without a slash at its end. Dashboards are below it, each by its section's name."""

    origin: str

    def at(self, name: str, path: str = "/") -> str:
        return f"{self.origin}/{name}{path}"


@pytest.fixture(scope="session")
def chrome() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def browser(chrome: Browser) -> Browser:
    """As new: no cookies, nothing remembered, nothing in its log."""
    chrome.open("about:blank")
    chrome.tell("Network.clearBrowserCookies")
    chrome.console()
    chrome.asked()
    return chrome


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("site")
    _hostile(directory / "hostile.sqlite")
    Store(str(directory / "empty.sqlite")).close()
    ini = ini_of(directory, rest=_SITE)
    with serve([*GUNICORN_PASTER, str(ini)], cwd=directory) as server:
        with requests.Session() as session:
            for path in ("/", "/item/1", "/search?q=linen", "/report/sales", "/broken"):
                session.get(f"{server.url}{path}", timeout=PATIENCE_S)
        yield Site(server.url)


def _hostile(path: Path) -> None:
    """A store with somebody else's text wherever there is text."""
    store = Store(str(path))
    fill(store, HOSTILE)
    lost = {
        "method": "GET", "path": HOSTILE, "route": HOSTILE, "span": HOSTILE, "stack": HOSTILE, "age_s": 3.0,
        "trace_id": "0af7651916cd43dd8448eb211c803102",
    }  # fmt: skip
    account = {
        "id": "8-b", "headline": HOSTILE, "evidence": [HOSTILE], "worker": 2, "pid": 8, "stack": HOSTILE,
        "requests": [lost, {**lost, "trace_id": HOSTILE}],
    }  # fmt: skip
    store.commit_drain(Delta(), [], {}, 100, [PostmortemRow("8-b", NOW - 60, HOSTILE, account)])
    store.close()
