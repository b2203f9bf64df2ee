"""The dashboard as a browser sees it, without one: requests through `wsgiref.validate`, pages that are taken apart.

site = Browser(dashboard_of(store_path))
page = site.get("/transactions")
assert "GET /items/{id}" in page.text
"""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from wsgiref.validate import validator

from webob import Request, Response

from paste_agent.dashboard.access import Access
from paste_agent.dashboard.app import Dashboard
from paste_agent.settings import Settings
from tests.serving import PATIENCE_S, environment

PASTE_AGENT = [sys.executable, "-c", "from paste_agent.cli.main import run; run()"]
COMMAND = [*PASTE_AGENT, "dashboard", "--no-browser", "--port", "0"]
OPEN = Access(None, is_open=True)
#: Every page of the navigation.
PAGES = ("/", "/transactions", "/traces", "/errors", "/queries", "/calls", "/layers", "/workers", "/agent")
_VOID = frozenset(("br", "hr", "img", "input", "link", "meta"))
_HEADINGS = ("h1", "h2", "h3", "h4")


def dashboard_of(store: str | None, found: Settings | None = None, guard: Access = OPEN) -> Dashboard:
    return Dashboard(store, found, guard)


class Element:
    """An element of a page, with all the text that is in it."""

    def __init__(self, name: str, attributes: Mapping[str, str | None], inside: tuple[str, ...]) -> None:
        self.name = name
        self.attributes = attributes
        self.inside = inside  #: names of those that it is in, the outermost first
        self.text = ""


class Page(HTMLParser):
    """A page taken apart. Whatever is wrong with its form fails the test."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[Element] = []
        self._open: list[Element] = []
        self.html = html
        self.feed(html)
        self.close()
        assert self._open == [], f"not closed: {[element.name for element in self._open]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"an attribute twice in <{tag}>"
        element = Element(tag, dict(attrs), tuple(one.name for one in self._open))
        self.elements.append(element)
        if tag not in _VOID:
            self._open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop().name == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.text += data

    @property
    def text(self) -> str:
        """What is read on it, title and all."""
        return self.elements[0].text

    def all(self, name: str, css: str = "") -> list[Element]:
        return [
            one
            for one in self.elements
            if one.name == name and (not css or css in (one.attributes.get("class") or "").split())
        ]

    def links(self) -> list[str]:
        return [one.attributes.get("href") or "" for one in self.all("a")]


def sound(page: Page, prefix: str = "") -> Page:
    """Fails for a page that a policy, a screen reader or somebody else's text would break; returns it."""
    for one in page.elements:
        assert not any(name.startswith("on") or name == "style" for name in one.attributes), one.attributes
        assert one.name not in ("style", "iframe", "object", "base", "embed"), one.name
        for name in ("href", "src", "action"):
            value = one.attributes.get(name)
            if value is None or value.startswith("#"):
                continue
            parts = urlsplit(value)
            assert not parts.scheme, value
            assert not parts.netloc, value
            assert value.startswith(f"{prefix}/"), value
    scripts = [(one.attributes.get("src"), one.text) for one in page.all("script")]
    assert scripts == [(f"{prefix}/static/script.js", "")]
    ids = [one.attributes["id"] for one in page.elements if "id" in one.attributes]
    assert len(ids) == len(set(ids))
    levels = [int(one.name[1]) for one in page.elements if one.name in _HEADINGS]
    assert levels.count(1) == 1
    assert levels[0] == 1
    for one in page.all("table"):
        assert "figure" in one.inside or "table" not in one.inside
    assert len(page.all("caption")) == len(page.all("table"))
    for one in (*page.all("input"), *page.all("select")):
        assert one.attributes.get("type") == "hidden" or "label" in one.inside, one.attributes
    for one in page.all("svg"):
        told = one.attributes.get("aria-label") or one.attributes.get("aria-hidden") == "true"
        assert told, one.attributes
    for one in page.all("a"):
        assert one.text.strip(), one.attributes
    return page


class Browser:
    """Asks an application, and keeps its cookies."""

    def __init__(self, application: Any, prefix: str = "", **environ: str) -> None:
        """prefix: the path that it is mounted at. environ: of every request."""
        self.application = validator(application)
        self.prefix = prefix
        self.environ = environ
        self.cookies: dict[str, str] = {}

    def ask(self, path: str, method: str = "GET", body: bytes = b"", **environ: str) -> Response:
        request = Request.blank(path, method=method, body=body if method == "POST" else b"", base_url=None)
        # What servers leave out, and the validator does not know.
        for name in [name for name in request.environ if name.startswith("webob")]:
            del request.environ[name]
        request.environ.update({"SCRIPT_NAME": self.prefix, "HTTP_HOST": "127.0.0.1:8900", **self.environ, **environ})
        if self.cookies:
            request.environ["HTTP_COOKIE"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        response = request.get_response(self.application)
        assert response.body is not None  # reads and closes what the application returned
        for header in response.headers.getall("Set-Cookie"):
            name, _, value = header.partition(";")[0].partition("=")
            self.cookies[name] = value
        return response

    def get(self, path: str, status: int = 200) -> Page:
        """A sound page with this status."""
        response = self.ask(path)
        assert response.status_int == status, (path, response.status, response.text[-2000:])
        assert response.content_type == "text/html"
        return sound(Page(response.text), self.prefix)


# -- served by its command ----------------------------------------------------------------------------------------


class Own(NamedTuple):
    """`paste-agent dashboard` that runs."""

    process: subprocess.Popen[str]
    line: str  #: that it began with

    @property
    def url(self) -> str:
        match = re.search(r"http://\S+", self.line)
        assert match is not None, self.line
        return re.sub(r"//[^/]*:([0-9]+)/", r"//127.0.0.1:\1/", match[0])

    def stop(self) -> tuple[int, str]:
        """As Ctrl-C does it: exit status, and all that it said since its first line."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.stdout is not None
        rest = self.process.stdout.read()
        return self.process.wait(PATIENCE_S), rest


@contextlib.contextmanager
def own(directory: Path, *arguments: str) -> Iterator[Own]:
    process = subprocess.Popen(
        [*COMMAND, *arguments], cwd=directory, env=environment(), text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        yield Own(process, process.stdout.readline())
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(PATIENCE_S)
        process.stdout.close()
