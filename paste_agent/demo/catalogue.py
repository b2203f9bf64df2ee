"""The shop's products and orders, in SQLite."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from paste_agent.demo import goods

#: How long a statement waits for another process's write, such as the seeding at the first start.
BUSY_TIMEOUT_S = 20.0
_VERSION = 1
_SCHEMA = (
    """CREATE TABLE products (
        id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, category TEXT NOT NULL,
        price_cents INTEGER NOT NULL, stock INTEGER NOT NULL, description TEXT NOT NULL)""",
    "CREATE TABLE orders (id INTEGER PRIMARY KEY, placed_at INTEGER NOT NULL)",
    """CREATE TABLE order_lines (
        order_id INTEGER NOT NULL REFERENCES orders (id), product_id INTEGER NOT NULL REFERENCES products (id),
        quantity INTEGER NOT NULL, price_cents INTEGER NOT NULL, PRIMARY KEY (order_id, product_id)) WITHOUT ROWID""",
)
_COLUMNS = "id, name, category, price_cents, stock, description"
# The classic slow report: the running total is summed anew for every order, from the first sale on. It is slow on
# purpose, and as slow on every machine: once through, it goes over the orders again until the time is up.
_RUNNING_TOTAL = """
    WITH RECURSIVE step (n, total_cents) AS (
        SELECT 0, 0
        UNION ALL
        SELECT n + 1, (SELECT sum(quantity * price_cents) FROM order_lines WHERE order_id <= n % :orders + 1)
        FROM step WHERE n < :orders OR elapsed_s() < :slow_s)
    SELECT max(total_cents) FROM step"""
_INSERT_LINES = "INSERT INTO order_lines (order_id, product_id, quantity, price_cents) VALUES (?, ?, ?, ?)"
_SOLD = "SELECT coalesce(sum(quantity), 0) FROM order_lines WHERE product_id = ?"
_BY_CATEGORY = """
    SELECT category, sum(quantity), sum(quantity * order_lines.price_cents)
    FROM order_lines JOIN products ON products.id = product_id
    GROUP BY category ORDER BY 3 DESC"""


@dataclass(frozen=True)
class Product:
    """One row of the catalogue."""

    id: int
    name: str
    category: str
    price_cents: int
    stock: int
    description: str


@dataclass(frozen=True)
class Sales:
    """What the sales report shows: rows of (category, units, cents), best first."""

    orders: int
    total_cents: int
    by_category: list[tuple[str, int, int]]


class Catalogue:
    """Opens the database anew for every use.

    Nothing is kept open, because the factory that makes this may run in a server's parent process: an SQLite handle
    that is carried over a fork corrupts the file.
    """

    def __init__(self, path: str) -> None:
        """path: of the database, which is made and filled at the first use."""
        self.path = path
        self._ready = False  # true of the file, not of the process: a forked child may inherit it

    def page(self, start: int, count: int) -> list[Product]:
        """`count` products from number `start` (0 for the first), by name."""
        with self._session() as connection:
            return _products(connection, "ORDER BY name LIMIT ? OFFSET ?", count, start)

    def size(self) -> int:
        """How many products there are."""
        with self._session() as connection:
            return int(connection.execute("SELECT count(*) FROM products").fetchone()[0])

    def search(self, words: str, most: int) -> list[Product]:
        """Up to `most` products that have every one of `words` in name or category."""
        patterns = [f"%{_literal(word)}%" for word in words.split()]
        each = r"(name LIKE ? ESCAPE '\' OR category LIKE ? ESCAPE '\')"
        where = " AND ".join([each] * len(patterns)) or "0"
        with self._session() as connection:
            twice = [pattern for pattern in patterns for _ in range(2)]
            return _products(connection, f"WHERE {where} ORDER BY name LIMIT ?", *twice, most)

    def sold(self, products: Sequence[Product]) -> dict[int, int]:
        """Pieces sold of each product, by its number. The demo's other bug: a query for each, where one would do."""
        with self._session() as connection:
            pieces = {}
            for product in products:  # no comprehension, which has no name in a stack
                pieces[product.id] = connection.execute(_SOLD, (product.id,)).fetchone()[0]
            return pieces

    def product(self, number: int) -> Product | None:
        """The product with that number."""
        with self._session() as connection:
            found = _products(connection, "WHERE id = ?", number)
        return found[0] if found else None

    def chosen(self, basket: Mapping[int, int]) -> list[tuple[Product, int]]:
        """The products of a basket (number to quantity) with their quantities, without numbers that do not exist."""
        if not basket:
            return []
        marks = ", ".join("?" * len(basket))
        with self._session() as connection:
            found = _products(connection, f"WHERE id IN ({marks}) ORDER BY name", *basket)
        return [(product, basket[product.id]) for product in found]

    def place_order(self, basket: Mapping[int, int], now_s: float) -> int:
        """Write an order, at today's prices; returns its number. now_s: Unix time."""
        lines = self.chosen(basket)
        with self._session() as connection, _transaction(connection):
            return _insert_order(connection, int(now_s), [(p.id, quantity, p.price_cents) for p, quantity in lines])

    def products(self) -> list[Product]:
        """Every product."""
        with self._session() as connection:
            return _products(connection, "ORDER BY id")

    def sales(self, slow_s: float, clock: Callable[[], float] = time.monotonic) -> Sales:
        """The sales report; it takes about `slow_s` seconds."""
        started = clock()
        with self._session() as connection:
            connection.create_function("elapsed_s", 0, lambda: clock() - started)
            orders = int(connection.execute("SELECT count(*) FROM orders").fetchone()[0])
            total = connection.execute(_RUNNING_TOTAL, {"orders": min(orders, 1000), "slow_s": slow_s}).fetchone()[0]
            return Sales(orders, int(total), list(connection.execute(_BY_CATEGORY)))

    @contextlib.contextmanager
    def _session(self) -> Iterator[sqlite3.Connection]:
        # Someone who deletes the file while the shop runs gets a new one, not an error until the next start.
        if not (self._ready and os.path.exists(self.path)):
            _prepare(self.path, time.time())
            self._ready = True
        with contextlib.closing(_connect(self.path)) as connection:
            yield connection


def _connect(path: str) -> sqlite3.Connection:
    # Without an isolation level the driver begins no transactions of its own: `_transaction` does.
    return sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    # Immediate: a transaction that reads first and writes later is refused, without a wait, if another wrote between.
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _prepare(path: str, now_s: float) -> None:
    """Make and fill the database unless it is there: safe to do in many processes at once."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with contextlib.closing(_connect(path)) as connection:
        if _version(connection) != _VERSION:
            with _transaction(connection):
                if _version(connection) != _VERSION:  # the process that was waited for has not filled it
                    _fill(connection, now_s)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            # SQLite refuses to change the mode while another process is at work. It is right in either mode, only
            # slower in the old one, and the next start tries again.
            pass


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _fill(connection: sqlite3.Connection, now_s: float) -> None:
    for statement in _SCHEMA:
        connection.execute(statement)
    stock = list(goods.products())
    connection.executemany(f"INSERT INTO products ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)", stock)
    prices = {product.number: product.price_cents for product in stock}
    # One statement for all orders: the first request would repeat a query otherwise, and the agent would tell.
    orders = list(enumerate(goods.past_orders(), start=1))
    connection.executemany(
        "INSERT INTO orders (id, placed_at) VALUES (?, ?)", [(id_, int(now_s) - order.age_s) for id_, order in orders]
    )
    connection.executemany(
        _INSERT_LINES,
        [(id_, number, quantity, prices[number]) for id_, order in orders for number, quantity in order.lines],
    )
    connection.execute(f"PRAGMA user_version = {_VERSION}")


def _insert_order(connection: sqlite3.Connection, placed_at: int, lines: list[tuple[int, int, int]]) -> int:
    """lines: (product number, quantity, price in cents)."""
    number = connection.execute("INSERT INTO orders (placed_at) VALUES (?)", (placed_at,)).lastrowid
    assert number is not None
    connection.executemany(_INSERT_LINES, [(number, *line) for line in lines])
    return number


def _products(connection: sqlite3.Connection, rest: str, *values: object) -> list[Product]:
    return [Product(*row) for row in connection.execute(f"SELECT {_COLUMNS} FROM products {rest}", values)]


def _literal(word: str) -> str:
    """`word` as a part of a LIKE pattern in which % and _ stand for themselves."""
    return word.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_")
