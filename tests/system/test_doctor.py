"""The doctor beside a daemon that runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.cli.checks import network
from agent.config.load import load
from tests.support.doubles import person_model
from tests.support.mosquitto import HOST, Mosquitto
from tests.support.publishing import TOPICS
from tests.support.rtsp import RtspServer
from tests.support.running import Vedette, camera, health, states


def test_the_daemon_and_its_camera_are_not_disturbed(
    tmp_path: Path, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    messages = broker.subscribe("vedette/#")
    with (
        RtspServer() as server,
        Vedette(tmp_path, broker, front=camera(person_model(tmp_path), server.uri)) as vedette,
    ):
        messages.wait(lambda m: states(m).get("front") == "running")
        found = {one.name: one for one in network.check_network(load(vedette.file).config, tmp_path)}
        came = len(messages.of(TOPICS.health))
        messages.wait(lambda m: len(m.of(TOPICS.health)) >= came + 2)
        told = health(messages)
    assert found["broker"].value == f"{HOST}:{broker.port}: accepts this device, MQTT 5"
    assert found["stream front"].value.endswith("not tried")
    assert messages.of(TOPICS.status)[:1] == [b"online"]
    assert b"offline" not in messages.of(TOPICS.status)[:-1]
    assert told is not None
    assert told.link is not None
    assert (told.link.connects, told.streams["front"].reopened) == (1, 0)
