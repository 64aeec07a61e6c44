"""Texts from the broker: what is taken, when it was said, and that nothing odd is logged in full or twice."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as some

from agent.comms.mqtt.inbox import IncomingMessage
from agent.errors import CommandError
from agent.features.fusion.part import TEXT_MAX, ReceivedText, TextReceiver, decode_text, said_at

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("payload", "text", "at"),
    [
        (b"help", "help", None),
        ("Grüße".encode(), "Grüße", None),
        (b'{"text": "help"}', "help", None),
        (b'{"text": "help", "at": "2026-03-01T13:00:00+01:00"}', "help", NOW),
        (b'{"text": "help", "at": 1772366400}', "help", NOW),
        (b'{"text": "help", "from": "an unknown key"}', "help", None),
        (b"", "", None),
    ],
)
def test_a_text_is_plain_or_json_with_its_time(payload: bytes, text: str, at: datetime | None) -> None:
    assert decode_text(payload) == ReceivedText(text, at)


@pytest.mark.parametrize(
    "payload",
    [
        b"x" * (TEXT_MAX + 1),
        b"\xff\xfe",
        b'{"text": 5}',
        b'{"text": "x", "at": "2026-03-01T13:00:00"}',
        b'{"text": "x", "at": 1e300}',
        b"{",
        b'{"text": ' + b"[" * 3000,
    ],
)
def test_what_is_no_text_is_refused_without_being_quoted(payload: bytes) -> None:
    with pytest.raises(CommandError) as error:
        decode_text(payload)
    assert len(str(error.value)) < 100


@given(some.binary(max_size=200))
def test_any_payload_is_a_text_or_refused(payload: bytes) -> None:
    try:
        found = decode_text(payload)
    except CommandError:
        return
    assert found.at is None or found.at.tzinfo is not None


def test_the_senders_time_counts_only_near_ours_and_never_ahead() -> None:
    def at(seconds: float) -> datetime:
        return said_at(ReceivedText("", NOW + timedelta(seconds=seconds)), NOW)

    assert at(-3.0) == NOW - timedelta(seconds=3)
    assert at(3.0) == NOW, "it cannot have been said later than it came"
    assert at(-6.0) == at(6.0) == NOW
    assert said_at(ReceivedText(""), NOW) == NOW


def test_refusals_are_counted_each_kind_is_logged_once_and_texts_never(caplog: pytest.LogCaptureFixture) -> None:
    got: list[str] = []
    receiver = TextReceiver("gate", lambda name, text, at: got.append(f"{name}: {text}"))
    with caplog.at_level(logging.DEBUG):
        for payload in (b"secret one", b"\xff", b"\xff", b"x" * 5000):
            receiver.receive(IncomingMessage("t", payload))
        receiver.receive(IncomingMessage("t", b"secret two", retained=True))
        receiver.receive(IncomingMessage("t", b"", retained=True))
        for _ in range(2):
            receiver.receive(IncomingMessage("t", json.dumps({"text": "secret 3", "at": 0}).encode()))
    assert got == ["gate: secret one", "gate: secret 3", "gate: secret 3"]
    assert receiver.refused == 4
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3, "not UTF-8, too long, retained"
    assert "secret" not in caplog.text
