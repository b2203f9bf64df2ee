"""The dashboard in an ini: its keys, where it is mounted, and what of it a worker loads before anybody looks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from paste.deploy import loadapp

from paste_agent import ini
from paste_agent.dashboard.app import Dashboard, main
from paste_agent.dashboard.mount import Mount
from paste_agent.errors import AgentError
from tests.commands import filled, ini_of
from tests.dashboards import Browser
from tests.serving import ROOT, environment

TOKEN = "correct-horse-battery-staple"
SITE = """
[app:dashboard]
use = egg:paste_agent#dashboard
{keys}

[app:shop]
use = egg:paste_agent#demo

[composite:site]
use = egg:paste_agent#mount
/ = shop
/shop/inside/ = dashboard

[pipeline:main]
pipeline = agent site
"""


def made(directory: Path, filter_keys: str = "", **keys: str) -> Dashboard:
    path = ini_of(directory, filter_keys, SITE.format(keys=""))
    return main({"__file__": str(path), "here": str(directory)}, **keys)


def refused(directory: Path, **keys: str) -> str:
    with pytest.raises(AgentError) as raised:
        made(directory, **keys)
    assert "\n" not in str(raised.value)
    return str(raised.value)


# -- keys ----------------------------------------------------------------------------------------------------------


def test_by_itself_it_is_about_the_service_of_its_ini(tmp_path: Path) -> None:
    with filled(tmp_path):
        found = made(tmp_path, f"access_token = {TOKEN}")
        assert found.guard.token == TOKEN
        page = Browser(found)
        assert page.ask(f"/?token={TOKEN}").status_int == 303
        assert "GET /items/{id}" in page.get("/transactions").text


def test_a_token_of_its_own(tmp_path: Path) -> None:
    assert made(tmp_path).guard.token is None
    assert made(tmp_path, f"access_token = {TOKEN}", access_token=TOKEN[::-1]).guard.token == TOKEN[::-1]


def test_another_ini_and_another_store(tmp_path: Path) -> None:
    ini_of(tmp_path, "service_name = other", name="other.ini")
    assert made(tmp_path, ini="other.ini").settings.service_name == "other"  # type: ignore[union-attr]
    assert made(tmp_path, store="elsewhere.sqlite").store == str(tmp_path / "elsewhere.sqlite")


def test_one_of_several_services(tmp_path: Path) -> None:
    more = "[filter:second]\nuse = egg:paste_agent\nservice_name = second\n"
    path = ini_of(tmp_path, "service_name = first", SITE.format(keys="") + more)
    conf = {"__file__": str(path), "here": str(tmp_path)}
    assert main(conf, service="second").settings.service_name == "second"  # type: ignore[union-attr]
    with pytest.raises(AgentError, match=r"\[app:dashboard\] service: expected one of .*: first, second"):
        main(conf)
    with pytest.raises(AgentError, match="service = 'third'"):
        main(conf, service="third")


def test_wrong_keys(tmp_path: Path) -> None:
    assert refused(tmp_path, stroe="x") == "[app:dashboard] stroe: unknown key; did you mean store?"
    assert "known are ini, service, store, access_token" in refused(tmp_path, zzz="x")
    assert "give either a store" in refused(tmp_path, store="x", ini="y")
    assert "no such file" in refused(tmp_path, ini="nowhere.ini").lower()
    short = refused(tmp_path, access_token="hunter2")
    assert short.startswith("[app:dashboard] access_token = '***': expected 16 to 255 characters")
    with pytest.raises(AgentError, match="expected the path of the service's ini"):
        main({})


def test_the_section_is_named_as_it_is(tmp_path: Path) -> None:
    path = ini_of(tmp_path, rest=SITE.format(keys="").replace("app:dashboard", "app:inside"))
    with pytest.raises(AgentError, match=r"\[app:inside\] zzz"):
        main({"__file__": str(path)}, zzz="1")


# -- mounted -------------------------------------------------------------------------------------------------------


def test_where_it_is_mounted(tmp_path: Path) -> None:
    assert ini.mounted_at(str(ini_of(tmp_path, rest=SITE.format(keys="")))) == ["/shop/inside"]
    assert ini.mounted_at(str(ini_of(tmp_path))) == []
    assert ini.mounted_at(str(ROOT / "production.ini")) == ["/dashboard"]


def test_an_ini_mounts_it(tmp_path: Path) -> None:
    path = ini_of(tmp_path, rest=SITE.format(keys=f"access_token = {TOKEN}"))
    with filled(tmp_path):
        site = Browser(loadapp(f"config:{path}", name="site"), "/proxied")
        moved = site.ask("/shop/inside")
        assert (moved.status_int, moved.headers["Location"]) == (303, "/proxied/shop/inside/")
        assert site.ask("/shop/inside/").status_int == 403
        assert site.ask(f"/shop/inside/?token={TOKEN}").headers["Location"] == "/proxied/shop/inside/"
        response = site.ask("/shop/inside/transactions")
        assert 'href="/proxied/shop/inside/traces?' in response.text
        assert "demo shop" in site.ask("/").text
        assert "Not found" in site.ask("/shop/insider").text  # the shop's


def echo(name: str) -> Any:
    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [f"{name} {environ.get('SCRIPT_NAME', '')} {environ.get('PATH_INFO', '')}".encode()]

    return application


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/", "root  /"),
        ("", "root  "),
        ("/a", "a /a "),
        ("/a/", "a /a /"),
        ("/a/b", "ab /a/b "),
        ("/a/bc", "a /a /bc"),
        ("/ab", "root  /ab"),
    ],
)
def test_the_longest_path_is_taken(path: str, told: str) -> None:
    site = Browser(Mount({"": echo("root"), "/a": echo("a"), "/a/b": echo("ab")}))
    assert site.ask(path).text == told


def test_without_a_root_the_rest_is_not_found() -> None:
    site = Browser(Mount({"/a": echo("a")}))
    assert site.ask("/b").status_int == 404
    assert site.ask("/b", "HEAD").body == b""


def test_what_is_no_path_is_refused(tmp_path: Path) -> None:
    rest = SITE.format(keys="").replace("/shop/inside/ = dashboard", "inside = dashboard")
    path = ini_of(tmp_path, rest=rest)
    with pytest.raises(AgentError, match="inside = dashboard: expected a path"):
        loadapp(f"config:{path}", name="site")


# -- weight --------------------------------------------------------------------------------------------------------


def test_a_worker_that_nobody_looks_at_stays_small() -> None:
    heavy = ["sqlite3", "webob", "rich", "click", "paste_agent.dashboard.site"]
    code = f"import sys, paste_agent.dashboard.app; print([name for name in {heavy!r} if name in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, env=environment()
    )
    assert found.stdout.strip() == "[]"
