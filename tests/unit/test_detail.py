"""What a kept transaction leaves in the store."""

from __future__ import annotations

import json
import sys
import traceback
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paste_agent.detail import Rules, redacted, stacktrace, trace_row
from paste_agent.raised import Frame, Raised, raised_of
from paste_agent.recorder.layout import KEPT_FAILED, KEPT_SLOW
from paste_agent.transaction import KeptTransaction


def kept(**more: Any) -> KeptTransaction:
    fields: dict[str, Any] = {
        "trace_id": b"t" * 16,
        "span_id": b"s" * 8,
        "parent_id": bytes(8),
        "why": KEPT_SLOW,
        "series": 3,
        "failed": False,
        "start_ns": 1000,
        "duration_ns": 50,
        "queue_us": 0,
        "method": "GET",
        "path": "/prefix/page",
        "query": "",
        "headers": {},
        "tracestate": "",
        "error": None,
        **more,
    }
    return KeptTransaction(**fields)


def attributes(record_query: bool = False, **more: Any) -> dict[str, Any]:
    row = trace_row(kept(**more), {"http.request.method": "GET"}, 10**18, Rules(query=record_query))
    assert row.detail is not None
    found: Any = row.detail["attributes"]
    json.dumps(row.detail)
    return dict(found)


def test_a_row() -> None:
    row = trace_row(kept(parent_id=b"p" * 8, tracestate="a=1", failed=True), {"http.route": "/x"}, 10**18, Rules())
    assert (row.trace_id, row.span_id, row.parent_id) == (b"t" * 16, b"s" * 8, b"p" * 8)
    assert (row.started_at_ns, row.duration_ns, row.failed, row.why) == (10**18 + 1000, 50, True, KEPT_SLOW)
    assert row.attributes == {"http.route": "/x"}
    assert row.detail == {
        "attributes": {"url.path": "/prefix/page", "server.port": 80},
        "tracestate": "a=1",
    }
    assert trace_row(kept(), {}, 0, Rules()).parent_id is None


def test_attributes_of_the_span() -> None:
    found = attributes(
        method="BREW",
        path="/caf\xc3\xa9",
        queue_us=1_500_001,
        headers={"REMOTE_ADDR": "10.0.0.1", "HTTP_USER_AGENT": "caf\xc3\xa9/1", "HTTP_HOST": "shop.example:8443"},
    )
    assert found == {
        "http.request.method_original": "BREW",
        "url.path": "/caf\u00e9",
        "server.address": "shop.example",
        "server.port": 8443,
        "client.address": "10.0.0.1",
        "network.peer.address": "10.0.0.1",
        "user_agent.original": "caf\u00e9/1",
        "paste_agent.request.queue.duration": 1.5,
    }


@pytest.mark.parametrize(
    ("host", "scheme", "address", "port"),
    [
        ("shop.example", "http", "shop.example", 80),
        ("shop.example", "https", "shop.example", 443),
        ("shop.example:8080", "https", "shop.example", 8080),
        ("127.0.0.1:81", "http", "127.0.0.1", 81),
        ("[::1]", "http", "::1", 80),
        ("[2001:db8::1]:8080", "http", "2001:db8::1", 8080),
        ("", "http", "bound", 8001),
        (":99", "http", "bound", 8001),
        ("shop.example:0", "http", "shop.example", None),
        ("shop.example:65536", "http", "shop.example", None),
        ("shop.example:" + "9" * 5000, "http", "shop.example", None),
        ("shop.example:\xb2", "http", "shop.example:\ufffd", 80),
        ("caf\xc3\xa9.example", "http", "caf\u00e9.example", 80),
        ("\udc80", "http", "?", 80),
    ],
)
def test_the_server_that_the_client_asked_for(host: str, scheme: str, address: str, port: int | None) -> None:
    headers = {"HTTP_HOST": host, "wsgi.url_scheme": scheme, "SERVER_NAME": "bound", "SERVER_PORT": "8001"}
    found = attributes(headers=headers)
    assert (found.get("server.address"), found.get("server.port")) == (address, port)


@pytest.mark.parametrize("port", ["", "x", "-1", "1e3", "99999999", "\u0661\u0662"])
def test_an_odd_port_of_the_server(port: str) -> None:
    found = attributes(headers={"SERVER_NAME": "bound", "SERVER_PORT": port})
    assert found["server.address"] == "bound"
    assert found.get("server.port") in (None, 80, 12)


@given(st.text(max_size=60), st.sampled_from(["http", "https", ""]))
def test_no_host_raises(host: str, scheme: str) -> None:
    found = attributes(headers={"HTTP_HOST": host, "wsgi.url_scheme": scheme, "REMOTE_ADDR": host})
    assert found.get("server.port", 1) in range(1, 65536)
    json.dumps(found).encode()
    for value in found.values():
        str(value).encode()


# -- redaction -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("a=1&b=2", "a=REDACTED&b=REDACTED"),
        ("a=", "a=REDACTED"),
        ("a", "REDACTED"),
        ("a=b=c", "a=REDACTED"),
        ("a=1;b=2", "a=REDACTED"),
        ("secret&a=1&&", "REDACTED&a=REDACTED"),
        ("a=x%26b%3Dy", "a=REDACTED"),
        ("a%26b=1", "a%26b=REDACTED"),
        ("caf\xc3\xa9=1", "caf%C3%A9=REDACTED"),
        ("caf%C3%A9=1", "caf%C3%A9=REDACTED"),
        ("%ff=1", "%EF%BF%BD=REDACTED"),
        ("\udc80=1", "%3F=REDACTED"),
        ("", ""),
        ("&&", ""),
    ],
)
def test_redaction(query: str, shown: str) -> None:
    assert redacted(query) == shown


@given(st.text(alphabet="ab=&;%4+\xe9\udc80"), st.text(alphabet="XYZ", min_size=6, max_size=9))
def test_no_value_survives_redaction(before: str, secret: str) -> None:
    assert secret not in redacted(f"{before}&password={secret}")
    redacted(before)


def test_a_query_is_recorded_only_when_asked_for() -> None:
    assert "url.query" not in attributes(query="password=s3cret")
    assert "url.query" not in attributes(record_query=True)
    assert attributes(record_query=True, query="password=s3cret")["url.query"] == "password=REDACTED"


# -- stacks --------------------------------------------------------------------------------------------------------


def failure(depth: int = 0) -> Raised:
    def deeper(left: int) -> None:
        if left:
            deeper(left - 1)
        raise ValueError("broke")

    try:
        deeper(depth)
    except ValueError as error:
        return raised_of(error)
    raise AssertionError


def test_a_stack_reads_as_pythons_own() -> None:
    lines = stacktrace(failure()).splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1].startswith(f'  File "{__file__}", line ')
    assert lines[1].endswith(", in failure")
    assert lines[2] == "    deeper(depth)"
    assert lines[4] == '    raise ValueError("broke")'
    assert lines[-1] == "ValueError: broke"


def test_causes_come_first() -> None:
    try:
        try:
            try:
                raise KeyError("one")
            except KeyError:
                raise OSError("two")  # noqa: B904 -- the point
        except OSError as error:
            raise ValueError("three") from error
    except ValueError as error:
        text = stacktrace(raised_of(error))
    order = ["KeyError: 'one'", "During handling", "OSError: two", "direct cause", "ValueError: three"]
    places = [text.index(part) for part in order]
    assert places == sorted(places)


def test_a_suppressed_context_is_not_told() -> None:
    try:
        try:
            raise KeyError("one")
        except KeyError:
            raise ValueError("two") from None
    except ValueError as error:
        text = stacktrace(raised_of(error))
    assert "KeyError" not in text


def test_a_deep_stack_keeps_its_ends() -> None:
    raised = failure(600)
    assert len(raised.frames) == 50
    assert raised.frames[0].function == "failure"
    assert raised.frames[-1].function == "deeper"
    text = stacktrace(raised)
    assert text.endswith("ValueError: broke\n")
    assert '    raise ValueError("broke")\n' in text
    assert text.count("  [552 frames left out]\n") == 1


def test_a_circle_of_causes_ends() -> None:
    first, second = ValueError("1"), ValueError("2")
    first.__cause__, second.__cause__ = second, first
    assert stacktrace(raised_of(first)).count("ValueError: ") == 2


def test_of_many_causes_the_first_of_all_is_told() -> None:
    error: Exception = OSError("disk full")
    for number in range(7):
        following = ValueError(str(number))
        following.__cause__ = error
        error = following
    lines = [line for line in stacktrace(raised_of(error)).splitlines() if "rror: " in line or "left out" in line]
    assert lines == [
        "OSError: disk full",
        "3 exceptions between these two left out",
        *(f"ValueError: {number}" for number in (3, 4, 5, 6)),
    ]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="there are no groups before")
def test_a_group_tells_what_is_in_it() -> None:
    group = ExceptionGroup("many", [ValueError("one"), KeyError(2)])  # type: ignore[name-defined]  # noqa: F821
    lines = stacktrace(raised_of(group)).splitlines()
    assert lines[-3:] == ["ExceptionGroup: many (2 sub-exceptions)", "  | ValueError: one", "  | KeyError: 2"]
    assert stacktrace(raised_of(group), False).splitlines()[-2:] == ["  | ValueError", "  | KeyError"]


def test_a_long_message_and_a_long_stack_are_cut() -> None:
    raised = raised_of(ValueError("x" * 1_000_000))
    assert len(raised.message) == 1024
    long = raised._replace(frames=tuple(Frame("f" * 4000, 1, "g") for _ in range(50)))
    assert len(stacktrace(long)) == 16_384
    assert stacktrace(long).endswith("x\n")


@pytest.mark.parametrize("file", ["<string>", "/no/such/file.py", "", "\udc80.py", "/dev/null", "/proc/self/mem"])
def test_a_frame_without_source(file: str) -> None:
    text = stacktrace(Raised("E", "", (Frame(file, 1, "f"),), None, False))
    assert text == f'Traceback (most recent call last):\n  File "{file}", line 1, in f\nE\n'


def test_an_exception_is_part_of_the_row() -> None:
    error = failure()
    row = trace_row(kept(why=KEPT_FAILED, error=error), {}, 0, Rules())
    assert row.detail is not None
    exception: Any = row.detail["exception"]
    assert (exception["type"], exception["message"]) == ("ValueError", "broke")
    assert exception["stacktrace"] == stacktrace(error)


def test_files_of_the_application_s_own_stand_beside_its_stacks() -> None:
    stack = f'  File "{__file__}", line 1, in view\n  File "{json.__file__}", line 2, in load\n'
    row = trace_row(kept(error=failure(), stack=(2000, '  File "/srv/shop.py", line 1, in f')), {}, 0, Rules())
    assert row.detail is not None
    assert row.detail["own_files"] == ["/srv/shop.py", __file__]
    slow = trace_row(kept(stack=(2000, stack)), {}, 0, Rules()).detail
    assert slow is not None
    assert slow["own_files"] == [__file__]
    hidden = trace_row(kept(stack=(2000, stack)), {}, 0, Rules(exclude=("code.*",))).detail
    assert hidden is not None
    assert "own_files" not in hidden


def test_an_exception_that_was_never_raised_has_no_traceback() -> None:
    error = KeyError("x")
    error.__cause__ = ValueError("y")
    assert stacktrace(raised_of(error)) == "".join(traceback.format_exception(error))
