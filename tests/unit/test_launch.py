"""What a program that is started with the agent on board is called, which settings it has, and who is wrapped."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paste_agent import filter as agent_filter
from paste_agent.errors import IniError, SettingError
from paste_agent.launch import on_board, service_name, wrapping
from paste_agent.launch.configuration import services_in, settings_of
from tests.filtering import Measured, fine, serve


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["/venv/bin/gunicorn", "-b", "0.0.0.0:80", "app:application"], "app"),
        (["gunicorn", "shop.wsgi:application"], "shop"),
        (["gunicorn", "wsgi:application"], "wsgi"),
        (["gunicorn", "shop.web:make_app('x.ini')"], "shop.web"),
        (["pserve", "/etc/shop.ini"], "shop"),
        (["pserve", "--reload", "config:conf/shop.ini#other"], "shop"),
        (["paster", "serve", "shop.ini", "http_port=80"], "shop"),
        (["waitress-serve", "--listen", "*:8080", "--call", "shop:create"], "shop"),
        (["waitress-serve", "--listen", "localhost:8080", "shop:app"], "shop"),
        (["flask", "--app", "src/shop.py", "run"], "shop"),
        (["flask", "-A", "shop.web", "run"], "shop.web"),
        (["flask", "run"], "flask"),
        (["/srv/shop/manage.py", "runserver", "0:8000"], "shop"),
        (["/usr/lib/shop/__main__.py"], "shop"),
        (["serve.py", "8080"], "serve"),
        (["-c"], "unknown_service"),
        ([""], "unknown_service"),
        ([], "unknown_service"),
        (["serve\n.py"], "unknown_service"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_service_is_called_after_what_is_served(argv: list[str], name: str) -> None:
    assert service_name.of_command(argv) == name


def test_a_module_alone_is_a_name_only_to_gunicorn() -> None:
    assert service_name.of_module("shop.wsgi") == "shop"
    assert service_name.of_module("gunicorn -c x") is None
    assert service_name.of_served("shop") is None
    assert service_name.of_module("x" * 300) == "x" * 255


def test_settings_without_a_file(tmp_path: Path) -> None:
    found = settings_of({"PASTE_AGENT__HERE": "/srv", "PASTE_AGENT_STORE": "a.sqlite", "PASTE_AGENT_RUNTIME_DIR": "r"})
    assert (found.service_name, found.store, found.runtime_dir) == ("unknown_service", "/srv/a.sqlite", "/srv/r")
    assert settings_of({}, "shop").service_name == "shop"
    assert settings_of({"PASTE_AGENT_SERVICE_NAME": "given"}, "shop").service_name == "given"


def test_settings_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "agent.ini"
    environ = {"PASTE_AGENT_CONFIG_FILE": str(path)}
    path.write_text("[paste_agent]\nstore = a.sqlite\n[paste_agent:production]\nservice_name = shop\n")
    found = settings_of(environ, "by the program")
    assert (found.service_name, found.store) == ("agent", f"{tmp_path}/a.sqlite")
    assert settings_of({**environ, "PASTE_AGENT_ENVIRONMENT": "production"}).service_name == "shop"
    with pytest.raises(SettingError, match="it has production"):
        settings_of({**environ, "PASTE_AGENT_ENVIRONMENT": "staging"})
    assert [one.service_name for one in services_in(str(path), {})] == ["agent"]


def test_settings_of_an_ini(tmp_path: Path) -> None:
    path = tmp_path / "shop.ini"
    environ = {"PASTE_AGENT_CONFIG_FILE": str(path)}
    path.write_text("[filter:agent]\nuse = egg:paste_agent\napdex_t_s = 2\n")
    assert (settings_of(environ).service_name, settings_of(environ).apdex_t_s) == ("shop", 2.0)
    assert [one.service_name for one in services_in(str(path), {})] == ["shop"]
    path.write_text(path.read_text() + "[filter:other]\nuse = egg:paste_agent\nservice_name = b\n")
    assert settings_of(environ).service_name == "shop"  # of [filter:agent]
    path.write_text(path.read_text().replace("filter:agent", "filter:another"))
    with pytest.raises(IniError, match=r"give the one that counts a section \[paste_agent\]"):
        settings_of(environ)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has been made, nor been asked for, in this process."""
    monkeypatch.setattr(wrapping, "_seen", agent_filter.made)
    monkeypatch.setattr(wrapping, "_left_alone", None)
    monkeypatch.setattr(wrapping, "_said", set())


@pytest.mark.usefixtures("asked")
def test_an_application_is_wrapped_once(measure: Callable[..., Measured]) -> None:
    service = measure()
    around = wrapping.wrapped(fine, service.settings)
    assert wrapping.is_measured(around)
    assert wrapping.wrapped(around, service.settings) is around
    serve(around)
    assert service.counts() == {("GET", None, 200, None): 1}


@pytest.mark.usefixtures("asked")
def test_one_that_a_pipeline_has_measured_is_left_alone(measure: Callable[..., Measured], tmp_path: Path) -> None:
    service, other = measure(), measure()

    def outermost(environ: Any, start_response: Any) -> Any:
        return inner(environ, start_response)

    inner = agent_filter.main(fine, {}, service_name="pipeline", store=f"{tmp_path}/p", runtime_dir=f"{tmp_path}/r")
    for _ in range(2):  # one server may ask another
        assert wrapping.wrapped(outermost, service.settings) is outermost
    assert wrapping.is_measured(wrapping.wrapped(fine, other.settings))  # loaded afterwards, without a filter

    switched_off = agent_filter.main(fine, {}, enabled="false")
    assert switched_off is fine
    assert wrapping.wrapped(fine, service.settings) is fine


@pytest.mark.usefixtures("asked")
def test_what_a_program_serves_about_itself_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_board, "_is_on_board", True)
    monkeypatch.setenv("PASTE_AGENT_STORE", f"{tmp_path}/store.sqlite")

    def figures(environ: Any, start_response: Any) -> Any:
        return fine(environ, start_response)

    assert wrapping.is_measured(wrapping.launched(figures, lambda: "shop"))
    figures.__module__ = "prometheus_client.exposition"
    assert wrapping.launched(figures, lambda: "shop") is figures


@pytest.mark.usefixtures("asked")
def test_settings_that_have_become_wrong_leave_the_application_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(on_board, "_is_on_board", True)
    monkeypatch.setenv("PASTE_AGENT_APDEX_T_S", "soon")
    for _ in range(2):
        assert wrapping.launched(fine, lambda: "shop") is fine
    assert [record.getMessage() for record in caplog.records] == [
        "not measured: PASTE_AGENT_APDEX_T_S = 'soon': expected seconds above 0, for example 60"
    ]


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    pass


class Asgi:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        pass


class OneArgument:
    def __call__(self, request: Any) -> None:
        pass


class Wsgi:
    def __init__(self, environ: Any, start_response: Any) -> None:
        pass


@pytest.mark.parametrize("application", [asgi, Asgi(), OneArgument(), "text", functools.partial(fine, {})])
def test_what_is_no_wsgi_application_is_found_out(application: Any) -> None:
    assert wrapping.why_not(application)


@pytest.mark.parametrize("application", [fine, Wsgi, functools.partial(lambda x, *args: [], 1), lambda *args: [], dict])
def test_what_may_be_one_is_taken_for_one(application: Any) -> None:
    assert wrapping.why_not(application) == ""
