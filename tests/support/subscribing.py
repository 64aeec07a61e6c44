"""A paho client without a network: the test is its broker."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from agent.comms.mqtt.connection import Connection
from agent.comms.mqtt.inbox import Subscriptions


class Client:
    """Keeps what it is asked for, `+` subscribed and `-` unsubscribed."""

    on_subscribe: Any = None
    on_message: Any = None

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.options: dict[str, Any] = {}

    def subscribe(self, pattern: str, qos: int = 0, options: Any = None) -> tuple[int, int]:
        self.asked.append(f"+{pattern}")
        self.options[pattern] = options
        return 0, len(self.asked)

    def unsubscribe(self, pattern: str) -> None:
        self.asked.append(f"-{pattern}")

    def answer(self, code: int, mid: int = 0) -> None:
        """The broker's word on the newest subscription, or on that number."""
        self.on_subscribe(self, None, mid or len(self.asked), [SimpleNamespace(value=code)], None)

    def message(self, topic: str, payload: bytes, *, retain: bool = False, **properties: Any) -> None:
        """Something comes."""
        given = SimpleNamespace(**properties) if properties else None
        self.on_message(
            self, None, SimpleNamespace(topic=topic, payload=payload, retain=retain, properties=given)
        )


def subscriptions(client: Client) -> Subscriptions:
    return Subscriptions(cast("Any", client))


def connection(client: Client) -> Connection:
    """Return a connection with the parts that an inbox uses."""
    return cast("Connection", SimpleNamespace(subscriptions=subscriptions(client)))
