"""Why a broker cannot be reached or refuses us, in plain words.

Codes: MQTT 5.0, section 2.4. Paho translates those of MQTT 3.1.1 into the same.
"""

from __future__ import annotations

import socket
import ssl
from datetime import UTC, datetime

from agent.errors import BrokerError, reason_of
from agent.text import plain

UNSUPPORTED_PROTOCOL, TAKEN_OVER, KEEP_ALIVE, PROTOCOL_ERROR = 0x84, 0x8E, 0x8D, 0x82

_WORDS = {
    0x80: "it does not say why",
    0x81: "it found our packet malformed",
    PROTOCOL_ERROR: "it found a protocol error",
    0x83: "it does not accept this",
    UNSUPPORTED_PROTOCOL: "it does not speak this version of MQTT; set [mqtt] protocol",
    0x85: "it does not accept our client id",
    0x86: "wrong user name or password; check [mqtt] username and password_file",
    0x87: "not authorised; check [mqtt] username and password_file, and the broker's access list",
    0x88: "it is not available now",
    0x89: "it is busy",
    0x8A: "we are banned",
    0x8B: "it is shutting down",
    0x8C: "it wants another way of authentication",
    KEEP_ALIVE: "nothing was heard for too long",
    TAKEN_OVER: "another client connected with our client id: a copy of this card, or a second daemon?",
    0x90: "it does not accept the topic",
    0x93: "we sent more than it takes at once",
    0x95: "the message is larger than it takes",
    0x96: "we send too much",
    0x97: "a quota is exceeded",
    0x98: "its operator ended the connection",
    0x99: "it does not accept the payload's format",
    0x9A: "it does not keep retained messages, which Vedette needs",
    0x9B: "it does not support QoS 1",
    0x9C: "another server is to be used",
    0x9D: "it has moved to another server",
    0x9F: "we connect too often",
}
_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNEXPECTED_EOF_WHILE_READING")
"""Names of the errors that OpenSSL reports for an answer that is not TLS."""
WITHOUT_TLS = "if it speaks no TLS there, set [mqtt] tls = false and leave out ca_file and cert_file"
_ALERTS = {
    "CERTIFICATE_REQUIRED": "it wants a client certificate; set [mqtt] cert_file and key_file",
    "CERTIFICATE_EXPIRED": "our client certificate has expired, or a clock is wrong; renew [mqtt] cert_file",
    "UNKNOWN_CA": "it does not trust the CA of our client certificate, [mqtt] cert_file",
    "BAD_CERTIFICATE": "it does not accept our client certificate, [mqtt] cert_file",
    "CERTIFICATE_REVOKED": "our client certificate has been revoked; replace [mqtt] cert_file",
    "CERTIFICATE_UNKNOWN": "it does not accept our client certificate, [mqtt] cert_file",
    "NO_APPLICATION_PROTOCOL": "it speaks none of the protocols of [mqtt] alpn",
    "UNRECOGNIZED_NAME": "it does not go by the name of [mqtt] host",
}
"""Explanations of TLS alerts from the broker, by OpenSSL's name of the alert; paho passes it on as text."""
_LONGEST = 200
_EXPIRED = (9, 10)
"""X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED: often it is the clock that is wrong."""


def in_words(code: int) -> str:
    """Explain an MQTT reason code to a user."""
    return _WORDS.get(code, f"reason code {code:#04x}")


def with_said(words: str, said: object) -> str:
    """Append the broker's own text to `words`: it is untrusted, so in one line and short."""
    text = plain(str(said or "")[:_LONGEST])
    return f"{words} ('{text}')" if text else words


def of_farewell(code: int, said: object) -> str:
    """Explain why the broker ended the connection with a DISCONNECT."""
    return with_said(in_words(code) if code else "the broker ended the connection", said)


def of_break(code: int, heard: str) -> str:
    """Why a connection broke.

    Args:
        code: that paho makes of it.
        heard: what paho says of it.
    """
    if code == KEEP_ALIVE:
        return in_words(code)
    if code == PROTOCOL_ERROR:
        return "it sent something that is not MQTT"
    return of_alert(heard) or f"the connection broke{heard and f': {heard}'}"


def of_silence(words: str, *, tls: bool) -> str:
    """Say of a broker that took the connection and keeps silent after our CONNECT what to check.

    Args:
        words: that say so.
        tls: whether it is spoken already.
    """
    return of_hanging_up(f"{words}; check that it is an MQTT broker", tls=tls)


def of_opening(error: Exception, *, tls: bool) -> str:
    """Explain to a user an error that came while the connection was opened.

    Args:
        error: of the network or of TLS.
        tls: True if the connection was to be encrypted.
    """
    words, hint = of_error(error), tls and _may_be_without_tls(error)
    return f"{words}; {WITHOUT_TLS}" if hint else words


def _may_be_without_tls(error: Exception) -> bool:
    """Return True if a broker without TLS may have answered the TLS greeting like that."""
    if isinstance(error, ssl.SSLError):
        return error.reason in _NO_TLS
    if isinstance(error, TimeoutError):
        return "handshake" in str(error)  # else TCP did not connect
    return isinstance(error, ConnectionResetError | ConnectionAbortedError | BrokenPipeError)


def of_hanging_up(words: str, *, tls: bool) -> str:
    """Why a connection broke that the broker has not answered yet: one that wants TLS does so without a word.

    Args:
        words: why, as far as it shows.
        tls: whether it is spoken already.
    """
    return words if tls else f"{words}; if it speaks TLS there, set [mqtt] tls"


def of_alert(text: str) -> str:
    """Explain a text of OpenSSL if it names an alert from the broker; empty: it names none."""
    return next((words for name, words in _ALERTS.items() if f"ALERT_{name}" in text.upper()), "")


def of_tls(error: Exception) -> str:
    """Return OpenSSL's reason without its codes: `wrong version number`."""
    reason = getattr(error, "reason", None)
    if not reason:
        return reason_of(error)
    return str(reason).replace("_", " ").lower()


def of_error(error: Exception) -> str:
    """Explain an error of the network or of TLS to a user."""
    if isinstance(error, ssl.SSLCertVerificationError):
        text = f"its certificate is not accepted: {error.verify_message}"
        if error.verify_code in _EXPIRED:
            text += f"; the clock here says {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, is that right?"
        return text
    if isinstance(error, ssl.SSLError):
        return of_alert(getattr(error, "reason", None) or "") or f"TLS failed: {of_tls(error)}"
    if isinstance(error, socket.gaierror):
        return f"its name cannot be resolved: {error.strerror}"
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there"
    if isinstance(error, TimeoutError):
        return "no answer"
    return reason_of(error)


# How a broker that is there turns us away: it says no to our CONNECT, or it says nothing.


class RefusedError(BrokerError):
    """The broker answered, and does not want us.

    Attributes:
        code: MQTT 5 reason code.
    """

    def __init__(self, code: int, words: str = "", *, text: str = "") -> None:
        """Say why.

        Args:
            code: MQTT 5 reason code.
            words: that the broker says of its own accord.
            text: of the error; empty: the code's.
        """
        self.code = code
        super().__init__(text or with_said(in_words(code), words))


class UnansweredError(BrokerError):
    """The broker took the connection and did not answer our CONNECT.

    Attributes:
        silent: it let us wait; else it ended the connection.
    """

    def __init__(self, text: str, *, silent: bool) -> None:
        self.silent = silent
        super().__init__(text)
