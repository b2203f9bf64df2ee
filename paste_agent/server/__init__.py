"""gunicorn, configured by an ini file: the console script `gunicorn_paster` and the server runner `egg:paste_agent`."""
