"""Messages that a subscriber of the real broker has received."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import paho.mqtt.client as paho


class Received(NamedTuple):
    """One message as the subscriber got it."""

    topic: str
    payload: bytes
    retain: bool
    qos: int
    at: float
    properties: Any = None


class Messages:
    """Messages of a subscriber so far, in order. Closed with its broker."""

    def __init__(self, client: paho.Client) -> None:
        self.client = client
        self.subscribed = threading.Event()
        self._arrived = threading.Condition()
        self._list: list[Received] = []
        client.on_message = self._take

    def _take(self, client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        with self._arrived:
            self._list.append(
                Received(
                    message.topic,
                    bytes(message.payload),
                    message.retain,
                    message.qos,
                    time.monotonic(),
                    message.properties,
                )
            )
            self._arrived.notify_all()

    def __len__(self) -> int:
        return len(self._list)

    def __iter__(self) -> Iterator[Received]:
        return iter(list(self._list))

    def __getitem__(self, index: int) -> Received:
        return self._list[index]

    def of(self, topic: str) -> list[bytes]:
        """Payloads of one topic."""
        return [message.payload for message in self if message.topic == topic]

    def wait(self, until: Callable[[Messages], Any], timeout_s: float = 60.0) -> Messages:
        """Wait until `until(messages)` is true, or fail with what has come."""
        with self._arrived:
            if not self._arrived.wait_for(lambda: until(self), timeout_s):
                tail = [(m.topic, m.payload[:60]) for m in self._list[-5:]]
                raise AssertionError(f"{len(self)} messages after {timeout_s} s, the last: {tail}")
        return self

    def close(self) -> None:
        self.client.disconnect()
        with suppress(AttributeError):  # paho's thread may end, and take itself away, between a look and a use
            self.client.loop_stop()
