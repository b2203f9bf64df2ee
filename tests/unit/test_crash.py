"""What the interpreter says in its last moment: written by processes that really crash."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from paste_agent import crash, stacks
from paste_agent.stacks import Crash
from tests.recorders import Script, run_script
from tests.serving import wait_for

PRELUDE = """
import ctypes, faulthandler, os, signal, sys, threading, time
from paste_agent import crash
path = sys.argv[1] + '/7-a.recorder'
caught = crash.crash_file(path)
"""
SIGNALS = {"Segmentation fault": signal.SIGSEGV, "Aborted": signal.SIGABRT, "Bus error": signal.SIGBUS}


def report_in(directory: Path, name: str = "7-a.crash") -> Crash:
    return stacks.parse_crash(crash.read(str(directory / name)))


def test_a_segmentation_fault_names_the_line(tmp_path: Path) -> None:
    script = PRELUDE + "def falls():\n    ctypes.string_at(0)\n\ndef calls():\n    falls()\n\ncalls()\n"
    run_script(script, tmp_path, expect=-signal.SIGSEGV)
    found = report_in(tmp_path)
    assert found.error == "Segmentation fault"
    frames = found.threads[found.current]
    assert [frame.function for frame in frames][:3] == ["<module>", "calls", "falls"]
    assert frames[0].file == "<string>"


@pytest.mark.parametrize("error", SIGNALS)
def test_each_signal_is_told_and_still_ends_the_process(tmp_path: Path, error: str) -> None:
    run_script(PRELUDE + f"os.kill(os.getpid(), {int(SIGNALS[error])})\n", tmp_path, expect=-SIGNALS[error])
    assert report_in(tmp_path).error == error


def test_all_threads_are_told_of_each_under_its_ident(tmp_path: Path) -> None:
    script = PRELUDE + (
        "def waits_here(lock):\n    lock.acquire()\n\n"
        "held = threading.Lock(); held.acquire()\n"
        "other = threading.Thread(target=waits_here, args=(held,), daemon=True); other.start()\n"
        "while 'waits_here' not in [f.f_code.co_name for f in sys._current_frames().values()]: time.sleep(0.01)\n"
        "print(threading.get_ident(), other.ident, flush=True)\nos.abort()\n"
    )
    main, other = map(int, run_script(script, tmp_path, expect=-signal.SIGABRT).split())
    found = report_in(tmp_path)
    assert set(found.threads) == {main, other}
    assert found.current == main
    assert found.threads[other][-1].function == "waits_here"
    assert found.threads[main][-1].function == "<module>"


#: gunicorn's worker has its handler by then; and a C call that does not let go of the interpreter.
HOLDS = (
    PRELUDE.replace(
        "caught =",
        """
def handle_abort(number, frame):
    handled.append(number)
    print('handled', flush=True)
    sys.exit(1)

handled = []
signal.signal(signal.SIGABRT, handle_abort)
caught =""",
    )
    + """
def holds_the_interpreter():
    library, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(256)
    print('holds', flush=True)
    CALL

holds_the_interpreter()
"""
)


def is_asleep(pid: int) -> bool:
    """Whether its one thread waits in the kernel."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def test_an_abort_is_told_while_a_c_call_holds_the_interpreter(tmp_path: Path) -> None:
    # A mutex of POSIX that is taken twice is waited for for ever, whatever signal comes.
    twice = "library.pthread_mutex_lock(mutex); library.pthread_mutex_lock(mutex)"
    with Script(HOLDS.replace("CALL", twice), tmp_path) as process:
        assert process.hear() == "holds"
        wait_for(lambda: is_asleep(process.process.pid), "the call")
        process.process.send_signal(signal.SIGABRT)
        wait_for(lambda: report_in(tmp_path).current, "the report")
        found = report_in(tmp_path)
        assert found.error == "Aborted"
        assert found.threads[found.current][-1].function == "holds_the_interpreter"
        assert process.process.poll() is None  # and Python has not handled it yet


def test_the_handler_in_python_is_called_all_the_same(tmp_path: Path) -> None:
    with Script(HOLDS.replace("CALL", "library.sleep(60)"), tmp_path) as process:
        assert process.hear() == "holds"
        process.process.send_signal(signal.SIGABRT)
        assert process.hear() == "handled"
        assert process.end() == ("", "")
        assert process.process.returncode == 1
    assert report_in(tmp_path).error == "Aborted"


DEEP = """
def deep(depth, wait):
    deep(depth - 1, wait) if depth else wait()

def crashes():
    ctypes.string_at(0)

arrived, go_on = threading.Semaphore(0), threading.Lock()
go_on.acquire()

def waits_here():
    arrived.release()
    go_on.acquire()

for _ in range(40):
    threading.Thread(target=deep, args=(40, waits_here), daemon=True).start()
for _ in range(40):
    arrived.acquire()
deep(40, crashes)
"""


def test_many_threads_with_deep_stacks_are_all_told(tmp_path: Path) -> None:
    """As many as a worker of threads has, each as deep as a framework makes it; the one that crashed comes last."""
    directory = tmp_path / ("a directory with a name as long as those of installed packages" * 2)
    directory.mkdir()
    (directory / "deep.py").write_text(PRELUDE + DEEP)
    script = "import runpy, sys; runpy.run_path(sys.argv[1] + '/deep.py', run_name='__main__')"
    run_script(script, directory, expect=-signal.SIGSEGV)
    found = report_in(directory)
    assert len(found.threads) == 41
    assert "crashes" in [frame.function for frame in found.threads[found.current]]
    waiting = [frames for ident, frames in found.threads.items() if ident != found.current]
    assert [frames[-1].function for frames in waiting] == ["waits_here"] * 40


# -- whose faulthandler it is --------------------------------------------------------------------------------------


def test_a_faulthandler_that_somebody_else_has_enabled_is_left_alone(tmp_path: Path) -> None:
    script = PRELUDE.replace(
        "caught =", "theirs = open(sys.argv[1] + '/theirs', 'w')\nfaulthandler.enable(theirs)\ncaught ="
    )
    run_script(script + "assert caught is None\nctypes.string_at(0)\n", tmp_path, expect=-signal.SIGSEGV)
    assert os.listdir(tmp_path) == ["theirs"]
    assert "Segmentation fault" in (tmp_path / "theirs").read_text()


def test_who_lets_go_leaves_the_interpreter_as_it_was(tmp_path: Path) -> None:
    script = PRELUDE + (
        "descriptors = len(os.listdir('/proc/self/fd'))\n"
        "assert faulthandler.is_enabled()\ncaught.let_go(); caught.let_go()\n"
        "assert not faulthandler.is_enabled()\nassert len(os.listdir('/proc/self/fd')) == descriptors - 1\n"
        "ctypes.string_at(0)\n"
    )
    run_script(script, tmp_path, expect=-signal.SIGSEGV)
    assert crash.read(str(tmp_path / "7-a.crash")) == ""


def test_the_file_is_private_and_goes_when_it_is_removed(tmp_path: Path) -> None:
    script = PRELUDE + (
        "os.umask(0)\nassert os.stat(caught.path).st_mode & 0o777 == 0o600\n"
        "assert not os.get_inheritable(caught._descriptor)\ncaught.remove()\nprint(os.listdir(sys.argv[1]))\n"
    )
    assert run_script(script, tmp_path) == "[]\n"


# -- after fork ----------------------------------------------------------------------------------------------------

FORKS = """
import ctypes, faulthandler, os, sys
from paste_agent import lifecycle, settings
from tests.recorders import settings_of
from pathlib import Path
agent = lifecycle.agent_of(settings_of(Path(sys.argv[1])))
recorder = agent.serve()
path = agent._crash_file.path
pid = os.fork()
if pid == 0:
    enabled = faulthandler.is_enabled()
    if sys.argv[2] == 'serves':
        own = agent.serve().path
        assert agent._crash_file.path != path
    elif enabled:
        os._exit(9)
    ctypes.string_at(0)
status = os.waitpid(pid, 0)[1]
print(os.WTERMSIG(status), os.stat(path).st_size, faulthandler.is_enabled())
"""


@pytest.mark.parametrize("child", ["serves", "does not"])
def test_a_child_that_crashes_writes_nothing_into_its_parents_file(tmp_path: Path, child: str) -> None:
    tmp_path.chmod(0o700)
    assert run_script(FORKS, tmp_path, child) == f"{int(signal.SIGSEGV)} 0 True\n"


# -- where there can be none ---------------------------------------------------------------------------------------


def test_a_recorder_in_memory_has_no_file() -> None:
    assert crash.crash_file(None) is None


@pytest.mark.parametrize("make", ["link", "file", "missing directory"])
def test_a_name_that_is_taken_is_not_used(tmp_path: Path, make: str) -> None:
    script = PRELUDE.replace("caught = crash.crash_file(path)", "") + "print(crash.crash_file(path))\n"
    script += "print(faulthandler.is_enabled())\n"
    directory, victim = tmp_path, tmp_path / "victim"
    victim.write_text("precious")
    if make == "link":
        (tmp_path / "7-a.crash").symlink_to(victim)
    elif make == "file":
        victim.rename(tmp_path / "7-a.crash")
        victim = tmp_path / "7-a.crash"
    else:
        directory = tmp_path / "missing"
    assert run_script(script, directory) == "None\nFalse\n"
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("make", ["missing", "directory", "fifo", "link", "empty"])
def test_what_is_no_file_of_a_crash_reads_as_nothing(tmp_path: Path, make: str) -> None:
    path = tmp_path / "7-a.crash"
    if make == "directory":
        path.mkdir()
    elif make == "fifo":
        os.mkfifo(path)
    elif make == "link":
        (tmp_path / "target").write_text("Fatal Python error: Aborted\n")
        path.symlink_to(tmp_path / "target")
    elif make == "empty":
        path.touch()
    assert crash.read(str(path)) == ""
    assert crash.read("") == ""


def test_no_more_is_read_than_a_bound(tmp_path: Path) -> None:
    path = tmp_path / "7-a.crash"
    path.write_bytes(b"\xff" * (crash.MAX_BYTES + 1000))
    assert crash.read(str(path)) == "\ufffd" * crash.MAX_BYTES


def test_when_it_was_written_is_when_it_was_told(tmp_path: Path) -> None:
    path = tmp_path / "7-a.crash"
    assert crash.written_at_ns(str(path)) == 0
    path.touch()  # as long as nothing is told, its time is that of the worker's start
    assert crash.written_at_ns(str(path)) == 0
    path.write_text("Fatal Python error: Aborted\n")
    os.utime(path, ns=(5, 1_700_000_000_123_456_789))
    assert crash.written_at_ns(str(path)) == 1_700_000_000_123_456_789
