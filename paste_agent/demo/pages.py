"""The shop's pages. Everything that comes from outside is escaped here, where it is put into HTML."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from paste_agent.demo.catalogue import Product, Sales

#: By this the traffic generator knows that it talks to this shop, and to nothing else.
MARK = "paste-agent demo shop"


@dataclass(frozen=True)
class Site:
    """What every page needs to know about the request."""

    prefix: str  #: the URL path that the shop is mounted at, percent-encoded: '' or such as '/shop'
    in_basket: int  #: pieces in the visitor's basket
    query: str = ""  #: what was searched for

    def link(self, path: str) -> str:
        """`path`, which starts with a slash, as the value of an attribute."""
        return html.escape(self.prefix + path)


def money(cents: int) -> str:
    """An amount with its currency as people read it, in HTML: `&euro;&nbsp;1,234.50`."""
    return f"&euro;&nbsp;{cents // 100:,}.{cents % 100:02d}"


def page(site: Site, title: str, body: str) -> str:
    """A whole page around `body`, which is HTML; `title` is text."""
    badge = f' <span class="badge">{site.in_basket}</span>' if site.in_basket else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="application-name" content="{MARK}">
<title>{html.escape(title)} - Larder &amp; Loft</title>
<link rel="icon" href="{site.link("/static/shop.svg")}" type="image/svg+xml">
<link rel="stylesheet" href="{site.link("/static/shop.css")}">
</head>
<body>
<header>
<a class="brand" href="{site.link("/")}">
<img src="{site.link("/static/shop.svg")}" alt="" width="36" height="36">Larder &amp; Loft</a>
<form class="search" action="{site.link("/search")}" method="get" role="search">
<input type="search" name="q" value="{html.escape(site.query)}"
placeholder="Search the shop" aria-label="Search the shop">
<button>Search</button>
</form>
<nav><a href="{site.link("/")}">Goods</a><a href="{site.link("/basket")}">Basket{badge}</a></nav>
</header>
<main>
<h1>{html.escape(title)}</h1>
{body}
</main>
<footer>
<p>A demo, made to be measured:
<a href="{site.link("/report/sales")}">a slow page</a>,
<a href="{site.link("/broken")}">a failing page</a>,
<a href="{site.link("/report/year")}">one that never ends</a>,
<a href="{site.link("/download/catalogue.csv")}">a download</a>.</p>
</footer>
</body>
</html>
"""


def listing(site: Site, products: Sequence[Product], number: int, last: int) -> str:
    """Page `number` of `last` of all goods, counted from 1."""
    steps = []
    if number > 1:
        steps.append(f'<a class="button quiet" rel="prev" href="{site.link(f"/?page={number - 1}")}">Previous</a>')
    steps.append(f"<span>Page {number} of {last}</span>")
    if number < last:
        steps.append(f'<a class="button quiet" rel="next" href="{site.link(f"/?page={number + 1}")}">Next</a>')
    return page(site, "All goods", f'{_cards(site, products)}\n<p class="steps">{"".join(steps)}</p>')


def found(site: Site, products: Sequence[Product], sold: Mapping[int, int]) -> str:
    """What a search found. sold: pieces, by number of the product."""
    if not site.query:
        return page(site, "Search", "<p>What are you looking for? Try a material, such as oak.</p>")
    if not products:
        none = f"<p>Nothing here matches <strong>{html.escape(site.query)}</strong>.</p>"
        return page(site, "Nothing found", none + _button(site, "/", "See all goods"))
    return page(site, f"Goods that match “{site.query}”", _cards(site, products, sold))


def item(site: Site, product: Product) -> str:
    """One product."""
    stock = f"{product.stock} in stock" if product.stock else "Made to order, two weeks"
    body = f"""<article class="item {_css_class(product)}">
<p class="tag">{html.escape(product.category)}</p>
<p>{html.escape(product.description)}</p>
<p class="price">{money(product.price_cents)}</p>
<p class="quiet-text">{stock} &middot; No. {product.id}</p>
<form action="{site.link(f"/basket/{product.id}")}" method="post"><button>Add to basket</button></form>
</article>"""
    return page(site, product.name, body)


def basket(site: Site, lines: Sequence[tuple[Product, int]]) -> str:
    """The visitor's basket."""
    if not lines:
        return page(site, "Your basket", "<p>It is empty.</p>" + _button(site, "/", "See all goods"))
    rows = [
        (
            f'<a href="{site.link(f"/item/{product.id}")}">{html.escape(product.name)}</a>',
            str(quantity),
            money(quantity * product.price_cents),
        )
        for product, quantity in lines
    ]
    total = money(sum(quantity * product.price_cents for product, quantity in lines))
    body = _table(("Product", "Pieces", "Price"), rows, ("Total", "", total))
    form = f'<form action="{site.link("/checkout")}" method="post"><button>Order now</button></form>'
    return page(site, "Your basket", f"{body}\n{form}")


def ordered(site: Site, number: int) -> str:
    """Thanks for an order."""
    body = f"<p>Order number <strong>{number}</strong> is written down. Nothing will be sent: this is a demo.</p>"
    return page(site, "Thank you", body + _button(site, "/", "Back to the goods"))


def report(site: Site, sales: Sales) -> str:
    """The sales report."""
    rows = [(html.escape(category), f"{units:,}", money(cents)) for category, units, cents in sales.by_category]
    total = ("Total", f"{sum(row[1] for row in sales.by_category):,}", money(sum(row[2] for row in sales.by_category)))
    note = f'<p class="quiet-text">From {sales.orders:,} orders. This page is slow on purpose.</p>'
    return page(site, "Sales", _table(("Category", "Pieces", "Revenue"), rows, total) + note)


def problem(site: Site, title: str, text: str) -> str:
    """A page that says what went wrong; both are text."""
    return page(site, title, f"<p>{html.escape(text)}</p>" + _button(site, "/", "See all goods"))


def _cards(site: Site, products: Iterable[Product], sold: Mapping[int, int] | None = None) -> str:
    cards = "\n".join(
        f'<li class="{_css_class(product)}"><a href="{site.link(f"/item/{product.id}")}">'
        f'<span class="tag">{html.escape(product.category)}</span>'
        f'<span class="name">{html.escape(product.name)}</span>'
        f'<span class="price">{money(product.price_cents)}</span>{_sold(product, sold)}</a></li>'
        for product in products
    )
    return f'<ul class="cards">\n{cards}\n</ul>'


def _sold(product: Product, sold: Mapping[int, int] | None) -> str:
    return "" if sold is None else f'<span class="quiet-text">{sold[product.id]} sold</span>'


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], foot: Sequence[str]) -> str:
    """Cells are HTML."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in heads)
    lines = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    last = "".join(f"<td>{cell}</td>" for cell in foot)
    return (
        f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody>\n<tfoot><tr>{last}</tr></tfoot>\n</table>"
    )


def _button(site: Site, path: str, text: str) -> str:
    return f'<p><a class="button" href="{site.link(path)}">{html.escape(text)}</a></p>'


def _css_class(product: Product) -> str:
    return html.escape("kind-" + quote(product.category.lower()))
