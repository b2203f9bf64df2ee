"""OpenTelemetry's variables: those that set a key, and those that ask for what the agent does not do."""

from __future__ import annotations

import pytest

from paste_agent.settings import SIGNALS, TABLE, load
from tests.configured import loaded, refused

OTEL: dict[str, tuple[str, str, object]] = {
    "enabled": ("OTEL_SDK_DISABLED", "true", False),
    "service_name": ("OTEL_SERVICE_NAME", "o", "o"),
    "resource_attributes": ("OTEL_RESOURCE_ATTRIBUTES", "a=1,b=%2C", {"a": "1", "b": ","}),
    "report_interval_s": ("OTEL_METRIC_EXPORT_INTERVAL", "15000", 15.0),
    "trace_interval_s": ("OTEL_BSP_SCHEDULE_DELAY", "250", 0.25),
    "disabled_instrumentations": (
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS",
        "redis,aiohttp-client,Jinja2,sqlite3,urllib3",
        ("redis", "jinja2", "sqlite", "http_client"),
    ),
    "propagators": ("OTEL_PROPAGATORS", "tracecontext,xray,b3", ("tracecontext", "b3")),
    **{f"{signal}_exporter": (f"OTEL_{signal.upper()}_EXPORTER", "None", "none") for signal in SIGNALS},
    **{
        prefix + key: (f"OTEL_EXPORTER_OTLP_{prefix.upper()}{name}", text, value)
        for prefix in ("", *(f"{signal}_" for signal in SIGNALS))
        for key, (name, text, value) in {
            "endpoint": ("ENDPOINT", "http://c:1/x", "http://c:1/x"),
            "headers": ("HEADERS", "k=v", {"k": "v"}),
            "timeout_s": ("TIMEOUT", "2500", 2.5),
            "compression": ("COMPRESSION", "none", "none"),
            "certificate": ("CERTIFICATE", "/c", "/c"),
            "client_key": ("CLIENT_KEY", "/k", "/k"),
            "client_certificate": ("CLIENT_CERTIFICATE", "/cc", "/cc"),
        }.items()
    },
}


def test_this_test_knows_every_standard_variable() -> None:
    assert {key: row.otel for key, row in TABLE.items() if row.otel} == {key: one[0] for key, one in OTEL.items()}


@pytest.mark.parametrize("key", OTEL)
def test_standard_variables(key: str) -> None:
    variable, text, value = OTEL[key]
    found = loaded({variable: text})
    assert (found.values[key], found.origins[key]) == (value, variable)


@pytest.mark.parametrize(("text", "enabled"), [("true", False), ("TRUE", False), ("false", True), ("", True)])
def test_the_sdk_disabled(text: str, enabled: bool) -> None:
    assert loaded({"OTEL_SDK_DISABLED": text}).enabled is enabled
    assert loaded({"OTEL_SDK_DISABLED": text}, enabled="true").enabled is True


@pytest.mark.parametrize(("text", "enabled"), [("TRUE", False), ("1", True), ("yes", True), ("false", True)])
def test_the_sdk_is_disabled_by_the_word_true_alone(text: str, enabled: bool) -> None:
    assert load({}, {}, {"OTEL_SDK_DISABLED": text}).enabled is enabled


@pytest.mark.parametrize("text", ["x", "0", "-1", "nan", "inf", "60s"])
@pytest.mark.parametrize(
    "variable", ["OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_METRIC_EXPORT_INTERVAL", "OTEL_BSP_SCHEDULE_DELAY"]
)
def test_a_standard_variable_in_milliseconds_has_a_cure_in_milliseconds(variable: str, text: str) -> None:
    assert refused({variable: text}) == f"{variable} = {text!r}: expected milliseconds above 0, for example 60000"


def test_other_variables_of_the_standard_are_passed_over() -> None:
    found = loaded({"OTEL_TRACES_SAMPLER": "always_on", "OTEL_EXPORTER_OTLP_INSECURE": "true"})
    assert (found.enabled, found.passed_over) == (True, ())


@pytest.mark.parametrize("signal", SIGNALS)
def test_a_signal_without_an_exporter_is_not_sent(signal: str) -> None:
    endpoints = {"endpoint": "http://c", f"{signal}_endpoint": "http://own"}
    found = loaded({f"OTEL_{signal.upper()}_EXPORTER": "none"}, **endpoints)
    assert [one for one in SIGNALS if found.target(one) is None] == [signal]
    assert found.passed_over == ()
    found = loaded({f"OTEL_{signal.upper()}_EXPORTER": "none"}, **endpoints, **{f"{signal}_exporter": "otlp"})
    assert all(map(found.target, SIGNALS))


@pytest.mark.parametrize(
    ("text", "exporter", "told"),
    [
        ("otlp", "otlp", []),
        ("console", "otlp", ["passed over, the agent knows otlp and none; `paste-agent report` shows it; if it is"]),
        ("Prometheus", "otlp", ["passed over, the agent knows otlp and none; `paste-agent metrics` serves Pro"]),
        ("otlp,zipkin", "otlp", ["zipkin is passed over, the agent knows otlp and none; if it is meant "]),
        ("none,console", "none", ["console is passed over"]),
        ("a, b", "otlp", ["a is passed over", "b is passed over"]),
    ],
)
def test_exporters_that_the_agent_has_not_are_told_of(text: str, exporter: str, told: list[str]) -> None:
    found = loaded({"OTEL_METRICS_EXPORTER": text}, endpoint="http://c")
    assert found.values["metrics_exporter"] == exporter
    for line, beginning in zip(found.passed_over, told, strict=True):
        assert line.startswith(f"OTEL_METRICS_EXPORTER = {text!r}: {beginning}")
        assert line.endswith(f"if it is meant for other programs, set metrics_exporter = {exporter}")
    # Whoever has set the agent's own key has read it.
    assert loaded({"OTEL_METRICS_EXPORTER": text}, metrics_exporter="otlp").passed_over == ()
    assert loaded({"OTEL_METRICS_EXPORTER": text, "PASTE_AGENT_METRICS_EXPORTER": "none"}).passed_over == ()


_COMMON = "OTEL_EXPORTER_OTLP_PROTOCOL"


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({_COMMON: "http/protobuf"}, []),
        ({_COMMON: " HTTP/Protobuf "}, []),
        ({_COMMON: ""}, []),
        ({_COMMON: "grpc"}, [f"{_COMMON} = 'grpc'"]),
        ({_COMMON: "http/json"}, [f"{_COMMON} = 'http/json'"]),
        ({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"}, ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL = 'grpc'"]),
        ({_COMMON: "grpc", **{f"OTEL_EXPORTER_OTLP_{one.upper()}_PROTOCOL": "http/protobuf" for one in SIGNALS}}, []),
        (
            {_COMMON: "grpc", "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL": "http/json"},
            [f"{_COMMON} = 'grpc'", "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL = 'http/json'"],
        ),
        (
            {_COMMON: "http/protobuf", "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL": "grpc", "OTEL_LOGS_EXPORTER": "none"},
            [],
        ),
    ],
)
def test_protocols_that_the_agent_does_not_speak_are_told_of(environ: dict[str, str], told: list[str]) -> None:
    cure = (
        "passed over, the agent speaks http/protobuf alone; its endpoint is the collector's port for HTTP, usually 4318"
    )
    assert loaded(environ, endpoint="http://c").passed_over == tuple(f"{one}: {cure}" for one in told)
    assert loaded(environ).passed_over == ()


def test_a_compression_that_sdks_know_is_no_mistake() -> None:
    assert loaded({"OTEL_EXPORTER_OTLP_COMPRESSION": "deflate"}).values["compression"] == "gzip"
