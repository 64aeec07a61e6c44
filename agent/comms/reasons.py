"""Why a broker cannot be reached or refuses us, in plain words.

Codes: MQTT 5.0, section 2.4. Paho translates those of MQTT 3.1.1 into the same.
"""

from __future__ import annotations

import socket
import ssl
from datetime import UTC, datetime

from agent.errors import reason_of

UNSUPPORTED_PROTOCOL, TAKEN_OVER, KEEP_ALIVE = 0x84, 0x8E, 0x8D

_WORDS = {
    0x80: "it does not say why",
    0x81: "it found our packet malformed",
    0x82: "it found a protocol error",
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
"""What OpenSSL makes of an answer that is not TLS."""
_EXPIRED = (9, 10)
"""X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED: often it is the clock that is wrong."""


def in_words(code: int) -> str:
    """What an MQTT reason code means for a user."""
    return _WORDS.get(code, f"reason code {code:#04x}")


def of_tls(error: Exception) -> str:
    """What OpenSSL says, without its codes: `wrong version number`."""
    reason = getattr(error, "reason", None)
    if not reason:
        return reason_of(error)
    words = str(reason).replace("_", " ").lower()
    return f"{words}: is it TLS that is spoken there?" if reason in _NO_TLS else words


def of_error(error: Exception) -> str:
    """What an error of the network or of TLS means for a user."""
    if isinstance(error, ssl.SSLCertVerificationError):
        text = f"its certificate is not accepted: {error.verify_message}"
        if error.verify_code in _EXPIRED:
            text += f"; the clock here says {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, is that right?"
        return text
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {of_tls(error)}"
    if isinstance(error, socket.gaierror):
        return f"its name cannot be resolved: {error.strerror}"
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there"
    if isinstance(error, TimeoutError):
        return "no answer"
    return reason_of(error)
