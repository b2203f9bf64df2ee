"""What stands below an agent is measured, named as in the ini; all else stays as PasteDeploy has made it."""

from __future__ import annotations

import copy
import importlib
import json
import os
import pickle
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from gunicorn.app.pasterapp import get_wsgi_app
from paste.deploy import loadwsgi
from pyramid.paster import get_app

from paste_agent import filter as agent_filter
from paste_agent import layers, lifecycle
from paste_agent.aggregate import PART_DURATION, REQUEST_DURATION, Total
from paste_agent.errors import SettingError
from paste_agent.layers import Layer, layer_of
from paste_agent.recorder import layout
from paste_agent.recorder.writer import Recorder
from paste_agent.transaction import Transaction, current
from tests.filtering import environ_of, serve
from tests.layered import Place
from tests.recorders import die, leading, open_recorder, run_script
from tests.recorders import serve as serve_in

#: A name; what the ini has of its own; what becomes of it.
PIPELINES: dict[str, tuple[str, str]] = {
    "filters": ("[pipeline:main]\npipeline = agent gzip session shop", "agent(gzip=filter(session=filter(shop=app)))"),
    "above": ("[pipeline:main]\npipeline = session agent gzip shop", "filter(agent(gzip=filter(shop=app)))"),
    "nothing to tell": ("[pipeline:main]\npipeline = gzip agent shop", "filter(agent(app))"),
    "no agent": ("[pipeline:main]\npipeline = gzip session shop", "filter(filter(app))"),
    "section twice": ("[pipeline:main]\npipeline = agent gzip gzip shop", "agent(gzip=filter(gzip=filter(shop=app)))"),
    "section of another": ("[pipeline:main]\npipeline = agent again shop", "agent(again=filter(shop=app))"),
    "app of another": (
        "[pipeline:main]\npipeline = agent gzip till\n[app:till]\nuse = shop",
        "agent(gzip=filter(till=app))",
    ),
    "agent twice": ("[pipeline:main]\npipeline = agent gzip agent shop", "agent(gzip=filter(agent(shop=app)))"),
    "none after all": ("[pipeline:main]\npipeline = agent off gzip shop", "agent(gzip=filter(shop=app))"),
    "pipeline in pipeline": (
        "[pipeline:main]\npipeline = agent gzip inner\n[pipeline:inner]\npipeline = session shop",
        "agent(gzip=filter(session=filter(shop=app)))",
    ),
    "agent in the inner one": (
        "[pipeline:main]\npipeline = gzip inner\n[pipeline:inner]\npipeline = agent session shop",
        "filter(agent(session=filter(shop=app)))",
    ),
    "eggs": (
        "[pipeline:main]\npipeline = agent egg:Paste#httpexceptions egg:Paste#test",
        "agent(egg:Paste#httpexceptions=httpexceptionhandler)",
    ),
    "composite below": (
        "[pipeline:main]\npipeline = agent site\n[composite:site]\npaste.composite_factory = {parts}:site_factory\n"
        "a = inner\nb = shop\n[pipeline:inner]\npipeline = gzip shop",
        "agent(site=site(gzip=filter(shop=app), shop=app))",
    ),
    "composite above": (
        "[composite:main]\npaste.composite_factory = {parts}:site_factory\n"
        "a = one\nb = two\nc = three\n[pipeline:one]\npipeline = agent gzip shop\n[pipeline:two]\n"
        "pipeline = agent shop\n[pipeline:three]\npipeline = gzip shop",
        "site(agent(gzip=filter(shop=app)), agent(app), filter(app))",
    ),
    "filter-app": (
        "[filter-app:main]\nuse = agent\nnext = inner\n[filter-app:inner]\nuse = gzip\nnext = shop",
        "agent(inner=filter(shop=app))",
    ),
    "filter-app, nothing to tell": ("[filter-app:main]\nuse = agent\nnext = shop", "agent(app)"),
    "filter-with": ("[app:main]\nuse = shop\nfilter-with = agent", "agent(app)"),
    "filter-with below": (
        "[pipeline:main]\npipeline = agent till\n[app:till]\nuse = shop\nfilter-with = gzip",
        "agent(gzip=filter(till=app))",
    ),
    "filter with a filter": (
        "[pipeline:main]\npipeline = agent both shop\n[filter:both]\nuse = session\nfilter-with = gzip",
        "agent(gzip=filter(both=filter(shop=app)))",
    ),
    "agent with a filter": (
        "[pipeline:main]\npipeline = second session shop\n[filter:second]\nuse = agent\nfilter-with = gzip",
        "filter(agent(session=filter(shop=app)))",
    ),
    "filter with the agent": (
        "[pipeline:main]\npipeline = both shop\n[filter:both]\nuse = session\nfilter-with = agent",
        "agent(both=filter(shop=app))",
    ),
    "another file": (
        "[pipeline:main]\npipeline = agent gzip there\n[app:there]\nuse = config:other.ini#elsewhere",
        "agent(gzip=filter(there=app))",
    ),
    "switched off": (
        "[pipeline:main]\npipeline = second gzip shop\n[filter:second]\nuse = agent\nlayers = no",
        "agent(filter(app))",
    ),
    "not enabled": (
        "[pipeline:main]\npipeline = second gzip shop\n[filter:second]\nuse = agent\nenabled = no",
        "filter(app)",
    ),
}  # fmt: skip


def nothing(environ: Any, start_response: Any = None) -> Any:
    return []


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.syspath_prepend(str(tmp_path))
    made = Place(tmp_path)
    lifecycle._owed.clear()
    yield made
    assert [agent._faults for agent in lifecycle._agents.values() if agent.settings.service_name == made.service] in (
        [0],
        [],
    )
    for agent in lifecycle._agents.values():
        if agent.settings.service_name == made.service:
            agent.finish()
    sys.modules.pop(made.parts, None)
    lifecycle._owed.clear()


LOAD, LAYER = "paste_agent.layer.load.duration", "paste_agent.layer.duration"


# -- what becomes of a pipeline ------------------------------------------------------------------------------------


def shape_of(place: Place, own: str) -> str:
    app = place.load(own)
    if place.parts not in sys.modules:  # all of it is from eggs
        __import__(place.parts)
    return place.shape(app)


@pytest.mark.parametrize("name", PIPELINES)
def test_layers_stand_below_the_agent_and_nowhere_else(place: Place, name: str) -> None:
    own, shape = PIPELINES[name]
    assert shape_of(place, own) == shape
    assert list(lifecycle._owed) == [] or "agent(" not in shape


FIRST = """
import importlib, json, os, sys
from paste.deploy import loadapp
sys.path.insert(0, sys.argv[1])
assert "paste_agent.filter" not in sys.modules
for ini in sys.argv[3:]:
    if os.fork() == 0:
        shape = __import__(sys.argv[2]).shape
        print(json.dumps([os.path.basename(ini), shape(loadapp("config:" + ini))]), flush=True)
        os._exit(0)
    os.wait()
"""


def test_the_names_are_the_same_when_the_agent_is_imported_by_its_pipeline(place: Place) -> None:
    inis = [place.ini(own, f"{name}.ini") for name, (own, _) in PIPELINES.items()]
    lines = run_script(FIRST, place.directory, place.parts, *inis).splitlines()
    found = {name.removesuffix(".ini"): shape for name, shape in map(json.loads, lines)}
    assert found == {name: shape for name, (_, shape) in PIPELINES.items()}


def load_as_paster(ini: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports pkg_resources, which complains of its callers
        serve_command = importlib.import_module("paste.script.serve").ServeCommand
    return serve_command("serve").loadapp(f"config:{ini}", "main", "/")


LOADERS: dict[str, Callable[[Path], Any]] = {
    "gunicorn --paste": lambda ini: get_wsgi_app(str(ini)),
    "pserve": lambda ini: get_app(str(ini)),
    "paster serve": load_as_paster,
}


@pytest.mark.parametrize("name", LOADERS)
def test_all_loaders(place: Place, name: str) -> None:
    own, shape = PIPELINES["composite below"]
    app = LOADERS[name](place.ini(own))
    assert place.shape(app) == shape


def test_the_environment_switches_layers_off(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PASTE_AGENT_LAYERS", "false")
    assert shape_of(place, PIPELINES["filters"][0]) == "agent(filter(filter(app)))"
    serve(place.load(PIPELINES["filters"][0]))
    assert place.counts() == {}


def test_a_wrong_setting_is_told_as_ever(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    faults: list[str] = []
    monkeypatch.setattr(lifecycle, "on_fault", lambda where, fault: faults.append(where))
    wrong = "[pipeline:main]\npipeline = second gzip shop\n[filter:second]\nuse = agent\nlayers = perhaps"
    with pytest.raises(SettingError, match="layers = 'perhaps'"):
        place.load(wrong)
    assert faults == []


# -- times ---------------------------------------------------------------------------------------------------------


def test_own_times_add_up_and_the_slow_one_stands_out(place: Place) -> None:
    app = place.load(
        "[pipeline:main]\npipeline = agent gzip sleepy session shop\n"
        "[filter:sleepy]\npaste.filter_factory = {parts}:filter_factory\nsleep = 0.02\n"
    )
    for _ in range(3):
        assert serve(app).sent == b"ok"
    transaction = place.module.SEEN[-1]
    assert [name for name, _ in transaction.layers] == ["session", "sleepy", "gzip"]
    found = place.durations()
    names = ["gzip", "sleepy", "session", "shop"]
    assert {name: found[LAYER, name][0] for name in names} == dict.fromkeys(names, 3)
    own_s = {name: found[LAYER, name][1] for name in names}
    (request_s,) = [total[1] for (metric, _), total in found.items() if metric == REQUEST_DURATION]
    assert sum(own_s.values()) <= request_s
    assert max(own_s, key=own_s.__getitem__) == "sleepy"
    assert own_s["sleepy"] >= 3 * 0.02
    # The part has the filters' own time and not the application's.
    count, layers_s = found[PART_DURATION, "layers"]
    assert count == 3
    assert layers_s == pytest.approx(sum(own_s[name] for name in ("gzip", "sleepy", "session")))


def test_a_sleeping_application_is_in_nobody_elses_time(place: Place) -> None:
    app = place.load(
        "[pipeline:main]\npipeline = agent gzip session slow\n"
        "[app:slow]\npaste.app_factory = {parts}:app_factory\nsleep = 0.05\n"
    )
    serve(app)
    found = place.durations()
    assert found[LAYER, "slow"][1] >= 0.05
    (request_s,) = [total[1] for (metric, _), total in found.items() if metric == REQUEST_DURATION]
    assert found[LAYER, "gzip"][1] + found[LAYER, "session"][1] <= request_s - 0.05


def test_a_layer_may_be_called_several_times(place: Place) -> None:
    app = place.load(
        "[pipeline:main]\npipeline = agent thrice gzip slow\n"
        "[filter:thrice]\npaste.filter_factory = {parts}:filter_factory\ntimes = 3\n"
        "[app:slow]\npaste.app_factory = {parts}:app_factory\nsleep = 0.01\n"
    )
    serve(app)
    found = place.durations()
    assert [found[LAYER, name][0] for name in ("thrice", "gzip", "slow")] == [1, 3, 3]
    (request_s,) = [total[1] for (metric, _), total in found.items() if metric == REQUEST_DURATION]
    assert found[LAYER, "slow"][1] >= 0.03
    assert found[LAYER, "thrice"][1] + found[LAYER, "gzip"][1] <= request_s - 0.03


def test_an_exception_passes_and_the_layers_are_counted(place: Place) -> None:
    app = place.load(
        "[pipeline:main]\npipeline = agent gzip failing\n"
        "[app:failing]\npaste.app_factory = {parts}:app_factory\nfails = yes\n"
    )
    with pytest.raises(KeyError, match="the application's own") as raised:
        serve(app)
    assert raised.value.__context__ is None
    assert raised.value.__cause__ is None
    assert place.counts() == {
        (LOAD, "gzip"): 1, (LOAD, "failing"): 1, (LAYER, "gzip"): 1, (LAYER, "failing"): 1,
    }  # fmt: skip


def test_a_composite_has_the_time_of_its_own_choice(place: Place) -> None:
    app = place.load(PIPELINES["composite below"][0])
    serve(app, SITE="a")
    serve(app, SITE="b")
    serve(app, SITE="b")
    assert place.counts() == {
        (LOAD, "site"): 1, (LOAD, "gzip"): 1, (LOAD, "shop"): 2,
        (LAYER, "site"): 3, (LAYER, "gzip"): 1, (LAYER, "shop"): 3,
    }  # fmt: skip


def test_what_loads_slowly_is_told_alone(place: Place) -> None:
    app = place.load(
        "[pipeline:main]\npipeline = agent site\n[composite:site]\npaste.composite_factory = {parts}:site_factory\n"
        "a = inner\n[pipeline:inner]\npipeline = slow gzip shop\n"
        "[filter:slow]\npaste.filter_app_factory = {parts}:slow_to_load\n"
    )
    serve(app)
    found = place.durations()
    loads = {name: total for (metric, name), total in found.items() if metric == LOAD}
    assert {name: count for name, (count, _) in loads.items()} == {"site": 1, "slow": 1, "gzip": 1, "shop": 1}
    assert max(loads, key=lambda name: loads[name][1]) == "slow"
    assert loads["slow"][1] >= 0.02


def test_an_application_alone_says_how_long_it_took_to_load(place: Place) -> None:
    serve(place.load("[pipeline:main]\npipeline = agent shop"))
    assert place.module.SEEN[0].layers is None
    assert place.counts() == {(LOAD, "shop"): 1}


def test_what_does_not_load_says_so_as_ever(place: Place) -> None:
    with pytest.raises(KeyError, match="it does not load"):
        place.load(
            "[pipeline:main]\npipeline = agent gzip broken\n"
            "[app:broken]\npaste.app_factory = {parts}:app_factory\nbreaks = yes\n"
        )
    (owed,) = lifecycle._owed
    kind, fields, start_ns, duration_ns, failed = owed
    assert (kind, fields, failed) == (layout.KIND_LOAD, ("broken",), True)
    assert 0 < start_ns < start_ns + duration_ns < time.perf_counter_ns()
    assert layers._loading.get() is None


def test_a_kept_trace_names_the_filters(tmp_path: Path) -> None:
    recorder = open_recorder(tmp_path, keep_all=True)

    def meanwhile() -> None:
        within = current.get()
        assert isinstance(within, Transaction)
        assert within.environ is not None
        app = Layer(Layer(lambda environ, start_response: [], "session", False), "gzip", False)
        app(within.environ, nothing)

    serve_in(recorder, meanwhile=meanwhile)
    (kept,) = recorder.kept
    assert kept.layers is not None
    assert [name for name, _ in kept.layers] == ["session", "gzip"]
    die(recorder)


# -- a layer by itself ---------------------------------------------------------------------------------------------


def of_layers(recorder: Recorder, directory: Path) -> dict[str, Total]:
    """What a recorder has of its layers, by name; its process is dead afterwards."""
    die(recorder)
    with leading(directory) as lead:
        lead.drain()
        totals = lead.store.totals()
        return {str(one.attributes["paste.layer"]): one.total for one in totals if one.metric == LAYER}


def in_request(recorder: Recorder, run: Callable[[Transaction], object]) -> Transaction:
    seen: list[Transaction] = []

    def meanwhile() -> None:
        within = current.get()
        assert isinstance(within, Transaction)
        seen.append(within)
        run(within)

    serve_in(recorder, meanwhile=meanwhile)
    return seen[0]


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    opened = open_recorder(tmp_path)
    yield opened
    die(opened)


def test_without_a_transaction_a_layer_passes_on() -> None:
    environ, start_response, body = environ_of(), object(), [b"x"]
    seen: list[object] = []

    def app(*args: object) -> list[bytes]:
        seen.extend(args)
        return body

    assert Layer(app, "gzip", False)(environ, start_response) is body  # type: ignore[arg-type]
    assert seen[0] is environ
    assert seen[1] is start_response


def test_a_layer_that_calls_others_in_threads_has_no_less_than_no_time(recorder: Recorder, tmp_path: Path) -> None:
    def sleeps(environ: Any, start_response: Any) -> list[bytes]:
        time.sleep(0.02)
        return []

    slow = Layer(sleeps, "slow", True)

    def both(environ: Any, start_response: Any) -> list[bytes]:
        threads = [threading.Thread(target=slow, args=(environ, start_response)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return []

    app = Layer(both, "parallel", False)
    transaction = in_request(recorder, lambda within: app(within.environ, nothing))  # type: ignore[arg-type]
    assert transaction.layers is not None
    assert [(name, own_ns >= 0) for name, own_ns in transaction.layers] == [("parallel", True)]
    found = of_layers(recorder, tmp_path)
    assert (found["slow"].count, found["parallel"].count) == (4, 1)
    assert found["parallel"].sum_ns < 10**9


def test_a_transaction_that_has_ended_is_left_alone(recorder: Recorder) -> None:
    app = Layer(nothing, "late", False)
    transaction = in_request(recorder, lambda within: None)
    last = recorder.last
    assert app({"paste_agent.transaction": transaction}, nothing) == []
    assert transaction.layers is None
    assert recorder.last == last


def test_what_is_remembered_of_a_transaction_is_bounded(recorder: Recorder) -> None:
    app = Layer(nothing, "often", False)

    def run(within: Transaction) -> None:
        for _ in range(700):
            app(within.environ, nothing)  # type: ignore[arg-type]

    transaction = in_request(recorder, run)
    assert transaction.layers is not None
    assert len(transaction.layers) == 512


class Router:
    registry = "the registry"

    def __call__(self, environ: Any, start_response: Any) -> list[bytes]:
        return [b"routed"]

    def __repr__(self) -> str:
        return "<the router>"


def as_any(value: object) -> Any:
    return value


def test_a_layer_passes_for_what_it_wraps() -> None:
    router: Any = Router()
    layer = as_any(Layer(router, "router", True))
    assert layer.registry == "the registry"
    assert repr(layer) == "<the router>"
    layer.debug = True
    assert router.debug is True
    del layer.debug
    assert not hasattr(router, "debug")
    with pytest.raises(AttributeError, match="'Router' object has no attribute 'nope'"):
        _ = layer.nope
    assert isinstance(layer, Router)
    for other in (copy.copy(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert issubclass(type(other), Layer)
        assert other({}, nothing) == [b"routed"]
        assert other._paste_agent_key == (layout.KIND_LAYER, ("router",))


class Mapper(dict[str, Any]):
    """As an urlmap: an application that is used like a dictionary."""

    _name = _key = "its own"
    __hash__ = object.__hash__  # type: ignore[assignment]

    def __call__(self, environ: Any, start_response: Any) -> list[bytes]:
        return []


def test_a_layer_can_what_it_wraps_can(place: Place) -> None:
    made = Mapper()
    layer: Any = layer_of(made, "map", False)
    assert len(layer) == 0
    assert not layer
    layer["/x"] = 1
    assert made == {"/x": 1}
    assert layer == made
    assert (layer["/x"], "/x" in layer, list(layer), bool(layer)) == (1, True, ["/x"], True)
    assert (layer._name, layer._key) == ("its own", "its own")
    assert weakref.ref(layer)() is layer
    plain: Any = layer_of(Router(), "router", True)
    with pytest.raises(TypeError, match="len"):
        len(plain)
    assert not hasattr(type(plain), "__iter__")
    assert len({plain, layer}) == 2


# -- a PasteDeploy that is not what it was -------------------------------------------------------------------------

DIFFERENT = """
import sys
from paste.deploy import loadapp, loadwsgi
sys.path.insert(0, sys.argv[1])
exec(sys.argv[4])
app = loadapp("config:" + sys.argv[3])
print(__import__(sys.argv[2]).shape(app))
from paste_agent import lifecycle
(agent,) = lifecycle._agents.values()
print(agent._faults)
"""
CHANGES = {
    "no such type": "del loadwsgi.FILTER_WITH",
    "no such function": (
        "loadwsgi.ConfigLoader._filter_app = loadwsgi.ConfigLoader._filter_app_context; "
        "del loadwsgi.ConfigLoader._filter_app_context"
    ),
    "a type without its function": "loadwsgi.FILTER_APP = object()",
}


@pytest.mark.parametrize("name", CHANGES)
def test_with_another_pastedeploy_there_are_no_layers(place: Place, name: str) -> None:
    ini = place.ini(PIPELINES["filters"][0])
    lines = run_script(DIFFERENT, place.directory, place.parts, ini, CHANGES[name]).splitlines()
    assert lines == ["agent(filter(filter(app)))", "1"]


@pytest.mark.parametrize("wrapper", [layers._pipeline, layers._filter_app, layers._filter_with])
def test_contexts_of_another_shape_are_made_as_ever(wrapper: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    faults: list[str] = []
    monkeypatch.setattr(lifecycle, "on_fault", lambda where, fault: faults.append(where))
    context = ModuleType("context")
    assert wrapper(lambda given: (given, "made"), context) == (context, "made")
    assert faults == ["layers"]


def test_a_second_install_changes_nothing() -> None:
    before = loadwsgi.ConfigLoader.get_context, loadwsgi.APP.invoke
    layers.install(agent_filter.main)
    assert (loadwsgi.ConfigLoader.get_context, loadwsgi.APP.invoke) == before
    assert os.path.basename(loadwsgi.__file__) == "loadwsgi.py"
