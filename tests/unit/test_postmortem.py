"""Post-mortems: of what a process died, by which evidence, and an account that reads well whatever it is told."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paste_agent import postmortem
from paste_agent.postmortem import (
    EXIT,
    MAX_REQUESTS,
    OUT_OF_MEMORY,
    SIGNAL,
    TIMEOUT,
    UNKNOWN,
    Evidence,
    describe,
    examine,
    of_summary,
    short_id,
    trace_rows,
)
from paste_agent.raised import Frame
from paste_agent.recorder import layout
from paste_agent.recorder.reader import InFlight
from paste_agent.stacks import Crash
from tests.recorders import S

RECORDER = "4711-00112233445566aa"
#: The process was opened at 100 s of its clock and ended at 200 s; the time of day is a million seconds more.
OPENED_NS, ENDED_NS, OFFSET_NS = 100 * S, 200 * S, 1_000_000 * S
NOTHING = Crash("", {}, 0)
ABRT, KILL, SEGV, TERM = int(signal.SIGABRT), int(signal.SIGKILL), int(signal.SIGSEGV), int(signal.SIGTERM)


def request(age_s: float = 1.0, number: int = 1, **more: Any) -> InFlight:
    values: dict[str, Any] = {
        "start_ns": ENDED_NS - round(age_s * S),
        "number": number,
        "thread": 7,
        "scheme": "http",
        "method": "GET",
        "traceparent": "",
        "path": "/items/7",
        "route": "/items/{id}",
        "span": "",
    }
    return InFlight(**{**values, **more})


def words_of(**changed: int) -> list[int]:
    words = [0] * layout.WORDS_KEPT
    words[layout.W_MEMORY_BYTES] = 50 * 1048576
    for name, value in changed.items():
        words[getattr(layout, f"W_{name}")] = value
    return words


def evidence(
    *flight: InFlight, crash: Crash = NOTHING, oom_kills: int = 0, recorder: str = RECORDER, **words: int
) -> Evidence:
    return Evidence(
        recorder=recorder,
        pid=4711,
        worker=2,
        words=words_of(**words),
        requests_served=1234,
        opened_ns=OPENED_NS,
        ended_ns=ENDED_NS,
        flight=list(flight),
        crash=crash,
        oom_kills=oom_kills,
    )


# -- the reason ----------------------------------------------------------------------------------------------------

OLD, YOUNG = request(31.0), request(2.0)
LIMIT = {"TIMEOUT_MS": 30_000}
KILLED, ABORTED, SEGFAULT = {"EXIT": KILL + 1}, {"EXIT": ABRT + 1}, {"EXIT": SEGV + 1}
ABORT_REPORT, SEGV_REPORT = Crash("Aborted", {}, 0), Crash("Segmentation fault", {}, 0)
SHORT = {"oom_kills": 6, "OOM_KILLS": 5}
CASES: list[tuple[str, dict[str, Any], list[InFlight], str, str]] = [
    # The arbiter's word is the strongest: it knows whom it has killed, and why.
    ("the arbiter says so", {"TIMED_OUT": 1}, [YOUNG], TIMEOUT, "killed by the arbiter"),
    ("and how long it waited", {"TIMED_OUT": 1, **LIMIT}, [OLD], TIMEOUT, "killed by the arbiter: not a sign"),
    ("its word, against SIGKILL", {"TIMED_OUT": 1, **KILLED, **LIMIT}, [OLD], TIMEOUT, "killed by the arbiter"),
    ("its word, against memory", {"TIMED_OUT": 1, **KILLED, **SHORT}, [YOUNG], TIMEOUT, "killed by the arbiter"),
    ("its word, of a good end", {"TIMED_OUT": 1, "CLOSED": 1, "EXIT": 1}, [OLD], TIMEOUT, "killed by the arbiter"),
    ("abort, and too old", {"ABORTED": 1, "WITNESSED": 1, **LIMIT}, [OLD], TIMEOUT, "killed by the arbiter: not"),
    ("abort in C, and too old", {"crash": ABORT_REPORT, **LIMIT}, [OLD], TIMEOUT, "killed by the arbiter: not a sign"),
    ("abort, nobody to tell", {"ABORTED": 1}, [YOUNG], TIMEOUT, "killed by the arbiter"),
    ("abort, nobody to tell, with a limit", {"ABORTED": 1, **LIMIT}, [], TIMEOUT, "killed by the arbiter: not a sign"),
    ("too old, and no other word", LIMIT, [OLD], TIMEOUT, "killed, probably by the arbiter after 30 s without"),
    ("nearly too old", LIMIT, [request(27.1)], TIMEOUT, "killed, probably by the arbiter after 30 s without"),
    ("too old beside a young one", LIMIT, [OLD, YOUNG], TIMEOUT, "killed, probably by the arbiter after 30 s"),
    # An abort that the arbiter has not sent for silence.
    ("abort of somebody else", {"ABORTED": 1, "WITNESSED": 1, **LIMIT}, [YOUNG], SIGNAL, "crashed: Aborted"),
    ("abort of its own", {"crash": ABORT_REPORT, **LIMIT}, [YOUNG], SIGNAL, "crashed: Aborted"),
    ("abort that is told", {"crash": ABORT_REPORT, **ABORTED, "WITNESSED": 1}, [YOUNG], SIGNAL, "killed by SIGABRT"),
    # Memory, only where nothing speaks against it.
    ("out of memory", SHORT, [YOUNG], OUT_OF_MEMORY, "killed by the kernel: out of memory"),
    ("out of memory, SIGKILL", {**SHORT, **KILLED}, [YOUNG], OUT_OF_MEMORY, "killed by the kernel: out of memory"),
    ("out of memory, and old", {**SHORT, **KILLED, **LIMIT}, [OLD], OUT_OF_MEMORY, "killed by the kernel"),
    ("it was another signal", {**SHORT, **SEGFAULT}, [YOUNG], SIGNAL, "killed by SIGSEGV"),
    ("it was an exit", {**SHORT, "EXIT": (3 << 8) + 1}, [YOUNG], EXIT, "exited with status 3"),
    ("it ended well", {**SHORT, "CLOSED": 1}, [YOUNG], EXIT, "ended while requests were in flight"),
    ("as many as before", {"oom_kills": 5, "OOM_KILLS": 5, **KILLED}, [YOUNG], SIGNAL, "killed by SIGKILL"),
    ("fewer: another group", {"oom_kills": 4, "OOM_KILLS": 5, **KILLED}, [YOUNG], SIGNAL, "killed by SIGKILL"),
    ("nobody knows now", {"oom_kills": 0, "OOM_KILLS": 5, **KILLED}, [YOUNG], SIGNAL, "killed by SIGKILL"),
    ("nobody knew before", {"oom_kills": 5, "OOM_KILLS": 0, **KILLED}, [YOUNG], SIGNAL, "killed by SIGKILL"),
    # Signals.
    ("SIGKILL", KILLED, [YOUNG], SIGNAL, "killed by SIGKILL"),
    ("SIGKILL with core", {"EXIT": (KILL | 0x80) + 1}, [YOUNG], SIGNAL, "killed by SIGKILL"),
    ("SIGTERM", {"EXIT": TERM + 1}, [YOUNG], SIGNAL, "killed by SIGTERM"),
    ("a signal without a name", {"EXIT": 0x7F + 1}, [YOUNG], SIGNAL, "killed by signal 127"),
    ("a crash, told", {**SEGFAULT, "crash": SEGV_REPORT}, [YOUNG], SIGNAL, "killed by SIGSEGV"),
    ("a crash, not told", {"crash": SEGV_REPORT}, [YOUNG], SIGNAL, "crashed: Segmentation fault"),
    ("a crash, and old", {"crash": SEGV_REPORT, **LIMIT}, [OLD], SIGNAL, "crashed: Segmentation fault"),
    # Exits.
    ("exit status 0", {"EXIT": 1}, [YOUNG], EXIT, "exited with status 0 in the middle of its work"),
    ("exit status 255", {"EXIT": (255 << 8) + 1}, [OLD], EXIT, "exited with status 255 in the middle of its work"),
    ("closed", {"CLOSED": 1}, [YOUNG], EXIT, "ended while requests were in flight"),
    ("closed, and told", {"CLOSED": 1, "EXIT": 1}, [YOUNG], EXIT, "ended while requests were in flight"),
    # And nothing.
    ("no word", {}, [YOUNG], UNKNOWN, "killed, nobody knows by whom"),
    ("no word, young", LIMIT, [YOUNG], UNKNOWN, "killed, nobody knows by whom"),
    ("no word, no limit", {}, [OLD], UNKNOWN, "killed, nobody knows by whom"),
    ("nothing at all", {}, [], UNKNOWN, "killed, nobody knows by whom"),
    ("a status that there is none of", {"EXIT": 0x10001}, [YOUNG], UNKNOWN, "killed, nobody knows by whom"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("given_words", "flight", "reason", "headline"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_the_reason(given_words: dict[str, Any], flight: list[InFlight], reason: str, headline: str) -> None:
    account = examine(evidence(*flight, **given_words), OFFSET_NS)
    assert account.reason == reason
    assert account.headline.startswith(headline)


@pytest.mark.parametrize(
    ("given_words", "flight", "said"),
    [
        ({"TIMED_OUT": 1, **LIMIT}, [OLD], "the arbiter missed its sign of life for 30 s"),
        ({"KILLED_WITH": ABRT}, [], "the arbiter sent SIGABRT"),
        ({"KILLED_WITH": KILL}, [], "the arbiter sent SIGKILL"),
        ({"KILLED_WITH": 4711}, [], "the arbiter sent signal 4711"),
        ({"ABORTED": 1}, [], "the worker saw SIGABRT"),
        ({"crash": ABORT_REPORT}, [], "SIGABRT arrived, and the worker had no time to see it"),
        ({"crash": SEGV_REPORT}, [], "the interpreter says: Segmentation fault"),
        ({"EXIT": SEGV + 1}, [], "ended by SIGSEGV"),
        ({"EXIT": (3 << 8) + 1}, [], "ended with exit status 3"),
        ({"CLOSED": 1}, [], "it still came to an orderly end"),
        ({}, [], "no mark of an orderly end"),
        ({}, [YOUNG, OLD], "the oldest request was in flight for 31.0 s"),
        (LIMIT, [YOUNG], "the oldest request was in flight for 2.0 s, gunicorn's timeout is 30 s"),
        (SHORT, [], "the kernel has killed for want of memory since its last report"),
    ],
)
def test_the_evidence(given_words: dict[str, Any], flight: list[InFlight], said: str) -> None:
    account = examine(evidence(*flight, **given_words), OFFSET_NS)
    assert said in account.evidence
    assert f"  - {said}\n" in describe(account)


def test_what_does_not_speak_is_not_said() -> None:
    assert examine(evidence(), OFFSET_NS).evidence == ["no mark of an orderly end"]


def test_the_figures_of_an_account() -> None:
    account = examine(evidence(YOUNG), OFFSET_NS)
    assert (account.id, account.pid, account.worker) == (RECORDER, 4711, 2)
    assert account.at == 1_000_200.0
    assert (account.uptime_s, account.requests_served) == (100.0, 1234)
    assert account.memory_bytes == 50 * 1048576
    json.dumps(account.summary())


# -- what was in flight --------------------------------------------------------------------------------------------

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_lost_request_is_as_its_slot_had_it() -> None:
    found = request(12.3456, 9, span="SELECT orders", stack='  File "/no/app.py", line 7, in view\n')
    (lost,) = examine(evidence(found), OFFSET_NS).requests
    assert (lost.method, lost.path, lost.route) == ("GET", "/items/7", "/items/{id}")
    assert (lost.age_s, lost.span) == (12.346, "SELECT orders")
    assert lost.stack == '  File "/no/app.py", line 7, in view\n'
    assert not lost.answered
    trace_id, span_id = layout.minted_ids(RECORDER, 9)
    assert (lost.trace_id, lost.span_id, lost.parent_id) == (trace_id.hex(), span_id.hex(), "")


def test_a_path_reads_as_the_client_sent_it() -> None:
    """WSGI has the bytes of a path as characters; a slot may end in the middle of one."""
    as_wsgi_has_it = "/käse".encode().decode("latin-1")
    cut = as_wsgi_has_it + "\ufffd"
    (lost,) = examine(evidence(request(path=as_wsgi_has_it)), OFFSET_NS).requests
    assert lost.path == "/käse"
    (lost,) = examine(evidence(request(path=cut)), OFFSET_NS).requests
    assert lost.path == "/käse"
    (lost,) = examine(evidence(request(path="/語")), OFFSET_NS).requests  # no server sends that
    assert lost.path == "/語"


def test_a_task_has_its_name_and_no_method() -> None:
    (lost,) = examine(evidence(request(is_request=False, path="käse holen", method="")), OFFSET_NS).requests
    assert (lost.method, lost.path) == ("", "käse holen")
    text = describe(examine(evidence(request(2.0, is_request=False, path="warm caches")), OFFSET_NS))
    assert "  task warm caches was in flight for 2 s" in text


def test_a_request_with_a_parent_belongs_to_its_trace() -> None:
    (lost,) = examine(evidence(request(traceparent=PARENT)), OFFSET_NS).requests
    assert (lost.trace_id, lost.parent_id) == ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
    assert lost.span_id == layout.minted_ids(RECORDER, 1)[1].hex()


@pytest.mark.parametrize("header", ["", "noise", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", PARENT[:-1], "\ud800"])
def test_a_parent_that_is_none_is_none(header: str) -> None:
    (lost,) = examine(evidence(request(traceparent=header)), OFFSET_NS).requests
    assert lost.trace_id == layout.minted_ids(RECORDER, 1)[0].hex()
    assert lost.parent_id == ""


def test_ids_are_the_same_for_the_same_recorder_and_number() -> None:
    def ids(recorder: str, number: int) -> tuple[str, str]:
        (lost,) = examine(evidence(request(number=number), recorder=recorder), OFFSET_NS).requests
        return lost.trace_id, lost.span_id

    assert ids(RECORDER, 1) == ids(RECORDER, 1)
    different = {
        ids(recorder, number) for recorder in (RECORDER, "4711-00112233445566ab") for number in (1, 2, 1 << 63)
    }
    assert len(different) == 6
    assert len({trace_id for trace_id, _ in different}) == len({span_id for _, span_id in different}) == 6
    assert all(len(trace_id) == 32 and int(trace_id, 16) for trace_id, _ in different)
    assert all(len(span_id) == 16 and int(span_id, 16) for _, span_id in different)


#: Pinned: two versions of the agent on one host, a worker and the lead that finds it, must come to the same.
MINTED = ("5b3aa8960ee3d8142a70ee1fc0a76571", "8284e890c99fda17")


def test_minted_ids_are_those_of_every_version() -> None:
    trace_id, span_id = layout.minted_ids("7-a", 1)
    assert (trace_id.hex(), span_id.hex()) == MINTED


def test_the_interpreters_last_words_go_before_an_older_stack() -> None:
    last = [Frame("/no/paste/filter.py", 1, "server"), Frame("/no/app.py", 9, "last")]
    crash = Crash("Aborted", {7: last, 8: [Frame("/no/other.py", 1, "other")]}, 7)
    (lost,) = examine(
        evidence(request(stack='  File "/no/app.py", line 7, in before\n'), crash=crash), OFFSET_NS
    ).requests
    assert "in last" in lost.stack
    assert "before" not in lost.stack


def test_the_servers_frames_are_left_out_of_the_last_words() -> None:
    own = next(iter(postmortem.OWN_FILES))
    frames = [Frame("/no/gunicorn.py", 1, "serve"), Frame(own, 70, "__call__"), Frame("/no/app.py", 9, "view")]
    (lost,) = examine(evidence(YOUNG, crash=Crash("Aborted", {7: frames}, 7)), OFFSET_NS).requests
    assert lost.stack == '  File "/no/app.py", line 9, in view\n'


def test_where_the_signal_arrived_is_told_when_nothing_else_tells_where_it_was() -> None:
    tick = {9: [Frame("/no/timer.py", 3, "tick")]}
    elsewhere = examine(evidence(YOUNG, crash=Crash("Segmentation fault", tick, 9)), OFFSET_NS)
    assert elsewhere.stack == '  File "/no/timer.py", line 3, in tick\n'
    assert '  the signal arrived at\n    File "/no/timer.py", line 3, in tick\n' in describe(elsewhere)
    view = {7: [Frame("/no/app.py", 9, "view")]}
    assert examine(evidence(YOUNG, crash=Crash("Segmentation fault", {**tick, **view}, 7)), OFFSET_NS).stack == ""
    assert examine(evidence(YOUNG, crash=Crash("Segmentation fault", {**tick, **view}, 9)), OFFSET_NS).stack == ""


def test_files_of_the_application_s_own_are_told() -> None:
    libraries = f'  File "{pytest.__file__}", line 1, in g\n'
    account = examine(evidence(request(stack=f'  File "/srv/app.py", line 7, in view\n{libraries}')), OFFSET_NS)
    assert account.own_files == account.summary()["own_files"] == ["/srv/app.py"]
    (row,) = trace_rows(account, evidence(request()), OFFSET_NS)
    assert row.detail is not None
    assert row.detail["own_files"] == ["/srv/app.py"]
    tick = Crash("Aborted", {9: [Frame("/srv/timer.py", 3, "tick")]}, 9)
    assert examine(evidence(YOUNG, crash=tick), OFFSET_NS).own_files == ["/srv/timer.py"]
    assert of_summary("7-a", 0.0, "signal", {"stack": "as an older one has it"}).own_files == []


# -- the account for people ----------------------------------------------------------------------------------------


def many(count: int, **more: Any) -> list[InFlight]:
    return [request(100 - place, place + 1, path=f"/{place}", **more) for place in range(count)]


def test_the_account_of_one_request() -> None:
    found = request(42.0, 3, span="SELECT orders", stack=f'  File "{__file__}", line 1, in view\n')
    text = describe(examine(evidence(found, EXIT=KILL + 1, WITNESSED=1), OFFSET_NS))
    trace_id = layout.minted_ids(RECORDER, 3)[0].hex()
    assert text.splitlines() == [
        "worker 2 (pid 4711) was lost, killed by SIGKILL",
        "  up 100 s, 1,234 requests served, 50 MiB at its last report",
        "  - ended by SIGKILL",
        "  - the oldest request was in flight for 42.0 s",
        f"  GET /items/7 was in flight for 42 s, route /items/{{id}}, trace {trace_id}",
        "    in SELECT orders",
        f'    File "{__file__}", line 1, in view',
        f"      {Path(__file__).read_text().splitlines()[0]}",
        "  post-mortem 4711-00112233",
    ]


@pytest.mark.parametrize(
    ("count", "shown", "rest"),
    [
        (1, 1, ""),
        (5, 5, ""),
        (6, 5, "1 more was"),
        (20, 5, "15 more were"),
        (23, 5, "18 more were"),
        (4096, 5, "4091 more were"),
    ],
)
def test_the_account_is_bounded_and_the_oldest_come_first(count: int, shown: int, rest: str) -> None:
    stack = "".join(f'  File "/no/{"x" * 40}/{place}.py", line 1, in f\n' for place in range(60))
    account = examine(evidence(*many(count, stack=stack)), OFFSET_NS)
    assert len(account.requests) == min(count, MAX_REQUESTS)
    assert account.more_requests == max(0, count - MAX_REQUESTS)
    text = describe(account)
    paths = [line.split()[1] for line in text.splitlines() if " was in flight for " in line and " GET " in line]
    assert paths == [f"/{place}" for place in range(shown)]
    assert (f"\n  {rest} in flight\n" in text) if rest else (" more " not in text)
    assert len(text) < 40_000


def test_nothing_in_flight_is_said() -> None:
    assert "\n  nothing was in flight\n" in describe(examine(evidence(), OFFSET_NS))


def test_who_did_not_serve_is_a_process() -> None:
    account = examine(replace(evidence(YOUNG), worker=0, requests_served=1), OFFSET_NS)
    assert describe(account).startswith("process (pid 4711) was lost, ")
    assert ", 1 request served, " in describe(account)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.042, "42 ms"), (2, "2 s"), (9.94, "9.94 s"), (60, "60 s"), (120, "2 min"), (7200, "2 h"), (1e6, "12 d")],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert f"GET /items/7 was in flight for {text}," in describe(
        examine(replace(evidence(), flight=[request(seconds)]), OFFSET_NS)
    )


@pytest.mark.parametrize(("name", "short"), [(RECORDER, "4711-00112233"), ("odd", "odd"), ("", ""), ("-", "-")])
def test_short_ids(name: str, short: str) -> None:
    assert short_id(name) == short


# -- forged evidence -----------------------------------------------------------------------------------------------

HOSTILE = "\x1b[31m\r\nERROR forged line\x00\u202e\u2028\x9b\ud800"


def test_forged_text_prints_nothing_but_characters_and_our_own_lines() -> None:
    found = request(
        method=HOSTILE, path="/" + HOSTILE, route=HOSTILE, span=HOSTILE, traceparent=HOSTILE,
        stack=f'  File "{HOSTILE}", line 1, in f\n  File "/a\x1b[0m", line 1, in g\x07\n',
    )  # fmt: skip
    crash = Crash(HOSTILE, {1: [Frame("/b\x1b", 1, "h\x07")]}, 1)
    account = examine(evidence(found, crash=crash), OFFSET_NS)
    text = describe(account)
    assert [line for line in text.split("\n") if not line.isprintable()] == []
    assert not any(line.startswith("ERROR") for line in text.split("\n"))
    summary = json.loads(json.dumps(account.summary()))
    (lost,) = summary["requests"]
    for key in ("method", "path", "route", "span"):
        assert lost[key].isprintable()
    assert lost["stack"].replace("\n", "").isprintable()


u64 = st.integers(0, 1 << 62) | st.sampled_from([0, 1, 9, 0xFFFF, 0x10000, 0x10001, 1 << 32, 1 << 62])
texts = st.text(st.characters(codec=None), max_size=40) | st.sampled_from(
    [HOSTILE, PARENT, '  File "/x", line 1, in f']
)
frames = st.lists(st.builds(Frame, texts, st.integers(0, 10**9), texts), max_size=3)
flights = st.lists(
    st.builds(
        InFlight, start_ns=st.integers(1, (1 << 62) - 1), number=st.integers(0, (1 << 64) - 1),
        thread=st.integers(0, (1 << 64) - 1), scheme=st.sampled_from(["http", "https", "_OTHER"]), method=texts,
        traceparent=texts, path=texts, route=texts, span=texts, series=st.integers(-1, 0xFFFF), answered_ns=u64,
        is_request=st.booleans(), stack=texts, stack_ns=u64,
    ),
    max_size=25,
)  # fmt: skip


@settings(max_examples=150, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    words=st.lists(u64, min_size=layout.WORDS_KEPT, max_size=layout.WORDS_KEPT),
    flight=flights,
    crash=st.builds(Crash, texts, st.dictionaries(st.integers(0, 9), frames, max_size=3), st.integers(0, 9)),
    oom_kills=u64,
    times=st.tuples(u64, u64),
    offset_ns=st.integers(-(1 << 62), 1 << 62),
    recorder=texts,
)
def test_no_evidence_makes_the_account_fail(
    words: list[int],
    flight: list[InFlight],
    crash: Crash,
    oom_kills: int,
    times: tuple[int, int],
    offset_ns: int,
    recorder: str,
) -> None:
    name = "".join(char for char in recorder if char.isprintable() and char.isascii())  # the reader sees to that
    found = Evidence(name, 7, 1, words, words[0], times[0], times[1], flight, crash, oom_kills)
    account = examine(found, offset_ns)
    assert account.reason in (TIMEOUT, OUT_OF_MEMORY, SIGNAL, EXIT, UNKNOWN)
    text = describe(account)
    assert text.replace("\n", "").isprintable()
    assert len(text.encode()) < 60_000
    json.dumps(account.summary(), allow_nan=False)
    for row in trace_rows(account, found, offset_ns):
        assert 0 <= row.started_at_ns < 1 << 63
        assert 0 <= row.duration_ns < 1 << 63
        json.dumps(row.detail, allow_nan=False)


# -- the spans of what was lost ------------------------------------------------------------------------------------


def test_each_lost_request_becomes_a_failed_span() -> None:
    found = evidence(request(12.0, 5, span="SELECT", traceparent=PARENT), EXIT=KILL + 1)
    account = examine(found, OFFSET_NS)
    (row,) = trace_rows(account, found, OFFSET_NS)
    assert row.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert row.span_id == layout.minted_ids(RECORDER, 5)[1]
    assert row.parent_id is not None
    assert row.parent_id.hex() == "b7ad6b7169203331"
    assert (row.started_at_ns, row.duration_ns) == (1_000_188 * S, 12 * S)
    assert (row.failed, row.why) == (True, layout.KEPT_LOST)
    assert row.attributes == {
        "http.request.method": "GET",
        "url.scheme": "http",
        "http.route": "/items/{id}",
        "error.type": "worker_signal",
    }
    assert row.detail is not None
    assert row.detail["attributes"] == {"url.path": "/items/7"}
    said = row.detail["postmortem"]
    assert isinstance(said, dict)
    assert (said["id"], said["reason"], said["span"]) == (RECORDER, "signal", "SELECT")
    assert "GET /items/7 was in flight for 12 s" in said["text"]


def test_what_was_answered_and_what_is_a_task_becomes_no_failed_span() -> None:
    flight = [
        request(5, 1, series=0, answered_ns=ENDED_NS),
        request(4, 2, is_request=False),
        request(3, 3, method="BREW", route=""),
    ]
    found = evidence(*flight)
    account = examine(found, OFFSET_NS)
    (row,) = trace_rows(account, found, OFFSET_NS)
    assert row.span_id == layout.minted_ids(RECORDER, 3)[1]
    assert row.attributes == {"http.request.method": "_OTHER", "url.scheme": "http", "error.type": "worker_unknown"}
    assert "its answer was with the server" in describe(account)


def test_no_more_spans_than_requests_that_the_account_names() -> None:
    found = evidence(*many(50))
    assert len(trace_rows(examine(found, OFFSET_NS), found, OFFSET_NS)) == MAX_REQUESTS
