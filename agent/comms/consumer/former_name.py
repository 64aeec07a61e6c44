"""Finds and deletes what a device left retained at a broker under a former name. Used by `vedette cleanup`."""

from __future__ import annotations

import queue
import time
from types import TracebackType
from typing import Any, Self

import paho.mqtt.client as paho
from msgspec import Struct

from agent.comms.consumer.client import BrokerOptions, ConsumerClient
from agent.comms.homeassistant import discovery
from agent.comms.topics import ONLINE, Topics
from agent.errors import BrokerError
from agent.text import plural

_QUIET_S = 2.0
"""The broker sends what it retains at once: after so long without a message there are no more."""
_ACKNOWLEDGE_S = 10.0
_REFUSAL = 0x80


class LeftBehind(Struct, frozen=True):
    """List what a broker still retains under the device's former name.

    Attributes:
        topics: retained topics, with Home Assistant's discovery message if that is this device's.
        entities: unique ids of the entities in the discovery message.
    """

    topics: tuple[str, ...] = ()
    entities: tuple[str, ...] = ()


class FormerName:
    """One connection to a broker, for one former name. A context manager."""

    def __init__(self, options: BrokerOptions, topics: Topics, discovery_prefix: str) -> None:
        """Prepare.

        Args:
            options: how to reach the broker.
            topics: of the former name.
            discovery_prefix: Home Assistant's.

        Raises:
            BrokerError: a certificate or a key cannot be used.
        """
        self._options, self._topics = options, topics
        self._discovery = discovery.topic(discovery_prefix, topics.device)
        self._received: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()
        self._acknowledged: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
        self._connection = ConsumerClient(options, "3.1.1")
        client = self._connection.client
        client.on_message = self._on_message
        client.on_subscribe = lambda _c, _u, _m, codes, _p: self._acknowledged.put([int(c.value) for c in codes])

    def __enter__(self) -> Self:
        """Connect.

        Raises:
            BrokerError: the broker cannot be reached, or refuses the connection.
        """
        self._connection.connect(_ACKNOWLEDGE_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.disconnect()

    def find(self) -> LeftBehind:
        """Return what the broker retains.

        Raises:
            BrokerError: a device is online under that name, or the broker refuses the subscription.
        """
        retained = self._read_retained()
        if retained.get(self._topics.status) == ONLINE:
            raise BrokerError(
                f"a device is online as {self._topics.prefix}/{self._topics.device}; nothing is deleted; "
                "if that is this device, stop it or wait until the broker calls it offline"
            )
        identifier = f"{self._topics.prefix}/{self._topics.device}"
        body = retained.pop(self._discovery, b"")
        if not discovery.is_of(body, identifier):
            return LeftBehind(tuple(sorted(retained)))
        return LeftBehind((*sorted(retained), self._discovery), discovery.entity_ids(body))

    def delete(self, found: LeftBehind) -> None:
        """Delete topics, by an empty retained message to each, and check that they are gone.

        Raises:
            BrokerError: the broker does not acknowledge that, or still retains some.
        """
        client = self._connection.client
        sent = [client.publish(topic, b"", qos=1, retain=True) for topic in found.topics]
        until = time.monotonic() + _ACKNOWLEDGE_S
        for one in sent:
            one.wait_for_publish(max(0.0, until - time.monotonic()))
        left = set(found.topics) & set(self._read_retained())
        if left or not all(one.is_published() for one in sent):
            count = plural(len(left), "topic") if left else "no acknowledgement"
            raise BrokerError(
                f"the broker at {self._options.where} has not deleted everything: {count} left; "
                f"does its access list allow {self._options.user} to write there?"
            )

    def _read_retained(self) -> dict[str, bytes]:
        patterns = (f"{self._topics.prefix}/{self._topics.device}/#", self._discovery)
        client = self._connection.client
        client.subscribe([(pattern, 1) for pattern in patterns])
        try:
            codes = self._acknowledged.get(timeout=_ACKNOWLEDGE_S)
        except queue.Empty:
            raise BrokerError(f"the broker at {self._options.where} does not answer the subscription") from None
        if codes[0] >= _REFUSAL:
            raise BrokerError(f"the broker does not allow {self._options.user} to subscribe to {patterns[0]}")
        retained: dict[str, bytes] = {}
        while True:
            try:
                topic, payload = self._received.get(timeout=_QUIET_S)
            except queue.Empty:
                break
            retained[topic] = payload
        client.unsubscribe(list(patterns))
        return retained

    def _on_message(self, client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        if message.retain and message.payload:
            self._received.put((message.topic, bytes(message.payload)))
