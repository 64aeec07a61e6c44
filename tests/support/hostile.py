"""Peers that are no brokers, or bad ones: a server whose every connection a test serves as it likes."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from tests.support.mosquitto import HOST

CONNACK_5 = b"\x20\x03\x00\x00\x00"
CONNACK_3 = b"\x20\x02\x00\x00"
SILENCE_S = 60.0
"""After so long without a byte a connection is closed by the peer, so that no test hangs."""


@contextmanager
def peer(
    serve: Callable[[socket.socket], None], context: ssl.SSLContext | None = None, port: int = 0
) -> Iterator[int]:
    """A server that hands each connection to `serve` in a thread of its own, and closes it after.

    Args:
        serve: may end with an OSError.
        context: of TLS, if that is spoken.
        port: to listen on; 0: any.
    """
    with socket.create_server((HOST, port)) as server:
        over = threading.Event()

        def talk(connection: socket.socket) -> None:
            with suppress(OSError), connection:
                connection.settimeout(SILENCE_S)
                if context is None:
                    serve(connection)
                    return
                with context.wrap_socket(connection, server_side=True) as secure:
                    serve(secure)

        def accept() -> None:
            while True:
                connection, _ = server.accept()
                if over.is_set():
                    connection.close()
                    return
                threading.Thread(target=talk, args=(connection,), name="peer", daemon=True).start()

        thread = threading.Thread(target=accept, name="peers", daemon=True)
        thread.start()
        try:
            yield int(server.getsockname()[1])
        finally:
            over.set()
            with socket.socket() as last:
                last.connect_ex(server.getsockname())
            thread.join(60)


def forwarder(port: int) -> Callable[[socket.socket], None]:
    """Serves a connection by handing everything on to a port, and back."""

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve(connection: socket.socket) -> None:
        with socket.create_connection((HOST, port)) as onward:
            connection.settimeout(None)
            back = threading.Thread(target=pump, args=(onward, connection), name="forward", daemon=True)
            back.start()
            pump(connection, onward)
            back.join()

    return serve


class Packet(NamedTuple):
    """One of MQTT's: its first byte, and what comes behind its length."""

    command: int
    body: bytes

    @property
    def kind(self) -> int:
        return self.command & 0xF0


def read_packet(connection: socket.socket) -> Packet:
    """The next packet that the client has sent."""
    command = _exactly(connection, 1)[0]
    length = shift = 0
    while True:
        digit = _exactly(connection, 1)[0]
        length |= (digit & 127) << shift
        shift += 7
        if not digit & 128:
            return Packet(command, _exactly(connection, length))


def packets(connection: socket.socket) -> Iterator[Packet]:
    """All that come, until the client closes."""
    with suppress(OSError):
        while True:
            yield read_packet(connection)


def until_left(connection: socket.socket) -> None:
    """Read on until the client goes away."""
    with suppress(OSError):
        while connection.recv(65536):
            pass


def length_of(count: int) -> bytes:
    """A remaining length."""
    digits = b""
    while True:
        count, digit = divmod(count, 128)
        digits += bytes([digit | (128 if count else 0)])
        if not count:
            return digits


def publish(topic: bytes, payload: bytes, *, qos: int = 0, mid: int = 1, retain: bool = False) -> bytes:
    """A PUBLISH of MQTT 5 without properties."""
    number = mid.to_bytes(2, "big") if qos else b""
    body = len(topic).to_bytes(2, "big") + topic + number + b"\0" + payload
    return bytes([0x30 | qos << 1 | retain]) + length_of(len(body)) + body


def puback(mid: int, code: int = 0) -> bytes:
    """A PUBACK of MQTT 5."""
    return b"\x40\x03" + mid.to_bytes(2, "big") + bytes([code])


def mid_of(packet: Packet) -> int:
    """The number of a PUBLISH at QoS 1."""
    behind = 2 + int.from_bytes(packet.body[:2], "big")
    return int.from_bytes(packet.body[behind : behind + 2], "big")


def topic_of(packet: Packet) -> str:
    """Return the topic of a PUBLISH."""
    return packet.body[2 : 2 + int.from_bytes(packet.body[:2], "big")].decode()


def receive_until(connection: socket.socket, what: bytes) -> bytes:
    """Receive up to and including `what`."""
    got = b""
    while what not in got:
        if not (more := connection.recv(4096)):
            raise OSError("closed")
        got += more
    return got


def _exactly(connection: socket.socket, count: int) -> bytes:
    got = b""
    while len(got) < count:
        if not (more := connection.recv(count - len(got))):
            raise OSError("closed")
        got += more
    return got
