"""The other end of the line: what a consumer of detections sees. Used by `vedette watch` and `vedette demo`."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from typing import Any, Literal

import msgspec
import paho.mqtt.client as mqtt
from msgspec import Struct
from paho.mqtt.enums import CallbackAPIVersion

from agent.comms.payload import EventMessage, HealthMessage
from agent.comms.reasons import of_error, of_tls
from agent.errors import NO_JSON, BrokerError

Kind = Literal["status", "health", "events", "detections", "clips", "snapshot", "count"]

_CONNECT_S = 10.0


class Numbered(Struct, frozen=True):
    """What every message that went through the spool has; the number of a detection is `spool_seq`."""

    seq: int = 0
    spool_seq: int = 0
    first_seq: int = 0


_events = msgspec.json.Decoder(EventMessage)
_numbered = msgspec.json.Decoder(Numbered)
_health = msgspec.json.Decoder(HealthMessage)


class Received(Struct, frozen=True):
    """One message from a device.

    Attributes:
        topic: as received.
        device: its name.
        stream: empty for the device's own topics.
        kind: what it is.
        payload: as received.
        received_ns: CLOCK_MONOTONIC, ns.
        retained: whether it is the broker's memory and not news.
    """

    topic: str
    device: str
    stream: str
    kind: Kind
    payload: bytes
    received_ns: int
    retained: bool

    def event(self) -> EventMessage | None:
        """The event, or None when this is not one that this version can read."""
        try:
            return _events.decode(self.payload) if self.kind == "events" else None
        except NO_JSON:
            return None

    def numbers(self) -> tuple[int, int] | None:
        """Its number and what the run began with that gave it, 0: not known; None: it has no number."""
        if self.kind not in ("events", "clips", "detections"):
            return None
        try:
            told = _numbered.decode(self.payload)
        except NO_JSON:
            return None
        seq = told.spool_seq if self.kind == "detections" else told.seq
        return (seq, told.first_seq) if seq else None

    def health(self) -> HealthMessage | None:
        """How the device is, or None when this is not what this version can read."""
        try:
            return _health.decode(self.payload) if self.kind == "health" else None
        except NO_JSON:
            return None


class Access(Struct, frozen=True):
    """How to reach a broker; see `MqttConfig` for the fields."""

    host: str = "localhost"
    port: int = 1883
    username: str = ""
    password: str = ""
    ca_file: str = ""
    tls: bool = False


class Subscriber:
    """Subscribes to every topic of one device or of all. Reconnects by itself."""

    def __init__(self, access: Access, *, prefix: str = "vedette", device: str = "+") -> None:
        """Prepare; `start` connects.

        Raises:
            BrokerError: the CA's file cannot be used.
        """
        self._access, self._prefix, self._device = access, prefix, device
        self._received: queue.SimpleQueue[Received] = queue.SimpleQueue()
        self._refused: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2)
        self._client.on_connect = self._connected
        self._client.on_message = self._message
        if access.username:
            self._client.username_pw_set(access.username, access.password or None)
        if access.tls or access.ca_file:
            self._secure(access.ca_file)

    def _secure(self, ca_file: str) -> None:
        try:
            self._client.tls_set(ca_certs=ca_file or None)
        except (OSError, ValueError) as error:
            raise BrokerError(f"{ca_file}: not usable as PEM: {of_tls(error)}") from error

    def start(self) -> None:
        """Connect and subscribe.

        Raises:
            BrokerError: nobody listens there, or the broker refused us.
        """
        where = f"{self._access.host}:{self._access.port}"
        try:
            self._client.connect(self._access.host, self._access.port, keepalive=30)
        except (OSError, ValueError) as error:
            hint = "; is it running there?" if isinstance(error, (ConnectionRefusedError, TimeoutError)) else ""
            raise BrokerError(f"cannot reach the broker at {where}: {of_error(error)}{hint}") from error
        self._client.loop_start()
        try:
            refusal = self._refused.get(timeout=_CONNECT_S)
        except queue.Empty:
            refusal = "no answer"
        if refusal:
            self.stop()
            raise BrokerError(f"the broker at {where} refused us: {refusal}")

    def messages(self, until: float | None = None) -> Iterator[Received | None]:
        """Messages as they come; None about four times a second when there are none.

        Args:
            until: CLOCK_MONOTONIC at which to end, s; None: never.
        """
        while until is None or time.monotonic() < until:
            try:
                yield self._received.get(timeout=0.25)
            except queue.Empty:
                yield None

    def stop(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()

    def _connected(self, client: mqtt.Client, userdata: Any, flags: Any, reason: Any, props: Any) -> None:
        if reason.is_failure:
            self._refused.put(str(reason).lower())
            return
        client.subscribe(f"{self._prefix}/{self._device}/#", qos=1)
        self._refused.put("")

    def _message(self, client: mqtt.Client, userdata: Any, message: mqtt.MQTTMessage) -> None:
        levels = message.topic.removeprefix(f"{self._prefix}/").split("/")
        device, stream, kind = _parts(levels)
        self._received.put(
            Received(
                message.topic,
                device,
                stream,
                kind,
                bytes(message.payload),
                time.monotonic_ns(),
                message.retain,
            )
        )


def _parts(levels: list[str]) -> tuple[str, str, Any]:
    if len(levels) >= 3:
        return levels[0], levels[1], levels[2]
    return levels[0], "", levels[-1]
