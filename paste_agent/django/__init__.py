"""A Django application: in INSTALLED_APPS it gives `manage.py run_gunicorn`."""
