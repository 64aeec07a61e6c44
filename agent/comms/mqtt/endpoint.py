"""Names that a broker is met with: host, user, the first level of topics. What cannot work is told beforehand."""

from __future__ import annotations

import hashlib
import ipaddress
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

from msgspec import structs

from agent.comms.mqtt.tls import open_to_all, port, read_certificates, read_password
from agent.comms.topics import Topics
from agent.config import Config, FallbackConfig, MqttConfig
from agent.errors import ConfigError

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
"""Brokers end a connection that sends one of these in a name. MQTT 5.0, section 1.5.4."""
_NO_HOST = re.compile(r"[\s/@?#\\\[\]]")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*(?=://)", re.IGNORECASE)
_HOST = re.compile(r"\[([^\]]*)\]|([^:/?#]*)")
_ELSEWHERE = "the port, tls, transport, username and password_file are keys of their own"


def check_host(config: MqttConfig) -> None:
    """Refuse a host that is a URL, has a user or a port, or holds what no name of a machine does.

    No error holds what stands before an `@`: that may be a password.

    Raises:
        ConfigError: what to write instead.
    """
    host = config.host
    if not host:
        raise _wrong("host", "is empty; leave it out for localhost")
    if "://" in host or "@" in host:
        raise _wrong("host", f"= {shown_host(host)!r} {_is_url(host)}")
    if _CONTROL.search(host):
        raise _wrong("host", f"= {host!r} holds a control character")
    name, colon, number = host.rpartition(":")
    if colon and number.isdigit() and (":" not in name or name.endswith("]")):
        raise _wrong(
            "host", f"= {host!r} has a port in it; write host = {name.strip('[]')!r} and port = {number}"
        )
    if not (_is_address(host) or _is_name(host)):
        raise _wrong("host", f"= {host!r} is neither the name of a machine nor an IP address")


def _is_url(host: str) -> str:
    """Say what to write in place of a URL, or of a host with a user before it."""
    scheme, rest = _SCHEME.match(host), host.rpartition("@" if "@" in host else "://")[2]
    what = f"is an address of the web ({scheme[0]})" if scheme else "has a user in it"
    found = _HOST.match(rest)
    name = (found[1] or found[2]) if found else ""
    if not name and scheme and "@" not in host:
        name = "localhost"
    if not (_is_address(name) or _is_name(name)):
        return f"{what}; write the name or the IP address of the broker alone; {_ELSEWHERE}"
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
        return bool(host.encode("idna"))  # as it is when it is resolved: levels of 63 letters at most, none empty
    except UnicodeError:
        return False


def check_username(config: MqttConfig) -> None:
    """Refuse a name that a broker may not take.

    Raises:
        ConfigError: it holds a control character.
    """
    if _CONTROL.search(config.username):
        raise _wrong("username", f"= {config.username!r} holds a control character")


def check_prefix(config: MqttConfig) -> None:
    """Refuse a first level that is not ours to publish under.

    Raises:
        ConfigError: it begins with `$`, or holds a control character.
    """
    _check_level(config.prefix, ("mqtt", "prefix"))


def check_prefixes(config: Config) -> None:
    """Refuse our topics among those of Home Assistant's discovery: it would take them for announcements.

    Raises:
        ConfigError: see there and `check_prefix`.
    """
    own, theirs = config.mqtt.prefix, config.homeassistant.prefix
    _check_level(theirs, ("homeassistant", "prefix"))
    if f"{own}/".startswith(f"{theirs}/"):
        raise _wrong(
            "prefix", f"= {own!r} is that of [homeassistant], {theirs!r}: choose another, such as 'vedette'"
        )


def _check_level(prefix: str, keys: tuple[str, str]) -> None:
    said = f"[{keys[0]}] prefix = {prefix!r}"
    if prefix.startswith("$"):
        raise ConfigError(f"{said}: topics that begin with $ are the broker's own", keys=keys)
    if _CONTROL.search(prefix):
        raise ConfigError(f"{said} holds a control character", keys=keys)


def _wrong(key: str, what: str) -> ConfigError:
    return ConfigError(f"[mqtt] {key} {what}", keys=("mqtt", key))


OPEN = "every user of this machine may read or change it"
_CHECKS = (check_host, check_username, read_password, read_certificates)


def brokers_of(config: MqttConfig) -> list[MqttConfig]:
    """The configuration of each, in their order: what a fallback leaves out is as in the first."""
    return [config, *(structs.replace(config, **_said(one)) for one in config.fallback)]


def _said(fallback: FallbackConfig) -> dict[str, object]:
    return {key: value for key, value in structs.asdict(fallback).items() if value is not None}


def problems(config: MqttConfig) -> Iterator[ConfigError]:
    """Check the files and keys of each broker; yield an error, with the key's place, for each that is wrong."""
    for number, one in enumerate(brokers_of(config)):
        for check in _CHECKS if number else (*_CHECKS, check_prefix):
            try:
                check(one)
            except ConfigError as error:
                yield _placed(error, number - 1, shown_host(one.host)) if number else error


def _placed(error: ConfigError, number: int, host: str) -> ConfigError:
    text = str(error).removeprefix("[mqtt] ")
    return ConfigError(f"[[mqtt.fallback]] {host}: {text}", keys=("mqtt", "fallback", number, *error.keys[1:]))


def remarks(config: MqttConfig) -> list[str]:
    """Warn of files with secrets that every user may read or write, a line for each."""
    paths = {path: None for one in brokers_of(config) for path in open_to_all(one)}
    return [f"{path}: {OPEN}; chmod o= {path}" for path in paths]


# The client id: stable for a machine and a device, and different on every other.

_MACHINE_IDS = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))


def client_id(topics: Topics) -> str:
    """23 letters and digits, the most that every broker must accept (MQTT 3.1.1, section 3.1.3.1).

    The machine's id itself is confidential (machine-id(5)), so it is hashed.
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


# Whether commands are taken from the brokers of a configuration: only where a broker can tell who sends them.


def commands_allowed(config: MqttConfig) -> bool:
    """Return whether commands are taken, see `MqttConfig.commands`."""
    return not commands_off(config)


def commands_off(config: MqttConfig) -> str:
    """Return why no commands are taken, and what would change that; empty: they are taken.

    A broker that does not authenticate this device may let anybody on the network in. One on this machine is no
    exception: it may listen on the network, too.
    """
    if config.commands is not None:
        return "" if config.commands else "[mqtt] commands = false"
    for one in brokers_of(config):
        if not authenticates(one):
            where = f"{shown_host(one.host)}:{port(one)}"
            return (
                f"the broker {where} is used without a password or a client certificate, so "
                "it may let anybody on the network in; set [mqtt] username and password_file, or commands = true"
            )
    return ""


def authenticates(config: MqttConfig) -> bool:
    """Return whether this device proves to the broker who it is: by a password or a client certificate."""
    return bool(config.cert_file or (config.username and config.password_file))
