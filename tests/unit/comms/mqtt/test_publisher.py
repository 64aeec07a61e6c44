"""A change of the configuration."""

from __future__ import annotations

import socket
import threading

from agent.comms.mqtt.connection import ConnectionTimings
from agent.comms.mqtt.publisher import Publisher
from agent.config.servers import MqttConfig
from tests.support.hostile import CONNACK_5, peer, receive_until, until_left
from tests.support.mosquitto import HOST
from tests.support.publishing import TOPICS, Kept, wait_for


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
