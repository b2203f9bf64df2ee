"""Every setting, in one table.

The parser, the error messages, `paste-agent check` and docs/settings.md all read `TABLE`; nothing else lists settings.

Precedence, highest first: the section's key in the ini, the environment's `PASTE_AGENT_<KEY>`, the standard
OpenTelemetry variable where there is one, the default.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from paste_agent import headers, kinds
from paste_agent.errors import SettingError

#: Variables that are no keys: the file that settings come from where no pipeline has a section of ours, and which of
#: its sections is laid over the first.
CONFIG_FILE, ENVIRONMENT = "PASTE_AGENT_CONFIG_FILE", "PASTE_AGENT_ENVIRONMENT"
#: Relative paths start there, where there is no ini; set for the programs that are started with the agent on board.
HERE = "PASTE_AGENT__HERE"
SIGNALS = ("traces", "metrics", "logs")
#: A store that is not to survive a reboot: it lives in the runtime directory.
IN_MEMORY = "memory"
DEFAULT_SECTION = "filter:agent"

#: Libraries that are instrumented, each in a file of `instrument`.
INSTRUMENTATIONS = (
    "bottle", "celery", "chameleon", "django", "falcon", "flask", "http_client", "httpx", "jinja2", "kajiki", "kombu",
    "mako", "mysqlclient", "pecan", "psycopg", "psycopg2", "pymemcache", "pymysql", "pyramid", "redis",
    "sqlalchemy", "sqlite", "turbogears", "webob", "zope",
)  # fmt: skip
_USER_INFO = re.compile(r"//[^/]*@")
_QUERY = re.compile(r"\?[^#]*")


# -- the table -----------------------------------------------------------------------------------------------------


def _as_it_is(text: str) -> str:
    return text


def _negated(text: str) -> str:
    # OpenTelemetry's specification: true, in any case, is true; anything else is false.
    return str(text.strip().lower() != "true")


#: Names that OpenTelemetry's instrumentations have, and ours have not.
_OTHER_NAMES = {"sqlite3": "sqlite", "requests": "http_client", "urllib": "http_client", "urllib3": "http_client"}


def _known_instrumentations(text: str) -> str:
    # Other SDKs name libraries there that this one does not instrument.
    words = (_OTHER_NAMES.get(word, word) for word in kinds.words(text.lower()))
    return " ".join(word for word in words if word in INSTRUMENTATIONS)


def _known_compression(text: str) -> str:
    # The standard says gzip and none; SDKs know more, which nobody needs to change for us.
    return "gzip" if text.strip().lower() == "deflate" else text


def _known_propagators(text: str) -> str:
    return " ".join(
        word
        for word in kinds.words(text.lower())
        if word in ("tracecontext", "baggage", "b3", "b3multi", "jaeger", "none")
    )


def _milliseconds(text: str) -> str:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not 0 < number <= 1e12:
        raise kinds.WrongValue("expected milliseconds above 0, for example 60000")
    return repr(number / 1000)


_EXPORTERS = ("otlp", "none")


def _known_exporter(text: str) -> str:
    # Of several, as the standard has it, ours; whoever names others alone may mean other programs.
    named = kinds.words(text.lower())
    return "none" if "none" in named and "otlp" not in named else "otlp"


class Setting(NamedTuple):
    """One row: a key of `[filter:agent]` and all that is known about it."""

    key: str
    read: Callable[[str], object]  #: raises kinds.WrongValue
    default: object
    unit: str  #: '' for none
    help: str
    default_text: str = ""  #: how the default reads when another setting or the host decides it
    otel: str = ""  #: the standard variable that also sets it
    from_otel: Callable[[str], str] = _as_it_is  #: that variable's form to this key's form
    secret: bool = False

    @property
    def variable(self) -> str:
        return f"PASTE_AGENT_{self.key.upper()}"


_seconds = kinds.number("seconds", "60")
_class_names = kinds.names(
    r"[A-Za-z_][\w.]*(?::[A-Za-z_][\w.]*)?", "names of exception classes, for example shop.errors.NotInStock KeyError"
)


def _classes(text: str) -> tuple[str, ...]:
    """`module.Class`; other agents have a colon between the two, and a module for builtins."""
    return tuple(name.replace(":", ".").removeprefix("builtins.") for name in _class_names(text))


def _per_minute(key: str, default: float, help_text: str) -> Setting:
    return Setting(key, kinds.number("traces a minute", "60", low_included=True), default, "1/min", help_text)


def _otlp_rows(signal: str) -> list[Setting]:
    """The eight rows of a collector: for all signals when `signal` is '', else for that one."""
    prefix = f"{signal}_" if signal else ""
    variable = f"OTEL_EXPORTER_OTLP_{prefix.upper()}"
    whom = f" for {signal} alone" if signal else ""
    same = f"as without `{prefix}`" if signal else ""
    where = (
        "used as it is" if signal else "the agent adds /v1/traces, /v1/metrics and /v1/logs; without it nothing is sent"
    )
    return [
        Setting(f"{prefix}endpoint", kinds.url, None, "", f"Collector's OTLP/HTTP address{whom}: {where}.", otel=f"{variable}ENDPOINT", default_text=same),
        Setting(f"{prefix}headers", kinds.headers, None if signal else {}, "", f"Headers sent to the collector{whom}, key=value,key=value; ${{NAME}} stands for an environment variable.", otel=f"{variable}HEADERS", secret=True, default_text=same),
        Setting(f"{prefix}headers_file", kinds.path, None, "", f"File of headers sent to the collector{whom}, `name: value` on each line; read again when it changes.", default_text=same),
        Setting(f"{prefix}timeout_s", _seconds, None if signal else 10.0, "s", f"How long one export may take{whom}.", otel=f"{variable}TIMEOUT", from_otel=_milliseconds, default_text=same),
        Setting(f"{prefix}compression", kinds.choice("gzip", "none"), None if signal else "gzip", "", f"Compression of what is sent{whom}: gzip or none.", otel=f"{variable}COMPRESSION", from_otel=_known_compression, default_text=same),
        Setting(f"{prefix}certificate", kinds.path, None, "", f"PEM file of the authorities trusted to sign the collector's certificate{whom}.", otel=f"{variable}CERTIFICATE", default_text=same),
        Setting(f"{prefix}client_key", kinds.path, None, "", f"PEM file of the client's private key{whom}.", otel=f"{variable}CLIENT_KEY", default_text=same),
        Setting(f"{prefix}client_certificate", kinds.path, None, "", f"PEM file of the client's certificate{whom}.", otel=f"{variable}CLIENT_CERTIFICATE", default_text=same),
    ]  # fmt: skip


def _exporter(signal: str) -> Setting:
    kept = "exceptions are kept with their traces all the same" if signal == "logs" else "they are kept all the same"
    return Setting(
        f"{signal}_exporter", kinds.choice(*_EXPORTERS), "otlp", "", f"Whether {signal} are sent: otlp or none; {kept}.",
        otel=f"OTEL_{signal.upper()}_EXPORTER", from_otel=_known_exporter,
    )  # fmt: skip


TABLE: dict[str, Setting] = {
    row.key: row
    for row in [
        Setting("enabled", kinds.boolean, True, "", "false: the filter's factory returns the application itself.",
                otel="OTEL_SDK_DISABLED", from_otel=_negated),
        Setting("service_name", kinds.text, None, "", "Name of the service. Each has its own recorders, lease and store.",
                default_text="the ini's name without `.ini`; without an ini, the name of what is served", otel="OTEL_SERVICE_NAME"),
        Setting("resource_attributes", kinds.pairs, {}, "", "Further attributes of the resource, key=value,key=value, such as deployment.environment.name=production.",
                otel="OTEL_RESOURCE_ATTRIBUTES"),
        Setting("store", kinds.path, None, "", "Path of the store, relative to the ini; `memory`: in the runtime directory, gone after a reboot.",
                default_text="`<service>.sqlite` under `$XDG_STATE_HOME/paste-agent`"),
        Setting("runtime_dir", kinds.path, None, "", "Directory for flight recorders and lease, private to the user, best on a memory file system.",
                default_text="`/dev/shm/paste-agent-<uid>`, else `$XDG_RUNTIME_DIR/paste-agent`"),
        *_otlp_rows(""),
        *(row for signal in SIGNALS for row in (_exporter(signal), *_otlp_rows(signal))),
        Setting("report_interval_s", _seconds, 60.0, "s", "Between exports of metrics. Draining is every second, whatever this says.",
                otel="OTEL_METRIC_EXPORT_INTERVAL", from_otel=_milliseconds),
        Setting("trace_interval_s", _seconds, 5.0, "s", "Between exports of kept traces and their exceptions.",
                otel="OTEL_BSP_SCHEDULE_DELAY", from_otel=_milliseconds),
        Setting("apdex_t_s", _seconds, 0.5, "s", "Apdex: satisfied up to it, tolerating up to four times it."),
        Setting("slow_request_s", _seconds, None, "s", "A request that takes longer is kept as a trace. The stack of what takes longer, a background task too, is taken while it runs.",
                default_text="four times `apdex_t_s`"),
        Setting("stuck_request_s", _seconds, 30.0, "s", "A transaction that is in flight for longer is told of in the log: then, and each time that it is twice as old."),
        _per_minute("parent_traces_per_min", 600.0, "Most traces kept because the caller sampled them, for each process."),
        _per_minute("random_traces_per_min", 12.0, "Traces kept at random, about so many, for each process."),
        _per_minute("slow_traces_per_min", 30.0, "Most traces kept because they were slow, for each process."),
        _per_minute("failed_traces_per_min", 30.0, "Most traces kept because they failed, for each process."),
        _per_minute("query_traces_per_min", 30.0, "Most traces kept because a query was slow, or repeated, for each process."),
        Setting("slow_query_s", _seconds, 0.5, "s", "A query that takes longer is slow: its transaction is kept, with the line of code that issued it."),
        Setting("repeated_queries", kinds.integer(2, 1_000_000, "10"), 10, "", "As often as this one transaction may not execute the same statement: then it is kept, with the line of code (N+1 queries)."),
        Setting("explain_queries", kinds.boolean, False, "", "Ask the database for the plan of a slow query (EXPLAIN, on the same connection, directly after it) and keep it with the trace."),
        Setting("record_sql", kinds.choice("sanitised", "raw", "off"), "sanitised", "", "Text of statements in kept traces: without their values, as they are, or not at all."),
        Setting("disabled_instrumentations", kinds.list_of(INSTRUMENTATIONS, "redis jinja2"), (), "", "Libraries that are left alone, separated by spaces or commas.",
                otel="OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", from_otel=_known_instrumentations),
        Setting("trace_functions", kinds.names(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", "module:function words, for example shop.stock:reserve shop.mail:Mailer.send"), (), "", "Functions that get a span of their own, as module:function or module:Class.method, separated by spaces or commas."),
        Setting("propagators", kinds.list_of(("tracecontext", "baggage", "b3", "b3multi", "jaeger", "none"), "tracecontext baggage b3"), ("tracecontext", "baggage"), "", "Headers that say which trace a request belongs to. b3, b3multi and jaeger are only read.",
                otel="OTEL_PROPAGATORS", from_otel=_known_propagators),
        Setting("opentelemetry_api", kinds.boolean, True, "", "Make spans of what is said through OpenTelemetry's API (opentelemetry-api) in a transaction, unless the application brings an SDK."),
        Setting("layers", kinds.boolean, True, "", "Measure the time that each filter of the pipeline takes by itself."),
        Setting("gc_pauses", kinds.boolean, True, "", "Measure the pauses that the garbage collector makes in transactions; not on Python 3.11 before 3.11.8."),
        Setting("cpu_time", kinds.boolean, False, "", "Measure the CPU time of a transaction's thread: two system calls a request. Says nothing with greenlets."),
        Setting("ignore_errors", _classes, (), "", "Exceptions, and their subclasses, that are no errors and are not recorded."),
        Setting("expected_errors", _classes, (), "", "Exceptions, and their subclasses, that are recorded and do not count as failures."),
        Setting("ignore_statuses", kinds.statuses, (), "", "Statuses that are no errors, such as 503 or 502-504, nor is what is raised on the way to them. Below 500 only the latter matters."),
        Setting("expected_statuses", kinds.statuses, (), "", "Statuses that are recorded and do not count as failures, with what is raised on the way to them. Below 500 only the latter matters."),
        Setting("record_headers", kinds.names(r"[A-Za-z0-9-]+", "names of request headers, for example X-Request-Id"), (), "", "Request headers that kept traces tell, by name."),
        Setting("include_attributes", kinds.names(r"[\w.*?-]+", "patterns of attribute names, for example app.* user.plan"), (), "", "Attributes that an application may set, as patterns with *; none: all."),
        Setting("exclude_attributes", kinds.names(r"[\w.*?-]+", "patterns of attribute names, for example client.* user_agent.original"), (), "", "Attributes that are never recorded, as patterns with *; stronger than the former. Those by which requests are counted stay."),
        Setting("record_error_messages", kinds.boolean, True, "", "Record the messages of exceptions, cut to 1,024 characters: they can hold what a user sent."),
        Setting("high_security", kinds.boolean, False, "", "Overrule every setting that records more than the defaults do, and leave out messages of exceptions and attributes of the application."),
        Setting("forward_logs", kinds.choice("off", "debug", "info", "warning", "error", "critical"), "off", "", "Send log records of this level and above to the collector, bound to the trace that they belong to."),
        Setting("record_query", kinds.boolean, False, "", "Record `url.query` of kept traces, its values replaced by REDACTED."),
        Setting("access_token", kinds.token, None, "", "Opens the dashboard that an ini mounts; without one it stays shut.", default_text="none", secret=True),
        Setting("max_series", kinds.integer(10, 2000, "2000"), 2000, "", "Most combinations of method, route, status and error; the rest fold into one."),
        Setting("ring_records", kinds.integer(1024, 1_048_576, "16384"), 16_384, "", "Finished transactions that a process can hold until they are drained, 64 bytes each."),
        Setting("retention_days", kinds.number("days", "30"), 30.0, "d", "How long the store keeps what it knows of the past."),
        Setting("store_max_mib", kinds.number("MiB", "256", low=8, low_included=True), 256.0, "MiB", "Size that the store may reach; beyond it the oldest traces go first."),
        Setting("shutdown_timeout_s", _seconds, 2.0, "s", "How long the last drain and export of a process may take."),
    ]
}  # fmt: skip


def shown(row: Setting, value: object) -> str:
    """A value as people are told it: never a secret, never user or query of an address. '' for none."""
    if value is None or value in ({}, ()):
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{name}={'***' if row.secret else text}" for name, text in value.items())
    if row.secret:
        return "***"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    if isinstance(value, float):
        return f"{value:g} {row.unit}".strip()
    if row.key.endswith("endpoint"):
        # A key may stand in the query as well.
        return _QUERY.sub("?***", _USER_INFO.sub("//***@", str(value)))
    return f"{value} {row.unit}".strip()


class Target(NamedTuple):
    """Where one signal goes, and how."""

    url: str
    headers: Mapping[str, str]
    timeout_s: float
    gzip: bool
    certificate: str | None
    client_key: str | None
    client_certificate: str | None
    headers_file: str | None = None  #: what it says goes before `headers`


class Settings:
    """The effective settings of one service. Made by `load`; not changed afterwards."""

    enabled: bool
    service_name: str
    resource_attributes: Mapping[str, str]
    store: str  #: absolute, or IN_MEMORY
    runtime_dir: str | None
    report_interval_s: float
    trace_interval_s: float
    apdex_t_s: float
    slow_request_s: float
    stuck_request_s: float
    parent_traces_per_min: float
    random_traces_per_min: float
    slow_traces_per_min: float
    failed_traces_per_min: float
    query_traces_per_min: float
    slow_query_s: float
    repeated_queries: int
    explain_queries: bool
    record_sql: str
    disabled_instrumentations: tuple[str, ...]
    trace_functions: tuple[str, ...]
    propagators: tuple[str, ...]
    opentelemetry_api: bool
    layers: bool
    gc_pauses: bool
    cpu_time: bool
    ignore_errors: tuple[str, ...]
    expected_errors: tuple[str, ...]
    ignore_statuses: tuple[int, ...]
    expected_statuses: tuple[int, ...]
    record_headers: tuple[str, ...]
    include_attributes: tuple[str, ...]
    exclude_attributes: tuple[str, ...]
    record_error_messages: bool
    high_security: bool
    forward_logs: str
    record_query: bool
    access_token: str | None
    max_series: int
    ring_records: int
    retention_days: float
    store_max_mib: float
    shutdown_timeout_s: float

    def __init__(
        self,
        values: Mapping[str, object],
        origins: Mapping[str, str],
        section: str,
        overruled: Sequence[str] = (),
    ) -> None:
        """values: by key, complete. origins: 'default', 'ini', 'high_security', or the name of the environment variable, by key.

        overruled: keys whose values `high_security` has replaced.
        """
        self.overruled = tuple(overruled)
        #: Of standard variables that ask for what the agent does not do, a line each, for a person.
        self.passed_over: tuple[str, ...] = ()
        self.values = dict(values)
        self.origins = dict(origins)
        self.section = section
        for key in Settings.__annotations__:
            setattr(self, key, values[key])

    def target(self, signal: str) -> Target | None:
        """Where `signal` (one of SIGNALS) is sent; None when no endpoint is set for it, or it is not to be sent."""
        if self.values[f"{signal}_exporter"] == "none":
            return None

        def of(key: str) -> object:
            own = self.values[f"{signal}_{key}"]
            return self.values[key] if own is None else own

        url = self.values[f"{signal}_endpoint"]
        if url is None:
            base = self.values["endpoint"]
            if base is None:
                return None
            url = f"{str(base).rstrip('/')}/v1/{signal}"
        timeout_s = of("timeout_s")
        assert isinstance(timeout_s, float)

        def path(key: str) -> str | None:
            value = of(key)
            return None if value is None else str(value)

        # A signal with headers of its own may go elsewhere, where the keys of the others are nobody's business.
        of_its_own = any(self.values[f"{signal}_{key}"] is not None for key in ("headers", "headers_file"))
        prefix = f"{signal}_" if of_its_own else ""
        sent, file = self.values[f"{prefix}headers"] or {}, self.values[f"{prefix}headers_file"]
        assert isinstance(sent, dict)
        return Target(
            url=str(url),
            headers=sent,
            timeout_s=timeout_s,
            gzip=of("compression") == "gzip",
            certificate=path("certificate"),
            client_key=path("client_key"),
            client_certificate=path("client_certificate"),
            headers_file=None if file is None else str(file),
        )


def load(
    local_conf: Mapping[str, str],
    global_conf: Mapping[str, str],
    environ: Mapping[str, str],
    section: str = DEFAULT_SECTION,
    fallback_name: str | None = None,
) -> Settings:
    """Read the settings of one service.

    local_conf, global_conf: as PasteDeploy passes them to a factory.
    environ: the process's environment.
    section: for messages, such as `filter:agent`.
    fallback_name: of the service, where neither a setting nor an ini gives it one.
    Raises SettingError for an unknown key or a wrong value, wherever it stands.
    """
    for key in local_conf:
        if key not in TABLE and not (key.startswith("__") and key.endswith("__")):
            # Without its value, which may be the secret of a misspelt `headers`.
            raise SettingError(f"[{section}] {key}", None, _cure_of_unknown(key, TABLE))
    for name in environ:
        if not name.startswith("PASTE_AGENT_") or name.startswith("PASTE_AGENT__"):
            continue
        if name not in _VARIABLES and name not in (CONFIG_FILE, ENVIRONMENT):
            raise SettingError(name, None, _cure_of_unknown(name, _VARIABLES))
    values: dict[str, object] = {}
    origins: dict[str, str] = {}
    for row in TABLE.values():
        values[row.key], origins[row.key] = _effective(row, local_conf, environ, section)
    overruled = _overrule(values) if values["high_security"] else ()
    _derive(values, global_conf, environ, fallback_name)
    origins.update(dict.fromkeys(overruled, "high_security"))
    found = Settings(values, origins, section, overruled)
    found.passed_over = tuple(dict.fromkeys((*_other_exporters(found, environ), *_other_protocols(found, environ))))
    return found


_PROTOCOL = "http/protobuf"
#: What there is for whoever wants another exporter.
_INSTEAD = {"prometheus": "`paste-agent metrics` serves Prometheus", "console": "`paste-agent report` shows it"}


def _other_exporters(found: Settings, environ: Mapping[str, str]) -> Iterator[str]:
    for signal in SIGNALS:
        row = TABLE[f"{signal}_exporter"]
        if found.origins[row.key] != row.otel:
            continue  # who sets the agent's own key has answered
        named = kinds.words(environ[row.otel].lower())
        for word in named:
            if word not in _EXPORTERS:
                which = f"{word} is " if len(named) > 1 else ""
                instead = f"{_INSTEAD[word]}; " if word in _INSTEAD else ""
                yield (
                    f"{row.otel} = {environ[row.otel]!r}: {which}passed over, the agent knows otlp and none; {instead}"
                    f"if it is meant for other programs, set {row.key} = {found.values[row.key]}"
                )


def _other_protocols(found: Settings, environ: Mapping[str, str]) -> Iterator[str]:
    for signal in SIGNALS:
        own, common = f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"
        variable = own if environ.get(own) else common
        protocol = environ.get(variable, "")
        if protocol and protocol.strip().lower() != _PROTOCOL and found.target(signal) is not None:
            yield (
                f"{variable} = {protocol!r}: passed over, the agent speaks {_PROTOCOL} alone; "
                "its endpoint is the collector's port for HTTP, usually 4318"
            )


_VARIABLES = {row.variable: row.key for row in TABLE.values()}


def _effective(
    row: Setting, local_conf: Mapping[str, str], environ: Mapping[str, str], section: str
) -> tuple[object, str]:
    """The value of one row, and where it came from."""

    def own_form(text: str) -> str:
        return _expanded(text, environ) if row.secret else text

    if row.key in local_conf:
        return _read(row, f"[{section}] {row.key}", local_conf[row.key], own_form), "ini"
    # OpenTelemetry's specification: an empty variable is one that is not set.
    if environ.get(row.variable):
        return _read(row, row.variable, environ[row.variable], own_form), row.variable
    if row.otel and environ.get(row.otel):
        return _read(row, row.otel, environ[row.otel], row.from_otel), row.otel
    return row.default, "default"


def _expanded(text: str, environ: Mapping[str, str]) -> str:
    try:
        return headers.expanded(text, environ)
    except ValueError as wrong:
        raise kinds.WrongValue(str(wrong)) from None


def read(key: str, place: str, text: str) -> object:
    """The value of one key that another section has as well. place: for messages. Raises SettingError."""
    return _read(TABLE[key], place, text, _as_it_is)


def _read(row: Setting, place: str, text: str, convert: Callable[[str], str]) -> object:
    try:
        return row.read(convert(text))
    except kinds.WrongValue as wrong:
        shown = "***" if row.secret else _USER_INFO.sub("//***@", text)
        raise SettingError(place, shown, str(wrong)) from None


#: What other agents call them.
_ELSEWHERE = {
    "app_name": "service_name",
    "labels": "resource_attributes",
    "license_key": "headers",
    "monitor_mode": "enabled",
    "host": "endpoint",
}


def _cure_of_unknown(name: str, known: Mapping[str, object]) -> str:
    ours = _ELSEWHERE.get(name.removeprefix("PASTE_AGENT_").lower())
    if ours is not None:
        return f"unknown key; here it is {TABLE[ours].variable if name.isupper() else ours}"
    import difflib  # only a mistake needs it

    near = difflib.get_close_matches(name, known, n=1)
    return (
        f"unknown key; did you mean {near[0]}?"
        if near
        else "unknown key; `paste-agent generate-config` prints the known ones"
    )


#: What `high_security` makes of settings that record more.
SECURE = {
    "record_query": False,
    "record_sql": "sanitised",
    "record_headers": (),
    "record_error_messages": False,
    "explain_queries": False,
    "forward_logs": "off",
    "include_attributes": (),
}


def _overrule(values: dict[str, object]) -> tuple[str, ...]:
    """Put the secure values in place; the keys of those that were different."""
    overruled = tuple(key for key, secure in SECURE.items() if values[key] != secure and values[key] != "off")
    for key in overruled:
        values[key] = SECURE[key]
    return overruled


def _derive(
    values: dict[str, object], global_conf: Mapping[str, str], environ: Mapping[str, str], name: str | None
) -> None:
    """Fill in the defaults that another setting or the host decides."""
    ini = global_conf.get("__file__")
    if values["service_name"] is None:
        stem = os.path.splitext(os.path.basename(ini))[0] if ini else ""
        values["service_name"] = stem or name or "unknown_service"
    if values["slow_request_s"] is None:
        apdex_t_s = values["apdex_t_s"]
        assert isinstance(apdex_t_s, float)
        values["slow_request_s"] = 4 * apdex_t_s
    # A program that is started with the agent on board may have left the directory that it was started in.
    here = os.path.dirname(os.path.abspath(ini)) if ini else environ.get(HERE) or os.getcwd()
    store = values["store"]
    if store is None:
        state = environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
        store = os.path.join(state, "paste-agent", f"{file_name_of(str(values['service_name']))}.sqlite")
    if store != IN_MEMORY:
        values["store"] = os.path.join(here, str(store))
    for key in ("runtime_dir", "headers_file", "certificate", "client_key", "client_certificate"):
        for name in (key, *(f"{signal}_{key}" for signal in SIGNALS)):
            if values.get(name) is not None:
                values[name] = os.path.join(here, str(values[name]))


def file_name_of(service_name: str) -> str:
    """A service's name as a part of a path: no separators, nothing hidden, at most 64 characters."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", service_name).lstrip(".")[:64] or "service"
