"""What the agent learns from libraries, one file each, put in place when the library is imported.

A file is named as its library is in `disabled_instrumentations`, and has `install(module)`, which is called once for
each module of _LIBRARIES that has been imported. What fails there leaves the library as it is, and is counted.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Collection
from importlib import import_module
from types import ModuleType

from paste_agent import lifecycle
from paste_agent.on_import import when_imported
from paste_agent.settings import Settings

#: By name: modules whose import it waits for. More than one: whichever come.
_LIBRARIES: dict[str, tuple[str, ...]] = {
    # pypiserver brings a copy of its own, which has been at two places.
    "bottle": ("bottle", "pypiserver.bottle", "pypiserver.bottle_wrapper.bottle"),
    "celery": ("celery.signals",),
    "chameleon": ("chameleon.template",),
    "django": ("django.core.handlers.base", "django.template.base"),
    "falcon": ("falcon.app",),
    "flask": ("flask",),
    "http_client": ("http.client", "urllib3.connectionpool"),
    "httpx": ("httpx",),
    "jinja2": ("jinja2.environment",),
    "kajiki": ("kajiki",),
    "kombu": ("kombu.messaging",),
    "mako": ("mako.template",),
    "mysqlclient": ("MySQLdb",),
    "pecan": ("pecan.core",),
    "psycopg": ("psycopg",),
    "psycopg2": ("psycopg2",),
    "pymemcache": ("pymemcache.client.base",),
    "pymysql": ("pymysql",),
    "pyramid": ("pyramid.router", "pyramid.view", "pyramid.config.views", "pyramid.renderers"),
    "redis": ("redis.client", "redis.cluster"),
    "sqlalchemy": ("sqlalchemy",),
    "sqlite": ("sqlite3",),
    "turbogears": ("tg.controllers.dispatcher", "tg.controllers.decoratedcontroller"),
    "webob": ("webob.dec",),
    "zope": ("ZPublisher.WSGIPublisher",),
}
#: The API of OpenTelemetry has a setting of its own.
_OTEL = "opentelemetry.trace"
_registered: set[str] = set()
_wanted: set[tuple[str, bool]] = set()  #: by each service: `record_sql`, `explain_queries`


def install(disabled: Collection[str] = (), record_sql: str = "sanitised", explain_queries: bool = False) -> None:
    """Instrument the libraries that have been imported so far, and each of the others when it is.

    The arguments are settings of that name. Of several services in one process the strictest holds.
    """
    _wanted.add((record_sql, explain_queries))
    _configure()
    for name, modules in _LIBRARIES.items():
        if name in disabled:
            continue
        for module in modules:
            # One that is just being imported is asked for again when the next filter is made.
            if module not in _registered and when_imported(module, functools.partial(_install, name)):
                _registered.add(module)


def install_for(settings: Settings) -> None:
    """As the settings of a service want it."""
    install(settings.disabled_instrumentations, settings.record_sql, settings.explain_queries)
    if settings.opentelemetry_api and _OTEL not in _registered and when_imported(_OTEL, _install_otel):
        _registered.add(_OTEL)


def _configure() -> None:
    """Tell those who look at statements what they may show; a process without a database has none of them."""
    statements = sys.modules.get("paste_agent.statements")
    if statements is not None and _wanted:
        strictest = next(word for word in ("off", "sanitised", "raw") if word in {sql for sql, _ in _wanted})
        statements.configure(strictest, all(explain for _, explain in _wanted))


def _install(name: str, module: ModuleType) -> None:
    try:
        home = import_module(f"{__name__}.{name}")
        _configure()
        home.install(module)
    except Exception as fault:  # a library that is not what it was: it works on, and is not seen
        lifecycle.on_fault(f"instrumentation of {name}", fault)


def _install_otel(module: ModuleType) -> None:
    try:
        import_module("paste_agent.otel").install(module)
    except Exception as fault:
        lifecycle.on_fault("OpenTelemetry's API", fault)
