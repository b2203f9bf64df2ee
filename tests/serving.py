"""Starts real servers for tests, and shows what they printed when something goes wrong.

    with serve([*GUNICORN_PASTER, "--bind", "127.0.0.1:0", "shop.ini"], cwd=tmp_path) as server:
        assert requests.get(server.url).ok
        server.stop()

Only processes that were started here are ever signalled, by their pid.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from gunicorn.config import Config

from paste_agent.errors import StoreError

ROOT = Path(__file__).resolve().parent.parent

#: The console script, whether or not the distribution is installed. `-c` puts '' on sys.path, the script does not.
GUNICORN_PASTER = [
    sys.executable,
    "-c",
    "import sys; sys.path.remove(''); from paste_agent.server.gunicorn_paster import run; run()",
]
#: gunicorn's control socket is shared by all servers of a user; older versions have none.
NO_CONTROL_SOCKET = ["--no-control-socket"] if "control_socket_disable" in Config().settings else []
#: The same as lines of `[server:main]`.
NO_CONTROL_SOCKET_INI = "control_socket_disable = true\n" if NO_CONTROL_SOCKET else ""

#: How long anything may take before a test fails; far above what it takes.
PATIENCE_S = 30.0

_LISTENING = re.compile(r"Listening at: http://[^\s:]+:(\d+)")


def environment(**more: str) -> dict[str, str]:
    """This process's environment without gunicorn's and the agent's variables, with the checkout importable."""
    env = {
        name: value for name, value in os.environ.items() if not name.startswith(("GUNICORN_", "PASTE_AGENT_", "OTEL_"))
    }
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**env, "PYTHONUNBUFFERED": "1", **more}


def wait_for(
    condition: Callable[[], object], what: str, patience_s: float = PATIENCE_S, *, poll_s: float = 0.02
) -> None:
    """Return once `condition()` is true; AssertionError that names `what` when it never is."""
    deadline = time.monotonic() + patience_s
    while not _holds(condition):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {patience_s:g} s in vain for {what}")
        time.sleep(poll_s)


def _holds(condition: Callable[[], object]) -> bool:
    """Whether it does by now; one that looks into a store that is just being made does not yet."""
    try:
        return bool(condition())
    except StoreError as error:
        if "still empty" in str(error) or "no store yet" in str(error):
            return False
        raise


def children_of(pid: int) -> list[int]:
    """Pids of a process's children, as the kernel lists them."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in children.split()]


class Served:
    """A server that runs. Made by `serve`."""

    def __init__(self, process: subprocess.Popen[bytes], out: IO[bytes]) -> None:
        self.process = process
        self._out = out

    @property
    def pid(self) -> int:
        """Of the arbiter."""
        return self.process.pid

    @property
    def port(self) -> int:
        """Where it listens; of the last address it printed, so that it is right after a reload too."""
        return int(_LISTENING.findall(self.output())[-1])

    @property
    def url(self) -> str:
        """Without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    def output(self) -> str:
        """All that it printed so far, stdout and stderr in order."""
        # Not by seek and read: several threads ask at once, and would move one position.
        read = b""
        while more := os.pread(self._out.fileno(), 1 << 20, len(read)):
            read += more
        return read.decode(errors="replace")

    def workers(self) -> list[int]:
        """Pids of its children, as the kernel lists them."""
        return children_of(self.pid)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        """As the function of that name; fails at once when the server ends."""

        def met() -> bool:
            if _holds(condition):
                return True
            if self.process.poll() is not None and not _holds(condition):
                raise AssertionError(f"the server ended with {self.process.returncode} before {what}")
            return False

        wait_for(met, what)

    def wait_for_output(self, text: str, times: int = 1) -> None:
        """Return once `text` was printed, `times` times in all."""
        self.wait_for(lambda: self.output().count(text) >= times, f"{text!r} in the output")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send `number`, wait, and return the exit status (negative: the signal that ended it)."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)


@contextlib.contextmanager
def serve(
    command: Sequence[str], cwd: Path | str, env: Mapping[str, str] | None = None, *, wait: bool = True
) -> Iterator[Served]:
    """Run `command`, which prints gunicorn's `Listening at: http://HOST:PORT`, for the time of the block.

    env: complete; None: `environment()`.
    wait: until it listens.
    When the block raises, what the server printed is printed too. The server's process group is gone afterwards.
    """
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen(
            list(command),
            cwd=cwd,
            env=dict(environment() if env is None else env),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group of its own, so that workers whose arbiter died are found
        )
        # The child shares the file's position: reading must use a description of its own.
        with open(f"/proc/self/fd/{out.fileno()}", "rb") as reading:
            served = Served(process, reading)
            try:
                if wait:
                    served.wait_for(lambda: _LISTENING.search(served.output()), "an address to listen at")
                yield served
            except BaseException:
                sys.stderr.write(f"\n--- {' '.join(command)}\n{served.output()}---\n")
                raise
            finally:
                _end(process)


def run(command: Sequence[str], cwd: Path | str, env: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    """Run `command` to its end; returns exit status, stdout and stderr.

    AssertionError that shows both when it does not end.
    """
    process = subprocess.Popen(
        list(command),
        cwd=cwd,
        env=dict(environment() if env is None else env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    with process:
        try:
            out, err = process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            raise AssertionError(f"{' '.join(command)} did not end:\n{(out + err).decode(errors='replace')}") from None
        finally:
            _end(process)
    return process.returncode, out.decode(errors="replace"), err.decode(errors="replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop the arbiter, then whatever is left of its group."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(PATIENCE_S)
