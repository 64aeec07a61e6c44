"""Pauses between two attempts to connect."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

import pytest

from agent.comms.mqtt.connection import ConnectionTimings
from agent.comms.mqtt.publisher import Publisher
from agent.comms.mqtt.reasons import Synchronised
from agent.config.mqtt import MqttConfig
from tests.support.hostile import CONNACK_5, peer, receive_until, until_left
from tests.support.mosquitto import HOST
from tests.support.publishing import TOPICS, Kept, wait_for


def publisher(synchronised: Synchronised) -> Publisher:
    return Publisher(MqttConfig(), TOPICS, Kept(), synchronised, timings=ConnectionTimings(clock_every_s=0.02))


def lasted(what: Callable[[], None]) -> float:
    began = time.monotonic()
    what()
    return time.monotonic() - began


def test_a_pause_lasts_as_long_as_it_is_told() -> None:
    made = publisher(lambda: None)
    assert lasted(lambda: made._pause(0.1, by_clock=False)) >= 0.1
    assert lasted(lambda: made._pause(0.1, by_clock=True)) >= 0.1


@pytest.mark.parametrize("by_clock", [False, True])
@pytest.mark.parametrize("what", ["stop", "reconfigure"])
def test_a_stop_or_a_new_configuration_ends_a_pause(by_clock: bool, what: str) -> None:
    made = publisher(lambda: False)
    threading.Timer(
        0.1, made._interrupt.set if what == "stop" else lambda: made.reconfigure(MqttConfig())
    ).start()
    assert lasted(lambda: made._pause(60.0, by_clock=by_clock)) < 50.0


def test_a_clock_that_is_set_ends_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    began, right = time.monotonic(), time.time
    monkeypatch.setattr(time, "time", lambda: right() if time.monotonic() > began + 0.2 else 1000.0)
    made = publisher(lambda: None)
    assert 0.1 < lasted(lambda: made._pause(60.0, by_clock=True)) < 50.0


def test_a_clock_that_becomes_synchronised_ends_a_pause_and_one_that_was_does_not() -> None:
    began = time.monotonic()
    made = publisher(lambda: time.monotonic() > began + 0.2)
    assert 0.1 < lasted(lambda: made._pause(60.0, by_clock=True)) < 50.0
    assert lasted(lambda: made._pause(0.1, by_clock=True)) >= 0.1


def test_a_new_configuration_does_not_wait_for_a_broker_that_keeps_silent() -> None:
    connected: list[bytes] = []
    asked = threading.Event()

    def mute(connection: socket.socket) -> None:
        connection.recv(4096)
        asked.set()
        connection.recv(4096)

    def serve(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(CONNACK_5)
        connected.append(receive_until(connection, b"kept"))
        until_left(connection)

    patient = ConnectionTimings(answer_s=60.0, first_answer_s=60.0)
    with peer(mute) as first, peer(serve) as second:
        made = Publisher(MqttConfig(host=HOST, port=first, protocol="5"), TOPICS, Kept(), timings=patient)
        made.retain(TOPICS.health, b"kept")
        made.start()
        assert asked.wait(60.0)
        made.reconfigure(MqttConfig(host=HOST, port=second, protocol="5"))
        wait_for(lambda: made.state.connected, 50.0)  # the first broker is given 60 s
        assert made.state.broker == f"{HOST}:{second}"
        wait_for(lambda: connected)
        made.stop(1.0)
