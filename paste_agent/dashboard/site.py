"""Answers requests: which page, whether the viewer may see it, and what is said when something is wrong.

Imported with the first request that is let in: a worker of a service whose dashboard nobody looks at stays small.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl, quote

from webob import Request, Response

from paste_agent.dashboard import access
from paste_agent.dashboard.access import Access
from paste_agent.dashboard.html import Child, tag
from paste_agent.dashboard.pages.agent import agent
from paste_agent.dashboard.pages.inside import calls, errors, layers, queries
from paste_agent.dashboard.pages.overview import overview
from paste_agent.dashboard.pages.traces import trace, traces
from paste_agent.dashboard.pages.transactions import transaction, transactions
from paste_agent.dashboard.pages.workers import postmortem, workers
from paste_agent.dashboard.query import BadQuery, Query, url_of
from paste_agent.dashboard.view import Page, View, document, empty, framed
from paste_agent.errors import StoreError
from paste_agent.log import logger
from paste_agent.settings import Settings
from paste_agent.store.opening import store_path
from paste_agent.store.store import READ_ERRORS, Store

_STATIC = Path(__file__).with_name("static")
_TYPES = {"style.css": "text/css", "script.js": "text/javascript", "icon.svg": "image/svg+xml"}
_ID = re.compile(r"/([^/]{1,200})")
#: Bytes of the form with the token.
_MOST_FORM = 4096
#: How long a browser remembers who may look. s
_REMEMBERED_S = 30 * 86_400

#: By path. Those that end in a slash have something after it.
_PAGES: dict[str, Callable[[View], Page]] = {
    "/": overview,
    "/transactions": transactions,
    "/transaction": transaction,
    "/traces": traces,
    "/errors": errors,
    "/queries": queries,
    "/calls": calls,
    "/layers": layers,
    "/workers": workers,
    "/agent": agent,
}
_NAMED: dict[str, Callable[[View, str], Page]] = {"/trace/": trace, "/postmortem/": postmortem}


class Source(NamedTuple):
    """What a dashboard is about. store: a path; None: that of the settings. service: its name, '' where unknown."""

    store: str | None
    settings: Settings | None
    service: str

    def path(self) -> str:
        """Raises StoreError where there is none yet."""
        if self.store is not None:
            if not os.path.exists(self.store):
                raise StoreError(f"{self.store}: no store yet; start the service and send it a request")
            return self.store
        assert self.settings is not None
        return store_path(self.settings)


def route_of(path: str) -> str:
    """The route of a path, for the agent that measures the service, and with it us: never what somebody made up."""
    if path in _PAGES or path == "/login":
        return path
    for beginning in (*_NAMED, "/static/"):
        if path.startswith(beginning):
            return f"{beginning}{{name}}"
    return "/{unknown}"


def answer(request: Request, source: Source, guard: Access) -> Response:
    """The answer to a request, whatever happens. Raises nothing."""
    try:
        response = _answer(request, source, guard)
    except Exception:
        fault = secrets.token_hex(4)
        logger.error("dashboard: fault %s at %s", fault, route_of(_path(request)), exc_info=True)
        words = ("Look for ", tag("code", f"fault {fault}"), " in the log of the process that serves this dashboard.")
        response = _plain(request, 500, "A fault of the dashboard", empty("This page could not be made.", *words))
    for name, value in access.HEADERS:
        response.headers[name] = value
    return response


def _answer(request: Request, source: Source, guard: Access) -> Response:
    path = _path(request)
    if path == "":
        return _to(request, "/", request.query_string)
    if path == "/login" and request.method == "POST":
        return _log_in(request, guard)
    if request.method not in ("GET", "HEAD"):
        nothing = empty("The dashboard is only looked at.", "It answers GET and HEAD.")
        response = _plain(request, 405, "Not allowed", nothing)
        response.headers["Allow"] = "GET, HEAD, POST" if path == "/login" else "GET, HEAD"
        return response
    if path.startswith("/static/"):
        return _static(request, path.removeprefix("/static/"))
    refusal = _admit(request, guard)
    if refusal is not None:
        return refusal
    if path == "/login":
        return _to(request, "/", "")
    return _page(request, source, path)


def _path(request: Request) -> str:
    # The raw path: WebOb's decodes it, and raises for one that is not UTF-8.
    return str(request.environ.get("PATH_INFO") or "")


def _prefix(request: Request) -> str:
    # WSGI carries the path's bytes as latin-1. Source: PEP 3333, unicode issues.
    return quote(request.environ.get("SCRIPT_NAME", "").encode("latin-1").rstrip(b"/"))


# -- who may look --------------------------------------------------------------------------------------------------


def _admit(request: Request, guard: Access) -> Response | None:
    """None for who may look; else what is answered."""
    if guard.is_open:
        if access.names_this_host(request.environ.get("HTTP_HOST", "")):
            return None
        words = ("Open it as ", tag("code", "localhost"), ", or give it `--host` and with it a token.")
        return _plain(request, 403, "Not for this name", empty("This dashboard is for its own host alone.", *words))
    if guard.token is None:
        return _shut(request)
    offered = dict(parse_qsl(request.query_string, keep_blank_values=True, errors="replace")).get("token")
    if offered is not None:
        # Out of the address at once: it would stay in histories, and go along in what is sent to a colleague.
        if not guard.admits_token(offered):
            return _ask(request, 403, "That token is not the one of this dashboard.")
        rest = [
            (name, value)
            for name, value in parse_qsl(request.query_string, keep_blank_values=True, errors="replace")
            if name != "token"
        ]
        return _remember(request, guard, _to(request, _path(request), url_of("", dict(rest)).lstrip("?")))
    if guard.admits_cookie(request.cookies.get(guard.cookie)):
        return None
    kind, _, bearer = request.environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    if kind.lower() == "bearer" and guard.admits_token(bearer.strip()):
        return None
    return _ask(request, 401 if kind else 403, "")


def _shut(request: Request) -> Response:
    body = empty(
        "This dashboard is shut.",
        "It shows paths, queries and errors of the service, and behind a proxy every address looks like this host's: so"
        " it opens with a token alone. Make one of 16 characters or more, for instance with ",
        tag("code", "openssl rand -hex 20"),
        ", put it into the ini, and reload the service:",
    )
    example = tag("pre", "[app:dashboard]\nuse = egg:paste_agent#dashboard\naccess_token = THE TOKEN", tabindex="0")
    command = tag("p", "Or look at it from the host itself: ", tag("code", "paste-agent dashboard production.ini"))
    return _plain(request, 403, "Dashboard", (body, example, command))


def _ask(request: Request, status: int, wrong: str, wanted: str | None = None) -> Response:
    """The form that takes the token. wanted: where it leads; None: to what was asked for now."""
    if wanted is None:
        query = _without_token(request)
        wanted = f"{_path(request)}?{query}" if query else _path(request)
    field = tag("input", name="token", type="password", autocomplete="current-password", required=True)
    form = tag(
        "form",
        # What a browser that keeps the token files it under; nobody is asked for a name.
        tag("label", "Name ", tag("input", name="username", value="paste-agent", autocomplete="username"), hidden=True),
        tag("label", "Access token ", field),
        tag("input", type="hidden", name="next", value=wanted),
        tag("button", "Open"),
        action=f"{_prefix(request)}/login", method="post", class_="login",
    )  # fmt: skip
    note = "It is `access_token` of the service's ini, or what `paste-agent dashboard` printed when it was started."
    body = (tag("p", wrong, class_="bad", role="alert") if wrong else None, form, tag("p", note, class_="note"))
    response = _plain(request, status, "Dashboard", body)
    if status == 401:
        response.headers["WWW-Authenticate"] = 'Bearer realm="paste-agent"'
    return response


def _without_token(request: Request) -> str:
    pairs = parse_qsl(request.query_string, keep_blank_values=True, errors="replace")
    return url_of("", {name: value for name, value in pairs if name != "token"}).lstrip("?")


def _log_in(request: Request, guard: Access) -> Response:
    """The token by a form. Another site's form is refused: it could have its visitor look at what that site chose."""
    if not access.is_own_origin(request.environ.get("HTTP_ORIGIN"), request.environ.get("HTTP_HOST", "")):
        return _plain(
            request, 403, "Dashboard", empty("This form was sent by another site.", "Open the dashboard itself.")
        )
    if guard.token is None:
        return _shut(request) if not guard.is_open else _to(request, "/", "")
    length = request.environ.get("CONTENT_LENGTH") or "0"
    if not length.isdecimal() or int(length) > _MOST_FORM:
        return _plain(request, 413, "Dashboard", empty("That is too much for a token."))
    data = request.environ["wsgi.input"].read(int(length))
    fields = dict(parse_qsl(data.decode("utf-8", "replace"), keep_blank_values=True, errors="replace"))
    if not guard.admits_token(fields.get("token", "").strip()):
        return _ask(request, 403, "That token is not the one of this dashboard.", fields.get("next", "/"))
    path, _, query = fields.get("next", "/").partition("?")
    # Only to a page that there is: no address of another host, no line break.
    known = path in _PAGES or any(path.startswith(beginning) for beginning in _NAMED)
    return _remember(request, guard, _to(request, path if known else "/", query if known else ""))


def _remember(request: Request, guard: Access, response: Response) -> Response:
    # By hand: WebOb's own asks for a time in a way that Python 3.12 and later warn of. Name and value are plain words,
    # and the prefix is percent-encoded.
    words = [
        f"{guard.cookie}={guard.cookie_value}",
        f"Path={_prefix(request) or '/'}",
        f"Max-Age={_REMEMBERED_S}",
        "HttpOnly",
        # A link that a colleague sends opens; nothing that is asked for from elsewhere changes anything.
        "SameSite=Lax",
        *(["Secure"] if request.scheme == "https" else []),
    ]
    response.headers["Set-Cookie"] = "; ".join(words)
    return response


# -- answers -------------------------------------------------------------------------------------------------------


def _page(request: Request, source: Source, path: str) -> Response:
    match = next((name for name in _NAMED if path.startswith(name)), None)
    if path not in _PAGES and match is None:
        return _plain(request, 404, "Not found", empty("There is no such page.", _home(request)))
    try:
        query = Query(request.query_string)
        span = query.span(time.time())
        store = Store(source.path(), read_only=True)
    except BadQuery as error:
        return _bad(request, error)
    except StoreError as error:
        return _without_store(request, source, error)
    try:
        with store.reading():
            service = source.service or store.meta("service.name") or "service"
            view = View(_prefix(request), path, query, span, store, source.settings, service)
            page = _PAGES[path](view) if match is None else _NAMED[match](view, _name(path.removeprefix(match)))
            text = framed(view, page)
    except BadQuery as error:
        return _bad(request, error)
    except READ_ERRORS as error:
        logger.warning("dashboard: %s: cannot be read: %s", store.path, error)
        told = tag("span", f"{type(error).__name__}: {error}. Try again in a moment.")
        what = empty("The store cannot be read just now.", told)
        return _plain(request, 503, "Dashboard", what)
    finally:
        store.close()
    return _html(text, page.status)


def _name(text: str) -> str:
    return text.encode("latin-1", "replace").decode("utf-8", "replace")


def _home(request: Request) -> Child:
    return tag("a", "To the overview", href=f"{_prefix(request)}/")


def _bad(request: Request, error: BadQuery) -> Response:
    return _plain(request, 400, "This address says something wrong", (empty(str(error)), tag("p", _home(request))))


def _without_store(request: Request, source: Source, error: StoreError) -> Response:
    name = source.service or "the service"
    if "no store yet" in str(error) or "still empty" in str(error):
        what = empty(
            f"Nothing was measured yet of {name}.", "Start it and send it a request; then load this page again."
        )
        return _plain(request, 200, "Dashboard", (what, tag("p", str(error), class_="dim mono")))
    return _plain(request, 503, "Dashboard", empty("The store cannot be opened.", tag("span", str(error))))


def _static(request: Request, name: str) -> Response:
    kind = _TYPES.get(name)
    if kind is None:
        return _plain(request, 404, "Not found", empty("There is no such page.", _home(request)))
    response = Response(
        body=(_STATIC / name).read_bytes(), content_type=kind, charset="utf-8", conditional_response=True
    )
    response.md5_etag()
    response.cache_control = "no-cache"  # asked for again each time, and answered by 304
    return response


def _plain(request: Request, status: int, title: str, body: Child) -> Response:
    """A page without navigation."""
    main = tag("main", tag("div", tag("h1", title), class_="head"), body, id="content", class_="plain")
    return _html(document(_prefix(request), title, main), status)


def _html(text: str, status: int) -> Response:
    response = Response(text, status=status, content_type="text/html", charset="utf-8")
    response.cache_control = "no-store"
    return response


def _to(request: Request, path: str, query: str) -> Response:
    """Elsewhere in the dashboard. Relative to the host, which a proxy may have given another name."""
    location = _prefix(request) + quote(path.encode("latin-1", "replace"), safe="/{}") + (f"?{query}" if query else "")
    response = Response(status=303, content_type="text/plain", charset="utf-8")
    # Not a host's name: a path that begins with two slashes would be taken for one.
    response.headers["Location"] = "/" + location.lstrip("/") if location.startswith("//") else location
    response.cache_control = "no-store"
    return response
