"""Names that a broker is met with: host, user, the first level of topics. What cannot work is told beforehand."""

from __future__ import annotations

import ipaddress
import re

from agent.config import Config, MqttConfig
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
