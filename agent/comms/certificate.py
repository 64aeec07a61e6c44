"""Why a broker's certificate is not accepted, in plain words: for whom it is and when, and what the clock says.

What OpenSSL refuses it does not show. So the broker is asked once more for its certificate, which is only looked
at: nothing is sent on that connection. Format of certificates: RFC 5280, section 4.1.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from msgspec import Struct

from agent.comms.credentials import port, read_certificates
from agent.comms.guard import Guard
from agent.config import MqttConfig
from agent.errors import BrokerError, ConfigError

_NOT_YET, _EXPIRED, _SELF_SIGNED, _NO_ISSUER, _NAMES = 9, 10, (18, 19), (2, 20, 21), (62, 64)
"""X509_V_ERR_… of OpenSSL's x509_vfy.h."""
_LOOK_S = 5.0
_SHOWN = 5

Synchronised = Callable[[], bool | None]
"""Whether the clock is synchronised; None: nobody knows."""


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
    """What a refused certificate means for a user.

    Args:
        error: OpenSSL's word on it.
        config: of the broker.
        synchronised: see there.
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
        Guard(connection, _LOOK_S),
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
