"""One connection to a broker, from its opening to its end. Everything happens in the thread that turns it.

Each connection has a paho client of its own and a clean session. So paho has nothing to send again by itself:
whoever uses a connection starts again with what has not been acknowledged.
"""

from __future__ import annotations

import select
import time
from contextlib import suppress
from typing import Any, Literal

import paho.mqtt.client as paho
from msgspec import Struct
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.comms import reasons
from agent.comms.credentials import port, read_credentials
from agent.comms.refusal import RefusedError, UnansweredError
from agent.comms.retained import Look
from agent.comms.subscriptions import Subscriptions
from agent.comms.wake import Wake
from agent.config import MqttConfig
from agent.errors import BrokerError

Protocol = Literal["5", "3.1.1"]

_PROTOCOLS = {"5": paho.MQTTv5, "3.1.1": paho.MQTTv311}
_TCP_S = 5.0
_OVERHEAD = 32
"""Bytes of a PUBLISH packet besides topic and payload, at most."""
_FIRST = 8
"""Packets that may lie before the one that says why, at most: answers to what we have subscribed to, mostly."""
LARGEST_PACKET = 256 * 1024
"""Bytes of a packet that we want from a broker of MQTT 5: it keeps larger ones to itself. The largest that we
ask for is our own discovery message: 150 kB of eight cameras with eight labels in two zones each."""


class Acknowledged(Struct, frozen=True, gc=False):
    """The broker's word on a message.

    Attributes:
        mid: as `Connection.publish` gave it.
        code: MQTT 5 reason code; 0x80 and above is a refusal.
    """

    mid: int
    code: int

    @property
    def is_refusal(self) -> bool:
        """Whether the broker did not take it."""
        return self.code >= 0x80


class Connection:
    """A connection that is opened once.

    Attributes:
        lost: why it has ended, in plain words; empty while it lasts.
        lost_code: MQTT 5 reason code that the broker ended it with; 0 without one.
        window: unacknowledged messages that the broker takes, at most.
        max_packet: bytes of a packet that the broker takes, at most.
        qos: the highest that the broker offers, 0 or 1.
        subscriptions: of this connection.
    """

    def __init__(self, config: MqttConfig, client_id: str, protocol: Protocol, will: tuple[str, bytes]) -> None:
        """Prepare a connection.

        Args:
            config: where to.
            client_id: who we are.
            protocol: to speak.
            will: topic and payload that the broker retains when we vanish.

        Raises:
            ConfigError: a file that the configuration names cannot be used.
        """
        self._config = config
        self.lost, self.lost_code = "", 0
        self.window, self.max_packet, self.qos = config.inflight, 0, 1
        self._answer: int | None = None
        self._error = ""
        self._acknowledged: list[Acknowledged] = []
        self._unanswered: set[int] = set()
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id, protocol=_PROTOCOLS[protocol], reconnect_on_failure=False
        )
        self._is_5 = protocol == "5"
        self.subscriptions = Subscriptions(self._client)
        self._client.max_inflight_messages_set(0)  # unlimited: `window` is kept by the caller
        self._client.will_set(*will, qos=1, retain=True)
        self._secure()
        self._listen()

    def _secure(self) -> None:
        credentials = read_credentials(self._config)
        if self._config.username:
            self._client.username_pw_set(self._config.username, credentials.password)
        if credentials.tls is not None:
            self._client.tls_set_context(credentials.tls)

    def _listen(self) -> None:
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_publish = self._on_publish
        self._client.on_log = self._on_log
        # With this callback set, paho only queues; `turn` writes what has come together.
        self._client.on_socket_register_write = lambda *_: None

    def open(self, wake: Wake, timeout_s: float, patience_s: float) -> None:
        """Connect, and wait for the broker's answer.

        Args:
            wake: ends a wait in `turn`.
            timeout_s: at most; resolving the name may take longer.
            patience_s: for the answer, at most.

        Raises:
            BrokerError: nobody there. `RefusedError` and `UnansweredError` are told apart.
        """
        self._wake, self._poll = wake, select.poll()
        self._poll.register(wake, select.POLLIN)
        deadline = time.monotonic() + timeout_s
        self._client.connect_timeout = max(0.05, min(timeout_s, _TCP_S))
        try:
            self._client.connect(
                self._config.host, port(self._config), self._config.keepalive_s, properties=self._properties()
            )
        except (OSError, ValueError) as error:
            raise BrokerError(reasons.of_error(error)) from error
        self._await_answer(min(deadline, time.monotonic() + patience_s))

    def _properties(self) -> Properties | None:
        if not self._is_5:
            return None
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho leaves it untyped
        properties.MaximumPacketSize = LARGEST_PACKET
        return properties

    def _await_answer(self, deadline: float) -> None:
        while self._answer is None and not self.lost:
            if (left := deadline - time.monotonic()) <= 0:
                self.drop("no answer to our CONNECT")
                raise UnansweredError(self.lost, silent=True)
            self.turn(left)
        self._client.on_log = None  # it costs time, and now the reasons come by themselves
        if self._answer is None:
            raise UnansweredError(f"{self.lost}{self._error and f': {self._error}'}", silent=False)
        if self._answer:
            raise RefusedError(self._answer)

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool = False) -> int:
        """Hand a message over, to be written in the next `turn`. Gives its number in this connection.

        Raises:
            ValueError: no broker can take it: a wildcard in the topic, or too large for the protocol.
        """
        mid = self._client.publish(topic, payload, min(qos, self.qos), retain).mid
        # Of the others paho says by itself that they are published; and numbers come round: what has waited for
        # its answer so long is sent again on the next connection.
        (self._unanswered.add if qos else self._unanswered.discard)(mid)
        return mid

    def answer(self, topic: str, payload: bytes, correlation: bytes) -> None:
        """Hand an answer over, at QoS 0; under MQTT 3.1.1 without its correlation data.

        Raises:
            ValueError: see `publish`.
        """
        properties = None
        if self._is_5:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # as above
            properties.ContentType = "application/json"
            if correlation:
                properties.CorrelationData = correlation
        self._client.publish(topic, payload, 0, properties=properties)

    def look(self, pattern: str) -> Look:
        """Ask for what the broker retains under a pattern."""
        return Look(self.subscriptions, pattern)

    def fits(self, topic: str, payload: bytes) -> bool:
        """Whether the broker takes a message of that size."""
        return not self.max_packet or len(topic.encode()) + len(payload) + _OVERHEAD <= self.max_packet

    @property
    def is_clogged(self) -> bool:
        """Whether the network has not taken yet what was handed over."""
        return self._client.want_write()

    def turn(self, timeout_s: float) -> list[Acknowledged]:
        """Write, wait for the network or the wake, read; gives what has been acknowledged.

        The wake is clear afterwards: look for work only then.
        """
        try:
            self._turn(timeout_s)
        except Exception as error:
            # Paho lets errors through that a hostile or broken peer can cause.
            self.drop(reasons.of_error(error))
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
        self._poll.register(sock, select.POLLIN | (select.POLLOUT if client.want_write() else 0))
        # What TLS has decrypted does not show on the socket; at QoS 0 writing is all that there is to wait for.
        pending = bool(getattr(sock, "pending", int)())
        at_once = pending or bool(self._acknowledged)
        found = dict(self._poll.poll(0 if at_once else max(0, round(timeout_s * 1e3))))
        if self._wake.fileno() in found:
            self._wake.clear()
        if pending or found.get(sock.fileno(), 0) & ~select.POLLOUT:
            client.loop_read()
        if client.want_write():
            client.loop_write()
        client.loop_misc()

    def _read_first(self) -> None:
        """A broker that throws us out says why before it closes: that is read before a write fails."""
        for _ in range(_FIRST):
            sock: Any = self._client.socket()
            if sock is None:
                return
            self._poll.register(sock, select.POLLIN)
            if not dict(self._poll.poll(0)).get(sock.fileno(), 0):
                return
            self._client.loop_read()

    def farewell(self, timeout_s: float) -> None:
        """Disconnect in order: the broker forgets the will."""
        deadline = time.monotonic() + timeout_s
        self._client.disconnect()
        while not self.lost and (left := deadline - time.monotonic()) > 0:
            self.turn(left)
        self.drop("we left")

    def drop(self, why: str) -> None:
        """End it at once, without a word to the broker."""
        self.lost = self.lost or why
        sock: Any = self._client.socket()
        if sock is not None:
            with suppress(OSError):
                sock.close()

    def _on_connect(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        self._answer = int(reason.value)
        # Without the property the broker sets no bound.
        self.window = min(self.window, getattr(properties, "ReceiveMaximum", self.window))
        self.max_packet = getattr(properties, "MaximumPacketSize", 0)
        self.qos = min(1, getattr(properties, "MaximumQoS", 1))

    def _on_disconnect(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        code = int(reason.value)
        if flags.is_disconnect_packet_from_server:
            self.lost_code = code
            self.lost = self.lost or (reasons.in_words(code) if code else "the broker ended the connection")
        elif code == reasons.KEEP_ALIVE:
            self.lost = self.lost or reasons.in_words(code)
        else:
            self.lost = self.lost or "the connection broke"

    def _on_publish(self, client: Any, userdata: Any, mid: int, reason: Any, properties: Any) -> None:
        if mid in self._unanswered:
            self._unanswered.discard(mid)
            self._acknowledged.append(Acknowledged(mid, int(reason.value)))

    def _on_log(self, client: Any, userdata: Any, level: int, text: str) -> None:
        if level == paho.MQTT_LOG_ERR:
            self._error = text
