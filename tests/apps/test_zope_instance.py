"""Zope as `mkwsgiinstance` makes it, with ZEO, as it must be where several processes serve."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.apps.traffic import (
    PATIENCE_S,
    Kind,
    Outcome,
    agent_environment,
    ask,
    drive,
    drive_traced,
    install,
    script,
    skip_without,
)
from tests.serving import GUNICORN_PASTER, NO_CONTROL_SOCKET, environment, serve, wait_for

skip_without("Zope2", "ZEO")

CLIENTS, ROUNDS = 4, 1
RUN = [*GUNICORN_PASTER, "--worker-class", "gthread", "--threads", "4", "--bind", "127.0.0.1:0", *NO_CONTROL_SOCKET]
ADMIN = ("admin", "s3cret")

#: What a manager has put into the database, through the web.
MADE = [
    Kind("POST", "/manage_addFolder", None, data={"id": "standing"}, auth=ADMIN),
    Kind("POST", "/manage_addDTMLMethod", None, data={"id": "broken", "file": '<dtml-var "1/0">'}, auth=ADMIN),
    Kind("POST", "/manage_addProduct/PageTemplates/manage_addPageTemplate", None, auth=ADMIN,
         data={"id": "page", "text": "<p tal:content='here/title_or_id'/>"}),
]  # fmt: skip
PAGE = Kind("GET", "/page", "/*traverse/{ZopePageTemplate}")
MAIN = Kind("GET", "/standing/manage_main", "/*traverse/manage_main", auth=ADMIN)
BROKEN = Kind("GET", "/broken", "/*traverse/{DTMLMethod}")
ADD = Kind("POST", "/standing/manage_addFolder", "/*traverse/manage_addFolder", data={"id": "{number}"}, auth=ADMIN)
KINDS = [
    Kind("GET", "/", "/*traverse/{ZopePageTemplate}"),
    PAGE,
    Kind("HEAD", "/page", "/*traverse/HEAD"),
    Kind("GET", "/standing/standing/standing/page", "/*traverse/{ZopePageTemplate}"),
    MAIN,
    Kind("GET", "/manage_main", None),
    Kind("GET", "/nope-{number}", None),
    Kind("GET", "/standing/nope/{number}", None),
    ADD,
    Kind("POST", "/manage_addFolder", "/*traverse/manage_addFolder", data={"id": "standing"}, auth=ADMIN),
    Kind("PROPFIND", "/standing", None),
    BROKEN,
]


@pytest.fixture(scope="module")
def zeo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The socket of a storage server, with MADE in its database."""
    here = tmp_path_factory.mktemp("zeo")
    conf, log = here / "zeo.conf", here / "zeo.log"
    # The path of a socket has to be short.
    with tempfile.TemporaryDirectory(prefix="zeo-") as directory, log.open("wb") as out:
        socket = Path(directory) / "socket"
        conf.write_text(f"<zeo>\n address {socket}\n</zeo>\n<filestorage 1>\n path {here}/Data.fs\n</filestorage>\n")
        process = subprocess.Popen(
            [script("runzeo"), "-C", str(conf)], cwd=here, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            env=environment(),
        )  # fmt: skip
        try:
            wait_for(lambda: socket.exists() or process.poll() is not None, "the storage server", PATIENCE_S)
            assert process.poll() is None, log.read_text()
            # An empty database is filled by whoever comes first: two at a time would be in each other's way.
            command = [*RUN, str(instance(here / "first", str(socket)))]
            with serve(command, cwd=here) as server, requests.Session() as session:
                assert [ask(session, server.url, kind, "").status_code for kind in MADE] == [200, 302, 302]
                assert server.stop() == 0
            yield str(socket)
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


def instance(here: Path, socket: str) -> Path:
    """An instance of the storage server's database; its ini."""
    made = [script("mkwsgiinstance"), "-d", str(here), "-u", ":".join(ADMIN)]
    subprocess.run(made, check=True, capture_output=True, timeout=PATIENCE_S, env=environment())
    conf = here / "etc" / "zope.conf"
    client = f"<zeoclient>\n server {socket}\n storage 1\n</zeoclient>"
    text, found = re.subn(r"<filestorage>.*?</filestorage>", client, conf.read_text(), flags=re.DOTALL)
    assert found == 1
    conf.write_text(text)
    return here / "etc" / "zope.ini"


def put_in_front_of_zope(ini: Path) -> None:
    """The agent where what is not found, and who may not, arrive as exceptions: below what makes responses of them."""
    text = ini.read_text()
    assert text.count("    translogger\n") == 1
    text = text.replace("    translogger\n", "    translogger\n    agent\n")
    ini.write_text(f"{text}\n[filter:agent]\nuse = egg:paste_agent\n")


@pytest.fixture(scope="module", params=["first", "last"])
def place(request: pytest.FixtureRequest) -> str:
    """Of the agent among the filters."""
    return str(request.param)


@pytest.fixture(scope="module")
def outcome(place: str, zeo: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    here = tmp_path_factory.mktemp("zope")
    ini = instance(here, zeo)
    install(ini) if place == "first" else put_in_front_of_zope(ini)
    with serve([*RUN, "--workers", "2", str(ini)], cwd=here, env=agent_environment(here)) as server:
        # Folders of the one run are there in the other.
        kinds = [kind._replace(data={"id": f"{place}-{{number}}"}) if kind == ADD else kind for kind in KINDS]
        seen = drive(server.url, kinds, CLIENTS, ROUNDS) + drive_traced(server.url, kinds)
        assert server.stop() == 0
        yield Outcome(here, KINDS, seen, server.output())


def test_every_request_is_counted_by_route_and_status(outcome: Outcome) -> None:
    assert sum(outcome.seen.values()) == (CLIENTS * ROUNDS + 1) * len(KINDS)
    assert {status for _, _, status in outcome.seen} >= {200, 400, 401, 404, 500}
    assert outcome.counted() == dict(outcome.seen)


def test_what_is_not_found_is_no_failure_and_what_fails_is(outcome: Outcome) -> None:
    failures = outcome.failures()
    assert failures.pop((("GET", "/*traverse/{DTMLMethod}", 500), "ZeroDivisionError")) == CLIENTS * ROUNDS + 1
    # Two that write the same object are in conflict. Zope begins again with one of them, and rewinds what the client
    # has sent: gunicorn's cannot be, and the client gets a 500. So more may fail than the one that is broken.
    assert {status for (_, _, status), _ in failures} <= {500}
    places = {(one["type"], one["place"]) for one in outcome.summary()["errors_seen"]}
    assert ("ZeroDivisionError", "DocumentTemplate.DT_Util.eval") in places


def test_what_was_published_and_templates_have_spans(outcome: Outcome) -> None:
    def spans(kind: Kind) -> list[tuple[str, str]]:
        return [(category, name) for category, name in outcome.spans(kind) if not name.startswith("compile ")]

    assert spans(PAGE) == [
        ("function", "Products.PageTemplates.ZopePageTemplate:ZopePageTemplate"), ("template", "/page"),
    ]  # fmt: skip
    assert spans(MAIN) == [
        ("function", "Products.PageTemplates.PageTemplateFile:PageTemplateFile manage_main"),
        ("template", "manage_main"),
    ]
    assert spans(BROKEN) == [("function", "OFS.DTMLMethod:DTMLMethod")]


def test_filters_below_the_agent_are_layers(outcome: Outcome, place: str) -> None:
    layers = {one["name"]: one["count"] for one in outcome.summary()["layers"]}
    count = sum(outcome.seen.values())
    # Alone, the application is no layer of anything: what it takes is what the request takes.
    alone = {"zope": 0}
    assert layers == (
        {"egg:Zope#httpexceptions": count, "translogger": count, "zope": count} if place == "first" else alone
    )
