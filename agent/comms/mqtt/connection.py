"""One connection to a broker, from its opening to its end. Everything happens in the thread that calls `turn`.

Each connection has a paho client of its own and a clean session. So paho sends nothing again by itself: the
queues send again what has not been acknowledged. The broker keeps no commands for a device that is away, and
there is no setting for that: a command would be carried out days later, or after newer ones. The pauses before
the next connection are in `agent.comms.mqtt.publisher`.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import paho.mqtt.client as paho
from msgspec import Struct

from agent.comms.mqtt import reasons
from agent.comms.mqtt.endpoint import uses_tls
from agent.comms.mqtt.paho_client import (
    Kind,
    Protocol,
    PublishProperties,
    ServerLimits,
    Subscriptions,
    Will,
    connect,
    create_client,
    read_limits,
    reply_properties,
)
from agent.comms.mqtt.reasons import RefusedError, Synchronised, UnansweredError, explain_certificate
from agent.config.mqtt import MqttConfig
from agent.errors import BrokerError


class PubAck(Struct, frozen=True, gc=False):
    """The broker's answer to a message at QoS 1.

    Attributes:
        mid: as `Connection.publish` gave it.
        code: MQTT 5 reason code; 0x80 and above is a refusal.
    """

    mid: int
    code: int

    @property
    def is_refusal(self) -> bool:
        return self.code >= 0x80


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


class ConnectionTimings(Struct, frozen=True):
    """Times of the connection to a broker, s.

    Attributes:
        connect_s: most for TCP, and again for the TLS handshake.
        answer_s: most for the broker's answer to CONNECT.
        first_answer_s: most for that answer while MQTT 3.1.1 is still to be tried: some old brokers, as amqtt,
            keep silent.
        uneasy_s: without an acknowledgement, after which a warning is logged; a slow network may need that long
            for a snapshot.
        silence_s: without an acknowledgement, after which the connection is dropped, whatever the broker's pings
            say.
        pause_s: most to wait for something to do; patient retained topics wait for it.
        return_every_s: between two attempts to reach the first broker while a fallback is in use.
        clock_every_s: between two checks of a clock by which the broker's certificate is not valid.
    """

    connect_s: float = 5.0
    answer_s: float = 10.0
    first_answer_s: float = 3.0
    uneasy_s: float = 12.0
    silence_s: float = 60.0
    pause_s: float = 1.0
    return_every_s: float = 600.0
    clock_every_s: float = 1.0


TIMINGS = ConnectionTimings()
"""Defaults, as devices use them."""

_WINDOW = 20
"""Maximum number of messages that wait for their acknowledgement."""
_READ_FIRST = 8
"""Packets that are read before writing, so that the broker's DISCONNECT reason is not missed."""


_UNSENT = 8192
"""So many bytes may wait in the system before the socket counts as not writable: what waits there cannot be
overtaken by events. The system takes up to a segment more (TCP_NOTSENT_LOWAT in tcp(7))."""
_SIOCOUTQNSD = 0x894B
"""Request for the bytes of a socket that TCP has not sent yet (linux/sockios.h)."""


def _limit_unsent(sock: Any) -> None:
    """Let the system hold few bytes that are not sent. A system without that option holds more."""
    with suppress(OSError), socket.socket(fileno=os.dup(sock.fileno())) as twin:  # a WebSocket has no options
        twin.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)


def _unsent_by_system(sock: Any) -> int:
    try:
        (count,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), _SIOCOUTQNSD, bytes(4)))
    except (OSError, ValueError):  # closed
        return 0
    return int(count)


class Connection:
    """A connection that is opened once.

    Attributes:
        wants_room: something waits for `has_room`: `turn` returns when there is room.
        lost: why it has ended; empty while it lasts.
        lost_code: MQTT 5 reason code that the broker ended it with; 0 without one.
        subscriptions: of this connection.
    """

    def __init__(
        self,
        config: MqttConfig,
        client_id: str,
        protocol: Protocol,
        will: Will,
        timings: ConnectionTimings = TIMINGS,
    ) -> None:
        self._config, self._timings = config, timings
        self.wants_room = False
        self.lost, self.lost_code = "", 0
        self._limits = ServerLimits(_WINDOW)
        self._answer: int | None = None
        self._error = self._broker_text = ""
        self._acknowledged: list[PubAck] = []
        self._unanswered: set[int] = set()
        self._protocol = protocol
        self._properties = PublishProperties(config.event_expiry_s) if protocol == "5" else None
        self._client = create_client(config, client_id, protocol, will)
        self.subscriptions = Subscriptions(self._client, mqtt_5=protocol == "5")
        self._client.on_connect, self._client.on_disconnect = self._on_connect, self._on_disconnect
        self._client.on_publish = self._on_publish
        self._client.on_log = self._on_log
        # With this callback set, paho only queues; `turn` writes what has come together.
        self._client.on_socket_register_write = lambda *_: None

    def open(
        self,
        wake: WakeupPipe,
        left: Callable[[], float],
        patience_s: float,
        synchronised: Synchronised = lambda: None,
    ) -> None:
        """Connect, and wait for the broker's answer.

        Args:
            wake: ends a wait in `turn`.
            left: returns the time left, s; it may become less. Resolving the name may take longer.
            patience_s: maximum time for the answer.
            synchronised: True if the clock is; asked when a certificate is not valid now.

        Raises:
            BrokerError: the broker cannot be reached; its subclasses tell a refusal, silence and a certificate.
        """
        self._wake, self._poll = wake, select.poll()
        self._poll.register(wake, select.POLLIN)
        try:
            connect(self._client, self._config, self._protocol, min(left(), self._timings.connect_s))
        except (OSError, ValueError) as error:
            tls = uses_tls(self._config)
            if tls and isinstance(error, ssl.SSLCertVerificationError):
                raise explain_certificate(error, self._config, synchronised) from error
            raise BrokerError(reasons.explain_opening(error, tls=tls)) from error
        _limit_unsent(self._client.socket())
        self._await_answer(left, time.monotonic() + patience_s)

    def _await_answer(self, left: Callable[[], float], deadline: float) -> None:
        while self._answer is None and not self.lost:
            if (timeout_s := min(left(), deadline - time.monotonic())) <= 0:
                self.drop(reasons.explain_silence("no answer to CONNECT", tls=uses_tls(self._config)))
                raise UnansweredError(self.lost, silent=True)
            self.turn(timeout_s)
        self._client.on_log = None  # it costs time, and from now on other callbacks give the reasons
        if self._answer is None:
            raise UnansweredError(reasons.explain_hangup(self.lost, tls=uses_tls(self._config)), silent=False)
        if self._answer:
            raise RefusedError(self._answer, self._broker_text)
        if self._limits.fault:
            self.farewell(0.1)
            raise BrokerError(self._limits.fault)

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool = False, kind: Kind = "state") -> int:
        """Queue a message for the next `turn`. Return its number in this connection.

        Raises:
            ValueError: no broker can take it: a wildcard in the topic, or too large for the protocol.
        """
        properties: Any = self._properties.select(payload, kind) if self._properties is not None else None
        mid = self._client.publish(topic, payload, min(qos, self._limits.qos), retain, properties).mid
        # paho reports QoS 0 as published by itself. Numbers repeat: a message that has waited for its answer that
        # long is sent again on the next connection.
        (self._unanswered.add if qos else self._unanswered.discard)(mid)
        return mid

    def answer(self, topic: str, payload: bytes, correlation: bytes) -> None:
        """Queue a reply at QoS 0; under MQTT 3.1.1 without its correlation data.

        Raises:
            ValueError: see `publish`.
        """
        properties = reply_properties(correlation) if self._properties is not None else None
        self._client.publish(topic, payload, 0, properties=properties)

    @property
    def window(self) -> int:
        """Maximum number of unacknowledged messages."""
        return self._limits.window

    @property
    def max_packet(self) -> int:
        """Maximum packet size that the broker accepts, bytes; 0: unlimited."""
        return self._limits.max_packet

    def fits(self, topic: str, payload: bytes) -> bool:
        return self._limits.fits(topic, payload)

    @property
    def has_room(self) -> bool:
        """True if the network has taken nearly everything that was queued before."""
        sock: Any = self._client.socket()
        if sock is None or self._client.want_write():
            return False
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        return bool(poll.poll(0))

    @property
    def unsent_bytes(self) -> int:
        """Bytes that were queued and that TCP has not sent yet."""
        sock: Any = self._client.socket()
        # paho tells only whether there are any.
        queued: int = sum(packet["to_process"] for packet in tuple(getattr(self._client, "_out_packet", ())))
        return queued + (_unsent_by_system(sock) if sock is not None else 0)

    def turn(self, timeout_s: float) -> list[PubAck]:
        """Write, wait for the network or the wake, read. Return the acknowledgements.

        The wake is clear afterwards: look for work only then.
        """
        try:
            self._turn(timeout_s)
        except Exception as error:
            # Paho lets errors through that a hostile or broken peer can cause.
            known = isinstance(error, OSError | BrokerError)
            self.drop(
                reasons.explain_error(error) if known else f"it sent something that is not MQTT: {error!r:.200}"
            )
        acknowledged, self._acknowledged = self._acknowledged, []
        return acknowledged

    def _turn(self, timeout_s: float) -> None:
        client = self._client
        if client.want_write():
            self._read_first()
            client.loop_write()
        sock: Any = client.socket()
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

    def _wait(self, sock: Any, timeout_s: float, *, to_write: bool) -> bool:
        """Wait for socket or wake. Return True if there is something to read, or the connection has ended."""
        self._poll.register(sock, select.POLLIN | (select.POLLOUT if to_write else 0))
        found = dict(self._poll.poll(max(0, round(timeout_s * 1e3))))
        if self._wake.fileno() in found:
            self._wake.clear()
        return bool(found.get(sock.fileno(), 0) & ~select.POLLOUT)

    def _read_first(self) -> None:
        """Read the reason that a broker gives before it closes, before a write fails."""
        for _ in range(_READ_FIRST):
            sock: Any = self._client.socket()
            if sock is None:
                return
            self._poll.register(sock, select.POLLIN)
            if sock.fileno() not in dict(self._poll.poll(0)):
                return
            self._client.loop_read()

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
        self._answer = int(reason.value)
        self._broker_text = getattr(properties, "ReasonString", "")
        self._limits = read_limits(properties, _WINDOW)

    def _on_disconnect(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        code = int(reason.value)
        if flags.is_disconnect_packet_from_server:
            self.lost_code = code
            words = reasons.explain_disconnect(code, getattr(properties, "ReasonString", ""))
        else:
            words = reasons.explain_break(code, self._error)
        self.lost = self.lost or words

    def _on_publish(self, client: Any, userdata: Any, mid: int, reason: Any, properties: Any) -> None:
        if mid in self._unanswered:
            self._unanswered.discard(mid)
            self._acknowledged.append(PubAck(mid, int(reason.value)))

    def _on_log(self, client: Any, userdata: Any, level: int, text: str) -> None:
        if level == paho.MQTT_LOG_ERR:
            self._error = text
