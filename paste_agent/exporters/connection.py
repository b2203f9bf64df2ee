"""The files that a connection to a collector needs, looked at before it is made: what is wrong with which setting."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from paste_agent import headers
from paste_agent.settings import SIGNALS, Settings, Target


class Problem(NamedTuple):
    """A setting that cannot do what it is for, or that is not safe."""

    key: str  #: of Target
    path: str
    cure: str
    fatal: bool  #: nothing can be sent until it is mended

    def __str__(self) -> str:
        return f"{self.key} = {self.path!r}: {self.cure}"


def problems(settings: Settings) -> list[Problem]:
    """All that is wrong, each once, under the key that it was set by."""
    found: dict[str, Problem] = {}
    for signal in SIGNALS:
        target = settings.target(signal)
        if target is None:
            continue
        for one in problems_of(target):
            own = settings.values[f"{signal}_{one.key}"] is not None
            one = one._replace(key=f"{signal}_{one.key}" if own else one.key)
            found[str(one)] = one
    return list(found.values())


def problems_of(target: Target) -> Iterator[Problem]:
    if target.headers_file is not None:
        yield from _headers_file(target.headers_file)
    if target.url.lower().startswith("https:"):
        yield from _certificates(target)


def _headers_file(path: str) -> Iterator[Problem]:
    try:
        headers.read_file(path)
    except headers.FileError as error:
        yield Problem("headers_file", path, str(error).removeprefix(path).lstrip(":, "), True)
        return
    if headers.open_to_others(path):
        yield Problem("headers_file", path, "every user of this host may read it; chmod o-r it", False)


class _Encrypted(Exception):
    """Nobody is there to ask for a password."""


def _no_password() -> str:
    raise _Encrypted


def _certificates(target: Target) -> Iterator[Problem]:
    import ssl  # what does not export has no use for it

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    path = target.certificate
    if path is not None:
        try:
            context.load_verify_locations(**{"capath" if os.path.isdir(path) else "cafile": path})
        except ssl.SSLError:
            yield Problem("certificate", path, "holds no certificate that can be read; give a PEM file", True)
        except OSError as error:
            yield _unreadable("certificate", path, error)
    certificate, key = target.client_certificate, target.client_key
    if certificate is None:
        if key is not None:
            yield Problem("client_key", key, "is not used without a client_certificate; set that too", False)
        return
    pair = {"client_certificate": certificate, **({} if key is None else {"client_key": key})}
    for name, path in pair.items():
        try:
            open(path, "rb").close()
        except OSError as error:
            yield _unreadable(name, path, error)
            return
    last, path = list(pair.items())[-1]
    try:
        context.load_cert_chain(certificate, key, _no_password)
    except _Encrypted:
        yield Problem(last, path, "the key is encrypted, and nobody is there to type its password; decrypt it", True)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            yield Problem(last, path, "the key does not belong to the client_certificate", True)
        else:
            yield Problem(last, path, _no_pair(key), True)
    except OSError as error:
        yield _unreadable(last, path, error)


def _no_pair(key: str | None) -> str:
    if key is None:
        return "holds no certificate together with its key; give one PEM file with both, or set client_key"
    return "client_certificate and client_key hold no certificate and its key; give PEM files"


def _unreadable(key: str, path: str, error: OSError) -> Problem:
    text = error.strerror or type(error).__name__
    return Problem(key, path, f"{text[0].lower()}{text[1:]}; the service's user must be able to read it", True)
