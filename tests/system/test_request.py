"""What `vedette command` and `vedette trace` learn from a broker while they wait for an answer."""

from __future__ import annotations

import pytest

from agent.comms.consumer import BrokerOptions, NoAnswerError, send_command
from tests.support.mosquitto import HOST, Mosquitto
from tests.support.publishing import TOPICS

FOR_EVER_S = 600.0


def test_a_device_that_takes_no_commands_is_not_waited_for(broker: Mosquitto) -> None:
    listener = broker.subscribe("#")  # so that the broker does not refuse the command itself
    listener.client.publish(TOPICS.status, b"online", 1, retain=True)
    listener.client.publish(TOPICS.health, b'{"commands_off": "[mqtt] commands = false"}', 1, retain=True)
    listener.wait(lambda m: m.of(TOPICS.status) and m.of(TOPICS.health))
    with pytest.raises(NoAnswerError, match=r"takes no commands: \[mqtt\] commands = false"):
        send_command(BrokerOptions(HOST, broker.port), TOPICS, "status", {}, FOR_EVER_S)
