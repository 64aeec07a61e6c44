"""Asking: one request to a device over the broker, and its answer. Used by `vedette command`."""

from __future__ import annotations

import queue
import secrets
import time
from contextlib import suppress
from typing import Any

import msgspec
import paho.mqtt.client as mqtt
from msgspec import Struct
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.comms.consumer.client import BrokerOptions, ConsumerClient, as_options
from agent.comms.mqtt.paho_client import Protocol
from agent.comms.mqtt.reasons import UNSUPPORTED_PROTOCOL, RefusedError, UnansweredError, in_words
from agent.comms.topics import Topics
from agent.errors import NO_JSON, BrokerError

_FIRST_S = 3.0
_NOBODY, _REFUSAL = 0x10, 0x80
"""Reason codes: nobody has subscribed to it; this one and above are refusals. MQTT 5.0, section 2.4."""
_KNOWN = 8
"""Devices that are named, at most."""


class NoAnswerError(BrokerError):
    """The device has not answered; the text says what may be wrong."""


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
    """Read the one field needed of a health message, see `HealthMessage`."""

    commands_off: str = ""


class _Said(Struct):
    """Read the fields that every answer has."""

    ok: bool
    reason: str


def send_command(
    access: BrokerOptions, topics: Topics, verb: str, body: dict[str, Any], timeout_s: float
) -> CommandReply:
    """Send a request and wait for its answer.

    Args:
        access: to the broker.
        topics: of the device.
        verb: see `agent.comms.commands`.
        body: of the request.
        timeout_s: to wait for, from now on.

    Raises:
        BrokerError: nobody listens there, or the broker refuses us.
        NoAnswerError: the device does not answer.
    """
    until = time.monotonic() + timeout_s
    try:
        return _Asking(access, topics, verb, "5").run(body, timeout_s, until)
    except _OldBrokerError:
        return _Asking(access, topics, verb, "3.1.1").run(body, timeout_s, until)


class _OldBrokerError(BrokerError):
    """It speaks no MQTT 5."""


class _Asking:
    """One connection."""

    def __init__(self, access: BrokerOptions, topics: Topics, verb: str, protocol: Protocol) -> None:
        self._access, self._topics, self._verb, self._is_5 = access, topics, verb, protocol == "5"
        self._mark = secrets.token_hex(8)
        answer = topics.answer(verb)
        # A device that speaks 3.1.1 never sees a response topic, whatever we speak: it answers at the usual one.
        self._answer_topics = [f"{answer}/{self._mark}", answer] if self._is_5 else [answer]
        self._subscribed: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[CommandReply | int] = queue.SimpleQueue()
        self._statuses: dict[str, str] = {}
        self._commands_off = ""
        self._guest = ConsumerClient(access, protocol)
        self._client = self._guest.client
        self._listen()

    def _listen(self) -> None:
        client = self._client
        client.on_subscribe = lambda _c, _u, _m, reasons, _p: self._subscribed.put(
            [int(r.value) for r in reasons]
        )
        client.on_publish = lambda _c, _u, _m, reason, _p: self._published(int(reason.value))
        client.on_message = self._message

    def run(self, body: dict[str, Any], timeout_s: float, until: float) -> CommandReply:
        """Connect, ask, wait, leave.

        Args:
            body: of the request.
            timeout_s: that was asked for, for messages.
            until: CLOCK_MONOTONIC at which to give up, s.
        """
        self._enter(max(0.05, until - time.monotonic()))
        try:
            self._subscribe(until)
            self._publish(body)
            return self._wait_answer(timeout_s, until)
        finally:
            self._guest.disconnect()

    def _enter(self, left_s: float) -> None:
        try:
            self._guest.connect(min(_FIRST_S, left_s / 2) if self._is_5 else left_s)
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
            raise BrokerError(f"the broker at {self._access.where} lets us in, and answers no more") from None
        if codes[1] >= _REFUSAL:
            raise BrokerError(
                f"the broker does not let {self._access.user} hear answers: {as_options(in_words(codes[1]))}"
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
        """The answer; what the broker says of the request comes before it, and may end the wait."""
        while (left := until - time.monotonic()) > 0:
            try:
                found = self._answers.get(timeout=left)
            except queue.Empty:
                break
            if isinstance(found, CommandReply):
                return found
            if found == _NOBODY or found >= _REFUSAL:
                raise NoAnswerError(self._why_refused(found))
        raise NoAnswerError(self._why_silent(timeout_s))

    def _published(self, code: int) -> None:
        self._answers.put(code)

    def _message(self, client: Any, userdata: Any, message: mqtt.MQTTMessage) -> None:
        if message.topic == self._topics.health:
            with suppress(*NO_JSON):
                self._commands_off = msgspec.json.decode(message.payload, type=_Health).commands_off
            return
        if message.topic not in self._answer_topics:
            device = message.topic.removeprefix(f"{self._topics.prefix}/").removesuffix("/status")
            self._statuses[device] = message.payload.decode(errors="replace")[:20]
            return
        try:
            said = msgspec.json.decode(message.payload, type=_Said)
            body = msgspec.json.decode(message.payload, type=dict[str, Any])
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return  # anybody may publish there
        correlation = getattr(message.properties, "CorrelationData", b"")
        if self._mark in (body.get("id"), correlation.decode(errors="replace")):
            self._answers.put(CommandReply(said.ok, said.reason, body))

    def _why_refused(self, code: int) -> str:
        device = self._topics.device
        if code == _NOBODY:
            if (away := self._why_away()) or not self._statuses:
                return away or f"nobody listens to commands to {device}"
            return self._why_off() or f"{device} is online and takes no commands: see [mqtt] commands there"
        return f"the broker does not let {self._access.user} command {device}: {as_options(in_words(code))}"

    def _why_away(self) -> str:
        """Empty: the device is online."""
        device = self._topics.device
        status = self._statuses.get(device)
        if status == "online":
            return ""
        if status is not None:
            return f"{device} is {status}"
        known = sorted(self._statuses)
        others = ", ".join(known[:_KNOWN]) + (" …" if known[_KNOWN:] else "")
        more = f"there are: {others}" if known else "nor is any other"
        return f"no device {device} is known at {self._access.where}; {more}"

    def _why_off(self) -> str:
        off = self._commands_off
        return off and f"{self._topics.device} is online and takes no commands: {off}"

    def _why_silent(self, timeout_s: float) -> str:
        if why := self._why_away() or self._why_off():
            return why
        device, user = self._topics.device, self._access.user
        return (
            f"no answer from {device} in {timeout_s:.0f} s, though it is online: it is busy, takes no commands "
            f"([mqtt] commands), or the broker's access list does not let {user} command it, or does not "
            "let it answer"
        )
