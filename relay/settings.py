"""Every setting: its default, its bounds, and what a value may be.

Sections are frozen; a name here is the name in `config.toml`, which explains them, and a test keeps the
two equal. What no single value can tell (contradictions between settings) is judged in `config.py`, and what only
the named file or server can, by the part that is given the section; all of them raise `ConfigError`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping  # noqa: TC003 - pydantic looks it up
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias, TypeVar
from urllib.parse import unquote

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, SecretStr

if TYPE_CHECKING:
    from collections.abc import Sequence


class ConfigError(Exception):
    """The operator's mistakes, all of them: `faults` has one line for each.

    A line says where (file and key, or environment variable), what is wrong, and what would be right.
    """

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = list(faults)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a listener on `host`: `localhost`, 127.0.0.0/8 or ::1."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# RFC 7518 §3.2: a key as long as the hash, or the tokens it signs can be forged by trying secrets at home.
_HMAC_SECRET_BYTES = {"HS256": 32, "HS384": 48, "HS512": 64}


def hmac_algorithms(secret: str) -> tuple[str, ...]:
    """The HS… algorithms that a secret is good for.

    Raises:
        ValueError: it is too short for any, or a key of another kind. Never shows it.
    """
    # Of a public key everybody knows the bytes: as an HMAC secret it lets everybody sign.
    if re.search("----[- ]BEGIN ", secret) or secret.startswith(("ssh-", "ecdsa-", "{", "[")):
        raise ValueError(
            "holds a key file's content, should be random text that only the issuer knows too; a public"
            " key stands in a file, named by auth.jwt_public_key_file"
        )
    length = len(secret.encode())
    fitting = tuple(name for name, least in _HMAC_SECRET_BYTES.items() if length >= least)
    if not fitting:
        raise ValueError(
            f"has {length} bytes, should have {min(_HMAC_SECRET_BYTES.values())} or more of random text,"
            " such as: openssl rand -base64 48"
        )
    return fitting


# --- what a value may be ---------------------------------------------------------------------------


def _matching(pattern: str, should_be: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"should be {should_be}")
        return value

    return AfterValidator(check)


def _network(value: object) -> IPv4Network | IPv6Network:
    try:
        return ip_network(str(value), strict=False)
    except ValueError:
        raise ValueError("should be a network in CIDR form, such as 10.0.0.0/8") from None


def _host(value: str) -> str:
    try:
        ip_address(value)
    except ValueError:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", value):
            words = "should be a host name or an IP address, without port or brackets"
            raise ValueError(words) from None
    return value.lower()


def _path_that_is_free(path: str) -> str:
    if path.split("/")[1] in {"jobs", "events", "client", "socket.io", "livez", "readyz"}:
        raise ValueError("should not lie under a path that the relay itself serves")
    return path


def _redis_url(url: SecretStr) -> SecretStr:
    text = url.get_secret_value()
    scheme, _, rest = text.partition("://")
    if scheme not in _REDIS_URL_FORMS:
        raise ValueError(
            f"should begin with one of {', '.join(f'{s}://' for s in _REDIS_URL_FORMS)}"
        )
    # Also what makes masking safe: where the form fits, a password can only stand before the "@".
    fits = re.fullmatch(_REDIS_URL_FORMS[scheme], rest)
    ports = re.findall(r":(\d+)", fits["hosts"]) if fits and scheme != "unix" else ()
    if not fits or any(int(port) > 65_535 for port in ports):
        raise ValueError(
            "should have the form redis://[user:password@]host[:port][/database],"
            " unix://[user:password@]/path, redis+sentinel://host:port,host:port/SERVICE[/database]"
            "[?sentinel_username=…&sentinel_password=…] or redis+cluster://host:port,host:port,"
            " with / ? # @ in a password percent-encoded"
        )
    return url


def _printable(secret: SecretStr) -> SecretStr:
    if not re.fullmatch(r"([!-~]([ -~]*[!-~])?)?", secret.get_secret_value()):
        raise ValueError(
            "should be printable ASCII without spaces around it, as it stands in a header"
        )
    return secret


_USER = r"(?:[^@/?#\s]*@)?"
_HOST = r"(?:\[[0-9A-Fa-f:.]+\]|[^@/?#\s:,\[\]]+)(?::\d{1,5})?"
_HOSTS = f"(?P<hosts>{_HOST}(?:,{_HOST})*)"
_QUERY = r"(?:\?[^#\s]*)?"
_SENTINEL_KEY = r"sentinel_(?:username|password)=[^&#\s]*"
_REDIS_URL_FORMS = {
    "redis": f"{_USER}(?P<hosts>{_HOST})(?:/\\d*)?{_QUERY}",
    "rediss": f"{_USER}(?P<hosts>{_HOST})(?:/\\d*)?{_QUERY}",
    "unix": f"{_USER}/[^@?#]+{_QUERY}",
    "redis+sentinel": (
        f"{_USER}{_HOSTS}/[^@/?#\\s]+(?:/\\d*)?(?:\\?{_SENTINEL_KEY}(?:&{_SENTINEL_KEY})?)?"
    ),
    "redis+cluster": f"{_USER}{_HOSTS}/?",
}

Seconds: TypeAlias = Annotated[float, Field(gt=0, le=86_400)]
Count: TypeAlias = Annotated[int, Field(ge=1, le=10_000_000)]
Port: TypeAlias = Annotated[int, Field(ge=0, le=65_535)]
Text: TypeAlias = Annotated[str, _matching(r"[^\x00-\x1f\x7f]*", "free of control characters")]
Name: TypeAlias = Annotated[
    str, _matching(r"[^\x00-\x1f\x7f]+", "one character or more, none of them a control character")
]
Host: TypeAlias = Annotated[str, AfterValidator(_host)]
Origin: TypeAlias = Annotated[
    str,
    _matching(
        r"\*|[A-Za-z][A-Za-z0-9+.-]*://[^/\s?#@]+",
        "* or scheme and host, such as https://app.example.org, without path or slash at the end",
    ),
    AfterValidator(str.lower),
]
HeaderName: TypeAlias = Annotated[
    str, _matching(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", "an HTTP header name")
]
CookieName: TypeAlias = Annotated[
    str, _matching(r"[A-Za-z0-9!#$%&'*+.^_`|~-]*", "a cookie name, or empty for none")
]
Algorithm: TypeAlias = Literal[
    "HS256", "HS384", "HS512", "RS256", "RS384", "RS512",
    "ES256", "ES384", "ES512", "PS256", "PS384", "PS512", "EdDSA",
]  # fmt: skip
# What can be sent as a header's value and arrives as it was.
HeaderSecret: TypeAlias = Annotated[SecretStr, AfterValidator(_printable)]
Network: TypeAlias = Annotated[IPv4Network | IPv6Network, PlainValidator(_network)]

_T = TypeVar("_T")
# TOML and JSON have lists; a frozen section holds tuples.
ListOf: TypeAlias = Annotated[tuple[_T, ...], Field(strict=False)]


# --- the sections ----------------------------------------------------------------------------------


class Section(BaseModel):
    """A frozen table of settings. Strict: a number in quotes is a fault, not a number."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        validate_default=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
    )


class ServerConfig(Section):
    """The public listener: a unix socket where one is named, else host and port."""

    host: Host = "localhost"
    port: Port = 3001
    path: Annotated[
        str,
        _matching(r"/[A-Za-z0-9._~/-]*", "an absolute path, such as /job-progress"),
        AfterValidator(_path_that_is_free),
    ] = "/job-progress"
    unix_socket: Annotated[Text, Field(max_length=107)] = ""
    reuse_port: bool = False
    allowed_origins: ListOf[Origin] = ()
    allowed_hosts: ListOf[Host] = ()
    trusted_proxies: ListOf[Network] = (IPv4Network("127.0.0.1/32"), IPv6Network("::1/128"))
    drain_seconds: Annotated[float, Field(ge=0, le=3600)] = 10

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches the public listener."""
        return bool(self.unix_socket) or is_loopback(self.host)


class AdminConfig(Section):
    """The listener for probes, metrics and operators."""

    host: Host = "127.0.0.1"
    port: Port = 9301
    public_health: bool = False
    token: SecretStr = SecretStr("")
    allowed_hosts: ListOf[Host] = ()


class RedisConfig(Section):
    """Where Redis is, and how soon its loss is noticed."""

    url: Annotated[SecretStr, AfterValidator(_redis_url)] = SecretStr("redis://127.0.0.1:6379/0")
    username: Text = ""
    password: SecretStr = SecretStr("")
    tls_ca_file: Text = ""
    connect_timeout_seconds: Seconds = 5
    health_check_seconds: Seconds = 5
    backoff_max_seconds: Seconds = 10

    @property
    def shown_url(self) -> str:
        """The URL for logs and people: without its passwords."""
        scheme, _, rest = self.url.get_secret_value().partition("://")
        address, question, query = rest.partition("?")
        user, at, hosts = address.rpartition("@")
        name, colon, _ = user.partition(":")
        pairs = [pair.partition("=") for pair in query.split("&")]
        shown = (k + is_ + ("***" if "password" in unquote(k) else v) for k, is_, v in pairs)
        return f"{scheme}://{name}{colon and ':***'}{at}{hosts}{question}{'&'.join(shown)}"


class ChannelSource(Section):
    """Messages of the relay's own payload forms, on channels that fit one template."""

    kind: Literal["channel"] = "channel"
    channel: Name = "jobs:{queueName}:{jobId}"


class CelerySource(Section):
    """What Celery's Redis result backend publishes by itself."""

    kind: Literal["celery"] = "celery"
    key_prefix: Text = ""


class HistoryConfig(Section):
    """What is kept of each job, for those who come late."""

    backend: Literal["memory", "redis", "off"] = "memory"
    max_events: Count = 100
    max_jobs: Count = 100_000
    max_bytes: Annotated[int, Field(ge=1, le=2**40)] = 67_108_864
    ttl_seconds: Annotated[int, Field(ge=1, le=31_536_000)] = 3600
    prefix: Name = "relay:history:"


class HeartbeatConfig(Section):
    """How a dead connection is noticed."""

    interval_seconds: Seconds = 25
    timeout_seconds: Seconds = 10


class BackpressureConfig(Section):
    """How much may wait for a client that does not keep up."""

    high_water_bytes: Annotated[int, Field(ge=1, le=2**30)] = 65_536
    unsent_bytes: Annotated[int, Field(ge=0, le=2**30)] = 65_536
    max_outbox_bytes: Annotated[int, Field(ge=2, le=2**31)] = 4_194_304


class LimitsConfig(Section):
    """What one client, and all of them, may take."""

    max_connections: Count = 20_000
    max_connections_per_address: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    max_subscriptions: Count = 1000
    max_message_bytes: Annotated[int, Field(ge=64, le=2**26)] = 65_536
    max_payload_bytes: Annotated[int, Field(ge=1, le=2**26)] = 1_048_576
    messages_per_second: Annotated[float, Field(gt=0, le=1_000_000)] = 20
    messages_burst: Annotated[int, Field(ge=1, le=1_000_000)] = 50
    max_errors: Annotated[int, Field(ge=1, le=1_000_000)] = 10
    handshake_timeout_seconds: Seconds = 10


class AuthConfig(Section):
    """Who may connect, and which claims say what they may watch."""

    mode: Literal["none", "jwt", "proxy"] = "none"
    jwt_secret: SecretStr = SecretStr("")
    jwt_public_key_file: Text = ""
    jwks_url: Annotated[
        str, _matching(r"(https?://[^\s@/?#]+[^\s@#]*)?", "an http:// or https:// URL without user")
    ] = ""
    algorithms: ListOf[Algorithm] = ()
    audience: Text = ""
    issuer: Text = ""
    leeway_seconds: Annotated[float, Field(ge=0, le=3600)] = 30
    cookie: CookieName = ""
    allow_query_token: bool = False
    jobs_claim: Name = "jobs"
    queues_claim: Name = "queues"
    proxy_header: HeaderName = "X-Relay-Claims"
    proxy_secret: HeaderSecret = SecretStr("")


class LogConfig(Section):
    """What is logged, and in which form."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console", "auto"] = "auto"


class Config(Section):
    """Every setting of one relay. `Config()` has the defaults."""

    server: ServerConfig = ServerConfig()
    admin: AdminConfig = AdminConfig()
    redis: RedisConfig = RedisConfig()
    source: Mapping[str, ChannelSource | CelerySource] = {"jobs": ChannelSource()}
    history: HistoryConfig = HistoryConfig()
    heartbeat: HeartbeatConfig = HeartbeatConfig()
    backpressure: BackpressureConfig = BackpressureConfig()
    limits: LimitsConfig = LimitsConfig()
    auth: AuthConfig = AuthConfig()
    log: LogConfig = LogConfig()
