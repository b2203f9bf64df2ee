"""The dashboard: pages about what a service has measured, made from its store. A WSGI application, read-only."""
