"""A subscriber with a session that lasts, which keeps a ledger, and can say that it has everything so far."""

from __future__ import annotations

import array
import fcntl
import socket
import termios
import threading
import time
from typing import Any

import msgspec
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.comms.messages import EventMessage
from tests.support.ledger import Ledger
from tests.support.mosquitto import HOST, Mosquitto

LAST = "trial"
"""Stream of the event that closes the book."""
_MARK = "trial/mark"
_decoder = msgspec.json.Decoder(EventMessage)


class Listener:
    """Comes back by itself.

    Attributes:
        ledger: of every event so far.
        closed: whether the event that closes the book has come.
    """

    def __init__(self, broker: Mosquitto) -> None:
        """Subscribe; `go_round` returns when that is done."""
        self.ledger, self.closed = Ledger(), threading.Event()
        self._marks, self._marked = 0, threading.Condition()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, "trial-listener", protocol=paho.MQTTv5)
        if broker.users:
            self._client.username_pw_set(*next(iter(broker.users.items())))
        self._client.on_connect = self._connected
        self._client.on_message = self._message
        self._client.reconnect_delay_set(1, 1)
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho leaves it untyped
        properties.SessionExpiryInterval = 86400
        self._client.connect(HOST, broker.port, keepalive=60, clean_start=False, properties=properties)
        self._client.loop_start()

    def _connected(self, client: paho.Client, *_: Any) -> None:
        client.subscribe("vedette/+/+/events", 1)
        client.subscribe(_MARK, 0)

    def _message(self, client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        if message.topic == _MARK:
            with self._marked:
                self._marks += 1
                self._marked.notify_all()
            return
        event = _decoder.decode(message.payload)
        self.ledger.add(event)
        if event.stream == LAST:
            self.closed.set()

    def go_round(self, timeout_s: float = 60.0) -> None:
        """Return when a message has gone to the broker and come back: what was before it has come."""
        deadline = time.monotonic() + timeout_s
        with self._marked:
            had = self._marks
            while self._marks == had:
                assert time.monotonic() < deadline, f"the subscriber hears nothing for {timeout_s} s"
                if self._client.is_connected():
                    self._client.publish(_MARK, b"", qos=0)
                self._marked.wait(0.25)

    def drain(self) -> None:
        """Read what is in the socket of a broker that has been stopped."""
        quiet = 0
        while quiet < 5:
            time.sleep(0.01)
            quiet = 0 if _waiting(self._client.socket()) else quiet + 1

    def close(self) -> None:
        """Leave; the session stays at the broker."""
        self._client.disconnect()
        self._client.loop_stop()


def _waiting(sock: Any) -> int:
    """Bytes in a socket that have not been read."""
    if not isinstance(sock, socket.socket) or sock.fileno() < 0:
        return 0
    count = array.array("i", [0])
    fcntl.ioctl(sock.fileno(), termios.FIONREAD, count)
    return count[0]
