"""What it adds to manage.py."""
