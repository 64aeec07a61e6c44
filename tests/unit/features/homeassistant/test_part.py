"""Streams by their configuration, as Home Assistant is to know them."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import replace

from agent.comms.entities import Component
from agent.config import Config, DecodeConfig, StorageConfig, StreamConfig, ZoneConfig
from agent.config.places import LineConfig
from agent.config.servers import MqttConfig
from agent.daemon.parts import EntityPlace, entities
from agent.daemon.runtime import Runtime
from agent.features.homeassistant import part
from agent.features.homeassistant.discovery import ZoneLabel
from agent.features.homeassistant.part import entity_source, open_device_part
from agent.storage.spool.spool import Spool
from tests.support.doubles import person_model

ALL = ZoneConfig("all", ((0, 0), (1, 0), (1, 1)))


def test_a_label_that_nothing_names_is_not_there_from_the_start() -> None:
    assert entity_source("front", StreamConfig("test:", "nanodet")).configured_labels == ()


def test_labels_and_zones_that_the_configuration_names_are_there_from_the_start() -> None:
    zones = (ALL, replace(ALL, name="cars", labels=("car", "bus")))
    config = StreamConfig("test:", "nanodet", decode=DecodeConfig(labels=("person", "car")), zones=zones)
    made = entity_source("front", config)
    assert made.labels == ("person", "car")
    places = [("", "person"), ("", "car"), ("all", "person"), ("all", "car"), ("cars", "car")]
    assert made.configured_labels == tuple(ZoneLabel(*place) for place in places)


def test_a_zone_that_names_labels_names_them_for_itself_only() -> None:
    made = entity_source("front", StreamConfig("test:", "nanodet", zones=(replace(ALL, labels=("car",)),)))
    assert made.configured_labels == (ZoneLabel("all", "car"),)


def test_lines_are_there_from_the_start() -> None:
    lines = (LineConfig("gate", ((0.0, 0.5), (1.0, 0.5))), LineConfig("road", ((0.5, 0.0), (0.5, 1.0))))
    assert entity_source("front", StreamConfig("test:", "nanodet", lines=lines)).lines == ("gate", "road")


def test_what_features_give_is_made_anew_after_a_change_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = list[str]()

    def counted(place: EntityPlace) -> dict[str, Component]:
        made.append(place.name)
        return entities(place)

    monkeypatch.setattr(part, "entities_of_features", counted)
    front = StreamConfig("test:?size=64x48", str(person_model(tmp_path)), enabled=False)
    storage = StorageConfig(state_dir=str(tmp_path))
    with closing(Spool(tmp_path, storage)) as spool:
        runtime = Runtime(
            Config({"front": front, "back": front}, mqtt=MqttConfig(port=1), storage=storage), spool
        )
        runtime.prepare()
        announced = open_device_part(runtime)
        for _ in range(3):
            announced.poll()
        assert made == ["front", "back"]
        runtime.streams["front"].config = replace(front, publish=replace(front.publish, counts=False))
        for _ in range(3):
            announced.poll()
        assert made == ["front", "back", "front"]
