"""Addresses lose whatever a person would not show."""

from __future__ import annotations

import pytest

from paste_agent.addresses import bare, bare_within


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://shop.example/items/17?key=s3cret#top", "http://shop.example/items/17"),
        ("http://user:s3cret@shop.example:8080/x", "http://shop.example:8080/x"),
        ("http://user:s3/cret@shop.example/x", "http://shop.example/x"),
        ("http://user:s3?cret@shop.example/x", "http://shop.example/x"),
        ("http://user:s3@cret@shop.example/x", "http://shop.example/x"),
        ("user:s3cret@shop.example/x", "shop.example/x"),
        ("//user:s3cret@shop.example/x?a=b", "//shop.example/x"),
        ("postgresql://user:s3cret@[::1]:5432/shop", "postgresql://[::1]:5432/shop"),
        ("http://shop.example/@user/x", "http://shop.example/@user/x"),
        ("http://shop.example?mail=a@b", "http://shop.example"),
        ("/items/17?key=s3cret", "/items/17"),
        ("", ""),
    ],
)
def test_neither_user_nor_query(address: str, shown: str) -> None:
    assert bare(address) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("amqp://user:s3cret@mq.example//", "amqp://mq.example//"),
        ("GET http://user:s3 cret@shop.example/x?key=s3cret HTTP/1.1", "GET http://shop.example/x"),
        ("redis://:s3://cret@[::1]:6379/0", "redis://[::1]:6379/0"),
        ("http://shop.example/a, then amqp://user:s3cret@mq.example", "http://shop.example/a, then amqp://mq.example"),
        ("jdbc:postgresql://user:s3cret@db.example/shop?password=s3cret", "jdbc:postgresql://db.example/shop"),
        ("who? user@shop.example", "who? user@shop.example"),
        ("://", "://"),
        ("", ""),
        pytest.param("a://b/ " * 16 + "c", "a://b/ " * 16 + "c", id="16 addresses"),
        pytest.param("a://b/ " * 16 + "c://user:s3cret@d", "a://b/ " * 16 + "c", id="17 addresses"),
        pytest.param("://" * 1000, "://" * 16, id="slashes"),
    ],
)
def test_addresses_in_a_text(text: str, shown: str) -> None:
    assert bare_within(text) == shown
