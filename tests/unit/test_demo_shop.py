"""The demo shop, through the standard library's WSGI validator and below a URL prefix."""

from __future__ import annotations

import csv
import gc
import io
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote
from wsgiref.util import FileWrapper, setup_testing_defaults
from wsgiref.validate import validator

import pytest

from paste_agent.demo import basket, goods
from paste_agent.demo.catalogue import Catalogue
from paste_agent.demo.shop import Shop, main
from paste_agent.errors import SettingError

ROOT = Path(__file__).parents[2]
PAGES = ["/", "/?page=2", "/search", "/search?q=oak", "/search?q=zzz", "/item/3", "/basket", "/report/sales"]


@dataclass
class Answer:
    status: str
    headers: dict[str, str]
    body: bytes
    environ: dict[str, Any]

    @property
    def text(self) -> str:
        return self.body.decode("utf-8")

    @property
    def route(self) -> str | None:
        return self.environ.get("paste_agent.route")


@dataclass
class Visitor:
    """A browser with one cookie, and nothing more."""

    app: Shop
    prefix: str = "/shop"
    basket: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def get(self, url: str) -> Answer:
        return self.request("GET", url)

    def post(self, url: str) -> Answer:
        return self.request("POST", url)

    def request(self, method: str, url: str) -> Answer:
        path, _, query = url.partition("?")
        environ: dict[str, Any] = {
            "REQUEST_METHOD": method,
            "SCRIPT_NAME": self.prefix,
            "PATH_INFO": path,
            "QUERY_STRING": query,
        }
        setup_testing_defaults(environ)
        if method == "POST":
            environ["CONTENT_LENGTH"] = "0"
        if self.basket is not None:
            environ["HTTP_COOKIE"] = f"basket={self.basket}"
        environ.update(self.extra)
        return self._answer(environ)

    def _answer(self, environ: dict[str, Any]) -> Answer:
        started: list[Any] = []

        def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            started[:] = [status, headers]
            return lambda data: None

        iterable = validator(self.app)(environ, start_response)
        try:
            body = b"".join(iterable)
        finally:
            iterable.close()
        status, headers = started
        answer = Answer(status, dict(headers), body, environ)
        cookie = re.match(r"basket=([^;]*);.*Path=([^;]+)", answer.headers.get("Set-Cookie", ""))
        if cookie:
            assert cookie[2] == (self.prefix or "/")
            self.basket = cookie[1] or None
        return answer


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return main({"here": str(tmp_path)}, slow_s="0")


@pytest.fixture
def visitor(shop: Shop) -> Iterator[Visitor]:
    yield Visitor(shop)
    gc.collect()  # what was left open warns here, where the warning is an error


class Document(HTMLParser):
    """Fails at a tag that is not closed in order; collects links and ids."""

    VOID = frozenset(("meta", "link", "input", "img", "br"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


# -- pages -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", PAGES)
@pytest.mark.parametrize("prefix", ["", "/shop", "/a b/ü".encode().decode("latin-1")])
def test_pages_are_html_whose_links_keep_the_prefix(shop: Shop, url: str, prefix: str) -> None:
    answer = Visitor(shop, prefix, basket="3x1").get(url)
    assert answer.status == "200 OK"
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert answer.text.startswith("<!DOCTYPE html>")
    links = Document(answer.text).links
    expected = quote(prefix.encode("latin-1")) + "/"
    assert len(links) >= 8
    assert all(link.startswith(expected) for link in links)


@pytest.mark.parametrize(
    ("url", "route"),
    [
        ("/", "/"),
        ("/search?q=oak", "/search"),
        ("/item/3", "/item/{id}"),
        ("/item/999999", "/item/{id}"),
        ("/basket", "/basket"),
        ("/report/sales", "/report/sales"),
        ("/download/catalogue.csv", "/download/catalogue.csv"),
        ("/static/shop.css", "/static/{name}"),
        ("/static/nothing", "/static/{name}"),
        ("/nowhere", None),
        ("/item/3/4", None),
        ("/item/", None),
        ("/static/../shop.py", None),
    ],
)
def test_the_route_is_told_to_the_agent(visitor: Visitor, url: str, route: str | None) -> None:
    assert visitor.get(url).route == route


def test_every_product_is_on_some_page(visitor: Visitor) -> None:
    text = "".join(visitor.get(f"/?page={number}").text for number in range(1, 10))
    assert len(set(re.findall(r"/item/(\d+)", text))) == goods.PRODUCTS


@pytest.mark.parametrize("page", ["0", "-1", "99999999999999999999", "x", "", "%00", "%FF"])
def test_a_page_that_is_not_there_is_the_nearest(visitor: Visitor, page: str) -> None:
    assert visitor.get(f"/?page={page}").status == "200 OK"


@pytest.mark.parametrize(
    "url", ["/nowhere", "/item/0", "/item/201", "/item/x", "/item/²", "/item/" + "9" * 30, "/item/\xff"]
)
def test_not_found(visitor: Visitor, url: str) -> None:
    answer = visitor.get(url)
    assert answer.status == "404 Not Found"
    Document(answer.text)


@pytest.mark.parametrize(
    ("method", "url", "allow"),
    [
        ("POST", "/", "GET, HEAD"),
        ("GET", "/checkout", "POST"),
        ("HEAD", "/checkout", "POST"),
        ("GET", "/basket/3", "POST"),
        ("DELETE", "/item/3", "GET, HEAD"),
    ],
)
def test_other_methods_are_not_allowed(visitor: Visitor, method: str, url: str, allow: str) -> None:
    answer = visitor.request(method, url)
    assert answer.status == "405 Method Not Allowed"
    assert answer.headers["Allow"] == allow
    assert answer.route


@pytest.mark.parametrize("url", [*PAGES, "/download/catalogue.csv", "/static/shop.svg", "/nowhere"])
def test_head_is_get_without_a_body(visitor: Visitor, url: str) -> None:
    visitor.extra["wsgi.file_wrapper"] = FileWrapper
    got, head = visitor.get(url), visitor.request("HEAD", url)
    assert head.body == b""
    assert (head.status, head.headers) == (got.status, got.headers)


# -- search ----------------------------------------------------------------------------------------------------------


def test_search_finds_what_has_every_word(visitor: Visitor) -> None:
    text = visitor.get("/search?q=OAK+table").text
    names = re.findall(r'class="name">([^<]+)<', text)
    assert names
    assert all("oak" in name.lower() for name in names)


def test_search_tells_how_many_were_sold(visitor: Visitor, tmp_path: Path) -> None:
    text = visitor.get("/search?q=linen").text
    found = re.findall(r'href="/shop/item/([0-9]+)".*>([0-9]+) sold<', text)
    assert len(found) >= 10  # as many queries: what the agent calls repeated
    with closing(sqlite3.connect(tmp_path / "var" / "shop.sqlite")) as db:
        sold = dict(db.execute("SELECT product_id, sum(quantity) FROM order_lines GROUP BY product_id"))
    assert {int(number): int(pieces) for number, pieces in found} == {int(n): sold.get(int(n), 0) for n, _ in found}


@pytest.mark.parametrize(
    "query",
    [
        "<script>alert(1)</script>",
        '" onfocus="alert(1)',
        "';DROP TABLE products;--",
        "%",
        "_",
        "\\",
        "a" * 5000,
        "oak\0velvet",
        "&lt;",
        "{q}",
    ],
)
def test_hostile_searches_are_only_text(visitor: Visitor, query: str) -> None:
    answer = visitor.get(f"/search?q={quote(query)}")
    assert answer.status == "200 OK"
    assert "<script" not in answer.text
    assert 'onfocus="' not in answer.text
    Document(answer.text)
    assert "Nothing found" in answer.text
    assert visitor.get("/item/3").status == "200 OK"


@pytest.mark.parametrize("query", ["q=%FF%FE", "q=%ED%A0%80", "q", "&&==", "q=a&q=b", "%00=1", "q=%00"])
def test_malformed_queries_do_no_harm(visitor: Visitor, query: str) -> None:
    assert visitor.get(f"/search?{query}").status == "200 OK"


# -- basket and checkout ---------------------------------------------------------------------------------------------


def test_from_basket_to_order(visitor: Visitor, tmp_path: Path) -> None:
    added = visitor.post("/basket/3")
    assert added.status == "303 See Other"
    assert added.headers["Location"] == "http://127.0.0.1/shop/basket"
    visitor.post("/basket/3")
    visitor.post("/basket/40")
    assert visitor.basket == "3x2.40x1"
    page = visitor.get("/basket").text
    assert ">2</td>" in page
    assert '<span class="badge">3</span>' in page

    ordered = visitor.post("/checkout")
    assert ordered.status == "200 OK"
    assert visitor.basket is None
    number = int(re.findall(r"<strong>(\d+)</strong>", ordered.text)[0])
    assert number == goods.PAST_ORDERS + 1
    with closing(sqlite3.connect(tmp_path / "var" / "shop.sqlite")) as connection:
        lines = connection.execute(
            "SELECT product_id, quantity FROM order_lines WHERE order_id = ?", (number,)
        ).fetchall()
    assert sorted(lines) == [(3, 2), (40, 1)]
    assert "It is empty" in visitor.get("/basket").text


@pytest.mark.parametrize(
    "cookie", [None, "", "999x1", "x", "3x0", "3x-1", "3x100", "3x1x1", "\u0663x\u0661", "a" * 9000, "3.5"]
)
def test_an_empty_or_forged_basket_orders_nothing(visitor: Visitor, cookie: str | None) -> None:
    visitor.basket = cookie.encode().decode("latin-1") if cookie else cookie
    answer = visitor.post("/checkout")
    assert answer.status == "303 See Other"
    assert visitor.get("/report/sales").text.count(f"From {goods.PAST_ORDERS} orders") == 1


def test_what_is_not_sold_cannot_be_added(visitor: Visitor) -> None:
    assert visitor.post("/basket/999999").status == "404 Not Found"
    assert visitor.basket is None


def test_a_basket_is_bounded() -> None:
    content: dict[int, int] = {}
    for number in range(1, 100):
        content = basket.add(content, number)
    for _ in range(200):
        content = basket.add(content, 1)
    assert len(content) == basket.MOST_PRODUCTS
    assert content[1] == basket.MOST_PIECES
    assert basket.parse(basket.render(content)) == content


def test_a_failed_order_leaves_nothing_behind(tmp_path: Path) -> None:
    catalogue = Catalogue(str(tmp_path / "shop.sqlite"))
    with pytest.raises(OverflowError):
        catalogue.place_order({3: 2**70}, time.time())
    assert catalogue.sales(0).orders == goods.PAST_ORDERS
    assert catalogue.place_order({3: 1}, time.time()) == goods.PAST_ORDERS + 1


# -- the pages that an agent is bought for ---------------------------------------------------------------------------


def test_the_slow_page_takes_as_long_as_it_was_told(tmp_path: Path) -> None:
    ticks = iter(range(10_000))
    catalogue = Catalogue(str(tmp_path / "shop.sqlite"))
    quick = catalogue.sales(0)
    # A clock that moves a second at each look: the query looks until the time is up, and no longer.
    slow = catalogue.sales(100, clock=lambda: float(next(ticks)))
    assert next(ticks) == 101
    assert slow == quick
    assert slow.total_cents == sum(cents for _, _, cents in slow.by_category)


def test_the_failing_page_fails(visitor: Visitor) -> None:
    with pytest.raises(KeyError, match="founder"):
        visitor.get("/broken")


def test_the_download_is_streamed(visitor: Visitor) -> None:
    answer = visitor.get("/download/catalogue.csv")
    assert "Content-Length" not in answer.headers
    assert 200_000 < len(answer.body) < 900_000
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert len({row["sku"] for row in rows}) == len(rows) == goods.PRODUCTS * 24


def test_a_download_may_be_broken_off(shop: Shop) -> None:
    for taken in range(2):
        environ: dict[str, Any] = {"PATH_INFO": "/download/catalogue.csv"}
        setup_testing_defaults(environ)
        pieces: Any = shop(environ, lambda *_: lambda data: None)
        for _ in range(taken):
            assert len(next(pieces)) > 1000
        pieces.close()
    gc.collect()


@pytest.mark.parametrize("name", ["shop.css", "shop.svg"])
def test_static_files_with_and_without_a_file_wrapper(visitor: Visitor, name: str) -> None:
    plain = visitor.get(f"/static/{name}")
    made: list[FileWrapper] = []

    def wrapper(file: Any, size: int = 8192) -> FileWrapper:
        made.append(FileWrapper(file, size))
        return made[-1]

    visitor.extra["wsgi.file_wrapper"] = wrapper
    wrapped = visitor.get(f"/static/{name}")
    assert len(made) == 1
    assert made[0].filelike.closed
    assert wrapped.body == plain.body
    assert wrapped.headers == plain.headers
    assert plain.headers["Content-Length"] == str(len(plain.body))


def test_a_server_gets_its_own_wrapper_back(shop: Shop) -> None:
    environ: dict[str, Any] = {"PATH_INFO": "/static/shop.css", "wsgi.file_wrapper": FileWrapper}
    setup_testing_defaults(environ)
    body: Any = shop(environ, lambda *_: lambda data: None)
    assert type(body) is FileWrapper
    body.close()


# -- settings and the database ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"slow": "1"}, "[app:shop] slow = '1': unknown key; did you mean slow_s?"),
        ({"colour": "red"}, "[app:shop] colour = 'red': unknown key; known are database, slow_s"),
        ({"slow_s": "2,5"}, "[app:shop] slow_s = '2,5': expected seconds from 0 to 600, for example 2.5"),
        ({"slow_s": "nan"}, "[app:shop] slow_s = 'nan': expected seconds from 0 to 600, for example 2.5"),
        ({"database": " "}, "[app:shop] database = ' ': expected a path, for example %(here)s/var/shop.sqlite"),
    ],
)
def test_wrong_settings(conf: dict[str, str], message: str) -> None:
    with pytest.raises(SettingError) as caught:
        main({}, **conf)
    assert str(caught.value) == message


def test_a_message_names_the_section_as_it_is(tmp_path: Path) -> None:
    ini = tmp_path / "my.ini"
    ini.write_text("[app:market]\nuse = egg:paste_agent#demo\nslow_s = x\n")
    with pytest.raises(SettingError, match=r"^\[app:market\] slow_s"):
        main({"__file__": str(ini)}, slow_s="x")


def test_the_factory_opens_nothing(tmp_path: Path) -> None:
    main({"here": str(tmp_path)})
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_was_deleted_is_made_again(visitor: Visitor, tmp_path: Path) -> None:
    assert visitor.get("/item/3").status == "200 OK"
    (tmp_path / "var" / "shop.sqlite").unlink()
    assert visitor.get("/item/3").status == "200 OK"


@pytest.mark.parametrize("round_", range(2))
def test_processes_may_race_for_the_first_use(tmp_path: Path, round_: int) -> None:
    program = (
        "import sys, time\n"
        "from paste_agent.demo.catalogue import Catalogue\n"
        "catalogue = Catalogue(sys.argv[1])\n"
        "time.sleep(max(0.0, float(sys.argv[2]) - time.time()))\n"
        "print(catalogue.size(), *(catalogue.place_order({3: 1}, time.time()) for _ in range(5)))\n"
    )
    start = str(time.time() + 1.0)
    command = [sys.executable, "-W", "error", "-c", program, str(tmp_path / "new" / "shop.sqlite"), start]
    children = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(8)
    ]
    outputs = [child.communicate(timeout=60) for child in children]
    assert [error for _, error in outputs] == [""] * 8
    numbers = [[int(word) for word in output.split()] for output, _ in outputs]
    assert {size for size, *_ in numbers} == {goods.PRODUCTS}
    orders = sorted(order for _, *own in numbers for order in own)
    assert orders == list(range(goods.PAST_ORDERS + 1, goods.PAST_ORDERS + 41))
    with closing(sqlite3.connect(tmp_path / "new" / "shop.sqlite")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
