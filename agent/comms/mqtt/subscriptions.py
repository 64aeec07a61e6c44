"""Subscriptions of one connection: asked for, answered, and what comes for them handed to whoever asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import paho.mqtt.client as paho
from msgspec import Struct
from paho.mqtt.subscribeoptions import SubscribeOptions


class IncomingMessage(Struct, frozen=True, gc=False):
    """A message from the broker.

    Attributes:
        topic: as received.
        payload: as received.
        retained: it lay at the broker, and was not sent just now; of a subscription `as_published`: it was sent
            to lie there, now or before.
        response_topic: where its sender waits for an answer (MQTT 5); empty: nowhere.
        correlation: what the answer must carry, so that its sender knows it (MQTT 5).
    """

    topic: str
    payload: bytes
    retained: bool = False
    response_topic: str = ""
    correlation: bytes = b""


Take = Callable[[IncomingMessage], None]
Answered = Callable[[int], None]


_MOST_UNASKED = 10_000
"""Messages that nobody takes, since the last change: some may be on their way when a subscription ends."""


class _Asked(Struct):
    """A subscription: who takes what comes for it, and who is told the broker's word on it."""

    take: Take
    answered: Answered


class Subscriptions:
    """For the thread that turns the connection; everything is called in it."""

    def __init__(self, client: paho.Client, *, mqtt_5: bool = True) -> None:
        """Take a client over that nobody else subscribes with.

        Args:
            client: of one connection.
            mqtt_5: whether it speaks that; 3.1.1 knows a pattern and its QoS alone.
        """
        self._client, self._is_5 = client, mqtt_5
        self._asked: dict[str, list[_Asked]] = {}
        self._pending: dict[int, str] = {}
        self._unasked = 0
        client.on_subscribe, client.on_message = self._on_subscribe, self._on_message

    def add(
        self,
        pattern: str,
        take: Take,
        answered: Answered,
        *,
        qos: int,
        as_published: bool = False,
    ) -> None:
        """Subscribe.

        Args:
            pattern: of topics. Where two overlap, the broker may send a message twice; two may ask for the same.
            take: gets each message.
            answered: gets the broker's reason code; 0x80 and above is a refusal.
            qos: at most.
            as_published: a message that is sent to be retained says so also while it passes. Under MQTT 3.1.1
                only what lies there already does: whether one that passes will stay is not told.

        Raises:
            ValueError: that is no pattern.
        """
        self._unasked = 0
        if self._is_5:
            _, mid = self._client.subscribe(
                pattern, options=SubscribeOptions(qos, retainAsPublished=as_published)
            )
        else:
            _, mid = self._client.subscribe(pattern, qos)
        self._asked.setdefault(pattern, []).append(_Asked(take, answered))
        if mid is not None:  # else the connection is gone, and there will be no answer
            self._pending[mid] = pattern

    def remove(self, pattern: str, take: Take | None = None) -> None:
        """Unsubscribe: what is on its way is left aside.

        Args:
            pattern: of topics.
            take: of the one that wants it no more; others may. None: nobody does.
        """
        asked = self._asked.pop(pattern, [])
        if left := [one for one in asked if take is not None and one.take != take]:
            self._asked[pattern] = left
        elif asked:
            self._unasked = 0
            self._client.unsubscribe(pattern)

    @property
    def is_flooded(self) -> bool:
        """Return True if the broker keeps sending messages that match no subscription."""
        return self._unasked > _MOST_UNASKED

    def _on_subscribe(self, client: Any, userdata: Any, mid: int, reasons: Any, properties: Any) -> None:
        for asked in list(self._asked.get(self._pending.pop(mid, ""), ())) if reasons else ():
            asked.answered(int(reasons[0].value))

    def _on_message(self, client: Any, userdata: Any, message: Any) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            self._unasked += 1
            return  # MQTT 5.0, 1.5.4: no topic can be so; a broker that lets it through is not to be believed
        properties = message.properties
        received = IncomingMessage(
            topic,
            bytes(message.payload),
            bool(message.retain),
            getattr(properties, "ResponseTopic", ""),
            getattr(properties, "CorrelationData", b""),
        )
        matching = [asked for pattern, asked in self._asked.items() if paho.topic_matches_sub(pattern, topic)]
        takers = [one for asked in matching for one in asked]
        self._unasked += not takers
        for asked in takers:
            asked.take(received)


# A look at what the broker retains: asked for over one connection, gathered as it comes.

_MOST = 1024 * 1024
"""Bytes of topics and payloads that come for one look: no more lies there, whatever a broker says."""


class RetainedSubscription:
    """A subscription to retained messages only. For the thread that turns the connection."""

    def __init__(self, subscriptions: Subscriptions, pattern: str) -> None:
        """Ask.

        Args:
            subscriptions: of the connection.
            pattern: of the topics.
        """
        self._subscriptions, self._pattern = subscriptions, pattern
        self._answered, self._bytes = False, 0
        self._found: list[IncomingMessage] = []
        subscriptions.add(pattern, self._take, self._on_answer, qos=0)

    def received(self) -> list[IncomingMessage] | None:
        """Return the messages since the last call; None until the broker has answered the subscription."""
        if not self._answered:
            return None
        found, self._found = self._found, []
        return found

    def end(self) -> None:
        """No more of it."""
        self._subscriptions.remove(self._pattern, self._take)

    def _on_answer(self, code: int) -> None:
        self._answered = True

    def _take(self, received: IncomingMessage) -> None:
        self._bytes += len(received.topic) + len(received.payload)
        if self._bytes > _MOST:
            self.end()  # from now on it counts as what nobody asked for
        elif received.retained:  # else it is our own, on its way past
            self._found.append(received)
