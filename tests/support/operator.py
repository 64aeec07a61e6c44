"""An operator at a real broker: sets, asks, and waits for states and answers."""

from __future__ import annotations

import json
from typing import Any

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.comms.topics import Topics
from tests.support.mosquitto import Mosquitto
from tests.support.publishing import TOPICS
from tests.support.received import Messages


class Operator:
    """Operator of one device."""

    def __init__(self, broker: Mosquitto, topics: Topics = TOPICS, *, user: str = "") -> None:
        self.broker, self.topics = broker, topics
        self.messages: Messages = broker.subscribe("vedette/#", user=user)
        self._count = 0

    def set(self, stream: str, what: str, value: object) -> None:
        """Send a setting."""
        self.messages.client.publish(self.topics.set(stream, what), str(value), qos=1)

    def states(self, stream: str, what: str) -> list[bytes]:
        """Return the states of a setting so far."""
        return self.messages.of(self.topics.state(stream, what))

    def wait_state(self, stream: str, what: str, value: str) -> None:
        """Wait until that is the newest."""
        self.messages.wait(lambda _: self.states(stream, what)[-1:] == [value.encode()])

    def ask(self, verb: str, timeout_s: float = 60.0, **body: Any) -> dict[str, Any]:
        """Send a request; gives its answer."""
        self._count += 1
        mark = f"{self._count}"
        answer_to = f"{self.topics.answer(verb)}/test-{mark}"
        self.request(verb, json.dumps(body).encode(), answer_to, mark.encode())
        self.messages.wait(lambda m: m.of(answer_to), timeout_s)
        answer: dict[str, Any] = json.loads(self.messages.of(answer_to)[0])
        return answer

    def request(self, verb: str, payload: bytes, answer_to: str, correlation: bytes) -> None:
        """Send a request, and wait for nothing."""
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho leaves it untyped
        properties.ResponseTopic, properties.CorrelationData = answer_to, correlation
        self.messages.client.publish(self.topics.command(verb), payload, qos=1, properties=properties)
