"""Outages and stops, without a broker."""

from __future__ import annotations

import logging
import time

import pytest

from agent.comms.mqtt import endpoint, session
from agent.comms.mqtt.session import LinkLog, Stop


@pytest.fixture
def line(caplog: pytest.LogCaptureFixture) -> LinkLog:
    caplog.set_level(logging.INFO)
    return LinkLog("host:1883")


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_an_outage_is_said_once_at_each_end(
    line: LinkLog, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    line.accepted("MQTT 5")
    line.acknowledged()
    now[0] += 1000
    line.lost("the connection broke")
    for _ in range(50):
        now[0] += 1.0
        line.lost("nothing listens there")
        assert not line.connected
        assert line.detail == "nothing listens there"
    line.accepted("MQTT 5")
    assert line.connected
    line.acknowledged()
    assert said(caplog) == [
        "broker host:1883: connected, MQTT 5",
        "broker host:1883: the connection broke; events wait in the spool, trying again",
        "broker host:1883: back after 50.0 s, MQTT 5",
    ]
    line.close("stopped")
    assert (line.connected, line.detail) == (False, "stopped")


def test_a_refusal_during_an_outage_is_said_too_but_once(line: LinkLog, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(5):
        line.lost("nothing listens there")
        line.lost("refuses user 'cam': not authorised", refused=True)
    assert len(said(caplog)) == 2


def test_a_broker_that_always_gives_another_reason_does_not_fill_the_log(
    line: LinkLog, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(1000):
        line.lost(f"not authorised ('{number}')", refused=True)
    assert len(said(caplog)) == session._MAX_LOGGED


def test_connections_that_do_not_last_are_one_outage(
    line: LinkLog, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for _ in range(30):
        line.accepted("MQTT 3.1.1")
        line.acknowledged()
        now[0] += 1.0
        line.stable()
        line.lost("the connection broke")
    assert line.is_flapping
    assert len(said(caplog)) == 4
    line.accepted("MQTT 3.1.1")
    line.acknowledged()
    now[0] += session._STABLE_S
    line.stable()
    assert "back after" in said(caplog)[-1]
    assert not line.is_flapping


def test_a_broker_that_accepts_and_acknowledges_nothing_is_not_back(
    line: LinkLog, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for _ in range(10):
        line.accepted("MQTT 5")
        for _ in range(60):
            now[0] += 1.0
            line.stable()
        line.lost("no acknowledgement for 60 s")
    assert said(caplog) == [
        "broker host:1883: no acknowledgement for 60 s; events wait in the spool, trying again"
    ]
    line.accepted("MQTT 5")
    line.acknowledged()
    assert len(said(caplog)) == 2
    assert "back after" in said(caplog)[1]


def test_a_connection_taken_over_is_said_once(line: LinkLog, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(10):
        line.accepted("MQTT 5")
        line.acknowledged()
        line.lost(endpoint.in_words(endpoint.TAKEN_OVER), refused=True, taken_over=True)
    assert len([text for text in said(caplog) if "another client connected with the same client id" in text]) == 1
    assert len(said(caplog)) == 2


def test_a_stop_keeps_time_for_a_last_word() -> None:
    stop = Stop()
    assert stop.seconds_left() > 1e9
    stop.ask(1.2)
    assert stop.is_asked
    assert 1.1 < stop.seconds_left() <= 1.2
    assert 0.8 < stop.drain_seconds_left() <= 0.9
    stop.ask(0.0)
    assert stop.seconds_left() == stop.drain_seconds_left() == 0.0
