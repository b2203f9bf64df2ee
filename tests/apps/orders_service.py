"""Two services of one shop, as somebody would write them: orders (Pyramid, SQLAlchemy, PostgreSQL) asks prices.

Neither knows of the agent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import jinja2
import requests
import sqlalchemy
from pyramid.config import Configurator
from pyramid.response import Response
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

PAGE = jinja2.Environment(autoescape=True).from_string(
    "{% for line in lines %}{{ line.good }}: {{ line.count }} at {{ prices[line.good] }}\n{% endfor %}"
)
PAUSE_S = 0.02


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[str]
    lines: Mapped[list[Line]] = relationship(order_by="Line.id")


class Line(Base):
    __tablename__ = "lines"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(sqlalchemy.ForeignKey("orders.id"))
    good: Mapped[str]
    count: Mapped[int]


def fill(url: str) -> None:
    """Make the tables, with one order of two lines."""
    engine = sqlalchemy.create_engine(url)
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        lines = [Line(id=1, good="tea", count=2), Line(id=2, good="cups", count=6)]
        session.add(Order(id=17, customer="s3cret customer", lines=lines))
        session.commit()
    engine.dispose()


def show_order(request: Any) -> Response:
    settings = request.registry.settings
    with Session(request.registry.engine) as session:
        order = session.get(Order, int(request.matchdict["id"]))
        if order is None:
            raise LookupError("no such order")
        lines = list(order.lines)
        session.execute(sqlalchemy.text("SELECT pg_sleep(0.02) WHERE 's3cret literal' <> ''"))
    asked = requests.get(
        f"{settings['prices']}/prices", params={"goods": ",".join(one.good for one in lines)}, timeout=30
    )
    asked.raise_for_status()
    return Response(PAGE.render(lines=lines, prices=asked.json()), content_type="text/plain")


def many_queries(request: Any) -> Response:
    with Session(request.registry.engine) as session:
        for number in range(12):
            session.execute(sqlalchemy.text("SELECT good FROM lines WHERE id = :id"), {"id": number})
    return Response("done")


def orders(global_conf: dict[str, str], **settings: str) -> Any:
    config = Configurator(settings=settings)
    config.registry.engine = sqlalchemy.create_engine(settings["database"], pool_size=10)
    config.add_route("order", "/orders/{id}")
    config.add_route("many", "/many")
    config.add_view(show_order, route_name="order")
    config.add_view(many_queries, route_name="many")
    return config.make_wsgi_app()


def prices(global_conf: dict[str, str], **settings: str) -> Any:
    config = Configurator(settings=settings)
    config.add_route("prices", "/prices")
    config.add_view(show_prices, route_name="prices", renderer="json")
    return config.make_wsgi_app()


def show_prices(request: Any) -> dict[str, int]:
    time.sleep(PAUSE_S)
    return dict.fromkeys(request.params["goods"].split(","), 3)


def pausing_filter(global_conf: dict[str, str]) -> Callable[..., Any]:
    """A filter that takes a while by itself."""

    def pausing(app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
        def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            time.sleep(PAUSE_S / 2)
            return app(environ, start_response)

        return application

    return pausing
