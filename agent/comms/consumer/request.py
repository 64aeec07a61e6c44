"""Requests of an operator over the broker.

`vedette command` sends a command to a device and waits for the answer. `vedette cleanup` finds and deletes what a
device left retained under a former name.
"""

from __future__ import annotations

import queue
import secrets
import time
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import msgspec
import paho.mqtt.client as paho
from msgspec import Struct
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.comms.consumer.client import BrokerOptions, ConsumerClient, as_options
from agent.comms.homeassistant.message import entity_ids, is_of
from agent.comms.homeassistant.message import topic as discovery_topic
from agent.comms.mqtt.paho_client import Protocol
from agent.comms.mqtt.reasons import UNSUPPORTED_PROTOCOL, RefusedError, UnansweredError, in_words
from agent.comms.topics import ONLINE, Topics
from agent.errors import NO_JSON, BrokerError
from agent.structs import from_json
from agent.text import plural

_FIRST_S = 3.0
"""Time for MQTT 5 before 3.1.1 is tried, s."""
_NO_SUBSCRIBER, _REFUSAL = 0x10, 0x80
"""Reason codes: nothing has subscribed to the topic; this one and above are refusals. MQTT 5.0, section 2.4."""
_DEVICES_SHOWN = 8


class NoAnswerError(BrokerError):
    """The device has not answered; the message says what may be wrong."""

    exit_code = 3


class CommandReply(Struct, frozen=True):
    """Describe a device's answer to a command.

    Attributes:
        ok: True if the device has done what it was asked to.
        reason: why it has not, or a remark on what it has done.
        body: the whole JSON object.
    """

    ok: bool
    reason: str
    body: dict[str, Any]


class _Health(Struct):
    commands_off: str = ""


class _Answer(Struct):
    ok: bool
    reason: str


def send_command(
    options: BrokerOptions, topics: Topics, verb: str, body: dict[str, Any], timeout_s: float
) -> CommandReply:
    """Send a request, and wait at most `timeout_s` for its answer.

    Raises:
        BrokerError: the broker cannot be reached, or refuses the connection.
        NoAnswerError: the device does not answer.
    """
    until = time.monotonic() + timeout_s
    try:
        return _Exchange(options, topics, verb, "5").run(body, timeout_s, until)
    except _OldBrokerError:
        return _Exchange(options, topics, verb, "3.1.1").run(body, timeout_s, until)


class _OldBrokerError(BrokerError):
    """The broker does not speak MQTT 5."""


class _Exchange:
    """The request and its answer, over one connection."""

    def __init__(self, options: BrokerOptions, topics: Topics, verb: str, protocol: Protocol) -> None:
        self._options, self._topics, self._verb, self._is_5 = options, topics, verb, protocol == "5"
        self._mark = secrets.token_hex(8)
        answer = topics.answer(verb)
        # A device that speaks 3.1.1 never receives a response topic: it answers on the usual one.
        self._answer_topics = [f"{answer}/{self._mark}", answer] if self._is_5 else [answer]
        self._subscribed: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[CommandReply | int] = queue.SimpleQueue()
        self._statuses: dict[str, str] = {}
        self._commands_off = ""
        self._connection = ConsumerClient(options, protocol)
        client = self._client = self._connection.client
        client.on_subscribe = lambda _c, _u, _m, reasons, _p: self._subscribed.put(
            [int(r.value) for r in reasons]
        )
        client.on_publish = lambda _c, _u, _m, reason, _p: self._answers.put(int(reason.value))
        client.on_message = self._message

    def run(self, body: dict[str, Any], timeout_s: float, until: float) -> CommandReply:
        self._connect(max(0.05, until - time.monotonic()))
        try:
            self._subscribe(until)
            self._publish(body)
            return self._wait_answer(timeout_s, until)
        finally:
            self._connection.disconnect()

    def _connect(self, left_s: float) -> None:
        try:
            self._connection.connect(min(_FIRST_S, left_s / 2) if self._is_5 else left_s)
        except UnansweredError as error:
            if self._is_5:  # some old brokers keep silent, or hang up
                raise _OldBrokerError from error
            raise
        except RefusedError as error:
            if self._is_5 and error.code == UNSUPPORTED_PROTOCOL:
                raise _OldBrokerError from error
            raise

    def _subscribe(self, until: float) -> None:
        status = Topics(self._topics.prefix, "+").status
        topics = (status, *self._answer_topics, self._topics.health)
        self._client.subscribe([(topic, 1) for topic in topics])
        try:
            codes = self._subscribed.get(timeout=max(0.05, until - time.monotonic()))
        except queue.Empty:
            raise BrokerError(f"the broker at {self._options.where} does not answer the subscription") from None
        if codes[1] >= _REFUSAL:
            raise BrokerError(
                f"the broker does not let {self._options.user} receive answers: {as_options(in_words(codes[1]))}"
            )

    def _publish(self, body: dict[str, Any]) -> None:
        properties = None
        if self._is_5:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho leaves it untyped
            properties.ResponseTopic, properties.CorrelationData = self._answer_topics[0], self._mark.encode()
            properties.ContentType = "application/json"
        payload = msgspec.json.encode({**body, "id": self._mark})
        self._client.publish(self._topics.command(self._verb), payload, 1, properties=properties)

    def _wait_answer(self, timeout_s: float, until: float) -> CommandReply:
        """Return the answer. The broker's acknowledgement comes before it, and a refusal ends the wait."""
        while (left := until - time.monotonic()) > 0:
            try:
                found = self._answers.get(timeout=left)
            except queue.Empty:
                break
            if isinstance(found, CommandReply):
                return found
            if found == _NO_SUBSCRIBER or found >= _REFUSAL:
                raise NoAnswerError(self._why_refused(found))
        raise NoAnswerError(self._why_silent(timeout_s))

    def _message(self, client: Any, userdata: Any, message: paho.MQTTMessage) -> None:
        if message.topic == self._topics.health:
            with suppress(*NO_JSON):
                self._commands_off = from_json(message.payload, _Health).commands_off
            self._end_if_off()
            return
        if message.topic not in self._answer_topics:
            device = message.topic.removeprefix(f"{self._topics.prefix}/").removesuffix("/status")
            self._statuses[device] = message.payload.decode(errors="replace")[:20]
            self._end_if_off()
            return
        try:
            answer = from_json(message.payload, _Answer)
            body = from_json(message.payload, dict[str, Any])
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return  # not from the device: anybody may publish there
        correlation = getattr(message.properties, "CorrelationData", b"")
        if self._mark in (body.get("id"), correlation.decode(errors="replace")):
            self._answers.put(CommandReply(answer.ok, answer.reason, body))

    def _end_if_off(self) -> None:
        """End the wait for a device that says that it takes no commands: it does not answer any."""
        if self._commands_off and self._topics.device in self._statuses:
            self._answers.put(_NO_SUBSCRIBER)

    def _why_refused(self, code: int) -> str:
        device = self._topics.device
        if code == _NO_SUBSCRIBER:
            if (away := self._why_away()) or not self._statuses:
                return away or f"no device {device} receives commands"
            return self._why_off() or f"{device} is online and takes no commands: see [mqtt] commands there"
        return f"the broker does not let {self._options.user} command {device}: {as_options(in_words(code))}"

    def _why_away(self) -> str:
        """Return why the device cannot answer; empty: it is online."""
        device = self._topics.device
        status = self._statuses.get(device)
        if status == "online":
            return ""
        if status is not None:
            return f"{device} is {status}"
        known = sorted(self._statuses)
        others = ", ".join(known[:_DEVICES_SHOWN]) + (" …" if known[_DEVICES_SHOWN:] else "")
        more = f"there are: {others}" if known else "nor any other"
        return f"no device {device} is known at {self._options.where}; {more}"

    def _why_off(self) -> str:
        off = self._commands_off
        return off and f"{self._topics.device} is online and takes no commands: {off}"

    def _why_silent(self, timeout_s: float) -> str:
        if why := self._why_away() or self._why_off():
            return why
        device, user = self._topics.device, self._options.user
        return (
            f"no answer from {device} in {timeout_s:.0f} s, though it is online: it is busy, takes no commands "
            f"([mqtt] commands), or the broker's access list does not let {user} command it, or does not "
            "let it answer"
        )


_QUIET_S = 2.0
"""The broker sends what it retains at once: after so long without a message there are no more."""
_ACKNOWLEDGE_S = 10.0


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
        self._options, self._topics = options, topics
        self._discovery = discovery_topic(discovery_prefix, topics.device)
        self._received: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()
        self._acknowledged: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
        self._connection = ConsumerClient(options, "3.1.1")
        client = self._connection.client
        client.on_message = self._on_message
        client.on_subscribe = lambda _c, _u, _m, codes, _p: self._acknowledged.put([int(c.value) for c in codes])

    def __enter__(self) -> Self:
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
                "if that is this device, stop it or wait until the broker reports it as offline"
            )
        identifier = f"{self._topics.prefix}/{self._topics.device}"
        body = retained.pop(self._discovery, b"")
        if not is_of(body, identifier):
            return LeftBehind(tuple(sorted(retained)))
        return LeftBehind((*sorted(retained), self._discovery), entity_ids(body))

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
