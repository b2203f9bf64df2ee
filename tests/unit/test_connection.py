"""How a collector is reached: through proxies, with certificates, and with headers out of a file."""

from __future__ import annotations

import base64
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from paste_agent import headers, settings
from paste_agent.exporters.connection import problems
from paste_agent.exporters.otlp import OtlpExporter, Outcome, Sender
from paste_agent.log import Warnings
from paste_agent.store.store import Store
from tests.certificates import Authority, Pair, encrypted
from tests.collector import free_port
from tests.commands import Run, ini_of, shell
from tests.proxy import Proxy
from tests.receiver import Answer, Receiver

_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*_PROXIES, "NETRC", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    return shell(capsys, monkeypatch, tmp_path)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as one:
        yield one


def sender_of(endpoint: str, **conf: str) -> Sender:
    target = settings.load({"endpoint": endpoint, "timeout_s": "60", **conf}, {}, {}).target("traces")
    assert target is not None
    return Sender("traces", target, sleep=lambda _: True)  # a stop: nothing is tried twice


def send(endpoint: str, **conf: str) -> Outcome:
    sender = sender_of(endpoint, **conf)
    try:
        return sender.send(b"", time.monotonic() + 60)
    finally:
        sender.close()


# -- TLS -------------------------------------------------------------------------------------------------------------


class _Pki:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority, self.other = Authority(directory), Authority(directory, "other")
        self.server, self.client = self.authority.issue("server"), self.authority.issue("client")
        self.elsewhere = self.authority.issue("elsewhere", "192.0.2.1")
        self.stranger = self.other.issue("stranger")

    def conf(self, client: Pair | None = None) -> dict[str, str]:
        conf = {"certificate": self.authority.certificate}
        if client is not None:
            conf |= {"client_certificate": client.certificate, "client_key": client.key}
        return conf


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> _Pki:
    return _Pki(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def guarded(pki: _Pki) -> Iterator[Receiver]:
    """A server that wants a certificate of the authority's from each client."""
    with Receiver(pki.authority.server(pki.server, demands_one=True)) as one:
        yield one


def test_a_certificate_of_an_authority_of_ones_own(pki: _Pki, guarded: Receiver) -> None:
    assert send(guarded.endpoint, **pki.conf(pki.client)) == Outcome("sent")
    together = pki.directory / "together.pem"
    together.write_text(Path(pki.client.certificate).read_text() + Path(pki.client.key).read_text())
    one_file = {**pki.conf(), "client_certificate": str(together)}
    assert send(guarded.endpoint, **one_file) == Outcome("sent")
    assert len(guarded.requests) == 2


def test_a_client_without_the_right_certificate_is_not_served(pki: _Pki, guarded: Receiver) -> None:
    for conf in (pki.conf(), pki.conf(pki.stranger)):
        assert send(guarded.endpoint, **conf).kind == "later"
    assert guarded.requests == []


def test_certificates_are_read_anew_for_each_connection(pki: _Pki, guarded: Receiver, tmp_path: Path) -> None:
    client = Pair(str(tmp_path / "client.pem"), str(tmp_path / "client.key"))
    sender = sender_of(guarded.endpoint, **pki.conf(client))
    kinds = []
    for current in (pki.stranger, pki.client):
        for mine, theirs in zip(client, current, strict=True):
            Path(mine).write_bytes(Path(theirs).read_bytes())
        kinds.append(sender.send(b"", time.monotonic() + 60).kind)
    sender.close()
    assert kinds == ["later", "sent"]


def test_a_server_without_the_right_certificate_is_sent_nothing(pki: _Pki) -> None:
    for pair, conf in (
        (pki.stranger, pki.conf()),
        (pki.elsewhere, pki.conf()),
        (pki.server, {}),
    ):
        with Receiver(pki.authority.server(pair)) as receiver:
            outcome = send(receiver.endpoint, **conf)
        assert (outcome.kind, outcome.reason) == ("later", "tls")
        assert outcome.detail.startswith("certificate not trusted: ")
        assert receiver.requests == []


# -- proxies ---------------------------------------------------------------------------------------------------------


def test_https_goes_through_the_proxy_of_the_environment(
    pki: _Pki, guarded: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Proxy() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.address}")
        assert send(guarded.endpoint, **pki.conf(pki.client)) == Outcome("sent")
        assert proxy.asked == [f"127.0.0.1:{guarded.port}"]
        monkeypatch.setenv("NO_PROXY", "example.com, 127.0.0.1")
        assert send(guarded.endpoint, **pki.conf(pki.client)) == Outcome("sent")
        assert len(proxy.asked) == 1
    assert len(guarded.requests) == 2


def test_http_goes_through_the_proxy_of_the_environment(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    with Proxy() as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.address}")
        assert send(receiver.endpoint, headers="x-api-key=abc") == Outcome("sent")
        assert proxy.asked == [f"127.0.0.1:{receiver.port}"]
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert send(receiver.endpoint) == Outcome("sent")
        assert len(proxy.asked) == 1
    assert [request.headers.get("x-api-key") for request in receiver.requests] == ["abc", None]


def test_a_proxy_that_wants_a_password(pki: _Pki, guarded: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    with Proxy("Basic " + base64.b64encode(b"me:s3cret").decode()) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:s3cret@{proxy.address}")
        assert send(guarded.endpoint, **pki.conf(pki.client)) == Outcome("sent")
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:wr0ng-one@{proxy.address}")
        outcome = send(guarded.endpoint, **pki.conf(pki.client))
    assert (outcome.kind, outcome.reason) == ("later", "proxy")
    assert outcome.detail == "the proxy: tunnel connection failed: 407 Proxy Authentication Required"


def test_a_proxy_that_is_away(pki: _Pki, guarded: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:s3cret@127.0.0.1:{free_port()}")
    assert send(guarded.endpoint, **pki.conf(pki.client)) == Outcome(
        "later", reason="proxy", detail="the proxy: connection refused"
    )


@pytest.mark.parametrize(
    "address",
    ["http://me:s3cret-one@", "me:s3cret-one@proxy:80", "http://me:s3cret-one@[::1", "http://me:s3cret-one@x:y"],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_address_of_a_proxy_that_is_none(scheme: str, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{scheme}_proxy", address)
    outcome = send(f"{scheme}://127.0.0.1:9")
    assert (outcome.kind, outcome.reason) == ("later", "request")
    assert outcome.detail
    assert "s3cret-one" not in outcome.detail


# -- headers out of a file -------------------------------------------------------------------------------------------


def test_headers_of_a_file_go_before_those_of_the_setting(receiver: Receiver, tmp_path: Path) -> None:
    path = tmp_path / "headers"
    path.write_bytes(
        "\ufeff# keys\r\nAuthorization: Bearer  a: b%20${HOME}\r\n\r\n  x-name :  \u00fc \n x-none:".encode()
    )
    assert send(receiver.endpoint, headers="authorization=no,x-kept=1", headers_file=str(path)) == Outcome("sent")
    (request,) = receiver.requests
    assert request.headers["authorization"] == "Bearer  a: b%20${HOME}"
    assert request.headers["x-name"].encode("latin-1").decode() == "\u00fc"
    assert (request.headers["x-none"], request.headers["x-kept"]) == ("", "1")


def test_a_file_of_headers_that_changes_is_read_again(receiver: Receiver, tmp_path: Path) -> None:
    path = tmp_path / "headers"
    sender = sender_of(receiver.endpoint, headers_file=str(path))
    outcomes = []
    for key in ("one", "one", None, "two"):
        if key is None:
            path.unlink()
        else:
            (tmp_path / "new").write_text(f"x-key: {key}\n")
            (tmp_path / "new").rename(path)
        outcomes.append(sender.send(b"", time.monotonic() + 60))
    sender.close()
    assert [request.headers["x-key"] for request in receiver.requests] == ["one", "one", "two"]
    assert [outcome.kind for outcome in outcomes] == ["sent", "sent", "later", "sent"]
    assert outcomes[2].reason == "file"
    needs = "no such file or directory; the service's user must be able to read it"
    assert outcomes[2].detail == f"headers_file = '{path}': {needs}"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"x-key s3cret\n", "line 1: expected a header as `name: value`, in ASCII"),
        (b"a: 1\n\nx key: s3cret\n", "line 3: expected a header as `name: value`, in ASCII"),
        (b"x-key: s3cret\0\n", "line 1: expected a header as `name: value`, in ASCII"),
        (b": s3cret\n", "line 1: expected a header as `name: value`, in ASCII"),
        (b"x-key: s3cret\xff\n", "is not text in UTF-8; give a file with a `name: value` on each line"),
        (b"x-key: s3cret\n" * 10_000, "has more than 64 KiB; give a file with a `name: value` on each line"),
    ],
)
def test_a_file_of_headers_that_is_none(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "headers"
    path.write_bytes(content)
    with pytest.raises(headers.FileError) as raised:
        headers.read_file(str(path))
    assert str(raised.value).removeprefix(str(path)).lstrip(":, ") == said


def test_no_directory_and_no_pipe_is_a_file_of_headers(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(headers.FileError, match=r"directory|regular file"):
            headers.read_file(str(path))


@pytest.mark.parametrize("where", ["header", "file", "url"])
def test_a_collector_that_repeats_the_key_does_not_bring_it_into_a_message(
    receiver: Receiver, tmp_path: Path, where: str
) -> None:
    (tmp_path / "headers").write_text("authorization: Bearer s3cret-key\n")
    endpoint = receiver.endpoint.replace("://", "://me:s3cret-key@") if where == "url" else receiver.endpoint
    conf = {
        "header": {"headers": "authorization=Bearer%20s3cret-key"},
        "file": {"headers_file": str(tmp_path / "headers")},
        "url": {},
    }[where]
    receiver.answers.append(Answer(401, b"unknown key s3cret-key", {"Content-Type": "text/plain"}))
    outcome = send(endpoint, **conf)
    assert outcome == Outcome("refused", reason="status_401", detail="401 Unauthorized: unknown key ***")


# -- files that cannot be used ---------------------------------------------------------------------------------------


def files_of(pki: _Pki) -> Iterator[tuple[str, dict[str, str], str]]:
    """What is wrong, settings, and the line that says so, of each kind."""
    client, nowhere = pki.client, str(pki.directory / "nowhere.pem")
    text = str(pki.directory / "text.pem")
    Path(text).write_text("no certificate\n")
    locked = encrypted(client)
    needs = "no such file or directory; the service's user must be able to read it"
    cert = {"client_certificate": client.certificate}
    yield "no authority", {"certificate": nowhere}, f"certificate = {nowhere!r}: {needs}"
    yield (
        "an authority that is none",
        {"certificate": text},
        f"certificate = {text!r}: holds no certificate that can be read; give a PEM file",
    )
    yield "no certificate", {"client_certificate": nowhere}, f"client_certificate = {nowhere!r}: {needs}"
    yield "no key", {**cert, "client_key": nowhere}, f"client_key = {nowhere!r}: {needs}"
    yield (
        "the key of another",
        {**cert, "client_key": pki.stranger.key},
        f"client_key = {pki.stranger.key!r}: the key does not belong to the client_certificate",
    )
    yield (
        "a key behind a password",
        {**cert, "client_key": locked},
        f"client_key = {locked!r}: the key is encrypted, and nobody is there to type its password; decrypt it",
    )
    yield (
        "a certificate without its key",
        cert,
        f"client_certificate = {client.certificate!r}: holds no certificate together with its key;"
        " give one PEM file with both, or set client_key",
    )
    yield (
        "what is no key",
        {**cert, "client_key": text},
        f"client_key = {text!r}: client_certificate and client_key hold no certificate and its key; give PEM files",
    )
    yield "no headers", {"headers_file": nowhere}, f"headers_file = {nowhere!r}: {needs}"


def test_a_file_that_cannot_be_used_is_named_with_its_setting(pki: _Pki, run: Run, tmp_path: Path) -> None:
    with Receiver(pki.authority.server(pki.server)) as receiver:
        for name, conf, line in files_of(pki):
            conf = {**pki.conf(), **conf}
            found = problems(settings.load({"endpoint": receiver.endpoint, **conf}, {}, {}))
            assert list(map(str, found)) == [line], name
            outcome = send(receiver.endpoint, **conf)
            assert (outcome.kind, outcome.reason, outcome.detail) == ("later", "file", line), name
            keys = "".join(f"{key} = {value}\n" for key, value in conf.items())
            result = run("check", ini_of(tmp_path, f"endpoint = {receiver.endpoint}\n{keys}"))
            assert result.status == 1
            marked = [said for said in result.output.splitlines() if said.startswith("✗")]
            assert marked == [f"✗ [filter:agent] {line}"], name
        assert receiver.requests == []


def test_what_is_not_used_and_who_may_read_the_keys(pki: _Pki, tmp_path: Path) -> None:
    path = tmp_path / "headers"
    path.write_text("x-key: abc\n")
    path.chmod(0o644)
    conf = {"traces_endpoint": "https://127.0.0.1/", "traces_headers_file": str(path), "client_key": pki.client.key}
    found = problems(settings.load(conf, {}, {}))
    assert [str(one) for one in found] == [
        f"traces_headers_file = '{path}': every user of this host may read it; chmod o-r it",
        f"client_key = '{pki.client.key}': is not used without a client_certificate; set that too",
    ]
    assert not any(one.fatal for one in found)
    path.chmod(0o640)
    assert len(problems(settings.load(conf, {}, {}))) == 1
    assert problems(settings.load({**conf, "traces_endpoint": "http://127.0.0.1/"}, {}, {})) == []


def test_at_run_time_each_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    conf = {"endpoint": "https://127.0.0.1:9", "certificate": str(tmp_path / "nowhere.pem"), "service_name": "shop"}
    caplog.set_level(logging.WARNING)
    store = Store(str(tmp_path / "shop.sqlite"))
    store.add_counter("paste_agent.internal.errors", "{}", 1)
    exporter = OtlpExporter(settings.load(conf, {}, {}), {"service.name": "shop"}, Warnings("shop"))
    for _ in range(3):
        assert not exporter.export_metrics(store, [], time.monotonic() + 60)
    exporter.close()
    store.close()
    (message,) = caplog.messages
    assert message.startswith(f"shop: certificate = '{tmp_path}/nowhere.pem': no such file or directory; ")
    assert message.endswith("; until then nothing is sent, and waits in the store")
