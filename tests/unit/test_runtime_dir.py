"""The runtime directory is this user's alone, or it is refused."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from paste_agent import settings
from paste_agent.errors import RuntimeDirError
from paste_agent.lease import Holder, Lease
from paste_agent.runtime_dir import existing_service_dir, service_dir
from paste_agent.settings import Settings
from tests.recorders import die, leading, open_recorder, run_script, scripts

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
        for parent in (tmp_path, *tmp_path.parents[:3]):  # another user must come so far
            os.chmod(parent, mode(parent) | 0o011)
    base.chmod(bits)
    code = UNWRITABLE.format(somebody=SOMEBODY)
    found = subprocess.run(
        [sys.executable, "-c", code, str(base)], capture_output=True, text=True, check=False, timeout=60
    )
    base.chmod(0o700)
    assert found.stderr == ""
    assert found.stdout.strip() == f"{base}: cannot be written to; chmod 700 it, or set `runtime_dir`"


# -- races, and what lies inside -----------------------------------------------------------------------------------


def _a_link(path: str, elsewhere: Path) -> None:
    os.symlink(elsewhere, path)


def _an_open_directory(path: str, elsewhere: Path) -> None:
    os.mkdir(path)
    os.chmod(path, 0o777)


def _a_file(path: str, elsewhere: Path) -> None:
    Path(path).touch()


@pytest.mark.parametrize("what", ["base", "service"])
@pytest.mark.parametrize("make", [_a_link, _an_open_directory, _a_file])
def test_somebody_who_is_quicker_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, make: Callable[[str, Path], None]
) -> None:
    """Between our look at a name and our making it: whatever lies there then is looked at again, and not trusted."""
    elsewhere, mkdir, raced = tmp_path / "elsewhere", os.mkdir, []
    elsewhere.mkdir(0o700)

    def after_somebody_else(path: str, mode: int = 0o777) -> None:
        if (os.path.basename(path) == "run") == (what == "base") and not raced:
            raced.append(path)
            monkeypatch.undo()
            make(path, elsewhere)
        mkdir(path, mode)

    monkeypatch.setattr(os, "mkdir", after_somebody_else)
    said = refused(tmp_path / "run")
    assert raced
    assert "is not a directory" in said or "others may enter it" in said
    assert list(elsewhere.iterdir()) == []


def test_a_directory_that_another_process_of_ours_makes_first_is_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir = os.mkdir

    def after_another_process(path: str, mode: int = 0o777) -> None:
        mkdir(path, mode)
        mkdir(path, mode)

    monkeypatch.setattr(os, "mkdir", after_another_process)
    made = service_dir(of(tmp_path / "run"), {})
    monkeypatch.undo()
    assert service_dir(of(tmp_path / "run"), {}) == made


RACES = """
import os, sys
from paste_agent import settings
from paste_agent.errors import RuntimeDirError
from paste_agent.runtime_dir import service_dir
print('ready', flush=True)
for line in sys.stdin:
    wanted = settings.load({"service_name": "shop", "store": "/x/s", "runtime_dir": line.strip()}, {}, {})
    try:
        print('made', os.path.realpath(service_dir(wanted, {})), flush=True)
    except RuntimeDirError as error:
        print('refused', error, flush=True)
"""


def test_a_link_that_is_laid_at_any_moment_is_never_gone_through(tmp_path: Path) -> None:
    """A real race: another process lays a link under the name while the directory is made there, over and over."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(0o700)
    outcomes: Counter[str] = Counter()
    with scripts(2, RACES) as processes:
        for process in processes:
            assert process.hear() == "ready"
        for attempt in range(200):
            base = tmp_path / f"run-{attempt}"
            for process in processes:
                process.say(base)
            for _ in range(attempt % 20 * 50):  # another moment each time
                pass
            try:
                base.symlink_to(elsewhere)
            except FileExistsError:
                pass
            for process in processes:
                outcome, _, rest = process.hear().partition(" ")
                outcomes[outcome] += 1
                if outcome == "made":
                    assert Path(rest).parent == base
                else:
                    assert "is not a directory" in rest
            assert list(elsewhere.iterdir()) == []
    assert set(outcomes) <= {"made", "refused"}
    assert sum(outcomes.values()) == 400


LAID = """
import os, sys
from pathlib import Path
from paste_agent import lifecycle
from paste_agent.runtime_dir import service_dir
from tests.recorders import settings_of
settings = settings_of(Path(sys.argv[1]))
directory = service_dir(settings, {})
victim = Path(sys.argv[1]) / 'victim'
real = os.urandom
os.urandom = lambda size: bytes(size) if size == 8 else real(size)
for suffix in ('.recorder', '.recorder.new', '.crash')[int(sys.argv[2]):][:1]:
    os.symlink(victim, f'{directory}/{os.getpid()}-{"00" * 8}{suffix}')
agent = lifecycle.agent_of(settings)
recorder = agent.serve()
print(recorder.path is not None, os.path.exists(victim) and victim.read_text())
names = [name for name in os.listdir(directory) if name.startswith(str(os.getpid()))]
print(*sorted(name.partition('.')[2] for name in names if os.path.islink(f'{directory}/{name}')))
"""


@pytest.mark.parametrize("laid", [0, 1, 2], ids=["recorder", "unfinished", "crash"])
def test_a_link_under_the_name_of_a_recorder_is_not_written_through(tmp_path: Path, laid: int) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "victim").write_text("precious")
    told = run_script(LAID, tmp_path, laid).splitlines()
    assert (tmp_path / "victim").read_text() == "precious"
    # A name that is taken is renamed over, or costs recovery; the application does not notice either.
    assert told[0] == ("False precious" if laid == 1 else "True precious")
    assert told[1] == ("", "recorder.new", "crash")[laid]


@pytest.mark.parametrize("name", ["lease", "7-aa.recorder", "7-aa.crash", "7-aa.1.kept"])
def test_a_link_in_the_service_directory_is_not_read_through(tmp_path: Path, name: str) -> None:
    """A lead takes up what lies there; what the link points at keeps its bytes and is not told of."""
    victim = tmp_path / "victim"
    victim.write_text("Fatal Python error: precious\n")
    victim.chmod(0o600)
    (tmp_path / name).symlink_to(victim)
    if name == "lease":
        with pytest.raises(OSError, match="symbolic links"):
            Lease(str(tmp_path / name), Holder("", 0)).try_take()
    else:
        opened = open_recorder(tmp_path)
        die(opened)
        with leading(tmp_path) as lead:
            lead.drain()
            assert lead.store.postmortems(0, 1e12, 10) == []
            assert [row.id for row in lead.store.recorders()] == [opened.id]
    assert victim.read_text() == "Fatal Python error: precious\n"


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
