"""Streams by their configuration and their model's manifest, as Home Assistant is to know them."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from msgspec.structs import replace

from agent.comms.homeassistant.device import Kind, ZoneLabel
from agent.comms.homeassistant.discovery import STATES
from agent.config import DecodeConfig, StreamConfig, ZoneConfig
from agent.config.filters import LineConfig
from agent.daemon.homeassistant import entity_source
from agent.daemon.streams.services import State
from tests.support.doubles import person_model

ALL = ZoneConfig("all", ((0, 0), (1, 0), (1, 1)))


def test_every_state_of_a_stream_is_an_option() -> None:
    assert get_args(State) == STATES


@pytest.mark.parametrize(
    ("model", "kind", "some", "others"),
    [
        ("nanodet", "things", {"person", "traffic light"}, set()),
        ("small-speech", "words", {"zero", "nine"}, {"silence", "unknown"}),
    ],
)
def test_a_bundled_model_tells_what_may_come(model: str, kind: Kind, some: set[str], others: set[str]) -> None:
    made = entity_source("front", StreamConfig("test:", model))
    assert made.kind == kind
    assert some <= set(made.labels)
    assert not others & set(made.labels)
    assert made.configured_labels == ()


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


@pytest.mark.parametrize(
    ("manifest", "kind", "labels"),
    [
        ('decoder = "classify"\nlabels = ["good", "", "???", "bad"]', "verdicts", ("good", "bad")),
        ('decoder = "blazeface"', "things", ("face",)),
        ('decoder = "ctc"\nlabels = ["0", "1", "2"]', "texts", ()),
        ('decoder = "keypoints"', "things", ("person",)),
        ('decoder = "keyword"\nlabels = ["go", "none"]\n[output.options]\nignore = ["none"]', "words", ("go",)),
    ],
)
def test_a_model_of_any_kind_is_told_by_its_manifest(
    tmp_path: Path, manifest: str, kind: Kind, labels: tuple[str, ...]
) -> None:
    path = person_model(tmp_path)
    path.write_text(f'name = "any"\n[output]\n{manifest}\n')
    made = entity_source("front", StreamConfig("test:", str(path)))
    assert (made.kind, made.labels) == (kind, labels)


def test_a_model_of_many_sounds_is_none_of_words(tmp_path: Path) -> None:
    path = person_model(tmp_path)
    audio = '[audio]\nrate_hz = 16000\nfrontend = "raw"\n'
    path.write_text(f'name = "any"\n{audio}[output]\ndecoder = "classify"\nlabels = ["Bark"]\n')
    made = entity_source("yard", StreamConfig("mic:default", str(path)))
    assert (made.kind, made.labels) == ("sounds", ("Bark",))


def test_a_model_that_is_not_there_leaves_open_what_it_finds(tmp_path: Path) -> None:
    made = entity_source("front", StreamConfig("test:", str(tmp_path / "gone.tflite")))
    assert (made.kind, made.labels) == (None, ())


def test_lines_are_there_from_the_start() -> None:
    lines = (LineConfig("gate", ((0.0, 0.5), (1.0, 0.5))), LineConfig("road", ((0.5, 0.0), (0.5, 1.0))))
    assert entity_source("front", StreamConfig("test:", "nanodet", lines=lines)).lines == ("gate", "road")
