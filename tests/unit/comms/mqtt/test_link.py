"""Rules of the line to the broker that need no broker: pauses, versions, words, outages."""

from __future__ import annotations

import logging
import select
import socket
import ssl
import threading
import time

import pytest

from agent.comms.mqtt import reasons
from agent.comms.mqtt import session as outage_module
from agent.comms.mqtt.brokers import ProtocolChoice
from agent.comms.mqtt.connection import WakeupPipe
from agent.comms.mqtt.paho_client import Protocol
from agent.comms.mqtt.reasons import RefusedError, UnansweredError
from agent.comms.mqtt.session import LinkLog, Stop
from agent.errors import BrokerError

SILENT, CLOSED = UnansweredError("x", silent=True), UnansweredError("x", silent=False)
TOO_NEW = RefusedError(reasons.UNSUPPORTED_PROTOCOL)


def spoken(choice: ProtocolChoice) -> str:
    return choice.current


def test_a_broker_that_says_it_does_not_speak_mqtt_5_is_tried_with_3_1_1_at_once() -> None:
    choice = ProtocolChoice("auto")
    assert spoken(choice) == "5"
    assert choice.failed(TOO_NEW)
    assert spoken(choice) == "3.1.1"
    choice.worked()
    assert not choice.failed(CLOSED)
    assert not choice.failed(CLOSED)
    assert spoken(choice) == "3.1.1", "once proven, only the broker's word changes it"
    assert not choice.failed(TOO_NEW)
    assert spoken(choice) == "5"


def test_a_broker_that_keeps_silent_is_not_waited_for_long() -> None:
    choice = ProtocolChoice("auto")
    assert choice.patience_s < 5
    assert choice.failed(SILENT)
    assert spoken(choice) == "3.1.1"
    assert choice.patience_s >= 10


def test_a_broker_that_hangs_up_gets_a_second_chance() -> None:
    choice = ProtocolChoice("auto")
    assert not choice.failed(CLOSED)
    assert not choice.failed(BrokerError("nothing listens there"))
    assert spoken(choice) == "5"
    assert choice.failed(CLOSED)
    assert spoken(choice) == "3.1.1"
    choice.failed(CLOSED)
    choice.failed(CLOSED)
    assert spoken(choice) == "5"


def test_a_configured_version_is_never_changed() -> None:
    versions: tuple[Protocol, ...] = ("5", "3.1.1")
    for version in versions:
        choice = ProtocolChoice(version)
        for error in (TOO_NEW, SILENT, CLOSED):
            assert not choice.failed(error)
        assert choice.current == version


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
    assert words in reasons.of_error(error)


def test_codes_in_plain_words() -> None:
    assert "user name or password" in reasons.in_words(0x86)
    assert reasons.in_words(0xF0) == "reason code 0xf0"


@pytest.fixture
def line(caplog: pytest.LogCaptureFixture) -> LinkLog:
    caplog.set_level(logging.INFO)
    return LinkLog("host:1883", "vedette0")


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_an_outage_is_said_once_at_each_end(
    line: LinkLog, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    line.over("MQTT 5")
    line.acknowledged()
    now[0] += 1000
    line.lost("the connection broke")
    for _ in range(50):
        now[0] += 1.0
        line.lost("nothing listens there")
        assert not line.connected
        assert line.detail == "nothing listens there"
    line.over("MQTT 5")
    assert line.connected
    line.acknowledged()
    assert said(caplog) == [
        "broker host:1883: connected, MQTT 5",
        "broker host:1883: the connection broke; events wait in the spool, trying again",
        "broker host:1883: back after 50.0 s, MQTT 5",
    ]
    line.leave()
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
    assert len(said(caplog)) == outage_module._MOST_SAID


def test_connections_that_do_not_last_are_one_outage(
    line: LinkLog, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for _ in range(30):
        line.over("MQTT 3.1.1")
        line.acknowledged()
        now[0] += 1.0
        line.stable()
        line.lost("the connection broke")
    assert line.is_flapping
    assert len(said(caplog)) == 5
    assert "does another device use the client id vedette0?" in said(caplog)[-1]
    line.over("MQTT 3.1.1")
    line.acknowledged()
    now[0] += outage_module._STABLE_S
    line.stable()
    assert "back after" in said(caplog)[-1]
    assert not line.is_flapping


def test_a_broker_that_accepts_and_acknowledges_nothing_is_not_back(
    line: LinkLog, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for _ in range(10):
        line.over("MQTT 5")
        for _ in range(60):
            now[0] += 1.0
            line.stable()
        line.lost("no acknowledgement for 60 s")
    assert said(caplog) == [
        "broker host:1883: no acknowledgement for 60 s; events wait in the spool, trying again"
    ]
    line.over("MQTT 5")
    line.acknowledged()
    assert len(said(caplog)) == 2
    assert "back after" in said(caplog)[1]


def test_a_connection_taken_over_is_said_once(line: LinkLog, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(10):
        line.over("MQTT 5")
        line.acknowledged()
        line.lost(reasons.in_words(reasons.TAKEN_OVER), refused=True)
    assert len([text for text in said(caplog) if "another client connected with our client id" in text]) == 1
    assert len(said(caplog)) == 2


def test_a_wake_wakes_from_any_thread_and_only_until_cleared() -> None:
    wake = WakeupPipe()
    poll = select.poll()
    poll.register(wake, select.POLLIN)
    assert not poll.poll(0)
    threads = [threading.Thread(target=wake.set) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert poll.poll(1000)
    wake.clear()
    assert not poll.poll(0)
    wake.clear()
    wake.set()
    assert poll.poll(1000)
    wake.clear()
    wake.close()
    wake.set()


def test_a_stop_keeps_time_for_a_last_word() -> None:
    stop = Stop()
    assert stop.left() > 1e9
    stop.ask(1.2)
    assert stop.is_asked
    assert 1.1 < stop.left() <= 1.2
    assert 0.8 < stop.drain_left() <= 0.9
    stop.ask(0.0)
    assert stop.left() == stop.drain_left() == 0.0
