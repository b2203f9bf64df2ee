"""`paste-agent metrics`, printed and served, as from a shell."""

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import commands
from tests.commands import Run, filled, ini_of, refused, shell
from tests.serving import PATIENCE_S, ROOT, environment

COMMAND = [
    sys.executable,
    "-c",
    f"import sys; sys.path[0] = {str(ROOT)!r}; from paste_agent.cli.main import run; run()",
]


@pytest.fixture
def paste_agent(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    return shell(capsys, monkeypatch, tmp_path)


def test_once(paste_agent: Run, tmp_path: Path) -> None:
    with filled(tmp_path):
        for path in (ini_of(tmp_path), tmp_path / "shop.sqlite"):
            result = paste_agent("metrics", path, "--once")
            assert (result.status, result.errors) == (0, "")
            assert 'service_instance_id="the instance"' in result.output
            assert 'http_route="/items/{id}"' in result.output
            assert result.output.endswith("\n")
            assert "# EOF" not in result.output
        assert paste_agent("metrics", path, "--once", "--openmetrics").output.endswith("# EOF\n")


@pytest.mark.parametrize(
    "made",
    [
        commands.missing, commands.no_store_yet, commands.no_store_in_memory, commands.a_directory, commands.not_an_ini,
        commands.empty, commands.without_agent, commands.wrong_value, commands.newer, commands.cut, commands.torn,
    ],
    ids=lambda made: str(made.__name__),
)  # fmt: skip
def test_what_it_cannot_print(paste_agent: Run, tmp_path: Path, made: object) -> None:
    assert callable(made)
    refused(paste_agent("metrics", made(tmp_path), "--once"))


def test_an_address_that_is_taken(paste_agent: Run, tmp_path: Path) -> None:
    with filled(tmp_path), served(tmp_path) as url:
        port = url.rpartition(":")[2].partition("/")[0]
        refused(paste_agent("metrics", ini_of(tmp_path), "--port", port), f"127.0.0.1:{port}", "--port")
        refused(paste_agent("metrics", ini_of(tmp_path), "--host", "nowhere.invalid"), "nowhere.invalid", "--host")


def test_a_token_file_that_cannot_be_used(paste_agent: Run, tmp_path: Path) -> None:
    ini, token = ini_of(tmp_path), tmp_path / "token"
    refused(paste_agent("metrics", ini, "--token-file", token), "--token-file", "No such file")
    for content in (b"", b"two words", b"\xff\xfe"):
        token.write_bytes(content)
        refused(paste_agent("metrics", ini, "--token-file", token), "--token-file")


def test_without_prometheus_client(paste_agent: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    refused(paste_agent("metrics", ini_of(tmp_path)), "pip install 'paste-agent[prometheus]'")


@contextmanager
def served(directory: Path, *options: str, says: str = "") -> Iterator[str]:
    """Its address, while it serves; it ends by SIGINT, as by Ctrl-C, and says no more than `says`."""
    process = subprocess.Popen(
        [*COMMAND, "metrics", str(ini_of(directory)), "--port", "0", *options],
        cwd=directory,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("Metrics of shop at http://127.0.0.1:")
            yield line.split()[4]
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=PATIENCE_S)
            assert (process.returncode, out, err) == (0, "", says)
        finally:
            process.kill()


def get(url: str, **headers: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=PATIENCE_S) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_served(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret-1\n")
    with filled(tmp_path), served(tmp_path, "--token-file", "token") as url:
        assert get(url)[0] == 401
        status, text = get(url, Authorization="Bearer secret-1")
        assert status == 200
        assert 'http_route="/items/{id}"' in text
        assert get(url + "/x", Authorization="Bearer secret-1")[0] == 404


def test_served_before_the_service_is(tmp_path: Path) -> None:
    ini_of(tmp_path)
    store = tmp_path / "shop.sqlite"
    says = "paste-agent: metrics: shop has no store yet; send the service a request\n"
    with served(tmp_path, says=says) as url:
        assert not store.exists()
        assert get(url) == (503, "no store yet; send the service a request\n")
        request = urllib.request.Request(url, method="HEAD")
        with pytest.raises(urllib.error.HTTPError, match="503"), urllib.request.urlopen(request, timeout=PATIENCE_S):
            pass
        with filled(tmp_path):
            assert get(url)[0] == 200
