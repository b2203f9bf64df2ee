"""The table of settings, and what is made of the ini and of the environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paste_agent import settings
from paste_agent.errors import SettingError
from paste_agent.settings import SIGNALS, TABLE, Settings, Target, load
from tests.configured import INI, loaded, refused

#: A few of each kind: the value as text, and as read.
GOOD: dict[str, list[tuple[str, object]]] = {
    "boolean": [("true", True), ("Yes", True), (" ON ", True), ("1", True), ("false", False), ("NO", False)],
    "seconds": [("60", 60.0), ("0.001", 0.001), (" 1e3 ", 1000.0), ("1e9", 1e9)],
    "per minute": [("0", 0.0), ("0.5", 0.5), ("600", 600.0)],
    "text": [("shop", "shop"), (" caf\u00e9 1 ", "caf\u00e9 1"), ("x" * 255, "x" * 255)],
    "path": [("/var/x", "/var/x"), ("x/y", "/srv/shop/x/y"), (" /a b ", "/a b"), ("~/x", os.path.expanduser("~/x"))],
    "url": [("http://127.0.0.1:4318", "http://127.0.0.1:4318"), (" https://[::1]/x?y ", "https://[::1]/x?y")],
    "pairs": [("", {}), (",a=1, b = 2 ,", {"a": "1", "b": "2"}), ("a=b=c%2Cd%20", {"a": "b=c,d "}), ("a=", {"a": ""})],
    "headers": [("x-api-key=a%20b,B=", {"x-api-key": "a b", "B": ""}), ("a=%C3%A9,b=%20c", {"a": "\u00e9", "b": "c"})],
    "token": [("0123456789abcdef", "0123456789abcdef"), (" correct-horse-battery ", "correct-horse-battery")],
    "choice": [("gzip", "gzip"), (" NONE ", "none")],
    "exporter": [("otlp", "otlp"), (" None ", "none")],
    "series": [("10", 10), ("2000", 2000), (" 99 ", 99)],
    "ring": [("1024", 1024), ("1048576", 1048576)],
    "days": [("0.5", 0.5), ("30", 30.0)],
    "mib": [("8", 8.0), ("256.5", 256.5)],
    "queries": [("2", 2), ("1000000", 1_000_000)],
    "statements": [("sanitised", "sanitised"), (" RAW ", "raw"), ("off", "off")],
    "level": [("off", "off"), ("Warning", "warning"), ("critical", "critical")],
    "libraries": [("redis jinja2", ("redis", "jinja2")), ("Redis,\tjinja2 ,", ("redis", "jinja2")), ("", ())],
    "functions": [("a:b", ("a:b",)), ("a.b:c, d:E.f", ("a.b:c", "d:E.f"))],
    "propagators": [("tracecontext,baggage b3", ("tracecontext", "baggage", "b3")), ("NONE", ("none",)), ("", ())],
    "exceptions": [("KeyError", ("KeyError",)), ("shop.Gone,KeyError", ("shop.Gone", "KeyError")), ("", ())],
    "statuses": [("503", (503,)), ("404, 502-504", (404, 502, 503, 504)), ("", ())],
    "header names": [("X-Request-Id", ("X-Request-Id",)), ("a,b c", ("a", "b", "c")), ("", ())],
    "include patterns": [("app.* user.plan", ("app.*", "user.plan")), ("*,a?b", ("*", "a?b")), ("", ())],
    "exclude patterns": [("client.*", ("client.*",)), ("", ())],
}  # fmt: skip
_NO_NUMBERS = ["", "5m", "nan", "-inf", "0x10", "1,5"]
BAD: dict[str, tuple[str, list[str]]] = {
    "boolean": ("expected true or false", ["", "maybe", "2", "truefalse"]),
    "seconds": ("expected seconds above 0, for example 60", [*_NO_NUMBERS, "0", "-1"]),
    "per minute": ("expected traces a minute from 0, for example 60", [*_NO_NUMBERS, "-0.1"]),
    "text": ("expected 1 to 255 printable characters", ["", "  ", "a\nb", "x" * 256, "a\x1b[31m"]),
    "path": ("expected a path, for example /var/lib/shop/agent.sqlite", ["", " ", "a\0b"]),
    "url": (
        "expected a URL, for example http://127.0.0.1:4318",
        ["", "collector:4318", "http://", "ftp://x/", "http://x:99999", "http://x:port", "http://[::1", "localhost"],
    ),
    "pairs": ("expected key=value pairs separated by commas, for example team=shop,tier=web", ["a", "=b", "a=1,b"]),
    "token": (
        "expected 16 to 255 characters without spaces, as `openssl rand -hex 20` makes them",
        ["", "0123456789abcde", "0123456789 abcdef", "0123456789abcde\u00e9", "0123456789\nabcdef", "a" * 256],
    ),
    "headers": (
        "expected header=value pairs separated by commas, for example x-api-key=abc",
        ["a=x%0d%0ay", "a b=1", "\u00e9=1", "a=%00", "a=%E2%82%AC", "a:b=1"],
    ),
    "choice": ("expected gzip or none", ["", "deflate", "gzip,none"]),
    "exporter": ("expected otlp or none", ["", "console", "otlp,console"]),
    "series": ("expected a whole number from 10 to 2000, for example 2000", ["", "9", "2001", "10.5", "many"]),
    "ring": ("expected a whole number from 1024 to 1048576, for example 16384", ["1023", "1048577", "-1"]),
    "days": ("expected days above 0, for example 30", [*_NO_NUMBERS, "0"]),
    "mib": ("expected MiB from 8, for example 256", [*_NO_NUMBERS, "7.9"]),
    "queries": ("expected a whole number from 2 to 1000000, for example 10", ["", "1", "1000001", "ten", "2.0"]),
    "statements": ("expected sanitised or raw or off", ["", "true", "sanitized", "raw off"]),
    "level": ("expected off or debug or info or warning or error or critical", ["", "warn", "10", "true"]),
    "libraries": (
        f"expected words out of {', '.join(settings.INSTRUMENTATIONS)}, for example redis jinja2",
        ["nosuch", "redis;jinja2", "redis nosuch", "*"],
    ),
    "functions": (
        "expected module:function words, for example shop.stock:reserve shop.mail:Mailer.send",
        ["shop.stock", "a:b:c", ":f", "m:", "1m:f", "m:f()", "a : b"],
    ),
    "propagators": (
        "expected words out of tracecontext, baggage, b3, b3multi, jaeger, none, for example tracecontext baggage b3",
        ["xray", "tracecontext;b3", "b3 xray"],
    ),
    "exceptions": (
        "expected names of exception classes, for example shop.errors.NotInStock KeyError",
        ["1x", "a-b", "Key*", "KeyError()", "\u00e9"],
    ),
    "statuses": (
        "expected statuses and ranges of them, for example 503 or 502-504",
        ["5xx", "99", "600", "500-", "500-600", "5000", "-1", "500 - 504"],
    ),
    "include patterns": ("expected patterns of attribute names, for example app.* user.plan", ["a:b", "[a]", "a/b"]),
    "exclude patterns": (
        "expected patterns of attribute names, for example client.* user_agent.original",
        ["a:b", "[a]", "a/b"],
    ),
    "header names": ("expected names of request headers, for example X-Request-Id", ["a:b", "a_b", "\u00e9", "a*"]),
}
KINDS = {
    "enabled": "boolean",
    "service_name": "text",
    "resource_attributes": "pairs",
    "store": "path",
    "runtime_dir": "path",
    "report_interval_s": "seconds",
    "trace_interval_s": "seconds",
    "apdex_t_s": "seconds",
    "slow_request_s": "seconds",
    "stuck_request_s": "seconds",
    "parent_traces_per_min": "per minute",
    "random_traces_per_min": "per minute",
    "slow_traces_per_min": "per minute",
    "failed_traces_per_min": "per minute",
    "query_traces_per_min": "per minute",
    "slow_query_s": "seconds",
    "repeated_queries": "queries",
    "explain_queries": "boolean",
    "record_sql": "statements",
    "disabled_instrumentations": "libraries",
    "trace_functions": "functions",
    "propagators": "propagators",
    "opentelemetry_api": "boolean",
    "layers": "boolean",
    "gc_pauses": "boolean",
    "cpu_time": "boolean",
    "ignore_errors": "exceptions",
    "expected_errors": "exceptions",
    "ignore_statuses": "statuses",
    "expected_statuses": "statuses",
    "record_headers": "header names",
    "include_attributes": "include patterns",
    "exclude_attributes": "exclude patterns",
    "record_error_messages": "boolean",
    "high_security": "boolean",
    "forward_logs": "level",
    "record_query": "boolean",
    "max_series": "series",
    "access_token": "token",
    "ring_records": "ring",
    "retention_days": "days",
    "store_max_mib": "mib",
    "shutdown_timeout_s": "seconds",
    **{f"{signal}_exporter": "exporter" for signal in SIGNALS},
    **{
        prefix + key: kind
        for prefix in ("", *(f"{signal}_" for signal in SIGNALS))
        for key, kind in {
            "endpoint": "url",
            "headers": "headers",
            "headers_file": "path",
            "timeout_s": "seconds",
            "compression": "choice",
            "certificate": "path",
            "client_key": "path",
            "client_certificate": "path",
        }.items()
    },
}


def test_this_test_knows_every_row() -> None:
    assert set(KINDS) == set(TABLE)


@pytest.mark.parametrize("key", TABLE)
def test_good_values(key: str) -> None:
    for text, value in GOOD[KINDS[key]]:
        found = loaded(**{key: text})
        assert found.values[key] == value, text
        assert type(found.values[key]) is type(value)
        assert found.origins[key] == "ini"


@pytest.mark.parametrize("key", TABLE)
def test_bad_values_say_place_value_and_cure(key: str) -> None:
    cure, texts = BAD[KINDS[key]]
    for text in texts:
        shown = "'***'" if TABLE[key].secret else repr(text)
        assert refused(**{key: text}) == f"[filter:agent] {key} = {shown}: {cure}"
        if text:
            variable = f"PASTE_AGENT_{key.upper()}"
            assert refused({variable: text}) == f"{variable} = {shown}: {cure}"


def test_the_form_of_a_message() -> None:
    with pytest.raises(SettingError) as raised:
        load({"report_interval_s": "5m"}, {}, {}, "filter:other")
    assert str(raised.value) == "[filter:other] report_interval_s = '5m': expected seconds above 0, for example 60"


@pytest.mark.parametrize("row", TABLE.values(), ids=lambda row: row.key)
def test_every_row_says_what_it_is(row: settings.Setting) -> None:
    assert row.help.endswith(".")
    assert row.help[0].isupper() or row.help.startswith("false:")
    assert (
        row.default is not None
        or row.default_text
        or row.key.endswith(("endpoint", "certificate", "client_key", "headers_file", "runtime_dir"))
    )
    assert bool(row.unit) == (row.key.endswith(("_s", "_per_min", "_days", "_mib")))
    assert row.key == row.key.lower()
    assert row.variable == f"PASTE_AGENT_{row.key.upper()}"


def test_every_default_is_a_value_that_could_have_been_set() -> None:
    for row in TABLE.values():
        if row.default is not None:
            text = row.default
            if isinstance(text, dict):
                text = ",".join(f"{key}={value}" for key, value in text.items())
            elif isinstance(text, tuple):
                text = " ".join(map(str, text))
            assert row.read(str(text)) == row.default, row.key


def test_every_attribute_is_a_row_of_its_type() -> None:
    found = loaded()
    hints = get_type_hints(Settings)
    assert set(hints) <= set(TABLE)
    for key, hint in hints.items():
        value = getattr(found, key)
        assert value is found.values[key]
        if isinstance(hint, type) and not get_args(hint):  # Python 3.10 takes Mapping[str, str] for a type
            assert type(value) is hint, key


def test_the_defaults() -> None:
    found = loaded()
    assert found.enabled is True
    assert found.service_name == "production"
    assert found.slow_request_s == 4 * found.apdex_t_s == 2.0
    assert found.runtime_dir is None
    assert (found.report_interval_s, found.shutdown_timeout_s) == (60.0, 2.0)
    assert set(found.origins.values()) == {"default"}
    assert set(found.values) == set(found.origins) == set(TABLE)
    assert [found.target(signal) for signal in SIGNALS] == [None, None, None]


# -- precedence ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("local_conf", "environ", "value", "origin"),
    [
        ({"service_name": "i"}, {"PASTE_AGENT_SERVICE_NAME": "p", "OTEL_SERVICE_NAME": "o"}, "i", "ini"),
        ({}, {"PASTE_AGENT_SERVICE_NAME": "p", "OTEL_SERVICE_NAME": "o"}, "p", "PASTE_AGENT_SERVICE_NAME"),
        ({}, {"PASTE_AGENT_SERVICE_NAME": "", "OTEL_SERVICE_NAME": "o"}, "o", "OTEL_SERVICE_NAME"),
        ({}, {"PASTE_AGENT_SERVICE_NAME": "", "OTEL_SERVICE_NAME": ""}, "production", "default"),
        ({}, {}, "production", "default"),
    ],
)
def test_precedence(local_conf: dict[str, str], environ: dict[str, str], value: str, origin: str) -> None:
    found = load(local_conf, INI, environ)
    assert (found.service_name, found.origins["service_name"]) == (value, origin)


def test_what_the_ini_sets_hides_what_is_wrong_in_the_environment() -> None:
    wrong = {"PASTE_AGENT_APDEX_T_S": "x", "OTEL_METRIC_EXPORT_INTERVAL": "x"}
    found = loaded(wrong, apdex_t_s="1", report_interval_s="7")
    assert (found.apdex_t_s, found.report_interval_s) == (1.0, 7.0)


def test_a_slow_request_of_its_own_and_derived() -> None:
    assert loaded(apdex_t_s="0.1").slow_request_s == pytest.approx(0.4)
    assert loaded(apdex_t_s="0.1", slow_request_s="9").slow_request_s == 9.0


# -- high security -------------------------------------------------------------------------------------------------

RECORDS_MORE = {
    "record_query": "true",
    "record_sql": "raw",
    "record_headers": "X-Request-Id",
    "explain_queries": "true",
    "forward_logs": "debug",
    "include_attributes": "app.*",
}


def test_high_security_overrules_what_records_more_than_the_defaults() -> None:
    found = loaded(high_security="true", **RECORDS_MORE)
    assert set(found.overruled) == {*RECORDS_MORE, "record_error_messages"}
    for key in found.overruled:
        assert found.values[key] == settings.SECURE[key], key
        assert found.origins[key] == "high_security"
    assert (found.record_sql, found.forward_logs, found.record_error_messages) == ("sanitised", "off", False)


def test_high_security_leaves_alone_what_records_less() -> None:
    found = loaded(high_security="true", record_sql="off", exclude_attributes="client.*", record_error_messages="false")
    assert found.overruled == ()
    assert found.origins["record_sql"] == "ini"
    assert (found.record_sql, found.exclude_attributes) == ("off", ("client.*",))


@pytest.mark.parametrize("key", RECORDS_MORE)
def test_without_high_security_nothing_is_overruled(key: str) -> None:
    found = loaded(**{key: RECORDS_MORE[key]})
    assert found.overruled == ()
    assert found.values[key] != TABLE[key].default


def test_every_setting_that_high_security_knows_is_one() -> None:
    assert set(settings.SECURE) <= set(TABLE)


# -- unknown keys, secrets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "cure"),
    [
        ("reprot_interval_s", "did you mean report_interval_s?"),
        ("Endpoint", "did you mean endpoint?"),
        ("header", "did you mean headers?"),
        ("zzz", "`paste-agent generate-config` prints the known ones"),
    ],
)
def test_an_unknown_key_names_the_nearest(key: str, cure: str) -> None:
    assert refused(**{key: "api-key=s3cret"}) == f"[filter:agent] {key}: unknown key; {cure}"


def test_a_key_of_another_agent_names_ours() -> None:
    assert refused(app_name="shop") == "[filter:agent] app_name: unknown key; here it is service_name"
    text = refused({"PASTE_AGENT_LABELS": "tier:web"})
    assert text == "PASTE_AGENT_LABELS: unknown key; here it is PASTE_AGENT_RESOURCE_ATTRIBUTES"


def test_a_class_may_have_a_colon_before_it() -> None:
    assert loaded(ignore_errors="shop.errors:NotInStock KeyError").ignore_errors == (
        "shop.errors.NotInStock",
        "KeyError",
    )


@pytest.mark.parametrize("name", ["KeyError", "builtins.KeyError", "builtins:KeyError"])
def test_a_builtin_class_is_known_without_its_module(name: str) -> None:
    assert loaded(expected_errors=name).expected_errors == ("KeyError",)


@pytest.mark.parametrize("value", ["1e10", "1e308", "inf"])
@pytest.mark.parametrize(("key", "unit"), [("store_max_mib", "MiB"), ("slow_request_s", "seconds")])
def test_what_is_too_much_names_the_most(key: str, unit: str, value: str) -> None:
    assert f": expected {unit} up to 1000000000, for example " in refused(**{key: value})


def test_an_unknown_variable_names_the_nearest() -> None:
    text = refused({"PASTE_AGENT_HEADER": "api-key=s3cret"})
    assert text == "PASTE_AGENT_HEADER: unknown key; did you mean PASTE_AGENT_HEADERS?"


def test_keys_that_loaders_add_are_passed_over() -> None:
    load({"__name__": "agent", "__file__": "x"}, {"__script__": "pserve", "anything": "1"}, {"PASTE_AGENT__X": "1"})


@pytest.mark.parametrize("prefix", ["", *(f"{signal}_" for signal in SIGNALS)])
def test_secrets_are_never_in_a_message(prefix: str) -> None:
    bad = "api-key=s3cret,broken"
    for environ, local_conf in (
        ({}, {f"{prefix}headers": bad}),
        ({f"PASTE_AGENT_{prefix.upper()}HEADERS": bad}, {}),
        ({f"OTEL_EXPORTER_OTLP_{prefix.upper()}HEADERS": bad}, {}),
        ({}, {f"{prefix}endpoint": "http://user:s3cret@collector:port/"}),
        ({f"OTEL_EXPORTER_OTLP_{prefix.upper()}ENDPOINT": "ftp://user:s3cret@collector/"}, {}),
    ):
        with pytest.raises(SettingError) as raised:
            load(local_conf, INI, environ)
        assert "s3cret" not in str(raised.value)
        assert "s3cret" not in str(raised.value.value)
        assert "***" in str(raised.value)


@pytest.mark.parametrize("prefix", ["", "traces_"])
def test_headers_with_keys_from_the_environment(prefix: str) -> None:
    environ = {"KEY": " s3cret,a=b%20c\n", "_2": "x"}
    text = "authorization=Bearer ${KEY},x-two=${_2}-${_2},literal=%24{KEY},dollar=$KEY"
    for conf, more in (({f"{prefix}headers": text}, {}), ({}, {f"PASTE_AGENT_{prefix.upper()}HEADERS": text})):
        assert load(conf, INI, {**environ, **more}).values[f"{prefix}headers"] == {
            "authorization": "Bearer s3cret,a=b%20c",
            "x-two": "x-x",
            "literal": "${KEY}",
            "dollar": "$KEY",
        }


def test_the_standard_variable_of_headers_is_as_the_standard_has_it() -> None:
    found = load({}, INI, {"OTEL_EXPORTER_OTLP_HEADERS": "a=${KEY}", "KEY": "x"})
    assert found.values["headers"] == {"a": "${KEY}"}


@pytest.mark.parametrize(
    ("text", "cure"),
    [
        ("a=s3cret${KEY}", "the environment variable KEY is not set; set it, or use headers_file"),
        ("a=s3cret${EMPTY}", "the environment variable EMPTY is not set; set it, or use headers_file"),
        ("a=s3cret${LINES}", "the environment variable LINES holds what no header can; give it on one line of ASCII"),
        ("a=s3cret${BYTES}", "the environment variable BYTES holds what no header can; give it on one line of ASCII"),
        *((f"a=s3cret{bad}", "expected ${NAME}, the name of an environment variable; %24{ is a ${ of the value's own")
          for bad in ("${}", "${A B}", "${1}", "${KEY")),
    ],
)  # fmt: skip
def test_a_key_that_is_not_in_the_environment_is_named_without_any_value(text: str, cure: str) -> None:
    environ = {"EMPTY": "", "LINES": "s3cret\nX-Evil: s3cret", "BYTES": "s3cret\udcff"}
    with pytest.raises(SettingError) as raised:
        load({"headers": text}, INI, environ)
    assert str(raised.value) == f"[filter:agent] headers = '***': {cure}"


# -- what the host and other settings decide -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "name"),
    [("/srv/a.b.ini", "a.b"), ("/srv/shop", "shop"), (None, "unknown_service"), ("/srv/.ini", ".ini")],
)
def test_the_service_is_called_as_its_ini(file: str | None, name: str) -> None:
    assert load({}, {"__file__": file} if file else {}, {}).service_name == name


def test_paths_are_relative_to_the_ini() -> None:
    keys = ["store", "runtime_dir", "certificate", "traces_client_key", "logs_client_certificate"]
    found = loaded({"PASTE_AGENT_METRICS_CERTIFICATE": "m.pem"}, **{key: f"var/{key}" for key in keys})
    for key in keys:
        assert found.values[key] == f"/srv/shop/var/{key}"
    assert found.values["metrics_certificate"] == "/srv/shop/m.pem"


def test_paths_without_an_ini_are_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load({"store": "x.sqlite"}, {}, {}).store == str(tmp_path / "x.sqlite")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("shop", "shop.sqlite"),
        ("../../etc/x", "_.._etc_x.sqlite"),
        ("a b/c", "a_b_c.sqlite"),
        ("...", "service.sqlite"),
    ],
)
def test_the_store_is_under_the_state_directory(name: str, file: str) -> None:
    assert loaded({"XDG_STATE_HOME": "/state"}, service_name=name).store == f"/state/paste-agent/{file}"
    home = os.path.expanduser("~/.local/state")
    assert loaded({}, service_name=name).store == f"{home}/paste-agent/{file}"


def test_a_store_in_memory_is_no_path() -> None:
    assert loaded(store=" memory ").store == settings.IN_MEMORY


@given(st.text(max_size=300))
def test_a_service_is_one_short_visible_file_name(name: str) -> None:
    found = settings.file_name_of(name)
    assert 1 <= len(found) <= 64
    assert found[0] != "."
    assert "/" not in found
    assert found.isascii()


@given(st.sampled_from(sorted(TABLE)), st.text(max_size=40))
def test_any_text_is_a_value_or_one_line(key: str, text: str) -> None:
    try:
        loaded(**{key: text})
        said = ""
    except SettingError as error:
        said = str(error)
    assert "\n" not in said


# -- targets -------------------------------------------------------------------------------------------------------

BASE = {"endpoint": "http://c:4318/", "headers": "k=v", "timeout_s": "3", "compression": "none", "certificate": "/ca"}


def test_one_endpoint_serves_all_signals() -> None:
    found = loaded(**BASE)
    for signal in SIGNALS:
        assert found.target(signal) == Target(f"http://c:4318/v1/{signal}", {"k": "v"}, 3.0, False, "/ca", None, None)


def test_a_signal_of_its_own_is_used_as_it_is() -> None:
    own: dict[str, Any] = {
        "traces_endpoint": "https://t/x/",
        "traces_headers": "t=1",
        "traces_timeout_s": "4",
        "traces_compression": "gzip",
        "traces_certificate": "/tc",
        "traces_client_key": "/tk",
        "traces_client_certificate": "/tcc",
    }
    found = loaded(**BASE, **own)
    assert found.target("traces") == Target("https://t/x/", {"t": "1"}, 4.0, True, "/tc", "/tk", "/tcc")
    assert found.target("logs") == Target("http://c:4318/v1/logs", {"k": "v"}, 3.0, False, "/ca", None, None)


def test_one_signal_alone() -> None:
    found = loaded(logs_endpoint="http://l/")
    assert [found.target(signal) is None for signal in SIGNALS] == [True, True, False]


def test_headers_of_a_signal_replace_the_common_ones_and_their_file() -> None:
    own = {"traces_headers": "t=1", "metrics_headers_file": "m.txt"}
    found = loaded(**BASE, headers_file="common.txt", **own)
    assert found.target("logs")[-1] == "/srv/shop/common.txt"  # type: ignore[index]
    targets = [found.target(signal) for signal in SIGNALS]
    assert [(one.headers, one.headers_file) for one in targets if one is not None] == [
        ({"t": "1"}, None),
        ({}, "/srv/shop/m.txt"),
        ({"k": "v"}, "/srv/shop/common.txt"),
    ]


def test_empty_headers_of_a_signal_replace_the_common_ones() -> None:
    target = loaded(**BASE, traces_headers="").target("traces")
    assert target is not None
    assert target.headers == {}
