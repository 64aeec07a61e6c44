"""Why a broker cannot be reached or refuses this device, in plain words, and the errors that say so.

Codes: MQTT 5.0, section 2.4. Paho translates those of MQTT 3.1.1 into the same. Format of certificates: RFC 5280,
section 4.1.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from msgspec import Struct

from agent.comms.mqtt.endpoint import port, read_certificates, tls_reason
from agent.config.mqtt import MqttConfig
from agent.errors import BrokerError, ConfigError, reason_of
from agent.text import plain

UNSUPPORTED_PROTOCOL, TAKEN_OVER, KEEP_ALIVE, PROTOCOL_ERROR = 0x84, 0x8E, 0x8D, 0x82

_WORDS = {
    0x80: "it does not say why",
    0x81: "it found a packet of this device malformed",
    PROTOCOL_ERROR: "it found a protocol error",
    0x83: "it does not accept this",
    UNSUPPORTED_PROTOCOL: "it does not speak this version of MQTT; set [mqtt] protocol",
    0x85: "it does not accept the client id",
    0x86: "wrong user name or password; check [mqtt] username and password_file",
    0x87: "not authorised; check [mqtt] username and password_file, and the broker's access list",
    0x88: "it is not available now",
    0x89: "it is busy",
    0x8A: "it has banned this device",
    0x8B: "it is shutting down",
    0x8C: "it wants another way of authentication",
    KEEP_ALIVE: "nothing was heard for too long",
    TAKEN_OVER: "another client connected with the same client id: a copy of this card, or a second daemon?",
    0x90: "it does not accept the topic",
    0x93: "this device sent more messages than it takes at once",
    0x95: "the message is larger than it takes",
    0x96: "this device sends too many messages",
    0x97: "a quota is exceeded",
    0x98: "its operator ended the connection",
    0x99: "it does not accept the payload's format",
    0x9A: "it does not keep retained messages, which Vedette needs",
    0x9B: "it does not support QoS 1",
    0x9C: "another server is to be used",
    0x9D: "it has moved to another server",
    0x9F: "this device connects too often",
}
_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNEXPECTED_EOF_WHILE_READING")
"""Names of the errors that OpenSSL reports for an answer that is not TLS."""
WITHOUT_TLS = "if it speaks no TLS there, set [mqtt] tls = false and leave out ca_file and cert_file"
_ALERTS = {
    "CERTIFICATE_REQUIRED": "it wants a client certificate; set [mqtt] cert_file and key_file",
    "CERTIFICATE_EXPIRED": "the client certificate has expired, or a clock is wrong; renew [mqtt] cert_file",
    "UNKNOWN_CA": "it does not trust the CA of the client certificate, [mqtt] cert_file",
    "BAD_CERTIFICATE": "it does not accept the client certificate, [mqtt] cert_file",
    "CERTIFICATE_REVOKED": "the client certificate has been revoked; replace [mqtt] cert_file",
    "CERTIFICATE_UNKNOWN": "it does not accept the client certificate, [mqtt] cert_file",
    "NO_APPLICATION_PROTOCOL": "it speaks none of the protocols of [mqtt] alpn",
    "UNRECOGNIZED_NAME": "it does not go by the name of [mqtt] host",
}
"""Explanations of TLS alerts from the broker, by OpenSSL's name of the alert; paho passes it on as text."""
_TEXT_MAX = 200


def in_words(code: int) -> str:
    """Explain an MQTT reason code to a user."""
    return _WORDS.get(code, f"reason code {code:#04x}")


def with_broker_text(words: str, text: object) -> str:
    """Append the broker's own text to `words`: it is untrusted, so in one line and short."""
    shown = plain(str(text or "")[:_TEXT_MAX])
    return f"{words} ('{shown}')" if shown else words


def explain_disconnect(code: int, text: object) -> str:
    """Explain why the broker ended the connection with a DISCONNECT."""
    return with_broker_text(in_words(code) if code else "the broker ended the connection", text)


def explain_break(code: int, text: str) -> str:
    """Explain why a connection broke, by the reason code that paho assigns and the text of its log."""
    if code == KEEP_ALIVE:
        return in_words(code)
    if code == PROTOCOL_ERROR:
        return "it sent something that is not MQTT"
    return _explain_alert(text) or f"the connection broke{text and f': {text}'}"


def explain_silence(words: str, *, tls: bool) -> str:
    """Add to `words` what to check if a broker accepts the connection but does not answer the CONNECT."""
    return explain_hangup(f"{words}; check that it is an MQTT broker", tls=tls)


def explain_hangup(words: str, *, tls: bool) -> str:
    """Add to `words` what to check if a connection broke before the broker answered: it may expect TLS."""
    return words if tls else f"{words}; if it speaks TLS there, set [mqtt] tls"


def explain_opening(error: Exception, *, tls: bool) -> str:
    """Explain to a user an error that came while the connection was opened."""
    words, hint = explain_error(error), tls and _may_be_without_tls(error)
    return f"{words}; {WITHOUT_TLS}" if hint else words


def _may_be_without_tls(error: Exception) -> bool:
    """Return True if a broker without TLS may have answered the TLS greeting like that."""
    if isinstance(error, ssl.SSLError):
        return error.reason in _NO_TLS
    if isinstance(error, TimeoutError):
        return "handshake" in str(error)  # else TCP did not connect
    return isinstance(error, ConnectionResetError | ConnectionAbortedError | BrokenPipeError)


def _explain_alert(text: str) -> str:
    return next((words for name, words in _ALERTS.items() if f"ALERT_{name}" in text.upper()), "")


def _explain_tls(error: Exception) -> str:
    if not isinstance(error, ssl.SSLCertVerificationError):
        return _explain_alert(getattr(error, "reason", None) or "") or f"TLS failed: {tls_reason(error)}"
    text = f"its certificate is not accepted: {error.verify_message}"
    if error.verify_code in (_NOT_YET, _EXPIRED):
        text += f"; the clock here says {_shown_time(datetime.now(UTC))}, is that right?"
    return text


def explain_error(error: Exception) -> str:
    """Explain an error of the network or of TLS to a user."""
    if type(error).__module__ == ssl.__name__:  # naming its classes would load it after any outage
        return _explain_tls(error)
    if isinstance(error, socket.gaierror):
        return f"its name cannot be resolved: {error.strerror}"
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there"
    if isinstance(error, TimeoutError):
        return "no answer"
    return reason_of(error)


class RefusedError(BrokerError):
    """The broker refuses this device.

    Attributes:
        code: MQTT 5 reason code.
    """

    def __init__(self, code: int, broker_text: str = "", *, text: str = "") -> None:
        self.code = code
        super().__init__(text or with_broker_text(in_words(code), broker_text))


class UnansweredError(BrokerError):
    """The broker accepted the connection and did not answer the CONNECT.

    Attributes:
        silent: it did nothing; else it ended the connection.
    """

    def __init__(self, text: str, *, silent: bool) -> None:
        self.silent = silent
        super().__init__(text)


_NOT_YET, _EXPIRED, _SELF_SIGNED, _NO_ISSUER, _NAMES = 9, 10, (18, 19), (2, 20, 21), (62, 64)
"""X509_V_ERR_… of OpenSSL's x509_vfy.h."""
_PEER_S = 5.0
_NAMES_SHOWN = 5

Synchronised = Callable[[], bool | None]
"""Function that returns True if the clock is synchronised; None: not known."""


class CertificateError(BrokerError):
    """The broker's certificate is not accepted.

    Attributes:
        by_clock: perhaps only the clock here is wrong: worth another attempt as soon as that is set.
    """

    def __init__(self, text: str, *, by_clock: bool = False) -> None:
        self.by_clock = by_clock
        super().__init__(text)


class Validity(Struct, frozen=True):
    """From when to when a certificate is valid, UTC."""

    begins: datetime
    ends: datetime


def explain_certificate(
    error: ssl.SSLCertVerificationError, config: MqttConfig, synchronised: Synchronised
) -> CertificateError:
    """Explain to a user why the broker's certificate is refused.

    OpenSSL does not show a certificate that it refuses, so it is read over another connection; nothing is sent on
    that.
    """
    code = error.verify_code
    if code in (_NOT_YET, _EXPIRED):
        return _explain_time(code, config, synchronised())
    text = f"its certificate is not accepted: {error.verify_message}"
    if code in _NAMES:
        names = ", ".join(_names_of_peer(config)) or "another name"
        text = (
            f"its certificate is for {names} and not for {config.host}; [mqtt] host must be a name that it is for"
        )
    elif code in _SELF_SIGNED or code in _NO_ISSUER:
        trusted = config.ca_file or "the system"
        text += (
            f"; it is not signed by a CA that {trusted} trusts; [mqtt] ca_file must hold the CA that signed it"
        )
    return CertificateError(text)


def _explain_time(code: int, config: MqttConfig, synchronised: bool | None) -> CertificateError:
    now = datetime.now(UTC)
    validity = _validity_of_peer(config)
    clock = f"the clock here says {_shown_time(now)}"
    if code == _NOT_YET:
        since = f" before {_shown_time(validity.begins)}" if validity and validity.begins > now else " yet"
        text = f"its certificate is not valid{since}"
        if synchronised:
            return CertificateError(f"{text}; {clock}, and is synchronised")
        wrong = f"the clock is wrong: it says {_shown_time(now)}, and {text}; waiting for the right time"
        return CertificateError(wrong, by_clock=True)
    if validity and validity.ends < now:
        text = f"its certificate expired on {_shown_time(validity.ends)}; renew it at the broker"
    else:
        text = "the certificate of a CA above its own has expired; renew it, and [mqtt] ca_file"
    doubt = "" if synchronised else " and is not synchronised: is it right?"
    return CertificateError(f"{text}; {clock}{doubt}", by_clock=not synchronised)


def _shown_time(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"


def _names_of_peer(config: MqttConfig) -> list[str]:
    """Return the names in the broker's certificate; none if its signature is not valid."""
    with suppress(OSError, ValueError, ConfigError):
        context = read_certificates(config)
        if context is not None:
            context.check_hostname = False
            found = _peer_certificate(config, context, binary=False) or {}
            return [str(name[1]) for name in found.get("subjectAltName", ())][:_NAMES_SHOWN]
    return []


def _validity_of_peer(config: MqttConfig) -> Validity | None:
    """Return the validity of the broker's certificate, trusted or not; None: it cannot be read."""
    with suppress(OSError, ValueError, ConfigError):
        context = read_certificates(config)
        if context is not None:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            return read_validity(_peer_certificate(config, context, binary=True) or b"")
    return None


def _peer_certificate(config: MqttConfig, context: ssl.SSLContext, *, binary: bool) -> Any:
    with (
        socket.create_connection((config.host, port(config)), timeout=_PEER_S) as connection,
        context.wrap_socket(connection, server_hostname=config.host) as peer,
    ):
        return peer.getpeercert(binary)


def read_validity(der: bytes) -> Validity:
    """Return from when to when a certificate in DER form is valid; ValueError if it is not a certificate."""
    _, certificate, _ = _element(der)
    _, signed, _ = _element(certificate)
    tag, _, rest = _element(signed)
    if tag == 0xA0:  # the version; version 1 leaves it out
        _, _, rest = _element(rest)
    for _ in ("signature", "issuer"):
        _, _, rest = _element(rest)
    _, times, _ = _element(rest)
    begins_tag, begins, times = _element(times)
    ends_tag, ends, _ = _element(times)
    return Validity(_time(begins_tag, begins), _time(ends_tag, ends))


def _element(data: bytes) -> tuple[int, bytes, bytes]:
    """Return tag and content of the first element, and what follows."""
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
