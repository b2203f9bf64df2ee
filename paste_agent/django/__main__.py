"""`python -m paste_agent.django PATHS COMMAND LINE`: what `manage.py run_gunicorn` replaces its process by."""

from __future__ import annotations

import os
import sys

from paste_agent.server.gunicorn_django import run_command

if __name__ == "__main__":
    run_command([path for path in sys.argv[1].split(os.pathsep) if path], sys.argv[2:])
