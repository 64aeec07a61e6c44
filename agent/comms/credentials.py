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
    path = _expanded("password_file", _with_folder(name))
    try:
        return path.read_text(encoding="utf-8").partition("\n")[0].removesuffix("\r")
    except UnicodeDecodeError as error:
        # The error holds the text that could not be read: it must not go further.
        raise _wrong("password_file", f"= {path}: not UTF-8 at byte {error.start}") from None
    except (OSError, ValueError) as error:
        raise _wrong("password_file", f"= {path}: {reason_of(error)}") from error


def _wrong(key: str, what: str) -> ConfigError:
    return ConfigError(f"[mqtt] {key} {what}", keys=("mqtt", key))


def _expanded(key: str, name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError as error:  # a home that nobody has
        raise _wrong(key, f"= {name}: {error}; set it to a full path") from error


def _with_folder(name: str) -> str:
    if _VARIABLE not in name and "${CREDENTIALS_DIRECTORY}" not in name:
        return name
    folder = os.environ.get(_VARIABLE[1:], "")
    if not folder:
        raise _wrong("password_file", f"= {name}: {_VARIABLE} is not set; systemd sets it with LoadCredential=")
    return name.replace("${CREDENTIALS_DIRECTORY}", folder).replace(_VARIABLE, folder)


def read_certificates(config: MqttConfig) -> ssl.SSLContext | None:
    """What TLS needs; None where the connection is not encrypted.

    Raises:
        ConfigError: see `read_credentials`.
    """
    if config.key_file and not config.cert_file:
        raise _wrong("key_file", "is set but cert_file is not")
    if not uses_tls(config):
        return None
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
