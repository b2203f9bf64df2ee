"""What holds for all instrumentation; each library has tests of its own."""

from __future__ import annotations

import subprocess
import sys


def test_what_is_not_loaded_is_not_loaded_for_it() -> None:
    """A filter without an application loads neither."""
    script = (
        "import sys\n"
        "from paste_agent import instrument\n"
        "before = set(sys.modules)\n"
        "instrument.install()\n"
        "print(sorted({'sqlite3', 'pyramid', 'http.client'} & (set(sys.modules) - before)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
