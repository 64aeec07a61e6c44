"""Which MQTT is tried next, and outages in the log."""

from __future__ import annotations

import logging
import time

import pytest

from agent.comms.mqtt import endpoint, link
from agent.comms.mqtt.endpoint import UNSUPPORTED_PROTOCOL, RefusedError, UnansweredError
from agent.comms.mqtt.link import BrokerEndpoint, LinkLog
from agent.config.servers import MqttConfig, MqttVersion
from agent.errors import BrokerError

CLOSED = UnansweredError("x")
TOO_NEW = RefusedError("x", UNSUPPORTED_PROTOCOL)


def choice(protocol: MqttVersion = "auto") -> BrokerEndpoint:
    return BrokerEndpoint(MqttConfig(protocol=protocol), "id", None)


def spoken(broker: BrokerEndpoint) -> str:
    return broker.protocol


def test_a_broker_that_says_it_does_not_speak_mqtt_5_is_tried_with_3_1_1_at_once() -> None:
    broker = choice()
    assert spoken(broker) == "5"
    assert broker.speaks_another(TOO_NEW)
    assert spoken(broker) == "3.1.1"
    broker._is_proven = True
    assert not broker.speaks_another(CLOSED)
    assert not broker.speaks_another(CLOSED)
    assert spoken(broker) == "3.1.1", "once proven, only the broker's word changes it"
    broker.speaks_another(TOO_NEW)
    assert spoken(broker) == "5"


def test_a_broker_that_hangs_up_gets_a_second_chance() -> None:
    broker = choice()
    assert not broker.speaks_another(CLOSED)
    assert not broker.speaks_another(BrokerError("nothing listens there"))
    assert spoken(broker) == "5"
    assert broker.speaks_another(CLOSED)
    assert spoken(broker) == "3.1.1"
    broker.speaks_another(CLOSED)
    broker.speaks_another(CLOSED)
    assert spoken(broker) == "5"


def test_a_configured_version_is_never_changed() -> None:
    versions: tuple[MqttVersion, ...] = ("5", "3.1.1")
    for version in versions:
        broker = choice(version)
        for error in (TOO_NEW, CLOSED):
            assert not broker.speaks_another(error)
        assert spoken(broker) == version


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


def test_connections_that_do_not_last_are_one_outage(
    line: LinkLog, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for _ in range(30):
        line.accepted("MQTT 3.1.1")
        line.acknowledged()
        now[0] += 1.0
        line.poll()
        line.lost("the connection broke")
    assert line.is_flapping
    assert len(said(caplog)) == 4
    line.accepted("MQTT 3.1.1")
    line.acknowledged()
    now[0] += link._STABLE_S
    line.poll()
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
            line.poll()
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
        line.lost(endpoint.in_words(0x8E), refused=True)
    assert len([text for text in said(caplog) if "another client connected with the same client id" in text]) == 1
    assert len(said(caplog)) == 2
