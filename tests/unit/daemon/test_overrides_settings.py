"""Settings of a stream that operators can override."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from agent.config import Config, DecodeConfig, GateConfig, StreamConfig, ZoneConfig
from agent.config.places import FilterConfig, LineConfig
from agent.daemon.overrides import Overrides, Value, settings_after, settings_of
from agent.daemon.streams.perception import open_perception
from tests.support.doubles import person_model
from tests.support.sizes import sizes_model
from tests.support.sound import cascade_model, tone_model

SQUARE = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0))
SEEN: dict[str, Any] = {"64": [(0.9, (0.0, 0.0, 1.0, 1.0))], "32": []}


def test_states_are_what_a_command_could_have_set(tmp_path: Path) -> None:
    zones = (ZoneConfig("drive", SQUARE), ZoneConfig("lawn", SQUARE, enabled=False))
    lines = (LineConfig("gate", SQUARE[:2], enabled=False),)
    stream = StreamConfig("test:", str(person_model(tmp_path)), enabled=False, zones=zones, lines=lines)
    filters = (FilterConfig(("person",), name="people", enabled=False), FilterConfig())
    settings = settings_of(replace(stream, filters=filters, gate=GateConfig(masks=(SQUARE,))))
    assert settings.state_payloads() == {
        "enabled": "off",
        "threshold": "0.4",
        "variant": "full",
        "only_moving": "off",
        "zone/drive": "on",
        "zone/lawn": "off",
        "line/gate": "off",
        "motion_masks": "on",
        "filter/people": "off",
    }
    assert (settings.variants, settings.pictures) == (("full",), True)


def test_the_file_comes_before_the_manifest(tmp_path: Path) -> None:
    model = str(sizes_model(tmp_path, SEEN))
    stream = StreamConfig("test:", model, variant="32", decode=DecodeConfig(score_threshold=0.25))
    states = settings_of(stream).state_payloads()
    assert states == {"enabled": "on", "threshold": "0.25", "variant": "32", "only_moving": "off"}
    assert settings_of(StreamConfig("test:", model)).variant == "64"


@pytest.mark.parametrize("kind", ["sizes", "depths", "tones", "person"])
def test_every_variant_that_is_offered_can_be_opened_and_no_other(tmp_path: Path, kind: str) -> None:
    model = {
        "sizes": lambda: sizes_model(tmp_path, SEEN),
        "depths": lambda: cascade_model(tmp_path),
        "tones": lambda: tone_model(tmp_path),
        "person": lambda: person_model(tmp_path),
    }[kind]()
    source = "mic:default" if kind in ("depths", "tones") else "test:"
    settings = settings_of(StreamConfig(source, str(model)))
    assert settings.pictures is (source == "test:")
    assert ("auto" in settings.variants) is (kind == "depths")
    for variant in settings.variants:
        open_perception("front", StreamConfig(source, str(model), variant=variant)).close()
    assert settings_of(StreamConfig(source, str(model))).variant in settings.variants


def test_of_a_model_that_cannot_be_opened_only_the_rest_is_known() -> None:
    settings = settings_of(StreamConfig("test:", "nobody", zones=(ZoneConfig("drive", SQUARE),)))
    assert settings.state_payloads() == {"enabled": "on", "zone/drive": "on"}
    assert settings.variants == ()


@pytest.mark.parametrize(
    ("what", "value"),
    [
        ("zone/drive", False),
        ("line/gate", False),
        ("filter/people", True),
        ("motion_masks", False),
        ("only_moving", True),
        ("threshold", 0.7),
        ("variant", "full"),
    ],
)
def test_after_a_command_the_settings_are_those_of_the_changed_stream(
    tmp_path: Path, what: str, value: Value
) -> None:
    stream = StreamConfig(
        "test:",
        str(person_model(tmp_path)),
        zones=(ZoneConfig("drive", SQUARE),),
        lines=(LineConfig("gate", SQUARE[:2]),),
        filters=(FilterConfig(name="people", enabled=False),),
        gate=GateConfig(masks=(SQUARE,)),
    )
    file = Config({"front": stream})
    changed = Overrides().set(file, "front", what, value).apply_to(file).streams["front"]
    assert settings_after(settings_of(stream), changed, what, value) == settings_of(changed)
