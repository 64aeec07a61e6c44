"""Rights by topic: the example access list and configuration in a real mosquitto."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from agent.comms.mqtt.publisher import Publisher
from agent.comms.topics import Topics
from agent.config import StorageConfig
from agent.storage.spool.spool import Spool
from tests.support.mosquitto import Mosquitto
from tests.support.publishing import event, wait_for
from tests.support.received import Messages
from tests.support.rights import EXAMPLES, example_acl

ACL = example_acl()
USERS = {name: f"secret of {name}" for name in ("porch", "shed", "kitchen", "chief", "homeassistant")}
PORCH, SHED = Topics("vedette", "porch"), Topics("vedette", "shed")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path, users=USERS, acl=ACL) as running:
        yield running


class Device:
    """One that publishes, listens to its commands and answers them."""

    def __init__(self, folder: Path, broker: Mosquitto, topics: Topics) -> None:
        self.topics, self.heard = topics, list[str]()
        folder.mkdir()
        self.spool = Spool(folder, StorageConfig())
        self.publisher = Publisher(broker.config(user=topics.device), topics, self.spool)
        for pattern in topics.commands:
            self.publisher.listen(pattern, lambda received: self._take(received.topic))
        self.publisher.start()
        wait_for(lambda: self.publisher.state.connected)

    def _take(self, topic: str) -> None:
        self.heard.append(topic)
        self.publisher.answer(self.topics.answer("status"), b"{}")

    def stop(self) -> None:
        self.publisher.stop(1.0)
        self.spool.close()


@pytest.fixture
def porch(tmp_path: Path, broker: Mosquitto) -> Iterator[Device]:
    made = Device(tmp_path / "porch", broker, PORCH)
    yield made
    made.stop()


def say(voice: Messages, topic: str, payload: bytes = b"off") -> int:
    """Publish at QoS 1; gives the broker's reason code."""
    codes: list[int] = []
    voice.client.on_publish = lambda _c, _u, _m, reason, _p: codes.append(int(reason.value))
    voice.client.publish(topic, payload, qos=1)
    wait_for(lambda: codes)
    return codes[0]


COMMANDS = [PORCH.set("front", "enabled"), PORCH.set("front", "zone/drive"), PORCH.command("status")]


def test_an_operators_commands_arrive_and_are_answered(broker: Mosquitto, porch: Device) -> None:
    chief = broker.subscribe("vedette/#", user="chief")
    for topic in COMMANDS:
        assert say(chief, topic) < 0x80
    wait_for(lambda: porch.heard == COMMANDS)
    chief.wait(lambda m: m.of(PORCH.answer("status")))


@pytest.mark.parametrize("user", ["kitchen", "shed"])
def test_a_readers_commands_and_those_of_another_device_never_arrive(
    broker: Mosquitto, porch: Device, user: str
) -> None:
    voice, chief = broker.subscribe("x", user=user), broker.subscribe("x", user="chief")
    for topic in [*COMMANDS, PORCH.command("status/answer"), PORCH.status, PORCH.events("front")]:
        assert say(voice, topic) == 0x87, "not authorised"
    say(chief, COMMANDS[0])
    wait_for(lambda: porch.heard)
    assert porch.heard == COMMANDS[:1], "that of the operator, which came last"


def test_texts_come_from_operators_alone(broker: Mosquitto, porch: Device) -> None:
    topic = PORCH.text("gate")
    porch.publisher.listen(topic, lambda received: porch.heard.append(received.topic))
    chief = broker.subscribe("x", user="chief")

    def arrived() -> bool:
        assert say(chief, topic, b"help") < 0x80
        return porch.heard == [topic] * len(porch.heard) != []

    wait_for(arrived)
    for user in ("kitchen", "shed"):
        assert say(broker.subscribe("x", user=user), topic, b"help") == 0x87, "not authorised"


@pytest.mark.parametrize("user", ["kitchen", "chief", "homeassistant"])
def test_nobody_but_devices_speaks_as_a_device_not_even_one_of_his_own_name(broker: Mosquitto, user: str) -> None:
    own, voice = Topics("vedette", user), broker.subscribe("x", user=user)
    said = [own.status, own.health, own.events("front"), own.state("front", "enabled"), own.answer("status")]
    for topic in [*said, f"homeassistant/device/{user}/config"]:
        assert say(voice, topic) == 0x87, "not authorised"


def test_mosquitto_finds_nothing_wrong_with_the_access_list(broker: Mosquitto) -> None:
    log = (broker.folder / "mosquitto.log").read_text()
    assert "running" in log
    assert [line for line in log.splitlines() if "ACL" in line and ("Warning" in line or "Error" in line)] == []


def test_readers_hear_everything_that_a_device_says(broker: Mosquitto, porch: Device) -> None:
    kitchen, own = broker.subscribe("vedette/#", user="kitchen"), PORCH
    said = [own.health, own.snapshot("front"), own.count("front", "person"), own.state("front", "zone/drive")]
    for topic in said:
        porch.publisher.retain(topic, b"1")
    porch.spool.put(own.events("front"), event())
    porch.publisher.send(own.detections("front"), b"{}")
    kitchen.wait(
        lambda m: {one.topic for one in m} >= {*said, own.status, own.events("front"), own.detections("front")}
    )


def test_a_stolen_device_speaks_for_itself_only_and_hears_no_other(
    tmp_path: Path, broker: Mosquitto, porch: Device
) -> None:
    shed = Device(tmp_path / "shed", broker, SHED)
    try:
        chief = broker.subscribe("vedette/#", user="chief")
        shed.publisher.listen("vedette/porch/#", lambda received: shed.heard.append(received.topic))
        shed.publisher.retain(PORCH.health, b"forged")
        shed.publisher.retain("homeassistant/device/porch/config", b"forged")
        shed.publisher.answer(PORCH.command("reload"), b"")
        shed.publisher.answer(SHED.command("reload"), b"")
        shed.publisher.retain(SHED.health, b"own")
        chief.wait(lambda m: m.of(SHED.health) == [b"own"])
        say(chief, COMMANDS[0])
        wait_for(lambda: porch.heard == COMMANDS[:1])
        assert chief.of(PORCH.health) == []
        assert shed.heard == []
    finally:
        shed.stop()


def test_home_assistant_commands_and_tells_when_it_starts(broker: Mosquitto, porch: Device) -> None:
    heard: list[bytes] = []
    porch.publisher.listen("homeassistant/status", lambda received: heard.append(received.payload))
    voice = broker.subscribe("homeassistant/#", user="homeassistant")
    porch.publisher.retain("homeassistant/device/porch/config", b"{}")
    voice.wait(lambda m: m.of("homeassistant/device/porch/config"))
    say(voice, "homeassistant/status", b"online")
    say(voice, COMMANDS[0])
    wait_for(lambda: (heard, porch.heard) == ([b"online"], COMMANDS[:1]))


def test_a_device_finds_what_it_has_announced_and_not_what_another_has(
    tmp_path: Path, broker: Mosquitto, porch: Device
) -> None:
    topic = "homeassistant/device/porch/config"
    porch.publisher.retain(topic, b"{}")
    broker.subscribe(topic, user="homeassistant").wait(lambda m: m.of(topic))
    own, others = list[bytes](), list[bytes]()
    porch.publisher.ask(topic, own.append)
    shed = Device(tmp_path / "shed", broker, SHED)
    shed.publisher.ask(topic, others.append)
    try:
        wait_for(lambda: own and others)
    finally:
        shed.stop()
    assert (own, others) == ([b"{}"], [b""])


def test_the_example_configuration_runs_and_lets_nobody_in_without_a_name(tmp_path: Path) -> None:
    secret = Mosquitto(tmp_path, users=USERS, tls=True, acl=ACL)
    text = (EXAMPLES / "mosquitto.conf").read_text()
    text = text.replace("listener 8883", f"listener {secret.port} 127.0.0.1")
    for name, file in (("passwords", "passwords"), ("vedette.acl", "acl")):
        text = text.replace(f"/etc/mosquitto/{name}", str(secret.folder / file))
    text = re.sub(r"/etc/mosquitto/certs", str(secret.folder), text)
    (secret.folder / "mosquitto.conf").write_text(f"{'user root' if os.geteuid() == 0 else ''}\n{text}")
    with secret as broker:
        chief, kitchen = (broker.subscribe("vedette/#", user=user) for user in ("chief", "kitchen"))
        assert say(chief, COMMANDS[0]) < 0x80
        assert say(kitchen, COMMANDS[0]) == 0x87
        chief.wait(lambda m: m.of(COMMANDS[0]) == [b"off"])
        refused: list[int] = []
        client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        client.tls_set(str(broker.ca_file))
        client.on_connect = lambda _c, _u, _f, reason, _p: refused.append(int(reason.value))
        client.connect("127.0.0.1", broker.port)
        client.loop_start()
        wait_for(lambda: refused)
        client.loop_stop()
        assert refused[0] == 0x87
