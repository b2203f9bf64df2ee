"""Sends what waits in the store to a collector: OTLP/HTTP. The home of requests.

Of one process and one thread: whoever forks makes another. It runs in a real thread where gevent or eventlet have
patched the others, and so uses nothing of `threading` itself.
Source: OpenTelemetry protocol 1.x, OTLP/HTTP: requests, responses, failures, throttling.
"""

from __future__ import annotations

import errno
import http.client
import io
import os
import random
import socket
import ssl
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Literal
from urllib.parse import urlsplit

import requests
import requests.utils
import urllib3
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict

import paste_agent
from paste_agent.aggregate import canonical
from paste_agent.exporters import otlp_encode
from paste_agent.exporters.otlp_encode import Message
from paste_agent.kept import TraceRow
from paste_agent.metrics import EXPORT_FAILED, REASON, SIGNAL, Reading
from paste_agent.settings import SIGNALS, Settings, Target
from paste_agent.store.log_rows import StoredLog, logs_to_send, settle_logs
from paste_agent.store.store import REFUSED, SENT, Store

MAX_RESPONSE_BYTES = 4 << 20
#: The protocol's list. Everything else above 299 is for good.
RETRIED = frozenset((429, 502, 503, 504))
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 8.0
#: However long a collector asks to be left alone: it may be a slip of whoever configured it.
_LONGEST_ASKED_S = 300.0
#: zlib's: most of what level 6 saves, at half of its CPU. It lets go of the interpreter meanwhile.
_GZIP_LEVEL = 3
_MAX_EXCERPT = 200
_READ_SIZE = 65_536

#: Transactions of one request: encoding so many takes about 3 ms, after which others get the interpreter.
_BATCH_ROWS = 50
#: Encoding so many takes about 5 ms.
_BATCH_SPANS = 250
_BATCH_LOGS = 200
#: Stacks of one request: some collectors take no more than 2 MB.
_BATCH_BYTES = 1 << 20
_ROW_BYTES = 1024
#: Between two requests, so that the threads that serve get the interpreter.
_BREATH_S = 0.001

_ITEMS = {"traces": "spans", "metrics": "data points", "logs": "log records"}


@dataclass(frozen=True)
class Outcome:
    """What became of one request."""

    kind: Literal["sent", "refused", "later"]  #: refused: for good; later: it may be tried again
    rejected: int = 0  #: items of a request that was sent which the collector did not take
    reason: str = ""  #: one word of few: status_400, connection, timeout, tls, request, partial_success; '' for none
    detail: str = ""  #: for a person, one printable line


@dataclass(frozen=True)
class _Answer:
    """What one POST brought: a status, or the problem that there was none."""

    status: int = 0
    phrase: str = ""
    headers: Mapping[str, str] | None = None
    body: bytes = b""
    problem: str = ""
    detail: str = ""
    hopeless: bool = False  #: no use in trying again before somebody mends something


# -- a deadline for every byte -------------------------------------------------------------------------------------


class _Reads(io.RawIOBase):
    """What a socket receives, until the deadline.

    A socket's own timeout begins anew with each byte that arrives: a collector that dribbles would hold the reporter.
    """

    def __init__(self, sock: socket.socket, remaining_s: Callable[[], float]) -> None:
        self._socket = sock
        self._raw = sock.makefile("rb", buffering=0)
        self._remaining_s = remaining_s

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        remaining_s = self._remaining_s()
        if remaining_s <= 0:
            raise TimeoutError("timed out")
        self._socket.settimeout(remaining_s)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Readable:
    """All that `http.client` wants of a socket to read a response from."""

    def __init__(self, sock: socket.socket, remaining_s: Callable[[], float]) -> None:
        self._reads = _Reads(sock, remaining_s)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self._reads)


def _bounded(pool: type[Any], remaining_s: Callable[[], float]) -> type[Any]:
    """A pool like `pool` whose responses end at the deadline, headers included."""

    def response_class(_: object, sock: socket.socket, *args: Any, **options: Any) -> http.client.HTTPResponse:
        return http.client.HTTPResponse(_Readable(sock, remaining_s), *args, **options)  # type: ignore[arg-type]

    connection = type("Connection", (pool.ConnectionCls,), {"response_class": response_class})
    return type("Pool", (pool,), {"ConnectionCls": connection})


class _Adapter(HTTPAdapter):
    """Never retries by itself: the Sender does, under its one deadline."""

    def __init__(self, remaining_s: Callable[[], float]) -> None:
        self._remaining_s = remaining_s
        super().__init__(pool_connections=1, pool_maxsize=1, max_retries=0)

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self._bound(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        known = proxy in self.proxy_manager
        manager = super().proxy_manager_for(proxy, **options)
        if not known:
            self._bound(manager)
        return manager

    def _bound(self, manager: Any) -> None:
        classes = manager.pool_classes_by_scheme.items()
        manager.pool_classes_by_scheme = {scheme: _bounded(pool, self._remaining_s) for scheme, pool in classes}


# -- one signal, one collector -------------------------------------------------------------------------------------


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


class Sender:
    """Posts the requests of one signal to its target. Makes its session when it first sends."""

    def __init__(
        self,
        signal: str,
        target: Target,
        *,
        session: Callable[[], requests.Session] = requests.Session,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        sleep: Callable[[float], bool] = _sleep,
        rng: Callable[[], float] = random.random,
    ) -> None:
        """session: makes one. clock: s, monotonic. wall: s since the epoch. sleep: returns True when the wait was
        cut short because the process stops. rng: from [0, 1)."""
        self.signal = signal
        self.url = shown(target.url)
        self._target = target
        self._make_session = session
        self._clock = clock
        self._wall = wall
        self._sleep = sleep
        self._rng = rng
        self._session: requests.Session | None = None
        self._deadline = 0.0
        self._quiet_until = 0.0
        self._asked_for_quiet: Outcome | None = None

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def send(self, body: bytes, deadline: float) -> Outcome:
        """Post `body` until the collector takes or refuses it, or until `deadline` (of the clock) or the target's own
        timeout, whichever comes first.

        Raises nothing for anything that a network or a collector does. May last longer than the deadline by a look-up
        of the host's name, which nobody can bound.
        """
        if self._asked_for_quiet is not None and self._clock() < self._quiet_until:
            return self._asked_for_quiet
        deadline = min(deadline, self._clock() + self._target.timeout_s)
        packed = self._packed(body)
        pause_s = _FIRST_PAUSE_S
        while True:
            answer = self._post(packed, deadline)
            outcome = self._judged(answer)
            if outcome.kind != "later" or answer.hopeless:
                return outcome
            asked_s = self._asked_s(answer)
            self._asked_for_quiet = outcome if asked_s > 0 else None
            self._quiet_until = self._clock() + asked_s
            # Jitter: else all that lost the same collector come back in step.
            wait_s = max(pause_s * (0.5 + self._rng() / 2), asked_s)
            if self._clock() + wait_s >= deadline or self._sleep(wait_s):
                return outcome
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def probe(self, timeout_s: float) -> tuple[bool, str]:
        """Send a request without items, once. Returns whether it was taken, and what was answered."""
        answer = self._post(self._packed(otlp_encode.empty_request(self.signal)), self._clock() + timeout_s)
        outcome = self._judged(answer)
        if outcome.kind != "sent":
            return False, outcome.detail
        return True, f"{answer.status}: {outcome.detail}" if outcome.detail else str(answer.status)

    def _packed(self, body: bytes) -> bytes:
        if not self._target.gzip:
            return body
        packer = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, 31)  # 31: with gzip's header
        return packer.compress(body) + packer.flush()

    def _post(self, packed: bytes, deadline: float) -> _Answer:
        self._deadline = deadline
        remaining_s = self._remaining_s()
        if remaining_s <= 0:
            return _Answer(problem="timeout", detail="no time left")
        target = self._target
        certificate = target.client_certificate
        try:
            with self._opened().post(
                target.url,
                data=packed,
                headers=self._headers(),
                # Half: a name often has two addresses, tried one after the other.
                timeout=(max(remaining_s / 2, 0.01), max(remaining_s, 0.01)),
                verify=target.certificate or True,
                cert=(certificate, target.client_key) if certificate and target.client_key else certificate,
                # A redirect would carry the telemetry, and the headers with a key in them, to wherever it says.
                allow_redirects=False,
                stream=True,
            ) as response:
                return _Answer(response.status_code, response.reason or "", response.headers, _read(response))
        except requests.exceptions.SSLError as error:
            return _Answer(problem="tls", detail=cause_of(error), hopeless=True)
        except requests.exceptions.Timeout:
            return _Answer(problem="timeout", detail="no answer in time")
        except (requests.exceptions.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
            return _Answer(problem="connection", detail=cause_of(error))
        except (OSError, ValueError, urllib3.exceptions.HTTPError) as error:
            # Nothing was sent: a URL, a header or a file that cannot be used. It waits until that is mended.
            return _Answer(problem="request", detail=cause_of(error), hopeless=True)

    def _remaining_s(self) -> float:
        return self._deadline - self._clock()

    def _opened(self) -> requests.Session:
        if self._session is None:
            session = self._make_session()
            adapter = _Adapter(self._remaining_s)
            session.mount("http://", adapter)
            session.mount("https://", adapter)
            session.auth = self._auth
            self._session = session
        return self._session

    def _auth(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """The URL's own name and password. Without an `auth`, requests would put a .netrc's over the user's header."""
        name, password = requests.utils.get_auth_from_url(self._target.url)
        if (name or password) and "Authorization" not in request.headers:
            requests.auth.HTTPBasicAuth(name.encode(), password.encode())(request)
        return request

    def _headers(self) -> CaseInsensitiveDict[str | bytes]:
        headers: CaseInsensitiveDict[str | bytes] = CaseInsensitiveDict()
        headers["User-Agent"] = f"paste-agent/{paste_agent.__version__}"
        for name, value in self._target.headers.items():
            headers[name] = value.encode()
        # A compressed answer could be small on the wire and huge in memory.
        headers["Accept-Encoding"] = "identity"
        headers["Content-Type"] = "application/x-protobuf"
        if self._target.gzip:
            headers["Content-Encoding"] = "gzip"
        return headers

    def _judged(self, answer: _Answer) -> Outcome:
        if not answer.status:
            return Outcome("later", reason=answer.problem, detail=answer.detail)
        if 200 <= answer.status < 300:
            # What cannot be decoded was taken all the same: the status says so.
            partial = otlp_encode.read_partial(self.signal, answer.body)
            if partial is None:
                return Outcome("sent")
            return Outcome("sent", partial.rejected, "partial_success", excerpt(partial.message))
        kind: Literal["later", "refused"] = "later" if answer.status in RETRIED else "refused"
        return Outcome(kind, reason=f"status_{answer.status}", detail=_said(answer))

    def _asked_s(self, answer: _Answer) -> float:
        """How long the collector asks to be left alone: Retry-After, in seconds or as a date. 0: it does not."""
        text = (answer.headers or {}).get("Retry-After", "").strip()
        if text.isascii() and text.isdigit():
            return min(float(text[:9]), _LONGEST_ASKED_S)
        try:
            until = parsedate_to_datetime(text).timestamp() if text else 0.0
        except (ValueError, TypeError, OverflowError):
            return 0.0
        return min(max(until - self._wall(), 0.0), _LONGEST_ASKED_S)


def _read(response: requests.Response) -> bytes:
    """The body as far as it comes, is bounded and is in time: the status has said what matters."""
    body = bytearray()
    try:
        while len(body) < MAX_RESPONSE_BYTES:
            piece = response.raw.read(min(_READ_SIZE, MAX_RESPONSE_BYTES - len(body)), decode_content=False)
            if not piece:
                break
            body += piece
    except (OSError, urllib3.exceptions.HTTPError, http.client.HTTPException):
        pass
    return bytes(body)


# -- words for people ----------------------------------------------------------------------------------------------


def shown(url: str) -> str:
    """A URL without what may be secret: user, password and query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def excerpt(text: str) -> str:
    """The beginning of a foreign text, on one line, printable."""
    words = "".join(character if character.isprintable() else " " for character in text[: 4 * _MAX_EXCERPT]).split()
    line = " ".join(words)
    return line if len(line) <= _MAX_EXCERPT else f"{line[: _MAX_EXCERPT - 1]}…"


def _said(answer: _Answer) -> str:
    """Status, phrase, and what the body or the redirect adds: `404 Not Found: no such path`."""
    line = excerpt(f"{answer.status} {answer.phrase}")
    headers = answer.headers or {}
    if 300 <= answer.status < 400:
        return f"{line}: redirects to {excerpt(headers.get('Location', '').partition('?')[0])}"
    said = otlp_encode.read_status(answer.body) if "protobuf" in headers.get("Content-Type", "") else None
    more = excerpt(answer.body[: 4 * _MAX_EXCERPT].decode("utf-8", "replace") if said is None else said)
    return f"{line}: {more}" if more else line


def cause_of(error: BaseException) -> str:
    """What was at the bottom of an error of requests, in the system's words: `connection refused`."""
    innermost = error
    while (deeper := innermost.__cause__ or innermost.__context__) is not None:
        innermost = deeper
    if isinstance(innermost, ssl.SSLCertVerificationError):
        return f"certificate not trusted: {excerpt(innermost.verify_message)}"
    said = getattr(innermost, "strerror", None)
    if isinstance(innermost, OSError) and innermost.errno and said == errno.errorcode.get(innermost.errno):
        said = os.strerror(innermost.errno)  # eventlet's say ECONNREFUSED
    text = excerpt(said or str(innermost)) or type(innermost).__name__
    return text[0].lower() + text[1:]


_CHECK_ADDRESS = "check `endpoint`, to which the agent adds /v1/traces, /v1/metrics and /v1/logs"
_CURES = {
    "status_401": "check `headers`",
    "status_403": "check `headers`",
    "status_404": _CHECK_ADDRESS,
    "status_405": _CHECK_ADDRESS,
    "status_413": "raise the collector's limit of a body to 4 MiB",
    "status_415": "the address must take OTLP as protobuf",
    "connection": "is the collector running, and can it be reached from here?",
    "timeout": "is the collector running, and can it be reached from here?",
    "tls": "check `certificate`, `client_certificate` and `client_key`",
    "request": "check `endpoint`, `headers` and the certificate settings",
}


def _cure(reason: str) -> str:
    return _CURES.get(reason) or (_CHECK_ADDRESS if reason.startswith("status_3") else "see the collector's own log")


# -- the store's outbox --------------------------------------------------------------------------------------------


class OtlpExporter:
    """Sends from the store to wherever the settings say. Belongs to the thread of the lead."""

    def __init__(
        self,
        settings: Settings,
        resource: Mapping[str, object],
        warn: Callable[[str, str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
        sleep: Callable[[float], bool] = _sleep,
    ) -> None:
        """resource: see `resource.resource_of`. warn: takes the kind of a trouble, by which it may be limited, and a
        line for a person. sleep: returns True when it was cut short because the process stops: then nothing is
        tried again. An exporter that is made for the last export of a process should have one that does not.
        """
        self._resource = dict(resource)
        self._warn = warn
        self._clock = clock
        self._wall_ns = wall_ns
        self._sleep = sleep
        self._senders: dict[str, Sender] = {}
        for signal in SIGNALS:
            target = settings.target(signal)
            if target is not None:
                self._senders[signal] = Sender(
                    signal, target, clock=clock, wall=lambda: self._wall_ns() / 1e9, sleep=sleep
                )
        #: Spans that are done with while the logs of their rows are not, and how they ended.
        self._spans: dict[tuple[bytes, bytes], int] = {}

    def close(self) -> None:
        """Let go of the connections. The exporter can be used again."""
        for sender in self._senders.values():
            sender.close()

    def export_metrics(self, store: Store, readings: Sequence[Reading], deadline: float) -> bool:
        """Send all totals, counters and readings as of now. deadline: of the clock, s.

        Returns False when a part of it has to wait: the next export says it all again, since all is cumulative.
        Raises sqlite3.Error.
        """
        if "metrics" not in self._senders:
            return True
        now_ns = self._wall_ns()
        started = store.meta("started_at_ns") or ""
        started_at_ns = int(started) if started.isdecimal() else now_ns
        for message in otlp_encode.encode_metrics(
            self._resource, store.totals(), store.counters(), readings, started_at_ns, now_ns
        ):
            if self._clock() >= deadline or self._deliver("metrics", store, message, deadline) == "later":
                return False
            self._sleep(_BREATH_S)
        return True

    def export_traces(self, store: Store, deadline: float, *, bare_after_s: float = 5.0) -> bool:
        """Send the kept transactions that wait, and their exceptions as logs. deadline: of the clock, s.

        bare_after_s: how long a transaction without detail waits for the process that recorded it to write it.
        Returns whether nothing that can be sent waits any more. A process that dies between sending and settling
        leaves spans that are sent a second time, with the same ids; none is lost. Raises sqlite3.Error.
        """
        if not self._senders.keys() & {"traces", "logs"}:
            return True
        while rows := self._waiting(store, bare_after_s):
            if self._clock() >= deadline or not self._export_rows(store, rows, deadline):
                return False
            self._sleep(_BREATH_S)
        self._spans.clear()
        return True

    def export_logs(self, store: Store, deadline: float) -> bool:
        """Send the log records that wait. deadline: of the clock, s.

        Returns whether nothing waits any more. Raises sqlite3.Error.
        """
        if "logs" not in self._senders:
            return True
        while rows := _fitting(logs_to_send(store, _BATCH_LOGS)):
            message = otlp_encode.encode_forwarded(self._resource, [one.row for one in rows])
            kind = "later" if self._clock() >= deadline else self._deliver("logs", store, message, deadline)
            if kind == "later":
                return False
            settle_logs(store, rows, SENT if kind == "sent" else REFUSED)
            self._sleep(_BREATH_S)
        return True

    def _waiting(self, store: Store, bare_after_s: float) -> list[TraceRow]:
        """A batch that makes no request too big; empty when nothing waits."""
        rows = store.traces_to_send(_BATCH_ROWS, self._wall_ns() / 1e9 - bare_after_s)
        room, spans = _BATCH_BYTES, _BATCH_SPANS
        for number, row in enumerate(rows):
            room -= _ROW_BYTES + len(str(row.detail or ""))
            spans -= 1 + len(otlp_encode.spans_of(row))
            if min(room, spans) < 0 and number:
                return rows[:number]
        return rows

    def _export_rows(self, store: Store, rows: Sequence[TraceRow], deadline: float) -> bool:
        """Send spans and logs of the rows and settle them; False when a part of it has to wait."""
        if "traces" in self._senders:
            # Those that an earlier call could send, but not their logs, are not sent again.
            unsent = [row for row in rows if _id(row) not in self._spans]
            message = otlp_encode.encode_traces(self._resource, unsent)
            kind = "refused" if message is None else self._deliver("traces", store, message, deadline)
            if kind == "later":
                return False
            self._spans.update((_id(row), SENT if kind == "sent" else REFUSED) for row in unsent)
        state = SENT
        if "logs" in self._senders:
            message = otlp_encode.encode_logs(self._resource, rows)
            kind = "sent" if message is None else self._deliver("logs", store, message, deadline)
            if kind == "later":
                return False
            state = SENT if kind == "sent" else REFUSED
        for wanted in (SENT, REFUSED):
            settled = [row for row in rows if self._spans.get(_id(row), state) == wanted]
            if settled:
                store.settle_traces(settled, wanted)
        for row in rows:
            self._spans.pop(_id(row), None)
        return True

    def _deliver(self, signal: str, store: Store, message: Message, deadline: float) -> str:
        """Send a request; count and say what did not arrive. Returns the kind of the outcome."""
        sender = self._senders[signal]
        outcome = sender.send(message.data, deadline)
        lost = message.items if outcome.kind == "refused" else min(outcome.rejected, message.items)
        if lost:
            store.add_counter(EXPORT_FAILED, canonical({REASON: outcome.reason, SIGNAL: signal}), lost)
        if outcome.reason:
            self._warn(f"export {signal} {outcome.reason}", _complaint(sender, outcome, lost))
        return outcome.kind


def _fitting(rows: list[StoredLog]) -> list[StoredLog]:
    """As many as make no request too big, one at the least."""
    room = _BATCH_BYTES
    for number, one in enumerate(rows):
        room -= _ROW_BYTES + len(one.row.body) + len(str(one.row.attributes))
        if room < 0 and number:
            return rows[:number]
    return rows


def _id(row: TraceRow) -> tuple[bytes, bytes]:
    return row.trace_id, row.span_id


def _complaint(sender: Sender, outcome: Outcome, lost: int) -> str:
    items = _ITEMS[sender.signal]
    if outcome.kind == "sent":
        took = f"rejected {lost} {items}" if lost else f"has something to say about {items}"
        return f"{sender.url} {took}: {outcome.detail or 'it does not say why'}; {_cure(outcome.reason)}"
    if outcome.kind == "refused":
        return f"{sender.url} refused {lost} {items} for good: {outcome.detail}; {_cure(outcome.reason)}"
    return f"{sender.url} did not take {items}: {outcome.detail}; they are sent later; {_cure(outcome.reason)}"


def try_collector(settings: Settings, timeout: float) -> list[tuple[str, str, bool, str]]:
    """Send each configured target a request without items, once. timeout: of each, s.

    Returns signal, URL, whether it was taken, and what was answered: `200`, `404 Not Found: no such path`,
    `connection refused`. Empty when nothing is configured.
    """
    found: list[tuple[str, str, bool, str]] = []
    for signal in SIGNALS:
        target = settings.target(signal)
        if target is not None:
            sender = Sender(signal, target)
            try:
                found.append((signal, sender.url, *sender.probe(timeout)))
            finally:
                sender.close()
    return found
