"""What a stream's settings and its model say of each other."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.config import ClipsConfig, DecodeConfig, GateConfig, StreamConfig, ZoneConfig
from agent.config.features import InspectionConfig
from agent.config.places import FilterConfig, LineConfig
from agent.daemon.streams.perception import open_perception
from agent.errors import ConfigError
from tests.support.doubles import person_model
from tests.support.tflite_builder import constant_model

LINE = ((0.0, 0.5), (1.0, 0.5))
PART = (0.25, 0.25, 0.75, 0.75)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"crop": (0.5, 0.0, 0.5, 1.0)}, "left, top, right, bottom"),
        ({"crop": (0.0, 0.9, 1.0, 0.1)}, "left, top, right, bottom"),
        ({"crop": PART, "gate": GateConfig(crop=True)}, "gate.crop"),
        ({"crop": PART, "inspection": InspectionConfig()}, "inspection.crop"),
        ({"decode": DecodeConfig(pattern="[0-9]+")}, "reads none"),
        ({"lines": (LineConfig("gate", LINE[:1]),)}, "line 'gate': `points` has 1: give 2"),
        ({"filters": (FilterConfig(min_area=0.5, max_area=0.1),)}, "min_area, 0.5, is more than max_area, 0.1"),
        ({"gate": GateConfig(masks=(LINE,))}, "gate.masks: mask 1: the polygon has 2 corners"),
        ({"inspection": InspectionConfig(), "lines": (LineConfig("gate", LINE),)}, "lines belong to tracks"),
    ],
)
def test_what_the_model_cannot_do_is_refused(tmp_path: Path, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        open_perception("front", StreamConfig("test:", str(person_model(tmp_path)), **settings))


def test_sound_has_no_crop() -> None:
    with pytest.raises(ConfigError, match="takes sound"):
        open_perception("kitchen", StreamConfig("mic:default", "small-speech", crop=PART))


@pytest.mark.parametrize(
    "settings",
    [
        {"lines": (LineConfig("gate", LINE),)},
        {"filters": (FilterConfig(),)},
        {"gate": GateConfig(masks=((*LINE, (0.5, 0.9)),))},
    ],
)
def test_sound_has_no_lines_filters_and_masks(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="takes sound"):
        open_perception("kitchen", StreamConfig("mic:default", "small-speech", **settings))


CORNERS = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0))
NAMING: dict[str, Callable[[str], Any]] = {
    "zones": lambda label: (ZoneConfig("yard", CORNERS, (label,)),),
    "lines": lambda label: (LineConfig("gate", LINE, (label,)),),
    "filters": lambda label: (FilterConfig((label,)),),
    "clips": lambda label: ClipsConfig(labels=(label,)),
}


@pytest.mark.parametrize("key", NAMING)
def test_a_label_that_is_never_reported_is_refused_wherever_it_is(key: str) -> None:
    front = partial(StreamConfig, "test:", "nanodet", decode=DecodeConfig(labels=("person", "dog")))
    for label, why in (("car", ": decode.labels leaves it out"), ("persn", "; did you mean 'person'?")):
        named: dict[str, Any] = {key: NAMING[key](label)}
        with pytest.raises(ConfigError) as refused:
            open_perception("front", front(**named))
        assert str(refused.value) == f"{key}.labels: the stream never reports {label!r}{why}"


def test_clips_may_be_of_any_text(tmp_path: Path) -> None:
    (tmp_path / "plate.tflite").write_bytes(constant_model({"text": np.zeros((1, 5, 3), np.float32)}))
    (tmp_path / "plate.toml").write_text('[output]\ndecoder = "ctc"\nlabels = ["0", "1"]\n')
    clips = ClipsConfig(labels=("1001",))
    open_perception("front", StreamConfig("test:", str(tmp_path / "plate.toml"), clips=clips)).close()
