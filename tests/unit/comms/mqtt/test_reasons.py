from __future__ import annotations

import socket
import ssl
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.comms.mqtt import reasons
from agent.comms.mqtt.reasons import Validity, read_validity
from tests.support.certificates import make_certificate, make_certificates


@pytest.mark.parametrize(
    ("begins", "ends"),
    [
        (datetime(2020, 2, 29, 23, 59, 59, tzinfo=UTC), datetime(2031, 1, 1, tzinfo=UTC)),
        (datetime(1999, 12, 31, tzinfo=UTC), datetime(2080, 6, 1, 12, 0, 1, tzinfo=UTC)),
    ],
)
def test_the_times_of_a_certificate_are_read(tmp_path: Path, begins: datetime, ends: datetime) -> None:
    make_certificates(tmp_path)
    make_certificate(tmp_path, "timed", begins=begins, ends=ends)
    der = ssl.PEM_cert_to_DER_cert((tmp_path / "timed.pem").read_text())
    assert read_validity(der) == Validity(begins, ends)


def test_a_certificate_of_the_first_version_has_times_too(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    der = ssl.PEM_cert_to_DER_cert((tmp_path / "ca.pem").read_text())
    read = read_validity(der)
    assert abs(read.begins - datetime.now(UTC)) < timedelta(hours=12)  # made once in a test session
    assert read.ends - read.begins == timedelta(days=30)


@given(st.binary(max_size=300))
def test_what_is_no_certificate_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_validity(data)


@given(st.data())
def test_a_certificate_with_changed_bytes_is_read_or_refused(data: st.DataObject) -> None:
    der = bytearray(_DER)
    for _ in range(data.draw(st.integers(1, 5))):
        der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    with suppress(ValueError):  # and nothing else
        assert isinstance(read_validity(bytes(der)), Validity)


def _element(tag: int, content: bytes) -> bytes:
    return bytes([tag, 0x82]) + len(content).to_bytes(2, "big") + content


_DER = _element(
    0x30,
    _element(
        0x30,
        b"\xa0\x03\x02\x01\x02\x02\x01\x07\x30\x00\x30\x00"
        + _element(0x30, b"\x17\x0d260101000000Z\x18\x0f20500101000000Z"),
    ),
)


def test_that_sample_is_one() -> None:
    assert read_validity(_DER) == Validity(datetime(2026, 1, 1, tzinfo=UTC), datetime(2050, 1, 1, tzinfo=UTC))


def certificate_error(code: int, message: str) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code, error.verify_message = code, message
    return error


def tls_error(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, f"[SSL: {reason}] (_ssl.c:1006)")
    error.reason = reason
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionRefusedError(111, "x"), "nothing listens there"),
        (TimeoutError(), "no answer"),
        (
            socket.gaierror(-2, "Name or service not known"),
            "its name cannot be resolved: Name or service not known",
        ),
        (OSError(113, "No route to host"), "No route to host"),
        (certificate_error(19, "self-signed"), "its certificate is not accepted: self-signed"),
        (certificate_error(9, "not yet valid"), "not yet valid; the clock here says 20"),
        (ssl.SSLError(1, "wrong version number"), "TLS failed: wrong version number"),
        (tls_error("WRONG_VERSION_NUMBER"), "TLS failed: wrong version number"),
        (tls_error("KEY_VALUES_MISMATCH"), "TLS failed: key values mismatch"),
        (ValueError("label too long"), "label too long"),
        (ValueError(), "ValueError"),
    ],
)
def test_errors_in_plain_words(error: Exception, words: str) -> None:
    assert words in reasons.explain_error(error)


def test_codes_in_plain_words() -> None:
    assert "user name or password" in reasons.in_words(0x86)
    assert reasons.in_words(0xF0) == "reason code 0xf0"
