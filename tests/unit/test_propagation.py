"""W3C Trace Context, by the recommendation's own cases: https://www.w3.org/TR/trace-context/."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paste_agent.propagation import MAX_STATE_LENGTH, Parent, parse_traceparent, parse_tracestate

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = Parent(bytes.fromhex(TRACE), bytes.fromhex(SPAN), True)
UNSAMPLED = SAMPLED._replace(sampled=False)


@pytest.mark.parametrize(
    ("header", "parent"),
    [
        (f"00-{TRACE}-{SPAN}-01", SAMPLED),
        (f"00-{TRACE}-{SPAN}-00", UNSAMPLED),
        (f"00-{TRACE}-{SPAN}-ff", SAMPLED),
        (f"00-{TRACE}-{SPAN}-02", UNSAMPLED),
        (f"00-{TRACE}-{SPAN}-03", SAMPLED),
        (f" \t00-{TRACE}-{SPAN}-01 \t", SAMPLED),
        # A later version is read by its first four fields.
        (f"cc-{TRACE}-{SPAN}-01", SAMPLED),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like", SAMPLED),
        (f"cc-{TRACE}-{SPAN}-01-", SAMPLED),
        (f"fe-{TRACE}-{SPAN}-00", UNSAMPLED),
    ],
)
def test_valid_parents(header: str, parent: Parent) -> None:
    assert parse_traceparent(header) == parent


@pytest.mark.parametrize(
    "header",
    [
        "",
        "foo",
        "00",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-001",
        f"00-{TRACE}-{SPAN}-01-",
        f"00-{TRACE}-{SPAN}-01-extra",
        f"00-{TRACE}-{SPAN}-01.",
        f"cc-{TRACE}-{SPAN}-01.more",
        f"cc-{TRACE}-{SPAN}-0100",
        f"ff-{TRACE}-{SPAN}-01",
        f"0-{TRACE}-{SPAN}-01",
        f"000-{TRACE}-{SPAN}-01",
        f"0x-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN.upper()}-01",
        f"00-{TRACE}-{SPAN}-0A",
        f"0A-{TRACE}-{SPAN}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}0-{SPAN}-01",
        f"00-{TRACE}-{SPAN[:-1]}-01",
        f"00-{TRACE}-{SPAN}0-01",
        f"00-{TRACE[:-1]}.-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-x1",
        f"00_{TRACE}_{SPAN}_01",
        f"-00-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01,00-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01\n",
        f"cc-{TRACE}-{SPAN}-01-a\nb",
        f"00-{TRACE}-{SPAN}-\u0660\u0661",
        f"cc-{TRACE}-{SPAN}-01-" + "x" * 8192,
        "0" * 55,
    ],
)
def test_invalid_parents_start_a_new_trace(header: str) -> None:
    assert parse_traceparent(header) is None


MANY = [f"bar{number:02}={number:02}" for number in range(1, 34)]


@pytest.mark.parametrize(
    ("header", "passed_on"),
    [
        ("foo=1,bar=2", "foo=1,bar=2"),
        ("foo=1 \t , \t bar=2, \t baz=3", "foo=1,bar=2,baz=3"),
        ("foo=1,", "foo=1"),
        (",foo=1,,bar=2", "foo=1,bar=2"),
        ("", ""),
        (" , ,", ""),
        ("foo=a b", "foo=a b"),
        ("foo= a", "foo= a"),
        ("foo@=1,bar=2", ""),
        ("@foo=1,bar=2", ""),
        ("foo@@bar=1,bar=2", ""),
        ("foo@bar@baz=1,bar=2", ""),
        ("foo=1,foo=1", ""),
        ("foo=1,foo=2", ""),
        ("foo =1", ""),
        ("FOO=1", ""),
        ("foo.bar=1", ""),
        ("foo", ""),
        ("foo=", ""),
        ("=1", ""),
        ("foo=1=2", ""),
        ("foo=\x00", ""),
        ("foo=\u00e9", ""),
        ("foo=1;bar=2,x=1", ""),
        ("a" * 256 + "=1", "a" * 256 + "=1"),
        ("a" * 257 + "=1", ""),
        ("t" * 241 + "@" + "v" * 14 + "=1", "t" * 241 + "@" + "v" * 14 + "=1"),
        ("t" * 242 + "@v=1", ""),
        ("t@" + "v" * 15 + "=1", ""),
        ("0t@v=1", "0t@v=1"),
        ("t@0v=1", ""),
        ("foo=" + "v" * 256, "foo=" + "v" * 256),
        ("foo=" + "v" * 257, ""),
        ("a_-*/9=1", "a_-*/9=1"),
        (",".join(MANY[:32]), ",".join(MANY[:32])),
        (",".join(MANY), ""),
    ],
)
def test_states(header: str, passed_on: str) -> None:
    assert parse_tracestate(header) == passed_on


def test_a_long_state_loses_long_members_first() -> None:
    short = [f"k{number:02}={'v' * 60}" for number in range(7)]
    long = [f"x{number}={'y' * 130}" for number in range(2)]
    found = parse_tracestate(",".join([short[0], long[0], *short[1:], long[1]])).split(",")
    assert found == short
    assert len(",".join(found)) <= MAX_STATE_LENGTH


def test_a_long_state_of_short_members_loses_its_end() -> None:
    members = [f"k{number:02}={'v' * 60}" for number in range(20)]
    found = parse_tracestate(",".join(members))
    assert found == ",".join(members[:7])
    assert len(found) <= MAX_STATE_LENGTH < len(",".join(members[:8]))


_NEARLY = st.lists(st.sampled_from(["00", "ff", "cc", TRACE, SPAN, "-", "01", ",", "=", "a", "@", " ", "\t", "\udc80"]))


@given(st.one_of(st.text(), _NEARLY.map("".join), _NEARLY.map("-".join)))
def test_no_parent_raises(header: str) -> None:
    found = parse_traceparent(header)
    if found is not None:
        assert (len(found.trace_id), len(found.span_id)) == (16, 8)
        assert any(found.trace_id)
        assert any(found.span_id)


@given(st.one_of(st.text(), _NEARLY.map("".join), st.lists(st.from_regex(r"[a-z]{1,200}=[!-+]{1,300}")).map(",".join)))
def test_no_state_raises_nor_grows(header: str) -> None:
    found = parse_tracestate(header)
    assert len(found) <= MAX_STATE_LENGTH
    assert parse_tracestate(found) == found
    assert found.count(",") < 32


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=8, max_size=8), st.integers(0, 255))
def test_every_id_is_read(trace: bytes, span: bytes, flags: int) -> None:
    expected = Parent(trace, span, bool(flags & 1)) if any(trace) and any(span) else None
    assert parse_traceparent(f"00-{trace.hex()}-{span.hex()}-{flags:02x}") == expected
