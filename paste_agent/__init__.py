"""Monitoring for WSGI applications that PasteDeploy configures and gunicorn serves.

Switched on by one line of ini: `[filter:agent] use = egg:paste_agent`.
"""

__version__ = "0.1.0"
