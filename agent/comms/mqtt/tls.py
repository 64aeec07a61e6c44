"""The password and the certificates, read from their files at every connection: they may have been renewed."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from msgspec import Struct

from agent import secretfile
from agent.comms.reasons import of_tls
from agent.config import MqttConfig
from agent.errors import ConfigError, reason_of


class Credentials(Struct, frozen=True):
    """What a connection needs besides an address.

    Attributes:
        password: None: none is sent.
        tls: None: not encrypted.
    """

    password: str | None = None
    tls: ssl.SSLContext | None = None

    def __repr__(self) -> str:
        return "Credentials(…)"  # no password in a log or a traceback


def uses_tls(config: MqttConfig) -> bool:
    """Whether the connection is encrypted."""
    return config.tls or bool(config.ca_file or config.cert_file)


def port(config: MqttConfig) -> int:
    """The configured port, or the protocol's."""
    if config.transport == "websockets":
        return config.port or (443 if uses_tls(config) else 80)
    return config.port or (8883 if uses_tls(config) else 1883)


def open_to_all(config: MqttConfig) -> list[str]:
    """Files with secrets that every user of this machine may read or write."""
    found = []
    for key in ("password_file", "key_file"):
        if name := getattr(config, key):
            with suppress(ConfigError):
                path = _expanded(key, name)
                found += [str(path)] if secretfile.is_open_to_all(path) else []
    return found


def read_credentials(config: MqttConfig) -> Credentials:
    """Read and check every file that the configuration names.

    Raises:
        ConfigError: one is missing, unreadable, or not what it should be; names it.
    """
    return Credentials(read_password(config), read_certificates(config))


def read_password(config: MqttConfig) -> str | None:
    """The first line of the password's file; None where there is no file.

    Raises:
        ConfigError: see `read_credentials`.
    """
    name = config.password_file
    if not name:
        return None
    if not config.username:
        raise _wrong("password_file", "is set but username is not; MQTT takes no password without a user")
    wrong = partial(_wrong, "password_file")
    return secretfile.read_password(secretfile.expand(name, wrong), wrong)


def _wrong(key: str, what: str) -> ConfigError:
    return ConfigError(f"[mqtt] {key} {what}", keys=("mqtt", key))


def _expanded(key: str, name: str) -> Path:
    return secretfile.expand(name, partial(_wrong, key))


def read_certificates(config: MqttConfig) -> ssl.SSLContext | None:
    """What TLS needs; None where the connection is not encrypted.

    Raises:
        ConfigError: see `read_credentials`.
    """
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
        raise _wrong(key, f"= {path}: not usable as PEM (or its key does not fit): {of_tls(error)}") from error


def _readable(key: str, name: str) -> str:
    path = _expanded(key, name)
    try:
        with path.open("rb"):
            return str(path)
    except (OSError, ValueError) as error:
        raise _wrong(key, f"= {path}: {reason_of(error)}") from error


def _no_password() -> str:
    raise ValueError("the key is encrypted; Vedette needs one without a password")
