"""Addresses lose whatever a person would not show."""

from __future__ import annotations

import pytest

from paste_agent.addresses import bare


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
