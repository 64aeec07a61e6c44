"""The publisher against peers that are no brokers, or bad ones."""

from __future__ import annotations

import base64
import hashlib
import logging
import random
import re
import select
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Literal

import pytest
from msgspec.structs import replace
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from agent.comms.messages import SCHEMA_VERSION
from agent.comms.mqtt.connection import (
    LARGEST_PROPERTIES,
    LARGEST_RECEIVED,
    TIMINGS,
    Connection,
    ConnectionTimings,
    Kind,
    WakeupPipe,
    publish_properties,
)
from agent.comms.mqtt.publisher import Publisher
from agent.comms.topics import OFFLINE
from agent.config.servers import MqttConfig
from agent.types import Stored
from tests.support.certificates import make_certificates
from tests.support.hostile import CONNACK_5, length_of, peer, publish, receive_until, until_left
from tests.support.mosquitto import HOST, free_port
from tests.support.publishing import EVENTS, TOPICS, Kept, event, wait_for


def publisher(
    port: int, outgoing: Kept | None = None, timings: ConnectionTimings = TIMINGS, **fields: Any
) -> Publisher:
    config = MqttConfig(host=HOST, port=port, reconnect_max_s=0.2, **fields)
    made = Publisher(config, TOPICS, outgoing or Kept(), timings=timings)
    made.start()
    return made


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x20\xff\xff\xff\xff\xff",
        b"\x20\x02\x00\xf3\x99",
        b"\x20\x05\x00\x00\x02\x21",
    ],
)
def test_a_peer_that_is_no_broker_harms_nothing(answer: bytes, caplog: pytest.LogCaptureFixture) -> None:
    attempts: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        attempts.append(connection.recv(4096))
        connection.sendall(answer)

    with peer(serve) as port:
        made = publisher(port)
        wait_for(lambda: len(attempts) > 2 and made.state.detail != "connecting")
        assert not made.state.connected
        assert made._thread is not None
        assert made._thread.is_alive()
        made.stop(60.0)
        assert not made._thread.is_alive()
    assert 1 <= len([r for r in caplog.records if r.levelno >= logging.WARNING]) <= 2, "lost, and perhaps refused"


@pytest.mark.parametrize(
    ("code", "words"),
    [(0x86, "bad user name or password"), (0x8A, "banned"), (0x85, "client identifier")],
)
def test_a_refusal_is_told_in_plain_words(code: int, words: str) -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(bytes([0x20, 3, 0, code, 0]))
        connection.recv(10)

    with peer(serve) as port:
        made = publisher(port, username="cam")
        wait_for(lambda: words in made.state.detail)
        assert made.state.detail.startswith("refuses user 'cam': ")
        made.stop(1.0)


def test_the_versions_are_tried_in_turn_when_the_peer_refuses_the_first() -> None:
    levels: list[int] = []

    def serve(connection: socket.socket) -> None:
        packet = receive_until(connection, b"MQTT")
        level = packet[packet.index(b"MQTT") + 4]
        levels.append(level)
        connection.sendall(b"\x20\x02\x00\x00" if level == 4 else b"\x20\x02\x00\x01")
        receive_until(connection, b"online")
        connection.sendall(b"\x40\x02\x00\x01")
        receive_until(connection, b"stopped")

    with peer(serve) as port:
        made = publisher(port)
        wait_for(lambda: made.state.connected)
        assert made.state.detail == "MQTT 3.1.1"
        assert levels == [5, 4]
        made.stop(1.0)


@pytest.mark.parametrize("samples", [False, True])
def test_a_broker_that_acknowledges_nothing_is_left_after_a_while(samples: bool) -> None:
    numbers: list[int] = []

    def serve(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(CONNACK_5)
        while data := connection.recv(65536):
            numbers.append(data.count(b"appeared"))

    with peer(serve) as port:
        timings = ConnectionTimings(silence_s=0.3, pause_s=0.1)
        made = publisher(port, Kept([Stored(1, EVENTS, event(), 0.0)]), timings)

        def told_twice() -> bool:
            if samples:  # which nobody acknowledges, and paho says are published
                made.send(TOPICS.detections("front"), b"{}")
            return sum(numbers) >= 2

        wait_for(told_twice)
        assert made.state.acknowledged == 0
        made.stop(0.5)


def test_a_sample_under_the_number_of_an_event_acknowledges_nothing() -> None:
    connection = Connection(MqttConfig(), "id", "5", (TOPICS.status, b"offline"))
    mid = connection.publish(EVENTS, b"1", qos=1)
    connection._client._last_mid = mid - 1  # as after 65,535 others
    assert connection.publish(TOPICS.detections("front"), b"2", qos=0) == mid
    connection._on_publish(None, None, mid, ReasonCode(PacketTypes.PUBACK), None)
    assert connection._acknowledged == []


def test_a_broker_at_qos_0_gets_what_it_can() -> None:
    got: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b"\x20\x05\x00\x00\x02\x24\x00")
        while data := connection.recv(65536):
            got.append(data)

    with peer(serve) as port:
        outgoing = Kept([Stored(1, EVENTS, event(), 0.0)])
        made = publisher(port, outgoing)
        wait_for(lambda: outgoing.settled == [1])
        made.stop(60.0)
        wait_for(lambda: b"stopped" in b"".join(got))


def test_a_disconnect_by_the_broker_is_told_in_its_words() -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(CONNACK_5)
        receive_until(connection, b"online")
        connection.sendall(b"\xe0\x02\x98\x00")
        connection.recv(10)

    with peer(serve) as port:
        made = publisher(port)
        wait_for(lambda: "administrative action" in made.state.detail)
        made.stop(1.0)


def test_nothing_listens_and_no_such_name(caplog: pytest.LogCaptureFixture) -> None:
    made = publisher(free_port())
    wait_for(lambda: made.state.detail == "nothing listens there")
    time.sleep(0.5)
    made.stop(1.0)
    assert len(caplog.records) == 1
    named = Publisher(MqttConfig(host="nowhere.invalid", reconnect_max_s=0.1), TOPICS, Kept())
    named.start()
    wait_for(lambda: named.state.detail != "connecting")
    named.stop(1.0)


def test_a_stop_does_not_wait_for_a_server_of_names(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answers = threading.Event(), threading.Event()

    def hang(*_: object, **__: object) -> None:
        asked.set()
        answers.wait()
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    made = Publisher(MqttConfig(host="nowhere.invalid"), TOPICS, Kept())
    made.start()
    assert asked.wait(60.0)
    made.stop(0.1)
    assert made._thread is not None
    assert made._thread.is_alive(), "it waits for a name still"
    answers.set()
    made._thread.join(60.0)
    assert not made._thread.is_alive()


def test_a_defect_does_not_end_the_thread(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Connection, "open", lambda *_: 1 / 0)
    made = publisher(free_port())
    wait_for(lambda: len([r for r in caplog.records if "internal error" in r.getMessage()]) >= 2)
    made.stop(1.0)


def test_a_file_that_vanishes_while_running_is_an_outage(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    secret = tmp_path_factory.mktemp("secret") / "password"
    secret.write_text("x")
    config = MqttConfig(
        host=HOST, port=free_port(), username="cam", password_file=str(secret), reconnect_max_s=0.1
    )
    made = Publisher(config, TOPICS, Kept())
    secret.unlink()
    made.start()
    wait_for(lambda: "password_file" in made.state.detail)
    made.stop(1.0)


def test_a_stop_before_the_start_and_a_connection_after_the_stop() -> None:
    Publisher(MqttConfig(), TOPICS, Kept()).stop(1.0)
    seen: list[bytes] = []
    is_stopped = threading.Event()

    def serve(connection: socket.socket) -> None:
        seen.append(connection.recv(4096))
        is_stopped.wait(60.0)
        connection.sendall(CONNACK_5)
        while data := connection.recv(4096):
            seen.append(data)

    with peer(serve) as port:
        made = publisher(port)
        wait_for(lambda: seen)
        made.stop(0.1)
        is_stopped.set()
        assert made._thread is not None
        made._thread.join(60.0)
        assert not made._thread.is_alive()
    assert b"online" not in b"".join(seen[1:])
    assert OFFLINE in seen[0]


def pauses_of(config: MqttConfig, monkeypatch: pytest.MonkeyPatch, count: int = 9) -> list[float]:
    """The longest pauses that a publisher makes between its attempts, s; none of them lasts."""
    asked: list[float] = []
    over = threading.Event()

    def wait(seconds: float) -> None:
        asked.append(seconds)
        over.wait(0.005 if len(asked) < count else 30.0)

    monkeypatch.setattr(random, "uniform", lambda least, most: most)
    made = Publisher(config, TOPICS, Kept())
    monkeypatch.setattr(made._interrupt, "wait", wait)
    made.start()
    wait_for(lambda: len(asked) >= count)
    over.set()
    made.stop(1.0)
    return asked[:count]


def test_a_local_broker_that_is_away_is_tried_again_after_5_s_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    local = MqttConfig(host=HOST, port=free_port())
    assert pauses_of(local, monkeypatch) == [1, 2, 4, 5, 5, 5, 5, 5, 5]
    configured = replace(local, reconnect_max_s=20.0)
    assert pauses_of(configured, monkeypatch) == [1, 2, 4, 8, 16, 20, 20, 20, 20], "what is configured rules"


def test_a_local_broker_that_refuses_us_is_left_in_peace_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b"\x20\x03\x00\x86\x00")  # bad user name or password

    with peer(refuse) as port:
        assert max(pauses_of(MqttConfig(host=HOST, port=port), monkeypatch)) == 60


def test_a_wake_wakes_from_any_thread_and_only_until_cleared() -> None:
    wake = WakeupPipe()
    poll = select.poll()
    poll.register(wake, select.POLLIN)
    assert not poll.poll(0)
    threads = [threading.Thread(target=wake.set) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert poll.poll(1000)
    wake.clear()
    assert not poll.poll(0)
    wake.clear()
    wake.set()
    assert poll.poll(1000)
    wake.clear()
    wake.close()
    wake.set()


_PUBLISHES_TWICE = """
import sys
from agent.comms.mqtt.connection import Connection, WakeupPipe
from agent.config.servers import MqttConfig
from agent.errors import BrokerError

def connection(port):
    return Connection(MqttConfig(host="127.0.0.1", port=port), "cam", "5", None)

one = connection(int(sys.argv[1]))
one.open(WakeupPipe(), lambda: 5.0, 5.0)
mids, found = [one.publish("a", b"{}", qos=1) for _ in range(2)], []
while len(found) < 2 and not one.lost:
    found += one.turn(1.0)
assert mids == [1, 2] == [answer.mid for answer in found], one.lost
try:
    connection(int(sys.argv[2])).open(WakeupPipe(), lambda: 5.0, 5.0)
except BrokerError as error:
    print(error, "_ssl" in sys.modules)
"""


def test_a_connection_without_tls_loads_no_tls_while_there_is_nothing_to_read_nor_when_it_fails() -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(CONNACK_5)
        connection.recv(4096)
        for mid in (1, 2):  # when the first is read, two messages are under way, and the second is looked for
            connection.sendall(bytes([0x40, 2, 0, mid]))
            time.sleep(0.1)

    with peer(serve) as port:
        ports = str(port), str(free_port())
        done = subprocess.run(
            [sys.executable, "-c", _PUBLISHES_TWICE, *ports], capture_output=True, text=True, check=True
        )
    assert done.stdout.split() == ["nothing", "listens", "there", "False"]


def accept_websocket(connection: socket.socket) -> None:
    """Shake hands as a WebSocket server (RFC 6455, section 4.2.2)."""
    key = re.findall(rb"Sec-WebSocket-Key: (\S+)", receive_until(connection, b"\r\n\r\n"))[0]
    accepted = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    connection.sendall(head + b"Sec-WebSocket-Accept: " + accepted + b"\r\n\r\n")


def frame(length: int) -> bytes:
    """Return the header of a binary WebSocket frame."""
    return b"\x82\x7f" + length.to_bytes(8, "big")


LARGE = 2 * LARGEST_RECEIVED
ANNOUNCED = b"\x30" + length_of(LARGE)


@pytest.mark.parametrize(
    ("transport", "tls", "answer"),
    [
        ("tcp", False, CONNACK_5 + ANNOUNCED),
        ("tcp", True, CONNACK_5 + ANNOUNCED),
        ("websockets", False, frame(5) + CONNACK_5 + frame(LARGE) + ANNOUNCED),
        ("websockets", True, frame(5) + CONNACK_5 + frame(LARGE) + ANNOUNCED),
        (
            "websockets",
            False,
            frame(5) + CONNACK_5 + frame(LARGE) + publish(b"a", bytes(60_000)) * (LARGE // 60_000),
        ),
    ],
    ids=["tcp", "tls", "websocket", "websocket over tls", "websocket frame of many packets"],
)
def test_a_packet_that_is_too_large_ends_the_connection_before_it_is_read(
    tmp_path: Path, transport: Literal["tcp", "websockets"], tls: bool, answer: bytes
) -> None:
    def serve(connection: socket.socket) -> None:
        if transport == "websockets":
            accept_websocket(connection)
        connection.recv(4096)
        connection.sendall(answer)
        until_left(connection)

    make_certificates(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    with peer(serve, context if tls else None) as port:
        ca_file = str(tmp_path / "ca.pem") if tls else ""
        config = MqttConfig(host=HOST, port=port, transport=transport, ca_file=ca_file)
        connection = Connection(config, "cam", "5", None)
        connection.open(WakeupPipe(), lambda: 60.0, 60.0)
        until = time.monotonic() + 60.0
        while not connection.lost and time.monotonic() < until:
            connection.turn(1.0)
        connection.drop("it was not noticed")
    assert str(LARGEST_RECEIVED) in connection.lost


LONGEST_EXPIRY_S = 4_000_000_000


def unpacked(payload: bytes, kind: Kind, expiry_s: int) -> Any:
    packed = publish_properties(payload, kind, expiry_s).pack()
    assert len(packed) <= LARGEST_PROPERTIES
    read, length = Properties(PacketTypes.PUBLISH).unpack(packed)  # type: ignore[no-untyped-call]
    assert length == len(packed)
    assert read.UserProperty == [("schema", str(SCHEMA_VERSION))]
    return read


@pytest.mark.parametrize(
    ("payload", "kind", "content_type", "expiry_s"),
    [
        (b"{}", "event", "application/json", LONGEST_EXPIRY_S),
        (b"{}", "sample", "application/json", 10),
        (b"{}", "state", "application/json", None),
        (b"\xff\xd8", "state", "image/jpeg", None),
        (b"3", "state", "text/plain", None),
        (b"", "state", "text/plain", None),
    ],
)
def test_properties_tell_what_a_payload_is(
    payload: bytes, kind: Kind, content_type: str, expiry_s: int | None
) -> None:
    read = unpacked(payload, kind, LONGEST_EXPIRY_S)
    assert read.ContentType == content_type
    assert getattr(read, "MessageExpiryInterval", None) == expiry_s
    assert hasattr(read, "PayloadFormatIndicator") == (content_type != "image/jpeg")


def test_an_event_never_expires_without_an_expiry() -> None:
    assert not hasattr(unpacked(b"{}", "event", 0), "MessageExpiryInterval")


def test_no_packet_waits_for_the_acknowledgement_of_the_one_before() -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(CONNACK_5)
        until_left(connection)

    with peer(serve) as port:
        connection = Connection(MqttConfig(host=HOST, port=port), "porch", "5", None)
        connection.open(WakeupPipe(), lambda: 60.0, 60.0)
        line: Any = connection._client.socket()
        assert line.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        connection.farewell(1.0)
