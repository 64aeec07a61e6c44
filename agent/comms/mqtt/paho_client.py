"""Adapts paho: a client of one connection, MQTT 5 properties, and subscriptions.

Properties: MQTT 5.0, section 3.3.2.3. They are packed once for each kind of message.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any, Literal

import paho.mqtt.client as paho
from msgspec import Struct
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from agent.comms.messages import SCHEMA_VERSION
from agent.comms.mqtt.endpoint import port, read_certificates, read_password
from agent.config.mqtt import MqttConfig
from agent.errors import BrokerError

Protocol = Literal["5", "3.1.1"]
Will = tuple[str, bytes] | None
Kind = Literal["event", "sample", "state"]

VERSIONS = {"5": paho.MQTTv5, "3.1.1": paho.MQTTv311}
LARGEST_WANTED = 256 * 1024
"""Maximum packet size that is announced to a broker of MQTT 5, bytes; the broker keeps larger packets to itself.
The largest that is needed is the discovery message: 150 kB for eight cameras with eight labels in two zones."""
LARGEST_RECEIVED = 64 * LARGEST_WANTED
"""Maximum size of a packet, or of a WebSocket frame, before the connection is dropped, bytes. A broker of MQTT
3.1.1 is told no limit, and what it retains must not end every connection."""


class _Client(paho.Client):
    """A client whose messages over a WebSocket may be sent in parts.

    Of such a message paho would forget the rest: the next one would send that, and count as sent itself.
    """

    def _sock_recv(self, bufsize: int) -> bytes:
        _check_size(bufsize, self._sock)
        return super()._sock_recv(bufsize)

    def _sock_send(self, buf: bytes | bytearray) -> int:
        return _sent(super()._sock_send(buf))


class _PlainClient(paho.Client):
    """The same without TLS. Paho's own loads `ssl` whenever there is nothing to read, to look for its errors."""

    def _sock_recv(self, bufsize: int) -> bytes:
        _check_size(bufsize, self._sock)
        return self._plain().recv(bufsize)

    def _sock_send(self, buf: bytes | bytearray) -> int:
        return _sent(self._plain().send(buf))

    def _plain(self) -> paho.SocketLike:
        if self._sock is None:
            raise ConnectionError
        return self._sock


def _check_size(bufsize: int, connection: object) -> None:
    """Raise BrokerError for a packet that is too large. Paho asks for all of it once it has read its length.

    It also stores the beginning of a WebSocket frame until it has read the whole frame.
    """
    if max(bufsize, len(getattr(connection, "_readbuffer", b""))) > LARGEST_RECEIVED:
        limit = f"more than {LARGEST_RECEIVED} bytes"
        raise BrokerError(f"it sent a packet of {limit}; if it is retained under this device's topics, delete it")


def _sent(count: int) -> int:
    """Return how many bytes were sent. Raise BlockingIOError if a WebSocket has a part, and wants all again."""
    if count == 0:
        raise BlockingIOError
    return count


def create_client(config: MqttConfig, client_id: str, protocol: Protocol, will: Will) -> paho.Client:
    """Create a client that is not connected. Raise ConfigError if a file of the configuration cannot be used."""
    password, tls = read_password(config), read_certificates(config)
    client = (_PlainClient if tls is None else _Client)(
        CallbackAPIVersion.VERSION2,
        client_id,
        protocol=VERSIONS[protocol],
        transport=config.transport,
        reconnect_on_failure=False,
    )
    client.on_socket_open = _send_at_once
    client.max_inflight_messages_set(0)  # unlimited: `BrokerSession` keeps to the broker's window
    if will is not None:
        client.will_set(*will, qos=1, retain=True, properties=will_properties() if protocol == "5" else None)
    client.ws_set_options(config.ws_path)
    if config.username:
        client.username_pw_set(config.username, password)
    if tls is not None:
        client.tls_set_context(tls)
    return client


def _send_at_once(_client: paho.Client, _data: object, connection: paho.SocketLike) -> None:
    """Let the kernel send each packet when it is written.

    By Nagle's algorithm (RFC 896) an event that follows a sample would wait until the broker's system has
    acknowledged that, which may take 40 ms, since nothing is answered to samples.
    """
    # A TLS or WebSocket connection is no plain socket, but has the number of one.
    with socket.socket(fileno=os.dup(connection.fileno())) as same:
        same.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def connect(client: paho.Client, config: MqttConfig, protocol: Protocol, timeout_s: float) -> None:
    """Connect, down to TLS and WebSocket, and queue the CONNECT packet.

    `timeout_s` is for TCP, and again for TLS; resolving the name may take longer.

    Raises:
        OSError: the broker cannot be reached.
        ValueError: the host is not a valid name.
    """
    client.connect_timeout = max(0.05, timeout_s)
    properties = None
    if protocol == "5":
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho leaves it untyped
        properties.MaximumPacketSize = LARGEST_WANTED
    try:
        client.connect(config.host, port(config), config.keepalive_s, properties=properties)
    except paho.WebsocketConnectionError as error:
        raise ConnectionError("it does not answer as a WebSocket; check [mqtt] port and ws_path") from error


LARGEST_PROPERTIES = 64
"""Maximum size of packed properties, bytes."""
_SAMPLE_EXPIRY_S = 10
"""A detection is of use only now."""
_CONTENT_TYPES = {b"{": "application/json", b"\xff": "image/jpeg"}
"""Content type by the first byte of the payload: nothing else that is published begins with these."""
_TEXT = "text/plain"


class PackedProperties(Struct, frozen=True, gc=False):
    """Properties in their wire format, with their length in front; paho needs only `pack`."""

    data: bytes

    def pack(self) -> bytes:
        return self.data


class PublishProperties:
    """The properties of a connection's PUBLISH packets."""

    def __init__(self, event_expiry_s: int) -> None:
        self._states = {first: _packed(content_type, 0) for first, content_type in _CONTENT_TYPES.items()}
        self._text = _packed(_TEXT, 0)
        self._by_kind = {
            "event": _packed("application/json", event_expiry_s),
            "sample": _packed("application/json", _SAMPLE_EXPIRY_S),
        }

    def select(self, payload: bytes, kind: Kind) -> PackedProperties:
        return self._by_kind.get(kind) or self._states.get(payload[:1], self._text)


def will_properties() -> Any:
    """Return the properties of the last will, which says `offline`."""
    return _properties(PacketTypes.WILLMESSAGE, _TEXT, 0)


def reply_properties(correlation: bytes) -> Any:
    """Return the properties of the reply to a request, with the request's correlation data."""
    properties = _properties(PacketTypes.PUBLISH, "application/json", 0)
    if correlation:
        properties.CorrelationData = correlation
    return properties


def _properties(packet: int, content_type: str, expiry_s: int) -> Any:
    properties = Properties(packet)  # type: ignore[no-untyped-call]  # paho leaves it untyped
    properties.ContentType = content_type
    properties.UserProperty = ("schema", str(SCHEMA_VERSION))
    if content_type != "image/jpeg":
        properties.PayloadFormatIndicator = 1  # UTF-8
    if expiry_s:
        properties.MessageExpiryInterval = expiry_s
    return properties


def _packed(content_type: str, expiry_s: int) -> PackedProperties:
    return PackedProperties(_properties(PacketTypes.PUBLISH, content_type, expiry_s).pack())


_OVERHEAD = 9 + LARGEST_PROPERTIES
"""Maximum size of a PUBLISH packet besides its topic and payload, bytes."""
_LEAST_PACKET = 4096
"""Packet size that a broker must accept, bytes: below that every event would be too large and be dropped."""


class ServerLimits(Struct, frozen=True):
    """Limits of one connection, from the broker's CONNACK.

    Attributes:
        window: maximum number of unacknowledged messages.
        max_packet: maximum packet size, bytes; 0: unlimited.
        qos: the highest supported QoS, 0 or 1.
    """

    window: int
    max_packet: int = 0
    qos: int = 1

    def fits(self, topic: str, payload: bytes) -> bool:
        return not self.max_packet or len(topic.encode()) + len(payload) + _OVERHEAD <= self.max_packet

    @property
    def fault(self) -> str:
        """Why the limits are too low to deliver events; empty if they are not."""
        if 0 < self.max_packet < _LEAST_PACKET:
            return f"it takes packets of {self.max_packet} bytes at most; Vedette needs {_LEAST_PACKET}"
        return ""


def read_limits(properties: Any, window: int) -> ServerLimits:
    """Read the limits in a CONNACK (MQTT 5.0, section 3.2.2.3); `window` is our own maximum."""
    return ServerLimits(
        min(window, getattr(properties, "ReceiveMaximum", window)),
        getattr(properties, "MaximumPacketSize", 0),
        min(1, getattr(properties, "MaximumQoS", 1)),
    )


class IncomingMessage(Struct, frozen=True, gc=False):
    """A message from the broker.

    Attributes:
        topic, payload: as received.
        retained: it lay at the broker, and was not sent just now. In a subscription `as_published`: it was sent
            to be retained, now or before.
        response_topic: where its sender waits for a reply (MQTT 5); empty: none was named.
        correlation: data that the reply must carry (MQTT 5).
    """

    topic: str
    payload: bytes
    retained: bool = False
    response_topic: str = ""
    correlation: bytes = b""


OnMessage = Callable[[IncomingMessage], None]
OnSubscribed = Callable[[int], None]
"""Called with the broker's reason code; 0x80 and above is a refusal."""
_MAX_UNMATCHED = 10_000
"""Messages since the last change that match no subscription: some may be on their way when one ends."""


class _Subscriber(Struct):
    on_message: OnMessage
    on_subscribed: OnSubscribed


class Subscriptions:
    """The subscriptions of one connection. Everything happens in the thread that turns the connection."""

    def __init__(self, client: paho.Client, *, mqtt_5: bool = True) -> None:
        """Take over the callbacks of a client, with which nothing else may subscribe."""
        self._client, self._is_5 = client, mqtt_5
        self._subscribers: dict[str, list[_Subscriber]] = {}
        self._pending: dict[int, str] = {}
        self._unmatched = 0
        client.on_subscribe, client.on_message = self._on_subscribe, self._on_message

    def add(
        self,
        pattern: str,
        on_message: OnMessage,
        on_subscribed: OnSubscribed = lambda _: None,
        *,
        qos: int,
        as_published: bool = False,
    ) -> None:
        """Subscribe.

        Args:
            pattern: of topics; several may subscribe to the same one. Where different ones overlap, the broker
                may send a message twice.
            on_message: called with each message.
            on_subscribed: see `OnSubscribed`.
            qos: maximum QoS of the messages.
            as_published: mark messages that are sent to be retained, also while they pass. Under MQTT 3.1.1 only
                messages that the broker already retains are marked.

        Raises:
            ValueError: the pattern is not valid.
        """
        self._unmatched = 0
        if self._is_5:
            options = SubscribeOptions(qos, retainAsPublished=as_published)
            _, mid = self._client.subscribe(pattern, options=options)
        else:
            _, mid = self._client.subscribe(pattern, qos)
        self._subscribers.setdefault(pattern, []).append(_Subscriber(on_message, on_subscribed))
        if mid is not None:  # else the connection is gone, and there will be no answer
            self._pending[mid] = pattern

    def remove(self, pattern: str, on_message: OnMessage | None = None) -> None:
        """Unsubscribe `on_message`, or all if it is None, from a pattern. Messages on their way are ignored."""
        subscribers = self._subscribers.pop(pattern, [])
        if rest := [one for one in subscribers if on_message is not None and one.on_message != on_message]:
            self._subscribers[pattern] = rest
        elif subscribers:
            self._unmatched = 0
            self._client.unsubscribe(pattern)

    @property
    def is_flooded(self) -> bool:
        """True if the broker keeps sending messages that match no subscription."""
        return self._unmatched > _MAX_UNMATCHED

    def _on_subscribe(self, client: Any, userdata: Any, mid: int, reasons: Any, properties: Any) -> None:
        for one in list(self._subscribers.get(self._pending.pop(mid, ""), ())) if reasons else ():
            one.on_subscribed(int(reasons[0].value))

    def _on_message(self, client: Any, userdata: Any, message: Any) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:  # not a topic (MQTT 5.0, 1.5.4), though the broker let it through
            self._unmatched += 1
            return
        received = IncomingMessage(
            topic,
            bytes(message.payload),
            bool(message.retain),
            getattr(message.properties, "ResponseTopic", ""),
            getattr(message.properties, "CorrelationData", b""),
        )
        matching = [some for pattern, some in self._subscribers.items() if paho.topic_matches_sub(pattern, topic)]
        matched = [one for some in matching for one in some]
        self._unmatched += not matched
        for one in matched:
            one.on_message(received)
