"""Stacks as text: what Python and its faulthandler print is read back, and nothing else stops anybody."""

from __future__ import annotations

import faulthandler
import linecache
import os
import tempfile
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paste_agent import raised, stacks
from paste_agent.raised import Frame
from paste_agent.stacks import Crash, application_frame, marked, own_files, parse, parse_crash, render, without_server

bounded = settings(max_examples=200, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True)
def _no_source_is_left_behind() -> Iterator[None]:
    before = dict(linecache.cache)
    yield
    linecache.cache.clear()
    linecache.cache.update(before)


# -- what is printed is read back ----------------------------------------------------------------------------------


def test_what_python_prints_is_read_back() -> None:
    printed = "".join(traceback.format_stack())
    expected = [Frame(one.filename, one.lineno or 0, one.name) for one in traceback.extract_stack()[:-1]]
    found = parse(printed)
    assert found[:-1] == expected[-len(found) :][: len(found) - 1]
    assert found[-1].function == "test_what_python_prints_is_read_back"


def test_what_is_rendered_is_read_back() -> None:
    frames = [
        Frame("/no/such/file.py", 1, "a"),
        Frame("<string>", 7, "<module>"),
        Frame("C:\\x y.py", 99, "f.<lambda>"),
    ]
    assert parse(render(frames)) == frames
    with_source = [Frame(__file__, 1, "here")]
    assert render(with_source).endswith(f"line 1, in here\n    {Path(__file__).read_text().splitlines()[0]}\n")
    assert parse(render(with_source)) == with_source


def test_what_faulthandler_prints_is_read_back() -> None:
    arrived, go_on = threading.Event(), threading.Event()

    def waits_in_another_thread() -> None:
        arrived.set()
        go_on.wait(30)

    other = threading.Thread(target=waits_in_another_thread)
    other.start()
    assert arrived.wait(30)
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        text = file.read()
    go_on.set()
    other.join()
    found = parse_crash(f"Fatal Python error: Aborted\n\n{text}")
    assert found.error == "Aborted"
    assert found.current == threading.get_ident()
    assert other.ident is not None
    assert "waits_in_another_thread" in [frame.function for frame in found.threads[other.ident]]
    mine = found.threads[threading.get_ident()]
    assert mine[-1].function == "test_what_faulthandler_prints_is_read_back"  # the innermost last
    assert mine[-1].file == __file__


REPORT = """Fatal Python error: Segmentation fault

Thread 0x00007f0000000002 (most recent call first):
  File "/app/db.py", line 12 in fetch
  File "/app/views.py", line 3 in view

Current thread 0x00007f0000000001 [gunicorn] (most recent call first):
  File "/app/c.py", line 9 in inner
  File "/app/c.py", line 8 in outer
  <truncated rest of calls>

Extension modules: _cffi_backend, gevent._gevent_c_hub_local (total: 2)
"""


def test_a_report_is_read_innermost_last() -> None:
    found = parse_crash(REPORT)
    assert (found.error, found.current) == ("Segmentation fault", 0x00007F0000000001)
    assert found.threads == {
        0x00007F0000000002: [Frame("/app/views.py", 3, "view"), Frame("/app/db.py", 12, "fetch")],
        0x00007F0000000001: [Frame("/app/c.py", 8, "outer"), Frame("/app/c.py", 9, "inner")],
    }


def test_only_the_newest_report_counts() -> None:
    found = parse_crash(REPORT + "Fatal Python error: Aborted\n\nCurrent thread 0x05 (most recent call first):\n")
    assert found == Crash("Aborted", {5: []}, 5)


def test_without_a_report_there_is_nothing() -> None:
    assert parse_crash("") == parse_crash("Thread 0x01 (most recent call first):\n") == Crash("", {}, 0)


@pytest.mark.parametrize("length", range(0, len(REPORT), 7))
def test_a_report_that_was_cut_gives_what_it_has(length: int) -> None:
    found, whole = parse_crash(REPORT[:length]), parse_crash(REPORT)
    assert whole.error.startswith(found.error)
    assert set(found.threads) <= set(whole.threads)
    assert found.current in (0, whole.current)


# -- whose frames they are -----------------------------------------------------------------------------------------

CAUSE = f"""Traceback (most recent call last):
  File "/srv/shop.py", line 3, in order
    wait()
  File "{pytest.__file__}", line 7, in wait
    sleep()
  File "<string>", line 1, in sleep
OSError: it is
  not there

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "/srv/views.py", line 9, in view
ValueError
"""


def test_frames_of_the_application_are_told_from_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_files(CAUSE, '    File "/srv/shop.py", line 4 in other\n') == ["/srv/shop.py", "/srv/views.py"]
    assert own_files("", f'File "{linecache.__file__}", line 1, in f') == []
    # A service may be installed beside them.
    monkeypatch.setattr(raised, "_claimed", (os.path.dirname(pytest.__file__) + os.sep,))
    assert own_files(CAUSE) == ["/srv/shop.py", pytest.__file__, "/srv/views.py"]


def test_frames_are_marked_with_their_lines_of_source() -> None:
    found = list(marked(CAUSE, ["/srv/shop.py", "/srv/views.py"]))
    assert [line for line, _ in found] == CAUSE.splitlines()
    assert [line.strip() for line, is_own in found if is_own] == [
        'File "/srv/shop.py", line 3, in order', "wait()", 'File "/srv/views.py", line 9, in view',
    ]  # fmt: skip
    assert [line.strip() for line, is_own in found if is_own is False] == [
        f'File "{pytest.__file__}", line 7, in wait', "sleep()", 'File "<string>", line 1, in sleep',
    ]  # fmt: skip


@pytest.mark.parametrize("own", [None, [], "/srv/shop.py", {"/srv/shop.py": 1}, [["/srv/shop.py"], 7]])
def test_what_is_no_list_of_files_marks_nothing(own: object) -> None:
    assert not any(is_own for _, is_own in marked(CAUSE, own))
    assert application_frame(parse(CAUSE), own) == Frame("/srv/views.py", 9, "view")


def test_the_application_s_frame_is_the_one_that_its_process_took_for_it() -> None:
    assert application_frame(parse(CAUSE), [pytest.__file__]) == Frame(pytest.__file__, 7, "wait")


# -- bounds, and what is noise -------------------------------------------------------------------------------------


def test_a_forged_report_is_bounded() -> None:
    frame = '  File "/x", line 1 in f\n'
    many = "".join(f"Thread 0x{place:x} (most recent call first):\n{frame}" for place in range(1, 3000))
    assert len(parse_crash(f"Fatal Python error: x\n{many}").threads) <= 512
    deep = parse_crash(f"Fatal Python error: x\nCurrent thread 0x1 (most recent call first):\n{frame * 5000}")
    assert len(deep.threads[1]) <= 100
    assert len(parse(frame * 5000)) <= 100
    assert len(parse_crash("Fatal Python error: " + "x" * 100_000).error) <= 128
    (one,) = parse(f'  File "{"y" * 1024}", line {"9" * 9}, in {"z" * 100_000}\n')
    assert (len(one.file), len(one.function)) == (1024, 256)
    assert parse(f'  File "{"y" * 1025}", line 1, in f\n') == []
    assert parse(f'  File "y", line {"9" * 10_000}, in f\n') == []


pieces = st.sampled_from(
    [
        'File "', '", line ', ", in ", " in ", "Thread 0x", "Current thread 0x", " (most recent call first):",
        "Fatal Python error: ", "\n", "\r", "\u2028", "\x00", "9", "f", '"', "  ", "<string>", "\ud800", "٣",
    ]
)  # fmt: skip
texts = st.text() | st.lists(pieces | st.text(max_size=5), max_size=60).map("".join)


@bounded
@given(text=texts)
def test_no_text_makes_parsing_or_rendering_fail(text: str) -> None:
    frames = parse(text)
    assert len(frames) <= 100
    found = parse_crash(text)
    assert len(found.threads) <= 512
    for some in (frames, *found.threads.values()):
        assert len(some) <= 100
        assert len(render(some)) <= 100 * 5000
        assert all(0 <= frame.line < 10**9 for frame in some)


# -- the server's frames -------------------------------------------------------------------------------------------


def test_the_frames_below_the_filter_are_the_applications() -> None:
    a, b, own, c = (Frame(name, 1, name) for name in ("a", "b", "own", "c"))
    assert without_server([a, own, b, own, c], ["own"]) == [c]
    assert without_server([a, b], ["own"]) == [a, b]
    assert without_server([a, own], ["own"]) == []
    assert without_server([], ["own"]) == []


def source_of(frame: Frame) -> str:
    return stacks.source_of(frame)[0]


# -- lines of source -----------------------------------------------------------------------------------------------


def test_a_line_of_source_is_shown() -> None:
    assert source_of(Frame(__file__, 1, "f")) == Path(__file__).read_text().splitlines()[0].strip()
    assert source_of(Frame(__file__, 10**8, "f")) == ""


@pytest.mark.parametrize(
    "name",
    ["/dev/zero", "/dev/stdin", "/proc/self/mem", "/", "", "\x00", "/no/such/file", "<string>", "\ud800", "x" * 5000],
)
def test_what_is_no_source_is_not_read(name: str) -> None:
    assert source_of(Frame(name, 1, "f")) == ""


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.py")
    (tmp_path / "link.py").symlink_to(tmp_path / "fifo.py")
    assert source_of(Frame(str(tmp_path / "fifo.py"), 1, "f")) == ""
    assert source_of(Frame(str(tmp_path / "link.py"), 1, "f")) == ""


@pytest.mark.parametrize("content", [b"\xff\xfe\x00noise" * 10, b"\x00" * 100, b"# coding: no-such\nx\n", b""])
def test_source_that_cannot_be_read_is_left_out(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd.py"
    path.write_bytes(content)
    assert source_of(Frame(str(path), 3, "f")) == ""


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.py"
    path.touch()
    os.truncate(path, 1 << 40)
    assert source_of(Frame(str(path), 1, "f")) == ""


def test_any_number_of_files_leaves_a_bounded_amount_in_memory(tmp_path: Path) -> None:
    linecache.clearcache()
    for place in range(40):
        path = tmp_path / f"{place}.py"
        path.write_text(f"line of {place}\n" + "x = 1\n" * 100_000)
        assert source_of(Frame(str(path), 1, "f")) == f"line of {place}"
        assert sum(entry[0] for entry in linecache.cache.values()) <= stacks._MAX_CACHED + stacks._MAX_SOURCE


def test_one_stack_reads_a_bounded_amount(tmp_path: Path) -> None:
    linecache.clearcache()
    frames = [Frame(str(tmp_path / f"{place}.py"), 1, "f") for place in range(40)]
    for frame in frames:
        Path(frame.file).write_text("first\n" + "x = 1\n" * 100_000)
    text = render([*frames, frames[0]])
    assert text.count("in f\n") == 41
    assert text.count("    first\n") == stacks._MAX_READ // 600_006 + 1  # the first once more: it is known by now
    assert text.endswith("    first\n")


def test_sources_that_others_have_cached_stay(tmp_path: Path) -> None:
    """As a debugger keeps those of code that is in no file."""
    linecache.clearcache()
    for place in range(200):
        name = f"<cell {place}>"
        linecache.cache[name] = (1, None, ["x = 1\n"], name)
        assert source_of(Frame(name, 1, "f")) == "x = 1"
    for place in range(40):
        path = tmp_path / f"{place}.py"
        path.write_text("x = 1\n" * 100_000)
        source_of(Frame(str(path), 1, "f"))
    assert len([name for name in linecache.cache if name.startswith("<cell ")]) == 200
