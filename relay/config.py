"""TOML text and environment become one frozen `Config`, or a list of every fault in them.

Invariants: environment beats file; a `Config` that `parse` returned holds no contradiction; a secret is
never part of a fault, a repr or `effective`.
Reads no file: the caller gives the text, and `read_file` for the files that settings name.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from typing import TYPE_CHECKING, get_origin

from pydantic import SecretStr, ValidationError

from relay.settings import (
    CelerySource,
    ChannelSource,
    Config,
    ConfigError,
    RedisConfig,
    Section,
    hmac_algorithms,
    is_loopback,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pydantic_core import ErrorDetails

__all__ = ["ConfigError", "effective", "parse"]


def _variable(key: str) -> str:
    return f"RELAY_{key.upper().replace('.', '__')}"


_SECTIONS: dict[str, type[Section]] = {
    name: type(part) for name, part in Config() if name != "source"
}
_KEYS = [f"{name}.{key}" for name, model in _SECTIONS.items() for key in model.model_fields]
_VARIABLES = {_variable(key): key for key in _KEYS}
_SECRETS = {"admin.token", "redis.url", "redis.password", "auth.jwt_secret", "auth.proxy_secret"}
_FILES = ("redis.tls_ca_file", "auth.jwt_public_key_file")

_SOURCES: dict[str, type[Section]] = {"channel": ChannelSource, "celery": CelerySource}
_SOURCE_KEYS = {key: None for model in _SOURCES.values() for key in model.model_fields}
# So narrow that a variable can name every source.
_SOURCE_NAME = re.compile("[a-z][a-z0-9]*(?:_[a-z0-9]+)*")
_SOURCE_VARIABLE = re.compile(
    f"RELAY_SOURCE__([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)*)__({'|'.join(_SOURCE_KEYS).upper()})"
)

_WORDS = {
    "int_type": "should be a whole number",
    "float_type": "should be a number",
    "bool_type": "should be true or false",
    "string_type": "should be text in quotes",
    "tuple_type": 'should be a list, such as ["a", "b"]',
}


def parse(
    text: str | None,
    environ: Mapping[str, str],
    *,
    file_name: str = "config.toml",
    read_file: Callable[[str], str],
) -> Config:
    """Make the configuration from a file's text and the environment.

    Args:
        text: the file's TOML; None where there is no file.
        environ: of its names only `RELAY_<SECTION>__<KEY>` are looked at.
        file_name: what faults call the file.
        read_file: gives the text of a file that a setting names, or raises OSError.

    Raises:
        ConfigError: with every fault of file and environment at once.
    """
    reading = _Reading(file_name, read_file)
    if text is not None:
        reading.add_file(text)
    reading.add_environment(environ)
    return reading.finish()


def effective(config: Config) -> str:
    """All settings as TOML that `parse` reads to the same end, but for secrets: those are masked."""
    tables: dict[str, Section] = {}
    for name in Config.model_fields:
        part = getattr(config, name)
        tables |= {f"source.{n}": s for n, s in part.items()} if name == "source" else {name: part}
    lines = []
    for name, section in tables.items():
        lines.append(f"[{name}]")
        for key, value in section:
            is_url = isinstance(section, RedisConfig) and key == "url"
            lines.append(f"{key} = {_shown(config.redis.shown_url if is_url else value)}")
        lines.append("")
    return "\n".join(lines)


def _shown(value: object) -> str:
    """A value as TOML; what has no form of its own there, as text."""
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value).removesuffix(".0")
        case SecretStr():
            return '"***"' if value.get_secret_value() else '""'
        case list() | tuple():
            return f"[{', '.join(_shown(item) for item in value)}]"
        case _:
            return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _from_variable(text: str, model: type[Section], key: str) -> object:
    """What TOML would have given; text that does not fit stays text, and is refused as that."""
    kind = model.model_fields[key].annotation
    try:
        if get_origin(kind) is tuple:
            if text.lstrip().startswith("["):
                return json.loads(text)
            return [item.strip() for item in text.split(",") if item.strip()]
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
        if kind is int or kind is float:
            return kind(text)
    except ValueError:
        pass
    return text


class _Reading:
    """Gathers tables and faults from file and environment, then judges the whole.

    A table is known by its section's name, a source's by `source.NAME`; a key by `SECTION.KEY`.
    """

    __slots__ = ("_faults", "_faulty", "_file_name", "_read_file", "_set_by", "_tables", "_whole")

    def __init__(self, file_name: str, read_file: Callable[[str], str]) -> None:
        self._file_name = file_name
        self._read_file = read_file
        self._tables: dict[str, dict[str, object]] = {}
        self._set_by: dict[str, str] = {}  # key -> the environment variable that gave it
        self._faults: list[str] = []
        # Keys with a fault of their own: rules that involve them would only repeat it.
        self._faulty: set[str] = set()
        self._whole = True  # the file could be read, so what is absent really is

    def add_file(self, text: str) -> None:
        try:
            document = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            self._whole = False
            what, _, place = str(error).removesuffix(")").partition(" (at ")
            self._faults.append(
                f"{self._file_name}: {place or 'as a whole'}: is not TOML ({what}); should be lines"
                " of key = value under a [section], text in quotes, each key once"
            )
            return
        sources = document.pop("source", {})
        if isinstance(sources, dict):
            for name, table in sources.items():
                if not _SOURCE_NAME.fullmatch(name):
                    what = "a source's name should be lower-case letters and digits, joined by _"
                    self._fault(f"source.{name}", what)
                self._add_table(f"source.{name}", table)
        else:
            self._fault("source", "should be a table for each source, such as [source.jobs]")
        for name, table in document.items():
            if name in _SECTIONS:
                self._add_table(name, table)
            else:
                what = "section" if isinstance(table, dict) else "key outside a section"
                self._fault(name, f"unknown {what}; {_suggestion(name, [*_SECTIONS, 'source'])}")

    def add_environment(self, environ: Mapping[str, str]) -> None:
        # Sources that only variables name are there beside the default one, not in its place.
        if not any(name.startswith("source.") for name in self._tables):
            self._tables["source.jobs"] = {}
        for variable, text in sorted(environ.items()):
            if not variable.startswith("RELAY_") or "__" not in variable:
                continue
            secret_variable = variable.removesuffix("_FILE")
            if re.search("[\ud800-\udfff]", text):  # how Python hands over bytes that are no UTF-8
                self._faults.append(f"{variable}: is not UTF-8, should be")
            elif variable in _VARIABLES:
                section, _, key = _VARIABLES[variable].partition(".")
                value = _from_variable(text, _SECTIONS[section], key)
                self._set(section, key, value, variable)
            elif match := _SOURCE_VARIABLE.fullmatch(variable):
                self._set(f"source.{match[1].lower()}", match[2].lower(), text, variable)
            elif _VARIABLES.get(secret_variable) in _SECRETS:
                section, _, key = _VARIABLES[secret_variable].partition(".")
                if secret_variable in environ:
                    what = f"stands beside {secret_variable}; only one of the two should be set"
                    self._faults.append(f"{variable}: {what}")
                elif (content := self._content(variable, text)) is not None:
                    self._set(section, key, content.rstrip("\r\n"), variable)
                else:
                    self._faulty.add(f"{section}.{key}")
            else:
                names = [name for name in self._tables if name.startswith("source.")]
                known = [_variable(f"{name}.{key}") for name in names for key in _SOURCE_KEYS]
                near = difflib.get_close_matches(variable, [*_VARIABLES, *known], n=1)
                hint = f"did you mean {near[0]}?" if near else "config.toml lists the settings"
                self._faults.append(f"{variable}: unknown setting; {hint}")

    def finish(self) -> Config:
        """Raises ConfigError where anything was, or now is, at fault."""
        parts: dict[str, object] = {
            name: self._section(name, model) for name, model in _SECTIONS.items()
        }
        if self._whole:
            parts["source"] = {
                name.removeprefix("source."): source
                for name in self._tables
                if name.startswith("source.") and (source := self._source(name)) is not None
            }
        config = Config.model_validate(parts)
        for key in _FILES:
            section, _, name = key.partition(".")
            path = getattr(getattr(config, section), name)
            if path:
                self._content(self._where(key), path)
        if self._whole:
            for keys, what in (*_contradictions(config), *_auth_contradictions(config)):
                if self._faulty.isdisjoint(keys):
                    self._fault(keys[0], what)
        if self._faults:
            # A quoted key may hold a line's end; a fault is one line.
            raise ConfigError([" ".join(fault.split()) for fault in self._faults])
        return config

    def _where(self, key: str) -> str:
        return self._set_by.get(key, f"{self._file_name}: {key}")

    def _fault(self, key: str, what: str) -> None:
        self._faulty.add(key)
        self._faults.append(f"{self._where(key)}: {what}")

    def _add_table(self, name: str, table: object) -> None:
        if isinstance(table, dict):
            self._tables[name] = table
        else:
            self._tables[name] = {}
            # Unseen: what stands here may be the URL or the token itself.
            self._fault(name, f"should be a table: [{name}]")

    def _set(self, section: str, key: str, value: object, variable: str) -> None:
        self._tables.setdefault(section, {})[key] = value
        self._set_by[f"{section}.{key}"] = variable

    def _content(self, where: str, path: str) -> str | None:
        try:
            return self._read_file(path)
        except OSError as error:
            reason = error.strerror or "unknown reason"
        except ValueError:
            reason = "not UTF-8 text"
        self._faults.append(
            f"{where}: cannot read {_shown(path)} ({reason}); should name a readable file"
        )
        return None

    def _source(self, name: str) -> Section | None:
        kind = self._tables[name].get("kind", "channel")
        if isinstance(kind, str) and kind in _SOURCES:
            return self._section(name, _SOURCES[kind])
        self._fault(f"{name}.kind", f"is {_shown(kind)}, should be one of {', '.join(_SOURCES)}")
        return None

    def _section(self, name: str, model: type[Section]) -> Section:
        """The section as given; with its faults noted and defaults in their place, if it has any."""
        table = self._tables.get(name, {})
        try:
            return model.model_validate(table)
        except ValidationError as error:
            details = error.errors(include_url=False)
        for detail in details:
            self._note(name, model, detail)
        return model.model_validate(
            {key: value for key, value in table.items() if f"{name}.{key}" not in self._faulty}
        )

    def _note(self, section: str, model: type[Section], detail: ErrorDetails) -> None:
        key = f"{section}.{detail['loc'][0]}"
        if detail["type"] == "extra_forbidden":
            self._fault(key, f"unknown key; {_key_suggestion(section, model, key)}")
            return
        words = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
        should_be = _WORDS.get(detail["type"], words)
        if key in _SECRETS:
            self._fault(key, should_be)
        else:
            self._fault(key, f"is {_shortened(_shown(detail['input']))}, {should_be}")


def _suggestion(word: str, choices: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, choices, n=1)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(choices)}"


def _key_suggestion(section: str, model: type[Section], key: str) -> str:
    """Where an unknown key may belong: a near one here, the same one elsewhere."""
    name = key.rpartition(".")[2]
    if not difflib.get_close_matches(name, model.model_fields, n=1):
        for other in _KEYS:
            if other.endswith(f".{name}"):
                return f"did you mean {other}?"
    return _suggestion(name, list(model.model_fields))


# --- what does not go together ---------------------------------------------------------------------


def _contradictions(config: Config) -> Iterator[tuple[tuple[str, ...], str]]:
    """The keys involved, the one to report first; what is wrong and what would be right."""
    server, redis, auth, limits = config.server, config.redis, config.auth, config.limits
    # That mode stands written somewhere is how an operator says "open to all, and I mean it".
    if auth.mode == "none" and not server.is_loopback and "mode" not in auth.model_fields_set:
        yield (
            ("server.host", "server.unix_socket", "auth.mode"),
            (
                f"is {_shown(server.host)}, which others reach, while auth.mode is not set;"
                ' should be a loopback address, or auth.mode set ("none" means open to all)'
            ),
        )
    if auth.cookie and "*" in server.allowed_origins:
        yield (
            ("server.allowed_origins", "auth.cookie"),
            (
                'holds "*" while auth.cookie is set, so any page could use a visitor\'s cookie;'
                " should list the origins"
            ),
        )
    if config.backpressure.max_outbox_bytes < 2 * limits.max_payload_bytes:
        yield (
            ("backpressure.max_outbox_bytes", "limits.max_payload_bytes"),
            (
                f"is {config.backpressure.max_outbox_bytes}, should be at least"
                f" {2 * limits.max_payload_bytes}, twice limits.max_payload_bytes"
            ),
        )
    admin = config.admin
    is_same_host = server.host == admin.host or (server.is_loopback and is_loopback(admin.host))
    if admin.port and admin.port == server.port and is_same_host and not server.unix_socket:
        yield (
            ("admin.port", "admin.host", "server.port", "server.host", "server.unix_socket"),
            f"is {server.port}, the public listener's; should be another",
        )
    user = redis.url.get_secret_value().rpartition("@")[0].partition("://")[2]
    for key, in_url, in_setting in (
        ("username", user.partition(":")[0], redis.username),
        ("password", user.partition(":")[2], redis.password.get_secret_value()),
    ):
        if in_url and in_setting:
            yield (
                (f"redis.{key}", "redis.url"),
                f"stands beside a {key} in redis.url; should stand in one of the two",
            )
    names: dict[str, str] = {}
    for name, source in config.source.items():
        listens_to = (
            source.channel
            if isinstance(source, ChannelSource)
            else f"{source.key_prefix}celery-task-meta-*"
        )
        if (other := names.setdefault(listens_to, name)) != name:
            key = "channel" if isinstance(source, ChannelSource) else "key_prefix"
            yield (
                (f"source.{name}.{key}", f"source.{other}.{key}"),
                f"is the same as that of source.{other}; should differ, or one of them should go",
            )


def _auth_contradictions(config: Config) -> Iterator[tuple[tuple[str, ...], str]]:
    """The same for the section `auth`, as far as it shows without opening a key file."""
    auth, server = config.auth, config.server
    if auth.mode == "proxy" and not (auth.proxy_secret.get_secret_value() or server.unix_socket):
        yield (
            ("auth.mode", "auth.proxy_secret", "server.unix_socket"),
            'is "proxy" without auth.proxy_secret; should have one, or server.unix_socket',
        )
    if auth.mode == "proxy" and not (server.trusted_proxies or server.unix_socket):
        yield (
            ("auth.mode", "server.trusted_proxies", "server.unix_socket"),
            'is "proxy" while server.trusted_proxies is empty; should list the proxy there',
        )
    if auth.mode != "jwt":
        return
    secret = auth.jwt_secret.get_secret_value()
    keys = {
        "auth.jwt_secret": secret,
        "auth.jwt_public_key_file": auth.jwt_public_key_file,
        "auth.jwks_url": auth.jwks_url,
    }
    given = [key for key, value in keys.items() if value]
    if not given:
        yield (
            ("auth.mode", *keys),
            'is "jwt" without a key; should have jwt_secret, jwt_public_key_file or jwks_url',
        )
    if len(given) > 1:
        yield (
            (given[1], given[0]),
            f"stands beside {given[0]}; should be the only key, or go",
        )
        return
    if secret:
        try:
            fitting = hmac_algorithms(secret)
        except ValueError as error:
            yield ("auth.jwt_secret",), str(error)
            return
        if auth.algorithms and not {*fitting} & {*auth.algorithms}:
            yield (
                ("auth.algorithms", "auth.jwt_secret"),
                (
                    f"is {_shown(auth.algorithms)}, should have one that fits jwt_secret:"
                    f" {', '.join(fitting)}"
                ),
            )
    elif given and auth.algorithms and all(name.startswith("HS") for name in auth.algorithms):
        yield (
            ("auth.algorithms", *given),
            (
                f"is {_shown(auth.algorithms)}, which only fits a secret; should have one for public keys,"
                " such as RS256, ES256 or EdDSA, or be empty"
            ),
        )
