"""Inis of filters and applications that say what stands around what, for the tests of layers.

place = Place(tmp_path)
assert place.shape(place.load("[pipeline:main]\\npipeline = agent gzip shop")) == "agent(gzip=filter(shop=app))"
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

from paste.deploy import loadapp

from paste_agent import lifecycle
from paste_agent.store.store import Store

PARTS = '''
import time

SEEN = []

class Filter:
    def __init__(self, app, sleep, times):
        self.app, self.sleep_s, self.times = app, float(sleep), int(times)

    def __call__(self, environ, start_response):
        time.sleep(self.sleep_s)
        for _ in range(self.times - 1):
            self.app(environ, lambda *args: None)
        return self.app(environ, start_response)

class Site:
    def __init__(self, apps):
        self.apps = apps

    def __call__(self, environ, start_response):
        return self.apps[environ.get("SITE", "a")](environ, start_response)

class App:
    registry = "the registry"

    def __init__(self, sleep, fails):
        self.sleep_s, self.fails = float(sleep), fails

    def __call__(self, environ, start_response):
        SEEN.append(environ.get("paste_agent.transaction"))
        time.sleep(self.sleep_s)
        if self.fails:
            raise KeyError("the application's own")
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"ok"]

def filter_factory(global_conf, sleep="0", times="1"):
    return lambda app: Filter(app, sleep, times)

def filter_app_factory(app, global_conf, sleep="0", times="1"):
    return Filter(app, sleep, times)

def slow_to_load(app, global_conf):
    time.sleep(0.02)
    return Filter(app, 0, 1)

def none_factory(global_conf):
    return lambda app: app

def app_factory(global_conf, sleep="0", fails="", breaks=""):
    if breaks:
        raise KeyError("it does not load")
    return App(sleep, fails)

def site_factory(loader, global_conf, **names):
    return Site({key: loader.get_app(name, global_conf=global_conf) for key, name in names.items()})

def shape(app):
    """What is around what; a layer as name=what is in it."""
    kind = type(app).__name__
    if kind == "Layer":
        return app._paste_agent_layer + "=" + shape(app._paste_agent_wrapped)
    if kind == "AgentFilter":
        return f"agent({shape(app.application)})"
    if kind == "Filter":
        return f"filter({shape(app.app)})"
    if kind == "Site":
        return "site(" + ", ".join(shape(one) for one in app.apps.values()) + ")"
    return kind.lower()
'''


SECTIONS = """
[filter:agent]
use = egg:paste_agent
service_name = {service}
store = %(here)s/store.sqlite
runtime_dir = %(here)s/run
[filter:gzip]
paste.filter_factory = {parts}:filter_factory
[filter:session]
paste.filter_app_factory = {parts}:filter_app_factory
[filter:again]
use = gzip
[filter:off]
paste.filter_factory = {parts}:none_factory
[app:shop]
paste.app_factory = {parts}:app_factory
"""


_numbers = itertools.count()


class Place:
    """A directory with inis of one service, and the module of their parts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        number = next(_numbers)
        self.service, self.parts = f"layers-{number}", f"layers_parts_{number}"
        (directory / f"{self.parts}.py").write_text(PARTS)
        (directory / "other.ini").write_text(f"[app:elsewhere]\npaste.app_factory = {self.parts}:app_factory\n")

    def ini(self, own: str, name: str = "service.ini") -> Path:
        text = SECTIONS + own
        path = self.directory / name
        path.write_text(text.replace("{service}", self.service).replace("{parts}", self.parts))
        return path

    def load(self, own: str) -> Any:
        return loadapp(f"config:{self.ini(own)}")

    @property
    def module(self) -> Any:
        return sys.modules[self.parts]

    def shape(self, app: Any) -> str:
        return str(self.module.shape(app))

    def durations(self) -> dict[tuple[str, str], tuple[int, float]]:
        """What was counted, by metric and layer (or part): how often, and seconds. Ends the service."""
        agent = self.agent()
        agent.open()
        agent.finish()
        store = Store(str(self.directory / "store.sqlite"), read_only=True)
        try:
            found = {}
            for one in store.totals():
                of = one.attributes
                name = of.get("paste.layer") or of.get("paste_agent.part") or ""
                found[one.metric, str(name)] = (one.total.count, one.total.sum_ns / 1e9)
            return found
        finally:
            store.close()

    def counts(self) -> dict[tuple[str, str], int]:
        return {key: count for key, (count, _) in self.durations().items() if "layer" in key[0]}

    def agent(self) -> lifecycle.Agent:
        (agent,) = [one for one in lifecycle._agents.values() if one.settings.service_name == self.service]
        return agent
