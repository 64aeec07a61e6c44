"""Brokers that mean harm, each test named after what they do.

In most a peer attacks on its first connections, and hands everything on to a real broker after that: the device
must have lived on, kept its events, held its memory, and said once what it was.
"""

from __future__ import annotations

import gc
import logging
import random
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from agent.board.process import resident_mb, trim_heap
from agent.comms.mqtt import connection as connection_module
from agent.comms.mqtt.connection import ConnectionTimings
from agent.config.servers import MqttConfig
from tests.support.hostile import (
    CONNACK_5,
    forwarder,
    length_of,
    mid_of,
    packets,
    peer,
    puback,
    publish,
    read_packet,
    until_left,
)
from tests.support.mosquitto import HOST, Mosquitto
from tests.support.publishing import EVENTS, TOPICS, event, events_of, in_order, wait_for
from tests.support.publishing import device as usual_device

Attack = Callable[[socket.socket], None]

_BOUND_MB = 96.0
"""A packet of MQTT has up to 256 MiB, and a flood has no end."""
COUNT = TOPICS.count("front", "person").encode()


PATIENT = ConnectionTimings(answer_s=30.0, connect_s=30.0, silence_s=100.0)
IMPATIENT = ConnectionTimings(answer_s=3.0, connect_s=3.0)
"""For brokers that keep silent."""
device = partial(usual_device, timings=PATIENT)


def held_mb() -> float:
    """Return resident memory without what has been freed, by tests before this one among others, MiB."""
    gc.collect()
    trim_heap()
    return resident_mb()


def survived(
    folder: Path,
    broker: Mosquitto,
    attack: Attack,
    caplog: pytest.LogCaptureFixture,
    *,
    times: int = 1,
    lines: int = 1,
    context: ssl.SSLContext | None = None,
    timings: ConnectionTimings = PATIENT,
    **fields: Any,
) -> str:
    """Return what the device logged about the broker."""
    messages, served = broker.subscribe(EVENTS), [0, 0]
    honest = forwarder(broker.port)

    def serve(connection: socket.socket) -> None:
        served[0] += 1
        if served[0] > times:
            honest(connection)
            return
        try:
            attack(connection)
        finally:
            served[1] += 1

    before = held_mb()
    with peer(serve, context) as port:
        config = replace(MqttConfig(host=HOST, port=port, protocol="5", reconnect_max_s=0.2), **fields)
        with device(folder, config, timings=timings) as (spool, publisher):
            for _ in range(5):
                spool.put(EVENTS, event())
            wait_for(lambda: served[1] >= times, 90)
            assert held_mb() - before < _BOUND_MB, "while it is attacked"
            assert publisher._thread is not None
            assert publisher._thread.is_alive()
            messages.wait(lambda m: len({e.id for e in events_of(m.of(EVENTS))}) == 5)
            wait_for(lambda: spool.stats().waiting == 0)
            publisher.stop(1.0)
    assert held_mb() - before < _BOUND_MB
    assert [e.seq for e in in_order(events_of(messages.of(EVENTS)))] == [1, 2, 3, 4, 5]
    said = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(said) == lines, said
    assert len(said[0]) < 500
    assert said[0].isprintable()
    return said[0]


def accepted(connection: socket.socket, connack: bytes = CONNACK_5) -> None:
    read_packet(connection)
    connection.sendall(connack)


def test_it_accepts_and_never_answers(
    tmp_path: Path, broker: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    assert "no answer to CONNECT" in survived(tmp_path, broker, until_left, caplog, times=2, timings=IMPATIENT)


def test_it_accepts_and_never_shakes_hands_for_tls(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, broker: Mosquitto
) -> None:
    with (
        peer(until_left) as port,
        device(tmp_path, MqttConfig(host=HOST, port=port, tls=True), timings=IMPATIENT) as (spool, publisher),
    ):
        spool.put(EVENTS, event())
        wait_for(lambda: publisher.state.detail.startswith("no answer; if it speaks no TLS there"))
        assert spool.stats().waiting == 1


def test_it_drips_a_tls_handshake_byte_by_byte(tmp_path: Path) -> None:
    def drip(connection: socket.socket) -> None:
        connection.recv(4096)
        for byte in b"\x16\x03\x03\x40\x00" + bytes(10_000):  # each within the time for a byte
            connection.sendall(bytes([byte]))
            time.sleep(0.1)

    with (
        peer(drip) as port,
        device(tmp_path, MqttConfig(host=HOST, port=port, tls=True), timings=IMPATIENT) as (spool, publisher),
    ):
        spool.put(EVENTS, event())
        wait_for(lambda: publisher.state.detail.startswith("no answer; if it speaks no TLS there"))
        assert spool.stats().waiting == 1


def test_it_accepts_and_never_acknowledges(
    tmp_path: Path, broker: Mosquitto, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "_WINDOW", 3)
    counted: list[int] = []

    def swallow(connection: socket.socket) -> None:
        accepted(connection)
        counted.append(sum(packet.kind == 0x30 for packet in packets(connection)))

    said = survived(tmp_path, broker, swallow, caplog, times=2, timings=replace(PATIENT, silence_s=2.0))
    assert "no acknowledgement for" in said
    assert counted == [3, 3], "no more than the window"


def test_it_acknowledges_what_was_never_sent(
    tmp_path: Path, broker: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    def acknowledge_anything(connection: socket.socket) -> None:
        accepted(connection)
        read_packet(connection)
        for mid in range(60_000, 65_536):
            connection.sendall(puback(mid) + b"\x50\x02" + mid.to_bytes(2, "big") + b"\x70\x02\x00\x00")
        connection.sendall(b"\x90\x04\xff\xff\x00\x00\xb0\x04\xff\xff\x00\x00\xd0\x00")

    survived(tmp_path, broker, acknowledge_anything, caplog)


def test_it_acknowledges_at_qos_2_what_was_sent_at_qos_1(
    tmp_path: Path, broker: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    timings = replace(PATIENT, silence_s=0.5)

    def receive(connection: socket.socket) -> None:
        accepted(connection)
        for packet in packets(connection):
            if packet.kind == 0x30:
                connection.sendall(b"\x50\x02" + mid_of(packet).to_bytes(2, "big"))

    assert "no acknowledgement for" in survived(tmp_path, broker, receive, caplog, timings=timings)


@pytest.mark.parametrize("seed", range(6))
def test_it_sends_garbage(tmp_path: Path, broker: Mosquitto, caplog: pytest.LogCaptureFixture, seed: int) -> None:
    rng = random.Random(seed)

    def garbage(connection: socket.socket) -> None:
        read_packet(connection)
        if rng.random() < 0.5:
            connection.sendall(CONNACK_5)
        connection.sendall(rng.randbytes(rng.choice([1, 5, 100, 100_000])))

    survived(tmp_path, broker, garbage, caplog, times=6)


def test_it_sends_broken_packets_of_every_kind(
    tmp_path: Path, broker: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    rng = random.Random(1)
    kinds: Iterator[int] = iter(range(256))

    def broken(connection: socket.socket) -> None:
        accepted(connection)
        body = rng.randbytes(rng.randrange(12))
        connection.sendall(bytes([next(kinds)]) + length_of(len(body)) + body)
        connection.shutdown(socket.SHUT_WR)
        until_left(connection)

    survived(tmp_path, broker, broken, caplog, times=40)


def test_it_sends_a_packet_of_250_mb(tmp_path: Path, broker: Mosquitto, caplog: pytest.LogCaptureFixture) -> None:
    def send(connection: socket.socket) -> None:
        accepted(connection)
        connection.sendall(b"\x30" + length_of(250_000_000))
        while True:
            connection.sendall(bytes(65_536))

    assert "it sent a packet of more than" in survived(tmp_path, broker, send, caplog)


@pytest.mark.parametrize("topic", [b"a/b", b"\xff\xfe", b"", COUNT[:-1] + b"\xc3"])
def test_it_floods_us_with_messages_that_nobody_asked_for(
    tmp_path: Path, broker: Mosquitto, caplog: pytest.LogCaptureFixture, topic: bytes
) -> None:
    def flood(connection: socket.socket) -> None:
        accepted(connection)
        while True:
            connection.sendall(publish(topic, b"x" * 1000) * 20)

    assert "floods this device" in survived(tmp_path, broker, flood, caplog)


def test_it_floods_us_with_retained_counts(
    tmp_path: Path, broker: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    """They are asked for once, to put right what a run before has left: a device never had so many."""
    published: set[bytes] = set()

    def flood(connection: socket.socket) -> None:
        accepted(connection)
        while (packet := read_packet(connection)).kind != 0x80:
            pass
        connection.sendall(b"\x90\x04" + packet.body[:2] + b"\x00\x00")
        number = 0
        connection.settimeout(0.0)
        until = time.monotonic() + 5.0
        while time.monotonic() < until or number <= 2000:
            with suppress(BlockingIOError):
                connection.send(publish(b"%s%d" % (COUNT, number), b"7" * 200, retain=True))
                number += 1
            with suppress(BlockingIOError):
                published.update(connection.recv(65536).split(b"count/")[1:])

    said = survived(tmp_path, broker, flood, caplog)
    assert said
    assert len(published) < 1100


@pytest.mark.parametrize(
    ("properties", "words"),
    [
        (b"\x21\x00\x00", "not MQTT"),  # receive maximum 0
        (b"\x27\x00\x00\x00\x0a", "it takes packets of 10 bytes at most; Vedette needs"),
        (b"\x27\x00\x00\x00\x00", "not MQTT"),
        (b"\x99\x01", "not MQTT"),
        (b"\x22\xff", "not MQTT"),
    ],
)
def test_it_answers_with_absurd_limits(
    tmp_path: Path, broker: Mosquitto, caplog: pytest.LogCaptureFixture, properties: bytes, words: str
) -> None:
    body = b"\x00\x00" + bytes([len(properties)]) + properties

    def absurd(connection: socket.socket) -> None:
        accepted(connection, b"\x20" + bytes([len(body)]) + body)
        until_left(connection)

    assert words in survived(tmp_path, broker, absurd, caplog, times=2)


@pytest.mark.parametrize(
    "properties", [b"\x21\x00\x01", b"\x22\xff\xff", b"\x13\x00\x01", b"\x13\x00\x00", b"\x24\x01"]
)
def test_limits_that_are_small_or_large_and_allowed_are_kept(tmp_path: Path, properties: bytes) -> None:
    most = [0]
    body = b"\x00\x00" + bytes([len(properties)]) + properties

    def strict(connection: socket.socket) -> None:
        accepted(connection, b"\x20" + bytes([len(body)]) + body)
        for packet in packets(connection):
            if packet.command & 0xF6 == 0x32:
                connection.settimeout(0.02)  # does another event come before its acknowledgement?
                try:
                    following = connection.recv(1, socket.MSG_PEEK)
                    most[0] = max(most[0], 2 if following and following[0] & 0xF6 == 0x32 else 1)
                except TimeoutError:
                    most[0] = max(most[0], 1)
                connection.settimeout(60.0)
                connection.sendall(puback(mid_of(packet)))
            elif packet.kind == 0xC0:
                connection.sendall(b"\xd0\x00")

    with peer(strict) as port, device(tmp_path, MqttConfig(host=HOST, port=port)) as (spool, publisher):
        for _ in range(20):
            spool.put(EVENTS, event())
        wait_for(lambda: spool.stats().waiting == 0)
        assert publisher.state.connected
        assert publisher.state.connects == 1
    if properties == b"\x21\x00\x01":
        assert most[0] == 1


def test_it_says_why_at_length_and_with_control_characters(
    tmp_path: Path, broker: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    reason = b"\x1b[2J\nroot: all is well\x07" + b"x" * 60_000
    properties = b"\x1f" + len(reason).to_bytes(2, "big") + reason
    body = b"\x00\x87" + length_of(len(properties)) + properties

    def talkative(connection: socket.socket) -> None:
        accepted(connection, b"\x20" + length_of(len(body)) + body)

    said = survived(tmp_path, broker, talkative, caplog, times=2)
    assert "not authorized" in said
    assert said.isprintable()
    assert len(said) < 500


def test_it_lets_us_in_and_throws_us_out_again_and_again(
    tmp_path: Path, broker: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    def throw_out(connection: socket.socket) -> None:
        accepted(connection)
        connection.sendall(b"\xe0\x02\x97\x00")
        until_left(connection)

    assert "quota exceeded" in survived(tmp_path, broker, throw_out, caplog, times=2)


def test_the_password_file_cannot_be_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not while the daemon starts, where that is an error in the configuration, but later."""
    with Mosquitto(tmp_path, users={"cam": "s3cret"}) as broker:
        config = broker.config(reconnect_max_s=0.2)
        secret = Path(config.password_file)
        with device(tmp_path, config) as (spool, publisher):
            wait_for(lambda: publisher.state.connected)
            kept = secret.rename(tmp_path / "kept")
            secret.symlink_to(tmp_path)  # a folder: root may read any file
            broker.kill()
            broker.start()
            wait_for(lambda: "password_file" in publisher.state.detail)
            spool.put(EVENTS, event())
            time.sleep(0.5)
            assert spool.stats().waiting == 1
            kept.replace(secret)  # at once: an attempt between two steps would tell of a third fault
            wait_for(lambda: spool.stats().waiting == 0)
    said = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(said) == 2, "the broker was lost, and then the file"
    assert f"password_file = {secret}: " in said[1]
    assert "s3cret" not in caplog.text
