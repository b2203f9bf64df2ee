"""Sends what waits in the store to a collector: OTLP/HTTP. The home of requests.

Of one process and one thread: whoever forks makes another. It runs in a real thread where gevent or eventlet have
patched the others, and so uses nothing of `threading` itself.
Source: OpenTelemetry protocol 1.x, OTLP/HTTP: requests, responses, failures, throttling.
"""

from __future__ import annotations

import errno
import http.client
import os
import random
import ssl
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

import requests
import requests.utils
import urllib3
from requests.structures import CaseInsensitiveDict

import paste_agent
from paste_agent.aggregate import canonical
from paste_agent.exporters import connection, otlp_encode
from paste_agent.exporters.deadline import DeadlineAdapter
from paste_agent.exporters.otlp_encode import Message
from paste_agent.headers import FileError, HeadersFile
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
_SHORTEST_SECRET = 6
_NOTHING_SENT = "; until then nothing is sent, and waits in the store"
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
    reason: str = (
        ""  #: one word of few: status_400, connection, timeout, proxy, tls, file, request, partial_success; '' for none
    )
    detail: str = ""  #: for a person, one printable line


class Tried(NamedTuple):
    """What became of one request that is sent to see whether it can be."""

    signal: str
    url: str  #: without what is secret
    taken: bool  #: all of it
    answer: str  #: such as `200`, `404 Not Found: no such path`, `connection refused`; one line
    took_s: float


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
        self._headers_file = HeadersFile(target.headers_file) if target.headers_file else None
        self._secrets: tuple[str, ...] = ()
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

    def try_once(self, body: bytes, timeout_s: float) -> Tried:
        """Post `body` a single time, and tell what became of it as for a person."""
        started = self._clock()
        answer = self._post(self._packed(body), started + timeout_s)
        outcome = self._judged(answer)
        said = outcome.detail
        if outcome.kind == "sent":
            items = _ITEMS[self.signal][: -1 if outcome.rejected == 1 else None]
            rejected = f"partial success, {outcome.rejected} {items} rejected" if outcome.rejected else ""
            said = ": ".join(filter(None, (str(answer.status), rejected, outcome.detail)))
        elif hint := _port_hint(outcome.reason, self.url):
            said = f"{said}; {hint}"
        took = outcome.kind == "sent" and not outcome.rejected
        return Tried(self.signal, self.url, took, said, self._clock() - started)

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
            headers = self._headers()
            with self._opened().post(
                target.url,
                data=packed,
                headers=headers,
                # Half: a name often has two addresses, tried one after the other.
                timeout=(max(remaining_s / 2, 0.01), max(remaining_s, 0.01)),
                verify=target.certificate or True,
                # With the key's file named, one that is encrypted is an error, and no question to a terminal.
                cert=(certificate, target.client_key or certificate) if certificate else None,
                # A redirect would carry the telemetry, and the headers with a key in them, to wherever it says.
                allow_redirects=False,
                stream=True,
            ) as response:
                return _Answer(response.status_code, response.reason or "", response.headers, _read(response))
        except FileError as error:
            return self._file_at_fault() or _Answer(problem="file", detail=str(error), hopeless=True)
        except requests.exceptions.SSLError as error:
            return self._file_at_fault() or _Answer(problem="tls", detail=cause_of(error), hopeless=True)
        except requests.exceptions.Timeout:
            return _Answer(problem="timeout", detail="no answer in time")
        except requests.exceptions.ProxyError as error:
            return _Answer(problem="proxy", detail=f"the proxy: {cause_of(error)}")
        except (requests.exceptions.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
            return _Answer(problem="connection", detail=cause_of(error))
        except Exception as error:
            # Nothing was sent: a URL, a header or a file that cannot be used. requests raises whatever comes to pass
            # over the address of a proxy that is none. It waits until that is mended.
            return self._file_at_fault() or _Answer(
                problem="request", detail=self._masked(cause_of(error)), hopeless=True
            )

    def _file_at_fault(self) -> _Answer | None:
        """Which setting names a file that cannot be used, in words that TLS libraries do not have."""
        fatal = next((one for one in connection.problems_of(self._target) if one.fatal), None)
        return None if fatal is None else _Answer(problem="file", detail=str(fatal), hopeless=True)

    def _remaining_s(self) -> float:
        return self._deadline - self._clock()

    def _opened(self) -> requests.Session:
        if self._session is None:
            session = self._make_session()
            adapter = DeadlineAdapter(self._remaining_s)
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
        given = CaseInsensitiveDict(self._target.headers)
        if self._headers_file is not None:
            given.update(self._headers_file.read())
        proxies = requests.utils.get_environ_proxies(self._target.url)
        self._secrets = _secrets_of(given.values(), [self._target.url, *proxies.values()])
        for name, value in given.items():
            headers[name] = value.encode()
        # A compressed answer could be small on the wire and huge in memory.
        headers["Accept-Encoding"] = "identity"
        headers["Content-Type"] = "application/x-protobuf"
        if self._target.gzip:
            headers["Content-Encoding"] = "gzip"
        return headers

    def _masked(self, text: str) -> str:
        """What a collector says, without the keys that it was sent: some repeat those that they do not know."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def _judged(self, answer: _Answer) -> Outcome:
        if not answer.status:
            return Outcome("later", reason=answer.problem, detail=answer.detail)
        if 200 <= answer.status < 300:
            # What cannot be decoded was taken all the same: the status says so.
            partial = otlp_encode.read_partial(self.signal, answer.body)
            if partial is None:
                return Outcome("sent")
            return Outcome("sent", partial.rejected, "partial_success", excerpt(self._masked(partial.message)))
        kind: Literal["later", "refused"] = "later" if answer.status in RETRIED else "refused"
        return Outcome(kind, reason=f"status_{answer.status}", detail=_said(answer, self._masked))

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


def _secrets_of(values: Iterable[str], urls: Iterable[str]) -> tuple[str, ...]:
    """What must not be shown of headers and URLs, the longest first: whole values, and what follows a `Bearer`.

    A text of few characters is left out: it is no key, and all texts are full of it.
    """
    found = {word for value in values for word in (value, value.rpartition(" ")[2])}
    found.update(requests.utils.get_auth_from_url(url)[1] for url in urls)
    return tuple(sorted((one for one in found if len(one) >= _SHORTEST_SECRET), key=len, reverse=True))


def _said(answer: _Answer, masked: Callable[[str], str]) -> str:
    """Status, phrase, and what the body or the redirect adds: `404 Not Found: no such path`."""
    line = excerpt(masked(f"{answer.status} {answer.phrase}"))
    headers = answer.headers or {}
    if 300 <= answer.status < 400:
        return f"{line}: redirects to {excerpt(masked(headers.get('Location', '').partition('?')[0]))}"
    said = otlp_encode.read_status(answer.body) if "protobuf" in headers.get("Content-Type", "") else None
    more = excerpt(masked(answer.body[: 8 * _MAX_EXCERPT].decode("utf-8", "replace") if said is None else said))
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
    "status_401": "check `headers` or `headers_file`",
    "status_403": "check `headers` or `headers_file`",
    "status_404": _CHECK_ADDRESS,
    "status_405": _CHECK_ADDRESS,
    "status_413": "raise the collector's limit of a body to 4 MiB",
    "status_415": "the address must take OTLP as protobuf",
    "connection": "is the collector running, and can it be reached from here?",
    "timeout": "is the collector running, and can it be reached from here?",
    "proxy": "check the proxy that HTTPS_PROXY or HTTP_PROXY names, or name the collector in NO_PROXY",
    "tls": "check `certificate`, `client_certificate` and `client_key`",
    "request": "check `endpoint`, the settings of headers and of certificates, and the proxy if there is one",
}


_GRPC_PORT = 4317


def _cure(reason: str, url: str) -> str:
    cure = _CURES.get(reason) or (_CHECK_ADDRESS if reason.startswith("status_3") else "see the collector's own log")
    hint = _port_hint(reason, url)
    return f"{cure}{' ' if cure.endswith('?') else '; '}{hint}" if hint else cure


def _port_hint(reason: str, url: str) -> str:
    """What may be wrong with the port of a URL that took nothing; '' when it is not the port."""
    # Some collector may well take HTTP there: said only where this one does not.
    if urlsplit(url).port != _GRPC_PORT or reason in ("file", "partial_success"):
        return ""
    return f"{_GRPC_PORT} is usually a collector's port for gRPC, its port for HTTP is usually 4318"


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
        for problem in connection.problems(settings):
            warn(f"setting {problem.key}", f"{problem}{_NOTHING_SENT if problem.fatal else ''}")
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
        if outcome.reason == "file":  # under the same kind as at the start: it is not said again for each signal
            self._warn(f"setting {outcome.detail.partition(' ')[0]}", outcome.detail + _NOTHING_SENT)
        elif outcome.reason:
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
        return f"{sender.url} {took}: {outcome.detail or 'it does not say why'}; {_cure(outcome.reason, sender.url)}"
    if outcome.kind == "refused":
        return f"{sender.url} refused {lost} {items} for good: {outcome.detail}; {_cure(outcome.reason, sender.url)}"
    return (
        f"{sender.url} did not take {items}: {outcome.detail}; they are sent later; {_cure(outcome.reason, sender.url)}"
    )


def try_collector(settings: Settings, timeout_s: float, bodies: Mapping[str, bytes] | None = None) -> Iterator[Tried]:
    """Send each configured target one request, once. Nothing when nothing is configured.

    timeout_s: of each. bodies: what is sent, by signal; None: requests without items.
    """
    for signal in SIGNALS:
        target = settings.target(signal)
        if target is not None:
            sender = Sender(signal, target)
            try:
                yield sender.try_once(
                    otlp_encode.empty_request(signal) if bodies is None else bodies[signal], timeout_s
                )
            finally:
                sender.close()
