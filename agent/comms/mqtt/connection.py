"""One connection to a broker, by a paho client of its own, from its opening to its end.

Everything happens in the thread that calls `turn`. Each connection has a clean session. So paho sends nothing
again by itself: the queues send again what has not been acknowledged. The broker keeps no commands for a device
that is away, and there is no setting for that: a command would be carried out days later, or after newer ones.
Properties are those of MQTT 5.0, section 3.3.2.3, packed once for each kind of message.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any, Literal

import paho.mqtt.client as paho
from msgspec import Struct
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from agent.comms.messages import SCHEMA_VERSION
from agent.comms.mqtt import endpoint
from agent.comms.mqtt.endpoint import REFUSED, RefusedError, UnansweredError
from agent.comms.mqtt.inbox import Subscriptions
from agent.config.servers import MqttConfig
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
_WINDOW = 20
"""Maximum number of messages that wait for their acknowledgement."""
_UNSENT = 8192
"""So many bytes may wait in the system before the socket counts as not writable: what waits there cannot be
overtaken by events. The system takes up to a segment more (TCP_NOTSENT_LOWAT in tcp(7))."""
_SIOCOUTQNSD = 0x894B
"""Request for the bytes of a socket that TCP has not sent yet (linux/sockios.h)."""


class ConnectionTimings(Struct, frozen=True):
    """Times of the connection to a broker, s.

    Attributes:
        connect_s: most for TCP, and again for the TLS handshake.
        answer_s: most for the broker's answer to CONNECT.
        first_answer_s: most for that answer while MQTT 3.1.1 is still to be tried: some old brokers, as amqtt,
            keep silent.
        silence_s: without an acknowledgement, after which the connection is dropped, whatever the broker's pings
            say; a slow network may need long for a snapshot.
        pause_s: most to wait for something to do; patient retained topics wait for it.
    """

    connect_s: float = 5.0
    answer_s: float = 10.0
    first_answer_s: float = 3.0
    silence_s: float = 60.0
    pause_s: float = 1.0


TIMINGS = ConnectionTimings()
"""Defaults, as devices use them."""


class PubAck(Struct, frozen=True, gc=False):
    """The broker's answer to a message at QoS 1.

    Attributes:
        mid: as `Connection.publish` gave it.
        code: MQTT 5 reason code.
    """

    mid: int
    code: int

    @property
    def is_refusal(self) -> bool:
        return self.code >= REFUSED


class WakeupPipe:
    """A pipe that wakes a thread from `poll`. `set` is thread-safe, and cheap when it is set already."""

    def __init__(self) -> None:
        self._in, self._out = socket.socketpair()
        self._in.setblocking(False)
        self._out.setblocking(False)
        self._is_set = False

    def fileno(self) -> int:
        return self._out.fileno()

    def set(self) -> None:
        """Wake the thread, now or when it waits next."""
        if not self._is_set:
            self._is_set = True
            with suppress(OSError):  # closed
                self._in.send(b"\0")

    def clear(self) -> None:
        """Reset it. Look for work only after this."""
        with suppress(BlockingIOError):
            self._out.recv(4096)
        self._is_set = False

    def close(self) -> None:
        self._in.close()
        self._out.close()


class _Client(paho.Client):
    """A client with a bound for packets, whose messages over a WebSocket may be sent in parts.

    Paho asks for all of a packet once it has read its length, and stores the beginning of a WebSocket frame until
    it has read the whole frame. It forgets the rest of a message that a WebSocket takes in parts: the next one
    would send that, and count as sent itself. Without TLS, paho would load `ssl` to look for its errors.
    """

    uses_tls = True

    def _sock_recv(self, bufsize: int) -> bytes:
        if max(bufsize, len(getattr(self._sock, "_readbuffer", b""))) > LARGEST_RECEIVED:
            raise BrokerError(
                f"it sent a packet of more than {LARGEST_RECEIVED} bytes; if it is retained under this device's "
                "topics, delete it"
            )
        return super()._sock_recv(bufsize) if self.uses_tls else self._plain().recv(bufsize)

    def _sock_send(self, buf: bytes | bytearray) -> int:
        count = super()._sock_send(buf) if self.uses_tls else self._plain().send(buf)
        if count == 0:  # a WebSocket has a part, and wants all again
            raise BlockingIOError
        return count

    def _plain(self) -> paho.SocketLike:
        if self._sock is None:
            raise ConnectionError
        return self._sock


def _create_client(config: MqttConfig, client_id: str, protocol: Protocol, will: Will) -> paho.Client:
    password, tls = endpoint.read_password(config), endpoint.read_certificates(config)
    client = _Client(
        CallbackAPIVersion.VERSION2,
        client_id,
        protocol=VERSIONS[protocol],
        transport=config.transport,
        reconnect_on_failure=False,
    )
    client.uses_tls = tls is not None
    client.on_socket_open = _tune
    # With this callback set, paho only queues; `turn` writes what has come together.
    client.on_socket_register_write = lambda *_: None
    client.max_inflight_messages_set(0)  # unlimited: `BrokerSession` keeps to the broker's window
    if will is not None:
        properties = _properties(PacketTypes.WILLMESSAGE, _TEXT) if protocol == "5" else None
        client.will_set(*will, qos=1, retain=True, properties=properties)
    client.ws_set_options(config.ws_path)
    if config.username:
        client.username_pw_set(config.username, password)
    if tls is not None:
        client.tls_set_context(tls)
    return client


def _tune(_client: paho.Client, _data: object, connection: paho.SocketLike) -> None:
    """Let the system send each packet when it is written, and hold few bytes that are not sent.

    By Nagle's algorithm (RFC 896) an event that follows a sample would wait until the broker's system has
    acknowledged that, which may take 40 ms, since nothing is answered to samples.
    """
    # A TLS or WebSocket connection is no plain socket, but has the number of one.
    with socket.socket(fileno=os.dup(connection.fileno())) as same:
        same.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(OSError):  # a system without that option holds more
            same.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)


LARGEST_PROPERTIES = 64
"""Maximum size of packed properties, bytes."""
_OVERHEAD = 9 + LARGEST_PROPERTIES
"""Maximum size of a PUBLISH packet besides its topic and payload, bytes."""
_LEAST_PACKET = 4096
"""Packet size that a broker must accept, bytes: below that every event would be too large and be dropped."""
_SAMPLE_EXPIRY_S = 10
"""A detection is of use only now."""
_JSON, _JPEG, _TEXT = "application/json", "image/jpeg", "text/plain"
_CONTENT_TYPES = {b"{": _JSON, b"\xff": _JPEG}
"""Content type by the first byte of the payload: nothing else that is published begins with these."""


class PackedProperties(Struct, frozen=True, gc=False):
    """Properties in their wire format, with their length in front; paho needs only `pack`."""

    data: bytes

    def pack(self) -> bytes:
        return self.data


def publish_properties(payload: bytes, kind: Kind, event_expiry_s: int) -> PackedProperties:
    """Return the properties of a PUBLISH packet; events expire after `event_expiry_s`, s, 0: never."""
    if kind == "state":
        return _packed(_CONTENT_TYPES.get(payload[:1], _TEXT), 0)
    return _packed(_JSON, event_expiry_s if kind == "event" else _SAMPLE_EXPIRY_S)


@cache
def _packed(content_type: str, expiry_s: int) -> PackedProperties:
    return PackedProperties(_properties(PacketTypes.PUBLISH, content_type, expiry_s).pack())


def _properties(packet: int, content_type: str, expiry_s: int = 0) -> Any:
    properties = Properties(packet)  # type: ignore[no-untyped-call]  # paho leaves it untyped
    properties.ContentType = content_type
    properties.UserProperty = ("schema", str(SCHEMA_VERSION))
    if content_type != _JPEG:
        properties.PayloadFormatIndicator = 1  # UTF-8
    if expiry_s:
        properties.MessageExpiryInterval = expiry_s
    return properties


def _is_ready(sock: Any, events: int) -> bool:
    poll = select.poll()
    poll.register(sock, events)
    return bool(poll.poll(0))


class Connection:
    """A connection that is opened once.

    Attributes:
        wants_room: something waits for `has_room`: `turn` returns when there is room.
        lost: why it has ended; empty while it lasts.
        lost_code: MQTT 5 reason code that the broker ended it with; 0 without one.
        subscriptions: of this connection.
        window: maximum number of unacknowledged messages.
        max_packet: maximum packet size that the broker accepts, bytes; 0: unlimited.
    """

    def __init__(
        self,
        config: MqttConfig,
        client_id: str,
        protocol: Protocol,
        will: Will,
        timings: ConnectionTimings = TIMINGS,
    ) -> None:
        """Connect to nothing yet. Raise ConfigError if a file of the configuration cannot be used."""
        self._config, self._timings = config, timings
        self.wants_room = False
        self.lost, self.lost_code = "", 0
        self.window, self.max_packet, self._qos = _WINDOW, 0, 1
        self._answer: ReasonCode | None = None
        self._error = self._broker_text = ""
        self._acknowledged: list[PubAck] = []
        self._unanswered: set[int] = set()
        self._is_5 = protocol == "5"
        self._client = _create_client(config, client_id, protocol, will)
        self.subscriptions = Subscriptions(self._client, mqtt_5=self._is_5)
        self._client.on_connect, self._client.on_disconnect = self._on_connect, self._on_disconnect
        self._client.on_publish, self._client.on_log = self._on_publish, self._on_log

    def open(self, wake: WakeupPipe, left: Callable[[], float], patience_s: float) -> None:
        """Connect, and wait for the broker's answer.

        Args:
            wake: ends a wait in `turn`.
            left: returns the time left, s; it may become less. Resolving the name may take longer.
            patience_s: maximum time for the answer.

        Raises:
            BrokerError: the broker cannot be reached; its subclasses tell a refusal and silence.
        """
        self._wake, self._poll = wake, select.poll()
        self._poll.register(wake, select.POLLIN)
        self._client.connect_timeout = max(0.05, min(left(), self._timings.connect_s))
        config, properties = self._config, None
        if self._is_5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho leaves it untyped
            properties.MaximumPacketSize = LARGEST_WANTED
        try:
            self._client.connect(config.host, endpoint.port(config), config.keepalive_s, properties=properties)
        except (OSError, ValueError, paho.WebsocketConnectionError) as error:
            raise endpoint.opening_error(error, tls=endpoint.uses_tls(config)) from error
        self._await_answer(left, time.monotonic() + patience_s)

    def _await_answer(self, left: Callable[[], float], deadline: float) -> None:
        hint = "" if endpoint.uses_tls(self._config) else endpoint.PERHAPS_TLS
        while self._answer is None and not self.lost:
            if (timeout_s := min(left(), deadline - time.monotonic())) <= 0:
                self.drop(f"no answer to CONNECT; check that it is an MQTT broker{hint}")
                raise UnansweredError(self.lost)
            self.turn(timeout_s)
        self._client.on_log = None  # it costs time, and from now on other callbacks give the reasons
        if self._answer is None:
            raise UnansweredError(f"{self.lost}{hint}")
        if self._answer.value:
            raise RefusedError(endpoint.in_words(self._answer.value, self._broker_text), self._answer.value)
        if 0 < self.max_packet < _LEAST_PACKET:
            self.farewell(0.1)
            raise BrokerError(
                f"it takes packets of {self.max_packet} bytes at most; Vedette needs {_LEAST_PACKET}"
            )

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool = False, kind: Kind = "state") -> int:
        """Queue a message for the next `turn`. Return its number in this connection.

        Raises:
            ValueError: no broker can take it: a wildcard in the topic, or too large for the protocol.
        """
        properties: Any = publish_properties(payload, kind, self._config.event_expiry_s) if self._is_5 else None
        mid = self._client.publish(topic, payload, min(qos, self._qos), retain, properties).mid
        # paho reports QoS 0 as published by itself. Numbers repeat: a message that has waited for its answer that
        # long is sent again on the next connection.
        (self._unanswered.add if qos else self._unanswered.discard)(mid)
        return mid

    def answer(self, topic: str, payload: bytes, correlation: bytes) -> None:
        """Queue a reply at QoS 0; under MQTT 3.1.1 without its correlation data.

        Raises:
            ValueError: see `publish`.
        """
        properties = _properties(PacketTypes.PUBLISH, _JSON) if self._is_5 else None
        if properties is not None and correlation:
            properties.CorrelationData = correlation
        self._client.publish(topic, payload, 0, properties=properties)

    def check_size(self, topic: str, payload: bytes) -> None:
        """Raise ValueError for a message that is larger than the broker takes."""
        if self.max_packet and len(topic.encode()) + len(payload) + _OVERHEAD > self.max_packet:
            raise ValueError(f"{len(payload)} bytes, the broker takes {self.max_packet}")

    @property
    def has_room(self) -> bool:
        """True if the network has taken nearly everything that was queued before."""
        sock: Any = self._client.socket()
        return sock is not None and not self._client.want_write() and _is_ready(sock, select.POLLOUT)

    @property
    def unsent_bytes(self) -> int:
        """Bytes that were queued and that TCP has not sent yet."""
        # paho tells only whether there are any.
        queued: int = sum(packet["to_process"] for packet in tuple(getattr(self._client, "_out_packet", ())))
        sock: Any = self._client.socket()
        with suppress(OSError, ValueError, AttributeError):  # closed
            queued += struct.unpack("i", fcntl.ioctl(sock.fileno(), _SIOCOUTQNSD, bytes(4)))[0]
        return queued

    def turn(self, timeout_s: float) -> list[PubAck]:
        """Write, wait for the network or the wake, read. Return the acknowledgements.

        The wake is clear afterwards: look for work only then.
        """
        try:
            self._turn(timeout_s)
        except (OSError, BrokerError) as error:
            self.drop(endpoint.explain_error(error))
        except Exception as error:  # paho lets through what a hostile or broken peer can cause
            self.drop(f"it sent something that is not MQTT: {error!r:.200}")
        acknowledged, self._acknowledged = self._acknowledged, []
        return acknowledged

    def _turn(self, timeout_s: float) -> None:
        client = self._client
        sock: Any = client.socket()
        if sock is not None and client.want_write():
            if _is_ready(sock, select.POLLIN):
                client.loop_read()  # first: the reason that a broker gives before it closes
            client.loop_write()
            sock = client.socket()
        if sock is None:
            self.lost = self.lost or "the connection broke"
            return
        # What TLS has decrypted does not show on the socket; at QoS 0 writing is all that there is to wait for.
        pending = bool(getattr(sock, "pending", int)())
        at_once = pending or bool(self._acknowledged)
        to_write = client.want_write() or self.wants_room
        if self._wait(sock, 0.0 if at_once else timeout_s, to_write=to_write) or pending:
            client.loop_read()
        if client.want_write():
            client.loop_write()
        client.loop_misc()
        if self.subscriptions.is_flooded:
            self.drop("it floods this device with messages to no subscription")

    def _wait(self, sock: Any, timeout_s: float, *, to_write: bool = False) -> bool:
        """Wait for socket or wake. Return True if there is something to read, or the connection has ended."""
        self._poll.register(sock, select.POLLIN | (select.POLLOUT if to_write else 0))
        found = dict(self._poll.poll(max(0, round(timeout_s * 1e3))))
        if self._wake.fileno() in found:
            self._wake.clear()
        return bool(found.get(sock.fileno(), 0) & ~select.POLLOUT)

    def farewell(self, timeout_s: float) -> None:
        """Disconnect in order: the broker drops the will."""
        deadline = time.monotonic() + timeout_s
        self._client.disconnect()
        while not self.lost and (left := deadline - time.monotonic()) > 0:
            self.turn(left)
        self.drop("disconnected by this device")

    def drop(self, why: str) -> None:
        """Close the socket at once."""
        self.lost = self.lost or why
        if (sock := self._client.socket()) is not None:
            with suppress(OSError):
                sock.close()

    def _on_connect(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        """Take the limits of the CONNACK (MQTT 5.0, section 3.2.2.3)."""
        self._answer = reason
        self._broker_text = getattr(properties, "ReasonString", "")
        self.window = min(_WINDOW, getattr(properties, "ReceiveMaximum", _WINDOW))
        self.max_packet = getattr(properties, "MaximumPacketSize", 0)
        self._qos = min(1, getattr(properties, "MaximumQoS", 1))

    def _on_disconnect(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if flags.is_disconnect_packet_from_server:
            self.lost_code = int(reason.value)
            words = endpoint.in_words(self.lost_code, getattr(properties, "ReasonString", ""))
        else:
            words = endpoint.explain_break(int(reason.value), self._error)
        self.lost = self.lost or words

    def _on_publish(self, client: Any, userdata: Any, mid: int, reason: Any, properties: Any) -> None:
        if mid in self._unanswered:
            self._unanswered.discard(mid)
            self._acknowledged.append(PubAck(mid, int(reason.value)))

    def _on_log(self, client: Any, userdata: Any, level: int, text: str) -> None:
        if level == paho.MQTT_LOG_ERR:
            self._error = text
