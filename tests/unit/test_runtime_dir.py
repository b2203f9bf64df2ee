"""The runtime directory is this user's alone, or it is refused."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from paste_agent import settings
from paste_agent.errors import RuntimeDirError
from paste_agent.runtime_dir import existing_service_dir, service_dir
from paste_agent.settings import Settings

ROOT_USER = os.geteuid() == 0
SOMEBODY = 12345
needs_root = pytest.mark.skipif(not ROOT_USER, reason="only root can make a file somebody else's")


def of(runtime_dir: Path | None, service_name: str = "shop", store: str = "/x/store.sqlite") -> Settings:
    local_conf = {"service_name": service_name, "store": store}
    if runtime_dir is not None:
        local_conf["runtime_dir"] = str(runtime_dir)
    return settings.load(local_conf, {}, {})


def refused(runtime_dir: Path) -> str:
    with pytest.raises(RuntimeDirError) as raised:
        service_dir(of(runtime_dir), {})
    assert "\n" not in str(raised.value)
    return str(raised.value)


def mode(path: str | Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_it_is_made_for_this_user_alone(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        made = service_dir(of(tmp_path / "deep" / "run"), {})
    finally:
        os.umask(before)
    assert Path(made).parent == tmp_path / "deep" / "run"
    assert mode(made) == mode(tmp_path / "deep" / "run") == 0o700
    assert service_dir(of(tmp_path / "deep" / "run"), {}) == made
    assert os.listdir(made) == []


def test_services_and_stores_have_their_own(tmp_path: Path) -> None:
    one = tmp_path / "run"
    found = {
        service_dir(of(one, "shop"), {}),
        service_dir(of(one, "shop", "/y/store.sqlite"), {}),
        service_dir(of(one, "shop2"), {}),
        service_dir(of(one, "a/b"), {}),
        service_dir(of(one, "a_b"), {}),
        service_dir(of(one, ".."), {}),
    }
    assert len(found) == 6
    assert {str(Path(path).parent) for path in found} == {str(one)}


@pytest.mark.parametrize("what", ["base", "service"])
def test_a_link_is_refused(tmp_path: Path, what: str) -> None:
    base, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir(0o700)
    if what == "base":
        base.symlink_to(elsewhere)
    else:
        service = Path(service_dir(of(base), {}))
        service.rmdir()
        service.symlink_to(elsewhere)
    assert "is not a directory" in refused(base)
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("what", ["base", "service"])
@pytest.mark.parametrize("bits", [0o777, 0o755, 0o710, 0o701])
def test_a_directory_that_others_may_enter_is_refused(tmp_path: Path, what: str, bits: int) -> None:
    service = service_dir(of(tmp_path / "run"), {})
    os.chmod(tmp_path / "run" if what == "base" else service, bits)
    assert f"others may enter it (mode {bits:o}); chmod 700 it" in refused(tmp_path / "run")


@needs_root
@pytest.mark.parametrize("what", ["base", "service"])
def test_a_directory_of_somebody_else_is_refused(tmp_path: Path, what: str) -> None:
    service = service_dir(of(tmp_path / "run"), {})
    path = tmp_path / "run" if what == "base" else Path(service)
    os.chown(path, SOMEBODY, SOMEBODY)
    assert os.lstat(path).st_uid == SOMEBODY
    assert f"belongs to user {SOMEBODY}" in refused(tmp_path / "run")


@pytest.mark.parametrize("path", ["file", "file/below", "/proc/paste-agent", "/dev/null"])
def test_a_place_where_no_directory_can_be_is_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_text("")
    assert "set `runtime_dir`" in refused(tmp_path / path)


UNWRITABLE = """
import os, sys
from paste_agent import settings
from paste_agent.errors import RuntimeDirError
from paste_agent.runtime_dir import service_dir
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid({somebody})
    os.setuid({somebody})
try:
    print(service_dir(settings.load({{"service_name": "s", "runtime_dir": sys.argv[1]}}, {{}}, {{}}), {{}}))
except RuntimeDirError as error:
    print(error)
"""


@pytest.mark.parametrize("bits", [0o500, 0o600, 0o000])
def test_a_directory_that_cannot_be_written_is_refused(tmp_path: Path, bits: int) -> None:
    base = tmp_path / "run"
    base.mkdir(0o700)
    if ROOT_USER:
        os.chown(base, SOMEBODY, SOMEBODY)
        for parent in (tmp_path, *tmp_path.parents[:2]):  # another user must come so far
            os.chmod(parent, mode(parent) | 0o011)
    base.chmod(bits)
    code = UNWRITABLE.format(somebody=SOMEBODY)
    found = subprocess.run(
        [sys.executable, "-c", code, str(base)], capture_output=True, text=True, check=False, timeout=60
    )
    base.chmod(0o700)
    assert found.stderr == ""
    assert found.stdout.strip() == f"{base}: cannot be written to; chmod 700 it, or set `runtime_dir`"


def test_without_a_setting_it_is_on_a_memory_file_system(tmp_path: Path) -> None:
    name = f"test-runtime-dir-{os.getpid()}"
    made = Path(service_dir(of(None, name), {"XDG_RUNTIME_DIR": str(tmp_path)}))
    try:
        assert mode(made) == mode(made.parent) == 0o700
        if os.path.isdir("/dev/shm"):
            assert made.parent == Path(f"/dev/shm/paste-agent-{os.geteuid()}")
        else:
            assert made.parent == tmp_path / "paste-agent"
    finally:
        made.rmdir()


def test_who_only_looks_makes_nothing(tmp_path: Path) -> None:
    assert existing_service_dir(of(tmp_path / "run"), {}) is None
    assert not (tmp_path / "run").exists()
    made = service_dir(of(tmp_path / "run"), {})
    assert existing_service_dir(of(tmp_path / "run"), {}) == made
    os.chmod(made, 0o755)
    with pytest.raises(RuntimeDirError):
        existing_service_dir(of(tmp_path / "run"), {})
