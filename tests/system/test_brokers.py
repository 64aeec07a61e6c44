"""Several brokers in their order, each a real one."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from agent.comms.mqtt.connection import ConnectionTimings
from agent.config.servers import FallbackConfig, MqttConfig
from tests.support.hostile import forwarder, peer
from tests.support.mosquitto import HOST, Mosquitto, free_port
from tests.support.publishing import EVENTS, TOPICS, event, events_of, in_order, wait_for
from tests.support.publishing import device as usual_device

HEALTH = TOPICS.health

device = partial(usual_device, timings=ConnectionTimings(return_every_s=0.5))


@pytest.fixture
def second(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path / "second", users={"guest": "other"}) as running:
        yield running


def both(first: Mosquitto, second: Mosquitto, **fields: Any) -> MqttConfig:
    there = second.config()
    fallback = FallbackConfig(HOST, second.port, username=there.username, password_file=there.password_file)
    return first.config(fallback=(fallback,), reconnect_max_s=0.3, fallback_after_s=0.5, **fields)


def where(broker: Mosquitto) -> str:
    return f"{HOST}:{broker.port}"


def test_the_fallback_takes_over_and_the_first_is_returned_to(
    tmp_path: Path, broker: Mosquitto, second: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "agent.comms")
    there = second.subscribe("vedette/#")
    here = broker.subscribe("vedette/#")
    with device(tmp_path, both(broker, second)) as (spool, publisher):
        publisher.retain(HEALTH, b"{}")
        spool.put(EVENTS, event())
        here.wait(lambda m: m.of(HEALTH) and m.of(EVENTS))
        assert (publisher.state.broker, publisher.state.is_fallback) == (where(broker), False)
        broker.kill()
        for _ in range(20):
            spool.put(EVENTS, event())
        there.wait(lambda m: m.of(HEALTH) == [b"{}"] and m.of(TOPICS.status) == [b"online"])
        wait_for(lambda: spool.stats().waiting == 0)
        state = publisher.state
        assert (state.broker, state.is_fallback, state.connects) == (where(second), True, 2)
        assert state.detail == f"MQTT 5 as user 'guest', in place of {where(broker)}"
        assert state.trouble == f"{where(broker)}: the connection broke"
        broker.start()
        here = broker.subscribe("vedette/#")
        here.wait(lambda m: m.of(TOPICS.status)[-1:] == [b"online"] and m.of(HEALTH) == [b"{}"])
        there.wait(lambda m: m.of(TOPICS.status) == [b"online", b"offline"])
        spool.put(EVENTS, event())
        here.wait(lambda m: m.of(EVENTS))
        wait_for(lambda: publisher.state.broker == where(broker))
        time.sleep(1.5)
        assert publisher.state.connects == 3, "it stays"
    assert [e.seq for e in in_order(events_of(there.of(EVENTS)))] == list(range(2, 22))
    said = caplog.text.splitlines()  # as it was said then: the broker's name in a record is that of now
    assert sum(f"broker {where(broker)} answers again: leaving {where(second)}" in line for line in said) == 1
    assert sum("events wait in the spool" in line for line in said) == 1
    assert sum(f"broker {where(second)}: back after" in line for line in said) == 1


def test_moving_back_under_load_loses_and_repeats_nothing(
    tmp_path: Path, broker: Mosquitto, second: Mosquitto
) -> None:
    there = second.subscribe("vedette/#")
    broker.kill()
    with device(tmp_path, both(broker, second)) as (spool, publisher):
        wait_for(lambda: publisher.state.is_fallback and publisher.state.connected)
        broker.start()
        here = broker.subscribe("vedette/#")
        total = 0
        while publisher.state.is_fallback:
            spool.put(EVENTS, event())
            total += 1
            time.sleep(0.001)
        for _ in range(100):
            spool.put(EVENTS, event())
        total += 100
        wait_for(lambda: spool.stats().waiting == 0)
        here.wait(lambda m: len(there.of(EVENTS)) + len(m.of(EVENTS)) == total)
    numbers = [e.seq for messages in (there, here) for e in events_of(messages.of(EVENTS))]
    assert numbers == list(range(1, total + 1))


def test_a_broker_that_refuses_us_is_passed_over_at_once(
    tmp_path: Path, second: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    with Mosquitto(tmp_path, users={"cam": "s3cret"}) as first:
        secret = tmp_path / "wrong"
        secret.touch(mode=0o600)
        secret.write_text("not-it")
        config = replace(both(first, second, password_file=str(secret)), fallback_after_s=100.0)
        with device(tmp_path, config) as (spool, publisher):
            spool.put(EVENTS, event())
            wait_for(lambda: publisher.state.connected, 50.0)
            assert publisher.state.is_fallback
            wait_for(lambda: spool.stats().waiting == 0)
    assert "refuses user 'cam': not authorized" in caplog.text
    assert "s3cret" not in caplog.text + str(publisher.state)


def test_two_doors_of_one_broker_are_no_two_devices(
    tmp_path: Path, second: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    there = second.config()
    port = free_port()
    fallback = FallbackConfig(HOST, second.port)
    config = MqttConfig(
        host=HOST,
        port=port,
        username="guest",
        password_file=there.password_file,
        fallback=(fallback,),
        fallback_after_s=0.0,
        reconnect_max_s=0.3,
    )
    with device(tmp_path, config) as (spool, publisher):
        wait_for(lambda: publisher.state.connected)
        assert publisher.state.is_fallback
        said = len(caplog.records)
        with peer(forwarder(second.port), port=port):
            wait_for(lambda: publisher.state.connected and not publisher.state.is_fallback)
            spool.put(EVENTS, event())
            wait_for(lambda: spool.stats().waiting == 0)
            assert publisher.state.connects == 2
            assert [r.getMessage() for r in caplog.records[said:] if r.levelno >= logging.WARNING] == []
            publisher.stop(1.0)


def test_nobody_is_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = MqttConfig(
        host=HOST,
        port=free_port(),
        fallback=(FallbackConfig(HOST, free_port()), FallbackConfig("nowhere.invalid")),
        fallback_after_s=0.0,
        reconnect_max_s=0.2,
    )
    with device(tmp_path, config) as (_, publisher):
        time.sleep(1.5)
        assert not publisher.state.connected
        publisher.stop(0.5)
    assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 1
