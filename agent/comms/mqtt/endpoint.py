"""A broker as `[mqtt]` names it: its checks, the files that it names, and why a broker cannot be used, in words.

The files are read at every connection: they may have been renewed. Reason codes: MQTT 5.0, section 2.4; paho has
their names, and translates those of MQTT 3.1.1 into the same.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import socket
import ssl
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from paho.mqtt.reasoncodes import ReasonCode

from agent.comms.topics import Topics
from agent.config import Config, servers
from agent.config.servers import MqttConfig
from agent.errors import BrokerError, ConfigError, reason_of
from agent.text import plain

_NO_HOST = re.compile(r"[\x00-\x20/@?#\\\[\]\x7f-\x9f]")


def _wrong(key: str, what: str) -> ConfigError:
    return ConfigError(f"[mqtt] {key} {what}", keys=("mqtt", key))


def check_host(config: MqttConfig) -> None:
    """Raise ConfigError for a host that is a URL, includes a user or a port, or is not a host name.

    No error quotes what stands before an `@`: that may be a password.
    """
    host = config.host
    if "://" in host or "@" in host:
        what = "is a URL or has a user in it; write only the name or the IP address of the broker"
    elif not (_is_address(host) or _is_name(host)):
        what = f"= {host!r} is neither a host name nor an IP address"
    else:
        return
    raise _wrong("host", f"{what}; port, tls, username and password_file are set on their own")


def shown_host(host: str) -> str:
    """Return a host as messages show it: what is none may hold a password."""
    return host if _is_address(host) or _is_name(host) else "***"


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


def check_prefixes(config: Config) -> None:
    """Raise ConfigError for topics among those of Home Assistant's discovery."""
    own, theirs = config.mqtt.prefix, config.homeassistant.prefix
    if f"{own}/".startswith(f"{theirs}/"):
        raise _wrong(
            "prefix", f"= {own!r} is that of [homeassistant], {theirs!r}: choose another, such as 'vedette'"
        )


def uses_tls(config: MqttConfig) -> bool:
    """Return True if the connection is encrypted."""
    return config.tls or bool(config.ca_file or config.cert_file)


def port(config: MqttConfig) -> int:
    """Return the configured port, or the protocol's."""
    if config.transport == "websockets":
        return config.port or (443 if uses_tls(config) else 80)
    return config.port or (8883 if uses_tls(config) else 1883)


def address(config: MqttConfig) -> str:
    """Return `host:port`."""
    return f"{shown_host(config.host)}:{port(config)}"


def read_password(config: MqttConfig) -> str | None:
    """Return the first line of the password file; None: none is configured. Raise ConfigError if it is empty."""
    if not config.password_file:
        return None
    if not config.username:
        raise _wrong("password_file", "is set but username is not; MQTT takes no password without a user")
    return servers.read_password(config.password_file, partial(_wrong, "password_file"))


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
        path = servers.readable(config.ca_file, partial(_wrong, "ca_file"))
        try:
            context.load_verify_locations(path)
        except (OSError, ValueError) as error:
            raise _wrong("ca_file", f"= {path}: not usable as PEM: {_tls_reason(error)}") from error
    load_certificate(context, config.cert_file, config.key_file, _wrong)
    if config.alpn:
        context.set_alpn_protocols(list(config.alpn))
    return context


def load_certificate(
    context: ssl.SSLContext, cert_file: str, key_file: str, wrong: Callable[[str, str], ConfigError]
) -> None:
    """Load the own certificate, if there is one; `wrong` makes the `ConfigError` of a key and a text."""
    if not cert_file:
        return
    key = servers.readable(key_file, partial(wrong, "key_file")) if key_file else None
    path = servers.readable(cert_file, partial(wrong, "cert_file"))
    try:
        # Without a password function OpenSSL would ask for one on the terminal, and wait.
        context.load_cert_chain(path, key, _no_password)
    except (OSError, ValueError) as error:
        what = f"= {path}: not usable as PEM (or its key does not fit): {_tls_reason(error)}"
        raise wrong("cert_file", what) from error


def _no_password() -> str:
    raise ValueError("the key is encrypted; Vedette needs one without a password")


def _tls_reason(error: Exception) -> str:
    """Return OpenSSL's reason without its codes: `wrong version number`."""
    reason = getattr(error, "reason", None)
    return str(reason).replace("_", " ").lower() if reason else reason_of(error)


OPEN = "every user of this machine may read or change it"


def problems(config: MqttConfig) -> Iterator[ConfigError]:
    """Check the files and keys of the broker; yield an error, with the key's place, for each that is wrong."""
    for check in (check_host, read_password, read_certificates):
        try:
            check(config)
        except ConfigError as error:
            yield error


def remarks(config: MqttConfig) -> list[str]:
    """Warn of files with secrets that every user may read or write, a line for each."""
    paths = []
    for key in ("password_file", "key_file"):
        with suppress(ConfigError):
            if name := getattr(config, key):
                paths.append(servers.expand(name, partial(_wrong, key)))
    return [f"{path}: {OPEN}; chmod o= {path}" for path in paths if servers.is_open_to_all(path)]


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
        with suppress(OSError, ValueError):
            if text := path.read_text(encoding="ascii").strip():
                return text
    return f"{uuid.getnode():012x}"


def commands_off(config: MqttConfig) -> str:
    """Return why no commands are accepted, and what would change that; empty: they are accepted.

    A broker that does not authenticate this device may let anybody on the network in. One on this machine is no
    exception: it may listen on the network, too.
    """
    if config.commands is not None:
        return "" if config.commands else "[mqtt] commands = false"
    if config.cert_file or (config.username and config.password_file):
        return ""
    return (
        f"the broker {address(config)} is used without a password or a client certificate, so it may let anybody "
        "on the network in; set [mqtt] username and password_file, or commands = true"
    )


REFUSED = 0x80
"""Reason codes from this one on are refusals."""
UNSUPPORTED_PROTOCOL, PROTOCOL_ERROR = 0x84, 0x82
_LOGIN = "check [mqtt] username and [mqtt] password_file"
_HINTS = {
    UNSUPPORTED_PROTOCOL: "set [mqtt] protocol",
    0x86: _LOGIN,
    0x87: f"{_LOGIN}, and the broker's access list",
    0x8E: "another client connected with the same client id: a copy of this card, or a second daemon?",
}
"""The next step after a refusal, by its code."""
_TEXT_MAX = 200
PERHAPS_TLS = "; if it speaks TLS there, set [mqtt] tls"


class RefusedError(BrokerError):
    """The broker, or its certificate, refuses this device, or this device its certificate.

    Attributes:
        code: MQTT 5 reason code; 0: none.
    """

    def __init__(self, text: str, code: int = 0) -> None:
        self.code = code
        super().__init__(text)


class UnansweredError(BrokerError):
    """The broker accepted the connection, and kept silent after the CONNECT or ended the connection."""


def in_words(code: int, broker_text: object = "") -> str:
    """Explain an MQTT reason code to a user, with the broker's own text: untrusted, so in one line and short."""
    words = next(iter(ReasonCode.names[code]), "").lower() if code in ReasonCode.names else f"code {code:#04x}"
    text = plain(str(broker_text or "")[:_TEXT_MAX])
    return "".join((words, f"; {_HINTS[code]}" if code in _HINTS else "", f" ('{text}')" if text else ""))


def explain_break(code: int, text: str = "") -> str:
    """Explain why a connection broke, by the reason code that paho assigns and the text of its log."""
    if code == PROTOCOL_ERROR:
        return "it sent something that is not MQTT"
    return f"the connection broke: {_with_hint(text)}" if text else "the connection broke"


def _with_hint(text: str) -> str:
    """Append to an alert of TLS what it is mostly about."""
    return f"{text}; check [mqtt] cert_file and [mqtt] key_file" if "alert" in text.lower() else text


def opening_error(error: Exception, *, tls: bool) -> BrokerError:
    """Return the error to raise for one that came while the connection was opened."""
    words = explain_error(error)
    if not tls or isinstance(error, socket.gaierror | ConnectionRefusedError):
        return BrokerError(words)
    if isinstance(error, ssl.SSLCertVerificationError):
        return RefusedError(words)
    return BrokerError(
        f"{words}; if it speaks no TLS there, leave out [mqtt] tls, [mqtt] ca_file and [mqtt] cert_file"
    )


def explain_error(error: Exception) -> str:
    """Explain an error of the network or of TLS to a user."""
    if type(error).__module__ == "ssl":  # naming its classes would load it after any outage
        if not isinstance(error, ssl.SSLCertVerificationError):
            return f"TLS failed: {_with_hint(_tls_reason(error))}"
        return (
            f"its certificate is not accepted: {error.verify_message}; check [mqtt] ca_file and [mqtt] host, and "
            f"the clock here, which says {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        )
    if isinstance(error, socket.gaierror):
        return f"its name cannot be resolved: {error.strerror}"
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there"
    if type(error).__name__ == "WebsocketConnectionError":
        return "it does not answer as a WebSocket; check [mqtt] port and [mqtt] ws_path"
    return "no answer" if isinstance(error, TimeoutError) else reason_of(error)
