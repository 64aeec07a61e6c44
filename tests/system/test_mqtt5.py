"""MQTT 5 properties and the transports at a real broker."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent.comms.messages import SCHEMA_VERSION
from agent.comms.mqtt.connection import Connection, PubAck, WakeupPipe
from tests.support.hostile import CONNACK_5, packets, peer, read_packet
from tests.support.mosquitto import HOST, Mosquitto, free_port
from tests.support.publishing import EVENTS, TOPICS, device, event, events_of, in_order, wait_for
from tests.support.received import Messages, Received

DETECTIONS, HEALTH = TOPICS.detections("front"), TOPICS.health
COUNT, SNAPSHOT = TOPICS.count("front", "person"), TOPICS.snapshot("front")


def newest(messages: Messages, topic: str) -> Received:
    return [message for message in messages if message.topic == topic][-1]


def test_every_message_says_what_it_is_and_how_long_it_is_worth(broker: Mosquitto, tmp_path: Path) -> None:
    messages = broker.subscribe("vedette/#")
    with device(tmp_path, broker.config(event_expiry_s=3600)) as (spool, publisher):
        wait_for(lambda: publisher.state.connected)
        spool.put(EVENTS, event())
        publisher.send(DETECTIONS, b'{"detections":[]}')
        for topic, payload in ((HEALTH, b"{}"), (COUNT, b"3"), (SNAPSHOT, b"\xff\xd8\xff\xe0")):
            publisher.retain(topic, payload)
        topics = {EVENTS, DETECTIONS, HEALTH, COUNT, SNAPSHOT, TOPICS.status}
        messages.wait(lambda m: {x.topic for x in m} >= topics)
    found = {topic: newest(messages, topic).properties for topic in topics}
    assert {topic: p.ContentType for topic, p in found.items()} == {
        EVENTS: "application/json",
        DETECTIONS: "application/json",
        HEALTH: "application/json",
        COUNT: "text/plain",
        SNAPSHOT: "image/jpeg",
        TOPICS.status: "text/plain",
    }
    texts = {topic for topic, p in found.items() if getattr(p, "PayloadFormatIndicator", 0) == 1}
    assert texts == topics - {SNAPSHOT}
    assert {topic: getattr(p, "MessageExpiryInterval", 0) for topic, p in found.items()} == {
        **dict.fromkeys(topics, 0),
        EVENTS: 3600,
        DETECTIONS: 10,
    }
    assert all(p.UserProperty == [("schema", str(SCHEMA_VERSION))] for p in found.values())


def test_a_will_says_what_it_is_too(broker: Mosquitto, tmp_path: Path) -> None:
    messages = broker.subscribe(TOPICS.status)
    command = [
        sys.executable,
        "-m",
        "tests.support.publishing",
        str(tmp_path),
        str(broker.port),
        "1",
        "0",
        "event",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as running:
        messages.wait(lambda m: m.of(TOPICS.status) == [b"online"])
        running.kill()
    messages.wait(lambda m: m.of(TOPICS.status)[-1] == b"offline")
    assert messages[-1].properties.ContentType == "text/plain"
    assert messages[-1].properties.UserProperty == [("schema", str(SCHEMA_VERSION))]


def test_an_event_expires_for_a_subscriber_that_stays_away(tmp_path: Path) -> None:
    with Mosquitto(tmp_path, persistence=True) as broker:
        away = broker.subscribe("vedette/#", lasting=True)
        away.client.disconnect()
        wait_for(lambda: not away.client.is_connected())
        folders = tmp_path / "a", tmp_path / "b"
        for folder in folders:
            folder.mkdir()
        with device(folders[0], broker.config(event_expiry_s=1)) as (spool, _):
            spool.put(EVENTS, event())
            wait_for(lambda: spool.stats().waiting == 0)
        with device(folders[1], broker.config(event_expiry_s=0)) as (spool, _):
            spool.put(TOPICS.events("garden"), event(stream="garden"))
            wait_for(lambda: spool.stats().waiting == 0)
        time.sleep(2.5)
        away.client.loop_stop()
        away.client.reconnect()
        away.client.loop_start()
        away.wait(lambda m: m.of(TOPICS.events("garden")))
        assert away.of(EVENTS) == []


def test_many_topics_arrive_in_order_across_a_restart_of_the_broker(tmp_path: Path) -> None:
    topics = [TOPICS.events(f"camera{number}") for number in range(15)]
    with Mosquitto(tmp_path, persistence=True) as broker:
        messages = broker.subscribe("vedette/#", lasting=True)
        with device(tmp_path, broker.config(reconnect_max_s=0.3)) as (spool, publisher):
            for turn in range(2):
                for number in range(300):
                    spool.put(topics[number % 15], event(stream=f"camera{number % 15}"))
                    publisher.send(TOPICS.detections(f"camera{number % 15}"), b"{}")
                if turn == 0:
                    time.sleep(0.1)
                    broker.stop()
                    broker.start()
            wait_for(lambda: spool.stats().waiting == 0)
            wait_for(lambda: len({e.id for t in topics for e in events_of(messages.of(t))}) == 600)
    for number, topic in enumerate(topics):
        arrived = in_order(events_of(messages.of(topic)))
        assert len(arrived) == 40
        assert {e.stream for e in arrived} == {f"camera{number}"}
        assert [e.seq for e in arrived] == sorted(e.seq for e in arrived)


@pytest.mark.parametrize("tls", [False, True])
def test_over_a_websocket(tmp_path: Path, tls: bool) -> None:
    port = free_port()
    lines = [f"listener {port} {HOST}", "protocol websockets"]
    folder = tmp_path / "mosquitto"
    if tls:
        lines += [f"certfile {folder}/server.pem", f"keyfile {folder}/server.key"]
    with Mosquitto(tmp_path, tls=tls, lines=tuple(lines)) as broker:
        messages = broker.subscribe("vedette/#")
        config = broker.config(port=port, transport="websockets", ws_path="/mqtt")
        with device(tmp_path, config) as (spool, publisher):
            for _ in range(200):
                spool.put(EVENTS, event())
            publisher.retain(SNAPSHOT, b"\xff\xd8" + bytes(300_000))
            messages.wait(lambda m: len(m.of(EVENTS)) == 200 and m.of(SNAPSHOT))
            wait_for(lambda: spool.stats().waiting == 0)
            assert publisher.state.detail == f"MQTT 5 over WebSocket{' and TLS' if tls else ''}"
        messages.wait(lambda m: m.of(TOPICS.status) == [b"online", b"stopped"])
    assert [e.seq for e in events_of(messages.of(EVENTS))] == list(range(1, 201))


@pytest.mark.parametrize("tls", [False, True])
def test_what_follows_a_message_that_a_websocket_takes_in_parts_arrives(tmp_path: Path, tls: bool) -> None:
    port, folder, sizes = free_port(), tmp_path / "mosquitto", (240_000, 300, 300, 240_000, 300)
    lines = [f"listener {port} {HOST}", "protocol websockets"]
    if tls:
        lines += [f"certfile {folder}/server.pem", f"keyfile {folder}/server.key"]
    with Mosquitto(tmp_path, tls=tls, lines=tuple(lines)) as broker:
        messages = broker.subscribe("parts")
        connection = Connection(broker.config(port=port, transport="websockets"), "cam", "5", None)
        connection.open(WakeupPipe(), lambda: 20.0, 20.0)
        sent, found = [], list[PubAck]()
        for size in sizes:  # a turn for each, as when events come one by one
            sent.append(connection.publish("parts", bytes(size), qos=1))
            found += connection.turn(0.0)

        def all_answered() -> bool:
            found.extend(connection.turn(0.1))
            return len(found) == len(sizes)

        wait_for(all_answered)
        assert sorted(answer.mid for answer in found) == sent
        messages.wait(lambda m: tuple(map(len, m.of("parts"))) == sizes)
        assert (connection.lost, connection.unsent_bytes) == ("", 0)
        connection.drop("")


def test_a_port_that_is_no_websocket_is_told(broker: Mosquitto, tmp_path: Path) -> None:
    config = broker.config(transport="websockets", reconnect_max_s=0.2)
    with device(tmp_path, config) as (_, publisher):
        wait_for(lambda: "does not answer as a WebSocket; check [mqtt] port" in publisher.state.detail)


def test_alpn_picks_mqtt_on_a_port_that_others_share(tmp_path: Path) -> None:

    with Mosquitto(tmp_path, tls=True) as broker:  # for its certificates
        offered: list[str | None] = []
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(broker.folder / "server.pem", broker.folder / "server.key")
        context.set_alpn_protocols(["http/1.1", "mqtt"])

        def serve(connection: socket.socket) -> None:
            assert isinstance(connection, ssl.SSLSocket)
            offered.append(connection.selected_alpn_protocol())
            read_packet(connection)
            connection.sendall(CONNACK_5)
            list(packets(connection))

        with peer(serve, context) as port:
            config = broker.config(port=port, alpn=("mqtt",))
            with device(tmp_path, config) as (_, publisher):
                wait_for(lambda: publisher.state.connected)
    assert offered == ["mqtt"]


def test_mosquitto_takes_alpn(tmp_path: Path) -> None:
    with Mosquitto(tmp_path, tls=True) as broker:
        messages = broker.subscribe("vedette/#")
        with device(tmp_path, broker.config(alpn=("mqtt",))):
            messages.wait(lambda m: m.of(TOPICS.status) == [b"online"])
