"""Events and states on their way to a real broker that is away, restarted, wrong, strict or old."""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from unittest.mock import Mock

import msgspec
import pytest
from msgspec.structs import replace

from agent.comms.mqtt import endpoint
from agent.comms.mqtt.connection import ConnectionTimings
from agent.comms.mqtt.publisher import Publisher
from agent.config import StorageConfig, StreamConfig, ZoneConfig
from agent.config.places import LineConfig, PrivacyMask
from agent.config.servers import MqttConfig
from agent.storage.spool.recovery import History
from tests.support.killed import process
from tests.support.mosquitto import HOST, Mosquitto, free_port
from tests.support.publishing import EVENTS, TOPICS, Kept, device, event, events_of, in_order, wait_for
from tests.support.received import Messages

TRIANGLE = ((0.1, 0.1), (0.4, 0.1), (0.4, 0.6))

ROOT = Path(__file__).parent.parent.parent


def statuses(messages: Messages) -> list[bytes]:
    return messages.of(TOPICS.status)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_events_arrive_in_order_with_their_numbers_and_are_settled(broker: Mosquitto, tmp_path: Path) -> None:
    messages = broker.subscribe("vedette/#")
    with device(tmp_path, broker.config()) as (spool, publisher):
        for _ in range(500):
            spool.put(EVENTS, event())
        messages.wait(lambda m: len(m.of(EVENTS)) == 500)
        wait_for(lambda: spool.stats().waiting == 0)
        assert publisher.state.acknowledged == 500
    events = events_of(messages.of(EVENTS))
    assert [e.seq for e in events] == list(range(1, 501))
    assert all(e.latency_ms.total >= e.latency_ms.publish > 0 for e in events)
    assert not any(m.retain for m in messages if m.topic == EVENTS)
    assert statuses(messages) == [b"online", b"stopped"]


def test_an_event_waits_for_no_clock(broker: Mosquitto, tmp_path: Path) -> None:
    messages = broker.subscribe("vedette/#")
    timings = ConnectionTimings(pause_s=60.0)
    with device(tmp_path, broker.config(), timings=timings) as (spool, publisher):
        wait_for(lambda: publisher.state.connected)
        time.sleep(0.2)
        spool.put(EVENTS, event())
        messages.wait(lambda m: len(m.of(EVENTS)) == 1, 30.0)


def test_a_user_with_the_right_password_is_accepted(tmp_path: Path) -> None:
    with Mosquitto(tmp_path, users={"cam": "s3cret"}) as broker:
        messages = broker.subscribe("vedette/#")
        with device(tmp_path, broker.config()) as (_, publisher):
            messages.wait(lambda m: statuses(m) == [b"online"])
            assert publisher.state.detail == "MQTT 5 as user 'cam'"


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_wrong_password_is_said_once_and_never_shown_as_online(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, protocol: str
) -> None:
    (tmp_path / "wrong").write_text("not-it\n")
    (tmp_path / "wrong").chmod(0o600)
    with Mosquitto(tmp_path, users={"cam": "s3cret"}) as broker:
        messages = broker.subscribe("vedette/#")
        config = broker.config(password_file=str(tmp_path / "wrong"), reconnect_max_s=0.2, protocol=protocol)
        with device(tmp_path, config) as (_, publisher):
            publisher.retain(TOPICS.health, b"{}")
            log = broker.folder / "mosquitto.log"
            wait_for(lambda: log.read_text().count("not authorised") >= 3)  # it keeps trying
            assert not publisher.state.connected
            assert "not authorized" in publisher.state.detail
        assert len(messages) == 0
        said = warnings(caplog)
        assert len(said) == 1
        assert f"{HOST}:{broker.port}: refuses user 'cam': not authorized" in said[0]
        assert "not-it" not in caplog.text


def test_a_password_that_is_corrected_is_used_without_a_restart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    secret = tmp_path / "secret"
    secret.write_text("wrong")
    with Mosquitto(tmp_path, users={"cam": "s3cret"}) as broker:
        config = broker.config(password_file=str(secret), reconnect_max_s=0.2)
        with device(tmp_path, config) as (_, publisher):
            wait_for(lambda: "not authorized" in publisher.state.detail)
            secret.write_text("s3cret\n")
            wait_for(lambda: publisher.state.connected)
    assert "back after" in caplog.text


def test_tls_with_a_ca_of_ones_own(tmp_path: Path) -> None:
    with Mosquitto(tmp_path, tls=True) as broker:
        messages = broker.subscribe("vedette/#")
        with device(tmp_path, broker.config()) as (spool, publisher):
            for _ in range(200):
                spool.put(EVENTS, event())
            messages.wait(lambda m: len(m.of(EVENTS)) == 200)
            publisher.retain(TOPICS.snapshot("front"), b"\xff\xd8" + bytes(300_000))
            messages.wait(lambda m: m.of(TOPICS.snapshot("front")))
            assert publisher.state.detail == "MQTT 5 and TLS"


def test_a_certificate_of_another_ca_is_not_trusted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Mosquitto(tmp_path, tls=True) as broker:
        config = broker.config(ca_file=str(broker.folder / "other-ca.pem"), reconnect_max_s=0.2)
        with device(tmp_path, config) as (_, publisher):
            wait_for(lambda: "certificate is not accepted" in publisher.state.detail)
            time.sleep(0.5)
        assert len(warnings(caplog)) == 1


def test_plain_words_at_a_port_of_tls_are_answered_with_a_hint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Mosquitto(tmp_path, tls=True) as broker:
        config = MqttConfig(host=HOST, port=broker.port, reconnect_max_s=0.2)
        with device(tmp_path, config) as (_, publisher):
            wait_for(lambda: publisher.state.detail.endswith("if it speaks TLS there, set [mqtt] tls"))
    assert len(warnings(caplog)) == 1


def test_tls_at_a_plain_port_is_answered_with_a_hint(
    broker: Mosquitto, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = MqttConfig(host=HOST, port=broker.port, tls=True, reconnect_max_s=0.2)
    with device(tmp_path, config) as (_, publisher):
        wait_for(lambda: "if it speaks no TLS there, leave out [mqtt] tls" in publisher.state.detail)
    assert len(warnings(caplog)) == 1


def test_a_client_certificate_is_shown(tmp_path: Path) -> None:
    with Mosquitto(tmp_path, client_certificates=True) as broker:
        messages = broker.subscribe("vedette/#")
        with device(tmp_path, broker.config()):
            messages.wait(lambda m: statuses(m) == [b"online"])


@pytest.mark.parametrize("shown", ["none", "stranger"])
def test_without_the_right_client_certificate_nothing_is_online(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, shown: str
) -> None:
    with Mosquitto(tmp_path, client_certificates=True) as broker:
        messages = broker.subscribe("vedette/#")
        files = {"cert_file": "", "key_file": ""}
        if shown == "stranger":
            files = {
                "cert_file": str(broker.folder / "stranger.pem"),
                "key_file": str(broker.folder / "stranger.key"),
            }
        with device(tmp_path, broker.config(reconnect_max_s=0.2, **files)) as (_, publisher):
            wait_for(lambda: publisher.state.detail not in ("", "connecting"))
            time.sleep(0.7)
            assert not publisher.state.connected
        assert len(messages) == 0
        assert len(warnings(caplog)) == 1


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_broker_restarted_in_mid_stream_loses_nothing_and_keeps_the_order(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, protocol: str
) -> None:
    caplog.set_level(logging.INFO)
    with Mosquitto(tmp_path, persistence=True) as broker:
        messages = broker.subscribe("vedette/#", lasting=True)
        with device(tmp_path, broker.config(protocol=protocol, reconnect_max_s=0.3)) as (spool, publisher):
            total = 0
            for pause in (0.1, 1.0, 0.1):
                until = time.monotonic() + 0.5
                while time.monotonic() < until:
                    spool.put(EVENTS, event())
                    total += 1
                    time.sleep(0.0005)
                broker.stop()
                for _ in range(50):
                    spool.put(EVENTS, event())
                    total += 1
                time.sleep(pause)
                broker.start()
            wait_for(lambda: spool.stats().waiting == 0)
            wait_for(lambda: len({e.id for e in events_of(messages.of(EVENTS))}) == total)
            assert publisher.state.connected
    events = in_order(events_of(messages.of(EVENTS)))
    assert [e.seq for e in events] == list(range(1, total + 1))
    assert "back after" in caplog.text


def test_retained_topics_come_back_to_a_broker_that_lost_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with Mosquitto(tmp_path) as broker:
        with device(tmp_path, broker.config(reconnect_max_s=0.3)) as (_, publisher):
            for count in (1, 2, 2, 3):
                publisher.retain(TOPICS.count("front", "person"), str(count).encode())
            wait_for(lambda: publisher.state.connected)
            broker.kill()
            wait_for(lambda: not publisher.state.connected)
            publisher.send(TOPICS.detections("front"), b"{}")
            assert publisher.state.dropped_samples == 1
            publisher.retain(TOPICS.health, b"{}")
            assert publisher.retained() == {TOPICS.count("front", "person"): b"3", TOPICS.health: b"{}"}
            time.sleep(1.0)
            broker.start()
            messages = broker.subscribe("vedette/#")
            messages.wait(lambda m: {x.topic for x in m} >= {TOPICS.status, TOPICS.health})
            messages.wait(lambda m: m.of(TOPICS.count("front", "person")) == [b"3"])
            publisher.send(TOPICS.detections("front"), b"{}")
            messages.wait(lambda m: m.of(TOPICS.detections("front")) == [b"{}"])
        assert len(warnings(caplog)) == 1, "one outage, one line"
        assert caplog.text.count("back after") == 1


def test_a_killed_device_is_offline(broker: Mosquitto, tmp_path: Path) -> None:
    messages = broker.subscribe("vedette/#")
    with process(tmp_path, broker.port, count=1):
        messages.wait(lambda m: statuses(m) == [b"online"])
    messages.wait(lambda m: statuses(m) == [b"online", b"offline"])
    late = broker.subscribe(TOPICS.status)
    late.wait(lambda m: m.of(TOPICS.status) == [b"offline"] and m[0].retain)


def test_kill_9_in_mid_stream_loses_no_event_that_was_on_the_disk(tmp_path: Path) -> None:
    with Mosquitto(tmp_path, persistence=True) as broker:
        messages = broker.subscribe("vedette/#", lasting=True)
        stored: list[str] = []
        for turn in range(4):
            if turn == 2:
                broker.stop()  # these are spooled only
            stored += published_until_killed(tmp_path, broker.port, 100 + 37 * turn)
            if turn == 2:
                broker.start()
        with device(tmp_path, broker.config()) as (spool, _):
            wait_for(lambda: spool.stats().waiting == 0)
        wait_for(lambda: set(stored) <= {e.id for e in events_of(messages.of(EVENTS))})
    events = in_order(events_of(messages.of(EVENTS)))
    assert [e.id for e in events if e.id in set(stored)] == stored
    assert [e.seq for e in events] == list(range(1, len(events) + 1)), "no gap, no number twice"


def published_until_killed(folder: Path, port: int, count: int) -> list[str]:
    """Ids of the events that a device had on its disk when it was killed, at least `count`."""
    with process(folder, port, count=10_000, pause_s=0.001) as running:
        assert running.stdout is not None
        ids = [running.stdout.readline().strip() for _ in range(count)]
        running.send_signal(signal.SIGKILL)
        return ids + [line.strip() for line in running.stdout if len(line) == 33]


def test_stop_sends_what_waits_and_says_stopped(broker: Mosquitto, tmp_path: Path) -> None:
    messages = broker.subscribe("vedette/#")
    with device(tmp_path, broker.config()) as (spool, publisher):
        wait_for(lambda: publisher.state.connected)
        for _ in range(300):
            spool.put(EVENTS, event())
        spool.flush(60.0)
        publisher.stop(60.0)
        assert not publisher.state.connected
        assert spool.stats().waiting == 0
    messages.wait(lambda m: statuses(m) == [b"online", b"stopped"])
    assert len(messages.of(EVENTS)) == 300
    assert messages[-1].topic == TOPICS.status


def test_stop_makes_one_attempt_for_events_that_wait(broker: Mosquitto, tmp_path: Path) -> None:
    messages = broker.subscribe("vedette/#")
    with device(tmp_path, broker.config()) as (spool, publisher):
        spool.put(EVENTS, event())
        spool.flush(2.0)
        publisher.stop(2.0)
    messages.wait(lambda m: len(m.of(EVENTS)) == 1)


@pytest.mark.parametrize("how", ["refused", "frozen before", "frozen after"])
def test_stop_returns_in_time_when_the_broker_is_dead(tmp_path: Path, how: str) -> None:
    with Mosquitto(tmp_path) as broker:
        if how == "frozen before":
            broker.freeze()
        if how == "refused":
            broker.kill()
        patient = ConnectionTimings(connect_s=60.0, answer_s=60.0, first_answer_s=60.0)
        with device(tmp_path, broker.config(), timings=patient) as (spool, publisher):
            if how == "frozen after":
                wait_for(lambda: publisher.state.connected)
                broker.freeze()
            for _ in range(100):
                spool.put(EVENTS, event())
            spool.flush(2.0)
            time.sleep(0.2)
            began = time.monotonic()
            publisher.stop(0.6)
            assert time.monotonic() - began < 30.0
            assert spool.stats().waiting == 100


def test_the_work_of_a_dead_broker_is_noticed_by_its_silence(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker, device(tmp_path, broker.config(keepalive_s=5)) as (_, publisher):
        wait_for(lambda: publisher.state.connected)
        broker.freeze()
        wait_for(lambda: not publisher.state.connected)
        broker.thaw()
        wait_for(lambda: publisher.state.connected)


def test_counts_that_a_run_before_left_are_set_to_0_and_no_others(
    broker: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    import paho.mqtt.publish as publish

    caplog.set_level(logging.INFO)
    left = {
        TOPICS.count("front", "person"): b"5",
        TOPICS.count("gone", "cat"): b"1",
        TOPICS.zone_count("front", "yard", "person"): b"2",
    }
    kept = {TOPICS.count("front", "dog"): b"2", "vedette/shed/front/count/person": b"3"}
    for topic, payload in {**left, **kept}.items():
        publish.single(topic, payload, retain=True, hostname="127.0.0.1", port=broker.port)
    messages = broker.subscribe("vedette/#")
    publisher = Publisher(broker.config(), TOPICS, Kept())
    publisher.retain(TOPICS.count("front", "dog"), b"2")  # before it starts: a busy machine may connect first
    publisher.start()
    try:
        messages.wait(lambda m: all(m.of(topic)[-1:] == [b"0"] for topic in left))
        publisher.retain(TOPICS.count("front", "person"), b"7")
        messages.wait(lambda m: m.of(TOPICS.count("front", "person"))[-1] == b"7")
        time.sleep(4.0)
    finally:
        publisher.stop(2.0)
    assert messages.of(TOPICS.count("front", "person"))[-1] == b"7"
    for topic in left:
        assert f"{topic!r}: set to 0, an earlier run left it" in caplog.messages
    for topic, payload in kept.items():
        assert set(messages.of(topic)) == {payload}


def test_lines_stay_zones_that_are_gone_and_pictures_from_before_masks_are_deleted(broker: Mosquitto) -> None:
    import paho.mqtt.publish as publish

    line, zone = LineConfig("gate", ((0.0, 0.5), (1.0, 0.5))), ZoneConfig("yard", TRIANGLE)
    seen = StreamConfig("test:", "nobody", zones=(zone,), lines=(line,))
    streams = {
        "front": seen,
        "masked": StreamConfig("test:", "nobody", privacy=(PrivacyMask("door", TRIANGLE),)),
        "off": StreamConfig("test:", "nobody", enabled=False),
    }
    deleted = {
        TOPICS.line("front", "old"),
        TOPICS.zone_count("front", "old", "person"),
        TOPICS.snapshot("masked"),
        TOPICS.snapshot("off"),
    }
    kept = {TOPICS.line("front", "gate"), TOPICS.snapshot("front")}
    reset = TOPICS.zone_count("front", "yard", "person")
    for topic in (*deleted, *kept, reset):
        publish.single(topic, b"1", retain=True, hostname="127.0.0.1", port=broker.port)
    messages = broker.subscribe("vedette/#")
    publisher = Publisher(broker.config(), TOPICS, Kept(), streams=lambda: streams)
    publisher.start()
    try:
        messages.wait(
            lambda m: m.of(reset)[-1:] == [b"0"] and all(m.of(topic)[-1:] == [b""] for topic in deleted)
        )
        time.sleep(4.0)
    finally:
        publisher.stop(2.0)
    for topic in kept:
        assert set(messages.of(topic)) == {b"1"}


def test_a_picture_from_before_the_masks_is_deleted_at_each_broker_that_is_used(tmp_path: Path) -> None:
    import paho.mqtt.publish as publish

    streams = {"masked": StreamConfig("test:", "nobody", privacy=(PrivacyMask("door", TRIANGLE),))}
    topic = TOPICS.snapshot("masked")
    publisher: Publisher | None = None
    for number in range(2):
        with Mosquitto(tmp_path / str(number)) as broker:
            publish.single(topic, b"1", retain=True, hostname="127.0.0.1", port=broker.port)
            messages = broker.subscribe(topic)
            messages.wait(lambda m: m.of(topic) == [b"1"])
            if publisher is None:
                publisher = Publisher(broker.config(), TOPICS, Kept(), streams=lambda: streams)
                publisher.start()
            else:
                publisher.reconfigure(broker.config())
            messages.wait(lambda m: m.of(topic)[-1:] == [b""])
    assert publisher is not None
    publisher.stop(0.5)


def test_two_devices_with_one_client_id_say_so_once(
    broker: Mosquitto, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = broker.config(reconnect_max_s=0.2)
    twins = [Publisher(config, TOPICS, Kept()) for _ in range(2)]
    for twin in twins:
        twin.start()
    time.sleep(4.0)
    wait_for(lambda: "another client connected with the same client id" in caplog.text)
    for twin in twins:
        twin.stop(1.0)
    said = [line for line in warnings(caplog) if "another client connected with the same client id" in line]
    assert 1 <= len(said) <= 2, "once for each"


def test_another_device_with_our_name_does_not_make_us_offline(
    broker: Mosquitto, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = broker.subscribe(TOPICS.status)
    with device(tmp_path, broker.config()) as (_, publisher):
        wait_for(lambda: publisher.state.connected)
        for turn in range(2):
            monkeypatch.setattr(endpoint, "client_id", Mock(return_value=f"twin{turn}"))
            twin = Publisher(broker.config(), TOPICS, Kept())
            twin.start()
            messages.wait(lambda m: statuses(m)[-2:] == [b"online", b"online"])
            twin.stop(1.0)
            messages.wait(lambda m: statuses(m)[-2:] == [b"stopped", b"online"])
        late = broker.subscribe(TOPICS.status)
        late.wait(lambda m: statuses(m) == [b"online"])
        wait_for(lambda: "another client published" in caplog.text)
    messages.wait(lambda m: statuses(m)[-1] == b"stopped")
    said = [line for line in warnings(caplog) if "another client published" in line]
    assert len(said) == 1


def test_our_own_will_from_a_broker_that_goes_down_in_order_is_no_other_device(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Mosquitto(tmp_path) as broker, device(tmp_path, broker.config(reconnect_max_s=0.2)) as (_, publisher):
        messages = broker.subscribe(TOPICS.status)
        for connects in (1, 2, 3):
            wait_for(lambda connects=connects: publisher.state.connects == connects)
            time.sleep(0.3)
            broker.stop()
            broker.start()
        wait_for(lambda: publisher.state.connects == 4)
        time.sleep(2.5)  # longer than the moment that a suspicion waits
        assert messages.of(TOPICS.status)[-1] == b"online"
    assert [line for line in warnings(caplog) if "another client published" in line] == []


def test_a_topic_that_the_broker_refuses_waits_and_holds_up_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret_topic = TOPICS.events("secret")
    acl = f"topic read #\ntopic write {EVENTS}\ntopic write {TOPICS.status}\n"
    with Mosquitto(tmp_path, acl=acl) as broker:
        messages = broker.subscribe("vedette/#")
        with device(tmp_path, broker.config(reconnect_max_s=0.3)) as (spool, publisher):
            publisher.retain(TOPICS.health, b"{}")
            for _ in range(30):
                spool.put(secret_topic, event(stream="secret"))
                spool.put(EVENTS, event())
            messages.wait(lambda m: len(m.of(EVENTS)) == 30)
            time.sleep(1.0)
            assert spool.stats().waiting == 30
            said = warnings(caplog)
            assert sum(secret_topic in line for line in said) == 1
            assert sum(TOPICS.health in line for line in said) == 1
            (broker.folder / "acl").write_text(acl + f"topic write {secret_topic}\n")
            assert broker._process is not None
            broker._process.send_signal(signal.SIGHUP)
            messages.wait(lambda m: len(m.of(secret_topic)) == 30)
            wait_for(lambda: spool.stats().waiting == 0)
    numbers = [e.seq for e in in_order(events_of(messages.of(secret_topic)))]
    assert numbers == list(range(1, 60, 2))


def test_what_is_too_large_for_the_broker_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Mosquitto(tmp_path, lines=("max_packet_size 20000",)) as broker:
        messages = broker.subscribe("vedette/#")
        with device(tmp_path, broker.config()) as (spool, publisher):
            publisher.retain(TOPICS.snapshot("front"), bytes(50_000))
            wait_for(lambda: publisher.state.connected)
            publisher.send(TOPICS.detections("front"), bytes(50_000))
            spool.put(EVENTS, b"not an event")
            spool.put(EVENTS, event("x" * 30_000))
            spool.put(EVENTS, event())
            messages.wait(lambda m: len(m.of(EVENTS)) == 1)
            wait_for(lambda: spool.stats().waiting == 0)
            assert publisher.state.dropped_samples == 1
            assert publisher.state.connected
    assert len(warnings(caplog)) == 3


def test_a_small_window_of_the_broker_is_respected(tmp_path: Path) -> None:
    with Mosquitto(tmp_path, lines=("max_inflight_messages 1",)) as broker:
        messages = broker.subscribe("vedette/#")
        with device(tmp_path, broker.config()) as (spool, publisher):
            publisher.retain(TOPICS.health, b"{}")
            for _ in range(100):
                spool.put(EVENTS, event())
            messages.wait(lambda m: len(m.of(EVENTS)) == 100 and m.of(TOPICS.health))
            assert publisher.state.connected


def test_a_broker_that_only_speaks_3_1_1(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "agent")
    with old_broker() as port:
        config = MqttConfig(host=HOST, port=port)
        with device(tmp_path, config) as (spool, publisher):
            for _ in range(20):
                spool.put(EVENTS, event())
            wait_for(lambda: publisher.state.acknowledged == 20)
            assert publisher.state.detail == "MQTT 3.1.1"
        with device(tmp_path, replace(config, protocol="5", reconnect_max_s=0.2)) as (_, publisher):
            time.sleep(0.5)
            assert not publisher.state.connected
    assert "MQTT 3.1.1" in caplog.text


@contextmanager
def old_broker() -> Iterator[int]:
    """An amqtt, which knows MQTT 3.1.1 only."""
    amqtt = pytest.importorskip("amqtt.broker", reason="amqtt is not installed (extra [demo])")
    port, ready, over = free_port(), threading.Event(), threading.Event()
    listener = {"type": "tcp", "bind": f"{HOST}:{port}"}
    plugins = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}

    async def run() -> None:
        broker = amqtt.Broker({"listeners": {"default": listener}, "plugins": plugins})
        await broker.start()
        ready.set()
        while not over.is_set():
            await asyncio.sleep(0.05)
        await broker.shutdown()

    thread = threading.Thread(target=lambda: asyncio.run(run()), name="old-broker")
    thread.start()
    try:
        assert ready.wait(60.0)
        yield port
    finally:
        over.set()
        thread.join(60.0)


def test_kill_9_of_a_batch_leaves_a_gap_and_uses_no_number_twice(tmp_path: Path) -> None:
    batch = StorageConfig(durability="batch")
    with Mosquitto(tmp_path, persistence=True) as broker:
        messages = broker.subscribe("vedette/#", lasting=True)
        for _ in range(3):
            with process(tmp_path, broker.port, count=10_000, pause_s=0.02, durability="batch") as running:
                assert running.stdout is not None
                stored = [running.stdout.readline().strip() for _ in range(60)]
            assert stored
        with device(tmp_path, broker.config(), batch) as (spool, _):
            wait_for(lambda: spool.stats().waiting == 0)
    events = in_order(events_of(messages.of(EVENTS)))
    numbers = [e.seq for e in events]
    assert numbers == sorted(set(numbers)), "no number twice, and the order is kept"
    # Smaller ones are of what lay in memory while the broker was not there yet.
    behind = [e for before, e in pairwise(events) if e.seq > before.seq + 1000]
    assert len(behind) == 2, "one for each crash"
    assert [e.first_seq for e in behind] == [e.seq for e in behind], "a run begins behind each of them"


def test_the_history_is_read_beside_a_device_that_publishes(broker: Mosquitto, tmp_path: Path) -> None:
    messages = broker.subscribe("vedette/#")
    with device(tmp_path, broker.config()) as (spool, _):
        for _ in range(300):
            spool.put(EVENTS, event())
        messages.wait(lambda m: len(m.of(EVENTS)) == 300)
        wait_for(lambda: spool.stats().waiting == 0)
        wait_for(lambda: all(past.acknowledged for past in History(tmp_path).after(0)))
        done = subprocess.run(
            [sys.executable, "-m", "agent", "events", "export", "--folder", str(tmp_path)],
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
        exported = [msgspec.json.decode(line) for line in done.stdout.splitlines()]
    got = [msgspec.json.decode(body) for body in messages.of(EVENTS)]
    assert all(row.pop("acknowledged") for row in exported)
    assert {row.pop("topic") for row in exported} == {EVENTS}
    for message in (*got, *exported):
        message["latency_ms"] |= {"publish": None, "total": None}
    assert exported == got
