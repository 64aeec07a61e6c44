"""A look at what the broker retains: asked for over one connection, gathered as it comes."""

from __future__ import annotations

from typing import Any

import paho.mqtt.client as paho
from msgspec import Struct


class Retained(Struct, frozen=True):
    """A message that lay at the broker."""

    topic: str
    payload: bytes


class Look:
    """A subscription for as long as the look lasts. For the thread that turns the connection."""

    def __init__(self, client: paho.Client, pattern: str) -> None:
        """Ask.

        Args:
            client: connected; nobody else looks.
            pattern: of the topics.
        """
        self._client, self._pattern = client, pattern
        self._answered = False
        self._found: list[Retained] = []
        client.on_subscribe, client.on_message = self._on_subscribe, self._on_message
        client.subscribe(pattern, qos=0)

    def found(self) -> list[Retained] | None:
        """What has come since the last time; None as long as the broker has not answered."""
        if not self._answered:
            return None
        found, self._found = self._found, []
        return found

    def end(self) -> None:
        """No more of it."""
        self._client.unsubscribe(self._pattern)

    def _on_subscribe(self, client: Any, userdata: Any, mid: int, reasons: Any, properties: Any) -> None:
        self._answered = True

    def _on_message(self, client: Any, userdata: Any, message: Any) -> None:
        if message.retain:  # else it is our own, on its way past
            self._found.append(Retained(message.topic, message.payload))
