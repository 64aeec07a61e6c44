"""The password and the certificates, read from their files at every connection: they may have been renewed."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from msgspec import Struct

from agent.comms.mqtt.reasons import of_tls
from agent.config import MqttConfig, secret_file
from agent.errors import BrokerError, ConfigError, reason_of


class Credentials(Struct, frozen=True):
    """Hold the secrets that a connection needs besides an address.

    Attributes:
        password: to send; None: no password is sent.
        tls: None: the connection is not encrypted.
    """

    password: str | None = None
    tls: ssl.SSLContext | None = None

    def __repr__(self) -> str:
        return "Credentials(…)"  # no password in a log or a traceback


def uses_tls(config: MqttConfig) -> bool:
    """Return True if the connection is encrypted."""
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
                found += [str(path)] if secret_file.is_open_to_all(path) else []
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
    return secret_file.read_password(secret_file.expand(name, wrong), wrong)


def _wrong(key: str, what: str) -> ConfigError:
    return ConfigError(f"[mqtt] {key} {what}", keys=("mqtt", key))


def _expanded(key: str, name: str) -> Path:
    return secret_file.expand(name, partial(_wrong, key))


def read_certificates(config: MqttConfig) -> ssl.SSLContext | None:
    """Load the certificates into a TLS context; None where the connection is not encrypted.

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


# Why a broker's certificate is not accepted, in plain words: for whom it is and when, and what the clock says.
#
# What OpenSSL refuses it does not show. So the broker is asked once more for its certificate, which is only
# looked at: nothing is sent on that connection. Format of certificates: RFC 5280, section 4.1.

_NOT_YET, _EXPIRED, _SELF_SIGNED, _NO_ISSUER, _NAMES = 9, 10, (18, 19), (2, 20, 21), (62, 64)
"""X509_V_ERR_… of OpenSSL's x509_vfy.h."""
_LOOK_S = 5.0
_SHOWN = 5

Synchronised = Callable[[], bool | None]
"""Function that returns True if the clock is synchronised; None: not known."""


class CertificateError(BrokerError):
    """The broker's certificate is not accepted.

    Attributes:
        by_clock: it may be only the clock here that is wrong: worth trying at once when that is set.
    """

    def __init__(self, text: str, *, by_clock: bool = False) -> None:
        self.by_clock = by_clock
        super().__init__(text)


class Validity(Struct, frozen=True):
    """From when to when a certificate is valid, UTC."""

    begins: datetime
    ends: datetime


def explained(
    error: ssl.SSLCertVerificationError, config: MqttConfig, synchronised: Synchronised
) -> CertificateError:
    """Explain to a user why the broker's certificate is refused.

    Args:
        error: the error that OpenSSL raised.
        config: of the broker.
        synchronised: tells whether the clock is synchronised.
    """
    code = error.verify_code
    if code in (_NOT_YET, _EXPIRED):
        return _by_time(code, config, synchronised())
    text = f"its certificate is not accepted: {error.verify_message}"
    if code in _NAMES:
        names = ", ".join(_names(config)) or "another name"
        text = (
            f"its certificate is for {names} and not for {config.host}; [mqtt] host must be a name that it is for"
        )
    elif code in _SELF_SIGNED or code in _NO_ISSUER:
        trusted = config.ca_file or "the system"
        text += f"; nobody whom {trusted} trusts vouches for it; [mqtt] ca_file must hold the CA that signed it"
    return CertificateError(text)


def _by_time(code: int, config: MqttConfig, synchronised: bool | None) -> CertificateError:
    now = datetime.now(UTC)
    validity = validity_of_peer(config)
    clock = f"the clock here says {_said(now)}"
    if code == _NOT_YET:
        since = f" before {_said(validity.begins)}" if validity and validity.begins > now else " yet"
        text = f"its certificate is not valid{since}"
        if synchronised:
            return CertificateError(f"{text}; {clock}, and is synchronised")
        wrong = f"the clock is wrong: it says {_said(now)}, and {text}; waiting for the right time"
        return CertificateError(wrong, by_clock=True)
    if validity and validity.ends < now:
        text = f"its certificate expired on {_said(validity.ends)}; renew it at the broker"
    else:
        text = "the certificate of a CA above its own has expired; renew it, and [mqtt] ca_file"
    doubt = "" if synchronised else " and is not synchronised: is it right?"
    return CertificateError(f"{text}; {clock}{doubt}", by_clock=not synchronised)


def _said(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"


def _names(config: MqttConfig) -> list[str]:
    """Whom the certificate is for, as far as it can be learned: only one that is signed well is believed."""
    with suppress(OSError, ValueError, ConfigError):
        context = read_certificates(config)
        if context is not None:
            context.check_hostname = False
            found = _shown(config, context, binary=False) or {}
            return [str(name[1]) for name in found.get("subjectAltName", ())][:_SHOWN]
    return []


def validity_of_peer(config: MqttConfig) -> Validity | None:
    """From when to when the broker's own certificate is valid, whoever signed it; None: it cannot be seen."""
    with suppress(OSError, ValueError, ConfigError):
        context = read_certificates(config)
        if context is not None:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            return validity(_shown(config, context, binary=True) or b"")
    return None


def _shown(config: MqttConfig, context: ssl.SSLContext, *, binary: bool) -> Any:
    """The certificate that the broker shows, on a connection for nothing else."""
    with (
        socket.create_connection((config.host, port(config)), timeout=_LOOK_S) as connection,
        context.wrap_socket(connection, server_hostname=config.host) as peer,
    ):
        return peer.getpeercert(binary)


def validity(der: bytes) -> Validity:
    """From when to when a certificate is valid.

    Args:
        der: the certificate.

    Raises:
        ValueError: it is none.
    """
    _, certificate, _ = _element(der)
    _, signed, _ = _element(certificate)
    tag, _, rest = _element(signed)
    if tag == 0xA0:  # the version, which the first one left out
        _, _, rest = _element(rest)
    for _ in ("signature", "issuer"):
        _, _, rest = _element(rest)
    _, times, _ = _element(rest)
    begins_tag, begins, times = _element(times)
    ends_tag, ends, _ = _element(times)
    return Validity(_time(begins_tag, begins), _time(ends_tag, ends))


def _element(data: bytes) -> tuple[int, bytes, bytes]:
    """Tag and content of the first element, and what follows."""
    if len(data) < 2:
        raise ValueError("not a certificate: it ends too early")
    tag, length, begin = data[0], data[1], 2
    if length & 0x80:
        begin += length & 0x7F
        length = int.from_bytes(data[2:begin], "big")
    if begin + length > len(data):
        raise ValueError("not a certificate: it ends too early")
    return tag, data[begin : begin + length], data[begin + length :]


def _time(tag: int, text: bytes) -> datetime:
    form = {0x17: "%y%m%d%H%M%SZ", 0x18: "%Y%m%d%H%M%SZ"}.get(tag)
    if form is None:
        raise ValueError("not a certificate: no time where one must be")
    return datetime.strptime(text.decode("ascii"), form).replace(tzinfo=UTC)
