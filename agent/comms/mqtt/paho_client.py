"""Paho's client, kept within bounds: whatever a peer sends, it holds neither our memory nor our thread.

Paho reads a packet of any size into memory, keeps what comes at QoS 2, and waits in a handshake for as long
as single bytes drip in. There are no public handles for that, so a few of its own methods are taken here, and
nowhere else.
"""

from __future__ import annotations

import logging
import socket
import time
from typing import Any, Literal

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.comms.mqtt import properties
from agent.comms.mqtt.tls import HandshakeTimeout, port, read_credentials
from agent.config.device import MqttConfig

log = logging.getLogger(__name__)

Protocol = Literal["5", "3.1.1"]
Will = tuple[str, bytes] | None

LARGEST_WANTED = 256 * 1024
"""Bytes of a packet that we want from a broker of MQTT 5: it keeps larger ones to itself. The largest that we
ask for is our own discovery message: 150 kB of eight cameras with eight labels in two zones each."""
LARGEST_READ = LARGEST_WANTED
"""Bytes of a packet that is read at all. Of a larger message only the head is looked at, to acknowledge it."""
MOST_ANSWERS = 10_000
"""Packets that wait to be sent, at most: only a peer that asks and asks, and reads nothing, gets there."""

_PROTOCOLS = {"5": paho.MQTTv5, "3.1.1": paho.MQTTv311}
_TCP_S, _HANDSHAKES_S = 5.0, 15.0
_HEAD = 2 + 0xFFFF + 2
"""Bytes: the length of a topic, the longest topic, a packet's number."""
_LARGEST_FRAME = LARGEST_READ + 64
_CHUNK, _CHUNKS = 64 * 1024, 16
_PUBLISH = 0x30


class Client(paho.Client):
    """For one connection. In the thread that turns it.

    Attributes:
        fault: what the peer did that nobody who speaks MQTT does; empty: nothing.
    """

    def __init__(self, config: MqttConfig, client_id: str, protocol: Protocol, will: Will) -> None:
        """Prepare.

        Args:
            config: where to.
            client_id: who we are.
            protocol: to speak.
            will: topic and payload that the broker retains when we vanish; None: nothing.

        Raises:
            ConfigError: a file that the configuration names cannot be used.
        """
        super().__init__(
            CallbackAPIVersion.VERSION2,
            client_id,
            protocol=_PROTOCOLS[protocol],
            transport=config.transport,
            reconnect_on_failure=False,
        )
        self.fault, self._has_told_size = "", False
        self._config, self._is_5 = config, protocol == "5"
        self._guard: HandshakeTimeout | None = None
        self.max_inflight_messages_set(0)  # unlimited: whoever publishes keeps the broker's window
        if will is not None:
            self.will_set(
                *will, qos=1, retain=True, properties=properties.will_properties() if self._is_5 else None
            )
        self.ws_set_options(config.ws_path)
        credentials = read_credentials(config)
        if config.username:
            self.username_pw_set(config.username, credentials.password)
        if credentials.tls is not None:
            self.tls_set_context(credentials.tls)

    def open(self, timeout_s: float) -> None:
        """Connect, down to TLS and WebSocket, and hand the CONNECT packet over.

        Args:
            timeout_s: at most; resolving the name may take longer.

        Raises:
            OSError: nobody there.
            ValueError: that is no host.
        """
        self._open_until = time.monotonic() + timeout_s
        self.connect_timeout = max(0.05, min(timeout_s, _TCP_S))
        host, keepalive_s = self._config.host, self._config.keepalive_s
        try:
            self.connect(host, port(self._config), keepalive_s, properties=self._properties())
        except paho.WebsocketConnectionError as error:
            raise ConnectionError("it does not answer as a WebSocket; check [mqtt] port and ws_path") from error
        except (OSError, ValueError) as error:
            if self._guard is not None and self._guard.has_struck:
                raise TimeoutError from error
            raise
        finally:
            if self._guard is not None:
                self._guard.end()

    def _properties(self) -> Properties | None:
        if not self._is_5:
            return None
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho leaves it untyped
        properties.MaximumPacketSize = LARGEST_WANTED
        return properties

    def _create_socket_connection(self) -> socket.socket:
        connected = super()._create_socket_connection()
        self._guard = HandshakeTimeout(
            connected, min(_HANDSHAKES_S, max(0.05, self._open_until - time.monotonic()))
        )
        return connected

    @property
    def is_reached(self) -> bool:
        """Whether TCP has connected, whatever came after that."""
        return self._guard is not None

    @property
    def is_flooded(self) -> bool:
        """Whether more waits to be sent than any use of ours brings about."""
        return len(self._out_packet) > MOST_ANSWERS

    def _sock_recv(self, bufsize: int) -> bytes:
        if bufsize > LARGEST_READ:
            raise BlockingIOError  # before anything of it is read: `_packet_read` goes on with it
        received = super()._sock_recv(bufsize)
        # Paho keeps a frame of WebSocket until its end, and looks through all of it for each packet inside.
        if len(getattr(self._sock, "_readbuffer", b"")) > _LARGEST_FRAME:
            self.fault = f"it sent a WebSocket frame of more than {_LARGEST_FRAME} bytes"
            raise ConnectionError(self.fault)
        return received

    def _packet_read(self) -> MQTTErrorCode:
        if not self._is_skipping():
            code = super()._packet_read()
            if not self._is_skipping():
                return code
            if self._in_packet["command"] & 0xF4 != _PUBLISH:
                self.fault = f"it announced a packet of {self._in_packet['remaining_length']} bytes"
                return MQTTErrorCode.MQTT_ERR_PROTOCOL
        return self._skip()

    def _is_skipping(self) -> bool:
        packet = self._in_packet
        return bool(packet["have_remaining"]) and packet["remaining_length"] > LARGEST_READ

    def _skip(self) -> MQTTErrorCode:
        """Read on in a message that is too large, and throw it away."""
        packet = self._in_packet
        for _ in range(_CHUNKS):
            try:
                data = self._sock_recv(min(packet["to_process"], _CHUNK))
            except BlockingIOError:
                return MQTTErrorCode.MQTT_ERR_AGAIN
            except OSError:
                data = b""
            if not data:
                return MQTTErrorCode.MQTT_ERR_CONN_LOST
            packet["packet"] += data[: max(0, _HEAD - len(packet["packet"]))]
            packet["to_process"] -= len(data)
            self._last_bytes_received = time.monotonic()
            if not packet["to_process"]:
                return self._leave_aside(packet)
        return MQTTErrorCode.MQTT_ERR_AGAIN

    def _leave_aside(self, packet: Any) -> MQTTErrorCode:
        """Acknowledge it, or the broker would send it again and again."""
        head, qos, size = bytes(packet["packet"]), packet["command"] & 0x06, packet["remaining_length"]
        packet.update(command=0, have_remaining=0, remaining_count=[], remaining_mult=1, remaining_length=0)
        packet.update(packet=bytearray(), to_process=0, pos=0)
        behind = 2 + int.from_bytes(head[:2], "big")
        if not self._has_told_size:
            self._has_told_size = True
            topic, rest = head[2:behind].decode(errors="replace")[:100], size - behind - (2 if qos else 0)
            log.warning("%r: dropped: %d bytes, at most %d are read", topic, rest, LARGEST_READ)
        return self._send_puback(int.from_bytes(head[behind : behind + 2], "big")) if qos else MQTTErrorCode(0)

    def _packet_handle(self) -> MQTTErrorCode:
        if self._in_packet["command"] & 0xF4 == _PUBLISH | 0x04:
            self.fault = "it sends at QoS 2, which nobody asked for"
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        return super()._packet_handle()
