"""Trace context and baggage: the recommendations' examples, the cases of W3C's test suite, and what else may come."""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from paste_agent import propagation
from paste_agent.propagation import (
    MAX_BAGGAGE_LENGTH,
    MAX_BAGGAGE_MEMBERS,
    MAX_LIST_LENGTH,
    MAX_MEMBERS,
    MAX_PARENT_LENGTH,
    MAX_STATE_LENGTH,
    Parent,
    baggage_members,
    format_traceparent,
    parent_of,
    parse_b3,
    parse_b3_multi,
    parse_baggage,
    parse_jaeger,
    parse_traceparent,
    parse_tracestate,
)

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = Parent(bytes.fromhex(TRACE), bytes.fromhex(SPAN), True)
UNSAMPLED = SAMPLED._replace(sampled=False)


@pytest.mark.parametrize(
    ("header", "parent"),
    [
        (f"00-{TRACE}-{SPAN}-01", SAMPLED),
        (f"00-{TRACE}-{SPAN}-00", UNSAMPLED),
        (f"00-{TRACE}-{SPAN}-ff", SAMPLED),
        # Level 2's second flag, of trace ids that are random, is not the first.
        (f"00-{TRACE}-{SPAN}-02", UNSAMPLED),
        (f"00-{TRACE}-{SPAN}-03", SAMPLED),
        (f"00-{TRACE}-{SPAN}-09", SAMPLED),
        (f"00-{TRACE}-{SPAN}-fe", UNSAMPLED),
        (f" \t00-{TRACE}-{SPAN}-01 \t", SAMPLED),
        # A later version is read by its first four fields.
        (f"cc-{TRACE}-{SPAN}-01", SAMPLED),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like", SAMPLED),
        (f"cc-{TRACE}-{SPAN}-01-", SAMPLED),
        (f"fe-{TRACE}-{SPAN}-00", UNSAMPLED),
        (f"01-{TRACE}-{SPAN}-03", SAMPLED),
        (f"cc-{TRACE}-{SPAN}-01-{'x' * (MAX_PARENT_LENGTH - 56)}", SAMPLED),
        # Of what a later version adds nothing is assumed, not even that it has no comma.
        (f"cc-{TRACE}-{SPAN}-01-a,b", SAMPLED),
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
        f".0-{TRACE}-{SPAN}-01",
        f"0.-{TRACE}-{SPAN}-01",
        f"0000-{TRACE}-{SPAN}-01",
        f"ff-{TRACE}-{SPAN}-01-more",
        f"cc-{TRACE}-{SPAN}-",
        f"cc-{'0' * 32}-{SPAN}-01",
        f"cc-{TRACE.upper()}-{SPAN}-01",
        f"CC-{TRACE}-{SPAN}-01",
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
        f"00-{TRACE}-{SPAN[:-1]}.-01",
        f"00-{TRACE}-{SPAN}-x1",
        f"00-{TRACE}-{SPAN}-.0",
        f"00-{TRACE}-{SPAN}-0.",
        f"00-{TRACE} -{SPAN}-01",
        f"00_{TRACE}_{SPAN}_01",
        f"-00-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01,00-{TRACE}-{SPAN}-01",
        f"cc-{TRACE}-{SPAN}-01, cc-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01\n",
        f"cc-{TRACE}-{SPAN}-01-a\nb",
        f"00-{TRACE}-{SPAN}-\u0660\u0661",
        f"cc-{TRACE}-{SPAN}-01-{'x' * (MAX_PARENT_LENGTH - 55)}",
        "0" * 55,
    ],
)
def test_invalid_parents_start_a_new_trace(header: str) -> None:
    assert parse_traceparent(header) is None


@pytest.mark.parametrize(("sampled", "flags"), [(True, "01"), (False, "00")])
def test_a_parent_is_formatted_in_lower_case(sampled: bool, flags: str) -> None:
    assert format_traceparent(bytes.fromhex(TRACE), bytes.fromhex(SPAN), sampled) == f"00-{TRACE}-{SPAN}-{flags}"


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
        ("foo= a \t ", "foo= a"),
        ("foo=1 \t , \t bar=2 ", "foo=1,bar=2"),
        ("foo=a\tb", ""),
        ("foo=  ", ""),
        ("foo=1\n", ""),
        ("foo=1\xa0", ""),
        ("foo=" + "v" * 256 + " ", "foo=" + "v" * 256),
        # Several headers are joined by commas, and one of them may be empty.
        ("foo=1,bar=2,rojo=1,congo=2,baz=3", "foo=1,bar=2,rojo=1,congo=2,baz=3"),
        ("rojo=00f067aa0ba902b7", "rojo=00f067aa0ba902b7"),
        ("rojo=00f067aa0ba902b7, congo=t61rcWkgMzE", "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"),
        ("congo=first,rojo=first,congo=second", ""),
        # Level 2: an at sign is a character like others, and so is a digit at the beginning.
        ("fw529a3039@dt=FfAAAA", "fw529a3039@dt=FfAAAA"),
        ("foo@=1,bar=2", "foo@=1,bar=2"),
        ("foo@@bar=1,bar=2", "foo@@bar=1,bar=2"),
        ("foo@bar@baz=1,bar=2", "foo@bar@baz=1,bar=2"),
        ("0foo=1", "0foo=1"),
        ("@foo=1,bar=2", ""),
        ("_foo=1", ""),
        ("-foo=1", ""),
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
        ("t" * 242 + "@v=1", "t" * 242 + "@v=1"),
        ("t" * 255 + "@=1", "t" * 255 + "@=1"),
        ("t" * 256 + "@=1", ""),
        ("0t@v=1", "0t@v=1"),
        ("t@0v=1", "t@0v=1"),
        ("foo=" + "v" * 256, "foo=" + "v" * 256),
        ("foo=" + "v" * 257, ""),
        ("a_-*/9=1", "a_-*/9=1"),
        (",".join(MANY[:32]), ",".join(MANY[:32])),
        (",,".join(MANY[:32]), ",".join(MANY[:32])),
        (",".join(MANY), ""),
        ("foo=1" + "," * MAX_LIST_LENGTH, ""),
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


def test_every_character_that_a_state_allows() -> None:
    key = string.ascii_lowercase + string.digits + "_-*/@"
    value = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) not in ",=")
    assert parse_tracestate(f"{key}={value}") == f"{key}={value}"


def test_of_long_members_of_a_state_the_first_stays_longest() -> None:
    own, other = f"own={'v' * 200}", f"other={'v' * 250}"
    assert parse_tracestate(f"{own},{other},last={'v' * 100}") == f"{own},last={'v' * 100}"


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
    assert found.count(",") < MAX_MEMBERS
    assert all(member in header for member in found.split(","))


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=8, max_size=8), st.integers(0, 255))
def test_every_id_is_read(trace: bytes, span: bytes, flags: int) -> None:
    expected = Parent(trace, span, bool(flags & 1)) if any(trace) and any(span) else None
    assert parse_traceparent(f"00-{trace.hex()}-{span.hex()}-{flags:02x}") == expected


TRACE_IDS = st.binary(min_size=16, max_size=16).filter(any)
SPAN_IDS = st.binary(min_size=8, max_size=8).filter(any)


@given(TRACE_IDS, SPAN_IDS, st.booleans())
def test_what_is_formatted_is_read_again(trace: bytes, span: bytes, sampled: bool) -> None:
    assert parse_traceparent(format_traceparent(trace, span, sampled)) == Parent(trace, span, sampled)


OCTETS = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '",;\\')
TOKEN = string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~"


@pytest.mark.parametrize(
    ("header", "passed_on", "members"),
    [
        # The recommendation's own.
        (
            "key1=value1;property1;property2, key2 = value2, key3=value3; propertyKey=propertyValue",
            "key1=value1;property1;property2,key2=value2,key3=value3;propertyKey=propertyValue",
            {"key1": "value1", "key2": "value2", "key3": "value3"},
        ),
        (
            "userId=alice,serverNode=DF%2028,isProduction=false",
            "userId=alice,serverNode=DF%2028,isProduction=false",
            {"userId": "alice", "serverNode": "DF 28", "isProduction": "false"},
        ),
        (
            "userId =   alice,serverNode = DF%2028, isProduction = false",
            "userId=alice,serverNode=DF%2028,isProduction=false",
            {"userId": "alice", "serverNode": "DF 28", "isProduction": "false"},
        ),
        ("userId=Am%C3%A9lie", "userId=Am%C3%A9lie", {"userId": "Am\u00e9lie"}),
        # White space, and where it is not optional.
        ("k \t = \t v \t ; \t p \t = \t q \t , \t l = w ; x", "k=v;p=q,l=w;x", {"k": "v", "l": "w"}),
        ("k\t=v,l=w\t", "k=v,l=w", {"k": "v", "l": "w"}),
        ("a b=1,k=v", "k=v", {"k": "v"}),
        ("a=1 2,k=v", "k=v", {"k": "v"}),
        ("a=1;p=q r,k=v", "k=v", {"k": "v"}),
        ("a=1\n,k=v", "k=v", {"k": "v"}),
        # Equal signs belong to the value.
        ("k=v=w==", "k=v=w==", {"k": "v=w=="}),
        ("k=v;p=q=r", "k=v;p=q=r", {"k": "v"}),
        ("k = a = b", "", {}),
        # A value may be empty, a key may not.
        ("k=", "k=", {"k": ""}),
        ("k=;p=", "k=;p=", {"k": ""}),
        ("=v,k=w", "k=w", {"k": "w"}),
        ("v,k=w", "k=w", {"k": "w"}),
        ("k=v;,l=w", "l=w", {"l": "w"}),
        ("k=v;=q,l=w", "l=w", {"l": "w"}),
        ("k;p=q,l=w", "l=w", {"l": "w"}),
        # Neither empty members nor characters out of range take others with them.
        ("", "", {}),
        (" , ,\t", "", {}),
        (",k=v,,l=w,", "k=v,l=w", {"k": "v", "l": "w"}),
        ('k="v",l=w', "l=w", {"l": "w"}),
        ("k=a\\b,l=w", "l=w", {"l": "w"}),
        ("k=\u00e9,l=w", "l=w", {"l": "w"}),
        ("k\u00e9=v,l=w", "l=w", {"l": "w"}),
        ("k=\udcff,l=w", "l=w", {"l": "w"}),
        ("k=\x7f,l=\x00,m=w", "m=w", {"m": "w"}),
        ("k=\u0661,l=w", "l=w", {"l": "w"}),
        ("k/x=v,k(x=v,k@x=v,l=w", "l=w", {"l": "w"}),
        # A key may occur twice; the last counts.
        ("k=1,l=2,k=3", "k=1,l=2,k=3", {"k": "3", "l": "2"}),
        # Decoding: only the value's, only once, only percent signs, and never in vain.
        ("k%20=v", "k%20=v", {"k%20": "v"}),
        ("k=%2520", "k=%2520", {"k": "%20"}),
        ("k=a+b", "k=a+b", {"k": "a+b"}),
        ("k=50%", "k=50%", {"k": "50%"}),
        ("k=%zz%e", "k=%zz%e", {"k": "%zz%e"}),
        ("k=%c3%A9%2c%3B%22", "k=%c3%A9%2c%3B%22", {"k": '\u00e9,;"'}),
        ("k=a%FFb", "k=a%FFb", {"k": "a\ufffdb"}),
        ("k=%ED%A0%80", "k=%ED%A0%80", {"k": "\ufffd\ufffd\ufffd"}),
        ("k=%09%20%22%27%3B%3Dasdf%21%40%23%24", "k=%09%20%22%27%3B%3Dasdf%21%40%23%24", {"k": "\t \"';=asdf!@#$"}),
        (f"{TOKEN}={OCTETS};{TOKEN}={OCTETS}", f"{TOKEN}={OCTETS};{TOKEN}={OCTETS}", {TOKEN: OCTETS}),
    ],
)
def test_baggage(header: str, passed_on: str, members: dict[str, str]) -> None:
    assert parse_baggage(header) == passed_on
    assert baggage_members(header) == members


def test_of_too_many_members_of_baggage_the_first_are_passed_on() -> None:
    members = [f"k{number}={number}" for number in range(65)]
    assert parse_baggage(",".join(members[:-1])) == ",".join(members[:-1])
    assert parse_baggage(",".join(members)) == ",".join(members[:-1])
    assert len(baggage_members(",".join(members))) == MAX_BAGGAGE_MEMBERS == 64
    # What is invalid takes nobody's place.
    assert parse_baggage("bad,,also bad=1," + ",".join(members[:-1])) == ",".join(members[:-1])


def test_baggage_of_8192_bytes_is_passed_on_and_of_more_whole_members() -> None:
    exactly = "a=" + "v" * (MAX_BAGGAGE_LENGTH - 5) + ",b="
    assert len(exactly) == MAX_BAGGAGE_LENGTH == 8192
    assert parse_baggage(exactly) == exactly
    assert parse_baggage(exactly.replace(",", " \t, \t ").replace("=", " = ")) == exactly
    assert parse_baggage(exactly + "1") == exactly[:-3]
    assert parse_baggage("a=" + "v" * (MAX_BAGGAGE_LENGTH - 2)) == "a=" + "v" * (MAX_BAGGAGE_LENGTH - 2)
    assert parse_baggage("a=" + "v" * (MAX_BAGGAGE_LENGTH - 1) + ",b=1,c=2") == "b=1,c=2"


def test_baggage_without_end_is_read_up_to_a_whole_member() -> None:
    header = "a=1," + " " * (MAX_LIST_LENGTH - 8) + "b=12345,c=3"
    assert len(header) > MAX_LIST_LENGTH
    assert parse_baggage(header) == "a=1"
    assert parse_baggage("a" * (MAX_LIST_LENGTH + 1)) == ""


_TEXT = st.text(st.characters(min_codepoint=0, max_codepoint=0xFF), max_size=12)
_PIECES = st.lists(
    st.sampled_from([*'abk=;, \t%\\"', "%C3", "%20", "k=v", "p=q", "\udc80", "\u00e9", "\n"]), max_size=60
)


@given(st.one_of(st.text(), _PIECES.map("".join), st.lists(_TEXT).map(",".join)))
@example("a=1" + ";b" * 9000)
@example("a=" + "%41" * 3000 + ",b=1")
@example(",".join(f"k{number}={'v' * 200}" for number in range(80)))
def test_no_baggage_raises_nor_grows(header: str) -> None:
    found = parse_baggage(header)
    assert parse_baggage(found) == found
    assert baggage_members(found) == baggage_members(header)
    assert found.isascii()
    assert len(found) <= min(MAX_BAGGAGE_LENGTH, len(header))
    assert found.count(",") < MAX_BAGGAGE_MEMBERS


@given(st.dictionaries(st.text(TOKEN, min_size=1, max_size=20), st.text(max_size=20), max_size=30))
def test_every_value_of_baggage_is_decoded(members: dict[str, str]) -> None:
    header = " , ".join(f"{key} = {quote(value, safe='')};p" for key, value in members.items())
    assert baggage_members(header) == members


B3_TRACE, B3_SPAN, B3_PARENT = "80f198ee56343ba864fe8b2a57d3eff7", "e457b5a2e4d86bd1", "05e3ac9a4f6e3b90"
ACCEPTED = Parent(bytes.fromhex(B3_TRACE), bytes.fromhex(B3_SPAN), True)
DEFERRED = ACCEPTED._replace(sampled=False)
SHORT = ACCEPTED._replace(trace_id=bytes(8) + bytes.fromhex(B3_TRACE[16:]))


@pytest.mark.parametrize(
    ("header", "parent"),
    [
        (f"{B3_TRACE}-{B3_SPAN}-1-{B3_PARENT}", ACCEPTED),
        (f"{B3_TRACE}-{B3_SPAN}-1", ACCEPTED),
        (f"{B3_TRACE}-{B3_SPAN}-d", ACCEPTED),
        (f"{B3_TRACE}-{B3_SPAN}-0", DEFERRED),
        (f"{B3_TRACE}-{B3_SPAN}-0-{B3_PARENT}", DEFERRED),
        (f"{B3_TRACE}-{B3_SPAN}", DEFERRED),
        (f"{B3_TRACE[16:]}-{B3_SPAN}-1", SHORT),
        (f" \t{B3_TRACE}-{B3_SPAN}-1 ", ACCEPTED),
        # A state alone names no span.
        ("0", None),
        ("d", None),
        ("", None),
        (B3_TRACE, None),
        (f"{B3_TRACE}-{B3_SPAN}-", None),
        (f"{B3_TRACE}-{B3_SPAN}-2", None),
        (f"{B3_TRACE}-{B3_SPAN}-true", None),
        (f"{B3_TRACE}-{B3_SPAN}-1-", None),
        (f"{B3_TRACE}-{B3_SPAN}-1-{B3_PARENT[1:]}", None),
        (f"{B3_TRACE}-{B3_SPAN}-{B3_PARENT}", None),
        (f"{B3_TRACE[1:]}-{B3_SPAN}-1", None),
        (f"{B3_TRACE}0-{B3_SPAN}-1", None),
        (f"{B3_TRACE[:24]}-{B3_SPAN}-1", None),
        (f"{B3_TRACE}-{B3_SPAN[1:]}-1", None),
        (f"{B3_TRACE.upper()}-{B3_SPAN}-1", None),
        (f"{'0' * 16}-{B3_SPAN}-1", None),
        (f"{B3_TRACE}-{'0' * 16}-1", None),
        (f"{B3_TRACE}-{B3_SPAN}-1,{B3_TRACE}-{B3_SPAN}-1", None),
        (f"{B3_TRACE}-{B3_SPAN}-1\n", None),
        (f"{B3_TRACE}-{B3_SPAN}-1" + " " * MAX_PARENT_LENGTH, None),
    ],
)
def test_b3_of_one_header(header: str, parent: Parent | None) -> None:
    assert parse_b3(header) == parent


@pytest.mark.parametrize(
    ("headers", "parent"),
    [
        ((B3_TRACE, B3_SPAN, "1", ""), ACCEPTED),
        ((B3_TRACE, B3_SPAN, "true", ""), ACCEPTED),
        ((B3_TRACE, B3_SPAN, "True", ""), ACCEPTED),
        ((B3_TRACE, B3_SPAN, "d", ""), ACCEPTED),
        ((B3_TRACE, B3_SPAN, "0", ""), DEFERRED),
        ((B3_TRACE, B3_SPAN, "false", ""), DEFERRED),
        ((B3_TRACE, B3_SPAN, "", ""), DEFERRED),
        ((B3_TRACE, B3_SPAN), DEFERRED),
        ((B3_TRACE, B3_SPAN, "", "1"), ACCEPTED),
        ((B3_TRACE, B3_SPAN, "0", "1"), ACCEPTED),
        ((B3_TRACE, B3_SPAN, "1", "0"), ACCEPTED),
        ((B3_TRACE, B3_SPAN, "", "0"), DEFERRED),
        ((B3_TRACE, B3_SPAN, "", "nonsense"), DEFERRED),
        ((B3_TRACE, B3_SPAN, "1, 0", ""), ACCEPTED),
        ((B3_TRACE, B3_SPAN, "0, 1", "0,1"), DEFERRED),
        ((f" {B3_TRACE}\t", f" {B3_SPAN}", " 1 ", ""), ACCEPTED),
        ((B3_TRACE[16:], B3_SPAN, "1", ""), SHORT),
        ((B3_TRACE, B3_SPAN, "2", ""), None),
        ((B3_TRACE, B3_SPAN, "yes", "1"), None),
        (("", B3_SPAN, "1", ""), None),
        ((B3_TRACE, "", "1", ""), None),
        ((B3_TRACE.upper(), B3_SPAN, "1", ""), None),
        ((B3_TRACE, B3_SPAN.upper(), "1", ""), None),
        ((B3_TRACE[8:], B3_SPAN, "1", ""), None),
        ((B3_TRACE, B3_SPAN[1:], "1", ""), None),
        (("0" * 16, B3_SPAN, "1", ""), None),
        ((B3_TRACE, "0" * 16, "1", ""), None),
        ((f"{B3_TRACE},{B3_TRACE}", B3_SPAN, "1", ""), None),
        ((B3_TRACE, B3_SPAN, "1", " " * MAX_PARENT_LENGTH), None),
    ],
)
def test_b3_of_many_headers(headers: tuple[str, ...], parent: Parent | None) -> None:
    assert parse_b3_multi(*headers) == parent


@pytest.mark.parametrize(
    ("value", "parent"),
    [
        (f"{TRACE}:{SPAN}:0:1", SAMPLED),
        (f"{TRACE}:{SPAN}:{B3_PARENT}:01", SAMPLED),
        (f"{TRACE}:{SPAN}:0:0", UNSAMPLED),
        (f"{TRACE}:{SPAN}:0:3", SAMPLED),
        (f"{TRACE}:{SPAN}:0:2", SAMPLED),
        (f"{TRACE}:{SPAN}:0:8", UNSAMPLED),
        (f"{TRACE}:{SPAN}:0:f", SAMPLED),
        (f"{TRACE.upper()}:{SPAN.upper()}:0:1", SAMPLED),
        (f"{TRACE}%3A{SPAN}%3a0%3A1", SAMPLED),
        (f"%30{TRACE[1:]}:{SPAN}:0:1", SAMPLED),
        (f" {TRACE}:{SPAN}:0:1\t", SAMPLED),
        ("abc:d:0:1", Parent(bytes(14) + b"\x0a\xbc", bytes(7) + b"\x0d", True)),
        ("", None),
        (f"{TRACE}:{SPAN}:0", None),
        (f"{TRACE}:{SPAN}::1", None),
        (f"{TRACE}:{SPAN}:0:1:1", None),
        (f"{TRACE}:{SPAN}:0:001", None),
        (f"{TRACE}:{SPAN}:0:g", None),
        (f"{TRACE}:{SPAN}:x:1", None),
        (f"{TRACE}0:{SPAN}:0:1", None),
        (f"{TRACE}:{SPAN}0:0:1", None),
        (f"{TRACE}:{SPAN}:0{SPAN}:1", None),
        (f"0:{SPAN}:0:1", None),
        (f"{TRACE}:0:0:1", None),
        (f"0x{TRACE[2:]}:{SPAN}:0:1", None),
        (f"{TRACE}%253A{SPAN}%253A0%253A1", None),
        (f"{TRACE}%3{SPAN}%3A0%3A1", None),
        (f"{TRACE}:{SPAN}:0:1%0A", None),
        (f"{TRACE}:{SPAN}:0:\u0661", None),
        (f"{TRACE}:{SPAN}:0:1" + " " * MAX_PARENT_LENGTH, None),
    ],
)
def test_jaeger(value: str, parent: Parent | None) -> None:
    assert parse_jaeger(value) == parent


@given(TRACE_IDS, SPAN_IDS, st.booleans())
def test_every_format_reads_every_id(trace: bytes, span: bytes, sampled: bool) -> None:
    expected = Parent(trace, span, sampled)
    state = str(int(sampled))
    assert parse_b3(f"{trace.hex()}-{span.hex()}-{state}") == expected
    assert parse_b3_multi(trace.hex(), span.hex(), state) == expected
    assert parse_jaeger(f"{trace.hex()}:{span.hex()}:0:{state}") == expected
    assert parse_jaeger(f"{int.from_bytes(trace, 'big'):x}:{int.from_bytes(span, 'big'):x}:0:{state}") == expected


_OF_IDS = st.lists(
    st.sampled_from([TRACE, SPAN, "0" * 32, "0" * 16, "a", "0", "1", "d", ":", "-", "%3A", " ", "\udc80"])
)
_HOSTILE = st.one_of(st.text(), _OF_IDS.map("".join), _OF_IDS.map(":".join), _OF_IDS.map("-".join))


@given(_HOSTILE, _HOSTILE, _HOSTILE, _HOSTILE)
def test_no_header_of_ids_raises(one: str, two: str, three: str, four: str) -> None:
    for found in (parse_b3(one), parse_b3_multi(one, two, three, four), parse_jaeger(one)):
        if found is not None:
            assert (len(found.trace_id), len(found.span_id)) == (16, 8)
            assert any(found.trace_id)
            assert any(found.span_id)
            assert parse_traceparent(format_traceparent(*found)) == found


ALL = ("tracecontext", "b3", "jaeger")
W3C = {"HTTP_TRACEPARENT": f"00-{'1' * 32}-{'1' * 16}-01"}
SINGLE = {"HTTP_B3": f"{'2' * 32}-{'2' * 16}-1"}
MULTI = {"HTTP_X_B3_TRACEID": "3" * 32, "HTTP_X_B3_SPANID": "3" * 16, "HTTP_X_B3_SAMPLED": "1"}
JAEGER = {"HTTP_UBER_TRACE_ID": f"{'4' * 32}:{'4' * 16}:0:1"}
EVERY: Mapping[str, object] = {**W3C, **SINGLE, **MULTI, **JAEGER}


def parent_number(digit: str) -> Parent:
    return Parent(bytes.fromhex(digit * 32), bytes.fromhex(digit * 16), True)


@pytest.mark.parametrize(
    ("environ", "formats", "parent"),
    [
        (EVERY, ALL, parent_number("1")),
        (EVERY, ["jaeger", "b3", "tracecontext"], parent_number("1")),
        (EVERY, ("b3", "jaeger"), parent_number("2")),
        (EVERY, ("b3multi",), parent_number("2")),
        (EVERY, ("jaeger",), parent_number("4")),
        (EVERY, ("baggage", "xray", "none", ""), None),
        (EVERY, (), None),
        ({}, ALL, None),
        ({**MULTI, **JAEGER}, ALL, parent_number("3")),
        (MULTI, ("b3multi",), parent_number("3")),
        (JAEGER, ALL, parent_number("4")),
        (SINGLE, ("tracecontext", "jaeger"), None),
        # What is malformed leaves its place to the next.
        ({**EVERY, "HTTP_TRACEPARENT": "00-nonsense"}, ALL, parent_number("2")),
        ({**EVERY, "HTTP_TRACEPARENT": "", "HTTP_B3": "0"}, ALL, parent_number("3")),
        ({**EVERY, "HTTP_TRACEPARENT": "", "HTTP_B3": "", "HTTP_X_B3_SPANID": "3"}, ALL, parent_number("4")),
        ({"HTTP_UBER_TRACE_ID": "nonsense"}, ALL, None),
        ({**MULTI, "HTTP_X_B3_SAMPLED": "0", "HTTP_X_B3_FLAGS": "1"}, ALL, parent_number("3")),
        ({**MULTI, "HTTP_X_B3_SAMPLED": "0"}, ALL, parent_number("3")._replace(sampled=False)),
        # What is no string is not there.
        ({**EVERY, "HTTP_TRACEPARENT": W3C["HTTP_TRACEPARENT"].encode()}, ALL, parent_number("2")),
        ({**MULTI, "HTTP_X_B3_SAMPLED": 1}, ALL, parent_number("3")._replace(sampled=False)),
        ({**MULTI, "HTTP_X_B3_SPANID": None}, ALL, None),
        ({"HTTP_UBER_TRACE_ID": [JAEGER["HTTP_UBER_TRACE_ID"]]}, ALL, None),
    ],
)
def test_the_parent_of_a_request(environ: Mapping[str, object], formats: list[str], parent: Parent | None) -> None:
    assert parent_of(environ, formats) == parent


class Broken(Mapping[str, object]):
    def __getitem__(self, key: str) -> object:
        raise RuntimeError(key)

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError

    def __len__(self) -> int:
        raise RuntimeError


def test_a_broken_environ_has_no_parent() -> None:
    assert parent_of(Broken(), ALL) is None
    assert parent_of(None, ALL) is None  # type: ignore[arg-type]
    assert parent_of(EVERY, None) is None  # type: ignore[arg-type]


_KEYS = [*EVERY, "HTTP_X_B3_FLAGS"]
_VALUES = st.one_of(_HOSTILE, st.none(), st.integers(), st.binary(), st.sampled_from([*EVERY.values()]))


@given(st.dictionaries(st.sampled_from(_KEYS), _VALUES), st.lists(st.sampled_from([*ALL, "b3multi", "baggage"])))
def test_no_environ_raises(environ: dict[str, object], formats: list[str]) -> None:
    # The same without the net below it: no parser may need that.
    assert parent_of(environ, formats) == propagation._parent_of(environ, formats)
