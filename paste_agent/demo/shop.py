"""The demo shop, a WSGI application: `[app:shop] use = egg:paste_agent#demo`.

Beside the ordinary pages of a shop it has what a monitoring agent is bought for: a slow page, a failing page, one
that repeats a query, one that outlasts gunicorn's patience, a streamed download, and a static file.
"""

from __future__ import annotations

import csv
import difflib
import io
import mimetypes
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote

from webob import Request, Response

from paste_agent import ini
from paste_agent.demo import basket, pages
from paste_agent.demo.catalogue import Catalogue, Product
from paste_agent.errors import IniError, SettingError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

#: Where an application tells the agent the name of the route that it chose.
ROUTE_KEY = "paste_agent.route"

_SETTINGS = {"database": os.path.join("var", "shop.sqlite"), "slow_s": "2.5"}
_MOST_SLOW_S = 600.0
#: Longer than gunicorn waits for a worker unless it is told to; the page ends all the same, for servers that wait on.
_ENDLESS_S = 90.0
_PER_PAGE = 24
_MOST_FOUND = 48
_LONGEST_QUERY = 100
_PRODUCTS_PER_CHUNK = 5
_STATIC = Path(__file__).with_name("static")
_FINISHES = ("natural", "white", "slate", "moss", "clay", "indigo", "sand", "rust")
_PACKS = (1, 2, 6)
_LOYALTY_DISCOUNTS = {"new": 0, "regular": 5, "friend": 10}

_Handler = Callable[[Request, str], Response]


class Shop:
    """The WSGI application. It keeps no open file, handle, thread or lock: servers may fork after it is made."""

    def __init__(self, catalogue: Catalogue, slow_s: float) -> None:
        """slow_s: how long the slow page takes."""
        self._catalogue = catalogue
        self._slow_s = slow_s
        self._static = {file.name: file for file in _STATIC.iterdir() if file.suffix in (".css", ".svg")}
        table: list[tuple[str, str, _Handler]] = [
            ("GET", "/", self._list),
            ("GET", "/search", self._search),
            ("GET", "/item/{id}", self._item),
            ("GET", "/basket", self._basket),
            ("POST", "/basket/{id}", self._add),
            ("POST", "/checkout", self._checkout),
            ("GET", "/report/sales", self._report),
            ("GET", "/report/year", self._year),
            ("GET", "/broken", self._broken),
            ("GET", "/download/catalogue.csv", self._download),
            ("GET", "/static/{name}", self._static_file),
        ]
        self._routes = [(method, template, _pattern(template), handler) for method, template, handler in table]

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request. Source: PEP 3333."""
        response: WSGIApplication = self._respond(Request(environ))
        return response(environ, start_response)

    def _respond(self, request: Request) -> Response:
        # The raw path: WebOb's decodes it, and raises for one that is not UTF-8. Every template is ASCII.
        path = request.environ.get("PATH_INFO") or "/"
        method = "GET" if request.method == "HEAD" else request.method
        allowed = []
        for route_method, template, pattern, handler in self._routes:
            match = pattern.fullmatch(path)
            if not match:
                continue
            request.environ[ROUTE_KEY] = template
            if route_method == method:
                return handler(request, match[1] if pattern.groups else "")
            allowed.append("GET, HEAD" if route_method == "GET" else route_method)
        if allowed:
            text = "This address does not take such a request."
            response = _page(pages.problem(_site(request), "Not allowed", text), 405)
            response.headers["Allow"] = ", ".join(allowed)
            return response
        return self._missing(request)

    def _missing(self, request: Request, what: str = "There is no such page.") -> Response:
        return _page(pages.problem(_site(request), "Not found", what), 404)

    def _list(self, request: Request, _: str) -> Response:
        last = max(1, -(-self._catalogue.size() // _PER_PAGE))
        number = min(max(1, _whole_number(_argument(request, "page")) or 1), last)
        products = self._catalogue.page((number - 1) * _PER_PAGE, _PER_PAGE)
        return _page(pages.listing(_site(request), products, number, last))

    def _search(self, request: Request, _: str) -> Response:
        text = _argument(request, "q")[:_LONGEST_QUERY]
        # Control characters are not allowed in HTML, and a NUL would end SQLite's pattern.
        query = "".join(letter if letter.isprintable() else " " for letter in text).strip()
        products = self._catalogue.search(query, _MOST_FOUND) if query else []
        return _page(pages.found(_site(request, query), products, self._catalogue.sold(products)))

    def _item(self, request: Request, text: str) -> Response:
        product = self._product(text)
        if product is None:
            return self._missing(request, "We have no such product.")
        return _page(pages.item(_site(request), product))

    def _product(self, text: str) -> Product | None:
        number = _whole_number(text)
        return None if number is None else self._catalogue.product(number)

    def _basket(self, request: Request, _: str) -> Response:
        return _page(pages.basket(_site(request), self._catalogue.chosen(_basket_of(request))))

    def _add(self, request: Request, text: str) -> Response:
        product = self._product(text)
        if product is None:
            return self._missing(request, "We have no such product.")
        response = _to_basket(request)
        _set_basket(request, response, basket.add(_basket_of(request), product.id))
        return response

    def _checkout(self, request: Request, _: str) -> Response:
        chosen = {product.id: quantity for product, quantity in self._catalogue.chosen(_basket_of(request))}
        if not chosen:
            return _to_basket(request)
        number = self._catalogue.place_order(chosen, time.time())
        response = _page(pages.ordered(_site(request, emptied=True), number))
        _set_basket(request, response, {})
        return response

    def _report(self, request: Request, _: str) -> Response:
        return _page(pages.report(_site(request), self._catalogue.sales(self._slow_s)))

    def _year(self, request: Request, _: str) -> Response:
        # The demo's worst bug: it waits for somebody who never comes.
        time.sleep(_ENDLESS_S)
        return self._report(request, _)

    def _broken(self, request: Request, _: str) -> Response:
        products = self._catalogue.page(0, _PER_PAGE)
        offers = [_loyalty_price_cents(product, "founder") for product in products]
        return _page(pages.problem(_site(request), "Offers", f"{len(offers)} offers for founders."))

    def _download(self, request: Request, _: str) -> Response:
        response = Response(content_type="text/csv", charset="utf-8", app_iter=_csv(self._catalogue.products))
        response.content_disposition = 'attachment; filename="catalogue.csv"'
        return response

    def _static_file(self, request: Request, name: str) -> Response:
        path = self._static.get(name)
        if path is None:
            return self._missing(request)
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        response = Response(content_type=kind, cache_control="max-age=3600")
        wrapper = request.environ.get("wsgi.file_wrapper")
        if wrapper is None:
            response.body = path.read_bytes()
        else:
            file = path.open("rb")  # the server closes it, through the wrapper
            response.app_iter = wrapper(file, 65536)
            response.content_length = os.fstat(file.fileno()).st_size
        return response


def main(global_conf: Mapping[str, str], **local_conf: str) -> Shop:
    """The factory of `paste.app_factory`.

    database: path of the SQLite file, relative to the ini; made and filled at the first request.
    slow_s: how many seconds the slow page takes.
    Raises SettingError for any other key, and for a value that cannot be used.
    """
    values = {**_SETTINGS, **local_conf}
    for key in local_conf:
        if key not in _SETTINGS:
            near = difflib.get_close_matches(key, _SETTINGS, n=1)
            cure = f"unknown key; did you mean {near[0]}?" if near else f"unknown key; known are {', '.join(_SETTINGS)}"
            raise SettingError(f"[{_section(global_conf)}] {key}", local_conf[key], cure)
    database = values["database"].strip()
    if not database or "\0" in database:
        place = f"[{_section(global_conf)}] database"
        raise SettingError(place, values["database"], "expected a path, for example %(here)s/var/shop.sqlite")
    here = global_conf.get("here") or os.getcwd()
    return Shop(Catalogue(os.path.join(here, os.path.expanduser(database))), _slow_s(values["slow_s"], global_conf))


def _slow_s(text: str, global_conf: Mapping[str, str]) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= _MOST_SLOW_S:  # a NaN fails too
        cure = f"expected seconds from 0 to {_MOST_SLOW_S:g}, for example {_SETTINGS['slow_s']}"
        raise SettingError(f"[{_section(global_conf)}] slow_s", text, cure)
    return seconds


def _section(global_conf: Mapping[str, str]) -> str:
    """The section that the factory was probably called for, for messages: PasteDeploy does not tell it."""
    path = global_conf.get("__file__")
    try:
        parser = ini.parser_of(path) if path else None
    except IniError:
        parser = None
    sections = parser.sections() if parser else []
    ours = [name for name in sections if parser and parser.get(name, "use", fallback="").strip().endswith("#demo")]
    return " or ".join(ours) or "app:shop"


def _pattern(template: str) -> re.Pattern[str]:
    """`/item/{id}` as an expression with a group for what stands between the braces."""
    literals = re.split(r"\{\w+\}", template)
    return re.compile("([^/]+)".join(re.escape(literal) for literal in literals))


def _whole_number(text: str) -> int | None:
    # Nine digits: what SQLite and every reader can hold, and no product has more.
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else None


def _argument(request: Request, name: str) -> str:
    """The first value of `name` in the query, '' for none. WebOb's own raises for bytes that are not UTF-8."""
    pairs = parse_qsl(request.environ.get("QUERY_STRING", ""), errors="replace")
    return next((value for key, value in pairs if key == name), "")


def _site(request: Request, query: str = "", *, emptied: bool = False) -> pages.Site:
    pieces = 0 if emptied else sum(_basket_of(request).values())
    return pages.Site(_prefix(request), pieces, query)


def _prefix(request: Request) -> str:
    # WSGI carries the path's bytes as latin-1. Source: PEP 3333, unicode issues.
    return quote(request.environ.get("SCRIPT_NAME", "").encode("latin-1"))


def _page(text: str, status: int = 200) -> Response:
    response = Response(text, status=status, content_type="text/html", charset="utf-8")
    response.headers["Content-Security-Policy"] = "default-src 'self'"
    return response


def _to_basket(request: Request) -> Response:
    return Response(status=303, location=f"{_prefix(request)}/basket")


def _basket_of(request: Request) -> dict[int, int]:
    return basket.parse(request.cookies.get(basket.COOKIE, ""))


def _set_basket(request: Request, response: Response, content: Mapping[int, int]) -> None:
    path: dict[str, Any] = {"path": _prefix(request) or "/"}
    if content:
        response.set_cookie(basket.COOKIE, basket.render(content), httponly=True, samesite="Lax", **path)
    else:
        response.delete_cookie(basket.COOKIE, **path)


def _loyalty_price_cents(product: Product, tier: str) -> int:
    """The price for a customer of `tier`. The demo's bug: nobody entered the discount of the newest tier."""
    return product.price_cents * (100 - _LOYALTY_DISCOUNTS[tier]) // 100


def _csv(read: Callable[[], Sequence[Product]]) -> Iterator[bytes]:
    """The price list, a few hundred kilobytes in pieces: a row for each product, finish and size of pack.

    read: asked at the first piece, and done before it is sent, so that a slow client keeps no database open.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(("sku", "name", "category", "finish", "pack", "price", "description"))
    for count, product in enumerate(read(), start=1):
        for finish in _FINISHES:
            for pack in _PACKS:
                price = f"{product.price_cents * pack / 100:.2f}"
                sku = f"{product.id:04d}-{finish[:3].upper()}-{pack}"
                writer.writerow((sku, product.name, product.category, finish, pack, price, product.description))
        if count % _PRODUCTS_PER_CHUNK == 0:
            yield buffer.getvalue().encode()
            buffer.seek(0)
            buffer.truncate()
    yield buffer.getvalue().encode()
