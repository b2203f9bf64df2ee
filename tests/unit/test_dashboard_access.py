"""Who may look: tokens, cookies, names of hosts, forms of other sites; and what every answer forbids a browser."""

from __future__ import annotations

import logging
from pathlib import Path
from urllib.parse import urlencode

import pytest

from paste_agent.dashboard.access import Access, is_loopback, is_own_origin, names_this_host
from tests.commands import filled
from tests.dashboards import OPEN, PAGES, Browser, Page, dashboard_of, sound

TOKEN = "correct-horse-battery-staple"
GUARD = Access(TOKEN)


@pytest.fixture
def store(tmp_path: Path) -> str:
    with filled(tmp_path):
        pass
    return str(tmp_path / "shop.sqlite")


@pytest.fixture
def guarded(store: str) -> Browser:
    return Browser(dashboard_of(store, guard=GUARD))


def log_in(site: Browser, token: str = TOKEN, next: str = "/", **environ: str) -> int:
    body = urlencode({"token": token, "next": next}).encode()
    return site.ask("/login", "POST", body, CONTENT_TYPE="application/x-www-form-urlencoded", **environ).status_int


# -- an ini's, without a token ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "10.0.0.1"])
@pytest.mark.parametrize("path", [*PAGES, "/trace/0102030405060708", "/login", "/nowhere"])
def test_without_a_token_it_is_shut_to_everybody(store: str, path: str, address: str) -> None:
    site = Browser(dashboard_of(store, guard=Access(None)), "/inside", REMOTE_ADDR=address)
    page = site.get(path, 403)
    assert "access_token" in page.text
    assert "/items" not in page.html
    assert log_in(site, "") == 403
    assert site.cookies == {}


# -- with a token --------------------------------------------------------------------------------------------------


def test_the_form_opens_it_and_leads_to_the_page_that_was_asked_for(guarded: Browser) -> None:
    page = guarded.get("/errors?range=6h", 403)
    assert "ValueError" not in page.text
    fields = {one.attributes.get("name"): one.attributes.get("value") for one in page.all("input")}
    assert fields == {"token": None, "next": "/errors?range=6h", "username": "paste-agent"}
    wrong = guarded.ask("/login", "POST", urlencode({"token": "x", "next": fields["next"]}).encode())
    assert wrong.status_int == 403
    assert 'value="/errors?range=6h"' in wrong.text  # the next try leads there, too
    body = urlencode({"token": TOKEN, "next": fields["next"]}).encode()
    response = guarded.ask("/login", "POST", body)
    assert (response.status_int, response.headers["Location"]) == (303, "/errors?range=6h")
    assert "ValueError" in guarded.get("/errors?range=6h").text


def test_a_token_in_the_address_is_taken_once_and_goes(guarded: Browser) -> None:
    response = guarded.ask(f"/traces?token={TOKEN}&range=6h&q=a%26b")
    assert response.status_int == 303
    assert response.headers["Location"] == "/traces?range=6h&q=a%26b"
    assert TOKEN not in str(response.headers)
    guarded.get("/traces")


def test_the_cookie(store: str) -> None:
    site = Browser(dashboard_of(store, guard=GUARD), "/inside")
    response = site.ask(f"/?token={TOKEN}")
    cookie = response.headers["Set-Cookie"]
    assert TOKEN not in cookie
    words = [word.strip().lower() for word in cookie.split(";")]
    assert "httponly" in words
    assert "samesite=lax" in words
    assert "path=/inside" in words
    assert "secure" not in words
    secure = site.ask(f"/?token={TOKEN}", **{"wsgi.url_scheme": "https"}).headers["Set-Cookie"]
    assert "; secure" in secure.lower()


@pytest.mark.parametrize("token", ["", "x", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "é" * 30, "x" * 900])
def test_a_wrong_token(guarded: Browser, token: str) -> None:
    assert guarded.ask("/?" + urlencode({"token": token})).status_int == 403
    assert log_in(guarded, token) == 403
    assert guarded.cookies == {}


def test_a_wrong_cookie(guarded: Browser) -> None:
    guarded.ask(f"/?token={TOKEN}")
    ((name, value),) = guarded.cookies.items()
    for wrong in (value[:-1], value + "0", TOKEN, "", "é"):
        guarded.cookies = {name: wrong}
        guarded.get("/", 403)
    guarded.cookies = {}
    other = Browser(dashboard_of(None, guard=Access(TOKEN + "2")))
    assert Access(TOKEN + "2").cookie != name
    assert not other.cookies


def test_a_program_sends_it_in_a_header(guarded: Browser) -> None:
    assert guarded.ask("/agent", HTTP_AUTHORIZATION=f"Bearer {TOKEN}").status_int == 200
    refused = guarded.ask("/agent", HTTP_AUTHORIZATION="Bearer no")
    assert refused.status_int == 401
    assert refused.headers["WWW-Authenticate"].startswith("Bearer")
    assert guarded.ask("/agent", HTTP_AUTHORIZATION="Basic eDp5").status_int == 401


@pytest.mark.parametrize(
    ("wanted", "location"),
    [
        ("/workers", "/workers"),
        ("/trace/0102030405060708?all=1", "/trace/0102030405060708?all=1"),
        ("//evil.example/", "/"),
        ("https://evil.example/", "/"),
        ("/\\evil.example", "/"),
        ("/trace/x\r\nSet-Cookie: a=b", "/trace/x%0D%0ASet-Cookie%3A%20a%3Db"),
        ("", "/"),
    ],
)
def test_it_leads_nowhere_else(store: str, wanted: str, location: str) -> None:
    site = Browser(dashboard_of(store, guard=GUARD), "/inside")
    response = site.ask("/login", "POST", urlencode({"token": TOKEN, "next": wanted}).encode())
    assert response.headers["Location"] == f"/inside{location}"


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:8901", "https://127.0.0.1.evil.example"]
)
def test_another_sites_form_is_refused(guarded: Browser, origin: str) -> None:
    assert log_in(guarded, HTTP_ORIGIN=origin) == 403
    assert guarded.cookies == {}
    assert log_in(guarded, HTTP_ORIGIN="http://127.0.0.1:8900") == 303


def test_a_form_that_is_too_long(guarded: Browser) -> None:
    assert guarded.ask("/login", "POST", b"token=" + b"x" * 5000).status_int == 413


def test_the_token_is_never_logged(guarded: Browser, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    log_in(guarded, TOKEN)
    guarded.ask(f"/?token={TOKEN}")
    guarded.ask(f"/nowhere?token={TOKEN}x")
    broken = Browser(dashboard_of("/dev/null/nowhere", guard=GUARD))
    broken.ask(f"/?token={TOKEN}")
    broken.get("/")
    assert TOKEN not in caplog.text


# -- by itself on the loopback address -------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1:8900", "localhost:8900", "LOCALHOST", "[::1]:8900", "127.8.9.1"])
def test_open_to_its_own_host(store: str, host: str) -> None:
    assert Browser(dashboard_of(store)).ask("/", HTTP_HOST=host).status_int == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1:8900", "", "localhost:8900@evil", "[::2]"]
)
def test_a_name_that_was_made_to_lead_here_is_refused(store: str, host: str) -> None:
    response = Browser(dashboard_of(store)).ask("/", HTTP_HOST=host)
    assert response.status_int == 403
    sound(Page(response.text))
    assert "/items" not in response.text


def test_names_of_this_host() -> None:
    assert is_loopback("127.0.0.1")
    assert is_loopback("::1")
    assert is_loopback("localhost")
    for other in ("0.0.0.0", "::", "10.0.0.1", "", "host.example"):
        assert not is_loopback(other)
    assert not names_this_host("localhost:8900:1")


@pytest.mark.parametrize(
    ("origin", "host", "is_own"),
    [
        (None, "a.example", True),
        ("https://a.example", "a.example", True),
        ("https://a.example", "a.example:443", True),
        ("http://a.example", "a.example:443", False),
        ("http://a.example:81", "a.example", False),
        ("http://A.example", "a.EXAMPLE", True),
        ("null", "a.example", False),
        ("http://", "", False),
        ("file://a.example", "a.example", False),
    ],
)
def test_origins(origin: str | None, host: str, is_own: bool) -> None:
    assert is_own_origin(origin, host) is is_own


# -- every answer --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/nowhere", "/static/style.css", "/?range=x", "", "/login", "/static/none"])
def test_headers_of_every_answer(store: str, path: str) -> None:
    for guard in (OPEN, GUARD, Access(None)):
        headers = Browser(dashboard_of(store, guard=guard)).ask(path).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "same-origin"
        if not path.startswith("/static/style"):
            assert headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"])
def test_other_methods(store: str, method: str) -> None:
    response = Browser(dashboard_of(store)).ask("/traces", method)
    assert response.status_int == 405
    assert response.headers["Allow"] == "GET, HEAD"
    assert "POST" in Browser(dashboard_of(store)).ask("/login", "PUT").headers["Allow"]


@pytest.mark.parametrize("path", ["/", "/traces", "/static/style.css", "/nowhere", "", "/?range=x"])
def test_head_is_get_without_a_body(store: str, path: str) -> None:
    site = Browser(dashboard_of(store))
    head, get = site.ask(path, "HEAD"), site.ask(path)
    assert head.body == b""
    assert head.status == get.status
    assert head.content_type == get.content_type


def test_static_files_are_asked_for_again_and_not_sent_again(store: str) -> None:
    site = Browser(dashboard_of(store, guard=Access(None)))  # also for the page that says that it is shut
    for name, kind in (("style.css", "text/css"), ("script.js", "text/javascript"), ("icon.svg", "image/svg+xml")):
        first = site.ask(f"/static/{name}")
        assert (first.status_int, first.content_type) == (200, kind)
        again = site.ask(f"/static/{name}", HTTP_IF_NONE_MATCH=first.headers["ETag"])
        assert (again.status_int, again.body) == (304, b"")


@pytest.mark.parametrize("name", ["../app.py", "app.py", "", "style.css/", "..%2fapp.py"])
def test_no_other_file_is_given_away(store: str, name: str) -> None:
    assert Browser(dashboard_of(store)).ask(f"/static/{name}").status_int == 404
