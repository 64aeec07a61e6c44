"""Checks `[mqtt]` before a connection is tried, and reads the password and the certificates that it names.

The files are read at every connection: they may have been renewed.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import ssl
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from msgspec import structs

from agent.comms.topics import Topics
from agent.config import Config, secret_file
from agent.config.mqtt import FallbackConfig, MqttConfig
from agent.errors import ConfigError, reason_of

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
"""Brokers end a connection that sends one of these in a name. MQTT 5.0, section 1.5.4."""
_NO_HOST = re.compile(r"[\s/@?#\\\[\]]")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*(?=://)", re.IGNORECASE)
_HOST = re.compile(r"\[([^\]]*)\]|([^:/?#]*)")
_ELSEWHERE = "the port, tls, transport, username and password_file are keys of their own"


def _wrong(key: str, what: str) -> ConfigError:
    return ConfigError(f"[mqtt] {key} {what}", keys=("mqtt", key))


def check_host(config: MqttConfig) -> None:
    """Raise ConfigError for a host that is a URL, includes a user or a port, or is not a host name.

    No error quotes what stands before an `@`: that may be a password.
    """
    host = config.host
    if not host:
        raise _wrong("host", "is empty; leave it out for localhost")
    if "://" in host or "@" in host:
        raise _wrong("host", f"= {shown_host(host)!r} {_describe_url(host)}")
    if _CONTROL.search(host):
        raise _wrong("host", f"= {host!r} holds a control character")
    name, colon, number = host.rpartition(":")
    if colon and number.isdigit() and (":" not in name or name.endswith("]")):
        raise _wrong(
            "host", f"= {host!r} has a port in it; write host = {name.strip('[]')!r} and port = {number}"
        )
    if not (_is_address(host) or _is_name(host)):
        raise _wrong("host", f"= {host!r} is neither a host name nor an IP address")


def _describe_url(host: str) -> str:
    """Say what to write in place of a URL, or of a host with a user before it."""
    scheme, rest = _SCHEME.match(host), host.rpartition("@" if "@" in host else "://")[2]
    what = f"is a URL ({scheme[0]})" if scheme else "has a user in it"
    found = _HOST.match(rest)
    name = (found[1] or found[2]) if found else ""
    if not name and scheme and "@" not in host:
        name = "localhost"
    if not (_is_address(name) or _is_name(name)):
        return f"{what}; write only the name or the IP address of the broker; {_ELSEWHERE}"
    return f"{what}; write host = {name!r}; {_ELSEWHERE}"


def shown_host(host: str) -> str:
    """Return a host as messages show it: of a URL without user, password, path and query."""
    scheme, login, rest = _SCHEME.match(host), "@" in host, host.rpartition("@")[2]
    if not (login or scheme):
        return host
    name = re.split(r"[/?#]", rest if login else rest.partition("://")[2])[0]
    return f"{f'{scheme[0]}://' if scheme else ''}{'***@' if login else ''}{name}"


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_name(host: str) -> bool:
    if ":" in host or _NO_HOST.search(host):
        return False
    try:
        return bool(host.encode("idna"))  # as when it is resolved: labels of 1 to 63 letters
    except UnicodeError:
        return False


def _check_username(config: MqttConfig) -> None:
    if _CONTROL.search(config.username):
        raise _wrong("username", f"= {config.username!r} holds a control character")


def _check_prefix(config: MqttConfig) -> None:
    _check_level(config.prefix, ("mqtt", "prefix"))


def check_prefixes(config: Config) -> None:
    """Raise ConfigError for topics among those of Home Assistant's discovery, or a prefix that is not valid."""
    own, theirs = config.mqtt.prefix, config.homeassistant.prefix
    _check_level(theirs, ("homeassistant", "prefix"))
    if f"{own}/".startswith(f"{theirs}/"):
        raise _wrong(
            "prefix", f"= {own!r} is that of [homeassistant], {theirs!r}: choose another, such as 'vedette'"
        )


def _check_level(prefix: str, keys: tuple[str, str]) -> None:
    where = f"[{keys[0]}] prefix = {prefix!r}"
    if prefix.startswith("$"):
        raise ConfigError(f"{where}: topics that begin with $ are the broker's own", keys=keys)
    if _CONTROL.search(prefix):
        raise ConfigError(f"{where} holds a control character", keys=keys)


def uses_tls(config: MqttConfig) -> bool:
    """Return True if the connection is encrypted."""
    return config.tls or bool(config.ca_file or config.cert_file)


def port(config: MqttConfig) -> int:
    """Return the configured port, or the protocol's."""
    if config.transport == "websockets":
        return config.port or (443 if uses_tls(config) else 80)
    return config.port or (8883 if uses_tls(config) else 1883)


def read_password(config: MqttConfig) -> str | None:
    """Return the first line of the password file; None: none is configured. Raise ConfigError if it is empty."""
    name = config.password_file
    if not name:
        return None
    if not config.username:
        raise _wrong("password_file", "is set but username is not; MQTT takes no password without a user")
    wrong = partial(_wrong, "password_file")
    return secret_file.read_password(secret_file.expand(name, wrong), wrong)


def read_certificates(config: MqttConfig) -> ssl.SSLContext | None:
    """Load the certificates into a TLS context, or raise ConfigError; None: the connection is not encrypted."""
    if config.key_file and not config.cert_file:
        raise _wrong("key_file", "is set but cert_file is not")
    if not uses_tls(config):
        if config.alpn:
            raise _wrong("alpn", "is set but the connection is not encrypted; set tls = true")
        return None
    context = ssl.create_default_context()
    if config.ca_file:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        _load("ca_file", config.ca_file, lambda path: context.load_verify_locations(path))
    if config.cert_file:
        key = _readable("key_file", config.key_file) if config.key_file else None
        # Without a password function OpenSSL would ask for one on the terminal, and wait.
        _load("cert_file", config.cert_file, lambda path: context.load_cert_chain(path, key, _no_password))
    if config.alpn:
        context.set_alpn_protocols(list(config.alpn))
    return context


def _load(key: str, name: str, load: Callable[[str], None]) -> None:
    path = _readable(key, name)
    try:
        load(path)
    except (OSError, ValueError) as error:
        raise _wrong(
            key, f"= {path}: not usable as PEM (or its key does not fit): {tls_reason(error)}"
        ) from error


def _readable(key: str, name: str) -> str:
    path = _expanded(key, name)
    try:
        with path.open("rb"):
            return str(path)
    except (OSError, ValueError) as error:
        raise _wrong(key, f"= {path}: {reason_of(error)}") from error


def _expanded(key: str, name: str) -> Path:
    return secret_file.expand(name, partial(_wrong, key))


def _no_password() -> str:
    raise ValueError("the key is encrypted; Vedette needs one without a password")


def tls_reason(error: Exception) -> str:
    """Return OpenSSL's reason without its codes: `wrong version number`."""
    reason = getattr(error, "reason", None)
    return str(reason).replace("_", " ").lower() if reason else reason_of(error)


OPEN = "every user of this machine may read or change it"
_CHECKS = (check_host, _check_username, read_password, read_certificates)


def brokers_of(config: MqttConfig) -> list[MqttConfig]:
    """Return the configuration of each broker, in their order. A fallback inherits what it leaves out."""
    return [config, *(structs.replace(config, **_set_keys(one)) for one in config.fallback)]


def _set_keys(fallback: FallbackConfig) -> dict[str, object]:
    return {key: value for key, value in structs.asdict(fallback).items() if value is not None}


def problems(config: MqttConfig) -> Iterator[ConfigError]:
    """Check the files and keys of each broker; yield an error, with the key's place, for each that is wrong."""
    for number, one in enumerate(brokers_of(config)):
        for check in _CHECKS if number else (*_CHECKS, _check_prefix):
            try:
                check(one)
            except ConfigError as error:
                yield _placed(error, number - 1, shown_host(one.host)) if number else error


def _placed(error: ConfigError, number: int, host: str) -> ConfigError:
    text = str(error).removeprefix("[mqtt] ")
    return ConfigError(f"[[mqtt.fallback]] {host}: {text}", keys=("mqtt", "fallback", number, *error.keys[1:]))


def remarks(config: MqttConfig) -> list[str]:
    """Warn of files with secrets that every user may read or write, a line for each."""
    paths = {path: None for one in brokers_of(config) for path in _open_files(one)}
    return [f"{path}: {OPEN}; chmod o= {path}" for path in paths]


def _open_files(config: MqttConfig) -> Iterator[Path]:
    for key in ("password_file", "key_file"):
        if name := getattr(config, key):
            with suppress(ConfigError):
                path = _expanded(key, name)
                if secret_file.is_open_to_all(path):
                    yield path


_MACHINE_IDS = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))


def client_id(topics: Topics) -> str:
    """Return the client id: stable for a machine and a device, and different on every other.

    It has 23 letters and digits, the most that every broker must accept (MQTT 3.1.1, section 3.1.3.1). The
    machine's id itself is confidential (machine-id(5)), so it is hashed.
    """
    secret = f"{_machine_id()}\0{topics.prefix}\0{topics.device}"
    return "vedette" + hashlib.sha256(secret.encode()).hexdigest()[:16]


def _machine_id() -> str:
    for path in _MACHINE_IDS:
        try:
            if text := path.read_text(encoding="ascii").strip():
                return text
        except (OSError, ValueError):
            continue
    return f"{uuid.getnode():012x}"


def commands_off(config: MqttConfig) -> str:
    """Return why no commands are accepted, and what would change that; empty: they are accepted.

    A broker that does not authenticate this device may let anybody on the network in. One on this machine is no
    exception: it may listen on the network, too.
    """
    if config.commands is not None:
        return "" if config.commands else "[mqtt] commands = false"
    for one in brokers_of(config):
        if not (one.cert_file or (one.username and one.password_file)):
            where = f"{shown_host(one.host)}:{port(one)}"
            return (
                f"the broker {where} is used without a password or a client certificate, so "
                "it may let anybody on the network in; set [mqtt] username and password_file, or commands = true"
            )
    return ""
