"""`parse` gives a whole configuration or every fault; `effective` shows it and no secret."""

from __future__ import annotations

from ipaddress import IPv4Network
from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr, ValidationError

from relay.config import ConfigError, effective, parse
from relay.settings import (
    CelerySource,
    ChannelSource,
    Config,
    RedisConfig,
    ServerConfig,
    is_loopback,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

FILES = {"/run/secret": "from a file\n", "/run/key.pem": "a key"}
MASK = '"***"'


def read_file(path: str) -> str:
    if path not in FILES:
        raise FileNotFoundError(2, "No such file or directory", path)
    return FILES[path]


def config_of(text: str | None = None, **environ: str) -> Config:
    return parse(text, environ, read_file=read_file)


def faults_of(text: str | None = None, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config_of(text, **environ)
    return caught.value.faults


# --- where values come from ------------------------------------------------------------------------


@pytest.mark.parametrize("text", [None, "", "# nothing\n", "[server]\n", "[source]\n"])
def test_nothing_configured_gives_the_defaults(text: str | None) -> None:
    assert config_of(text) == Config()


def test_file_beats_default_and_environment_beats_file() -> None:
    text = "[server]\nport = 4000\ndrain_seconds = 3"

    config = config_of(text, RELAY_SERVER__PORT="5000")

    assert (config.server.port, config.server.drain_seconds) == (5000, 3)
    assert config.server.path == "/job-progress"


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("RELAY_SERVER__REUSE_PORT", "true", "reuse_port = true"),
        ("RELAY_SERVER__REUSE_PORT", "0", "reuse_port = false"),
        ("RELAY_HEARTBEAT__INTERVAL_SECONDS", "0.5", "interval_seconds = 0.5"),
        ("RELAY_HEARTBEAT__INTERVAL_SECONDS", "7", "interval_seconds = 7"),
        ("RELAY_LIMITS__MAX_ERRORS", "3", "max_errors = 3"),
        ("RELAY_AUTH__AUDIENCE", "123", 'audience = "123"'),
        ("RELAY_AUTH__ALGORITHMS", "HS256, RS256", 'algorithms = ["HS256", "RS256"]'),
        ("RELAY_AUTH__ALGORITHMS", '["HS256","RS256"]', 'algorithms = ["HS256", "RS256"]'),
        ("RELAY_SERVER__TRUSTED_PROXIES", "", "trusted_proxies = []"),
        ("RELAY_SERVER__TRUSTED_PROXIES", "10.0.0.9", 'trusted_proxies = ["10.0.0.9/32"]'),
        ("RELAY_AUTH__JWT_PUBLIC_KEY_FILE", "/run/key.pem", 'jwt_public_key_file = "/run/key.pem"'),
    ],
)
def test_variable_is_read_by_the_type_of_its_setting(
    variable: str, value: str, expected: str
) -> None:
    assert expected in effective(config_of(None, **{variable: value})).splitlines()


@pytest.mark.parametrize("variable", ["RELAY_PORT", "RELAY_SERVICE_HOST", "OTHER__KEY", "RELAY"])
def test_variable_that_is_no_setting_is_ignored(variable: str) -> None:
    assert config_of(None, **{variable: "tcp://10.0.0.1:3001"}) == Config()


def test_origins_and_hosts_are_kept_as_browsers_write_them() -> None:
    config = config_of('[server]\nallowed_origins = ["https://App.Example"]')

    assert config.server.allowed_origins == ("https://app.example",)


def test_scoped_address_is_a_host() -> None:
    config = config_of('[admin]\nhost = "fe80::1%eth0"')

    assert config.admin.host == "fe80::1%eth0"


def test_trusted_proxies_are_networks() -> None:
    config = config_of('[server]\ntrusted_proxies = ["10.1.2.3/8"]')

    assert config.server.trusted_proxies == (IPv4Network("10.0.0.0/8"),)


def test_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Config().server.port = 1


# --- secrets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("admin", "token"),
        ("redis", "password"),
        ("auth", "jwt_secret"),
        ("auth", "proxy_secret"),
    ],
)
def test_secret_comes_from_the_file_that_its_variable_names(section: str, key: str) -> None:
    config = config_of(None, **{f"RELAY_{section}__{key}_FILE".upper(): "/run/secret"})

    secret: SecretStr = getattr(getattr(config, section), key)
    assert secret.get_secret_value() == "from a file"
    assert "from a file" not in effective(config) + repr(config) + str(config)
    assert f"{key} = {MASK}" in effective(config)


def test_url_comes_from_a_file_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FILES, "/run/url", "redis://:pw@db:6380/2\r\n")

    config = config_of(None, RELAY_REDIS__URL_FILE="/run/url")

    assert config.redis.url.get_secret_value() == "redis://:pw@db:6380/2"
    assert config.redis.shown_url == "redis://:***@db:6380/2"


def test_secret_and_its_file_at_once_is_a_fault() -> None:
    faults = faults_of(None, RELAY_ADMIN__TOKEN="a", RELAY_ADMIN__TOKEN_FILE="/run/secret")

    (fault,) = faults
    assert fault == (
        "RELAY_ADMIN__TOKEN_FILE: stands beside RELAY_ADMIN__TOKEN;"
        " only one of the two should be set"
    )


def test_secret_file_beats_the_configuration_file() -> None:
    config = config_of('[admin]\ntoken = "old"', RELAY_ADMIN__TOKEN_FILE="/run/secret")

    assert config.admin.token.get_secret_value() == "from a file"


@pytest.mark.parametrize(
    "environ",
    [
        {"RELAY_ADMIN__TOKEN_FILE": "/nowhere"},
        {"RELAY_ADMIN__TOKEN_FILE": ""},
        {"RELAY_AUTH__JWT_PUBLIC_KEY_FILE": "/nowhere"},
        {"RELAY_REDIS__TLS_CA_FILE": "/nowhere"},
    ],
)
def test_missing_file_is_a_fault(environ: Mapping[str, str]) -> None:
    (fault,) = faults_of(None, **environ)

    (variable,) = environ
    assert fault.startswith(f"{variable}: cannot read ")
    assert "(No such file or directory)" in fault


def test_file_that_is_not_text_is_a_fault() -> None:
    def read_binary(path: str) -> str:
        return b"\xff".decode()

    with pytest.raises(ConfigError, match=r"RELAY_ADMIN__TOKEN_FILE: .*not UTF-8"):
        parse(None, {"RELAY_ADMIN__TOKEN_FILE": "/bin"}, read_file=read_binary)


def test_setting_that_is_no_secret_has_no_file_form() -> None:
    (fault,) = faults_of(None, RELAY_SERVER__PORT_FILE="/run/secret")

    assert fault == ("RELAY_SERVER__PORT_FILE: unknown setting; did you mean RELAY_SERVER__PORT?")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost", "redis://localhost"),
        ("redis://user@localhost/0", "redis://user@localhost/0"),
        ("rediss://user:s3cret@[::1]:6380/1", "rediss://user:***@[::1]:6380/1"),
        ("redis://h?db=1&password=s3cret", "redis://h?db=1&password=***"),
        ("redis://h?pass%77ord=s3cret", "redis://h?pass%77ord=***"),
        ("unix:///run/redis.sock?db=1", "unix:///run/redis.sock?db=1"),
        ("unix://u:s3cret@/run/redis.sock", "unix://u:***@/run/redis.sock"),
        ("redis+sentinel://:s3cret@a:1,b:2/main/0", "redis+sentinel://:***@a:1,b:2/main/0"),
    ],
)
def test_shown_url_has_no_password(url: str, shown: str) -> None:
    assert RedisConfig(url=SecretStr(url)).shown_url == shown


@pytest.mark.parametrize(
    "url",
    [
        "localhost:6379",
        "http://localhost",
        "redis://",
        "redis://user:s3/cret@host",
        "redis://user:s3?cret@host",
        "redis://user:12/34@host/0",
        "redis://user:s3#cret@host",
        "redis://user:s3@cret@host",
        "redis://s3cret:s3cret",
        "redis://host:99999",
        "unix://:s3/cret@/run/redis.sock",
        "unix://run/redis.sock",
    ],
)
def test_url_of_another_form_is_refused_unseen(url: str) -> None:
    (fault,) = faults_of(None, RELAY_REDIS__URL=url)

    assert fault.startswith("RELAY_REDIS__URL: should ")
    assert "s3" not in fault
    assert "cret" not in fault


def test_faulty_secret_is_not_shown() -> None:
    (fault,) = faults_of("[admin]\ntoken = 12345678")

    assert fault == "config.toml: admin.token: should be text in quotes"


def test_secret_in_the_place_of_a_section_is_not_shown() -> None:
    assert faults_of('redis = "redis://:s3cret@db"') == [
        "config.toml: redis: should be a table: [redis]"
    ]


# --- sources ---------------------------------------------------------------------------------------


def test_sources_in_the_file_stand_in_place_of_the_default_one() -> None:
    config = config_of('[source.other]\nchannel = "x:{jobId}"\n[source.tasks]\nkind = "celery"')

    assert config.source == {
        "other": ChannelSource(channel="x:{jobId}"),
        "tasks": CelerySource(key_prefix=""),
    }


def test_variables_change_the_default_source() -> None:
    config = config_of(None, RELAY_SOURCE__JOBS__CHANNEL="bull:{jobId}")

    assert config.source == {"jobs": ChannelSource(channel="bull:{jobId}")}


def test_variables_add_a_source_beside_the_others() -> None:
    config = config_of(
        None,
        RELAY_SOURCE__MY_TASKS__KIND="celery",
        RELAY_SOURCE__MY_TASKS__KEY_PREFIX="app_",
    )

    assert config.source == {
        "jobs": ChannelSource(),
        "my_tasks": CelerySource(key_prefix="app_"),
    }


def test_variable_changes_a_source_of_the_file() -> None:
    config = config_of('[source.a]\nchannel = "a:{jobId}"', RELAY_SOURCE__A__CHANNEL="b:{jobId}")

    assert config.source == {"a": ChannelSource(channel="b:{jobId}")}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[source.jobs]\nkind = 'kafka'", 'source.jobs.kind: is "kafka", should be one of'),
        ("[source.jobs]\nchannel = ''", 'source.jobs.channel: is "", should be one character'),
        ("[source.jobs]\nchannel = 'a\tb'", "source.jobs.channel: is "),
        ("[source.jobs]\nkind = 'celery'\nchannel = 'a'", "source.jobs.channel: unknown key;"),
        ("[source.'a b']\n", "source.a b: a source's name should"),
        ("[source.a__b]\n", "source.a__b: a source's name should"),
        ("[source]\njobs = 3", "source.jobs: should be a table: [source.jobs]"),
        ("source = 3", "source: should be a table for each source"),
        ("[source.a]\n[source.b]", "source.b.channel: is the same as that of source.a;"),
    ],
)
def test_faulty_source_is_refused(text: str, fault: str) -> None:
    (line,) = faults_of(text)

    assert line.startswith(f"config.toml: {fault}")


def test_unknown_key_of_a_source_in_a_variable_is_a_fault_with_a_suggestion() -> None:
    assert faults_of(None, RELAY_SOURCE__JOBS__CHANEL="x") == [
        "RELAY_SOURCE__JOBS__CHANEL: unknown setting; did you mean RELAY_SOURCE__JOBS__CHANNEL?"
    ]


# --- faults ----------------------------------------------------------------------------------------


def test_all_faults_are_told_at_once_each_with_its_place() -> None:
    text = """
        [server]
        port = 99999
        prot = 3
        host = "0.0.0.0"
        [limits]
        max_payload_bytes = 3000000
    """

    faults = faults_of(text, RELAY_ADMIN__PORT="abc", RELAY_LOGS__LEVEL="info")

    assert faults == [
        "RELAY_LOGS__LEVEL: unknown setting; did you mean RELAY_LOG__LEVEL?",
        "config.toml: server.port: is 99999, should be less than or equal to 65535",
        "config.toml: server.prot: unknown key; did you mean port?",
        'RELAY_ADMIN__PORT: is "abc", should be a whole number',
        (
            'config.toml: server.host: is "0.0.0.0", which others reach, while auth.mode is not set;'
            ' should be a loopback address, or auth.mode set ("none" means open to all)'
        ),
        (
            "config.toml: backpressure.max_outbox_bytes: is 4194304, should be at least 6000000,"
            " twice limits.max_payload_bytes"
        ),
    ]


def test_faults_bear_the_name_of_the_file() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("[server]\nport = -1", {}, file_name="/etc/relay.toml", read_file=read_file)

    assert caught.value.faults == [
        "/etc/relay.toml: server.port: is -1, should be greater than or equal to 0"
    ]


def test_syntax_error_names_its_line_and_the_environment_is_judged_all_the_same() -> None:
    faults = faults_of('[server]\nhost = "a\nport = 1', RELAY_ADMIN__PORT="abc")

    assert faults[0].startswith("config.toml: line 2, column 10: is not TOML (")
    assert faults[1:] == ['RELAY_ADMIN__PORT: is "abc", should be a whole number']


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("port = 1", "port: unknown key outside a section;"),
        ("[servr]", "servr: unknown section; did you mean server?"),
        ("server = 3", "server: should be a table: [server]"),
        ("[server]\nmax_jobs = 3", "server.max_jobs: unknown key; did you mean history.max_jobs?"),
        ("[log]\nxyz = 3", "log.xyz: unknown key; known are level, format"),
        ("[server]\nport = '3001'", 'server.port: is "3001", should be a whole number'),
        ("[server]\nport = true", "server.port: is true, should be a whole number"),
        ("[server]\nport = 1.5", "server.port: is 1.5, should be a whole number"),
        ("[server]\nreuse_port = 'yes'", 'server.reuse_port: is "yes", should be true or false'),
        ("[server]\nhost = 'a:1'", 'server.host: is "a:1", should be a host name'),
        ("[server]\nhost = '[::1]'", 'server.host: is "[::1]", should be a host name'),
        ("[server]\nhost = ''", 'server.host: is "", should be a host name'),
        ("[server]\nhost = 5", "server.host: is 5, should be text in quotes"),
        ("[server]\npath = 'ws'", 'server.path: is "ws", should be an absolute path'),
        ("[server]\npath = '/jobs/x'", 'server.path: is "/jobs/x", should not lie under'),
        ("[server]\nallowed_origins = 'x'", 'server.allowed_origins: is "x", should be a list'),
        ("[server]\nallowed_origins = ['http://a/']", 'server.allowed_origins: is "http://a/",'),
        ("[server]\nallowed_hosts = ['a:1']", 'server.allowed_hosts: is "a:1", should be a host'),
        ("[server]\ntrusted_proxies = ['x']", 'server.trusted_proxies: is "x", should be a netw'),
        ("[server]\ntrusted_proxies = [1]", "server.trusted_proxies: is 1, should be a network"),
        ("[server]\ndrain_seconds = nan", "server.drain_seconds: is nan, should be a finite"),
        ("[redis]\nhealth_check_seconds = 0", "redis.health_check_seconds: is 0, should be great"),
        ("[history]\nmax_events = 0", "history.max_events: is 0, should be greater than or equal"),
        ("[history]\nbackend = 'disk'", "history.backend: is \"disk\", should be 'memory',"),
        ("[limits]\nmax_message_bytes = 10", "limits.max_message_bytes: is 10, should be great"),
        ("[auth]\nalgorithms = ['none']", "auth.algorithms: is \"none\", should be 'HS256',"),
        ("[auth]\njwks_url = 'ftp://x'", 'auth.jwks_url: is "ftp://x", should be an http:// or'),
        ("[auth]\njwks_url = 'https://u:p@x'", 'auth.jwks_url: is "https://u:p@x", should'),
        ("[auth]\ncookie = 'a b'", 'auth.cookie: is "a b", should be a cookie name'),
        ("[log]\nlevel = 'loud'", "log.level: is \"loud\", should be 'debug', 'info', 'warning'"),
    ],
)
def test_wrong_value_is_told_with_what_would_be_right(text: str, fault: str) -> None:
    (line,) = faults_of(text)

    assert line.startswith(f"config.toml: {fault}")


@pytest.mark.parametrize(
    "variable", ["RELAY_SERVR__PORT", "RELAY__SERVER__PORT", "RELAY_server__port"]
)
def test_unknown_setting_in_the_environment_is_a_fault_with_a_suggestion(variable: str) -> None:
    (fault,) = faults_of(None, **{variable: "1"})

    assert fault.startswith(f"{variable}: unknown setting;")


def test_key_with_a_fault_is_not_held_against_others_as_well() -> None:
    (fault,) = faults_of('[server]\nhost = "0.0.0.0"\n[auth]\nmode = "basic"')

    assert fault.startswith('config.toml: auth.mode: is "basic", should be')


def test_fault_is_one_line_whatever_the_key() -> None:
    (fault,) = faults_of('"a\\nb" = 3')

    assert len(fault.splitlines()) == 1


@pytest.mark.parametrize("variable", ["RELAY_AUTH__AUDIENCE", "RELAY_REDIS__PASSWORD"])
def test_variable_that_is_not_utf_8_is_refused(variable: str) -> None:
    assert faults_of(None, **{variable: "\udcff"}) == [f"{variable}: is not UTF-8, should be"]


def test_long_value_is_shortened() -> None:
    (fault,) = faults_of(f'[log]\nlevel = "{"x" * 10_000}"')

    assert len(fault) < 200


# --- what does not go together ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.example.org", False),
    ],
)
def test_loopback_is_what_only_this_machine_reaches(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
    assert ServerConfig(host=host).is_loopback is expected


def test_open_listener_without_a_word_on_authentication_is_refused() -> None:
    (fault,) = faults_of(None, RELAY_SERVER__HOST="0.0.0.0")

    assert fault.startswith('RELAY_SERVER__HOST: is "0.0.0.0", which others reach')


def test_open_listener_is_accepted_where_mode_none_is_written_in_the_file() -> None:
    config = config_of('[server]\nhost = "0.0.0.0"\n[auth]\nmode = "none"')

    assert config.server.host == "0.0.0.0"


def test_open_listener_is_accepted_where_mode_none_is_in_the_environment() -> None:
    config = config_of(None, RELAY_SERVER__HOST="0.0.0.0", RELAY_AUTH__MODE="none")

    assert config.server.host == "0.0.0.0"


def test_unix_socket_is_as_good_as_loopback() -> None:
    config = config_of(None, RELAY_SERVER__HOST="0.0.0.0", RELAY_SERVER__UNIX_SOCKET="/run/r.sock")

    assert config.server.is_loopback


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            "[server]\nallowed_origins = ['*']\n[auth]\ncookie = 'c'",
            'server.allowed_origins: holds "*" while auth.cookie is set',
        ),
        (
            "[redis]\nurl = 'redis://:a@h'\npassword = 'b'",
            "redis.password: stands beside a password in redis.url;",
        ),
        (
            "[redis]\nurl = 'redis://a@h'\nusername = 'b'",
            "redis.username: stands beside a username in redis.url;",
        ),
        ("[admin]\nport = 3001", "admin.port: is 3001, the public listener's;"),
    ],
)
def test_contradiction_is_refused(text: str, fault: str) -> None:
    assert faults_of(text)[0].startswith(f"config.toml: {fault}")


@pytest.mark.parametrize(
    "text",
    [
        "[server]\nallowed_origins = ['*']",
        "[redis]\nurl = 'redis://a@h'\npassword = 'b'",
        "[server]\nport = 0\n[admin]\nport = 0",
        "[limits]\nmax_payload_bytes = 2097152",
    ],
)
def test_what_goes_together_is_accepted(text: str) -> None:
    assert config_of(text) != Config()


# --- authentication --------------------------------------------------------------------------------

LONG = "s" * 32


@pytest.mark.parametrize(
    ("mode", "text"),
    [
        ("jwt", f"jwt_secret = '{LONG}'"),
        ("jwt", f"jwt_secret = '{LONG}'\nalgorithms = ['HS256', 'RS256']"),
        ("jwt", "jwt_public_key_file = '/run/key.pem'"),
        ("jwt", "jwks_url = 'https://id.example/keys?a=b'"),
        ("jwt", "jwks_url = 'https://id.example/keys'\nalgorithms = ['HS256', 'ES256']"),
        ("proxy", "proxy_secret = 'between us'"),
        ("proxy", "[server]\nunix_socket = '/run/relay.sock'\ntrusted_proxies = []"),
        # What is not in use need not be good yet.
        ("none", "jwt_secret = 'short'"),
    ],
)
def test_settings_of_each_mode_are_accepted(mode: str, text: str) -> None:
    assert config_of(f"[auth]\nmode = '{mode}'\n{text}").auth.mode == mode


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("mode = 'jwt'", 'auth.mode: is "jwt" without a key;'),
        ("mode = 'proxy'", 'auth.mode: is "proxy" without auth.proxy_secret;'),
        (
            "mode = 'proxy'\nproxy_secret = 'x'\n[server]\ntrusted_proxies = []",
            'auth.mode: is "proxy" while server.trusted_proxies is empty;',
        ),
        (
            f"mode = 'jwt'\njwt_secret = '{LONG}'\njwks_url = 'https://id.example/keys'",
            "auth.jwks_url: stands beside auth.jwt_secret; should be the only key",
        ),
        (
            "mode = 'jwt'\njwt_secret = 'short'",
            "auth.jwt_secret: has 5 bytes, should have 32 or more of random text, such as: openssl",
        ),
        (
            "mode = 'jwt'\njwt_secret = '-----BEGIN PUBLIC KEY-----MFkwEwYHKoZIzj0CAQYIKoZIzj0D'",
            "auth.jwt_secret: holds a key file's content, should be random text",
        ),
        (
            f"mode = 'jwt'\njwt_secret = '{LONG}'\nalgorithms = ['HS512', 'RS256']",
            'auth.algorithms: is ["HS512", "RS256"], should have one that fits jwt_secret: HS256',
        ),
        (
            "mode = 'jwt'\njwks_url = 'https://id.example/keys'\nalgorithms = ['HS256']",
            'auth.algorithms: is ["HS256"], which only fits a secret;',
        ),
        (
            "mode = 'jwt'\njwt_public_key_file = '/run/key.pem'\nalgorithms = ['HS256']",
            'auth.algorithms: is ["HS256"], which only fits a secret;',
        ),
        ("proxy_secret = 'x '", "auth.proxy_secret: should be printable ASCII without spaces"),
        ("proxy_secret = 'é'", "auth.proxy_secret: should be printable ASCII without spaces"),
        ("jwks_url = 'https://'", 'auth.jwks_url: is "https://", should be an http:// or'),
        ("jwks_url = 'https:///keys'", 'auth.jwks_url: is "https:///keys", should be an http://'),
    ],
)
def test_authentication_that_cannot_work_is_refused(text: str, fault: str) -> None:
    (line,) = faults_of(f"[auth]\n{text}")

    assert line.startswith(f"config.toml: {fault}")


def test_weak_secret_is_refused_unseen_by_the_name_of_its_variable() -> None:
    (fault,) = faults_of(None, RELAY_AUTH__MODE="jwt", RELAY_AUTH__JWT_SECRET="hunter2")

    assert fault.startswith("RELAY_AUTH__JWT_SECRET: has 7 bytes")
    assert "hunter2" not in fault


# --- the effective settings ------------------------------------------------------------------------


def test_effective_settings_read_back_are_the_same() -> None:
    config = config_of(
        None,
        RELAY_SERVER__ALLOWED_ORIGINS="https://a.example,https://b.example",
        RELAY_HEARTBEAT__INTERVAL_SECONDS="0.25",
        RELAY_REDIS__URL="unix:///run/odd\x7fname",
        RELAY_SOURCE__TASKS__KIND="celery",
        RELAY_SOURCE__TASKS__KEY_PREFIX='a "quoted" \\ prefix é 🚀',
    )

    assert config_of(effective(config)) == config
