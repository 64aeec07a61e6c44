"""The password and the certificates, read from their files at every connection: they may have been renewed."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from agent.comms.reasons import of_tls
from agent.config import MqttConfig
from agent.errors import ConfigError, reason_of

_VARIABLE = "$CREDENTIALS_DIRECTORY"


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
    return config.port or (8883 if uses_tls(config) else 1883)


def read_credentials(config: MqttConfig) -> Credentials:
    """Read and check every file that the configuration names.

    Raises:
        ConfigError: one is missing, unreadable, or not what it should be; names it.
    """
    if config.password_file and not config.username:
        raise ConfigError(
            "[mqtt] password_file is set but username is not; MQTT takes no password without a user"
        )
    if config.key_file and not config.cert_file:
        raise ConfigError("[mqtt] key_file is set but cert_file is not")
    return Credentials(_password(config), _context(config) if uses_tls(config) else None)


def _password(config: MqttConfig) -> str | None:
    if not config.password_file:
        return None
    path = _expanded(config.password_file)
    try:
        return path.read_text(encoding="utf-8").partition("\n")[0].removesuffix("\r")
    except UnicodeDecodeError as error:
        # The error holds the text that could not be read: it must not go further.
        raise ConfigError(f"[mqtt] password_file = {path}: not UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise ConfigError(f"[mqtt] password_file = {path}: {reason_of(error)}") from error


def _expanded(name: str) -> Path:
    if _VARIABLE not in name and "${CREDENTIALS_DIRECTORY}" not in name:
        return Path(name).expanduser()
    folder = os.environ.get(_VARIABLE[1:], "")
    if not folder:
        raise ConfigError(
            f"[mqtt] password_file = {name}: {_VARIABLE} is not set; systemd sets it with LoadCredential="
        )
    return Path(name.replace("${CREDENTIALS_DIRECTORY}", folder).replace(_VARIABLE, folder))


def _context(config: MqttConfig) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if config.ca_file:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        _load("ca_file", config.ca_file, lambda path: context.load_verify_locations(path))
    if config.cert_file:
        key = _readable("key_file", config.key_file) if config.key_file else None
        # Without a password function OpenSSL would ask for one on the terminal, and wait.
        _load("cert_file", config.cert_file, lambda path: context.load_cert_chain(path, key, _no_password))
    return context


def _load(key: str, name: str, load: Callable[[str], None]) -> None:
    path = _readable(key, name)
    try:
        load(path)
    except (ssl.SSLError, OSError, ValueError) as error:
        raise ConfigError(
            f"[mqtt] {key} = {path}: not usable as PEM (or its key does not fit): {of_tls(error)}"
        ) from error


def _readable(key: str, name: str) -> str:
    path = Path(name).expanduser()
    try:
        with path.open("rb"):
            return str(path)
    except OSError as error:
        raise ConfigError(f"[mqtt] {key} = {path}: {reason_of(error)}") from error


def _no_password() -> str:
    raise ValueError("the key is encrypted; Vedette needs one without a password")
