from __future__ import annotations

import ssl
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.comms.mqtt.tls import Validity, validity
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
    assert validity(der) == Validity(begins, ends)


def test_a_certificate_of_the_first_version_has_times_too(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    der = ssl.PEM_cert_to_DER_cert((tmp_path / "ca.pem").read_text())
    read = validity(der)
    assert abs(read.begins - datetime.now(UTC)) < timedelta(hours=12)  # made once in a test session
    assert read.ends - read.begins == timedelta(days=30)


@given(st.binary(max_size=300))
def test_what_is_no_certificate_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        validity(data)


@given(st.data())
def test_a_certificate_with_changed_bytes_is_read_or_refused(data: st.DataObject) -> None:
    der = bytearray(_DER)
    for _ in range(data.draw(st.integers(1, 5))):
        der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    with suppress(ValueError):  # and nothing else
        assert isinstance(validity(bytes(der)), Validity)


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
    assert validity(_DER) == Validity(datetime(2026, 1, 1, tzinfo=UTC), datetime(2050, 1, 1, tzinfo=UTC))
