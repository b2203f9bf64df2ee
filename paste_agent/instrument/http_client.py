"""http.client, which urllib, urllib3 and requests are built upon: whom a transaction calls, and what it tells them.

A request is one span, from `putrequest`, or the connecting before it, until the headers of its answer are there. It
is entered while the connection works for it and left in between, so that nothing which a caller does meanwhile, or
never does, is taken for a part of it. The connection refers to it weakly: what holds it ends with the transaction.

urllib3's pool does all of that in one method, which is one span. A tunnel through a proxy is made before it, and is a
span of its own. Redirects and repeated tries are requests of their own.

Tested with http.client of Python 3.10 to 3.13, urllib3 1.26.20, 2.0.7, 2.2.3 and 2.8.0, requests 2.31.0 and 2.34.2.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable
from time import perf_counter_ns
from types import ModuleType
from typing import Any, NamedTuple

from paste_agent import lifecycle
from paste_agent.addresses import without_user
from paste_agent.inside import CALL, Attributes
from paste_agent.instrument.wrapping import wrap
from paste_agent.raised import type_name
from paste_agent.recorder.layout import KIND_CALL
from paste_agent.recorder.writer import Key, SpanKey
from paste_agent.spans import Span, begin, end, parent_of, show
from paste_agent.transaction import current

#: Of a connection: method, URL and beginning of the request that is put together; a reference to one under way.
_ASKED = "_paste_agent_asked"
_CALL = "_paste_agent_call"
#: Of a connection that urllib3's pool has a request for: its span and what is known of it, until there is an answer.
#: An attribute of the class, None: an attribute of each connection that has one.
_POOLED = "_paste_agent_pooled"
#: Of a pool: where it leads, and what is known of its requests by method and URL.
_BASE = "_paste_agent_base"
_KNOWN = "_paste_agent_known"
#: How many requests of a pool are remembered, of which length, and how many answers of each.
_MOST_KNOWN, _LONGEST_KNOWN, _MOST_ANSWERS = 64, 512, 16
#: In the environ of a transaction: its calls that are under way.
_CALLS = "paste_agent.calls"
_MOST_CALLS = 64
_METHODS = frozenset(("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"))
#: Where the classes of the agent's own connections are from: what it exports is nobody's call.
_OWN = "paste_agent."
_VERSIONS = {10: "1.0", 11: "1.1", 20: "2"}
_MAX_URL = 2048
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_HOST_AND_PORT = re.compile(r"(\[[^\]]*\]|[^:/]*)(?::([0-9]{1,5}))?")

_get, _set, _reset = current.get, current.set, current.reset


class Target(NamedTuple):
    """Whom a request is for, without credentials and without a query. url: '' where it cannot be told."""

    address: str | None = None
    port: int | None = None
    url: str = ""


#: What requests are counted under: method, address, port, status, error.type.
_keys: dict[tuple[object, ...], Key] = {}
_MOST_KEYS = 2000


def end_call(
    span: Span, method: str, target: Target, status: int | None, failed: str | None, version: int | None
) -> None:
    """End the span of a request as the conventions have it: a status from 400 on is a failure. Raises nothing.

    status: None: no answer. failed: error.type of what was raised. version: of the protocol, 11 for 1.1; None: unknown.
    """
    end(span, *_ended(method, target, status, failed, version))


#: Of a request that is over, as `spans.end` takes it: name, key, error.type and attributes.
_Ended = tuple[str, SpanKey | Key | None, str | None, Attributes]


def _ended(method: str, target: Target, status: int | None, failed: str | None, version: int | None) -> _Ended:
    address, port, url = target
    if failed is None and status is not None and status >= 400:
        failed = str(status)
    called = method, address, port, status, failed
    key: SpanKey | Key | None = None
    name = "HTTP"
    try:
        key = _keys.get(called) or _key_of(called)
        name = method if method in _METHODS else name
    except Exception as fault:  # a method, or an address, that cannot be hashed
        lifecycle.on_fault("a call", fault)
    return name, key, failed, (_attributes_of, method, address, port, url, status, version)


def _key_of(called: tuple[Any, ...]) -> SpanKey | Key:
    method, address, port, status, failed = called
    fields = (
        method if method in _METHODS else "_OTHER",
        address,
        None if port is None else str(port),
        None if status is None else str(status),
        failed,
    )
    if len(_keys) >= _MOST_KEYS:
        return KIND_CALL, fields
    return _keys.setdefault(called, Key(KIND_CALL, fields))


def _attributes_of(
    method: str, address: str | None, port: int | None, url: str, status: int | None, version: int | None
) -> dict[str, object]:
    known = method in _METHODS
    attributes: dict[str, object] = {
        "http.request.method": method if known else "_OTHER",
        "http.request.method_original": None if known else str(method)[:64],
        "server.address": address,
        "server.port": port,
        "url.full": url or None,
        "http.response.status_code": status,
        "network.protocol.version": None if version is None else _VERSIONS.get(version),
    }
    return {name: value for name, value in attributes.items() if value is not None}


class _Call:
    """A request under way. Held by its transaction's environ, so that it ends when that does, if not before."""

    __slots__ = ("__weakref__", "failed", "left_ns", "method", "span", "target")

    def __init__(self, span: Span, method: str, target: Target) -> None:
        self.span: Span | None = span
        self.method = method
        self.target = target
        self.failed: str | None = None  #: what went wrong while its body was sent; an answer may come all the same
        self.left_ns = 0

    def leave(self, connection: Any) -> None:
        """The connection returns to its caller, who has more to do for this request."""
        span = self.span
        if span is None:
            return
        try:
            self.left_ns = perf_counter_ns()
            try:
                _reset(span.token)
            except ValueError:  # in another context
                pass
            show(_get())
            environ = span.transaction.environ
            if environ is not None:
                calls = environ.setdefault(_CALLS, {})
                if len(calls) >= _MOST_CALLS:  # nobody ends them: the oldest goes
                    calls.pop(next(iter(calls)), None)
                calls[id(self)] = self
                connection.__dict__[_CALL] = weakref.ref(self)
        except Exception as fault:
            lifecycle.on_fault("a call", fault)

    def enter(self) -> None:
        """The connection works for this request again. What passed meanwhile was the caller's time."""
        span = self.span
        if span is None:
            return
        try:
            span.children_ns += perf_counter_ns() - self.left_ns
            span.token = _set(span)
            transaction = span.transaction
            if transaction.slot:
                transaction.recorder.enter_span(transaction.slot, span.text)
        except Exception as fault:
            lifecycle.on_fault("a call", fault)

    def end(self, response: Any, failed: str | None) -> None:
        """It is over; it has been entered. response: None: there is none."""
        span, self.span = self.span, None
        if span is None:
            return
        try:
            environ = span.transaction.environ
            if environ is not None and _CALLS in environ:
                environ[_CALLS].pop(id(self), None)
            status, version = _answered(response)
        except Exception as fault:
            lifecycle.on_fault("a call", fault)
            status = version = None
        end_call(span, self.method, self.target, status, failed, version)
        try:
            around = _get()
            if around is not span.around:
                show(around)
        except Exception as fault:
            lifecycle.on_fault("a call", fault)

    def __del__(self) -> None:
        if self.span is not None:
            self.enter()
            self.end(None, self.failed)


def _answered(response: Any) -> tuple[int | None, int | None]:
    """Status and version of an answer, as far as it has them."""
    status, version = getattr(response, "status", None), getattr(response, "version", None)
    return status if isinstance(status, int) else None, version if isinstance(version, int) else None


def _is_own(connection: object) -> bool:
    return type(connection).__module__.startswith(_OWN)


def _begun(connection: Any, asked: tuple[str, str, int]) -> _Call | None:
    """The call that a connection works for from now on: the one that it connected for, or a new one."""
    call = _taken(connection)
    if call is not None:
        return call
    try:
        method, url, start_ns = asked
        target = target_of(connection, url)
        span = begin(CALL, text_of(method, target))
        if span is None:
            return None
        span.start_ns = start_ns
        return _Call(span, method, target)
    except Exception as fault:
        lifecycle.on_fault("a call", fault)
        return None


def _taken(connection: Any) -> _Call | None:
    """The call that waits for this connection to work on, entered."""
    reference = connection.__dict__.pop(_CALL, None)
    call: _Call | None = None if reference is None else reference()
    if call is None or call.span is None:
        return None
    call.enter()
    return call


def _drop(connection: Any, failed: str | None) -> None:
    """There is nothing more to come for what this connection was asked."""
    connection.__dict__.pop(_ASKED, None)
    call = _taken(connection)
    if call is not None:
        call.end(None, failed or call.failed)


def _tell(connection: Any, span: Span | None) -> None:
    """Add the headers that say whose call this is, except for those that the caller has set."""
    if span is None:
        return
    try:
        lines = getattr(connection, "_buffer", ())
        given = b"\n".join(lines).lower()  # the first line is none of the headers
        if b"\ntraceparent:" in given or lines == []:  # in time for no request
            return
        parent, others = parent_of(span)
        if parent is not None:
            if lines.__class__ is list:  # what `putheader` would check is known of it
                lines.append(b"traceparent: " + parent.encode())
            else:
                connection.putheader("traceparent", parent)
        for name, value in others:
            if f"\n{name}:".encode() not in given:
                connection.putheader(name, value)
    except Exception as fault:
        lifecycle.on_fault("propagation", fault)


def text_of(method: object, target: Target) -> bytes:
    """What the black box says of a request; b'' where it cannot be told."""
    return f"{method} {target.url}".encode("utf-8", "replace") if target.url else b""


def _target_in(pool: Any, connection: Any, url: str) -> Target:
    """As `target_of`, of a connection of urllib3's pool, which leads to one place."""
    if url[:1] != "/":  # as a proxy is asked
        return target_of(connection, url)
    base = pool.__dict__.get(_BASE)
    if base is None:
        base = pool.__dict__[_BASE] = target_of(connection, "")
    if "?" in url:
        url = url[: url.index("?")]
    if "#" in url:
        url = url[: url.index("#")]
    return Target(base.address, base.port, (base.url + url)[:_MAX_URL] if base.url else "")


def target_of(connection: Any, url: object) -> Target:
    """Whom this connection is asked for. A connection of somebody else's making may not tell."""
    try:
        scheme = "https" if connection.default_port == 443 else "http"
        host, port = connection.host, connection.port
        if tunnel := getattr(connection, "_tunnel_host", None):  # the host is a proxy then
            host, port = tunnel, getattr(connection, "_tunnel_port", None) or port
        path = str(url).partition("?")[0].partition("#")[0]
        if _ABSOLUTE.match(path):  # as a proxy is asked
            return _absolute(path)
        shown = f"[{host}]" if ":" in host and not host.startswith("[") else host
        path = path if path.startswith("/") else ""
        return Target(host, port, f"{scheme}://{shown}:{port}{path}"[:_MAX_URL])
    except Exception:
        return Target()


def _absolute(url: str) -> Target:
    scheme, _, rest = url.partition("://")
    rest = without_user(rest)
    found = _HOST_AND_PORT.match(rest)
    if found is None:  # it matches nothing at all too
        return Target()
    default = {"http": 80, "https": 443}.get(scheme.lower())
    port = int(found[2]) if found[2] else default
    return Target(found[1].strip("[]") or None, port, f"{scheme}://{rest}"[:_MAX_URL])


# -- what is wrapped -----------------------------------------------------------------------------------------------


def install(module: ModuleType) -> None:
    """Wrap what every request passes: http.client's connections, or urllib3's own ways. A second call does nothing."""
    if hasattr(module, "HTTPConnectionPool"):
        pool, plain, tls = module.HTTPConnectionPool, module.HTTPConnection, module.HTTPSConnection
        for connection in (plain, tls):
            setattr(connection, _POOLED, None)
        wrap([(pool, "_make_request", _asking), (plain, "connect", _connecting), (tls, "connect", _connecting)])
        return
    plain, tls = module.HTTPConnection, module.HTTPSConnection
    setattr(plain, _POOLED, None)
    wrap(
        [
            (plain, "putrequest", _putting),
            (plain, "endheaders", _ending_headers),
            (plain, "send", _sending),
            (plain, "getresponse", _waiting),
            (plain, "close", _closing),
            (plain, "connect", _connecting),
            (tls, "connect", _connecting),
        ]
    )


# The signatures are http.client's own: passing arguments on one by one costs half of what a tuple and a dictionary do.


def _putting(original: Callable[..., Any]) -> Callable[..., Any]:
    def putrequest(
        self: Any, method: str, url: str, skip_host: bool = False, skip_accept_encoding: bool = False
    ) -> Any:
        if _get() is None or self._paste_agent_pooled is not None or _is_own(self):
            return original(self, method, url, skip_host, skip_accept_encoding)
        start_ns = perf_counter_ns()
        result = original(self, method, url, skip_host, skip_accept_encoding)
        self.__dict__[_ASKED] = method, url, start_ns
        return result

    return putrequest


def _ending_headers(original: Callable[..., Any]) -> Callable[..., Any]:
    def endheaders(self: Any, message_body: Any = None, *, encode_chunked: bool = False) -> Any:
        pooled = self._paste_agent_pooled
        if pooled is not None:
            _tell(self, pooled[0])
            try:
                return original(self, message_body, encode_chunked=encode_chunked)
            except BaseException as error:
                _end_pooled(self, pooled, None, type_name(error))
                raise
        call = _begun(self, self.__dict__.pop(_ASKED)) if _ASKED in self.__dict__ else None
        if call is None:
            return original(self, message_body, encode_chunked=encode_chunked)
        _tell(self, call.span)
        try:
            result = original(self, message_body, encode_chunked=encode_chunked)
        except BaseException as error:
            call.end(None, type_name(error))
            raise
        call.leave(self)
        return result

    return endheaders


def _sending(original: Callable[..., Any]) -> Callable[..., Any]:
    def send(self: Any, data: Any) -> Any:
        # Within endheaders there is no call that waits.
        call = _taken(self) if _CALL in self.__dict__ else None
        if call is None:
            return original(self, data)
        try:
            return original(self, data)
        except BaseException as error:
            call.failed = type_name(error)
            raise
        finally:
            call.leave(self)

    return send


def _waiting(original: Callable[..., Any]) -> Callable[..., Any]:
    def getresponse(self: Any, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs:  # urllib3 1.26 first tries with an argument of Python 2's, which is refused
            return original(self, *args, **kwargs)
        pooled = self._paste_agent_pooled
        if pooled is not None:
            try:
                response = original(self)
            except BaseException as error:  # before urllib3 makes one of its own of it
                _end_pooled(self, pooled, None, type_name(error))
                raise
            _end_pooled(self, pooled, response, None)
            return response
        call = _taken(self) if _CALL in self.__dict__ else None
        if call is None:
            return original(self)
        try:
            response = original(self)
        except BaseException as error:
            call.end(None, type_name(error))
            raise
        call.end(response, None)
        return response

    return getresponse


def _closing(original: Callable[..., Any]) -> Callable[..., Any]:
    def close(self: Any) -> Any:
        if _CALL not in self.__dict__ and _ASKED not in self.__dict__:
            return original(self)
        try:
            return original(self)
        finally:
            _drop(self, None)

    return close


def _connecting(original: Callable[..., Any]) -> Callable[..., Any]:
    def connect(self: Any) -> Any:
        around = _get()
        if around is None or (isinstance(around, Span) and around.category == CALL) or _is_own(self):
            return original(self)
        asked = self.__dict__.get(_ASKED)
        if asked is None:
            return _connect_ahead(original, self)
        call = _begun(self, asked)
        if call is None:
            return original(self)
        try:
            result = original(self)
        except BaseException as error:
            call.end(None, type_name(error))
            raise
        call.leave(self)
        return result

    return connect


def _connect_ahead(original: Callable[..., Any], self: Any) -> Any:
    """Connect for no request in particular: a span, and where a tunnel was asked for in vain a call that has failed.

    Without a tunnel nothing was asked: there is no method, and no request that would count.
    """
    target = target_of(self, "")
    name = "CONNECT" if getattr(self, "_tunnel_host", None) else "connect"
    span = begin(CALL, text_of(name, target))
    if span is None:
        return original(self)
    try:
        result = original(self)
    except BaseException as error:
        if name == "CONNECT":
            end_call(span, name, target, None, type_name(error), None)
        else:
            end(span, name, None, type_name(error), (_server_of, target))
        raise
    end(span, name)
    return result


def _server_of(target: Target) -> dict[str, object]:
    server = {"server.address": target.address, "server.port": target.port}
    return {name: value for name, value in server.items() if value is not None}


class _Known:
    """What the requests of a pool with one method and one URL have in common."""

    __slots__ = ("answers", "method", "target", "text")

    def __init__(self, method: str, target: Target) -> None:
        self.method = method
        self.target = target
        self.text = text_of(method, target)  #: for the black box
        self.answers: dict[tuple[object, object], _Ended] = {}  #: by status and version


_Pooled = tuple[Span, _Known]


def _asking(original: Callable[..., Any]) -> Callable[..., Any]:
    """Of urllib3's pool: until the headers of the answer are there all is the call, what yields its body too."""

    def _make_request(self: Any, conn: Any, method: str, url: str, *args: Any, **kwargs: Any) -> Any:
        if _get() is None:
            return original(self, conn, method, url, *args, **kwargs)
        pooled: _Pooled | None = None
        try:
            known = self.__dict__.get(_KNOWN, _NONE).get((method, url)) or _known_of(self, conn, method, url)
            # A connection that has one already: nobody has said that it is over.
            if known is not None and conn._paste_agent_pooled is None:
                conn._paste_agent_pooled = None  # one that takes no attributes says so before anything has begun
                span = begin(CALL, known.text)
                if span is not None:
                    pooled = conn._paste_agent_pooled = span, known
        except Exception as fault:  # of somebody else's making
            lifecycle.on_fault("a call", fault)
        if pooled is None:
            return original(self, conn, method, url, *args, **kwargs)
        try:
            result = original(self, conn, method, url, *args, **kwargs)
        except BaseException as error:
            if conn._paste_agent_pooled is pooled:
                _end_pooled(conn, pooled, None, type_name(error))
            raise
        if conn._paste_agent_pooled is pooled:  # it has its own way to read an answer
            _end_pooled(conn, pooled, result, None)
        return result

    return _make_request


_NONE: dict[tuple[str, str], _Known] = {}


def _known_of(pool: Any, connection: Any, method: str, url: str) -> _Known | None:
    """None for the agent's own. May raise what objects of somebody else's making raise."""
    if _is_own(connection):
        return None
    found = _Known(method, _target_in(pool, connection, url))
    if len(url) <= _LONGEST_KNOWN and url[:1] == "/" and "?" not in url:  # neither a query nor a user is kept in memory
        known = pool.__dict__.setdefault(_KNOWN, {})
        if len(known) >= _MOST_KNOWN:
            known.clear()
        known[method, url] = found
    return found


def _end_pooled(connection: Any, pooled: _Pooled, response: Any, failed: str | None) -> None:
    """The headers of the answer are there, or none will be. Raises nothing."""
    connection._paste_agent_pooled = None
    span, known = pooled
    try:
        ended = known.answers[response.status, response.version]
    except Exception:
        ended = _ended_of(known, response, failed)
    end(span, *ended)


def _ended_of(known: _Known, response: Any, failed: str | None) -> _Ended:
    """What the end of such a request is, remembered where there was an answer."""
    status: int | None = None
    version: int | None = None
    try:
        status, version = _answered(response)
    except Exception as fault:
        lifecycle.on_fault("a call", fault)
    ended = _ended(known.method, known.target, status, failed, version)
    if failed is None and status is not None and len(known.answers) < _MOST_ANSWERS:
        known.answers[status, version] = ended
    return ended
