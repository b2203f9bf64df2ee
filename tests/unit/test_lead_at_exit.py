"""A process that comes to lead when its interpreter has begun to end: since Python 3.12 it gets no new thread then."""

from __future__ import annotations

from pathlib import Path

from paste_agent import runtime_dir
from paste_agent.lease import Holder, Lease
from tests.receiver import Receiver
from tests.recorders import Script, settings_of

SERVES_AND_ENDS = """
import atexit, sys
from pathlib import Path
from paste_agent.filter import measured
from tests.filtering import fine, serve
from tests.recorders import settings_of
serve(measured(fine, settings_of(Path(sys.argv[1]), endpoint=sys.argv[2], shutdown_timeout_s="30")))
atexit.register(print, "ends", flush=True)  # called before what was registered earlier, the agent's end
"""


def test_it_sends_what_is_left_all_the_same(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    settings = settings_of(tmp_path)
    lease = Lease(str(Path(runtime_dir.service_dir(settings, {})) / runtime_dir.LEASE), Holder("", 0))
    assert lease.try_take()
    with Receiver() as collector, Script(SERVES_AND_ENDS, tmp_path, collector.endpoint) as script:
        assert script.hear() == "ends"
        lease.let_go()
        assert script.end() == ("", "")
        assert sum(collector.request_counts().values()) == 1
