"""Send a command to a device over the broker, and wait for the answer."""

from __future__ import annotations

import queue
import secrets
import time
from contextlib import suppress
from typing import Any

import msgspec
import paho.mqtt.client as paho
from msgspec import Struct
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.comms.consumer.client import BrokerOptions, ConsumerClient, as_options
from agent.comms.mqtt.paho_client import Protocol
from agent.comms.mqtt.reasons import UNSUPPORTED_PROTOCOL, RefusedError, UnansweredError, in_words
from agent.comms.topics import Topics
from agent.errors import NO_JSON, BrokerError
from agent.structs import from_json

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
