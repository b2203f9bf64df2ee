"""Certificates of an authority of the test's own, made with the openssl command."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest


class Pair(NamedTuple):
    """Paths of a certificate and of its key."""

    certificate: str
    key: str


class Authority:
    """Signs for servers on 127.0.0.1 and for clients. certificate: path of its own one."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        if shutil.which("openssl") is None:
            pytest.skip("openssl makes the certificates")
        self._directory = directory
        self._name = name
        self.certificate, self._key = str(directory / f"{name}.pem"), str(directory / f"{name}.key")
        _openssl(
            *_NEW, "-x509", "-days", "2", "-subj", f"/CN={name}", "-keyout", self._key, "-out", self.certificate,
            "-addext", "keyUsage=critical,keyCertSign,cRLSign",
        )  # fmt: skip

    def issue(self, name: str, address: str = "127.0.0.1") -> Pair:
        """A certificate that is good for a server at this address, and for a client."""
        pair = Pair(str(self._directory / f"{name}.pem"), str(self._directory / f"{name}.key"))
        request, extensions = f"{pair.certificate}.request", f"{pair.certificate}.extensions"
        Path(extensions).write_text(_EXTENSIONS.format(address))
        _openssl(*_NEW, "-subj", f"/CN={name}", "-keyout", pair.key, "-out", request)
        _openssl(
            "x509", "-req", "-days", "2", "-in", request, "-CA", self.certificate, "-CAkey", self._key,
            "-CAcreateserial", "-extfile", extensions, "-out", pair.certificate,
        )  # fmt: skip
        return pair

    def server(self, pair: Pair, *, demands_one: bool = False) -> ssl.SSLContext:
        """Of a server with this certificate. demands_one: that clients have one of this authority's too."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*pair)
        if demands_one:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.certificate)
        return context


def encrypted(pair: Pair) -> str:
    """Path of the same key, behind a password."""
    path = f"{pair.key}.encrypted"
    _openssl("pkey", "-in", pair.key, "-aes128", "-passout", "pass:secret", "-out", path)
    return path


#: All that Python 3.13 looks for.
_EXTENSIONS = """subjectAltName = IP:{}
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""
#: A curve: its keys are made at once.
_NEW = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, timeout=120, capture_output=True)
