"""Streams by their configuration, as Home Assistant is to know them."""

from __future__ import annotations

from msgspec.structs import replace

from agent.config import DecodeConfig, StreamConfig, ZoneConfig
from agent.config.filters import LineConfig
from agent.features.homeassistant.device import ZoneLabel
from agent.features.homeassistant.part import entity_source

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
