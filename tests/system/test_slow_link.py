"""A real broker behind a slow line: events go first, and of what they overtake the newest arrives."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.support.doubles import person_model
from tests.support.mosquitto import HOST, Mosquitto
from tests.support.publishing import EVENTS, TOPICS, device, event, events_of, wait_for
from tests.support.running import Vedette, camera, events
from tests.support.slow_link import SlowLink

BYTES_PER_S = 60_000.0
SNAPSHOTS = [TOPICS.snapshot(name) for name in ("front", "back", "yard", "door")]
SAMPLES = TOPICS.detections("front")


def test_an_event_waits_for_one_snapshot_at_most(broker: Mosquitto, tmp_path: Path) -> None:
    messages = broker.subscribe("vedette/#")
    with SlowLink(broker.port, BYTES_PER_S) as link:
        config = broker.config(host=HOST, port=link.port)
        with device(tmp_path, config) as (spool, publisher):
            messages.wait(lambda m: m.of(TOPICS.status) == [b"online"])
            for topic in SNAPSHOTS:
                publisher.retain(topic, b"\xff" + bytes(50_000))
            wait_for(lambda: publisher.load().unsent_bytes > 100_000)
            for _ in range(3):
                spool.put(EVENTS, event())
            wait_for(lambda: publisher.load().oldest_s > 0.0)
            messages.wait(lambda m: len(m.of(EVENTS)) == 3 and all(m.of(topic) for topic in SNAPSHOTS))
            wait_for(lambda: publisher.load().unsent_bytes == publisher.load().oldest_s == 0)
    topics = [message.topic for message in messages if message.topic in (EVENTS, *SNAPSHOTS)]
    assert topics.index(EVENTS) <= 1
    assert topics[topics.index(EVENTS) :][:3] == [EVENTS] * 3


def test_of_snapshots_that_wait_only_the_newest_of_a_stream_is_sent(broker: Mosquitto, tmp_path: Path) -> None:
    messages = broker.subscribe("vedette/#")
    with SlowLink(broker.port, BYTES_PER_S) as link, device(tmp_path, broker.config(port=link.port)) as (_, mqtt):
        messages.wait(lambda m: m.of(TOPICS.status) == [b"online"])
        mqtt.retain(SNAPSHOTS[0], b"\xff" + bytes(50_000))
        wait_for(lambda: mqtt.load().unsent_bytes > 0)
        for number in range(5):
            mqtt.retain(SNAPSHOTS[1], b"\xff%d" % number + bytes(20_000))
        messages.wait(lambda m: bool(m.of(SNAPSHOTS[1])))
    assert [payload[:2] for payload in messages.of(SNAPSHOTS[1])] == [b"\xff4"]


def test_samples_that_the_line_cannot_carry_are_dropped_and_hold_up_no_event(
    broker: Mosquitto, tmp_path: Path
) -> None:
    messages = broker.subscribe("vedette/#")
    with (
        SlowLink(broker.port, BYTES_PER_S) as link,
        device(tmp_path, broker.config(port=link.port)) as (spool, mqtt),
    ):
        messages.wait(lambda m: m.of(TOPICS.status) == [b"online"])
        for number in range(300):
            mqtt.send(SAMPLES, b'{"n":%d}' % number + bytes(2000))
        wait_for(lambda: mqtt.load().unsent_bytes > 20_000)
        spool.put(EVENTS, event())
        messages.wait(lambda m: bool(m.of(EVENTS)))
        wait_for(lambda: mqtt.load().unsent_bytes == 0)
        dropped = mqtt.state.dropped_samples
    topics = [message.topic for message in messages if message.topic in (EVENTS, SAMPLES)]
    assert topics.index(EVENTS) < 64, "the samples that waited are behind it"
    assert len(messages.of(SAMPLES)) + dropped == 300
    assert dropped >= 300 - 64 - topics.index(EVENTS)


def test_on_a_slow_line_every_event_arrives_in_order(broker: Mosquitto, tmp_path: Path) -> None:
    messages = broker.subscribe("vedette/#")
    with (
        SlowLink(broker.port, BYTES_PER_S) as link,
        device(tmp_path, broker.config(port=link.port)) as (spool, mqtt),
    ):
        for number in range(100):
            spool.put(EVENTS, event())
            mqtt.send(SAMPLES, bytes(1000))
            mqtt.retain(SNAPSHOTS[number % 4], b"\xff%d" % number + bytes(30_000))
        messages.wait(lambda m: len(m.of(EVENTS)) == 100)
    assert [one.seq for one in events_of(messages.of(EVENTS))] == list(range(1, 101))


def test_the_less_important_stream_sends_fewer_samples_and_every_event_arrives(
    broker: Mosquitto, tmp_path: Path
) -> None:
    pytest.importorskip("ai_edge_litert", reason="models are written with ai-edge-litert")
    model = person_model(tmp_path)
    keys: dict[str, Any] = {"gate": {"motion": False}, "publish": {"detections": True}}
    streams = {
        name: camera(model, **keys, service={"priority": at}) for name, at in {"front": 80, "back": 20}.items()
    }
    messages = broker.subscribe("vedette/#")
    vedette = Vedette(tmp_path, broker, **streams)
    with SlowLink(broker.port, 8000.0) as link:
        vedette.config["mqtt"]["port"] = link.port
        with vedette:
            wait_for(lambda: vedette.said("stream front: detections every "), 60.0)
            assert "stream back: " in vedette.said(": detections every ")[0], (
                "the one with the lower priority first"
            )
            link.bytes_per_s = 1e8  # still a narrow line: its buffer stays small
            known = len(events(messages))
            messages.wait(lambda m: len(events(m)) >= known + 50, 60.0)
            assert vedette.end()[0] == 0
    numbers = [one.seq for name in streams for one in events(messages, name)]
    assert sorted(numbers) == list(range(min(numbers), max(numbers) + 1))
    assert all(earlier < later for earlier, later in pairwise([one.seq for one in events(messages, "front")]))
