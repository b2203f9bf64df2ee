"""Names of low cardinality for what a client sends: routes, methods, statuses, schemes, protocol versions.

A raw path never becomes a name: an attacker chooses it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

#: An application, or a framework that the agent does not know, may name its route here.
ROUTE_KEY = "paste_agent.route"
ROUTING_ARGS_KEY = "wsgiorg.routing_args"

#: Swift's proxy gives each request a number.
SWIFT_KEY = "swift.trans_id"
_SWIFT_VERSIONS = frozenset(("v1", "v1.0"))
_SWIFT_VALUES = ("{account}", "{container}", "{object}")

#: `__name__` of a class, whatever its metaclass makes of that.
_type_name: Callable[[type], str] = type.__dict__["__name__"].__get__

OTHER = "_OTHER"
#: RFC 9110, RFC 5789 and the QUERY method: those that OpenTelemetry's conventions call known.
KNOWN_METHODS = frozenset(("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"))
_SCHEMES = frozenset(("http", "https"))
_VERSIONS = {"HTTP/1.0": "1.0", "HTTP/1.1": "1.1", "HTTP/2": "2", "HTTP/2.0": "2", "HTTP/3": "3", "HTTP/3.0": "3"}
MAX_ROUTE_LENGTH = 255


def method_of(method: str) -> str:
    """A known method, or `_OTHER`. Methods are case-sensitive."""
    return method if method in KNOWN_METHODS else OTHER


def status_of(status: object) -> int | None:
    """The code of a WSGI status such as `404 Not Found`; None when there is none, or no valid one."""
    if not isinstance(status, str) or not status[:3].isdecimal() or status[3:4] not in ("", " "):
        return None
    code = int(status[:3])
    return code if 100 <= code <= 599 else None


def scheme_of(scheme: object) -> str:
    return scheme if isinstance(scheme, str) and scheme in _SCHEMES else OTHER


def version_of(protocol: object) -> str | None:
    """`1.1` for `HTTP/1.1`; None for what is not known."""
    return _VERSIONS.get(protocol) if isinstance(protocol, str) else None


def route_of(route: object) -> str | None:
    """A route as somebody set it, made safe: text, with a leading slash, bounded; else None."""
    if not isinstance(route, str) or not route:
        return None
    return (route if route.startswith(("/", "*")) else f"/{route}")[:MAX_ROUTE_LENGTH]


def route_of_routing_args(environ: Mapping[str, object]) -> str | None:
    """The route of a request that a router has left its traces of in the environ.

    Routes leaves the route itself. Another router that follows the wsgiorg specification leaves only the values that
    it found in the path: each is replaced by the name of its argument. Without any there is no telling a constant
    path from a variable one, so there is no name. Nor is there one when a value is no segment of the path: it may
    have been converted, or be a part of one, and what it came from would stay in the name.
    """
    path_template = getattr(environ.get("routes.route"), "routepath", None)
    if path_template is not None:
        return route_of(without_expressions(str(path_template)))
    arguments = environ.get(ROUTING_ARGS_KEY)
    if not isinstance(arguments, tuple) or len(arguments) != 2:
        return _route_of_swift(environ) if SWIFT_KEY in environ else None
    positional, named = arguments
    values: dict[object, str] = {}
    try:
        if isinstance(positional, (list, tuple)):
            values.update({value: f"{{{place}}}" for place, value in enumerate(positional)})
        if isinstance(named, Mapping):
            values.update({value: f"{{{name}}}" for name, value in named.items()})
    except TypeError:  # a value that cannot be hashed is no segment
        return None
    path = environ.get("PATH_INFO")
    if not isinstance(path, str):
        return None
    segments = path.split("/")
    if not values.keys() - {None, ""} <= set(segments):
        return None
    replaced = [values.get(segment, segment) if segment else segment for segment in segments]
    return route_of("/".join(replaced)) if replaced != segments else None


def _route_of_swift(environ: Mapping[str, object]) -> str | None:
    """Swift has no routes: what a path means is fixed. What follows the container is the object, slashes and all."""
    path = environ.get("PATH_INFO")
    if not isinstance(path, str):
        return None
    start, version, *values = path.split("/", 4) if path.count("/") > 1 else ("", "")
    while values and not values[-1]:
        values.pop()
    if start or version not in _SWIFT_VERSIONS or not values or "" in values:
        return None
    return "/".join(["", version, *_SWIFT_VALUES[: len(values)]])


def environ_key(header: str) -> str:
    """Where WSGI has the value of a request header."""
    key = header.upper().replace("-", "_")
    return key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"


def text_of(name: object, most: int) -> str:
    """A name that an application gives to a part of it, cut; that of its type, where it has no text. Raises nothing."""
    if issubclass(type(name), str):  # by type(): to ask an object for its class can run its code
        return str.__str__(name)[:most]
    try:
        return str.__str__(str(name))[:most]
    except Exception:  # an object's own code; a number of thousands of digits
        return _type_name(type(name))[:most]


def readable(value: str) -> str:
    """A WSGI string, which holds bytes as characters, as the UTF-8 that those bytes mostly are."""
    try:
        return value.encode("latin-1").decode("utf-8", "replace")
    except UnicodeEncodeError:
        return value.encode("utf-8", "replace").decode()


@functools.lru_cache(maxsize=4096)
def without_expressions(pattern: str) -> str:
    """A route's pattern with the names of its variables and without their regular expressions.

    `/{year:\\d{4}}/{slug}` becomes `/{year}/{slug}`.
    """
    parts: list[str] = []
    depth, skips = 0, False
    for char in pattern:
        if char == "{":
            depth += 1
        elif char == "}":
            depth -= 1
            skips = skips and depth > 0
        elif char == ":" and depth == 1:
            skips = True
        if not skips:
            parts.append(char)
    return "".join(parts)
